//! Many groups in one process: made from layouts, found by name, used from several threads, ended in any order.
//!
//! The ranks are threads here; what happens to ranks that are processes is in `faults`.

mod dicts;
mod layouts;
mod many;
mod queues;

use std::{
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc},
    time::Duration,
};

use tutti::{
    communicator::{Call, Descriptor},
    config::{GroupOptions, Timeout, WorldOptions},
    dtype::{Collective, DType, Op},
    error::Result,
    group::Group,
};

/// A test that has not ended by then hangs; generous, since the machine may be busy.
const WATCHDOG: Duration = Duration::from_secs(240);
/// The deadline of calls that are not meant to reach it.
const PATIENT: Duration = Duration::from_secs(120);

/// Held for writing by a test that counts what the process has, for reading by all others.
static PROCESS: RwLock<()> = RwLock::new(());

fn together() -> RwLockReadGuard<'static, ()> {
    PROCESS.read().unwrap_or_else(PoisonError::into_inner)
}

fn alone() -> RwLockWriteGuard<'static, ()> {
    PROCESS.write().unwrap_or_else(PoisonError::into_inner)
}

fn world(size: u32) -> Vec<Arc<Group>> {
    let group = GroupOptions { timeout: Timeout::After(PATIENT), ..GroupOptions::default() };
    Group::world_local(size, None, WorldOptions { group, ..WorldOptions::default() }).unwrap()
}

/// Runs one thread for every item; a panic of any of them, or a hang, fails the test.
fn on_threads<I: Send, T: Send>(items: Vec<I>, body: impl Fn(usize, I) -> T + Sync) -> Vec<T> {
    let (over, watch) = mpsc::channel::<()>();
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    std::thread::spawn(move || {
        if watch.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{name} hangs");
            std::process::abort();
        }
    });
    let body = &body;
    let results = std::thread::scope(|scope| {
        let threads: Vec<_> = items
            .into_iter()
            .enumerate()
            .map(|(index, item)| {
                scope.spawn(move || {
                    // The others would only wait for it.
                    let bomb = Bomb;
                    let result = body(index, item);
                    std::mem::forget(bomb);
                    result
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    drop(over);
    results
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// An all_reduce of one number over the group.
fn sum(group: &Arc<Group>, number: i64) -> Result<i64> {
    let (send, mut recv) = ([number], [0_i64]);
    let descriptor =
        Descriptor { collective: Collective::AllReduce, dtype: DType::Int64, op: Op::Sum, root: 0, flags: 0, count: 1 };
    let call = Call::new(descriptor, send.as_ptr().cast(), recv.as_mut_ptr().cast());
    group.run(call, Timeout::Default).map(|()| recv[0])
}

/// xorshift64*: numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
