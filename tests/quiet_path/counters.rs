//! Counts the calling thread's allocations and log records.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    ops::Sub,
};

thread_local! {
    static SEEN: Cell<Quiet> = const { Cell::new(Quiet { allocations: 0, records: 0 }) };
}

/// What a quiet path has none of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quiet {
    pub(crate) allocations: u64,
    pub(crate) records: u64,
}

impl Sub for Quiet {
    type Output = Quiet;

    fn sub(self, before: Quiet) -> Quiet {
        Quiet { allocations: self.allocations - before.allocations, records: self.records - before.records }
    }
}

/// Everything this thread has allocated and logged so far.
pub(crate) fn allocations_and_records() -> Quiet {
    SEEN.get()
}

/// Takes every log record from now on.
pub(crate) fn listen() {
    if log::set_logger(&Listener).is_ok() {
        log::set_max_level(log::LevelFilter::Trace);
    }
}

struct Listener;

impl log::Log for Listener {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &log::Record<'_>) {
        SEEN.set(Quiet { records: SEEN.get().records + 1, ..SEEN.get() });
    }

    fn flush(&self) {}
}

/// The system's allocator, counted. Freeing counts as well: it takes the same locks.
pub(crate) struct Counting;

fn count() {
    SEEN.set(Quiet { allocations: SEEN.get().allocations + 1, ..SEEN.get() });
}

// SAFETY: everything is passed on to the system's allocator, which keeps the promises.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: passed on.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count();
        // SAFETY: passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}
