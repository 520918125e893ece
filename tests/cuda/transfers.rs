//! Transfers of CUDA groups: tensors on devices and on the host, what is behind which stream, and what is refused.

use std::{
    ffi::c_void,
    sync::Arc,
    time::{Duration, Instant},
};

use tutti::{
    communicator::Progress,
    config::{GroupOptions, Timeout},
    dtype::{Collective, DType, Op},
    error::Status,
    group::Group,
    transfer::{Item, Layout, Mesh, Options, Phase, Placement, Plan, Side, Transfer},
};

use crate::{
    machine::{Buffer, OwnStream, call, content, descriptor, world, world_with},
    random::{self, ANYTHING, Random, seeds},
    simulation::World,
    stub::{calls, fail_next, on_stub, on_stub_or_card},
};

/// No transfer here may take longer.
const WATCHDOG: Duration = Duration::from_secs(60);

/// Random transfers in every world, each carried out twice.
const CASES: u64 = 40;

/// Polls the transfers in random order until all are over.
fn drive(transfers: &mut [Transfer], random: &mut Random) {
    let begin = Instant::now();
    let mut left: Vec<usize> = (0..transfers.len()).collect();
    while !left.is_empty() {
        assert!(begin.elapsed() < WATCHDOG, "ranks {left:?} hang: {:?}", transfers[left[0]].standing());
        let at = random.below(left.len() as u64) as usize;
        if transfers[left[at]].poll().unwrap() == Progress::Done {
            left.swap_remove(at);
        }
    }
}

/// One tensor, from some ranks to others.
fn plan_of(shape: &[u64], from: (&[u32], DType), to: (&[u32], DType), world: u32) -> Arc<Plan> {
    let layout = |(ranks, dtype): (&[u32], DType)| Layout {
        dtype,
        mesh: Mesh::new(&[ranks.len() as u64], ranks).unwrap(),
        placements: vec![Placement::shard(0)],
    };
    let (source, target) = (layout(from), layout(to));
    let item = Item { name: "tensor".into(), shape: shape.to_vec(), source, target, wire: None };
    Arc::new(Plan::new(&[item], &Options::new(world)).unwrap())
}

fn bind(transfer: &mut Transfer, side: Side, address: u64, strides: Option<&[i64]>) {
    // SAFETY: the caller's buffer stays until the transfer is over, and nobody else uses it meanwhile.
    unsafe { transfer.bind(0, side, address as *mut u8, strides) }.unwrap();
}

fn transfers(plan: &Arc<Plan>, groups: &[Arc<Group>]) -> Vec<Transfer> {
    groups.iter().map(|group| Transfer::new(plan.clone(), group.clone()).unwrap()).collect()
}

/// Random transfers whose tensors lie on devices, or on the host, as dice decide.
fn carry_out(devices: &[i32], first: u64) {
    let groups = world(devices, "").unwrap();
    seeds(first, CASES, |random| {
        let (items, options) = random::transfer_in(random, ANYTHING, devices.len() as u32);
        let plan = Arc::new(Plan::new(&items, &options).unwrap());
        let mut world = World::new(&items, &plan, random);
        let before = world.snapshot();
        let mut transfers = transfers(&plan, &groups);
        let mut buffers = Vec::new();
        for (side, memories) in [(Side::Source, &mut world.sources), (Side::Target, &mut world.targets)] {
            for ((item, rank), memory) in memories.iter_mut() {
                let (host, start) = (memory.address(), memory.bytes.as_ptr() as usize);
                let mut address = host as u64;
                if random.chance(75) {
                    let buffer = Buffer::with(devices[*rank as usize], &memory.bytes);
                    address = buffer.address + (host as usize - start) as u64;
                    buffers.push((side, (*item, *rank), buffer));
                }
                let transfer = &mut transfers[*rank as usize];
                // SAFETY: the memory spans the view of these strides, and stays until the transfer is over.
                unsafe { transfer.bind(*item, side, address as *mut u8, memory.strides.as_deref()) }.unwrap();
            }
        }
        for _ in 0..2 {
            transfers.iter_mut().for_each(|transfer| transfer.start().unwrap());
            drive(&mut transfers, random);
        }
        for (side, key, buffer) in &buffers {
            let memories = if *side == Side::Source { &mut world.sources } else { &mut world.targets };
            memories.get_mut(key).unwrap().bytes.copy_from_slice(&buffer.read());
        }
        world.check_contents();
        assert!(before == world.snapshot(), "a source was written");
        for transfer in &transfers {
            let standing = transfer.standing();
            assert_eq!((standing.phase, standing.bytes.0), (Phase::Done, standing.bytes.1));
            for item in 0..plan.item_count() {
                let (written, all) = transfer.written(item).unwrap();
                assert_eq!(written, all, "tensor {item}");
            }
        }
    });
}

#[test]
fn tensors_on_devices_and_on_the_host_arrive() {
    if on_stub_or_card("transfers::tensors_on_devices_and_on_the_host_arrive") {
        carry_out(&[0, 1, 0], 900_000);
        carry_out(&[0, 1], 910_000);
        carry_out(&[0, 1, 0, 1, 0], 920_000);
    }
}

#[test]
fn nothing_is_read_before_what_is_on_the_stream() {
    if !on_stub_or_card("transfers::nothing_is_read_before_what_is_on_the_stream") {
        return;
    }
    let groups = world(&[0, 1], "push").unwrap();
    let plan = plan_of(&[64], (&[0], DType::Float32), (&[1], DType::Float32), 2);
    let streams = [OwnStream::new(0), OwnStream::new(1)];
    let buffers = [0, 1].map(|device| Buffer::with(device, &1_f32.to_le_bytes().repeat(64)));
    let target = Buffer::new(1, 256);
    let mut transfers = transfers(&plan, &groups);
    bind(&mut transfers[0], Side::Source, buffers[0].address, None);
    bind(&mut transfers[1], Side::Target, target.address, None);
    let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64);
    let reduce = |rank: usize| {
        let address = buffers[rank].address;
        groups[rank].run(call(what, address, address, &streams[rank]), Timeout::Default).unwrap();
    };
    reduce(0); // its kernel waits for rank 1, and the transfer for the kernel
    transfers[0].start_behind(streams[0].handle).unwrap();
    transfers[1].start_behind(OwnStream::new(1).handle).unwrap();
    for _ in 0..2000 {
        assert!(transfers.iter_mut().all(|transfer| transfer.poll().unwrap() != Progress::Done));
    }
    assert_eq!((transfers[0].standing().phase, transfers[0].standing().buckets), (Phase::Moving, (0, 1)));
    reduce(1);
    drive(&mut transfers, &mut Random::new(1));
    assert_eq!(target.read(), 2_f32.to_le_bytes().repeat(64));
    streams.iter().for_each(OwnStream::wait);
}

#[test]
fn a_stream_that_does_not_end_is_a_timeout_that_says_so() {
    if !on_stub_or_card("transfers::a_stream_that_does_not_end_is_a_timeout_that_says_so") {
        return;
    }
    // Enough to make a group on a busy machine.
    let timeout = Timeout::After(Duration::from_secs(4));
    let groups = world_with(&[0, 1], GroupOptions { timeout, ..GroupOptions::default() }).unwrap();
    let others = world(&[0, 1], "push").unwrap();
    // It stays on rank 0, so that rank 1 waits for nothing.
    let plan = plan_of(&[64], (&[0], DType::Float32), (&[0], DType::Float32), 2);
    let streams = [OwnStream::new(0), OwnStream::new(1)];
    let buffers = [0, 1].map(|device| Buffer::new(device, 256));
    let target = Buffer::new(0, 256);
    let mut transfers = transfers(&plan, &groups);
    bind(&mut transfers[0], Side::Source, buffers[0].address, None);
    bind(&mut transfers[0], Side::Target, target.address, None);
    let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64);
    let reduce = |rank: usize| {
        let address = buffers[rank].address;
        others[rank].run(call(what, address, address, &streams[rank]), Timeout::Default).unwrap();
    };
    reduce(0);
    transfers[0].start_behind(streams[0].handle).unwrap();
    transfers[1].start().unwrap();
    let begin = Instant::now();
    let error = loop {
        let _ = transfers[1].poll();
        match transfers[0].poll() {
            Err(error) => break error,
            Ok(progress) => assert!(progress != Progress::Done && begin.elapsed() < WATCHDOG),
        }
    };
    reduce(1);
    streams.iter().for_each(OwnStream::wait);
    assert_eq!(error.status(), Status::Timeout);
    assert!(error.to_string().contains("what was on the stream before a transfer"), "{error}");
    for group in &groups {
        assert_eq!(group.check().unwrap_err().status(), Status::Timeout, "all ranks hear of it");
    }
}

#[test]
fn what_stays_on_a_device_does_not_pass_through_the_host() {
    if !on_stub("transfers::what_stays_on_a_device_does_not_pass_through_the_host", &[]) {
        return;
    }
    let groups = world(&[0, 1], "").unwrap();
    let plan = plan_of(&[64, 16], (&[0, 1], DType::Int32), (&[0, 1], DType::Int32), 2);
    let mut transfers = transfers(&plan, &groups);
    let data: Vec<_> = (0..2).map(|rank| content(rank, 32 * 64)).collect();
    let sources: Vec<_> = (0..2).map(|rank| Buffer::with(rank as i32, &data[rank])).collect();
    let targets: Vec<_> = (0..2).map(|rank| Buffer::with(rank, &[0xa5; 32 * 80])).collect();
    for rank in 0..2 {
        bind(&mut transfers[rank], Side::Source, sources[rank].address, None);
        bind(&mut transfers[rank], Side::Target, targets[rank].address, Some(&[20, 1]));
    }
    let before = ["cuMemHostRegister_v2", "cuMemcpyAsync", "cuMemcpy2DAsync_v2"].map(calls);
    transfers.iter_mut().for_each(|transfer| transfer.start().unwrap());
    drive(&mut transfers, &mut Random::new(1));
    let after = ["cuMemHostRegister_v2", "cuMemcpyAsync", "cuMemcpy2DAsync_v2"].map(calls);
    assert_eq!([0, 1, 2].map(|at| after[at] - before[at]), [0, 0, 2], "one copy of rows on each rank");
    for rank in 0..2 {
        for (row, found) in targets[rank].read().chunks(80).enumerate() {
            assert_eq!(found[..64], data[rank][row * 64..][..64]);
            assert_eq!(found[64..], [0xa5; 16]);
        }
    }
}

#[test]
fn what_is_staged_stays_within_the_cap_also_where_it_is_cast() {
    if !on_stub_or_card("transfers::what_is_staged_stays_within_the_cap_also_where_it_is_cast") {
        return;
    }
    let groups = world(&[0, 1], "").unwrap();
    let layout =
        |rank, dtype| Layout { dtype, mesh: Mesh::new(&[1], &[rank]).unwrap(), placements: vec![Placement::Replicate] };
    let (source, target) = (layout(0, DType::Float32), layout(1, DType::Bfloat16));
    let item = Item { name: "tensor".into(), shape: vec![100_000], source, target, wire: None };
    // Four buckets and the elements before they are cast would be 12 units of 8 KiB; nine are allowed.
    let options = Options { bucket_bytes: 8192, staging_bytes: 9 * 8192, in_flight: 4, ..Options::new(2) };
    let plan = Arc::new(Plan::new(&[item], &options).unwrap());
    assert_eq!(plan.in_flight(), 4);
    let mut transfers = transfers(&plan, &groups);
    let source = Buffer::with(0, &3_f32.to_le_bytes().repeat(100_000));
    let target = Buffer::new(1, 200_000);
    bind(&mut transfers[0], Side::Source, source.address, None);
    bind(&mut transfers[1], Side::Target, target.address, None);
    transfers.iter_mut().for_each(|transfer| transfer.start().unwrap());
    drive(&mut transfers, &mut Random::new(1));
    assert_eq!(target.read(), [0x40, 0x40].repeat(100_000));
    for transfer in &transfers {
        assert!(transfer.standing().staged <= 9 * 8192, "{:?}", transfer.standing());
    }
}

#[test]
fn what_cannot_be_a_transfers_memory_or_stream_is_refused_and_changes_nothing() {
    if !on_stub("transfers::what_cannot_be_a_transfers_memory_or_stream_is_refused_and_changes_nothing", &[]) {
        return;
    }
    let groups = world(&[0, 1], "").unwrap();
    let plan = plan_of(&[64], (&[0], DType::Float32), (&[1], DType::Float32), 2);
    let mut transfers = transfers(&plan, &groups);
    let (source, short, target) = (Buffer::with(0, &content(3, 256)), Buffer::new(0, 255), Buffer::new(1, 256));
    for (address, says) in [(target.address, "memory of CUDA device 1"), (short.address, "but the allocation ends")] {
        // SAFETY: it is refused.
        let error = unsafe { transfers[0].bind(0, Side::Source, address as *mut u8, None) }.unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.to_string().contains(says), "{error}");
    }
    bind(&mut transfers[0], Side::Source, source.address, None);
    bind(&mut transfers[1], Side::Target, target.address, None);
    let (stream, foreign) = (OwnStream::new(0), OwnStream::new(1));
    let error = transfers[0].start_behind(foreign.handle).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument, "{error}");
    stream.capture(|| {
        let error = transfers[0].start_behind(stream.handle).unwrap_err();
        assert_eq!(error.status(), Status::Unsupported, "{error}");
    });
    transfers[0].start_behind(stream.handle).unwrap();
    transfers[1].start_behind(foreign.handle).unwrap();
    drive(&mut transfers, &mut Random::new(1));
    assert_eq!(target.read(), content(3, 256));

    let cpu = Group::world_local(2, None, tutti::config::WorldOptions::default()).unwrap();
    let mut transfer = Transfer::new(plan, cpu[0].clone()).unwrap();
    let mut memory = [0_f32; 64];
    bind(&mut transfer, Side::Source, memory.as_mut_ptr() as u64, None);
    let error = transfer.start_behind(stream.handle.cast::<c_void>()).unwrap_err();
    assert!(error.to_string().contains("on no stream"), "{error}");
}

#[test]
fn a_copy_that_the_driver_refuses_fails_the_group_on_all_ranks() {
    if !on_stub("transfers::a_copy_that_the_driver_refuses_fails_the_group_on_all_ranks", &[]) {
        return;
    }
    for (side, rank) in [(Side::Source, 0), (Side::Target, 1)] {
        let groups = world(&[0, 1], "").unwrap();
        let plan = plan_of(&[64], (&[0], DType::Float32), (&[1], DType::Float32), 2);
        let mut transfers = transfers(&plan, &groups);
        let (device, mut host) = (Buffer::with(rank, &content(3, 256)), content(3, 256));
        bind(&mut transfers[rank as usize], side, device.address, None);
        let other = if side == Side::Source { Side::Target } else { Side::Source };
        bind(&mut transfers[1 - rank as usize], other, host.as_mut_ptr() as u64, None);
        transfers.iter_mut().for_each(|transfer| transfer.start().unwrap());
        fail_next("cuMemcpyAsync", 700);
        let begin = Instant::now();
        let at = rank as usize;
        let error = loop {
            assert!(begin.elapsed() < WATCHDOG);
            // The sender may be done before the receiver fails.
            let _ = transfers[1 - at].poll();
            match transfers[at].poll() {
                Err(error) => break error,
                Ok(progress) => assert_ne!(progress, Progress::Done),
            }
        };
        assert_eq!(error.status(), Status::CudaError);
        assert!(error.to_string().contains("cuMemcpyAsync returned 700 CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
        for group in &groups {
            assert_eq!(group.check().unwrap_err().status(), Status::CudaError, "all ranks hear of it");
        }
        assert_eq!(transfers[at].standing().phase, Phase::Failed);
    }
}
