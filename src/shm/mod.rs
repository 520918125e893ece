//! The shared-memory communicator: ranks of one host, through memory they all map.
//!
//! * [`segment`] — where everything lies, and the counters by which staging slots are handed over;
//! * [`small`] — calls whose data travel with the header;
//! * [`hand_over`] — how bytes are put where another core reads them;
//! * [`post`] — messages from rank to rank;
//! * this page — the table of algorithms, and how the communicator is made.
//!
//! | algorithm | contribution | how |
//! |-----------|--------------|-----|
//! | line      | to 56 B      | in the cache line of the call's header |
//! | lines     | to 2 KiB     | in cache lines that carry a flag each |
//! | slot      | to 16 KiB    | in a slot that the header publishes |
//! | pipelined | any          | the plain [`Exchange`] over a ring of staging slots |

mod hand_over;
#[cfg(all(test, loom))]
mod model;
mod post;
mod segment;
mod small;

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use segment::Segment;
use small::{LINE_BYTES, LINES_BYTES, SLOT_BYTES, Scratch, Small, Way};

use crate::{
    bootstrap::{Members, mapping::Mapping, members::first_trouble, session::Session},
    communicator::{
        Algorithm, Call, Capabilities, Communicator, Meeting, Parts, Pattern, Placement, Progress, Provider, Ranks,
        Task, Uneven,
        exchange::{Exchange, Lanes},
        post::Post,
    },
    dtype::{COLLECTIVES, OPS, REDUCIBLE},
    error::{Error, Result},
};

/// The entry in the dispatcher's list.
pub struct Shm;

const ALGORITHMS: [Algorithm; 4] = [
    Algorithm { name: "line", up_to: LINE_BYTES as u64 },
    Algorithm { name: "lines", up_to: LINES_BYTES as u64 },
    Algorithm { name: "slot", up_to: SLOT_BYTES as u64 },
    Algorithm { name: "pipelined", up_to: u64::MAX },
];

impl Provider for Shm {
    fn name(&self) -> &'static str {
        "shm"
    }

    fn algorithms(&self) -> &'static [Algorithm] {
        &ALGORITHMS
    }

    fn probe(&self, members: &Members) -> Result<Capabilities, String> {
        if !members.on_one_host() {
            return Err("the ranks are on several hosts".into());
        }
        if let Some(why) = members.unshared() {
            return Err(format!("no memory could be shared: {why}"));
        }
        let mut capabilities = Capabilities::new(&COLLECTIVES, &REDUCIBLE, &OPS);
        capabilities.placement = Placement::Both;
        capabilities.rank_order = true;
        capabilities.detects_mismatch = true;
        // A sleeping rank is woken by the failure itself.
        capabilities.cancellable_within_ms = Some(10);
        Ok(capabilities)
    }

    fn create(&self, members: Arc<Members>, deadline: Option<std::time::Instant>) -> Task<Box<dyn Communicator>> {
        Box::pin(async move {
            let (mapping, fd) = share(&members, deadline).await?;
            Ok(Box::new(Communication::new(members, mapping, Some(fd))) as Box<dyn Communicator>)
        })
    }
}

/// Makes the segment together: the first rank makes the memfd, every rank maps it and commits its own part, so
/// that the part's pages come from the memory next to the rank.
async fn share(members: &Arc<Members>, deadline: Option<std::time::Instant>) -> Result<(Arc<Mapping>, OwnedFd)> {
    let bytes = Segment::bytes(members.size()) + post::bytes(members.size());
    let mut session = members.session(deadline, format!("shared memory of group {:?}", members.name()));
    let mapped = share_in(&mut session, members, bytes).await;
    match mapped {
        // Whether all ranks managed to map it is the dispatcher's next question.
        Ok(mapped) => session.finish().await.and(mapped),
        Err(error) => {
            session.give_up(&error);
            Err(error)
        }
    }
}

/// The outer error is the session's, and ends the making of the group; the inner one only this communicator's.
async fn share_in(session: &mut Session, members: &Members, bytes: usize) -> Result<Result<(Arc<Mapping>, OwnedFd)>> {
    let made: Result<Option<OwnedFd>> = match members.rank() {
        0 => Mapping::create("tutti-shm", bytes).map(Some),
        _ => Ok(None),
    };
    let trouble = made.as_ref().err().map(Error::to_string).unwrap_or_default();
    let descriptor = made.as_ref().ok().and_then(Option::as_ref);
    let said = session.all_gather(trouble.as_bytes(), descriptor).await?;
    if let Some(trouble) = first_trouble(members.world_ranks(), &said) {
        return Ok(Err(Error::Unsupported(trouble)));
    }
    let passed = descriptor.or_else(|| said.first().and_then(|message| message.descriptors.first()));
    Ok(passed.ok_or_else(|| Error::Internal("no descriptor came".into())).and_then(|fd| {
        let mine = Segment::part(members.rank());
        Mapping::commit(fd, mine.start, mine.len())?;
        post::commit(fd, Segment::bytes(members.size()), members.rank(), members.size())?;
        let kept = fd.try_clone().map_err(|error| Error::Unsupported(format!("cannot keep shared memory: {error}")))?;
        Ok((Mapping::open(fd, bytes)?, kept))
    }))
}

/// One rank's communicator.
struct Communication {
    members: Arc<Members>,
    meeting: Meeting,
    exchange: Exchange<Segment>,
    letters: post::Letters,
    /// The small call that is going on; else it is a v-form, or an exchange.
    small: Option<Small>,
    /// The v-form that is going on.
    parts: Option<Parts>,
    scratch: Scratch,
    /// What came out while this rank was about to sleep.
    outcome: Option<Result<Progress>>,
}

impl Communication {
    /// In a mapping of the segment and, behind it, the post; `fd` is what is mapped, if parts of it are still to be
    /// committed.
    fn new(members: Arc<Members>, mapping: Arc<Mapping>, fd: Option<OwnedFd>) -> Self {
        let segment = Segment::new(members.clone(), mapping.clone());
        let wire = post::Memory::new(members.clone(), mapping, Segment::bytes(members.size()), fd);
        Communication {
            meeting: Meeting::new(members.clone()),
            exchange: Exchange::new(members.clone(), segment),
            letters: post::Letters::new(members.clone(), wire),
            small: None,
            parts: None,
            scratch: Scratch::new(members.size()),
            outcome: None,
            members,
        }
    }

    #[inline]
    fn advance(&mut self) -> Result<Progress> {
        match (&mut self.small, &mut self.parts) {
            (Some(small), _) => small.poll(&self.members, &self.exchange.lanes, &mut self.meeting, &mut self.scratch),
            (None, Some(parts)) => parts.poll(&mut self.exchange, &mut self.meeting),
            (None, None) => self.exchange.poll(&mut self.meeting),
        }
    }
}

impl Communicator for Communication {
    fn start(&mut self, call: &Call, sequence: u64, algorithm: u8) -> Result<Progress> {
        let (me, size) = (self.members.rank(), self.members.size());
        let pattern = Pattern::new(&call.descriptor, me, size)
            .ok_or_else(|| Error::Internal(format!("{} is no exchange", call.descriptor)))?;
        self.outcome = None;
        self.parts = None;
        let way = match algorithm {
            0 => Some(Way::Line),
            1 => Some(Way::Lines),
            2 => Some(Way::Slot),
            _ => None,
        };
        // SAFETY: the group calls this once per sequence, in order, with contributions that the plan says fit.
        self.small = way.map(|way| unsafe {
            Small::begin(call, pattern.clone(), sequence, way, (&mut self.meeting, &self.exchange.lanes))
        });
        if way.is_none() {
            // SAFETY: as above; there is no payload.
            unsafe { self.meeting.begin(call.descriptor, sequence, &[]) };
            self.exchange.begin(call, pattern);
        }
        self.advance()
    }

    fn start_uneven(&mut self, call: Uneven, sequence: u64) -> Result<Progress> {
        self.outcome = None;
        self.small = None;
        // SAFETY: as above; there is no payload.
        unsafe { self.meeting.begin(call.descriptor, sequence, &[]) };
        self.parts = Some(Parts::new(self.members.clone(), call, sequence));
        self.advance()
    }

    fn poll(&mut self) -> Result<Progress> {
        match self.outcome.take() {
            Some(outcome) => outcome,
            None => self.advance(),
        }
    }

    fn rest(&mut self, at_most: Duration) {
        let members = self.members.clone();
        let doze = members.doze();
        // The look between "I am about to sleep" and sleeping, which makes a lost wake-up impossible.
        match self.advance() {
            Ok(Progress::Pending) if self.letters.is_still() && members.check().is_ok() => doze.sleep(at_most),
            outcome => self.outcome = Some(outcome),
        }
    }

    fn awaits(&mut self, rank: u32) -> bool {
        self.meeting.awaits(rank)
            || match (&self.small, &mut self.parts) {
                (Some(small), _) => small.awaits(&self.exchange.lanes, rank),
                (None, Some(parts)) => parts.awaits(&mut self.exchange, rank),
                (None, None) => self.exchange.awaits(rank),
            }
    }

    fn post(&mut self) -> Option<&mut dyn Post> {
        Some(&mut self.letters)
    }
}

impl Lanes for Segment {
    fn chunk(&self) -> usize {
        segment::CHUNK
    }

    fn denies_room(&mut self, rank: u32, step: u64, _needed: bool) -> bool {
        self.ring_denies(rank, step)
    }

    fn has_room(&mut self, step: u64, _needs: impl Fn(u32) -> bool) -> bool {
        self.ring_has_room(step)
    }

    unsafe fn publish(&mut self, step: u64, bytes: *const u8, length: usize, _needs: impl Fn(u32) -> bool) {
        // SAFETY: passed on.
        unsafe { self.ring_publish(step, bytes, length) }
    }

    fn published(&mut self, rank: u32, step: u64, _length: usize) -> Result<Option<*const u8>> {
        Ok(self.ring_published(rank, step))
    }

    fn finish(&mut self, steps: u64, _contributors: Ranks) {
        self.ring_finish(steps);
    }

    fn is_settled(&mut self, _rank: u32) -> bool {
        true
    }
}
