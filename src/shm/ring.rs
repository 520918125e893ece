//! The broadcast ring: one rank's messages to all others, through memory that all of them map.
//!
//! A message is cut into chunks, and a large one streams through the ring like many small ones. Nothing here waits.
//!
//! # The protocol
//!
//! Steps are counted from 0 for the life of the ring, alike on all ranks; chunk `step` lies in slot `step % slots`, with
//! the length of its message before it.
//!
//! | who         | does                                                  | and so                                     |
//! |-------------|-------------------------------------------------------|--------------------------------------------|
//! | the writer  | fills the slot, then `published = step+1` (release)   | a reader that loads `published > step` (acquire) may read it |
//! | each reader | reads the slot, then its `finished = step+1` (release) | the writer that loads `finished > step` (acquire) from *all* readers may fill the slot with chunk `step + slots` |
//!
//! Each counter is written by one rank alone and only grows; 64 bits do not wrap. After either store the ranks' bells
//! are rung (see [`crate::bootstrap::bell`]), so that nobody sleeps through it.
//!
//! *A slow reader*: `finished` stays behind, the writer finds no room, and names it. *A dead reader*: the same, and its
//! life tells. *A dead writer*: `published` stands still; what it published before can still be read, and the reader then
//! finds out by the writer's life. *A message half published by a writer that died* is never handed out: a reader counts
//! its chunks, and finds the writer gone before the last.

use std::sync::Arc;

use crate::{
    bootstrap::{Members, mapping::Mapping, members::first_trouble},
    communicator::copy,
    error::{Error, Result},
    sync::{AtomicU64, Ordering, reads, writes},
};

/// Bytes of a chunk. Control messages fit into one.
pub(crate) const CHUNK: usize = 16 * 1024;
/// Bytes before a chunk: the length of its message.
const HEADER: usize = 64;

/// 128 bytes, since processors fetch lines in pairs.
#[repr(C, align(128))]
struct Line(AtomicU64);

const LINE: usize = size_of::<Line>();

/// One rank's view of the ring.
pub(crate) struct Ring {
    mapping: Arc<Mapping>,
    writer: u32,
    rank: u32,
    size: u32,
    slots: u64,
    /// The next step of this rank.
    step: u64,
    /// The smallest `finished` of the readers, as the writer last saw it.
    finished_by_all: u64,
}

impl Ring {
    fn bytes(size: u32, slots: u64) -> usize {
        (size as usize + 1) * LINE + slots as usize * (HEADER + CHUNK)
    }

    /// The ring in a mapping of so many zero bytes.
    fn new(mapping: Arc<Mapping>, writer: u32, rank: u32, size: u32, slots: u64) -> Self {
        Ring { mapping, writer, rank, size, slots, step: 0, finished_by_all: 0 }
    }

    /// Makes the ring together with all members. What one of them could not do is the error of all.
    pub(crate) async fn share(
        members: &Arc<Members>,
        writer: u32,
        slots: u64,
        deadline: Option<std::time::Instant>,
    ) -> Result<Self> {
        let bytes = Self::bytes(members.size(), slots);
        let mut session = members.session(deadline, format!("memory of {}", members.name()));
        let made = match members.rank() == writer {
            true => {
                Mapping::create("tutti-queue", bytes).and_then(|fd| Mapping::commit(&fd, 0, bytes).map(|()| Some(fd)))
            }
            false => Ok(None),
        };
        let outcome = async {
            let trouble = made.as_ref().err().map(Error::to_string).unwrap_or_default();
            let descriptor = made.as_ref().ok().and_then(Option::as_ref);
            let said = session.all_gather(trouble.as_bytes(), descriptor).await?;
            if let Some(trouble) = first_trouble(members.world_ranks(), &said) {
                return Err(Error::Unsupported(trouble));
            }
            let passed =
                descriptor.or_else(|| said.get(writer as usize).and_then(|message| message.descriptors.first()));
            let mapping = passed
                .ok_or_else(|| Error::Internal("no descriptor came".into()))
                .and_then(|fd| Mapping::open(fd, bytes));
            session.settle(&mapping.as_ref().map(|_| ()).map_err(Error::clone)).await?;
            mapping
        }
        .await;
        match outcome {
            Ok(mapping) => {
                session.finish().await?;
                Ok(Ring::new(mapping, writer, members.rank(), members.size(), slots))
            }
            Err(error) => {
                session.give_up(&error);
                Err(error)
            }
        }
    }

    /// For the writer: whether the next chunk can be put.
    pub(crate) fn has_room(&mut self) -> bool {
        let needed = self.needed();
        if self.finished_by_all < needed {
            self.finished_by_all = self.readers().map(|rank| self.finished(rank)).min().unwrap_or(u64::MAX);
        }
        self.finished_by_all >= needed
    }

    /// For the writer: the readers that have not finished the chunk which lies where the next is to go.
    pub(crate) fn laggards(&self) -> Vec<u32> {
        let needed = self.needed();
        self.readers().filter(|rank| self.finished(*rank) < needed).collect()
    }

    /// For the writer: puts the next chunk, of a message of `length` bytes. There must be room.
    pub(crate) fn put(&mut self, length: u64, chunk: &[u8]) {
        debug_assert!(chunk.len() <= CHUNK);
        let slot = self.slot(self.step);
        writes(slot);
        // SAFETY: the slot lies in the mapping; every reader has finished what was in it, and none looks into it before
        // the store below.
        unsafe {
            slot.cast::<u64>().write(length);
            copy::copy(chunk.as_ptr(), slot.add(HEADER), chunk.len().min(CHUNK));
        }
        self.step += 1;
        self.line(0).0.store(self.step, Ordering::Release);
    }

    /// For a reader: whether the next chunk is there.
    pub(crate) fn has_chunk(&self) -> bool {
        self.line(0).0.load(Ordering::Acquire) > self.step
    }

    /// For a reader: the length of the message that the next chunk, which is there, belongs to.
    pub(crate) fn length(&self) -> u64 {
        let slot = self.slot(self.step);
        reads(slot);
        // SAFETY: the slot lies in the mapping and was published, as the caller saw; the writer leaves it alone until
        // this rank has finished it.
        unsafe { slot.cast::<u64>().read() }
    }

    /// For a reader: copies the next chunk, which is there, into `to`, and gives its slot back.
    pub(crate) fn take(&mut self, to: &mut [u8]) {
        let slot = self.slot(self.step);
        reads(slot);
        // SAFETY: as in `length`.
        unsafe { copy::copy(slot.add(HEADER), to.as_mut_ptr(), to.len().min(CHUNK)) };
        self.step += 1;
        self.line(1 + self.rank).0.store(self.step, Ordering::Release);
    }

    /// How many chunks every reader must have finished before the next can be put.
    fn needed(&self) -> u64 {
        (self.step + 1).saturating_sub(self.slots)
    }

    fn readers(&self) -> impl Iterator<Item = u32> + use<> {
        let writer = self.writer;
        (0..self.size).filter(move |rank| *rank != writer)
    }

    fn finished(&self, rank: u32) -> u64 {
        self.line(1 + rank).0.load(Ordering::Acquire)
    }

    fn line(&self, index: u32) -> &Line {
        // SAFETY: the lines lie at the beginning of the mapping, which lives as long as `self`, is aligned to pages and
        // zero at first; they are touched through atomics alone.
        unsafe { self.mapping.at(index as usize * LINE, LINE).cast().as_ref() }
    }

    fn slot(&self, step: u64) -> *mut u8 {
        let start = (self.size as usize + 1) * LINE;
        self.mapping.at(start + (step % self.slots) as usize * (HEADER + CHUNK), HEADER + CHUNK).as_ptr()
    }
}

/// What zeroed memory is outside the models, where an atomic is more than its value.
#[cfg(all(test, loom))]
mod model {
    use super::*;
    use crate::{
        bootstrap::model::{LEAVING, members, on_all_ranks, wait},
        communicator::Progress,
        sync::model::{Model, prove, watch},
    };

    /// The rings of all ranks, the first of which writes.
    fn rings(size: u32, slots: u64) -> Vec<Ring> {
        let mapping = Mapping::private(Ring::bytes(size, slots)).unwrap();
        for index in 0..=size as usize {
            // SAFETY: it lies in the mapping, and nobody else knows it yet.
            unsafe { mapping.at(index * LINE, LINE).cast::<Line>().write(Line(AtomicU64::new(0))) };
        }
        let rings: Vec<_> = (0..size).map(|rank| Ring::new(mapping.clone(), 0, rank, size, slots)).collect();
        for slot in 0..slots {
            watch(rings[0].slot(slot), HEADER + CHUNK);
        }
        rings
    }

    /// What the writer does to put one chunk, and a reader to take one, asleep where they must wait.
    fn put(members: &Members, ring: &mut Ring, number: u64) {
        wait(members, || if ring.has_room() { Progress::Done } else { Progress::Pending });
        ring.put(number, &number.to_ne_bytes());
        members.ring_all();
    }

    fn take(members: &Members, ring: &mut Ring) -> u64 {
        wait(members, || if ring.has_chunk() { Progress::Done } else { Progress::Pending });
        let (number, mut bytes) = (ring.length(), [0; 8]);
        ring.take(&mut bytes);
        members.ring_all();
        assert_eq!(u64::from_ne_bytes(bytes), number, "torn");
        number
    }

    #[test]
    fn model_every_reader_gets_every_chunk_of_a_ring_that_is_too_small() {
        let test = (module_path!(), "model_every_reader_gets_every_chunk_of_a_ring_that_is_too_small");
        let bugs = &["a slot too early", "published first"];
        prove(Model { test, preemptions: 2, bugs, spare: &[LEAVING] }, |bug| {
            let ranks = members(2).into_iter().zip(rings(2, 2)).map(|(members, ring)| (members, ring, bug)).collect();
            on_all_ranks(ranks, |rank, (members, ring, bug)| {
                for number in 1..=4 {
                    if rank > 0 {
                        assert_eq!(take(members, ring), number, "out of order");
                        continue;
                    }
                    match *bug {
                        "a slot too early" => ring.finished_by_all = u64::MAX,
                        "published first" => ring.line(0).0.store(number, Ordering::Release),
                        _ => {}
                    }
                    put(members, ring, number);
                }
            });
        });
    }

    #[test]
    fn model_the_slowest_of_two_readers_holds_the_writer_back() {
        let test = (module_path!(), "model_the_slowest_of_two_readers_holds_the_writer_back");
        prove(Model { test, preemptions: 1, bugs: &["a slot too early"], spare: &[LEAVING] }, |bug| {
            let ranks = members(3).into_iter().zip(rings(3, 1)).map(|(members, ring)| (members, ring, bug)).collect();
            on_all_ranks(ranks, |rank, (members, ring, bug)| {
                for number in 1..=2 {
                    if rank > 0 {
                        assert_eq!(take(members, ring), number, "out of order");
                        continue;
                    }
                    if *bug == "a slot too early" {
                        ring.finished_by_all = u64::MAX;
                    }
                    put(members, ring, number);
                }
            });
        });
    }
}
