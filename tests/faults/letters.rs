//! Messages whose other half dies, stops or never comes.

use std::{sync::Arc, time::Duration};

use tutti::{config::Timeout, error::Status, group::Group};

use crate::stage::{Outcome, Rank, Stage, WAYS, make, ms, outcome, sum};

/// Longer than any ring or socket holds, so that its sender is in the midst of it when the receiver stops taking.
const LARGE: usize = 64 << 20;
/// Milliseconds within which a waiting rank has heard of a death.
const PROMISED: f64 = 1000.0;

fn send(world: &Arc<Group>, bytes: usize, peer: u32, timeout: Timeout) -> Outcome {
    let data = vec![7_u8; bytes];
    outcome(|| world.send_bytes(&data, peer, 0, timeout))
}

fn receive(world: &Arc<Group>, bytes: usize, peer: u32, timeout: Timeout) -> Outcome {
    let mut room = vec![0_u8; bytes];
    outcome(|| world.receive_bytes(&mut room, peer, 0, timeout).map(drop))
}

/// Ranks 0 and 1 send each other 1 MiB for ever, until one of them dies in the midst of it.
fn bounce(rank: &Rank) {
    let world = rank.world();
    sum(&world, 2).unwrap();
    rank.tell("going");
    if rank.rank == 2 {
        rank.cue();
    }
    loop {
        let turns = match rank.rank {
            0 => [send(&world, 1 << 20, 1, Timeout::Default), receive(&world, 1 << 20, 1, Timeout::Default)],
            1 => [receive(&world, 1 << 20, 0, Timeout::Default), send(&world, 1 << 20, 0, Timeout::Default)],
            _ => [receive(&world, 8, 1, Timeout::Default), outcome(|| world.check())],
        };
        if let Some(ended) = turns.into_iter().find(|turn| turn.status != 0) {
            rank.tell(&ended);
            break;
        }
    }
    // The survivors go on.
    let survivors = make(&world, &[0, 2]).unwrap();
    let peer = 1 - survivors.rank();
    let mut data = vec![survivors.rank() as u8; 1 << 20];
    match survivors.rank() {
        0 => survivors.send_bytes(&data, peer, 0, Timeout::Default).unwrap(),
        _ => assert_eq!(survivors.receive_bytes(&mut data, peer, 0, Timeout::Default).unwrap(), 1 << 20),
    }
    assert!(data.iter().all(|byte| *byte == 0));
    sum(&survivors, 2).unwrap();
}

#[test]
fn a_peer_that_dies_in_the_midst_of_messages_is_named_and_the_survivors_go_on() {
    let stage = Stage::set(bounce);
    for way in WAYS {
        let mut world = stage.over(way).launch(3);
        world.hear_all::<String>(&[0, 1, 2]);
        let killed = world.kill(1);
        let first = world.hear_failure(&[0], Status::PeerLost, 1).remove(0);
        println!("{way:?}: {:.1} ms from the death to the error", ms(killed, first.to));
        assert!(ms(killed, first.to) < PROMISED, "{first:?}");
        world.cue(2, "look");
        let second = world.hear_failure(&[2], Status::PeerLost, 1).remove(0);
        world.is_one_story(&first, &second);
        world.succeeds(&[0, 2]);
    }
}

#[test]
fn a_receiver_that_dies_before_it_takes_a_large_message_is_named() {
    let stage = Stage::set(|rank| {
        let world = rank.world();
        rank.tell("going");
        if rank.rank == 1 {
            rank.cue();
        }
        rank.tell(send(&world, LARGE, 1, Timeout::Default));
    });
    for way in WAYS {
        let mut world = stage.over(way).launch(2);
        world.hear_all::<String>(&[0, 1]);
        world.kill(1);
        let ended = world.hear_failure(&[0], Status::PeerLost, 1).remove(0);
        assert!(ended.text.contains("send of 67108864 x bytes to rank 1"), "{ended:?}");
        world.succeeds(&[0]);
    }
}

#[test]
fn a_message_nobody_sends_and_one_nobody_takes_name_the_rank_at_the_deadline() {
    let stage = Stage::set(|rank| {
        let world = rank.world();
        sum(&world, 2).unwrap();
        let deadline = Timeout::After(Duration::from_millis(300));
        rank.tell(match (rank.rank, rank.scene.as_str()) {
            (0, scene) if scene.ends_with("send") => send(&world, LARGE, 1, deadline),
            (0, _) => receive(&world, 8, 1, deadline),
            _ => {
                rank.cue();
                outcome(|| sum(&world, 2))
            }
        });
        rank.cue();
    });
    for way in WAYS {
        for what in ["send", "receive"] {
            let mut world = stage.over(way).playing(what).launch(2);
            let ended = world.hear_failure(&[0], Status::Timeout, 1).remove(0);
            let missing =
                if what == "send" { "did not receive it within 0.3 s" } else { "did not send it within 0.3 s" };
            assert!(ended.text.contains(&format!("rank 1 {missing}; process")), "{ended:?}");
            assert!(ms(ended.from, ended.to) >= 300.0, "{ended:?}");
            world.cue(1, "look");
            let late = world.hear_failure(&[1], Status::Timeout, 1).remove(0);
            world.is_one_story(&ended, &late);
            world.cue_all(&[0, 1], "end");
            world.succeeds(&[0, 1]);
        }
    }
}
