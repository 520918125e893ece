//! Memory that the ranks of a group share.

use std::ffi::c_void;

use super::{
    group::GROUPS,
    guard::{guard, guard_batched},
    parse::{Out, clear},
    types::*,
};
use crate::error::Error;

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
    // SAFETY: the C caller promises that memory is NULL or writable.
    unsafe { clear(memory) };
    guard_batched("tutti_mem_alloc", || {
        GROUPS.pin(group)?;
        // SAFETY: as above.
        unsafe { Out::new("memory", memory) }?;
        Err(Error::Unsupported(format!(
            "tutti_mem_alloc of {bytes} bytes is not served in this version: use memory of any kind, calls need no other"
        )))
    })
}

/// Frees memory of tutti_mem_alloc. Local; any thread. Freeing NULL succeeds.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not memory of tutti_mem_alloc); TUTTI_INVALID_USAGE (forked
/// process).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_mem_free(memory: *mut c_void) -> tutti_status_t {
    guard("tutti_mem_free", || {
        if memory.is_null() {
            return Ok(());
        }
        Err(Error::invalid(format_args!("{memory:p} is no memory of tutti_mem_alloc")))
    })
}
