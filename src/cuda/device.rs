//! A CUDA device as this process uses it: its primary context, what is known of it, and the kernels in it.
//!
//! A device that was opened stays open: frameworks share its primary context, and kernels of a captured graph may run
//! as long as the process does. Calls leave the caller's current context as they found it.

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char, c_int, c_void},
    fmt, ptr,
    sync::{Mutex, OnceLock, PoisonError},
};

use super::{
    driver::{self, Context, CudaError, Driver, Stream, Uuid},
    kernels::Kernels,
};
use crate::error::{Error, Result};

/// A device of this process.
pub struct Device {
    /// Its driver.
    pub driver: &'static Driver,
    /// Its number in this process, after CUDA_VISIBLE_DEVICES.
    pub ordinal: i32,
    /// Its number in the driver.
    pub handle: driver::Device,
    /// What it is called in every process and after every reboot.
    pub uuid: Uuid,
    /// For texts.
    pub name: String,
    /// 90 for sm_90.
    pub arch: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Whether its memory can be handed to another process as a descriptor.
    pub exports: bool,
    context: Context,
    kernels: OnceLock<Result<Kernels>>,
    /// A stream of our own, for what must not wait for the caller's.
    stream: Stream,
}

// SAFETY: a context and a stream of the driver may be used from any thread.
unsafe impl Send for Device {}
// SAFETY: as above; what changes is behind a OnceLock.
unsafe impl Sync for Device {}

impl Device {
    /// Opens the device with this number, or says why it cannot be used.
    pub fn open(ordinal: i32) -> Result<&'static Device> {
        static OPEN: Mutex<BTreeMap<i32, &'static Device>> = Mutex::new(BTreeMap::new());
        let driver = Driver::get().map_err(|why| Error::Unsupported(format!("no CUDA: {why}")))?;
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = open.get(&ordinal) {
            return Ok(device);
        }
        let device: &'static Device = Box::leak(Box::new(Device::make(driver, ordinal)?));
        open.insert(ordinal, device);
        Ok(device)
    }

    /// The device with this UUID.
    pub fn open_by_uuid(uuid: Uuid) -> Result<&'static Device> {
        let driver = Driver::get().map_err(|why| Error::Unsupported(format!("no CUDA: {why}")))?;
        for ordinal in 0..count(driver)? {
            if identify(driver, ordinal)?.1 == uuid {
                return Device::open(ordinal);
            }
        }
        Err(Error::Unsupported(format!("no device here is {uuid}; is it hidden by CUDA_VISIBLE_DEVICES?")))
    }

    fn make(driver: &'static Driver, ordinal: i32) -> Result<Device> {
        let there = count(driver)?;
        if !(0..there).contains(&ordinal) {
            return Err(Error::Unsupported(format!("there is no CUDA device {ordinal}: this process sees {there}")));
        }
        let during =
            |what: &'static str| move |error: CudaError| error.during(format_args!("{what} of CUDA device {ordinal}"));
        let (handle, uuid) = identify(driver, ordinal)?;
        let attribute = |number: c_int| {
            let mut value = 0;
            // SAFETY: `value` is writable.
            unsafe { driver.device_get_attribute(&mut value, number, handle) }.map_err(during("an attribute"))?;
            Ok::<_, Error>(value)
        };
        let arch = (attribute(driver::MAJOR)? * 10 + attribute(driver::MINOR)?) as u32;
        let multiprocessors = attribute(driver::MULTIPROCESSORS)? as u32;
        let exports = attribute(driver::VIRTUAL_MEMORY)? != 0 && attribute(driver::POSIX_DESCRIPTORS)? != 0;
        let mut text = [0 as c_char; 256];
        let mut context = ptr::null_mut();
        // SAFETY: the buffers are writable and as long as said.
        unsafe { driver.device_get_name(text.as_mut_ptr(), text.len() as c_int - 1, handle) }
            .map_err(during("the name"))?;
        // SAFETY: the driver ends the text with NUL, and the last byte was left 0.
        let name = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned();
        // SAFETY: `context` is writable. It is retained for good.
        unsafe { driver.primary_ctx_retain(&mut context, handle) }.map_err(during("the primary context"))?;
        let kernels = OnceLock::new();
        let mut device = Device {
            driver,
            ordinal,
            handle,
            uuid,
            name,
            arch,
            multiprocessors,
            exports,
            context,
            kernels,
            stream: ptr::null_mut(),
        };
        let mut stream = ptr::null_mut();
        {
            let _entered = device.enter()?;
            // SAFETY: `stream` is writable. It is kept for good.
            unsafe { driver.stream_create(&mut stream, driver::STREAM_NON_BLOCKING) }.map_err(during("a stream"))?;
        }
        device.stream = stream;
        Ok(device)
    }

    /// Makes the device's context the current one of this thread, until the guard is dropped; [`beside_captures`], too.
    pub fn enter(&self) -> Result<Entered<'_>> {
        // SAFETY: the context is retained for as long as the process lives.
        unsafe { self.driver.ctx_push_current(self.context) }.map_err(|error| error.during(format_args!("{self}")))?;
        Ok(Entered { device: self, _beside: beside_captures(self.driver) })
    }

    /// Whether the device's context is current in this thread.
    pub fn is_current(&self) -> bool {
        let mut current = ptr::null_mut();
        // SAFETY: `current` is writable.
        unsafe { self.driver.ctx_get_current(&mut current) }.is_ok() && current == self.context
    }

    /// The kernels, loaded when they are first asked for: all of them, since loading one while another waits for a
    /// peer could wait for that one's end.
    pub(super) fn kernels(&self) -> Result<&Kernels> {
        self.kernels.get_or_init(|| Kernels::load(self)).as_ref().map_err(Clone::clone)
    }

    /// Lets the memory of `peer` be reached from this device by plain addresses.
    pub fn reach(&self, peer: &Device) -> Result<()> {
        if self.handle == peer.handle {
            return Ok(());
        }
        let _entered = self.enter()?;
        // SAFETY: both contexts are retained for good.
        match unsafe { self.driver.ctx_enable_peer_access(peer.context, 0) } {
            Err(error) if error.code != driver::PEER_ACCESS_ALREADY_ENABLED => {
                Err(error.during(format_args!("access from {self} to {peer}")))
            }
            _ => Ok(()),
        }
    }

    /// What the driver knows of an address.
    pub fn facts(&self, address: driver::Address) -> Result<Facts, CudaError> {
        let mut facts = Facts { kind: 0, ordinal: -1, base: 0, bytes: 0 };
        let mut data: [*mut c_void; 4] = [
            (&raw mut facts.kind).cast(),
            (&raw mut facts.ordinal).cast(),
            (&raw mut facts.base).cast(),
            (&raw mut facts.bytes).cast(),
        ];
        // Without a context the driver may know no address.
        let _entered = self.enter().ok();
        // SAFETY: four attributes, and a place of the right size for each.
        unsafe { self.driver.pointer_get_attributes(4, driver::POINTER_FACTS.as_ptr(), data.as_mut_ptr(), address) }?;
        Ok(facts)
    }

    /// What the driver knows of some memory of this device, of which all of it must be one allocation; `None` for memory of
    /// the host, or no memory at all.
    pub fn owned(&self, start: driver::Address, length: u64) -> Result<Option<Facts>> {
        if length == 0 {
            return Ok(None);
        }
        let facts = self.facts(start).map_err(|error| error.during(format_args!("whose memory {start:#x} is")))?;
        if facts.kind != driver::MEMORY_OF_DEVICE {
            return Ok(None);
        }
        if facts.ordinal != self.ordinal {
            return Err(Error::invalid(format_args!(
                "{start:#x} is memory of CUDA device {}, and this rank's device is {self}",
                facts.ordinal
            )));
        }
        if !facts.holds(start, length) {
            return Err(Error::invalid(format_args!(
                "it takes {length} bytes from {start:#x} on, but the allocation ends at {:#x}",
                facts.end()
            )));
        }
        Ok(Some(facts))
    }

    /// Whether a stream of this device is being captured.
    #[expect(
        clippy::not_unsafe_ptr_arg_deref,
        reason = "a stream is a handle of the driver; nobody here looks behind it"
    )]
    pub fn is_capturing(&self, stream: Stream) -> Result<bool> {
        let _entered = if self.is_current() { None } else { Some(self.enter()?) };
        let mut status = 0;
        // SAFETY: `status` is writable, the stream the caller's.
        unsafe { self.driver.stream_is_capturing(stream, &mut status) }
            .map_err(|error| error.during("whether the stream is captured"))?;
        Ok(status != driver::CAPTURE_NONE)
    }

    /// Writes some device memory, and waits for that.
    pub fn write(&self, address: driver::Address, content: &[u8]) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the caller owns the memory; the content stays until the copy is over; the stream is ours.
        unsafe {
            self.driver
                .memcpy_async(address, content.as_ptr() as u64, content.len(), self.stream)
                .and_then(|()| self.driver.stream_synchronize(self.stream))
        }
        .map_err(|error| error.during(format_args!("writing {} bytes on {self}", content.len())))
    }

    /// Sets every byte of some device memory, and waits for that.
    pub fn fill(&self, address: driver::Address, byte: u8, bytes: usize) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the caller owns the memory; the stream is ours.
        unsafe {
            self.driver
                .memset_async(address, byte, bytes, self.stream)
                .and_then(|()| self.driver.stream_synchronize(self.stream))
        }
        .map_err(|error| error.during(format_args!("filling {bytes} bytes on {self}")))
    }
}

/// See [`Device::facts`].
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// [`driver::MEMORY_OF_DEVICE`], or memory of the host.
    pub kind: u32,
    /// The device that has it.
    pub ordinal: i32,
    /// Where the allocation begins; 0 if the driver does not say.
    pub base: u64,
    /// How long it is.
    pub bytes: usize,
}

impl Facts {
    /// Where the allocation ends.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.bytes as u64)
    }

    /// Whether all these bytes are in the allocation, as far as the driver says.
    pub fn holds(&self, start: u64, length: u64) -> bool {
        self.bytes == 0 || self.base <= start && start.saturating_add(length) <= self.end()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CUDA device {} ({}, {})", self.ordinal, self.name, self.uuid)
    }
}

/// A context that is current in this thread.
pub struct Entered<'a> {
    device: &'a Device,
    _beside: Beside,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut popped = ptr::null_mut();
        // SAFETY: `popped` is writable; the top of the stack is what `enter` pushed.
        let _ = unsafe { self.device.driver.ctx_pop_current(&mut popped) };
    }
}

/// Lets this thread ask events, allocate and wait for a stream of ours, until the guard is dropped, while it or another
/// thread captures a stream. By default the driver takes any of that for a mistake, and the **capture** fails, which is
/// somebody else's: it cannot know that no captured stream is concerned.
pub fn beside_captures(driver: &'static Driver) -> Beside {
    let mut mode = driver::CAPTURE_MODE_RELAXED;
    // SAFETY: `mode` is writable; it is given the thread's mode so far.
    let exchanged = unsafe { driver.exchange_capture_mode(&mut mode) };
    Beside { driver, before: exchanged.is_ok().then_some(mode) }
}

/// See [`beside_captures`].
pub struct Beside {
    driver: &'static Driver,
    before: Option<c_int>,
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(mut mode) = self.before {
            // SAFETY: `mode` is writable, and what it was before.
            let _ = unsafe { self.driver.exchange_capture_mode(&mut mode) };
        }
    }
}

impl fmt::Display for Uuid {
    /// As nvidia-smi writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU-")?;
        for (index, byte) in self.0.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl Uuid {
    /// Reads what `Display` wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text.strip_prefix("GPU-")?.chars().filter(|c| *c != '-').collect();
        let mut bytes = [0; 16];
        if digits.len() != 32 || !digits.is_ascii() {
            return None;
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(digits.get(2 * index..2 * index + 2)?, 16).ok()?;
        }
        Some(Uuid(bytes))
    }
}

/// How many devices this process sees.
fn count(driver: &Driver) -> Result<i32> {
    let mut count = 0;
    // SAFETY: `count` is writable.
    unsafe { driver.device_get_count(&mut count) }.map_err(|error| error.during("counting the CUDA devices"))?;
    Ok(count)
}

/// A device's handle and name for ever.
fn identify(driver: &Driver, ordinal: i32) -> Result<(driver::Device, Uuid)> {
    let (mut handle, mut uuid) = (0, Uuid::default());
    // SAFETY: both are writable.
    unsafe { driver.device_get(&mut handle, ordinal).and_then(|()| driver.device_get_uuid(&mut uuid, handle)) }
        .map_err(|error| error.during(format_args!("CUDA device {ordinal}")))?;
    Ok((handle, uuid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_reads_as_it_is_written() {
        let uuid = Uuid(std::array::from_fn(|index| index as u8 * 17));
        assert_eq!(uuid.to_string(), "GPU-00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(Uuid::parse(&uuid.to_string()), Some(uuid));
        for wrong in [
            "",
            "GPU-",
            "GPU-00112233-4455-6677-8899-aabbccddeefg",
            "MIG-00112233",
            "GPU-é0112233445566778899aabbccddeef",
        ] {
            assert_eq!(Uuid::parse(wrong), None, "{wrong}");
        }
    }
}
