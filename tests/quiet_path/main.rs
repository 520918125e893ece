//! The path of a call that meets its peers: it allocates nothing, logs nothing and never enters the kernel.
//!
//! Allocations and log records are counted in the calling threads, whatever they wait for. System calls are counted
//! by a filter on the calling thread (see `syscalls`), in three ways: a world of one rank, which meets its peers
//! always; two ranks driven by one thread, where the second to start finds everything there; two threads, where a
//! call may only enter the kernel to give its core away or to sleep, or to wake a peer that slept.

mod counters;
mod syscalls;

use std::{
    ffi::c_void,
    ptr,
    sync::{Arc, Barrier, mpsc},
    thread,
    time::Duration,
};

use counters::{Quiet, allocations_and_records};
use tutti::{
    capi::{
        collectives::{tutti_all_gather, tutti_all_reduce, tutti_barrier, tutti_broadcast, tutti_sendrecv},
        request::{tutti_request_free, tutti_request_wait, tutti_start},
        types::{tutti_call_t, tutti_group_t},
        world::tutti_world_create_local,
    },
    communicator::{Call, Descriptor, Letter},
    config::{GroupOptions, Selection, Timeout, WorldOptions},
    dtype::{Collective, DType, Op},
    group::Group,
};

#[global_allocator]
static ALLOCATOR: counters::Counting = counters::Counting;

/// Elements of a call that travels inline, and of one that is pipelined: nine chunks of 32 KiB.
const SMALL: usize = 64;
const LARGE: usize = 72 * 1024;
const SMALL_CALLS: usize = 1000;
const LARGE_CALLS: usize = 50;
/// A test that has not ended by then hangs.
const WATCHDOG: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    AllReduce,
    Broadcast,
    AllGather,
    Barrier,
    /// A message to the next rank and one from the rank before, which with one rank is the rank itself.
    Letters,
}

const EVERYTHING: [What; 5] = [What::AllReduce, What::Broadcast, What::AllGather, What::Barrier, What::Letters];

/// One rank: a group to call from Rust, another to call from C, and memory for both.
struct Rank {
    group: Arc<Group>,
    handle: *mut tutti_group_t,
    send: Vec<f32>,
    recv: Vec<f32>,
}

// SAFETY: handles may be used from any thread.
unsafe impl Send for Rank {}

fn world(size: u32) -> Vec<Rank> {
    let group = GroupOptions { communicators: Selection::parse("=shm").unwrap(), ..GroupOptions::default() };
    let groups = Group::world_local(size, None, WorldOptions { group, ..WorldOptions::default() }).unwrap();
    let mut handles = vec![ptr::null_mut(); size as usize];
    // SAFETY: there is room for all handles; NULL means the defaults.
    let status = unsafe { tutti_world_create_local(size as i32, ptr::null(), ptr::null(), handles.as_mut_ptr()) };
    assert_eq!(status, 0);
    let rank = |(group, handle)| Rank { group, handle, send: vec![1.0; LARGE], recv: vec![0.0; LARGE * size as usize] };
    groups.into_iter().zip(handles).map(rank).collect()
}

impl Rank {
    /// The ranks after and before this one.
    fn neighbours(&self) -> (u32, u32) {
        let (rank, size) = (self.group.rank(), self.group.size());
        ((rank + 1) % size, (rank + size - 1) % size)
    }

    fn letters(&mut self, count: usize) -> [Letter; 2] {
        let ((to, from), count) = (self.neighbours(), count as u64);
        // SAFETY: both buffers hold what the largest call needs, and whoever asks waits for both letters.
        unsafe {
            [
                Letter::send(to, 0, DType::Float32, self.send.as_ptr().cast(), count),
                Letter::receive(from, 0, DType::Float32, self.recv.as_mut_ptr().cast(), count),
            ]
        }
    }

    fn call_from_rust(&mut self, what: What, count: usize) {
        if what == What::Letters {
            let letters = self.letters(count);
            assert_eq!(self.group.exchange(&letters, Timeout::Default).unwrap(), count as u64);
            return;
        }
        let (collective, count) = match what {
            What::AllReduce => (Collective::AllReduce, count),
            What::Broadcast => (Collective::Broadcast, count),
            What::AllGather => (Collective::AllGather, count),
            What::Barrier | What::Letters => (Collective::Barrier, 0),
        };
        let dtype = if what == What::Barrier { DType::Bytes } else { DType::Float32 };
        let descriptor = Descriptor { collective, dtype, op: Op::Sum, root: 0, flags: 0, count: count as u64 };
        let call = Call::new(descriptor, self.send.as_ptr().cast(), self.recv.as_mut_ptr().cast());
        self.group.run(call, Timeout::Default).unwrap();
    }

    fn call_from_c(&mut self, what: What, count: usize) {
        let (group, send, recv) = (self.handle, self.send.as_ptr().cast(), self.recv.as_mut_ptr().cast());
        let (float32, sum) = (DType::Float32 as i32, Op::Sum as i32);
        let (to, from) = self.neighbours();
        // SAFETY: both buffers hold what the largest call of this world needs.
        let status = unsafe {
            match what {
                What::AllReduce => tutti_all_reduce(group, send, recv, count, float32, sum, ptr::null_mut()),
                What::Broadcast => tutti_broadcast(group, send, recv, count, float32, 0, ptr::null_mut()),
                What::AllGather => tutti_all_gather(group, send, recv, count, float32, ptr::null_mut()),
                What::Barrier => tutti_barrier(group, ptr::null_mut()),
                What::Letters => {
                    let (to, from) = (to as i32, from as i32);
                    tutti_sendrecv(group, send, count, to, recv, count, from, float32, ptr::null_mut())
                }
            }
        };
        assert_eq!(status, 0);
    }

    /// Every kind of call often, each handed to `measure`.
    fn make_calls(&mut self, mut measure: impl FnMut(What, usize, &mut dyn FnMut())) {
        for (count, calls) in [(SMALL, SMALL_CALLS), (LARGE, LARGE_CALLS)] {
            for what in EVERYTHING {
                // The first calls of a kind may make what they keep.
                for _ in 0..10 {
                    self.call_from_rust(what, count);
                    self.call_from_c(what, count);
                }
                for _ in 0..calls {
                    measure(what, count, &mut || self.call_from_rust(what, count));
                    measure(what, count, &mut || self.call_from_c(what, count));
                }
            }
        }
    }
}

#[test]
fn calls_allocate_nothing_and_log_nothing() {
    counters::listen();
    let _watchdog = watchdog();
    for size in [1, 2] {
        thread::scope(|scope| {
            for mut rank in world(size) {
                scope.spawn(move || {
                    rank.make_calls(|what, count, call| {
                        let before = allocations_and_records();
                        call();
                        assert_eq!(
                            allocations_and_records() - before,
                            Quiet::default(),
                            "{what:?} of {count}, {size} ranks"
                        );
                    });
                });
            }
        });
    }
}

#[test]
fn a_world_of_one_never_enters_the_kernel() {
    let _watchdog = watchdog();
    // Made before, since the filter's mark would be taken for an offset into the shared memory that is mapped.
    let mut ranks = world(1);
    under_filter(move || {
        ranks.remove(0).make_calls(|what, count, call| {
            let made = syscalls::during(call);
            assert_eq!(made, Vec::<i64>::new(), "{what:?} of {count}");
        });
    });
}

#[test]
fn a_call_that_finds_its_peers_there_never_enters_the_kernel() {
    let _watchdog = watchdog();
    let mut ranks = world(2);
    under_filter(move || {
        for (count, calls) in [(SMALL, SMALL_CALLS), (LARGE, LARGE_CALLS)] {
            for what in EVERYTHING {
                // The first calls of a kind may take memory from the system, which the later ones then have.
                for call in 0..calls + 10 {
                    let made = syscalls::during(&mut || start_and_wait(&mut ranks, what, count));
                    assert!(call < 10 || made.is_empty(), "{what:?} of {count}: {made:?}");
                }
            }
        }
    });
}

/// Starts a call on all ranks and waits for all, in one thread.
fn start_and_wait(ranks: &mut [Rank], what: What, count: usize) {
    let collective = match what {
        What::AllReduce => Collective::AllReduce,
        What::Broadcast => Collective::Broadcast,
        What::AllGather => Collective::AllGather,
        What::Barrier => Collective::Barrier,
        What::Letters => Collective::Send,
    };
    let mut requests = [ptr::null_mut(); 2];
    for (rank, request) in ranks.iter_mut().zip(&mut requests) {
        let receives = what == What::Letters && rank.group.rank() == 1;
        // SAFETY: all zero is a call of nothing.
        let mut call: tutti_call_t = unsafe { std::mem::zeroed() };
        call.struct_size = size_of::<tutti_call_t>();
        call.collective = if receives { Collective::Recv } else { collective } as i32;
        call.peer = if what == What::Letters { 1 - rank.group.rank() as i32 } else { 0 };
        if what != What::Barrier {
            (call.dtype, call.send_count) = (DType::Float32 as i32, count);
            (call.send, call.recv) = (rank.send.as_ptr().cast(), rank.recv.as_mut_ptr().cast::<c_void>());
        }
        // SAFETY: the buffers hold what the call needs and outlive it.
        assert_eq!(unsafe { tutti_start(rank.handle, &call, request) }, 0);
    }
    for request in requests {
        // SAFETY: a request that was just started, and is freed once.
        assert_eq!(unsafe { (tutti_request_wait(request, 0), tutti_request_free(request)) }, (0, 0));
    }
}

#[test]
fn two_threads_enter_the_kernel_only_to_wait_for_each_other() {
    let _watchdog = watchdog();
    let together = thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
    let begin = Arc::new(Barrier::new(2));
    let ranks = world(2).into_iter().map(|mut rank| {
        let begin = begin.clone();
        start_under_filter(move || {
            begin.wait();
            let mut met = [0; EVERYTHING.len()];
            rank.make_calls(|what, count, call| {
                let made = syscalls::during(call);
                // What comes after patience has run out, looking for the dead, is no part of this path.
                let waits = [libc::SYS_sched_yield, libc::SYS_futex];
                let first = made.first();
                assert!(first.is_none_or(|first| waits.contains(first)), "{what:?} of {count}: {made:?}");
                met[what as usize] += usize::from(made.is_empty());
            });
            met
        })
    });
    for met in ranks.collect::<Vec<_>>() {
        let met = met.recv().expect("a rank panicked");
        println!("calls of each kind that met their peers: {met:?} of {}", 2 * (SMALL_CALLS + LARGE_CALLS));
        assert!(!together || met.iter().all(|calls| *calls > 0), "the two never met: {met:?}");
    }
}

#[test]
fn the_meters_see_an_allocation_a_record_and_a_system_call() {
    counters::listen();
    let before = allocations_and_records();
    drop(std::hint::black_box(Box::new(1)));
    log::trace!("seen");
    assert_eq!(allocations_and_records() - before, Quiet { allocations: 2, records: 1 }, "taken and given back");
    under_filter(|| {
        let mut pid = 0;
        // SAFETY: getpid touches no memory.
        let made = syscalls::during(&mut || pid = unsafe { libc::syscall(libc::SYS_getpid) });
        assert_eq!(made, [libc::SYS_getpid]);
        assert_eq!(pid, i64::from(std::process::id()), "the call was not made");
    });
}

/// Runs `body` on a thread whose system calls are counted, and passes its panic on.
fn under_filter(body: impl FnOnce() + Send + 'static) {
    start_under_filter(body).recv().expect("it panicked");
}

fn start_under_filter<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        syscalls::filter_this_thread();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        if let Ok(result) = result {
            let _ = send.send(result);
        } else {
            drop(send);
        }
        // A thread that ends blocks all signals first, the filter's too, and would be killed: it sleeps instead.
        loop {
            thread::park();
        }
    });
    receive
}

/// Ends the process if the test that holds this has not ended in time.
fn watchdog() -> impl Drop {
    struct Watchdog(Option<mpsc::Sender<()>>);
    impl Drop for Watchdog {
        fn drop(&mut self) {
            self.0.take();
        }
    }
    let (over, watch) = mpsc::channel();
    let test = thread::current().name().unwrap_or("a test").to_owned();
    thread::spawn(move || {
        if watch.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{test} hangs");
            std::process::abort();
        }
    });
    Watchdog(Some(over))
}
