//! The segment: what the shared-memory communicator keeps in memory that all ranks map.
//!
//! Each rank has a part of its own, which it alone writes: its counters, two sets of lines and two slots for small calls
//! (see [`super::small`]), and a ring of staging slots.
//!
//! # The ring
//!
//! Steps are counted from 0 for the life of the group, alike on all ranks (see [`crate::communicator::exchange`]).
//! Chunk `step` of a rank lies in its slot `step % SLOTS`.
//!
//! | who            | does                                         | and so                                        |
//! |----------------|----------------------------------------------|-----------------------------------------------|
//! | the owner      | writes the chunk, then `published = step+1` (release) | whoever loads `published > step` (acquire) may read it |
//! | every other    | reads the chunk, then `finished = step+1` (release)   | the owner that loads `finished > step` (acquire) from *all* others may overwrite the slot with chunk `step + SLOTS` |
//!
//! Both counters only grow. A rank that has nothing to publish in some steps leaves `published` behind, and it
//! jumps when the rank publishes again; a rank that has nothing to read raises `finished` at once. Neither is ever
//! waited for beyond that. *Late*: its peers find no room or no chunk, and wait. *Dead or aborting*: its counters
//! stand still for ever, its memory stays mapped, and the waiting loop finds out. *Wrap*: 64 bits do not.

use std::{ops::Range, sync::Arc};

use super::hand_over::Store;
use crate::{
    bootstrap::{Members, mapping::Mapping},
    communicator::exchange::Piece,
    sync::{AtomicU64, Ordering, prefetch_to_write, reads, writes},
};

/// Data bytes of a line, and lines of a set: beside the header's 56 bytes, room for 2 KiB.
pub(super) const PIECE: usize = 56;
pub(super) const LINES: usize = 36;
/// Bytes of a slot. Two of them and a peer's fit a first-level cache of 48 KiB.
pub(super) const SLOT: usize = 16 * 1024;
/// The most ranks, so that every other rank finds a piece of 8 bytes in a staging slot.
pub(super) const MOST_RANKS: u32 = (CHUNK / 8) as u32 + 1;
/// Bytes of a staging slot, and staging slots of a rank: chunks of 8 to 256 KiB are within 20 % of each other (64 KiB
/// took 170 us for 1 MiB between cores 280 ns apart, 32 KiB 190, 16 KiB 180 and 8 KiB 210), and four slots let a publisher run two chunks ahead of the slowest reader (measured by a prototype of this pipeline).
pub(super) const CHUNK: usize = 64 * 1024;
pub(super) const SLOTS: u64 = 4;

/// The counters of one rank, each on lines of its own: the one is written often while the other is polled.
#[repr(C)]
pub(super) struct Counters {
    published: Counter,
    finished: Counter,
    /// See [`super::trial`]: rounds tried, before the first call.
    tried: Counter,
}

/// 128 bytes, since processors fetch lines in pairs.
#[repr(C, align(128))]
struct Counter(AtomicU64);

/// A cache line that says itself whether it is there.
#[repr(C, align(64))]
struct Line {
    /// The sequence of the call whose data these are.
    flag: AtomicU64,
    data: [u8; PIECE],
}

const COUNTERS: usize = size_of::<Counters>();
const SETS: usize = 2 * LINES * size_of::<Line>();
/// Where the slots begin, and the staging slots; at whole pages.
const SLOTS_AT: usize = (COUNTERS + SETS).next_multiple_of(4096);
const RING_AT: usize = SLOTS_AT + 2 * SLOT;
/// A rank's part, in whole pages, so that a page belongs to one rank.
const PART: usize = (RING_AT + SLOTS as usize * CHUNK).next_multiple_of(4096);

/// One rank's view of the segment.
pub(super) struct Segment {
    members: Arc<Members>,
    mapping: Arc<Mapping>,
    store: Store,
    /// The smallest `finished` of the others, as last seen: it only grows.
    finished_by_all: u64,
}

impl Segment {
    /// Bytes of each rank's part.
    pub(super) const PART: usize = PART;

    /// Where a rank's part lies.
    fn part(rank: u32) -> Range<usize> {
        rank as usize * PART..(rank as usize + 1) * PART
    }

    /// The segment in a mapping of [`Segment::PART`] zero bytes for each rank.
    pub(super) fn new(members: Arc<Members>, mapping: Arc<Mapping>) -> Self {
        Segment { members, mapping, store: Store::detect(), finished_by_all: 0 }
    }

    /// From now on bytes are put into it so.
    pub(super) fn set_store(&mut self, store: Store) {
        self.store = store;
    }

    /// This rank.
    pub(super) fn rank(&self) -> u32 {
        self.members.rank()
    }

    /// Ranks that share the segment.
    pub(super) fn size(&self) -> u32 {
        self.members.size()
    }

    /// Shows `bytes` in this rank's lines of a call.
    ///
    /// # Safety
    /// At most [`LINES`] times [`PIECE`] bytes; nobody reads these lines now.
    #[inline]
    pub(super) unsafe fn write_lines(&self, sequence: u64, bytes: &[u8]) {
        for (at, piece) in bytes.chunks(PIECE).enumerate() {
            let line = self.line(self.rank(), sequence, at);
            // SAFETY: a line of this rank's in the mapping; by the caller's promise nobody reads its data.
            unsafe {
                let data = (&raw const (*line).data).cast::<u8>().cast_mut();
                writes(data);
                std::ptr::copy_nonoverlapping(piece.as_ptr(), data, piece.len());
                (*line).flag.store(sequence, Ordering::Release);
            }
        }
    }

    /// Where the first lines of a call lie: rank 0's, and from one rank's to the next one's.
    pub(super) fn first_lines(&self, sequence: u64) -> (*const u8, usize) {
        (self.line(0, sequence, 0).cast(), PART)
    }

    /// Reads `length` bytes from `rank`'s lines of a call to `to`, from line `from` on as far as they have come, looking
    /// for each up to `looks` times; says how many lines have been read by now.
    ///
    /// # Safety
    /// `to` is writable for `length` bytes; the lines are not yet to be overwritten.
    #[inline]
    pub(super) unsafe fn read_lines(
        &self,
        (rank, sequence): (u32, u64),
        (from, looks): (usize, u32),
        to: *mut u8,
        length: usize,
    ) -> usize {
        for at in from..length.div_ceil(PIECE) {
            let line = self.line(rank, sequence, at);
            // SAFETY: a line in the mapping, whose flag is an atomic; once it is there the data may be read.
            unsafe {
                if !(0..looks).any(|_| (*line).flag.load(Ordering::Acquire) == sequence) {
                    return at;
                }
                reads(&raw const (*line).data);
                let data = (&raw const (*line).data).cast::<u8>();
                std::ptr::copy_nonoverlapping(data, to.add(at * PIECE), PIECE.min(length - at * PIECE));
            }
        }
        length.div_ceil(PIECE)
    }

    /// Whether all of the `length` bytes in `rank`'s lines of a call have come.
    pub(super) fn has_lines(&self, rank: u32, sequence: u64, length: usize) -> bool {
        let lines = 0..length.div_ceil(PIECE);
        // SAFETY: lines in the mapping, touched through atomics.
        lines.into_iter().all(|at| unsafe { (*self.line(rank, sequence, at)).flag.load(Ordering::Acquire) } == sequence)
    }

    /// Fills this rank's slot of a call, for a header to publish.
    ///
    /// # Safety
    /// At most [`SLOT`] bytes; nobody reads this slot now.
    #[inline]
    pub(super) unsafe fn write_slot(&self, sequence: u64, bytes: &[u8]) {
        let slot = self.slot_of(self.rank(), sequence).cast_mut();
        writes(slot);
        // SAFETY: the slot is as long, and by the caller's promise nobody reads it.
        unsafe { self.store.copy(bytes.as_ptr(), slot, bytes.len().min(SLOT)) };
    }

    /// Has the processor take back what this rank's call `sequence` will write if it is as long as the last, from peers that
    /// have it since they read the call before last there: lines of `rest` bytes, or a slot of `length`. What is streamed
    /// needs no such thing.
    #[inline]
    pub(super) fn make_lines_ready(&self, sequence: u64, rest: usize) {
        (0..rest.div_ceil(PIECE)).for_each(|at| prefetch_to_write(self.line(self.rank(), sequence, at).cast()));
    }

    /// See [`Segment::make_lines_ready`].
    #[inline]
    pub(super) fn make_slot_ready(&self, sequence: u64, length: usize) {
        if !self.store.streams(length) {
            let slot = self.slot_of(self.rank(), sequence);
            (0..length.min(SLOT)).step_by(64).for_each(|at| prefetch_to_write(slot.wrapping_add(at)));
        }
    }

    /// `rank`'s slot of a call: [`SLOT`] bytes.
    pub(super) fn slot_of(&self, rank: u32, sequence: u64) -> *const u8 {
        self.at(rank, SLOTS_AT + (sequence % 2) as usize * SLOT, SLOT)
    }

    /// Whether this rank may write chunk `step`: every other rank has finished the chunk that lies in its slot.
    pub(super) fn ring_has_room(&mut self, step: u64) -> bool {
        let needed = (step + 1).saturating_sub(SLOTS);
        if self.finished_by_all < needed {
            let me = self.members.rank();
            let others = (0..self.members.size()).filter(|rank| *rank != me);
            self.finished_by_all =
                others.map(|rank| self.counters(rank).finished.0.load(Ordering::Acquire)).min().unwrap_or(u64::MAX);
        }
        self.finished_by_all >= needed
    }

    /// Whether `rank` has not finished the chunk that lies where chunk `step` is to go.
    pub(super) fn ring_denies(&self, rank: u32, step: u64) -> bool {
        let needed = (step + 1).saturating_sub(SLOTS);
        rank != self.members.rank() && self.counters(rank).finished.0.load(Ordering::Acquire) < needed
    }

    /// Whether `rank` has finished step `step`.
    pub(super) fn has_finished(&self, rank: u32, step: u64) -> bool {
        self.counters(rank).finished.0.load(Ordering::Acquire) > step
    }

    /// Says that this rank has published all steps before `steps`.
    pub(super) fn counter_publish(&self, steps: u64) {
        self.counters(self.rank()).published.0.store(steps, Ordering::Release);
        self.members.ring_all();
    }

    /// Writes a piece of this rank's chunk `step`, which [`Segment::counter_publish`] then shows.
    ///
    /// # Safety
    /// The piece is readable and ends within [`CHUNK`]; there is room for the step.
    pub(super) unsafe fn ring_write(&self, step: u64, piece: Piece) {
        let slot = self.staging(self.rank(), step).cast_mut();
        writes(slot);
        assert!(piece.at.saturating_add(piece.length) <= CHUNK, "outside the slot");
        // SAFETY: inside the slot, which is this rank's, and nobody reads it any more: there is room.
        unsafe { self.store.copy(piece.bytes, slot.add(piece.at), piece.length) };
    }

    /// `rank`'s chunk `step` if it has been published: readable until this rank finishes the step.
    pub(super) fn ring_published(&self, rank: u32, step: u64) -> Option<*const u8> {
        (self.counters(rank).published.0.load(Ordering::Acquire) > step).then(|| self.staging(rank, step))
    }

    /// Says that this rank has finished all steps before `steps`.
    pub(super) fn ring_finish(&self, steps: u64) {
        self.counters(self.members.rank()).finished.0.store(steps, Ordering::Release);
        self.members.ring_all();
    }

    /// Shows `bytes` in round `round` of the trial, whose protocol is told at [`super::trial`].
    pub(super) fn try_out(&mut self, round: u64, store: &Store, bytes: &[u8]) {
        let slot = self.staging(self.rank(), round).cast_mut();
        writes(slot);
        // SAFETY: the slot is this rank's and as long, and before the first call only the trial's other rank reads it,
        // which is done with the round that last used it.
        unsafe { store.copy(bytes.as_ptr(), slot, bytes.len().min(CHUNK)) };
        self.counters(self.rank()).tried.0.store(round + 1, Ordering::Release);
    }

    /// Whether `rank` has come to round `round` of the trial.
    pub(super) fn has_tried_out(&self, rank: u32, round: u64) -> bool {
        self.counters(rank).tried.0.load(Ordering::Acquire) > round
    }

    /// Reads what `rank` shows in a round to which it has come.
    pub(super) fn read_tried(&self, rank: u32, round: u64, to: &mut [u8]) {
        let slot = self.staging(rank, round);
        reads(slot);
        // SAFETY: the slot is as long, and its rank writes it again only after this one has come to later rounds.
        unsafe { std::ptr::copy_nonoverlapping(slot, to.as_mut_ptr(), to.len().min(CHUNK)) };
    }

    fn staging(&self, rank: u32, step: u64) -> *const u8 {
        self.at(rank, RING_AT + (step % SLOTS) as usize * CHUNK, CHUNK)
    }

    fn line(&self, rank: u32, sequence: u64, at: usize) -> *const Line {
        let index = (sequence % 2) as usize * LINES + at;
        self.at(rank, COUNTERS + index * size_of::<Line>(), size_of::<Line>()).cast()
    }

    fn counters(&self, rank: u32) -> &Counters {
        // SAFETY: the counters lie at the beginning of a part inside the mapping, which lives as long as `self`,
        // is aligned to pages and zero at first; they are touched through atomics alone.
        unsafe { &*self.at(rank, 0, COUNTERS).cast() }
    }

    fn at(&self, rank: u32, offset: usize, length: usize) -> *const u8 {
        self.mapping.at(Self::part(rank).start + offset, length).as_ptr()
    }
}

/// What zeroed memory is outside the models, where an atomic is more than its value.
#[cfg(all(test, loom))]
impl Segment {
    pub(super) fn for_model(size: u32) -> Arc<Mapping> {
        let mapping = Mapping::private(size as usize * PART).unwrap();
        for rank in 0..size {
            let part = mapping.at(Self::part(rank).start, PART);
            let counter = || Counter(AtomicU64::new(0));
            let counters = Counters { published: counter(), finished: counter(), tried: counter() };
            // SAFETY: they lie in the mapping, and nobody else knows it yet.
            unsafe { part.cast().write(counters) };
            for index in 0..2 * LINES {
                let line = mapping.at(Self::part(rank).start + COUNTERS + index * size_of::<Line>(), size_of::<Line>());
                let line = line.cast::<Line>();
                // SAFETY: as above.
                unsafe { line.write(Line { flag: AtomicU64::new(0), data: [0; PIECE] }) };
                // SAFETY: as above.
                crate::sync::model::watch(unsafe { (&raw const (*line.as_ptr()).data).cast() }, PIECE);
            }
            let slots = (0..2).map(|slot| (SLOTS_AT + slot * SLOT, SLOT));
            let staging = (0..SLOTS as usize).map(|slot| (RING_AT + slot * CHUNK, CHUNK));
            for (offset, length) in slots.chain(staging) {
                crate::sync::model::watch(mapping.at(Self::part(rank).start + offset, length).as_ptr(), length);
            }
        }
        mapping
    }
}
