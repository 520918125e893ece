//! Memory and streams of a CUDA device, for the communicators of CUDA groups: each rank has a stream of its own, and
//! what a rank's thread calls a buffer is memory of the device.
//!
//! All of it is made before the first kernel runs, and none is given back: the driver may let whoever asks for memory,
//! or frees some, wait for every kernel, and one that waits for a peer waits for a thread that then cannot launch.

use std::{
    cell::Cell,
    ffi::c_void,
    ptr,
    sync::{Mutex, OnceLock},
};

use tutti::{
    cuda::{device::Device, driver},
    dtype::{Collective, DType, Op},
    group::Group,
};

/// Bytes of a slot: more than any buffer of the suite has.
const SLOT: usize = 4 << 20;
const SLOTS: usize = 32;
const MOST_RANKS: usize = 8;

thread_local! {
    /// The stream of the rank that this thread is, in a CUDA group.
    static STREAM: Cell<driver::Stream> = const { Cell::new(ptr::null_mut()) };
}

/// Whether a communicator is one of CUDA groups.
pub(crate) fn has(communicator: &str) -> bool {
    ["push", "pull", "staged"].contains(&communicator)
}

/// Whether a communicator must serve such calls. The kernels leave some to whoever comes after them.
pub(crate) fn must_serve(communicator: &str, collective: Collective, dtype: DType, op: Op) -> bool {
    use Collective::*;
    if !["push", "pull"].contains(&communicator) {
        return true;
    }
    let floats = [DType::Float16, DType::Bfloat16, DType::Float32];
    let integers = [DType::Int8, DType::Uint8, DType::Int32, DType::Uint32, DType::Int64, DType::Uint64];
    match collective {
        AllReduce | ReduceScatter => op != Op::Prod && (floats.contains(&dtype) || integers.contains(&dtype)),
        AllGather | Broadcast | Barrier => true,
        _ => false,
    }
}

/// Makes memory and streams, if that was not done.
pub(crate) fn prepare() {
    GROUND.get_or_init(|| {
        let device = Device::open(0).expect("there is a device");
        let _entered = device.enter().expect("its context");
        let mut streams = [ptr::null_mut(); MOST_RANKS];
        let mut start = 0;
        // SAFETY: everything is writable; it is kept until the process ends.
        unsafe {
            for stream in &mut streams {
                device.driver.stream_create(stream, driver::STREAM_NON_BLOCKING).expect("a stream");
            }
            device.driver.mem_alloc(&mut start, SLOT * SLOTS).expect("memory");
        }
        let free = (0..SLOTS).map(|slot| start + (slot * SLOT) as u64).collect();
        Ground { device, streams, free: Mutex::new(free) }
    });
}

/// From now on this thread is this rank, if the group is one of devices.
pub(crate) fn become_rank(group: &Group) {
    if group.device().is_some() {
        STREAM.set(ground().streams[group.rank() as usize]);
    }
}

/// The stream for this thread's calls.
pub(crate) fn stream() -> *mut c_void {
    STREAM.get()
}

/// Whether this thread is a rank of a CUDA group.
pub(crate) fn is_here() -> bool {
    !STREAM.get().is_null()
}

/// Some memory of the device, used on this thread's stream.
pub(crate) struct Slot {
    address: u64,
    /// Whether it is of [`Ground::free`]; else somebody else's.
    is_ours: bool,
}

impl Slot {
    /// A slot with this content.
    pub(crate) fn new(content: &[u8]) -> Slot {
        assert!(content.len() <= SLOT);
        let address = ground().free.lock().unwrap().pop().expect("a slot is free");
        copy(address, content.as_ptr() as u64, content.len());
        Slot { address, is_ours: true }
    }

    /// Memory that somebody else has, with this content.
    pub(crate) fn at(address: *mut u8, content: &[u8]) -> Slot {
        copy(address as u64, content.as_ptr() as u64, content.len());
        Slot { address: address as u64, is_ours: false }
    }

    pub(crate) fn address(&self) -> *mut u8 {
        self.address as *mut u8
    }

    /// What is there when everything on the stream is over.
    pub(crate) fn read(&self, bytes: usize) -> Vec<u8> {
        let mut content = vec![0; bytes];
        copy(content.as_mut_ptr() as u64, self.address, bytes);
        content
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // A rank that panics leaves what its kernels may still use.
        if !std::thread::panicking() {
            wait();
            if self.is_ours {
                ground().free.lock().unwrap().push(self.address);
            }
        }
    }
}

struct Ground {
    device: &'static Device,
    streams: [driver::Stream; MOST_RANKS],
    /// The slots that nobody has.
    free: Mutex<Vec<u64>>,
}

// SAFETY: streams of the driver may be used from any thread.
unsafe impl Send for Ground {}
// SAFETY: as above.
unsafe impl Sync for Ground {}

static GROUND: OnceLock<Ground> = OnceLock::new();

fn ground() -> &'static Ground {
    GROUND.get().expect("a world was made first")
}

fn copy(to: u64, from: u64, bytes: usize) {
    // Not behind a kernel: a copy of pageable memory may hold a lock of the driver until that has ended, and the peer that
    // it waits for could not launch.
    wait();
    let device = ground().device;
    let _entered = device.enter().unwrap();
    // SAFETY: both are as long as that, and used by nothing else until the copy is over.
    unsafe { device.driver.memcpy_async(to, from, bytes, stream()) }.unwrap();
    wait();
}

fn wait() {
    let device = ground().device;
    let _entered = device.enter().unwrap();
    // SAFETY: the stream is kept until the process ends.
    unsafe { device.driver.stream_synchronize(stream()) }.unwrap();
}
