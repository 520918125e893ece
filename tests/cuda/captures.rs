//! Graphs: replayed with other inputs, in turns, beside eager calls, and after their group is gone.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use tutti::{
    capture::Session,
    config::{GroupOptions, Timeout},
    dtype::{Collective, DType, Op},
    error::{Result, Status},
    group::{Group, batch},
};

use crate::{
    machine::{Buffer, Graph, OwnStream, call, descriptor, on_all, world},
    stub::{calls, on_card, on_stub, on_stub_or_card},
};

/// The deadlines are ten minutes: what ends in this time did not wait for one.
const AT_ONCE: Duration = Duration::from_secs(20);

/// `count` numbers.
fn numbers(value: f32, count: usize) -> Vec<u8> {
    value.to_le_bytes().repeat(count)
}

fn what(count: usize) -> tutti::communicator::Descriptor {
    descriptor(Collective::AllReduce, DType::Float32, Op::Sum, count)
}

#[test]
fn graphs_of_different_sizes_alternate_with_each_other_and_with_eager_calls() {
    if !on_stub_or_card("captures::graphs_of_different_sizes_alternate_with_each_other_and_with_eager_calls") {
        return;
    }
    const SIZES: [usize; 4] = [16, 900, 2600, 6000];
    let groups = world(&[0, 1], "push,pull").unwrap();
    let streams = [0, 1].map(OwnStream::new);
    let inputs = [0, 1].map(|device| SIZES.map(|count| Buffer::new(device, 4 * count)));
    let outputs = [0, 1].map(|device| SIZES.map(|count| Buffer::new(device, 4 * count)));
    let run = |rank: usize, size: usize| {
        let (send, recv) = (inputs[rank][size].address, outputs[rank][size].address);
        groups[rank].run(call(what(SIZES[size]), send, recv, &streams[rank]), Timeout::Default).unwrap();
    };
    // One graph of two small calls, one of two large: all four algorithms.
    let graphs: [[Graph; 2]; 2] = [0, 1].map(|rank| {
        [[0, 1], [2, 3]].map(|sizes| streams[rank].capture(|| sizes.into_iter().for_each(|size| run(rank, size))))
    });
    for (turn, graph) in [0, 1, 0, 0, 1, 1, 0].into_iter().enumerate() {
        for rank in 0..2 {
            for (size, input) in inputs[rank].iter().enumerate() {
                input.write(&numbers((turn + 1) as f32 * (rank + 1) as f32, SIZES[size]));
            }
            streams[rank].replay(&graphs[rank][graph]);
            if turn % 2 == 1 {
                run(rank, turn % 4);
            }
        }
        for rank in 0..2 {
            streams[rank].wait();
            groups[rank].check().unwrap();
            for size in [2 * graph, 2 * graph + 1] {
                assert_eq!(outputs[rank][size].read(), numbers(3.0 * (turn + 1) as f32, SIZES[size]), "turn {turn}");
            }
        }
    }
}

/// As an engine has it: layers that feed each other, two graphs for two batch sizes, new inputs every step, a call outside
/// of them now and then, and a graph that is captured anew.
#[test]
fn graphs_of_four_layers_are_right_in_each_of_64_replays() {
    if !on_stub_or_card("captures::graphs_of_four_layers_are_right_in_each_of_64_replays") {
        return;
    }
    const LAYERS: usize = 4;
    const REPLAYS: usize = 64;
    const SIZES: [usize; 2] = [300, 2600];
    let worlds: &[&[i32]] = if on_card() { &[&[0; 2], &[0; 4], &[0; 8]] } else { &[&[0, 1]] };
    for devices in worlds {
        let groups = world(devices, "push,pull").unwrap();
        let streams: Vec<_> = devices.iter().map(|device| OwnStream::new(*device)).collect();
        // What goes into each layer, and what comes out of the last; for each size and rank.
        let layers = SIZES.map(|count| {
            let of_rank = |device: &i32| -> Vec<_> { (0..=LAYERS).map(|_| Buffer::new(*device, 4 * count)).collect() };
            devices.iter().map(of_rank).collect::<Vec<_>>()
        });
        let eager: Vec<_> = devices.iter().map(|device| Buffer::new(*device, 4 * SIZES[0])).collect();
        let capture = |size: usize, rank: usize| {
            streams[rank].capture(|| {
                for pair in layers[size][rank].windows(2) {
                    let call = call(what(SIZES[size]), pair[0].address, pair[1].address, &streams[rank]);
                    groups[rank].run(call, Timeout::Default).unwrap();
                }
            })
        };
        let all = 0..groups.len();
        let mut graphs = [0, 1].map(|size| all.clone().map(|rank| capture(size, rank)).collect::<Vec<_>>());
        let ranks = groups.len() as f32;
        for replay in 0..REPLAYS {
            let size = replay % 2;
            // The first sum is of different numbers, the others of equal ones.
            let value = |rank: usize| (replay * (rank + 1)) as f32;
            let sum = all.clone().map(value).sum::<f32>();
            for rank in all.clone() {
                layers[size][rank][0].write(&numbers(value(rank), SIZES[size]));
                eager[rank].write(&numbers(value(rank), SIZES[0]));
            }
            for rank in all.clone() {
                streams[rank].replay(&graphs[size][rank]);
                if replay % 5 == 0 {
                    let call = call(what(SIZES[0]), eager[rank].address, eager[rank].address, &streams[rank]);
                    groups[rank].run(call, Timeout::Default).unwrap();
                }
            }
            streams.iter().for_each(OwnStream::wait);
            for rank in all.clone() {
                groups[rank].check().unwrap();
                let wanted = sum * ranks.powi(LAYERS as i32 - 1);
                let case = format!("replay {replay}, rank {rank} of {ranks}");
                assert!(layers[size][rank][LAYERS].read() == numbers(wanted, SIZES[size]), "{case}");
                assert!(replay % 5 != 0 || eager[rank].read() == numbers(sum, SIZES[0]), "{case}, eager");
            }
            if replay == REPLAYS / 2 {
                std::mem::take(&mut graphs[0]).into_iter().for_each(Graph::destroy);
                graphs[0] = all.clone().map(|rank| capture(0, rank)).collect();
            }
        }
    }
}

/// Two ranks of a world capture some calls each in a session, and end it.
fn captured(calls: [&[usize]; 2], end: impl Fn(usize, &Session) -> Result<()> + Sync) -> Vec<(Result<()>, Result<()>)> {
    let groups = world(&[0, 1], "").unwrap();
    let outcomes = std::thread::scope(|scope| {
        let ranks: Vec<_> = groups
            .iter()
            .enumerate()
            .map(|(rank, group)| {
                let (calls, end) = (calls[rank], &end);
                scope.spawn(move || {
                    let session = Session::open(vec![group.clone()]);
                    let (stream, buffer) = (OwnStream::new(rank as i32), Buffer::new(rank as i32, 4096));
                    let graph = stream.capture(|| {
                        for count in calls {
                            let call = call(what(*count), buffer.address, buffer.address, &stream);
                            group.run(call, Timeout::Default).unwrap();
                        }
                    });
                    let outcome = end(rank, &session);
                    if outcome.is_ok() {
                        buffer.write(&numbers(1.0, 16));
                        stream.replay(&graph);
                        stream.wait();
                    }
                    outcome
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
    });
    outcomes.into_iter().zip(&groups).map(|(outcome, group)| (outcome, group.check())).collect()
}

#[test]
fn ranks_that_captured_the_same_commit() {
    if on_stub_or_card("captures::ranks_that_captured_the_same_commit") {
        for (outcome, check) in captured([&[16, 32], &[16, 32]], |_, session| session.commit()) {
            outcome.unwrap();
            check.unwrap();
        }
    }
}

#[test]
fn ranks_that_captured_different_calls_are_told_and_the_group_fails() {
    if on_stub_or_card("captures::ranks_that_captured_different_calls_are_told_and_the_group_fails") {
        for (calls, says) in [
            ([&[16][..], &[16, 32]], "rank 0 captured 1 calls of group \"world\", rank 1 2"),
            ([&[16, 32], &[32, 16]], "ranks 0 and 1 captured 2 calls each of group \"world\", but different ones"),
        ] {
            let outcomes = captured(calls, |_, session| session.commit());
            for (outcome, check) in outcomes {
                let error = outcome.unwrap_err();
                assert_eq!(error.status(), Status::Mismatch);
                assert!(error.to_string().contains(says), "{error}");
                assert_eq!(check.unwrap_err().status(), Status::Mismatch);
            }
        }
    }
}

#[test]
fn an_abort_is_heard_by_who_commits_and_the_group_lives() {
    if on_stub_or_card("captures::an_abort_is_heard_by_who_commits_and_the_group_lives") {
        let outcomes = captured([&[16], &[16]], |rank, session| match rank {
            0 => session.commit(),
            _ => session.abort().and_then(|()| Err(tutti::error::Error::usage("not replayed"))),
        });
        let error = outcomes[0].0.as_ref().unwrap_err();
        assert_eq!(error.status(), Status::InvalidUsage, "{error}");
        assert!(error.to_string().contains("rank 1 aborted its capture of group \"world\""), "{error}");
        outcomes.into_iter().for_each(|(_, check)| check.unwrap());
    }
}

/// A world, and the groups of neighbours that each of its ranks has, in their order: "pair0" of ranks 0 and 1, and so on.
fn chain(ranks: i32) -> (Vec<Arc<Group>>, Vec<Vec<Arc<Group>>>) {
    let devices: Vec<i32> = (0..ranks).map(|rank| rank % 2).collect();
    let world = world(&devices, "").unwrap();
    let pair = |world: &Arc<Group>, first: u32| {
        let (give, take) = mpsc::channel();
        let options = GroupOptions { name: Some(format!("pair{first}")), ..GroupOptions::default() };
        world.create(&[first, first + 1], options, Box::new(move |group| drop(give.send(group)))).unwrap();
        take.recv().unwrap().unwrap()
    };
    let pairs = on_all(&world, |world| {
        let firsts = (world.rank().saturating_sub(1)..=world.rank()).filter(|first| first + 1 < world.size());
        firsts.map(|first| pair(world, first)).collect()
    });
    (world, pairs)
}

/// Every rank of a chain ends a session over its groups in its own way; what came of it.
fn end_all(pairs: &[Vec<Arc<Group>>], end: impl Fn(usize, &Session) -> Result<()> + Sync) -> Vec<Result<()>> {
    let ranks: Vec<_> = pairs.iter().enumerate().collect();
    let since = Instant::now();
    let outcomes = on_all(&ranks, |(rank, groups)| end(*rank, &Session::open(groups.to_vec())));
    assert!(since.elapsed() < AT_ONCE, "it took {:?}", since.elapsed());
    outcomes
}

fn in_a_batch(body: impl FnOnce() -> Result<()>) -> Result<()> {
    batch::begin().unwrap();
    let noted = body();
    let ended = batch::end();
    assert!(noted.is_ok() || ended.is_err(), "what is refused cancels the batch");
    ended
}

#[test]
fn an_abort_ends_the_commits_of_a_chain_of_groups_at_once_and_all_groups_live() {
    if !on_stub_or_card("captures::an_abort_ends_the_commits_of_a_chain_of_groups_at_once_and_all_groups_live") {
        return;
    }
    let (_world, pairs) = chain(4);
    for batched in [false, true] {
        for aborting in [0, 3] {
            let outcomes = end_all(&pairs, |rank, session| match rank == aborting {
                true => session.abort(),
                false if batched => in_a_batch(|| session.commit()),
                false => session.commit(),
            });
            for (rank, outcome) in outcomes.iter().enumerate() {
                // Those before the last pair have all that they waited for when rank 3 aborts.
                if rank == aborting || aborting == 3 && rank < 2 {
                    outcome.as_ref().unwrap_or_else(|error| panic!("rank {rank}: {error}"));
                    continue;
                }
                let error = outcome.as_ref().unwrap_err();
                assert_eq!(error.status(), Status::InvalidUsage, "rank {rank}: {error}");
                let (who, pair) = if aborting == 0 { (0, 0) } else { (1, 2) };
                let cause = format!("rank {who} aborted its capture of group \"pair{pair}\"");
                assert!(error.to_string().contains(&cause), "rank {rank}: {error}");
            }
            pairs.iter().flatten().for_each(|group| group.check().unwrap());
        }
    }
    // All of them still count alike.
    end_all(&pairs, |_, session| session.commit()).into_iter().for_each(|outcome| outcome.unwrap());
}

#[test]
fn an_abort_is_heard_while_another_rank_is_late() {
    if !on_stub_or_card("captures::an_abort_is_heard_while_another_rank_is_late") {
        return;
    }
    let groups = world(&[0, 1, 0], "").unwrap();
    let sessions: Vec<_> = groups.iter().map(|group| Session::open(vec![group.clone()])).collect();
    sessions[2].abort().unwrap();
    let since = Instant::now();
    for rank in [1, 0] {
        let error = sessions[rank].commit().unwrap_err();
        assert_eq!(error.status(), Status::InvalidUsage, "{error}");
        assert!(error.to_string().contains("rank 2 aborted its capture of group \"world\""), "{error}");
    }
    assert!(since.elapsed() < AT_ONCE);
    groups.iter().for_each(|group| group.check().unwrap());
}

#[test]
fn aborts_in_a_row_are_all_heard() {
    if !on_stub_or_card("captures::aborts_in_a_row_are_all_heard") {
        return;
    }
    let groups = world(&[0, 1], "").unwrap();
    let open = |rank: usize| Session::open(vec![groups[rank].clone()]);
    open(0).abort().unwrap();
    // Who opens a session and ends it in no way has given it up.
    drop(open(0));
    for _ in 0..2 {
        let error = open(1).commit().unwrap_err();
        assert_eq!(error.status(), Status::InvalidUsage, "{error}");
        assert!(error.to_string().contains("rank 0 aborted its capture of group \"world\""), "{error}");
    }
    on_all(&[0, 1], |rank| open(*rank).commit()).into_iter().for_each(|outcome| outcome.unwrap());
}

#[test]
fn a_group_that_has_failed_ends_commits_that_come_behind_it_and_the_others_live() {
    if !on_stub_or_card("captures::a_group_that_has_failed_ends_commits_that_come_behind_it_and_the_others_live") {
        return;
    }
    for batched in [false, true] {
        let (_world, pairs) = chain(3);
        pairs[0][0].abort();
        let outcomes = end_all(&pairs, |rank, session| match rank {
            1 if batched => in_a_batch(|| session.commit()),
            _ => session.commit(),
        });
        let errors: Vec<_> = outcomes.into_iter().map(Result::unwrap_err).collect();
        assert_eq!(
            errors.iter().map(tutti::error::Error::status).collect::<Vec<_>>(),
            [Status::Aborted, Status::Aborted, Status::InvalidUsage]
        );
        for said in ["rank 0 gave up its capture of group \"pair1\"", "rank 0 aborted group \"pair0\""] {
            assert!(errors[2].to_string().contains(said), "{}", errors[2]);
        }
        pairs[2][0].check().unwrap();
        let live = [vec![pairs[1][1].clone()], pairs[2].clone()];
        end_all(&live, |_, session| session.commit()).into_iter().for_each(|outcome| outcome.unwrap());
    }
}

#[test]
fn a_batch_that_is_cancelled_ends_the_commits_that_wait_for_it() {
    if !on_stub_or_card("captures::a_batch_that_is_cancelled_ends_the_commits_that_wait_for_it") {
        return;
    }
    let (_world, pairs) = chain(3);
    let outcomes = end_all(&pairs, |rank, session| match rank {
        1 => in_a_batch(|| {
            session.commit()?;
            let nothing = OwnStream::new(1);
            let refused = call(what(16), 16, 16, &nothing);
            pairs[1][0].run(refused, Timeout::Default)
        }),
        _ => session.commit(),
    });
    for (rank, outcome) in outcomes.into_iter().enumerate() {
        let error = outcome.unwrap_err();
        assert_eq!(error.status(), if rank == 1 { Status::InvalidArgument } else { Status::InvalidUsage }, "{error}");
        assert!(rank == 1 || error.to_string().contains("cancelled the commit of its capture"), "{error}");
    }
    end_all(&pairs, |_, session| session.commit()).into_iter().for_each(|outcome| outcome.unwrap());
}

#[test]
fn a_replay_before_the_commit_is_right() {
    if on_stub_or_card("captures::a_replay_before_the_commit_is_right") {
        // The order in which ranks replay and commit does not matter, since nothing is registered.
        for (outcome, check) in captured([&[16], &[16]], |_, session| session.commit()) {
            outcome.unwrap();
            check.unwrap();
        }
        let groups = world(&[0, 1], "").unwrap();
        let streams = [0, 1].map(OwnStream::new);
        let buffers = [0, 1].map(|device| Buffer::with(device, &numbers(1.0, 16)));
        let session = [0, 1].map(|rank: usize| Session::open(vec![groups[rank].clone()]));
        let graphs = [0, 1].map(|rank| {
            streams[rank].capture(|| {
                let call = call(what(16), buffers[rank].address, buffers[rank].address, &streams[rank]);
                groups[rank].run(call, Timeout::Default).unwrap();
            })
        });
        (0..2).for_each(|rank| streams[rank].replay(&graphs[rank]));
        streams.iter().for_each(OwnStream::wait);
        assert_eq!(buffers[0].read(), numbers(2.0, 16));
        drop(session);
    }
}

#[test]
fn a_replay_after_its_group_is_gone_returns_at_once_and_touches_nothing() {
    if !on_stub_or_card("captures::a_replay_after_its_group_is_gone_returns_at_once_and_touches_nothing") {
        return;
    }
    let mut groups = world(&[0, 1], "").unwrap();
    let streams = [0, 1].map(OwnStream::new);
    let buffers = [0, 1].map(|device| Buffer::with(device, &numbers(1.0, 16)));
    let graphs = [0, 1].map(|rank| {
        streams[rank].capture(|| {
            let call = call(what(16), buffers[rank].address, buffers[rank].address, &streams[rank]);
            groups[rank].run(call, Timeout::Default).unwrap();
        })
    });
    groups.iter().for_each(|group| group.leave());
    groups.clear();
    let since = std::time::Instant::now();
    (0..2).for_each(|rank| streams[rank].replay(&graphs[rank]));
    streams.iter().for_each(OwnStream::wait);
    assert!(since.elapsed() < std::time::Duration::from_secs(20), "the deadline is ten minutes");
    buffers.iter().for_each(|buffer| assert_eq!(buffer.read(), numbers(1.0, 16)));
}

/// Stretches of device memory that groups have, beside the two buffers of a test.
fn held() -> u64 {
    calls("cuMemAlloc_v2") - calls("cuMemFree_v2") - 2
}

/// When the calls of [`in_a_life`] are captured.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    InSessions,
    Outside,
    AfterTheCommit,
}

/// Two ranks capture a call and replay it; then their groups go, and their sessions, in this order or the other. Says
/// how much memory is held when all of it is gone.
fn in_a_life(when: When, sessions_first: bool) -> u64 {
    let mut groups = world(&[0, 1], "").unwrap();
    let streams = [0, 1].map(OwnStream::new);
    let buffers = [0, 1].map(|device| Buffer::with(device, &numbers(1.0, 16)));
    let open = |rank: usize| Session::open(vec![groups[rank].clone()]);
    let mut sessions = if when == When::Outside { Vec::new() } else { [0, 1].map(open).into() };
    if when == When::AfterTheCommit {
        on_all(&sessions, Session::commit).into_iter().for_each(|outcome| outcome.unwrap());
    }
    let graphs = [0, 1].map(|rank| {
        streams[rank].capture(|| {
            let call = call(what(16), buffers[rank].address, buffers[rank].address, &streams[rank]);
            groups[rank].run(call, Timeout::Default).unwrap();
        })
    });
    let replay = || {
        (0..2).for_each(|rank| streams[rank].replay(&graphs[rank]));
        streams.iter().for_each(OwnStream::wait);
    };
    replay();
    assert_eq!(buffers[0].read(), numbers(2.0, 16));
    if sessions_first {
        sessions.clear();
    }
    groups.iter().for_each(|group| group.leave());
    groups.clear();
    if !sessions_first {
        assert!(held() > 0, "a session keeps what its graphs touch");
        let since = Instant::now();
        replay();
        assert!(since.elapsed() < AT_ONCE, "a replay after its group is gone returns at once");
        buffers.iter().for_each(|buffer| assert_eq!(buffer.read(), numbers(2.0, 16), "and touches nothing"));
        sessions.clear();
    }
    held()
}

#[test]
fn what_sessions_have_captured_keeps_memory_as_long_as_they_live() {
    if !on_stub("captures::what_sessions_have_captured_keeps_memory_as_long_as_they_live", &[]) {
        return;
    }
    assert_eq!(in_a_life(When::InSessions, true), 0);
    assert_eq!(in_a_life(When::InSessions, false), 0);
    // Nobody says when the last replay of these is over.
    let kept = in_a_life(When::AfterTheCommit, true);
    assert!(kept > 0);
    assert!(in_a_life(When::InSessions, true) > kept, "from then on nothing is given back");
}

#[test]
fn what_is_captured_outside_of_sessions_keeps_memory_for_good() {
    if on_stub("captures::what_is_captured_outside_of_sessions_keeps_memory_for_good", &[]) {
        assert!(in_a_life(When::Outside, true) > 0);
    }
}
