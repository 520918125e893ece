//! Registered device memory: what `tutti_mem_alloc` gives on CUDA groups.
//!
//! A [`Region`] is memory of every rank of a group, mapped by all of them. A rank keeps its regions in a [`Registry`], which
//! makes them known to the directory of every group of theirs, those made later and those made before alike: so the
//! pull kernels of all of them read such buffers where they lie.
//!
//! # Who may still read it
//!
//! Freeing is each rank's own business, and peers may go on with their parts. So what a rank frees stays mapped on all, and
//! in all tables; when all ranks have freed their parts, the group's next allocation that fits gets that region again.
//! What is left when the world goes is parked like all device memory (`memory`), as a kernel may run that reads it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Instant,
};

use serde::{Deserialize, Serialize};

use super::{
    device::Device,
    directory::{self, Directory},
    lane::Lane,
    memory::{self, Memory},
    sharing::say,
};
use crate::{
    bootstrap::{Members, members::first_trouble, regions, session::Session},
    error::{Error, Result, Status},
};

/// How often ranks try to agree on a row.
const ATTEMPTS: u32 = 8;
/// Memory that is used again may be so many times larger than needed, or than what devices give at least.
const WASTE: u64 = 4;
/// See [`WASTE`].
const LEAST: u64 = 2 << 20;

/// Allocates `bytes` on the device of every member. Collective. What it gives is to be handed out at once.
pub async fn allocate(members: Arc<Members>, bytes: usize, deadline: Option<Instant>) -> Result<Given> {
    let ordinal =
        members.device().ok_or_else(|| Error::Internal("device memory for a group without a device".into()))?;
    let device = Device::open(ordinal)?;
    let mut session = members.session(deadline, format!("an allocation of group {:?}", members.name()));
    match allocate_in(&mut session, &members, device, bytes.max(1)).await {
        Ok(given) => session.finish().await.map(|()| given),
        Err(error) => {
            session.give_up(&error);
            Err(error)
        }
    }
}

/// Memory on its way to the caller; dropped, it is freed again.
pub struct Given {
    region: Arc<Region>,
    registry: Weak<Registry>,
}

impl Given {
    /// This rank's part, the caller's until it is freed with [`regions::take_back`].
    pub fn hand_out(self) -> *mut u8 {
        if let Some(registry) = self.registry.upgrade() {
            registry.open(&self.region);
        }
        let start = self.region.start() as *mut u8;
        regions::hand_out(start, move || drop(self));
        start
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.close(&self.region);
        }
    }
}

/// See the module.
struct Region {
    /// Its row in all tables; `None` for memory that is no other rank's business.
    row: Option<Row>,
    /// The group's world ranks, in its order.
    ranks: Vec<u32>,
    /// The part of each, as mapped here.
    parts: Vec<Arc<Memory>>,
    mine: usize,
    /// Whether this rank's part is nobody's.
    is_free: AtomicBool,
}

impl Region {
    fn slot(&self) -> u32 {
        self.row.as_ref().map_or(0, |row| row.slot)
    }

    fn part_of(&self, world_rank: u32) -> Option<&Arc<Memory>> {
        self.ranks.iter().position(|rank| *rank == world_rank).map(|index| &self.parts[index])
    }

    fn start(&self) -> u64 {
        self.parts[self.mine].address()
    }

    /// The same on all ranks.
    fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes()).min().unwrap_or(0)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        memory::park(Box::new(std::mem::take(&mut self.parts)));
    }
}

/// What one rank has on its device beside its groups: regions, and the groups that are to know them.
#[derive(Default)]
pub(super) struct Registry {
    held: Mutex<Held>,
    /// The most ranks that any of its groups has seen on the device.
    sharing: AtomicU32,
}

#[derive(Default)]
struct Held {
    /// The rows that are in use, or may come to be.
    rows: BTreeSet<u32>,
    regions: Vec<Arc<Region>>,
    /// Freed memory that nobody else reaches.
    loose: Vec<Arc<Region>>,
    directories: Vec<Weak<Directory>>,
}

impl Registry {
    /// The registry of this rank of the world, which lives as long as any lane of this rank.
    pub(super) fn of(members: &Members) -> Arc<Registry> {
        members.endpoint().annex()
    }

    /// The most ranks that are known to share this rank's device.
    pub(super) fn sharing(&self) -> u32 {
        self.sharing.load(Ordering::Relaxed)
    }

    /// So many do in one group.
    pub(super) fn note_sharing(&self, ranks: u32) {
        self.sharing.fetch_max(ranks, Ordering::Relaxed);
    }

    /// Makes all that this rank has registered known to a group, and from now on what will be.
    pub(super) fn join(&self, directory: &Arc<Directory>) -> Result<()> {
        let mut held = self.lock();
        for region in held.regions.iter().filter(|region| directory.is_within(&region.ranks)) {
            fill(directory, region)?;
            if !region.is_free.load(Ordering::Relaxed) {
                directory.open(region.slot(), region.start(), region.bytes());
            }
        }
        held.directories.retain(|one| one.strong_count() > 0);
        held.directories.push(Arc::downgrade(directory));
        Ok(())
    }

    /// Which rows are in use, one bit each.
    fn rows(&self) -> Vec<u64> {
        let mut bits = vec![0_u64; directory::SLOTS.div_ceil(64) as usize];
        for slot in self.lock().rows.iter().map(|slot| *slot as usize) {
            bits[slot / 64] |= 1 << (slot % 64);
        }
        bits
    }

    /// Keeps a new region, and fills its row in the tables of all its groups.
    fn keep(&self, region: &Arc<Region>) -> Result<()> {
        let mut held = self.lock();
        directories_of(&held, region).try_for_each(|directory| fill(&directory, region))?;
        held.regions.push(region.clone());
        Ok(())
    }

    /// Forgets a region whose row no rank will ever name.
    fn forget(&self, region: &Arc<Region>) {
        self.lock().regions.retain(|one| !Arc::ptr_eq(one, region));
    }

    fn open(&self, region: &Region) {
        let held = self.lock();
        if region.row.is_none() {
            return;
        }
        directories_of(&held, region)
            .for_each(|directory| directory.open(region.slot(), region.start(), region.bytes()));
    }

    fn close(&self, region: &Arc<Region>) {
        let mut held = self.lock();
        if region.row.is_none() {
            return held.loose.push(region.clone());
        }
        directories_of(&held, region).for_each(|directory| directory.close(region.slot()));
        region.is_free.store(true, Ordering::Relaxed);
    }

    /// Freed memory that nobody else reaches, if some fits.
    fn loose(&self, bytes: u64) -> Option<Arc<Region>> {
        let loose = &mut self.lock().loose;
        let fitting = (0..loose.len()).filter(|at| is_fit(loose[*at].bytes(), bytes));
        let best = fitting.min_by_key(|at| loose[*at].bytes())?;
        Some(loose.swap_remove(best))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn directories_of(held: &Held, region: &Region) -> impl Iterator<Item = Arc<Directory>> {
    held.directories.iter().filter_map(Weak::upgrade).filter(|directory| directory.is_within(&region.ranks))
}

fn fill(directory: &Directory, region: &Region) -> Result<()> {
    directory.fill(region.slot(), |rank| region.part_of(rank).map(|part| part.address()))
}

/// A row that is one region's alone, on this rank.
struct Row {
    registry: Weak<Registry>,
    slot: u32,
}

impl Row {
    /// `None` if another has it.
    fn take(registry: &Arc<Registry>, slot: u32) -> Option<Row> {
        registry.lock().rows.insert(slot).then(|| Row { registry: Arc::downgrade(registry), slot })
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.lock().rows.remove(&self.slot);
        }
    }
}

/// Free regions of some ranks, kept from others while the ranks talk about them.
struct Offer {
    registry: Arc<Registry>,
    regions: Vec<Arc<Region>>,
}

impl Offer {
    fn new(registry: &Arc<Registry>, ranks: &[u32]) -> Offer {
        let held = registry.lock();
        let free = |region: &&Arc<Region>| region.ranks == ranks && region.is_free.swap(false, Ordering::Relaxed);
        Offer { registry: registry.clone(), regions: held.regions.iter().filter(free).cloned().collect() }
    }

    /// Rows and bytes.
    fn rows(&self) -> Vec<(u32, u64)> {
        self.regions.iter().map(|region| (region.slot(), region.bytes())).collect()
    }

    fn take(mut self, slot: u32) -> Option<Arc<Region>> {
        let index = self.regions.iter().position(|region| region.slot() == slot)?;
        Some(self.regions.swap_remove(index))
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.regions.iter().for_each(|region| self.registry.close(region));
    }
}

/// What a rank wants, and what it offers.
#[derive(Serialize, Deserialize)]
struct Wish {
    bytes: u64,
    /// Which rows are in use here, one bit each.
    rows: Vec<u64>,
    /// Rows and bytes of regions of these ranks that it has freed.
    free: Vec<(u32, u64)>,
}

/// Where an allocation is to be, the same on all ranks.
enum Place {
    /// In a region that all have freed.
    Again(Arc<Region>),
    /// In a new one with this row.
    New(Row, Arc<Directory>),
    /// In memory that is not registered, as the ranks do not read each other's.
    Ordinary,
}

async fn allocate_in(
    session: &mut Session,
    members: &Arc<Members>,
    device: &'static Device,
    bytes: usize,
) -> Result<Given> {
    let lane = Lane::of(members, device);
    let registry = &lane.registry;
    let place = agree_on_place(session, members, &lane, bytes as u64).await?;
    let is_new = matches!(place, Place::New(..));
    let cleared = |region: Arc<Region>| (device.fill(region.start(), 0, bytes), Ok(region));
    let (filled, made) = match place {
        Place::Again(region) => cleared(region),
        Place::New(row, directory) => {
            let parts = directory.sharing.share(session, device, bytes as u64).await?;
            // The same on all ranks, and so without another word.
            let parts = parts.map_err(|error| Error::OutOfMemory(error.to_string()))?;
            let (ranks, mine) = (members.world_ranks().to_vec(), members.rank() as usize);
            let region = Arc::new(Region { row: Some(row), ranks, parts, mine, is_free: AtomicBool::new(false) });
            (registry.keep(&region), Ok(region))
        }
        Place::Ordinary => {
            let why = "its ranks do not read each other's memory";
            log::info!(target: "tutti::cuda", "group {:?} gets memory that is not registered: {why}", members.name());
            registry.loose(bytes as u64).map_or_else(|| (Ok(()), ordinary(device, bytes as u64)), cleared)
        }
    };
    let given = made.map(|region| Given { region, registry: Arc::downgrade(registry) });
    // Until all ranks have filled their tables, no rank may use its part.
    let trouble = given.as_ref().err().or(filled.as_ref().err()).map(Error::to_string).unwrap_or_default();
    let said = session.all_gather(trouble.as_bytes(), None).await?;
    match first_trouble(members.world_ranks(), &said) {
        None => given,
        Some(trouble) => {
            if let (true, Ok(given)) = (is_new, &given) {
                registry.forget(&given.region);
            }
            Err(Error::OutOfMemory(trouble))
        }
    }
}

/// What all ranks can do. Two allocations that ranks make side by side, in groups of their own, may want one row, and
/// each get it on another rank: then both try again, with rows further on that depend on the group.
async fn agree_on_place(session: &mut Session, members: &Arc<Members>, lane: &Lane, bytes: u64) -> Result<Place> {
    let registry = &lane.registry;
    for attempt in 0..ATTEMPTS {
        let offer = Offer::new(registry, members.world_ranks());
        let all: Vec<Wish> = say(session, &Wish { bytes, rows: registry.rows(), free: offer.rows() }).await?;
        check_sizes(members, bytes, &all)?;
        // Whether the group has directories is the same on all ranks.
        let Some(directory) = lane.directory() else {
            return Ok(Place::Ordinary);
        };
        if let Some(slot) = free_on_all(&all, bytes) {
            let region = offer.take(slot);
            return region.map(Place::Again).ok_or_else(|| Error::Internal(format!("registration {slot} is gone")));
        }
        let skipped = attempt * ((members.uid() >> (4 * attempt)) as u32 % 16);
        let Some(slot) = unused_on_all(&all, skipped) else {
            return Err(Error::OutOfMemory("all rows for registered memory are taken".into()));
        };
        let row = Row::take(registry, slot);
        if say(session, &row.is_some()).await?.into_iter().all(|taken| taken)
            && let Some(row) = row
        {
            return Ok(Place::New(row, directory));
        }
    }
    Err(Error::OutOfMemory("too many groups of these ranks allocate at the same time: try again".into()))
}

/// A row that no rank uses, the first but `skipped` of them, or the last there is. Row 0 is none.
fn unused_on_all(all: &[Wish], skipped: u32) -> Option<u32> {
    let is_used = |slot: u32| {
        let bits = |wish: &Wish| wish.rows.get(slot as usize / 64).copied().unwrap_or(u64::MAX);
        all.iter().any(|wish| bits(wish) >> (slot % 64) & 1 == 1)
    };
    (1..directory::SLOTS).filter(|slot| !is_used(*slot)).take(skipped as usize + 1).last()
}

fn check_sizes(members: &Members, bytes: u64, all: &[Wish]) -> Result<()> {
    let Some(rank) = all.iter().position(|wish| wish.bytes != bytes) else { return Ok(()) };
    Err(Error::failed(
        Status::Mismatch,
        Some(rank as u32),
        format_args!(
            "device memory of group {:?}: rank {rank} asks for {} bytes, rank {} for {bytes}",
            members.name(),
            all[rank].bytes,
            members.rank()
        ),
    ))
}

/// Whether memory may serve again for so many bytes: a little one may not take a large one.
fn is_fit(has: u64, bytes: u64) -> bool {
    has >= bytes && has <= bytes.max(LEAST).saturating_mul(WASTE)
}

/// The smallest region that all ranks have freed and that fits.
fn free_on_all(all: &[Wish], bytes: u64) -> Option<u32> {
    let (first, others) = all.split_first()?;
    let fits = |(slot, has): &&(u32, u64)| {
        is_fit(*has, bytes) && others.iter().all(|wish| wish.free.iter().any(|(other, _)| other == slot))
    };
    first.free.iter().filter(fits).min_by_key(|(slot, has)| (*has, *slot)).map(|(slot, _)| *slot)
}

/// Memory that is no other rank's business.
fn ordinary(device: &'static Device, bytes: u64) -> Result<Arc<Region>> {
    let (part, ..) = Memory::make(device, bytes, memory::Way::Plain)?;
    Ok(Arc::new(Region { row: None, ranks: Vec::new(), parts: vec![part], mine: 0, is_free: AtomicBool::new(false) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_have_freed_is_found_again_the_smallest_first() {
        let wish = |free: &[(u32, u64)]| Wish { bytes: 100, rows: Vec::new(), free: free.to_vec() };
        let all =
            [wish(&[(1, 50), (2, 400), (3, 200), (5, 200), (7, 150)]), wish(&[(5, 200), (2, 400), (3, 200), (1, 50)])];
        assert_eq!(free_on_all(&all, 100), Some(3), "the smallest that both have, and the first of equals");
        assert_eq!(free_on_all(&all, 201), Some(2));
        assert_eq!(free_on_all(&all, 401), None);
        assert_eq!(free_on_all(&all, 10), Some(1));
        let large = [wish(&[(1, 8 << 20), (2, (8 << 20) + 1)]), wish(&[(1, 8 << 20), (2, (8 << 20) + 1)])];
        assert_eq!(free_on_all(&large, 100), Some(1));
        assert_eq!(free_on_all(&large[..1], (2 << 20) + 1), Some(1));
        let waste = [wish(&[(2, (8 << 20) + 1)]), wish(&[(2, (8 << 20) + 1)])];
        assert_eq!(free_on_all(&waste, 100), None, "it would keep a large one for little");
    }
    #[test]
    fn a_row_is_one_that_no_rank_uses() {
        let wish = |rows: &[u32]| {
            let registry = Registry::default();
            registry.lock().rows.extend(rows);
            Wish { bytes: 1, rows: registry.rows(), free: Vec::new() }
        };
        assert_eq!(unused_on_all(&[wish(&[]), wish(&[])], 0), Some(1));
        assert_eq!(unused_on_all(&[wish(&[1, 3, 5]), wish(&[2, 4, 64])], 0), Some(6));
        assert_eq!(unused_on_all(&[wish(&[1, 3, 5]), wish(&[2, 4, 64])], 57), Some(63));
        assert_eq!(unused_on_all(&[wish(&[1, 3, 5]), wish(&[2, 4, 64])], 58), Some(65));
        let all: Vec<u32> = (1..directory::SLOTS).collect();
        assert_eq!(unused_on_all(&[wish(&all[1..]), wish(&[])], 9), Some(1), "the last there is");
        assert_eq!(unused_on_all(&[wish(&all[1..]), wish(&[1])], 0), None);
    }
}
