//! Messages from rank to rank of a CUDA group, which pass through the host.

use std::{sync::Arc, time::Duration};

use tutti::{
    communicator::{Letter, Part, Progress, Uneven},
    config::Timeout,
    cuda::device::Device,
    dispatch::Format,
    dtype::{Collective, DType, Op},
    error::Status,
    group::{Group, batch},
};

use crate::{
    machine::{Buffer, OwnStream, call, content, descriptor, on_all, world},
    stub::{on_stub_or_card, ordinal},
};

fn send(buffer: &Buffer, bytes: usize, peer: u32, stream: &OwnStream) -> Letter {
    // SAFETY: the buffer stays until the letter is over.
    let letter = unsafe { Letter::send(peer, 0, DType::Uint8, buffer.address as *const u8, bytes as u64) };
    letter.on_stream(stream.handle)
}

fn receive(buffer: &Buffer, bytes: usize, peer: u32, stream: &OwnStream) -> Letter {
    // SAFETY: as above.
    let letter = unsafe { Letter::receive(peer, 0, DType::Uint8, buffer.address as *mut u8, bytes as u64) };
    letter.on_stream(stream.handle)
}

/// Copies on a stream, behind what is on it.
fn copy(device: i32, to: &Buffer, from: &Buffer, bytes: usize, stream: &OwnStream) {
    let device = Device::open(ordinal(device)).unwrap();
    let _entered = device.enter().unwrap();
    // SAFETY: both buffers are as long as that.
    unsafe { device.driver.memcpy_async(to.address, from.address, bytes, stream.handle) }.unwrap();
}

#[test]
fn a_message_is_what_its_stream_has_made_and_is_there_for_what_follows() {
    if !on_stub_or_card("letters::a_message_is_what_its_stream_has_made_and_is_there_for_what_follows") {
        return;
    }
    const MOST: usize = 3 << 20;
    let groups = world(&[0, 1], "").unwrap();
    let streams = [0, 1].map(OwnStream::new);
    let made = [Buffer::new(0, MOST), Buffer::new(1, MOST)];
    let travels = [Buffer::new(0, MOST), Buffer::new(1, MOST)];
    let used = Buffer::new(1, MOST);
    for (turn, bytes) in [4, 0, 9000, MOST, 1, 100_000, 4].into_iter().enumerate() {
        let message = content(turn, bytes);
        made[0].write(&message);
        made[1].write(&[0; 16]);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                copy(0, &travels[0], &made[0], bytes, &streams[0]);
                groups[0].exchange(&[send(&travels[0], bytes, 1, &streams[0])], Timeout::Default).unwrap();
            });
            let room = receive(&travels[1], MOST, 0, &streams[1]);
            assert_eq!(groups[1].exchange(&[room], Timeout::Default).unwrap(), bytes as u64);
            copy(1, &used, &travels[1], bytes, &streams[1]);
        });
        streams.iter().for_each(OwnStream::wait);
        assert!(used.read()[..bytes] == message, "{bytes} bytes");
    }
    groups.iter().for_each(|group| group.check().unwrap());
}

#[test]
fn messages_keep_their_order_whatever_streams_they_leave_by() {
    if !on_stub_or_card("letters::messages_keep_their_order_whatever_streams_they_leave_by") {
        return;
    }
    const BYTES: usize = 20_000;
    let groups = world(&[0, 1, 0], "push,staged").unwrap();
    let streams = [0, 1, 0].map(OwnStream::new);
    let other = OwnStream::new(0);
    let calls: Vec<_> = [0, 1, 0].into_iter().map(|device| Buffer::new(device, 256)).collect();
    let out: Vec<_> = (0..3).map(|number| Buffer::with(0, &content(number, BYTES))).collect();
    let room: Vec<_> = [1, 1, 0].into_iter().map(|device| Buffer::new(device, BYTES)).collect();
    let sum = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64);
    let all_reduce = |rank: usize| {
        let call = call(sum, calls[rank].address, calls[rank].address, &streams[rank]);
        groups[rank].run(call, Timeout::Default).unwrap();
    };
    // The first message lies behind a sum that waits for all ranks; the others could leave at once.
    all_reduce(0);
    let first = groups[0].post(send(&out[0], BYTES, 1, &streams[0]), Timeout::Default).unwrap();
    let second = groups[0].post(send(&out[1], BYTES, 1, &other), Timeout::Default).unwrap();
    let elsewhere = groups[0].post(send(&out[2], BYTES, 2, &other), Timeout::Default).unwrap();
    let received = |rank: usize, room: &Buffer| {
        groups[rank].post(receive(room, BYTES, 0, &streams[rank]), Timeout::Default).unwrap()
    };
    let (one, two) = (received(1, &room[0]), received(1, &room[1]));
    let third = received(2, &room[2]);
    assert_eq!(third.wait(Timeout::Default).unwrap(), Progress::Done, "what goes to another rank does not wait");
    assert_eq!([one.test(), two.test()].map(Result::unwrap), [Progress::Pending; 2]);
    all_reduce(1);
    all_reduce(2);
    for request in [&one, &two, &first, &second, &elsewhere] {
        assert_eq!(request.wait(Timeout::Default).unwrap(), Progress::Done);
    }
    for (number, room) in room.iter().enumerate() {
        assert!(room.read() == content(number, BYTES), "message {number}");
    }
}

#[test]
fn ranks_pass_messages_around_and_to_themselves() {
    if !on_stub_or_card("letters::ranks_pass_messages_around_and_to_themselves") {
        return;
    }
    const BYTES: usize = 700_000;
    let groups = world(&[0, 1, 0], "").unwrap();
    std::thread::scope(|scope| {
        for group in &groups {
            scope.spawn(|| {
                let (rank, size, device) = (group.rank(), group.size(), group.device().unwrap());
                let stream = OwnStream::new(device);
                let out = Buffer::with(device, &content(rank as usize, BYTES));
                let rooms = [(); 2].map(|()| Buffer::new(device, BYTES));
                let (next, last) = ((rank + 1) % size, (rank + size - 1) % size);
                let ring = [send(&out, BYTES, next, &stream), receive(&rooms[0], BYTES, last, &stream)];
                assert_eq!(group.exchange(&ring, Timeout::Default).unwrap(), BYTES as u64);
                batch::begin().unwrap();
                let to_oneself = [receive(&rooms[1], BYTES, rank, &stream), send(&out, BYTES, rank, &stream)];
                group.exchange(&to_oneself, Timeout::Default).unwrap();
                batch::end().unwrap();
                stream.wait();
                assert!(rooms[0].read() == content(last as usize, BYTES));
                assert!(rooms[1].read() == content(rank as usize, BYTES));
                group.check().unwrap();
            });
        }
    });
}

#[test]
fn what_cannot_be_sent_is_refused_and_what_does_not_fit_harms_nothing_else() {
    if !on_stub_or_card("letters::what_cannot_be_sent_is_refused_and_what_does_not_fit_harms_nothing_else") {
        return;
    }
    let groups = world(&[0, 1], "").unwrap();
    let streams = [0, 1].map(OwnStream::new);
    let buffers = [0, 1].map(|device| Buffer::new(device, 4096));
    let refused = |letter: Letter| groups[0].exchange(&[letter], Timeout::Default).unwrap_err();

    let mut host = [0_u8; 64];
    // SAFETY: the array stays until the letter is refused.
    let of_the_host = unsafe { Letter::send(1, 0, DType::Uint8, host.as_mut_ptr(), 64) }.on_stream(streams[0].handle);
    let error = refused(of_the_host);
    assert!(error.status() == Status::InvalidArgument && error.to_string().contains("memory of the host"), "{error}");
    let error = refused(send(&buffers[0], 4096, 2, &streams[0]));
    assert_eq!(error.status(), Status::InvalidArgument, "{error}");
    let mut captured = None;
    let graph = streams[0].capture(|| captured = Some(refused(send(&buffers[0], 64, 1, &streams[0]))));
    assert_eq!(captured.unwrap().status(), Status::Unsupported);
    graph.destroy();

    let sends = groups[0].post(send(&buffers[0], 4096, 1, &streams[0]), Timeout::Default).unwrap();
    let too_small = groups[1].exchange(&[receive(&buffers[1], 100, 0, &streams[1])], Timeout::Default).unwrap_err();
    assert_eq!(too_small.status(), Status::Mismatch, "{too_small}");
    // Whether the sender was done with it by then is open.
    let _ = sends.wait(Timeout::Default);
    exchange_well(&groups, &buffers, &streams);

    let told = groups[0].explain(&letter_descriptor(), Format::Text).unwrap();
    assert!(told.contains("served by staged/post_through_host"), "{told}");
}

fn letter_descriptor() -> tutti::communicator::Descriptor {
    descriptor(Collective::Send, DType::Uint8, Op::Sum, 0)
}

fn exchange_well(groups: &[Arc<Group>], buffers: &[Buffer; 2], streams: &[OwnStream; 2]) {
    buffers[0].write(&[7; 4096]);
    let sends = groups[0].post(send(&buffers[0], 4096, 1, &streams[0]), Timeout::Default).unwrap();
    let came = groups[1].exchange(&[receive(&buffers[1], 4096, 0, &streams[1])], Timeout::Default);
    assert_eq!(came.unwrap(), 4096);
    assert_eq!(sends.wait(Timeout::Default).unwrap(), Progress::Done);
    streams[1].wait();
    assert!(buffers[1].read() == [7; 4096]);
}

#[test]
fn a_message_that_its_own_stream_keeps_is_not_its_receivers_fault() {
    if !on_stub_or_card("letters::a_message_that_its_own_stream_keeps_is_not_its_receivers_fault") {
        return;
    }
    let groups = world(&[0, 1], "push,staged").unwrap();
    let streams = [0, 1].map(OwnStream::new);
    let buffers = [0, 1].map(|device| Buffer::new(device, 4096));
    let sum = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64);
    let waits = call(sum, buffers[0].address, buffers[0].address, &streams[0]);
    groups[0].run(waits, Timeout::Default).unwrap();
    let receives = groups[1].post(receive(&buffers[1], 4096, 0, &streams[1]), Timeout::Default).unwrap();
    let soon = Timeout::After(Duration::from_millis(300));
    let sends = groups[0].post(send(&buffers[0], 4096, 1, &streams[0]), soon).unwrap();
    for request in [sends, receives] {
        let error = request.wait(Timeout::Default).unwrap_err();
        assert_eq!(error.status(), Status::Timeout);
        assert!(error.to_string().contains("on the stream of rank 0 did not end within 0.3 s"), "{error}");
    }
    assert_eq!(groups[1].failure().unwrap().rank, Some(0));
    streams.iter().for_each(OwnStream::wait);
}

#[test]
fn parts_of_a_v_form_may_lie_in_several_allocations() {
    if !on_stub_or_card("letters::parts_of_a_v_form_may_lie_in_several_allocations") {
        return;
    }
    const BYTES: usize = 4096;
    let groups = world(&[0, 1], "").unwrap();
    on_all(&groups, |group| {
        let (rank, device) = (group.rank() as usize, group.device().unwrap());
        let stream = OwnStream::new(device);
        let mut apart = [0, 1].map(|_| Buffer::new(device, BYTES));
        apart.sort_by_key(|buffer| buffer.address);
        for (to, buffer) in apart.iter().enumerate() {
            buffer.write(&content(10 * rank + to, BYTES));
        }
        let room = Buffer::new(device, 2 * BYTES);
        let distance = (apart[1].address - apart[0].address) as usize;
        let parts = |second: usize| [0, second].map(|start| Part { start, bytes: BYTES }).to_vec();
        let form = Uneven {
            descriptor: descriptor(Collective::AllToAllV, DType::Uint8, Op::Sum, 0),
            send: apart[0].address as *const u8,
            send_parts: parts(distance),
            recv: room.address as *mut u8,
            recv_parts: parts(BYTES),
            stream: stream.handle,
        };
        group.run_uneven(form, Timeout::Default).unwrap();
        stream.wait();
        assert!(room.read() == [content(rank, BYTES), content(10 + rank, BYTES)].concat(), "rank {rank}");
    });
}

#[test]
fn an_abort_ends_messages_and_what_the_device_still_copies_harms_nobody() {
    if !on_stub_or_card("letters::an_abort_ends_messages_and_what_the_device_still_copies_harms_nobody") {
        return;
    }
    const BYTES: usize = 50_000;
    let groups = world(&[0, 1], "push,staged").unwrap();
    let streams = [0, 1].map(OwnStream::new);
    let buffers = [0, 1].map(|device| Buffer::with(device, &[1; BYTES]));
    let sum = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64);
    let waits = call(sum, buffers[0].address, buffers[0].address, &streams[0]);
    groups[0].run(waits, Timeout::Default).unwrap();
    // Behind a kernel that waits for rank 1, which never comes.
    let sends = groups[0].post(send(&buffers[0], BYTES, 1, &streams[0]), Timeout::Default).unwrap();
    let receives = groups[1].post(receive(&buffers[1], BYTES, 0, &streams[1]), Timeout::Default).unwrap();
    assert_eq!(sends.test().unwrap(), Progress::Pending);
    groups[1].abort();
    for request in [sends, receives] {
        assert_eq!(request.wait(Timeout::Default).unwrap_err().status(), Status::Aborted);
    }
    groups.iter().for_each(|group| group.leave());
    drop(groups);
    streams.iter().for_each(OwnStream::wait);

    let groups = world(&[0, 1], "").unwrap();
    let small = [0, 1].map(|device| Buffer::new(device, 4096));
    exchange_well(&groups, &small, &streams);
}
