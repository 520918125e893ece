//! The two-shot all_reduce: every rank reduces a slice of each block for all, then gathers the others' slices.
//!
//! With one shot each of N ranks reads and adds all N contributions; with two it reads N contributions to its slice and
//! N - 1 slices of the result, which is a fraction 2/N of the work. It takes two hand-overs for a block where one shot
//! takes one, so it is for large calls of three and more ranks.
//!
//! # Steps
//!
//! A block is what fits one staging slot. It takes two steps of the ring told at [`super::segment`]:
//!
//! | step   | a rank publishes                                    | and takes from every other rank                   |
//! |--------|-----------------------------------------------------|---------------------------------------------------|
//! | 2b     | its contribution to block b, but for its own slice  | the contribution to its own slice, which it reduces |
//! | 2b + 1 | its slice of the result                             | that rank's slice of the result                   |
//!
//! Each rank publishes and finishes its steps in this order; the contribution to block b + 1 is published while the
//! slices of block b are awaited. So a rank is held back only by what it takes, and by a ring in which somebody is a block
//! behind; the one that has come least far always finds what it takes and room for what it publishes.

use std::{ops::Range, sync::Arc};

use super::segment::{CHUNK, Segment};
use crate::{
    bootstrap::Members,
    communicator::{Call, Meeting, Progress, copy, exchange::Piece, reduce},
    error::Result,
    sync::reads,
};

/// Elements begin at multiples of this many bytes in a slice, so that no two ranks write one cache line of the result.
const LINE: usize = 64;

/// One rank's side of a call.
pub(super) struct TwoShot {
    call: Call,
    members: Arc<Members>,
    /// The first step of the call in the ring's count.
    base: u64,
    /// Steps of this call published and finished.
    published: u64,
    finished: u64,
}

// SAFETY: the pointers are the call's, which may be used from any thread (see `Call`), and the segment's.
unsafe impl Send for TwoShot {}

impl TwoShot {
    /// Steps of a call with contributions of `bytes`.
    pub(super) fn steps(bytes: usize) -> u64 {
        2 * bytes.div_ceil(CHUNK) as u64
    }

    /// Begins a call at step `base`; the meeting has begun.
    pub(super) fn begin(call: &Call, members: Arc<Members>, base: u64) -> Self {
        TwoShot { call: *call, members, base, published: 0, finished: 0 }
    }

    /// Goes on as far as possible. `Done` only after the meeting. `sources` is scratch.
    pub(super) fn poll(
        &mut self,
        segment: &mut Segment,
        meeting: &mut Meeting,
        sources: &mut Vec<*const u8>,
    ) -> Result<Progress> {
        let steps = Self::steps(self.call.descriptor.bytes());
        let begun = (self.published, self.finished);
        // Contributions may be shown before the meeting is over; nothing is taken before.
        self.contribute(segment, steps);
        if !meeting.is_over() && meeting.poll()? != Progress::Done {
            return Ok(if begun == (self.published, self.finished) { Progress::Pending } else { Progress::Moved });
        }
        // A block at a time, so that the waiting loop gets to look at failures and deadlines.
        if self.reduce(segment, sources) {
            self.contribute(segment, steps);
        }
        self.gather(segment);
        Ok(match self.finished == steps {
            true => Progress::Done,
            false if begun == (self.published, self.finished) => Progress::Pending,
            false => Progress::Moved,
        })
    }

    /// Whether the call cannot go on before `rank` does something.
    pub(super) fn awaits(&self, segment: &Segment, rank: u32) -> bool {
        if rank == self.members.rank() || self.finished == Self::steps(self.call.descriptor.bytes()) {
            return false;
        }
        segment.ring_published(rank, self.base + self.finished).is_none()
            || segment.ring_denies(rank, self.base + self.published)
    }

    /// Shows the contribution to the next block, if it is its turn and there is room.
    fn contribute(&mut self, segment: &mut Segment, steps: u64) {
        // The next one to publish is a contribution, at most one block ahead of the one whose slices are awaited.
        if !self.published.is_multiple_of(2) || self.published == steps || self.published > self.finished + 1 {
            return;
        }
        let step = self.base + self.published;
        if !segment.ring_has_room(step) {
            return;
        }
        let block = self.block(self.published / 2);
        let mine = self.slice(&block, self.members.rank());
        for part in [block.start..mine.start, mine.end..block.end] {
            // SAFETY: the block lies in `send`, which the call's maker promised to be readable, and there is room.
            unsafe {
                let bytes = self.call.send.add(part.start);
                segment.ring_write(step, Piece { bytes, length: part.len(), at: part.start - block.start });
            }
        }
        segment.counter_publish(step + 1);
        self.published += 1;
    }

    /// Reduces this rank's slice of the current block and shows it, if all contributions have come and there is room.
    fn reduce(&mut self, segment: &mut Segment, sources: &mut Vec<*const u8>) -> bool {
        // The contribution to this block has been shown, and its slices have not.
        if self.published.is_multiple_of(2) || self.finished + 1 != self.published {
            return false;
        }
        let (me, step) = (self.members.rank(), self.base + self.published);
        let block = self.block(self.published / 2);
        let mine = self.slice(&block, me);
        if !segment.ring_has_room(step) {
            return false;
        }
        sources.clear();
        for rank in 0..self.members.size() {
            let source = match rank == me {
                // SAFETY: as in `contribute`. In place, this slice is written below and by nobody else.
                true => unsafe { self.call.send.add(mine.start) },
                false => match segment.ring_published(rank, step - 1) {
                    Some(chunk) => {
                        reads(chunk);
                        chunk.wrapping_add(mine.start - block.start)
                    }
                    None => return false,
                },
            };
            sources.push(source);
        }
        let descriptor = &self.call.descriptor;
        // SAFETY: every source has the slice: published, or this rank's own. The meeting is over, so `recv` is as long on
        // all ranks, and there is room in the ring.
        unsafe {
            let to = self.call.recv.add(mine.start);
            reduce::reduce(descriptor.dtype, descriptor.op, sources, to, mine.len() / descriptor.dtype.size());
            segment.ring_write(step, Piece { bytes: to, length: mine.len(), at: 0 });
        }
        segment.counter_publish(step + 1);
        self.published += 1;
        self.finished += 1;
        segment.ring_finish(self.base + self.finished);
        true
    }

    /// Takes the others' slices of the current block, if all have come.
    fn gather(&mut self, segment: &Segment) {
        if self.finished.is_multiple_of(2) {
            return;
        }
        let (me, step) = (self.members.rank(), self.base + self.finished);
        let others = (0..self.members.size()).filter(|rank| *rank != me);
        if others.clone().any(|rank| segment.ring_published(rank, step).is_none()) {
            return;
        }
        let block = self.block(self.finished / 2);
        for rank in others {
            let Some(chunk) = segment.ring_published(rank, step) else { return };
            let slice = self.slice(&block, rank);
            reads(chunk);
            // SAFETY: the slice was published, and lies in `recv`; nobody else writes there.
            unsafe { copy::copy(chunk, self.call.recv.add(slice.start), slice.len()) };
        }
        self.finished += 1;
        segment.ring_finish(self.base + self.finished);
    }

    /// The bytes of a contribution that a block is about.
    fn block(&self, block: u64) -> Range<usize> {
        let length = self.call.descriptor.bytes();
        let start = (block as usize * CHUNK).min(length);
        start..(start + CHUNK).min(length)
    }

    /// The bytes of a block that `rank` reduces.
    fn slice(&self, block: &Range<usize>, rank: u32) -> Range<usize> {
        let part = block.len().div_ceil(self.members.size() as usize).next_multiple_of(LINE);
        let start = (block.start + rank as usize * part).min(block.end);
        start..(start + part).min(block.end)
    }
}
