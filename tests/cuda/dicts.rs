//! Tensor dicts of CUDA groups: from the host and from the device, to either, alone, in slices and to all.

use std::sync::Arc;

use tutti::{
    communicator::Progress,
    config::Timeout,
    dtype::DType,
    error::Status,
    group::Group,
    tensor::{Dict, Options, Slicing, View, manifest::Device, shape::Shape},
};

use crate::{
    machine::{Buffer, OwnStream, content, on_all, split, world},
    stub::on_stub_or_card,
};

const EXTENTS: [u64; 2] = [300, 40];
const BYTES: usize = 300 * 40 * 4;

fn view(name: &str, data: *mut u8, device: Device) -> View {
    let shape = Shape::rows(&EXTENTS, 4).unwrap();
    View { name: name.into(), dtype: DType::Int32, device, shape, data, slicing: Slicing::Auto }
}

fn on_device(name: &str, buffer: &Buffer) -> View {
    view(name, buffer.address as *mut u8, Device::Cuda)
}

fn with(peer: u32, stream: &OwnStream) -> Options {
    Options { peer, stream: stream.handle as usize, ..Options::default() }
}

fn on_all_ranks(groups: &[Arc<Group>], body: impl Fn(&Arc<Group>, &OwnStream) + Sync) {
    on_all(groups, |group| body(group, &OwnStream::new(group.device().unwrap())));
    groups.iter().for_each(|group| group.check().unwrap());
}

#[test]
fn tensors_go_from_host_or_device_to_host_or_device() {
    if !on_stub_or_card("dicts::tensors_go_from_host_or_device_to_host_or_device") {
        return;
    }
    on_all_ranks(&world(&[0, 1], "").unwrap(), |group, stream| {
        let device = group.device().unwrap();
        if group.rank() == 0 {
            let (mut first, fourth) = (content(1, BYTES), Buffer::with(device, &content(4, BYTES)));
            let mut third = content(3, BYTES);
            let second = Buffer::with(device, &content(2, BYTES));
            let views = [
                view("1", first.as_mut_ptr(), Device::Host),
                on_device("2", &second),
                view("3", third.as_mut_ptr(), Device::Host),
                on_device("4", &fourth),
            ];
            Dict::send(group, &views, false, with(1, stream)).unwrap();
            let started = Dict::start_send(group, &views, false, with(1, stream)).unwrap();
            assert_eq!(started.wait(Timeout::Default).unwrap(), Progress::Done);
            return;
        }
        let dict = Dict::start_receive(group, with(0, stream)).unwrap();
        let next = Dict::start_receive(group, with(0, stream)).unwrap();
        assert_eq!(dict.probe(Timeout::Default).unwrap(), Progress::Done);
        let announced: Vec<_> = dict.records().unwrap().iter().map(|one| one.device).collect();
        assert_eq!(announced, [Device::Host, Device::Cuda, Device::Host, Device::Cuda], "where the sender has them");
        // Each kind to each.
        let (mut first, mut second) = (vec![0; BYTES], vec![0; BYTES]);
        let (third, fourth) = (Buffer::new(device, BYTES), Buffer::new(device, BYTES));
        let places = [
            view("", first.as_mut_ptr(), Device::Host),
            view("", second.as_mut_ptr(), Device::Host),
            on_device("", &third),
            on_device("", &fourth),
        ];
        assert_eq!(dict.wait_into(&places, Timeout::Default).unwrap(), Progress::Done);
        stream.wait();
        let came = [first, second, third.read(), fourth.read()];
        assert!(came.iter().enumerate().all(|(index, bytes)| *bytes == content(index + 1, BYTES)));
        let here: Vec<_> = dict.records().unwrap().iter().map(|one| (one.device, one.data)).collect();
        assert_eq!(here, places.iter().map(|view| (view.device, view.data)).collect::<Vec<_>>());
        // In memory of the library all of it is on the host.
        assert_eq!(next.wait(Timeout::Default).unwrap(), Progress::Done);
        for (index, one) in next.records().unwrap().iter().enumerate() {
            assert_eq!(one.device, Device::Host);
            // SAFETY: the dict has so many bytes there.
            assert!(unsafe { std::slice::from_raw_parts(one.data, BYTES) } == content(index + 1, BYTES));
        }
    });
}

#[test]
fn a_broadcast_and_slices_reach_devices_too() {
    if !on_stub_or_card("dicts::a_broadcast_and_slices_reach_devices_too") {
        return;
    }
    on_all_ranks(&world(&[0, 1, 0, 1], "").unwrap(), |group, stream| {
        let (rank, device) = (group.rank(), group.device().unwrap());
        let buffer = Buffer::with(device, &if rank == 2 { content(9, BYTES) } else { vec![0; BYTES] });
        let views = [on_device("all", &buffer)];
        let sent: &[View] = if rank == 2 { &views } else { &[] };
        let dict = Dict::start_broadcast(group, sent, false, with(2, stream)).unwrap();
        match rank {
            2 => dict.wait(Timeout::Default).unwrap(),
            _ => dict.wait_into(&views, Timeout::Default).unwrap(),
        };
        stream.wait();
        assert!(buffer.read() == content(9, BYTES), "rank {rank}");

        // Ranks 0 and 1 hold the same, and send a slice each to 2 and 3.
        let replicas = split(group, (rank / 2) as i32);
        let peer = (rank + 2) % 4;
        let options = Options { replicas, ..with(peer, stream) };
        let sliced = [View { slicing: Slicing::Sliced, ..on_device("sliced", &buffer) }];
        if rank < 2 {
            buffer.write(&content(5, BYTES));
            Dict::send(group, &sliced, false, options).unwrap();
        } else {
            let dict = Dict::start_receive(group, options).unwrap();
            assert_eq!(dict.wait_into(&sliced, Timeout::Default).unwrap(), Progress::Done);
            stream.wait();
            assert!(buffer.read() == content(5, BYTES), "rank {rank}");
        }
        group.sync(Timeout::Default).unwrap();
    });
}

#[test]
fn tensors_that_cannot_go_are_refused_and_nothing_is_lost() {
    if !on_stub_or_card("dicts::tensors_that_cannot_go_are_refused_and_nothing_is_lost") {
        return;
    }
    on_all_ranks(&world(&[0, 1], "").unwrap(), |group, stream| {
        let device = group.device().unwrap();
        let buffer = Buffer::with(device, &content(1, BYTES));
        let mut host = vec![0; BYTES];
        if group.rank() == 1 {
            let dict = Dict::start_receive(group, with(0, stream)).unwrap();
            let lies = dict.wait_into(&[view("", host.as_mut_ptr(), Device::Cuda)], Timeout::Default).unwrap_err();
            assert_eq!(lies.status(), Status::InvalidArgument, "{lies}");
            // Nothing was received: it can be tried again.
            assert_eq!(dict.wait_into(&[on_device("", &buffer)], Timeout::Default).unwrap(), Progress::Done);
            stream.wait();
            assert!(buffer.read() == content(1, BYTES));
            return;
        }
        let refused = |view: View| Dict::send(group, &[view], false, with(1, stream)).unwrap_err();
        let error = refused(view("x", host.as_mut_ptr(), Device::Cuda));
        assert!(
            error.status() == Status::InvalidArgument && error.to_string().contains("memory of the host"),
            "{error}"
        );
        let gaps = View { shape: Shape::new(&[10, 40], &[80, 1], 4).unwrap(), ..on_device("x", &buffer) };
        let error = refused(gaps);
        assert!(error.status() == Status::Unsupported && error.to_string().contains("contiguous"), "{error}");
        let mut captured = None;
        stream.capture(|| captured = Some(refused(on_device("x", &buffer)))).destroy();
        assert_eq!(captured.unwrap().status(), Status::Unsupported);
        let cpu = group.cpu().unwrap();
        let error = Dict::send(cpu, &[on_device("x", &buffer)], false, with(1, stream)).unwrap_err();
        assert!(error.status() == Status::Unsupported && error.to_string().contains("CPU group"), "{error}");
        Dict::send(group, &[on_device("x", &buffer)], false, with(1, stream)).unwrap();
    });
}
