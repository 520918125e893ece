//! Capture sessions: what is captured on CUDA groups between begin and commit, agreed on by all ranks at commit.
//!
//! The calls of a group are captured like any other work of a stream, and are complete as they are: a kernel finds its
//! epoch, its peers and its failures in memory. So commit changes nothing yet. It only finds out whether all ranks have
//! captured the same calls of each group, because ranks whose graphs differ would meet in the wrong calls at replay; and
//! it is where captured buffers will be registered. A session never begins or ends a capture, and never waits for a rank
//! that has failed. On CPU groups it does nothing.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use crate::{
    cuda::lane::Notes,
    error::{Error, Result},
    group::Group,
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
    group: Arc<Group>,
    /// What was captured; `None` on CPU groups.
    notes: Option<Arc<Notes>>,
}

impl Session {
    /// Opens a session: from now on the groups note what is captured.
    pub fn open(groups: Vec<Arc<Group>>) -> Self {
        let part = |group: Arc<Group>| {
            let notes = group.note_captures();
            Part { group, notes }
        };
        Session { parts: groups.into_iter().map(part).collect(), state: AtomicU8::new(OPEN) }
    }

    /// Ends the session, once all ranks of each group, in the session's order, have said that they captured the same.
    pub fn commit(&self) -> Result<()> {
        self.end(COMMITTED)?;
        self.parts.iter().try_for_each(|part| match &part.notes {
            Some(notes) => part.group.commit_capture(notes),
            None => Ok(()),
        })
    }

    /// Ends the session; peers that wait in commit hear so at once.
    pub fn abort(&self) -> Result<()> {
        self.end(ABORTED)?;
        self.parts.iter().filter(|part| part.notes.is_some()).for_each(|part| part.group.abort_capture());
        Ok(())
    }

    fn end(&self, how: u8) -> Result<()> {
        match self.state.compare_exchange(OPEN, how, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(COMMITTED) => Err(Error::usage("the session was committed before")),
            Err(_) => Err(Error::usage("the session was aborted before")),
        }
    }
}
