//! Forks of a rank: the child is no rank, so it may use nothing, and whatever it does harms nobody.

use std::{cell::RefCell, ffi::CStr};

use tutti::capi::{
    collectives::tutti_all_reduce,
    group::{tutti_group_abort, tutti_group_alive, tutti_group_create, tutti_group_destroy},
    text::tutti_last_error,
    types::{TUTTI_INVALID_USAGE, TUTTI_SUCCESS},
    world::tutti_world_create,
};

use crate::stage::{Cast, Rank, Stage, WAYS, sum};

/// Runs `body` in a forked child, which ends as a process does that returns from main, and gives its exit code.
fn in_forked_child(body: impl FnOnce()) -> i32 {
    // SAFETY: the rank runs one thread of its own beside the harness, which waits; so the child may do what it likes.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        std::process::exit(if ended.is_ok() { 0 } else { 1 });
    }
    let mut status = 0;
    // SAFETY: `status` is writable.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 }
}

/// Forks when it is this rank's turn, works on when all have, and tells who seems to be alive then.
fn fork_in_turn(rank: &Rank, fork: impl FnOnce(), work: impl FnOnce() -> Vec<bool>) {
    rank.tell("ready");
    rank.cue();
    fork();
    rank.tell("forked");
    rank.cue();
    rank.tell(work());
    rank.cue();
}

#[test]
fn a_forked_child_is_refused_everything_and_its_end_harms_nobody() {
    let stage = Stage::set(|rank| {
        let mut world = std::ptr::null_mut();
        // SAFETY: NULL asks for the environment; the handle is writable.
        assert_eq!(unsafe { tutti_world_create(std::ptr::null(), &mut world) }, TUTTI_SUCCESS);
        let reduce = || {
            let (send, mut recv) = ([rank.rank as i32 + 1], [0_i32]);
            // SAFETY: the buffers are one int32 long.
            let status = unsafe {
                tutti_all_reduce(world, send.as_ptr().cast(), recv.as_mut_ptr().cast(), 1, 2, 0, std::ptr::null_mut())
            };
            (status, recv[0])
        };
        assert_eq!(reduce(), (TUTTI_SUCCESS, 6));
        let fork = || {
            let code = in_forked_child(|| {
                assert_eq!(reduce(), (TUTTI_INVALID_USAGE, 0));
                // SAFETY: the text is the calling thread's last error.
                let said = unsafe { CStr::from_ptr(tutti_last_error()) }.to_str().unwrap();
                assert!(said.contains("forked"), "{said}");
                let mut group = std::ptr::null_mut();
                // SAFETY: three ranks are readable, the handle is writable.
                unsafe {
                    let made = tutti_group_create(world, [0, 1, 2].as_ptr(), 3, std::ptr::null(), &mut group);
                    assert_eq!(made, TUTTI_INVALID_USAGE);
                    assert_eq!(tutti_world_create(std::ptr::null(), &mut group), TUTTI_INVALID_USAGE);
                    assert_eq!(tutti_group_abort(world), TUTTI_INVALID_USAGE);
                    assert_eq!(tutti_group_destroy(world), TUTTI_INVALID_USAGE);
                }
            });
            assert_eq!(code, 0);
        };
        fork_in_turn(rank, fork, || {
            assert_eq!(reduce(), (TUTTI_SUCCESS, 6));
            let mut alive = [0_u8; 3];
            // SAFETY: three bytes are writable.
            assert_eq!(unsafe { tutti_group_alive(world, alive.as_mut_ptr(), 3) }, TUTTI_SUCCESS);
            alive.iter().map(|alive| *alive == 1).collect()
        });
        // SAFETY: the handle is the world's.
        assert_eq!(unsafe { tutti_group_destroy(world) }, TUTTI_SUCCESS);
    });
    direct(stage.scene(""));
}

#[test]
fn a_forked_child_that_drops_its_groups_takes_nothing_from_the_rank() {
    let stage = Stage::set(|rank| {
        let world = RefCell::new(Some(rank.world()));
        let works = || sum(world.borrow().as_ref().unwrap(), 2).unwrap();
        works();
        // What the child takes stays with the rank: the two have memory of their own.
        let fork = || assert_eq!(in_forked_child(|| drop(world.take())), 0);
        fork_in_turn(rank, fork, || {
            works();
            world.borrow().as_ref().unwrap().alive()
        });
    });
    WAYS.into_iter().for_each(|way| direct(stage.over(way)));
}

/// Lets one rank after the other fork while the rest is idle.
fn direct(cast: Cast) {
    let mut world = cast.launch(3);
    world.hear_all::<String>(&[0, 1, 2]);
    for rank in 0..3 {
        world.cue(rank, "fork");
        assert_eq!(world.hear::<String>(rank), "forked");
    }
    world.cue_all(&[0, 1, 2], "work on");
    for alive in world.hear_all::<Vec<bool>>(&[0, 1, 2]) {
        assert_eq!(alive, [true; 3], "a child left in the name of its parent");
    }
    world.cue_all(&[0, 1, 2], "end");
    world.succeeds(&[0, 1, 2]);
}
