//! The gate: who may touch a group's inside.
//!
//! One thread at a time makes a collective call (a second one is told so at once, not made to wait); between and
//! beside calls, any thread that tests or waits for a request may pass for the moment it takes to poll. The gate
//! is one word: passing costs one compare-and-swap and one store.
//!
//! A thread that waits for a request passes again and again, and rests inside; what it leaves open in between is a moment
//! that a thread which wants to make a call may miss for seconds on a busy machine. So that one says that it stands before
//! the gate, and wakes whoever rests inside; until it is in, nobody passes to poll.

use std::{
    cell::UnsafeCell,
    ops::{Deref, DerefMut},
};

use crate::{
    error::{Error, Result},
    sync::{AtomicU32, Ordering, spin_loop},
};

/// Looks at a gate before the core is given away.
const LOOKS: u32 = 100;

const FREE: u32 = 0;
/// Somebody polls; gone in a moment.
const POLLING: u32 = 1;
/// Somebody is in a call, for as long as it takes.
const CALLING: u32 = 2;

/// What a value does when a panic came over whoever was inside.
pub(super) trait Collapse {
    /// Leaves nothing half done that others might wait for.
    fn collapse(&mut self);
}

/// A value behind a gate.
pub(super) struct Gate<T> {
    state: AtomicU32,
    /// Calls that stand before the gate. It hands nothing over, so it asks for no order.
    callers: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is touched only by whoever holds the gate, one at a time: the acquiring exchange that takes it
// pairs with the release store that frees it.
unsafe impl<T: Send> Sync for Gate<T> {}

/// The way inside, open until dropped.
pub(super) struct Inside<'a, T: Collapse>(&'a Gate<T>);

impl<T: Collapse> Gate<T> {
    pub(super) fn new(value: T) -> Self {
        Gate { state: AtomicU32::new(FREE), callers: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// For a call: waits out a poll, refuses where another call is going on. `wake` wakes whoever rests inside.
    #[inline]
    pub(super) fn call(&self, wake: impl Fn()) -> Result<Inside<'_, T>> {
        for _ in 0..LOOKS {
            if let Some(entered) = self.try_call() {
                return entered;
            }
            // Mostly gone in a moment; but a thread that waits for a request may also rest inside.
            spin_loop();
        }
        self.stand_before(wake)
    }

    #[cold]
    fn stand_before(&self, wake: impl Fn()) -> Result<Inside<'_, T>> {
        self.callers.fetch_add(1, Ordering::Relaxed);
        let entered = loop {
            // Every time: whoever was inside may have come to rest only now.
            wake();
            if let Some(entered) = self.try_call() {
                break entered;
            }
            give_way();
        };
        self.callers.fetch_sub(1, Ordering::Relaxed);
        entered
    }

    #[inline]
    fn try_call(&self) -> Option<Result<Inside<'_, T>>> {
        match self.state.compare_exchange_weak(FREE, CALLING, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Some(Ok(Inside(self))),
            Err(CALLING) => Some(Err(occupied())),
            Err(_) => None,
        }
    }

    /// For a poll: `None` where somebody else is inside, who does the polling then, or is about to be.
    pub(super) fn poll(&self) -> Option<Inside<'_, T>> {
        if self.callers.load(Ordering::Relaxed) != 0 {
            return None;
        }
        self.state.compare_exchange(FREE, POLLING, Ordering::Acquire, Ordering::Relaxed).ok().map(|_| Inside(self))
    }
}

/// Gives the core away, to whoever is to leave.
fn give_way() {
    #[cfg(not(loom))]
    rustix::thread::sched_yield();
    #[cfg(loom)]
    spin_loop();
}

/// What a second thread is told.
#[cold]
pub(super) fn occupied() -> Error {
    Error::usage(
        "another thread is in a call on this group; calls of one group must not overlap \
         (make a group per thread, or start requests from one thread)",
    )
}

impl<T: Collapse> Deref for Inside<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: holding the gate is having the value to oneself.
        unsafe { &*self.0.value.get() }
    }
}

impl<T: Collapse> DerefMut for Inside<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T: Collapse> Drop for Inside<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.collapse();
        }
        self.0.state.store(FREE, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    impl Collapse for () {
        fn collapse(&mut self) {}
    }

    #[test]
    fn a_call_comes_in_before_whoever_polls_again_and_again() {
        let gate = Gate::new(());
        let [entered, woken, over] = [const { AtomicBool::new(false) }; 3];
        std::thread::scope(|scope| {
            let Some(polling) = gate.poll() else { panic!("nobody is inside") };
            scope.spawn(|| {
                let inside = gate.call(|| woken.store(true, Ordering::Release)).map_err(drop).unwrap();
                entered.store(true, Ordering::Relaxed);
                while !over.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                drop(inside);
            });
            while !woken.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            drop(polling);
            while !entered.load(Ordering::Relaxed) {
                assert!(gate.poll().is_none(), "the caller was passed by");
                std::thread::yield_now();
            }
            over.store(true, Ordering::Relaxed);
        });
        assert!(gate.poll().is_some(), "the gate stayed shut");
    }
}

#[cfg(all(test, loom))]
mod model {
    use std::sync::Arc;

    use loom::{cell::UnsafeCell, thread};

    use super::*;
    use crate::sync::model::{Model, prove};

    impl Collapse for UnsafeCell<u32> {
        fn collapse(&mut self) {}
    }

    #[test]
    fn model_one_is_inside_and_sees_what_the_last_one_did() {
        let test = (module_path!(), "model_one_is_inside_and_sees_what_the_last_one_did");
        prove(Model { test, preemptions: 3, bugs: &[], spare: &[] }, |_| {
            let gate = Arc::new(Gate::new(UnsafeCell::new(0)));
            let add = |inside: Inside<'_, UnsafeCell<u32>>| {
                // SAFETY: whoever is inside is alone, which is what loom checks.
                inside.with_mut(|count| unsafe { *count += 1 });
                1
            };
            let other = gate.clone();
            let other = thread::spawn(move || other.poll().map_or(0, add) + other.call(|| ()).map_or(0, add));
            let entered = gate.call(|| ()).map_or(0, add) + gate.poll().map_or(0, add) + other.join().unwrap();
            let Some(inside) = gate.poll() else { panic!("the gate stayed shut") };
            // SAFETY: as above.
            assert_eq!(inside.with(|count| unsafe { *count }), entered);
        });
    }
}
