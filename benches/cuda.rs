//! Times of CUDA groups on one card, in graph replay: ranks are threads' worth of streams of this process, all on device 0.
//!
//! Each row is one size: a graph of [`CALLS`] calls for each rank, all graphs launched together, [`ROUNDS`] times after
//! [`WARM_UPS`]; the time of a round ends with the last rank, so it is the maximum over ranks, and the row has the median
//! over rounds, per call. Beside it the same graph with bare launches of an empty kernel, with copies of the same bytes in
//! device memory, what no all_reduce can beat, and for two ranks NCCL's all_reduce (`cuda/nccl.rs`), where there is one
//! that can have both on a device. `cargo bench --bench cuda`, through `make gpu-bench`.

#[path = "cuda/nccl.rs"]
mod nccl;

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_void},
    ptr,
    sync::Arc,
    time::{Duration, Instant},
};

use libloading::os::unix::{Library, RTLD_NOW, Symbol};
use tutti::{
    communicator::{Call, Descriptor},
    config::{Timeout, WorldOptions},
    cuda::{
        device::Device,
        driver::{Address, Driver, Function, LaunchConfig, Stream},
    },
    dispatch::Format,
    dtype::{Collective, DType, Op},
    group::Group,
};

/// Calls in a graph.
const CALLS: u32 = 20;
const WARM_UPS: u32 = 20;
const ROUNDS: u32 = 100;
/// The largest call, in bytes.
const MOST: usize = 64 << 20;
const EMPTY: &CStr = c".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry nothing() { ret; }\n";

fn main() {
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => return println!("# skipped: {error}"),
    };
    let _entered = device.enter().expect("the device's context");
    if nccl::is_wanted() {
        return nccl::measure(device);
    }
    let beside = nccl::times().unwrap_or_else(|why| {
        println!("# NCCL is skipped: {why}");
        BTreeMap::new()
    });
    let nothing = empty_kernel(device.driver);
    println!("world\tbytes\tserved_by\tcall_us\tbare_launch_us\tcopy_us\tnccl_us");
    for world in [2, 4, 8] {
        measure(device, nothing, world, &beside);
    }
}

/// Powers of two from 8 to [`MOST`] bytes.
fn sizes() -> impl Iterator<Item = usize> {
    std::iter::successors(Some(8), |bytes| Some(bytes * 2)).take_while(|bytes| *bytes <= MOST)
}

fn measure(device: &'static Device, nothing: Function, world: usize, nccl: &BTreeMap<usize, f64>) {
    let groups = Group::world_local(world as u32, Some(&vec![0; world]), WorldOptions::default()).expect("a world");
    let ranks: Vec<Rank> = groups.into_iter().map(|group| Rank::new(device, group)).collect();
    for bytes in sizes() {
        let what = Descriptor {
            collective: Collective::AllReduce,
            dtype: DType::Float32,
            op: Op::Sum,
            root: 0,
            flags: 0,
            count: bytes as u64 / 4,
        };
        let told = ranks[0].group.explain(&what, Format::Text).expect("an explanation");
        let server = told.split("served by ").nth(1).and_then(|rest| rest.split(':').next()).unwrap_or("?").to_owned();
        let streams: Vec<Stream> = ranks.iter().map(|rank| rank.stream).collect();
        let time = |body: &dyn Fn(&Rank)| replayed(&streams, |index| body(&ranks[index]));
        let calls = time(&|rank| {
            let call = Call { stream: rank.stream, ..Call::new(what, rank.send as *const u8, rank.recv as *mut u8) };
            rank.group.run(call, Timeout::Default).expect("a call");
        });
        let launches = time(&|rank| launch(device.driver, nothing, rank.stream));
        let copies = time(&|rank| {
            // SAFETY: both buffers have room for the largest call.
            unsafe { device.driver.memcpy_async(rank.recv, rank.send, bytes, rank.stream) }.expect("a copy");
        });
        let beside = nccl.get(&bytes).filter(|_| world == nccl::RANKS).map_or("-".to_owned(), |us| format!("{us:.2}"));
        println!("{world}\t{bytes}\t{server}\t{calls:.2}\t{launches:.2}\t{copies:.2}\t{beside}");
        ranks.iter().for_each(|rank| rank.group.check().expect("the group lives"));
    }
}

/// A rank with its buffers and its stream.
struct Rank {
    group: Arc<Group>,
    stream: Stream,
    send: Address,
    recv: Address,
}

impl Rank {
    fn new(device: &'static Device, group: Arc<Group>) -> Self {
        let (stream, send, recv) = room(device);
        Rank { group, stream, send, recv }
    }
}

/// A stream, and two buffers with room for the largest call.
fn room(device: &Device) -> (Stream, Address, Address) {
    let (mut stream, mut send, mut recv) = (ptr::null_mut(), 0, 0);
    // SAFETY: everything is writable; the process ends before any of it is given back.
    unsafe {
        device.driver.stream_create(&mut stream, 1).expect("a stream");
        device.driver.mem_alloc(&mut send, MOST).expect("memory");
        device.driver.mem_alloc(&mut recv, MOST).expect("memory");
        device.driver.memset_async(send, 0, MOST, stream).expect("zeros");
        device.driver.stream_synchronize(stream).expect("zeros");
    }
    (stream, send, recv)
}

/// Microseconds of one of the things that `body` puts on the stream of a number: the median over rounds.
fn replayed(streams: &[Stream], body: impl Fn(usize)) -> f64 {
    let graphs: Vec<*mut c_void> = streams
        .iter()
        .enumerate()
        .map(|(index, stream)| capture(*stream, || (0..CALLS).for_each(|_| body(index))))
        .collect();
    launched(streams, &graphs)
}

/// The same for graphs of [`CALLS`] such things, one for each stream.
fn launched(streams: &[Stream], graphs: &[*mut c_void]) -> f64 {
    let launch: Symbol<unsafe extern "C" fn(*mut c_void, Stream) -> i32> = symbol(c"cuGraphLaunch");
    let driver = Driver::get().expect("the driver");
    let round = || {
        let start = Instant::now();
        for (stream, graph) in streams.iter().zip(graphs) {
            // SAFETY: the graph and the stream live.
            assert_eq!(unsafe { launch(*graph, *stream) }, 0);
        }
        for stream in streams {
            // SAFETY: as above.
            unsafe { driver.stream_synchronize(*stream) }.expect("the round ends");
        }
        start.elapsed()
    };
    for _ in 0..WARM_UPS {
        round();
    }
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| round()).collect();
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6 / f64::from(CALLS)
}

fn capture(stream: Stream, body: impl FnOnce()) -> *mut c_void {
    let (mut graph, mut executable) = (ptr::null_mut(), ptr::null_mut());
    let begin: Symbol<unsafe extern "C" fn(Stream, i32) -> i32> = symbol(c"cuStreamBeginCapture_v2");
    let end: Symbol<unsafe extern "C" fn(Stream, *mut *mut c_void) -> i32> = symbol(c"cuStreamEndCapture");
    let instantiate: Symbol<unsafe extern "C" fn(*mut *mut c_void, *mut c_void, u64) -> i32> =
        symbol(c"cuGraphInstantiateWithFlags");
    // SAFETY: the functions have these arguments, and what is pointed to is writable.
    unsafe {
        assert_eq!(begin(stream, 1), 0);
        body();
        assert_eq!(end(stream, &mut graph), 0);
        assert_eq!(instantiate(&mut executable, graph, 0), 0);
    }
    executable
}

fn empty_kernel(driver: &Driver) -> Function {
    let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: both are writable, and the texts end with NUL.
    unsafe {
        driver.module_load_data(&mut module, EMPTY.as_ptr().cast()).expect("a module");
        driver.module_get_function(&mut function, module, c"nothing".as_ptr()).expect("a kernel");
    }
    function
}

fn launch(driver: &Driver, function: Function, stream: Stream) {
    let config = LaunchConfig {
        grid: [1, 1, 1],
        block: [32, 1, 1],
        shared_bytes: 0,
        stream,
        attributes: ptr::null(),
        attribute_count: 0,
    };
    // SAFETY: the kernel takes nothing.
    unsafe { driver.launch_kernel_ex(&config, function, ptr::null_mut(), ptr::null_mut()) }.expect("a launch");
}

/// A function of the driver that the library has no use for.
fn symbol<T>(name: &CStr) -> Symbol<T> {
    static LIBRARY: std::sync::OnceLock<Library> = std::sync::OnceLock::new();
    let library = LIBRARY.get_or_init(|| {
        let path = std::env::var_os("TUTTI_CUDA_LIBRARY").unwrap_or_else(|| "libcuda.so.1".into());
        // SAFETY: it is loaded already.
        unsafe { Library::open(Some(path), RTLD_NOW) }.expect("the driver")
    });
    // SAFETY: the caller names a function of this type.
    unsafe { library.get(name) }.expect("a function of the driver")
}
