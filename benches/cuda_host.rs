//! The host's share of a call of a CUDA group: nanoseconds of `tutti_all_reduce`, and how often it asks the driver.
//!
//! The driver is the stub of the tests with launches that do nothing, so there is no kernel, no GPU, and nothing here
//! says how fast a call is on one: what is timed is the way through the library, whatever the driver then costs. The
//! same calls of the stub alone are timed beside it and taken off. One rank calls, with the device's context current,
//! as frameworks have it. The median over rounds is printed; rows take turns, so that a machine that gets slower does
//! so for all. `cargo bench --bench cuda_host`; with a file name behind `--`, every time is written there, one row a
//! line.

#[path = "../tests/cuda/stub/compile.rs"]
mod stub;

use std::{
    ffi::{CStr, c_char, c_void},
    fmt::Write,
    hint::black_box,
    ptr,
    time::Instant,
};

use libloading::os::unix::{Library, RTLD_NOW, Symbol};
use tutti::{
    capi::{
        collectives::tutti_all_reduce, text::tutti_last_error, types::tutti_group_t, world::tutti_world_create_local,
    },
    cuda::{
        device::Device,
        driver::{self, LaunchAttribute, LaunchConfig, Stream},
    },
    dtype::{DType, Op},
};

/// Calls of a round.
const CALLS: u32 = 2000;
const ROUNDS: usize = 101;
/// The aims: of a call on one stream that is one launch, without what the driver takes.
const AIM_NS: f64 = 300.0;

fn main() {
    // SAFETY: no other thread runs yet.
    unsafe {
        std::env::set_var("TUTTI_CUDA_LIBRARY", stub::folder().join("libcuda.so.1"));
        std::env::set_var("STUB_NO_LAUNCH", "1");
        std::env::remove_var("TUTTI_CUDA_PLAN");
    }
    let file = std::env::args().skip(1).find(|argument| argument != "--bench");
    let device = Device::open(0).expect("the stub has a device");
    let _entered = device.enter().expect("the device's context");
    let streams = [stream(device), stream(device)];
    let mut rows: Vec<Row> = Vec::new();
    for (world, bytes) in [(2, 8), (2, 64 << 10), (2, 1 << 20), (2, 32 << 20), (8, 64 << 10)] {
        let group = Group::new(device, world, bytes);
        let call = move |stream| group.all_reduce(stream);
        rows.push(Row::new(world, bytes, "one stream", move |_| call(streams[0])));
    }
    let group = Group::new(device, 2, 64 << 10);
    let call = move |stream| group.all_reduce(stream);
    rows.push(Row::new(2, 64 << 10, "two streams in turn", move |turn| call(streams[turn as usize % 2])));
    let group = Group::new(device, 2, 64 << 10);
    let captured = stream(device);
    begin_capture(captured);
    rows.push(Row::new(2, 64 << 10, "captured", move |_| group.all_reduce(captured)));
    let stubs = Stub::new(device);
    rows.iter_mut().for_each(Row::count);
    let mut stub_rounds = Vec::new();
    for _ in 0..ROUNDS {
        stub_rounds.push(stubs.round(streams));
        rows.iter_mut().for_each(Row::round);
    }
    let cost: [f64; 4] = std::array::from_fn(|which| median(stub_rounds.iter().map(|round| round[which])));
    println!("world      bytes  calls                 ns  of them ours  launches  other calls of the driver");
    for row in &rows {
        let stub = row.driver_ns(cost);
        let all = median(row.rounds.iter().copied());
        println!(
            "{:5} {:10}  {:<19} {all:5.0}  {:12.0}  {:8}  {}",
            row.world,
            row.bytes,
            row.what,
            all - stub,
            row.launches,
            row.others()
        );
    }
    println!(
        "a call of the stub: captured? {:.0} ns, launch {:.0}, record {:.0}, wait {:.0}",
        cost[0], cost[1], cost[2], cost[3]
    );
    let within = rows.iter().filter(|row| row.what == "one stream" && row.launches == 1);
    let worst = within.map(|row| median(row.rounds.iter().copied()) - row.driver_ns(cost)).fold(0.0, f64::max);
    println!("aim: at most {AIM_NS:.0} ns of ours, one launch and two other calls; {worst:.0} ns here");
    if let Some(file) = file {
        std::fs::write(file, raw(&rows, cost)).expect("the rows can be written");
    }
}

/// Calls of one kind.
struct Row {
    world: usize,
    bytes: usize,
    what: &'static str,
    call: Box<dyn Fn(u32)>,
    launches: u64,
    /// Whether a stream is captured, events recorded, waits for an event, and everything else.
    other: [u64; 4],
    /// Nanoseconds of a call, for every round.
    rounds: Vec<f64>,
}

impl Row {
    fn new(world: usize, bytes: usize, what: &'static str, call: impl Fn(u32) + 'static) -> Self {
        Row { world, bytes, what, call: Box::new(call), launches: 0, other: [0; 4], rounds: Vec::new() }
    }

    /// What two calls ask the driver, halved: two, since streams may take turns. Those before look at the buffers.
    fn count(&mut self) {
        (0..4).for_each(&self.call);
        let named = [c"cuLaunchKernelEx", c"cuStreamIsCapturing", c"cuEventRecord", c"cuStreamWaitEvent", c"*"];
        let before = named.map(asked);
        (0..2).for_each(&self.call);
        let mut counts = named.map(asked);
        counts.iter_mut().zip(before).for_each(|(count, before)| *count = (*count - before) / 2);
        self.launches = counts[0];
        self.other = [counts[1], counts[2], counts[3], counts[4] - counts[..4].iter().sum::<u64>()];
    }

    fn others(&self) -> u64 {
        self.other.iter().sum()
    }

    fn round(&mut self) {
        let start = Instant::now();
        (0..CALLS).for_each(&self.call);
        self.rounds.push(start.elapsed().as_nanos() as f64 / f64::from(CALLS));
    }

    /// What the stub takes of a call.
    fn driver_ns(&self, cost: [f64; 4]) -> f64 {
        let [capturing, record, wait, _] = self.other.map(|count| count as f64);
        capturing * cost[0] + self.launches as f64 * cost[1] + record * cost[2] + wait * cost[3]
    }
}

/// A rank's group, and its buffer.
struct Group {
    handle: *mut tutti_group_t,
    address: u64,
    count: usize,
}

impl Group {
    /// Rank 0 of a world on one device; the others never come, which no launch that does nothing notices. (Two devices
    /// would first be asked whether they reach each other's memory, by kernels and copies.)
    fn new(device: &Device, world: usize, bytes: usize) -> Self {
        let devices = vec![0; world];
        let mut ranks = vec![ptr::null_mut(); world];
        let mut address = 0;
        // SAFETY: as many devices and handles as said; the memory is kept until the process ends.
        unsafe {
            let made = tutti_world_create_local(world as i32, devices.as_ptr(), ptr::null(), ranks.as_mut_ptr());
            succeed(made);
            device.driver.mem_alloc(&mut address, bytes).expect("memory");
        }
        Group { handle: ranks[0], address, count: bytes / 4 }
    }

    fn all_reduce(&self, stream: Stream) {
        let address = self.address as *mut c_void;
        let (dtype, op) = (DType::Float32 as i32, Op::Sum as i32);
        // SAFETY: the handle lives until the process ends, the buffer has `count` elements.
        succeed(unsafe { tutti_all_reduce(self.handle, address, address, black_box(self.count), dtype, op, stream) });
    }
}

fn succeed(status: i32) {
    // SAFETY: the text is this thread's and ends with NUL.
    assert_eq!(status, 0, "{}", unsafe { CStr::from_ptr(tutti_last_error()) }.to_string_lossy());
}

/// The same calls of the driver without the library.
struct Stub {
    device: &'static Device,
    kernel: driver::Function,
    event: driver::Event,
}

impl Stub {
    fn new(device: &'static Device) -> Self {
        let (mut module, mut kernel, mut event) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        // SAFETY: all are writable, and the texts end with NUL. The stub looks for a kernel by its name alone.
        unsafe {
            device.driver.module_load_data(&mut module, c".entry".as_ptr().cast()).expect("a module");
            let name = c"all_reduce_push_one_shot_float32";
            device.driver.module_get_function(&mut kernel, module, name.as_ptr()).expect("a kernel");
            device.driver.event_create(&mut event, driver::EVENT_DISABLE_TIMING).expect("an event");
        }
        Stub { device, kernel, event }
    }

    /// Nanoseconds of each of the four.
    fn round(&self, streams: [Stream; 2]) -> [f64; 4] {
        let driver = self.device.driver;
        let early = LaunchAttribute { id: driver::LAUNCH_PROGRAMMATIC, padding: 0, value: [1; 16] };
        let config = LaunchConfig {
            grid: [1, 1, 1],
            block: [32, 1, 1],
            shared_bytes: 0,
            stream: streams[0],
            attributes: &raw const early,
            attribute_count: 1,
        };
        let time = |body: &dyn Fn()| {
            let start = Instant::now();
            (0..CALLS).for_each(|_| body());
            start.elapsed().as_nanos() as f64 / f64::from(CALLS)
        };
        let mut status = 0;
        let status: *mut i32 = &mut status;
        // SAFETY: streams, kernel and event live until the process ends, `status` is writable, and a launch does nothing.
        unsafe {
            [
                time(&|| driver.stream_is_capturing(streams[0], status).unwrap()),
                time(&|| driver.launch_kernel_ex(&config, self.kernel, ptr::null_mut(), ptr::null_mut()).unwrap()),
                time(&|| driver.event_record(self.event, streams[0]).unwrap()),
                time(&|| driver.stream_wait_event(streams[0], self.event, 0).unwrap()),
            ]
        }
    }
}

fn stream(device: &Device) -> Stream {
    let mut stream = ptr::null_mut();
    // SAFETY: `stream` is writable; the stream is kept until the process ends.
    unsafe { device.driver.stream_create(&mut stream, driver::STREAM_NON_BLOCKING) }.expect("a stream");
    stream
}

fn begin_capture(stream: Stream) {
    // SAFETY: the function has these arguments in the driver.
    let begin: Symbol<unsafe extern "C" fn(Stream, i32) -> i32> = unsafe { symbol(c"cuStreamBeginCapture_v2") };
    // SAFETY: the stream lives.
    assert_eq!(unsafe { begin(stream, 0) }, 0);
}

/// How often a function of the stub was called so far; `*`: all of them.
fn asked(function: &CStr) -> u64 {
    // SAFETY: the stub's function takes a text and returns a number.
    let calls: Symbol<unsafe extern "C" fn(*const c_char) -> u64> = unsafe { symbol(c"stub_calls") };
    // SAFETY: the text ends with NUL.
    unsafe { calls(function.as_ptr()) }
}

/// # Safety
/// The stub's function of this name must be of this type.
unsafe fn symbol<T>(name: &CStr) -> Symbol<T> {
    static LIBRARY: std::sync::OnceLock<Library> = std::sync::OnceLock::new();
    let path = stub::folder().join("libcuda.so.1");
    // SAFETY: it is loaded already.
    let library = LIBRARY.get_or_init(|| unsafe { Library::open(Some(path), RTLD_NOW) }.expect("the stub"));
    // SAFETY: the caller names a function of this type.
    unsafe { library.get(name) }.expect("a function of the stub")
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn raw(rows: &[Row], cost: [f64; 4]) -> String {
    let mut text = String::new();
    for row in rows {
        let rounds: Vec<_> = row.rounds.iter().map(|ns| format!("{ns:.1}")).collect();
        let _ = writeln!(
            text,
            "{{\"world\": {}, \"bytes\": {}, \"calls\": \"{}\", \"launches\": {}, \"other_driver_calls\": {}, \
             \"stub_ns\": {:.1}, \"ns\": [{}]}}",
            row.world,
            row.bytes,
            row.what,
            row.launches,
            row.others(),
            row.driver_ns(cost),
            rounds.join(", ")
        );
    }
    text
}
