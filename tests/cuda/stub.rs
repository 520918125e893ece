//! The stub of the driver: built once, and loaded by the child process in which a test runs.
//!
//! Tests that were built elsewhere (`tests/cuda/pack`) are told by the environment where things are:
//!   TUTTI_CUDA_CARD=1     the driver is that of a card, and no stub is built
//!   TUTTI_TEST_ROOT=PATH  the tree that has the plans, in the place of the one they were built in
//!   TUTTI_PEER_CHECK=PATH the library's own variable, kept where it is set

#[path = "stub/compile.rs"] // the conformance suite has this file, too
mod compile;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Once, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use libloading::os::unix::{Library, RTLD_NOW, Symbol};

/// No test may take longer.
const WATCHDOG: Duration = Duration::from_secs(240);

/// Whether the tests are to run on a card instead: where there are fewer than two, all ranks share the first.
pub(crate) fn on_card() -> bool {
    std::env::var_os("TUTTI_CUDA_CARD").is_some()
}

/// Whether what stands for the card is a stub after all, as where the scripts for cards are tried out.
pub(crate) fn is_stub() -> bool {
    // SAFETY: the function is only looked for.
    unsafe { library().get::<unsafe extern "C" fn()>(c"stub_calls") }.is_ok()
}

/// The device that a test means by a number.
pub(crate) fn ordinal(number: i32) -> i32 {
    if on_card() { 0 } else { number }
}

/// As [`on_stub`], for a promise that a card keeps too.
pub(crate) fn on_stub_or_card(test: &str) -> bool {
    on_card() || on_stub(test, &[])
}

/// Runs the rest of the calling test on the stub: `true` in the child process that has it. In the test's own process the
/// child is run, with `variables`, and its failure is the test's.
pub(crate) fn on_stub(test: &str, variables: &[(&str, &str)]) -> bool {
    if on_card() {
        // It asks something of the stub that no card answers.
        println!("{test} is for the stub of the driver alone");
        return false;
    }
    if std::env::var_os("TUTTI_CUDA_LIBRARY").is_some() {
        return true;
    }
    let mut command = this_test(test);
    command.envs(variables.iter().copied());
    let child = command.spawn().expect("the test starts itself");
    finish(test, child);
    false
}

/// A file of the tree.
pub(crate) fn in_tree(path: &str) -> PathBuf {
    let root = std::env::var_os("TUTTI_TEST_ROOT");
    root.as_deref().map_or(Path::new(env!("CARGO_MANIFEST_DIR")), Path::new).join(path)
}

/// This test, in a process of its own that has the stub; or the card, and then with the plan that its parent has.
pub(crate) fn this_test(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a test knows where it is"));
    command.args(["--exact", test, "--nocapture"]).stdin(Stdio::null());
    if !on_card() || std::env::var_os("TUTTI_CUDA_PLAN").is_none() {
        command.env("TUTTI_CUDA_PLAN", in_tree("tests/cuda/plan.txt"));
    }
    if std::env::var_os("TUTTI_PEER_CHECK").is_none() {
        command.env("TUTTI_PEER_CHECK", env!("CARGO_BIN_EXE_tutti-peer-check"));
    }
    if on_card() {
        return command;
    }
    let folder = compile::folder();
    command.env("TUTTI_CUDA_LIBRARY", folder.join("libcuda.so.1")).env("XDG_CACHE_HOME", new_cache(folder));
    command
}

/// A cache for one child: none shall find the verdicts of another, nor those of a test that ended and had this number. What
/// such tests have left is removed.
fn new_cache(folder: &Path) -> PathBuf {
    static SWEPT: Once = Once::new();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let me = std::process::id();
    SWEPT.call_once(|| {
        for entry in std::fs::read_dir(folder).expect("the stub's folder").flatten() {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|name| name.strip_prefix("cache-")?.split('-').next());
            if owner.is_some_and(|owner| owner == me.to_string() || !Path::new("/proc").join(owner).exists()) {
                // Another test may be at it, too.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    });
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    folder.join(format!("cache-{me}-{number}"))
}

/// Waits for a child that must succeed.
pub(crate) fn finish(test: &str, mut child: std::process::Child) {
    let until = Instant::now() + WATCHDOG;
    loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => return assert!(status.success(), "{test} on the stub: {status}"),
            None if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{test} on the stub did not end within {} s", WATCHDOG.as_secs());
            }
        }
    }
}

/// How often a function of the driver was called; `*`: all of them.
pub(crate) fn calls(function: &str) -> u64 {
    let name = std::ffi::CString::new(function).unwrap();
    // SAFETY: the stub's function takes a text and returns a number.
    unsafe {
        let calls: Symbol<unsafe extern "C" fn(*const std::ffi::c_char) -> u64> = library().get(c"stub_calls").unwrap();
        calls(name.as_ptr())
    }
}

/// Lets the next call of a function of the driver return `code`.
pub(crate) fn fail_next(function: &str, code: i32) {
    let name = std::ffi::CString::new(function).unwrap();
    // SAFETY: the stub's function takes a text and a number, and says whether it knows the name.
    let known = unsafe {
        let fail: Symbol<unsafe extern "C" fn(*const std::ffi::c_char, i32) -> i32> =
            library().get(c"stub_fail").unwrap();
        fail(name.as_ptr(), code)
    };
    assert_eq!(known, 1, "{function}");
}

/// How long the kernel that was launched last waits at most.
pub(crate) fn last_deadline() -> Duration {
    // SAFETY: the stub's function takes nothing and returns a number.
    unsafe {
        let deadline: Symbol<unsafe extern "C" fn() -> u64> = library().get(c"stub_last_deadline_ns").unwrap();
        Duration::from_nanos(deadline())
    }
}

/// The stub, as the library under test has loaded it.
pub(crate) fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = std::env::var_os("TUTTI_CUDA_LIBRARY").unwrap_or_else(|| "libcuda.so.1".into());
        // SAFETY: the stub has no constructors beyond those of its counters.
        unsafe { Library::open(Some(path), RTLD_NOW) }.expect("the stub can be loaded")
    })
}
