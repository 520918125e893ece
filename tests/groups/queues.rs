//! Queues: every reader gets every message, whole and in order, whatever its size and whoever is slow; and who is to
//! blame when it does not.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tutti::{
    config::{GroupOptions, Selection, Timeout, WorldOptions},
    error::{Error, Result, Status},
    group::{
        Group, batch,
        queue::{Queue, QueueOptions},
    },
};

use crate::{PATIENT, Random, on_threads, sum, together, world};

/// Bytes that one slot of the ring holds.
const CHUNK: usize = 16 * 1024;

fn make(group: &Arc<Group>, options: QueueOptions) -> Result<Arc<Queue>> {
    let made = Arc::new(Mutex::new(None));
    let place = made.clone();
    group.create_queue(options, Box::new(move |queue| *place.lock().unwrap() = Some(queue)))?;
    let queue = made.lock().unwrap().take();
    Ok(queue.expect("it was made"))
}

/// The queues of all ranks of a world.
fn queues(size: u32, writer: u32, capacity: u64) -> Vec<Arc<Queue>> {
    on_threads(world(size), |_, world| {
        make(&world, QueueOptions { writer, capacity, ..QueueOptions::default() }).unwrap()
    })
}

fn message(number: usize, bytes: usize) -> Vec<u8> {
    let mut random = Random(number as u64 + 1);
    (0..bytes).map(|_| random.below(256) as u8).collect()
}

fn read(queue: &Queue) -> Result<Vec<u8>> {
    let length = queue.next(Timeout::Default)?;
    let mut buffer = vec![0; length as usize];
    assert_eq!(queue.read(&mut buffer, Timeout::Default)?, length);
    Ok(buffer)
}

#[test]
fn every_reader_gets_every_message_whole_and_in_order() {
    let _process = together();
    // To one chunk, at its edges, beyond the ring of four, and many that wait at once.
    let sizes = [0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK, 11 * CHUNK + 5, 1 << 20, 8, 8, 8, 8, 8, 8, 8, 0];
    for (size, writer) in [(2, 0), (3, 2), (4, 1)] {
        on_threads(queues(size, writer, 1), |_, queue| {
            for (number, bytes) in sizes.into_iter().cycle().take(4 * sizes.len()).enumerate() {
                match queue.is_writer() {
                    true => queue.write(&message(number, bytes), Timeout::Default).unwrap(),
                    false => {
                        assert!(read(&queue).unwrap() == message(number, bytes), "message {number} of {bytes} bytes")
                    }
                }
            }
        });
    }
}

#[test]
fn a_queue_and_its_group_go_on_beside_each_other() {
    let _process = together();
    on_threads(world(3), |_, group| {
        let queue = make(&group, QueueOptions::default()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..500 {
                    match queue.is_writer() {
                        true => queue.write(&message(number, number), Timeout::Default).unwrap(),
                        false => assert_eq!(read(&queue).unwrap(), message(number, number)),
                    }
                }
            });
            for _ in 0..500 {
                assert_eq!(sum(&group, 1).unwrap(), 3);
            }
        });
        drop(group);
        // It outlives its group.
        if queue.is_writer() {
            queue.write(b"still here", Timeout::Default).unwrap();
        } else {
            assert_eq!(read(&queue).unwrap(), b"still here");
        }
    });
}

#[test]
fn a_message_that_does_not_fit_the_buffer_stays() {
    let _process = together();
    on_threads(queues(2, 0, 0), |_, queue| {
        if queue.is_writer() {
            return queue.write(&[7; 100], Timeout::Default).unwrap();
        }
        let error = queue.read(&mut [0; 99], Timeout::Default).unwrap_err();
        assert_eq!(error.to_string(), "the next message has 100 bytes; there is room for 99");
        assert_eq!(error.status(), Status::InvalidArgument);
        assert_eq!(queue.next(Timeout::Default).unwrap(), 100);
        let mut buffer = [0; 128];
        assert_eq!(queue.read(&mut buffer, Timeout::Default).unwrap(), 100);
        assert_eq!(buffer[..101], [[7; 100].as_slice(), &[0]].concat());
    });
}

fn short() -> Timeout {
    Timeout::After(Duration::from_millis(50))
}

/// A deadline that only who is late on purpose misses, busy as the machine may be.
fn a_second() -> Timeout {
    Timeout::After(Duration::from_secs(1))
}

fn failed(error: Error) -> (Status, Option<u32>, String) {
    match error {
        Error::Failed(failure) => (failure.status, failure.rank, failure.text),
        other => panic!("{other}"),
    }
}

#[test]
fn a_message_that_does_not_come_is_a_timeout_that_changes_nothing() {
    let _process = together();
    let waited = AtomicBool::new(false);
    on_threads(queues(2, 1, 0), |_, queue| {
        if queue.is_writer() {
            while !waited.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            return queue.write(b"late", Timeout::Default).unwrap();
        }
        let (status, rank, text) = failed(queue.read(&mut [0; 8], short()).unwrap_err());
        assert_eq!((status, rank), (Status::Timeout, Some(1)));
        assert!(text.contains("message 1 of \"queue of world\": rank 1 (process "), "{text}");
        waited.store(true, Ordering::Release);
        assert_eq!(read(&queue).unwrap(), b"late");
    });
}

#[test]
fn a_slow_reader_is_named_and_what_was_not_begun_may_be_repeated() {
    let _process = together();
    let named = AtomicBool::new(false);
    on_threads(queues(3, 0, 1), |rank, queue| {
        let messages = || (0..5).map(|number| message(number, 1000));
        if queue.is_writer() {
            for message in messages().take(4) {
                queue.write(&message, Timeout::Default).unwrap();
            }
            let fifth = messages().nth(4).unwrap();
            let (status, rank, text) = failed(queue.write(&fifth, a_second()).unwrap_err());
            assert_eq!((status, rank), (Status::Timeout, Some(2)));
            assert!(text.contains("rank 2 (process "), "{text}");
            assert!(
                text.ends_with("which is alive) has not read what came before within 1.0 s; nothing of it was written"),
                "{text}"
            );
            queue.check().unwrap();
            named.store(true, Ordering::Release);
            return queue.write(&fifth, Timeout::Default).unwrap();
        }
        while rank == 2 && !named.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        assert!(messages().all(|message| read(&queue).unwrap() == message));
    });
}

#[test]
fn a_reader_that_stops_in_the_middle_of_a_message_fails_the_queue_for_all() {
    let _process = together();
    on_threads(queues(3, 0, 1), |rank, queue| match rank {
        0 => {
            let (status, slow, text) = failed(queue.write(&vec![0; 1 << 20], a_second()).unwrap_err());
            assert_eq!((status, slow), (Status::Timeout, Some(2)), "{text}");
            assert!(text.contains("has not read the first part of it"), "{text}");
            assert_eq!(queue.write(b"", short()).unwrap_err().to_string(), text, "a failed queue stays failed");
        }
        1 => {
            let (status, slow, _) = failed(read(&queue).unwrap_err());
            assert_eq!((status, slow), (Status::Timeout, Some(2)));
        }
        _ => {
            while queue.check().is_ok() {
                std::thread::yield_now();
            }
            assert_eq!(failed(read(&queue).unwrap_err()).1, Some(2), "it hears that it was named");
        }
    });
}

#[test]
fn a_writer_that_leaves_is_named_when_all_it_wrote_was_read() {
    let _process = together();
    let left = AtomicBool::new(false);
    on_threads(queues(2, 0, 0), |_, queue| {
        if queue.is_writer() {
            queue.write(b"one", Timeout::Default).unwrap();
            queue.write(b"two", Timeout::Default).unwrap();
            queue.leave();
            assert_eq!(queue.write(b"three", Timeout::Default).unwrap_err().status(), Status::Aborted);
            return left.store(true, Ordering::Release);
        }
        while !left.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        assert_eq!(read(&queue).unwrap(), b"one");
        assert_eq!(read(&queue).unwrap(), b"two");
        let (status, rank, text) = failed(read(&queue).unwrap_err());
        assert_eq!((status, rank), (Status::PeerLost, Some(0)));
        assert!(text.contains("message 3 of") && text.contains("it left"), "{text}");
    });
}

#[test]
fn a_reader_that_finds_the_writer_gone_takes_nothing_from_a_slower_one() {
    let _process = together();
    let failed_for_all = AtomicBool::new(false);
    on_threads(queues(3, 0, 0), |rank, queue| {
        let large = message(3, 3 * CHUNK);
        if queue.is_writer() {
            queue.write(b"one", Timeout::Default).unwrap();
            return queue.write(&large, Timeout::Default).unwrap();
        }
        while rank == 2 && !failed_for_all.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        assert_eq!(read(&queue).unwrap(), b"one");
        assert!(read(&queue).unwrap() == large);
        let (status, lost, _) = failed(read(&queue).unwrap_err());
        assert_eq!((status, lost), (Status::PeerLost, Some(0)));
        failed_for_all.store(true, Ordering::Release);
    });
}

#[test]
fn a_reader_that_leaves_is_named_when_the_writer_needs_it() {
    let _process = together();
    on_threads(queues(2, 0, 1), |_, queue| {
        if !queue.is_writer() {
            return queue.leave();
        }
        let mut written = 0;
        let (status, rank, text) = failed(loop {
            match queue.write(b"", Timeout::Default) {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
        });
        assert_eq!((status, rank, written), (Status::PeerLost, Some(1), 4), "{text}");
    });
}

#[test]
fn leaving_ends_a_read_in_another_thread() {
    let _process = together();
    let mut ends = queues(2, 0, 0);
    let (reader, _writer) = (ends.remove(1), ends.remove(0));
    let began = Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| read(&reader));
        while !waiting.is_finished() && began.elapsed() < Duration::from_millis(20) {
            std::thread::yield_now();
        }
        reader.leave();
        assert_eq!(waiting.join().unwrap().unwrap_err().status(), Status::Aborted);
    });
    assert!(began.elapsed() < PATIENT / 2);
}

#[test]
fn the_wrong_end_a_second_thread_and_a_batch_are_refused() {
    let _process = together();
    let ends = queues(2, 0, 0);
    assert!(ends[0].read(&mut [], short()).unwrap_err().to_string().contains("rank 0 writes this queue"));
    assert!(ends[1].write(b"", short()).unwrap_err().to_string().contains("rank 1 reads this queue; rank 0 writes it"));
    let inside = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            inside.store(1, Ordering::Release);
            read(&ends[1])
        });
        while inside.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        // The other thread enters in a moment.
        let refused = loop {
            match ends[1].next(Timeout::After(Duration::from_millis(1))) {
                Err(error) if error.status() == Status::Timeout => {}
                Err(error) => break error,
                Ok(_) => panic!("nothing was written"),
            }
        };
        assert_eq!(refused.status(), Status::InvalidUsage);
        ends[0].write(b"x", Timeout::Default).unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), b"x");
    });
    batch::begin().unwrap();
    assert_eq!(ends[0].write(b"", short()).unwrap_err().status(), Status::InvalidUsage);
    batch::end().unwrap();
}

#[test]
fn ranks_that_want_different_queues_make_none() {
    let _process = together();
    on_threads(world(2), |rank, group| {
        let writer = rank as u32;
        let error = make(&group, QueueOptions { writer, ..QueueOptions::default() }).err().unwrap();
        assert_eq!(error.status(), Status::Mismatch);
        assert!(error.to_string().contains("ranks differ in queue written by"), "{error}");
        let error = make(&group, QueueOptions { writer: 2, ..QueueOptions::default() }).err().unwrap();
        assert_eq!(error.to_string(), "writer is 2, but the group has 2 ranks");
        let error = make(&group, QueueOptions { capacity: u64::MAX, ..QueueOptions::default() }).err().unwrap();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert_eq!(sum(&group, 1).unwrap(), 2);
    });
}

#[test]
fn one_thread_makes_the_ends_of_all_its_ranks_in_a_batch() {
    let _process = together();
    let communicators = Selection::parse("=shm").unwrap();
    let group = GroupOptions { communicators, timeout: Timeout::After(PATIENT), ..GroupOptions::default() };
    let ranks = Group::world_local(2, None, WorldOptions { group, ..WorldOptions::default() }).unwrap();
    let made: Vec<Arc<Mutex<Option<Arc<Queue>>>>> = ranks.iter().map(|_| Arc::default()).collect();
    batch::begin().unwrap();
    for (rank, place) in ranks.iter().zip(&made) {
        let place = place.clone();
        rank.create_queue(QueueOptions::default(), Box::new(move |queue| *place.lock().unwrap() = Some(queue)))
            .unwrap();
    }
    batch::end().unwrap();
    let ends: Vec<Arc<Queue>> = made.iter().map(|made| made.lock().unwrap().take().unwrap()).collect();
    ends[0].write(b"to myself", Timeout::Default).unwrap();
    assert_eq!(read(&ends[1]).unwrap(), b"to myself");
}
