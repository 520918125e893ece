//! How bytes are put where another core reads them next.
//!
//! A line that a peer has read must be taken from its cache before it can be written, and one that was written
//! lies in this core's cache, from where the peer must fetch it. Streaming stores (past the cache) spare the first, and
//! on some processors make the second faster; on others they cost more than they spare once they fill the few
//! buffers they pass through. So whether to stream is a matter of the processor and the length. Each rank decides alone how
//! it writes: what the peers see is the same bytes. What follows for the plan ([`Store::lines_up_to`]) is the same on all
//! ranks, which share one host.
//!
//! | processor            | streamed        | why (measured between two cores of one guest) |
//! |----------------------|-----------------|-----------------------------------------------|
//! | AMD (Zen 3)          | from 512 B      | plain stores into lines the peer has read: 4 GB/s; streamed: 20 GB/s; fetched at 12 and 14 GB/s |
//! | Intel (Skylake-SP)   | 1 to 16 KiB     | lines written plainly are fetched at 7 GB/s, streamed ones at 13; above 16 KiB the stores' 6 GB/s are the limit |
//! | others               | never           | not measured                                  |
//!
//! The row of AMD holds for two cores that hand a line over in some 280 ns. Two that do so in 66 ns, as neighbours in one
//! cache do, lose by streaming (a slot of 1 KiB takes 1.25 us there), so a measurement when the group is made would choose
//! better than the processor's name does.

use std::ops::RangeInclusive;

use crate::communicator::copy;

/// Which lengths this processor had better stream.
#[derive(Clone, Debug)]
pub(super) struct Store {
    streamed: RangeInclusive<usize>,
}

impl Store {
    /// What suits the processor that the calling thread runs on.
    pub(super) fn detect() -> Self {
        Store { streamed: streamed() }
    }

    /// The largest contribution, of at most `most` bytes, that goes in flagged lines rather than in a slot: written
    /// line by line they are fetched as they come, but cannot be streamed.
    pub(super) fn lines_up_to(&self, most: usize) -> usize {
        // Streamed slots win from twice the length on from which a processor streams.
        if self.streamed.is_empty() { most } else { most.min(*self.streamed.start()) }
    }

    /// Copies `length` bytes to where a peer will read them. Whoever publishes them with a release store afterwards
    /// publishes all of them: streamed ones are drained here.
    ///
    /// # Safety
    /// `from` is readable and `to` writable for `length` bytes, and they do not overlap.
    #[inline]
    pub(super) unsafe fn copy(&self, from: *const u8, to: *mut u8, length: usize) {
        if self.streamed.contains(&length) {
            // SAFETY: passed on.
            unsafe { copy::stream(from, to, length) };
            return copy::drain();
        }
        // SAFETY: passed on.
        unsafe { std::ptr::copy_nonoverlapping(from, to, length) };
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::reversed_empty_ranges, reason = "an empty range is what \"never\" is")]
fn streamed() -> RangeInclusive<usize> {
    let cpuid = std::arch::x86_64::__cpuid(0);
    let vendor: Vec<u8> = [cpuid.ebx, cpuid.edx, cpuid.ecx].into_iter().flat_map(u32::to_le_bytes).collect();
    match vendor.as_slice() {
        b"AuthenticAMD" => 512..=usize::MAX,
        b"GenuineIntel" => 1024..=16 * 1024,
        _ => 1..=0,
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[allow(clippy::reversed_empty_ranges, reason = "an empty range is what \"never\" is")]
fn streamed() -> RangeInclusive<usize> {
    1..=0
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_alignment_arrives_whole_and_nothing_else_is_touched() {
        let from: Vec<u8> = (0..4096_u32).map(|i| (i * 31 + 7) as u8).collect();
        for store in [Store::detect(), Store { streamed: 0..=usize::MAX }] {
            for (skew, length) in (0..70).flat_map(|skew| [0, 1, 15, 63, 64, 65, 511, 512, 2048].map(|l| (skew, l))) {
                let mut to = vec![0xa5_u8; 4096];
                // SAFETY: 70 + 2048 bytes lie in both.
                unsafe { store.copy(from.as_ptr().add(1), to.as_mut_ptr().add(skew), length) };
                assert_eq!(to[skew..skew + length], from[1..1 + length]);
                assert!(to[..skew].iter().chain(&to[skew + length..]).all(|byte| *byte == 0xa5));
            }
        }
    }
}
