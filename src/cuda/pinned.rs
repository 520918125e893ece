//! Host memory that a device copies from and to without the host's help.

use std::{ptr::NonNull, sync::Arc};

use super::{device::Device, driver};
use crate::{bootstrap::mapping::Mapping, error::Result};

/// The unit in which it grows.
const GROWTH: usize = 1 << 20;
/// The unit that can be registered.
const PAGE: usize = 4096;

/// See the module.
pub struct Pinned {
    device: &'static Device,
    memory: Option<(Arc<Mapping>, usize)>,
}

impl Pinned {
    /// None yet.
    pub fn new(device: &'static Device) -> Self {
        Pinned { device, memory: None }
    }

    /// Of at least `bytes`.
    pub fn with(device: &'static Device, bytes: usize) -> Result<Self> {
        let length = bytes.max(1).next_multiple_of(PAGE);
        let memory = Mapping::private(length)?;
        let _entered = device.enter()?;
        // SAFETY: the memory is ours, and mapped until it is unregistered.
        unsafe {
            let host = memory.at(0, length).as_ptr().cast();
            device.driver.mem_host_register(host, length, driver::HOST_PORTABLE_MAPPED)
        }
        .map_err(|error| error.during(format_args!("{length} bytes of host memory for {device}")))?;
        Ok(Pinned { device, memory: Some((memory, length)) })
    }

    /// Where it begins.
    pub fn start(&self) -> *mut u8 {
        self.memory.as_ref().map_or(NonNull::dangling().as_ptr(), |(memory, length)| memory.at(0, *length).as_ptr())
    }

    /// Grows to `bytes`; what was in it is lost. Nothing may be copying.
    pub fn make_room(&mut self, bytes: usize) -> Result<()> {
        if bytes <= self.memory.as_ref().map_or(0, |(_, length)| *length) {
            return Ok(());
        }
        self.give_back();
        *self = Pinned::with(self.device, bytes.next_multiple_of(GROWTH))?;
        Ok(())
    }

    fn give_back(&mut self) {
        let Some((memory, length)) = self.memory.take() else { return };
        let Ok(_entered) = self.device.enter() else { return std::mem::forget(memory) };
        // SAFETY: it was registered; the driver waits for copies that use it.
        let _ = unsafe { self.device.driver.mem_host_unregister(memory.at(0, length).as_ptr().cast()) };
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.give_back();
    }
}
