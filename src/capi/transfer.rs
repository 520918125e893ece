//! Carrying mesh-to-mesh transfers out.
//!
//! Each function parses, calls one method of `Transfer`, and writes the result.

use std::{
    ffi::c_void,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    group::GROUPS,
    guard::{answer, guard},
    handles::{Entry, Table, destroy},
    parse::{Out, clear, write_struct},
    transfer_plan::{PLANS, array, beyond},
    transfer_types::*,
    types::*,
};
use crate::{
    communicator::Progress,
    config::Timeout,
    error::Status,
    group::Group,
    transfer::{Side, Transfer},
};

/// The transfers that C has handles of.
static TRANSFERS: Table<Shared> = Table::new();

/// A transfer that several threads may ask.
struct Shared {
    transfer: Mutex<Transfer>,
    group: Arc<Group>,
    /// Whether it was started and is not over, as far as the last call knows.
    is_going_on: AtomicBool,
}

impl Entry for Shared {
    type Handle = tutti_transfer;
    const KIND: u8 = b'X';
    const NAME: &'static str = "transfer";

    fn retire(&self) {
        self.abort();
    }
}

/// Makes a transfer of a group by a plan of its size. Local. The transfer keeps what it needs of both.
///
/// *transfer gets a handle that the caller must destroy with tutti_transfer_destroy, NULL on failure. A transfer may be
/// started again and again, with the same memory or other.
///
/// A CUDA group's transfer is carried out by its CPU sibling (tutti_group_cpu): what lies on a device and goes to another
/// rank, or is reduced or cast, is copied through pinned memory of the host, which the plan's staging cap bounds; what
/// stays on its rank is copied on the device. Elements that are cast take room for both types there, so fewer buckets may
/// be in flight than the plan says, though always one.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a plan or a group, or the group has another size);
/// TUTTI_INVALID_USAGE (forked process); TUTTI_OUT_OF_MEMORY; TUTTI_CUDA_ERROR; TUTTI_INTERNAL_ERROR.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_transfer_create(
    plan: *const tutti_transfer_plan_t,
    group: *mut tutti_group_t,
    transfer: *mut *mut tutti_transfer_t,
) -> tutti_status_t {
    // SAFETY: the C caller promises that transfer is NULL or writable.
    unsafe { clear(transfer) };
    guard("tutti_transfer_create", || {
        // SAFETY: as above.
        let transfer = unsafe { Out::new("transfer", transfer) }?;
        let group = Arc::clone(&*GROUPS.pin(group)?);
        let made = Transfer::new(Arc::clone(&*PLANS.pin(plan)?), group.clone())?;
        let shared = Shared { transfer: Mutex::new(made), group, is_going_on: AtomicBool::new(false) };
        transfer.write(TRANSFERS.insert(shared)?);
        Ok(())
    })
}

/// Says where this rank's part of a tensor lies.
///
/// source, target: the addresses of the first element of the boxes that tutti_transfer_plan_region names; NULL where the
/// rank has no part, or to leave that side as it is. source_strides, target_strides: the distance of neighbours in
/// elements, for every dimension of the tensor; NULL: contiguous, row-major. A source may have any strides; a target
/// none by which two elements could share an address. The memory must stay until it is bound anew or the transfer is
/// destroyed. Not while the transfer goes on.
///
/// On a CPU group the memory is the host's; on a CUDA group that of the rank's device or the host's, each tensor and side
/// as it comes.
///
/// A target may overlap no other memory of the transfer, with one exception: a tensor whose source and target are the
/// same box of the same type here may stay where it is, with equal addresses and strides. Overlaps are found by
/// tutti_transfer_start.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, or the transfer goes on).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_transfer_bind(
    transfer: *mut tutti_transfer_t,
    item: usize,
    source: *const c_void,
    source_strides: *const i64,
    target: *mut c_void,
    target_strides: *const i64,
) -> tutti_status_t {
    guard("tutti_transfer_bind", || {
        let shared = TRANSFERS.pin(transfer)?;
        let mut transfer = shared.lock();
        if item >= transfer.plan().item_count() {
            return Err(beyond("tensor", item, transfer.plan().item_count()));
        }
        let dims = transfer.plan().shape(item).len();
        let sides = [
            (Side::Source, source.cast::<u8>().cast_mut(), source_strides),
            (Side::Target, target.cast::<u8>(), target_strides),
        ];
        for (side, memory, strides) in sides.into_iter().filter(|(_, memory, _)| !memory.is_null()) {
            // SAFETY: the C caller promises a stride for every dimension where strides are given.
            let strides = (!strides.is_null()).then(|| unsafe { array(strides, dims) });
            // SAFETY: the C caller promises the memory.
            unsafe { transfer.bind(item, side, memory, strides) }?;
        }
        Ok(())
    })
}

/// Begins the transfer; go on with tutti_transfer_poll or tutti_transfer_wait.
///
/// stream: NULL on CPU groups. On a CUDA group a stream of the rank's device, NULL for the legacy default one: no tensor is
/// read or written, on the device or the host, before what is on it now is over, for which the group's deadline applies.
/// Nothing is enqueued on it, and it waits for nothing: that the transfer is over here is what tutti_transfer_poll and
/// tutti_transfer_wait say. Then all targets are written, and work on any stream may use them and write the sources. Only
/// calls of these two move anything; while a stream of the process is captured in global mode, make none.
///
/// Every rank of the group must start, also one that moves nothing: at the first start the ranks compare their plans, which
/// takes a turn among the group's calls. Sources may not be written and targets not touched until the transfer is over. One
/// after another, a transfer may be started any number of times; several transfers of a group may go on at once if all
/// ranks first start them in one order.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (a tensor without memory, memory that overlaps, a stream of something
/// else), and nothing has happened; TUTTI_INVALID_USAGE (forked process, an open batch, it goes on already, or another thread is inside a
/// call of the group); TUTTI_UNSUPPORTED (the stream is captured); TUTTI_CUDA_ERROR; or the group's failure.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_transfer_start(transfer: *mut tutti_transfer_t, stream: *mut c_void) -> tutti_status_t {
    guard("tutti_transfer_start", || {
        let shared = TRANSFERS.pin(transfer)?;
        let mut transfer = shared.lock();
        transfer.start_behind(stream)?;
        shared.is_going_on.store(true, Ordering::Release);
        Ok(())
    })
}

/// Goes on with the transfer as far as possible without waiting, and says how far it is.
///
/// progress: written whatever the transfer's state, also when it has failed; NULL if not wanted. Repeatable; any thread.
///
/// Returns TUTTI_IN_PROGRESS; TUTTI_SUCCESS when all that this rank sends, receives and copies is over;
/// TUTTI_MISMATCH if a rank's plan differs, which it names: then nothing has moved anywhere and the group lives on; the
/// group's failure, as tutti_group_check, and TUTTI_CUDA_ERROR or TUTTI_TIMEOUT where a device is at fault, which fails the
/// group, a CUDA group with its sibling: which targets are complete tells tutti_transfer_written; TUTTI_UNSUPPORTED (no
/// communicator of the group serves sends); TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, it was not
/// started, or this thread has a batch open).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_transfer_poll(
    transfer: *mut tutti_transfer_t,
    progress: *mut tutti_transfer_progress_t,
) -> tutti_status_t {
    answer("tutti_transfer_poll", || {
        let shared = TRANSFERS.pin(transfer)?;
        let mut transfer = shared.lock();
        let polled = transfer.poll();
        shared.note(&transfer);
        if !progress.is_null() {
            let standing = transfer.standing();
            let numbers = tutti_transfer_progress {
                struct_size: size_of::<tutti_transfer_progress>(),
                phase: standing.phase as i32,
                failed_rank: standing.failed_rank.map_or(-1, |rank| rank as i32),
                buckets_done: standing.buckets.0,
                buckets: standing.buckets.1,
                bytes_done: standing.bytes.0,
                bytes: standing.bytes.1,
                staged: standing.staged,
            };
            // SAFETY: the C caller promises that progress is NULL or a writable struct as large as it says.
            unsafe { write_struct(progress, &numbers) }?;
        }
        polled.map(status_of)
    })
}

/// Waits until the transfer is over.
///
/// timeout_ms: how long this wait may take, in milliseconds; TUTTI_TIMEOUT_DEFAULT and TUTTI_TIMEOUT_NEVER: until the
/// transfer is over or has failed. When it ends first nothing has failed. The deadline of the group is another: it begins
/// for every message when this rank gets to it. Any thread; tutti_transfer_abort from another ends the wait.
///
/// Returns what tutti_transfer_poll returns, TUTTI_IN_PROGRESS when timeout_ms ended first.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_transfer_wait(transfer: *mut tutti_transfer_t, timeout_ms: i64) -> tutti_status_t {
    answer("tutti_transfer_wait", || {
        let shared = TRANSFERS.pin(transfer)?;
        let deadline = match Timeout::from_ms(timeout_ms)? {
            Timeout::After(duration) => Instant::now().checked_add(duration),
            Timeout::Default | Timeout::Never => None,
        };
        loop {
            // Held for one look and a short nap at a time, so that other threads get to ask.
            let mut transfer = shared.lock();
            let polled = transfer.poll();
            shared.note(&transfer);
            let status = polled.map(status_of)?;
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            if status != Status::InProgress || left.is_zero() {
                return Ok(status);
            }
            transfer.rest(left);
        }
    })
}

/// Writes how many bytes of a tensor's target were written on this rank since the start, and how many will be.
///
/// Elements count when their bucket is over. After a failure a target of which less than all was written holds a
/// mixture of old and new. written, bytes: NULL if not wanted. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_transfer_written(
    transfer: *mut tutti_transfer_t,
    item: usize,
    written: *mut u64,
    bytes: *mut u64,
) -> tutti_status_t {
    guard("tutti_transfer_written", || {
        let (done, all) = TRANSFERS.pin(transfer)?.lock().written(item)?;
        for (value, out) in [(done, written), (all, bytes)] {
            if !out.is_null() {
                // SAFETY: the C caller promises that out-parameters are NULL or writable.
                unsafe { out.write(value) };
            }
        }
        Ok(())
    })
}

/// Ends a transfer that goes on, by aborting its group: every rank gets TUTTI_ABORTED. One that does not go on is left
/// alone. Local; any thread, while another waits too.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_transfer_abort(transfer: *mut tutti_transfer_t) -> tutti_status_t {
    guard("tutti_transfer_abort", || {
        TRANSFERS.pin(transfer)?.abort();
        Ok(())
    })
}

/// Frees a transfer. One that goes on aborts its group first, because other ranks count on this one. Destroying NULL or
/// a destroyed transfer succeeds. When it returns nothing touches the bound memory any more.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a transfer); TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_transfer_destroy(transfer: *mut tutti_transfer_t) -> tutti_status_t {
    guard("tutti_transfer_destroy", || destroy(&TRANSFERS, transfer))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Transfer> {
        self.transfer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, transfer: &Transfer) {
        self.is_going_on.store(transfer.is_going_on(), Ordering::Release);
    }

    fn abort(&self) {
        if self.is_going_on.load(Ordering::Acquire) {
            self.group.abort();
        }
    }
}

fn status_of(progress: Progress) -> Status {
    match progress {
        Progress::Pending | Progress::Moved => Status::InProgress,
        Progress::Done => Status::Success,
    }
}
