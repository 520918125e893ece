//! Where log records go: to a callback from C, and to stderr where TUTTI_LOG asks for it.

use std::ffi::c_void;

use super::types::*;

/// Sends the library's log to `callback`, with `user` handed through; NULL: to nobody.
///
/// Without a callback the library is silent, unless the environment variable TUTTI_LOG names a filter ("info",
/// "tutti::group=debug"): then what passes it goes to stderr. The same filter decides what the callback gets; without
/// it, that is everything from TUTTI_LOG_INFO up.
///
/// When it returns the former callback is not running in any thread and will never be called again. Any thread may
/// call it, but not from within the callback. What is logged from within the callback is dropped.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_USAGE (from within the callback; forked process; the program is written in
/// Rust and has a logger of its own); TUTTI_TIMEOUT (the former callback still runs after 10 s: keep its user data);
/// TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_set_log_callback(callback: tutti_log_fn, user: *mut c_void) -> tutti_status_t {
    todo!()
}
