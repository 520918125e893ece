//! How a rank gets its first group: the world.
//!
//! Options are parsed here, once, and handed on; nothing is decided here.

use std::ffi::c_void;

use super::{
    group::{GROUPS, hand_out},
    guard::guard,
    log,
    parse::{Out, clear, communicators, rank, read_optional_struct, text, world_flags},
    types::*,
};
use crate::{
    bootstrap::unique_id,
    config::{self, AllGather, FLAG_DETERMINISTIC, GroupOptions, Timeout, WorldOptions},
    error::{Error, Result, Status},
    group::{Group, batch},
};

/// Joins the world and makes its group: all ranks that start together.
///
/// options: how this rank finds the others; NULL: everything from the environment (the variables of torchrun,
/// Open MPI, MPICH and Slurm). Collective: returns when every rank has called it, or fails on every rank that has.
/// Several threads of one process may each call it, with the rank of each and one unique id in the options. While it
/// waits, it goes on with the requests that this thread has started.
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
        refuse_in_batch()?;
        log::init_from_environment();
        // SAFETY: as above.
        let world = unsafe { Out::new("world", world) }?;
        // SAFETY: the C caller promises that options is NULL or a struct as large as it says, whose texts, id and
        // callback are what their comments say.
        let options = unsafe { parse_options(options) }?;
        let place = GROUPS.reserve()?;
        world.write(hand_out(place, Group::world(options)?));
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
/// NULL on failure. Each rank's collective calls come from a thread of its own, or all of them from one thread that puts
/// them into batches or starts requests. Thread-safe.
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
        refuse_in_batch()?;
        log::init_from_environment();
        let count = u32::try_from(size).ok().filter(|count| (1..=MAX_LOCAL).contains(count)).ok_or_else(|| {
            Error::invalid(format_args!("size is {size}, but a world in one process has 1 to {MAX_LOCAL} ranks"))
        })?;
        if ranks.is_null() {
            return Err(Error::invalid("ranks is NULL"));
        }
        for rank in 0..count as usize {
            // SAFETY: the C caller promises `size` writable handles at ranks.
            unsafe { ranks.add(rank).write(std::ptr::null_mut()) };
        }
        // SAFETY: the C caller promises that options is NULL or a struct as large as it says, whose texts are texts.
        let options = unsafe { parse_local_options(options, size, !devices.is_null()) }?;
        let devices = match (devices.is_null(), options.device) {
            // SAFETY: the C caller promises that devices is NULL or has `size` readable numbers.
            (false, _) => Some(unsafe { std::slice::from_raw_parts(devices, count as usize) }.to_vec()),
            (true, Some(device)) => Some(vec![device; count as usize]),
            (true, None) => None,
        };
        let places = (0..count).map(|_| GROUPS.reserve()).collect::<Result<Vec<_>>>()?;
        let groups = Group::world_local(count, devices.as_deref(), options)?;
        for (rank, (place, group)) in places.into_iter().zip(groups).enumerate() {
            // SAFETY: as above; there are `size` places.
            unsafe { ranks.add(rank).write(hand_out(place, group)) };
        }
        Ok(())
    })
}

/// The most ranks in one process: every two of them take two descriptors, and 256 ranks some 65,000.
const MAX_LOCAL: u32 = 256;

fn refuse_in_batch() -> Result<()> {
    match batch::is_open() {
        true => Err(Error::usage("a world cannot be made in a batch: close the batch first")),
        false => Ok(()),
    }
}

/// Makes the id of a new world, which one rank makes and hands to all others by any means.
///
/// The process that makes it must hold rank 0: it listens for the others. The id contains a secret: whoever has it
/// may join. An id makes one world. Until that is made, or the process ends, the id keeps one descriptor open, and with
/// TUTTI_ADDR two: make no more of them than worlds.
///
/// id: `capacity` bytes of the caller's, of which TUTTI_UNIQUE_ID_BYTES are written. needed: gets
/// TUTTI_UNIQUE_ID_BYTES, or NULL. With id NULL and capacity 0 only `needed` is written and no id is made.
/// Thread-safe.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (capacity too small); TUTTI_INVALID_USAGE (forked process);
/// TUTTI_SYSTEM_ERROR; TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_unique_id_create(
    id: *mut c_void,
    capacity: usize,
    needed: *mut usize,
) -> tutti_status_t {
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
    Ok(WorldOptions {
        size_and_rank,
        device: device(options.device_kind, options.device)?,
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
    if has_devices && options.device_kind == TUTTI_DEVICE_CPU {
        return Err(Error::invalid("devices is not NULL, but device_kind in the options is the CPU"));
    }
    let kind = if options.device_kind == 0 { TUTTI_DEVICE_CPU } else { options.device_kind };
    Ok(WorldOptions {
        device: device(kind, options.device)?,
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
        plan: None,
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
        (false, TUTTI_UNIQUE_ID_BYTES) => {
            // SAFETY: the caller promises that many readable bytes.
            Ok(Some(unsafe { std::slice::from_raw_parts(id.cast::<u8>(), size) }.to_vec()))
        }
        (true, _) => Err(Error::invalid(format_args!("unique_id is NULL, but unique_id_size is {size}"))),
        (false, _) => {
            Err(Error::invalid(format_args!("unique_id_size is {size}, but an id has {TUTTI_UNIQUE_ID_BYTES} bytes")))
        }
    }
}

/// The CUDA device that a rank asks for; `None`: the CPU.
fn device(kind: i32, ordinal: i32) -> Result<Option<i32>> {
    match kind {
        TUTTI_DEVICE_DEFAULT => device_of_environment(config::variable("TUTTI_DEVICE").as_deref(), &config::variable),
        TUTTI_DEVICE_CPU if ordinal == 0 => Ok(None),
        TUTTI_DEVICE_CPU => Err(Error::invalid(format_args!("device is {ordinal}, but CPU ranks have no device"))),
        TUTTI_DEVICE_CUDA if ordinal >= 0 => Ok(Some(ordinal)),
        TUTTI_DEVICE_CUDA => Err(Error::invalid(format_args!("device is {ordinal}, which is no ordinal of a device"))),
        _ => Err(Error::invalid(format_args!("device_kind is {kind}; it is 0 (TUTTI_DEVICE), 1 (CPU) or 2 (CUDA)"))),
    }
}

/// The ranks of a host as launchers number them: torchrun, Open MPI, MPICH, Slurm.
const LOCAL_RANKS: [&str; 4] = ["LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];

/// The device that TUTTI_DEVICE asks for.
fn device_of_environment(value: Option<&str>, variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<i32>> {
    match value {
        None | Some("cpu") => Ok(None),
        Some("cuda") => LOCAL_RANKS
            .iter()
            .find_map(|name| variable(name)?.parse::<u16>().ok())
            .map(|rank| Some(rank.into()))
            .ok_or_else(|| {
                Error::invalid(format_args!(
                    "TUTTI_DEVICE is \"cuda\", which is the device LOCAL_RANK, but no launcher set that: use \"cuda:N\""
                ))
            }),
        Some(other) => match other.strip_prefix("cuda:").map(str::parse::<u16>) {
            Some(Ok(ordinal)) => Ok(Some(ordinal.into())),
            _ => Err(Error::invalid(format_args!("TUTTI_DEVICE is {other:?}; it is \"cpu\", \"cuda\" or \"cuda:N\""))),
        },
    }
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
        let code =
            unsafe { (callback.function)(callback.user, mine.as_ptr().cast(), mine.len(), all.as_mut_ptr().cast()) };
        if code != 0 {
            let text = format_args!("the all_gather of the options returned {code}, which is a failure");
            return Err(Error::failed(Status::SystemError, None, text));
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> tutti_world_options {
        // SAFETY: all bytes zero is a value of the struct.
        let zero: tutti_world_options = unsafe { std::mem::zeroed() };
        let struct_size = size_of::<tutti_world_options>();
        tutti_world_options { struct_size, device_kind: TUTTI_DEVICE_CPU, ..zero }
    }

    fn parse(options: tutti_world_options) -> Result<WorldOptions> {
        // SAFETY: a struct of the size it says; the pointers in it are those of the test.
        unsafe { parse_options(&options) }
    }

    fn refused<T>(result: Result<T>, status: Status, with: &str) {
        let Err(error) = result else { panic!("accepted; expected: {with}") };
        assert_eq!(error.status(), status, "{error}");
        assert!(error.to_string().contains(with), "{error:?} does not say {with:?}");
    }

    #[test]
    fn everything_a_caller_sets_arrives() {
        let id = [5u8; TUTTI_UNIQUE_ID_BYTES];
        let parsed = parse(tutti_world_options {
            size: 8,
            rank: 3,
            unique_id: id.as_ptr().cast(),
            unique_id_size: id.len(),
            address: c"node0:4711".as_ptr(),
            timeout_ms: 250,
            flags: TUTTI_FLAG_DETERMINISTIC | TUTTI_FLAG_ALLOW_UNAUTHENTICATED,
            communicators: c"^sockets".as_ptr(),
            ..options()
        })
        .unwrap();
        assert_eq!(parsed.size_and_rank, Some((8, 3)));
        assert_eq!(parsed.unique_id.as_deref(), Some(&id[..]));
        assert_eq!(parsed.address.as_deref(), Some("node0:4711"));
        assert_eq!(parsed.flags, 3);
        assert_eq!(parsed.group.flags, FLAG_DETERMINISTIC, "how ranks are let in is no setting of a group");
        assert_eq!(parsed.group.timeout, Timeout::After(std::time::Duration::from_millis(250)));
        assert_eq!(parsed.group.communicators, config::Selection::Except(vec!["sockets".into()]));
    }

    #[test]
    fn options_that_are_all_zero_leave_everything_to_the_environment() {
        let parsed = parse(options()).unwrap();
        assert!(parsed.size_and_rank.is_none() && parsed.unique_id.is_none() && parsed.all_gather.is_none());
        assert_eq!(parsed.group, GroupOptions::default());
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        use Status::InvalidArgument;
        let id = [0u8; TUTTI_UNIQUE_ID_BYTES];
        let with_id = tutti_world_options { unique_id: id.as_ptr().cast(), unique_id_size: id.len(), ..options() };
        refused(parse(tutti_world_options { rank: 1, ..options() }), InvalidArgument, "size is 0");
        refused(parse(tutti_world_options { size: -2, ..options() }), InvalidArgument, "size is -2");
        refused(parse(tutti_world_options { size: 4, rank: 4, ..options() }), InvalidArgument, "rank is 4");
        refused(parse(with_id), InvalidArgument, "need size and rank");
        let short = tutti_world_options { size: 2, unique_id_size: 64, ..with_id };
        refused(parse(short), InvalidArgument, "unique_id_size is 64");
        let no_id = tutti_world_options { size: 2, unique_id: std::ptr::null(), ..with_id };
        refused(parse(no_id), InvalidArgument, "unique_id is NULL");
        let both = tutti_world_options { size: 2, all_gather: Some(backwards), ..with_id };
        refused(parse(both), InvalidArgument, "both set");
        refused(parse(tutti_world_options { timeout_ms: -2, ..options() }), InvalidArgument, "timeout_ms is -2");
        let nameless = tutti_world_options { communicators: c"shm,,".as_ptr(), ..options() };
        refused(parse(nameless), InvalidArgument, "no list of communicators");
    }

    #[test]
    fn devices_are_those_of_the_options_or_the_environment_and_unknown_ones_are_refused() {
        assert_eq!(device(TUTTI_DEVICE_CUDA, 3).unwrap(), Some(3));
        refused(device(TUTTI_DEVICE_CUDA, -1), Status::InvalidArgument, "device is -1");
        refused(device(TUTTI_DEVICE_CPU, 1), Status::InvalidArgument, "device is 1");
        refused(device(3, 0), Status::InvalidArgument, "device_kind is 3");
        let environment = |value, rank: Option<&str>| {
            let rank = rank.map(str::to_owned);
            device_of_environment(value, &move |name| rank.clone().filter(|_| name == "LOCAL_RANK"))
        };
        assert_eq!(environment(None, None).unwrap(), None);
        assert_eq!(environment(Some("cpu"), None).unwrap(), None);
        assert_eq!(environment(Some("cuda"), Some("5")).unwrap(), Some(5));
        refused(environment(Some("cuda"), None), Status::InvalidArgument, "LOCAL_RANK");
        assert_eq!(environment(Some("cuda:7"), Some("5")).unwrap(), Some(7));
        for wrong in ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            refused(environment(Some(wrong), None), Status::InvalidArgument, "TUTTI_DEVICE is");
        }
    }

    #[test]
    fn a_local_world_has_no_way_to_other_processes() {
        // SAFETY: structs of the size they say, with static texts.
        let parse = |options: tutti_world_options| unsafe { parse_local_options(&options, 4, false) };
        assert!(parse(options()).is_ok() && parse(tutti_world_options { size: 4, ..options() }).is_ok());
        refused(parse(tutti_world_options { size: 3, ..options() }), Status::InvalidArgument, "size is 4, but 3");
        refused(parse(tutti_world_options { rank: 1, ..options() }), Status::InvalidArgument, "must be unset");
        let elsewhere = tutti_world_options { address: c"a:1".as_ptr(), ..options() };
        refused(parse(elsewhere), Status::InvalidArgument, "must be unset");
        // SAFETY: as above.
        let with_devices = unsafe { parse_local_options(&options(), 4, true) };
        refused(with_devices, Status::InvalidArgument, "devices is not NULL");
    }

    /// Gathers the bytes of this rank reversed, so that it matters what it was given; fails if told to.
    unsafe extern "C" fn backwards(user: *mut c_void, mine: *const c_void, bytes: usize, all: *mut c_void) -> i32 {
        if user.is_null() {
            return 5;
        }
        for index in 0..bytes * 2 {
            // SAFETY: the test promises `bytes` readable and twice as many writable bytes.
            unsafe { all.cast::<u8>().add(index).write(mine.cast::<u8>().add((bytes * 2 - 1 - index) % bytes).read()) }
        }
        0
    }

    #[test]
    fn the_callers_all_gather_is_handed_the_bytes_and_its_failure_is_an_error() {
        let mut user = 0u8;
        let works = all_gather(Callback { function: backwards, user: (&raw mut user).cast() });
        assert_eq!(works(&[1, 2, 3], 2).unwrap(), [3, 2, 1, 3, 2, 1]);
        let fails = all_gather(Callback { function: backwards, user: std::ptr::null_mut() });
        refused(fails(&[1], 2), Status::SystemError, "returned 5");
    }
}
