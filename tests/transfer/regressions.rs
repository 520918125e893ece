//! Defects that transfer planners had, each as the promise that it breaks.

use std::collections::BTreeSet;
use std::sync::Arc;

use tutti::dtype::{DType, Op};
use tutti::transfer::plan::ALIGN;
use tutti::transfer::{Item, Layout, Mesh, Options, Placement, Plan, Side, Split, Transport};

use crate::random::Random;
use crate::simulation::{Simulation, World};

fn line(ranks: impl IntoIterator<Item = u32>) -> Arc<Mesh> {
    let ranks: Vec<u32> = ranks.into_iter().collect();
    Mesh::new(&[ranks.len() as u64], &ranks).unwrap()
}

fn layout(dtype: DType, mesh: &Arc<Mesh>, placements: &[Placement]) -> Layout {
    Layout { dtype, mesh: mesh.clone(), placements: placements.to_vec() }
}

fn item(shape: &[u64], source: Layout, target: Layout) -> Item {
    Item { name: "w".into(), shape: shape.to_vec(), source, target, wire: None }
}

fn options(world: u32) -> Options {
    Options { bucket_bytes: 256, split_bytes: 16, ..Options::new(world) }
}

fn run(items: &[Item], options: &Options) -> Plan {
    let plan = Plan::new(items, options).unwrap();
    let random = &mut Random::new(7);
    for in_flight in [1, plan.in_flight() as usize] {
        let mut world = World::new(items, &plan, random);
        Simulation::new(&mut world, in_flight).run(random);
        world.check();
    }
    plan
}

fn chunks(plan: &Plan) -> impl Iterator<Item = tutti::transfer::Chunk<'_>> {
    (0..plan.chunk_count()).map(|chunk| plan.chunk(chunk).unwrap())
}

use Placement::Replicate;

/// (a) A rank in both meshes was planned as a source only, and its peers waited for it.
#[test]
fn a_rank_may_be_source_and_target_at_once() {
    let (source, target) = (line(0..4), line(2..6));
    let items = [
        item(
            &[12, 4],
            layout(DType::Float32, &source, &[Placement::shard(0)]),
            layout(DType::Float32, &target, &[Placement::shard(1)]),
        ),
        item(&[9], layout(DType::Int64, &target, &[Placement::shard(0)]), layout(DType::Int64, &source, &[Replicate])),
    ];
    let plan = run(&items, &options(6));
    for rank in 2..4 {
        let load = plan.load(rank).unwrap();
        assert!(load.sent > 0 && load.received > 0 && load.local > 0, "{load:?}");
    }
}

/// (b) Where the only receiver was the sender, a send to itself was planned beside the copy, and the copy forgot the
/// wire type and the reduction.
#[test]
fn what_stays_on_its_rank_is_copied_and_never_sent() {
    let mesh = line(0..4);
    let mut narrowed = item(
        &[16],
        layout(DType::Float32, &mesh, &[Placement::shard(0)]),
        layout(DType::Float32, &mesh, &[Placement::shard(0)]),
    );
    narrowed.wire = Some(DType::Bfloat16);
    let plan = run(&[narrowed], &options(4));
    assert_eq!(plan.totals().wire, 0);
    assert!(chunks(&plan).all(|chunk| chunk.transport == Transport::Local && chunk.dtype == DType::Bfloat16));

    let summed = item(
        &[16],
        layout(DType::Int32, &mesh, &[Placement::Partial(Op::Sum)]),
        layout(DType::Int32, &mesh, &[Placement::shard(0)]),
    );
    let plan = run(&[summed], &options(4));
    assert_eq!((plan.totals().wire, plan.totals().local), (0, 64));
    let copies: Vec<_> = chunks(&plan).filter(|chunk| chunk.transport == Transport::Local).collect();
    assert!(copies.len() >= 4 && copies.iter().all(|chunk| chunk.reduced.is_some()));
}

/// (b) A broadcast that its own sender also wanted named the sender twice.
#[test]
fn a_broadcast_does_not_name_its_sender_among_the_receivers() {
    let plan = run(
        &[item(
            &[64],
            layout(DType::Float32, &line([3]), &[Replicate]),
            layout(DType::Float32, &line(0..8), &[Replicate]),
        )],
        &options(8),
    );
    let broadcasts: Vec<_> = chunks(&plan).filter(|chunk| chunk.transport == Transport::Broadcast).collect();
    assert!(!broadcasts.is_empty());
    for chunk in broadcasts {
        assert_eq!((chunk.source, chunk.targets), (3, &[0, 1, 2, 4, 5, 6, 7][..]));
    }
    assert_eq!(plan.load(3).unwrap().local, 256);
}

/// (c) What was left over when a dimension did not divide was never transferred.
#[test]
fn nothing_is_left_over_when_dimensions_do_not_divide() {
    for (rows, from, to) in [(7, 3, 2), (13, 4, 5), (61, 8, 7), (3, 8, 5), (1, 4, 3), (0, 4, 3)] {
        for split in [Split::Ceil, Split::Balanced] {
            let shard = Placement::Shard { dim: 0, split, order: 0 };
            let plan = run(
                &[item(
                    &[rows, 3],
                    layout(DType::Int16, &line(0..from), std::slice::from_ref(&shard)),
                    layout(DType::Int16, &line(10..10 + to), &[shard]),
                )],
                &options(20),
            );
            assert_eq!(plan.totals().wire, rows * 3 * 2);
            assert!(chunks(&plan).all(|chunk| chunk.bytes > 0));
        }
    }
}

/// (d) Offsets within a bucket were sums of bytes, so a float could follow a byte at an odd address.
#[test]
fn elements_of_mixed_types_in_one_bucket_are_aligned() {
    let (source, target) = (line([0]), line([1]));
    let items: Vec<Item> = [DType::Float8E4M3, DType::Float64, DType::Bool, DType::Bfloat16, DType::Int64]
        .iter()
        .map(|dtype| item(&[3], layout(*dtype, &source, &[Replicate]), layout(*dtype, &target, &[Replicate])))
        .collect();
    let plan = run(&items, &options(2));
    assert_eq!(plan.bucket_count(), 1, "small tensors share a bucket");
    let offsets: Vec<u64> = chunks(&plan).map(|chunk| chunk.offset).collect();
    assert_eq!(offsets, [0, 16, 48, 64, 80]);
    assert!(offsets.iter().all(|offset| offset % ALIGN == 0));
}

/// (e) Who owns what was computed with fp32 numbers, which are not exact above 2^24.
#[test]
fn ownership_is_exact_on_large_meshes_and_grids() {
    let (source, target) = (line(0..512), line(512..1024));
    let grid = item(
        &[512, 512],
        layout(DType::Uint8, &source, &[Placement::shard(0)]),
        layout(DType::Uint8, &target, &[Placement::shard(1)]),
    );
    let plan = Plan::new(&[grid], &Options::new(1024)).unwrap();
    assert_eq!(plan.chunk_count(), 512 * 512);
    for chunk in chunks(&plan) {
        let (row, column) = (chunk.start[0] as u32, chunk.start[1] as u32);
        assert_eq!((chunk.source, chunk.targets), (row, &[512 + column][..]));
    }
    // Dimensions far beyond what any float counts, one element apart.
    let rows = (1u64 << 40) + 1;
    let long = item(
        &[rows],
        layout(DType::Uint8, &line([0, 1]), &[Placement::Shard { dim: 0, split: Split::Ceil, order: 0 }]),
        layout(DType::Uint8, &line([2, 3]), &[Placement::Shard { dim: 0, split: Split::Balanced, order: 0 }]),
    );
    let plan = Plan::new(&[long], &Options { bucket_bytes: 1 << 44, ..Options::new(4) }).unwrap();
    assert_eq!((plan.load(0).unwrap().sent, plan.load(1).unwrap().sent), ((1 << 39) + 1, 1 << 39));
    assert_eq!(plan.totals().wire, rows);
}

/// (f) A receiver that was alone in its bucket took its own type for the wire's.
#[test]
fn a_target_wider_than_the_wire_receives_the_wire_type() {
    let move_to = |from, to, wire| {
        let mut item = item(&[8], layout(from, &line([0]), &[Replicate]), layout(to, &line([1]), &[Replicate]));
        item.wire = wire;
        run(&[item], &options(2))
    };
    let cases = [
        (DType::Bfloat16, DType::Float32, None, 16),
        (DType::Float32, DType::Bfloat16, None, 16),
        (DType::Float16, DType::Float64, Some(DType::Float32), 32),
        (DType::Float64, DType::Float64, Some(DType::Float16), 16),
    ];
    for (from, to, wire, bytes) in cases {
        let plan = move_to(from, to, wire);
        assert_eq!((plan.totals().wire, plan.bucket_count()), (bytes, 1), "{from:?} to {to:?} by {wire:?}");
        assert_eq!(plan.dtype(0, Side::Target), Some(to));
    }
}

/// (g) A target took everything from the source replica of its own number, and the other replicas did nothing.
#[test]
fn all_source_replicas_send() {
    let mesh = Mesh::new(&[2, 4], &(0..8).collect::<Vec<_>>()).unwrap();
    let sharded = item(
        &[64, 16],
        layout(DType::Float32, &mesh, &[Replicate, Placement::shard(0)]),
        layout(DType::Float32, &line(8..12), &[Placement::shard(0)]),
    );
    let plan = run(&[sharded], &options(12));
    for rank in 0..8 {
        assert_eq!(plan.load(rank).unwrap().sent, 64 * 16 * 4 / 8, "rank {rank}");
    }
    let replicated = item(
        &[64, 16],
        layout(DType::Float32, &line(0..8), &[Replicate]),
        layout(DType::Float32, &line(8..10), &[Replicate]),
    );
    let plan = run(&[replicated], &options(10));
    for rank in 0..8 {
        assert_eq!(plan.load(rank).unwrap().sent, 2 * 64 * 16 * 4 / 8, "rank {rank}");
    }
}

/// (h) Sums were made by an all-reduce, twice the traffic, and most members threw the result away.
#[test]
fn sums_cost_one_reduce_scatter() {
    for contributors in [2u32, 3, 4, 7] {
        let bytes = 840 * 4;
        let summed = item(
            &[840],
            layout(DType::Float32, &line(0..contributors), &[Placement::Partial(Op::Sum)]),
            layout(DType::Float32, &line([20]), &[Replicate]),
        );
        let plan = run(&[summed], &Options { split_bytes: 4, ..options(21) });
        let share = u64::from(bytes / contributors);
        assert_eq!(plan.totals().reduced, u64::from((contributors - 1) * bytes));
        assert_eq!(plan.totals().wire, u64::from(bytes));
        for rank in 0..contributors {
            let load = plan.load(rank).unwrap();
            assert!(load.reduce_sent.abs_diff(u64::from(bytes) - share) <= 64, "{load:?}");
            assert!(load.sent.abs_diff(share) <= 64, "{load:?}");
        }
    }
}

/// (h) Replicas of the contributors share the reduction too.
#[test]
fn replicas_of_contributors_reduce_a_part_each() {
    let mesh = Mesh::new(&[3, 2], &(0..6).collect::<Vec<_>>()).unwrap();
    let averaged = item(
        &[720],
        layout(DType::Int32, &mesh, &[Placement::Partial(Op::Avg), Replicate]),
        layout(DType::Int32, &line(6..8), &[Placement::shard(0)]),
    );
    let plan = run(&[averaged], &Options { split_bytes: 4, ..options(8) });
    for rank in 0..6 {
        let load = plan.load(rank).unwrap();
        assert!(load.reduce_sent.abs_diff(720 * 4 / 2 * 2 / 3) <= 64, "{load:?}");
    }
}

/// (h) One of eight contributors wants the whole sum: it must not receive seven times that.
#[test]
fn a_contributor_that_wants_the_sum_is_not_swamped() {
    let summed = item(
        &[7 * 64],
        layout(DType::Float32, &line(0..8), &[Placement::Partial(Op::Sum)]),
        layout(DType::Float32, &line([0]), &[Replicate]),
    );
    let plan = run(&[summed], &Options { split_bytes: 4, ..options(8) });
    assert!(plan.totals().largest_receive <= 7 * 64 * 4 + 64, "{:?}", plan.totals());
}

/// (i) Planning took collectives and a grid of the least common multiple, and one communicator per pair of sender and
/// receivers.
#[test]
fn plans_grow_with_what_overlaps_and_need_no_groups_for_point_to_point() {
    let (from, to) = (61, 59);
    let moved = item(
        &[61 * 59, 61 * 59],
        layout(DType::Float32, &line(0..from), &[Placement::shard(0)]),
        layout(DType::Float32, &line(100..100 + to), &[Placement::shard(0)]),
    );
    let plan = Plan::new(&[moved], &Options { bucket_bytes: 1 << 30, ..Options::new(200) }).unwrap();
    assert_eq!(plan.chunk_count(), (from + to - 1) as usize, "not {from} x {to}");
    assert_eq!(plan.totals().groups, 0);
}

/// (j) A transfer on CPUs called the GPU's runtime. Planning calls nobody: its code names no other room but the ground
/// floor, and nothing of the system.
#[test]
fn planning_touches_neither_devices_nor_the_system() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/transfer");
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().to_string();
        const PLANNING: [&str; 14] = [
            "assign.rs",
            "cells.rs",
            "flow.rs",
            "inspect.rs",
            "layout.rs",
            "order.rs",
            "owners.rs",
            "pack.rs",
            "picture.rs",
            "plan.rs",
            "region.rs",
            "report.rs",
            "view.rs",
            "mod.rs",
        ];
        if !PLANNING.contains(&name.as_str()) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for found in text.match_indices("crate::").map(|(at, _)| &text[at + 7..]) {
            let room = found.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next().unwrap();
            assert!(["dtype", "error"].contains(&room), "{name} uses {room}");
        }
        for outside in
            ["std::env", "std::net", "std::fs", "std::process", "std::thread", "std::time", "libc", "rustix", "unsafe"]
        {
            assert!(!text.contains(outside), "{name} uses {outside}");
        }
        seen.insert(name);
    }
    assert_eq!(seen.len(), 14, "{seen:?}");
}

/// A copy that stays on its rank must not share a bucket with what that rank broadcasts: their sizes differ per rank.
#[test]
fn copies_do_not_share_buckets_with_what_travels() {
    let mesh = line(0..4);
    let items: Vec<Item> = (0..3)
        .map(|_| {
            item(&[24], layout(DType::Float32, &line([0]), &[Replicate]), layout(DType::Float32, &mesh, &[Replicate]))
        })
        .collect();
    let plan = run(&items, &options(4));
    let kinds: BTreeSet<(bool, usize)> =
        chunks(&plan).map(|chunk| (chunk.transport == Transport::Local, chunk.bucket)).collect();
    let buckets: BTreeSet<usize> = kinds.iter().map(|(_, bucket)| *bucket).collect();
    assert_eq!(kinds.len(), buckets.len());
    assert!(kinds.iter().any(|(local, _)| *local) && kinds.iter().any(|(local, _)| !local));
}

/// Addends are added in their own type and the sum is narrowed once, not each addend.
#[test]
fn sums_are_made_before_they_are_narrowed() {
    let mesh = line(0..4);
    let summed = item(
        &[32],
        layout(DType::Float32, &mesh, &[Placement::Partial(Op::Sum)]),
        layout(DType::Bfloat16, &line(4..6), &[Placement::shard(0)]),
    );
    let plan = run(&[summed], &options(6));
    for chunk in chunks(&plan) {
        let expected = if chunk.transport == Transport::None { DType::Float32 } else { DType::Bfloat16 };
        assert_eq!(chunk.dtype, expected);
    }
}

/// A chunk larger than a bucket is split, and a bucket is never more than its cap (not up to twice of it).
#[test]
fn large_tensors_are_split_at_the_cap() {
    let moved = item(
        &[1000, 3],
        layout(DType::Float32, &line([0]), &[Replicate]),
        layout(DType::Float32, &line([1]), &[Replicate]),
    );
    let plan = run(&[moved], &options(2));
    assert!((0..plan.bucket_count()).all(|bucket| plan.bucket(bucket).unwrap().bytes <= 256));
    assert!(plan.bucket_count() <= 12_000 / 240 + 2, "buckets are nearly full: {}", plan.bucket_count());
}

/// The order of buckets keeps links busy on the usual pairs of meshes.
#[test]
fn links_are_kept_busy() {
    let grid = |from: u32, dims: &[u64]| {
        let size: u64 = dims.iter().product();
        Mesh::new(dims, &(from..from + size as u32).collect::<Vec<_>>()).unwrap()
    };
    let shard = Placement::shard;
    let cases = [
        ("all to all", grid(0, &[8]), vec![shard(0)], grid(0, &[8]), vec![shard(1)]),
        ("to fewer", grid(0, &[16]), vec![shard(0)], grid(16, &[4]), vec![shard(1)]),
        ("to more", grid(0, &[4]), vec![shard(1)], grid(16, &[16]), vec![shard(0)]),
        ("gather", grid(0, &[8]), vec![shard(0)], grid(0, &[8]), vec![Replicate]),
        ("uneven", grid(0, &[7]), vec![shard(0)], grid(7, &[3, 2]), vec![shard(1), shard(0)]),
        ("replicas", grid(0, &[2, 8]), vec![Replicate, shard(0)], grid(16, &[4, 2]), vec![Replicate, shard(1)]),
        ("sum to shards", grid(0, &[8]), vec![Placement::Partial(Op::Sum)], grid(0, &[8]), vec![shard(0)]),
        ("sum elsewhere", grid(0, &[8]), vec![Placement::Partial(Op::Sum)], grid(8, &[4]), vec![shard(0)]),
    ];
    for (name, source, from, target, to) in cases {
        let items = [item(&[840, 960], layout(DType::Float32, &source, &from), layout(DType::Float32, &target, &to))];
        let plan = Plan::new(&items, &Options { bucket_bytes: 1 << 13, ..Options::new(32) }).unwrap();
        let totals = plan.totals();
        let ratio = totals.duration as f64 / totals.duration_bound as f64;
        println!("{name}: {ratio:.3}");
        assert!((1.0..1.25).contains(&ratio), "{name}: {ratio:.3} of the bound");
    }
}
