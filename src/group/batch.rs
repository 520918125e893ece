//! Batches: calls that one thread makes for several ranks or groups before any of them begins.
//!
//! Between [`begin`] and [`end`], calls are only checked and written down. `end` starts them all, in order, and
//! waits for all. A call that is refused cancels the batch: nothing of it begins. Batches nest like NCCL's groups:
//! the outermost end counts.

use std::{cell::RefCell, sync::Arc};

use super::{Group, core::Work, wait};
use crate::{
    config::Timeout,
    error::{Error, Result},
};

#[derive(Default)]
struct Batch {
    depth: u32,
    work: Vec<(Arc<Group>, Work)>,
    refused: Option<Error>,
}

thread_local! {
    static BATCH: RefCell<Batch> = RefCell::default();
}

/// Opens a batch on this thread.
pub fn begin() -> Result<()> {
    BATCH.with_borrow_mut(|batch| batch.depth += 1);
    Ok(())
}

/// Whether this thread has an open batch.
#[inline]
pub fn is_open() -> bool {
    BATCH.with_borrow(|batch| batch.depth > 0)
}

/// Does everything in the batch. The first error is returned; what failed alone left the others to go on.
pub fn end() -> Result<()> {
    let (work, refused) = BATCH.with_borrow_mut(|batch| {
        if batch.depth == 0 {
            return Err(Error::usage("there is no open batch on this thread"));
        }
        batch.depth -= 1;
        Ok(match batch.depth {
            0 => (std::mem::take(&mut batch.work), batch.refused.take()),
            _ => (Vec::new(), None),
        })
    })?;
    if let Some(refused) = refused {
        return Err(refused);
    }
    let mut tickets = Vec::with_capacity(work.len());
    let mut trouble = Ok(());
    for (group, work) in work {
        match group.core.call() {
            Ok(mut core) => tickets.push((group.clone(), core.enqueue(work))),
            Err(error) => trouble = trouble.and(Err(error)),
        }
    }
    let done = wait::for_tickets(&tickets, Timeout::Never).unwrap_or(Ok(()));
    trouble.and(done)
}

/// Writes work down.
pub(super) fn push(group: &Arc<Group>, work: Work) {
    BATCH.with_borrow_mut(|batch| batch.work.push((group.clone(), work)));
}

/// Passes a call's check on, and lets a refusal cancel the open batch, if there is one.
pub(super) fn checked<T>(outcome: Result<T>) -> Result<T> {
    outcome.inspect_err(|error| refuse(error.clone()))
}

/// Cancels the batch that is open on this thread, if there is one: a call for it was refused with `error`.
pub fn refuse(error: Error) {
    BATCH.with_borrow_mut(|batch| {
        if batch.depth > 0 {
            batch.refused.get_or_insert(error);
        }
    });
}
