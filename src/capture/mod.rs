//! Capture sessions: what is captured on CUDA groups between begin and commit, agreed on by all ranks at commit.
//!
//! The calls of a group are captured like any other work of a stream, and are complete as they are: a kernel finds its
//! epoch, its peers and its failures in memory. So commit changes nothing yet. It only finds out whether all ranks have
//! captured the same calls of each group, because ranks whose graphs differ would meet in the wrong calls at replay; and
//! it is where captured buffers will be registered. A session never begins or ends a capture, and never waits for a rank
//! that has failed. On CPU groups it does nothing.
//!
//! # How commits end together
//!
//! A rank commits its groups one after the other, in an order that all ranks share. In every group of its session a rank
//! does one thing: it says what it captured, or that it gives up, and why. So after the first group that does not
//! commit it gives up all that follow. Whoever waits there hears that at once, and gives up what follows there: a chain
//! of groups that overlap ends from link to link, each rank with the cause, and groups that had no failure of
//! their own live. Nobody waits in a circle: of all groups in which ranks wait, the first in the order waits for
//! a rank that is in no earlier one.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use crate::{
    cuda::lane::Notes,
    error::{Error, Result},
    group::{Group, forked},
};

const OPEN: u8 = 0;
const COMMITTED: u8 = 1;
const ABORTED: u8 = 2;

/// A session over some groups. It keeps them, and so what their graphs touch, until it is dropped.
pub struct Session {
    parts: Vec<Part>,
    state: AtomicU8,
}

struct Part {
    /// What was captured; `None` on CPU groups. It goes before the group does, which keeps what graphs may touch for
    /// as long as there are notes of them.
    notes: Option<Arc<Notes>>,
    group: Arc<Group>,
}

impl Session {
    /// Opens a session: from now on the groups note what is captured.
    pub fn open(groups: Vec<Arc<Group>>) -> Self {
        let part = |group: Arc<Group>| {
            let notes = group.note_captures();
            Part { notes, group }
        };
        Session { parts: groups.into_iter().map(part).collect(), state: AtomicU8::new(OPEN) }
    }

    /// Ends the session, once all ranks of each group, in the session's order, have said that they captured the same.
    /// The first error is returned; the groups behind it are given up. In a batch, that is when the batch ends.
    pub fn commit(&self) -> Result<()> {
        self.end(COMMITTED)?;
        let (mut before, mut first) = (None, Ok(()));
        for (group, notes) in self.captured() {
            let (outcome, settled) = group.commit_capture(notes, before);
            first = first.and(outcome);
            before = Some(settled);
        }
        first
    }

    /// Ends the session; peers that wait in commit hear so at once.
    pub fn abort(&self) -> Result<()> {
        self.end(ABORTED)?;
        for (group, notes) in self.captured() {
            notes.close();
            group.abort_capture();
        }
        Ok(())
    }

    /// The groups in which calls can be captured.
    fn captured(&self) -> impl Iterator<Item = (&Arc<Group>, &Arc<Notes>)> {
        self.parts.iter().filter_map(|part| Some((&part.group, part.notes.as_ref()?)))
    }

    fn end(&self, how: u8) -> Result<()> {
        match self.state.compare_exchange(OPEN, how, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(COMMITTED) => Err(Error::usage("the session was committed before")),
            Err(_) => Err(Error::usage("the session was aborted before")),
        }
    }
}

impl Drop for Session {
    /// Peers may wait for what this rank says of its capture.
    fn drop(&mut self) {
        if !forked() {
            let _ = self.abort();
        }
    }
}
