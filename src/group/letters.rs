//! The letters of a group that are under way, beside its calls: with deadlines, and with tickets if they were started.
//!
//! They go on whenever anybody polls the group, whatever its calls do. A letter that cannot end before its peer does
//! something is that peer's fault when the deadline passes or the peer is lost, and that fails the group. What is wrong
//! with one message alone does not (see [`crate::communicator::post`]).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::core::Ticket;
use crate::{
    bootstrap::Members,
    communicator::{
        Letter, Progress,
        post::{Accepted, Delivery, Post},
    },
    config::Timeout,
    dispatch::{Communicators, Plan},
    error::{Error, Failure, Result, Status},
};

/// Letters that can be under way at once before anything has to be allocated for them.
const AT_ONCE: usize = 8;

/// Letters under way.
pub(super) struct Letters {
    underway: Vec<Underway>,
    /// Letters of the blocking call.
    awaited: u32,
    /// How those ended that have: elements received, or the first error.
    outcome: Option<Delivery>,
}

struct Underway {
    key: u32,
    candidate: usize,
    letter: Letter,
    timeout: Timeout,
    /// `None` for a letter of the blocking call.
    ticket: Option<Arc<Ticket>>,
    /// When this rank handed it in; for the blocking call, which asks no clock where it meets its peer, the first look.
    since: Option<Instant>,
}

impl Letters {
    pub(super) fn new() -> Self {
        Letters { underway: Vec::with_capacity(AT_ONCE), awaited: 0, outcome: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.underway.is_empty()
    }

    /// How long the oldest has waited.
    pub(super) fn waited(&self) -> Option<Duration> {
        self.underway.iter().map(|one| one.since.map_or(Duration::ZERO, |since| since.elapsed())).max()
    }

    /// The post that carries the oldest.
    pub(super) fn post<'a>(&self, communicators: &'a mut Communicators) -> Option<&'a mut dyn Post> {
        post_of(communicators, self.underway.first()?.candidate).ok()
    }

    /// Whether all are carried by this candidate, so that its bell wakes for them.
    pub(super) fn are_all_with(&self, candidate: usize) -> bool {
        self.underway.iter().all(|one| one.candidate == candidate)
    }

    /// Hands a letter in; with a ticket if it is a started one. If it is the last of a blocking call (`last`), nothing is
    /// lost by looking a while for its message. An error is one of the whole group, or a refusal.
    #[inline]
    pub(super) fn begin(
        &mut self,
        (members, plan, communicators): (&Members, &Plan, &mut Communicators),
        (letter, last): (Letter, bool),
        timeout: Timeout,
        ticket: Option<Arc<Ticket>>,
    ) -> Result<()> {
        members.check()?;
        let descriptor = letter.descriptor();
        let candidate = plan.choose(&descriptor).ok_or_else(|| plan.refusal(&descriptor))?.candidate;
        let alone = last && self.underway.is_empty();
        let accepted = post_of(communicators, candidate)?.accept(&letter, alone);
        match accepted {
            Ok(Accepted::Over(delivery)) => self.end(&letter, ticket, delivery),
            Ok(Accepted::Underway(key)) => {
                self.awaited += u32::from(ticket.is_none());
                let since = ticket.is_some().then(Instant::now);
                self.underway.push(Underway { key, candidate, letter, timeout, ticket, since });
            }
            Err(error) => return Err(fail(members, error, &letter)),
        }
        Ok(())
    }

    /// How the blocking call's letters ended, once all have.
    #[inline]
    pub(super) fn take_outcome(&mut self) -> Option<Delivery> {
        if self.awaited > 0 { None } else { Some(self.outcome.take().unwrap_or(Ok(0))) }
    }

    /// Goes on with all, and says whether anything moved. A slow look (`look`) also checks deadlines and lives.
    #[inline]
    pub(super) fn poll(&mut self, members: &Members, communicators: &mut Communicators, look: bool) -> bool {
        if self.underway.is_empty() {
            return false;
        }
        let polled = self.go_on(members, communicators).and_then(|moved| {
            if look {
                self.look(members, communicators)?;
            }
            Ok(moved)
        });
        polled.unwrap_or_else(|error| {
            self.let_go(communicators, &error);
            true
        })
    }

    /// Ends all with an error, and lets go of their memory.
    pub(super) fn let_go(&mut self, communicators: &mut Communicators, error: &Error) {
        for one in std::mem::take(&mut self.underway) {
            if let Ok(post) = post_of(communicators, one.candidate) {
                post.let_go();
            }
            self.awaited -= u32::from(one.ticket.is_none());
            self.end(&one.letter, one.ticket, Err(error.clone()));
        }
    }

    fn go_on(&mut self, members: &Members, communicators: &mut Communicators) -> Result<bool> {
        // Whoever destroyed the group may have freed the memory.
        members.check()?;
        let mut moved = false;
        for candidate in 0..communicators.len() {
            let Some(first) = self.underway.iter().find(|one| one.candidate == candidate) else { continue };
            let progress = post_of(communicators, candidate)?.poll();
            if progress.map_err(|error| fail(members, error, &first.letter))? != Progress::Pending {
                moved = true;
                self.collect(communicators, candidate)?;
            }
        }
        Ok(moved)
    }

    /// Ends those that a communicator says are over.
    fn collect(&mut self, communicators: &mut Communicators, candidate: usize) -> Result<()> {
        while let Some((key, delivery)) = post_of(communicators, candidate)?.collect() {
            let at = self.underway.iter().position(|one| one.key == key && one.candidate == candidate);
            let Some(at) = at else { return Err(Error::Internal(format!("letter {key} ended, and nobody posted it"))) };
            let one = self.underway.swap_remove(at);
            self.awaited -= u32::from(one.ticket.is_none());
            self.end(&one.letter, one.ticket, delivery);
        }
        Ok(())
    }

    #[inline]
    fn end(&mut self, letter: &Letter, ticket: Option<Arc<Ticket>>, delivery: Delivery) {
        let received = delivery.map(|count| if letter.is_send() { 0 } else { count });
        match ticket {
            Some(ticket) => ticket.complete_letter(received),
            None => {
                self.outcome = Some(match (self.outcome.take(), received) {
                    (Some(Err(error)), _) => Err(error),
                    (Some(Ok(before)), Ok(count)) => Ok(before + count),
                    (_, received) => received,
                });
            }
        }
    }

    /// The slow look: has a peer of a waiting letter died, has a deadline passed? Before either is reported, the post is
    /// polled once more: what a rank sent before it went counts.
    #[cold]
    fn look(&mut self, members: &Members, communicators: &mut Communicators) -> Result<()> {
        let now = Instant::now();
        let late = |one: &Underway| {
            let patience = one.timeout.duration()?;
            (now.duration_since(one.since?) >= patience).then_some(patience)
        };
        let mut suspects: Vec<u32> = Vec::new();
        for one in &mut self.underway {
            one.since.get_or_insert(now);
            let peer = one.letter.peer();
            if !suspects.contains(&peer) && (members.lost(peer).is_some() || late(one).is_some()) {
                suspects.push(peer);
            }
        }
        if suspects.is_empty() {
            return Ok(());
        }
        self.go_on(members, communicators)?;
        for one in &self.underway {
            let (letter, peer) = (&one.letter, one.letter.peer());
            if !suspects.contains(&peer) {
                continue;
            }
            let what = || format!("{letter} on group {:?}", members.name());
            if let Some(loss) = members.lost(peer) {
                let text = format!("{}: rank {peer} is lost: {}", what(), loss.text);
                return Err(fail(members, failure(letter, (Status::PeerLost, peer), text), letter));
            }
            let Some(patience) = late(one) else { continue };
            let seconds = patience.as_secs_f64();
            if post_of(communicators, one.candidate)?.is_leaving(one.key) {
                let (what, me) = (what(), members.rank());
                let text =
                    format!("{what}: what is before it on the stream of rank {me} did not end within {seconds:.1} s");
                return Err(fail(members, failure(letter, (Status::Timeout, me), text), letter));
            }
            let missing = if letter.is_send() { "receive it" } else { "send it" };
            let state = match peer == members.rank() {
                true => {
                    "that is this rank itself: a message to oneself needs its other half started before it is waited \
                         for"
                    .to_owned()
                }
                false => format!("process {} of rank {peer} is alive", members.facts(peer).pid),
            };
            let text = format!("{}: rank {peer} did not {missing} within {seconds:.1} s; {state}", what());
            return Err(fail(members, failure(letter, (Status::Timeout, peer), text), letter));
        }
        Ok(())
    }
}

/// How a rank fails a letter.
fn failure(letter: &Letter, (status, rank): (Status, u32), text: String) -> Error {
    Error::from(Failure { status, rank: Some(rank), collective: Some(letter.collective()), sequence: 0, text })
}

/// What the error of a letter that fails the group becomes: the group's first failure.
#[cold]
fn fail(members: &Members, error: Error, letter: &Letter) -> Error {
    if members.is_closed() {
        return members.check().err().unwrap_or(error);
    }
    let failure = match error {
        Error::Failed(failure) => *failure,
        error => Failure {
            status: error.status(),
            rank: Some(members.rank()),
            collective: Some(letter.collective()),
            sequence: 0,
            text: error.to_string(),
        },
    };
    Error::from(members.fail(failure))
}

fn post_of(communicators: &mut Communicators, candidate: usize) -> Result<&mut dyn Post> {
    communicators
        .get_mut(candidate)
        .and_then(Option::as_mut)
        .and_then(|communicator| communicator.post())
        .ok_or_else(|| Error::Internal("the plan names a communicator without a post for a letter".into()))
}
