//! Groups: making them, asking them, ending them.
//!
//! Each function parses, calls one method of `Group`, and writes the result.

use std::{
    ffi::c_char,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    guard::{guard, guard_batched},
    handles::{Entry, Reservation, Table, destroy},
    parse::{Out, clear, communicators, group_flags, members, read_optional_struct, text, write_struct, write_text},
    types::*,
};
use crate::{
    config::{GroupOptions, Timeout},
    error::{Error, Result},
    group::{Deliver, Group},
};

/// The groups that C has handles of.
pub(super) static GROUPS: Table<Arc<Group>> = Table::new();

impl Entry for Arc<Group> {
    type Handle = tutti_group;
    const KIND: u8 = b'G';
    const NAME: &'static str = "group";

    fn retire(&self) {
        self.leave();
    }
}

/// Makes a group of some ranks of `parent`.
///
/// ranks[0] to ranks[count - 1]: the members as ranks of the parent, each once; ranks[i] becomes rank i of the new
/// group. options: NULL for the defaults. Collective over the members, who must name the same ranks in the same
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
    // SAFETY: the C caller promises that group is NULL or writable.
    unsafe { clear(group) };
    guard_batched("tutti_group_create", || {
        let parent = GROUPS.pin(parent)?;
        // SAFETY: as above, until the batch ends where one is open.
        let group = unsafe { Out::new("group", group) }?;
        // SAFETY: the C caller promises `count` readable numbers at ranks.
        let ranks = unsafe { members(ranks, count, parent.size()) }?;
        // SAFETY: the C caller promises that options is NULL or a struct as large as it says, whose texts are texts.
        let options = unsafe { parse_options(options) }?;
        parent.create(&ranks, options, deliver_to(group)?)
    })
}

/// Splits `parent` into groups: one for every color.
///
/// color: which group this rank joins; below 0: none, which gives TUTTI_SUCCESS and NULL. key: orders the ranks of
/// a group; equal keys keep the parent's order. options: NULL for the defaults. Collective over all ranks of the
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
    // SAFETY: the C caller promises that group is NULL or writable.
    unsafe { clear(group) };
    guard_batched("tutti_group_split", || {
        let parent = GROUPS.pin(parent)?;
        // SAFETY: as above, until the batch ends where one is open.
        let group = unsafe { Out::new("group", group) }?;
        // SAFETY: the C caller promises that options is NULL or a struct as large as it says, whose texts are texts.
        let options = unsafe { parse_options(options) }?;
        parent.split(color, key, options, deliver_to(group)?)
    })
}

/// Writes this rank's number within the group, 0 to size - 1. Local; any thread, failed groups too.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_rank(group: *const tutti_group_t, rank: *mut i32) -> tutti_status_t {
    guard("tutti_group_rank", || {
        let group = GROUPS.pin(group)?;
        // SAFETY: the C caller promises that a rank which is not NULL is writable.
        unsafe { Out::new("rank", rank) }?.write(group.rank() as i32);
        Ok(())
    })
}

/// Writes how many ranks the group has. Local; any thread, failed groups too.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_size(group: *const tutti_group_t, size: *mut i32) -> tutti_status_t {
    guard("tutti_group_size", || {
        let group = GROUPS.pin(group)?;
        // SAFETY: the C caller promises that a size which is not NULL is writable.
        unsafe { Out::new("size", size) }?.write(group.size() as i32);
        Ok(())
    })
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
    guard("tutti_group_name", || {
        let group = GROUPS.pin(group)?;
        // SAFETY: the C caller promises `capacity` writable bytes at text, and a writable needed, where not NULL.
        unsafe { write_text(text, capacity, needed, group.name()) }
    })
}

/// The group's first failure, if it has failed: also of requests nobody waited for, of work queued on a stream,
/// and of what other ranks reported. While no work is unfinished it does not look whether the peers' processes live
/// (tutti_group_alive does). Never waits; any thread may call it at any time, during a call too.
///
/// Returns TUTTI_SUCCESS while the group lives; otherwise the failure, the same on every rank of a host:
/// TUTTI_TIMEOUT, TUTTI_PEER_LOST, TUTTI_ABORTED, TUTTI_MISMATCH, TUTTI_COMMUNICATOR_ERROR, TUTTI_SYSTEM_ERROR,
/// TUTTI_CUDA_ERROR, TUTTI_OUT_OF_MEMORY or TUTTI_INTERNAL_ERROR. TUTTI_INVALID_ARGUMENT (no such group);
/// TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_check(group: *mut tutti_group_t) -> tutti_status_t {
    guard("tutti_group_check", || GROUPS.pin(group)?.check())
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
    guard("tutti_group_error", || {
        let failure = GROUPS.pin(group)?.failure();
        let story = failure.as_ref().map_or("", |failure| failure.text.as_str());
        // SAFETY: the C caller promises `capacity` writable bytes at text, and a writable needed, where not NULL.
        unsafe { write_text(text, capacity, needed, story) }
    })
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
    guard("tutti_group_failure", || {
        let first = GROUPS.pin(group)?.failure();
        let numbers = tutti_failure {
            struct_size: size_of::<tutti_failure>(),
            status: first.as_ref().map_or(TUTTI_SUCCESS, |failure| failure.status as i32),
            rank: first.as_ref().and_then(|failure| failure.rank).map_or(-1, |rank| rank as i32),
            collective: first.as_ref().and_then(|failure| failure.collective).map_or(-1, |call| call as i32),
            sequence: first.as_ref().map_or(0, |failure| failure.sequence),
        };
        // SAFETY: the C caller promises that failure is NULL or a writable struct as large as it says.
        unsafe { write_struct(failure, &numbers) }
    })
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
    guard("tutti_group_alive", || {
        let group = GROUPS.pin(group)?;
        if alive.is_null() {
            return Err(Error::invalid("alive is NULL"));
        }
        if size < group.size() as usize {
            return Err(Error::invalid(format_args!("size is {size}, but the group has {} ranks", group.size())));
        }
        for (rank, lives) in group.alive().into_iter().take(size).enumerate() {
            // SAFETY: the C caller promises `size` writable bytes at alive.
            unsafe { alive.add(rank).write(u8::from(lives)) };
        }
        Ok(())
    })
}

/// Writes the group of the same ranks whose buffers are host memory: for a CPU group the group itself, under the
/// same handle. It belongs to the group: do not destroy it; it is gone when the group is. Local; any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_cpu(group: *mut tutti_group_t, cpu: *mut *mut tutti_group_t) -> tutti_status_t {
    // SAFETY: the C caller promises that cpu is NULL or writable.
    unsafe { clear(cpu) };
    guard("tutti_group_cpu", || {
        // SAFETY: as above.
        let cpu = unsafe { Out::new("cpu", cpu) }?;
        let pinned = GROUPS.pin(group)?;
        cpu.write(match pinned.cpu() {
            None => group,
            Some(sibling) => sibling_of(group, sibling)?,
        });
        Ok(())
    })
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
    guard_batched("tutti_group_sync", || GROUPS.pin(group)?.sync(Timeout::from_ms(timeout_ms)?))
}

/// Lets a communicator of the group serve calls (enabled 1) or not (enabled 0), on all ranks alike.
///
/// communicator: its name, as tutti_explain prints it. Collective: every rank must ask for the same. The plan
/// changes on every rank between the same two calls, or on none. What no other communicator can serve is then
/// TUTTI_UNSUPPORTED. No send or receive may be under way: its two sides could be carried by different communicators.
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
    guard("tutti_group_set_enabled", || {
        let group = GROUPS.pin(group)?;
        // SAFETY: the C caller promises that communicator is NULL or a text.
        let communicator = unsafe { text("communicator", communicator) }?;
        let communicator = communicator.ok_or_else(|| Error::invalid("communicator is NULL"))?;
        let enabled = match enabled {
            0 => false,
            1 => true,
            other => return Err(Error::invalid(format_args!("enabled is {other}; it is 0 or 1"))),
        };
        group.set_enabled(&communicator, enabled)
    })
}

/// Writes the handle of a live group of this process by its name: for code that can carry a text but no handle.
///
/// rank: whose handle where several ranks of the group are in this process (a rank of the group); -1 where only one is.
/// Names are the callers' own: one that two groups share finds neither. *group gets the handle that the group's maker
/// has; it stays the maker's to destroy, and finding a group keeps nothing alive. NULL on failure. Local; any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (no group of that name, it was destroyed, or several have it: the text
/// says which); TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_group_find(
    name: *const c_char,
    rank: i32,
    group: *mut *mut tutti_group_t,
) -> tutti_status_t {
    // SAFETY: the C caller promises that group is NULL or writable.
    unsafe { clear(group) };
    guard("tutti_group_find", || {
        // SAFETY: as above.
        let group = unsafe { Out::new("group", group) }?;
        // SAFETY: the C caller promises that name is NULL or a text.
        let name = unsafe { text("name", name) }?.ok_or_else(|| Error::invalid("name is NULL"))?;
        let rank = match rank {
            -1 => None,
            rank => Some(u32::try_from(rank).map_err(|_| {
                Error::invalid(format_args!("rank is {rank}; it is a rank of the group, or -1 for the only one here"))
            })?),
        };
        match Group::find(&name, rank)?.tag() {
            0 => {
                Err(Error::invalid(format_args!("group {name:?} has no handle: it is still being made, or not for C")))
            }
            handle => {
                group.write(std::ptr::without_provenance_mut(handle));
                Ok(())
            }
        }
    })
}

/// Fails the group with TUTTI_ABORTED on every rank, and wakes every rank that waits in it.
///
/// Local: waits for nobody. Any thread may call it at any time, during a call of the group too. A group that has
/// already failed keeps its first failure.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_group_abort(group: *mut tutti_group_t) -> tutti_status_t {
    guard("tutti_group_abort", || {
        GROUPS.pin(group)?.abort();
        Ok(())
    })
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
    guard("tutti_group_destroy", || {
        let sibling = {
            let mut siblings = SIBLINGS.lock().unwrap_or_else(PoisonError::into_inner);
            if siblings.iter().any(|(_, cpu)| *cpu == group as usize) {
                return Err(Error::usage("this is the CPU sibling of a CUDA group, which owns it: destroy that one"));
            }
            let at = siblings.iter().position(|(of, _)| *of == group as usize);
            at.map(|at| siblings.swap_remove(at).1 as *mut tutti_group)
        };
        destroy(&GROUPS, group)?;
        sibling.map_or(Ok(()), |sibling| destroy(&GROUPS, sibling))
    })
}

/// The handles of CUDA groups whose CPU sibling has a handle too, and those.
static SIBLINGS: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// The handle of a group's CPU sibling, made when it is first asked for.
fn sibling_of(group: *mut tutti_group, sibling: &Arc<Group>) -> Result<*mut tutti_group> {
    let mut siblings = SIBLINGS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, cpu)) = siblings.iter().find(|(of, _)| *of == group as usize) {
        return Ok(*cpu as *mut tutti_group);
    }
    let handle = GROUPS.insert(sibling.clone())?;
    siblings.push((group as usize, handle as usize));
    Ok(handle)
}

/// The longest name of a group, in bytes: it stands in every text about the group.
const NAME_LIMIT: usize = 255;

/// Parses the options of a new group.
///
/// # Safety
///
/// `options` is NULL or points to a struct as large as it says, whose texts are NULL or end with NUL.
pub(super) unsafe fn parse_options(options: *const tutti_group_options) -> Result<GroupOptions> {
    // SAFETY: the caller's promise.
    let options = unsafe { read_optional_struct(options) }?;
    // SAFETY: the caller's promise.
    let name = unsafe { text("name", options.name) }?.filter(|name| !name.is_empty());
    if let Some(name) = name.as_ref().filter(|name| name.len() > NAME_LIMIT) {
        return Err(Error::invalid(format_args!("name has {} bytes; {NAME_LIMIT} are allowed", name.len())));
    }
    Ok(GroupOptions {
        plan: None,
        name,
        timeout: Timeout::from_ms(options.timeout_ms)?,
        flags: group_flags(options.flags)?,
        // SAFETY: the caller's promise.
        communicators: unsafe { communicators(options.communicators) }?,
    })
}

/// Makes the handle of a new group.
pub(super) fn hand_out(place: Reservation<Arc<Group>>, group: Arc<Group>) -> *mut tutti_group {
    let handle = place.fill(group.clone());
    group.set_tag(handle.addr());
    handle
}

/// What writes the handle of a new group when it is made. Its place is taken now, so that nothing can fail then.
fn deliver_to(out: Out<*mut tutti_group>) -> Result<Deliver> {
    let place = GROUPS.reserve()?;
    Ok(Box::new(move |group| {
        if let Some(group) = group {
            out.write(hand_out(place, group));
        }
    }))
}
