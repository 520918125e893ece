//! Worlds of threads, memory with guards around it, and a watchdog.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use tutti::{
    communicator::{Call, Descriptor},
    config::{GroupOptions, Selection, Timeout, WorldOptions},
    dtype::{Collective, DType, Op},
    group::Group,
};

/// A test that has not ended by then hangs; generous, since the machine may be busy.
const WATCHDOG: Duration = Duration::from_secs(300);

/// A world of `size` ranks in this process that uses one communicator alone.
pub(crate) fn world(communicator: &str, size: u32, timeout_ms: i64) -> Vec<Arc<Group>> {
    let group = GroupOptions {
        communicators: Selection::parse(&format!("={communicator}")).unwrap(),
        timeout: Timeout::from_ms(timeout_ms).unwrap(),
        ..GroupOptions::default()
    };
    Group::world_local(size, WorldOptions { group, ..WorldOptions::default() }).unwrap()
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

/// Bytes at a chosen misalignment, with a guard on both sides that must stay what it was.
pub(crate) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

const GUARD: usize = 64;
const GUARD_BYTE: u8 = 0xa5;

impl Buffer {
    pub(crate) fn new(content: &[u8], misalignment: usize) -> Self {
        let mut memory = vec![GUARD_BYTE; content.len() + 2 * GUARD + 64];
        let start = memory.as_ptr().align_offset(64) + GUARD + misalignment;
        memory.resize(start + content.len() + GUARD, GUARD_BYTE);
        memory[start..start + content.len()].copy_from_slice(content);
        Buffer { memory, start, length: content.len() }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    pub(crate) fn address(&mut self) -> *mut u8 {
        self.memory[self.start..].as_mut_ptr()
    }

    pub(crate) fn check_guards(&self) {
        let outside = self.memory[..self.start].iter().chain(&self.memory[self.start + self.length..]);
        assert!(outside.into_iter().all(|byte| *byte == GUARD_BYTE), "bytes outside the buffer were written");
    }
}

pub(crate) fn descriptor(collective: Collective, dtype: DType, op: Op, root: u32, count: usize) -> Descriptor {
    Descriptor { collective, dtype, op, root, flags: 0, count: count as u64 }
}

pub(crate) fn call(descriptor: Descriptor, send: *const u8, recv: *mut u8) -> Call {
    Call { descriptor, send, recv }
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
