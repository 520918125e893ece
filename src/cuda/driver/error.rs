//! What went wrong in the driver: the function, its code, and what the driver calls it.

use std::{ffi::CStr, fmt};

use super::{Driver, table::OUT_OF_MEMORY};
use crate::error::Error;

/// A function of the driver returned something other than 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaError {
    /// The function.
    pub function: &'static str,
    /// What it returned.
    pub code: i32,
    /// The driver's name for that; empty where it has none.
    pub name: String,
}

impl CudaError {
    /// `code`, as `function` returned it.
    #[cold]
    pub(super) fn new(driver: &Driver, function: &'static str, code: i32) -> Self {
        CudaError { function, code, name: driver.name_of(code) }
    }

    /// As an error of the crate; `what` says what was being done.
    #[cold]
    pub fn during(self, what: impl fmt::Display) -> Error {
        match self.code {
            OUT_OF_MEMORY => Error::OutOfMemory(format!("{what}: {self}")),
            _ => Error::Cuda { what: format!("{what}: {self}"), code: self.code },
        }
    }
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.as_str() {
            "" => write!(f, "{} returned {}", self.function, self.code),
            name => write!(f, "{} returned {} {name}", self.function, self.code),
        }
    }
}

impl Driver {
    fn name_of(&self, code: i32) -> String {
        let mut name = std::ptr::null();
        // SAFETY: `name` is writable; the text is the driver's and lives as long as it.
        let known = unsafe { self.raw_error_name(code, &mut name) } == 0 && !name.is_null();
        // SAFETY: as above, and it ends with NUL.
        if known { unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned() } else { String::new() }
    }
}
