//! The promises of every communicator. Each is a function of the communicator's name.

use std::{
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tutti::{
    bootstrap::unique_id,
    communicator::{Carries, Descriptor, Progress},
    config::{GroupOptions, Timeout, WorldOptions},
    dispatch::{self, Format},
    dtype::{Collective, DType, OPS, Op, REDUCIBLE},
    error::{Result, Status},
    group::{Group, Request, batch},
};

use crate::{
    device::must_serve,
    harness::{Buffer, Memory, Random, Registered, call, descriptor, on_all_ranks, planned_world, until_asleep, world},
    oracle,
};

const PATIENT: i64 = 120_000;
const MOVEMENT_ONLY: [DType; 3] = [DType::Bool, DType::Int16, DType::Bytes];

/// Where the library changes its ways: a header's line ends at 56 bytes, flagged lines at 224 in the plan and at 2072 by
/// themselves, slots at 16 KiB, chunks at 64 KiB, pages at 4 KiB; streaming may begin at 1.5 KiB and begin or end at 24 KiB;
/// 32 KiB is where the plan changes.
const EDGES: [usize; 11] = [56, 112, 224, 1536, 2072, 4096, 16 * 1024, 24 * 1024, 32 * 1024, 64 * 1024, 5 * 64 * 1024];

/// Contributions that are hard on a reduction: any bits at all, and every so often a value with a name.
pub(crate) fn contribution(dtype: DType, count: usize, seed: u64, rank: u32) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9) ^ u64::from(rank + 1) << 40 | 1);
    let mut bytes = Vec::with_capacity(count * dtype.size());
    for i in 0..count {
        let word = match (i + rank as usize) % 5 {
            0 => named(dtype, random.below(10)),
            _ => random.next(),
        };
        bytes.extend_from_slice(&word.to_le_bytes()[..dtype.size()]);
    }
    bytes
}

/// ±0, ±infinity, NaN, the largest, the smallest, one: as bits.
fn named(dtype: DType, which: usize) -> u64 {
    let (sign, exponent_bits, mantissa_bits) = match dtype {
        DType::Float16 => (15, 5, 10),
        DType::Bfloat16 => (15, 8, 7),
        DType::Float32 => (31, 8, 23),
        DType::Float64 => (63, 11, 52),
        DType::Float8E4M3 => (7, 4, 3),
        DType::Float8E5M2 => (7, 5, 2),
        _ => return [0, 1, u64::MAX, 1 << 7, 0x7f, 1 << 31, 1 << 63, 2, 3, 0xff][which],
    };
    let infinity = ((1_u64 << exponent_bits) - 1) << mantissa_bits;
    let minus = 1_u64 << sign;
    let one = ((1_u64 << (exponent_bits - 1)) - 1) << mantissa_bits;
    [0, minus, infinity, infinity | minus, infinity | 1, infinity - 1, (infinity - 1) | minus, 1, one, one | minus]
        [which]
}

/// One all_reduce, checked against the oracle, for its bits on all ranks, and for what it must not touch.
fn check_all_reduce(
    groups: &[Arc<Group>],
    memory: Memory,
    (dtype, op, count): (DType, Op, usize),
    in_place: bool,
    misalignment: usize,
) {
    let seed = (count * 31 + dtype as usize * 7 + op as usize + misalignment) as u64;
    let inputs: Vec<_> = groups.iter().map(|g| contribution(dtype, count, seed, g.rank())).collect();
    let expected = oracle::reduce(dtype, op, &inputs);
    let results = on_all_ranks(groups, |group| {
        let input = &inputs[group.rank() as usize];
        let mut send = Buffer::within(memory, group.rank(), 0, input, misalignment);
        let mut recv = Buffer::within(memory, group.rank(), 1, &vec![0x55; input.len()], (misalignment * 3) % 8);
        let to = if in_place { send.address() } else { recv.address() };
        let what = descriptor(Collective::AllReduce, dtype, op, 0, count);
        group.run(call(what, send.address(), to), Timeout::Default).unwrap();
        send.check_guards();
        recv.check_guards();
        assert!(in_place || send.bytes() == input, "the input was changed");
        if in_place { send.bytes().to_vec() } else { recv.bytes().to_vec() }
    });
    for (rank, result) in results.iter().enumerate() {
        let what =
            || format!("{dtype:?} {op:?} x {count} on {} ranks, in place {in_place}, +{misalignment}", groups.len());
        oracle::same(dtype, &expected, result).unwrap_or_else(|e| panic!("{}: rank {rank}: {e}", what()));
        assert_eq!(*result, results[0], "{}: ranks 0 and {rank} hold different bits", what());
    }
}

pub(crate) fn all_reduce_is_right_for_every_dtype_and_op(communicator: &str) {
    for size in [1, 2, 3, 5] {
        let groups = world(communicator, size, PATIENT);
        for dtype in REDUCIBLE {
            for op in OPS.into_iter().filter(|op| must_serve(communicator, Collective::AllReduce, dtype, *op)) {
                for (count, in_place, misalignment) in [(0, false, 0), (1, true, 0), (37, false, 1), (61, true, 3)] {
                    check_all_reduce(&groups, Memory::Private, (dtype, op, count), in_place, misalignment);
                }
            }
        }
    }
}

pub(crate) fn all_reduce_is_right_at_every_size_and_world(communicator: &str) {
    let mut random = Random(7);
    for size in 1..=8 {
        let groups = world(communicator, size, PATIENT);
        let edges = EDGES.iter().flat_map(|edge| [edge - 1, *edge, edge + 1]);
        for bytes in [1, 2, 3, 7, 13, 64, 1000, 1021].into_iter().chain(edges) {
            let dtype = REDUCIBLE[random.below(REDUCIBLE.len())];
            let op = OPS[random.below(OPS.len())];
            if !must_serve(communicator, Collective::AllReduce, dtype, op) {
                continue;
            }
            let count = bytes.div_ceil(dtype.size());
            let call = (dtype, op, count);
            check_all_reduce(&groups, Memory::Private, call, random.below(2) == 0, random.below(8));
        }
    }
}

pub(crate) fn every_collective_moves_what_it_should(communicator: &str) {
    for size in [1, 2, 3, 4, 7, 8] {
        let groups = world(communicator, size, PATIENT);
        let bytes = [0, 1, 56, 63, 700, 2072, 4096, 16 * 1024, 16 * 1024 + 8, 3 * 64 * 1024 + 40];
        move_everything(communicator, &groups, Memory::Private, &bytes);
    }
}

/// Every collective but all_reduce, with contributions of about so many bytes.
fn move_everything(communicator: &str, groups: &[Arc<Group>], memory: Memory, bytes: &[usize]) {
    let mut random = Random(groups.len() as u64);
    for bytes in bytes {
        for collective in [
            Collective::AllGather,
            Collective::Broadcast,
            Collective::ReduceScatter,
            Collective::Reduce,
            Collective::Gather,
            Collective::Scatter,
            Collective::AllToAll,
        ] {
            let dtype = match collective.reduces() {
                true => REDUCIBLE[random.below(REDUCIBLE.len())],
                false => REDUCIBLE.into_iter().chain(MOVEMENT_ONLY).nth(random.below(15)).unwrap(),
            };
            let (op, root) = (OPS[random.below(OPS.len())], random.below(groups.len()) as u32);
            let what = descriptor(collective, dtype, op, root, bytes / dtype.size());
            let in_place = random.below(2) == 0;
            if must_serve(communicator, collective, dtype, op) {
                check_movement(groups, memory, what, in_place);
            }
        }
    }
}

/// Each way in which the communicator can serve a call, whatever the plan would choose it for.
pub(crate) fn every_algorithm_is_right_as_far_as_it_reaches(communicator: &str) {
    let algorithms = dispatch::algorithms(communicator);
    assert!(!algorithms.is_empty());
    // V-forms and messages have ways and promises of their own.
    for algorithm in algorithms.iter().filter(|algorithm| algorithm.carries == Carries::Calls) {
        // What needs registered memory takes the place of something that takes any memory and size.
        let any = algorithms.iter().find(|other| other.most == u64::MAX && other.only.is_none() && !other.registered);
        let any = any.unwrap();
        let row = match algorithm.registered {
            true => format!("* * {communicator}/{}+{}", any.name, algorithm.name),
            false => format!("* * {communicator}/{}", algorithm.name),
        };
        for size in [1, 2, 3, 5, 8] {
            let groups = planned_world(communicator, size, PATIENT, &row);
            let registered = algorithm.registered.then(|| Registered::of(&groups));
            let memory = registered.as_deref().map_or(Memory::Private, Memory::Registered);
            let mut random = Random(u64::from(size).wrapping_mul(31) ^ algorithm.most);
            let edges = EDGES.iter().flat_map(|edge| [edge - 1, *edge, edge + 1]);
            for bytes in [0, 1, 7, 200].into_iter().chain(edges).filter(|bytes| *bytes as u64 <= algorithm.most) {
                let (dtype, op) = (REDUCIBLE[random.below(REDUCIBLE.len())], OPS[random.below(OPS.len())]);
                if !must_serve(communicator, Collective::AllReduce, dtype, op) {
                    continue;
                }
                let call = (dtype, op, bytes / dtype.size());
                let what = descriptor(Collective::AllReduce, dtype, op, 0, call.2);
                let explained = groups[0].explain(&what, Format::Json).unwrap();
                let key = if algorithm.registered { "registered" } else { "algorithm" };
                assert!(explained.contains(&format!("\"{key}\":\"{}\"", algorithm.name)), "{explained}");
                check_all_reduce(&groups, memory, call, random.below(2) == 0, random.below(8));
            }
            if algorithm.only.is_none() {
                let most = (algorithm.most / u64::from(size)).min(100_000) as usize;
                move_everything(communicator, &groups, memory, &[most, most / 3]);
            }
        }
    }
}

/// Where only some buffers are registered, or in different regions, the call goes as one of any buffers.
pub(crate) fn buffers_that_are_registered_on_some_ranks_only_are_no_trouble(communicator: &str) {
    let groups = world(communicator, 3, PATIENT);
    let (one, other) = (Registered::of(&groups), Registered::of(&groups));
    let count = 50_000;
    for case in 0..16_usize {
        let inputs: Vec<_> = groups.iter().map(|g| contribution(DType::Int64, count, case as u64, g.rank())).collect();
        let expected = oracle::reduce(DType::Int64, Op::Sum, &inputs);
        on_all_ranks(&groups, |group| {
            // Two bits of the case for each of two ranks: where its buffers lie; the last rank's are registered.
            let rank = group.rank();
            let memory = match (case >> (2 * rank)) & 3 {
                0 => Memory::Registered(&one),
                1 => Memory::Registered(&other),
                _ => Memory::Private,
            };
            let result = if (case >> (2 * rank)) & 3 == 2 { Memory::Registered(&one) } else { memory };
            let mut send = Buffer::within(memory, rank, 0, &inputs[rank as usize], 1);
            let mut recv = Buffer::within(result, rank, 1, &vec![0; inputs[0].len()], 5);
            let to = if case % 3 == 0 { send.address() } else { recv.address() };
            let what = descriptor(Collective::AllReduce, DType::Int64, Op::Sum, 0, count);
            group.run(call(what, send.address(), to), Timeout::Default).unwrap();
            let result = if case % 3 == 0 { send.bytes() } else { recv.bytes() };
            assert_eq!(result, expected, "case {case}, rank {rank}");
            send.check_guards();
            recv.check_guards();
        });
    }
}

/// Memory of a group serves the groups made from it, and outlives them all.
pub(crate) fn registered_memory_serves_descendants_and_outlives_its_group(communicator: &str) {
    let groups = world(communicator, 4, PATIENT);
    let registered = Registered::of(&groups);
    on_all_ranks(&groups, |group| {
        let (give, take) = std::sync::mpsc::channel();
        let color = (group.rank() % 2) as i32;
        let deliver = move |group: Option<Arc<Group>>| drop(give.send(group));
        group.split(color, 0, GroupOptions::default(), Box::new(deliver)).unwrap();
        let half = take.recv().unwrap().unwrap();
        let count = 40_000;
        let mut data = Buffer::within(Memory::Registered(&registered), group.rank(), 0, &vec![1; count], 0);
        let what = descriptor(Collective::AllReduce, DType::Uint8, Op::Sum, 0, count);
        let address = data.address();
        half.run(call(what, address, address), Timeout::Default).unwrap();
        assert!(data.bytes().iter().all(|byte| *byte == 2));
        let different = group.allocate(if group.rank() == 3 { 1 } else { 8192 }, Box::new(|_| panic!("given")));
        assert_eq!(different.unwrap_err().status(), Status::Mismatch);
        group.sync(Timeout::Default).unwrap();
    });
    groups.iter().for_each(|group| group.leave());
    drop(groups);
    for one in &registered {
        Buffer::within(Memory::Registered(std::slice::from_ref(one)), 0, 0, b"still there", 0).check_guards();
    }
}

fn check_movement(groups: &[Arc<Group>], memory: Memory, what: Descriptor, in_place: bool) {
    let Descriptor { collective, dtype, op, root, count, .. } = what;
    let count = count as usize;
    use Collective::*;
    let size = groups.len();
    let part = count * dtype.size();
    let sends = match collective {
        ReduceScatter | Scatter | AllToAll => count * size,
        _ => count,
    };
    let inputs: Vec<_> = groups.iter().map(|g| contribution(dtype, sends, count as u64 + 5, g.rank())).collect();
    let expected = |rank: usize| -> Option<Vec<u8>> {
        let slice = |from: &[u8]| from[rank * part..(rank + 1) * part].to_vec();
        let at_root = rank == root as usize;
        match collective {
            AllGather => Some(inputs.concat()),
            Broadcast => Some(inputs[root as usize].clone()),
            ReduceScatter => Some(slice(&oracle::reduce(dtype, op, &inputs))),
            Reduce => at_root.then(|| oracle::reduce(dtype, op, &inputs)),
            Gather => at_root.then(|| inputs.concat()),
            Scatter => Some(slice(&inputs[root as usize])),
            AllToAll => Some(inputs.iter().flat_map(|input| slice(input)).collect()),
            _ => unreachable!(),
        }
    };
    on_all_ranks(groups, |group| {
        let rank = group.rank() as usize;
        let mut send = Buffer::within(memory, group.rank(), 0, &inputs[rank], 1);
        let wanted = expected(rank);
        let length = wanted.as_ref().map_or(0, Vec::len);
        // The in-place form of each collective, where this rank has one.
        let at_root = rank == root as usize;
        let mut recv = match (in_place, collective) {
            (true, AllGather) => Some((length, rank * part)),
            (true, Gather) if at_root => Some((length, rank * part)),
            _ => None,
        }
        .map(|(length, at)| {
            let mut whole = vec![0x55; length];
            whole[at..at + part].copy_from_slice(&inputs[rank]);
            (Buffer::within(memory, group.rank(), 1, &whole, 3), at)
        });
        let run = |send: *const u8, recv: *mut u8| group.run(call(what, send, recv), Timeout::Default).unwrap();
        let result = match (&mut recv, in_place, collective) {
            (Some((recv, at)), ..) => {
                let start = recv.address();
                run(start.wrapping_add(*at), start);
                recv.check_guards();
                recv.bytes().to_vec()
            }
            (None, true, Broadcast) | (None, true, Reduce) if at_root || collective == Broadcast => {
                run(send.address(), send.address());
                send.bytes().to_vec()
            }
            (None, true, ReduceScatter) => {
                run(send.address(), send.address().wrapping_add(rank * part));
                send.bytes()[rank * part..(rank + 1) * part].to_vec()
            }
            (None, true, Scatter) if at_root => {
                run(send.address(), send.address().wrapping_add(rank * part));
                send.bytes()[rank * part..(rank + 1) * part].to_vec()
            }
            _ => {
                let mut recv = Buffer::within(memory, group.rank(), 1, &vec![0x55; length], 5);
                run(send.address(), recv.address());
                recv.check_guards();
                assert_eq!(send.bytes(), inputs[rank], "the input was changed");
                recv.bytes().to_vec()
            }
        };
        send.check_guards();
        if let Some(wanted) = wanted {
            let case = format!(
                "{} of {count} x {dtype:?} {op:?}, root {root}, in place {in_place}, rank {rank}/{size}",
                collective.name()
            );
            oracle::same(dtype, &wanted, &result).unwrap_or_else(|e| panic!("{case}: {e}"));
        }
    });
}

pub(crate) fn a_barrier_waits_for_everybody(communicator: &str) {
    let groups = world(communicator, 4, PATIENT);
    let arrived = AtomicU32::new(0);
    on_all_ranks(&groups, |group| {
        for round in 1..=50 {
            arrived.fetch_add(1, Ordering::SeqCst);
            group.sync(Timeout::Default).unwrap();
            assert!(arrived.load(Ordering::SeqCst) >= round * 4);
            group.sync(Timeout::Default).unwrap();
        }
    });
}

pub(crate) fn ranks_that_disagree_get_mismatch_and_no_output(communicator: &str) {
    let base = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 0, 5000);
    let others = [
        descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 0, 4999),
        descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 0, 50),
        descriptor(Collective::AllReduce, DType::Float32, Op::Max, 0, 5000),
        descriptor(Collective::AllReduce, DType::Int32, Op::Sum, 0, 5000),
        descriptor(Collective::Broadcast, DType::Float32, Op::Sum, 0, 5000),
        descriptor(Collective::Barrier, DType::Bytes, Op::Sum, 0, 0),
    ];
    for other in others {
        let groups = world(communicator, 3, PATIENT);
        on_all_ranks(&groups, |group| {
            let what = if group.rank() == 1 { other } else { base };
            let mut send = Buffer::new(&[1; 20_000], 0);
            let mut recv = Buffer::new(&[0x55; 20_000], 0);
            let mut outcome = group.run(call(what, send.address(), recv.address()), Timeout::Default);
            // Who saw only equal headers before the failure came hears of it at its next call.
            if outcome.is_ok() {
                outcome = group.sync(Timeout::Default);
            }
            let error = outcome.unwrap_err();
            assert_eq!(error.status(), Status::Mismatch, "{error}");
            let text = error.to_string();
            assert!(text.contains(&base.to_string()) && text.contains(&other.to_string()), "{text}");
            assert!(recv.bytes().iter().all(|byte| *byte == 0x55), "an output was written from mixed data");
            assert_eq!(group.check().unwrap_err().to_string(), text);
            let failure = group.failure().unwrap();
            assert_eq!((failure.status, failure.sequence), (Status::Mismatch, 1));
        });
    }
}

pub(crate) fn an_abort_reaches_every_waiting_rank_within_10_ms(communicator: &str) {
    let groups = world(communicator, 4, PATIENT);
    let waiting = Mutex::new(Vec::new());
    let times = on_all_ranks(&groups, |group| {
        if group.rank() == 0 {
            until_asleep(&waiting, 3);
            let at = Instant::now();
            group.abort();
            return at;
        }
        waiting.lock().unwrap().push(rustix::thread::gettid());
        let error = group.sync(Timeout::Default).unwrap_err();
        let at = Instant::now();
        assert_eq!(error.status(), Status::Aborted, "{error}");
        assert!(error.to_string().contains("rank 0"), "{error}");
        at
    });
    let slowest = times[1..].iter().map(|at| at.saturating_duration_since(times[0])).max().unwrap();
    // The bound is 10 ms; a machine on which this test shares its cores may add scheduling delays.
    assert!(slowest < Duration::from_millis(200), "the abort took {slowest:?}");
}

pub(crate) fn a_missing_rank_is_named_at_the_deadline(communicator: &str) {
    let groups = world(communicator, 3, PATIENT);
    let prompt = Barrier::new(2);
    on_all_ranks(&groups, |group| {
        if group.rank() == 2 {
            // Late: it hears of the failure instead of hanging.
            while group.check().is_ok() {
                std::thread::yield_now();
            }
            assert_eq!(group.sync(Timeout::Default).unwrap_err().status(), Status::Timeout);
            return;
        }
        // Long enough for these two to find each other on a busy machine.
        let deadline = Duration::from_secs(1);
        let began = Instant::now();
        prompt.wait();
        let error = group.sync(Timeout::After(deadline)).unwrap_err();
        assert_eq!(error.status(), Status::Timeout, "{error}");
        // Whichever of the two was first to give up: no deadline began before both were here.
        assert!(began.elapsed() >= deadline, "too early: {:?}", began.elapsed());
        assert_eq!(group.failure().unwrap().rank, Some(2), "{error}");
        assert!(error.to_string().contains("rank 2 did not arrive"), "{error}");
    });
}

pub(crate) fn a_rank_that_left_is_lost_but_what_it_delivered_stays(communicator: &str) {
    let groups = world(communicator, 3, PATIENT);
    let left = Barrier::new(3);
    on_all_ranks(&groups, |group| {
        let what = descriptor(Collective::Broadcast, DType::Float32, Op::Sum, 2, 10_000);
        let mut data = vec![if group.rank() == 2 { 7_f32 } else { 0.0 }; 10_000];
        if group.rank() == 2 {
            let address: *mut u8 = data.as_mut_ptr().cast();
            group.run(call(what, address, address), Timeout::Default).unwrap();
            group.leave();
            // Before the others find out: then it is the group's failure that is told.
            assert_eq!(group.sync(Timeout::Default).unwrap_err().status(), Status::Aborted);
            left.wait();
            return;
        }
        let address: *mut u8 = data.as_mut_ptr().cast();
        group.run(call(what, address, address), Timeout::Default).unwrap();
        assert!(data.iter().all(|x| *x == 7.0));
        left.wait();
        let error = group.sync(Timeout::Default).unwrap_err();
        assert_eq!(error.status(), Status::PeerLost, "{error}");
        assert!(error.to_string().contains("rank 2 is lost: it left"), "{error}");
        assert!(!group.alive()[2] && group.alive()[group.rank() as usize]);
    });
}

pub(crate) fn a_rank_that_stops_in_a_large_sliced_call_is_named(communicator: &str) {
    // Rank 1 shows up and takes nothing: the root runs out of room in steps that are none of rank 1's.
    let groups = world(communicator, 3, PATIENT);
    let joined = Barrier::new(3);
    on_all_ranks(&groups, |group| {
        let what = descriptor(Collective::Scatter, DType::Bytes, Op::Sum, 0, 1 << 20);
        let mut send = vec![1_u8; 3 << 20];
        let mut recv = vec![0_u8; 1 << 20];
        let call = call(what, send.as_mut_ptr(), recv.as_mut_ptr());
        if group.rank() == 1 {
            let request = group.start(call, Timeout::Default).unwrap();
            // Neither tests nor checks, which would go on with the call.
            joined.wait();
            assert_eq!(request.test().unwrap_err().status(), Status::Timeout);
            return;
        }
        let error = group.run(call, Timeout::After(Duration::from_millis(500))).unwrap_err();
        assert_eq!(error.status(), Status::Timeout, "{error}");
        assert!(error.to_string().contains("rank"), "{error}");
        assert!(!error.to_string().contains("nobody was awaited"), "{error}");
        joined.wait();
    });
}

pub(crate) fn one_thread_starts_on_all_ranks_and_waits_in_reverse(communicator: &str) {
    for size in [2, 4] {
        let groups = world(communicator, size, PATIENT);
        let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 0, 1 << 18);
        for _ in 0..3 {
            let mut data: Vec<Vec<f32>> = (0..size).map(|rank| vec![rank as f32; 1 << 18]).collect();
            // Two in a row on every rank: the second queues behind the first.
            let requests: Vec<[Arc<Request>; 2]> = groups
                .iter()
                .zip(&mut data)
                .map(|(group, data)| {
                    let address: *mut u8 = data.as_mut_ptr().cast();
                    [(); 2].map(|()| group.start(call(what, address, address), Timeout::Default).unwrap())
                })
                .collect();
            for [first, second] in requests.iter().rev() {
                assert_eq!(second.wait(Timeout::Default).unwrap(), Progress::Done);
                assert_eq!(first.test().unwrap(), Progress::Done);
                assert_eq!(second.wait(Timeout::Default).unwrap(), Progress::Done);
            }
            let sum = (size * (size - 1) / 2 * size) as f32;
            assert!(data.iter().flatten().all(|x| *x == sum));
        }
    }
}

pub(crate) fn a_request_that_nobody_joins_stays_in_progress(communicator: &str) {
    let groups = world(communicator, 2, PATIENT);
    let what = descriptor(Collective::Barrier, DType::Bytes, Op::Sum, 0, 0);
    let nothing = call(what, std::ptr::null(), std::ptr::null_mut());
    let first = groups[0].start(nothing, Timeout::Default).unwrap();
    assert_eq!(first.test().unwrap(), Progress::Pending);
    assert_eq!(first.wait(Timeout::After(Duration::from_millis(20))).unwrap(), Progress::Pending);
    let second = groups[1].start(nothing, Timeout::Default).unwrap();
    assert_eq!(first.wait(Timeout::Default).unwrap(), Progress::Done);
    assert_eq!(second.wait(Timeout::Default).unwrap(), Progress::Done);
    let third = groups[0].start(nothing, Timeout::Default).unwrap();
    third.release();
    assert_eq!(third.test().unwrap_err().status(), Status::Aborted);
    assert_eq!(groups[1].sync(Timeout::Default).unwrap_err().status(), Status::Aborted);
}

pub(crate) fn a_rank_that_waits_for_a_new_world_goes_on_with_what_it_started(communicator: &str) {
    let groups = world(communicator, 2, PATIENT);
    let id = unique_id::create().unwrap();
    let count = 1 << 18; // more than any communicator holds in slots or sockets: both ranks have to go on
    let new_world = |rank| {
        let options = WorldOptions {
            size_and_rank: Some((2, rank)),
            unique_id: Some(id.clone()),
            group: GroupOptions { timeout: Timeout::from_ms(PATIENT).unwrap(), ..GroupOptions::default() },
            ..WorldOptions::default()
        };
        Group::world(options).unwrap().sync(Timeout::Default).unwrap();
    };
    let sums = on_all_ranks(&groups, |group| {
        let mut sum = vec![1.0_f32; count];
        let what = descriptor(Collective::AllReduce, DType::Float32, Op::Sum, 0, count);
        let data = sum.as_mut_ptr().cast::<u8>();
        if group.rank() == 0 {
            let request = group.start(call(what, data, data), Timeout::Default).unwrap();
            new_world(0);
            assert_eq!(request.wait(Timeout::Default).unwrap(), Progress::Done);
        } else {
            // It comes to the new world only when the call is over, in which rank 0 has to play its part.
            group.run(call(what, data, data), Timeout::Default).unwrap();
            new_world(1);
        }
        sum
    });
    assert!(sums.iter().flatten().all(|x| *x == 2.0));
}

pub(crate) fn a_second_thread_in_the_same_group_is_told_so(communicator: &str) {
    let groups = world(communicator, 2, PATIENT);
    while_another_is_inside(
        &groups[0],
        |group| group.sync(Timeout::Default),
        || {
            groups[0].check().unwrap();
            groups[1].sync(Timeout::Default).unwrap();
        },
    )
    .unwrap();
}

pub(crate) fn an_abort_ends_the_making_of_a_group_too(communicator: &str) {
    let groups = world(communicator, 2, PATIENT);
    let error = while_another_is_inside(
        &groups[0],
        |group| group.create(&[0, 1], GroupOptions::default(), Box::new(drop)),
        || groups[1].abort(),
    )
    .unwrap_err();
    assert_eq!(error.status(), Status::Aborted, "{error}");
}

/// Lets another thread make `call` in `group` and does `body` when it is inside, where it stays until `body` gets it
/// out. What the call came to.
fn while_another_is_inside(
    group: &Arc<Group>,
    call: impl Fn(&Arc<Group>) -> Result<()> + Sync,
    body: impl FnOnce(),
) -> Result<()> {
    let told_so = |outcome: &Result<()>| outcome.as_ref().is_err_and(|e| e.status() == Status::InvalidUsage);
    std::thread::scope(|scope| {
        // Either thread may be the second one; what it was told changes nothing, so it may come again.
        let inside = scope.spawn(|| {
            loop {
                let outcome = call(group);
                if !told_so(&outcome) {
                    return outcome;
                }
                std::thread::yield_now();
            }
        });
        // A group of this rank alone is made as long as the other thread is not inside; pauses let it in.
        while !told_so(&group.create(&[0], GroupOptions::default(), Box::new(drop))) {
            (0..100).for_each(|_| std::thread::yield_now());
        }
        body();
        inside.join().unwrap()
    })
}

pub(crate) fn a_batch_that_is_refused_begins_nothing(communicator: &str) {
    let groups = world(communicator, 2, PATIENT);
    let barrier =
        call(descriptor(Collective::Barrier, DType::Bytes, Op::Sum, 0, 0), std::ptr::null(), std::ptr::null_mut());
    batch::begin().unwrap();
    groups[0].run(barrier, Timeout::Default).unwrap();
    groups[1].run(barrier, Timeout::Default).unwrap();
    assert!(groups[0].create(&[0, 7], GroupOptions::default(), Box::new(drop)).is_err());
    assert_eq!(batch::end().unwrap_err().status(), Status::InvalidArgument);
    assert_eq!(batch::end().unwrap_err().status(), Status::InvalidUsage);
    // Had rank 0's barrier begun, this would meet it as call #2 of one and #1 of the other.
    let what = descriptor(Collective::AllReduce, DType::Int32, Op::Sum, 0, 1);
    let mut data = [1_i32, 2];
    batch::begin().unwrap();
    for (group, one) in groups.iter().zip(&mut data) {
        let address: *mut u8 = std::ptr::from_mut(one).cast();
        group.run(call(what, address, address), Timeout::Default).unwrap();
        let request = group.start(barrier, Timeout::Default);
        assert_eq!(request.map(drop).unwrap_err().status(), Status::InvalidUsage);
    }
    batch::end().unwrap();
    assert_eq!(data, [3, 3]);
}

pub(crate) fn ranks_change_their_plan_together(communicator: &str) {
    let groups = world(communicator, 2, PATIENT);
    let what = descriptor(Collective::Barrier, DType::Bytes, Op::Sum, 0, 0);
    on_all_ranks(&groups, |group| {
        group.set_enabled(communicator, false).unwrap();
        let refused = group.sync(Timeout::Default).unwrap_err();
        assert_eq!(refused.status(), Status::Unsupported, "{refused}");
        assert!(refused.to_string().contains("switched off"), "{refused}");
        assert!(group.explain(&what, Format::Text).unwrap().contains("disabled"));
        // Different wishes change nothing, and nobody is left waiting.
        let wish = group.rank() == 0;
        assert_eq!(group.set_enabled(communicator, wish).unwrap_err().status(), Status::Mismatch);
        assert_eq!(group.sync(Timeout::Default).unwrap_err().status(), Status::Unsupported);
        group.set_enabled(communicator, true).unwrap();
        group.sync(Timeout::Default).unwrap();
    });
}

pub(crate) fn a_communicator_says_what_it_can(communicator: &str) {
    let groups = world(communicator, 2, PATIENT);
    for dtype in REDUCIBLE {
        for op in OPS {
            for count in [1, 1 << 12, 1 << 26] {
                let what = descriptor(Collective::AllReduce, dtype, op, 0, count);
                let text = groups[0].explain(&what, Format::Json).unwrap();
                let said: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(said["chosen"]["communicator"], communicator, "{text}");
                let row =
                    said["candidates"].as_array().unwrap().iter().find(|row| row["name"] == communicator).unwrap();
                // The least that shared memory and sockets must claim.
                assert_eq!(row["capabilities"]["rank_order"], true);
                assert_eq!(row["capabilities"]["detects_mismatch"], true);
                assert!(row["capabilities"]["cancellable_within_ms"].as_u64().unwrap() <= 10);
                assert!(groups[0].explain(&what, Format::Text).unwrap().contains("served by"));
                assert_eq!(text, groups[1].explain(&what, Format::Json).unwrap(), "ranks explain differently");
            }
        }
    }
}
