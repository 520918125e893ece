//! Random transfers, all from one seed: tensors of 0 to 6 dimensions, meshes of 0 to 3, up to 64 ranks.

use std::sync::Arc;

use tutti::dtype::{DType, Op};
use tutti::transfer::{Item, Layout, Mesh, Options, Placement, Split};

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Below `limit`, which is at least 1.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for at in (1..list.len()).rev() {
            list.swap(at, self.below(at as u64 + 1) as usize);
        }
    }

    /// Strides of a padded, permuted memory of this extent: no two elements share an address.
    pub(crate) fn strides(&mut self, extent: &[u64]) -> Vec<i64> {
        let mut order: Vec<usize> = (0..extent.len()).collect();
        self.shuffle(&mut order);
        let mut strides = vec![0; extent.len()];
        let mut next = 1 + self.below(2) as i64;
        for dim in order {
            strides[dim] = next;
            next = next * extent[dim].max(1) as i64 + self.below(3) as i64;
        }
        strides
    }
}

/// Says which seed failed.
pub(crate) struct Seed(pub(crate) u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with seed {}; run it alone with TRANSFER_SEED={}", self.0, self.0);
        }
    }
}

/// By how much there are more random cases than usual: TRANSFER_TIMES, or 1.
pub(crate) fn times() -> u64 {
    std::env::var("TRANSFER_TIMES").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// Runs `case` with `count` seeds from `first` on, times what TRANSFER_TIMES says, or with the one seed that
/// TRANSFER_SEED names.
pub(crate) fn seeds(first: u64, count: u64, case: impl Fn(&mut Random)) {
    let only = std::env::var("TRANSFER_SEED").ok().and_then(|seed| seed.parse().ok());
    let range = only.map_or(first..first + count * times(), |seed| seed..seed + 1);
    for seed in range {
        let _seed = Seed(seed);
        case(&mut Random::new(seed));
    }
}

/// What may be asked for.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) partial: bool,
    pub(crate) casts: bool,
    pub(crate) elements: u64,
}

pub(crate) const ANYTHING: Wanted = Wanted { partial: true, casts: true, elements: 1500 };

/// Some tensors that move between random meshes of one world, and options that make chunks and buckets small.
pub(crate) fn transfer(random: &mut Random, wanted: Wanted) -> (Vec<Item>, Options) {
    let world = *random.pick(&[1, 2, 3, 4, 5, 8, 8, 13, 16, 24, 64]);
    transfer_in(random, wanted, world)
}

/// As [`transfer`], in a world of so many ranks.
pub(crate) fn transfer_in(random: &mut Random, wanted: Wanted, world: u32) -> (Vec<Item>, Options) {
    let items: Vec<Item> = (0..1 + random.below(4)).map(|index| item(random, world, wanted, index)).collect();
    let mut options = options(random, world);
    options.bucket_bytes = options.bucket_bytes.max(smallest_bucket(&items, world));
    if options.staging_bytes > 0 {
        options.staging_bytes = options.staging_bytes.max(2 * options.bucket_bytes);
    }
    (items, options)
}

/// Every contributor to a sum needs a block in a bucket.
pub(crate) fn smallest_bucket(items: &[Item], world: u32) -> u64 {
    let mut placements = items.iter().flat_map(|item| &item.source.placements);
    let adds_up = placements.any(|placement| matches!(placement, Placement::Partial(_)));
    if adds_up { 16 * u64::from(world) } else { 16 }
}

pub(crate) fn options(random: &mut Random, world: u32) -> Options {
    let bucket_bytes = *random.pick(&[16, 48, 64, 256, 1024, 1 << 16]);
    Options {
        world,
        bucket_bytes,
        staging_bytes: *random.pick(&[0, 2, 3, 5]) * bucket_bytes,
        in_flight: 1 + random.below(4) as u32,
        split_bytes: *random.pick(&[1, 8, 64, 4096]),
    }
}

pub(crate) fn item(random: &mut Random, world: u32, wanted: Wanted, index: u64) -> Item {
    let shape = shape(random, wanted.elements);
    let (dtype, target_dtype, wire) = dtypes(random, wanted.casts);
    let source_mesh = mesh(random, world);
    let target_mesh = match random.below(4) {
        0 => source_mesh.clone(),
        1 => {
            // The same ranks, otherwise arranged.
            let mut ranks = source_mesh.ranks().to_vec();
            random.shuffle(&mut ranks);
            Mesh::new(&source_mesh.dims().iter().map(|dim| u64::from(*dim)).collect::<Vec<_>>(), &ranks).unwrap()
        }
        _ => mesh(random, world),
    };
    let partial = wanted.partial && dtype.is_reducible() && !is_float8(dtype);
    let source = Layout { dtype, placements: placements(random, &source_mesh, &shape, partial), mesh: source_mesh };
    let target =
        Layout { dtype: target_dtype, placements: placements(random, &target_mesh, &shape, false), mesh: target_mesh };
    Item { name: format!("tensor.{index}"), shape, source, target, wire }
}

fn is_float8(dtype: DType) -> bool {
    matches!(dtype, DType::Float8E4M3 | DType::Float8E5M2)
}

fn shape(random: &mut Random, elements: u64) -> Vec<u64> {
    let dims = random.below(7) as usize;
    let mut left = elements;
    let mut shape = Vec::new();
    for _ in 0..dims {
        let size = match random.below(12) {
            0 => 1,
            1 => *random.pick(&[7, 13, 31, 61]),
            2 if random.chance(25) => 0,
            _ => 1 + random.below(16),
        };
        shape.push(if size > left { 1 } else { size });
        left /= size.max(1);
    }
    random.shuffle(&mut shape);
    shape
}

fn dtypes(random: &mut Random, casts: bool) -> (DType, DType, Option<DType>) {
    use DType::*;
    const FLOATS: [DType; 4] = [Float16, Float32, Float64, Bfloat16];
    if casts && random.chance(30) {
        let wire = random.chance(50).then(|| *random.pick(&FLOATS));
        return (*random.pick(&FLOATS), *random.pick(&FLOATS), wire);
    }
    let all = [Int8, Uint8, Int32, Uint32, Int64, Uint64, Float16, Float32, Bfloat16, Float8E4M3, Bool, Int16, Bytes];
    let dtype = *random.pick(&all);
    (dtype, dtype, None)
}

fn mesh(random: &mut Random, world: u32) -> Arc<Mesh> {
    let mut dims = Vec::new();
    let mut left = u64::from(world);
    for _ in 0..random.below(4) {
        let most = *random.pick(&[2, 3, 4, 8, 64]);
        let size = 1 + random.below(left.min(most));
        dims.push(size);
        left /= size;
    }
    let size: u64 = dims.iter().product();
    let mut ranks: Vec<u32> = (0..world).collect();
    if random.chance(40) {
        random.shuffle(&mut ranks);
    } else {
        // Consecutive ranks from somewhere: next to, or half over, the other mesh.
        let by = random.below(u64::from(world));
        ranks.rotate_left(by as usize);
    }
    Mesh::new(&dims, &ranks[..size as usize]).unwrap()
}

fn placements(random: &mut Random, mesh: &Mesh, shape: &[u64], partial: bool) -> Vec<Placement> {
    let op = *random.pick(&[Op::Sum, Op::Avg, Op::Max, Op::Min, Op::Prod]);
    let mut kinds: Vec<u64> = mesh.dims().iter().map(|_| random.below(10)).collect();
    if random.chance(15) {
        kinds.fill(9);
    }
    let mut placements: Vec<Placement> = kinds
        .into_iter()
        .map(|kind| match kind {
            0..=1 if partial => {
                let mixed = matches!(op, Op::Sum | Op::Avg) && random.chance(30);
                Placement::Partial(if mixed { Op::Sum } else { op })
            }
            0..=6 if !shape.is_empty() => Placement::Shard {
                dim: random.below(shape.len() as u64) as usize,
                split: if random.chance(50) { Split::Ceil } else { Split::Balanced },
                order: random.below(3) as i32,
            },
            _ => Placement::Replicate,
        })
        .collect();
    make_explicit(random, mesh, shape, &mut placements);
    placements
}

/// Turns some splits into explicit ones: what splits first is one list of sizes, what nests inside gives every outer
/// part its own.
fn make_explicit(random: &mut Random, mesh: &Mesh, shape: &[u64], placements: &mut [Placement]) {
    for (dim, length) in shape.iter().enumerate() {
        let mut nest: Vec<usize> = (0..placements.len())
            .filter(|at| matches!(placements[*at], Placement::Shard { dim: split, .. } if split == dim))
            .collect();
        nest.sort_by_key(|at| if let Placement::Shard { order, .. } = placements[*at] { order } else { 0 });
        let mut outer = vec![*length];
        for at in nest {
            let parts = u64::from(mesh.dims()[at]);
            if !random.chance(40) {
                break;
            }
            let mut sizes = Vec::new();
            for length in &outer {
                let mut cuts: Vec<u64> = (1..parts).map(|_| random.below(length + 1)).collect();
                cuts.sort_unstable();
                cuts.push(*length);
                let mut from = 0;
                for cut in cuts {
                    sizes.push(cut - from);
                    from = cut;
                }
            }
            outer.clone_from(&sizes);
            if let Placement::Shard { split, .. } = &mut placements[at] {
                *split = Split::Explicit(sizes);
            }
        }
    }
}
