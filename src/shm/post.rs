//! The post of the shared-memory communicator: for every ordered pair of ranks, envelopes, replies and chunks in memory
//! that both map. What travels and why is told at [`crate::communicator::post`]; this page is about how.
//!
//! # Where everything lies
//!
//! In a mapping of its own, every rank has a *page* for every other rank, which it alone writes, and a *store*:
//!
//! * in the page, what it sends: a ring of [`ENVELOPES`] envelopes of two cache lines, the first of which holds the flag,
//!   the envelope and up to [`INLINE`] bytes of a message, so that a small message costs one line;
//! * in the page too, what it says about what the other sends: how far it has read, and a ring of [`REPLIES`] replies;
//! * in the store, the [`EAGER`] bytes of each envelope for messages that do not fit beside it, and a ring of [`CHUNKS`]
//!   chunks of [`CHUNK`] bytes for held messages.
//!
//! Pages are committed by their rank when the group is made; a store, which most pairs never need, when its rank first
//! writes there. So pages and stores come from the memory next to their writer, and writing them cannot fail.
//!
//! # The hand-over
//!
//! Everything is a ring between one writer and one reader, counted from 0 for the life of the group:
//!
//! | ring      | shown by                                     | may be overwritten when                                        |
//! |-----------|----------------------------------------------|----------------------------------------------------------------|
//! | envelopes | the flag in it becomes `number + 1` (release; read with acquire) | the reader's `opened` is above `number` (release; read with acquire) |
//! | chunks    | the writer's `pushed` is above `step` (release; acquire)         | the reader's `finished` is above `step` (release; acquire)           |
//! | replies   | the flag in it becomes `number + 1` (release; acquire)           | the reader's `heard` is above `number` (release; acquire)            |
//!
//! The acquire loads of the left column make what was written visible to its reader; those of the right column keep
//! what was read from being overwritten while it is read. The `credit` hands nothing over and asks for no order.
//! A flag is compared for equality: what is in a slot before is a number of the same slot that is one ring older, or 0.
//! *Late*: the writer finds no room, or the reader nothing, and its letters wait. *Dead*: its counters stand still, its
//! memory stays mapped, and the waiting loop finds out. *Wrap*: 64 bits do not.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use super::hand_over::Store;
use crate::{
    bootstrap::{Members, mapping::Mapping},
    communicator::{
        Progress,
        letter::{Envelope, Letter, PIECE, Reply},
        post::{Accepted, Delivery, Desk, Post, Wire},
    },
    dtype::DType,
    error::Result,
    sync::{AtomicU64, Ordering, prefetch_to_write, reads, writes},
};

/// Envelopes that a sender can be ahead of its receiver.
const ENVELOPES: u64 = 16;
/// Bytes of a message in its envelope's first cache line: what the flag, the tag and the two other words leave.
const INLINE: usize = 32;
/// Bytes of a message in the store, where it waits for its receiver without keeping its sender.
/// (Measured at 67 ns from core to core: 8 KiB take 0.8 us so, and 1.1 where the receiver is asked first.)
const EAGER: usize = 8192;
/// Chunks of held messages: a ring of 128 KiB stays in the second-level cache, and halves the lag of two copies.
const CHUNKS: u64 = 8;
const CHUNK: usize = 16 * 1024;
const _: () = assert!(CHUNK.is_multiple_of(PIECE));
/// Replies that a receiver can be ahead of its sender.
const REPLIES: u64 = 8;

/// 128 bytes, since processors fetch lines in pairs.
#[repr(C, align(128))]
struct Slip {
    flag: AtomicU64,
    tag: AtomicU64,
    bytes: AtomicU64,
    /// dtype | held << 8
    what: AtomicU64,
    message: [u8; INLINE],
}

/// A counter that its rank stores and the peer loads.
#[repr(C, align(128))]
struct Counter(AtomicU64);

/// How far a rank has read what the peer sent.
#[repr(C, align(128))]
struct Receipt {
    opened: AtomicU64,
    credit: AtomicU64,
}

#[repr(C, align(64))]
struct Answer {
    flag: AtomicU64,
    number: AtomicU64,
    room: AtomicU64,
    /// dtype | wanted << 8
    what: AtomicU64,
}

/// How much of the rings is used; the models use less, to come round.
#[derive(Clone, Copy)]
struct Sizes {
    eager: u64,
    chunk: usize,
    // Powers of two.
    envelopes: u64,
    chunks: u64,
    replies: u64,
}

const SIZES: Sizes =
    Sizes { eager: EAGER as u64, chunk: CHUNK, envelopes: ENVELOPES, chunks: CHUNKS, replies: REPLIES };

/// What one rank writes for one other.
#[repr(C, align(128))]
struct Page {
    slips: [Slip; ENVELOPES as usize],
    pushed: Counter,
    heard: Counter,
    receipt: Receipt,
    finished: Counter,
    answers: [Answer; REPLIES as usize],
}

const PAGE: usize = 4096;
const _: () = assert!(size_of::<Page>() <= PAGE);
const STORE: usize = ENVELOPES as usize * EAGER + CHUNKS as usize * CHUNK;

/// Bytes of a rank's part: its pages, then its stores.
pub(super) fn part(size: u32) -> usize {
    size as usize * (PAGE + STORE)
}

/// Bytes of a rank's part that are committed when the group is made: its pages.
pub(super) fn committed(size: u32) -> usize {
    size as usize * PAGE
}

/// The shared-memory wire.
pub(super) struct Memory {
    members: Arc<Members>,
    mapping: Arc<Mapping>,
    /// For committing stores; `None` where the memory needs none of that.
    fd: Option<OwnedFd>,
    store: Store,
    sizes: Sizes,
    peers: Vec<Counts>,
}

/// How far this rank is with a peer.
#[derive(Clone, Default)]
struct Counts {
    posted: u64,
    /// The peer's `opened`, as last seen: it only grows. The same for what follows.
    opened_there: u64,
    pushed: u64,
    finished_there: u64,
    heard: u64,
    opened: u64,
    finished: u64,
    pushed_there: u64,
    replied: u64,
    heard_there: u64,
    /// Whether the store for this peer is committed.
    has_store: bool,
}

impl Memory {
    /// The post in a mapping of a [`part`] per rank; `fd` is what is mapped.
    pub(super) fn new(members: Arc<Members>, mapping: Arc<Mapping>, fd: Option<OwnedFd>, store: Store) -> Self {
        let peers = vec![Counts::default(); members.size() as usize];
        Memory { members, mapping, fd, store, sizes: SIZES, peers }
    }

    /// What `writer` writes for `reader`.
    fn page(&self, writer: u32, reader: u32) -> &Page {
        let at = writer as usize * part(self.members.size()) + reader as usize * PAGE;
        // SAFETY: it lies inside the mapping, which lives as long as `self`, is aligned to pages and zero at first; the
        // fields used through this reference are atomics.
        unsafe { self.mapping.at(at, PAGE).cast().as_ref() }
    }

    /// Where the store of `writer` for `reader` begins.
    fn store_of(&self, writer: u32, reader: u32) -> usize {
        let size = self.members.size();
        writer as usize * part(size) + committed(size) + reader as usize * STORE
    }

    /// The bytes of an envelope's message that does not fit beside it.
    fn eager_at(&self, writer: u32, reader: u32, number: u64) -> *mut u8 {
        self.store_at(writer, reader, (number & (self.sizes.envelopes - 1)) as usize * EAGER, EAGER)
    }

    fn chunk_at(&self, writer: u32, reader: u32, step: u64) -> *mut u8 {
        self.store_at(
            writer,
            reader,
            ENVELOPES as usize * EAGER + (step & (self.sizes.chunks - 1)) as usize * CHUNK,
            CHUNK,
        )
    }

    fn store_at(&self, writer: u32, reader: u32, offset: usize, length: usize) -> *mut u8 {
        self.mapping.at(self.store_of(writer, reader) + offset, length).as_ptr()
    }

    /// Commits the store for `peer`, once.
    #[cold]
    fn take_store(&mut self, peer: u32) -> Result<()> {
        if let Some(fd) = &self.fd {
            Mapping::commit(fd, self.store_of(self.members.rank(), peer), STORE)?;
        }
        self.peers[peer as usize].has_store = true;
        Ok(())
    }
}

impl Wire for Memory {
    /// About a microsecond, in which a peer in step answers. What comes so costs no entry in any list.
    const LOOKS: u32 = if cfg!(loom) { 1 } else { 512 };

    fn eager(&self) -> u64 {
        self.sizes.eager
    }

    fn chunk(&self) -> usize {
        self.sizes.chunk
    }

    fn has_room(&mut self, peer: u32) -> Result<bool> {
        let counts = &self.peers[peer as usize];
        if counts.posted - counts.opened_there < self.sizes.envelopes {
            return Ok(true);
        }
        let opened = self.page(peer, self.members.rank()).receipt.opened.load(Ordering::Acquire);
        let counts = &mut self.peers[peer as usize];
        counts.opened_there = opened;
        Ok(counts.posted - opened < self.sizes.envelopes)
    }

    unsafe fn post(&mut self, peer: u32, envelope: &Envelope, message: *const u8) -> Result<()> {
        let me = self.members.rank();
        let length = if envelope.held { 0 } else { envelope.bytes as usize };
        if length > INLINE && !self.peers[peer as usize].has_store {
            self.take_store(peer)?;
        }
        let number = self.peers[peer as usize].posted;
        let slip = &self.page(me, peer).slips[(number & (self.sizes.envelopes - 1)) as usize];
        let to = match length > INLINE {
            true => self.eager_at(me, peer, number),
            false => (&raw const slip.message).cast::<u8>().cast_mut(),
        };
        writes(to);
        // SAFETY: the message is readable, as the caller promises, and fits, since it is no longer than `eager`; the
        // place is this rank's, and its reader is done with it: there is room.
        unsafe { self.store.copy(message, to, length.min(EAGER)) };
        slip.tag.store(envelope.tag as u64, Ordering::Relaxed);
        slip.bytes.store(envelope.bytes, Ordering::Relaxed);
        slip.what.store(envelope.dtype as u64 | u64::from(envelope.held) << 8, Ordering::Relaxed);
        slip.flag.store(number + 1, Ordering::Release);
        self.peers[peer as usize].posted = number + 1;
        self.members.ring(peer);
        // The peer has the next one from when it read it a ring ago; taken back early, posting need not wait for it.
        let next = &self.page(me, peer).slips[((number + 1) & (self.sizes.envelopes - 1)) as usize];
        prefetch_to_write((&raw const *next).cast());
        Ok(())
    }

    fn credit(&mut self, peer: u32) -> Result<u64> {
        Ok(self.page(peer, self.members.rank()).receipt.credit.load(Ordering::Relaxed))
    }

    fn take_reply(&mut self, peer: u32) -> Result<Option<Reply>> {
        let me = self.members.rank();
        let heard = self.peers[peer as usize].heard;
        let answer = &self.page(peer, me).answers[(heard & (self.sizes.replies - 1)) as usize];
        if answer.flag.load(Ordering::Acquire) != heard + 1 {
            return Ok(None);
        }
        reads(&raw const answer.number);
        let what = answer.what.load(Ordering::Relaxed);
        let reply = Reply {
            number: answer.number.load(Ordering::Relaxed),
            wanted: what >> 8 != 0,
            room: answer.room.load(Ordering::Relaxed),
            dtype: DType::parse(i32::from(what as u8))?,
        };
        self.page(me, peer).heard.0.store(heard + 1, Ordering::Release);
        self.peers[peer as usize].heard = heard + 1;
        Ok(Some(reply))
    }

    fn has_chunk_room(&mut self, peer: u32) -> Result<bool> {
        if !self.peers[peer as usize].has_store {
            self.take_store(peer)?;
        }
        let counts = &self.peers[peer as usize];
        if counts.pushed - counts.finished_there < self.sizes.chunks {
            return Ok(true);
        }
        let finished = self.page(peer, self.members.rank()).finished.0.load(Ordering::Acquire);
        let counts = &mut self.peers[peer as usize];
        counts.finished_there = finished;
        Ok(counts.pushed - finished < self.sizes.chunks)
    }

    unsafe fn push(&mut self, peer: u32, letter: &Letter, at: u64, length: usize) {
        let me = self.members.rank();
        let step = self.peers[peer as usize].pushed;
        let to = self.chunk_at(me, peer, step);
        writes(to);
        let length = length.min(CHUNK);
        // SAFETY: as the caller promises; the chunk's place is this rank's, and its reader is done with it.
        unsafe { letter.take(at, to, length, self.store.streams(length)) };
        self.page(me, peer).pushed.0.store(step + 1, Ordering::Release);
        self.peers[peer as usize].pushed = step + 1;
        self.members.ring(peer);
    }

    fn is_settled(&mut self, _peer: u32) -> bool {
        true
    }

    #[inline]
    fn front(&mut self, peer: u32) -> Result<Option<(Envelope, *const u8)>> {
        let me = self.members.rank();
        let number = self.peers[peer as usize].opened;
        let slip = &self.page(peer, me).slips[(number & (self.sizes.envelopes - 1)) as usize];
        if slip.flag.load(Ordering::Acquire) != number + 1 {
            return Ok(None);
        }
        let what = slip.what.load(Ordering::Relaxed);
        let held = what >> 8 != 0;
        let bytes = slip.bytes.load(Ordering::Relaxed);
        // What a peer's memory says never leads outside of it.
        let bytes = if held { bytes } else { bytes.min(EAGER as u64) };
        let envelope = Envelope {
            tag: slip.tag.load(Ordering::Relaxed) as i64,
            dtype: DType::parse(i32::from(what as u8))?,
            bytes,
            held,
        };
        let message = match !held && bytes > INLINE as u64 {
            true => self.eager_at(peer, me, number).cast_const(),
            false => (&raw const slip.message).cast(),
        };
        Ok(Some((envelope, message)))
    }

    fn open(&mut self, peer: u32) {
        let opened = self.peers[peer as usize].opened + 1;
        self.peers[peer as usize].opened = opened;
        self.page(self.members.rank(), peer).receipt.opened.store(opened, Ordering::Release);
        self.members.ring(peer);
    }

    fn give_credit(&mut self, peer: u32, units: u64) {
        self.page(self.members.rank(), peer).receipt.credit.store(units, Ordering::Relaxed);
    }

    fn reply(&mut self, peer: u32, reply: &Reply) -> Result<bool> {
        let me = self.members.rank();
        let number = self.peers[peer as usize].replied;
        if number - self.peers[peer as usize].heard_there >= self.sizes.replies {
            let heard = self.page(peer, me).heard.0.load(Ordering::Acquire);
            self.peers[peer as usize].heard_there = heard;
            if number - heard >= self.sizes.replies {
                return Ok(false);
            }
        }
        let answer = &self.page(me, peer).answers[(number & (self.sizes.replies - 1)) as usize];
        writes(&raw const answer.number);
        answer.number.store(reply.number, Ordering::Relaxed);
        answer.room.store(reply.room, Ordering::Relaxed);
        answer.what.store(reply.dtype as u64 | u64::from(reply.wanted) << 8, Ordering::Relaxed);
        answer.flag.store(number + 1, Ordering::Release);
        self.peers[peer as usize].replied = number + 1;
        self.members.ring(peer);
        Ok(true)
    }

    fn chunk_from(&mut self, peer: u32, _length: usize) -> Result<Option<*const u8>> {
        let me = self.members.rank();
        let step = self.peers[peer as usize].finished;
        if self.peers[peer as usize].pushed_there <= step {
            let pushed = self.page(peer, me).pushed.0.load(Ordering::Acquire);
            self.peers[peer as usize].pushed_there = pushed;
            if pushed <= step {
                return Ok(None);
            }
        }
        Ok(Some(self.chunk_at(peer, me, step)))
    }

    fn finish(&mut self, peer: u32) {
        let finished = self.peers[peer as usize].finished + 1;
        self.peers[peer as usize].finished = finished;
        self.page(self.members.rank(), peer).finished.0.store(finished, Ordering::Release);
        self.members.ring(peer);
    }
}

/// The post of one rank.
pub(super) struct Letters {
    members: Arc<Members>,
    desk: Desk<Memory>,
    /// What went wrong while this rank was about to sleep.
    trouble: Option<crate::error::Error>,
}

impl Letters {
    pub(super) fn new(members: Arc<Members>, memory: Memory) -> Self {
        Letters { desk: Desk::new(members.clone(), memory), members, trouble: None }
    }

    /// The look between "I am about to sleep" and sleeping, for whoever sleeps for something else too: whether nothing has
    /// moved.
    pub(super) fn is_still(&mut self) -> bool {
        match self.desk.poll() {
            Ok(progress) => progress == Progress::Pending,
            Err(trouble) => {
                self.trouble = Some(trouble);
                false
            }
        }
    }
}

impl Post for Letters {
    #[inline]
    fn accept(&mut self, letter: &Letter, alone: bool) -> Result<Accepted> {
        self.desk.accept(letter, alone)
    }

    #[inline]
    fn poll(&mut self) -> Result<Progress> {
        match self.trouble.take() {
            Some(trouble) => Err(trouble),
            None => self.desk.poll(),
        }
    }

    fn collect(&mut self) -> Option<(u32, Delivery)> {
        self.desk.collect()
    }

    fn let_go(&mut self) {
        self.desk.let_go();
    }

    fn rest(&mut self, at_most: Duration) {
        let members = self.members.clone();
        let doze = members.doze();
        if self.is_still() && members.check().is_ok() {
            doze.sleep(at_most);
        }
    }
}

#[cfg(all(test, loom))]
pub(super) mod model {
    //! Models of the rings, with the desks that use them. See [`crate::sync::model`].

    use super::*;
    use crate::{
        bootstrap::model::{LEAVING, members, on_all_ranks},
        sync::model::{Model, prove, watch},
    };

    const ELEMENT: usize = size_of::<u64>();

    /// What zeroed memory is outside the models.
    pub(in super::super) fn mapping(size: u32) -> Arc<Mapping> {
        let mapping = Mapping::private(size as usize * part(size)).unwrap();
        let atomic = || AtomicU64::new(0);
        let pairs = (0..size as usize).flat_map(|writer| (0..size as usize).map(move |reader| (writer, reader)));
        for (writer, reader) in pairs {
            let slip = || Slip { flag: atomic(), tag: atomic(), bytes: atomic(), what: atomic(), message: [0; INLINE] };
            let answer = || Answer { flag: atomic(), number: atomic(), room: atomic(), what: atomic() };
            let page = Page {
                slips: std::array::from_fn(|_| slip()),
                pushed: Counter(atomic()),
                heard: Counter(atomic()),
                receipt: Receipt { opened: atomic(), credit: atomic() },
                finished: Counter(atomic()),
                answers: std::array::from_fn(|_| answer()),
            };
            // SAFETY: it lies in the mapping, and nobody else knows it yet.
            let page = unsafe {
                let place = mapping.at(writer * part(size) + reader * PAGE, PAGE).cast::<Page>();
                place.write(page);
                place.as_ref()
            };
            page.slips.iter().for_each(|slip| watch((&raw const slip.message).cast(), INLINE));
            page.answers.iter().for_each(|answer| watch((&raw const answer.number).cast(), ELEMENT));
            let store = writer * part(size) + committed(size) + reader * STORE;
            for chunk in 0..CHUNKS as usize {
                let at = store + ENVELOPES as usize * EAGER + chunk * CHUNK;
                watch(mapping.at(at, CHUNK).as_ptr(), CHUNK);
            }
        }
        mapping
    }

    type Rank = (Arc<Members>, Letters);

    fn ranks(sizes: Sizes) -> Vec<Rank> {
        let mapping = mapping(2);
        let one = |members: Arc<Members>| {
            let mut memory = Memory::new(members.clone(), mapping.clone(), None, Store::PLAIN);
            memory.sizes = sizes;
            (members.clone(), Letters::new(members, memory))
        };
        members(2).into_iter().map(one).collect()
    }

    /// Waits for a letter, asleep in between.
    fn carry((_, letters): &mut Rank, letter: Letter) {
        let key = match letters.accept(&letter, false).unwrap() {
            Accepted::Over(delivery) => return assert_eq!(delivery.unwrap(), letter.count()),
            Accepted::Underway(key) => key,
        };
        loop {
            letters.poll().unwrap();
            if let Some((ended, delivery)) = letters.collect() {
                assert_eq!(ended, key);
                return assert_eq!(delivery.unwrap(), letter.count());
            }
            letters.rest(Duration::MAX);
        }
    }

    fn content(message: u64, elements: usize) -> Vec<u64> {
        (0..elements as u64).map(|i| 100 * message + i + 1).collect()
    }

    /// `messages` of `elements` from rank 0 to rank 1, one after the other.
    fn stream(rank: u32, side: &mut Rank, messages: u64, elements: usize) {
        for message in 0..messages {
            let expected = content(message, elements);
            let mut memory = if rank == 0 { expected.clone() } else { vec![0; elements] };
            let address: *mut u8 = memory.as_mut_ptr().cast();
            // SAFETY: `carry` returns when the letter is over.
            let letter = unsafe {
                match rank {
                    0 => Letter::send(1, 0, DType::Uint64, address, elements as u64),
                    _ => Letter::receive(0, 0, DType::Uint64, address, elements as u64),
                }
            };
            carry(side, letter);
            assert_eq!(memory, expected);
        }
    }

    #[test]
    fn model_an_envelope_is_overwritten_only_when_it_was_opened() {
        let test = (module_path!(), "model_an_envelope_is_overwritten_only_when_it_was_opened");
        prove(Model { test, preemptions: 2, bugs: &["a slot too early"], spare: &[LEAVING] }, |bug| {
            let sides = ranks(Sizes { envelopes: 1, ..SIZES });
            if bug == "a slot too early" {
                // The receiver seems to be one further than it is.
                sides[0].1.desk.wire.page(1, 0).receipt.opened.store(1, Ordering::Relaxed);
            }
            on_all_ranks(sides, |rank, side| stream(rank, side, 3, 1));
        });
    }

    #[test]
    fn model_a_held_message_comes_whole_chunk_by_chunk() {
        let test = (module_path!(), "model_a_held_message_comes_whole_chunk_by_chunk");
        // A receiver that waits for each message answers the next one only after it has got the last one whole, which its
        // sender sent after it had heard the last answer: here that orders the answers, and the envelopes, already. The
        // model above misses the envelopes' order.
        let spare = &[
            LEAVING,
            "self.page(me, peer).heard.0.store(",
            "let heard = ",
            "self.page(self.members.rank(), peer).receipt.opened.store(",
            "let opened = ",
        ];
        prove(Model { test, preemptions: 2, bugs: &["a slot too early"], spare }, |bug| {
            let sizes = Sizes { eager: 0, chunk: ELEMENT, envelopes: 2, chunks: 1, replies: 1 };
            let sides = ranks(sizes);
            if bug == "a slot too early" {
                sides[0].1.desk.wire.page(1, 0).finished.0.store(1, Ordering::Relaxed);
            }
            on_all_ranks(sides, |rank, side| stream(rank, side, 2, 2));
        });
    }
}
