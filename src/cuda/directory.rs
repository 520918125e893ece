//! Where the ranks of one group have registered memory: a table that its kernels read, and what of it is this rank's.
//!
//! A row of the table is one registration, the same row on all ranks; it has the place of every rank's part as the
//! reader's device sees it (`kernels/params.h`, `Location`). A kernel that publishes its data says which row and how far in,
//! and its peers look that up in their own tables. So **a row is filled on every reader before any owner gets the address
//! that the row is about**: [`super::registered`] fills it while the memory is made, and only then is it handed out.
//! Rows are never cleared: a peer may go on using its part after this rank has freed its own.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicUsize, Ordering},
};

use super::{
    device::Device,
    driver::Address,
    memory::{self, Memory},
    params::{LOCATION_SLOT_SHIFT, MAX_WORLD},
    sharing::Sharing,
};
use crate::error::Result;

/// Rows of a table. The first is no row: location 0 is "on my stage".
pub(super) const SLOTS: u32 = 1024;
/// Bytes of a table.
pub(super) const BYTES: u64 = SLOTS as u64 * ROW;
/// Bytes of a row.
const ROW: u64 = MAX_WORLD as u64 * 8;

/// See the module.
pub(super) struct Directory {
    device: &'static Device,
    /// Where the table is.
    address: Address,
    /// The group, by world ranks in its order.
    ranks: Vec<u32>,
    /// How the group shares memory.
    pub(super) sharing: Sharing,
    /// How many buffers of this rank are registered, so that calls of a rank without any never take the lock.
    count: AtomicUsize,
    own: RwLock<Vec<Own>>,
    /// What the table is in.
    memory: Option<Arc<Memory>>,
}

/// A registered buffer of this rank.
#[derive(Clone, Copy)]
struct Own {
    slot: u32,
    start: Address,
    bytes: u64,
}

impl Directory {
    /// An empty one, whose table of [`BYTES`] bytes is `at` bytes into this rank's `memory`, all zero.
    pub(super) fn new(device: &'static Device, ranks: &[u32], sharing: Sharing, memory: Arc<Memory>, at: u64) -> Self {
        Directory {
            device,
            address: memory.address() + at,
            ranks: ranks.to_vec(),
            sharing,
            count: AtomicUsize::new(0),
            own: RwLock::default(),
            memory: Some(memory),
        }
    }

    /// Where kernels find the table.
    pub(super) fn address(&self) -> Address {
        self.address
    }

    /// Whether all ranks of the group are among these.
    pub(super) fn is_within(&self, world_ranks: &[u32]) -> bool {
        self.ranks.iter().all(|rank| world_ranks.contains(rank))
    }

    /// Fills a row: where `part_of` a world rank lies for this rank's device. The owners must not use it yet.
    pub(super) fn fill(&self, slot: u32, part_of: impl Fn(u32) -> Option<Address>) -> Result<()> {
        let mut row = [0_u8; ROW as usize];
        for (place, rank) in row.chunks_exact_mut(8).zip(&self.ranks) {
            place.copy_from_slice(&part_of(*rank).unwrap_or(0).to_le_bytes());
        }
        self.device.write(self.address + u64::from(slot) * ROW, &row)
    }

    /// From now on, calls on this memory of this rank say that it is registered in that row.
    pub(super) fn open(&self, slot: u32, start: Address, bytes: u64) {
        self.change(|own| {
            own.retain(|one| one.slot != slot);
            own.push(Own { slot, start, bytes });
        });
    }

    /// And from now on no more.
    pub(super) fn close(&self, slot: u32) {
        self.change(|own| own.retain(|one| one.slot != slot));
    }

    /// Where peers find `length` bytes from `start` on, as kernels say it; 0 if they are not registered.
    #[inline]
    pub(super) fn locate(&self, start: Address, length: u64) -> u64 {
        if length == 0 || self.count.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        let holds = |one: &&Own| {
            start
                .checked_sub(one.start)
                .and_then(|offset| offset.checked_add(length))
                .is_some_and(|end| end <= one.bytes)
        };
        own.iter().find(holds).map_or(0, |one| u64::from(one.slot) << LOCATION_SLOT_SHIFT | (start - one.start))
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Own>)) {
        let mut own = self.own.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut own);
        self.count.store(own.len(), Ordering::Relaxed);
    }
}

impl Drop for Directory {
    /// Kernels may still read it.
    fn drop(&mut self) {
        memory::park(Box::new(self.memory.take()));
    }
}
