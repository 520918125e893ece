//! Queues: control messages from one rank to all others of a group, which mostly sleep.
//!
//! A queue is a thing of its own beside the group it was made from: it has its members, their bells, and a first failure
//! of its own, so its failure is not the group's. The protocol of the memory between the ranks is told at
//! [`crate::shm::ring`]; here is the waiting, and who is to blame when it does not end.

use std::{
    sync::{Arc, Mutex, MutexGuard, TryLockError},
    time::{Duration, Instant},
};

use super::{
    batch,
    core::SHORT_NAP,
    wait::{self, Patience, Step},
};
use crate::{
    bootstrap::{Members, members::nap},
    config::Timeout,
    error::{Error, Failure, Result, Status},
    shm::ring::{CHUNK, Ring},
    sync::spin_loop,
};

/// Chunks in the ring where the caller names no capacity: 1 MiB.
const SLOTS: u64 = 64;
/// The fewest chunks: with one, writer and readers would take turns.
const FEWEST_SLOTS: u64 = 4;
/// The largest capacity, in bytes.
const LARGEST: u64 = 1 << 30;

/// What is done with a queue that was made.
pub type DeliverQueue = Box<dyn FnOnce(Arc<Queue>) + Send>;

/// How a queue is made. All of it must be equal on all ranks.
#[derive(Clone, Debug, Default)]
pub struct QueueOptions {
    /// The rank that writes.
    pub writer: u32,
    /// Bytes of messages that may wait for the slowest reader; 0: 1 MiB.
    pub capacity: u64,
    /// The name in texts.
    pub name: Option<String>,
    /// The deadline of the making, and of reads and writes that name none.
    pub timeout: Timeout,
}

impl QueueOptions {
    /// The chunks of the ring.
    pub(super) fn slots(&self) -> Result<u64> {
        if self.capacity > LARGEST {
            return Err(Error::invalid(format_args!(
                "capacity is {} bytes; at most {LARGEST} are kept",
                self.capacity
            )));
        }
        Ok(if self.capacity == 0 { SLOTS } else { self.capacity.div_ceil(CHUNK as u64).max(FEWEST_SLOTS) })
    }
}

/// One rank's end of a queue. One thread at a time reads or writes.
pub struct Queue {
    members: Arc<Members>,
    writer: u32,
    timeout: Timeout,
    state: Mutex<State>,
}

struct State {
    ring: Ring,
    /// Messages written or read, this one included.
    sequence: u64,
    /// Whether a read ended within a message, whose rest is nothing to begin with.
    torn: bool,
}

/// Why a wait ended without what it was for.
enum Vain {
    /// The queue has failed already, or was destroyed here.
    Failed(Error),
    /// A rank that is awaited is lost, and how.
    Lost(u32, String),
    /// These are awaited still, the first of them told beside.
    Late(u32, Vec<u32>),
}

impl Queue {
    pub(super) fn new(members: Arc<Members>, writer: u32, timeout: Timeout, ring: Ring) -> Arc<Self> {
        Arc::new(Queue { members, writer, timeout, state: Mutex::new(State { ring, sequence: 0, torn: false }) })
    }

    /// Whether this rank is the one that writes.
    pub fn is_writer(&self) -> bool {
        self.members.rank() == self.writer
    }

    /// Writes a message to all readers, and returns when the ring has taken it, read or not; a message that is larger
    /// than the ring streams through it as it is read.
    ///
    /// A reader that does not make room until the deadline is named with `TIMEOUT`. If nothing of the message was
    /// written by then, the queue lives and the write may be repeated; a message half written fails the queue.
    pub fn write(&self, message: &[u8], timeout: Timeout) -> Result<()> {
        if !self.is_writer() {
            let (rank, writer) = (self.members.rank(), self.writer);
            return Err(Error::usage(format_args!("rank {rank} reads this queue; rank {writer} writes it")));
        }
        let mut state = self.enter()?;
        self.members.check()?;
        let state = &mut *state;
        let timeout = timeout.or(self.timeout);
        let deadline = timeout.deadline();
        let what = format!("message {} of {:?}", state.sequence + 1, self.members.name());
        let mut rest = message;
        loop {
            if !state.ring.has_room() {
                let begun = rest.len() < message.len();
                self.wait(&mut state.ring, deadline, Ring::has_room, Ring::laggards).map_err(|vain| match vain {
                    Vain::Failed(error) => error,
                    Vain::Lost(rank, why) => {
                        self.fail(Status::PeerLost, rank, format!("{what}: rank {rank}, a reader, is lost: {why}"))
                    }
                    Vain::Late(first, late) if begun => self.fail(
                        Status::Timeout,
                        first,
                        self.late(&what, &late, "has not read the first part of it", timeout),
                    ),
                    Vain::Late(first, late) => {
                        let text = self.late(&what, &late, "has not read what came before", timeout);
                        Error::failed(Status::Timeout, Some(first), text + "; nothing of it was written")
                    }
                })?;
            }
            let (chunk, next) = rest.split_at(rest.len().min(CHUNK));
            state.ring.put(message.len() as u64, chunk);
            self.members.ring_all();
            rest = next;
            if rest.is_empty() {
                state.sequence += 1;
                return Ok(());
            }
        }
    }

    /// Waits for the next message, leaves it where it is, and says how long it is. Fails as [`Queue::read`].
    pub fn next(&self, timeout: Timeout) -> Result<u64> {
        self.front(&mut *self.reader()?, timeout.or(self.timeout))
    }

    /// Waits for the next message, takes it, and says how long it is. One that is longer than the buffer stays where it
    /// is, and is an error that changes nothing. What was written before the queue failed can still be read.
    ///
    /// A message that has not come by the deadline is a `TIMEOUT` that changes nothing either. One that stops in the
    /// middle fails the queue.
    pub fn read(&self, buffer: &mut [u8], timeout: Timeout) -> Result<u64> {
        let mut state = self.reader()?;
        let state = &mut *state;
        let timeout = timeout.or(self.timeout);
        let deadline = timeout.deadline();
        let length = self.front(state, timeout)?;
        let room = buffer.len();
        let Some(mut rest) = usize::try_from(length).ok().and_then(|length| buffer.get_mut(..length)) else {
            return Err(Error::invalid(format_args!("the next message has {length} bytes; there is room for {room}")));
        };
        let what = format!("message {} of {:?}", state.sequence + 1, self.members.name());
        loop {
            if !state.ring.has_chunk() {
                let writer = self.writer;
                let there = |ring: &mut Ring| ring.has_chunk();
                self.wait(&mut state.ring, deadline, there, |_| vec![writer]).map_err(|vain| {
                    state.torn = rest.len() < length as usize;
                    match vain {
                        Vain::Failed(error) => error,
                        Vain::Lost(rank, why) => {
                            let text = format!("{what}: rank {rank}, which writes it, is lost in the middle: {why}");
                            self.fail(Status::PeerLost, rank, text)
                        }
                        Vain::Late(first, late) => self.fail(
                            Status::Timeout,
                            first,
                            self.late(&what, &late, "has not written the rest of it", timeout),
                        ),
                    }
                })?;
            }
            let length_here = rest.len().min(CHUNK);
            let (chunk, next) = std::mem::take(&mut rest).split_at_mut(length_here);
            state.ring.take(chunk);
            self.members.ring_all();
            rest = next;
            if rest.is_empty() {
                state.sequence += 1;
                return Ok(length);
            }
        }
    }

    /// The queue's first failure, as an error.
    pub fn check(&self) -> Result<()> {
        self.members.check()
    }

    /// Leaves the queue: a read or write that is going on here ends, and peers that wait for this rank hear that it left.
    /// Messages that were written stay readable.
    pub fn leave(&self) {
        self.members.leave();
    }

    /// The length of the next message, once it is there.
    fn front(&self, state: &mut State, timeout: Timeout) -> Result<u64> {
        if !state.ring.has_chunk() {
            let what = format!("message {} of {:?}", state.sequence + 1, self.members.name());
            let writer = self.writer;
            let (deadline, there) = (timeout.deadline(), |ring: &mut Ring| ring.has_chunk());
            self.wait(&mut state.ring, deadline, there, |_| vec![writer]).map_err(|vain| match vain {
                Vain::Failed(error) => error,
                Vain::Lost(rank, why) => self.fail(
                    Status::PeerLost,
                    rank,
                    format!("{what}: rank {rank}, which is to write it, is lost: {why}"),
                ),
                Vain::Late(first, late) => {
                    Error::failed(Status::Timeout, Some(first), self.late(&what, &late, "has not written it", timeout))
                }
            })?;
        }
        Ok(state.ring.length())
    }

    /// Waits until the ring is as wanted. First it looks again and again, then it gives its core away, then it sleeps at
    /// the bell of this rank, and looks up now and then at the deadline and the lives of those awaited. Before either is
    /// reported, the ring is looked at once more: what a rank wrote before it went counts.
    fn wait(
        &self,
        ring: &mut Ring,
        deadline: Option<Instant>,
        ready: impl Fn(&mut Ring) -> bool,
        awaited: impl Fn(&Ring) -> Vec<u32>,
    ) -> Result<(), Vain> {
        let members = &*self.members;
        let mut patience = Patience::new(members);
        let mut began = None;
        loop {
            if ready(ring) {
                return Ok(());
            }
            members.check().map_err(Vain::Failed)?;
            match patience.step() {
                Step::Spin => spin_loop(),
                Step::Yield => rustix::thread::sched_yield(),
                Step::Rest => {
                    let now = Instant::now();
                    let began = *began.get_or_insert(now);
                    for rank in awaited(ring) {
                        let Some(loss) = members.lost(rank) else { continue };
                        if ready(ring) {
                            return Ok(());
                        }
                        members.check().map_err(Vain::Failed)?;
                        return Err(Vain::Lost(rank, loss.text));
                    }
                    let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now));
                    if left.is_zero() {
                        let late = awaited(ring);
                        // Nobody, where the last of them has just done it.
                        let Some(first) = late.first().copied().filter(|_| !ready(ring)) else { continue };
                        return Err(Vain::Late(first, late));
                    }
                    // What this thread has started elsewhere goes on meanwhile; no single bell wakes it for all.
                    let others = wait::advance_others(false, |_| false);
                    let at_most = if others { SHORT_NAP } else { nap(now.duration_since(began)) };
                    let doze = members.doze();
                    if !ready(ring) && members.check().is_ok() {
                        doze.sleep(at_most.min(left));
                    }
                }
            }
        }
    }

    /// The way in for a reader: after a failure too, as long as there is something to read. One reader that goes on to the
    /// end of what was written, and finds the writer gone, takes nothing from those that are slower.
    fn reader(&self) -> Result<MutexGuard<'_, State>> {
        if self.is_writer() {
            return Err(Error::usage(format_args!("rank {} writes this queue, and does not read it", self.writer)));
        }
        let state = self.enter()?;
        if state.torn || self.members.is_closed() || !state.ring.has_chunk() {
            self.members.check()?;
        }
        Ok(state)
    }

    fn enter(&self) -> Result<MutexGuard<'_, State>> {
        if batch::is_open() {
            return Err(Error::usage("reads and writes of a queue cannot stand in a batch"));
        }
        match self.state.try_lock() {
            Ok(state) => Ok(state),
            Err(TryLockError::Poisoned(state)) => Ok(state.into_inner()),
            Err(TryLockError::WouldBlock) => Err(Error::usage("another thread is in a call on this queue")),
        }
    }

    /// Records a failure of the queue; what is reported is its first.
    fn fail(&self, status: Status, rank: u32, text: String) -> Error {
        self.members.fail(Failure { status, rank: Some(rank), collective: None, sequence: 0, text }).into()
    }

    /// The sentence about ranks that are late.
    fn late(&self, what: &str, late: &[u32], how: &str, timeout: Timeout) -> String {
        let patience = timeout.duration().unwrap_or_default().as_secs_f64();
        let who: Vec<String> = late
            .iter()
            .map(|rank| format!("rank {rank} (process {}, which is alive)", self.members.facts(*rank).pid))
            .collect();
        format!("{what}: {} {how} within {patience:.1} s", who.join(", "))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.members.leave();
    }
}
