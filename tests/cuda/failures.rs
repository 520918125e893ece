//! How calls that cannot end, end.

use std::time::{Duration, Instant};

use tutti::{
    config::{GroupOptions, Selection, Timeout, WorldOptions},
    dtype::{Collective, DType, Op},
    error::Status,
    group::Group,
};

use crate::{
    machine::{Buffer, OwnStream, call, descriptor, patience, world, world_with},
    stub::{finish, is_stub, last_deadline, on_card, on_stub, on_stub_or_card, ordinal, this_test},
};

fn what() -> tutti::communicator::Descriptor {
    descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64)
}

#[test]
fn a_rank_that_does_not_come_is_named_and_later_calls_say_the_same() {
    if !on_stub_or_card("failures::a_rank_that_does_not_come_is_named_and_later_calls_say_the_same") {
        return;
    }
    let groups = world(&[0, 1, 0], "").unwrap();
    let streams = [0, 1].map(OwnStream::new);
    let buffers = [0, 1].map(|device| Buffer::new(device, 256));
    for rank in 0..2 {
        let call = call(what(), buffers[rank].address, buffers[rank].address, &streams[rank]);
        groups[rank].run(call, Timeout::After(Duration::from_millis(300))).unwrap();
    }
    streams.iter().for_each(OwnStream::wait);
    for group in &groups {
        let error = group.check().unwrap_err();
        assert_eq!(error.status(), Status::Timeout, "{error}");
        assert!(error.to_string().contains("rank 2 did not arrive on the device within 0.3 s"), "{error}");
        assert_eq!(group.failure().unwrap().rank, Some(2));
    }
    let again = call(what(), buffers[0].address, buffers[0].address, &streams[0]);
    assert_eq!(groups[0].run(again, Timeout::Default).unwrap_err().status(), Status::Timeout);
    devices_still_work();
}

/// What a failure must leave behind.
fn devices_still_work() {
    let groups = world(&[0, 1], "").unwrap();
    let streams = [0, 1].map(OwnStream::new);
    let buffers = [0, 1].map(|device| Buffer::with(device, &1_f32.to_le_bytes().repeat(64)));
    for rank in 0..2 {
        let call = call(what(), buffers[rank].address, buffers[rank].address, &streams[rank]);
        groups[rank].run(call, Timeout::Default).unwrap();
    }
    streams.iter().for_each(OwnStream::wait);
    buffers.iter().for_each(|buffer| assert_eq!(buffer.read(), 2_f32.to_le_bytes().repeat(64)));
}

#[test]
fn a_rank_that_does_not_come_to_a_replay_is_named_in_time_and_the_device_goes_on() {
    if !on_stub_or_card("failures::a_rank_that_does_not_come_to_a_replay_is_named_in_time_and_the_device_goes_on") {
        return;
    }
    const DEADLINE: Duration = Duration::from_secs(2);
    // On the stub every lane is a thread of a machine that may be busy.
    let bound = if on_card() && !is_stub() { DEADLINE + Duration::from_millis(500) } else { Duration::from_secs(60) };
    for communicators in ["push", "pull"] {
        let communicators = Selection::parse(communicators).unwrap();
        let options = GroupOptions { communicators, timeout: Timeout::After(DEADLINE), ..GroupOptions::default() };
        let groups = world_with(&[0, 1], options).unwrap();
        let streams = [0, 1].map(OwnStream::new);
        let buffers = [0, 1].map(|device| Buffer::with(device, &1_f32.to_le_bytes().repeat(64)));
        let graphs = [0, 1].map(|rank: usize| {
            streams[rank].capture(|| {
                let call = call(what(), buffers[rank].address, buffers[rank].address, &streams[rank]);
                (0..3).for_each(|_| groups[rank].run(call, Timeout::Default).unwrap());
            })
        });
        (0..2).for_each(|rank| streams[rank].replay(&graphs[rank]));
        streams.iter().for_each(OwnStream::wait);
        groups.iter().for_each(|group| group.check().unwrap());
        buffers.iter().for_each(|buffer| assert_eq!(buffer.read(), 8_f32.to_le_bytes().repeat(64)));

        let since = Instant::now();
        streams[0].replay(&graphs[0]);
        streams[0].wait();
        let elapsed = since.elapsed();
        assert!((DEADLINE..bound).contains(&elapsed), "a graph of three calls ended after {elapsed:?}");
        for group in &groups {
            let error = group.check().unwrap_err();
            assert_eq!(error.status(), Status::Timeout, "{error}");
            assert!(error.to_string().contains("rank 1 did not arrive on the device within 2.0 s"), "{error}");
            assert_eq!(group.failure().unwrap().rank, Some(1));
        }
        // Who comes too late, or again, does not wait.
        let since = Instant::now();
        (0..2).for_each(|rank| streams[rank].replay(&graphs[rank]));
        streams.iter().for_each(OwnStream::wait);
        assert!(since.elapsed() < bound - DEADLINE, "{:?}", since.elapsed());
        devices_still_work();
    }
}

#[test]
fn a_call_without_a_deadline_has_one_of_a_day_on_the_device() {
    if !on_stub("failures::a_call_without_a_deadline_has_one_of_a_day_on_the_device", &[]) {
        return;
    }
    for communicators in ["push", "pull"] {
        let groups = world(&[0, 1], communicators).unwrap();
        let streams = [0, 1].map(OwnStream::new);
        let buffers = [0, 1].map(|device| Buffer::with(device, &1_f32.to_le_bytes().repeat(64)));
        for (timeout, wanted) in
            [(Timeout::Never, 24 * 3600), (Timeout::After(Duration::MAX), 24 * 3600), (Timeout::Default, 600)]
        {
            for rank in 0..2 {
                let call = call(what(), buffers[rank].address, buffers[rank].address, &streams[rank]);
                groups[rank].run(call, timeout).unwrap();
                assert_eq!(last_deadline(), Duration::from_secs(wanted));
            }
        }
        streams.iter().for_each(OwnStream::wait);
        buffers.iter().for_each(|buffer| assert_eq!(buffer.read(), 8_f32.to_le_bytes().repeat(64)));
    }
}

#[test]
fn an_abort_ends_what_is_enqueued_on_all_ranks() {
    if !on_stub_or_card("failures::an_abort_ends_what_is_enqueued_on_all_ranks") {
        return;
    }
    // On the stub every lane is a thread of a machine that may be busy; the deadline is ten minutes.
    let on_hardware = on_card() && !is_stub();
    let (calls, bound) = if on_hardware { (80, Duration::from_millis(10)) } else { (20, Duration::from_secs(20)) };
    for communicators in ["push", "pull"] {
        let groups = world(&[0, 1, 0], communicators).unwrap();
        let streams = [0, 1].map(OwnStream::new);
        let buffers = [0, 1].map(|device| Buffer::new(device, 256));
        for _ in 0..calls {
            for rank in 0..2 {
                let call = call(what(), buffers[rank].address, buffers[rank].address, &streams[rank]);
                groups[rank].run(call, Timeout::Default).unwrap();
            }
        }
        groups[2].abort();
        let since = Instant::now();
        streams.iter().for_each(OwnStream::wait);
        assert!(since.elapsed() < bound, "{calls} calls took {:?} to end", since.elapsed());
        for group in &groups {
            let error = group.check().unwrap_err();
            assert_eq!((error.status(), error.to_string()), (Status::Aborted, "rank 2 aborted group \"world\"".into()));
        }
        devices_still_work();
    }
}

#[test]
fn a_rank_that_leaves_is_lost_to_who_waits_for_it() {
    if !on_stub_or_card("failures::a_rank_that_leaves_is_lost_to_who_waits_for_it") {
        return;
    }
    let groups = world(&[0, 1], "").unwrap();
    let streams = [0, 1].map(OwnStream::new);
    let buffers = [0, 1].map(|device| Buffer::with(device, &1_f32.to_le_bytes().repeat(64)));
    let run = |rank: usize| {
        let call = call(what(), buffers[rank].address, buffers[rank].address, &streams[rank]);
        groups[rank].run(call, Timeout::Default)
    };
    run(0).unwrap();
    run(1).unwrap();
    groups[1].leave();
    streams.iter().for_each(OwnStream::wait);
    assert_eq!(buffers[0].read(), 2_f32.to_le_bytes().repeat(64), "what was enqueued before still ends well");
    groups[0].check().unwrap();
    run(0).unwrap();
    streams[0].wait();
    let error = groups[0].check().unwrap_err();
    assert_eq!(error.status(), Status::PeerLost, "{error}");
    assert!(error.to_string().contains("rank 1 is lost: it left"), "{error}");
}

#[test]
fn overlapping_replays_are_named() {
    if !on_stub_or_card("failures::overlapping_replays_are_named") {
        return;
    }
    let timeout = Timeout::After(Duration::from_secs(30));
    let groups = world_with(&[0, 1], GroupOptions { timeout, ..GroupOptions::default() }).unwrap();
    let (one, other, buffer) = (OwnStream::new(0), OwnStream::new(0), Buffer::new(0, 256));
    // Two of them: launches of one would follow each other.
    let graphs = [&one, &other].map(|stream| {
        stream.capture(|| {
            groups[0].run(call(what(), buffer.address, buffer.address, stream), Timeout::Default).unwrap();
        })
    });
    // The peer does not come, so both are inside at once.
    one.replay(&graphs[0]);
    other.replay(&graphs[1]);
    one.wait();
    other.wait();
    let error = groups[0].check().unwrap_err();
    assert_eq!(error.status(), Status::InvalidUsage, "{error}");
    assert!(error.to_string().contains("two kernels of the group ran at once on rank 0"), "{error}");
}

#[test]
fn a_process_that_dies_ends_the_kernels_that_wait_for_it() {
    let test = "failures::a_process_that_dies_ends_the_kernels_that_wait_for_it";
    processes(test, &[], |rank| {
        let group = join(rank);
        if rank == 1 {
            group.sync(Timeout::Default).unwrap();
            std::process::exit(0);
        }
        let (stream, buffer) = (OwnStream::new(0), Buffer::new(0, 256));
        group.run(call(what(), buffer.address, buffer.address, &stream), Timeout::Default).unwrap();
        group.sync(Timeout::Default).unwrap();
        let since = Instant::now();
        stream.wait();
        assert!(since.elapsed() < Duration::from_secs(20), "the deadline is ten minutes");
        let error = group.check().unwrap_err();
        assert_eq!(error.status(), Status::PeerLost, "{error}");
        assert!(error.to_string().contains("rank 1 is lost: its process"), "{error}");
    });
}

/// Two processes, each a rank on the device of its number.
pub(crate) fn processes(test: &str, variables: &[(&str, &str)], play: impl FnOnce(u32)) {
    if let Ok(rank) = std::env::var("RANK") {
        return play(rank.parse().unwrap());
    }
    if on_card() && !variables.is_empty() {
        return;
    }
    let key = format!("{test}-{}", std::process::id());
    let children = [0, 1].map(|rank| {
        let mut command = this_test(test);
        command.envs(variables.iter().copied()).env("TUTTI_WORLD_KEY", &key);
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2").spawn().unwrap()
    });
    children.into_iter().for_each(|child| finish(test, child));
}

/// Joins the world of [`processes`].
pub(crate) fn join(rank: u32) -> std::sync::Arc<Group> {
    let group = GroupOptions { timeout: patience(), ..GroupOptions::default() };
    Group::world(WorldOptions { group, device: Some(ordinal(rank as i32)), ..WorldOptions::default() }).unwrap()
}
