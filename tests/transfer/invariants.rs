//! What holds of every plan, over thousands of random transfers.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tutti::dtype::Op;
use tutti::transfer::plan::ALIGN;
use tutti::transfer::{Format, Item, Layout, Mesh, Options, Placement, Plan, Side, Split, Transport};

use crate::oracle;
use crate::random::{self, ANYTHING, Random, Wanted, seeds};
use crate::simulation::{Simulation, World};

/// Invariants 2, 9 (values) and 17, and what each rank stages: run with one bucket in flight and with as many as the
/// plan allows, ranks arriving in any order.
#[test]
fn simulated_ranks_deliver_what_the_oracle_says_in_any_order_of_arrival() {
    seeds(1, 1500, |random| {
        let (items, options) = random::transfer(random, ANYTHING);
        let plan = Plan::new(&items, &options).unwrap();
        let in_flight = if random.chance(60) { 1 } else { plan.in_flight() as usize };
        let mut world = World::new(&items, &plan, random);
        let before = world.snapshot();
        Simulation::new(&mut world, in_flight).run(random);
        world.check();
        assert!(world.snapshot() == before, "a source changed");
    });
}

/// Everything that can be seen in a plan without running it.
#[test]
fn plans_keep_their_invariants() {
    seeds(100_000, 2500, |random| {
        let (items, options) = random::transfer(random, ANYTHING);
        let plan = Plan::new(&items, &options).unwrap();
        regions_are_what_the_layouts_say(&items, &plan);
        every_needed_element_is_delivered_once_by_a_holder(&items, &plan);
        every_contribution_is_added_once(&items, &plan);
        all_ranks_see_the_same_buckets_in_the_same_order(&plan);
        buckets_are_capped_aligned_and_of_one_kind(&plan);
        bytes_meet_their_bounds(&items, &plan);
        senders_are_balanced(&items, &plan);
        assert_eq!(plan.hash(), Plan::new(&items, &options).unwrap().hash());
    });
}

fn regions_are_what_the_layouts_say(items: &[Item], plan: &Plan) {
    for (index, item) in items.iter().enumerate() {
        for (side, layout) in [(Side::Source, &item.source), (Side::Target, &item.target)] {
            for rank in layout.mesh.ranks() {
                let region = plan.region(index, side, *rank).unwrap();
                for (dim, held) in oracle::indices(item, side, *rank).unwrap().into_iter().enumerate() {
                    let range = region.start[dim]..region.start[dim] + region.extent[dim];
                    assert_eq!(range.collect::<Vec<_>>(), held, "tensor {index}, {side:?}, rank {rank}, dim {dim}");
                }
            }
        }
    }
}

/// Calls `each` with the row-major index of every element of a chunk's box.
fn each_element(item: &Item, start: &[u64], extent: &[u64], mut each: impl FnMut(usize)) {
    let mut indices = vec![0usize];
    for (dim, length) in item.shape.iter().enumerate() {
        indices = indices
            .iter()
            .flat_map(|outer| (0..extent[dim]).map(move |at| outer * *length as usize + (start[dim] + at) as usize))
            .collect();
    }
    indices.into_iter().for_each(&mut each);
}

/// Invariants 1, 3 and 6.
fn every_needed_element_is_delivered_once_by_a_holder(items: &[Item], plan: &Plan) {
    let mut delivered: HashMap<(usize, u32), Vec<u8>> = HashMap::new();
    let mut held: HashMap<(usize, u32), Vec<bool>> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        for rank in item.target.mesh.ranks() {
            let mask = oracle::mask(item, Side::Target, *rank);
            delivered.insert((index, *rank), mask.iter().map(|needed| u8::from(*needed)).collect());
        }
        for rank in item.source.mesh.ranks() {
            held.insert((index, *rank), oracle::mask(item, Side::Source, *rank));
        }
    }
    for chunk in (0..plan.chunk_count()).map(|chunk| plan.chunk(chunk).unwrap()) {
        let item = &items[chunk.item];
        assert!(!chunk.extent.contains(&0), "a chunk without elements");
        let distinct: BTreeSet<u32> = chunk.targets.iter().copied().collect();
        assert_eq!(distinct.len(), chunk.targets.len(), "a rank is named twice");
        match chunk.transport {
            Transport::P2p => assert_eq!(chunk.targets.len(), 1),
            Transport::Broadcast => assert!(chunk.targets.len() > 1),
            Transport::Local => assert_eq!(chunk.targets, [chunk.source]),
            Transport::None => assert!(chunk.targets.is_empty()),
        }
        assert!(!(chunk.transport != Transport::Local && chunk.is_target(chunk.source)), "a rank sends to itself");
        if chunk.transport == Transport::None {
            continue;
        }
        let source = &held[&(chunk.item, chunk.source)];
        each_element(item, chunk.start, chunk.extent, |at| assert!(source[at], "the source does not hold it"));
        for target in chunk.targets {
            let left = delivered.get_mut(&(chunk.item, *target)).unwrap();
            each_element(item, chunk.start, chunk.extent, |at| {
                assert_eq!(left[at], 1, "tensor {}: not needed, or twice, on rank {target}", chunk.item);
                left[at] = 0;
            });
        }
    }
    for ((index, rank), left) in delivered {
        assert!(left.iter().all(|left| *left == 0), "tensor {index}: rank {rank} does not get all it needs");
    }
}

/// Invariant 9: per element one reduction, in it one holder of every contribution, read only after it.
fn every_contribution_is_added_once(items: &[Item], plan: &Plan) {
    let mut reduced: HashMap<(usize, usize), (usize, u32)> = HashMap::new();
    for chunk in (0..plan.chunk_count()).map(|chunk| plan.chunk(chunk).unwrap()) {
        let item = &items[chunk.item];
        let partial = |(at, placement): (usize, &Placement)| {
            (matches!(placement, Placement::Partial(_)) && item.source.mesh.dims()[at] > 1).then_some(at)
        };
        let partials: Vec<usize> = item.source.placements.iter().enumerate().filter_map(partial).collect();
        assert_eq!(chunk.transport == Transport::None || chunk.reduced.is_some(), !partials.is_empty());
        if chunk.transport == Transport::None {
            let mut seen = BTreeSet::new();
            for rank in chunk.contributors {
                let position = item.source.mesh.position(*rank).unwrap();
                let coordinates = oracle::coordinates(&item.source, position);
                assert!(seen.insert(partials.iter().map(|dim| coordinates[*dim]).collect::<Vec<_>>()));
                let mask = oracle::mask(item, Side::Source, *rank);
                each_element(item, chunk.start, chunk.extent, |at| assert!(mask[at], "it does not contribute"));
            }
            let all: usize = partials.iter().map(|dim| item.source.mesh.dims()[*dim] as usize).product();
            assert_eq!(seen.len(), all, "a contribution is missing");
            each_element(item, chunk.start, chunk.extent, |at| {
                assert!(reduced.insert((chunk.item, at), (chunk.bucket, chunk.source)).is_none(), "reduced twice");
            });
        } else if let Some((round, _)) = chunk.reduced {
            assert!(round < chunk.bucket, "read before it is reduced");
            each_element(item, chunk.start, chunk.extent, |at| {
                assert_eq!(reduced[&(chunk.item, at)], (round, chunk.source), "read where it was not reduced");
            });
        }
    }
}

/// Invariants 4 and 5: rows of operations are ascending and hold exactly what involves the rank, so that any two ranks
/// see what they share in the same order, with the same bytes.
fn all_ranks_see_the_same_buckets_in_the_same_order(plan: &Plan) {
    let mut expected: BTreeMap<u32, Vec<u32>> = plan.ranks().iter().map(|rank| (*rank, Vec::new())).collect();
    for index in 0..plan.bucket_count() {
        let bucket = plan.bucket(index).unwrap();
        let members: Vec<u32> = match bucket.round {
            Some(round) => round.members.to_vec(),
            None => std::iter::once(bucket.source).chain(bucket.targets.iter().copied()).collect(),
        };
        assert_eq!(members.iter().collect::<BTreeSet<_>>().len(), members.len(), "a rank twice in one bucket");
        for rank in members {
            assert!(bucket.involves(rank));
            expected.get_mut(&rank).unwrap().push(index as u32);
        }
    }
    for (rank, buckets) in expected {
        assert_eq!(plan.operations(rank), buckets, "rank {rank}");
        let load = plan.load(rank).unwrap();
        assert_eq!((load.rank, load.operations), (rank, buckets.len() as u64));
    }
}

/// Invariant 13, and that a bucket holds only what may share one.
fn buckets_are_capped_aligned_and_of_one_kind(plan: &Plan) {
    for index in 0..plan.bucket_count() {
        let bucket = plan.bucket(index).unwrap();
        assert!(bucket.bytes <= plan.options().bucket_bytes && bucket.bytes > 0);
        let mut end = 0;
        assert!(bucket.chunks.0 < bucket.chunks.1, "an empty bucket");
        for chunk in (bucket.chunks.0..bucket.chunks.1).map(|chunk| plan.chunk(chunk).unwrap()) {
            assert_eq!((chunk.bucket, chunk.transport), (index, bucket.transport));
            assert_eq!(chunk.reduced.map(|(round, _)| round), bucket.after);
            assert!(chunk.offset >= end && chunk.offset % ALIGN == 0, "chunks overlap or are not aligned");
            assert_eq!(chunk.bytes, chunk.extent.iter().product::<u64>() * chunk.dtype.size() as u64);
            assert!(chunk.bytes > 0);
            end = chunk.offset + chunk.bytes;
            match bucket.round {
                Some(round) => {
                    let (begin, end_of_block) = round.block(chunk.source).unwrap();
                    assert!(begin <= chunk.offset && end <= end_of_block, "a chunk outside its owner's block");
                    assert_eq!(chunk.dtype, round.dtype);
                }
                None => assert_eq!(chunk.source, bucket.source),
            }
        }
        assert!(end <= bucket.bytes);
    }
    let totals = plan.totals();
    assert!(totals.staging <= totals.staging_cap, "{totals:?}");
    assert!((1..=plan.options().in_flight).contains(&totals.in_flight));
}

/// Invariant 7, counted element by element.
fn bytes_meet_their_bounds(items: &[Item], plan: &Plan) {
    let (mut wire, mut injected, mut reduced, mut sums) = (0, 0, 0, 0);
    let mut lacking: BTreeMap<u32, u64> = BTreeMap::new();
    for item in items {
        let size = item.wire.map_or(item.source.dtype.size().min(item.target.dtype.size()), |wire| wire.size()) as u64;
        let contributions: u64 = item
            .source
            .placements
            .iter()
            .zip(item.source.mesh.dims())
            .filter(|(placement, _)| matches!(placement, Placement::Partial(_)))
            .map(|(_, parts)| u64::from(*parts))
            .product();
        let count = item.shape.iter().product::<u64>() as usize;
        let (mut wanted, mut missing) = (vec![0u64; count], vec![0u64; count]);
        for rank in item.target.mesh.ranks() {
            let (needs, has) = (oracle::mask(item, Side::Target, *rank), oracle::mask(item, Side::Source, *rank));
            for at in 0..count {
                wanted[at] += u64::from(needs[at]);
                missing[at] += u64::from(needs[at] && !has[at]);
            }
            let lacks = (0..count).filter(|at| needs[*at] && !has[*at]).count() as u64 * size;
            *lacking.entry(*rank).or_default() += lacks;
        }
        for at in 0..count {
            // Where a contributor wants the sum, it is made there; everybody else gets a message.
            let messages =
                if contributions > 1 { wanted[at] - u64::from(missing[at] < wanted[at]) } else { missing[at] };
            wire += messages * size;
            injected += messages.min(1) * size;
            sums += u64::from(contributions > 1) * size;
            reduced += (contributions - 1) * item.source.dtype.size() as u64;
        }
    }
    let totals = plan.totals();
    assert_eq!(totals.wire_bound, wire);
    if items.iter().all(|item| numbers_of_partials(item) == 0) {
        assert_eq!(totals.wire, wire);
    }
    // A sum may take one message more than it must, where that keeps a link from being swamped.
    assert!(totals.wire >= wire && totals.wire <= wire + sums, "{totals:?}");
    assert_eq!((totals.reduced, totals.reduce_bound), (reduced, reduced));
    assert_eq!(totals.injection_bound, injected);
    assert!(totals.injected >= injected && totals.injected <= totals.wire);
    let sum = |of: fn(&tutti::transfer::Load) -> u64| plan.loads().iter().map(of).sum::<u64>();
    assert_eq!(sum(|load| load.received), totals.wire);
    assert_eq!(sum(|load| load.sent), totals.injected);
    assert_eq!(sum(|load| load.reduce_sent), sum(|load| load.reduce_received));
    for load in plan.loads() {
        assert_eq!(load.receive_bound, lacking.get(&load.rank).copied().unwrap_or(0));
        assert!(load.received >= load.receive_bound);
        if items.iter().all(|item| numbers_of_partials(item) == 0) {
            assert_eq!(load.received, load.receive_bound, "what a rank receives is fixed by the layouts");
        }
    }
}

fn numbers_of_partials(item: &Item) -> usize {
    item.source.placements.iter().filter(|placement| matches!(placement, Placement::Partial(_))).count()
}

/// Invariant 8. The flow bound by its definition, where there are few enough senders to try all sets of them.
fn senders_are_balanced(items: &[Item], plan: &Plan) {
    let totals = plan.totals();
    let largest = (0..plan.chunk_count()).map(|chunk| plan.chunk(chunk).unwrap().bytes).max().unwrap_or(0);
    assert!(totals.largest_send <= totals.send_bound + largest, "off by more than a chunk: {totals:?}");
    if items.iter().any(|item| numbers_of_partials(item) > 0) || totals.by_transport[Transport::Broadcast as usize] > 0
    {
        return;
    }
    let senders: BTreeSet<u32> = items.iter().flat_map(|item| item.source.mesh.ranks()).copied().collect();
    let senders: Vec<u32> = senders.into_iter().collect();
    if senders.len() > 8 {
        return;
    }
    // Per set of holders, the bytes that only they can send.
    let mut demand: BTreeMap<u32, u64> = BTreeMap::new();
    for (index, item) in items.iter().enumerate() {
        let size = plan.wire(index).unwrap().size() as u64;
        let held: Vec<Vec<bool>> = senders.iter().map(|rank| oracle::mask(item, Side::Source, *rank)).collect();
        for rank in item.target.mesh.ranks() {
            let needs = oracle::mask(item, Side::Target, *rank);
            let own = senders.iter().position(|sender| sender == rank);
            for at in (0..needs.len()).filter(|at| needs[*at] && own.is_none_or(|own| !held[own][*at])) {
                let holders = (0..senders.len()).filter(|sender| held[*sender][at]).fold(0, |set, bit| set | 1 << bit);
                *demand.entry(holders).or_default() += size;
            }
        }
    }
    let bound = (1u32..1 << senders.len())
        .map(|set| {
            let only: u64 = demand.iter().filter(|(holders, _)| **holders & !set == 0).map(|(_, bytes)| *bytes).sum();
            only.div_ceil(set.count_ones().into())
        })
        .max();
    assert_eq!(totals.send_bound, bound.unwrap_or(0));
}

/// Where replicas can send as much as receivers take, nothing is broadcast; where one sender faces many, it is.
#[test]
fn broadcast_is_used_only_where_senders_are_the_bottleneck() {
    let move_all = |senders: u64, receivers: u64| {
        let from: Vec<u32> = (0..senders as u32).collect();
        let to: Vec<u32> = (100..100 + receivers as u32).collect();
        let layout = |ranks: &[u32]| Layout {
            dtype: tutti::dtype::DType::Float32,
            mesh: Mesh::new(&[ranks.len() as u64], ranks).unwrap(),
            placements: vec![Placement::Replicate],
        };
        let item =
            Item { name: "w".into(), shape: vec![64, 64], source: layout(&from), target: layout(&to), wire: None };
        Plan::new(&[item], &Options::new(200)).unwrap()
    };
    for (senders, receivers) in [(8, 2), (4, 4), (1, 1), (5, 3)] {
        let plan = move_all(senders, receivers);
        assert_eq!(plan.totals().by_transport[1], 0, "{senders} to {receivers}");
        assert!(plan.totals().send_bound <= plan.totals().receive_bound);
    }
    for (senders, receivers) in [(1, 2), (4, 8), (2, 16)] {
        let plan = move_all(senders, receivers);
        assert_eq!(plan.totals().by_transport[0], 0, "{senders} to {receivers}");
        assert_eq!(plan.totals().injected, plan.totals().injection_bound);
    }
}

/// Invariant 10: where a plan says so, a rank's source and target may be the same memory.
#[test]
fn memory_may_be_shared_where_nothing_would_change() {
    let shared = std::cell::Cell::new(0u32);
    seeds(200_000, 400, |random| {
        let (items, options) = random::transfer(random, Wanted { partial: true, casts: true, elements: 300 });
        let plan = Plan::new(&items, &options).unwrap();
        for (index, item) in items.iter().enumerate() {
            for rank in plan.ranks().iter().filter(|rank| plan.may_alias(index, **rank)) {
                shared.set(shared.get() + 1);
                let region = plan.region(index, Side::Target, *rank).unwrap();
                let chunks = (0..plan.chunk_count()).map(|chunk| plan.chunk(chunk).unwrap());
                for chunk in chunks.filter(|chunk| chunk.item == index && chunk.is_target(*rank)) {
                    assert_eq!((chunk.transport, chunk.source), (Transport::Local, *rank));
                }
                assert_eq!(item.source.dtype, item.target.dtype);
                assert_eq!(Some(region), plan.region(index, Side::Source, *rank));
            }
        }
    });
    assert!(shared.get() > 100, "the random transfers hardly ever share memory");
}

/// Invariant 14: another name for every rank gives the same plan with other names.
#[test]
fn renaming_the_ranks_renames_the_plan() {
    seeds(300_000, 500, |random| {
        let (items, options) = random::transfer(random, ANYTHING);
        let mut names: Vec<u32> = (0..options.world + 10).collect();
        if random.chance(90) {
            random.shuffle(&mut names);
        }
        let rename = |layout: &Layout| {
            let dims: Vec<u64> = layout.mesh.dims().iter().map(|dim| u64::from(*dim)).collect();
            let ranks: Vec<u32> = layout.mesh.ranks().iter().map(|rank| names[*rank as usize]).collect();
            Layout { mesh: Mesh::new(&dims, &ranks).unwrap(), ..layout.clone() }
        };
        let renamed: Vec<Item> = items
            .iter()
            .map(|item| Item { source: rename(&item.source), target: rename(&item.target), ..item.clone() })
            .collect();
        let options = Options { world: options.world + 10, ..options };
        let plan = Plan::new(&items, &options).unwrap();
        let other = Plan::new(&renamed, &options).unwrap();
        assert_eq!(plan.chunk_count(), other.chunk_count());
        for index in 0..plan.chunk_count() {
            let (left, right) = (plan.chunk(index).unwrap(), other.chunk(index).unwrap());
            let renamed: BTreeSet<u32> = left.targets.iter().map(|rank| names[*rank as usize]).collect();
            assert_eq!(names[left.source as usize], right.source);
            assert_eq!(renamed, right.targets.iter().copied().collect());
            assert_eq!(
                (left.item, left.bucket, left.start, left.extent),
                (right.item, right.bucket, right.start, right.extent)
            );
            assert_eq!((left.offset, left.reduced, left.transport), (right.offset, right.reduced, right.transport));
        }
        for rank in plan.ranks() {
            assert_eq!(plan.operations(*rank), other.operations(names[*rank as usize]));
        }
        let same = plan.ranks().iter().all(|rank| names[*rank as usize] == *rank);
        assert_eq!(plan.hash() == other.hash(), same);
    });
}

/// Invariant 14: ranks that were told different things have different hashes, even where nothing else shows it.
#[test]
fn the_hash_sees_every_part_of_a_description() {
    use tutti::dtype::DType;
    let mesh = Mesh::new(&[2, 2], &[0, 1, 2, 3]).unwrap();
    let shard = |dim, split, order| Placement::Shard { dim, split, order };
    let layout = |placements: &[Placement]| Layout {
        dtype: DType::Float32,
        mesh: mesh.clone(),
        placements: placements.to_vec(),
    };
    let base = Item {
        name: "w".into(),
        shape: vec![8, 8],
        source: layout(&[Placement::Replicate, shard(0, Split::Ceil, 0)]),
        target: layout(&[shard(1, Split::Ceil, 0), shard(1, Split::Ceil, 0)]),
        wire: None,
    };
    let options = Options::new(4);
    let mut hashes = BTreeSet::new();
    let mut see = |change: &dyn Fn(&mut Item, &mut Options)| {
        let (mut item, mut options) = (base.clone(), options);
        change(&mut item, &mut options);
        assert!(hashes.insert(Plan::new(&[item], &options).unwrap().hash()), "a change that the hash does not see");
    };
    see(&|_, _| {});
    see(&|item, _| item.shape = vec![8, 9]);
    see(&|item, _| item.shape = vec![8, 8, 1]);
    see(&|item, _| item.shape = vec![0, 8]);
    see(&|item, _| item.source.dtype = DType::Bfloat16);
    see(&|item, _| item.target.dtype = DType::Float64);
    see(&|item, _| item.wire = Some(DType::Float16));
    see(&|item, _| item.source.placements[1] = shard(0, Split::Balanced, 0));
    see(&|item, _| item.source.placements[1] = shard(0, Split::Explicit(vec![4, 4]), 0));
    see(&|item, _| item.source.placements[0] = Placement::Partial(Op::Sum));
    see(&|item, _| item.source.placements[0] = Placement::Partial(Op::Avg));
    see(&|item, _| item.target.placements[0] = shard(1, Split::Ceil, 1));
    see(&|item, _| item.target.mesh = Mesh::new(&[2, 2], &[0, 1, 3, 2]).unwrap());
    see(&|_, options| options.bucket_bytes = 1024);
    see(&|_, options| options.in_flight = 1);
    see(&|_, options| options.world = 5);
    let mut named = base.clone();
    named.name = "another".into();
    assert!(hashes.contains(&Plan::new(&[named], &options).unwrap().hash()), "names are not part of it");
}

/// Invariant 15: there and back is where it was, and a detour does not show.
#[test]
fn a_detour_ends_where_the_straight_way_ends() {
    seeds(400_000, 300, |random| {
        let world = *random.pick(&[3, 6, 8, 16]);
        let wanted = Wanted { partial: false, casts: false, elements: 600 };
        let first = random::item(random, world, wanted, 0);
        // Another pair of layouts of the same tensor.
        let other = loop {
            let mut candidate = random::item(random, world, wanted, 1);
            candidate.shape.clone_from(&first.shape);
            candidate.source.dtype = first.source.dtype;
            candidate.target.dtype = first.source.dtype;
            candidate.wire = None;
            if Plan::new(&[candidate.clone()], &random::options(random, world)).is_ok() {
                break candidate;
            }
        };
        let step =
            |source: &Layout, target: &Layout| Item { source: source.clone(), target: target.clone(), ..first.clone() };
        let (a, b, c) = (&first.source, &first.target, &other.target);
        let plans: Vec<(Vec<Item>, Plan)> = [(a, b), (b, c), (c, a)]
            .iter()
            .map(|(from, to)| {
                let items = vec![step(from, to)];
                let plan = Plan::new(&items, &random::options(random, world)).unwrap();
                (items, plan)
            })
            .collect();
        let run = |world: &mut World, random: &mut Random| {
            Simulation::new(world, 1).run(random);
        };
        let mut first_leg = World::new(&plans[0].0, &plans[0].1, random);
        let start = first_leg.whole(0);
        run(&mut first_leg, random);
        let mut second_leg = World::new(&plans[1].0, &plans[1].1, random);
        second_leg.adopt(first_leg);
        run(&mut second_leg, random);
        let mut third_leg = World::new(&plans[2].0, &plans[2].1, random);
        third_leg.adopt(second_leg);
        run(&mut third_leg, random);
        for rank in a.mesh.ranks() {
            let region = plans[2].1.region(0, Side::Target, *rank).unwrap();
            assert_eq!(third_leg.target(0, *rank), start.read(&region.start, &region.extent), "rank {rank}");
        }
    });
}

/// Invariant 15: neither the size of buckets nor of the window shows in the result (the oracle has seen each size; here
/// the same tensors go through several).
#[test]
fn bucket_sizes_do_not_change_what_arrives() {
    seeds(500_000, 150, |random| {
        let (items, options) = random::transfer(random, ANYTHING);
        for bucket_bytes in [16, 80, 4096].map(|bytes: u64| bytes.max(random::smallest_bucket(&items, options.world))) {
            let plan = Plan::new(&items, &Options { bucket_bytes, staging_bytes: 0, ..options }).unwrap();
            let mut world = World::new(&items, &plan, random);
            Simulation::new(&mut world, plan.in_flight() as usize).run(random);
            world.check();
        }
    });
}

/// Invariant 18, as far as a plan can serve it: when a rank dies, everyone else gets as far as possible, and the first
/// bucket that is not done is one of the dead rank's, so that whoever waits can say for whom.
#[test]
fn when_a_rank_dies_the_first_unfinished_bucket_names_it() {
    seeds(600_000, 400, |random| {
        let (items, options) = random::transfer(random, ANYTHING);
        let plan = Plan::new(&items, &options).unwrap();
        let dead = *random.pick(plan.ranks());
        let mut world = World::new(&items, &plan, random);
        let mut simulation = Simulation::new(&mut world, plan.in_flight() as usize);
        let all = 3 * plan.ranks().iter().map(|rank| plan.operations(*rank).len() as u64).sum::<u64>();
        simulation.run_until(random, random_below(all), None);
        simulation.run_until(&mut Random::new(1), usize::MAX, Some(dead));
        if let Some((bucket, _)) = simulation.stuck() {
            assert!(plan.bucket(bucket).unwrap().involves(dead), "bucket {bucket} waits for somebody who lives");
        }
    });
}

fn random_below(limit: u64) -> usize {
    Random::new(limit).below(limit + 1) as usize
}

/// Two ops that look alike must not share a reduction.
#[test]
fn sums_and_averages_of_the_same_ranks_do_not_share_a_round() {
    let mesh = Mesh::new(&[4], &[0, 1, 2, 3]).unwrap();
    let item = |op| Item {
        name: "g".into(),
        shape: vec![8],
        source: Layout {
            dtype: tutti::dtype::DType::Int32,
            mesh: mesh.clone(),
            placements: vec![Placement::Partial(op)],
        },
        target: Layout {
            dtype: tutti::dtype::DType::Int32,
            mesh: mesh.clone(),
            placements: vec![Placement::Replicate],
        },
        wire: None,
    };
    let items = [item(Op::Sum), item(Op::Avg), item(Op::Max)];
    let plan = Plan::new(&items, &Options::new(4)).unwrap();
    let rounds: Vec<_> = (0..plan.bucket_count()).filter_map(|bucket| plan.bucket(bucket).unwrap().round).collect();
    assert_eq!(rounds.len(), 3);
    assert!(plan.report(Format::Text).contains("reduce"));
}
