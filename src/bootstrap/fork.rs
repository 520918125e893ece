//! Forks: a child shares its parent's connections and memory without being a rank, so it may use none of it. What it
//! inherits may be dropped there, which must change nothing that others see.

use std::sync::{
    Once,
    atomic::{AtomicBool, Ordering},
};

static WATCH: Once = Once::new();
static FORKED: AtomicBool = AtomicBool::new(false);

/// From now on, children of this process know that they are. Called before the first world is made.
pub fn watch() {
    extern "C" fn in_child() {
        FORKED.store(true, Ordering::Relaxed);
    }
    WATCH.call_once(|| {
        // SAFETY: the handler only stores to an atomic, and the library stays mapped once loaded.
        let refused = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        if refused != 0 {
            log::warn!(target: "tutti::bootstrap", "forks cannot be noticed: pthread_atfork failed ({refused})");
        }
    });
}

/// Whether this process is a fork of one that had made a world.
#[inline]
pub fn forked() -> bool {
    FORKED.load(Ordering::Relaxed)
}
