//! The atomics and hints of the shared-memory protocols, so that the model checker can put its own in their place.
//!
//! Everything that two ranks touch at once goes through this module; nothing else in the crate may be compiled
//! differently under `cfg(loom)`, but for the models themselves. Memory that an atomic hands from rank to rank is
//! not wrapped: [`reads`] and [`writes`] stand where it is touched, and are nothing outside the models.

#[cfg(loom)]
mod checked;
mod fences;
#[cfg(all(test, loom))]
pub(crate) mod model;

use std::time::Duration;
#[cfg(not(loom))]
use std::time::Instant;
#[cfg(not(loom))]
pub(crate) use std::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

pub(crate) use fences::Fences;

#[cfg(loom)]
pub(crate) use checked::{AtomicU32, AtomicU64, Ordering, fence, futex, reads, spin_loop, writes};

/// Tells the model checker that memory handed over by an atomic is read here.
#[cfg(not(loom))]
#[inline(always)]
pub(crate) fn reads<T>(_at: *const T) {}

/// Tells the model checker that memory to be handed over by an atomic is written here.
#[cfg(not(loom))]
#[inline(always)]
pub(crate) fn writes<T>(_at: *const T) {}

/// Asks for the cache line at `at`, without waiting for it and whatever it is.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    // SAFETY: a prefetch reads nothing that the program sees and cannot fault, and SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    let _ = at;
}

/// Asks for the cache line at `at` to be this core's to write, without waiting for it and whatever it is.
#[inline(always)]
pub(crate) fn prefetch_to_write(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    // SAFETY: a prefetch changes nothing that the program sees and cannot fault. Every x86-64 processor decodes this one,
    // those that know nothing of it as no operation.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    let _ = at;
}

/// How long [`spin_until`] keeps the core, which whoever is awaited may need.
#[cfg(not(loom))]
const SPIN: Duration = Duration::from_micros(20);

/// Looks until it is so, for a short while; says whether it came to be. In the models, which know no time, for ever.
pub(crate) fn spin_until(at_most: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    #[cfg(not(loom))]
    let began = Instant::now();
    loop {
        if is_so() {
            return true;
        }
        #[cfg(not(loom))]
        match began.elapsed() {
            waited if waited >= at_most => return false,
            waited if waited >= SPIN => rustix::thread::sched_yield(),
            _ => {}
        }
        #[cfg(loom)]
        let _ = at_most;
        spin_loop();
    }
}

/// The kernel's sleep on a word of shared memory.
#[cfg(not(loom))]
pub(crate) mod futex {
    use std::{sync::atomic::AtomicU32, time::Duration};

    use rustix::thread::futex;

    /// Sleeps while the word is `expected`, until woken or for `at_most`. May return without a reason.
    pub(crate) fn wait(word: &AtomicU32, expected: u32, at_most: Duration) {
        let timeout = rustix::thread::Timespec {
            tv_sec: at_most.as_secs().min(1 << 30) as i64,
            tv_nsec: i64::from(at_most.subsec_nanos()),
        };
        // Every outcome (woken, changed, timed out, interrupted) means: look again.
        let _ = futex::wait(word, futex::Flags::empty(), expected, Some(&timeout));
    }

    /// Wakes all that sleep on the word, in whatever process.
    pub(crate) fn wake(word: &AtomicU32) {
        let _ = futex::wake(word, futex::Flags::empty(), i32::MAX as u32);
    }
}
