//! Queues whose ranks die: a dead writer is named by the readers, a dead reader by the writer, and the group is another
//! matter.

use std::sync::{Arc, Mutex};

use tutti::{
    config::Timeout,
    error::{Result, Status},
    group::{
        Group,
        queue::{Queue, QueueOptions},
    },
};

use crate::stage::{Rank, Stage, ms, now, outcome};

/// Milliseconds within which a death is known to whoever waits.
const PROMISED: f64 = 1000.0;

fn queue(group: &Arc<Group>) -> Arc<Queue> {
    let made = Arc::new(Mutex::new(None));
    let place = made.clone();
    // The smallest ring: four chunks of 16 KiB.
    let options = QueueOptions { capacity: 1, ..QueueOptions::default() };
    group.create_queue(options, Box::new(move |queue| *place.lock().unwrap() = Some(queue))).unwrap();
    let queue = made.lock().unwrap().take();
    queue.unwrap()
}

fn read(queue: &Queue) -> Result<()> {
    let mut buffer = vec![0; queue.next(Timeout::Default)? as usize];
    queue.read(&mut buffer, Timeout::Default).map(drop)
}

#[test]
fn a_writer_killed_while_its_readers_sleep_is_named_by_all() {
    let stage = Stage::set(|rank| {
        let world = rank.world();
        let queue = queue(&world);
        if rank.rank == 0 {
            queue.write(b"the last word", Timeout::Default).unwrap();
            rank.tell("waiting");
            rank.cue();
            return;
        }
        rank.tell("waiting");
        // What was written before the death counts.
        read(&queue).unwrap();
        rank.tell(outcome(|| read(&queue)));
        world.check().unwrap();
    });
    let mut world = stage.scene("").launch(3);
    world.hear_all::<String>(&[0, 1, 2]);
    let killed = world.kill(0);
    for outcome in world.hear_failure(&[1, 2], Status::PeerLost, 0) {
        assert!(ms(killed, outcome.to) < PROMISED, "{outcome:?}");
        assert!(outcome.text.contains("which is to write it, is lost"), "{outcome:?}");
    }
    world.succeeds(&[1, 2]);
}

#[test]
fn a_writer_killed_in_the_middle_of_a_message_leaves_none_of_it() {
    let stage = Stage::set(|rank| {
        let queue = queue(&rank.world());
        if rank.rank == 0 {
            rank.tell("writing");
            // Longer than the ring, and nobody reads.
            let _ = queue.write(&vec![1; 1 << 20], Timeout::Default);
            unreachable!("it was to be killed");
        }
        // It has begun; it cannot end, since it is not taken.
        assert_eq!(queue.next(Timeout::Default).unwrap(), 1 << 20);
        rank.tell("begun");
        rank.cue();
        rank.tell(outcome(|| read(&queue)));
    });
    let mut world = stage.scene("").launch(2);
    world.hear_all::<String>(&[0, 1]);
    world.kill(0);
    world.cue(1, "read");
    let outcomes = world.hear_failure(&[1], Status::PeerLost, 0);
    assert!(outcomes[0].text.contains("is lost"), "{outcomes:?}");
    world.succeeds(&[1]);
}

/// Rank 2 reads nothing; the others go on until that matters.
fn never_reads(rank: &Rank, timeout: Timeout) {
    let queue = queue(&rank.world());
    match rank.rank {
        0 => {
            for _ in 0..4 {
                queue.write(&[0; 100], Timeout::Default).unwrap();
            }
            rank.tell("full");
            rank.tell(outcome(|| queue.write(&[0; 100], timeout)));
        }
        1 => {
            for _ in 0..4 {
                read(&queue).unwrap();
            }
            rank.tell("full");
            rank.tell(outcome(|| read(&queue)));
        }
        _ => {
            rank.tell("full");
            rank.cue();
        }
    }
}

#[test]
fn a_reader_killed_while_the_writer_waits_for_it_is_named_by_all() {
    let stage = Stage::set(|rank| never_reads(rank, Timeout::Default));
    let mut world = stage.scene("").launch(3);
    world.hear_all::<String>(&[0, 1, 2]);
    let killed = world.kill(2);
    for outcome in world.hear_failure(&[0, 1], Status::PeerLost, 2) {
        assert!(ms(killed, outcome.to) < PROMISED, "{outcome:?}");
    }
    world.succeeds(&[0, 1]);
}

#[test]
fn a_stopped_reader_is_named_at_the_writers_deadline() {
    let stage = Stage::set(|rank| {
        let queue = queue(&rank.world());
        if rank.rank == 1 {
            rank.tell("here");
            rank.cue();
            return;
        }
        rank.tell("here");
        rank.cue();
        for _ in 0..4 {
            queue.write(&[0; 100], Timeout::Default).unwrap();
        }
        let from = now();
        rank.tell(outcome(|| queue.write(&[0; 100], Timeout::After(std::time::Duration::from_millis(300)))));
        assert!(ms(from, now()) < 5000.0);
        queue.check().unwrap();
    });
    let mut world = stage.scene("").launch(2);
    world.hear_all::<String>(&[0, 1]);
    world.stop(1);
    world.cue(0, "write");
    let outcomes = world.hear_failure(&[0], Status::Timeout, 1);
    assert!(outcomes[0].text.contains("nothing of it was written"), "{outcomes:?}");
    world.succeeds(&[0]);
}
