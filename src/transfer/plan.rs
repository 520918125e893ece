//! A transfer plan: what moves from where to where, in which buckets, in which order. Pure data.
//!
//! [`Plan::new`] is a function of its arguments and nothing else: no communication, no environment, no clock, so every
//! rank that calls it with the same arguments gets the same plan, which [`Plan::hash`] lets them check. Execution walks
//! [`Plan::operations`] of its rank; it takes no decision of its own.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::dtype::DType;
use crate::error::{Error, Result};

use super::assign::{self, Assigned};
use super::cells;
use super::inspect::{self, Load, Totals};
use super::layout::{Item, Reduction, Resolved, Side};
use super::order;
use super::pack::{self, NONE};
use super::region::{Boxes, Region};

/// Chunks begin at multiples of this many bytes within their bucket: the widest load of a GPU, and enough for every
/// dtype.
pub const ALIGN: u64 = 16;

/// The most chunks one plan may have: about 1 GiB of memory while planning tensors of three dimensions.
pub const MAX_CHUNKS: u64 = 1 << 23;

/// The most ranks a world may have.
pub const MAX_WORLD: u32 = 1 << 20;

const DEFAULT_BUCKET_BYTES: u64 = 16 << 20;
const DEFAULT_IN_FLIGHT: u32 = 4;
const DEFAULT_SPLIT_BYTES: u64 = 4096;

/// How to plan. The same on all ranks. A zero means the default, but for `world`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The number of ranks that meshes may name.
    pub world: u32,
    /// No bucket holds more bytes than this (rounded down to a multiple of 16, at least 16). Default 16 MiB.
    pub bucket_bytes: u64,
    /// No rank holds more bytes than this in buckets and reduced blocks at any time; at least 32. Smaller buckets and
    /// fewer in flight are planned where this needs it. Default: twice the bucket bytes for each bucket in flight.
    pub staging_bytes: u64,
    /// The most buckets that a rank has begun and not finished. Default 4.
    pub in_flight: u32,
    /// Pieces of this many bytes or less are not cut just to balance senders. Default 4096.
    pub split_bytes: u64,
}

impl Options {
    /// The defaults for a world.
    pub fn new(world: u32) -> Options {
        Options { world, bucket_bytes: 0, staging_bytes: 0, in_flight: 0, split_bytes: 0 }
    }

    /// Checked, and with the defaults filled in.
    fn filled(&self) -> Result<Options> {
        if self.world == 0 || self.world > MAX_WORLD {
            return Err(Error::invalid(format_args!("a world of {} ranks (1 to {MAX_WORLD})", self.world)));
        }
        let or = |value: u64, default: u64| if value == 0 { default } else { value };
        let in_flight = or(self.in_flight.into(), DEFAULT_IN_FLIGHT.into());
        let mut bucket_bytes = or(self.bucket_bytes, DEFAULT_BUCKET_BYTES);
        let staging_bytes = or(self.staging_bytes, bucket_bytes.saturating_mul(2 * in_flight));
        // With one bucket in flight a rank holds at most that bucket and one reduced block.
        bucket_bytes = bucket_bytes.min(staging_bytes / 2) / ALIGN * ALIGN;
        if bucket_bytes == 0 {
            return Err(Error::invalid(format_args!(
                "buckets of {} bytes in {staging_bytes} bytes of staging: at least {ALIGN} and {} are needed",
                or(self.bucket_bytes, DEFAULT_BUCKET_BYTES),
                2 * ALIGN
            )));
        }
        let split_bytes = or(self.split_bytes, DEFAULT_SPLIT_BYTES).min(bucket_bytes);
        Ok(Options { world: self.world, bucket_bytes, staging_bytes, in_flight: in_flight as u32, split_bytes })
    }
}

/// How bytes cross ranks. Who reads and who writes is another question: see [`Chunk::is_source`] and
/// [`Chunk::is_target`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Transport {
    /// From one rank to one other.
    P2p = 0,
    /// From one rank to several others.
    Broadcast = 1,
    /// Within a rank; never touches the wire.
    Local = 2,
    /// To nobody yet: contributions that are added up onto the members of a group.
    None = 3,
}

impl Transport {
    /// The name used in texts and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Transport::P2p => "p2p",
            Transport::Broadcast => "broadcast",
            Transport::Local => "local",
            Transport::None => "reduce",
        }
    }
}

/// A box of one tensor that moves as part of one bucket.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The tensor, as an index into the items.
    pub item: usize,
    /// The bucket it moves in.
    pub bucket: usize,
    /// How.
    pub transport: Transport,
    /// The rank that sends it; with [`Transport::None`], the rank that it is reduced onto.
    pub source: u32,
    /// The ranks that write it, ascending: the receivers; with [`Transport::Local`], the source.
    pub targets: &'a [u32],
    /// The ranks that contribute; only with [`Transport::None`].
    pub contributors: &'a [u32],
    /// The first index of the box in the whole tensor.
    pub start: &'a [u64],
    /// The extent of the box.
    pub extent: &'a [u64],
    /// The type of its elements in the bucket: the wire's, or with [`Transport::None`] the source's.
    pub dtype: DType,
    /// Its bytes in the bucket; row-major, contiguous.
    pub bytes: u64,
    /// Where in the bucket they begin, a multiple of [`ALIGN`].
    pub offset: u64,
    /// Where its elements are read from, if not from the source tensor: the bucket that reduces them, and the offset
    /// therein (within the block of this chunk's source).
    pub reduced: Option<(usize, u64)>,
}

impl Chunk<'_> {
    /// Whether this rank reads the elements, from its source tensor or from what was reduced onto it.
    pub fn is_source(&self, rank: u32) -> bool {
        match self.transport {
            Transport::None => self.contributors.contains(&rank),
            _ => self.source == rank,
        }
    }

    /// Whether this rank writes the elements into its target tensor.
    pub fn is_target(&self, rank: u32) -> bool {
        self.targets.binary_search(&rank).is_ok()
    }
}

/// What moves at once.
#[derive(Clone, Copy, Debug)]
pub struct Bucket<'a> {
    /// How.
    pub transport: Transport,
    /// The rank that sends; with [`Transport::None`], the first contributor.
    pub source: u32,
    /// The ranks that receive, ascending, never the source; empty with Local and None.
    pub targets: &'a [u32],
    /// The bytes of its chunks with their gaps. With [`Transport::Local`] nothing needs to be staged.
    pub bytes: u64,
    /// Its chunks, as a range of indices.
    pub chunks: (usize, usize),
    /// With [`Transport::None`], what is added up.
    pub round: Option<Round<'a>>,
    /// The bucket whose result this one reads, if its chunks are reduced ones: the source must have finished that.
    pub after: Option<usize>,
}

impl Bucket<'_> {
    /// Whether this rank takes part.
    pub fn involves(&self, rank: u32) -> bool {
        match self.round {
            Some(round) => round.members.contains(&rank),
            None => self.source == rank || self.targets.binary_search(&rank).is_ok(),
        }
    }
}

/// One round of a reduce-scatter: every member brings the whole bucket filled from its source tensors, and keeps its own
/// block of the sum until the last bucket that reads it is done. Meanwhile it holds the others' contributions to that
/// block too.
#[derive(Clone, Copy, Debug)]
pub struct Round<'a> {
    /// The members, in the order in which contributions are added.
    pub members: &'a [u32],
    /// The type in which they are added.
    pub dtype: DType,
    /// What is done to them.
    pub reduction: Reduction,
    /// Where the block of each member begins in the bucket, and the end of the last. Blocks may be empty.
    pub blocks: &'a [u64],
}

impl Round<'_> {
    /// The block that is reduced onto a rank; `None` if it is no member.
    pub fn block(&self, rank: u32) -> Option<(u64, u64)> {
        let member = self.members.iter().position(|member| *member == rank)?;
        Some((self.blocks[member], self.blocks[member + 1]))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Plan {
    pub(super) options: Options,
    pub(super) names: Vec<String>,
    pub(super) items: Vec<Resolved>,
    sets: Vec<Box<[u32]>>,
    boxes: Boxes,
    chunks: Vec<ChunkRow>,
    buckets: Vec<BucketRow>,
    rounds: Vec<RoundRow>,
    /// The ranks that the descriptions name, ascending.
    pub(super) ranks: Vec<u32>,
    /// Their operations, one after the other; `first_operation` says where each begins.
    operations: Vec<u32>,
    first_operation: Vec<usize>,
    in_flight: u32,
    /// What each of `ranks` does.
    pub(super) loads: Vec<Load>,
    pub(super) totals: Totals,
    hash: [u8; 16],
}

#[derive(Debug)]
struct ChunkRow {
    item: u32,
    bucket: u32,
    region: u32,
    offset: u64,
    reduced: u64,
}

#[derive(Debug)]
struct BucketRow {
    transport: Transport,
    source: u32,
    targets: u32,
    round: u32,
    after: u32,
    first_chunk: u32,
    bytes: u64,
}

#[derive(Debug)]
struct RoundRow {
    /// In the order of their mesh.
    members: Arc<[u32]>,
    dtype: DType,
    reduction: Reduction,
    blocks: Vec<u64>,
}

impl Plan {
    /// Plans the transfer of `items`. Local, deterministic; see [`Options`] for what bounds it.
    ///
    /// A description that does not add up is INVALID_ARGUMENT, one that adds up but is not served (a cast between
    /// integers, a Partial target, a plan of more than [`MAX_CHUNKS`] chunks) UNSUPPORTED; both name the tensor.
    pub fn new(items: &[Item], options: &Options) -> Result<Plan> {
        let options = options.filled()?;
        if u32::try_from(items.len()).is_err() {
            return Err(Error::invalid(format_args!("{} tensors in one plan", items.len())));
        }
        let resolved: Vec<Resolved> =
            items.iter().enumerate().map(|(index, item)| item.resolve(index, options.world)).collect::<Result<_>>()?;
        check_traffic(&resolved)?;
        let found = cells::find(&resolved, |count, item| pack::limit(count, item, &options))?;
        let assigned = assign::assign(found, &resolved, &options)?;
        let order = order::order(&assigned);
        let (needs, send_bound) = (assigned.needs, assigned.send_bound);
        let mut plan = Plan::build(assigned, &order, options, resolved);
        plan.names = items.iter().map(|item| item.name.clone()).collect();
        plan.loads = inspect::loads(&plan);
        plan.in_flight = inspect::bound_staging(&mut plan);
        plan.totals = inspect::totals(&plan, needs, send_bound);
        plan.hash = plan.digest();
        Ok(plan)
    }

    /// The options, with defaults filled in.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The number of tensors.
    pub fn item_count(&self) -> usize {
        self.items.len()
    }

    /// The name of a tensor.
    pub fn name(&self, item: usize) -> &str {
        self.names.get(item).map_or("", String::as_str)
    }

    /// The shape of a whole tensor.
    pub fn shape(&self, item: usize) -> &[u64] {
        self.items.get(item).map_or(&[], |item| &item.shape)
    }

    /// The number of chunks.
    pub fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    /// The number of buckets.
    pub fn bucket_count(&self) -> usize {
        self.buckets.len()
    }

    /// The ranks that take part, ascending.
    pub fn ranks(&self) -> &[u32] {
        &self.ranks
    }

    /// A chunk; chunks of one bucket are consecutive.
    pub fn chunk(&self, index: usize) -> Option<Chunk<'_>> {
        let row = self.chunks.get(index)?;
        let bucket = self.bucket(row.bucket as usize)?;
        let item = &self.items[row.item as usize];
        let (start, extent) = self.boxes.slices(row.region, item.shape.len());
        let mut chunk = Chunk {
            item: row.item as usize,
            bucket: row.bucket as usize,
            transport: bucket.transport,
            source: bucket.source,
            targets: bucket.targets,
            contributors: &[],
            start,
            extent,
            dtype: item.wire,
            bytes: 0,
            offset: row.offset,
            reduced: bucket.after.map(|bucket| (bucket, row.reduced)),
        };
        match bucket.round {
            Some(round) => {
                let owner = round.blocks.partition_point(|begin| *begin <= row.offset);
                chunk.source = round.members[owner - 1];
                chunk.contributors = round.members;
                chunk.dtype = item.source_dtype;
            }
            None if bucket.transport == Transport::Local => chunk.targets = self.only(bucket.source),
            None => {}
        }
        chunk.bytes = extent.iter().product::<u64>() * chunk.dtype.size() as u64;
        Some(chunk)
    }

    /// A bucket. Buckets are numbered in the one order in which every rank goes through its own.
    pub fn bucket(&self, index: usize) -> Option<Bucket<'_>> {
        let row = self.buckets.get(index)?;
        let end = self.buckets.get(index + 1).map_or(self.chunks.len(), |next| next.first_chunk as usize);
        let set = |id: u32| &*self.sets[id as usize];
        let round = (row.round != NONE).then(|| {
            let round = &self.rounds[row.round as usize];
            Round { members: &round.members, dtype: round.dtype, reduction: round.reduction, blocks: &round.blocks }
        });
        Some(Bucket {
            transport: row.transport,
            source: row.source,
            targets: if round.is_some() { &[] } else { set(row.targets) },
            bytes: row.bytes,
            chunks: (row.first_chunk as usize, end),
            round,
            after: (row.after != NONE).then_some(row.after as usize),
        })
    }

    /// The buckets in which a rank takes part, in the order in which it must begin them. Empty for other ranks.
    pub fn operations(&self, rank: u32) -> &[u32] {
        match self.ranks.binary_search(&rank) {
            Ok(at) => &self.operations[self.first_operation[at]..self.first_operation[at + 1]],
            Err(_) => &[],
        }
    }

    /// How many operations a rank may have begun and not finished: operation i may begin when operation i minus this
    /// is done, and with it the bucket that it comes [`Bucket::after`], if any. At most what the options ask for, less
    /// where staging would not hold it.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The box of a tensor that a rank holds (or contributes to) on one side; `None` if it is not in that mesh.
    pub fn region(&self, item: usize, side: Side, rank: u32) -> Option<Region> {
        let item = self.items.get(item)?;
        match side {
            Side::Source => item.source.region(rank),
            Side::Target => item.target.region(rank),
        }
    }

    /// The type of a tensor's elements on one side.
    pub fn dtype(&self, item: usize, side: Side) -> Option<DType> {
        let item = self.items.get(item)?;
        Some(if side == Side::Source { item.source_dtype } else { item.target_dtype })
    }

    /// The type in which a tensor's elements travel.
    pub fn wire(&self, item: usize) -> Option<DType> {
        Some(self.items.get(item)?.wire)
    }

    /// Whether a rank may pass the same memory as source and as target of a tensor. Only where nothing would change:
    /// same box, same type on the way and no reduction. Everywhere else memory that overlaps must be refused, because
    /// a bucket may be written before another one is read.
    pub fn may_alias(&self, item: usize, rank: u32) -> bool {
        let Some(resolved) = self.items.get(item) else { return false };
        let (source, target) = (resolved.source.region(rank), resolved.target.region(rank));
        let same_type = resolved.source_dtype == resolved.wire && resolved.wire == resolved.target_dtype;
        source.is_some() && source == target && same_type && resolved.source.contributions.len() == 1
    }

    /// A digest of the layouts and of everything that execution reads: the first 128 bits of the SHA-256 of the plan's
    /// rows in order, every number as a little-endian u64. Equal on all ranks or something is wrong. Names and the
    /// caller's memory are not part of it.
    pub fn hash(&self) -> [u8; 16] {
        self.hash
    }

    /// Different sets of ranks that broadcast (from one of them) or reduce together.
    pub(super) fn count_groups(&self) -> u64 {
        let mut groups: Vec<(u32, u32)> = self
            .buckets
            .iter()
            .filter_map(|row| match row.transport {
                Transport::Broadcast => Some((row.source, row.targets)),
                Transport::None => Some((u32::MAX, row.targets)),
                Transport::P2p | Transport::Local => None,
            })
            .collect();
        groups.sort_unstable();
        groups.dedup();
        groups.len() as u64
    }

    fn only(&self, rank: u32) -> &[u32] {
        match self.ranks.binary_search(&rank) {
            Ok(at) => &self.ranks[at..=at],
            Err(_) => &[],
        }
    }

    fn build(assigned: Assigned, order: &[(u32, u32)], options: Options, items: Vec<Resolved>) -> Plan {
        let rank = |node: &u32| assigned.ranks[*node as usize];
        let mut round_of = vec![NONE; assigned.streams.len()];
        for (index, round) in assigned.rounds.iter().enumerate() {
            round_of[round.stream as usize] = index as u32;
        }
        let mut bucket_of_round = vec![NONE; assigned.streams.len()];
        let (mut chunks, mut buckets) = (Vec::new(), Vec::new());
        for (stream, bucket) in order {
            let index = buckets.len() as u32;
            let round = round_of[*stream as usize];
            if round != NONE {
                bucket_of_round[*stream as usize] = index;
            }
            let stream = &assigned.streams[*stream as usize];
            let (first, bytes) = stream.buckets[*bucket as usize];
            let next = stream.buckets.get(*bucket as usize + 1);
            let end = next.map_or(stream.chunks.len(), |(first, _)| *first as usize);
            buckets.push(BucketRow {
                transport: stream.key.transport,
                source: rank(&stream.key.source),
                targets: stream.key.targets,
                round,
                after: if stream.key.round == NONE { NONE } else { bucket_of_round[stream.key.round as usize] },
                first_chunk: chunks.len() as u32,
                bytes,
            });
            chunks.extend(stream.chunks[first as usize..end].iter().map(|draft| ChunkRow {
                item: draft.item,
                bucket: index,
                region: draft.region,
                offset: draft.offset,
                reduced: draft.reduced,
            }));
        }
        let ranks_of = |set: u32| -> Vec<u32> { assigned.sets.get(set).iter().map(rank).collect() };
        let ascending = |set: usize| {
            let mut ranks = ranks_of(set as u32);
            ranks.sort_unstable();
            ranks.into()
        };
        let sets = (0..assigned.sets.len()).map(ascending).collect();
        let mut members_of: HashMap<u32, Arc<[u32]>> = HashMap::new();
        let rounds = assigned.rounds.iter().map(|round| RoundRow {
            members: members_of.entry(round.members).or_insert_with(|| ranks_of(round.members).into()).clone(),
            dtype: round.dtype,
            reduction: round.reduction,
            blocks: round.blocks.clone(),
        });
        let rounds = rounds.collect();
        let mut ranks = assigned.ranks.clone();
        ranks.sort_unstable();
        let mut plan = Plan {
            options,
            names: Vec::new(),
            items,
            sets,
            boxes: assigned.boxes,
            chunks,
            buckets,
            rounds,
            ranks,
            operations: Vec::new(),
            first_operation: Vec::new(),
            in_flight: 1,
            loads: Vec::new(),
            totals: Totals::default(),
            hash: [0; 16],
        };
        plan.list_operations();
        plan
    }

    /// Fills in the operations of every rank: counts first, then places.
    fn list_operations(&mut self) {
        let members = |plan: &Plan, bucket: usize| -> Vec<usize> {
            let Some(bucket) = plan.bucket(bucket) else { return Vec::new() };
            let round = bucket.round.map_or(&[][..], |round| round.members);
            let source = bucket.round.is_none().then_some(bucket.source);
            let ranks = source.iter().chain(bucket.targets).chain(round);
            ranks.filter_map(|rank| plan.ranks.binary_search(rank).ok()).collect()
        };
        let mut first = vec![0usize; self.ranks.len() + 1];
        for bucket in 0..self.buckets.len() {
            for at in members(self, bucket) {
                first[at + 1] += 1;
            }
        }
        for at in 0..self.ranks.len() {
            first[at + 1] += first[at];
        }
        let mut next = first.clone();
        self.operations = vec![0; first.last().copied().unwrap_or(0)];
        for bucket in 0..self.buckets.len() {
            for at in members(self, bucket) {
                self.operations[next[at]] = bucket as u32;
                next[at] += 1;
            }
        }
        self.first_operation = first;
    }

    fn digest(&self) -> [u8; 16] {
        let mut words = Words { hasher: Sha256::new(), buffer: Vec::with_capacity(WORDS_AT_ONCE * 8) };
        words.list(&[
            self.options.world.into(),
            self.options.bucket_bytes,
            self.in_flight.into(),
            self.items.len() as u64,
            self.chunks.len() as u64,
            self.buckets.len() as u64,
        ]);
        for item in &self.items {
            words.list(&[item.source_dtype as u64, item.wire as u64, item.target_dtype as u64]);
            words.list(&[item.shape.len() as u64]);
            words.list(&item.shape);
            item.source.each_word(|word| words.list(&[word]));
            item.target.each_word(|word| words.list(&[word]));
        }
        for row in &self.buckets {
            let bucket = [row.transport as u64, row.source.into(), row.after.into(), row.bytes, row.first_chunk.into()];
            words.list(&bucket);
            words.ranks(&self.sets[row.targets as usize]);
            if let Some(round) = self.rounds.get(row.round as usize) {
                let reduction = [round.dtype as u64, round.reduction.op as u64, round.reduction.divisor.into()];
                words.list(&reduction);
                words.ranks(&round.members);
                words.list(&round.blocks);
            }
        }
        for row in &self.chunks {
            let (start, extent) = self.boxes.slices(row.region, self.items[row.item as usize].shape.len());
            words.list(&[row.item.into(), row.offset, row.reduced]);
            words.list(start);
            words.list(extent);
        }
        words.finish()
    }
}

/// Sums of bytes over all ranks and tensors fit 63 bits, so that nothing behind this has to check again.
fn check_traffic(items: &[Resolved]) -> Result<()> {
    let traffic: u128 = items
        .iter()
        .map(|item| {
            let elements: u128 = item.shape.iter().product::<u64>().into();
            let (from, to) = (item.source.mesh.ranks().len(), item.target.mesh.ranks().len());
            // At most every source contributes all of it once, and every target gets all of it once.
            elements * (item.source_dtype.size() * from + item.wire.size() * to) as u128
        })
        .sum();
    // Half of it, so that the gaps between chunks (16 bytes each, for at most MAX_CHUNKS of them) fit too.
    if traffic > i64::MAX as u128 / 2 {
        return Err(Error::invalid("the tensors of one plan would move more bytes than 63 bits count"));
    }
    Ok(())
}

const WORDS_AT_ONCE: usize = 512;

/// Feeds numbers to the hash, many at a time.
struct Words {
    hasher: Sha256,
    buffer: Vec<u8>,
}

impl Words {
    fn list(&mut self, words: &[u64]) {
        for word in words {
            self.buffer.extend_from_slice(&word.to_le_bytes());
        }
        if self.buffer.len() >= WORDS_AT_ONCE * 8 {
            self.hasher.update(&self.buffer);
            self.buffer.clear();
        }
    }

    fn ranks(&mut self, ranks: &[u32]) {
        self.list(&[ranks.len() as u64]);
        for rank in ranks {
            self.list(&[(*rank).into()]);
        }
    }

    fn finish(mut self) -> [u8; 16] {
        self.hasher.update(&self.buffer);
        let mut hash = [0; 16];
        hash.copy_from_slice(&self.hasher.finalize()[..16]);
        hash
    }
}
