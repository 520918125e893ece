//! The atomics and hints of the shared-memory protocols, so that the model checker can put its own in their place.
//!
//! Everything that two ranks touch at once goes through this module; nothing else in the crate may be compiled
//! differently under `cfg(loom)`.

#[cfg(not(loom))]
pub(crate) use std::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

#[cfg(loom)]
pub(crate) use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};
