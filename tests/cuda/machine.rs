//! Ranks on devices: a world of them, memory and streams, and the graphs that the tests capture.

use std::{ffi::c_void, sync::Arc, time::Duration};

use libloading::os::unix::Symbol;
use tutti::{
    communicator::{Call, Descriptor},
    config::{GroupOptions, Selection, Timeout, WorldOptions},
    cuda::{
        device::Device,
        driver::{Driver, Stream},
    },
    dtype::{Collective, DType, Op},
    error::Result,
    group::Group,
};

use crate::stub::{on_card, ordinal};

/// Modes of a capture: it forbids potentially unsafe calls to every thread, or to its own alone.
pub(crate) const GLOBAL: i32 = 0;
/// See [`GLOBAL`].
pub(crate) const THREAD_LOCAL: i32 = 1;
/// It forbids nothing. As the mode of a thread: it may do everything.
pub(crate) const RELAXED: i32 = 2;
/// How long ranks wait on a card: what hangs shall be named before somebody ends the test. More than the tests need that
/// prove to be faster than a deadline.
const PATIENCE_ON_CARD: Duration = Duration::from_secs(30);

/// A world of ranks on these devices, in this process.
pub(crate) fn world(devices: &[i32], communicators: &str) -> Result<Vec<Arc<Group>>> {
    let communicators = Selection::parse(communicators).unwrap();
    let group = GroupOptions { communicators, ..GroupOptions::default() };
    world_with(devices, group)
}

/// The same, with other options.
pub(crate) fn world_with(devices: &[i32], group: GroupOptions) -> Result<Vec<Arc<Group>>> {
    let devices: Vec<i32> = devices.iter().copied().map(ordinal).collect();
    let group = GroupOptions { timeout: group.timeout.or(patience()), ..group };
    Group::world_local(devices.len() as u32, Some(&devices), WorldOptions { group, ..WorldOptions::default() })
}

/// The deadline of groups that are given none.
pub(crate) fn patience() -> Timeout {
    if on_card() { Timeout::After(PATIENCE_ON_CARD) } else { Timeout::Default }
}

/// Does something for all at once, each on a thread of its own; what came of it, in order.
pub(crate) fn on_all<T: Send, S: Sync>(all: &[S], body: impl Fn(&S) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|one| scope.spawn(|| body(one))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The group of a rank's color, all of whose ranks call this; a negative color gets none.
pub(crate) fn split(group: &Arc<Group>, color: i32) -> Option<Arc<Group>> {
    let (give, take) = std::sync::mpsc::channel();
    let deliver = Box::new(move |part: Option<Arc<Group>>| give.send(part).unwrap());
    group.split(color, 0, GroupOptions::default(), deliver).unwrap();
    take.recv().unwrap()
}

/// What all ranks call.
pub(crate) fn descriptor(collective: Collective, dtype: DType, op: Op, count: usize) -> Descriptor {
    Descriptor { collective, dtype, op, root: 0, flags: 0, count: count as u64 }
}

pub(crate) fn driver() -> &'static Driver {
    Driver::get().unwrap()
}

/// Memory of a device.
pub(crate) struct Buffer {
    device: &'static Device,
    pub(crate) address: u64,
    bytes: usize,
    is_ours: bool,
}

impl Buffer {
    pub(crate) fn new(number: i32, bytes: usize) -> Self {
        let device = Device::open(ordinal(number)).unwrap();
        let _entered = device.enter().unwrap();
        let mut address = 0;
        // SAFETY: `address` is writable.
        unsafe { driver().mem_alloc(&mut address, bytes.max(1)) }.unwrap();
        Buffer { device, address, bytes, is_ours: true }
    }

    /// Memory that somebody else has.
    pub(crate) fn borrowed(number: i32, address: u64, bytes: usize) -> Self {
        Buffer { device: Device::open(ordinal(number)).unwrap(), address, bytes, is_ours: false }
    }

    pub(crate) fn with(number: i32, content: &[u8]) -> Self {
        let buffer = Buffer::new(number, content.len());
        buffer.write(content);
        buffer
    }

    /// No kernel may be using it.
    pub(crate) fn write(&self, content: &[u8]) {
        assert!(content.len() <= self.bytes);
        self.copy(self.address, content.as_ptr() as u64, content.len());
    }

    /// No kernel may be writing it, and none may wait for a peer that has yet to launch: the copy may keep it from that.
    pub(crate) fn read(&self) -> Vec<u8> {
        let mut content = vec![0; self.bytes];
        self.copy(content.as_mut_ptr() as u64, self.address, self.bytes);
        content
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) {
        let _entered = self.device.enter().unwrap();
        let stream = std::ptr::null_mut();
        // SAFETY: both are as long as that, and the copy is over when the stream is.
        unsafe { driver().memcpy_async(to, from, bytes, stream).and_then(|()| driver().stream_synchronize(stream)) }
            .unwrap();
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.is_ours {
            return;
        }
        let _entered = self.device.enter().unwrap();
        // SAFETY: nothing uses it any more.
        unsafe { driver().mem_free(self.address) }.unwrap();
    }
}

/// A stream of a device.
pub(crate) struct OwnStream {
    device: &'static Device,
    pub(crate) handle: Stream,
}

impl OwnStream {
    pub(crate) fn new(number: i32) -> Self {
        let device = Device::open(ordinal(number)).unwrap();
        let _entered = device.enter().unwrap();
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` is writable.
        unsafe { driver().stream_create(&mut handle, 1) }.unwrap();
        OwnStream { device, handle }
    }

    pub(crate) fn wait(&self) {
        let _entered = self.device.enter().unwrap();
        // SAFETY: the stream is ours.
        unsafe { driver().stream_synchronize(self.handle) }.unwrap();
    }

    /// Captures what `body` puts on the stream. The capture forbids nothing to other threads: those of other ranks
    /// allocate and wait meanwhile.
    pub(crate) fn capture(&self, body: impl FnOnce()) -> Graph {
        self.capture_in(THREAD_LOCAL, body).unwrap()
    }

    /// The same, in one of the driver's modes; the driver's code, where the capture was lost.
    pub(crate) fn capture_in(&self, mode: i32, body: impl FnOnce()) -> Result<Graph, i32> {
        let _entered = self.device.enter().unwrap();
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the functions have these arguments in the driver, and what is pointed to is writable.
        unsafe {
            let begin: Symbol<unsafe extern "C" fn(Stream, i32) -> i32> = symbol(c"cuStreamBeginCapture_v2");
            let end: Symbol<unsafe extern "C" fn(Stream, *mut *mut c_void) -> i32> = symbol(c"cuStreamEndCapture");
            let instantiate: Symbol<unsafe extern "C" fn(*mut *mut c_void, *mut c_void, u64) -> i32> =
                symbol(c"cuGraphInstantiateWithFlags");
            assert_eq!(begin(self.handle, mode), 0);
            body();
            match end(self.handle, &mut graph) {
                0 => {}
                code => return Err(code),
            }
            assert_eq!(instantiate(&mut executable, graph, 0), 0);
            let destroy: Symbol<unsafe extern "C" fn(*mut c_void) -> i32> = symbol(c"cuGraphDestroy");
            assert_eq!(destroy(graph), 0);
        }
        let graph = Graph(executable);
        self.upload(&graph);
        Ok(graph)
    }

    /// Puts a graph on the device, so that no launch has to, while kernels of other ranks wait there.
    fn upload(&self, graph: &Graph) {
        // SAFETY: the function has these arguments in the driver; the graph is one. The caller has entered the device.
        unsafe {
            let upload: Symbol<unsafe extern "C" fn(*mut c_void, Stream) -> i32> = symbol(c"cuGraphUpload");
            assert_eq!(upload(graph.0, self.handle), 0);
        }
    }

    pub(crate) fn replay(&self, graph: &Graph) {
        let _entered = self.device.enter().unwrap();
        // SAFETY: the function has these arguments in the driver; the graph is one.
        unsafe {
            let launch: Symbol<unsafe extern "C" fn(*mut c_void, Stream) -> i32> = symbol(c"cuGraphLaunch");
            assert_eq!(launch(graph.0, self.handle), 0);
        }
    }
}

impl Drop for OwnStream {
    fn drop(&mut self) {
        // SAFETY: the stream is ours.
        unsafe { driver().stream_destroy(self.handle) }.unwrap();
    }
}

/// Runs `body` in a thread whose mode is this one, as long as it takes.
pub(crate) fn in_mode<T>(mode: i32, body: impl FnOnce() -> T) -> T {
    let exchange = |mut mode: i32| {
        // SAFETY: the function has this argument in the driver, and the number is writable.
        unsafe {
            let exchange: Symbol<unsafe extern "C" fn(*mut i32) -> i32> = symbol(c"cuThreadExchangeStreamCaptureMode");
            assert_eq!(exchange(&mut mode), 0);
        }
        mode
    };
    let before = exchange(mode);
    let result = body();
    exchange(before);
    result
}

/// An instantiated graph.
pub(crate) struct Graph(*mut c_void);

impl Graph {
    /// No replay of it may be going on.
    pub(crate) fn destroy(self) {
        // SAFETY: the function has this argument in the driver; the graph is one, and nobody has it any more.
        unsafe {
            let destroy: Symbol<unsafe extern "C" fn(*mut c_void) -> i32> = symbol(c"cuGraphExecDestroy");
            assert_eq!(destroy(self.0), 0);
        }
    }
}

unsafe fn symbol<T>(name: &std::ffi::CStr) -> Symbol<T> {
    // SAFETY: the caller names a function of this type.
    unsafe { crate::stub::library().get(name) }.unwrap()
}

/// A call on a stream.
pub(crate) fn call(descriptor: Descriptor, send: u64, recv: u64, stream: &OwnStream) -> Call {
    Call { stream: stream.handle, ..Call::new(descriptor, send as *const u8, recv as *mut u8) }
}

/// What the same call gives on CPU ranks: the results of all ranks.
pub(crate) fn on_cpu(descriptor: Descriptor, sends: &[Vec<u8>], recv_bytes: usize) -> Vec<Vec<u8>> {
    let groups = Group::world_local(sends.len() as u32, None, WorldOptions::default()).unwrap();
    let mut recvs = vec![vec![0_u8; recv_bytes]; sends.len()];
    std::thread::scope(|scope| {
        for ((group, send), recv) in groups.iter().zip(sends).zip(&mut recvs) {
            scope.spawn(move || {
                let call = Call::new(descriptor, send.as_ptr(), recv.as_mut_ptr());
                group.run(call, Timeout::Default).unwrap();
            });
        }
    });
    recvs
}

/// Bytes that look random and are numbers of any type: floats among them are finite.
pub(crate) fn content(seed: usize, bytes: usize) -> Vec<u8> {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes)
        .map(|at| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let byte = (state >> 56) as u8;
            // The upper byte of every 16-bit half: an exponent in the middle.
            if at % 2 == 1 { 0x38 | byte & 0x87 } else { byte }
        })
        .collect()
}
