//! Worlds of threads, memory with guards around it, and a watchdog.

use std::{
    cell::OnceCell,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use rustix::process::Pid;
use tutti::{
    communicator::{Call, Descriptor},
    config::{GroupOptions, Selection, Timeout, WorldOptions},
    dtype::{Collective, DType, Op},
    group::Group,
};

use crate::device::{self, Slot};

/// A test that has not ended by then hangs; generous, since the machine may be busy.
const WATCHDOG: Duration = Duration::from_secs(300);
/// Ranks on a card wait no longer.
const PATIENCE_ON_CARD: Duration = Duration::from_secs(30);

/// A world of `size` ranks in this process that uses one communicator alone.
pub(crate) fn world(communicator: &str, size: u32, timeout_ms: i64) -> Vec<Arc<Group>> {
    planned_world(communicator, size, timeout_ms, "")
}

/// The same, with rows of a plan.
pub(crate) fn planned_world(communicator: &str, size: u32, timeout_ms: i64, plan: &str) -> Vec<Arc<Group>> {
    let mut timeout = Timeout::from_ms(timeout_ms).unwrap();
    if device::has(communicator) && std::env::var_os("TUTTI_CUDA_CARD").is_some() {
        // What hangs shall be named before somebody ends the test.
        timeout = timeout.duration().map_or(timeout, |patience| Timeout::After(patience.min(PATIENCE_ON_CARD)));
    }
    let group = GroupOptions {
        plan: Some(plan.to_owned()),
        communicators: Selection::parse(&format!("={communicator}")).unwrap(),
        timeout,
        ..GroupOptions::default()
    };
    let devices = device::has(communicator).then(|| vec![0; size as usize]);
    if devices.is_some() {
        device::prepare();
    }
    Group::world_local(size, devices.as_deref(), WorldOptions { group, ..WorldOptions::default() }).unwrap()
}

/// Ends the process if this test has not ended in time; until then to be kept.
pub(crate) fn watchdog() -> mpsc::Sender<()> {
    let (over, watch) = mpsc::channel();
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    std::thread::spawn(move || {
        if watch.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{name} hangs");
            std::process::abort();
        }
    });
    over
}

/// Waits until so many threads have put themselves on the list, and all of them sleep in the kernel.
pub(crate) fn until_asleep(threads: &Mutex<Vec<Pid>>, count: usize) {
    let sleeps = |thread: &Pid| {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{}/stat", thread.as_raw_nonzero())).unwrap();
        // The state follows the name, which may hold anything.
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('S'))
    };
    loop {
        let threads = threads.lock().unwrap().clone();
        if threads.len() == count && threads.iter().all(sleeps) {
            return;
        }
        std::thread::yield_now();
    }
}

/// Runs one thread per rank; a panic of any of them fails the test.
pub(crate) fn on_all_ranks<T: Send>(groups: &[Arc<Group>], body: impl Fn(&Arc<Group>) -> T + Sync) -> Vec<T> {
    let results = std::thread::scope(|scope| {
        let body = &body;
        let threads: Vec<_> = groups
            .iter()
            .map(|group| {
                scope.spawn(move || {
                    // A rank that panics must not leave the others waiting.
                    let guard = AbortOnPanic(group);
                    device::become_rank(group);
                    let result = body(group);
                    std::mem::forget(guard);
                    result
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    results.into_iter().map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
}

struct AbortOnPanic<'a>(&'a Arc<Group>);

impl Drop for AbortOnPanic<'_> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where the buffers of each rank lie.
#[derive(Clone, Copy)]
pub(crate) enum Memory<'a> {
    /// Memory of its own, of the host or the group's device.
    Private,
    /// Memory that `Group::allocate` gave to each rank, with room for two buffers.
    Registered(&'a [Registered]),
}

/// A rank's registered memory.
pub(crate) struct Registered(*mut u8);

// SAFETY: one rank's thread at a time uses it.
unsafe impl Sync for Registered {}
// SAFETY: as above.
unsafe impl Send for Registered {}

/// Bytes of a rank's registered memory.
const REGISTERED: usize = 2 << 20;

impl Registered {
    /// Memory for each rank of a world.
    pub(crate) fn of(groups: &[Arc<Group>]) -> Vec<Registered> {
        on_all_ranks(groups, |group| {
            let (give, take) = mpsc::channel();
            let deliver = move |start: *mut u8| drop(give.send(Registered(start)));
            group.allocate(REGISTERED, Box::new(deliver)).unwrap();
            take.recv().unwrap()
        })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        tutti::group::free_memory(self.0).unwrap();
    }
}

/// Bytes at a chosen misalignment, with a guard on both sides that must stay what it was.
pub(crate) struct Buffer {
    memory: *mut u8,
    size: usize,
    start: usize,
    length: usize,
    /// What `memory` is, unless that is registered memory of the host.
    _owned: Vec<u8>,
    /// Where it really lies, in a CUDA group; `memory` is then what it was filled from.
    on_device: Option<OnDevice>,
}

struct OnDevice {
    slot: Slot,
    /// What was there when somebody looked.
    seen: OnceCell<Vec<u8>>,
}

const GUARD: usize = 64;
const GUARD_BYTE: u8 = 0xa5;

impl Buffer {
    /// A buffer in memory of its own.
    pub(crate) fn new(content: &[u8], misalignment: usize) -> Self {
        Buffer::within(Memory::Private, 0, 0, content, misalignment)
    }

    /// The first or second (`which`) buffer of a rank.
    pub(crate) fn within(memory: Memory, rank: u32, which: usize, content: &[u8], misalignment: usize) -> Self {
        let size = content.len() + 3 * GUARD + misalignment;
        let registered = match memory {
            Memory::Private => None,
            Memory::Registered(ranks) => {
                assert!(size <= REGISTERED / 2);
                Some(ranks[rank as usize].0.wrapping_add(which * REGISTERED / 2))
            }
        };
        let mut owned = match registered {
            Some(_) if !device::is_here() => Vec::new(),
            _ => vec![0; size + GUARD],
        };
        let memory = registered.filter(|_| owned.is_empty()).unwrap_or_else(|| {
            let start = owned.as_ptr().align_offset(GUARD);
            owned[start..].as_mut_ptr()
        });
        let (start, length) = (GUARD + misalignment, content.len());
        // SAFETY: `size` bytes that nobody else uses yet.
        let all = unsafe { std::slice::from_raw_parts_mut(memory, size) };
        all.fill(GUARD_BYTE);
        all[start..start + length].copy_from_slice(content);
        let on_device = device::is_here().then(|| OnDevice {
            slot: registered.map_or_else(|| Slot::new(all), |there| Slot::at(there, all)),
            seen: OnceCell::new(),
        });
        Buffer { memory, size, start, length, _owned: owned, on_device }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.all()[self.start..self.start + self.length]
    }

    /// For a call; what was seen before is forgotten.
    pub(crate) fn address(&mut self) -> *mut u8 {
        let memory = match &mut self.on_device {
            Some(there) => {
                there.seen.take();
                there.slot.address()
            }
            None => self.memory,
        };
        memory.wrapping_add(self.start)
    }

    pub(crate) fn check_guards(&mut self) {
        let (start, end) = (self.start, self.start + self.length);
        let all = self.all();
        let outside = all[..start].iter().chain(&all[end..]);
        assert!(outside.into_iter().all(|byte| *byte == GUARD_BYTE), "bytes outside the buffer were written");
    }

    fn all(&self) -> &[u8] {
        match &self.on_device {
            Some(there) => there.seen.get_or_init(|| there.slot.read(self.size)),
            // SAFETY: `size` bytes of memory that this buffer has to itself between calls.
            None => unsafe { std::slice::from_raw_parts(self.memory, self.size) },
        }
    }
}

pub(crate) fn descriptor(collective: Collective, dtype: DType, op: Op, root: u32, count: usize) -> Descriptor {
    Descriptor { collective, dtype, op, root, flags: 0, count: count as u64 }
}

pub(crate) fn call(descriptor: Descriptor, send: *const u8, recv: *mut u8) -> Call {
    Call { stream: device::stream(), ..Call::new(descriptor, send, recv) }
}

/// xorshift64*: numbers that are the same on every rank, from a seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
