//! libtutti: every way the ranks of an inference engine can reduce, gather and move tensors, behind one
//! C header (`include/tutti.h`) and one Rust type ([`group::Group`]).
//!
//! The rooms, from the street down; an arrow may only point downwards:
//!
//! * [`capi`] — the C functions and types, and nothing else;
//! * [`tensor`] — tensor dicts and objects;
//! * [`transfer`] — mesh-to-mesh plans and their execution;
//! * [`capture`] — capture sessions: what all ranks captured of a CUDA group;
//! * [`group`] — groups of ranks: creation, calls, requests, batches, life cycle;
//! * [`dispatch`] — which communicator serves which call, agreed by all ranks, and why;
//! * [`shm`], [`sockets`], [`cuda`] — the communicators;
//! * [`communicator`] — what a communicator must say and do, and the parts they share;
//! * [`bootstrap`] — how ranks find, trust, hear and miss each other;
//! * [`topology`] — hosts and cores;
//! * [`error`], [`dtype`], [`config`] — the ground floor.

pub mod bootstrap;
pub mod capi;
pub mod capture;
pub mod communicator;
pub mod config;
pub mod cuda;
pub mod dispatch;
pub mod dtype;
pub mod error;
pub mod group;
pub mod shm;
pub mod sockets;
mod sync;
pub mod tensor;
pub mod topology;
pub mod transfer;
