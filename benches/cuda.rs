//! Times of CUDA groups on one card, in graph replay: ranks are threads' worth of streams of this process, all on device 0.
//!
//! Each row is one size: a graph of [`CALLS`] calls for each rank, all graphs launched together, [`ROUNDS`] times after
//! [`WARM_UPS`]; the time of a round ends with the last rank, so it is the maximum over ranks, and the row has the median
//! over rounds, per call; before that the results are compared with the sum. Beside it the same calls on registered memory;
//! the same graph with bare launches of an empty kernel, with copies of the same bytes in device memory, what no all_reduce
//! can beat, and for two ranks NCCL's all_reduce (`cuda/nccl.rs`), where there is one that can have both on a device. A
//! flag's way to another stream and back is timed once.
//!
//! The aims, as ratios at the end of a row: up to 64 KiB, the time over twice a bare launch and a flag's round trip (1 or
//! less is well); from 4 MiB on, the time over the copies; up to 256 KiB, NCCL's time over ours.
//!
//! `cargo bench --bench cuda`, through `make gpu-bench`. `TUTTI_BENCH_MOST` and `TUTTI_BENCH_ROUNDS` make it smaller, so
//! that a stub of the driver can run it.

#[path = "cuda/nccl.rs"]
mod nccl;

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
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
/// Of a world's ranks: what hangs shall be named before somebody ends the bench.
const PATIENCE: Duration = Duration::from_secs(20);
/// Trips of a flag that are timed together.
const TRIPS: u32 = 1000;
/// Two of these pass a word back and forth: each waits for its turns and gives the next to the other. A wait ends after
/// some seconds, as nobody may hang a device.
const PING_PONG: &CStr = c"
.version 7.0
.target sm_80
.address_size 64
.visible .entry ping_pong(.param .u64 word, .param .u32 first, .param .u32 trips)
{
    .reg .pred %p;
    .reg .u32 %turn, %left, %seen, %looks, %lane;
    .reg .u64 %at;
    mov.u32 %lane, %tid.x;
    setp.ne.u32 %p, %lane, 0;
    @%p bra done;
    ld.param.u64 %at, [word];
    ld.param.u32 %turn, [first];
    ld.param.u32 %left, [trips];
    mov.u32 %looks, 0;
next:
    setp.eq.u32 %p, %left, 0;
    @%p bra done;
look:
    add.u32 %looks, %looks, 1;
    setp.gt.u32 %p, %looks, 5000000;
    @%p bra done;
    ld.acquire.sys.u32 %seen, [%at];
    setp.ne.u32 %p, %seen, %turn;
    @%p bra look;
    add.u32 %seen, %turn, 1;
    st.release.sys.u32 [%at], %seen;
    add.u32 %turn, %turn, 2;
    sub.u32 %left, %left, 1;
    bra next;
done:
    ret;
}
";
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
    let nothing = kernel(device.driver, EMPTY, c"nothing").expect("a kernel");
    let trip = round_trip(device);
    println!("# a flag's way to another stream and back: {} us", trip.map_or("-".into(), |us| format!("{us:.2}")));
    println!(
        "world\tbytes\tserved_by\tcall_us\tregistered_us\tbare_launch_us\tcopy_us\tnccl_us\tof_launch_and_trip\tof_copy\tnccl_of_call"
    );
    let mut failed = false;
    for world in [2, 4, 8] {
        // What goes wrong with few ranks need not keep more of them from being measured.
        let measured = catch_unwind(AssertUnwindSafe(|| measure(device, (nothing, trip), world, &beside)));
        if let Err(why) = measured {
            let text = why.downcast_ref::<String>().map(String::as_str).or_else(|| why.downcast_ref().copied());
            let why = text.unwrap_or("see the errors");
            println!("# {world} ranks ended here: {}", why.replace('\n', " "));
            failed = true;
        }
    }
    if failed {
        std::process::exit(1);
    }
}

/// A number of the environment.
fn setting(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

/// Powers of two from 8 to [`MOST`] bytes.
fn sizes() -> impl Iterator<Item = usize> {
    let most = setting("TUTTI_BENCH_MOST", MOST).min(MOST);
    std::iter::successors(Some(8), |bytes| Some(bytes * 2)).take_while(move |bytes| *bytes <= most)
}

fn measure(
    device: &'static Device,
    (nothing, trip): (Function, Option<f64>),
    world: usize,
    nccl: &BTreeMap<usize, f64>,
) {
    let mut options = WorldOptions::default();
    options.group.timeout = Timeout::After(PATIENCE);
    let groups = Group::world_local(world as u32, Some(&vec![0; world]), options).expect("a world");
    // Collective: all ranks at once.
    let registered: Vec<Address> = std::thread::scope(|scope| {
        let threads: Vec<_> = groups.iter().map(|group| scope.spawn(|| allocate(group))).collect();
        threads.into_iter().map(|thread| thread.join().expect("registered memory")).collect()
    });
    let ranks: Vec<Rank> =
        groups.into_iter().zip(registered).map(|(group, memory)| Rank::new(device, group, memory)).collect();
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
        check(device, &ranks, what);
        let calls = time(&|rank| rank.run(what, rank.send, rank.recv));
        let promised = Descriptor { flags: REGISTERED, ..what };
        let registered = time(&|rank| rank.run(promised, rank.registered, rank.registered + MOST as u64));
        let launches = time(&|rank| launch(device.driver, nothing, rank.stream));
        let copies = time(&|rank| {
            // SAFETY: both buffers have room for the largest call.
            unsafe { device.driver.memcpy_async(rank.recv, rank.send, bytes, rank.stream) }.expect("a copy");
        });
        let beside = nccl.get(&bytes).copied().filter(|_| world == nccl::RANKS);
        let or_dash = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        let aims = [
            trip.filter(|_| bytes <= 64 << 10).map(|trip| calls / (2.0 * (launches + trip))),
            (bytes >= 4 << 20).then_some(calls.min(registered) / copies),
            beside.filter(|_| bytes <= 256 << 10).map(|nccl| nccl / calls),
        ];
        let [near, far, faster] = aims.map(or_dash);
        println!(
            "{world}\t{bytes}\t{server}\t{calls:.2}\t{registered:.2}\t{launches:.2}\t{copies:.2}\t{}\t{near}\t{far}\t{faster}",
            or_dash(beside)
        );
        ranks.iter().for_each(|rank| rank.group.check().expect("the group lives"));
    }
}

/// The flag of a call whose buffers are registered on all ranks.
const REGISTERED: u32 = 2;

/// A rank with its buffers and its stream.
struct Rank {
    group: Arc<Group>,
    stream: Stream,
    send: Address,
    recv: Address,
    /// Room for both in registered memory.
    registered: Address,
}

impl Rank {
    fn new(device: &'static Device, group: Arc<Group>, registered: Address) -> Self {
        let (stream, send, recv) = room(device);
        Rank { group, stream, send, recv, registered }
    }

    fn run(&self, what: Descriptor, send: Address, recv: Address) {
        let call = Call { stream: self.stream, ..Call::new(what, send as *const u8, recv as *mut u8) };
        self.group.run(call, Timeout::Default).expect("a call");
    }
}

/// Registered memory with room for two of the largest buffers.
fn allocate(group: &Arc<Group>) -> Address {
    let (give, take) = std::sync::mpsc::channel();
    let deliver = Box::new(move |start: *mut u8| give.send(start as Address).expect("somebody waits"));
    group.allocate(2 * MOST, deliver).expect("registered memory");
    take.recv().expect("it is there")
}

/// One call as it will be timed, with numbers whose sum is known: rank r has r + 1 + i % 7 at i.
fn check(device: &'static Device, ranks: &[Rank], what: Descriptor) {
    let count = what.count as usize;
    let numbers = |rank: usize| (0..count).map(move |at| (rank + 1 + at % 7) as f32).collect::<Vec<f32>>();
    let world = ranks.len();
    let want: Vec<f32> = (0..count).map(|at| (world * (world + 1) / 2 + world * (at % 7)) as f32).collect();
    for (flags, shift) in [(0, false), (REGISTERED, true)] {
        let places = |rank: &Rank| match shift {
            false => (rank.send, rank.recv),
            true => (rank.registered, rank.registered + MOST as u64),
        };
        for (index, rank) in ranks.iter().enumerate() {
            device.write(places(rank).0, bytes_of(&numbers(index))).expect("the input");
        }
        for rank in ranks {
            let (send, recv) = places(rank);
            rank.run(Descriptor { flags, ..what }, send, recv);
        }
        for rank in ranks {
            let mut got = vec![0_f32; count];
            // SAFETY: both ends are as long as that.
            unsafe {
                device.driver.stream_synchronize(rank.stream).expect("the call ends");
                let to = got.as_mut_ptr() as u64;
                device.driver.memcpy_async(to, places(rank).1, 4 * count, rank.stream).expect("a copy");
                device.driver.stream_synchronize(rank.stream).expect("the copy ends");
            }
            rank.group.check().expect("the group lives");
            assert!(got == want, "{what}, flags {flags}: a wrong sum");
        }
    }
}

fn bytes_of(numbers: &[f32]) -> &[u8] {
    // SAFETY: floats are bytes without padding.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

/// Microseconds of a flag's way to a kernel on another stream and back; `None` where the device has no such kernel, or
/// does not run the two at once.
fn round_trip(device: &'static Device) -> Option<f64> {
    let function = kernel(device.driver, PING_PONG, c"ping_pong")?;
    let (one, word, _) = room(device);
    let (other, ..) = room(device);
    let driver = device.driver;
    let play = |stream: Stream, mut first: u32| {
        let (mut word, mut trips) = (word, TRIPS);
        let mut arguments: [*mut c_void; 3] =
            [(&raw mut word).cast(), (&raw mut first).cast(), (&raw mut trips).cast()];
        // SAFETY: the kernel takes these three, which the driver copies.
        unsafe { driver.launch_kernel_ex(&one_block(stream), function, arguments.as_mut_ptr(), ptr::null_mut()) }
            .expect("a launch");
    };
    let mut times: Vec<Duration> = (0..10)
        .map(|_| {
            device.write(word, &[0; 4]).expect("the word");
            let start = Instant::now();
            play(one, 0);
            play(other, 1);
            for stream in [one, other] {
                // SAFETY: the stream lives.
                unsafe { driver.stream_synchronize(stream) }.expect("the trips end");
            }
            let elapsed = start.elapsed();
            let mut turns = 0_u32;
            // SAFETY: both ends are as long as that.
            unsafe {
                driver.memcpy_async((&raw mut turns) as u64, word, 4, one).expect("a copy");
                driver.stream_synchronize(one).expect("the copy ends");
            }
            (turns == 2 * TRIPS).then_some(elapsed)
        })
        .collect::<Option<_>>()?;
    times.sort();
    Some(times[times.len() / 2].as_secs_f64() * 1e6 / f64::from(TRIPS))
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

/// The same for graphs of [`CALLS`] such things, one for each stream, which are then gone.
fn launched(streams: &[Stream], graphs: &[*mut c_void]) -> f64 {
    let upload: Symbol<unsafe extern "C" fn(*mut c_void, Stream) -> i32> = symbol(c"cuGraphUpload");
    let launch: Symbol<unsafe extern "C" fn(*mut c_void, Stream) -> i32> = symbol(c"cuGraphLaunch");
    let destroy: Symbol<unsafe extern "C" fn(*mut c_void) -> i32> = symbol(c"cuGraphExecDestroy");
    let driver = Driver::get().expect("the driver");
    let on_all = |function: &Symbol<unsafe extern "C" fn(*mut c_void, Stream) -> i32>| {
        for (stream, graph) in streams.iter().zip(graphs) {
            // SAFETY: the graph and the stream live.
            assert_eq!(unsafe { function(*graph, *stream) }, 0);
        }
    };
    let wait_for_all = || {
        for stream in streams {
            // SAFETY: the stream lives.
            unsafe { driver.stream_synchronize(*stream) }.expect("the round ends");
        }
    };
    // All of them before the first launch: an upload could wait for kernels that wait for a peer's.
    on_all(&upload);
    wait_for_all();
    let round = || {
        let start = Instant::now();
        on_all(&launch);
        wait_for_all();
        start.elapsed()
    };
    let rounds = setting("TUTTI_BENCH_ROUNDS", ROUNDS as usize);
    for _ in 0..rounds.min(WARM_UPS as usize) {
        round();
    }
    let mut times: Vec<Duration> = (0..rounds.max(1)).map(|_| round()).collect();
    for graph in graphs {
        // SAFETY: no launch of it is under way, and nobody uses it again.
        assert_eq!(unsafe { destroy(*graph) }, 0);
    }
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

/// A kernel of some PTX; `None` if it has none of that name.
fn kernel(driver: &Driver, text: &CStr, name: &CStr) -> Option<Function> {
    let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: both are writable, and the texts end with NUL.
    unsafe {
        driver.module_load_data(&mut module, text.as_ptr().cast()).expect("a module");
        driver.module_get_function(&mut function, module, name.as_ptr()).ok().map(|()| function)
    }
}

/// A launch of one block on a stream.
fn one_block(stream: Stream) -> LaunchConfig {
    let attributes = ptr::null();
    LaunchConfig { grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0, stream, attributes, attribute_count: 0 }
}

fn launch(driver: &Driver, function: Function, stream: Stream) {
    // SAFETY: the kernel takes nothing.
    unsafe { driver.launch_kernel_ex(&one_block(stream), function, ptr::null_mut(), ptr::null_mut()) }
        .expect("a launch");
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
