//! The wall between Rust and C: every exported function that can fail runs inside [`guard`] or [`answer`].
//!
//! A result becomes a status, a panic becomes `INTERNAL_ERROR` without a word on stderr, and what went wrong is kept
//! for `tutti_last_error` of the same thread. The way of a call that succeeds allocates nothing and takes no lock.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    ffi::c_char,
    io::Write,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use super::types::tutti_status_t;
use crate::{
    error::{Error, Result, Status},
    group::{batch, forked},
};

/// Runs the body of the C function `name`; `SUCCESS` if it returns.
#[inline(always)]
pub(super) fn guard(name: &'static str, body: impl FnOnce() -> Result<()>) -> tutti_status_t {
    answer(name, || body().map(|()| Status::Success))
}

/// As [`guard`], for a call that may stand in a batch: its error cancels the batch that is open in this thread.
#[inline(always)]
pub(super) fn guard_batched(name: &'static str, body: impl FnOnce() -> Result<()>) -> tutti_status_t {
    guard(name, || body().inspect_err(|error| batch::refuse(name, error)))
}

/// Runs the body of the C function `name`, which says itself what to return.
#[inline(always)]
pub(super) fn answer(name: &'static str, body: impl FnOnce() -> Result<Status>) -> tutti_status_t {
    silence_panics();
    let outer = GUARDED.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        if forked() {
            return Err(forked_child());
        }
        body()
    }));
    GUARDED.set(outer);
    let error = match outcome {
        Ok(Ok(status)) => return status as tutti_status_t,
        Ok(Err(error)) => error,
        Err(payload) => Error::Internal(panic_text(&*payload)),
    };
    remember(name, &error);
    error.status() as tutti_status_t
}

/// The text of this thread's last error, NUL-terminated.
pub(super) fn last_error() -> *const c_char {
    let none = c"".as_ptr();
    LAST_ERROR
        .try_with(|text| match text.try_borrow() {
            Ok(text) if !text.is_empty() => text.as_ptr().cast(),
            _ => none,
        })
        .unwrap_or(none)
}

thread_local! {
    /// The last error with its NUL, or nothing. The memory is reused from one error to the next.
    static LAST_ERROR: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Whether this thread is inside [`answer`], so that a panic will be caught.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    /// Where the panic being caught began.
    static PANICKED_AT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps what went wrong. A failure's text tells its own story and is the same on all ranks; any other text is about
/// this one call, so it names the function.
#[cold]
fn remember(name: &str, error: &Error) {
    // First, because a log callback may call functions of this library that fail.
    log::debug!(target: "tutti::capi", "{name}: {}: {error}", error.status().describe());
    let _ = LAST_ERROR.try_with(|text| {
        let Ok(mut text) = text.try_borrow_mut() else { return };
        text.clear();
        // Writing to a Vec cannot fail, and a Display that does leaves a shorter text.
        let _ = match error {
            Error::Failed(_) => write!(text, "{error}"),
            _ => write!(text, "{name}: {error}"),
        };
        text.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
        text.push(0);
    });
}

#[cold]
fn forked_child() -> Error {
    Error::usage(format_args!(
        "process {} was forked from one that had made a world, and nothing of libtutti works here: start processes by \
         spawning them (in Python: multiprocessing.set_start_method(\"spawn\"))",
        std::process::id()
    ))
}

/// Keeps panics that will be caught from being printed. All others go to the hook that was there before.
fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if std::thread::panicking() {
            return; // the hook cannot be changed now
        }
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                return others(info);
            }
            let place = info.location().map(ToString::to_string);
            let _ = PANICKED_AT.try_with(|slot| slot.try_borrow_mut().map(|mut slot| *slot = place));
        }));
    });
}

#[cold]
fn panic_text(payload: &(dyn Any + Send)) -> String {
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a text");
    let place = PANICKED_AT.try_with(|slot| slot.try_borrow_mut().ok().and_then(|mut slot| slot.take()));
    match place {
        Ok(Some(place)) => format!("{message} (at {place}); this is a defect of libtutti, please report it"),
        _ => format!("{message}; this is a defect of libtutti, please report it"),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn text() -> String {
        // SAFETY: `last_error` returns a NUL-terminated text of this thread, which is copied before the next error.
        unsafe { CStr::from_ptr(last_error()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn an_error_becomes_a_status_and_a_text_that_names_the_function() {
        let status = guard("tutti_test", || Err(Error::invalid("count is wrong")));
        assert_eq!(status, Status::InvalidArgument as i32);
        assert_eq!(text(), "tutti_test: count is wrong");
    }

    #[test]
    fn the_failure_of_a_group_reads_the_same_whichever_function_reports_it() {
        let status = guard("tutti_test", || Err(Error::failed(Status::PeerLost, Some(2), "rank 2 died")));
        assert_eq!(status, Status::PeerLost as i32);
        assert_eq!(text(), "rank 2 died");
    }

    #[test]
    fn a_panic_becomes_an_internal_error_that_says_where() {
        let status = guard("tutti_test", || panic!("lost the {}", "thread"));
        assert_eq!(status, Status::InternalError as i32);
        assert!(text().starts_with("tutti_test: internal error: lost the thread (at src/capi/guard.rs:"), "{}", text());
        assert_eq!(guard("tutti_test", || Ok(())), 0, "the thread works after a caught panic");
    }

    #[test]
    fn a_success_leaves_the_last_error_alone_and_so_does_progress() {
        guard("tutti_test", || Err(Error::usage("first")));
        assert_eq!(guard("tutti_test", || Ok(())), 0);
        assert_eq!(answer("tutti_test", || Ok(Status::InProgress)), Status::InProgress as i32);
        assert_eq!(text(), "tutti_test: first");
    }

    #[test]
    fn a_thread_that_never_failed_has_an_empty_text() {
        std::thread::spawn(|| assert_eq!(text(), "")).join().unwrap();
    }

    #[test]
    fn errors_of_one_thread_are_not_seen_by_another() {
        guard("tutti_test", || Err(Error::usage("mine")));
        std::thread::spawn(|| guard("tutti_test", || Err(Error::usage("theirs")))).join().unwrap();
        assert_eq!(text(), "tutti_test: mine");
    }

    #[test]
    fn a_text_with_a_nul_in_it_is_not_cut_short() {
        guard("tutti_test", || Err(Error::usage("a\0b")));
        assert_eq!(text(), "tutti_test: a b");
    }

    #[test]
    fn errors_of_equal_length_reuse_the_memory_of_the_text() {
        guard("tutti_test", || Err(Error::usage("one")));
        let before = last_error();
        guard("tutti_test", || Err(Error::usage("two")));
        assert_eq!(last_error(), before);
    }

    #[test]
    fn a_guard_within_a_guard_still_silences_the_outer_one() {
        let status = guard("tutti_outer", || {
            guard("tutti_inner", || Err(Error::usage("inner")));
            assert!(GUARDED.get(), "the outer guard is forgotten");
            Ok(())
        });
        assert_eq!(status, 0);
        assert!(!GUARDED.get());
    }
}
