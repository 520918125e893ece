//! Transfers carried out for real, by ranks of this process: hundreds of random ones, and what bound memory may be.
//!
//! One thread drives all ranks, in an order that dice decide; or every rank has a thread that waits.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tutti::{
    communicator::{Call, Descriptor, Progress},
    config::{GroupOptions, Selection, Timeout, WorldOptions},
    dtype::{Collective, DType, Op},
    error::Status,
    group::Group,
    tensor::Dict,
    transfer::{Item, Layout, Mesh, Options, Phase, Placement, Plan, Side, Transfer},
};

use crate::{
    random::{self, ANYTHING, Random, Wanted, seeds},
    simulation::World,
};

/// What no transfer here may take.
const WATCHDOG: Duration = Duration::from_secs(60);

/// Random transfers in every world.
const CASES: u64 = 120;

fn world(size: u32, communicators: &str) -> Vec<Arc<Group>> {
    let group = GroupOptions {
        timeout: Timeout::After(WATCHDOG),
        communicators: Selection::parse(communicators).unwrap(),
        ..GroupOptions::default()
    };
    Group::world_local(size, None, WorldOptions { group, ..WorldOptions::default() }).unwrap()
}

/// A transfer of every rank, with the memory of a world bound.
fn bind(plan: &Arc<Plan>, world: &mut World<'_>, groups: &[Arc<Group>]) -> Vec<Transfer> {
    let mut transfers: Vec<Transfer> =
        groups.iter().map(|group| Transfer::new(plan.clone(), group.clone()).unwrap()).collect();
    for (side, memories) in [(Side::Source, &mut world.sources), (Side::Target, &mut world.targets)] {
        for ((item, rank), memory) in memories.iter_mut() {
            let address = memory.address();
            // SAFETY: the memory spans the view of these strides, and stays until the transfer is over.
            unsafe { transfers[*rank as usize].bind(*item, side, address, memory.strides.as_deref()) }.unwrap();
        }
    }
    transfers
}

/// Polls the transfers in random order until all are over.
fn drive(transfers: &mut [Transfer], random: &mut Random) {
    let begin = Instant::now();
    let mut left: Vec<usize> = (0..transfers.len()).collect();
    while !left.is_empty() {
        assert!(begin.elapsed() < WATCHDOG, "ranks {left:?} hang: {:?}", transfers[left[0]].standing());
        let at = random.below(left.len() as u64) as usize;
        if transfers[left[at]].poll().unwrap() == Progress::Done {
            left.swap_remove(at);
        }
    }
}

fn check_done(plan: &Plan, transfer: &Transfer) {
    let standing = transfer.standing();
    assert_eq!(standing.phase, Phase::Done);
    assert_eq!(standing.buckets.0, standing.buckets.1);
    assert_eq!(standing.bytes.0, standing.bytes.1);
    assert!(standing.staged <= plan.options().staging_bytes, "{} staged", standing.staged);
    for item in 0..plan.item_count() {
        let (written, all) = transfer.written(item).unwrap();
        assert_eq!(written, all, "tensor {item}");
    }
}

/// Random transfers in one world, all ranks driven by this thread; every second one is carried out twice.
fn carry_out(size: u32, communicators: &str, first: u64, count: u64) {
    let groups = world(size, communicators);
    seeds(first, count, |random| {
        let (items, options) = random::transfer_in(random, ANYTHING, size);
        let plan = Arc::new(Plan::new(&items, &options).unwrap());
        let mut world = World::new(&items, &plan, random);
        let before = world.snapshot();
        let mut transfers = bind(&plan, &mut world, &groups);
        for _ in 0..1 + random.below(2) {
            transfers.iter_mut().for_each(|transfer| transfer.start().unwrap());
            drive(&mut transfers, random);
            transfers.iter().for_each(|transfer| check_done(&plan, transfer));
        }
        world.check_contents();
        assert!(before == world.snapshot(), "a source was written");
    });
}

#[test]
fn random_transfers_of_two_ranks_arrive() {
    carry_out(2, "", 800_000, CASES);
}

#[test]
fn random_transfers_of_three_ranks_arrive() {
    carry_out(3, "", 810_000, CASES);
}

#[test]
fn random_transfers_of_five_ranks_arrive() {
    carry_out(5, "", 820_000, CASES);
}

#[test]
fn random_transfers_of_eight_ranks_arrive() {
    carry_out(8, "", 830_000, CASES);
}

#[test]
fn random_transfers_over_sockets_arrive() {
    carry_out(4, "=sockets", 840_000, CASES / 4);
}

/// Large enough that buckets are filled, split, sent from where they are or piece by piece, and overlap.
fn carry_out_large(communicators: &str, first: u64, count: u64) {
    let groups = world(4, communicators);
    seeds(first, count, |random| {
        let wanted = Wanted { elements: 200_000, ..ANYTHING };
        let (items, mut options) = random::transfer_in(random, wanted, 4);
        options.bucket_bytes = *random.pick(&[1 << 12, 1 << 16, 1 << 20]);
        options.staging_bytes = 0;
        let plan = Arc::new(Plan::new(&items, &options).unwrap());
        let mut world = World::new(&items, &plan, random);
        let mut transfers = bind(&plan, &mut world, &groups);
        std::thread::scope(|scope| {
            for transfer in &mut transfers {
                scope.spawn(|| {
                    transfer.start().unwrap();
                    assert_eq!(transfer.wait(Timeout::After(WATCHDOG)).unwrap(), Progress::Done);
                });
            }
        });
        transfers.iter().for_each(|transfer| check_done(&plan, transfer));
        world.check_contents();
    });
}

#[test]
fn large_tensors_arrive_by_threads_that_wait() {
    carry_out_large("", 850_000, 16);
}

#[test]
fn large_tensors_arrive_over_sockets() {
    carry_out_large("=sockets", 855_000, 6);
}

#[test]
fn two_transfers_of_one_group_go_on_at_once() {
    let groups = world(3, "");
    seeds(860_000, 20, |random| {
        let made: Vec<_> = (0..2).map(|_| random::transfer_in(random, ANYTHING, 3)).collect();
        let plans: Vec<_> = made.iter().map(|(items, options)| Arc::new(Plan::new(items, options).unwrap())).collect();
        let mut worlds: Vec<_> =
            made.iter().zip(&plans).map(|((items, _), plan)| World::new(items, plan, random)).collect();
        let mut transfers = Vec::new();
        for (plan, world) in plans.iter().zip(&mut worlds) {
            transfers.extend(bind(plan, world, &groups));
        }
        transfers.iter_mut().for_each(|transfer| transfer.start().unwrap());
        drive(&mut transfers, random);
        worlds.iter().for_each(World::check_contents);
    });
}

/// A tensor of `count` numbers that goes from all of rank 0 to all of rank 1.
fn simple(count: u64, name: &str) -> Item {
    let layout = |rank: u32| Layout {
        dtype: DType::Int32,
        mesh: Mesh::new(&[1], &[rank]).unwrap(),
        placements: vec![Placement::Replicate],
    };
    Item { name: name.into(), shape: vec![count], source: layout(0), target: layout(1), wire: None }
}

#[test]
fn ranks_with_different_plans_are_told_and_nothing_moves() {
    let groups = world(3, "");
    let plan = |count| Arc::new(Plan::new(&[simple(count, "a")], &Options::new(3)).unwrap());
    let (usual, odd) = (plan(8), plan(9));
    let source = [7i32; 9];
    let mut target = [0i32; 9];
    let mut transfers: Vec<Transfer> = [&usual, &usual, &odd]
        .into_iter()
        .zip(&groups)
        .map(|(plan, group)| Transfer::new(plan.clone(), group.clone()).unwrap())
        .collect();
    // SAFETY: both arrays outlive the transfers.
    unsafe {
        transfers[0].bind(0, Side::Source, source.as_ptr().cast_mut().cast(), None).unwrap();
        transfers[1].bind(0, Side::Target, target.as_mut_ptr().cast(), None).unwrap();
    }
    transfers.iter_mut().for_each(|transfer| transfer.start().unwrap());
    for (rank, named) in [(0, 2), (1, 2), (2, 0)] {
        let begin = Instant::now();
        let error = loop {
            assert!(begin.elapsed() < WATCHDOG);
            match transfers[rank].poll() {
                Err(error) => break error,
                Ok(progress) => assert_eq!(progress, Progress::Pending),
            }
            for other in (0..3).filter(|other| *other != rank) {
                let _ = transfers[other].poll();
            }
        };
        assert_eq!(error.status(), Status::Mismatch);
        assert_eq!(transfers[rank].standing().failed_rank, Some(named), "{error}");
        assert_eq!(transfers[rank].start().unwrap_err().status(), Status::Mismatch, "it stays failed");
    }
    drop(transfers);
    assert_eq!(target, [0; 9]);
    groups.iter().for_each(|group| group.check().unwrap());
}

#[test]
fn memory_that_is_missing_or_overlaps_is_refused_before_anything_happens() {
    let groups = world(2, "");
    let stays = Item { target: simple(8, "").source, name: "stays".into(), ..simple(8, "") };
    let cast = Item {
        target: Layout { dtype: DType::Float32, ..stays.target.clone() },
        source: Layout { dtype: DType::Float16, ..stays.source.clone() },
        ..stays.clone()
    };
    let items = [simple(8, "goes"), stays, cast];
    let plan = Arc::new(Plan::new(&items, &Options::new(2)).unwrap());
    let memory = [0i32; 64];
    let at = |place: usize| memory.as_ptr().wrapping_add(place).cast_mut().cast::<u8>();
    // (item, side, place) that is bound last, and what must be said about it.
    let places = [
        (0, Side::Source, 0),
        (1, Side::Source, 8),
        (1, Side::Target, 16),
        (2, Side::Source, 24),
        (2, Side::Target, 32),
    ];
    let mut transfer = Transfer::new(plan.clone(), groups[0].clone()).unwrap();
    for (done, (item, side, place)) in places.into_iter().enumerate() {
        let error = transfer.start().unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{done}");
        assert!(error.to_string().contains("has no memory on rank 0"), "{error}");
        // SAFETY: nothing is started while memory is wrong, and it outlives the transfer.
        unsafe { transfer.bind(item, side, at(place), None) }.unwrap();
    }
    for (item, side, place, refused) in [
        (1, Side::Target, 20, true),  // the source of the next
        (1, Side::Target, 12, true),  // half over its own source
        (1, Side::Target, 8, false),  // in place
        (2, Side::Target, 24, true),  // in place, but with a cast
        (2, Side::Target, 8, true),   // the memory of another
        (2, Side::Target, 32, false), // apart
    ] {
        // SAFETY: as above.
        unsafe { transfer.bind(item, side, at(place), None) }.unwrap();
        match transfer.start() {
            Err(error) => {
                assert!(refused, "{error}");
                assert_eq!(error.status(), Status::InvalidArgument);
                assert!(error.to_string().contains("overlap"), "{error}");
            }
            Ok(()) => {
                assert!(!refused, "tensor {item} at {place}");
                let usage = transfer.start().unwrap_err();
                assert_eq!(usage.status(), Status::InvalidUsage);
                drop(transfer);
                break;
            }
        }
    }
    // The transfer went on when it was dropped, so its group is gone; a new world for the rest.
    assert_eq!(groups[1].check().unwrap_err().status(), Status::Aborted);
}

#[test]
fn halves_of_the_columns_of_one_matrix_do_not_overlap() {
    let groups = world(2, "");
    let whole = |rank: u32| Layout {
        dtype: DType::Int32,
        mesh: Mesh::new(&[1], &[rank]).unwrap(),
        placements: vec![Placement::Replicate],
    };
    let half =
        |name: &str| Item { name: name.into(), shape: vec![5, 4], source: whole(0), target: whole(1), wire: None };
    let plan = Arc::new(Plan::new(&[half("left"), half("right")], &Options::new(2)).unwrap());
    let sources: Vec<i32> = (0..40).collect();
    let mut matrix = vec![-1i32; 5 * 9];
    let mut transfers: Vec<Transfer> =
        groups.iter().map(|group| Transfer::new(plan.clone(), group.clone()).unwrap()).collect();
    for item in 0..2 {
        let source = sources[item * 20..].as_ptr().cast_mut().cast();
        let target = matrix.as_mut_ptr().wrapping_add(item * 4).cast();
        // SAFETY: the arrays outlive the transfers; five rows of nine columns hold both halves and a gap.
        unsafe {
            transfers[0].bind(item, Side::Source, source, None).unwrap();
            transfers[1].bind(item, Side::Target, target, Some(&[9, 1])).unwrap();
        }
    }
    transfers.iter_mut().for_each(|transfer| transfer.start().unwrap());
    drive(&mut transfers, &mut Random::new(1));
    drop(transfers);
    for row in 0..5 {
        let expected: Vec<i32> = (0..4).map(|at| row * 4 + at).chain((0..4).map(|at| 20 + row * 4 + at)).collect();
        assert_eq!(matrix[row as usize * 9..][..8], expected);
        assert_eq!(matrix[row as usize * 9 + 8], -1);
    }
}

#[test]
fn a_plan_for_another_world_and_a_rank_outside_of_a_mesh_are_refused() {
    let groups = world(2, "");
    let plan = |world| Arc::new(Plan::new(&[simple(8, "a")], &Options::new(world)).unwrap());
    let error = Transfer::new(plan(3), groups[0].clone()).map(drop).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
    let mut transfer = Transfer::new(plan(2), groups[0].clone()).unwrap();
    let mut memory = [0i32; 8];
    for (item, side) in [(0, Side::Target), (1, Side::Source)] {
        // SAFETY: it is refused.
        let error = unsafe { transfer.bind(item, side, memory.as_mut_ptr().cast(), None) }.unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
    }
    assert_eq!(transfer.poll().unwrap_err().status(), Status::InvalidUsage, "not started");
    assert_eq!(transfer.written(1).unwrap_err().status(), Status::InvalidArgument);
}

#[test]
fn a_tensor_dict_that_is_awaited_takes_no_message_of_a_transfer() {
    let groups = world(2, "");
    let plan = Arc::new(Plan::new(&[simple(8, "a")], &Options::new(2)).unwrap());
    let with = |peer, tag| tutti::tensor::Options { peer, tag, ..Default::default() };
    let dicts: Vec<_> = (0..4).map(|tag| Dict::start_receive(&groups[1], with(0, tag)).unwrap()).collect();
    let (source, mut target) = ([7i32; 8], [0i32; 8]);
    let mut transfers: Vec<Transfer> =
        groups.iter().map(|group| Transfer::new(plan.clone(), group.clone()).unwrap()).collect();
    // SAFETY: both arrays outlive the transfers.
    unsafe {
        transfers[0].bind(0, Side::Source, source.as_ptr().cast_mut().cast(), None).unwrap();
        transfers[1].bind(0, Side::Target, target.as_mut_ptr().cast(), None).unwrap();
    }
    transfers.iter_mut().for_each(|transfer| transfer.start().unwrap());
    drive(&mut transfers, &mut Random::new(1));
    drop(transfers);
    assert_eq!(target, [7; 8]);
    for (tag, dict) in dicts.iter().enumerate() {
        assert_eq!(dict.test().unwrap(), Progress::Pending);
        let sent = Dict::start_send(&groups[0], &[], false, with(1, tag as u32)).unwrap();
        assert_eq!(dict.wait(Timeout::Default).unwrap(), Progress::Done);
        assert_eq!(sent.wait(Timeout::Default).unwrap(), Progress::Done);
    }
}

#[test]
fn a_transfer_beside_collectives_disturbs_none() {
    let groups = world(2, "");
    let plan = Arc::new(Plan::new(&[simple(100_000, "a")], &Options::new(2)).unwrap());
    std::thread::scope(|scope| {
        for group in &groups {
            let plan = plan.clone();
            scope.spawn(move || {
                let mut memory = vec![if group.rank() == 0 { 5i32 } else { 0 }; 100_000];
                let side = if group.rank() == 0 { Side::Source } else { Side::Target };
                let mut transfer = Transfer::new(plan, group.clone()).unwrap();
                // SAFETY: the memory outlives the transfer.
                unsafe { transfer.bind(0, side, memory.as_mut_ptr().cast(), None) }.unwrap();
                transfer.start().unwrap();
                for turn in 0..20 {
                    let mut value = turn + group.rank() as i32;
                    let descriptor = Descriptor {
                        collective: Collective::AllReduce,
                        dtype: DType::Int32,
                        op: Op::Sum,
                        root: 0,
                        flags: 0,
                        count: 1,
                    };
                    let place = (&raw mut value).cast::<u8>();
                    group.run(Call::new(descriptor, place, place), Timeout::Default).unwrap();
                    assert_eq!(value, 2 * turn + 1);
                    let _ = transfer.poll().unwrap();
                }
                assert_eq!(transfer.wait(Timeout::After(WATCHDOG)).unwrap(), Progress::Done);
                drop(transfer);
                assert!(memory.iter().all(|value| *value == 5));
            });
        }
    });
}
