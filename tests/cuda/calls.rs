//! What calls do: results, buffers, streams, and how often the driver is asked.

use tutti::{
    communicator::Call,
    config::Timeout,
    dispatch::Format,
    dtype::{Collective, DType, Op},
    error::Status,
    group::{Group, batch},
};

use crate::{
    machine::{Buffer, OwnStream, call, content, descriptor, on_cpu, world},
    stub::{calls, fail_next, on_stub, on_stub_or_card},
};

/// One call on all ranks, from one thread, since calls are only enqueued; compared with what CPU ranks give.
fn agrees_with_the_cpu(groups: &[std::sync::Arc<Group>], streams: &[OwnStream], what: tutti::communicator::Descriptor) {
    let (world, bytes) = (groups.len(), what.bytes());
    let (send_bytes, recv_bytes) = match what.collective {
        Collective::AllGather => (bytes, bytes * world),
        Collective::ReduceScatter => (bytes * world, bytes),
        Collective::AllToAll => (bytes * world, bytes * world),
        Collective::Gather => (bytes, bytes * world),
        Collective::Scatter => (bytes * world, bytes),
        _ => (bytes, bytes),
    };
    let sends: Vec<_> = (0..world).map(|rank| content(rank + 7 * bytes, send_bytes)).collect();
    let want = on_cpu(what, &sends, recv_bytes);
    let device = |rank: usize| groups[rank].device().unwrap();
    let send: Vec<_> = (0..world).map(|rank| Buffer::with(device(rank), &sends[rank])).collect();
    let recv: Vec<_> = (0..world).map(|rank| Buffer::new(device(rank), recv_bytes)).collect();
    // Those that go through the host end on every rank only when all have come.
    std::thread::scope(|scope| {
        for rank in 0..world {
            let (group, stream) = (&groups[rank], &streams[rank]);
            let call = call(what, send[rank].address, recv[rank].address, stream);
            let call = std::sync::Mutex::new(call);
            scope.spawn(move || group.run(*call.lock().unwrap(), Timeout::Default).unwrap());
        }
    });
    for rank in 0..world {
        streams[rank].wait();
        groups[rank].check().unwrap();
        assert!(recv[rank].read() == want[rank], "{what}, rank {rank} of {world}");
    }
}

// SAFETY: handles of the stub may be used from any thread.
unsafe impl Sync for OwnStream {}

const TYPES: [DType; 5] = [DType::Float32, DType::Float16, DType::Bfloat16, DType::Uint8, DType::Int64];

#[test]
fn kernels_give_the_bits_of_the_cpu() {
    if !on_stub_or_card("calls::kernels_give_the_bits_of_the_cpu") {
        return;
    }
    for devices in [&[0, 1][..], &[0, 1, 0], &[0; 8]] {
        let groups = world(devices, "push,pull").unwrap();
        let streams: Vec<_> = devices.iter().map(|device| OwnStream::new(*device)).collect();
        // Sizes for each of the four algorithms, and one that goes in pieces.
        for (index, bytes) in [0, 64, 2048, 4096, 12_000, 40_000].into_iter().enumerate() {
            let dtype = TYPES[index % TYPES.len()];
            let op = [Op::Sum, Op::Max, Op::Min, Op::Avg][index % 4];
            agrees_with_the_cpu(&groups, &streams, descriptor(Collective::AllReduce, dtype, op, bytes / dtype.size()));
        }
        for collective in [Collective::AllGather, Collective::ReduceScatter, Collective::Broadcast] {
            for bytes in [96, 9000] {
                agrees_with_the_cpu(&groups, &streams, descriptor(collective, DType::Bfloat16, Op::Sum, bytes / 2));
            }
        }
    }
}

#[test]
fn what_kernels_do_not_serve_goes_through_the_host() {
    if !on_stub("calls::what_kernels_do_not_serve_goes_through_the_host", &[]) {
        return;
    }
    let groups = world(&[0, 1, 0], "").unwrap();
    let streams: Vec<_> = [0, 1, 0].into_iter().map(OwnStream::new).collect();
    for collective in [Collective::AllToAll, Collective::AllReduce] {
        agrees_with_the_cpu(&groups, &streams, descriptor(collective, DType::Float64, Op::Sum, 700));
    }
    let what = descriptor(Collective::AllReduce, DType::Float64, Op::Sum, 700);
    let told = groups[0].explain(&what, Format::Text).unwrap();
    assert!(told.contains("served by staged/through_host"), "{told}");
    let graph_of = |stream: &OwnStream| {
        let buffer = Buffer::new(0, 5600);
        let mut refused = None;
        stream.capture(|| {
            refused = groups[0].run(call(what, buffer.address, buffer.address, stream), Timeout::Default).err();
        });
        refused.expect("it cannot be captured")
    };
    let refused = graph_of(&streams[0]);
    assert_eq!(refused.status(), Status::Unsupported, "{refused}");
    groups[0].check().unwrap();
}

#[test]
fn the_row_that_chose_is_told() {
    if !on_stub("calls::the_row_that_chose_is_told", &[]) {
        return;
    }
    let groups = world(&[0, 1], "").unwrap();
    let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 1024);
    let told = groups[0].explain(&what, Format::Text).unwrap();
    assert!(
        told.contains("served by push/two_shot") && told.contains("sm_80 with up to 2 ranks: of the tests"),
        "{told}"
    );
    let told = groups[1].explain(&what, Format::Json).unwrap();
    assert!(told.contains("plan.txt, sm_80"), "{told}");
}

#[test]
fn a_call_costs_a_launch_and_two_other_calls_of_the_driver() {
    if !on_stub("calls::a_call_costs_a_launch_and_two_other_calls_of_the_driver", &[]) {
        return;
    }
    let groups = world(&[0, 1], "push").unwrap();
    let streams = [OwnStream::new(0), OwnStream::new(1)];
    let other = OwnStream::new(0);
    let buffers = [Buffer::new(0, 256), Buffer::new(1, 256)];
    let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64);
    let run = |rank: usize, stream: &OwnStream| {
        // As frameworks have it: the device's context is current.
        let _entered = tutti::cuda::device::Device::open(rank as i32).unwrap().enter().unwrap();
        let before = (calls("*"), calls("cuLaunchKernelEx"));
        let address = buffers[rank].address;
        groups[rank].run(call(what, address, address, stream), Timeout::Default).unwrap();
        (calls("*") - before.0, calls("cuLaunchKernelEx") - before.1)
    };
    // The first call also looks at the buffers and makes an event.
    run(0, &streams[0]);
    run(1, &streams[1]);
    for _ in 0..3 {
        assert_eq!(run(0, &streams[0]), (3, 1), "whether it is captured, the launch, the event");
        assert_eq!(run(1, &streams[1]), (3, 1));
    }
    assert_eq!(run(0, &other), (4, 1), "on another stream it also waits for the last call");
    run(1, &streams[1]);
    other.wait();
    streams.iter().for_each(OwnStream::wait);
    groups.iter().for_each(|group| group.check().unwrap());
}

#[test]
fn host_memory_and_another_devices_memory_are_refused_and_change_nothing() {
    if !on_stub("calls::host_memory_and_another_devices_memory_are_refused_and_change_nothing", &[]) {
        return;
    }
    let groups = world(&[0, 1], "").unwrap();
    let stream = OwnStream::new(0);
    let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64);
    let (host, own, others) = ([0_f32; 64], Buffer::new(0, 256), Buffer::new(1, 256));
    for (send, recv, says) in [
        (host.as_ptr() as u64, own.address, "memory of the host"),
        (own.address, others.address, "memory of CUDA device 1"),
        (own.address + 4, own.address + 4, "but the allocation ends"),
    ] {
        let error = groups[0].run(call(what, send, recv, &stream), Timeout::Default).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.to_string().contains(says), "{error}");
    }
    groups[0].check().unwrap();
    let streams = [stream, OwnStream::new(1)];
    agrees_with_the_cpu(&groups, &streams, what);
}

#[test]
fn calls_on_several_streams_follow_each_other() {
    if !on_stub_or_card("calls::calls_on_several_streams_follow_each_other") {
        return;
    }
    let groups = world(&[0, 1], "").unwrap();
    let buffers = [0, 1].map(|device| Buffer::with(device, &1_f32.to_le_bytes().repeat(64)));
    let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64);
    let run = |rank: usize, stream: &OwnStream| {
        let call = call(what, buffers[rank].address, buffers[rank].address, stream);
        groups[rank].run(call, Timeout::Default).unwrap();
    };
    let kept = [0, 1].map(|device| [OwnStream::new(device), OwnStream::new(device)]);
    let first = [0, 1].map(OwnStream::new);
    // The first stream of rank 0 is gone while its call waits for rank 1, that of rank 1 when the next call comes.
    for (rank, first) in (0..).zip(first) {
        run(rank, &first);
        drop(first);
        run(rank, &kept[rank][0]);
    }
    // Then each rank has an order of its own.
    for turn in 0..6 {
        for rank in 0..2 {
            run(rank, &kept[rank][(turn + rank * turn / 2) % 2]);
        }
    }
    for rank in 0..2 {
        kept[rank].iter().for_each(OwnStream::wait);
        groups[rank].check().unwrap();
        assert_eq!(buffers[rank].read(), 256_f32.to_le_bytes().repeat(64));
    }
}

#[test]
fn requests_end_when_they_are_executed_and_batches_when_they_are_enqueued() {
    if !on_stub_or_card("calls::requests_end_when_they_are_executed_and_batches_when_they_are_enqueued") {
        return;
    }
    let groups = world(&[0, 1], "").unwrap();
    let streams = [OwnStream::new(0), OwnStream::new(1)];
    let buffers = [0, 1].map(|device| Buffer::with(device, &1_f32.to_le_bytes().repeat(64)));
    let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64);
    let on = |rank: usize| call(what, buffers[rank].address, buffers[rank].address, &streams[rank]);
    let first = groups[0].start(on(0), Timeout::Default).unwrap();
    assert_eq!(first.test().unwrap(), tutti::communicator::Progress::Pending, "its peer has not come");
    let second = groups[1].start(on(1), Timeout::Default).unwrap();
    for request in [first, second] {
        assert_eq!(request.wait(Timeout::Default).unwrap(), tutti::communicator::Progress::Done);
    }
    assert_eq!(buffers[0].read(), 2_f32.to_le_bytes().repeat(64));
    batch::begin().unwrap();
    for (rank, group) in groups.iter().enumerate() {
        group.run(on(rank), Timeout::Default).unwrap();
    }
    batch::end().unwrap();
    streams.iter().for_each(OwnStream::wait);
    assert_eq!(buffers[1].read(), 4_f32.to_le_bytes().repeat(64));
}

#[test]
fn two_ranks_on_one_stream_are_refused_before_they_wait_for_each_other() {
    if !on_stub_or_card("calls::two_ranks_on_one_stream_are_refused_before_they_wait_for_each_other") {
        return;
    }
    let groups = world(&[0, 0], "").unwrap();
    let (stream, other) = (OwnStream::new(0), OwnStream::new(0));
    let buffers = [0, 1].map(|_| Buffer::with(0, &1_f32.to_le_bytes().repeat(64)));
    let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64);
    let run = |rank: usize, stream: &OwnStream| {
        groups[rank].run(call(what, buffers[rank].address, buffers[rank].address, stream), Timeout::Default)
    };
    run(0, &stream).unwrap();
    let error = run(1, &stream).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
    assert!(error.to_string().contains("ranks 0 and 1 share CUDA device 0"), "{error}");
    run(1, &other).unwrap();
    for stream in [&stream, &other] {
        stream.wait();
    }
    assert_eq!(buffers[1].read(), 2_f32.to_le_bytes().repeat(64));
}

#[test]
fn two_ranks_are_not_captured_on_one_stream_either() {
    if !on_stub_or_card("calls::two_ranks_are_not_captured_on_one_stream_either") {
        return;
    }
    let groups = world(&[0, 0], "").unwrap();
    let (stream, other) = (OwnStream::new(0), OwnStream::new(0));
    let buffers = [0, 1].map(|_| Buffer::with(0, &1_f32.to_le_bytes().repeat(64)));
    let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64);
    let run = |rank: usize, stream: &OwnStream| {
        groups[rank].run(call(what, buffers[rank].address, buffers[rank].address, stream), Timeout::Default)
    };
    // Eager calls are counted by themselves.
    run(0, &other).unwrap();
    let graph = stream.capture(|| {
        run(0, &stream).unwrap();
        let error = run(1, &stream).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.to_string().contains("ranks 0 and 1 share CUDA device 0"), "{error}");
    });
    run(1, &stream).unwrap();
    let peer = other.capture(|| run(1, &other).unwrap());
    stream.replay(&graph);
    other.replay(&peer);
    for stream in [&stream, &other] {
        stream.wait();
    }
    groups.iter().for_each(|group| group.check().unwrap());
    buffers.iter().for_each(|buffer| assert_eq!(buffer.read(), 4_f32.to_le_bytes().repeat(64)));
}

#[test]
fn the_default_stream_has_two_names_and_that_of_a_thread_is_another_in_every_thread() {
    // Ranks that share a device must not use the legacy stream, so nothing is launched here.
    let test = "calls::the_default_stream_has_two_names_and_that_of_a_thread_is_another_in_every_thread";
    if !on_stub(test, &[("STUB_NO_LAUNCH", "1")]) {
        return;
    }
    const PER_THREAD: usize = 2;
    let groups = world(&[0, 0], "push").unwrap();
    let buffers = [0, 1].map(|_| Buffer::new(0, 256));
    let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64);
    // How often the call waits for the one before it.
    let run = |rank: usize, stream: usize| {
        let (before, address) = (calls("cuStreamWaitEvent"), buffers[rank].address);
        let call = Call::new(what, address as *const u8, address as *mut u8);
        groups[rank].run(Call { stream: stream as _, ..call }, Timeout::Default)?;
        Ok(calls("cuStreamWaitEvent") - before)
    };
    let run_elsewhere = |rank: usize, stream: usize| -> tutti::error::Result<u64> {
        std::thread::scope(|scope| scope.spawn(|| run(rank, stream)).join().unwrap())
    };
    assert_eq!(run(0, 0).unwrap(), 0);
    let refused: tutti::error::Error = run(1, 1).unwrap_err();
    assert_eq!(refused.status(), Status::InvalidArgument, "it is the same stream: {refused}");
    assert_eq!(run(1, PER_THREAD).unwrap(), 0);
    assert_eq!(run(0, 1).unwrap(), 0, "the same stream as before");
    assert_eq!(run_elsewhere(1, PER_THREAD).unwrap(), 1, "another stream than before");
    assert_eq!(run(0, PER_THREAD).unwrap(), 1);
    assert_eq!(run(1, PER_THREAD).unwrap_err().status(), Status::InvalidArgument, "both on this thread's");
    assert_eq!(run_elsewhere(1, PER_THREAD).unwrap(), 1, "each thread has a stream of its own");
}

#[test]
fn a_deadline_is_told_only_where_all_calls_had_the_same() {
    if !on_stub_or_card("calls::a_deadline_is_told_only_where_all_calls_had_the_same") {
        return;
    }
    let groups = world(&[0, 1], "").unwrap();
    let (stream, buffer) = (OwnStream::new(0), Buffer::new(0, 256));
    let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64);
    for ms in [300, 3_600_000] {
        let call = call(what, buffer.address, buffer.address, &stream);
        groups[0].run(call, Timeout::After(std::time::Duration::from_millis(ms))).unwrap();
    }
    stream.wait();
    let error = groups[0].check().unwrap_err();
    assert_eq!(error.status(), Status::Timeout, "{error}");
    assert!(
        error.to_string().contains("rank 1 did not arrive on the device before the deadline of the call"),
        "{error}"
    );
}

#[test]
fn the_cpu_sibling_is_a_group_of_its_own() {
    if !on_stub_or_card("calls::the_cpu_sibling_is_a_group_of_its_own") {
        return;
    }
    let groups = world(&[0, 1], "").unwrap();
    let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 4);
    std::thread::scope(|scope| {
        for group in &groups {
            scope.spawn(move || {
                let cpu = group.cpu().unwrap();
                assert_eq!((cpu.name(), cpu.device()), ("world/cpu", None));
                let mut data = [1_f32; 4];
                let address = data.as_mut_ptr().cast::<u8>();
                cpu.run(tutti::communicator::Call::new(what, address, address), Timeout::Default).unwrap();
                assert_eq!(data, [2.0; 4]);
                group.sync(Timeout::Default).unwrap();
            });
        }
    });
}

#[test]
fn what_the_driver_refuses_is_told_with_its_code_and_name() {
    if !on_stub("calls::what_the_driver_refuses_is_told_with_its_code_and_name", &[]) {
        return;
    }
    let groups = world(&[0, 1], "").unwrap();
    let (stream, buffer) = (OwnStream::new(0), Buffer::new(0, 256));
    let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64);
    fail_next("cuLaunchKernelEx", 700);
    let error = groups[0].run(call(what, buffer.address, buffer.address, &stream), Timeout::Default).unwrap_err();
    assert_eq!(error.status(), Status::CudaError);
    assert!(error.to_string().contains("cuLaunchKernelEx returned 700 CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
    assert_eq!(groups[1].check().unwrap_err().status(), Status::CudaError, "all ranks hear of it");
}
