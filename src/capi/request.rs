//! Calls that are started now and finished later, and calls that are made together.

use std::sync::Arc;

use super::{
    group::GROUPS,
    guard::{answer, guard, guard_batched},
    handles::{Entry, Table, destroy},
    parse::{Arguments, Out, clear, read_struct},
    types::*,
};
use crate::{
    communicator::Progress,
    config::Timeout,
    error::{Error, Result, Status},
    group::{Request, batch},
};

/// The requests that C has handles of.
static REQUESTS: Table<Arc<Request>> = Table::new();

impl Entry for Arc<Request> {
    type Handle = tutti_request;
    const KIND: u8 = b'R';
    const NAME: &'static str = "request";

    fn retire(&self) {
        self.release();
    }
}

/// Starts any collective.
///
/// request NULL: does what the short function does (blocks on CPU groups, enqueues on CUDA groups), with the
/// deadline and the flags of the call. Otherwise *request gets a handle, NULL on failure, that the caller must free
/// with tutti_request_free; the buffers belong to the library until the request is done. A start behind an
/// unfinished request of the same group queues in order. `call` itself is read before the function returns.
///
/// Returns what tutti_all_reduce returns. A failure of a started call may also come from the request.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_start(
    group: *mut tutti_group_t,
    call: *const tutti_call_t,
    request: *mut *mut tutti_request_t,
) -> tutti_status_t {
    if !request.is_null() {
        // SAFETY: the C caller promises that a request which is not NULL is writable.
        unsafe { clear(request) };
    }
    guard_batched("tutti_start", || {
        let group = GROUPS.pin(group)?;
        // SAFETY: the C caller promises that call is NULL or a struct as large as it says.
        let call = unsafe { read_struct(call) }?;
        let timeout = Timeout::from_ms(call.timeout_ms)?;
        let arguments = Arguments::from_call(&call)?;
        if arguments.collective.is_letter() {
            let letter = arguments.parse_letter_for(&group)?;
            return match request.is_null() {
                true => group.exchange(&[letter], timeout).map(drop),
                false => give(request, || group.post(letter, timeout)),
            };
        }
        if arguments.collective.is_uneven() {
            // SAFETY: the C caller promises arrays that are NULL or have a number for every rank.
            let call = unsafe { arguments.parse_uneven_for(&group) }?;
            return match request.is_null() {
                true => group.run_uneven(call, timeout),
                false => give(request, || group.start_uneven(call, timeout)),
            };
        }
        let call = arguments.parse_for(&group)?;
        match request.is_null() {
            true => group.run(call, timeout),
            false => give(request, || group.start(call, timeout)),
        }
    })
}

/// Starts what `start` does, and gives the caller a handle of it. `request` is writable.
fn give(request: *mut *mut tutti_request_t, start: impl FnOnce() -> Result<Arc<Request>>) -> Result<()> {
    // SAFETY: the caller passes on what the C caller promised.
    let request = unsafe { Out::new("request", request) }?;
    let place = REQUESTS.reserve()?;
    request.write(place.fill(start()?));
    Ok(())
}

/// Writes how many elements a receive that is done has got, which may be fewer than it had room for. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_IN_PROGRESS while the receive is not done; its failure; TUTTI_INVALID_ARGUMENT;
/// TUTTI_INVALID_USAGE (no receive, or a forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_request_received(request: *mut tutti_request_t, count: *mut usize) -> tutti_status_t {
    answer("tutti_request_received", || {
        let request = REQUESTS.pin(request)?;
        // SAFETY: the C caller promises that a count which is not NULL is writable.
        let count = unsafe { Out::new("count", count) }?;
        if !request.is_receive() {
            return Err(Error::usage("the request is no receive, which alone gets a number of elements"));
        }
        let progress = request.test()?;
        if let Some(received) = request.received() {
            count.write(received as usize);
        }
        Ok(status_of(progress))
    })
}

/// Goes on with every unfinished request of this thread as far as possible without waiting, and says how far this
/// one is. Repeatable: a finished request says the same again. Any thread.
///
/// Returns TUTTI_IN_PROGRESS; TUTTI_SUCCESS when the call is done (executed, not merely enqueued); its failure, as
/// tutti_all_reduce; TUTTI_INVALID_ARGUMENT (no such request); TUTTI_INVALID_USAGE (forked process, or a call
/// that is being captured).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_request_test(request: *mut tutti_request_t) -> tutti_status_t {
    answer("tutti_request_test", || Ok(status_of(REQUESTS.pin(request)?.test()?)))
}

/// Waits until the request is done, and meanwhile goes on with every unfinished request of this thread.
///
/// timeout_ms: how long this wait may take: milliseconds, TUTTI_TIMEOUT_DEFAULT (the group's) or
/// TUTTI_TIMEOUT_NEVER. When it ends first the request is still in progress and nothing has failed; the call's own
/// deadline is another. Any thread.
///
/// Returns TUTTI_SUCCESS when the call is done; TUTTI_IN_PROGRESS when timeout_ms ended first; its failure, as
/// tutti_all_reduce; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, or a call that is being captured).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_request_wait(request: *mut tutti_request_t, timeout_ms: i64) -> tutti_status_t {
    answer("tutti_request_wait", || {
        let request = REQUESTS.pin(request)?;
        Ok(status_of(request.wait(Timeout::from_ms(timeout_ms)?)?))
    })
}

/// Frees a request. If it is unfinished its group is aborted first, since other ranks may count on its buffers.
/// Freeing NULL or a freed request succeeds. Any thread; a wait for it in another thread ends with the failure.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a request); TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_request_free(request: *mut tutti_request_t) -> tutti_status_t {
    guard("tutti_request_free", || destroy(&REQUESTS, request))
}

/// Opens a batch in this thread: calls of this thread are from now on collected and made together by
/// tutti_batch_end, on any number of groups, so that one thread can drive several ranks and calls that wait for each
/// other can be made one after the other. Every collective call may stand in a batch, and tutti_group_create,
/// tutti_group_split, tutti_mem_alloc, tutti_group_sync and tutti_capture_commit. What they write is written by
/// tutti_batch_end. Batches nest: only the outermost tutti_batch_end makes the calls.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn tutti_batch_begin() -> tutti_status_t {
    guard("tutti_batch_begin", batch::begin)
}

/// Makes the calls of this thread's batch, and closes it whatever happens.
///
/// Blocks until all are done (CPU groups) or enqueued (CUDA groups). If a call was refused when it was put into the
/// batch, nothing of the batch is made and the first such error comes back; a handle that was to be made stays NULL.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_USAGE (forked process, or no batch is open in this thread); otherwise the
/// first failure in the order of the calls, as the call itself returns it.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn tutti_batch_end() -> tutti_status_t {
    guard("tutti_batch_end", batch::end)
}

pub(super) fn status_of(progress: Progress) -> Status {
    match progress {
        Progress::Pending | Progress::Moved => Status::InProgress,
        Progress::Done => Status::Success,
    }
}
