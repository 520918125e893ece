//! Groups: making them, asking them, ending them.
//!
//! Each function parses, calls one method of `Group`, and writes the result.

use std::ffi::c_char;

use super::types::*;

/// Makes a group of some ranks of `parent`.
///
/// ranks[0] to ranks[count - 1]: the members as ranks of the parent, each once; ranks[i] becomes rank i of the new
/// group. options: NULL for the parent's. Collective over the members, who must name the same ranks in the same
/// order; ranks that share several groups make them in one relative order. Ranks that are no members need not
/// call; one that does gets TUTTI_SUCCESS and NULL.
///
/// *group gets a handle that the caller must destroy with tutti_group_destroy; in an open batch it is NULL until
/// tutti_batch_end, and `group` must stay valid until then. NULL on failure. The new group does not need its
/// parent any more, and a failed creation leaves the parent alive. Works on a failed parent, from its survivors.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, or another thread is inside
/// a call of the parent); TUTTI_UNSUPPORTED (no allowed communicator works for these ranks, with the reasons);
/// TUTTI_MISMATCH, TUTTI_TIMEOUT, TUTTI_PEER_LOST and TUTTI_ABORTED, naming the rank; TUTTI_SYSTEM_ERROR;
/// TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_create(
    parent: *mut tutti_group_t,
    ranks: *const i32,
    count: usize,
    options: *const tutti_group_options_t,
    group: *mut *mut tutti_group_t,
) -> tutti_status_t {
    todo!()
}

/// Splits `parent` into groups: one for every color.
///
/// color: which group this rank joins; below 0: none, which gives TUTTI_SUCCESS and NULL. key: orders the ranks of
/// a group; equal keys keep the parent's order. options: NULL for the parent's. Collective over all ranks of the
/// parent. The handle, batches and failures are as in tutti_group_create.
///
/// Returns what tutti_group_create returns, and the parent's failure where it has failed.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_split(
    parent: *mut tutti_group_t,
    color: i32,
    key: i32,
    options: *const tutti_group_options_t,
    group: *mut *mut tutti_group_t,
) -> tutti_status_t {
    todo!()
}

/// Writes this rank's number within the group, 0 to size - 1. Local; any thread, failed groups too.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_rank(group: *const tutti_group_t, rank: *mut i32) -> tutti_status_t {
    todo!()
}

/// Writes how many ranks the group has. Local; any thread, failed groups too.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_size(group: *const tutti_group_t, size: *mut i32) -> tutti_status_t {
    todo!()
}

/// Writes the group's name, as it stands in texts. Local; any thread, failed groups too.
///
/// text, capacity, needed: see "Texts" at the top of this header.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_name(
    group: *const tutti_group_t,
    text: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> tutti_status_t {
    todo!()
}

/// The group's first failure, if it has failed: also of requests nobody waited for, of work queued on a stream,
/// and of what other ranks reported. Never waits; any thread may call it at any time, during a call too.
///
/// Returns TUTTI_SUCCESS while the group lives; otherwise the failure, the same on every rank of a host:
/// TUTTI_TIMEOUT, TUTTI_PEER_LOST, TUTTI_ABORTED, TUTTI_MISMATCH, TUTTI_COMMUNICATOR_ERROR, TUTTI_SYSTEM_ERROR,
/// TUTTI_CUDA_ERROR, TUTTI_OUT_OF_MEMORY or TUTTI_INTERNAL_ERROR. TUTTI_INVALID_ARGUMENT (no such group);
/// TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_check(group: *mut tutti_group_t) -> tutti_status_t {
    todo!()
}

/// Writes the group's first failure in one sentence; "" while the group lives. Never waits; any thread.
///
/// text, capacity, needed: see "Texts" at the top of this header.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_error(
    group: *const tutti_group_t,
    text: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> tutti_status_t {
    todo!()
}

/// Writes the group's first failure in numbers, with status TUTTI_SUCCESS while the group lives. Never waits; any
/// thread. Set failure->struct_size before the call (TUTTI_FAILURE_INIT does).
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_failure(
    group: *const tutti_group_t,
    failure: *mut tutti_failure_t,
) -> tutti_status_t {
    todo!()
}

/// Writes which ranks are alive: alive[r] gets 1 where rank r of the group is, as far as this rank can tell now,
/// and 0 where its process has ended, its connection has broken, or it has left the group.
///
/// size: bytes at `alive`, at least the group's size; the rest is left alone. Looks for itself and never waits;
/// any thread, failed groups too: it is how survivors find each other before they make a new group.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_alive(group: *mut tutti_group_t, alive: *mut u8, size: usize) -> tutti_status_t {
    todo!()
}

/// Writes the group of the same ranks whose buffers are host memory: for a CPU group the group itself, under the
/// same handle. It belongs to the group: do not destroy it; it is gone when the group is. Local; any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_cpu(group: *mut tutti_group_t, cpu: *mut *mut tutti_group_t) -> tutti_status_t {
    todo!()
}

/// Waits until every rank of the group has called it: a barrier of the hosts, which touches no stream.
///
/// timeout_ms: milliseconds, TUTTI_TIMEOUT_DEFAULT or TUTTI_TIMEOUT_NEVER. Collective; one thread at a time. In an
/// open batch it happens in tutti_batch_end.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, or another thread is inside a
/// call of the group); or the group's failure, as tutti_group_check.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_sync(group: *mut tutti_group_t, timeout_ms: i64) -> tutti_status_t {
    todo!()
}

/// Lets a communicator of the group serve calls (enabled 1) or not (enabled 0), on all ranks alike.
///
/// communicator: its name, as tutti_explain prints it. Collective: every rank must ask for the same. The plan
/// changes on every rank between the same two calls, or on none. What no other communicator can serve is then
/// TUTTI_UNSUPPORTED.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (no communicator of that name in this group, enabled is neither 0
/// nor 1); TUTTI_INVALID_USAGE (forked process, a batch is open, or another thread is inside a call of the group);
/// or the group's failure, as tutti_group_check, TUTTI_MISMATCH where ranks asked for different things.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_set_enabled(
    group: *mut tutti_group_t,
    communicator: *const c_char,
    enabled: i32,
) -> tutti_status_t {
    todo!()
}

/// Fails the group with TUTTI_ABORTED on every rank, and wakes every rank that waits in it.
///
/// Local: waits for nobody. Any thread may call it at any time, during a call of the group too. A group that has
/// already failed keeps its first failure.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_group_abort(group: *mut tutti_group_t) -> tutti_status_t {
    todo!()
}

/// Leaves the group and frees all it made. Local: data already delivered stays readable to the other ranks, whose
/// next call of the group fails with TUTTI_PEER_LOST.
///
/// A call of the group in another thread is aborted and waited for, but not longer than 10 s. Unfinished
/// requests of the group end with its failure and are still to be freed. Destroying NULL or a destroyed group
/// succeeds; any other use of a destroyed group gives TUTTI_INVALID_ARGUMENT. Any thread; at exit too.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a group); TUTTI_INVALID_USAGE (forked process, or the CPU
/// sibling of a CUDA group).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_group_destroy(group: *mut tutti_group_t) -> tutti_status_t {
    todo!()
}
