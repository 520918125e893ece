//! What the kernel refuses to all ranks or to one: the world comes up without it, says why, and adds up right.

use tutti::error::Status;

use crate::{
    sandbox::{self, Refused},
    stage::{Outcome, Rank, Stage, World, explain, make, outcome, sum},
};

/// Bytes below which a shared mapping is the board of a small group, and above which it is a segment.
const SEGMENT: u32 = 64 * 1024;

/// Comes up, adds up, and tells what serves its calls and why.
fn come_up(rank: &Rank) {
    let world = rank.world();
    tell_what_serves(rank, &world);
    // A group made from it fares no worse.
    let reversed: Vec<u32> = (0..rank.size).rev().collect();
    tell_what_serves(rank, &make(&world, &reversed).unwrap());
}

fn tell_what_serves(rank: &Rank, group: &std::sync::Arc<tutti::group::Group>) {
    for count in [0, 1, 1000, 300_000] {
        sum(group, count).unwrap();
    }
    rank.tell(explain(group));
}

/// All ranks say that sockets serve, and why shared memory does not.
fn falls_back_to_sockets(world: &mut World, why: &[&str]) {
    let said: Vec<String> = world.hear_all(&[0, 1, 2]);
    for text in &said {
        assert_eq!(text, &said[0], "all ranks know the same");
        assert!(text.contains("served by sockets/"), "{text}");
        assert!(why.iter().all(|part| text.contains(part)), "it does not say why ({why:?}): {text}");
    }
}

fn stays_with_shared_memory(world: &mut World) {
    for text in world.hear_all::<String>(&[0, 1, 2]) {
        assert!(text.contains("served by shm/"), "{text}");
    }
}

#[test]
fn where_memfds_are_refused_to_all_the_world_comes_up_on_sockets_and_says_why() {
    let stage = Stage::set(come_up);
    let refuse = |_, command: &mut _| sandbox::refuse(command, Refused::Always(libc::SYS_memfd_create));
    let mut world = stage.scene("").prepared(refuse).launch(3);
    falls_back_to_sockets(&mut world, &["rank 0", "memfd_create refused", "Operation not permitted"]);
    falls_back_to_sockets(&mut world, &["rank 0", "memfd_create refused", "Operation not permitted"]);
    world.succeeds(&[0, 1, 2]);
}

#[test]
fn a_memfd_refused_to_one_rank_is_missed_only_where_that_rank_would_make_it() {
    let stage = Stage::set(come_up);
    for refused in [0, 2] {
        let refuse = |rank, command: &mut _| {
            if rank == refused {
                sandbox::refuse(command, Refused::Always(libc::SYS_memfd_create));
            }
        };
        let mut world = stage.scene("").prepared(refuse).launch(3);
        // In the second group the ranks are reversed, so rank 2 of the world is its first.
        if refused == 0 {
            falls_back_to_sockets(&mut world, &["memfd_create refused"]);
            stays_with_shared_memory(&mut world);
        } else {
            stays_with_shared_memory(&mut world);
            falls_back_to_sockets(&mut world, &["memfd_create refused"]);
        }
        world.succeeds(&[0, 1, 2]);
    }
}

#[test]
fn a_communicator_that_one_rank_cannot_make_is_dropped_by_all() {
    let stage = Stage::set(come_up);
    for refused in [0, 1] {
        let refuse = |rank, command: &mut _| {
            if rank == refused {
                sandbox::refuse(command, Refused::SharedMemory(SEGMENT));
            }
        };
        let mut world = stage.scene("").prepared(refuse).launch(3);
        falls_back_to_sockets(&mut world, &[&format!("rank {refused}: cannot map")]);
        // The same rank of the world has another number in the reversed group.
        falls_back_to_sockets(&mut world, &[&format!("rank {}: cannot map", 2 - refused)]);
        world.succeeds(&[0, 1, 2]);
    }
}

#[test]
fn a_board_that_one_rank_cannot_map_is_shared_by_none() {
    let stage = Stage::set(come_up);
    for refused in [0, 1] {
        let refuse = |rank, command: &mut _| {
            if rank == refused {
                sandbox::refuse(command, Refused::SharedMemory(1));
            }
        };
        let mut world = stage.scene("").prepared(refuse).launch(3);
        let why = format!("rank {refused} of the world: cannot map");
        falls_back_to_sockets(&mut world, &[&why]);
        falls_back_to_sockets(&mut world, &[&why]);
        world.succeeds(&[0, 1, 2]);
    }
}

#[test]
fn a_rank_without_address_space_for_the_segment_takes_all_to_sockets() {
    let stage = Stage::set(|rank| {
        let world = rank.world();
        sum(&world, 1000).unwrap();
        if rank.rank == 1 {
            // Enough for the group's board, and too little for its segment.
            sandbox::limit_address_space(2 * u64::from(SEGMENT));
        }
        let group = make(&world, &[0, 1, 2]).unwrap();
        sum(&group, 1000).unwrap();
        rank.tell(explain(&group));
        // The group before it still has what it had.
        sum(&world, 1000).unwrap();
    });
    let mut world = stage.scene("").launch(3);
    falls_back_to_sockets(&mut world, &["rank 1", "shared memory"]);
    world.succeeds(&[0, 1, 2]);
}

#[test]
fn a_group_that_may_use_nothing_that_works_is_refused_on_all_ranks() {
    let stage = Stage::set(|rank| {
        rank.tell(outcome(|| rank.join().map(drop)));
        rank.cue();
    });
    let refuse = |rank, command: &mut _| {
        if rank == 1 {
            sandbox::refuse(command, Refused::SharedMemory(SEGMENT));
        }
    };
    let mut world = stage.scene("").choosing("=shm").prepared(refuse).launch(3);
    for outcome in world.hear_all::<Outcome>(&[0, 1, 2]) {
        assert_eq!(outcome.status, Status::Unsupported as i32, "{outcome:?}");
        assert!(outcome.text.contains("rank 1: cannot map"), "{outcome:?}");
    }
    world.cue_all(&[0, 1, 2], "end");
    world.succeeds(&[0, 1, 2]);
}

#[test]
fn shared_memory_needs_no_dev_shm() {
    let stage = Stage::set(|rank| {
        let full = std::fs::write("/dev/shm/full", vec![1; 1 << 20]).is_err();
        assert!(full, "{}: /dev/shm takes a mebibyte", rank.scene);
        come_up(rank);
    });
    if !sandbox::may_make_namespaces("no /dev/shm") {
        return;
    }
    for scene in ["absent", "tiny"] {
        sandbox::in_own_namespaces(|| {
            match scene {
                "absent" => sandbox::mount_tmpfs(c"/dev", c"size=64k"),
                _ => sandbox::mount_tmpfs(c"/dev/shm", c"size=64k"),
            }
            let mut world = stage.scene(scene).launch(3);
            stays_with_shared_memory(&mut world);
            stays_with_shared_memory(&mut world);
            world.succeeds(&[0, 1, 2]);
        });
    }
}
