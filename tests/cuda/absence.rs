//! Where there is no driver, no device, or a world that does not agree on its kind.

use std::sync::Arc;

use tutti::{config::WorldOptions, cuda::device::Device, error::Status, group::Group};

use crate::stub::on_stub;

#[test]
fn without_a_driver_a_cuda_rank_is_refused_with_a_sentence_and_cpu_ranks_do_not_care() {
    const NOWHERE: &str = "/nowhere/libcuda.so.1";
    if std::env::var_os("TUTTI_CUDA_LIBRARY").is_none_or(|path| path != NOWHERE) {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args([
            "--exact",
            "absence::without_a_driver_a_cuda_rank_is_refused_with_a_sentence_and_cpu_ranks_do_not_care",
        ]);
        child.env("TUTTI_CUDA_LIBRARY", NOWHERE);
        return crate::stub::finish("absence", child.spawn().unwrap());
    }
    let error = Group::world(WorldOptions { size_and_rank: Some((1, 0)), device: Some(0), ..WorldOptions::default() })
        .err()
        .expect("there is no device");
    assert_eq!(error.status(), Status::Unsupported);
    assert!(error.to_string().contains(NOWHERE), "{error}");
    Group::world_local(2, None, WorldOptions::default()).unwrap();
}

#[test]
fn a_driver_without_devices_is_a_sentence_too() {
    if !on_stub("absence::a_driver_without_devices_is_a_sentence_too", &[("STUB_DEVICES", "0")]) {
        return;
    }
    let error = Device::open(0).err().expect("there is no device");
    assert_eq!(
        error.to_string(),
        "no CUDA: the CUDA driver 12.2 sees no device (cuInit returned 100 CUDA_ERROR_NO_DEVICE)"
    );
}

#[test]
fn an_ordinal_that_no_device_has_is_refused() {
    if !on_stub("absence::an_ordinal_that_no_device_has_is_refused", &[]) {
        return;
    }
    let error = Device::open(2).err().expect("there are two devices");
    assert_eq!(error.to_string(), "there is no CUDA device 2: this process sees 2");
}

#[test]
fn a_world_is_of_one_kind() {
    if !on_stub("absence::a_world_is_of_one_kind", &[]) {
        return;
    }
    let id = tutti::bootstrap::unique_id::create().unwrap();
    let join = |rank: u32| {
        let device = (rank == 0).then_some(0);
        let options = WorldOptions {
            size_and_rank: Some((2, rank)),
            unique_id: Some(id.to_vec()),
            device,
            ..WorldOptions::default()
        };
        Group::world(options)
    };
    let outcomes: Vec<Result<Arc<Group>, _>> = std::thread::scope(|scope| {
        [0, 1].map(|rank| scope.spawn(move || join(rank))).map(|one| one.join().unwrap()).into()
    });
    for outcome in outcomes {
        let error = outcome.err().expect("the ranks differ");
        assert_eq!(error.status(), Status::Mismatch);
        let text = error.to_string();
        assert!(text.contains("device kind") && text.contains("\"cuda\"") && text.contains("\"cpu\""), "{text}");
    }
}
