//! What a capture of one thread forbids to others. It is the driver's rule; that the stub has it too is what the other
//! tests of captures rest on.

use crate::{
    machine::{Buffer, GLOBAL, OwnStream, RELAXED, THREAD_LOCAL, driver, in_mode},
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
