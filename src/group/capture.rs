//! A rank's part in the commit of a capture: it says what it captured, or it gives up and says why, and never neither.

use std::{
    fmt::Display,
    future::poll_fn,
    sync::{Arc, OnceLock},
    task::Poll,
};

use crate::{
    bootstrap::{Members, control::Message},
    config::Timeout,
    cuda::lane::Notes,
    error::{Error, Result, Status},
};

/// How the commit of one group ended, for that of the next.
#[derive(Default)]
pub(crate) struct Settled(OnceLock<Result<()>>);

impl Settled {
    /// Why it failed, if it has.
    pub(super) fn error(&self) -> Option<Error> {
        self.0.get().and_then(|ended| ended.clone().err())
    }
}

/// The commit of one group on this rank. Dropped before it began, as by a batch that is cancelled, it tells the others.
pub(super) struct Commit {
    members: Arc<Members>,
    notes: Arc<Notes>,
    settled: Arc<Settled>,
    /// Whether the others hear from its session how it ends.
    begun: bool,
}

impl Commit {
    pub(super) fn new(members: Arc<Members>, notes: Arc<Notes>, settled: Arc<Settled>) -> Self {
        Commit { members, notes, settled, begun: false }
    }

    /// Agrees with all ranks, once the commit of the group before has ended well.
    pub(super) async fn run_after(self, before: &Settled, timeout: Timeout) -> Result<()> {
        let ended = poll_fn(|_| before.0.get().map_or(Poll::Pending, |ended| Poll::Ready(ended.clone()))).await;
        match ended {
            Ok(()) => self.run(timeout).await,
            Err(cause) => Err(self.give_up(&cause)),
        }
    }

    /// Agrees with all ranks. What the group captures from now on is none of this session's; what stood before the commit
    /// in a batch is.
    pub(super) async fn run(mut self, timeout: Timeout) -> Result<()> {
        self.begun = true;
        self.notes.close();
        let agreed = agree(&self.members, self.notes.read(), timeout).await;
        let _ = self.settled.0.set(agreed.clone());
        agreed
    }

    /// Tells the others that this rank will not commit, and why.
    pub(super) fn give_up(self, cause: &Error) -> Error {
        let _ = self.settled.0.set(Err(cause.clone()));
        give_up(&self.members, format_args!("rank {} gave up its capture", self.members.rank()), Some(cause))
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        self.notes.close();
        let ended = Error::usage("the commit of a capture was cancelled");
        if self.settled.0.set(Err(ended)).is_ok() && !self.begun {
            give_up(
                &self.members,
                format_args!("rank {} cancelled the commit of its capture", self.members.rank()),
                None,
            );
        }
    }
}

/// Tells whoever commits that this rank will not; never waits. The group lives, whatever the cause.
pub(super) fn give_up(members: &Arc<Members>, what: impl Display, cause: Option<&Error>) -> Error {
    let name = members.name();
    let error = match cause {
        Some(cause) => Error::usage(format_args!("{what} of group {name:?}: {cause}")),
        None => Error::usage(format_args!("{what} of group {name:?}")),
    };
    members.capture_session(None, subject(members)).give_up(&error);
    error
}

fn subject(members: &Members) -> String {
    format!("a capture of group {:?}", members.name())
}

/// Agrees with all members that they have captured the same: so many calls, with this digest. Ranks that differ fail
/// the group, as any failure does but one: a rank that gives up its capture only says so.
async fn agree(members: &Arc<Members>, captured: (u32, u64), timeout: Timeout) -> Result<()> {
    let mut session = members.capture_session(timeout.deadline(), subject(members));
    let mine = [u64::from(captured.0).to_le_bytes(), captured.1.to_le_bytes()].concat();
    let said = match session.all_gather(&mine, None).await {
        Ok(said) => said,
        Err(error) => {
            session.give_up(&error);
            return Err(match error.status() {
                // A peer has given up; if the group has failed, that is why.
                Status::InvalidUsage => members.check().err().unwrap_or_else(|| Error::usage(error)),
                _ => members.fail_with(error).into(),
            });
        }
    };
    session.finish().await?;
    // All ranks compare with the first, and so tell one story.
    let Some((first, rank)) = said.first().zip(said.iter().position(|message| message.body != said[0].body)) else {
        return Ok(());
    };
    let calls = |message: &Message| message.body.first_chunk().map_or(0, |count| u64::from_le_bytes(*count));
    let (ours, theirs, name) = (calls(first), calls(&said[rank]), members.name());
    let text = match ours == theirs {
        true => format!("ranks 0 and {rank} captured {ours} calls each of group {name:?}, but different ones"),
        false => format!("rank 0 captured {ours} calls of group {name:?}, rank {rank} {theirs}"),
    };
    Err(members.fail_with(Error::failed(Status::Mismatch, Some(rank as u32), text)).into())
}
