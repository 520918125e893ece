//! Random programs: the same sequence of mixed collectives, groups, messages, requests and batches on every rank, and
//! what each step brings compared with what the definitions say. `TUTTI_SEED=n` runs the program of that seed alone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tutti::{
    communicator::{Letter, Progress},
    config::{GroupOptions, Timeout},
    dtype::{Collective, DType, OPS, Op, REDUCIBLE},
    group::{Group, Request, batch},
};

use crate::{
    harness::{Buffer, Random, call, descriptor, on_all_ranks, world},
    oracle,
    promises::contribution,
    uneven::{Form, Side},
};

const PATIENT: i64 = 120_000;
/// Programs per communicator, unless time runs out before; their worlds have 1 to 8 ranks in turn.
const PROGRAMS: u64 = 1600;
/// Programs that are run between two looks at the clock.
const ROUND: u64 = 160;
/// No further round begins after this.
const BUDGET: Duration = Duration::from_secs(20);
const STEPS: usize = 12;

/// How one rank makes a call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Blocking,
    Request,
}

#[derive(Debug)]
enum What {
    Even { collective: Collective, dtype: DType, op: Op, root: u32, count: usize, seed: u64 },
    Uneven(u64),
    Message { from: u32, to: u32, tag: i64, bytes: usize, seed: u64 },
}

#[derive(Debug)]
enum Step {
    /// On the world or on the last group made, if this rank is in it.
    Call { on_part: bool, what: What, how: [How; 2] },
    /// The world is split in as many groups, which replace the last ones.
    Split(u32),
    /// The next steps are made together; how many.
    Batch(usize),
    /// Everything that was started is waited for.
    Finish,
}

/// What is under way, and what must come of it.
struct Underway {
    request: Option<Arc<Request>>,
    memory: Memory,
}

enum Memory {
    Even { send: Buffer, recv: Buffer, dtype: DType, input: Vec<u8>, wanted: Option<Vec<u8>> },
    Uneven(Box<Side>),
    Message { _sent: Option<Buffer>, received: Option<(Buffer, Vec<u8>)> },
}

pub(crate) fn programs_do_what_their_definitions_say(communicator: &str) {
    let only: Option<u64> = std::env::var("TUTTI_SEED").ok().map(|seed| seed.parse().expect("TUTTI_SEED is a number"));
    let (begin, end) = only.map_or((0, PROGRAMS), |seed| (seed, seed + 1));
    let worlds: Vec<_> = (1..=8).map(|size| world(communicator, size, PATIENT)).collect();
    let began = Instant::now();
    let mut next = begin;
    while next < end && (next == begin || began.elapsed() < BUDGET) {
        let round = next..(next + ROUND).min(end);
        for (groups, rest) in worlds.iter().zip(0..) {
            let seeds: Vec<u64> = round.clone().filter(|seed| seed % 8 == rest).collect();
            if seeds.is_empty() {
                continue;
            }
            on_all_ranks(groups, |group| {
                for seed in &seeds {
                    let told = Told(*seed);
                    run(group, *seed);
                    std::mem::forget(told);
                }
            });
        }
        next = round.end;
    }
    println!("{communicator}: the programs of the seeds {begin} to {} in {:.1?}", next - 1, began.elapsed());
}

/// Says which program it was, if it panics.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        eprintln!("the program of TUTTI_SEED={} did not do what it should", self.0);
    }
}

/// The program of a seed: the same on all ranks.
fn program(seed: u64, size: u32) -> Vec<Step> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (0..STEPS)
        .map(|_| match random.below(12) {
            0 => Step::Split(1 + random.below(size as usize) as u32),
            1 => Step::Finish,
            2 | 3 => Step::Batch(1 + random.below(4)),
            kind => {
                let bytes = [0, 1, 8, 60, 700, 5_000, 20_000, 70_000][random.below(8)];
                let what = match kind {
                    4..8 => {
                        use Collective::*;
                        let collective = [
                            AllReduce,
                            AllGather,
                            ReduceScatter,
                            Broadcast,
                            Reduce,
                            Gather,
                            Scatter,
                            AllToAll,
                            Barrier,
                        ][random.below(9)];
                        let dtype = REDUCIBLE[random.below(REDUCIBLE.len())];
                        let (op, root) = (OPS[random.below(5)], random.next() as u32);
                        What::Even { collective, dtype, op, root, count: bytes / dtype.size(), seed: random.next() }
                    }
                    8 => What::Uneven(random.next()),
                    _ => What::Message {
                        from: random.next() as u32,
                        to: random.next() as u32,
                        tag: random.below(3) as i64,
                        bytes,
                        seed: random.next(),
                    },
                };
                let mut how = || if random.below(2) == 0 { How::Blocking } else { How::Request };
                let how = [how(), how()];
                Step::Call { on_part: random.below(3) == 0, what, how }
            }
        })
        .collect()
}

fn run(group: &Arc<Group>, seed: u64) {
    let steps = program(seed, group.size());
    let mut part: Option<Arc<Group>> = None;
    let mut underway: Vec<Underway> = Vec::new();
    // Steps of the open batch still to come, and those that stand in it.
    let mut batched = 0;
    let mut written: Vec<Underway> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let case = format!("TUTTI_SEED={seed}, step {number}, rank {} of {}: {step:?}", group.rank(), group.size());
        match step {
            Step::Split(colors) if batched == 0 => {
                let (send, receive) = std::sync::mpsc::channel();
                let color = (group.rank() % colors) as i32;
                let deliver = Box::new(move |made| send.send(made).unwrap());
                group.split(color, -(group.rank() as i32), GroupOptions::default(), deliver).unwrap();
                // What goes on in the old part ends before it does.
                finish(&mut underway, &case);
                group.sync(Timeout::Default).unwrap();
                part = receive.recv().unwrap();
            }
            Step::Finish if batched == 0 => finish(&mut underway, &case),
            Step::Batch(count) if batched == 0 => {
                batch::begin().unwrap();
                batched = count + 1;
            }
            Step::Call { on_part, what, how } => {
                let on = if *on_part { part.as_ref() } else { Some(group) };
                if let Some(on) = on {
                    let made = make(on, what, *how, batched > 0, &case);
                    match batched {
                        0 => underway.extend(made),
                        _ => written.extend(made),
                    }
                }
            }
            _ => {}
        }
        if batched > 0 {
            batched -= 1;
            if batched == 0 || number + 1 == steps.len() {
                batch::end().unwrap_or_else(|error| panic!("{case}: {error}"));
                batched = 0;
                finish(&mut written, &case);
            }
        }
    }
    finish(&mut underway, &format!("TUTTI_SEED={seed}, at the end"));
    // Nobody leaves a part while others are in it.
    group.sync(Timeout::Default).unwrap();
}

/// Makes one call; what is not over comes back. In a batch nothing is a request.
fn make(group: &Arc<Group>, what: &What, how: [How; 2], batched: bool, case: &str) -> Option<Underway> {
    let size = group.size();
    let (me, failed) = (group.rank(), |error| panic!("{case}: {error}"));
    let started = |how: How| how == How::Request && !batched;
    let mut one = match what {
        What::Even { collective, dtype, op, root, count, seed } => {
            let count = if *collective == Collective::Barrier { 0 } else { *count };
            let dtype = if *collective == Collective::Barrier { DType::Bytes } else { *dtype };
            let op = if collective.reduces() { *op } else { Op::Sum };
            let root = if collective.has_root() { root % size } else { 0 };
            let (input, wanted, room) = even(*collective, dtype, op, root, count, *seed, me, size);
            let mut send = Buffer::new(&input, 1);
            let mut recv = Buffer::new(&vec![0x55; room], 3);
            let call = call(descriptor(*collective, dtype, op, root, count), send.address(), recv.address());
            let request = match started(how[0]) {
                true => Some(group.start(call, Timeout::Default).unwrap_or_else(failed)),
                false => {
                    group.run(call, Timeout::Default).unwrap_or_else(|error| panic!("{case}: {error}"));
                    None
                }
            };
            Underway { request, memory: Memory::Even { send, recv, dtype, input, wanted } }
        }
        What::Uneven(seed) => {
            let form = Form::random(&mut Random(*seed | 1), size as usize, 3_000);
            let side = Box::new(form.side(me as usize));
            let request = match started(how[0]) {
                true => Some(group.start_uneven(side.call.clone(), Timeout::Default).unwrap_or_else(failed)),
                false => {
                    let made = group.run_uneven(side.call.clone(), Timeout::Default);
                    made.unwrap_or_else(|error| panic!("{case}: {error}"));
                    None
                }
            };
            Underway { request, memory: Memory::Uneven(side) }
        }
        What::Message { from, to, tag, bytes, seed } => {
            let (from, to) = (from % size, to % size);
            let content = contribution(DType::Bytes, *bytes, *seed, from);
            let mut sent = (me == from).then(|| Buffer::new(&content, 1));
            let mut received = (me == to).then(|| (Buffer::new(&vec![0x55; *bytes], 3), content.clone()));
            let count = *bytes as u64;
            // SAFETY: the buffers are kept until the letters are over.
            let letters: Vec<Letter> = unsafe {
                let send = sent.as_mut().map(|buffer| Letter::send(to, *tag, DType::Bytes, buffer.address(), count));
                let receive = received
                    .as_mut()
                    .map(|(buffer, _)| Letter::receive(from, *tag, DType::Bytes, buffer.address(), count));
                receive.into_iter().chain(send).collect()
            };
            let how = if me == from { how[0] } else { how[1] };
            let request = match letters.as_slice() {
                [] => return None,
                [letter] if started(how) => Some(group.post(*letter, Timeout::Default).unwrap_or_else(failed)),
                letters => {
                    let made = group.exchange(letters, Timeout::Default);
                    made.unwrap_or_else(|error| panic!("{case}: {error}"));
                    None
                }
            };
            Underway { request, memory: Memory::Message { _sent: sent, received } }
        }
    };
    if one.request.is_none() && !batched {
        one.memory.check(case);
        return None;
    }
    Some(one)
}

/// What rank `me` contributes to a collective, what must come of it, and how much room that takes.
#[expect(clippy::too_many_arguments, reason = "all of what defines a call")]
fn even(
    collective: Collective,
    dtype: DType,
    op: Op,
    root: u32,
    count: usize,
    seed: u64,
    me: u32,
    size: u32,
) -> (Vec<u8>, Option<Vec<u8>>, usize) {
    use Collective::*;
    let sends = match collective {
        ReduceScatter | Scatter | AllToAll => count * size as usize,
        _ => count,
    };
    let inputs: Vec<_> = (0..size).map(|rank| contribution(dtype, sends, seed, rank)).collect();
    let part = count * dtype.size();
    let slice = |from: &[u8]| from[me as usize * part..(me as usize + 1) * part].to_vec();
    let at_root = me == root;
    let wanted = match collective {
        AllReduce => Some(oracle::reduce(dtype, op, &inputs)),
        AllGather => Some(inputs.concat()),
        Broadcast => Some(inputs[root as usize].clone()),
        ReduceScatter => Some(slice(&oracle::reduce(dtype, op, &inputs))),
        Reduce => at_root.then(|| oracle::reduce(dtype, op, &inputs)),
        Gather => at_root.then(|| inputs.concat()),
        Scatter => Some(slice(&inputs[root as usize])),
        AllToAll => Some(inputs.iter().flat_map(|input| slice(input)).collect()),
        _ => None,
    };
    let room = wanted.as_ref().map_or(0, Vec::len);
    (inputs[me as usize].clone(), wanted, room)
}

/// Waits for all, the youngest first, and checks what came.
fn finish(underway: &mut Vec<Underway>, case: &str) {
    for mut one in underway.drain(..).rev() {
        if let Some(request) = &one.request {
            let progress = request.wait(Timeout::Default).unwrap_or_else(|error| panic!("{case}: {error}"));
            assert_eq!(progress, Progress::Done, "{case}");
        }
        one.memory.check(case);
    }
}

impl Memory {
    fn check(&mut self, case: &str) {
        match self {
            Memory::Even { send, recv, dtype, input, wanted } => {
                send.check_guards();
                recv.check_guards();
                assert!(send.bytes() == input.as_slice(), "{case}: the input was changed");
                if let Some(wanted) = wanted {
                    oracle::same(*dtype, wanted, recv.bytes()).unwrap_or_else(|error| panic!("{case}: {error}"));
                }
            }
            Memory::Uneven(side) => side.check(case),
            Memory::Message { received: Some((buffer, content)), .. } => {
                buffer.check_guards();
                assert!(buffer.bytes() == content.as_slice(), "{case}: another message came");
            }
            Memory::Message { .. } => {}
        }
    }
}
