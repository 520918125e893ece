//! The communicators of CUDA groups: one rank, one device, calls enqueued on streams.
//!
//! * `peers` — *push* and *pull*: kernels that reach into each other's memory (`kernels/`, with a README of its own);
//! * `staged` — the last resort: through the memory of the host;
//! * [`lane`] — what both share on one rank: one call in flight, buffers, orders to the kernels and failures from them;
//! * `thresholds` — which algorithm from which size on, with the source of each number;
//! * [`pinned`] — host memory that a device copies from and to;
//! * `memory` — device memory and how it gets to other ranks; `sharing` — how a group comes to some; `verdict` — whether
//!   devices may reach into it at all;
//! * `registered` — memory that callers get and pull kernels read in place; `directory` — where a group's kernels find it;
//! * [`device`], `kernels`, `params` — a device, the kernels in it, what they are called with;
//! * [`driver`] — libcuda, opened when the first CUDA rank is made, and never needed before.
//!
//! Nothing here is compiled by a CUDA compiler or linked with a CUDA library.

pub mod device;
mod directory;
pub mod driver;
mod kernels;
pub mod lane;
mod memory;
mod params;
mod peers;
pub mod pinned;
mod registered;
mod sharing;
mod staged;
mod thresholds;
mod verdict;

pub use kernels::Way;
pub use peers::{Pull, Push};
pub use registered::{Given, allocate};
pub use staged::Staged;
/// What `tutti-peer-check` is made of.
pub mod peer_check {
    pub use super::verdict::{REFUSED, UNKNOWN, begin_trying, copies_arrive};
}

use crate::error::Result;

/// What all ranks' tables of thresholds must agree on: their whole text.
pub fn plan_text() -> Result<&'static str> {
    thresholds::Table::get().map(thresholds::Table::text)
}
