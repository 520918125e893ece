//! How a rank gets its first group: the world.
//!
//! Options are parsed here, once, and handed on; nothing is decided here.

use std::ffi::c_void;

use super::types::*;

/// Joins the world and makes its group: all ranks that start together.
///
/// options: how this rank finds the others; NULL: everything from the environment (the variables of torchrun,
/// Open MPI, MPICH and Slurm). Collective: returns when every rank has called it, or fails on every rank that has.
/// Several threads of one process may each call it, with the rank of each and one unique id in the options.
///
/// *world gets a handle that the caller must destroy with tutti_group_destroy; NULL on failure. Thread-safe.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (an option is wrong or missing, or ranks have different ones);
/// TUTTI_INVALID_USAGE (forked process; a batch is open; the environment's world exists already);
/// TUTTI_UNSUPPORTED (no such device, or nothing that works here is allowed); TUTTI_TIMEOUT, TUTTI_PEER_LOST
/// and TUTTI_MISMATCH, naming the rank; TUTTI_SYSTEM_ERROR; TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_world_create(
    options: *const tutti_world_options_t,
    world: *mut *mut tutti_group_t,
) -> tutti_status_t {
    todo!()
}

/// Makes a world whose ranks all live in this process, and returns all of them.
///
/// size: how many ranks. devices: one CUDA ordinal for every rank, or NULL: CPU ranks. options: as for
/// tutti_world_create, or NULL; its size must be 0 or `size`, and it names no rank, unique id, address or
/// all_gather. Local: needs no other process and no network.
///
/// ranks[0] to ranks[size - 1] get a handle each, which the caller must destroy with tutti_group_destroy; all are
/// NULL on failure. Each rank's collective calls must come from a thread of its own, or be started with requests.
/// Thread-safe.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, a batch is open);
/// TUTTI_UNSUPPORTED; TUTTI_SYSTEM_ERROR; TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_world_create_local(
    size: i32,
    devices: *const i32,
    options: *const tutti_world_options_t,
    ranks: *mut *mut tutti_group_t,
) -> tutti_status_t {
    todo!()
}

/// Makes the id of a new world, which one rank makes and hands to all others by any means.
///
/// The process that makes it must hold rank 0: it listens for the others. The id contains a secret: whoever has it
/// may join. id: `capacity` bytes of the caller's, of which TUTTI_UNIQUE_ID_BYTES are written. needed: gets
/// TUTTI_UNIQUE_ID_BYTES, or NULL. With id NULL and capacity 0 only `needed` is written and no id is made.
/// Thread-safe.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (capacity too small); TUTTI_INVALID_USAGE (forked process);
/// TUTTI_SYSTEM_ERROR; TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_unique_id_create(id: *mut c_void, capacity: usize, needed: *mut usize) -> tutti_status_t {
    todo!()
}
