//! The floating-point modes of the calling thread.
//!
//! An engine, or a library it was linked with, may have told the processor to flush subnormals to zero or to round
//! otherwise. Ranks that did and ranks that did not would then get different bits, so the modes are set to IEEE's
//! for the length of a call, and given back.

/// Runs `work` under round-to-nearest-even, with subnormals and without traps.
#[inline(always)]
pub(super) fn with_default(work: impl FnOnce()) {
    let found = read();
    if found & MODES == DEFAULT {
        return work();
    }
    write(found & !MODES | DEFAULT);
    work();
    write(found);
}

#[cfg(target_arch = "x86_64")]
pub(super) use self::x86_64::{DEFAULT, MODES, read, write};

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::asm;

    /// The fields of MXCSR that change results or trap: flush-to-zero, rounding, traps, denormals-are-zero.
    pub(in super::super) const MODES: u32 = 0xffc0;
    /// All traps masked, everything else off: what a program starts with.
    pub(in super::super) const DEFAULT: u32 = 0x1f80;

    #[inline(always)]
    pub(in super::super) fn read() -> u32 {
        let mut modes = 0_u32;
        // SAFETY: writes the register to the given four bytes and nothing else.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut modes, options(nostack, preserves_flags)) };
        modes
    }

    #[inline(always)]
    pub(in super::super) fn write(modes: u32) {
        // SAFETY: `modes` is what was read, or that with the defaults; no reserved bit is set.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const modes, options(nostack, preserves_flags)) };
    }
}

#[cfg(target_arch = "aarch64")]
pub(super) use self::aarch64::{DEFAULT, MODES, read, write};

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use std::arch::asm;

    /// The fields of FPCR that change results or trap: AHP, DN, FZ, RMode, FZ16, traps, EBF, AH, NEP, FIZ.
    pub(in super::super) const MODES: u64 = 0x07c8_bf07;
    /// IEEE's: what a program starts with.
    pub(in super::super) const DEFAULT: u64 = 0;

    #[inline(always)]
    pub(in super::super) fn read() -> u64 {
        let modes: u64;
        // SAFETY: reads a register that every thread may read.
        unsafe { asm!("mrs {}, fpcr", out(reg) modes, options(nomem, nostack, preserves_flags)) };
        modes
    }

    #[inline(always)]
    pub(in super::super) fn write(modes: u64) {
        // SAFETY: `modes` is what was read, or that with fields cleared.
        unsafe { asm!("msr fpcr, {}", in(reg) modes, options(nostack, preserves_flags)) };
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) use self::other::{DEFAULT, MODES, read, write};

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod other {
    //! Processors whose modes this library does not know.

    pub(in super::super) const MODES: u32 = 0;
    pub(in super::super) const DEFAULT: u32 = 0;

    pub(in super::super) fn read() -> u32 {
        0
    }

    pub(in super::super) fn write(_modes: u32) {}
}
