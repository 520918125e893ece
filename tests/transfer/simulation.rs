//! Ranks that exist only here: each with its tensors in strided memory, walking its operations of a plan.
//!
//! A bucket moves when all its ranks have begun it (nothing is buffered on the way), a rank begins its next operation
//! only when few enough are unfinished, and who gets on next is a dice throw: an adversary that a plan must survive
//! without deadlock, wrong order or too much staging. What arrives is compared with an oracle that knows whole tensors
//! and no plan.

use std::collections::HashMap;

use tutti::dtype::DType;
use tutti::transfer::{Item, Plan, Region, Side, Transport, View};

use crate::numbers;
use crate::random::Random;

const CANARY: u8 = 0xa5;

/// One rank's part of a tensor in memory, with room around and between its elements.
pub(crate) struct Memory {
    pub(crate) bytes: Vec<u8>,
    base: i64,
    view: View,
    /// In elements; `None`: contiguous.
    pub(crate) strides: Option<Vec<i64>>,
}

impl Memory {
    fn new(region: Region, dtype: DType, side: Side, random: &mut Random) -> Memory {
        let mut strides = random.chance(50).then(|| random.strides(&region.extent));
        if side == Side::Source && random.chance(30) {
            // Backwards in memory.
            strides.iter_mut().flatten().for_each(|stride| *stride = -*stride);
        }
        let view = View::new(region, dtype, side, strides.as_deref()).expect("strides without overlap");
        let span = view.span();
        let room = random.below(3) as i64 * 8;
        Memory {
            bytes: vec![CANARY; (span.end - span.start + 2 * room) as usize],
            base: room - span.start,
            view,
            strides,
        }
    }

    /// The address of the first element.
    pub(crate) fn address(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr().wrapping_offset(self.base as isize)
    }

    pub(crate) fn read(&self, start: &[u64], extent: &[u64]) -> Vec<u8> {
        let mut found = Vec::new();
        let inside = self.view.runs(start, extent, |offset, length| {
            let at = (self.base + offset) as usize;
            found.extend_from_slice(&self.bytes[at..at + length]);
        });
        assert!(inside, "a chunk reads outside what its rank holds");
        found
    }

    fn write(&mut self, start: &[u64], extent: &[u64], data: &[u8]) {
        let mut from = 0;
        let inside = self.view.runs(start, extent, |offset, length| {
            let at = (self.base + offset) as usize;
            self.bytes[at..at + length].copy_from_slice(&data[from..from + length]);
            from += length;
        });
        assert!(inside, "a chunk writes outside what its rank wants");
        assert_eq!(from, data.len());
    }
}

/// Everything that a transfer starts from and ends in.
pub(crate) struct World<'a> {
    items: &'a [Item],
    plan: &'a Plan,
    /// Per tensor and contribution, the whole tensor, contiguous.
    globals: Vec<Vec<Vec<u8>>>,
    pub(crate) sources: HashMap<(usize, u32), Memory>,
    pub(crate) targets: HashMap<(usize, u32), Memory>,
    /// How often each element of each target was written.
    writes: HashMap<(usize, u32), (View, Vec<u8>)>,
}

impl<'a> World<'a> {
    /// Source tensors with random contents on all ranks that a plan names.
    pub(crate) fn new(items: &'a [Item], plan: &'a Plan, random: &mut Random) -> World<'a> {
        let globals = items
            .iter()
            .map(|item| {
                let elements = item.shape.iter().product::<u64>() as usize;
                let contributions = contributions(item);
                (0..contributions.len()).map(|_| numbers::random(item.source.dtype, elements, random)).collect()
            })
            .collect();
        let mut world =
            World { items, plan, globals, sources: HashMap::new(), targets: HashMap::new(), writes: HashMap::new() };
        for (index, item) in items.iter().enumerate() {
            let whole = whole(item);
            let offsets = contributions(item);
            for (position, rank) in item.source.mesh.ranks().iter().enumerate() {
                let region = plan.region(index, Side::Source, *rank).unwrap();
                let mut memory = Memory::new(region.clone(), item.source.dtype, Side::Source, random);
                let which = offsets.iter().position(|positions| positions.contains(&position)).unwrap();
                let data = gather(&whole, item.source.dtype, &world.globals[index][which], &region);
                memory.write(&region.start, &region.extent, &data);
                world.sources.insert((index, *rank), memory);
            }
            for rank in item.target.mesh.ranks() {
                let region = plan.region(index, Side::Target, *rank).unwrap();
                let counts = vec![0u8; region.elements() as usize];
                let view = View::new(region.clone(), DType::Bytes, Side::Target, None).unwrap();
                world.writes.insert((index, *rank), (view, counts));
                world.targets.insert((index, *rank), Memory::new(region, item.target.dtype, Side::Target, random));
            }
        }
        world
    }

    /// What a rank's target must hold in the end.
    pub(crate) fn expected(&self, index: usize, rank: u32) -> Vec<u8> {
        let item = &self.items[index];
        let region = self.plan.region(index, Side::Target, rank).unwrap();
        let (whole, dtype) = (whole(item), item.source.dtype);
        let parts: Vec<Vec<u8>> =
            self.globals[index].iter().map(|global| gather(&whole, dtype, global, &region)).collect();
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let wire = self.plan.wire(index).unwrap();
        let sum = match numbers::reduction(item) {
            Some((op, divisor)) => numbers::reduce(dtype, op, divisor, &parts),
            None => parts[0].to_vec(),
        };
        numbers::cast(wire, item.target.dtype, &numbers::cast(dtype, wire, &sum))
    }

    /// Every target holds what it must, each element was written once, and nothing else was touched.
    pub(crate) fn check(&self) {
        for ((index, rank), (_, counts)) in &self.writes {
            assert!(counts.iter().all(|count| *count == 1), "tensor {index} on rank {rank}: not each element once");
        }
        self.check_contents();
    }

    /// Every target holds what it must, and nothing else was touched.
    pub(crate) fn check_contents(&self) {
        self.targets.keys().for_each(|(index, rank)| self.check_target(*index, *rank));
    }

    /// One target holds what it must, and nothing beside it was touched.
    pub(crate) fn check_target(&self, index: usize, rank: u32) {
        let memory = &self.targets[&(index, rank)];
        let region = self.plan.region(index, Side::Target, rank).unwrap();
        let found = memory.read(&region.start, &region.extent);
        assert_eq!(found, self.expected(index, rank), "tensor {index} on rank {rank} is wrong");
        let mut canary = memory.bytes.clone();
        memory.view.runs(&region.start, &region.extent, |offset, length| {
            canary[(memory.base + offset) as usize..][..length].fill(CANARY);
        });
        assert!(canary.iter().all(|byte| *byte == CANARY), "tensor {index} on rank {rank}: written beside it");
    }

    /// A whole tensor that is not a sum, as it was.
    pub(crate) fn whole(&self, index: usize) -> Memory {
        let item = &self.items[index];
        let view = View::new(whole(item), item.source.dtype, Side::Source, None).unwrap();
        Memory { bytes: self.globals[index][0].clone(), base: 0, view, strides: None }
    }

    /// What a rank's target holds.
    pub(crate) fn target(&self, index: usize, rank: u32) -> Vec<u8> {
        let region = self.plan.region(index, Side::Target, rank).unwrap();
        self.targets[&(index, rank)].read(&region.start, &region.extent)
    }

    /// The contents of all sources, to show that they did not change.
    pub(crate) fn snapshot(&self) -> HashMap<(usize, u32), Vec<u8>> {
        self.sources.iter().map(|(key, memory)| (*key, memory.bytes.clone())).collect()
    }

    /// The targets of one transfer as the sources of the next, which must want the same layouts.
    pub(crate) fn adopt(&mut self, before: World<'_>) {
        for ((index, rank), memory) in before.targets {
            let region = self.plan.region(index, Side::Source, rank).unwrap();
            let data = memory.read(&region.start, &region.extent);
            self.sources.get_mut(&(index, rank)).unwrap().write(&region.start, &region.extent, &data);
        }
    }
}

/// Mesh positions that hold each contribution.
fn contributions(item: &Item) -> Vec<Vec<usize>> {
    let dims = item.source.mesh.dims();
    let mut found: Vec<Vec<usize>> = Vec::new();
    for position in 0..item.source.mesh.ranks().len() {
        let (mut which, mut rest) = (0, position);
        let mut coordinates = vec![0; dims.len()];
        for (dim, size) in dims.iter().enumerate().rev() {
            coordinates[dim] = rest % *size as usize;
            rest /= *size as usize;
        }
        for (dim, placement) in item.source.placements.iter().enumerate() {
            if matches!(placement, tutti::transfer::Placement::Partial(_)) {
                which = which * dims[dim] as usize + coordinates[dim];
            }
        }
        found.resize(found.len().max(which + 1), Vec::new());
        found[which].push(position);
    }
    found
}

fn whole(item: &Item) -> Region {
    Region { start: vec![0; item.shape.len()], extent: item.shape.clone() }
}

fn gather(whole: &Region, dtype: DType, data: &[u8], region: &Region) -> Vec<u8> {
    let view = View::new(whole.clone(), dtype, Side::Source, None).unwrap();
    let mut found = Vec::new();
    assert!(view.runs(&region.start, &region.extent, |offset, length| {
        found.extend_from_slice(&data[offset as usize..offset as usize + length]);
    }));
    found
}

/// How far a rank is.
#[derive(Default)]
struct Progress {
    begun: usize,
    finished: Vec<bool>,
    staged: u64,
    /// The block that each round left here, and the bytes that count for it.
    blocks: HashMap<usize, Vec<u8>>,
    /// Reads of a block that are still to come.
    readers: HashMap<usize, usize>,
}

/// A bucket on its way.
#[derive(Default)]
struct Flight {
    begun: Vec<u32>,
    /// What each member brought to a round, or what the source sends.
    brought: HashMap<u32, Vec<u8>>,
    moved: bool,
}

/// Runs a plan to its end, or until only the dead could go on.
pub(crate) struct Simulation<'a, 'b> {
    plan: &'a Plan,
    world: &'b mut World<'a>,
    progress: HashMap<u32, Progress>,
    flights: HashMap<usize, Flight>,
    in_flight: usize,
}

enum Step {
    Begin(u32),
    Move(usize),
    Finish(u32, usize),
}

impl<'a, 'b> Simulation<'a, 'b> {
    pub(crate) fn new(world: &'b mut World<'a>, in_flight: usize) -> Self {
        let plan = world.plan;
        let progress = plan.ranks().iter().map(|rank| {
            let operations = plan.operations(*rank);
            let mut progress = Progress { finished: vec![false; operations.len()], ..Progress::default() };
            for bucket in operations.iter().map(|bucket| plan.bucket(*bucket as usize).unwrap()) {
                if let Some(round) = bucket.after.filter(|_| bucket.source == *rank) {
                    *progress.readers.entry(round).or_default() += 1;
                }
            }
            (*rank, progress)
        });
        let progress = progress.collect();
        Simulation { plan, world, progress, flights: HashMap::new(), in_flight }
    }

    /// Runs all ranks; panics on deadlock.
    pub(crate) fn run(&mut self, random: &mut Random) {
        self.run_until(random, usize::MAX, None);
        for rank in self.plan.ranks() {
            let progress = &self.progress[rank];
            assert!(
                progress.finished.iter().all(|finished| *finished),
                "deadlock: rank {rank} waits in operation {} of {}",
                progress.finished.iter().position(|finished| !finished).unwrap(),
                progress.finished.len()
            );
            assert_eq!(progress.staged, 0, "rank {rank} still holds something");
        }
    }

    /// Runs until `steps` are done or nothing can go on; `dead` does nothing. Returns the steps done.
    pub(crate) fn run_until(&mut self, random: &mut Random, steps: usize, dead: Option<u32>) -> usize {
        let mut possible: Vec<Step> =
            self.plan.ranks().iter().filter(|rank| Some(**rank) != dead).map(|rank| Step::Begin(*rank)).collect();
        // After a kill, what was on its way may still arrive among the living.
        for (bucket, flight) in &self.flights {
            let members = self.members(*bucket);
            if flight.moved {
                let waiting =
                    flight.begun.iter().filter(|rank| Some(**rank) != dead && !self.is_finished(**rank, *bucket));
                possible.extend(waiting.map(|rank| Step::Finish(*rank, *bucket)));
            } else if flight.begun.len() == members.len() && dead.is_none_or(|dead| !members.contains(&dead)) {
                possible.push(Step::Move(*bucket));
            }
        }
        let mut done = 0;
        while done < steps && !possible.is_empty() {
            let at = random.below(possible.len() as u64) as usize;
            match possible.swap_remove(at) {
                Step::Begin(rank) => {
                    let Some(bucket) = self.begin(rank) else { continue };
                    possible.push(Step::Begin(rank));
                    let members = self.members(bucket);
                    if self.flights[&bucket].begun.len() == members.len() {
                        possible.push(Step::Move(bucket));
                    }
                }
                Step::Move(bucket) => {
                    let members = self.members(bucket);
                    if dead.is_some_and(|dead| members.contains(&dead)) {
                        continue;
                    }
                    self.flights.get_mut(&bucket).unwrap().moved = true;
                    possible.extend(members.into_iter().map(|rank| Step::Finish(rank, bucket)));
                }
                Step::Finish(rank, bucket) => {
                    self.finish(rank, bucket);
                    possible.push(Step::Begin(rank));
                }
            }
            done += 1;
        }
        done
    }

    /// The lowest bucket that is not finished everywhere, and which of its ranks never began it.
    pub(crate) fn stuck(&self) -> Option<(usize, Vec<u32>)> {
        let mut lowest: Option<usize> = None;
        for rank in self.plan.ranks() {
            let first = self.progress[rank].finished.iter().position(|finished| !finished);
            let bucket = first.map(|at| self.plan.operations(*rank)[at] as usize);
            lowest = lowest.into_iter().chain(bucket).min();
        }
        lowest.map(|bucket| {
            let begun = self.flights.get(&bucket).map_or(Vec::new(), |flight| flight.begun.clone());
            (bucket, self.members(bucket).into_iter().filter(|rank| !begun.contains(rank)).collect())
        })
    }

    fn members(&self, bucket: usize) -> Vec<u32> {
        let bucket = self.plan.bucket(bucket).unwrap();
        match bucket.round {
            Some(round) => round.members.to_vec(),
            None => std::iter::once(bucket.source).chain(bucket.targets.iter().copied()).collect(),
        }
    }

    fn begin(&mut self, rank: u32) -> Option<usize> {
        let (plan, in_flight) = (self.plan, self.in_flight);
        let progress = self.progress.get_mut(&rank).unwrap();
        let at = progress.begun;
        let index = *plan.operations(rank).get(at)? as usize;
        if at >= in_flight && !progress.finished[..=at - in_flight].iter().all(|finished| *finished) {
            return None;
        }
        let bucket = plan.bucket(index).unwrap();
        if let Some(round) = bucket.after.filter(|_| bucket.source == rank)
            && !progress.finished[plan.operations(rank).binary_search(&(round as u32)).unwrap()]
        {
            return None;
        }
        progress.begun += 1;
        if bucket.transport != Transport::Local {
            progress.staged += bucket.bytes;
        }
        if let Some((begin, end)) = bucket.round.and_then(|round| round.block(rank)) {
            progress.staged += end - begin;
        }
        assert!(progress.staged <= plan.load(rank).unwrap().staging, "rank {rank} stages more than the plan says");
        let mut brought = Vec::new();
        if bucket.round.is_some() || bucket.source == rank {
            brought = self.pack(rank, index);
        }
        let flight = self.flights.entry(index).or_default();
        flight.begun.push(rank);
        flight.brought.insert(rank, brought);
        Some(index)
    }

    /// The bucket as its source sends it, or as one contributor brings it.
    fn pack(&self, rank: u32, index: usize) -> Vec<u8> {
        let bucket = self.plan.bucket(index).unwrap();
        let mut data = vec![0; bucket.bytes as usize];
        for chunk in (bucket.chunks.0..bucket.chunks.1).map(|chunk| self.plan.chunk(chunk).unwrap()) {
            assert!(chunk.is_source(rank));
            let dtype = self.plan.dtype(chunk.item, Side::Source).unwrap();
            let elements = match chunk.reduced {
                None => self.world.sources[&(chunk.item, rank)].read(chunk.start, chunk.extent),
                Some((round, offset)) => {
                    let members = self.plan.bucket(round).unwrap().round.unwrap();
                    let (begin, _) = members.block(rank).unwrap();
                    let bytes = chunk.extent.iter().product::<u64>() as usize * dtype.size();
                    let at = (offset - begin) as usize;
                    self.progress[&rank].blocks[&round][at..at + bytes].to_vec()
                }
            };
            let wire = numbers::cast(dtype, chunk.dtype, &elements);
            assert_eq!(wire.len() as u64, chunk.bytes);
            data[chunk.offset as usize..][..wire.len()].copy_from_slice(&wire);
        }
        data
    }

    fn finish(&mut self, rank: u32, index: usize) {
        let bucket = self.plan.bucket(index).unwrap();
        let flight = &self.flights[&index];
        let progress = self.progress.get_mut(&rank).unwrap();
        if bucket.transport != Transport::Local {
            progress.staged -= bucket.bytes;
        }
        if let Some(round) = bucket.round {
            let (begin, end) = round.block(rank).unwrap();
            let mut block = vec![0; (end - begin) as usize];
            for chunk in (bucket.chunks.0..bucket.chunks.1).map(|chunk| self.plan.chunk(chunk).unwrap()) {
                if chunk.source != rank {
                    continue;
                }
                let range = chunk.offset as usize..(chunk.offset + chunk.bytes) as usize;
                let parts: Vec<&[u8]> =
                    round.members.iter().map(|member| &flight.brought[member][range.clone()]).collect();
                let sum = numbers::reduce(round.dtype, round.reduction.op, round.reduction.divisor, &parts);
                block[range.start - begin as usize..range.end - begin as usize].copy_from_slice(&sum);
            }
            if end > begin {
                progress.blocks.insert(index, block);
            }
        } else {
            let data = &flight.brought[&bucket.source];
            for chunk in (bucket.chunks.0..bucket.chunks.1).map(|chunk| self.plan.chunk(chunk).unwrap()) {
                if !chunk.is_target(rank) {
                    continue;
                }
                let wire = &data[chunk.offset as usize..][..chunk.bytes as usize];
                let target = self.world.targets.get_mut(&(chunk.item, rank)).unwrap();
                let dtype = self.plan.dtype(chunk.item, Side::Target).unwrap();
                target.write(chunk.start, chunk.extent, &numbers::cast(chunk.dtype, dtype, wire));
                let (view, counts) = self.world.writes.get_mut(&(chunk.item, rank)).unwrap();
                view.runs(chunk.start, chunk.extent, |offset, length| {
                    counts[offset as usize..][..length].iter_mut().for_each(|count| *count += 1);
                });
            }
        }
        if let Some(round) = bucket.after.filter(|_| bucket.source == rank) {
            let left = progress.readers.get_mut(&round).unwrap();
            *left -= 1;
            if *left == 0 {
                progress.staged -= progress.blocks.remove(&round).unwrap().len() as u64;
            }
        }
        let at = self.plan.operations(rank).binary_search(&(index as u32)).unwrap();
        progress.finished[at] = true;
        if self.members(index).iter().all(|member| self.is_finished(*member, index)) {
            self.flights.remove(&index);
        }
    }

    fn is_finished(&self, rank: u32, bucket: usize) -> bool {
        let at = self.plan.operations(rank).binary_search(&(bucket as u32)).unwrap();
        self.progress[&rank].finished[at]
    }
}
