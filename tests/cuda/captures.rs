//! Graphs: replayed with other inputs, in turns, beside eager calls, and after their group is gone.

use tutti::{
    capture::Session,
    config::Timeout,
    dtype::{Collective, DType, Op},
    error::{Result, Status},
};

use crate::{
    machine::{Buffer, Graph, OwnStream, call, descriptor, world},
    stub::{on_card, on_stub_or_card},
};

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
