//! V-forms whose ranks die in the midst of them.

use std::sync::Arc;

use tutti::{
    communicator::{Part, Uneven},
    config::Timeout,
    dtype::{Collective, DType, Op},
    error::{Result, Status},
    group::Group,
};

use crate::stage::{Rank, Stage, WAYS, make, ms, until_failure};

/// Milliseconds within which every survivor has heard of a death.
const PROMISED: f64 = 1000.0;

/// Numbers that make a part many steps long.
const MANY: usize = 100_000;
const NUMBER: usize = size_of::<u32>();

/// How many numbers rank `from` gives to rank `to`.
fn count(collective: Collective, from: usize, to: usize) -> usize {
    match collective {
        Collective::AllGatherV => MANY * (from + 1),
        _ => MANY * (from + 1) + 1000 * to,
    }
}

/// Where parts of so many numbers lie, one after the other, and the end of the last.
fn lay_out(counts: impl Iterator<Item = usize>) -> (Vec<Part>, usize) {
    let mut end = 0;
    let parts = counts.map(|count| {
        let part = Part { start: end * NUMBER, bytes: count * NUMBER };
        end += count;
        part
    });
    (parts.collect(), end)
}

/// One v-form, in which everybody sends the number of its rank; checked.
fn call(group: &Arc<Group>, collective: Collective) -> Result<()> {
    let (me, size) = (group.rank() as usize, group.size() as usize);
    let (recv_parts, room) = lay_out((0..size).map(|from| count(collective, from, me)));
    let (mut send_parts, mut sent) = lay_out((0..size).map(|to| count(collective, me, to)));
    let mut descriptor = Uneven::descriptor(collective, DType::Uint32, Op::Sum, 0, &[]);
    if collective == Collective::AllGatherV {
        let counts: Vec<u64> = (0..size).map(|from| count(collective, from, me) as u64).collect();
        descriptor = Uneven::descriptor(collective, DType::Uint32, Op::Sum, 0, &counts);
        sent = counts[me] as usize;
        send_parts = vec![Part { start: 0, bytes: sent * NUMBER }; size];
    }
    if collective == Collective::AllToAllV {
        (descriptor.count, descriptor.root) = (0, 0);
    }
    let send = vec![me as u32; sent];
    let mut recv = vec![u32::MAX; room];
    let (from, to) = (send.as_ptr().cast(), recv.as_mut_ptr().cast());
    let form = Uneven {
        descriptor,
        send: from,
        send_parts,
        recv: to,
        recv_parts: recv_parts.clone(),
        stream: std::ptr::null_mut(),
    };
    group.run_uneven(form, Timeout::Default)?;
    for (from, part) in recv_parts.iter().enumerate() {
        let numbers = &recv[part.start / NUMBER..(part.start + part.bytes) / NUMBER];
        assert!(numbers.iter().all(|number| *number == from as u32), "what rank {from} sent is wrong");
    }
    Ok(())
}

fn until_one_dies(rank: &Rank) {
    let collective = match rank.scene.ends_with("all_gather_v") {
        true => Collective::AllGatherV,
        false => Collective::AllToAllV,
    };
    let world = rank.world();
    call(&world, collective).unwrap();
    rank.tell("going");
    rank.tell(until_failure(|| call(&world, collective)));
    let survivors = make(&world, &[0, 2]).unwrap();
    call(&survivors, collective).unwrap();
}

#[test]
fn a_peer_killed_in_the_middle_of_a_v_form_is_named_within_a_second_and_the_survivors_go_on() {
    let stage = Stage::set(until_one_dies);
    for way in WAYS {
        for what in ["all_gather_v", "all_to_all_v"] {
            let mut world = stage.over(way).playing(what).launch(3);
            world.hear_all::<String>(&[0, 1, 2]);
            let killed = world.kill(1);
            let outcomes = world.hear_failure(&[0, 2], Status::PeerLost, 1);
            for outcome in &outcomes {
                assert!(ms(killed, outcome.to) < PROMISED, "{way:?}, {what}: {outcome:?}");
                assert!(outcome.text.contains("rank 1"), "{outcome:?}");
            }
            world.is_one_story(&outcomes[0], &outcomes[1]);
            world.succeeds(&[0, 2]);
        }
    }
}
