//! Ranks that die: whoever waits for one hears of it within a second, by name, and the survivors can go on.

use std::{os::fd::AsRawFd, sync::Arc};

use tutti::{error::Status, group::Group};

use crate::{
    sandbox::{self, Refused},
    stage::{Cast, PATIENT, Rank, Stage, WAYS, make, median_and_worst, ms, outcome, sum, until_failure},
};

/// Milliseconds within which every survivor has heard of a death.
const PROMISED: f64 = 1000.0;

/// Numbers of a call that goes through at once, and of one that takes many steps.
const SMALL: usize = 2;
const LARGE: usize = 1 << 20;

/// A world that is killed rank by rank: the survivors tell how their calls ended and make a group without the dead.
fn dwindle(rank: &Rank, count: usize) {
    let mut group = rank.world();
    // The ranks of the world that are left, in the order of the group.
    let mut left: Vec<u32> = (0..rank.size).collect();
    loop {
        sum(&group, count).unwrap();
        rank.tell("going");
        if left.len() == 2 {
            return;
        }
        let ended = until_failure(|| sum(&group, count));
        rank.tell(&ended);
        let dead = ended.rank.unwrap();
        assert_eq!(sum(&group, count).unwrap_err().to_string(), ended.text, "a failed group stays failed");
        assert_eq!(group.alive().iter().filter(|alive| !**alive).count(), 1);
        left.remove(dead as usize);
        let survivors: Vec<u32> = (0..group.size()).filter(|rank| *rank != dead).collect();
        group = make(&group, &survivors).unwrap();
    }
}

/// Kills rank after rank in the middle of what they do, rank 0 of the world among them.
fn kill_one_after_the_other(cast: Cast, what: &str) {
    let mut world = cast.launch(5);
    let mut left: Vec<u32> = (0..5).collect();
    let mut latencies = Vec::new();
    for victim in [3, 0, 4] {
        world.hear_all::<String>(&left);
        // All are going; whether this finds them early or late in a call is up to chance.
        let at = left.iter().position(|rank| *rank == victim).unwrap() as u32;
        let killed = world.kill(victim);
        left.retain(|rank| *rank != victim);
        for outcome in world.hear_failure(&left, Status::PeerLost, at) {
            latencies.push(ms(killed, outcome.to));
        }
    }
    world.hear_all::<String>(&left);
    world.succeeds(&left);
    report(what, latencies);
}

fn report(what: &str, latencies: Vec<f64>) {
    let (median, worst) = median_and_worst(latencies);
    println!(
        "{what}: from the end of a rank to the error on a survivor {median:.2} ms (median), {worst:.2} ms (worst)"
    );
    assert!(worst < PROMISED, "{what}: {worst} ms");
}

#[test]
fn a_peer_killed_between_small_calls_is_named_within_a_second_and_the_survivors_go_on() {
    let stage = Stage::set(|rank| dwindle(rank, SMALL));
    for way in WAYS {
        kill_one_after_the_other(stage.over(way), &format!("{way:?}, 8 bytes"));
    }
}

#[test]
fn a_peer_killed_in_a_large_call_is_named_within_a_second_and_the_survivors_go_on() {
    let stage = Stage::set(|rank| dwindle(rank, LARGE));
    for way in WAYS {
        kill_one_after_the_other(stage.over(way), &format!("{way:?}, 4 MiB"));
    }
}

#[test]
fn ranks_in_pid_namespaces_of_their_own_see_each_other_die() {
    let stage = Stage::set(|rank| {
        assert_eq!(std::process::id(), 1, "the first process of a namespace");
        dwindle(rank, SMALL);
    });
    if sandbox::may_make_namespaces("ranks in PID namespaces") {
        kill_one_after_the_other(stage.scene("").in_pid_namespaces(), "across PID namespaces");
    }
}

#[test]
fn without_pidfds_a_death_is_seen_by_the_end_of_the_connection() {
    let stage = Stage::set(|rank| dwindle(rank, SMALL));
    let refuse = |_, command: &mut _| sandbox::refuse(command, Refused::Always(libc::SYS_pidfd_open));
    for way in WAYS {
        kill_one_after_the_other(stage.over(way).prepared(refuse), &format!("{way:?}, no pidfds"));
    }
}

/// Waits in a call for rank 2, which never comes.
fn wait_for_the_last(rank: &Rank, world: &Arc<Group>) {
    rank.tell("waiting");
    rank.tell(outcome(|| sum(world, SMALL)));
}

#[test]
fn a_peer_that_dies_while_others_have_long_waited_for_it_is_named() {
    let stage = Stage::set(|rank| {
        let world = rank.world();
        if rank.rank < 2 {
            return wait_for_the_last(rank, &world);
        }
        rank.tell("idle");
        rank.cue();
    });
    let mut latencies = Vec::new();
    for waited in [0, 100, 1000] {
        let mut world = stage.scene("").launch(3);
        world.hear_all::<String>(&[0, 1, 2]);
        // How long they wait is what this is about: the longer, the deeper they sleep.
        std::thread::sleep(std::time::Duration::from_millis(waited));
        let killed = world.kill(2);
        let outcomes = world.hear_failure(&[0, 1], Status::PeerLost, 2);
        latencies.extend(outcomes.iter().map(|outcome| ms(killed, outcome.to)));
        world.succeeds(&[0, 1]);
    }
    report("while others wait", latencies);
}

#[test]
fn a_dead_rank_is_lost_although_its_forked_child_lives_on_with_its_descriptors() {
    let stage = Stage::set(|rank| {
        let world = rank.world();
        sum(&world, SMALL).unwrap();
        if rank.rank < 2 {
            return wait_for_the_last(rank, &world);
        }
        // SAFETY: the child only reads its standard input, which ends with the director, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let mut byte = 0_u8;
            // SAFETY: one byte is writable.
            unsafe {
                while libc::read(std::io::stdin().as_raw_fd(), (&raw mut byte).cast(), 1) > 0 {}
                libc::_exit(0);
            }
        }
        rank.tell(child);
        std::thread::sleep(PATIENT);
    });
    let mut latencies = Vec::new();
    for way in WAYS {
        let mut world = stage.over(way).launch(3);
        world.hear_all::<String>(&[0, 1]);
        let child: i32 = world.hear(2);
        let killed = world.kill(2);
        let outcomes = world.hear_failure(&[0, 1], Status::PeerLost, 2);
        // SAFETY: signal 0 only asks whether the process is there.
        assert_eq!(unsafe { libc::kill(child, 0) }, 0, "the child was to outlive the rank");
        latencies.extend(outcomes.iter().map(|outcome| ms(killed, outcome.to)));
        world.succeeds(&[0, 1]);
    }
    report("with a forked child left", latencies);
}

#[test]
fn a_rank_that_exits_without_destroying_anything_is_lost() {
    let stage = Stage::set(|rank| {
        let world = rank.world();
        sum(&world, SMALL).unwrap();
        if rank.rank == 2 {
            rank.tell("leaving");
            std::mem::forget(world);
            std::process::exit(0);
        }
        wait_for_the_last(rank, &world);
    });
    for way in WAYS {
        let mut world = stage.over(way).launch(3);
        world.hear_all::<String>(&[0, 1, 2]);
        world.hear_failure(&[0, 1], Status::PeerLost, 2);
        world.succeeds(&[0, 1, 2]);
    }
}

#[test]
fn a_rank_killed_while_a_group_is_made_is_named_and_the_parent_lives() {
    let stage = Stage::set(|rank| {
        let world = rank.world();
        sum(&world, SMALL).unwrap();
        rank.tell("here");
        if rank.rank == 2 {
            rank.cue();
        }
        rank.tell(outcome(|| make(&world, &[0, 1, 2]).map(drop)));
        // The world has not failed, though it has lost a rank; so a group of the others is made from a living one.
        world.check().unwrap();
        sum(&make(&world, &[0, 1]).unwrap(), SMALL).unwrap();
    });
    let mut world = stage.scene("").launch(3);
    world.hear_all::<String>(&[0, 1, 2]);
    let killed = world.kill(2);
    let outcomes = world.hear_failure(&[0, 1], Status::PeerLost, 2);
    report("while a group is made", outcomes.iter().map(|outcome| ms(killed, outcome.to)).collect());
    world.succeeds(&[0, 1]);
}
