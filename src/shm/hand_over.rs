//! How bytes are put where another core reads them next.
//!
//! A line that a peer has read must be taken from its cache before it can be written, and one that was written
//! lies in this core's cache, from where the peer must fetch it. Streaming stores (past the cache) spare the first, and
//! between some cores make the second faster; between others they cost more than they spare once they fill the few
//! buffers they pass through. So whether to stream is a matter of the two cores and the length, and is tried out when a
//! group is made (see [`super::trial`]). Where nothing could be tried, the processor's name decides:
//!
//! | processor            | streamed        | why (measured between two cores of one guest) |
//! |----------------------|-----------------|-----------------------------------------------|
//! | AMD (Zen 3)          | from 1.5 KiB    | plain stores into lines the peer has read: 4 GB/s; streamed: 20 GB/s; fetched at 12 and 14 GB/s |
//! | Intel (Skylake-SP)   | 1.5 to 24 KiB   | lines written plainly are fetched at 7 GB/s, streamed ones at 13; above 16 KiB the stores' 6 GB/s are the limit |
//! | others               | never           | not measured                                  |
//!
//! What the peers see is the same bytes either way.

use super::trial::Outcome;
use crate::communicator::copy;

/// Lengths of copies that behave alike.
pub(super) struct Class {
    /// The shortest, in bytes.
    from: usize,
    /// The one that is tried out for all.
    pub(super) tried: usize,
}

/// The classes, in order. What is shorter than the first is never streamed: the drain after a streamed copy costs more
/// than it spares (measured at 280 ns: 1 KiB takes 0.9 us through a slot, streamed 1.3).
pub(super) const CLASSES: [Class; 2] =
    [Class { from: 1536, tried: 8 * 1024 }, Class { from: 24 * 1024, tried: 32 * 1024 }];

/// Which lengths are streamed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Store {
    /// By class.
    streamed: [bool; CLASSES.len()],
}

impl Store {
    /// Streams nothing.
    pub(super) const PLAIN: Store = Store { streamed: [false; CLASSES.len()] };
    /// Streams whatever is not too short.
    pub(super) const STREAMING: Store = Store { streamed: [true; CLASSES.len()] };

    /// What suits most processors of the kind that the calling thread runs on.
    pub(super) fn detect() -> Self {
        by_name()
    }

    /// What the trial found best.
    pub(super) fn tried(outcome: &Outcome) -> Self {
        let mut streamed = [false; CLASSES.len()];
        streamed.iter_mut().enumerate().for_each(|(class, streamed)| *streamed = outcome.streams(class));
        Store { streamed }
    }

    /// Whether a copy of this length is streamed.
    #[inline]
    pub(super) fn streams(&self, length: usize) -> bool {
        let [middle, long] = self.streamed;
        length >= CLASSES[0].from && if length < CLASSES[1].from { middle } else { long }
    }

    /// Copies `length` bytes to where a peer will read them. Whoever publishes them with a release store afterwards
    /// publishes all of them: streamed ones are drained here.
    ///
    /// # Safety
    /// `from` is readable and `to` writable for `length` bytes, and they do not overlap.
    #[inline]
    pub(super) unsafe fn copy(&self, from: *const u8, to: *mut u8, length: usize) {
        // SAFETY: passed on.
        unsafe { copy::copy_by(self.streams(length), from, to, length) };
    }
}

#[cfg(target_arch = "x86_64")]
fn by_name() -> Store {
    let cpuid = std::arch::x86_64::__cpuid(0);
    let vendor: Vec<u8> = [cpuid.ebx, cpuid.edx, cpuid.ecx].into_iter().flat_map(u32::to_le_bytes).collect();
    match vendor.as_slice() {
        b"AuthenticAMD" => Store::STREAMING,
        b"GenuineIntel" => Store { streamed: [true, false] },
        _ => Store::PLAIN,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn by_name() -> Store {
    Store::PLAIN
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_lengths_at_the_edges_of_the_classes_arrive_whole_and_nothing_else_is_touched() {
        let longest = CLASSES[1].from + 70;
        let from: Vec<u8> = (0..=longest).map(|i| (i * 31 + 7) as u8).collect();
        let edges = CLASSES.iter().flat_map(|class| [class.from - 1, class.from]).chain([0, 1, 64, 512, 2048]);
        let edges: Vec<usize> = edges.collect();
        for store in [Store::PLAIN, Store::STREAMING, Store { streamed: [true, false] }] {
            for (skew, length) in [0, 1, 15, 16, 63, 69].iter().flat_map(|skew| edges.iter().map(|l| (*skew, *l))) {
                let mut to = vec![0xa5_u8; longest];
                // SAFETY: 70 bytes more than the longest edge lie in both.
                unsafe { store.copy(from.as_ptr().add(1), to.as_mut_ptr().add(skew), length) };
                assert_eq!(to[skew..skew + length], from[1..1 + length]);
                assert!(to[..skew].iter().chain(&to[skew + length..]).all(|byte| *byte == 0xa5));
            }
        }
    }
}
