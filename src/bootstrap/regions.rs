//! Registered memory: what `tutti_mem_alloc` gave out, and where every rank's part of it lies in this process.
//!
//! A [`Region`] is one mapping with a part for each rank of the group that asked for it. Its parts are known to all groups
//! of a rank, so those made from that group reach them too. It lives until its owner frees it, whatever becomes of the
//! groups. Nothing here moves data or talks to another rank.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use super::mapping::Mapping;
use crate::error::{Error, Result};

/// Memory that all ranks of a group asked for together.
#[derive(Debug)]
pub struct Region {
    /// Unique in the world, equal on all members, and never 0.
    id: u64,
    /// World ranks of the group, in its order.
    ranks: Vec<u32>,
    /// Bytes of each rank's part.
    part: usize,
    mapping: Arc<Mapping>,
    /// Which part is this rank's.
    mine: usize,
}

impl Region {
    /// The region `id` of the members `ranks` of the world, of whom this rank is number `mine`.
    pub fn new(id: u64, ranks: Vec<u32>, part: usize, mapping: Arc<Mapping>, mine: usize) -> Self {
        Region { id, ranks, part, mapping, mine }
    }

    /// Its number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where `offset` of a world rank's part lies in this process, if `length` bytes from there on do.
    pub fn at(&self, world_rank: u32, offset: usize, length: usize) -> Option<*mut u8> {
        let index = self.ranks.iter().position(|rank| *rank == world_rank)?;
        let end = offset.checked_add(length)?;
        (end <= self.part).then(|| self.mapping.at(index * self.part + offset, length).as_ptr())
    }

    /// How far into this rank's part an address lies, if `length` bytes from there on do.
    fn offset(&self, start: *const u8, length: usize) -> Option<usize> {
        let offset = start.addr().checked_sub(self.start())?;
        (offset.checked_add(length)? <= self.part).then_some(offset)
    }

    fn start(&self) -> usize {
        self.mapping.at(self.mine * self.part, self.part).as_ptr().addr()
    }
}

/// The regions of one rank.
#[derive(Debug, Default)]
pub struct Regions {
    /// How many there are, so that ranks that have none never take the lock.
    count: AtomicUsize,
    list: RwLock<Vec<Arc<Region>>>,
    /// The highest number that an allocation of this rank had.
    last: AtomicU64,
}

impl Regions {
    /// The region that has `length` bytes from `start` on in this rank's part, and how far into it they lie.
    #[inline]
    pub fn find(&self, start: *const u8, length: usize) -> Option<(Arc<Region>, usize)> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        list.iter().find_map(|region| region.offset(start, length).map(|offset| (region.clone(), offset)))
    }

    /// A number for an allocation, above all that this rank has taken part in.
    pub fn next(&self) -> u64 {
        self.last.load(Ordering::Relaxed) + 1
    }

    /// Takes part in the allocation of that number.
    pub fn reach(&self, number: u64) {
        self.last.fetch_max(number, Ordering::Relaxed);
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Region>>)) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut list);
        self.count.store(list.len(), Ordering::Relaxed);
    }
}

/// What was given out and not yet freed, by address: whoever frees has nothing but that.
static GIVEN: Mutex<BTreeMap<usize, TakeBack>> = Mutex::new(BTreeMap::new());

/// What is to be done with memory that is freed.
type TakeBack = Box<dyn FnOnce() + Send>;

/// Gives this rank's part of a region out, and makes it known to the rank's groups (`known_to`), if others can reach it.
pub fn give(region: Region, known_to: Option<&Arc<Regions>>) -> *mut u8 {
    let region = Arc::new(region);
    if let Some(regions) = known_to {
        regions.change(|list| list.push(region.clone()));
    }
    let start = region.mapping.at(region.mine * region.part, region.part).as_ptr();
    let known_to = known_to.map(Arc::downgrade);
    hand_out(start, move || {
        if let Some(regions) = known_to.and_then(|regions| regions.upgrade()) {
            regions.change(|list| list.retain(|known| !Arc::ptr_eq(known, &region)));
        }
    });
    start
}

/// Lets memory be freed by [`take_back`], which then calls `take_back`.
pub fn hand_out(start: *mut u8, take_back: impl FnOnce() + Send + 'static) {
    given().insert(start.addr(), Box::new(take_back));
}

/// Takes memory back that was given out.
pub fn take_back(memory: *mut u8) -> Result<()> {
    let taken = given().remove(&memory.addr());
    let take_back = taken
        .ok_or_else(|| Error::invalid(format_args!("{memory:p} is no memory of tutti_mem_alloc, or was freed")))?;
    take_back();
    Ok(())
}

fn given() -> MutexGuard<'static, BTreeMap<usize, TakeBack>> {
    GIVEN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_is_found_by_address_until_it_is_taken_back() {
        let regions = Arc::new(Regions::default());
        let mapping = Mapping::private(3 * 4096).unwrap();
        let start = give(Region::new(7, vec![4, 2, 9], 4096, mapping.clone(), 1), Some(&regions));
        assert_eq!(start, mapping.at(4096, 4096).as_ptr());
        let (region, offset) = regions.find(start.wrapping_add(100), 3996).unwrap();
        assert_eq!((region.id(), offset), (7, 100));
        assert_eq!(region.at(9, 8, 4088), Some(mapping.at(2 * 4096 + 8, 0).as_ptr()));
        assert_eq!(region.at(9, 8, 4089), None);
        assert_eq!(region.at(3, 0, 1), None);
        for (address, length) in [(start.wrapping_add(100), 3997), (start.wrapping_sub(1), 1), (start, usize::MAX)] {
            assert!(regions.find(address, length).is_none(), "beyond this rank's part");
        }
        take_back(start).unwrap();
        assert!(regions.find(start, 1).is_none());
        assert!(take_back(start).is_err());
    }
}
