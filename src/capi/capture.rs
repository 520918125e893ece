//! Capture sessions as C has them.

use std::sync::Arc;

use super::{
    group::GROUPS,
    guard::{guard, guard_batched},
    handles::{Entry, Table, destroy},
    parse::{Out, clear},
    types::*,
};
use crate::{
    capture::Session,
    error::{Error, Result},
    group::Group,
};

/// The capture sessions that C has handles of.
static CAPTURES: Table<Session> = Table::new();

impl Entry for Session {
    type Handle = tutti_capture;
    const KIND: u8 = b'C';
    const NAME: &'static str = "capture";

    fn retire(&self) {
        // An open session is aborted; one that has ended stays as it is.
        let _ = self.abort();
    }
}

/// Opens a capture session over some groups: collective calls on capturing streams that need it are noted until
/// tutti_capture_commit. Local. Never begins or ends a stream capture itself: any number of graphs may be captured,
/// on any streams. On CPU groups a session does nothing.
///
/// A session keeps its groups, and all that the graphs captured in it touch, until it is destroyed: a replay after a
/// group was destroyed returns at once and touches nothing. What is captured while no session of the group is open is
/// kept until the process ends, and all device memory of the library with it.
///
/// groups[0] to groups[count - 1]: distinct groups, at least one, in the same relative order on all ranks. *capture
/// gets a handle that the caller must destroy with tutti_capture_destroy after the last replay is over; NULL on failure.
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
    // SAFETY: the C caller promises that capture is NULL or writable.
    unsafe { clear(capture) };
    guard("tutti_capture_begin", || {
        // SAFETY: as above.
        let capture = unsafe { Out::new("capture", capture) }?;
        // SAFETY: the C caller promises `count` readable handles at groups.
        let groups = unsafe { read_groups(groups, count) }?;
        let place = CAPTURES.reserve()?;
        capture.write(place.fill(Session::open(groups)));
        Ok(())
    })
}

/// Makes the captured calls of the session ready to be replayed: once, before the first replay. Collective over each
/// of the session's groups in the order given. What cannot be registered stays staged, which tutti_explain says. After
/// the first group that does not commit, the others are given up: ranks that commit them hear that at once, with the
/// cause, and those groups live.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (no such session); TUTTI_INVALID_USAGE (forked process; the session
/// was committed or aborted before; a peer aborted its session or gave it up, which is named, and the group lives); or a
/// group's failure, as tutti_group_check, TUTTI_MISMATCH where the ranks captured different calls.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_capture_commit(capture: *mut tutti_capture_t) -> tutti_status_t {
    guard_batched("tutti_capture_commit", || CAPTURES.pin(capture)?.commit())
}

/// Ends the session without making its graphs ready: they must not be replayed. Local: never waits for a rank.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (no such session); TUTTI_INVALID_USAGE (forked process, or the
/// session was committed or aborted before).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_capture_abort(capture: *mut tutti_capture_t) -> tutti_status_t {
    guard("tutti_capture_abort", || CAPTURES.pin(capture)?.abort())
}

/// Destroys a session, after the last replay of its graphs has come to its end on the device: what they touch may be
/// gone from then on. An open session is aborted first. Destroying NULL or a destroyed session succeeds. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a session); TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_capture_destroy(capture: *mut tutti_capture_t) -> tutti_status_t {
    guard("tutti_capture_destroy", || destroy(&CAPTURES, capture))
}

/// Reads the groups of a new session.
///
/// # Safety
///
/// `groups` is NULL or points to `count` readable handles.
unsafe fn read_groups(groups: *const *mut tutti_group, count: usize) -> Result<Vec<Arc<Group>>> {
    if count == 0 {
        return Err(Error::invalid("count is 0, but a session has at least one group"));
    }
    if groups.is_null() {
        return Err(Error::invalid(format_args!("groups is NULL with count {count}")));
    }
    let mut read = Vec::new();
    for index in 0..count {
        // SAFETY: `index` is below `count`, for which the caller promises readable handles.
        let group = unsafe { groups.add(index).read() };
        read.push(Arc::clone(&*GROUPS.pin(group)?));
        // SAFETY: as above.
        if (0..index).any(|before| unsafe { groups.add(before).read() } == group) {
            return Err(Error::invalid(format_args!("groups[{index}] is named twice")));
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_once_and_its_handle_lives_until_it_is_destroyed() {
        for (first, status) in [
            (tutti_capture_commit as unsafe extern "C" fn(*mut tutti_capture) -> i32, "committed"),
            (tutti_capture_abort, "aborted"),
        ] {
            let capture = CAPTURES.insert(Session::open(Vec::new())).unwrap();
            // SAFETY: any pointer may be passed as a handle.
            unsafe {
                assert_eq!(first(capture), TUTTI_SUCCESS, "{status}");
                assert_eq!(tutti_capture_commit(capture), TUTTI_INVALID_USAGE);
                assert_eq!(tutti_capture_abort(capture), TUTTI_INVALID_USAGE);
                let text = std::ffi::CStr::from_ptr(crate::capi::text::tutti_last_error()).to_str().unwrap();
                assert_eq!(text, format!("tutti_capture_abort: the session was {status} before"));
                assert_eq!(tutti_capture_destroy(capture), TUTTI_SUCCESS);
                assert_eq!(tutti_capture_destroy(capture), TUTTI_SUCCESS);
                assert_eq!(tutti_capture_commit(capture), TUTTI_INVALID_ARGUMENT);
            }
        }
    }

    #[test]
    fn destroying_an_open_session_aborts_it() {
        let capture = CAPTURES.insert(Session::open(Vec::new())).unwrap();
        let held = CAPTURES.pin(capture).unwrap();
        assert_eq!(
            CAPTURES.destroy(capture, std::time::Duration::ZERO).unwrap(),
            crate::capi::handles::Destroyed::StillUsed
        );
        assert!(held.commit().unwrap_err().to_string().contains("aborted"));
    }

    #[test]
    fn a_session_is_not_opened_over_what_is_no_group() {
        let mut capture = std::ptr::dangling_mut();
        let groups = [std::ptr::null_mut(), std::ptr::dangling_mut()];
        // SAFETY: the arrays have the lengths they are passed with, and any pointer may be passed as a handle.
        unsafe {
            assert_eq!(tutti_capture_begin(groups.as_ptr(), 2, &mut capture), TUTTI_INVALID_ARGUMENT);
            assert!(capture.is_null(), "a handle is NULL on failure");
            assert_eq!(tutti_capture_begin(groups.as_ptr(), 0, &mut capture), TUTTI_INVALID_ARGUMENT);
            assert_eq!(tutti_capture_begin(std::ptr::null(), 1, &mut capture), TUTTI_INVALID_ARGUMENT);
            assert_eq!(tutti_capture_begin(groups.as_ptr(), 2, std::ptr::null_mut()), TUTTI_INVALID_ARGUMENT);
        }
    }
}
