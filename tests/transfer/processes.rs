//! Transfers between processes: random ones over every way in which ranks hear of each other, and a rank that dies.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tutti::{
    config::Timeout,
    dtype::DType,
    error::Status,
    transfer::{Item, Layout, Mesh, Options, Phase, Placement, Plan, Side, Transfer},
};

use crate::{
    random::{self, ANYTHING, Random, Seed},
    simulation::World,
    stage::{Outcome, PATIENT, Rank, Stage, WAYS, ms, outcome},
};

/// Random transfers in every world.
const CASES: u64 = 25;

/// Every rank describes the same transfers, and carries out its part of each.
fn random_transfers(rank: &Rank) {
    let group = rank.world();
    let first: u64 = 900_000 + 1000 * u64::from(rank.size);
    for seed in first..first + CASES * random::times() {
        let _seed = Seed(seed);
        let random = &mut Random::new(seed);
        let (items, options) = random::transfer_in(random, ANYTHING, rank.size);
        let plan = Arc::new(Plan::new(&items, &options).unwrap());
        let mut world = World::new(&items, &plan, random);
        let mut transfer = Transfer::new(plan.clone(), group.clone()).unwrap();
        for (side, memories) in [(Side::Source, &mut world.sources), (Side::Target, &mut world.targets)] {
            for ((item, _), memory) in memories.iter_mut().filter(|((_, of), _)| *of == rank.rank) {
                let address = memory.address();
                // SAFETY: the memory spans the view of these strides, and stays until the transfer is over.
                unsafe { transfer.bind(*item, side, address, memory.strides.as_deref()) }.unwrap();
            }
        }
        transfer.start().unwrap();
        transfer.wait(Timeout::After(PATIENT)).unwrap();
        assert_eq!(transfer.standing().phase, Phase::Done);
        for (item, of) in world.targets.keys().filter(|(_, of)| *of == rank.rank) {
            world.check_target(*item, *of);
        }
    }
    rank.tell("done");
}

#[test]
fn random_transfers_between_processes_arrive() {
    let stage = Stage::set(random_transfers);
    for (size, way) in [(2, WAYS[0]), (4, WAYS[0]), (8, WAYS[0]), (3, WAYS[1]), (3, WAYS[2])] {
        let mut world = stage.over(way).launch(size);
        let ranks: Vec<u32> = (0..size).collect();
        world.hear_all::<String>(&ranks);
        world.succeeds(&ranks);
    }
}

/// What a survivor tells.
#[derive(Serialize, Deserialize)]
struct Report {
    outcome: Outcome,
    failed_rank: Option<u32>,
    /// (written, all) of every tensor.
    written: Vec<(u64, u64)>,
}

const ELEMENTS: u64 = 1 << 16;

/// Tensor 0 goes from rank 0 to rank 1, tensor 1 from rank 2, which dies, to rank 1. Rank 3 has no part.
fn transfer_with_a_victim(rank: &Rank) {
    let layout = |rank: u32| Layout {
        dtype: DType::Float32,
        mesh: Mesh::new(&[1], &[rank]).unwrap(),
        placements: vec![Placement::Replicate],
    };
    let item = |name: &str, source: u32| Item {
        name: name.into(),
        shape: vec![ELEMENTS],
        source: layout(source),
        target: layout(1),
        wire: None,
    };
    let items = [item("safe", 0), item("lost", 2)];
    // All buckets at once, so that those that never come stand in nobody's way.
    let options = Options { bucket_bytes: 1 << 14, in_flight: 64, ..Options::new(4) };
    let plan = Arc::new(Plan::new(&items, &options).unwrap());
    let group = rank.world();
    let mut transfer = Transfer::new(plan, group.clone()).unwrap();
    let mut memory = vec![vec![1f32; ELEMENTS as usize]; 2];
    let sides = match rank.rank {
        0 => vec![(0, Side::Source)],
        1 => vec![(0, Side::Target), (1, Side::Target)],
        2 => vec![(1, Side::Source)],
        _ => vec![],
    };
    for (item, side) in sides {
        // SAFETY: the memory outlives the transfer.
        unsafe { transfer.bind(item, side, memory[item].as_mut_ptr().cast(), None) }.unwrap();
    }
    transfer.start().unwrap();
    if rank.rank == 2 {
        rank.tell("going");
        // Takes part in comparing the plans, and then sends nothing: only the group goes on, not the transfer.
        while group.check().is_ok() {
            std::thread::yield_now();
        }
    }
    if rank.rank == 1 {
        while transfer.written(0).unwrap().0 < ELEMENTS * 4 {
            transfer.poll().unwrap();
        }
    } else {
        transfer.wait(Timeout::After(PATIENT)).unwrap();
    }
    rank.tell("going");
    // Whoever is done hears of the death by asking the group.
    let outcome = outcome(|| transfer.wait(Timeout::Never).map(|_| ()));
    let outcome = if rank.rank == 1 { outcome } else { crate::stage::until_failure(|| group.check()) };
    let written = (0..2).map(|item| transfer.written(item).unwrap()).collect();
    rank.tell(Report { outcome, failed_rank: transfer.standing().failed_rank, written });
}

#[test]
fn a_rank_that_dies_amid_a_transfer_is_named_and_what_was_written_is_known() {
    let stage = Stage::set(transfer_with_a_victim);
    for way in WAYS {
        let mut world = stage.over(way).launch(4);
        world.hear_all::<String>(&[0, 1, 2, 3]);
        let killed = world.kill(2);
        let report: Report = world.hear(1);
        assert_eq!((report.outcome.status, report.outcome.rank), (Status::PeerLost as i32, Some(2)), "{way:?}");
        assert_eq!(report.failed_rank, Some(2));
        assert_eq!(report.written[0], (ELEMENTS * 4, ELEMENTS * 4));
        assert_eq!(report.written[1], (0, ELEMENTS * 4), "{way:?}");
        assert!(ms(killed, report.outcome.to) < 1000.0, "{way:?}: {:?}", report.outcome);
        for rank in [0, 3] {
            let other: Report = world.hear(rank);
            assert_eq!((other.outcome.status, other.outcome.rank), (Status::PeerLost as i32, Some(2)));
        }
        world.succeeds(&[0, 1, 3]);
    }
}
