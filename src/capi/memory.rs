//! Memory that the ranks of a group share.

use std::ffi::c_void;

use super::{
    group::GROUPS,
    guard::{guard, guard_batched},
    parse::{Out, clear},
    types::*,
};
use crate::group::free_memory;

/// Allocates `bytes` on every rank that the group and its descendants read in place: large calls whose buffers lie in
/// such memory are not copied on their way. Collective, with equal `bytes` on all ranks; may stand in a batch, whose end
/// then writes *memory.
///
/// bytes: any number; 0 gives memory too. *memory gets the address of this rank's part: zeroed, for any offset and any
/// number of buffers; at a page of its own, or on a CUDA group where the driver puts it. It outlives the group until
/// tutti_mem_free. Where ranks cannot share memory (several hosts, devices that do not reach each other) it is ordinary
/// memory. No flag needs to be passed with calls.
///
/// CPU groups: memory of the host; the buffers of all ranks must lie in memory of one such call, which ranks find out in
/// each. CUDA groups: memory of the rank's device, of which the kernels of "pull" read as much as there is, on whichever
/// ranks and in captured calls, too. With TUTTI_CALL_REGISTERED a large call there is one launch (but for all_reduce by
/// "pull/one_shot"); else it is one for every 16 MiB, since other ranks may have to copy theirs. Allocating waits for nothing
/// that is enqueued, but the driver may.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE; TUTTI_MISMATCH (other bytes on another rank);
/// TUTTI_OUT_OF_MEMORY, on all ranks alike; TUTTI_TIMEOUT, TUTTI_PEER_LOST, TUTTI_ABORTED. A failed allocation leaves the
/// group alive; *memory is NULL then.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_mem_alloc(
    group: *mut tutti_group_t,
    bytes: usize,
    memory: *mut *mut c_void,
) -> tutti_status_t {
    // SAFETY: the C caller promises that memory is NULL or writable.
    unsafe { clear(memory) };
    guard_batched("tutti_mem_alloc", || {
        let group = GROUPS.pin(group)?;
        // SAFETY: as above.
        let memory = unsafe { Out::new("memory", memory) }?;
        group.allocate(bytes, Box::new(move |start| memory.write(start.cast())))
    })
}

/// Frees memory of tutti_mem_alloc. Local; any thread. No call may be using it, on a CUDA group neither one that is enqueued
/// nor one in a graph that will be replayed. Freeing NULL succeeds. Memory of a device stays with the group, since peers
/// may go on with theirs: what all ranks have freed serves the group's later allocations of about that size, and when
/// the process has no CUDA group any more it goes back to the device (what was lent to other processes by an IPC handle,
/// when the process ends).
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not memory of tutti_mem_alloc, or freed already); TUTTI_INVALID_USAGE
/// (forked process).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_mem_free(memory: *mut c_void) -> tutti_status_t {
    guard("tutti_mem_free", || {
        if memory.is_null() {
            return Ok(());
        }
        free_memory(memory.cast())
    })
}
