//! Capture sessions as C has them.

use super::types::*;

/// Opens a capture session over some groups: collective calls on capturing streams that need it are noted until
/// tutti_capture_commit. Local. Never begins or ends a stream capture itself: any number of graphs may be captured,
/// on any streams. On CPU groups a session does nothing.
///
/// groups[0] to groups[count - 1]: distinct groups, at least one, in the same relative order on all ranks. *capture
/// gets a handle that the caller must destroy with tutti_capture_destroy after the last replay; NULL on failure.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process); TUTTI_OUT_OF_MEMORY;
/// TUTTI_INTERNAL_ERROR.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_capture_begin(
    groups: *const *mut tutti_group_t,
    count: usize,
    capture: *mut *mut tutti_capture_t,
) -> tutti_status_t {
    todo!()
}

/// Makes the captured calls of the session ready to be replayed: once, before the first replay. Collective over each
/// of the session's groups in the order given. What cannot be registered stays staged, which tutti_explain says.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (no such session); TUTTI_INVALID_USAGE (forked process; the session
/// was committed or aborted before; a peer aborted its session, which is named, and the group lives); or a group's
/// failure, as tutti_group_check, TUTTI_MISMATCH where the ranks captured different calls.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_capture_commit(capture: *mut tutti_capture_t) -> tutti_status_t {
    todo!()
}

/// Ends the session without making its graphs ready: they must not be replayed. Local: never waits for a rank.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (no such session); TUTTI_INVALID_USAGE (forked process, or the
/// session was committed or aborted before).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_capture_abort(capture: *mut tutti_capture_t) -> tutti_status_t {
    todo!()
}

/// Destroys a session, after the last replay of its graphs; an open one is aborted first. Destroying NULL or a
/// destroyed session succeeds. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a session); TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_capture_destroy(capture: *mut tutti_capture_t) -> tutti_status_t {
    todo!()
}
