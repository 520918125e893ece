//! Queues: control messages from one rank to all others.

use std::{ffi::c_void, sync::Arc};

use super::{
    group::GROUPS,
    guard::{guard, guard_batched},
    handles::{Entry, Table, destroy},
    parse::{Out, clear, rank, read_optional_struct, readable, text, writable},
    types::*,
};
use crate::{
    config::Timeout,
    group::queue::{Queue, QueueOptions},
};

/// The queues that C has handles of.
static QUEUES: Table<Arc<Queue>> = Table::new();

impl Entry for Arc<Queue> {
    type Handle = tutti_queue;
    const KIND: u8 = b'Q';
    const NAME: &'static str = "queue";

    fn retire(&self) {
        self.leave();
    }
}

/// Makes a queue through which one rank of `group` writes messages to all others: for control messages to ranks that
/// mostly sleep. A rank that waits for a message costs no core; one that is written to is woken.
///
/// options: NULL for the defaults: rank 0 writes, and 1 MiB of messages may wait for the slowest reader. Collective over
/// all ranks, which must give the same options. Needs memory that all ranks share, so all of one host.
///
/// *queue gets a handle that the caller must destroy with tutti_queue_destroy; in an open batch it is NULL until
/// tutti_batch_end, and `queue` must stay valid until then. NULL on failure. The queue is a thing of its own: its
/// failures are not the group's, and it outlives the group. One thread at a time reads or writes it; other calls of the
/// group go on beside it. One thread that drives several ranks must not wait for itself in it.
///
/// Returns what tutti_group_split returns; TUTTI_UNSUPPORTED where the ranks share no memory.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_queue_create(
    group: *mut tutti_group_t,
    options: *const tutti_queue_options_t,
    queue: *mut *mut tutti_queue_t,
) -> tutti_status_t {
    // SAFETY: the C caller promises that queue is NULL or writable.
    unsafe { clear(queue) };
    guard_batched("tutti_queue_create", || {
        let group = GROUPS.pin(group)?;
        // SAFETY: as above, until the batch ends where one is open.
        let queue = unsafe { Out::new("queue", queue) }?;
        // SAFETY: the C caller promises that options is NULL or a struct as large as it says.
        let options = unsafe { read_optional_struct(options) }?;
        let options = QueueOptions {
            writer: rank("writer", options.writer, group.size())?,
            capacity: options.capacity as u64,
            // SAFETY: the C caller promises that the name is NULL or a text.
            name: unsafe { text("name", options.name) }?.filter(|name| !name.is_empty()),
            timeout: Timeout::from_ms(options.timeout_ms)?,
        };
        let place = QUEUES.reserve()?;
        group.create_queue(options, Box::new(move |made| queue.write(place.fill(made))))
    })
}

/// Writes a message to all readers. Returns when the queue has taken it, read or not; a message of any size streams
/// through, as fast as the slowest reader reads.
///
/// message: `bytes` bytes, which may be 0. Only the rank that writes the queue may call it.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, a batch is open, this rank reads,
/// or another thread is inside a call on the queue); TUTTI_TIMEOUT, naming a reader that made no room within timeout_ms:
/// if nothing of the message was written, as the text says, the queue lives and the call may be repeated;
/// TUTTI_PEER_LOST, naming a reader that died or left; TUTTI_ABORTED (the queue was destroyed meanwhile). A failure of
/// the queue is repeated by all its later calls, on all ranks.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_queue_write(
    queue: *mut tutti_queue_t,
    message: *const c_void,
    bytes: usize,
    timeout_ms: i64,
) -> tutti_status_t {
    guard("tutti_queue_write", || {
        let queue = QUEUES.pin(queue)?;
        // SAFETY: the C caller promises `bytes` readable bytes at message, until the call returns.
        let message = unsafe { readable("message", message, bytes) }?;
        queue.write(message, Timeout::from_ms(timeout_ms)?)
    })
}

/// Waits for the next message, leaves it in the queue, and writes how many bytes it has.
///
/// Returns what tutti_queue_read returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_queue_next(
    queue: *mut tutti_queue_t,
    bytes: *mut usize,
    timeout_ms: i64,
) -> tutti_status_t {
    guard("tutti_queue_next", || {
        let queue = QUEUES.pin(queue)?;
        // SAFETY: the C caller promises that a bytes which is not NULL is writable.
        let bytes = unsafe { Out::new("bytes", bytes) }?;
        bytes.write(queue.next(Timeout::from_ms(timeout_ms)?)? as usize);
        Ok(())
    })
}

/// Waits for the next message, copies it into `buffer`, and writes how many bytes it has. Every reader gets every
/// message, in the order in which they were written.
///
/// capacity: bytes at buffer. A message that is longer stays in the queue, and is TUTTI_INVALID_ARGUMENT; ask
/// tutti_queue_next. bytes: may be NULL. timeout_ms: milliseconds, TUTTI_TIMEOUT_DEFAULT (the queue's) or
/// TUTTI_TIMEOUT_NEVER, which a writer that dies or leaves ends too.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, a batch is open, this rank writes,
/// or another thread is inside a call on the queue); TUTTI_TIMEOUT: no message came within timeout_ms, and nothing has
/// failed; TUTTI_PEER_LOST: the writer died or left, and all it had written was read; TUTTI_ABORTED (the queue was
/// destroyed meanwhile); or the queue's failure.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_queue_read(
    queue: *mut tutti_queue_t,
    buffer: *mut c_void,
    capacity: usize,
    bytes: *mut usize,
    timeout_ms: i64,
) -> tutti_status_t {
    guard("tutti_queue_read", || {
        let queue = QUEUES.pin(queue)?;
        // SAFETY: the C caller promises `capacity` writable bytes at buffer, until the call returns.
        let buffer = unsafe { writable("buffer", buffer, capacity) }?;
        let length = queue.read(buffer, Timeout::from_ms(timeout_ms)?)?;
        if !bytes.is_null() {
            // SAFETY: the C caller promises that a bytes which is not NULL is writable.
            unsafe { bytes.write(length as usize) };
        }
        Ok(())
    })
}

/// Leaves the queue and frees this rank's end of it. Local. Messages that were written stay readable to the readers, who
/// then get TUTTI_PEER_LOST. A call in another thread ends with TUTTI_ABORTED. Destroying NULL or a destroyed queue
/// succeeds. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a queue); TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_queue_destroy(queue: *mut tutti_queue_t) -> tutti_status_t {
    guard("tutti_queue_destroy", || destroy(&QUEUES, queue))
}
