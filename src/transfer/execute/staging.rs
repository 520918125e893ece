//! Memory for buckets and reduced blocks: allocated when needed, used again, never more than the cap.
//!
//! A plan says how many bytes a rank holds at most ([`Load::staging`](super::super::Load::staging)), counted exactly. A
//! buffer may be larger than what it is used for, but only as far as the cap leaves room beyond that; so a request that
//! the plan foresaw is never refused. Nothing here knows what is in a buffer.

use std::{
    alloc::{self, Layout},
    ptr::NonNull,
};

use crate::{
    cuda::{device::Device, pinned::Pinned},
    error::{Error, Result},
};

/// Buffers begin at multiples of this: a cache line, and the widest vector.
const ALIGN: usize = 64;
/// Sizes are rounded up to this, so that buckets of nearly one size share buffers.
const GRAIN: u64 = 16;

/// The buffers of one rank.
pub(super) struct Staging {
    cap: u64,
    /// By how much buffers in use may be larger than what they are used for, all together.
    slack: u64,
    /// Bytes of all buffers, free ones too.
    held: u64,
    free: Vec<Buffer>,
    /// The device that copies from buffers and to them.
    device: Option<&'static Device>,
}

/// A piece of memory, with undefined contents at first.
pub(super) struct Buffer {
    start: NonNull<u8>,
    capacity: u64,
    /// How much of it is not used.
    spare: u64,
    /// What it is, where a device copies from it and to it.
    pinned: Option<Pinned>,
}

// SAFETY: the buffer owns its memory.
unsafe impl Send for Buffer {}

impl Staging {
    /// Memory for a rank that never needs more than `planned` bytes at once, of at most `cap`; pinned where a device is
    /// to copy from it and to it.
    pub(super) fn new(cap: u64, planned: u64, device: Option<&'static Device>) -> Staging {
        Staging { cap, slack: cap.saturating_sub(planned), held: 0, free: Vec::new(), device }
    }

    /// A buffer of at least so many bytes.
    pub(super) fn take(&mut self, bytes: u64) -> Result<Buffer> {
        let wanted = bytes.next_multiple_of(GRAIN).max(GRAIN);
        let fits = |buffer: &Buffer| buffer.capacity >= wanted && buffer.capacity - wanted <= self.slack;
        let best = (0..self.free.len()).filter(|at| fits(&self.free[*at])).min_by_key(|at| self.free[*at].capacity);
        if let Some(at) = best {
            let mut buffer = self.free.swap_remove(at);
            buffer.spare = buffer.capacity - wanted;
            self.slack -= buffer.spare;
            return Ok(buffer);
        }
        while self.held + wanted > self.cap
            && let Some(buffer) = self.free.pop()
        {
            self.held -= buffer.capacity;
        }
        let pinned = self.device.map(|device| Pinned::with(device, wanted as usize)).transpose()?;
        let start = match &pinned {
            Some(pinned) => NonNull::new(pinned.start()),
            None => {
                let layout = Layout::from_size_align(wanted as usize, ALIGN);
                // SAFETY: the size is not 0.
                layout.ok().and_then(|layout| NonNull::new(unsafe { alloc::alloc(layout) }))
            }
        };
        let start = start.ok_or_else(|| Error::OutOfMemory(format!("{wanted} bytes to stage a transfer")))?;
        self.held += wanted;
        Ok(Buffer { start, capacity: wanted, spare: 0, pinned })
    }

    /// Takes a buffer back.
    pub(super) fn give(&mut self, buffer: Buffer) {
        self.slack += buffer.spare;
        self.free.push(buffer);
    }

    /// Bytes of all buffers.
    pub(super) fn held(&self) -> u64 {
        self.held
    }
}

impl Buffer {
    /// Where it begins.
    pub(super) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.pinned.is_some() {
            return;
        }
        // SAFETY: allocated by `take` with this layout, which was valid there.
        unsafe { alloc::dealloc(self.start.as_ptr(), Layout::from_size_align_unchecked(self.capacity as usize, ALIGN)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_planned_fits_and_nothing_beyond_the_cap_is_held() {
        let mut seed = 1u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for slack in [0, 64, 4096] {
            let planned = 4096;
            let mut staging = Staging::new(planned + slack, planned, None);
            let mut used: Vec<(Buffer, u64)> = Vec::new();
            for _ in 0..5000 {
                let wanted = (1 + random(1500)).next_multiple_of(GRAIN);
                let total: u64 = used.iter().map(|(_, bytes)| bytes).sum();
                if total + wanted <= planned && random(3) > 0 {
                    let buffer = staging.take(wanted).unwrap();
                    assert!(buffer.capacity >= wanted && (buffer.start() as usize).is_multiple_of(ALIGN));
                    used.push((buffer, wanted));
                } else if !used.is_empty() {
                    let (buffer, _) = used.swap_remove(random(used.len() as u64) as usize);
                    staging.give(buffer);
                }
                assert!(staging.held() <= planned + slack, "{} held", staging.held());
            }
        }
    }

    #[test]
    fn a_buffer_is_used_again() {
        let mut staging = Staging::new(1 << 20, 1 << 10, None);
        let first = staging.take(1000).unwrap();
        let place = first.start();
        staging.give(first);
        assert_eq!(staging.take(900).unwrap().start(), place);
        assert_eq!(staging.held(), 1008);
    }
}
