//! Memory that the ranks of a group share.

use std::ffi::c_void;

use super::types::*;

/// Allocates memory on every rank that the group and its descendants reach without a copy: calls whose buffers all
/// lie in such memory may carry TUTTI_CALL_REGISTERED. Collective, with equal `bytes` on all ranks. The memory
/// outlives the group until tutti_mem_free.
///
/// Not served yet: returns TUTTI_UNSUPPORTED, or TUTTI_INVALID_ARGUMENT for what is no group; *memory gets NULL.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_mem_alloc(
    group: *mut tutti_group_t,
    bytes: usize,
    memory: *mut *mut c_void,
) -> tutti_status_t {
    todo!()
}

/// Frees memory of tutti_mem_alloc. Local; any thread. Freeing NULL succeeds.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not memory of tutti_mem_alloc); TUTTI_INVALID_USAGE (forked
/// process).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_mem_free(memory: *mut c_void) -> tutti_status_t {
    todo!()
}
