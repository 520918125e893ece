//! Small calls: the contribution travels with the header of the call, so that one hand-over is all it takes.
//!
//! | carrier | contribution | where it travels                                                                |
//! |---------|--------------|---------------------------------------------------------------------------------|
//! | line    | to 56 B      | in the header's own cache line                                                  |
//! | lines   | to 2 KiB     | its first 56 bytes there, the rest in lines of the same kind: 56 bytes and a flag |
//! | slot    | to 16 KiB    | in a slot that the header publishes                                             |
//!
//! *A line.* The owner writes the 56 bytes, then the flag (release), which is the sequence of the call; whoever loads that
//! flag (acquire) may read the bytes. So a line needs no other word to be waited for, and the first ones are on their
//! way while the last are written. The flag of a line lies where no data ever lies, and no two calls have one sequence.
//! (A line stored at once, of 60 bytes and a shorter flag, is faster by a few nanoseconds where it works; no architecture
//! promises that it does.)
//!
//! *Why lines and slots may be reused.* There are two sets, used in turn like the headers, and by the argument told at
//! [`crate::bootstrap::board`] nobody reads those of call n any more when call n+2 is posted.

use super::segment::{LINES, PIECE, SLOT, Segment};
use crate::{
    bootstrap::{Members, board},
    communicator::{Call, Meeting, Pattern, Progress, exchange},
    error::Result,
};

/// The largest contribution of each carrier, in bytes.
pub(super) const LINE_BYTES: usize = board::PAYLOAD;
pub(super) const LINES_BYTES: usize = board::PAYLOAD + LINES * PIECE;
pub(super) const SLOT_BYTES: usize = SLOT;

/// How a small call travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    Line,
    Lines,
    Slot,
}

/// One rank's side of a small call. The call and its pattern come along with every look: most calls are over at the first
/// one, and then were never copied.
pub(super) struct Small {
    sequence: u64,
    carrier: Carrier,
    /// Of the contributors below this rank everything has been gathered, and of this one so many lines.
    gathered: (u32, usize),
}

/// What calls need for as long as they go on, kept so that they allocate nothing.
pub(super) struct Scratch {
    /// Where the lines of each rank are put together.
    lines: Vec<[u64; LINES_BYTES.div_ceil(8)]>,
    pub(super) sources: Vec<*const u8>,
}

// SAFETY: the pointers are those of the last call, and used by nothing.
unsafe impl Send for Scratch {}

impl Scratch {
    pub(super) fn new(size: u32) -> Self {
        Scratch { lines: vec![[0; LINES_BYTES.div_ceil(8)]; size as usize], sources: Vec::with_capacity(size as usize) }
    }
}

impl Small {
    /// Shows this rank's call and contribution to all.
    ///
    /// # Safety
    /// As for [`Meeting::begin`]; the contribution is at most what `carrier` takes.
    #[inline]
    pub(super) unsafe fn begin(
        call: &Call,
        pattern: &Pattern,
        sequence: u64,
        carrier: Carrier,
        (meeting, segment): (&mut Meeting, &Segment),
    ) -> Self {
        let contributes = segment.size() > 1 && pattern.contributors.contains(segment.rank());
        let length = if contributes { pattern.length } else { 0 };
        let bytes = match length {
            0 => &[],
            // SAFETY: `send` is readable for the contribution, by the promise of the call's maker.
            _ => unsafe { std::slice::from_raw_parts(call.send, length) },
        };
        // SAFETY: nobody reads this rank's lines and slot of this sequence now (see the module comment); passed on.
        unsafe {
            match carrier {
                Carrier::Line => meeting.begin(call.descriptor, sequence, bytes),
                Carrier::Lines => {
                    let (first, rest) = bytes.split_at(length.min(LINE_BYTES));
                    meeting.post(call.descriptor, sequence, first);
                    segment.write_lines(sequence, rest);
                    if !rest.is_empty() {
                        let (start, stride) = segment.first_lines(sequence);
                        meeting.fetch_along(start, stride);
                    }
                    meeting.ring();
                }
                Carrier::Slot => {
                    segment.write_slot(sequence, bytes);
                    meeting.begin(call.descriptor, sequence, &[]);
                }
            }
        }
        Small { sequence, carrier, gathered: (0, 0) }
    }

    /// Ends the call if everything is there.
    #[inline(always)]
    pub(super) fn poll(
        &mut self,
        (call, pattern): (&Call, &Pattern),
        members: &Members,
        segment: &Segment,
        meeting: &mut Meeting,
        scratch: &mut Scratch,
    ) -> Result<Progress> {
        if meeting.poll()? != Progress::Done {
            return Ok(Progress::Pending);
        }
        if pattern.window.is_empty() {
            return Ok(Progress::Done);
        }
        if self.carrier == Carrier::Lines && !self.gather(pattern, segment, members, scratch, meeting.looks()) {
            return Ok(Progress::Pending);
        }
        let (me, sequence) = (segment.rank(), self.sequence);
        if pattern.contributors.contains(me) {
            // All have ended the call before, so nobody reads what the next one will overwrite.
            match self.carrier {
                Carrier::Line => {}
                Carrier::Lines => segment.make_lines_ready(sequence + 1, rest(pattern)),
                Carrier::Slot => segment.make_slot_ready(sequence + 1, pattern.length),
            }
        }
        scratch.sources.clear();
        for rank in (0..segment.size()).filter(|rank| pattern.contributors.contains(*rank)) {
            let contribution = match self.carrier {
                _ if rank == me => call.send,
                Carrier::Line => members.board().payload(rank, sequence),
                Carrier::Lines => scratch.lines[rank as usize].as_ptr().cast(),
                Carrier::Slot => segment.slot_of(rank, sequence),
            };
            scratch.sources.push(contribution.wrapping_add(pattern.window.start));
        }
        // SAFETY: each header was posted after its rank had filled its line or slot, which is overwritten no sooner than
        // this rank posts its next call but one; lines were gathered. `send` and `recv` are as the call's maker promised.
        unsafe { exchange::apply(call, pattern, &(0..pattern.part), &scratch.sources) };
        Ok(Progress::Done)
    }

    /// Whether lines of `rank` are missing, of which this rank has seen the header.
    pub(super) fn awaits(&self, pattern: &Pattern, segment: &Segment, rank: u32) -> bool {
        self.carrier == Carrier::Lines
            && !pattern.window.is_empty()
            && rank != segment.rank()
            && pattern.contributors.contains(rank)
            && rank >= self.gathered.0
            && !segment.has_lines(rank, self.sequence, rest(pattern))
    }

    /// Puts together the lines of every contributor that have come, and says whether all have.
    fn gather(
        &mut self,
        pattern: &Pattern,
        segment: &Segment,
        members: &Members,
        scratch: &mut Scratch,
        looks: u32,
    ) -> bool {
        let first = pattern.length.min(LINE_BYTES);
        while self.gathered.0 < segment.size() {
            let (rank, lines) = self.gathered;
            if rank != segment.rank() && pattern.contributors.contains(rank) {
                let to: *mut u8 = scratch.lines[rank as usize].as_mut_ptr().cast();
                let from = members.board().payload(rank, self.sequence);
                crate::sync::reads(from);
                // SAFETY: the header was seen; the scratch has room for the largest contribution of this carrier.
                unsafe {
                    if lines == 0 {
                        std::ptr::copy_nonoverlapping(from, to, first);
                    }
                    let (line, at) = ((rank, self.sequence), (lines, looks));
                    let came = segment.read_lines(line, at, to.add(first), rest(pattern));
                    self.gathered.1 = came;
                    if came * PIECE < rest(pattern) {
                        return false;
                    }
                }
            }
            self.gathered = (rank + 1, 0);
        }
        true
    }
}

/// Bytes that travel in lines of their own.
fn rest(pattern: &Pattern) -> usize {
    pattern.length.saturating_sub(LINE_BYTES)
}
