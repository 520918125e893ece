//! NCCL beside us: two ranks on one device, which NCCL can do since 2.30 when it is told so, as an experiment.
//!
//! It runs in a process of its own with a deadline, since what is an experiment may hang or end the process. The library
//! is the one that `NCCL_LIBRARY` names, else that of the wheel nvidia-nccl in a virtual environment (`.tools/venv` or the
//! active one), else the system's. What keeps it from running is a sentence.

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char, c_int, c_void},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    ptr,
    sync::Barrier,
    time::{Duration, Instant},
};

use libloading::os::unix::{Library, RTLD_NOW, Symbol};
use tutti::{cuda::device::Device, cuda::driver::Stream, dtype::DType, dtype::Op};

use super::{CALLS, capture, launched, room, sizes};

/// Ranks of a world that NCCL is asked for.
pub(crate) const RANKS: usize = 2;
/// The first version that can have two ranks on a device, as NCCL counts.
const OLDEST: c_int = 23_000;
const PATIENCE: Duration = Duration::from_secs(120);
/// Says to this program that it is the process of its own.
const WANTED: &str = "CUDA_BENCH_NCCL";

/// Whether this process is the one for NCCL.
pub(crate) fn is_wanted() -> bool {
    std::env::var_os(WANTED).is_some()
}

/// Microseconds of an all_reduce of so many bytes; or why there are none.
pub(crate) fn times() -> Result<BTreeMap<usize, f64>, String> {
    let library = find()?;
    let mut child = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
    child.env(WANTED, library).env("NCCL_MULTI_RANK_GPU_ENABLE", "1").env("NCCL_RUNTIME_CONNECT", "0");
    if std::env::var_os("NCCL_MAX_CTAS").is_none() {
        // The blocks of both ranks must be on the device at once.
        child.env("NCCL_MAX_CTAS", "8");
    }
    let mut child = child.stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let until = Instant::now() + PATIENCE;
    // What it says fits into a pipe, so it can be read when it has ended.
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("it did not end within {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    if let Some(why) = said.lines().find_map(|line| line.strip_prefix("skipped: ")) {
        return Err(why.to_owned());
    }
    if !output.status.success() {
        return Err(format!("its process ended with {}", output.status));
    }
    let row = |line: &str| {
        let (bytes, us) = line.split_once('\t')?;
        Some((bytes.parse().ok()?, us.parse().ok()?))
    };
    Ok(said.lines().filter_map(row).collect())
}

/// Prints a row for each size, or why there is none.
pub(crate) fn measure(device: &'static Device) {
    if let Err(why) = try_to_measure(device) {
        println!("skipped: {why}");
    }
}

fn try_to_measure(device: &'static Device) -> Result<(), String> {
    let path = std::env::var_os(WANTED).unwrap_or_default();
    let nccl = Nccl::open(Path::new(&path))?;
    let rooms: Vec<_> = (0..RANKS).map(|_| room(device)).collect();
    let communicators = nccl.communicators(device)?;
    let streams: Vec<Stream> = rooms.iter().map(|room| room.0).collect();
    for bytes in sizes() {
        let together = Barrier::new(RANKS);
        // Each rank in a thread of its own, since a call may wait for that of the other.
        let graphs: Vec<Result<usize, String>> = std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..RANKS)
                .map(|rank| {
                    let (nccl, together, communicator) = (&nccl, &together, communicators[rank]);
                    let (stream, send, recv) = (rooms[rank].0 as usize, rooms[rank].1, rooms[rank].2);
                    scope.spawn(move || {
                        let _entered = device.enter().map_err(|error| error.to_string())?;
                        let stream = stream as Stream;
                        let call = || nccl.all_reduce(communicator, send, recv, bytes / 4, stream);
                        let first = call();
                        // SAFETY: the stream lives.
                        let first =
                            first.and(unsafe { device.driver.stream_synchronize(stream) }.map_err(|e| e.to_string()));
                        together.wait();
                        first?;
                        let mut outcome = Ok(());
                        let graph = capture(stream, || {
                            (0..CALLS).for_each(|_| outcome = outcome.clone().and_then(|()| call()));
                        });
                        outcome.map(|()| graph as usize)
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap_or_else(|_| Err("a rank panicked".into()))).collect()
        });
        let graphs = graphs.into_iter().collect::<Result<Vec<_>, _>>()?;
        let graphs: Vec<_> = graphs.into_iter().map(|graph| graph as *mut c_void).collect();
        println!("{bytes}\t{:.2}", launched(&streams, &graphs));
    }
    Ok(())
}

fn find() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("NCCL_LIBRARY") {
        return Ok(path.into());
    }
    let environments = [
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/venv")),
        std::env::var_os("VIRTUAL_ENV").map(PathBuf::from),
    ];
    for environment in environments.into_iter().flatten() {
        let pythons = std::fs::read_dir(environment.join("lib")).into_iter().flatten().flatten();
        for python in pythons {
            let library = python.path().join("site-packages/nvidia/nccl/lib/libnccl.so.2");
            if library.exists() {
                return Ok(library);
            }
        }
    }
    // SAFETY: the library's constructors are those that every program with NCCL runs.
    match unsafe { Library::open(Some("libnccl.so.2"), RTLD_NOW) } {
        Ok(_) => Ok("libnccl.so.2".into()),
        Err(error) => {
            Err(format!("there is no libnccl: not at NCCL_LIBRARY, not in a virtual environment, and {error}"))
        }
    }
}

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

type AllReduce = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, *mut c_void, Stream) -> c_int;

struct Nccl {
    get_unique_id: Symbol<unsafe extern "C" fn(*mut UniqueId) -> c_int>,
    comm_init_rank: Symbol<unsafe extern "C" fn(*mut *mut c_void, c_int, UniqueId, c_int) -> c_int>,
    all_reduce: Symbol<AllReduce>,
    error_string: Symbol<unsafe extern "C" fn(c_int) -> *const c_char>,
    _library: Library,
}

impl Nccl {
    fn open(path: &Path) -> Result<Nccl, String> {
        // SAFETY: as in `find`; the functions have these arguments in nccl.h.
        unsafe {
            let library = Library::open(Some(path), RTLD_NOW).map_err(|error| error.to_string())?;
            let get_version: Symbol<unsafe extern "C" fn(*mut c_int) -> c_int> = get(&library, c"ncclGetVersion")?;
            let mut version = 0;
            get_version(&mut version);
            if version < OLDEST {
                return Err(format!("{} is version {version}; two ranks on a device take {OLDEST}", path.display()));
            }
            Ok(Nccl {
                get_unique_id: get(&library, c"ncclGetUniqueId")?,
                comm_init_rank: get(&library, c"ncclCommInitRank")?,
                all_reduce: get(&library, c"ncclAllReduce")?,
                error_string: get(&library, c"ncclGetErrorString")?,
                _library: library,
            })
        }
    }

    /// A communicator for each rank, made by a thread each.
    fn communicators(&self, device: &'static Device) -> Result<Vec<usize>, String> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: `id` is writable.
        self.check("ncclGetUniqueId", unsafe { (self.get_unique_id)(&mut id) })?;
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..RANKS)
                .map(|rank| {
                    scope.spawn(move || {
                        let _entered = device.enter().map_err(|error| error.to_string())?;
                        let mut communicator = ptr::null_mut();
                        // SAFETY: the handle is writable.
                        let code =
                            unsafe { (self.comm_init_rank)(&mut communicator, RANKS as c_int, id, rank as c_int) };
                        self.check("ncclCommInitRank", code).map(|()| communicator as usize)
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap_or_else(|_| Err("a rank panicked".into()))).collect()
        })
    }

    fn all_reduce(
        &self,
        communicator: usize,
        send: u64,
        recv: u64,
        count: usize,
        stream: Stream,
    ) -> Result<(), String> {
        let (dtype, op) = (DType::Float32 as c_int, Op::Sum as c_int);
        // SAFETY: the communicator and the stream live, and both buffers have room for the largest call.
        let code = unsafe {
            (self.all_reduce)(
                send as *const c_void,
                recv as *mut c_void,
                count,
                dtype,
                op,
                communicator as *mut c_void,
                stream,
            )
        };
        self.check("ncclAllReduce", code)
    }

    fn check(&self, what: &str, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the text is one for ever, and ends with NUL.
        let text = unsafe { CStr::from_ptr((self.error_string)(code)) }.to_string_lossy();
        Err(format!("{what} returned {code} ({text})"))
    }
}

/// # Safety
/// The function of this name must be of this type.
unsafe fn get<T>(library: &Library, name: &CStr) -> Result<Symbol<T>, String> {
    // SAFETY: the caller's promise.
    unsafe { library.get(name) }.map_err(|error| error.to_string())
}
