//! Batches: calls that one thread makes for several ranks or groups before any of them begins.
//!
//! Between [`begin`] and [`end`], calls are only checked and written down. `end` starts them all, in order, and
//! waits for all. A call that is refused cancels the batch: nothing of it begins. Batches nest like NCCL's groups:
//! the outermost end counts.

use std::{cell::RefCell, fmt::Display, mem::ManuallyDrop, sync::Arc};

use super::{Group, core::Work, wait};
use crate::{
    config::Timeout,
    error::{Error, Result},
};

struct Batch {
    depth: u32,
    work: Vec<(Arc<Group>, Work)>,
    refused: Option<Error>,
}

thread_local! {
    // Without a destructor it outlives the others of its thread, so that handlers of `exit` may still use batches; it
    // owns nothing while no batch is open.
    static BATCH: RefCell<ManuallyDrop<Batch>> =
        const { RefCell::new(ManuallyDrop::new(Batch { depth: 0, work: Vec::new(), refused: None })) };
}

/// Opens a batch on this thread.
pub fn begin() -> Result<()> {
    with_batch(|batch| batch.depth += 1);
    Ok(())
}

/// Whether this thread has an open batch.
#[inline]
pub fn is_open() -> bool {
    with_batch(|batch| batch.depth > 0)
}

/// Does everything in the batch. The first error is returned; what failed alone left the others to go on.
pub fn end() -> Result<()> {
    let ended = with_batch(|batch| {
        batch.depth = batch.depth.checked_sub(1)?;
        Some(match batch.depth {
            0 => (std::mem::take(&mut batch.work), batch.refused.take()),
            _ => (Vec::new(), None),
        })
    });
    let (work, refused) = ended.ok_or_else(|| Error::usage("there is no open batch on this thread"))?;
    if let Some(refused) = refused {
        return Err(refused);
    }
    let mut groups: Vec<Arc<Group>> = Vec::new();
    for (group, _) in &work {
        if !groups.iter().any(|known| Arc::ptr_eq(known, group)) {
            groups.push(group.clone());
        }
    }
    // All the ways inside before anything begins: a group in which another thread is cancels the batch.
    let mut inside = groups.iter().map(|group| group.enter()).collect::<Result<Vec<_>>>()?;
    let occupied: Vec<_> = groups.iter().map(|group| group.occupy()).collect();
    let mut tickets = Vec::with_capacity(work.len());
    for (group, work) in work {
        if let Some(at) = groups.iter().position(|known| Arc::ptr_eq(known, &group)) {
            tickets.push((group, inside[at].enqueue(work)));
        }
    }
    drop(inside);
    let done = wait::for_tickets(&tickets, Timeout::Never).unwrap_or(Ok(()));
    drop(occupied);
    done
}

/// Writes work down.
pub(super) fn push(group: &Arc<Group>, work: Work) {
    with_batch(|batch| batch.work.push((group.clone(), work)));
}

/// Passes the check of `call` on, and lets a refusal cancel the open batch, if there is one.
pub(super) fn checked<T>(call: impl Display, outcome: Result<T>) -> Result<T> {
    outcome.inspect_err(|error| refuse(call, error))
}

/// Cancels the batch that is open on this thread, if there is one: `call`, which was for it, was refused with `error`.
pub fn refuse(call: impl Display, error: &Error) {
    with_batch(|batch| {
        if batch.depth > 0 && batch.refused.is_none() {
            batch.refused =
                Some(error.clone().over(format_args!("the batch was cancelled, because {call} was refused")));
        }
    });
}

/// Does something with this thread's batch.
fn with_batch<T>(body: impl FnOnce(&mut Batch) -> T) -> T {
    BATCH.with_borrow_mut(|batch| body(batch))
}
