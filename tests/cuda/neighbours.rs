//! How memory gets from rank to rank, and when it may not.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use tutti::{
    config::Timeout,
    cuda::device::Device,
    dispatch::Format,
    dtype::{Collective, DType, Op},
};

use crate::{
    failures::{join, processes},
    machine::{Buffer, OwnStream, call, content, descriptor, on_cpu, world},
    stub::{calls, fail_next, on_stub},
};

/// A few calls of all sizes between two processes.
fn exchange(rank: u32, communicators: &str) {
    let group = join(rank);
    let (device, stream) = (rank as i32, OwnStream::new(rank as i32));
    for bytes in [64, 4096, 12_000, 40_000] {
        let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, bytes / 4);
        let told = group.explain(&what, Format::Text).unwrap();
        assert!(communicators.split(',').any(|name| told.contains(&format!("served by {name}/"))), "{told}");
        let sends: Vec<_> = (0..2).map(|peer| content(peer + bytes, bytes)).collect();
        let buffer = Buffer::with(device, &sends[rank as usize]);
        group.run(call(what, buffer.address, buffer.address, &stream), Timeout::Default).unwrap();
        stream.wait();
        group.check().unwrap();
        assert!(buffer.read() == on_cpu(what, &sends, bytes)[rank as usize], "{what}, rank {rank}");
    }
    group.sync(Timeout::Default).unwrap();
}

#[test]
fn processes_share_memory_by_descriptors() {
    processes("neighbours::processes_share_memory_by_descriptors", &[], |rank| exchange(rank, "push,pull"));
}

#[test]
fn processes_share_memory_by_handles_where_devices_do_not_export() {
    let test = "neighbours::processes_share_memory_by_handles_where_devices_do_not_export";
    processes(test, &[("STUB_NO_EXPORT", "1")], |rank| exchange(rank, "push,pull"));
}

#[test]
fn processes_share_memory_by_handles_where_descriptors_do_not_work_on_one_rank() {
    let test = "neighbours::processes_share_memory_by_handles_where_descriptors_do_not_work_on_one_rank";
    for function in ["cuMemExportToShareableHandle", "cuMemImportFromShareableHandle"] {
        processes(test, &[("TUTTI_TEST_FUNCTION", function)], |rank| {
            if rank == 1 {
                fail_next(&std::env::var("TUTTI_TEST_FUNCTION").unwrap(), 801);
            }
            exchange(rank, "push,pull");
            assert_eq!(calls("cuIpcOpenMemHandle_v2"), 1, "the other communicator's memory came by descriptor");
        });
        if std::env::var_os("RANK").is_some() {
            return;
        }
    }
}

#[test]
fn threads_share_memory_by_address() {
    let test = "neighbours::threads_share_memory_by_address";
    if !on_stub(test, &[("STUB_NO_EXPORT", "1")]) {
        return;
    }
    let groups = world(&[0, 1], "pull").unwrap();
    let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 5000);
    let sends: Vec<_> = (0..2).map(|rank| content(rank, 20_000)).collect();
    let streams = [0, 1].map(OwnStream::new);
    let buffers: Vec<_> = (0..2).map(|rank| Buffer::with(rank, &sends[rank as usize])).collect();
    for rank in 0..2 {
        let address = buffers[rank].address;
        groups[rank].run(call(what, address, address, &streams[rank]), Timeout::Default).unwrap();
    }
    let want = on_cpu(what, &sends, 20_000);
    for rank in 0..2 {
        streams[rank].wait();
        groups[rank].check().unwrap();
        assert!(buffers[rank].read() == want[rank]);
    }
}

#[test]
fn devices_that_do_not_reach_each_other_go_through_the_host() {
    let test = "neighbours::devices_that_do_not_reach_each_other_go_through_the_host";
    for variables in [("STUB_NO_PEER", "1"), ("STUB_LOST_WRITES", "1"), ("NCCL_P2P_DISABLE", "1")] {
        processes(test, &[variables], |rank| exchange(rank, "staged"));
        if std::env::var_os("RANK").is_some() {
            return;
        }
    }
}

/// What `explain` says of push between two devices.
fn verdict() -> String {
    let groups = world(&[0, 1], "").unwrap();
    let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64);
    groups[0].explain(&what, Format::Text).unwrap()
}

#[test]
fn a_driver_that_says_no_is_believed() {
    if on_stub("neighbours::a_driver_that_says_no_is_believed", &[("STUB_NO_PEER", "1")]) {
        let told = verdict();
        assert!(told.contains("do not reach each other's memory: the driver says that CUDA device 0"), "{told}");
        // The second time nobody is asked.
        // SAFETY: this test is alone in its process.
        unsafe { std::env::set_var("TUTTI_PEER_CHECK", "/nowhere") };
        assert_eq!(verdict(), told);
    }
}

#[test]
fn a_driver_that_says_yes_is_not_believed_when_writes_are_lost() {
    if on_stub("neighbours::a_driver_that_says_yes_is_not_believed_when_writes_are_lost", &[("STUB_LOST_WRITES", "1")])
    {
        let told = verdict();
        assert!(told.contains("do not reach each other's memory") && told.contains("did not arrive"), "{told}");
    }
}

/// The program that tries it.
const HELPER: &str = env!("CARGO_BIN_EXE_tutti-peer-check");

/// What is kept of earlier tries.
fn kept() -> Vec<String> {
    let folder = PathBuf::from(std::env::var_os("XDG_CACHE_HOME").unwrap()).join("tutti/peers");
    let files = std::fs::read_dir(folder).into_iter().flatten();
    files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_helper_is_sure_of_what_the_driver_says_and_of_what_memory_holds_and_of_nothing_else() {
    let test = "neighbours::the_helper_is_sure_of_what_the_driver_says_and_of_what_memory_holds_and_of_nothing_else";
    if !on_stub(test, &[]) {
        return;
    }
    let uuid = |ordinal: i32| Device::open(ordinal).unwrap().uuid.to_string();
    for (variable, code, says) in [
        (("STUB_DEVICES", "2"), 0, ""),
        (("STUB_NO_PEER", "1"), 1, "the driver says that CUDA device 0"),
        (("STUB_LOST_WRITES", "1"), 1, "did not arrive"),
        (("STUB_DEVICES", "1"), 3, "no device here is GPU-"),
        (("STUB_DEVICES", "0"), 3, "sees no device"),
        (("TUTTI_CUDA_LIBRARY", "/nowhere"), 3, "/nowhere"),
        // It cannot make the groups that it wants.
        (("TUTTI_ALL_REDUCE", "=nonsense"), 3, "nonsense"),
    ] {
        let tried = Command::new(HELPER).args([uuid(0), uuid(1)]).env(variable.0, variable.1).output().unwrap();
        let said = String::from_utf8(tried.stdout).unwrap();
        assert_eq!(tried.status.code(), Some(code), "{variable:?}: {said}");
        assert!(said.contains(says), "{variable:?}: {said}");
    }
}

#[test]
fn what_could_not_be_found_out_is_told_and_not_kept() {
    if !on_stub("neighbours::what_could_not_be_found_out_is_told_and_not_kept", &[]) {
        return;
    }
    // A helper that sees only one of the devices.
    let folder = PathBuf::from(std::env::var_os("XDG_CACHE_HOME").unwrap());
    std::fs::create_dir_all(&folder).unwrap();
    let half_blind = folder.join("half-blind");
    std::fs::write(&half_blind, format!("#!/bin/sh\nSTUB_DEVICES=1 exec '{HELPER}' \"$@\"\n")).unwrap();
    std::fs::set_permissions(&half_blind, std::fs::Permissions::from_mode(0o700)).unwrap();
    // SAFETY: this test is alone in its process.
    unsafe { std::env::set_var("TUTTI_PEER_CHECK", &half_blind) };
    let told = verdict();
    assert!(told.contains("could not find out: no device here is GPU-"), "{told}");
    assert!(told.contains("served by staged/through_host"), "{told}");
    assert!(kept().is_empty(), "{:?}", kept());
    // SAFETY: as above.
    unsafe { std::env::set_var("TUTTI_PEER_CHECK", HELPER) };
    let told = verdict();
    assert!(told.contains("served by push/"), "{told}");
    let kept = kept();
    assert!(kept.len() == 1 && kept[0].starts_with(concat!(env!("CARGO_PKG_VERSION"), "-12020-")), "{kept:?}");
}

#[test]
fn settings_of_a_rank_do_not_change_what_the_helper_does() {
    let settings = [("TUTTI_ALL_REDUCE", "=push")];
    if on_stub("neighbours::settings_of_a_rank_do_not_change_what_the_helper_does", &settings) {
        let told = verdict();
        assert!(told.contains("served by push/"), "{told}");
    }
}

#[test]
fn without_the_helper_there_is_no_peer_access_and_it_says_why() {
    if on_stub("neighbours::without_the_helper_there_is_no_peer_access_and_it_says_why", &[]) {
        // SAFETY: this test is alone in its process.
        unsafe { std::env::set_var("TUTTI_PEER_CHECK", "/nowhere/tutti-peer-check") };
        let told = verdict();
        assert!(told.contains("/nowhere/tutti-peer-check does not start"), "{told}");
        assert!(told.contains("served by staged/through_host"), "{told}");
    }
}

#[test]
fn ranks_on_one_device_need_no_verdict() {
    if on_stub("neighbours::ranks_on_one_device_need_no_verdict", &[("NCCL_P2P_DISABLE", "1")]) {
        let groups = world(&[1, 1], "").unwrap();
        let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 64);
        assert!(groups[0].explain(&what, Format::Text).unwrap().contains("served by push/one_shot"));
    }
}
