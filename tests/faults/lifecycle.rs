//! Groups that come and go: many, in any order, while others work or still read, and nothing of them remains.

use std::{sync::Arc, time::Instant};

use tutti::{
    communicator::{Call, Descriptor},
    config::Timeout,
    dtype::Collective,
    error::Status,
    group::Group,
};

use crate::{
    sandbox,
    stage::{Stage, WAYS, all_reduce_of, make, outcome, sum},
};

/// Groups made and destroyed one after the other, the first of them not counted.
const CYCLES: u32 = 10_000;
const WARM_UP: u32 = 500;
/// Bytes by which the memory of a process may have grown, whatever the allocator keeps.
const SLACK: u64 = 1 << 20;

/// What a process holds.
#[derive(Debug)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    mappings: usize,
    memory: u64,
}

impl Holdings {
    fn now() -> Self {
        let count = |path: &str| std::fs::read_dir(path).unwrap().count();
        let pages: u64 =
            std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        Holdings {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            mappings: std::fs::read_to_string("/proc/self/maps").unwrap().lines().count(),
            memory: pages * rustix::param::page_size() as u64,
        }
    }
}

#[test]
fn ten_thousand_groups_come_and_go_and_leave_nothing() {
    let stage = Stage::set(|rank| {
        let before = Holdings::now();
        let world = rank.world();
        assert_eq!(Holdings::now().threads, before.threads, "a world on one host runs no thread");
        let mut warm = None;
        let begin = Instant::now();
        for cycle in 0..CYCLES {
            if cycle == WARM_UP {
                warm = Some(Holdings::now());
            }
            sum(&make(&world, &[1, 0]).unwrap(), 1).unwrap();
        }
        let (warm, end, took) = (warm.unwrap(), Holdings::now(), begin.elapsed());
        assert_eq!((end.descriptors, end.threads), (warm.descriptors, warm.threads), "{warm:?} {end:?}");
        assert!(end.mappings <= warm.mappings + 2 && end.memory < warm.memory + SLACK, "{warm:?} {end:?}");
        rank.tell(format!(
            "{CYCLES} groups in {:.1} s; {warm:?} after {WARM_UP}, {end:?} after all",
            took.as_secs_f64()
        ));
        sum(&world, 1).unwrap();
        drop(world);
        assert_eq!(Holdings::now().descriptors, before.descriptors, "the world left descriptors open");
    });
    let mut world = stage.scene("").launch(2);
    let said: Vec<String> = world.hear_all(&[0, 1]);
    println!("rank 0: {}\nrank 1: {}", said[0], said[1]);
    world.succeeds(&[0, 1]);
}

/// Numbers 0 to n - 1 in an order that the seed decides (xorshift64*).
fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        order.swap(i, (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % (i + 1));
    }
    order
}

#[test]
fn sixty_four_groups_are_destroyed_in_random_order_some_aborted_some_never() {
    const GROUPS: usize = 64;
    /// How many each rank destroys, in an order of its own; the rest is never destroyed.
    const DESTROYED: usize = 48;
    let stage = Stage::set(|rank| {
        let world = rank.world();
        let mut groups: Vec<Option<Arc<Group>>> = Vec::new();
        for group in 0..GROUPS {
            let ranks = if group % 2 == 0 { vec![0, 1, 2] } else { vec![2, 0, 1] };
            groups.push(Some(make(&world, &ranks).unwrap()));
        }
        groups.iter().flatten().for_each(|group| sum(group, 1).unwrap());
        // Every fifth is aborted, each by one rank; whoever uses it hears of it, now or later.
        let aborted = |group: usize| group.is_multiple_of(5);
        groups
            .iter()
            .enumerate()
            .filter(|(number, _)| aborted(*number) && number % 3 == rank.rank as usize)
            .for_each(|(_, group)| group.as_ref().unwrap().abort());
        let orders: Vec<Vec<usize>> = (0..3).map(|rank| shuffled(GROUPS, rank + 7)).collect();
        let mine = &orders[rank.rank as usize];
        for (step, number) in mine[..DESTROYED].iter().enumerate() {
            drop(groups[*number].take());
            // Between the destructions, one that nobody destroys works on.
            let kept =
                (0..GROUPS).filter(|n| !aborted(*n) && orders.iter().all(|order| order[DESTROYED..].contains(n)));
            if let Some(kept) = kept.collect::<Vec<_>>().first()
                && step % 8 == 0
            {
                sum(groups[*kept].as_ref().unwrap(), 1).unwrap();
            }
        }
        sum(&world, 1).unwrap();
        for (number, group) in groups.iter().enumerate() {
            let Some(group) = group else { continue };
            let left_by_others = orders.iter().any(|order| order[..DESTROYED].contains(&number));
            let ended = outcome(|| sum(group, 1));
            let expected = match (aborted(number), left_by_others) {
                (true, _) => Status::Aborted,
                (false, true) => Status::PeerLost,
                (false, false) => Status::Success,
            };
            assert_eq!(ended.status, expected as i32, "group {number}: {ended:?}");
        }
        sum(&world, 1).unwrap();
        std::mem::forget((world, groups));
    });
    stage.scene("").launch(3).succeeds(&[0, 1, 2]);
}

#[test]
fn what_a_rank_delivered_stays_readable_when_it_destroys_the_group_or_exits_at_once() {
    /// Large enough that a rank has left while others still read, and for every communicator's last chunks.
    const COUNTS: [usize; 4] = [1, 4096, 100_000, 1_000_000];
    const ROUNDS: usize = 30;
    let stage = Stage::set(|rank| {
        let world = rank.world();
        for round in 0..ROUNDS {
            for count in COUNTS {
                let group = make(&world, &[0, 1, 2]).unwrap();
                sum(&group, count).unwrap_or_else(|error| panic!("round {round}, {count} numbers: {error}"));
                drop(group);
            }
        }
        // And at the very end, with the process.
        sum(&world, COUNTS[3]).unwrap();
    });
    for way in WAYS {
        stage.over(way).launch(3).succeeds(&[0, 1, 2]);
    }
}

#[test]
fn a_rank_may_exit_as_soon_as_its_own_call_is_done() {
    const WORLDS: usize = 10;
    const COUNT: usize = 400_000;
    let stage = Stage::set(|rank| {
        let world = rank.world();
        match rank.scene.as_str() {
            "all_reduce" => sum(&world, COUNT).unwrap(),
            // The root waits for nobody's contribution, so it is gone while its last chunks are on the way.
            _ => {
                let mut buffer: Vec<i32> = (0..COUNT as i32).map(|i| if rank.rank == 0 { i } else { -1 }).collect();
                let descriptor = Descriptor { collective: Collective::Broadcast, ..all_reduce_of(COUNT) };
                let data = buffer.as_mut_ptr().cast();
                world.run(Call::new(descriptor, data, data), Timeout::Default).unwrap();
                assert!((0..COUNT as i32).eq(buffer), "not what the root sent");
            }
        }
        std::process::exit(0);
    });
    for way in WAYS {
        for scene in ["all_reduce", "broadcast"] {
            for _ in 0..WORLDS {
                stage.over(way).playing(scene).launch(3).succeeds(&[0, 1, 2]);
            }
        }
    }
}

#[test]
fn when_one_group_fails_the_others_of_the_process_work_on() {
    let stage = Stage::set(|rank| {
        let world = rank.world();
        let (pair, trio) = (make_if(&world, rank.rank, &[0, 1]), make_if(&world, rank.rank, &[1, 2, 3]));
        if rank.rank == 3 {
            rank.tell("ready");
            rank.cue();
            return;
        }
        if let Some(trio) = &trio {
            rank.tell("ready");
            rank.tell(outcome(|| sum(trio, 2)));
        }
        // Rank 1 goes on with rank 0, although its other group has failed, and the world has lost a rank.
        if let Some(pair) = &pair {
            for _ in 0..100 {
                sum(pair, 5000).unwrap();
            }
        }
        assert_eq!(trio.is_some(), trio.is_some_and(|trio| trio.check().is_err()));
        assert!(pair.is_none_or(|pair| pair.check().is_ok()));
        world.check().unwrap();
        sum(&make(&world, &[2, 1, 0]).unwrap(), 2).unwrap();
    });
    let mut world = stage.scene("").launch(4);
    world.hear_all::<String>(&[1, 2, 3]);
    world.kill(3);
    world.hear_failure(&[1, 2], Status::PeerLost, 2);
    world.succeeds(&[0, 1, 2]);
}

fn make_if(world: &Arc<Group>, rank: u32, ranks: &[u32]) -> Option<Arc<Group>> {
    ranks.contains(&rank).then(|| make(world, ranks).unwrap())
}

#[test]
fn a_crashed_world_leaves_nothing_in_dev_shm_and_no_socket_names() {
    let stage = Stage::set(|rank| {
        let world = rank.world();
        let group = make(&world, &[0, 1, 2]).unwrap();
        sum(&group, 100_000).unwrap();
        rank.tell("going");
        crate::stage::until_failure(|| sum(&group, 100_000));
        std::mem::forget((world, group));
        rank.tell("failed");
        rank.cue();
    });
    if !sandbox::may_make_namespaces("what a crash leaves") {
        return;
    }
    sandbox::in_own_namespaces(|| {
        sandbox::mount_tmpfs(c"/dev/shm", c"size=1g");
        let left = || -> Vec<String> {
            let files = std::fs::read_dir("/dev/shm").unwrap().map(|entry| format!("{:?}", entry.unwrap().path()));
            let sockets = std::fs::read_to_string("/proc/thread-self/net/unix").unwrap();
            // A connection carries the name at which it was accepted; only who listens (__SO_ACCEPTCON) holds it.
            let listens = |line: &&str| line.contains('@') && line.split_whitespace().nth(3) == Some("00010000");
            files.chain(sockets.lines().filter(listens).map(str::to_owned)).collect()
        };
        assert_eq!(left(), Vec::<String>::new(), "namespaces of one's own are empty");
        let mut world = stage.scene("").launch(3);
        world.hear_all::<String>(&[0, 1, 2]);
        assert_eq!(left(), Vec::<String>::new(), "a world that has met needs no names");
        world.kill(1);
        world.hear_all::<String>(&[0, 2]);
        world.kill(0);
        world.kill(2);
        for rank in 0..3 {
            world.end(rank);
        }
        assert_eq!(left(), Vec::<String>::new());
    });
}
