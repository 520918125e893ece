//! Tensor dicts and objects: what is sent is what comes, whatever its size, strides and way; and what the two sides
//! cannot agree on is an error with a sentence.

use std::{sync::Arc, time::Instant};

use tutti::{
    communicator::Progress,
    config::{GroupOptions, Timeout},
    dtype::DType,
    error::{Error, Status},
    group::{
        Group,
        layout::{Description, Kind, Sizes},
    },
    tensor::{
        Dict, Options, Received, Slicing, View,
        manifest::Device,
        shape::{self, Shape},
    },
};

use crate::{PATIENT, Random, on_threads, sum, together, world};

/// A tensor with memory of its own.
struct Tensor {
    view: View,
    _memory: Vec<u64>,
}

impl Tensor {
    /// Elements filled from a seed; `gap`: elements between rows, so that it is not dense.
    fn new(name: &str, dtype: DType, extents: &[u64], gap: u64, seed: u64) -> Self {
        let rows = Shape::rows(extents, dtype.size()).unwrap();
        let mut strides = rows.strides().to_vec();
        if let [outer, .., _] = strides.as_mut_slice() {
            *outer += gap as i64;
        }
        let shape = Shape::new(extents, &strides, dtype.size()).unwrap();
        let room = (rows.count() + gap * extents.first().copied().unwrap_or(0)) as usize * dtype.size() / 8 + 2;
        let mut random = Random(seed + 1);
        let mut memory: Vec<u64> = (0..room).map(|_| random.below(1 << 31) as u64 * 0x1_0000_0001).collect();
        let data = memory.as_mut_ptr().cast();
        let view = View { name: name.into(), dtype, device: Device::Host, shape, data, slicing: Slicing::Auto };
        Tensor { view, _memory: memory }
    }

    fn transposed(mut self) -> Self {
        let turn = |values: &[u64]| values.iter().rev().copied().collect::<Vec<_>>();
        let strides: Vec<i64> = self.view.shape.strides().iter().rev().copied().collect();
        let extents = turn(self.view.shape.extents());
        self.view.shape = Shape::new(&extents, &strides, self.view.dtype.size()).unwrap();
        self
    }

    fn slicing(mut self, slicing: Slicing) -> Self {
        self.view.slicing = slicing;
        self
    }
}

/// The elements of a tensor, row by row.
fn elements(data: *const u8, shape: &Shape, dtype: DType) -> Vec<u8> {
    let rows = Shape::rows(shape.extents(), dtype.size()).unwrap();
    let mut bytes = vec![0; rows.count() as usize * dtype.size()];
    // SAFETY: the elements are readable, and there is room for all of them.
    unsafe { shape::copy(data, shape, bytes.as_mut_ptr(), &rows, dtype.size()) };
    bytes
}

fn same(received: &Received, tensor: &Tensor) {
    let (record, view) = (&received.record, &tensor.view);
    assert_eq!((record.name.as_str(), record.dtype), (view.name.as_str(), view.dtype));
    assert_eq!(record.shape.extents(), view.shape.extents());
    let here = elements(received.data, &received.shape, record.dtype);
    assert!(here == elements(view.data, &view.shape, view.dtype), "the elements of {:?} differ", view.name);
}

/// Tensors of all kinds: large, small, empty, scalar, strided, transposed, movement-only.
fn tensors(seed: u64) -> Vec<Tensor> {
    vec![
        Tensor::new("hidden", DType::Bfloat16, &[37, 4096], 0, seed),
        Tensor::new("residual", DType::Float32, &[33, 1001], 0, seed + 1),
        Tensor::new("positions", DType::Int64, &[37], 0, seed + 2),
        Tensor::new("scalar", DType::Float64, &[], 0, seed + 3),
        Tensor::new("none", DType::Float32, &[0, 5], 0, seed + 4),
        Tensor::new("mask", DType::Bool, &[3, 5, 7], 0, seed + 5),
        Tensor::new("gaps", DType::Int16, &[100, 300], 17, seed + 6),
        Tensor::new("transposed", DType::Float16, &[200, 150], 0, seed + 7).transposed(),
        Tensor::new("opaque", DType::Bytes, &[70_001], 0, seed + 8),
    ]
}

fn views(tensors: &[Tensor]) -> Vec<View> {
    tensors.iter().map(|tensor| tensor.view.clone()).collect()
}

fn with(peer: u32, tag: u32) -> Options {
    Options { peer, tag, ..Options::default() }
}

fn receive(group: &Arc<Group>, options: Options) -> Arc<Dict> {
    let dict = Dict::start_receive(group, options).unwrap();
    assert_eq!(dict.wait(Timeout::Default).unwrap(), Progress::Done);
    dict
}

#[test]
fn tensors_come_as_they_were_sent() {
    let _process = together();
    on_threads(world(2), |rank, group| {
        for turn in 0..3 {
            let sent = tensors(turn);
            if rank == 0 {
                Dict::send(&group, &views(&sent), false, with(1, 7)).unwrap();
                continue;
            }
            let dict = receive(&group, with(0, 7));
            let received = dict.records().unwrap();
            assert_eq!(received.len(), sent.len());
            received.iter().zip(&sent).for_each(|(received, tensor)| same(received, tensor));
            assert_eq!(received[7].shape.strides(), sent[7].view.shape.strides(), "dense strides are kept");
            assert_eq!(received[6].shape.strides(), [300, 1], "gaps are not");
            assert!(!dict.is_object().unwrap());
        }
    });
}

#[test]
fn the_receiver_may_learn_what_comes_and_supply_memory_of_other_strides() {
    let _process = together();
    on_threads(world(2), |rank, group| {
        let sent = tensors(11);
        if rank == 0 {
            return Dict::send(&group, &views(&sent), false, with(1, 0)).unwrap();
        }
        let dict = Dict::start_receive(&group, with(0, 0)).unwrap();
        assert_eq!(dict.probe(Timeout::Default).unwrap(), Progress::Done);
        let announced = dict.records().unwrap();
        assert!(announced.iter().all(|tensor| tensor.data.is_null()));
        let own: Vec<Tensor> = announced
            .iter()
            .enumerate()
            .map(|(i, tensor)| {
                let (record, gap) = (&tensor.record, if i % 2 == 0 { 3 } else { 0 });
                Tensor::new(&record.name, record.dtype, record.shape.extents(), gap, 99)
            })
            .collect();
        // What does not fit is refused, and nothing is lost.
        let error = dict.wait_into(&views(&own)[1..], Timeout::Default).unwrap_err();
        assert!(error.to_string().contains("the message has 9 tensors, but 8 were given"), "{error}");
        let mut wrong = views(&own);
        wrong[0].dtype = DType::Float16;
        let error = dict.wait_into(&wrong, Timeout::Default).unwrap_err();
        assert!(error.to_string().contains("tensor \"hidden\" comes as bfloat16 of shape [37, 4096]"), "{error}");
        assert_eq!(dict.wait_into(&views(&own), Timeout::Default).unwrap(), Progress::Done);
        let received = dict.records().unwrap();
        for ((received, own), sent) in received.iter().zip(&own).zip(&sent) {
            assert_eq!(received.data, own.view.data);
            same(received, sent);
        }
    });
}

#[test]
fn objects_and_many_names_travel_too() {
    let _process = together();
    on_threads(world(2), |rank, group| {
        // A manifest far longer than its first message, and many small tensors in few loads.
        let many: Vec<Tensor> = (0..700)
            .map(|i| Tensor::new(&format!("layers.{i}.weight.scale"), DType::Float32, &[i % 50], 0, i))
            .collect();
        for bytes in [0, 1, 100_000] {
            let object = Tensor::new("", DType::Bytes, &[bytes], 0, 5);
            if rank == 0 {
                Dict::send(&group, std::slice::from_ref(&object.view), true, with(1, 2)).unwrap();
            } else {
                let dict = receive(&group, with(0, 2));
                assert!(dict.is_object().unwrap());
                same(&dict.records().unwrap()[0], &object);
            }
        }
        if rank == 0 {
            return Dict::send(&group, &views(&many), false, with(1, 2)).unwrap();
        }
        let dict = receive(&group, with(0, 2));
        dict.records().unwrap().iter().zip(&many).for_each(|(received, tensor)| same(received, tensor));
    });
}

#[test]
fn dicts_are_started_and_overtake_each_other_by_tag() {
    let _process = together();
    on_threads(world(2), |rank, group| {
        let peer = 1 - rank as u32;
        let sent: Vec<Vec<Tensor>> = (0..4).map(|turn| tensors(100 + turn)).collect();
        // Both send to each other before either receives.
        let sends: Vec<_> = (0..4)
            .map(|tag| Dict::start_send(&group, &views(&sent[tag]), false, with(peer, tag as u32)).unwrap())
            .collect();
        let receives: Vec<_> =
            (0..4).rev().map(|tag| (tag, Dict::start_receive(&group, with(peer, tag)).unwrap())).collect();
        assert_eq!(sum(&group, 1).unwrap(), 2, "collectives go on beside them");
        for (tag, dict) in &receives {
            assert_eq!(dict.wait(Timeout::Default).unwrap(), Progress::Done);
            assert_eq!(dict.wait(Timeout::Default).unwrap(), Progress::Done, "again");
            assert_eq!(dict.test().unwrap(), Progress::Done);
            dict.records()
                .unwrap()
                .iter()
                .zip(&sent[*tag as usize])
                .for_each(|(received, tensor)| same(received, tensor));
        }
        for dict in &sends {
            assert_eq!(dict.wait(Timeout::Default).unwrap(), Progress::Done);
            assert_eq!(dict.records().unwrap_err().status(), Status::InvalidUsage);
        }
    });
}

#[test]
fn messages_of_one_tag_with_long_manifests_may_be_awaited_at_once() {
    let _process = together();
    on_threads(world(2), |rank, group| {
        // Names and shapes of each take more than the first message of a manifest.
        let name = |number: u64| format!("a tensor with a name as long as models have them, number {number}");
        let many = |seed| -> Vec<Tensor> {
            (0..100).map(|number| Tensor::new(&name(number), DType::Int32, &[5, 2], 0, seed + number)).collect()
        };
        let sent = [many(0), many(1000)];
        if rank == 0 {
            let dicts = sent.each_ref().map(|sent| Dict::start_send(&group, &views(sent), false, with(1, 0)).unwrap());
            dicts.iter().for_each(|dict| assert_eq!(dict.wait(Timeout::Default).unwrap(), Progress::Done));
            return;
        }
        let awaited = [0, 1].map(|_| Dict::start_receive(&group, with(0, 0)).unwrap());
        // Out of order they would take each other's data.
        for _ in 0..2 {
            let error = awaited[1].wait(Timeout::Default).unwrap_err();
            assert_eq!(error.status(), Status::InvalidUsage);
            assert!(error.to_string().contains("wait for that one first"), "{error}");
        }
        for (dict, sent) in awaited.iter().zip(&sent) {
            assert_eq!(dict.wait(Timeout::Default).unwrap(), Progress::Done);
            dict.records().unwrap().iter().zip(sent).for_each(|(received, tensor)| same(received, tensor));
        }
    });
}

#[test]
fn messages_of_one_tag_are_probed_in_any_order_and_fetched_in_turn() {
    let _process = together();
    on_threads(world(2), |rank, group| {
        let sent = [0, 1, 2].map(|seed| Tensor::new("t", DType::Int32, &[5000], 0, seed));
        if rank == 0 {
            let dicts = sent
                .each_ref()
                .map(|tensor| Dict::start_send(&group, std::slice::from_ref(&tensor.view), false, with(1, 0)).unwrap());
            dicts.iter().for_each(|dict| assert_eq!(dict.wait(Timeout::Default).unwrap(), Progress::Done));
            return;
        }
        let mut awaited = [0, 1, 2].map(|_| Some(Dict::start_receive(&group, with(0, 0)).unwrap()));
        for dict in awaited.iter().rev().flatten() {
            assert_eq!(dict.probe(Timeout::Default).unwrap(), Progress::Done);
        }
        for (at, tensor) in sent.iter().enumerate() {
            for later in awaited[at + 1..].iter().flatten() {
                assert_eq!(later.wait(Timeout::Default).unwrap_err().status(), Status::InvalidUsage);
            }
            let dict = awaited[at].take().unwrap();
            assert_eq!(dict.wait(Timeout::Default).unwrap(), Progress::Done);
            same(&dict.records().unwrap()[0], tensor);
        }
    });
}

#[test]
fn a_wait_in_another_thread_lets_a_dict_be_tested_and_ends_when_it_is_given_up() {
    let _process = together();
    let world = world(2);
    let dict = Dict::start_receive(&world[1], with(0, 0)).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| dict.wait(Timeout::Default));
        // The other thread enters in a moment; from then on nothing is told here, and nothing waits.
        let refused = loop {
            assert_eq!(dict.test().unwrap(), Progress::Pending);
            let error = dict.records().unwrap_err();
            if error.to_string().contains("another thread waits") {
                break error;
            }
        };
        assert_eq!(refused.status(), Status::InvalidUsage);
        assert_eq!(dict.test().unwrap(), Progress::Pending);
        assert_eq!(dict.probe(Timeout::Default).unwrap_err().status(), Status::InvalidUsage);
        let began = Instant::now();
        dict.release();
        assert_eq!(waiting.join().unwrap().unwrap_err().status(), Status::Aborted);
        assert!(began.elapsed() < PATIENT / 2);
    });
    assert_eq!(world[0].check().unwrap_err().status(), Status::Aborted, "the sender counts on it");
}

#[test]
fn a_broadcast_gives_all_ranks_the_same() {
    let _process = together();
    for (size, root) in [(1, 0), (3, 1)] {
        on_threads(world(size), |rank, group| {
            for turn in 0..2 {
                let sent = tensors(200 + turn);
                let is_root = rank as u32 == root;
                let given = if is_root { views(&sent) } else { Vec::new() };
                let dict = Dict::start_broadcast(&group, &given, false, with(root, 0)).unwrap();
                if turn == 1 && !is_root {
                    assert_eq!(dict.probe(Timeout::Default).unwrap(), Progress::Done);
                    let own: Vec<Tensor> = dict
                        .records()
                        .unwrap()
                        .iter()
                        .map(|t| Tensor::new(&t.record.name, t.record.dtype, t.record.shape.extents(), 1, 0))
                        .collect();
                    dict.wait_into(&views(&own), Timeout::Default).unwrap();
                    dict.records().unwrap().iter().zip(&sent).for_each(|(received, tensor)| same(received, tensor));
                } else {
                    assert_eq!(dict.wait(Timeout::Default).unwrap(), Progress::Done);
                    if !is_root {
                        dict.records().unwrap().iter().zip(&sent).for_each(|(received, tensor)| same(received, tensor));
                    }
                }
                assert_eq!(sum(&group, 1).unwrap(), i64::from(size));
            }
        });
    }
}

/// The TP and PP groups of a rank.
fn stages(group: &Arc<Group>, tensor: u32) -> (Arc<Group>, Arc<Group>) {
    let sizes = Sizes { tensor, pipeline: 2, ..Sizes::default() };
    let layout = Arc::new(Description::new(2 * tensor, sizes).plan().unwrap());
    let made = Arc::new(std::sync::Mutex::new(Vec::new()));
    let place = made.clone();
    let deliver = Box::new(move |groups| *place.lock().unwrap() = groups);
    group.create_layout(&layout, &[Kind::Tensor, Kind::Pipeline], GroupOptions::default(), deliver).unwrap();
    let mut groups = std::mem::take(&mut *made.lock().unwrap()).into_iter().map(|(_, group)| group);
    (groups.next().unwrap(), groups.next().unwrap())
}

#[test]
fn ranks_of_a_replicating_group_send_slices_and_the_receivers_gather_them() {
    let _process = together();
    for tensor in [2, 3] {
        on_threads(world(2 * tensor), |_, group| {
            let (tp, pp) = stages(&group, tensor);
            for own_memory in [false, true] {
                // Sizes that divide and sizes that do not; small ones that are sliced by force, one of which has fewer
                // elements than there are ranks; and one that differs from rank to rank.
                let mut sent = tensors(300);
                sent.push(Tensor::new("forced", DType::Int32, &[7], 0, 1).slicing(Slicing::Sliced));
                sent.push(Tensor::new("one", DType::Int32, &[1], 0, 2).slicing(Slicing::Sliced));
                sent.push(Tensor::new("zero", DType::Int32, &[0], 0, 2).slicing(Slicing::Sliced));
                sent.push(
                    Tensor::new("mine", DType::Float32, &[50_000], 0, u64::from(tp.rank())).slicing(Slicing::Whole),
                );
                let options = |peer| Options { peer, replicas: Some(tp.clone()), ..Options::default() };
                if pp.rank() == 0 {
                    Dict::send(&pp, &views(&sent), false, options(1)).unwrap();
                    continue;
                }
                let dict = Dict::start_receive(&pp, options(0)).unwrap();
                dict.probe(Timeout::Default).unwrap();
                let announced = dict.records().unwrap();
                let sliced: Vec<&str> =
                    announced.iter().filter(|t| t.record.sliced).map(|t| t.record.name.as_str()).collect();
                assert_eq!(sliced, ["hidden", "residual", "opaque", "forced", "one", "zero"]);
                let own: Vec<Tensor> = announced
                    .iter()
                    .enumerate()
                    .map(|(i, t)| Tensor::new("", t.record.dtype, t.record.shape.extents(), i as u64 % 2, 0))
                    .collect();
                if own_memory {
                    dict.wait_into(&views(&own), Timeout::Default).unwrap();
                } else {
                    dict.wait(Timeout::Default).unwrap();
                }
                dict.records().unwrap().iter().zip(&sent).for_each(|(received, tensor)| same(received, tensor));
            }
            assert_eq!(sum(&group, 1).unwrap(), i64::from(2 * tensor), "nobody leaves before all have received");
        });
    }
}

#[test]
fn slices_that_the_receivers_cannot_gather_are_refused_and_the_message_is_not_lost() {
    let _process = together();
    on_threads(world(4), |_, group| {
        let (tp, pp) = stages(&group, 2);
        let sent = Tensor::new("forced", DType::Int32, &[9], 0, 1).slicing(Slicing::Sliced);
        let options = |peer, replicas| Options { peer, replicas, ..Options::default() };
        if pp.rank() == 0 {
            let dict = Dict::start_send(&pp, std::slice::from_ref(&sent.view), false, options(1, Some(tp))).unwrap();
            // The receivers never fetch it; they say so by aborting, when they give it up.
            let error = dict.wait(Timeout::Default).err();
            assert!(error.is_none_or(|error| matches!(error.status(), Status::Aborted | Status::PeerLost)));
            return;
        }
        let dict = Dict::start_receive(&pp, options(0, None)).unwrap();
        for _ in 0..2 {
            let error = dict.wait(Timeout::Default).unwrap_err();
            assert_eq!(error.status(), Status::Mismatch);
            assert!(error.to_string().contains("give the group of the 2 ranks that receive them all"), "{error}");
        }
        pp.check().unwrap();
        drop(dict);
        assert_eq!(pp.check().unwrap_err().status(), Status::Aborted, "the sender counted on it");
    });
}

#[test]
fn what_cannot_be_sent_is_refused_before_anything_happens() {
    let _process = together();
    on_threads(world(2), |_, group| {
        let refused = |views: &[View], options: Options| match Dict::send(&group, views, false, options) {
            Err(error) => (error.status(), error.to_string()),
            Ok(()) => panic!("it was sent"),
        };
        let tensor = Tensor::new("a", DType::Int8, &[3], 0, 0);
        let twice = [tensor.view.clone(), tensor.view.clone()];
        let (status, text) = refused(&twice, with(1, 0));
        assert_eq!(status, Status::InvalidArgument);
        assert_eq!(text, "these tensors cannot be sent: two tensors are named \"a\"");
        let mut cuda = tensor.view.clone();
        cuda.device = Device::Cuda;
        assert_eq!(refused(&[cuda], with(1, 0)).0, Status::Unsupported);
        assert_eq!(
            refused(&twice[..1], with(2, 0)),
            (Status::InvalidArgument, "peer is 2, but the group has 2 ranks".into())
        );
        assert_eq!(sum(&group, 1).unwrap(), 2);
    });
}

#[test]
fn bytes_that_are_no_dict_are_refused_and_their_sender_named() {
    let _process = together();
    on_threads(world(2), |rank, group| {
        if rank == 0 {
            // What a hostile or confused peer could send under the tag of manifests.
            group.send_bytes(b"\x80\x04\x95pickle", 1, i64::MIN / 2, Timeout::Default).unwrap();
        } else {
            let dict = Dict::start_receive(&group, with(0, 0)).unwrap();
            let error = dict.wait(Timeout::Default).unwrap_err();
            let Error::Failed(failure) = &error else { panic!("{error}") };
            assert_eq!((failure.status, failure.rank), (Status::Mismatch, Some(0)));
            assert_eq!(failure.text, "rank 0 sent what is no tensor dict: it does not begin as one");
        }
        assert_eq!(sum(&group, 1).unwrap(), 2, "the group lives");
    });
}
