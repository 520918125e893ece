//! What a communicator claims. The dispatcher takes the AND over the ranks; the conformance suite asks for exactly this.

use serde::{Deserialize, Serialize};

use super::Descriptor;
use crate::dtype::{Collective, DType, Op};

/// Where a communicator can natively put an all_reduce's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(i32)]
pub enum Placement {
    /// It serves no all_reduce.
    None = 0,
    /// Only over the input (`send == recv`).
    InPlace = 1,
    /// Only beside the input.
    OutOfPlace = 2,
    /// Either.
    Both = 3,
}

/// What a captured call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Capture {
    /// Calls cannot be captured.
    Impossible,
    /// Nothing: a captured call is complete.
    Free,
    /// A commit after capture.
    Commit,
}

/// A set of up to 32 small enum values.
fn bit(value: u8) -> u32 {
    1 << value
}

/// What one communicator can do for one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Capabilities {
    collectives: u32,
    dtypes: u32,
    ops: u32,
    /// The largest call served, in bytes of one rank's contribution.
    pub max_bytes: u64,
    /// Where an all_reduce's result can be put without staging.
    pub placement: Placement,
    /// What capture needs.
    pub capture: Capture,
    /// Whether a framework must wrap calls as an opaque custom operation.
    pub opaque: bool,
    /// Adds in rank order with fp32 accumulation: the same bits on all ranks and in every run.
    pub rank_order: bool,
    /// Finds out when ranks call different things.
    pub detects_mismatch: bool,
    /// An abort reaches a waiting rank within this many milliseconds; `None`: not at all.
    pub cancellable_within_ms: Option<u32>,
}

impl Capabilities {
    /// Capabilities for the given collectives, all reducible dtypes and all operations, and no further promise.
    pub fn new(collectives: &[Collective], dtypes: &[DType], ops: &[Op]) -> Self {
        Capabilities {
            collectives: collectives.iter().fold(0, |set, c| set | bit(*c as u8)),
            dtypes: dtypes.iter().fold(0, |set, d| set | bit(*d as u8)),
            ops: ops.iter().fold(0, |set, o| set | bit(*o as u8)),
            max_bytes: u64::MAX,
            placement: Placement::Both,
            capture: Capture::Impossible,
            opaque: false,
            rank_order: false,
            detects_mismatch: false,
            cancellable_within_ms: None,
        }
    }

    /// Whether calls of this kind are served at all, whatever their size.
    pub fn serves(&self, collective: Collective, dtype: DType, op: Op) -> bool {
        self.collectives & bit(collective as u8) != 0
            && (!collective.reduces() || self.dtypes_contain(dtype) && self.ops & bit(op as u8) != 0)
    }

    /// Whether this call of a group of `size` is served.
    pub fn serves_call(&self, call: &Descriptor, size: u32) -> bool {
        self.serves(call.collective, call.dtype, call.op) && call.contribution(size) <= self.max_bytes
    }

    fn dtypes_contain(&self, dtype: DType) -> bool {
        dtype.is_reducible() && self.dtypes & bit(dtype as u8) != 0
    }

    /// What remains when every rank must be able to.
    pub fn and(&self, other: &Capabilities) -> Capabilities {
        Capabilities {
            collectives: self.collectives & other.collectives,
            dtypes: self.dtypes & other.dtypes,
            ops: self.ops & other.ops,
            max_bytes: self.max_bytes.min(other.max_bytes),
            placement: match self.placement as i32 & other.placement as i32 {
                0 => Placement::None,
                1 => Placement::InPlace,
                2 => Placement::OutOfPlace,
                _ => Placement::Both,
            },
            capture: match (self.capture, other.capture) {
                (Capture::Impossible, _) | (_, Capture::Impossible) => Capture::Impossible,
                (Capture::Free, Capture::Free) => Capture::Free,
                _ => Capture::Commit,
            },
            opaque: self.opaque || other.opaque,
            rank_order: self.rank_order && other.rank_order,
            detects_mismatch: self.detects_mismatch && other.detects_mismatch,
            cancellable_within_ms: match (self.cancellable_within_ms, other.cancellable_within_ms) {
                (Some(a), Some(b)) => Some(a.max(b)),
                _ => None,
            },
        }
    }
}
