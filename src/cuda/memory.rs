//! Device memory that other ranks reach, and how it gets to them.
//!
//! | way | used where | what travels |
//! |-----|------------|--------------|
//! | plain       | all ranks are in one process | the address |
//! | descriptors | several processes, whose devices export: the rule | a descriptor over the control plane, mapped by each process |
//! | handles     | several processes, and a device cannot export, or that fails | a legacy IPC handle |
//!
//! Within a process it is always the address: two mappings of one memory in one context are aliases, whose order
//! the programming model leaves open.
//!
//! Memory is not given back while a kernel may run that touches it, nor while any group of this process lives: giving
//! it back can wait for whatever runs on the device, which may wait for the very thread that gives it back. Until
//! then it is *parked*.

use std::{
    collections::HashMap,
    ffi::c_void,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use super::{
    device::Device,
    driver::{self, Access, Address, AllocationProperties, CudaError, IpcHandle, Location, Physical},
};
use crate::error::{Error, Result};

/// How memory gets to the other ranks of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// As descriptors.
    Descriptors,
    /// As addresses.
    Plain,
    /// As IPC handles.
    Handles,
}

impl Way {
    /// The way for a group of which all this is known on every rank.
    pub(super) fn of(all_export: bool, one_process: bool) -> Way {
        match (all_export, one_process) {
            (_, true) => Way::Plain,
            (true, false) => Way::Descriptors,
            (false, false) => Way::Handles,
        }
    }
}

/// A stretch of device memory that this process can use.
pub(super) struct Memory {
    device: &'static Device,
    address: Address,
    bytes: usize,
    origin: Origin,
}

enum Origin {
    /// Allocated here.
    Allocated,
    /// Allocated here, and opened by other processes.
    Lent,
    /// Physical memory, made here or by a peer, mapped here.
    Mapped(Physical),
    /// A peer's allocation, opened here.
    Opened,
}

/// What a peer needs to reach memory, beside a descriptor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ticket {
    address: u64,
    bytes: u64,
    /// In the table of the process that made it.
    key: u64,
    handle: Vec<u8>,
}

/// Memory of this process that ranks of this process may share by address.
static SHARED: Mutex<Option<HashMap<u64, Weak<Memory>>>> = Mutex::new(None);
static NEXT_KEY: AtomicU64 = AtomicU64::new(1);

impl Memory {
    /// New, cleared memory of at least `bytes`, what peers need to reach it, and a descriptor where that is the way.
    pub(super) fn make(device: &'static Device, bytes: u64, way: Way) -> Result<(Arc<Self>, Ticket, Option<OwnedFd>)> {
        let entered = device.enter()?;
        let mut memory = match way {
            Way::Descriptors => Memory::map_new(device, bytes as usize)?,
            Way::Plain | Way::Handles => Memory::allocate(device, bytes as usize)?,
        };
        drop(entered);
        let (descriptor, handle) = match memory.prepare(way) {
            Ok(prepared) => prepared,
            Err(error) => {
                park(Box::new(memory));
                return Err(error);
            }
        };
        let memory = Arc::new(memory);
        let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = shared.get_or_insert_default();
        shared.retain(|_, memory| memory.strong_count() > 0);
        shared.insert(key, Arc::downgrade(&memory));
        let ticket = Ticket { address: memory.address, bytes: memory.bytes as u64, key, handle: handle.0.to_vec() };
        Ok((memory, ticket, descriptor))
    }

    /// Readies new memory for peers, and clears it.
    fn prepare(&mut self, way: Way) -> Result<(Option<OwnedFd>, IpcHandle)> {
        let device = self.device;
        let _entered = device.enter()?;
        let descriptor = match self.origin {
            Origin::Mapped(physical) => Some(export(device, physical)?),
            _ => None,
        };
        let mut handle = IpcHandle([0; 64]);
        if way == Way::Handles {
            // SAFETY: `handle` is writable and the address an allocation's.
            unsafe { device.driver.ipc_get_handle(&mut handle, self.address) }
                .map_err(|error| error.during(format_args!("a handle for other processes on {device}")))?;
            self.origin = Origin::Lent;
        }
        device.fill(self.address, 0, self.bytes)?;
        Ok((descriptor, handle))
    }

    /// A peer's memory, for the kernels of `device`. `here`: the peer is in this process.
    pub(super) fn reach(
        device: &'static Device,
        ticket: &Ticket,
        descriptor: Option<&OwnedFd>,
        way: Way,
        here: bool,
    ) -> Result<Arc<Self>> {
        let bytes = ticket.bytes as usize;
        if here {
            let shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
            let memory = shared.as_ref().and_then(|shared| shared.get(&ticket.key)).and_then(Weak::upgrade);
            let memory = memory.ok_or_else(|| Error::Internal("a peer's memory is not there any more".into()))?;
            memory.let_in(device)?;
            return Ok(memory);
        }
        let _entered = device.enter()?;
        match (way, descriptor) {
            (Way::Descriptors, Some(descriptor)) => {
                let mut physical = 0;
                // SAFETY: `physical` is writable; the driver takes a copy of the descriptor.
                let imported = unsafe {
                    let number = descriptor.as_raw_fd() as usize as *mut c_void;
                    device.driver.mem_import(&mut physical, number, driver::HANDLE_DESCRIPTOR)
                };
                imported.map_err(|error| error.during(format_args!("memory of a peer for {device}")))?;
                Memory::map(device, physical, bytes).map(Arc::new)
            }
            (Way::Handles, _) => {
                let bytes_of_handle = ticket.handle.as_slice().try_into();
                let handle = IpcHandle(bytes_of_handle.map_err(|_| Error::Internal("a handle of odd size".into()))?);
                let (mut address, lazily_enable_peer_access) = (0, 1);
                // SAFETY: `address` is writable, the handle a peer's.
                unsafe { device.driver.ipc_open_handle(&mut address, handle, lazily_enable_peer_access) }
                    .map_err(|error| error.during(format_args!("memory of a peer for {device}")))?;
                Ok(Arc::new(Memory { device, address, bytes, origin: Origin::Opened }))
            }
            _ => Err(Error::Internal("a peer's memory came in no way that reaches it".into())),
        }
    }

    /// Lets another device of this process use it.
    fn let_in(&self, device: &'static Device) -> Result<()> {
        if device.handle == self.device.handle {
            return Ok(());
        }
        if !matches!(self.origin, Origin::Mapped(_)) {
            return device.reach(self.device);
        }
        let _entered = device.enter()?;
        // SAFETY: the whole of a mapping that is ours.
        unsafe { device.driver.mem_set_access(self.address, self.bytes, &access_of(device), 1) }
            .map_err(|error| error.during(format_args!("access from {device} to memory of {}", self.device)))
    }

    /// Where kernels of this process's device find it.
    pub(super) fn address(&self) -> Address {
        self.address
    }

    /// Its length, which may be more than was asked for.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    fn allocate(device: &'static Device, bytes: usize) -> Result<Self> {
        let mut address = 0;
        // SAFETY: `address` is writable.
        unsafe { device.driver.mem_alloc(&mut address, bytes) }.map_err(|error| error.during(what(bytes, device)))?;
        Ok(Memory { device, address, bytes, origin: Origin::Allocated })
    }

    fn map_new(device: &'static Device, bytes: usize) -> Result<Self> {
        let properties = AllocationProperties {
            kind: driver::ALLOCATION_PINNED,
            handles: driver::HANDLE_DESCRIPTOR,
            location: Location { kind: driver::LOCATION_DEVICE, id: device.handle },
            security: std::ptr::null_mut(),
            flags: [0; 8],
        };
        let (mut unit, mut physical) = (0, 0);
        // SAFETY: everything pointed to is there for the call.
        unsafe { device.driver.mem_get_granularity(&mut unit, &properties, 0) }
            .map_err(|error| error.during(what(bytes, device)))?;
        let rounded = bytes.checked_next_multiple_of(unit.max(1));
        let bytes = rounded.ok_or_else(|| Error::OutOfMemory(what(bytes, device)))?;
        // SAFETY: as above.
        unsafe { device.driver.mem_create(&mut physical, bytes, &properties, 0) }
            .map_err(|error| error.during(what(bytes, device)))?;
        Memory::map(device, physical, bytes)
    }

    /// Maps physical memory, which then belongs to the value: it is released on failure too.
    fn map(device: &'static Device, physical: Physical, bytes: usize) -> Result<Self> {
        let driver = device.driver;
        let access = access_of(device);
        let mut address = 0;
        // SAFETY: a fresh range of addresses, onto which the whole of the memory is mapped.
        let mapped: Result<(), CudaError> = unsafe {
            driver.mem_address_reserve(&mut address, bytes, 0, 0, 0).and_then(|()| {
                driver.mem_map(address, bytes, 0, physical, 0).and_then(|()| {
                    let granted = driver.mem_set_access(address, bytes, &access, 1);
                    granted.inspect_err(|_| drop(driver.mem_unmap(address, bytes)))
                })
            })
        };
        mapped.map(|()| Memory { device, address, bytes, origin: Origin::Mapped(physical) }).map_err(|error| {
            // SAFETY: nothing is mapped there any more, and the memory is not used.
            unsafe {
                if address != 0 {
                    let _ = driver.mem_address_free(address, bytes);
                }
                let _ = driver.mem_release(physical);
            }
            error.during(format_args!("mapping {bytes} bytes on {device}"))
        })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let Ok(_entered) = self.device.enter() else { return };
        let driver = self.device.driver;
        // SAFETY: whoever owned it saw to it that no kernel uses it any more (see `park`).
        let freed = unsafe {
            match self.origin {
                Origin::Allocated => driver.mem_free(self.address),
                // A peer may still have it open, and to free it then is undefined: it stays until the process ends.
                Origin::Lent => {
                    log::info!(target: "tutti::cuda", "{} bytes on {} were lent to processes and stay", self.bytes, self.device);
                    Ok(())
                }
                Origin::Opened => driver.ipc_close_handle(self.address),
                Origin::Mapped(physical) => driver
                    .mem_unmap(self.address, self.bytes)
                    .and_then(|()| driver.mem_address_free(self.address, self.bytes))
                    .and_then(|()| driver.mem_release(physical)),
            }
        };
        if let Err(error) = freed {
            log::warn!(target: "tutti::cuda", "{} bytes on {} are not given back: {error}", self.bytes, self.device);
        }
    }
}

/// Memory on its way to a group; what does not get there is parked.
#[derive(Default)]
pub(super) struct Underway(Vec<Arc<Memory>>);

impl Underway {
    /// One more.
    pub(super) fn push(&mut self, memory: Arc<Memory>) {
        self.0.push(memory);
    }

    /// It has arrived.
    pub(super) fn take(&mut self) -> Vec<Arc<Memory>> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            park(Box::new(self.take()));
        }
    }
}

/// Groups of this process that have device memory.
static GROUPS: AtomicUsize = AtomicUsize::new(0);
/// What they left behind.
static PARKED: Mutex<Vec<Box<dyn Send>>> = Mutex::new(Vec::new());

/// Held by every group that may launch kernels: while one is, nothing that was parked is given back.
pub(super) struct Presence(());

impl Presence {
    /// One more group.
    pub(super) fn new() -> Self {
        GROUPS.fetch_add(1, Ordering::AcqRel);
        Presence(())
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        if GROUPS.fetch_sub(1, Ordering::AcqRel) == 1 {
            let parked = std::mem::take(&mut *PARKED.lock().unwrap_or_else(PoisonError::into_inner));
            drop(parked);
        }
    }
}

/// Keeps what a group leaves behind until no group is left in this process; if none is, that is now.
pub(super) fn park(left: Box<dyn Send>) {
    let mut parked = PARKED.lock().unwrap_or_else(PoisonError::into_inner);
    // Whoever is the last to go empties the list after it has counted down.
    if GROUPS.load(Ordering::Acquire) > 0 {
        parked.push(left);
    }
}

fn export(device: &Device, physical: Physical) -> Result<OwnedFd> {
    let mut number: i32 = -1;
    // SAFETY: the driver writes an int there.
    unsafe { device.driver.mem_export((&raw mut number).cast(), physical, driver::HANDLE_DESCRIPTOR, 0) }
        .map_err(|error| error.during(format_args!("a descriptor for memory of {device}")))?;
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn access_of(device: &Device) -> Access {
    Access { location: Location { kind: driver::LOCATION_DEVICE, id: device.handle }, flags: driver::ACCESS_READ_WRITE }
}

fn what(bytes: usize, device: &Device) -> String {
    format!("{bytes} bytes on {device}")
}
