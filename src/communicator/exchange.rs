//! The exchange: the plain algorithm of every collective, over any way to show a chunk to the others.
//!
//! The contributions are cut into chunks; step `i` of a call is about chunk `i` of everybody's contribution. A rank
//! publishes its chunks ahead, as far as there is room, and consumes step by step: it takes its window's part of
//! every contributor's chunk, reduces or places it, and says that it has finished the step, which makes room.
//!
//! Steps are counted across calls, and every call advances the count by the same number on all ranks, whether they
//! contribute, consume, or neither. So a rank's published and finished counts mean the same to everybody, and what
//! a late rank still reads is never confused with the next call.
//!
//! Nothing is consumed before the [`Meeting`] is over, so nothing is written when ranks disagree.

use std::{ops::Range, sync::Arc};

use super::{Action, Call, Descriptor, Meeting, Pattern, Progress, Ranks, copy, reduce};
use crate::{
    bootstrap::Members,
    error::{Error, Result},
    sync::reads,
};

/// How chunks get from rank to rank. Steps are counted across calls, from 0.
pub trait Lanes {
    /// The largest chunk, in bytes; a multiple of 8, and the same on all ranks.
    fn chunk(&self) -> usize;

    /// Whether `rank` stands in the way of publishing `step`, since it has not finished earlier steps. Where room is
    /// kept for each rank apart, only those that take something of the step (`needed`) do.
    fn denies_room(&mut self, rank: u32, step: u64, needed: bool) -> bool;

    /// Whether there is room to publish `step` to those that `needs` names, which are never this rank.
    fn has_room(&mut self, step: u64, needs: impl Fn(u32) -> bool) -> bool;

    /// Shows this rank's chunk of `step` to those that `needs` names.
    ///
    /// # Safety
    /// `bytes` are readable, at most [`Lanes::chunk`] of them, and there is room.
    unsafe fn publish(&mut self, step: u64, bytes: *const u8, length: usize, needs: impl Fn(u32) -> bool);

    /// `rank`'s chunk of `step`, once it is published; valid until this rank finishes the step.
    fn published(&mut self, rank: u32, step: u64, length: usize) -> Result<Option<*const u8>>;

    /// Says that this rank has finished all steps before `steps`, of which it took something from `contributors`.
    fn finish(&mut self, steps: u64, contributors: Ranks);

    /// Whether everything published to `rank` has left this process.
    fn is_settled(&mut self, rank: u32) -> bool;
}

/// One rank's side of the current call.
pub struct Exchange<L> {
    /// How chunks travel.
    pub lanes: L,
    members: Arc<Members>,
    call: Call,
    pattern: Pattern,
    /// The count at which this call's steps begin.
    base: u64,
    /// Steps of this call.
    steps: u64,
    /// Steps of this call published and consumed.
    published: u64,
    consumed: u64,
    /// Where each contributor's chunk lies; kept to spare the allocation.
    sources: Vec<*const u8>,
}

// SAFETY: the pointers are those of the call, which may be used from any thread (see `Call`), and of memory that
// lives as long as the lanes.
unsafe impl<L: Send> Send for Exchange<L> {}

/// Steps consumed before the waiting loop gets to look at failures and deadlines.
const TURN: u64 = 16;
/// Steps published ahead of the last one consumed: enough to hide a peer's lag, and few enough to stay in the cache.
const AHEAD: u64 = 2;

impl<L: Lanes> Exchange<L> {
    /// An exchange between `members`, with no call begun.
    pub fn new(members: Arc<Members>, lanes: L) -> Self {
        let sources = Vec::with_capacity(members.size() as usize);
        let call = Call::new(Descriptor::BARRIER, std::ptr::null(), std::ptr::null_mut());
        Exchange {
            lanes,
            members,
            call,
            pattern: Pattern::BARRIER,
            base: 0,
            steps: 0,
            published: 0,
            consumed: 0,
            sources,
        }
    }

    /// Begins a call whose contributions are `pattern.length` bytes long.
    pub fn begin(&mut self, call: &Call, pattern: Pattern) {
        self.reserve(pattern.length.div_ceil(self.lanes.chunk()) as u64);
        self.call = *call;
        self.pattern = pattern;
        self.published = 0;
        self.consumed = 0;
        if !self.pattern.contributors.contains(self.members.rank()) {
            self.published = self.steps;
        }
        if self.steps > 0 {
            self.skip();
        }
    }

    /// Takes `steps` out of the count for a call that goes over the same lanes in a way of its own, and returns the first.
    pub fn reserve(&mut self, steps: u64) -> u64 {
        self.base += self.steps;
        self.steps = steps;
        self.base
    }

    /// Undoes the last [`Exchange::reserve`].
    pub fn give_back(&mut self) {
        self.steps = 0;
    }

    /// Goes on as far as possible. `Done` only after the meeting.
    pub fn poll(&mut self, meeting: &mut Meeting) -> Result<Progress> {
        let begun = (self.published, self.consumed);
        let turn = self.consumed + TURN;
        let waiting = |now: (u64, u64)| if now == begun { Progress::Pending } else { Progress::Moved };
        loop {
            let before = (self.published, self.consumed);
            while self.published < self.steps && self.published < self.consumed + AHEAD && self.publish() {}
            if !meeting.is_over() && meeting.poll()? != Progress::Done {
                return Ok(waiting((self.published, self.consumed)));
            }
            // A chunk of this rank's own is published before the result may overwrite it in place.
            if self.consumed < self.steps && self.consumed < self.published {
                self.consume()?;
            }
            if self.published == self.steps && self.consumed == self.steps {
                let me = self.members.rank();
                let settled = (0..self.members.size()).all(|rank| rank == me || self.lanes.is_settled(rank));
                return Ok(if settled { Progress::Done } else { waiting(before) });
            }
            if before == (self.published, self.consumed) || self.consumed >= turn {
                return Ok(waiting(before));
            }
        }
    }

    /// Whether the call cannot go on before `rank` does something.
    pub fn awaits(&mut self, rank: u32) -> bool {
        if rank == self.members.rank() {
            return false;
        }
        let step = self.base + self.consumed;
        let range = self.range(self.consumed);
        let for_data = self.consumed < self.steps
            && self.pattern.contributors.contains(rank)
            && !matches!(self.lanes.published(rank, step, range.len()), Ok(Some(_)));
        let needed = self.pattern.needs(rank, &self.range(self.published));
        let for_room = self.published < self.steps && self.lanes.denies_room(rank, self.base + self.published, needed);
        for_data || for_room || !self.lanes.is_settled(rank)
    }

    /// The bytes of a contribution that a step of this call is about.
    fn range(&self, step: u64) -> Range<usize> {
        let start = step as usize * self.lanes.chunk();
        start.min(self.pattern.length)..(start + self.lanes.chunk()).min(self.pattern.length)
    }

    /// Publishes the next step if there is room, and says whether there was.
    fn publish(&mut self) -> bool {
        let range = self.range(self.published);
        let step = self.base + self.published;
        let me = self.members.rank();
        let needs = |rank| rank != me && self.pattern.needs(rank, &range);
        if !self.lanes.has_room(step, needs) {
            return false;
        }
        // What nobody else takes, as this rank's own part of an all_to_all, need not be shown.
        let length = if (0..self.members.size()).any(needs) { range.len() } else { 0 };
        // SAFETY: the range lies in this rank's contribution, which the call's maker promised to be readable; there
        // is room.
        unsafe { self.lanes.publish(step, self.call.send.add(range.start), length, needs) };
        self.published += 1;
        true
    }

    /// Passes over the steps from the next one on in which this rank takes nothing.
    fn skip(&mut self) {
        let begun = self.consumed;
        let chunk = self.lanes.chunk();
        let window = &self.pattern.window;
        let first = (window.start / chunk) as u64;
        if window.is_empty() || self.consumed >= (window.end.div_ceil(chunk)) as u64 {
            self.consumed = self.steps;
        } else if self.consumed < first {
            self.consumed = first;
        }
        if self.consumed != begun {
            self.lanes.finish(self.base + self.consumed, Ranks::None);
        }
    }

    /// Consumes the next step if every contributor has published it.
    fn consume(&mut self) -> Result<()> {
        let range = self.range(self.consumed);
        let step = self.base + self.consumed;
        let me = self.members.rank();
        self.sources.clear();
        for rank in (0..self.members.size()).filter(|rank| self.pattern.contributors.contains(*rank)) {
            let source = match rank == me {
                // SAFETY: as in `publish`. In place, this part has not been overwritten yet: it is overwritten below.
                true => Some(unsafe { self.call.send.add(range.start) }),
                false => self.lanes.published(rank, step, range.len())?,
            };
            let Some(source) = source else { return Ok(()) };
            self.sources.push(source);
        }
        // SAFETY: every source is readable for the range (published, or this rank's own), and the meeting is
        // over, so all descriptors are equal and the result has room for what the pattern says.
        unsafe { apply(&self.call, &self.pattern, &range, &mut self.sources) };
        self.consumed += 1;
        self.lanes.finish(step + 1, self.pattern.contributors);
        self.skip();
        Ok(())
    }
}

/// Takes this rank's window of `range` from each contributor and reduces or places it.
///
/// # Safety
/// `sources[i]` is readable for `range.len()` bytes and is where the range begins in the `i`-th contributor's
/// contribution; `call.recv` is writable for what `pattern` says.
pub unsafe fn apply(call: &Call, pattern: &Pattern, range: &Range<usize>, sources: &mut [*const u8]) {
    let taken = range.start.max(pattern.window.start)..range.end.min(pattern.window.end);
    if taken.is_empty() {
        return;
    }
    sources.iter().for_each(|source| reads(*source));
    let skip = taken.start - range.start;
    let to = taken.start - pattern.window.start;
    match pattern.action {
        Action::Reduce => {
            let Descriptor { dtype, op, .. } = call.descriptor;
            // SAFETY: inside the source and the result, as the caller promises. Chunks and windows begin and end at
            // whole elements: chunks are multiples of 8 bytes, windows of an element.
            unsafe {
                for source in sources.iter_mut() {
                    *source = source.add(skip);
                }
                reduce::reduce(dtype, op, sources, call.recv.add(to), taken.len() / dtype.size());
            }
        }
        Action::Place { .. } => {
            for (contributor, source) in sources.iter().enumerate() {
                // SAFETY: as above; a source that is this rank's own lies where it goes, or apart from it.
                unsafe {
                    let from = source.add(skip);
                    let to = call.recv.add(pattern.place(contributor as u32) + to);
                    if !std::ptr::eq(from, to) {
                        copy::copy(from, to, taken.len());
                    }
                }
            }
        }
    }
}

/// An error for a communicator whose peer sent what it should not have.
pub fn protocol_error(members: &Members, rank: u32, what: &str) -> Error {
    Error::failed(
        crate::error::Status::CommunicatorError,
        Some(rank),
        format_args!("group {:?}: rank {rank} {what}", members.name()),
    )
}
