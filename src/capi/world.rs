//! How a rank gets its first group: the world.
//!
//! Options are parsed here, once, and handed on; nothing is decided here.

use std::ffi::c_void;

use super::{
    group::GROUPS,
    guard::guard,
    log,
    parse::{Out, clear, communicators, rank, read_optional_struct, text, world_flags},
    types::*,
};
use crate::{
    bootstrap::unique_id,
    config::{self, AllGather, FLAG_DETERMINISTIC, GroupOptions, Timeout, WorldOptions},
    error::{Error, Result, Status},
    group::Group,
};

/// Joins the world and makes its group: all ranks that start together.
///
/// options: how this rank finds the others; NULL: everything from the environment (the variables of torchrun,
/// Open MPI, MPICH and Slurm). Collective: returns when every rank has called it, or fails on every rank that has.
/// Several threads of one process may each call it, with the rank of each and one unique id in the options.
///
/// *world gets a handle that the caller must destroy with tutti_group_destroy; NULL on failure. Thread-safe.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (an option is wrong or missing, or ranks have different ones);
/// TUTTI_INVALID_USAGE (forked process; a batch is open; the environment's world exists already);
/// TUTTI_UNSUPPORTED (no such device, or nothing that works here is allowed); TUTTI_TIMEOUT, TUTTI_PEER_LOST
/// and TUTTI_MISMATCH, naming the rank; TUTTI_SYSTEM_ERROR; TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_world_create(
    options: *const tutti_world_options_t,
    world: *mut *mut tutti_group_t,
) -> tutti_status_t {
    // SAFETY: the C caller promises that world is NULL or writable.
    unsafe { clear(world) };
    guard("tutti_world_create", || {
        log::init_from_environment();
        // SAFETY: as above.
        let world = unsafe { Out::new("world", world) }?;
        // SAFETY: the C caller promises that options is NULL or a struct as large as it says, whose texts, id and
        // callback are what their comments say.
        let options = unsafe { parse_options(options) }?;
        let place = GROUPS.reserve()?;
        world.write(place.fill(Group::world(options)?));
        Ok(())
    })
}

/// Makes a world whose ranks all live in this process, and returns all of them.
///
/// size: how many ranks. devices: one CUDA ordinal for every rank, or NULL: CPU ranks. options: as for
/// tutti_world_create, or NULL; its size must be 0 or `size`, and it names no rank, unique id, address or
/// all_gather. Local: needs no other process and no network.
///
/// ranks[0] to ranks[size - 1] get a handle each, which the caller must destroy with tutti_group_destroy; all are
/// NULL on failure. Each rank's collective calls must come from a thread of its own, or be started with requests.
/// Thread-safe.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, a batch is open);
/// TUTTI_UNSUPPORTED; TUTTI_SYSTEM_ERROR; TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_world_create_local(
    size: i32,
    devices: *const i32,
    options: *const tutti_world_options_t,
    ranks: *mut *mut tutti_group_t,
) -> tutti_status_t {
    guard("tutti_world_create_local", || {
        log::init_from_environment();
        let count = u32::try_from(size).ok().filter(|count| *count > 0);
        let count = count.ok_or_else(|| Error::invalid(format_args!("size is {size}, but a world has at least one rank")))?;
        if ranks.is_null() {
            return Err(Error::invalid("ranks is NULL"));
        }
        for rank in 0..count as usize {
            // SAFETY: the C caller promises `size` writable handles at ranks.
            unsafe { ranks.add(rank).write(std::ptr::null_mut()) };
        }
        // SAFETY: the C caller promises that options is NULL or a struct as large as it says, whose texts are texts.
        let options = unsafe { parse_local_options(options, size, !devices.is_null()) }?;
        let places = (0..count).map(|_| GROUPS.reserve()).collect::<Result<Vec<_>>>()?;
        let groups = Group::world_local(count, options)?;
        for (rank, (place, group)) in places.into_iter().zip(groups).enumerate() {
            // SAFETY: as above; there are `size` places.
            unsafe { ranks.add(rank).write(place.fill(group)) };
        }
        Ok(())
    })
}

/// Makes the id of a new world, which one rank makes and hands to all others by any means.
///
/// The process that makes it must hold rank 0: it listens for the others. The id contains a secret: whoever has it
/// may join. id: `capacity` bytes of the caller's, of which TUTTI_UNIQUE_ID_BYTES are written. needed: gets
/// TUTTI_UNIQUE_ID_BYTES, or NULL. With id NULL and capacity 0 only `needed` is written and no id is made.
/// Thread-safe.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (capacity too small); TUTTI_INVALID_USAGE (forked process);
/// TUTTI_SYSTEM_ERROR; TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_unique_id_create(id: *mut c_void, capacity: usize, needed: *mut usize) -> tutti_status_t {
    guard("tutti_unique_id_create", || {
        log::init_from_environment();
        if !(id.is_null() && capacity == 0) {
            if id.is_null() {
                return Err(Error::invalid(format_args!("id is NULL with capacity {capacity}")));
            }
            if capacity < TUTTI_UNIQUE_ID_BYTES {
                return Err(Error::invalid(format_args!(
                    "capacity is {capacity}, but an id has {TUTTI_UNIQUE_ID_BYTES} bytes"
                )));
            }
            let made = unique_id::create()?;
            if made.len() != TUTTI_UNIQUE_ID_BYTES {
                return Err(Error::Internal(format!("an id of {} bytes was made", made.len())));
            }
            // SAFETY: the C caller promises `capacity` writable bytes at id, and the length was compared.
            unsafe { std::ptr::copy_nonoverlapping(made.as_ptr(), id.cast::<u8>(), made.len()) };
        }
        if !needed.is_null() {
            // SAFETY: the C caller promises that a needed which is not NULL is writable.
            unsafe { needed.write(TUTTI_UNIQUE_ID_BYTES) };
        }
        Ok(())
    })
}

/// Parses the options of a world that meets other processes.
///
/// # Safety
///
/// `options` is NULL or points to a struct as large as it says, whose texts end with NUL, whose unique id has the
/// size it says, and whose callback keeps what its comment says.
unsafe fn parse_options(options: *const tutti_world_options) -> Result<WorldOptions> {
    // SAFETY: the caller's promise.
    let options = unsafe { read_optional_struct(options) }?;
    let size_and_rank = match options.size {
        0 if options.rank == 0 => None,
        0 => return Err(Error::invalid(format_args!("rank is {}, but size is 0: give both or none", options.rank))),
        size => {
            let size = u32::try_from(size).map_err(|_| Error::invalid(format_args!("size is {size}")))?;
            Some((size, rank("rank", options.rank, size)?))
        }
    };
    if !options.unique_id.is_null() && options.all_gather.is_some() {
        return Err(Error::invalid("unique_id and all_gather are both set; one of them finds the world"));
    }
    if size_and_rank.is_none() && (!options.unique_id.is_null() || options.all_gather.is_some()) {
        return Err(Error::invalid("unique_id and all_gather need size and rank in the options"));
    }
    check_device(options.device_kind, options.device)?;
    Ok(WorldOptions {
        size_and_rank,
        // SAFETY: the caller's promise.
        unique_id: unsafe { copy_unique_id(options.unique_id, options.unique_id_size) }?,
        // SAFETY: the caller's promise.
        address: unsafe { text("address", options.address) }?.filter(|address| !address.is_empty()),
        all_gather: options.all_gather.map(|function| all_gather(Callback { function, user: options.user })),
        flags: world_flags(options.flags)?,
        // SAFETY: the caller's promise.
        group: unsafe { as_group(&options) }?,
    })
}

/// Parses the options of a world of `size` ranks in this process.
///
/// # Safety
///
/// As [`parse_options`].
unsafe fn parse_local_options(
    options: *const tutti_world_options,
    size: i32,
    has_devices: bool,
) -> Result<WorldOptions> {
    // SAFETY: the caller's promise.
    let options = unsafe { read_optional_struct(options) }?;
    if options.size != 0 && options.size != size {
        return Err(Error::invalid(format_args!("size is {size}, but {} in the options", options.size)));
    }
    let names_others = !options.unique_id.is_null() || !options.address.is_null() || options.all_gather.is_some();
    if options.rank != 0 || names_others {
        return Err(Error::invalid(
            "rank, unique_id, address and all_gather must be unset: all ranks of this world are in this process",
        ));
    }
    if has_devices || options.device_kind == TUTTI_DEVICE_CUDA {
        return Err(no_cuda());
    }
    check_device(TUTTI_DEVICE_CPU.max(options.device_kind), options.device)?;
    Ok(WorldOptions {
        flags: world_flags(options.flags)?,
        // SAFETY: the caller's promise.
        group: unsafe { as_group(&options) }?,
        ..WorldOptions::default()
    })
}

/// The options of the world as a group.
///
/// # Safety
///
/// `options.communicators` is NULL or ends with NUL.
unsafe fn as_group(options: &tutti_world_options) -> Result<GroupOptions> {
    Ok(GroupOptions {
        name: None,
        timeout: Timeout::from_ms(options.timeout_ms)?,
        flags: options.flags & FLAG_DETERMINISTIC,
        // SAFETY: the caller's promise.
        communicators: unsafe { communicators(options.communicators) }?,
    })
}

/// Copies a unique id; `None` for NULL.
///
/// # Safety
///
/// `id` is NULL or points to `size` readable bytes.
unsafe fn copy_unique_id(id: *const c_void, size: usize) -> Result<Option<Vec<u8>>> {
    match (id.is_null(), size) {
        (true, 0) => Ok(None),
        // SAFETY: the caller promises that many readable bytes.
        (false, TUTTI_UNIQUE_ID_BYTES) => Ok(Some(unsafe { std::slice::from_raw_parts(id.cast::<u8>(), size) }.to_vec())),
        (true, _) => Err(Error::invalid(format_args!("unique_id is NULL, but unique_id_size is {size}"))),
        (false, _) => Err(Error::invalid(format_args!(
            "unique_id_size is {size}, but an id has {TUTTI_UNIQUE_ID_BYTES} bytes"
        ))),
    }
}

/// Refuses devices other than the CPU.
fn check_device(kind: i32, ordinal: i32) -> Result<()> {
    let kind = match kind {
        TUTTI_DEVICE_DEFAULT => device_of_environment(config::variable("TUTTI_DEVICE").as_deref())?,
        kind => kind,
    };
    match kind {
        TUTTI_DEVICE_CPU if ordinal == 0 => Ok(()),
        TUTTI_DEVICE_CPU => Err(Error::invalid(format_args!("device is {ordinal}, but CPU ranks have no device"))),
        TUTTI_DEVICE_CUDA => Err(no_cuda()),
        _ => Err(Error::invalid(format_args!("device_kind is {kind}; it is 0 (TUTTI_DEVICE), 1 (CPU) or 2 (CUDA)"))),
    }
}

/// The device kind that TUTTI_DEVICE asks for.
fn device_of_environment(value: Option<&str>) -> Result<i32> {
    match value {
        None | Some("cpu") => Ok(TUTTI_DEVICE_CPU),
        Some("cuda") => Ok(TUTTI_DEVICE_CUDA),
        Some(other) => match other.strip_prefix("cuda:").map(str::parse::<u16>) {
            Some(Ok(_)) => Ok(TUTTI_DEVICE_CUDA),
            _ => Err(Error::invalid(format_args!("TUTTI_DEVICE is {other:?}; it is \"cpu\", \"cuda\" or \"cuda:N\""))),
        },
    }
}

#[cold]
fn no_cuda() -> Error {
    Error::Unsupported(
        "CUDA groups are not served in this version: use device_kind TUTTI_DEVICE_CPU, or unset TUTTI_DEVICE".into(),
    )
}

/// The caller's bootstrap.
struct Callback {
    function: unsafe extern "C" fn(*mut c_void, *const c_void, usize, *mut c_void) -> i32,
    user: *mut c_void,
}

// SAFETY: the C caller promises that the function may be called with this pointer; it is called only inside
// tutti_world_create, in its thread.
unsafe impl Send for Callback {}

/// The caller's bootstrap as the crate calls it.
fn all_gather(callback: Callback) -> AllGather {
    Box::new(move |mine, size| {
        let callback = &callback;
        let length = mine.len().checked_mul(size as usize).filter(|length| *length <= isize::MAX as usize);
        let length = length.ok_or_else(|| Error::Internal(format!("{} bytes of {size} ranks", mine.len())))?;
        let mut all = vec![0u8; length];
        // SAFETY: the C caller promises that the function reads `bytes` bytes at mine and writes size * bytes at all,
        // which is their length.
        let code = unsafe {
            (callback.function)(callback.user, mine.as_ptr().cast(), mine.len(), all.as_mut_ptr().cast())
        };
        if code != 0 {
            let text = format_args!("the all_gather of the options returned {code}, which is a failure");
            return Err(Error::failed(Status::SystemError, None, text));
        }
        Ok(all)
    })
}
