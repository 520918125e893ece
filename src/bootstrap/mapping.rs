//! Memory that ranks of one host share: a sealed memfd, mapped once per process.
//!
//! A memfd has no name another user could open or a crash could leave behind, needs no /dev/shm, and goes when the
//! last mapping does. Its size is sealed, so no peer can shrink it under us, and every page is committed before
//! use, so an exhausted host gives an error here and no SIGBUS later.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rustix::{
    fs::{FallocateFlags, MemfdFlags, SealFlags},
    io::Errno,
    mm::{MapFlags, ProtFlags},
};

use crate::error::{Error, Result};

/// A stretch of zero-initialised memory, shared with whoever maps the same descriptor.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
    /// Where the memfd is in the process's table; `None` for private memory.
    identity: Option<Identity>,
}

// SAFETY: the mapping is plain memory that lives as long as the value; what is done in it is up to its users, who go
// through atomics or have a protocol that hands stretches over.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// The mappings of this process by memfd, so that ranks that are threads share one address range: half the page
/// tables, and race detectors see all sides. Decides nothing.
static MAPPED: Mutex<Option<HashMap<Identity, Weak<Mapping>>>> = Mutex::new(None);

/// Bytes that are committed in one step, which takes some 300 microseconds.
const STEP: usize = 1 << 20;

/// A memfd's device and inode.
type Identity = (u64, u64);

impl Mapping {
    /// A new memfd of `length` bytes, to be passed to peers and mapped by each with [`Mapping::open`].
    pub fn create(label: &str, length: usize) -> Result<OwnedFd> {
        let what = |step: &str| format!("{step} {length} bytes of shared memory for {label}");
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Kernels from 6.3 on want to know that nothing will be executed from it; older ones do not know the flag.
        let fd = rustix::fs::memfd_create(label, flags | MemfdFlags::NOEXEC_SEAL)
            .or_else(|errno| if errno == Errno::INVAL { rustix::fs::memfd_create(label, flags) } else { Err(errno) })
            .map_err(|errno| Error::system(what("memfd_create refused"), errno))?;
        rustix::fs::ftruncate(&fd, length as u64).map_err(|errno| Error::system(what("cannot size"), errno))?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(|errno| Error::system(what("cannot seal"), errno))?;
        Ok(fd)
    }

    /// Maps a memfd made by [`Mapping::create`], here or in another process. Refuses anything that is not sealed or
    /// not `length` bytes long.
    pub fn open(fd: impl AsFd, length: usize) -> Result<Arc<Self>> {
        let stat = rustix::fs::fstat(&fd).map_err(|errno| Error::system("fstat of shared memory", errno))?;
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(|errno| Error::system("seals of shared memory", errno))?;
        if stat.st_size as u64 != length as u64 || !seals.contains(SealFlags::SHRINK) {
            return Err(Error::Internal(format!(
                "a peer passed {} bytes of shared memory, sealed {seals:?}, where {length} sealed bytes were agreed",
                stat.st_size
            )));
        }
        let identity = (stat.st_dev, stat.st_ino);
        let mut mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
        let table = mapped.get_or_insert_default();
        if let Some(existing) = table.get(&identity).and_then(Weak::upgrade) {
            return Ok(existing);
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0)
        }
        .map_err(|errno| Error::system(format_args!("cannot map {length} bytes of shared memory"), errno))?;
        let start = NonNull::new(start.cast()).ok_or_else(|| Error::Internal("mmap gave NULL".into()))?;
        let mapping = Arc::new(Mapping { start, length, identity: Some(identity) });
        table.insert(identity, Arc::downgrade(&mapping));
        Ok(mapping)
    }

    /// Commits the pages of a part of the memfd, so that they come from the calling rank's NUMA node and writing
    /// them cannot fail.
    ///
    /// A signal ends a step and undoes it, so steps are short, and tried again: a program may have a timer that ticks.
    pub fn commit(fd: impl AsFd, offset: usize, length: usize) -> Result<()> {
        for done in (0..length).step_by(STEP) {
            let (start, bytes) = (offset + done, STEP.min(length - done));
            let step = || rustix::fs::fallocate(&fd, FallocateFlags::empty(), start as u64, bytes as u64);
            rustix::io::retry_on_intr(step).map_err(|errno| {
                Error::system(
                    format_args!(
                        "cannot commit {length} bytes of shared memory (is the container's memory limit reached?)"
                    ),
                    errno,
                )
            })?;
        }
        Ok(())
    }

    /// Memory of this process alone, for groups that cannot share any.
    pub fn private(length: usize) -> Result<Arc<Self>> {
        // SAFETY: as in `open`.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .map_err(|errno| Error::system(format_args!("cannot map {length} bytes"), errno))?;
        let start = NonNull::new(start.cast()).ok_or_else(|| Error::Internal("mmap gave NULL".into()))?;
        Ok(Arc::new(Mapping { start, length, identity: None }))
    }

    /// The bytes from `offset` on; `length` of them are checked to lie inside.
    ///
    /// # Panics
    /// Where they do not: the layout of a segment is this crate's own arithmetic.
    pub fn at(&self, offset: usize, length: usize) -> NonNull<u8> {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.length), "outside the mapping");
        // SAFETY: `offset` lies inside the mapping, as just checked.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some(identity) = self.identity {
            let mut mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(table) = mapped.as_mut()
                && table.get(&identity).is_some_and(|entry| entry.strong_count() == 0)
            {
                table.remove(&identity);
            }
        }
        // SAFETY: the range was mapped by this value, whose users are gone with it.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_one_process_share_one_mapping() {
        let fd = Mapping::create("test", 4096).unwrap();
        let first = Mapping::open(&fd, 4096).unwrap();
        let second = Mapping::open(fd.try_clone().unwrap(), 4096).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        drop((first, second));
        assert!(!MAPPED.lock().unwrap().as_ref().unwrap().values().any(|entry| entry.strong_count() == 0));
    }

    #[test]
    fn signals_do_not_keep_memory_from_being_committed() {
        const BYTES: usize = 64 << 20;
        extern "C" fn nothing(_: i32) {}
        // SAFETY: a handler that does nothing may run at any time.
        unsafe { libc::signal(libc::SIGUSR1, nothing as *const () as libc::sighandler_t) };
        let fd = Mapping::create("test", BYTES).unwrap();
        // SAFETY: it names this thread, which outlives those that use it.
        let committing = unsafe { libc::pthread_self() };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20 {
                    // SAFETY: as above.
                    unsafe { libc::pthread_kill(committing, libc::SIGUSR1) };
                    // The time between two signals, as a program's timer has it: long enough for a step, not for all.
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
            });
            Mapping::commit(&fd, 0, BYTES).unwrap();
        });
    }

    #[test]
    fn memory_of_another_size_or_without_seals_is_refused() {
        let fd = Mapping::create("test", 4096).unwrap();
        assert!(Mapping::open(&fd, 8192).is_err());
        let unsealed = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&unsealed, 4096).unwrap();
        assert!(Mapping::open(&unsealed, 4096).is_err());
    }
}
