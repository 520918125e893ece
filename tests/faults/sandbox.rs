//! What a kernel or a container may withhold: system calls, address space, /dev/shm, a shared PID namespace.

use std::{
    ffi::{CStr, c_long},
    io,
    os::unix::process::CommandExt,
    process::{Child, Command},
};

/// A system call that a seccomp filter refuses.
#[derive(Clone, Copy)]
pub(crate) enum Refused {
    /// Every call of this number.
    Always(c_long),
    /// `mmap` of shared memory of at least so many bytes.
    SharedMemory(u32),
}

/// Refuses a system call to a process that is about to start, with EPERM, as container runtimes do.
pub(crate) fn refuse(command: &mut Command, refused: Refused) {
    let filter = filter(refused);
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(move || install(&filter)) };
}

/// The filter: which system call it is lies at byte 0 of what it looks at, argument n at 16 + 8n.
fn filter(refused: Refused) -> Vec<libc::sock_filter> {
    const NUMBER: u32 = 0;
    const LENGTH: u32 = 16 + 8;
    const FLAGS: u32 = 16 + 3 * 8;
    let load = |at| op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0);
    let unless = |test, value, skip| op(libc::BPF_JMP | test | libc::BPF_K, value, 0, skip);
    let answer = |action| op(libc::BPF_RET | libc::BPF_K, action, 0, 0);
    let (no, yes) = (answer(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32), answer(libc::SECCOMP_RET_ALLOW));
    match refused {
        Refused::Always(number) => vec![load(NUMBER), unless(libc::BPF_JEQ, number as u32, 1), no, yes],
        Refused::SharedMemory(bytes) => vec![
            load(NUMBER),
            unless(libc::BPF_JEQ, libc::SYS_mmap as u32, 5),
            load(FLAGS),
            unless(libc::BPF_JSET, libc::MAP_SHARED as u32, 3),
            load(LENGTH),
            unless(libc::BPF_JGE, bytes, 1),
            no,
            yes,
        ],
    }
}

fn op(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

fn install(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program is readable and as long as it says; the other arguments are numbers.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets this process map no more than `bytes` beyond what it has mapped.
pub(crate) fn limit_address_space(bytes: u64) {
    // The heap must not need to grow: what is freed below the last piece stays with it.
    let mut pieces: Vec<Vec<u8>> = (0..512).map(|_| vec![1; 4096]).collect();
    let last = pieces.pop();
    drop(pieces);
    std::mem::forget(last);
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').next().unwrap().parse().unwrap();
    let limit = pages * rustix::param::page_size() as u64 + bytes;
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is readable.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
}

/// Whether this process may make namespaces. Where it may not, the test says so and is over.
pub(crate) fn may_make_namespaces(test: &str) -> bool {
    let allowed = std::thread::spawn(|| unshare(libc::CLONE_NEWNS | libc::CLONE_NEWPID).is_ok()).join().unwrap();
    if !allowed {
        println!("{test}: skipped, since this process may not make namespaces (it takes root)");
    }
    allowed
}

/// Starts a process as the first of a new PID namespace.
pub(crate) fn spawn_in_pid_namespace(mut command: Command) -> io::Result<Child> {
    // A namespace for the children of one thread; the thread is of no more use after that.
    let spawn = move || unshare(libc::CLONE_NEWPID).and_then(|()| command.spawn());
    std::thread::spawn(spawn).join().unwrap()
}

/// Does something on a thread that has mounts and abstract sockets of its own, as have its children.
pub(crate) fn in_own_namespaces<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let test = std::thread::current().name().map(str::to_owned).unwrap();
    std::thread::scope(|scope| {
        let inside = || {
            unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET).unwrap();
            mount(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE, c"").unwrap();
            body()
        };
        let thread = std::thread::Builder::new().name(test).spawn_scoped(scope, inside).unwrap();
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Mounts an empty tmpfs, of at most `size`, in the calling thread's namespace.
pub(crate) fn mount_tmpfs(at: &CStr, size: &CStr) {
    mount(c"none", at, Some(c"tmpfs"), 0, size).unwrap();
}

fn mount(what: &CStr, at: &CStr, kind: Option<&CStr>, flags: libc::c_ulong, data: &CStr) -> io::Result<()> {
    let kind = kind.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is a text or NULL.
    let failed = unsafe { libc::mount(what.as_ptr(), at.as_ptr(), kind, flags, data.as_ptr().cast()) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: takes a number.
    if unsafe { libc::unshare(flags) } != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
