//! The promises about letters: messages from one rank to another, beside the group's calls.

use std::{
    sync::{Arc, Barrier, Mutex},
    time::{Duration, Instant},
};

use tutti::{
    communicator::{Letter, Progress},
    config::Timeout,
    dispatch::Format,
    dtype::{Collective, DType, Op, REDUCIBLE},
    error::{Error, Status},
    group::{Group, Request, batch},
};

use crate::harness::{Buffer, Random, call, descriptor, on_all_ranks, until_asleep, world};

const PATIENT: i64 = 120_000;

/// Where letters change their ways: beside the flag to 32 bytes; with the envelope to 8 KiB (shm) and 16 KiB (sockets);
/// above in chunks of 16 and 64 KiB, of which 8 and 4 are on the way.
const SIZES: [usize; 17] = [
    0,
    1,
    8,
    31,
    32,
    33,
    8191,
    8192,
    8193,
    16 * 1024,
    16 * 1024 + 1,
    32 * 1024,
    64 * 1024 + 8,
    128 * 1024,
    128 * 1024 + 1,
    256 * 1024 + 3,
    1 << 20,
];

/// What rank `from` sends as its `number`-th message: no two alike.
fn content(from: u32, number: usize, bytes: usize) -> Vec<u8> {
    let mut random = Random((u64::from(from) + 1) << 32 | (number as u64 + 1) << 8 | 1);
    (0..bytes).map(|_| random.next() as u8).collect()
}

fn send(buffer: &mut Buffer, peer: u32, tag: i64, dtype: DType) -> Letter {
    let count = (buffer.bytes().len() / dtype.size()) as u64;
    // SAFETY: every test waits for its letters before it drops their memory.
    unsafe { Letter::send(peer, tag, dtype, buffer.address(), count) }
}

fn receive(buffer: &mut Buffer, peer: u32, tag: i64, dtype: DType) -> Letter {
    let count = (buffer.bytes().len() / dtype.size()) as u64;
    // SAFETY: as above.
    unsafe { Letter::receive(peer, tag, dtype, buffer.address(), count) }
}

fn bytes(content: &[u8]) -> Buffer {
    Buffer::new(content, 3)
}

fn room(bytes: usize) -> Buffer {
    Buffer::new(&vec![0x55; bytes], 5)
}

fn wait(request: &Arc<Request>) -> Result<(), Error> {
    assert_eq!(request.wait(Timeout::Default)?, Progress::Done);
    Ok(())
}

pub(crate) fn a_message_arrives_as_it_was_sent(communicator: &str) {
    for size in [2, 3] {
        let groups = world(communicator, size, PATIENT);
        on_all_ranks(&groups, |group| {
            let (me, size) = (group.rank(), group.size());
            let (to, from) = ((me + 1) % size, (me + size - 1) % size);
            for (number, length) in SIZES.into_iter().enumerate() {
                let dtype = REDUCIBLE.into_iter().chain([DType::Bool, DType::Int16, DType::Bytes]).nth(number % 15);
                let dtype = dtype.unwrap();
                let length = length / dtype.size() * dtype.size();
                // Around the ring, one after the other, so that sends meet receives that wait and others that do not.
                let mut mine = bytes(&content(me, number, length));
                let mut theirs = room(length);
                let (outgoing, incoming) = (send(&mut mine, to, 7, dtype), receive(&mut theirs, from, 7, dtype));
                if me == 0 {
                    group.exchange(&[outgoing], Timeout::Default).unwrap();
                    group.exchange(&[incoming], Timeout::Default).unwrap();
                } else {
                    let received = group.exchange(&[incoming], Timeout::Default).unwrap();
                    assert_eq!(received as usize, length / dtype.size());
                    group.exchange(&[outgoing], Timeout::Default).unwrap();
                }
                assert_eq!(theirs.bytes(), content(from, number, length), "{length} bytes");
                theirs.check_guards();
                // And all at once: nobody waits for anybody's turn.
                let mut again = room(length);
                let both = [send(&mut mine, to, 8, dtype), receive(&mut again, from, 8, dtype)];
                group.exchange(&both, Timeout::Default).unwrap();
                assert_eq!(again.bytes(), content(from, number, length), "{length} bytes, exchanged");
                again.check_guards();
            }
        });
    }
}

pub(crate) fn messages_keep_their_order_by_tag_and_overtake_other_tags(communicator: &str) {
    let groups = world(communicator, 2, PATIENT);
    let lengths = [8, 5000, 40, 300_000, 0, 20_000, 16];
    on_all_ranks(&groups, |group| {
        let peer = 1 - group.rank();
        if group.rank() == 0 {
            let mut sent = Vec::new();
            let mut requests = Vec::new();
            for (number, length) in lengths.into_iter().enumerate() {
                for tag in [1, 2] {
                    sent.push(bytes(&content(tag, number, length)));
                    let letter = send(sent.last_mut().unwrap(), peer, i64::from(tag), DType::Bytes);
                    requests.push(group.post(letter, Timeout::Default).unwrap());
                }
            }
            requests.iter().for_each(|request| wait(request).unwrap());
            return;
        }
        for tag in [2, 1] {
            for (number, length) in lengths.into_iter().enumerate() {
                let mut got = room(length);
                let letter = receive(&mut got, peer, i64::from(tag), DType::Bytes);
                assert_eq!(group.exchange(&[letter], Timeout::Default).unwrap() as usize, length);
                assert_eq!(got.bytes(), content(tag, number, length), "tag {tag}, message {number}");
            }
        }
    });
}

pub(crate) fn receives_posted_first_get_the_messages_in_order(communicator: &str) {
    let groups = world(communicator, 2, PATIENT);
    const MESSAGES: usize = 100;
    on_all_ranks(&groups, |group| {
        let peer = 1 - group.rank();
        let length = |number: usize| [8, 64, 6000, 40_000][number % 4];
        let mut buffers: Vec<Buffer> = (0..MESSAGES)
            .map(|number| match group.rank() {
                0 => room(length(number)),
                _ => bytes(&content(1, number, length(number))),
            })
            .collect();
        let requests: Vec<_> = buffers
            .iter_mut()
            .map(|buffer| match group.rank() {
                0 => group.post(receive(buffer, peer, 0, DType::Uint8), Timeout::Default).unwrap(),
                _ => group.post(send(buffer, peer, 0, DType::Uint8), Timeout::Default).unwrap(),
            })
            .collect();
        for (number, (request, buffer)) in requests.iter().zip(&buffers).enumerate().rev() {
            wait(request).unwrap();
            wait(request).unwrap();
            if group.rank() == 0 {
                assert_eq!(request.received(), Some(length(number) as u64));
                assert_eq!(buffer.bytes(), content(1, number, length(number)), "message {number}");
            }
        }
    });
}

pub(crate) fn large_messages_may_cross(communicator: &str) {
    let groups = world(communicator, 4, PATIENT);
    const LENGTH: usize = 3 << 20;
    on_all_ranks(&groups, |group| {
        let (me, size) = (group.rank(), group.size());
        // All to all by letters, each rank's to itself included, in a batch and then at once.
        let mut sends: Vec<_> = (0..size).map(|to| bytes(&content(me, to as usize, LENGTH))).collect();
        for batched in [true, false] {
            let mut receives: Vec<_> = (0..size).map(|_| room(LENGTH)).collect();
            let mut letters: Vec<_> =
                (0..).zip(&mut sends).map(|(to, buffer)| send(buffer, to, 0, DType::Bytes)).collect();
            letters.extend((0..).zip(&mut receives).map(|(from, buffer)| receive(buffer, from, 0, DType::Bytes)));
            if batched {
                batch::begin().unwrap();
                letters.iter().for_each(|letter| assert_eq!(group.exchange(&[*letter], Timeout::Default).unwrap(), 0));
                batch::end().unwrap();
            } else {
                let received = group.exchange(&letters, Timeout::Default).unwrap();
                assert_eq!(received as usize, size as usize * LENGTH);
            }
            for (from, got) in (0..).zip(&receives) {
                assert!(got.bytes() == content(from, me as usize, LENGTH), "from {from} to {me}, batched {batched}");
            }
        }
    });
}

pub(crate) fn letters_and_calls_do_not_wait_for_each_other(communicator: &str) {
    let groups = world(communicator, 2, PATIENT);
    on_all_ranks(&groups, |group| {
        let peer = 1 - group.rank();
        for length in [8, 5000, 1 << 20] {
            let (mut mine, mut theirs) = (bytes(&content(group.rank(), 1, length)), room(length));
            // A receive that nobody sends to yet, with calls of all kinds after it.
            let awaited = group.post(receive(&mut theirs, peer, 3, DType::Bytes), Timeout::Default).unwrap();
            for count in [1, 100_000] {
                let what = descriptor(Collective::AllReduce, DType::Int32, Op::Sum, 0, count);
                let mut data = vec![1_i32; count];
                let address: *mut u8 = data.as_mut_ptr().cast();
                group.run(call(what, address, address), Timeout::Default).unwrap();
                let started = group.start(call(what, address, address), Timeout::Default).unwrap();
                wait(&started).unwrap();
                assert!(data.iter().all(|element| *element == 4));
            }
            // Rank 0 sends as soon as it is here; rank 1 only when it has received.
            assert!(group.rank() == 1 || awaited.test().unwrap() == Progress::Pending);
            // And a call that the other joins only after a message that comes later.
            let what = descriptor(Collective::Barrier, DType::Bytes, Op::Sum, 0, 0);
            let nothing = call(what, std::ptr::null(), std::ptr::null_mut());
            if group.rank() == 0 {
                let barrier = group.start(nothing, Timeout::Default).unwrap();
                group.exchange(&[send(&mut mine, peer, 3, DType::Bytes)], Timeout::Default).unwrap();
                wait(&awaited).unwrap();
                wait(&barrier).unwrap();
            } else {
                wait(&awaited).unwrap();
                group.exchange(&[send(&mut mine, peer, 3, DType::Bytes)], Timeout::Default).unwrap();
                group.run(nothing, Timeout::Default).unwrap();
            }
            assert_eq!(theirs.bytes(), content(peer, 1, length));
        }
    });
}

pub(crate) fn a_message_that_does_not_fit_harms_nothing_else(communicator: &str) {
    for length in [8, 4096, 100_000] {
        let groups = world(communicator, 2, PATIENT);
        on_all_ranks(&groups, |group| {
            let peer = 1 - group.rank();
            let text = |error: &Error| {
                assert_eq!(error.status(), Status::Mismatch, "{error}");
                error.to_string()
            };
            for (wrong, dtype) in [(length - 4, DType::Float32), (length, DType::Int32)] {
                let mut data = if group.rank() == 0 { bytes(&content(0, 1, length)) } else { room(wrong) };
                let sizes = [format!("({length} bytes)"), format!("({wrong} bytes)")];
                if group.rank() == 0 {
                    let sent = group.exchange(&[send(&mut data, peer, 0, DType::Float32)], Timeout::Default);
                    // Whoever was done with the message cannot be told.
                    match &sent {
                        Ok(_) => assert!(length < 100_000, "a large message waits for its receiver"),
                        Err(error) => assert!(sizes.iter().all(|size| text(error).contains(size)), "{error}"),
                    }
                } else {
                    let got = group.exchange(&[receive(&mut data, peer, 0, dtype)], Timeout::Default);
                    let error = got.unwrap_err();
                    assert!(sizes.iter().all(|size| text(&error).contains(size)), "{error}");
                    assert!(data.bytes().iter().all(|byte| *byte == 0x55), "the room was written");
                    data.check_guards();
                }
                // A shorter one is none of these.
                let mut short = if group.rank() == 0 { bytes(&content(0, 2, length - 4)) } else { room(length) };
                if group.rank() == 0 {
                    group.exchange(&[send(&mut short, peer, 0, DType::Uint8)], Timeout::Default).unwrap();
                } else {
                    let got = group.exchange(&[receive(&mut short, peer, 0, DType::Uint8)], Timeout::Default);
                    assert_eq!(got.unwrap() as usize, length - 4);
                    assert_eq!(short.bytes()[..length - 4], content(0, 2, length - 4));
                    assert_eq!(short.bytes()[length - 4..], [0x55; 4]);
                }
                group.check().unwrap();
                group.sync(Timeout::Default).unwrap();
            }
        });
    }
}

pub(crate) fn many_messages_that_do_not_fit_are_all_refused(communicator: &str) {
    // More than can be answered before the sender hears anything.
    const MESSAGES: i64 = 12;
    let groups = world(communicator, 2, PATIENT);
    let answered = Barrier::new(2);
    on_all_ranks(&groups, |group| {
        let (peer, is_sender) = (1 - group.rank(), group.rank() == 0);
        let mut data: Vec<_> =
            (0..MESSAGES).map(|_| if is_sender { bytes(&content(0, 1, 100_000)) } else { room(8) }).collect();
        let letter = |(tag, data): (i64, &mut Buffer)| match is_sender {
            true => send(data, peer, tag, DType::Bytes),
            false => receive(data, peer, tag, DType::Bytes),
        };
        let letters: Vec<Letter> = (0..).zip(&mut data).map(letter).collect();
        if !is_sender {
            group.sync(Timeout::Default).unwrap();
        }
        let requests: Vec<_> =
            letters.into_iter().map(|letter| group.post(letter, Timeout::Default).unwrap()).collect();
        if is_sender {
            group.sync(Timeout::Default).unwrap();
        }
        // The sender hears nothing until the receiver has answered as many as it can.
        answered.wait();
        if !is_sender {
            group.sync(Timeout::Default).unwrap();
        }
        for request in &requests {
            assert_eq!(wait(request).unwrap_err().status(), Status::Mismatch);
        }
        if is_sender {
            group.sync(Timeout::Default).unwrap();
        }
        group.check().unwrap();
    });
}

pub(crate) fn a_rank_may_write_to_itself(communicator: &str) {
    for size in [1, 2] {
        let groups = world(communicator, size, PATIENT);
        on_all_ranks(&groups, |group| {
            let me = group.rank();
            for length in [0, 8, 100_000] {
                let mut mine = bytes(&content(me, 1, length));
                for receive_first in [true, false] {
                    let mut got = room(length);
                    let mut letters = [receive(&mut got, me, 4, DType::Bytes), send(&mut mine, me, 4, DType::Bytes)];
                    if !receive_first {
                        letters.reverse();
                    }
                    let first = group.post(letters[0], Timeout::Default).unwrap();
                    assert_eq!(first.test().unwrap(), Progress::Pending);
                    group.exchange(&letters[1..], Timeout::Default).unwrap();
                    wait(&first).unwrap();
                    assert_eq!(got.bytes(), mine.bytes());
                }
                let mut small = room(length / 2);
                let letters = [receive(&mut small, me, 4, DType::Bytes), send(&mut mine, me, 4, DType::Bytes)];
                let both = group.exchange(&letters, Timeout::Default);
                assert_eq!(
                    both.map(drop).map_err(|error| error.status()),
                    match length {
                        0 => Ok(()),
                        _ => Err(Status::Mismatch),
                    }
                );
            }
            group.sync(Timeout::Default).unwrap();
            if me == 0 {
                let began = Instant::now();
                let deadline = Timeout::After(Duration::from_millis(300));
                let alone = group.exchange(&[send(&mut bytes(&[1; 8]), 0, 5, DType::Bytes)], deadline);
                let error = alone.unwrap_err();
                assert_eq!(error.status(), Status::Timeout, "{error}");
                assert!(error.to_string().contains("this rank itself"), "{error}");
                assert!(began.elapsed() < Duration::from_secs(30));
                assert_eq!(group.failure().unwrap().rank, Some(0));
            }
        });
    }
}

pub(crate) fn a_receive_nobody_sends_to_names_the_rank(communicator: &str) {
    let groups = world(communicator, 3, PATIENT);
    let over = Barrier::new(3);
    on_all_ranks(&groups, |group| {
        let mut got = room(8);
        if group.rank() == 1 {
            let began = Instant::now();
            let deadline = Duration::from_millis(200);
            let letter = receive(&mut got, 2, 9, DType::Float32);
            let error = group.exchange(&[letter], Timeout::After(deadline)).unwrap_err();
            assert_eq!(error.status(), Status::Timeout, "{error}");
            assert!(error.to_string().contains("rank 2 did not send it within 0.2 s"), "{error}");
            assert!(error.to_string().contains("recv of 2 x float32 from rank 2 with tag 9"), "{error}");
            assert!(began.elapsed() >= deadline);
            let failure = group.failure().unwrap();
            assert_eq!((failure.rank, failure.collective), (Some(2), Some(Collective::Recv)));
        }
        over.wait();
        while group.check().is_ok() {
            std::thread::yield_now();
        }
        // The others hear it, and their letters end with it.
        let error = group.exchange(&[send(&mut got, 0, 0, DType::Float32)], Timeout::Default).unwrap_err();
        assert_eq!(error.status(), Status::Timeout, "{error}");
    });
}

pub(crate) fn an_abort_ends_letters_within_10_ms(communicator: &str) {
    let groups = world(communicator, 3, PATIENT);
    let waiting = Mutex::new(Vec::new());
    let times = on_all_ranks(&groups, |group| {
        let mut large = bytes(&content(0, 0, 1 << 20));
        if group.rank() == 0 {
            until_asleep(&waiting, 2);
            let at = Instant::now();
            group.abort();
            return at;
        }
        waiting.lock().unwrap().push(rustix::thread::gettid());
        // One waits for a message, the other for its receiver.
        let letter = match group.rank() {
            1 => receive(&mut large, 0, 0, DType::Bytes),
            _ => send(&mut large, 0, 0, DType::Bytes),
        };
        let error = group.exchange(&[letter], Timeout::Default).unwrap_err();
        let at = Instant::now();
        assert_eq!(error.status(), Status::Aborted, "{error}");
        at
    });
    let slowest = times[1..].iter().map(|at| at.saturating_duration_since(times[0])).max().unwrap();
    assert!(slowest < Duration::from_millis(200), "the abort took {slowest:?}");
}

pub(crate) fn a_rank_that_left_is_lost_to_those_who_wait_for_its_letters(communicator: &str) {
    let groups = world(communicator, 2, PATIENT);
    let left = Barrier::new(2);
    on_all_ranks(&groups, |group| {
        let mut data = bytes(&content(0, 0, 1000));
        if group.rank() == 0 {
            group.exchange(&[send(&mut data, 1, 0, DType::Bytes)], Timeout::Default).unwrap();
            group.leave();
            left.wait();
            return;
        }
        left.wait();
        let mut got = room(1000);
        group.exchange(&[receive(&mut got, 0, 0, DType::Bytes)], Timeout::Default).unwrap();
        assert_eq!(got.bytes(), data.bytes(), "what it delivered stays");
        let error = group.exchange(&[receive(&mut got, 0, 0, DType::Bytes)], Timeout::Default).unwrap_err();
        assert_eq!(error.status(), Status::PeerLost, "{error}");
        assert!(error.to_string().contains("rank 0 is lost: it left"), "{error}");
    });
}

pub(crate) fn one_thread_carries_the_letters_of_several_ranks(communicator: &str) {
    let groups = world(communicator, 3, PATIENT);
    for length in [8, 1 << 20] {
        let mut sends: Vec<_> = (0..3).map(|rank| bytes(&content(rank, 0, length))).collect();
        let mut receives: Vec<_> = (0..3).map(|_| room(length)).collect();
        batch::begin().unwrap();
        for (group, (mine, theirs)) in groups.iter().zip(sends.iter_mut().zip(&mut receives)) {
            let (to, from) = ((group.rank() + 1) % 3, (group.rank() + 2) % 3);
            group.exchange(&[send(mine, to, 0, DType::Bytes)], Timeout::Default).unwrap();
            group.sync(Timeout::Default).unwrap();
            group.exchange(&[receive(theirs, from, 0, DType::Bytes)], Timeout::Default).unwrap();
        }
        batch::end().unwrap();
        for (rank, got) in receives.iter().enumerate() {
            assert!(got.bytes() == sends[(rank + 2) % 3].bytes(), "rank {rank}, {length} bytes");
        }
    }
}

pub(crate) fn a_flood_of_unasked_messages_is_bounded_and_arrives(communicator: &str) {
    // More than a shelf holds: the sender is held back, not the memory of the receiver filled.
    const MESSAGES: usize = 9_000;
    let groups = world(communicator, 2, PATIENT);
    on_all_ranks(&groups, |group| {
        let peer = 1 - group.rank();
        if group.rank() == 0 {
            let mut data: Vec<u64> = (0..MESSAGES as u64).collect();
            let mut requests = Vec::new();
            for element in &mut data {
                let letter =
                    // SAFETY: all requests are waited for below.
                    unsafe { Letter::send(peer, 1, DType::Uint64, std::ptr::from_mut(element).cast(), 1) };
                requests.push(group.post(letter, Timeout::Default).unwrap());
            }
            group.exchange(&[send(&mut bytes(&[1; 8]), peer, 2, DType::Bytes)], Timeout::Default).unwrap();
            requests.iter().for_each(|request| wait(request).unwrap());
            return;
        }
        let mut got = room(8);
        // All of the flood lies before this one.
        group.exchange(&[receive(&mut got, peer, 2, DType::Bytes)], Timeout::Default).unwrap();
        for number in 0..MESSAGES as u64 {
            group.exchange(&[receive(&mut got, peer, 1, DType::Uint64)], Timeout::Default).unwrap();
            assert_eq!(got.bytes(), number.to_ne_bytes());
        }
    });
}

pub(crate) fn letters_are_explained_and_borrowed_ones_kept_out_of_batches(communicator: &str) {
    let groups = world(communicator, 2, PATIENT);
    for collective in [Collective::Send, Collective::Recv] {
        let what = descriptor(collective, DType::Float32, Op::Sum, 0, 1 << 20);
        let said: serde_json::Value = serde_json::from_str(&groups[0].explain(&what, Format::Json).unwrap()).unwrap();
        assert_eq!(said["chosen"]["communicator"], communicator, "{said}");
    }
    let refused = |outcome: Result<(), Error>| outcome.unwrap_err().status();
    batch::begin().unwrap();
    assert_eq!(refused(groups[0].send_bytes(&[1], 1, 0, Timeout::Default)), Status::InvalidUsage);
    batch::end().unwrap();
    assert_eq!(refused(groups[0].send_bytes(&[1], 2, 0, Timeout::Default)), Status::InvalidArgument);
    on_all_ranks(&groups, |group: &Arc<Group>| match group.rank() {
        0 => group.send_bytes(b"hello", 1, 0, Timeout::Default).unwrap(),
        _ => {
            let mut room = [0; 16];
            assert_eq!(group.receive_bytes(&mut room, 0, 0, Timeout::Default).unwrap(), 5);
            assert_eq!(&room[..5], b"hello");
        }
    });
}
