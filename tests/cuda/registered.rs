//! Memory of `tutti_mem_alloc` on CUDA groups: read where it lies, by all groups that may, for as long as they may.

use std::sync::{Arc, Barrier, mpsc};

use tutti::{
    communicator::Descriptor,
    config::Timeout,
    cuda::device::Device,
    dtype::{Collective, DType, Op},
    error::{Result, Status},
    group::{Group, free_memory},
};

use crate::{
    failures::{join, processes},
    machine::{Buffer, OwnStream, call, content, descriptor, on_all, on_cpu, split, world},
    stub::{calls, fail_next, on_stub, on_stub_or_card, ordinal},
};

/// The flag of a call whose buffers are registered on all ranks.
const REGISTERED: u32 = 2;
/// Room for a few buffers of a test.
const ROOM: usize = 1 << 20;

/// What one rank gets.
fn allocate(group: &Arc<Group>, bytes: usize) -> Result<u64> {
    let (give, take) = mpsc::channel();
    group.allocate(bytes, Box::new(move |start| give.send(start as u64).unwrap()))?;
    Ok(take.recv().unwrap())
}

/// What each rank gets.
fn allocate_on_all(groups: &[Arc<Group>], bytes: usize) -> Vec<Result<u64>> {
    on_all(groups, |group| allocate(group, bytes))
}

fn free(address: u64) {
    free_memory(address as *mut u8).unwrap();
}

fn promised(descriptor: Descriptor) -> Descriptor {
    Descriptor { flags: REGISTERED, ..descriptor }
}

fn write(device: i32, address: u64, content: &[u8]) {
    Device::open(ordinal(device)).unwrap().write(address, content).unwrap();
}

fn read(device: i32, address: u64, bytes: usize) -> Vec<u8> {
    Buffer::borrowed(device, address, bytes).read()
}

/// Bytes of a rank's buffers in a call of so many ranks: what is sent, what is received.
fn lengths(what: &Descriptor, ranks: usize) -> (usize, usize) {
    let bytes = what.bytes();
    match what.collective {
        Collective::AllGather => (bytes, bytes * ranks),
        Collective::ReduceScatter => (bytes * ranks, bytes),
        _ => (bytes, bytes),
    }
}

/// A call on all ranks, whose buffers are at these places; compared with what CPU ranks give.
fn agrees_with_the_cpu(groups: &[Arc<Group>], streams: &[OwnStream], places: &[(u64, u64)], what: Descriptor) {
    let (send_bytes, recv_bytes) = lengths(&what, groups.len());
    let sends: Vec<_> = (0..groups.len()).map(|rank| content(rank + 3 * what.bytes(), send_bytes)).collect();
    let want = on_cpu(Descriptor { flags: 0, ..what }, &sends, recv_bytes);
    let device = |rank: usize| groups[rank].device().unwrap();
    for (rank, send) in sends.iter().enumerate() {
        write(device(rank), places[rank].0, send);
    }
    for (rank, group) in groups.iter().enumerate() {
        group.run(call(what, places[rank].0, places[rank].1, &streams[rank]), Timeout::Default).unwrap();
    }
    for rank in 0..groups.len() {
        streams[rank].wait();
        groups[rank].check().unwrap();
        let got = read(device(rank), places[rank].1, recv_bytes);
        assert!(got == want[rank], "{what}, flags {}, rank {rank} of {}", what.flags, groups.len());
    }
}

#[test]
fn registered_buffers_are_read_where_they_lie_on_any_rank_and_at_any_offset() {
    if !on_stub_or_card("registered::registered_buffers_are_read_where_they_lie_on_any_rank_and_at_any_offset") {
        return;
    }
    for devices in [&[0, 1][..], &[0, 1, 0]] {
        let groups = world(devices, "pull").unwrap();
        let streams: Vec<_> = devices.iter().map(|device| OwnStream::new(*device)).collect();
        let registered: Vec<_> = allocate_on_all(&groups, ROOM).into_iter().map(Result::unwrap).collect();
        let plain: Vec<_> = devices.iter().map(|device| Buffer::new(*device, ROOM)).collect();
        let whats = [
            descriptor(Collective::AllReduce, DType::Bfloat16, Op::Sum, 3000),
            descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 7001),
            descriptor(Collective::AllGather, DType::Uint8, Op::Sum, 9001),
            descriptor(Collective::ReduceScatter, DType::Float16, Op::Max, 4001),
            descriptor(Collective::Broadcast, DType::Int64, Op::Sum, 2000),
        ];
        for (case, what) in (0..).zip(whats.iter().flat_map(|what| [what; 4])) {
            // All ranks registered, then some of them, then buffers of one rank in different memory.
            let places: Vec<_> = (0..devices.len())
                .map(|rank| {
                    let memory = |which: usize| match case % 4 {
                        0 => registered[rank],
                        1 if rank == 0 => registered[rank],
                        2 if rank != 0 => registered[rank],
                        3 if which == rank % 2 => registered[rank],
                        _ => plain[rank].address,
                    };
                    // 16 bytes apart, 8, and 2.
                    let offset = [0, 8, 2][(case / 4) % 3] * (rank as u64 + 1);
                    (memory(0) + offset, memory(1) + ROOM as u64 / 2 + offset)
                })
                .collect();
            agrees_with_the_cpu(&groups, &streams, &places, *what);
            let flagged = if case % 4 == 0 { promised(*what) } else { *what };
            let in_place: Vec<_> = places.iter().map(|(send, _)| (*send, *send)).collect();
            match what.collective {
                Collective::AllReduce | Collective::Broadcast => {
                    agrees_with_the_cpu(&groups, &streams, &in_place, flagged)
                }
                _ => agrees_with_the_cpu(&groups, &streams, &places, flagged),
            }
        }
        registered.into_iter().for_each(free);
    }
}

#[test]
fn a_promised_call_is_one_launch_whatever_its_size() {
    if !on_stub("registered::a_promised_call_is_one_launch_whatever_its_size", &[]) {
        return;
    }
    // More than the kernels can stage at once: the call ends well only if nobody stages anything.
    const COUNT: usize = 5 << 20;
    let groups = world(&[0, 1], "pull").unwrap();
    let streams = [0, 1].map(OwnStream::new);
    let places: Vec<_> = allocate_on_all(&groups, 4 * COUNT).into_iter().map(|one| one.unwrap()).collect();
    let what = descriptor(Collective::AllReduce, DType::Int32, Op::Sum, COUNT);
    let mut launches = Vec::new();
    for what in [what, promised(what)] {
        let before = calls("cuLaunchKernelEx");
        for rank in 0..2 {
            write(rank as i32, places[rank], &(rank as i32 + 1).to_le_bytes().repeat(COUNT));
            groups[rank].run(call(what, places[rank], places[rank], &streams[rank]), Timeout::Default).unwrap();
        }
        launches.push((calls("cuLaunchKernelEx") - before) / 2);
        for rank in 0..2 {
            streams[rank].wait();
            groups[rank].check().unwrap();
            assert!(read(rank as i32, places[rank], 4 * COUNT) == 3_i32.to_le_bytes().repeat(COUNT));
        }
    }
    assert_eq!(launches, [2, 1], "in pieces of 16 MiB, as other ranks may stage; and as one");
    places.into_iter().for_each(free);
}

#[test]
fn a_promise_that_does_not_hold_is_refused_before_anything_is_enqueued() {
    if !on_stub("registered::a_promise_that_does_not_hold_is_refused_before_anything_is_enqueued", &[]) {
        return;
    }
    let groups = world(&[0, 1], "").unwrap();
    let streams = [0, 1].map(OwnStream::new);
    let registered: Vec<_> = allocate_on_all(&groups, 4096).into_iter().map(Result::unwrap).collect();
    let plain = Buffer::new(0, 4096);
    let what = promised(descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64));
    for (send, recv, name) in [(plain.address, registered[0], "send"), (registered[0], plain.address, "recv")] {
        let before = calls("cuLaunchKernelEx");
        let error = groups[0].run(call(what, send, recv, &streams[0]), Timeout::Default).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.to_string().contains(&format!("TUTTI_CALL_REGISTERED), but {name} is 0x")), "{error}");
        assert_eq!(calls("cuLaunchKernelEx"), before);
    }
    let places: Vec<_> = registered.iter().map(|start| (*start, *start + 2048)).collect();
    agrees_with_the_cpu(&groups, &streams, &places, what);
    registered.into_iter().for_each(free);
    let error = groups[0].run(call(what, places[0].0, places[0].1, &streams[0]), Timeout::Default).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument, "it was freed: {error}");
}

#[test]
fn groups_made_before_and_after_an_allocation_know_it() {
    if !on_stub_or_card("registered::groups_made_before_and_after_an_allocation_know_it") {
        return;
    }
    let groups = world(&[0, 1, 0, 1], "").unwrap();
    let streams = [0, 1, 0, 1].map(OwnStream::new);
    let color = |group: &Arc<Group>| (group.rank() / 2) as i32;
    let before = on_all(&groups, |group| split(group, color(group)).unwrap());
    let registered: Vec<_> = allocate_on_all(&groups, ROOM).into_iter().map(Result::unwrap).collect();
    let after = on_all(&groups, |group| split(group, color(group)).unwrap());
    let of_a_half: Vec<_> = on_all(&before, |half| allocate(half, ROOM).unwrap());
    let what = promised(descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 9000));
    let places = |memory: &[u64]| memory.iter().map(|start| (*start, *start + ROOM as u64 / 2)).collect::<Vec<_>>();
    let streams = &streams;
    for halves in [&before, &after] {
        for first in [0, 2] {
            for memory in [&registered, &of_a_half] {
                let ranks = first..first + 2;
                let places = places(&memory[ranks.clone()]);
                agrees_with_the_cpu(&halves[ranks.clone()], &streams[ranks], &places, what);
            }
        }
    }
    agrees_with_the_cpu(&groups, streams, &places(&registered), what);
    // The world is not among those made from a half.
    let (send, recv) = places(&of_a_half)[0];
    let refused = groups[0].run(call(what, send, recv, &streams[0]), Timeout::Default).unwrap_err();
    assert_eq!(refused.status(), Status::InvalidArgument, "{refused}");
    agrees_with_the_cpu(&groups, streams, &places(&of_a_half), Descriptor { flags: 0, ..what });
    registered.into_iter().chain(of_a_half).for_each(free);
}

#[test]
fn what_all_ranks_have_freed_is_given_again_cleared() {
    if !on_stub_or_card("registered::what_all_ranks_have_freed_is_given_again_cleared") {
        return;
    }
    let groups = world(&[0, 1], "").unwrap();
    let streams = [0, 1].map(OwnStream::new);
    let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 9000);
    let places = |memory: &[u64]| memory.iter().map(|start| (*start, *start)).collect::<Vec<_>>();
    let get = |bytes: usize| -> Vec<u64> { allocate_on_all(&groups, bytes).into_iter().map(Result::unwrap).collect() };
    let first = get(ROOM);
    agrees_with_the_cpu(&groups, &streams, &places(&first), promised(what));
    free(first[0]);
    // Rank 1 goes on with its own.
    let second = get(ROOM);
    assert!(second[0] != first[0] && second[1] != first[1], "rank 1 has it still");
    agrees_with_the_cpu(&groups, &streams, &places(&[second[0], first[1]]), what);
    free(first[1]);
    let third = get(ROOM / 2);
    assert_eq!(third, first, "half as much fits, too");
    assert!(read(0, third[0], ROOM / 2).iter().all(|byte| *byte == 0), "cleared");
    agrees_with_the_cpu(&groups, &streams, &places(&third), promised(what));
    let fourth = get(ROOM);
    assert!(fourth[0] != third[0] && fourth[0] != second[0]);
    third.into_iter().chain(second).chain(fourth).for_each(free);
    let error = free_memory(first[0] as *mut u8).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument, "{error}");
}

#[test]
fn groups_of_the_same_ranks_may_allocate_at_the_same_time() {
    if !on_stub_or_card("registered::groups_of_the_same_ranks_may_allocate_at_the_same_time") {
        return;
    }
    let groups = world(&[0, 1], "pull").unwrap();
    let streams = [0, 1].map(OwnStream::new);
    let pairs: Vec<[Arc<Group>; 3]> = on_all(&groups, |group| [(); 3].map(|()| split(group, 0).unwrap()));
    let together = Barrier::new(6);
    for _ in 0..20 {
        let got: Vec<Vec<u64>> = std::thread::scope(|scope| {
            let threads: Vec<_> = pairs
                .iter()
                .flatten()
                .map(|group| {
                    let together = &together;
                    scope.spawn(move || {
                        together.wait();
                        vec![allocate(group, 20_000).unwrap(), allocate(group, 20_000).unwrap()]
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let what = promised(descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 5000));
        for group in 0..3 {
            let same = [pairs[0][group].clone(), pairs[1][group].clone()];
            for (mine, theirs) in got[group].iter().zip(&got[3 + group]) {
                let places = [(*mine, *mine), (*theirs, *theirs)];
                agrees_with_the_cpu(&same, &streams, &places, what);
            }
        }
        got.into_iter().flatten().for_each(free);
    }
}

#[test]
fn ranks_whose_rows_interleave_find_one_for_both() {
    if !on_stub("registered::ranks_whose_rows_interleave_find_one_for_both", &[]) {
        return;
    }
    let groups = world(&[0, 1, 0], "pull").unwrap();
    let pair = |one: u32, other: u32| -> Vec<Arc<Group>> {
        let color = |rank: u32| if rank == one || rank == other { 0 } else { -1 };
        on_all(&groups, |group| split(group, color(group.rank()))).into_iter().flatten().collect()
    };
    let (first, second, both) = (pair(0, 2), pair(1, 2), pair(0, 1));
    // Rank 0 gets every second row, and rank 1 those between.
    for _ in 0..150 {
        for pair in [&first, &second] {
            assert!(allocate_on_all(pair, 100).iter().all(Result::is_ok));
        }
    }
    let memory: Vec<_> = allocate_on_all(&both, ROOM).into_iter().map(Result::unwrap).collect();
    let places: Vec<_> = memory.iter().map(|start| (*start, *start)).collect();
    let what = promised(descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 9000));
    agrees_with_the_cpu(&both, &[0, 1].map(OwnStream::new), &places, what);
}

#[test]
fn a_graph_reads_registered_memory_in_every_replay() {
    if !on_stub_or_card("registered::a_graph_reads_registered_memory_in_every_replay") {
        return;
    }
    const COUNT: usize = 5000;
    let groups = world(&[0, 1], "pull").unwrap();
    let streams = [0, 1].map(OwnStream::new);
    let memory: Vec<_> = allocate_on_all(&groups, ROOM).into_iter().map(Result::unwrap).collect();
    let what = promised(descriptor(Collective::AllReduce, DType::Float32, Op::Sum, COUNT));
    let graphs = [0, 1].map(|rank| {
        let run = |from, to| groups[rank].run(call(what, from, to, &streams[rank]), Timeout::Default).unwrap();
        let second = memory[rank] + ROOM as u64 / 2;
        streams[rank].capture(|| {
            run(memory[rank], second);
            run(second, second);
        })
    });
    for replay in 1..10 {
        for rank in 0..2 {
            write(rank as i32, memory[rank], &((replay * (rank + 1)) as f32).to_le_bytes().repeat(COUNT));
            streams[rank].replay(&graphs[rank]);
        }
        for rank in 0..2 {
            streams[rank].wait();
            groups[rank].check().unwrap();
            let got = read(rank as i32, memory[rank] + ROOM as u64 / 2, 4 * COUNT);
            assert!(got == (6.0 * replay as f32).to_le_bytes().repeat(COUNT), "replay {replay}, rank {rank}");
        }
    }
    memory.into_iter().for_each(free);
}

#[test]
fn an_allocation_that_fails_on_one_rank_fails_on_all_and_the_group_lives() {
    if !on_stub("registered::an_allocation_that_fails_on_one_rank_fails_on_all_and_the_group_lives", &[]) {
        return;
    }
    let groups = world(&[0, 1], "").unwrap();
    let streams = [0, 1].map(OwnStream::new);
    for function in ["cuMemAlloc_v2", "cuMemsetD8Async", "cuMemcpyAsync"] {
        let freed = calls("cuMemFree_v2");
        fail_next(function, 2);
        for error in allocate_on_all(&groups, ROOM).into_iter().map(Result::unwrap_err) {
            assert_eq!(error.status(), Status::OutOfMemory, "{function}: {error}");
        }
        assert_eq!(
            calls("cuMemFree_v2"),
            freed,
            "{function}: to free some may wait for kernels that wait for this rank"
        );
    }
    for bytes in [usize::MAX, isize::MAX as usize] {
        for error in allocate_on_all(&groups, bytes).into_iter().map(Result::unwrap_err) {
            assert_eq!(error.status(), Status::OutOfMemory, "{bytes} bytes: {error}");
        }
    }
    let different = on_all(&groups, |group| allocate(group, if group.rank() == 0 { 1 } else { 8192 }).unwrap_err());
    assert!(different.iter().all(|error| error.status() == Status::Mismatch), "{different:?}");
    let memory: Vec<_> = allocate_on_all(&groups, ROOM).into_iter().map(Result::unwrap).collect();
    let places: Vec<_> = memory.iter().map(|start| (*start, *start)).collect();
    let what = promised(descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 9000));
    agrees_with_the_cpu(&groups, &streams, &places, what);
    memory.into_iter().for_each(free);
}

#[test]
fn what_is_freed_is_given_back_when_the_last_group_is_gone_or_later() {
    if !on_stub("registered::what_is_freed_is_given_back_when_the_last_group_is_gone_or_later", &[]) {
        return;
    }
    let held = || calls("cuMemAlloc_v2") - calls("cuMemFree_v2");
    let groups = world(&[0, 1], "").unwrap();
    let memory: Vec<_> =
        (0..3).map(|_| allocate_on_all(&groups, ROOM).into_iter().map(Result::unwrap).collect::<Vec<_>>()).collect();
    memory[0].iter().copied().for_each(free);
    free(memory[1][0]);
    assert!(held() >= 6);
    groups.iter().for_each(|group| group.leave());
    drop(groups);
    assert_eq!(held(), 4, "what is in somebody's hands, with the parts of other ranks");
    write(1, memory[1][1], b"still there");
    assert_eq!(read(1, memory[1][1], 11), b"still there");
    free(memory[1][1]);
    memory[2].iter().copied().for_each(free);
    assert_eq!(held(), 0);
}

#[test]
fn where_ranks_do_not_read_each_other_the_memory_is_ordinary() {
    if !on_stub("registered::where_ranks_do_not_read_each_other_the_memory_is_ordinary", &[("NCCL_P2P_DISABLE", "1")]) {
        return;
    }
    for (devices, communicators) in [(&[0, 1][..], ""), (&[0, 0], "^pull"), (&[0], "")] {
        let groups = world(devices, communicators).unwrap();
        let streams: Vec<_> = devices.iter().map(|device| OwnStream::new(*device)).collect();
        let memory: Vec<_> = allocate_on_all(&groups, 40_000).into_iter().map(Result::unwrap).collect();
        assert!(read(0, memory[0], 40_000).iter().all(|byte| *byte == 0));
        let what = promised(descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 5000));
        let calls = groups.iter().zip(&streams).zip(&memory).map(|((group, stream), memory)| {
            write(group.device().unwrap(), *memory, &1_f32.to_le_bytes().repeat(5000));
            (group, std::sync::Mutex::new(call(what, *memory, *memory, stream)))
        });
        std::thread::scope(|scope| {
            for (group, call) in calls.collect::<Vec<_>>() {
                scope.spawn(move || group.run(*call.lock().unwrap(), Timeout::Default).unwrap());
            }
        });
        streams.iter().for_each(OwnStream::wait);
        let sum = devices.len() as f32;
        assert!(read(0, memory[0], 20_000) == sum.to_le_bytes().repeat(5000));
        memory.iter().copied().for_each(free);
        let again: Vec<_> = allocate_on_all(&groups, 30_000).into_iter().map(Result::unwrap).collect();
        assert_eq!(again, memory, "what was freed serves again");
        assert!(read(0, again[0], 30_000).iter().all(|byte| *byte == 0), "cleared");
        again.into_iter().for_each(free);
    }
}

/// Registered buffers of two processes.
fn between_processes(rank: u32) {
    let group = join(rank);
    let (device, stream) = (rank as i32, OwnStream::new(rank as i32));
    let memory = allocate(&group, ROOM).unwrap();
    for (turn, bytes) in [12_000, 40_000, 200_000].into_iter().enumerate() {
        let what = promised(descriptor(Collective::AllReduce, DType::Float32, Op::Sum, bytes / 4));
        let sends: Vec<_> = (0..2).map(|peer| content(peer + bytes, bytes)).collect();
        let start = memory + 4096 * turn as u64;
        write(device, start, &sends[rank as usize]);
        group.run(call(what, start, start, &stream), Timeout::Default).unwrap();
        stream.wait();
        group.check().unwrap();
        let want = on_cpu(Descriptor { flags: 0, ..what }, &sends, bytes);
        assert!(read(device, start, bytes) == want[rank as usize], "{what}, rank {rank}");
    }
    free(memory);
    let error = allocate(&group, usize::MAX).unwrap_err();
    assert_eq!(error.status(), Status::OutOfMemory, "{error}");
    let again = allocate(&group, ROOM).unwrap();
    group.sync(Timeout::Default).unwrap();
    free(again);
}

#[test]
fn processes_register_memory_by_descriptors() {
    processes("registered::processes_register_memory_by_descriptors", &[], between_processes);
}

#[test]
fn processes_register_memory_by_handles_where_devices_do_not_export() {
    let test = "registered::processes_register_memory_by_handles_where_devices_do_not_export";
    processes(test, &[("STUB_NO_EXPORT", "1")], between_processes);
}
