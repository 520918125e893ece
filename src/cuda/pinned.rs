//! Host memory that a device copies from and to without the host's help.
//!
//! Registering such memory with the driver, and ending that, may wait for what runs on the device, which may wait for the
//! very rank that does it. So what is not needed any more stays registered, for whoever needs some next, until no group of
//! this process is left.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{device::Device, driver, lane::Mark, memory};
use crate::{
    bootstrap::mapping::Mapping,
    error::{Error, Result},
};

/// The unit in which it grows.
const GROWTH: usize = 1 << 20;
/// How much larger than needed memory may be that is used again, as a factor.
const WASTE: usize = 4;

/// See the module.
pub struct Pinned {
    device: &'static Device,
    block: Option<Block>,
}

impl Pinned {
    /// None yet.
    pub fn new(device: &'static Device) -> Self {
        Pinned { device, block: None }
    }

    /// Of at least `bytes`; nothing for none.
    pub fn with(device: &'static Device, bytes: usize) -> Result<Self> {
        if bytes == 0 {
            return Ok(Pinned::new(device));
        }
        let block = match Block::left_over(device, bytes) {
            Some(block) => block,
            None => Block::register(device, bytes)?,
        };
        Ok(Pinned { device, block: Some(block) })
    }

    /// Where it begins.
    pub fn start(&self) -> *mut u8 {
        self.block.as_ref().map_or(std::ptr::dangling_mut(), Block::start)
    }

    /// To be called before copies are enqueued: the device may copy from it or to it, and nobody else gets it, until
    /// [`Pinned::keep_until`] has said how long. If that fails, it is for good.
    pub fn keep(&mut self) {
        self.set(Use::Unsettled);
    }

    /// Until a mark is passed, the device may copy from it or to it: nobody else gets it before.
    pub fn keep_until(&mut self, mark: &Arc<Mark>) {
        self.set(Use::Until(mark.clone()));
    }

    fn set(&mut self, use_: Use) {
        if let Some(block) = &mut self.block {
            block.use_ = use_;
        }
    }

    /// Whether the last such mark was passed.
    pub fn is_at_rest(&self) -> Result<bool> {
        self.block.as_ref().map_or(Ok(true), Block::is_at_rest)
    }

    /// Grows to `bytes`; what was in it is lost.
    pub fn make_room(&mut self, bytes: usize) -> Result<()> {
        if bytes > self.block.as_ref().map_or(0, |block| block.length) {
            *self = Pinned::with(self.device, bytes.max(GROWTH))?;
        }
        Ok(())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            let mut spare = spare();
            spare.blocks.push(block);
            let is_watched = std::mem::replace(&mut spare.is_watched, true);
            drop(spare);
            if !is_watched {
                memory::park(Box::new(Leftovers));
            }
        }
    }
}

/// Registered memory.
struct Block {
    device: &'static Device,
    mapping: Arc<Mapping>,
    length: usize,
    use_: Use,
}

/// What the device does with a block.
enum Use {
    Rest,
    /// Copies, nobody knows how long.
    Unsettled,
    /// Copies that are over when the mark is passed.
    Until(Arc<Mark>),
}

/// What nobody needs.
struct Spare {
    blocks: Vec<Block>,
    /// Whether a [`Leftovers`] is parked.
    is_watched: bool,
}

static SPARE: Mutex<Spare> = Mutex::new(Spare { blocks: Vec::new(), is_watched: false });

fn spare() -> MutexGuard<'static, Spare> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives what nobody needs back when it goes, which is when no group is left.
struct Leftovers;

impl Drop for Leftovers {
    fn drop(&mut self) {
        let mut spare = spare();
        spare.is_watched = false;
        let blocks = std::mem::take(&mut spare.blocks);
        drop(spare);
        for block in blocks {
            // What a device still copies from or to stays, rather than let the driver wait without end.
            if !matches!(block.is_at_rest(), Ok(true)) {
                log::info!(target: "tutti::cuda", "{} bytes of host memory stay: a copy goes on", block.length);
                std::mem::forget(block);
            }
        }
    }
}

impl Block {
    fn register(device: &'static Device, bytes: usize) -> Result<Block> {
        // Doubling, so that all blocks together are at most twice the largest for whoever needs more and more.
        let length = bytes.max(page()).checked_next_power_of_two();
        let length = length.ok_or_else(|| Error::OutOfMemory(format!("{bytes} bytes of host memory for {device}")))?;
        let mapping = Mapping::private(length)?;
        let _entered = device.enter()?;
        // SAFETY: the memory is ours, and mapped until it is unregistered.
        unsafe {
            let host = mapping.at(0, length).as_ptr().cast();
            device.driver.mem_host_register(host, length, driver::HOST_PORTABLE_MAPPED)
        }
        .map_err(|error| error.during(format_args!("{length} bytes of host memory for {device}")))?;
        Ok(Block { device, mapping, length, use_: Use::Rest })
    }

    /// The smallest spare one that will do.
    fn left_over(device: &'static Device, bytes: usize) -> Option<Block> {
        let blocks = &mut spare().blocks;
        let fits = |block: &Block| {
            block.device.handle == device.handle
                && block.length >= bytes
                && block.length <= bytes.max(GROWTH).saturating_mul(WASTE)
                && matches!(block.is_at_rest(), Ok(true))
        };
        let best = (0..blocks.len()).filter(|at| fits(&blocks[*at])).min_by_key(|at| blocks[*at].length)?;
        Some(blocks.swap_remove(best))
    }

    fn is_at_rest(&self) -> Result<bool> {
        match &self.use_ {
            Use::Rest => Ok(true),
            Use::Unsettled => Ok(false),
            Use::Until(mark) => mark.is_passed(),
        }
    }

    fn start(&self) -> *mut u8 {
        self.mapping.at(0, self.length).as_ptr()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let Ok(_entered) = self.device.enter() else { return std::mem::forget(self.mapping.clone()) };
        // SAFETY: it was registered; the driver waits for copies that use it.
        let _ = unsafe { self.device.driver.mem_host_unregister(self.start().cast()) };
    }
}

/// Bytes of what can be registered at least: two registrations may not share a page of the system.
pub(super) fn page() -> usize {
    rustix::param::page_size()
}
