//! Ranks that live and do not answer: stopped, late, or busy with something else.

use std::time::Duration;

use tutti::{config::Timeout, error::Status};

use crate::stage::{Outcome, Stage, WAYS, make, make_within, ms, outcome, reduction, sum, sum_within, until_failure};

/// The deadline of calls that are meant to reach it.
const DEADLINE: Duration = Duration::from_millis(400);
/// Milliseconds after the deadline by which a waiting rank has returned, on a busy machine.
const SLACK: f64 = 1000.0;

#[test]
fn a_stopped_rank_is_a_timeout_at_the_deadline_and_hears_of_it_when_it_goes_on() {
    let stage = Stage::set(|rank| {
        let world = rank.world();
        sum(&world, 2).unwrap();
        rank.tell("going");
        rank.tell(until_failure(|| sum_within(&world, 2, Timeout::After(DEADLINE))));
    });
    for way in WAYS {
        let mut world = stage.over(way).launch(3);
        world.hear_all::<String>(&[0, 1, 2]);
        let stopped = world.stop(1);
        let outcomes = world.hear_failure(&[0, 2], Status::Timeout, 1);
        // The deadline of whoever entered the call first ends it for both.
        let entered = outcomes.iter().map(|outcome| outcome.from).min().unwrap();
        for outcome in &outcomes {
            let after = ms(stopped, outcome.to);
            let deadline = DEADLINE.as_secs_f64() * 1e3;
            println!("{way:?}: {after:.1} ms after the stop, with a deadline of {deadline:.0} ms");
            assert!(ms(entered, outcome.to) >= deadline, "before the deadline: {outcomes:?}");
            assert!(after < deadline + SLACK, "long after the deadline: {outcome:?}");
        }
        world.go_on(1);
        let woken = world.hear_failure(&[1], Status::Timeout, 1);
        world.is_one_story(&woken[0], &outcomes[0]);
        world.succeeds(&[0, 1, 2]);
    }
}

#[test]
fn a_late_rank_hears_the_failure_that_it_caused() {
    let stage = Stage::set(|rank| {
        let world = rank.world();
        sum(&world, 2).unwrap();
        if rank.rank == 2 {
            rank.cue();
        }
        rank.tell(outcome(|| sum_within(&world, 2, Timeout::After(DEADLINE))));
        rank.cue();
    });
    for way in WAYS {
        let mut world = stage.over(way).launch(3);
        let outcomes = world.hear_failure(&[0, 1], Status::Timeout, 2);
        world.cue(2, "go");
        let late = world.hear_failure(&[2], Status::Timeout, 2);
        world.is_one_story(&late[0], &outcomes[0]);
        assert!(ms(late[0].from, late[0].to) < SLACK, "it need not wait: {late:?}");
        world.cue_all(&[0, 1, 2], "end");
        world.succeeds(&[0, 1, 2]);
    }
}

#[test]
fn a_rank_late_to_the_making_of_a_group_is_named_hears_it_and_the_parent_lives() {
    let stage = Stage::set(|rank| {
        let world = rank.world();
        if rank.rank == 1 {
            rank.cue();
        }
        rank.tell(outcome(|| make_within(&world, &[0, 1], Timeout::After(DEADLINE)).map(drop)));
        rank.cue();
        sum(&world, 2).unwrap();
        sum(&make(&world, &[1, 0]).unwrap(), 2).unwrap();
    });
    for way in WAYS {
        let mut world = stage.over(way).launch(2);
        world.hear_failure(&[0], Status::Timeout, 1);
        world.cue(1, "come late");
        let late = world.hear_failure(&[1], Status::Timeout, 1).remove(0);
        assert!(late.text.contains("rank 0 of the world says: "), "{late:?}");
        assert!(ms(late.from, late.to) < SLACK, "it need not wait: {late:?}");
        world.cue_all(&[0, 1], "go on");
        world.succeeds(&[0, 1]);
    }
}

#[test]
fn ranks_that_call_different_things_get_mismatch_everywhere_and_nothing_is_written() {
    let stage = Stage::set(|rank| {
        let world = rank.world();
        sum(&world, 2).unwrap();
        let count = if rank.rank == 1 { 3 } else { 2 };
        let send = [7_i32; 3];
        let mut recv = [-1_i32; 3];
        let call = reduction(&send[..count], &mut recv);
        rank.tell(outcome(|| world.run(call, Timeout::Default)));
        assert_eq!(recv, [-1; 3], "something was written");
        // Nobody leaves before all have called.
        rank.cue();
    });
    for way in WAYS {
        let mut world = stage.over(way).launch(3);
        let outcomes: Vec<Outcome> = world.hear_all(&[0, 1, 2]);
        for outcome in outcomes {
            assert_eq!(outcome.status, Status::Mismatch as i32, "{outcome:?}");
            assert!(outcome.text.contains("2 x int32") && outcome.text.contains("3 x int32"), "{outcome:?}");
        }
        world.cue_all(&[0, 1, 2], "end");
        world.succeeds(&[0, 1, 2]);
    }
}
