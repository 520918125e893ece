//! Tries whether two CUDA devices reach each other's memory: `tutti-peer-check GPU-… GPU-…`.
//!
//! The library runs it, from a process that must not be harmed by what it finds. 0: they do, both ways. 1: they do not,
//! and why is on standard output; that is said only where the driver says so, or bytes did not arrive as they were
//! sent, since it is believed for good. 2: it was called in another way. 3: it could not find out, and why is on
//! standard output: no memory, no context, a card that is busy.

use std::{process::ExitCode, time::Duration};

use tutti::{
    communicator::{Call, Descriptor},
    config::{GroupOptions, Selection, Timeout, WorldOptions},
    cuda::{
        device::Device,
        driver::Uuid,
        peer_check::{REFUSED, UNKNOWN, begin_trying, copies_arrive},
    },
    dtype::{Collective, DType, Op},
    error::{Error, Result},
    group::Group,
};

/// Bytes that are written and read each way.
const BYTES: usize = 1024;
/// How long a kernel waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [one, other] = arguments.as_slice() else {
        eprintln!("usage: tutti-peer-check GPU-UUID GPU-UUID");
        return ExitCode::from(2);
    };
    match try_out(one, other) {
        Ok(Verdict::Works) => ExitCode::SUCCESS,
        Ok(Verdict::Refused(why)) => {
            println!("{why}");
            ExitCode::from(REFUSED)
        }
        Err(error) => {
            println!("{error}");
            ExitCode::from(UNKNOWN)
        }
    }
}

/// What was found.
enum Verdict {
    Works,
    Refused(String),
}

/// What the helper does: makes copies, then the kernels of two devices, write into and read from each other's memory. The
/// copies come first because they tell what is lost from what is late, and kernels that wait for each other do not.
/// An error says that nothing was found out.
fn try_out(one: &str, other: &str) -> Result<Verdict> {
    begin_trying();
    let open = |text: &str| {
        let uuid = Uuid::parse(text).ok_or_else(|| Error::invalid(format_args!("{text:?} is no UUID of a device")))?;
        Device::open_by_uuid(uuid)
    };
    let devices = [open(one)?, open(other)?];
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (devices[from], devices[to]);
        let mut can = 0;
        // SAFETY: `can` is writable.
        unsafe { from.driver.device_can_access_peer(&mut can, from.handle, to.handle) }
            .map_err(|error| error.during(format_args!("{from} and {to}")))?;
        if can == 0 {
            return Ok(Verdict::Refused(format!("the driver says that {from} has no access to {to}")));
        }
        if !copies_arrive(from, to)? {
            let why = format!("what {from} copied to {to}, or from there, did not arrive as it was");
            return Ok(Verdict::Refused(why));
        }
    }
    for way in ["push", "pull"] {
        if let Verdict::Refused(why) = exchange(&devices, way)? {
            return Ok(Verdict::Refused(why));
        }
    }
    Ok(Verdict::Works)
}

/// An all_gather between the devices, checked byte by byte. One that does not end in time is an error: who came late
/// cannot be told from what was lost.
fn exchange(devices: &[&'static Device; 2], way: &str) -> Result<Verdict> {
    let group = GroupOptions {
        timeout: Timeout::After(PATIENCE),
        communicators: Selection::Forced(way.to_owned()),
        ..GroupOptions::default()
    };
    let ordinals: Vec<i32> = devices.iter().map(|device| device.ordinal).collect();
    let groups = Group::world_local(2, Some(&ordinals), WorldOptions { group, ..WorldOptions::default() })?;
    let descriptor = Descriptor {
        collective: Collective::AllGather,
        dtype: DType::Bytes,
        op: Op::Sum,
        root: 0,
        flags: 0,
        count: BYTES as u64,
    };
    let pattern = |rank: usize| (0..BYTES).map(move |at| (at * 31 + at / 251 + rank * 97) as u8);
    let mut buffers = Vec::new();
    for (rank, device) in devices.iter().enumerate() {
        let _entered = device.enter()?;
        let (mut send, mut recv, bytes) = (0, 0, pattern(rank).collect::<Vec<u8>>());
        // SAFETY: this process allocates two buffers and fills them, before any kernel runs.
        unsafe {
            let driver = device.driver;
            driver
                .mem_alloc(&mut send, BYTES)
                .and_then(|()| driver.mem_alloc(&mut recv, 2 * BYTES))
                .and_then(|()| driver.memcpy_async(send, bytes.as_ptr() as u64, BYTES, std::ptr::null_mut()))
                .and_then(|()| driver.memset_async(recv, 0, 2 * BYTES, std::ptr::null_mut()))
                .and_then(|()| driver.stream_synchronize(std::ptr::null_mut()))
        }
        .map_err(|error| error.during(format_args!("buffers on {device}")))?;
        buffers.push((send, recv));
    }
    for (device, (group, (send, recv))) in devices.iter().zip(groups.iter().zip(&buffers)) {
        let _entered = device.enter()?;
        group.run(Call::new(descriptor, *send as *const u8, *recv as *mut u8), Timeout::Default)?;
    }
    for (rank, device) in devices.iter().enumerate() {
        let _entered = device.enter()?;
        let mut got = vec![0_u8; 2 * BYTES];
        // SAFETY: both are as long as said, and the copy is complete when the stream is.
        unsafe {
            let driver = device.driver;
            driver
                .memcpy_async(got.as_mut_ptr() as u64, buffers[rank].1, got.len(), std::ptr::null_mut())
                .and_then(|()| driver.stream_synchronize(std::ptr::null_mut()))
        }
        .map_err(|error| error.during(format_args!("reading back on {device}")))?;
        groups[rank].check()?;
        if !got.iter().copied().eq(pattern(0).chain(pattern(1))) {
            let why = format!("what was moved by {way} did not arrive as it was sent, on {device}");
            return Ok(Verdict::Refused(why));
        }
    }
    groups.iter().for_each(|group| group.leave());
    Ok(Verdict::Works)
}
