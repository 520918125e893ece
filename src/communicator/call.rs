//! A collective call after parsing: what all ranks must agree on, and this rank's memory.

use std::{ffi::c_void, fmt};

use crate::{
    config::Timeout,
    dtype::{Collective, DType, Op},
};

/// What every rank must call alike. Two ranks whose descriptors differ get `MISMATCH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// What is done.
    pub collective: Collective,
    /// The element type.
    pub dtype: DType,
    /// The reduction; [`Op::Sum`] where nothing is reduced.
    pub op: Op,
    /// The root, or 0 where there is none; for v-forms a digest of the counts.
    pub root: u32,
    /// Call flags that all ranks promise alike.
    pub flags: u32,
    /// Elements, in the unit of the collective: of every rank's buffer for all_reduce, broadcast and reduce; of one
    /// rank's part for all_gather, gather, scatter, reduce_scatter and all_to_all.
    pub count: u64,
}

impl Descriptor {
    /// A call that moves nothing.
    pub const BARRIER: Descriptor =
        Descriptor { collective: Collective::Barrier, dtype: DType::Bytes, op: Op::Sum, root: 0, flags: 0, count: 0 };

    /// 32 bits that differ, almost surely, when the descriptors do. The same on every machine.
    ///
    /// The multiplier is that of MurmurHash3's 64-bit finaliser, which passes every single-bit difference on to
    /// the upper half; equality is always decided on the full descriptor where this one differs.
    pub fn digest(&self) -> u32 {
        let packed = u64::from(self.collective as u8)
            | u64::from(self.dtype as u8) << 8
            | u64::from(self.op as u8) << 16
            | u64::from(self.flags & 0xff) << 24
            | u64::from(self.root) << 32;
        let mut mixed = packed.wrapping_mul(0xff51_afd7_ed55_8ccd) ^ self.count.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^= mixed >> 29;
        (mixed.wrapping_mul(0xff51_afd7_ed55_8ccd) >> 32) as u32
    }

    /// The descriptor in the 24 bytes other ranks read it from.
    pub fn to_words(&self) -> [u64; 3] {
        [
            u64::from(self.collective as u8) | u64::from(self.dtype as u8) << 8 | u64::from(self.op as u8) << 16,
            u64::from(self.root) | u64::from(self.flags) << 32,
            self.count,
        ]
    }

    /// Reads what [`Descriptor::to_words`] wrote; `None` if it is no descriptor.
    pub fn from_words(words: [u64; 3]) -> Option<Self> {
        let byte = |shift: u32| i32::from((words[0] >> shift) as u8);
        Some(Descriptor {
            collective: Collective::parse(byte(0)).ok()?,
            dtype: DType::parse(byte(8)).ok()?,
            op: Op::parse(byte(16)).ok()?,
            root: words[1] as u32,
            flags: (words[1] >> 32) as u32,
            count: words[2],
        })
    }

    /// Bytes that a contributor offers in a group of `size`: what algorithms are chosen by.
    pub fn contribution(&self, size: u32) -> u64 {
        use Collective::*;
        match self.collective {
            ReduceScatter | Scatter | AllToAll => self.bytes() as u64 * u64::from(size),
            Barrier | Send | Recv => 0,
            _ => self.bytes() as u64,
        }
    }

    /// Bytes of `count` elements; parsing made sure that this does not overflow, times the ranks neither.
    pub fn bytes(&self) -> usize {
        self.count as usize * self.dtype.size()
    }
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.collective.name())?;
        if self.collective == Collective::Barrier {
            return Ok(());
        }
        write!(f, " of {} x {}", self.count, self.dtype.name())?;
        if self.collective.reduces() {
            write!(f, " {}", self.op.name())?;
        }
        if self.collective.has_root() {
            write!(f, " with root {}", self.root)?;
        }
        if self.root != 0 && !self.collective.has_root() {
            // The digest of the counts of a v-form: shown, since two calls may differ in nothing else.
            write!(f, " in parts #{:08x}", self.root)?;
        }
        Ok(())
    }
}

/// One rank's call: the descriptor and this rank's buffers, checked.
///
/// Whoever makes one promises, until the call is done, that `send` is readable and `recv` writable for the bytes
/// that [`Pattern`](super::Pattern) derives from the descriptor, that nobody else touches them, and that they are
/// either the in-place form of the collective or do not overlap.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// What all ranks call alike.
    pub descriptor: Descriptor,
    /// This rank's contribution; dangling where the rank contributes nothing.
    pub send: *const u8,
    /// This rank's result; dangling where the rank receives nothing.
    pub recv: *mut u8,
    /// The stream of a call on a CUDA group; NULL is its legacy default stream, and all there is on a CPU group.
    pub stream: *mut c_void,
    /// How long what is enqueued may wait on the device, once the group has resolved it.
    pub timeout: Timeout,
}

impl Call {
    /// A call on no stream, with the group's deadline.
    pub fn new(descriptor: Descriptor, send: *const u8, recv: *mut u8) -> Self {
        Call { descriptor, send, recv, stream: std::ptr::null_mut(), timeout: Timeout::Default }
    }
}

// SAFETY: the pointers belong to the caller, who promises exclusive use until the call is done, from any thread.
unsafe impl Send for Call {}
