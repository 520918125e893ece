//! Aborts from another thread: everybody who waits in the group returns, and nobody else notices.

use std::sync::Arc;

use tutti::{error::Status, group::Group};

use crate::stage::{Outcome, Rank, Stage, WAYS, make, make_within, median_and_worst, ms, now, outcome, sum};

/// Milliseconds within which an abort is heard: as promised, and on a machine that has no core to spare.
const PROMISED: f64 = 10.0;
const BOUND: f64 = 1000.0;
/// Groups that are aborted, one after the other.
const TRIES: u32 = 15;

/// Waits in `call` on the main thread; on one rank, another thread aborts `group` when the director says so.
fn wait_and_abort(rank: &Rank, group: &Arc<Group>, aborts: bool, call: impl FnOnce() -> tutti::error::Result<()>) {
    std::thread::scope(|scope| {
        rank.tell("waiting");
        if aborts {
            scope.spawn(|| {
                assert_eq!(rank.cue(), "abort");
                let at = now();
                group.abort();
                rank.tell(at);
            });
        }
        let ended = outcome(call);
        rank.tell(&ended);
    });
}

#[test]
fn an_abort_from_another_thread_reaches_all_ranks_within_10_ms() {
    let stage = Stage::set(|rank| {
        let world = rank.world();
        for turn in 0..TRIES {
            let group = make(&world, &[0, 1, 2]).unwrap();
            // The missing rank is another one each time, and so is the one that aborts.
            let (missing, aborts) = (turn % 3, (turn + 1) % 3);
            if rank.rank == missing {
                rank.cue();
                rank.tell(outcome(|| sum(&group, 2)));
            } else {
                wait_and_abort(rank, &group, rank.rank == aborts, || sum(&group, 2));
            }
            // Another group of the same process works on.
            sum(&world, 2).unwrap();
        }
    });
    for way in WAYS {
        let mut world = stage.over(way).launch(3);
        let mut latencies = Vec::new();
        for turn in 0..TRIES {
            let (missing, aborts, waits) = (turn % 3, (turn + 1) % 3, (turn + 2) % 3);
            world.hear_all::<String>(&[aborts, waits]);
            // Now and then they have slept for a while.
            std::thread::sleep(std::time::Duration::from_millis(u64::from(turn) * 10));
            world.cue(aborts, "abort");
            // The aborting rank speaks twice, in any order.
            let said: Vec<serde_json::Value> = vec![world.hear(aborts), world.hear(aborts)];
            let aborted = said.iter().find_map(serde_json::Value::as_u64).unwrap();
            let own = said.into_iter().find(serde_json::Value::is_object).unwrap();
            let own: Outcome = serde_json::from_value(own).unwrap();
            let other = world.hear_failure(&[waits], Status::Aborted, aborts).remove(0);
            world.is_one_story(&own, &other);
            latencies.extend([ms(aborted, own.to), ms(aborted, other.to)]);
            world.cue(missing, "come late");
            let late = world.hear_failure(&[missing], Status::Aborted, aborts).remove(0);
            world.is_one_story(&late, &other);
        }
        world.succeeds(&[0, 1, 2]);
        let (median, worst) = median_and_worst(latencies);
        println!("{way:?}: from the abort to the error {median:.2} ms (median), {worst:.2} ms (worst)");
        assert!(median < PROMISED && worst < BOUND, "{median} ms, {worst} ms");
    }
}

#[test]
fn an_abort_reaches_a_rank_that_waits_for_a_group_to_be_made() {
    let stage = Stage::set(|rank| {
        let world = rank.world();
        if rank.rank == 0 {
            return wait_and_abort(rank, &world, true, || {
                make_within(&world, &[0, 1], tutti::config::Timeout::Default).map(drop)
            });
        }
        rank.cue();
        assert_eq!(world.check().unwrap_err().status(), Status::Aborted);
    });
    for way in WAYS {
        let mut world = stage.over(way).launch(2);
        let _: String = world.hear(0);
        world.cue(0, "abort");
        let said: Vec<serde_json::Value> = vec![world.hear(0), world.hear(0)];
        let aborted = said.iter().find_map(serde_json::Value::as_u64).unwrap();
        let ended: Outcome =
            serde_json::from_value(said.into_iter().find(serde_json::Value::is_object).unwrap()).unwrap();
        assert_eq!(ended.status, Status::Aborted as i32, "{ended:?}");
        assert!(ms(aborted, ended.to) < BOUND, "{} ms", ms(aborted, ended.to));
        world.cue(1, "look");
        world.succeeds(&[0, 1]);
    }
}
