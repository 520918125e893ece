//! Where log records go: to a callback from C, and to stderr where TUTTI_LOG asks for it.

use std::{
    cell::Cell,
    ffi::{CString, c_char, c_void},
    ptr,
    sync::{
        Mutex, MutexGuard, Once, OnceLock, PoisonError,
        atomic::{AtomicPtr, Ordering},
    },
};

use log::{LevelFilter, Log, Metadata, Record};

use super::{
    guard::guard,
    handles::{DRAIN, Destroyed, Entry, Table},
    types::*,
};
use crate::{
    config::variable,
    error::{Error, Result, Status},
};

/// Sends the library's log to `callback`, with `user` handed through; NULL: to nobody.
///
/// Without a callback the library is silent, unless the environment variable TUTTI_LOG names a filter ("info",
/// "tutti::group=debug"): then what passes it goes to stderr. The same filter decides what the callback gets; without
/// it, that is everything from TUTTI_LOG_INFO up.
///
/// When it returns the former callback is not running in any thread and will never be called again. Any thread may
/// call it, but not from within the callback. What is logged from within the callback is dropped.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_USAGE (from within the callback; forked process; the program is written in
/// Rust and has a logger of its own); TUTTI_TIMEOUT (the former callback still runs after 10 s: keep its user data);
/// TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_set_log_callback(callback: tutti_log_fn, user: *mut c_void) -> tutti_status_t {
    guard("tutti_set_log_callback", || set_callback(callback, user))
}

/// A caller's callback.
struct Callback {
    function: unsafe extern "C" fn(*mut c_void, i32, *const c_char, *const c_char),
    user: *mut c_void,
}

// SAFETY: the C caller promises that the function may be called with this pointer from any thread, several at once.
unsafe impl Send for Callback {}
// SAFETY: as above.
unsafe impl Sync for Callback {}

impl Entry for Callback {
    type Handle = Callback;
    const KIND: u8 = b'L';
    const NAME: &'static str = "log callback";

    fn retire(&self) {}
}

/// The callbacks: the one in use, and those replaced that have not returned yet.
static CALLBACKS: Table<Callback> = Table::new();
/// The token of the one in use, or NULL.
static CURRENT: AtomicPtr<Callback> = AtomicPtr::new(ptr::null_mut());

thread_local! {
    /// Whether this thread is inside a callback, or inside stderr's logger.
    static LOGGING: Cell<bool> = const { Cell::new(false) };
}

/// Logs to stderr from now on if TUTTI_LOG says so. Looks once; what cannot be had is left alone.
pub(super) fn init_from_environment() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if stderr().is_some() && install().is_ok() {
            set_level(&lock());
        }
    });
}

fn set_callback(function: tutti_log_fn, user: *mut c_void) -> Result<()> {
    if LOGGING.get() {
        return Err(Error::usage("the log callback cannot be changed from within it"));
    }
    let new = match function {
        Some(function) => {
            install()?;
            CALLBACKS.insert(Callback { function, user })?
        }
        None => ptr::null_mut(),
    };
    let old = {
        let locked = lock();
        let old = CURRENT.swap(new, Ordering::AcqRel);
        set_level(&locked);
        old
    };
    match CALLBACKS.destroy(old, DRAIN)? {
        Destroyed::Now | Destroyed::Before => Ok(()),
        Destroyed::StillUsed => Err(Error::failed(
            Status::Timeout,
            None,
            format_args!(
                "the former log callback is replaced but still runs after {} s: keep its user data",
                DRAIN.as_secs()
            ),
        )),
    }
}

/// Makes the one logger of this library the logger of the `log` crate, which can be done once in a process.
fn install() -> Result<()> {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    if *INSTALLED.get_or_init(|| log::set_logger(&LOGGER).is_ok()) {
        return Ok(());
    }
    Err(Error::usage("this program is written in Rust and has a logger of its own, which gets libtutti's records"))
}

/// Held while callback and level change together.
fn lock() -> MutexGuard<'static, ()> {
    static LEVEL: Mutex<()> = Mutex::new(());
    LEVEL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets records be made only if somebody wants them.
fn set_level(_locked: &MutexGuard<'static, ()>) {
    log::set_max_level(match (stderr(), CURRENT.load(Ordering::Acquire).is_null()) {
        (Some(stderr), _) => stderr.filter(),
        (None, false) => WITHOUT_FILTER,
        (None, true) => LevelFilter::Off,
    });
}

/// What a callback gets where TUTTI_LOG is not set.
const WITHOUT_FILTER: LevelFilter = LevelFilter::Info;

/// The logger that TUTTI_LOG asks for.
fn stderr() -> Option<&'static env_logger::Logger> {
    static STDERR: OnceLock<Option<env_logger::Logger>> = OnceLock::new();
    STDERR
        .get_or_init(|| variable("TUTTI_LOG").map(|filter| env_logger::Builder::new().parse_filters(&filter).build()))
        .as_ref()
}

struct Logger;

static LOGGER: Logger = Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target() == "tutti" || metadata.target().starts_with("tutti::");
        ours && match stderr() {
            Some(stderr) => stderr.enabled(metadata),
            None => metadata.level() <= WITHOUT_FILTER,
        }
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) || LOGGING.replace(true) {
            return; // what a callback logs itself would call it again, without end
        }
        if let Some(stderr) = stderr() {
            stderr.log(record);
        }
        call(record);
        LOGGING.set(false);
    }

    fn flush(&self) {}
}

/// Hands a record to the callback in use. No lock is held meanwhile; the pin is what a replacement waits for.
fn call(record: &Record<'_>) {
    let callback = loop {
        let current = CURRENT.load(Ordering::Acquire);
        if current.is_null() {
            return;
        }
        match CALLBACKS.pin(current) {
            Ok(callback) => break callback,
            Err(_) => continue, // replaced in between
        }
    };
    let target = c_text(record.target());
    let message = c_text(&record.args().to_string());
    // SAFETY: the C caller promised that the function may be called with its pointer until it is replaced, which waits
    // for the pin; both texts end with NUL.
    unsafe { (callback.function)(callback.user, record.level() as i32, target.as_ptr(), message.as_ptr()) }
}

/// A text for C; a NUL within becomes a space.
fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::CStr,
        sync::{
            atomic::{AtomicBool, AtomicUsize},
            mpsc,
        },
    };

    use super::*;
    use crate::capi::watchdog;

    /// The callback is one for the process, so tests of it take turns.
    fn turn() -> MutexGuard<'static, ()> {
        static TURN: Mutex<()> = Mutex::new(());
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    const TARGET: &str = "tutti::capi::log::tests";

    type Lines = Mutex<Vec<(i32, String, String)>>;

    /// Keeps what these tests log.
    unsafe extern "C" fn keep(user: *mut c_void, level: i32, target: *const c_char, message: *const c_char) {
        // SAFETY: the tests pass a `Lines` that outlives the callback; the texts end with NUL.
        unsafe {
            let target = CStr::from_ptr(target).to_str().unwrap();
            if target == TARGET {
                let message = CStr::from_ptr(message).to_str().unwrap();
                (*user.cast::<Lines>()).lock().unwrap().push((level, target.into(), message.into()));
            }
        }
    }

    fn set(function: tutti_log_fn, user: *const impl Sized) -> i32 {
        // SAFETY: the tests keep `user` until another callback is set.
        unsafe { tutti_set_log_callback(function, user.cast_mut().cast()) }
    }

    #[test]
    fn records_reach_the_callback_until_it_is_taken_away() {
        let _turn = turn();
        let lines = Lines::default();
        assert_eq!(set(Some(keep), &lines), TUTTI_SUCCESS);
        log::warn!("rank {} is slow\0 and late", 3);
        log::debug!("nobody asked for this");
        log::warn!(target: "other_crate", "not ours");
        assert_eq!(set(None, ptr::null::<u8>()), TUTTI_SUCCESS);
        log::error!("nobody is there");
        let expected = (TUTTI_LOG_WARN, TARGET.to_owned(), "rank 3 is slow  and late".to_owned());
        assert_eq!(*lines.lock().unwrap(), [expected]);
    }

    /// Logs, fails, and tries to replace itself.
    unsafe extern "C" fn meddle(user: *mut c_void, _: i32, target: *const c_char, _: *const c_char) {
        // SAFETY: `records_from_within` passes a counter that outlives the callback; the target ends with NUL.
        let (calls, target) = unsafe { (&*user.cast::<AtomicUsize>(), CStr::from_ptr(target)) };
        if target.to_str() == Ok(TARGET) {
            calls.fetch_add(1, Ordering::Relaxed);
            log::error!("from within");
            assert_eq!(set(None, ptr::null::<u8>()), TUTTI_INVALID_USAGE);
        }
    }

    #[test]
    fn a_callback_that_logs_or_replaces_itself_neither_recurs_nor_hangs() {
        let (_turn, _watchdog) = (turn(), watchdog());
        let calls = AtomicUsize::new(0);
        assert_eq!(set(Some(meddle), &calls), TUTTI_SUCCESS);
        log::error!("once");
        log::error!("twice");
        assert_eq!(set(None, ptr::null::<u8>()), TUTTI_SUCCESS);
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }

    struct Gate {
        entered: mpsc::Sender<()>,
        open: AtomicBool,
        left: AtomicBool,
    }

    /// Stays inside until the gate is opened.
    unsafe extern "C" fn dwell(user: *mut c_void, _: i32, target: *const c_char, _: *const c_char) {
        // SAFETY: the test passes a `Gate` that outlives the callback; the target ends with NUL.
        let (gate, target) = unsafe { (&*user.cast::<Gate>(), CStr::from_ptr(target)) };
        if target.to_str() == Ok(TARGET) {
            gate.entered.send(()).unwrap();
            while !gate.open.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            gate.left.store(true, Ordering::Release);
        }
    }

    #[test]
    fn a_replaced_callback_has_returned_when_the_replacement_is_there() {
        let (_turn, _watchdog) = (turn(), watchdog());
        let (entered, inside) = mpsc::channel();
        let gate = Gate { entered, open: AtomicBool::new(false), left: AtomicBool::new(false) };
        assert_eq!(set(Some(dwell), &gate), TUTTI_SUCCESS);
        std::thread::scope(|scope| {
            scope.spawn(|| log::error!("long"));
            inside.recv().unwrap();
            let opener = scope.spawn(|| {
                // The callback is taken out of use before its replacement waits for it.
                while !CURRENT.load(Ordering::Acquire).is_null() {
                    std::thread::yield_now();
                }
                assert!(!gate.left.load(Ordering::Acquire));
                gate.open.store(true, Ordering::Release);
            });
            assert_eq!(set(None, ptr::null::<u8>()), TUTTI_SUCCESS);
            assert!(gate.left.load(Ordering::Acquire), "the user data may be gone now, but the callback runs");
            opener.join().unwrap();
        });
    }

    #[test]
    fn callbacks_may_be_replaced_while_all_threads_log() {
        let (_turn, _watchdog) = (turn(), watchdog());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        log::info!("busy");
                    }
                });
            }
            for _ in 0..200 {
                let lines = Box::new(Lines::default());
                assert_eq!(set(Some(keep), &*lines), TUTTI_SUCCESS);
                log::warn!("mine");
                assert_eq!(set(None, ptr::null::<u8>()), TUTTI_SUCCESS);
                let lines = lines.into_inner().unwrap();
                assert!(lines.iter().any(|line| line.2 == "mine"));
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
