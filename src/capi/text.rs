//! Texts: the library's version, what a status means, what went wrong last, and how text reaches a caller's buffer.
//!
//! Nothing here can fail in a way the caller would have to handle, and nothing here touches a group.

use std::ffi::{CStr, c_char};

use super::{guard, types::*};
use crate::error::Status;

/// The library's version: 10000 * major + 100 * minor + patch. Compare with TUTTI_VERSION, the header's.
///
/// Has no side effect and cannot fail; any thread may call it at any time, before all else and after a fork too.
#[unsafe(no_mangle)]
pub extern "C" fn tutti_version() -> u32 {
    VERSION
}

/// A status in a few words, such as "ranks disagree"; "unknown status" for a number that is none.
///
/// The text is static: never NULL, never freed. Any thread may call it at any time.
#[unsafe(no_mangle)]
pub extern "C" fn tutti_status_string(status: tutti_status_t) -> *const c_char {
    let text: &'static CStr = match Status::from_code(status) {
        Some(Status::Success) => c"success",
        Some(Status::InvalidArgument) => c"invalid argument",
        Some(Status::InvalidUsage) => c"invalid usage",
        Some(Status::Unsupported) => c"unsupported",
        Some(Status::OutOfMemory) => c"out of memory",
        Some(Status::SystemError) => c"system error",
        Some(Status::CudaError) => c"CUDA error",
        Some(Status::CommunicatorError) => c"communicator error",
        Some(Status::Timeout) => c"timeout",
        Some(Status::PeerLost) => c"peer lost",
        Some(Status::Aborted) => c"aborted",
        Some(Status::Mismatch) => c"ranks disagree",
        Some(Status::InternalError) => c"internal error",
        Some(Status::InProgress) => c"in progress",
        None => c"unknown status",
    };
    text.as_ptr()
}

/// What went wrong in the last call of this thread that failed, in full: UTF-8, "" if none did.
///
/// A call that succeeds or returns TUTTI_IN_PROGRESS leaves the text alone. The pointer is never NULL; it belongs
/// to the library and is valid until a call of this thread fails again or the thread ends, so copy what you keep.
/// For what happened to a group, from any thread, use tutti_group_error.
#[unsafe(no_mangle)]
pub extern "C" fn tutti_last_error() -> *const c_char {
    guard::last_error()
}

/// The version as one number.
pub(super) const VERSION: u32 = 10_000 * number(env!("CARGO_PKG_VERSION_MAJOR"))
    + 100 * number(env!("CARGO_PKG_VERSION_MINOR"))
    + number(env!("CARGO_PKG_VERSION_PATCH"));

const fn number(digits: &str) -> u32 {
    match u32::from_str_radix(digits, 10) {
        Ok(number) => number,
        Err(_) => panic!("the version of Cargo.toml is three numbers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(status: i32) -> &'static str {
        // SAFETY: the text is static and ends with NUL.
        unsafe { CStr::from_ptr(tutti_status_string(status)) }.to_str().unwrap()
    }

    #[test]
    fn every_status_is_described_in_the_words_of_the_crate() {
        for code in 0..=13 {
            assert_eq!(string(code), Status::from_code(code).unwrap().describe());
        }
        for code in [-1, 14, i32::MIN, i32::MAX] {
            assert_eq!(string(code), "unknown status");
        }
    }

    #[test]
    fn the_version_is_the_one_of_the_crate() {
        let version = tutti_version();
        let parts = format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100);
        assert_eq!(parts, env!("CARGO_PKG_VERSION"));
    }
}
