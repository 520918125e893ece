//! What a capture of one thread forbids to others, which is the driver's rule and the stub's too; and that the library,
//! which may be called at any time, never breaks it.

use tutti::{
    communicator::Progress,
    config::Timeout,
    dtype::{Collective, DType, Op},
    group::free_memory,
};

use crate::{
    machine::{Buffer, GLOBAL, OwnStream, RELAXED, THREAD_LOCAL, call, descriptor, driver, in_mode, world},
    stub::on_stub_or_card,
};

/// What the driver says to another thread, whose mode is this, that asks for memory.
fn allocate_elsewhere(mode: i32) -> i32 {
    let allocate = || {
        // Whatever made the device's context current, the mode is the one that is asked for.
        let (device, mut address) = (tutti::cuda::device::Device::open(0).unwrap(), 0);
        let _entered = device.enter().unwrap();
        // SAFETY: `address` is writable.
        let allocated = in_mode(mode, || unsafe { driver().mem_alloc(&mut address, 256) });
        if allocated.is_ok() {
            // SAFETY: nobody else has it.
            in_mode(RELAXED, || unsafe { driver().mem_free(address) }).unwrap();
        }
        allocated.map_or_else(|error| error.code, |()| 0)
    };
    std::thread::scope(|scope| scope.spawn(allocate).join().unwrap())
}

#[test]
fn a_global_capture_is_lost_to_an_allocation_of_a_thread_that_is_not_relaxed() {
    if !on_stub_or_card("modes::a_global_capture_is_lost_to_an_allocation_of_a_thread_that_is_not_relaxed") {
        return;
    }
    const SUPPORTED: i32 = 0;
    const UNSUPPORTED: i32 = 900;
    const INVALIDATED: i32 = 901;
    let (stream, buffer) = (OwnStream::new(0), Buffer::new(0, 256));
    for (capture, other, says) in [
        (GLOBAL, GLOBAL, UNSUPPORTED),
        (GLOBAL, THREAD_LOCAL, SUPPORTED),
        (GLOBAL, RELAXED, SUPPORTED),
        (THREAD_LOCAL, GLOBAL, SUPPORTED),
    ] {
        let captured = stream.capture_in(capture, || {
            // SAFETY: the buffer lives as long as the test.
            unsafe { driver().memset_async(buffer.address, 7, 256, stream.handle) }.unwrap();
            assert_eq!(allocate_elsewhere(other), says, "mode {other} beside a capture of mode {capture}");
        });
        match says {
            SUPPORTED => captured.unwrap().destroy(),
            _ => assert_eq!(captured.err(), Some(INVALIDATED)),
        }
    }
}

/// As with PyTorch, whose captures are global unless it is told otherwise, while a thread of the engine's makes a group.
#[test]
fn a_global_capture_of_one_thread_outlives_what_the_library_does_in_another() {
    if !on_stub_or_card("modes::a_global_capture_of_one_thread_outlives_what_the_library_does_in_another") {
        return;
    }
    let (stream, buffer) = (OwnStream::new(0), Buffer::new(0, 256));
    let captured = stream.capture_in(GLOBAL, || {
        // SAFETY: the buffer lives as long as the test.
        unsafe { driver().memset_async(buffer.address, 7, 256, stream.handle) }.unwrap();
        std::thread::scope(|scope| scope.spawn(a_life_of_a_group).join().unwrap());
    });
    stream.replay(&captured.expect("nothing that the library did has ended the capture"));
    stream.wait();
    assert_eq!(buffer.read(), [7; 256]);
}

/// Made, allocated from, called, waited for, asked, and left.
fn a_life_of_a_group() {
    for communicators in ["push,pull", "staged"] {
        let groups = world(&[0, 1], communicators).unwrap();
        let streams = [0, 1].map(OwnStream::new);
        let buffers = [0, 1].map(|device| Buffer::with(device, &1_f32.to_le_bytes().repeat(5000)));
        let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 5000);
        std::thread::scope(|scope| {
            for ((group, stream), buffer) in groups.iter().zip(&streams).zip(&buffers) {
                scope.spawn(move || {
                    let (give, take) = std::sync::mpsc::channel();
                    group.allocate(4096, Box::new(move |start| give.send(start as usize).unwrap())).unwrap();
                    let on_buffer = || call(what, buffer.address, buffer.address, stream);
                    let request = group.start(on_buffer(), Timeout::Default).unwrap();
                    request.test().unwrap();
                    assert_eq!(request.wait(Timeout::Default).unwrap(), Progress::Done);
                    group.run(on_buffer(), Timeout::Default).unwrap();
                    free_memory(take.recv().unwrap() as *mut u8).unwrap();
                });
            }
        });
        streams.iter().for_each(OwnStream::wait);
        groups.iter().for_each(|group| group.check().unwrap());
        buffers.iter().for_each(|buffer| assert_eq!(buffer.read(), 4_f32.to_le_bytes().repeat(5000)));
        groups.iter().for_each(|group| group.leave());
    }
}
