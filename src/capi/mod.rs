//! The C API: every exported function and every C type, and nothing else.
//!
//! Each function takes raw arguments, parses them, calls one safe function and writes the result; all of them stand
//! inside `guard`, so that neither a panic nor a bad handle crosses the boundary. No logic lives here that a Rust
//! caller of [`Group`](crate::group::Group) would miss. `include/tutti.h` is made from these files.
//!
//! * [`types`], [`transfer_types`] — the C types and constants;
//! * [`world`], [`group`], [`layout`], [`collectives`], [`request`], [`tensor`], [`queue`], [`memory`], [`capture`],
//!   [`transfer_plan`], [`transfer`], [`text`], [`log`] — the functions;
//! * `guard` — panic to status, and the last error;
//! * `handles` — what stands behind an opaque pointer;
//! * `parse` — numbers, pointers, structs and texts of C, checked.

#![allow(non_camel_case_types, reason = "the names are those of the C header")]
#![allow(clippy::missing_safety_doc, reason = "the comments are copied into the C header and speak to its readers")]
#![allow(clippy::too_many_arguments, reason = "the argument lists are those of the C header")]

pub mod capture;
pub mod collectives;
pub mod group;
mod guard;
mod handles;
pub mod layout;
pub mod log;
pub mod memory;
mod parse;
pub mod queue;
pub mod request;
pub mod tensor;
pub mod text;
pub mod transfer;
pub mod transfer_plan;
pub mod transfer_types;
pub mod types;
pub mod world;

#[cfg(test)]
mod tests;

/// Ends the test process if the test that holds this has not ended in time.
#[cfg(test)]
fn watchdog() -> impl Drop {
    use std::{sync::mpsc, thread, time::Duration};
    struct Watchdog(mpsc::Sender<()>, Option<thread::JoinHandle<()>>);
    impl Drop for Watchdog {
        fn drop(&mut self) {
            let _ = self.0.send(());
            let _ = self.1.take().map(thread::JoinHandle::join);
        }
    }
    let (done, waiting) = mpsc::channel();
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let watcher = thread::spawn(move || {
        if waiting.recv_timeout(Duration::from_secs(120)) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{test} hangs");
            std::process::abort();
        }
    });
    Watchdog(done, Some(watcher))
}
