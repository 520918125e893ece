//! The C API: every exported function and every C type, and nothing else.
//!
//! Each function takes raw arguments, parses them, calls one safe function and writes the result; all of them stand
//! inside `guard`, so that neither a panic nor a bad handle crosses the boundary. No logic lives here that a Rust
//! caller of [`Group`](crate::group::Group) would miss. `include/tutti.h` is made from these files.
//!
//! * [`types`] — the C types and constants;
//! * [`world`], [`group`], [`collectives`], [`request`], [`memory`], [`capture`], [`text`], [`log`] — the functions;
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
pub mod log;
pub mod memory;
mod parse;
pub mod request;
pub mod text;
pub mod types;
pub mod world;
