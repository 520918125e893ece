//! What takes the place of `std`'s atomics, and of the kernel's futex, in the models.
//!
//! Each wrapper passes on to loom, notes which line of the crate asked for which order, and can weaken one such line:
//! [`super::model`] thereby proves that every order in the protocols is needed and that the models would notice its
//! loss. Memory handed over is registered by address ([`watch`]), so that the protocols' raw copies stay as they are.

use std::{cell::RefCell, collections::BTreeSet, ops::Range, panic::Location, sync::LazyLock};

use loom::cell::UnsafeCell;
pub(crate) use loom::{hint::spin_loop, sync::atomic::Ordering};

/// A line that asks for an order: file and line.
pub(super) type Site = (&'static str, u32);

/// The line to weaken in this process, as "file:line".
pub(super) const WEAKEN: &str = "TUTTI_MODEL_WEAKEN";

thread_local! {
    static SITES: RefCell<BTreeSet<Site>> = const { RefCell::new(BTreeSet::new()) };
    static WATCHED: RefCell<Vec<(Range<usize>, UnsafeCell<()>)>> = const { RefCell::new(Vec::new()) };
}

static WEAKENED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var(WEAKEN).ok());

/// Lines seen so far on this thread.
pub(super) fn sites() -> BTreeSet<Site> {
    SITES.with_borrow(Clone::clone)
}

/// Whether the calling line is the one to weaken.
fn is_weakened(at: &'static Location<'static>) -> bool {
    SITES.with_borrow_mut(|sites| sites.insert((at.file(), at.line())));
    WEAKENED.as_ref().is_some_and(|weakened| *weakened == format!("{}:{}", at.file(), at.line()))
}

#[track_caller]
fn order(asked: Ordering) -> Ordering {
    if asked != Ordering::Relaxed && is_weakened(Location::caller()) { Ordering::Relaxed } else { asked }
}

#[track_caller]
pub(crate) fn fence(asked: Ordering) {
    if !is_weakened(Location::caller()) {
        loom::sync::atomic::fence(asked);
    }
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        #[derive(Debug, Default)]
        pub(crate) struct $name(loom::sync::atomic::$name);

        #[allow(dead_code, reason = "both integers offer the same")]
        impl $name {
            pub(crate) fn new(value: $value) -> Self {
                $name(loom::sync::atomic::$name::new(value))
            }

            #[track_caller]
            pub(crate) fn load(&self, asked: Ordering) -> $value {
                self.0.load(order(asked))
            }

            #[track_caller]
            pub(crate) fn store(&self, value: $value, asked: Ordering) {
                self.0.store(value, order(asked));
            }

            #[track_caller]
            pub(crate) fn fetch_add(&self, value: $value, asked: Ordering) -> $value {
                self.0.fetch_add(value, order(asked))
            }

            #[track_caller]
            pub(crate) fn fetch_sub(&self, value: $value, asked: Ordering) -> $value {
                self.0.fetch_sub(value, order(asked))
            }

            #[track_caller]
            pub(crate) fn compare_exchange(
                &self,
                from: $value,
                to: $value,
                won: Ordering,
                lost: Ordering,
            ) -> Result<$value, $value> {
                self.0.compare_exchange(from, to, order(won), order(lost))
            }

            #[track_caller]
            pub(crate) fn compare_exchange_weak(
                &self,
                from: $value,
                to: $value,
                won: Ordering,
                lost: Ordering,
            ) -> Result<$value, $value> {
                self.0.compare_exchange_weak(from, to, order(won), order(lost))
            }
        }
    };
}

atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);

/// Forgets what was watched. To be called first in every execution of a model.
pub(super) fn forget() {
    WATCHED.with_borrow_mut(Vec::clear);
}

/// Watches `length` bytes from `start` on as one piece: whoever writes it must have it to itself.
pub(crate) fn watch(start: *const u8, length: usize) {
    let start = start as usize;
    WATCHED.with_borrow_mut(|watched| watched.push((start..start + length, UnsafeCell::new(()))));
}

/// See [`super::reads`].
pub(crate) fn reads<T>(at: *const T) {
    touch(at, |cell| cell.with(|_| ()));
}

/// See [`super::writes`].
pub(crate) fn writes<T>(at: *const T) {
    touch(at, |cell| cell.with_mut(|_| ()));
}

/// Memory that is not watched is a rank's own.
fn touch<T>(at: *const T, access: impl FnOnce(&UnsafeCell<()>)) {
    let at = at as usize;
    WATCHED.with_borrow(|watched| {
        if let Some((_, cell)) = watched.iter().find(|(range, _)| range.contains(&at)) {
            access(cell);
        }
    });
}

/// The kernel's futex: compares and falls asleep in one step, wakes only when told, and knows no time. So a lost
/// wake-up is a deadlock, which loom reports.
pub(crate) mod futex {
    use std::{collections::BTreeMap, time::Duration};

    use loom::sync::{Condvar, Mutex};

    use super::{AtomicU32, Ordering};

    loom::lazy_static! {
        /// How often each word has been woken.
        static ref WAKES: (Mutex<BTreeMap<usize, u32>>, Condvar) = (Mutex::new(BTreeMap::new()), Condvar::new());
    }

    pub(crate) fn wait(word: &AtomicU32, expected: u32, _: Duration) {
        let Ok(mut wakes) = WAKES.0.lock() else { return };
        if word.load(Ordering::Relaxed) != expected {
            return;
        }
        let address = std::ptr::from_ref(word) as usize;
        let before = wakes.get(&address).copied();
        while wakes.get(&address).copied() == before {
            let Ok(woken) = WAKES.1.wait(wakes) else { return };
            wakes = woken;
        }
    }

    pub(crate) fn wake(word: &AtomicU32) {
        let Ok(mut wakes) = WAKES.0.lock() else { return };
        *wakes.entry(std::ptr::from_ref(word) as usize).or_default() += 1;
        WAKES.1.notify_all();
    }
}
