//! Counts the calling thread's system calls, by a seccomp filter that needs no tool and no privilege.
//!
//! The filter turns every system call of the thread into a signal, whose handler writes the number down and then
//! makes the call, marked so that the filter lets it pass. The mark is a sixth argument: no system call of these
//! tests has one that matters. A filter stays until its thread ends.

use std::{cell::Cell, sync::Once};

/// The mark: a whole page, so that mmap takes it as an offset, and a bit set that a futex call takes for "all".
const MARK: libc::c_long = 0x7a57_f000;
/// Calls written down in one window; more are only counted.
const KEPT: usize = 8;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

thread_local! {
    static MADE: Cell<(usize, [libc::c_long; KEPT])> = const { Cell::new((0, [0; KEPT])) };
}

/// The first system calls that this thread makes in `body`. The thread must be filtered.
pub(crate) fn during(body: &mut dyn FnMut()) -> Vec<libc::c_long> {
    MADE.set((0, [0; KEPT]));
    body();
    let (count, made) = MADE.get();
    made[..count.min(KEPT)].to_vec()
}

/// Puts the calling thread, and no other, under the filter.
pub(crate) fn filter_this_thread() {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: a zeroed sigaction with a handler of the right type.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            assert_eq!(libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()), 0);
        }
    });
    // Offsets in struct seccomp_data: number 0, architecture 4, the sixth argument 56 (its low half).
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let give = |verdict| statement(libc::BPF_RET | libc::BPF_K, verdict);
    let equal = |value, yes, no| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: yes,
        jf: no,
        k: value,
    };
    let mut program = [
        load(4),
        equal(ARCH, 0, 5),
        load(0),
        equal(libc::SYS_rt_sigreturn as u32, 2, 0),
        load(56),
        equal(MARK as u32, 0, 1),
        give(libc::SECCOMP_RET_ALLOW),
        give(libc::SECCOMP_RET_TRAP),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program outlives the calls, which copy it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let status = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter);
        assert_eq!(status, 0, "the kernel takes no filter: {}", std::io::Error::last_os_error());
    }
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Writes the call down and makes it.
extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid context to the handler, whose thread is stopped at the call; errno is saved.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        let registers = Registers::of(context.cast());
        let (mut count, mut made) = MADE.get();
        if let Some(slot) = made.get_mut(count) {
            *slot = *registers.number;
        }
        count += 1;
        MADE.set((count, made));
        let [a, b, c, d, e] = registers.arguments;
        let result = libc::syscall(*registers.number, a, b, c, d, e, MARK);
        *registers.result = if result == -1 { -libc::c_long::from(*errno) } else { result };
        *errno = saved;
    }
}

struct Registers {
    number: *const libc::c_long,
    arguments: [libc::c_long; 5],
    result: *mut libc::c_long,
}

impl Registers {
    #[cfg(target_arch = "x86_64")]
    unsafe fn of(context: *mut libc::ucontext_t) -> Self {
        // SAFETY: the caller's context is valid.
        let registers = unsafe { &mut (*context).uc_mcontext.gregs };
        let arguments = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_R10, libc::REG_R8];
        let arguments = arguments.map(|register| registers[register as usize]);
        let result = &raw mut registers[libc::REG_RAX as usize];
        Registers { number: result, arguments, result }
    }

    #[cfg(target_arch = "aarch64")]
    unsafe fn of(context: *mut libc::ucontext_t) -> Self {
        // SAFETY: the caller's context is valid.
        let registers = unsafe { &mut (*context).uc_mcontext.regs };
        let arguments = [0, 1, 2, 3, 4].map(|register| registers[register] as libc::c_long);
        Registers { number: (&raw const registers[8]).cast(), arguments, result: (&raw mut registers[0]).cast() }
    }
}
