//! The CUDA driver: a table of functions that exists only when libcuda and every function in it do.
//!
//! * this page — the one [`Driver`] of the process, and how it is found;
//! * [`table`] — the functions, their arguments and the numbers they take;
//! * [`error`] — what a driver's code is called.
//!
//! Every function returns an integer here, never an enumeration: a newer driver may answer with a code that nobody
//! knows yet. Nothing here decides anything, prints, or panics because something is absent.

mod error;
mod table;

use std::{ffi::OsString, path::PathBuf, sync::OnceLock};

pub use error::CudaError;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
pub use table::*;

use crate::config;

/// The names under which the system knows the driver. `libcuda.so` is for development and may be a stub that does nothing.
const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// The CUDA driver of this process.
pub struct Driver {
    functions: Functions,
    version: i32,
}

impl Driver {
    /// The driver, once it is loaded and initialised; or why there is none, the same sentence every time.
    pub fn get() -> Result<&'static Driver, &'static str> {
        static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
        DRIVER.get_or_init(|| Driver::load(&candidates())).as_ref().map_err(String::as_str)
    }

    /// Loads the first of `candidates` that is there, and initialises it.
    pub fn load(candidates: &[PathBuf]) -> Result<Driver, String> {
        let mut reasons = Vec::new();
        for path in candidates {
            // SAFETY: the driver's constructors are those that every CUDA program runs; a path that a user names is
            // trusted as LD_LIBRARY_PATH is.
            match unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) } {
                Ok(library) => return Driver::start(library),
                Err(error) => reasons.push(format!("{}: {error}", path.display())),
            }
        }
        Err(format!("the CUDA driver cannot be loaded ({})", reasons.join("; ")))
    }

    /// What the driver calls its version: 12020 for 12.2.
    pub fn version(&self) -> i32 {
        self.version
    }

    fn start(library: Library) -> Result<Driver, String> {
        // SAFETY: the library says that it is the CUDA driver, whose functions have these arguments.
        let functions = unsafe { Functions::load(library) }
            .map_err(|missing| format!("the CUDA driver is too old: it has no {missing} (12.2, driver 535, has)"))?;
        let mut driver = Driver { functions, version: 0 };
        let mut version = 0;
        // SAFETY: `version` is writable; 0 is the only flag there is.
        let started = unsafe { driver.driver_get_version(&mut version).and_then(|()| driver.init(0)) };
        started.map_err(|error| match error.code {
            NO_DEVICE => format!("the CUDA driver {} sees no device ({error})", dotted(version)),
            _ => format!("the CUDA driver {} does not start: {error}", dotted(version)),
        })?;
        driver.version = version;
        Ok(driver)
    }
}

/// Where the driver is looked for: where `TUTTI_CUDA_LIBRARY` says, else where the system looks.
fn candidates() -> Vec<PathBuf> {
    match config::variable("TUTTI_CUDA_LIBRARY") {
        Some(path) => vec![OsString::from(path).into()],
        None => NAMES.map(PathBuf::from).to_vec(),
    }
}

/// 12020 as people write it.
fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_driver_is_a_sentence_that_names_what_was_looked_for() {
        let Err(why) = Driver::load(&["/nowhere/libcuda.so.1".into(), "libtutti-no-such.so.1".into()]) else {
            panic!("a driver was loaded from nowhere")
        };
        assert!(why.contains("/nowhere/libcuda.so.1") && why.contains("libtutti-no-such.so.1"), "{why}");
    }

    #[test]
    fn a_library_that_is_no_driver_is_refused_by_the_function_that_it_lacks() {
        let Err(why) = Driver::load(&["libc.so.6".into()]) else { panic!("the C library was taken for a driver") };
        assert!(why.contains("cuInit"), "{why}");
    }

    /// `tests/cuda/real_driver` runs it with an old driver; without one there is nothing to show here.
    #[test]
    fn a_real_driver_has_every_function_and_says_that_there_is_no_device() {
        let Some(path) = config::variable("TUTTI_CUDA_LIBRARY").filter(|path| path.contains(".tools/libcuda")) else {
            return;
        };
        // SAFETY: as in `load`.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }.expect("the driver can be loaded");
        for symbol in SYMBOLS {
            // SAFETY: only whether it is there is asked.
            let found = unsafe { library.get::<*const std::ffi::c_void>(*symbol) };
            assert!(found.is_ok(), "{symbol:?} is not in {path}");
        }
        let Err(why) = Driver::load(&[path.into()]) else { panic!("there is a device after all") };
        assert_eq!(why, "the CUDA driver 12.2 sees no device (cuInit returned 100 CUDA_ERROR_NO_DEVICE)");
    }

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!([12020, 13000, 11080].map(dotted), ["12.2", "13.0", "11.8"]);
    }
}
