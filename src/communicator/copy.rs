//! Copies of many bytes.
//!
//! `memcpy` is not always the fastest. glibc copies from a few KiB on with `rep movsb`, which some processors do at a
//! quarter of their speed where the place written begins a little above the place read, modulo a page (AMD Zen 3 and
//! later; glibc bug 30994; measured: 2.2 GB/s instead of 8.2). That is no rare case: large memory of `malloc` begins
//! 16 bytes above a page, and what is mapped begins at one. And it reads what it is about to overwrite, which large
//! results in memory had better be spared ([`stream`]; measured: 8 and 14 GB/s).

/// Bytes that `memcpy` copies without `rep movsb`.
const SHORT: usize = 2048;
/// A line of the caches.
#[cfg(all(target_arch = "x86_64", not(loom)))]
const LINE: usize = 64;

/// Copies `length` bytes.
///
/// # Safety
/// `from` is readable and `to` writable for so many bytes, and they do not overlap.
#[inline]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    let mut at = 0;
    while at < length {
        let step = SHORT.min(length - at);
        // SAFETY: within what the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(from.add(at), to.add(at), step) };
        at += step;
    }
}

/// Copies `length` bytes, past the caches if it `streams`; either way a release store that follows publishes them.
///
/// # Safety
/// As for [`copy`].
#[inline]
pub(crate) unsafe fn copy_by(streams: bool, from: *const u8, to: *mut u8, length: usize) {
    // SAFETY: passed on.
    unsafe {
        match streams {
            true => {
                stream(from, to, length);
                drain();
            }
            false => copy(from, to, length),
        }
    }
}

/// Copies `length` bytes past the caches. They are ordered by nothing but [`drain`], not even by a release store.
///
/// # Safety
/// As for [`copy`].
#[cfg(all(target_arch = "x86_64", not(loom)))]
#[inline]
pub(crate) unsafe fn stream(from: *const u8, to: *mut u8, length: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};

    let head = to.align_offset(LINE).min(length);
    let lines = (length - head) / LINE;
    let tail = head + lines * LINE;
    // SAFETY: all three stretches lie within the `length` bytes, and the middle one begins at a line in `to`.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, head);
        for line in 0..lines {
            let at = head + line * LINE;
            let (from, to) = (from.add(at).cast::<__m128i>(), to.add(at).cast::<__m128i>());
            // A whole line in a row, so that it leaves the core's buffer as one.
            let words = [0, 1, 2, 3].map(|i| _mm_loadu_si128(from.add(i)));
            for (i, word) in words.into_iter().enumerate() {
                _mm_stream_si128(to.add(i), word);
            }
        }
        std::ptr::copy_nonoverlapping(from.add(tail), to.add(tail), length - tail);
    }
}

/// As [`copy`]: nothing else is known for this processor.
///
/// # Safety
/// As for [`copy`].
#[cfg(not(all(target_arch = "x86_64", not(loom))))]
pub(crate) unsafe fn stream(from: *const u8, to: *mut u8, length: usize) {
    // SAFETY: passed on.
    unsafe { copy(from, to, length) };
}

/// Asks for memory that is read soon, where the processor does not foresee it: what it fetches ahead of itself ends with
/// the page (measured: rows of 4 KiB that are 8 KiB apart at 5.2 GB/s instead of 4.0). The memory need not be there.
#[inline]
pub(crate) fn expect(from: *const u8, length: usize) {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    for line in (0..length).step_by(LINE) {
        // SAFETY: a hint, which never faults; every x86-64 processor has it.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(from.wrapping_add(line).cast())
        };
    }
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    let _ = (from, length);
}

/// Orders what was streamed before everything that follows.
#[inline]
pub(crate) fn drain() {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    // SAFETY: every x86-64 processor has it.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_alignment_arrives_whole_and_nothing_else_is_touched() {
        let from: Vec<u8> = (0..8192_u32).map(|i| (i * 31 + 7) as u8).collect();
        for copy in [copy, stream] {
            for (skew, length) in (0..70).flat_map(|skew| [0, 1, 15, 63, 64, 65, 2047, 2048, 5000].map(|l| (skew, l))) {
                let mut to = vec![0xa5_u8; 8192];
                // SAFETY: 70 + 5000 bytes lie in both.
                unsafe { copy(from.as_ptr().add(1), to.as_mut_ptr().add(skew), length) };
                drain();
                assert_eq!(to[skew..skew + length], from[1..1 + length]);
                assert!(to[..skew].iter().chain(&to[skew + length..]).all(|byte| *byte == 0xa5));
            }
        }
    }
}
