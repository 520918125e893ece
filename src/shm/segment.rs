//! The segment: what the shared-memory communicator keeps in memory that all ranks map.
//!
//! Each rank has a part of its own, which it alone writes: two counters, two inline slots, and a ring of staging
//! slots.
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

use crate::{
    bootstrap::{Members, mapping::Mapping},
    sync::{AtomicU64, Ordering, writes},
};

/// Bytes of an inline slot. Two of them and a peer's fit a first-level cache of 48 KiB.
pub(super) const INLINE: usize = 16 * 1024;
/// Bytes of a staging slot, and staging slots of a rank: chunks of 8 to 256 KiB are within 20 % of each other, and
/// four slots let a publisher run two chunks ahead of the slowest reader (measured by a prototype of this pipeline).
pub(super) const CHUNK: usize = 32 * 1024;
pub(super) const SLOTS: u64 = 4;

/// The counters of one rank, each on lines of its own: the one is written often while the other is polled.
#[repr(C)]
pub(super) struct Counters {
    published: Line,
    finished: Line,
}

/// 128 bytes, since processors fetch lines in pairs.
#[repr(C, align(128))]
struct Line(AtomicU64);

const COUNTERS: usize = size_of::<Counters>();
/// A rank's part, in whole pages, so that a page belongs to one rank.
const PART: usize = (COUNTERS + 2 * INLINE + SLOTS as usize * CHUNK).next_multiple_of(4096);

/// One rank's view of the segment.
pub(super) struct Segment {
    members: Arc<Members>,
    mapping: Arc<Mapping>,
    /// The smallest `finished` of the others, as last seen: it only grows.
    finished_by_all: u64,
}

impl Segment {
    /// Bytes for `size` ranks.
    pub(super) fn bytes(size: u32) -> usize {
        size as usize * PART
    }

    /// Where a rank's part lies.
    pub(super) fn part(rank: u32) -> Range<usize> {
        rank as usize * PART..(rank as usize + 1) * PART
    }

    /// The segment in a mapping of [`Segment::bytes`] zero bytes.
    pub(super) fn new(members: Arc<Members>, mapping: Arc<Mapping>) -> Self {
        Segment { members, mapping, finished_by_all: 0 }
    }

    /// `rank`'s inline slot of a call: [`INLINE`] bytes.
    pub(super) fn inline_slot(&self, rank: u32, sequence: u64) -> *const u8 {
        self.at(rank, COUNTERS + (sequence % 2) as usize * INLINE, INLINE)
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

    /// Writes this rank's chunk `step` and shows it.
    ///
    /// # Safety
    /// `bytes` are readable, at most [`CHUNK`] of them; there is room for the step.
    pub(super) unsafe fn ring_publish(&mut self, step: u64, bytes: *const u8, length: usize) {
        let me = self.members.rank();
        let slot = self.slot(me, step).cast_mut();
        writes(slot);
        // SAFETY: the slot is this rank's, and nobody reads it any more: there is room.
        unsafe { std::ptr::copy_nonoverlapping(bytes, slot, length.min(CHUNK)) };
        self.counters(me).published.0.store(step + 1, Ordering::Release);
        self.members.ring_all();
    }

    /// `rank`'s chunk `step` if it has been published: readable until this rank finishes the step.
    pub(super) fn ring_published(&self, rank: u32, step: u64) -> Option<*const u8> {
        (self.counters(rank).published.0.load(Ordering::Acquire) > step).then(|| self.slot(rank, step))
    }

    /// Says that this rank has finished all steps before `steps`.
    pub(super) fn ring_finish(&self, steps: u64) {
        self.counters(self.members.rank()).finished.0.store(steps, Ordering::Release);
        self.members.ring_all();
    }

    fn slot(&self, rank: u32, step: u64) -> *const u8 {
        self.at(rank, COUNTERS + 2 * INLINE + (step % SLOTS) as usize * CHUNK, CHUNK)
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
        let mapping = Mapping::private(Self::bytes(size)).unwrap();
        for rank in 0..size {
            let part = mapping.at(Self::part(rank).start, PART);
            let counters = Counters { published: Line(AtomicU64::new(0)), finished: Line(AtomicU64::new(0)) };
            // SAFETY: they lie in the mapping, and nobody else knows it yet.
            unsafe { part.cast().write(counters) };
            let slots = (0..2).map(|slot| (COUNTERS + slot * INLINE, INLINE));
            let staging = (0..SLOTS as usize).map(|slot| (COUNTERS + 2 * INLINE + slot * CHUNK, CHUNK));
            for (offset, length) in slots.chain(staging) {
                crate::sync::model::watch(mapping.at(Self::part(rank).start + offset, length).as_ptr(), length);
            }
        }
        mapping
    }
}
