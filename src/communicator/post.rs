//! The post: messages from one rank to another, over any way to carry an envelope and a chunk.
//!
//! Letters to and from one peer are a matter between these two ranks alone. The sender posts an *envelope* for every
//! message, in order. A small message travels with its envelope; a large one stays with its sender, *held*, until the
//! receiver has found the receive that it belongs to and replies; then it is streamed in chunks, in the order of the
//! replies. So a large message that nobody asks for yet stands in nobody's way.
//!
//! The receiver opens envelopes in order, and only while it awaits something from that peer. What nobody has asked for
//! goes to the *shelf*: held messages as envelopes, small ones whole. The shelf is bounded by the sender, which counts
//! the bytes of small messages that were not matched yet and holds back what exceeds [`CREDIT`]: such a message is held
//! like a large one.
//!
//! A receive takes the oldest message of its peer and tag; a message goes to the oldest receive. A message that does
//! not fit, or is of another dtype, is an error of both its letters (of the receive alone if the sender was done with
//! it), and of nothing else: the group lives on.
//!
//! Letters to oneself are matched here and copied; they need no wire.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{
    Progress,
    letter::{Envelope, Letter, Reply},
};
use crate::{
    bootstrap::Members,
    error::{Error, Failure, Result, Status},
    sync::reads,
};

/// How a letter ended: elements moved, or why not. Such an error concerns the letter alone.
pub type Delivery = Result<u64>;

/// What became of a letter that was handed in.
#[derive(Debug)]
pub enum Accepted {
    /// It is done already.
    Over(Delivery),
    /// It is under way; [`Post::collect`] names it by this key.
    Underway(u32),
}

/// A communicator's letters. Any number may be under way at once. An error of a method concerns the whole group.
pub trait Post: Send {
    /// Takes a letter, and gets as far with it as it can without waiting. If its caller has nothing else to wait for
    /// (`alone`), a receive first looks a while for its message.
    fn accept(&mut self, letter: &Letter, alone: bool) -> Result<Accepted>;

    /// Goes on with all letters. `Moved` too while one that is over was not collected; never `Done`.
    fn poll(&mut self) -> Result<Progress>;

    /// Whether a letter is a send whose message this rank's own stream has still to yield: its peer is not at fault then.
    fn is_leaving(&self, key: u32) -> bool {
        let _ = key;
        false
    }

    /// A letter that is over and how it ended; its key is free then.
    fn collect(&mut self) -> Option<(u32, Delivery)>;

    /// Lets go of all letters and touches none of their memory any more. For groups that have failed.
    fn let_go(&mut self);

    /// Sleeps until something may have changed for a letter, but no longer than `at_most`.
    fn rest(&mut self, at_most: Duration);
}

/// How envelopes, replies and chunks get to a peer and from it. All of one kind keep their order. The peer is never this
/// rank. Nothing waits: what says whether there is room or something there is asked first.
pub trait Wire {
    /// Looks for the message of a receive that is alone, where every rank has a core, before anything else is looked at.
    const LOOKS: u32;

    /// The longest message that travels with its envelope, in bytes.
    fn eager(&self) -> u64;

    /// The largest chunk, in bytes: a multiple of [`PIECE`](super::letter::PIECE), the same on all ranks.
    fn chunk(&self) -> usize;

    /// Whether an envelope to `peer` can be posted.
    fn has_room(&mut self, peer: u32) -> Result<bool>;

    /// Posts an envelope, and the message if it is not held.
    ///
    /// # Safety
    /// `message` is readable for the bytes of a message that is not held, at most [`Wire::eager`].
    unsafe fn post(&mut self, peer: u32, envelope: &Envelope, message: *const u8) -> Result<()>;

    /// What `peer` has credited so far, see [`Wire::give_credit`].
    fn credit(&mut self, peer: u32) -> Result<u64>;

    /// The oldest reply of `peer` that was not taken yet.
    fn take_reply(&mut self, peer: u32) -> Result<Option<Reply>>;

    /// Whether a chunk to `peer` can be pushed.
    fn has_chunk_room(&mut self, peer: u32) -> Result<bool>;

    /// Pushes a chunk: bytes of a letter, from `at` on.
    ///
    /// # Safety
    /// The letter has so many, and they are at most [`Wire::chunk`].
    unsafe fn push(&mut self, peer: u32, letter: &Letter, at: u64, length: usize);

    /// Whether everything for `peer` has left this process.
    fn is_settled(&mut self, peer: u32) -> bool;

    /// The oldest envelope of `peer`, and where the message lies if it is not held. Valid until [`Wire::open`].
    fn front(&mut self, peer: u32) -> Result<Option<(Envelope, *const u8)>>;

    /// Takes the oldest envelope off.
    fn open(&mut self, peer: u32);

    /// Says how much this rank has matched so far of what came unheld from `peer`, in the units of [`units`].
    fn give_credit(&mut self, peer: u32, units: u64);

    /// Replies if there is room, and says whether there was.
    fn reply(&mut self, peer: u32, reply: &Reply) -> Result<bool>;

    /// The next chunk from `peer`, which is `length` long, once it is there. Valid until [`Wire::finish`].
    fn chunk_from(&mut self, peer: u32, length: usize) -> Result<Option<*const u8>>;

    /// Gives the chunk's place back.
    fn finish(&mut self, peer: u32);
}

/// Units of small messages that a peer may have shelved before the sender holds the next: 512 KiB, or 8192 messages.
const CREDIT: u64 = 8192;
/// Chunks of one peer moved before the waiting loop gets to look at failures and deadlines.
const TURN: usize = 16;

/// Messages from this size on are written past the caches where they arrive: they would push everything else out of
/// them, and little of themselves would be left there for whoever reads them.
const STREAMED: u64 = 4 << 20;

/// What a message counts for while it lies unmatched, in units of 64 bytes: none is free.
fn units(bytes: u64) -> u64 {
    1 + bytes / 64
}

/// Letters that can go on with a peer at once before anything has to be allocated for them.
const AT_ONCE: usize = 8;

/// One rank's letters over a wire.
pub struct Desk<W> {
    /// How messages travel.
    pub wire: W,
    members: Arc<Members>,
    looks: u32,
    peers: Vec<Peer>,
    entries: Vec<Entry>,
    /// Entries that are free.
    free: Vec<u32>,
    /// Letters that are over and were not collected.
    ended: VecDeque<u32>,
}

struct Entry {
    letter: Letter,
    outcome: Option<Delivery>,
}

/// What goes on with one peer.
struct Peer {
    /// Sends that have not been posted.
    outgoing: VecDeque<u32>,
    /// Envelopes posted so far.
    posted: u64,
    /// Units posted unheld so far, and those that the peer had credited when last asked.
    unheld: u64,
    credited: u64,
    /// Sends whose bytes are held: the envelope's number, and the entry.
    held: VecDeque<(u64, u32)>,
    /// Sends that the peer wants, in the order in which it said so.
    streams_out: VecDeque<Stream>,
    /// Sends that have left but for what the kernel has not taken.
    settling: VecDeque<u32>,
    /// Receives that have no message yet.
    waiting: VecDeque<u32>,
    /// Messages that nobody has asked for.
    shelf: VecDeque<Shelved>,
    /// Envelopes opened so far.
    opened: u64,
    /// Units matched of what came unheld.
    matched: u64,
    /// Replies that found no room yet. What is told beside ends with the reply: a receive that refuses its message is over
    /// when its sender can know, since nobody polls for a letter that is over.
    replies: VecDeque<(Reply, Option<(u32, Error)>)>,
    /// Receives whose bytes are on the way, in the order of the replies.
    streams_in: VecDeque<Stream>,
}

struct Stream {
    key: u32,
    bytes: u64,
    done: u64,
}

struct Shelved {
    envelope: Envelope,
    number: u64,
    /// The message, if it is not held.
    message: Vec<u8>,
}

impl Peer {
    fn new() -> Self {
        Peer {
            outgoing: VecDeque::with_capacity(AT_ONCE),
            posted: 0,
            unheld: 0,
            credited: 0,
            held: VecDeque::with_capacity(AT_ONCE),
            streams_out: VecDeque::with_capacity(AT_ONCE),
            settling: VecDeque::with_capacity(AT_ONCE),
            waiting: VecDeque::with_capacity(AT_ONCE),
            shelf: VecDeque::new(),
            opened: 0,
            matched: 0,
            replies: VecDeque::with_capacity(AT_ONCE),
            streams_in: VecDeque::with_capacity(AT_ONCE),
        }
    }

    fn is_busy(&self) -> bool {
        !(self.outgoing.is_empty()
            && self.held.is_empty()
            && self.streams_out.is_empty()
            && self.settling.is_empty()
            && self.waiting.is_empty()
            && self.replies.is_empty()
            && self.streams_in.is_empty())
    }
}

impl<W: Wire> Desk<W> {
    /// A desk between `members` with no letters.
    pub fn new(members: Arc<Members>, wire: W) -> Self {
        let peers = (0..members.size()).map(|_| Peer::new()).collect();
        let (entries, free) = (Vec::with_capacity(AT_ONCE), Vec::with_capacity(AT_ONCE));
        let looks = if members.is_crowded() { 1 } else { W::LOOKS };
        Desk { wire, members, looks, peers, entries, free, ended: VecDeque::with_capacity(AT_ONCE) }
    }

    /// See [`Post::accept`].
    #[inline]
    pub fn accept(&mut self, letter: &Letter, alone: bool) -> Result<Accepted> {
        if letter.peer() == self.members.rank() {
            return Ok(self.accept_own(letter));
        }
        if letter.is_send() { self.accept_send(letter) } else { self.accept_receive(letter, alone) }
    }

    /// See [`Post::poll`].
    #[inline]
    pub fn poll(&mut self) -> Result<Progress> {
        let mut moved = false;
        if self.free.len() < self.entries.len() {
            let me = self.members.rank();
            for peer in 0..self.members.size() {
                if peer != me && self.peers[peer as usize].is_busy() {
                    moved |= self.serve(peer)?;
                }
            }
        }
        Ok(if moved || !self.ended.is_empty() { Progress::Moved } else { Progress::Pending })
    }

    /// See [`Post::collect`].
    pub fn collect(&mut self) -> Option<(u32, Delivery)> {
        let key = self.ended.pop_front()?;
        let outcome = self.entries.get_mut(key as usize)?.outcome.take()?;
        self.free.push(key);
        Some((key, outcome))
    }

    /// See [`Post::let_go`].
    pub fn let_go(&mut self) {
        self.peers.iter_mut().for_each(|peer| *peer = Peer::new());
        self.entries.clear();
        self.free.clear();
        self.ended.clear();
    }

    fn accept_send(&mut self, letter: &Letter) -> Result<Accepted> {
        let peer = letter.peer();
        if self.peers[peer as usize].outgoing.is_empty()
            && let Some(number) = self.post(letter)?
        {
            let to = &self.peers[peer as usize];
            if number.is_none() && to.settling.is_empty() && self.wire.is_settled(peer) {
                return Ok(Accepted::Over(Ok(letter.count())));
            }
            let key = self.enter(letter);
            let to = &mut self.peers[peer as usize];
            match number {
                Some(number) => to.held.push_back((number, key)),
                None => to.settling.push_back(key),
            }
            return Ok(Accepted::Underway(key));
        }
        let key = self.enter(letter);
        self.peers[peer as usize].outgoing.push_back(key);
        Ok(Accepted::Underway(key))
    }

    #[inline]
    fn accept_receive(&mut self, letter: &Letter, alone: bool) -> Result<Accepted> {
        let peer = letter.peer();
        let from = &self.peers[peer as usize];
        // The message that is awaited is usually the next one, whole.
        if from.waiting.is_empty()
            && from.shelf.is_empty()
            && let Some((envelope, message)) = self.look_for_front(peer, if alone { self.looks } else { 1 })?
            && envelope.tag == letter.tag()
            && !envelope.held
        {
            reads(message);
            // SAFETY: the wire shows a message of so many bytes, readable until it is opened.
            let delivery = unsafe { self.take_unheld(letter, &envelope, message) };
            self.open(peer);
            return Ok(Accepted::Over(delivery));
        }
        let key = self.enter(letter);
        match self.take_shelved(letter) {
            Some(shelved) => self.match_shelved(peer, key, &shelved)?,
            None => {
                self.peers[peer as usize].waiting.push_back(key);
                self.open_mail(peer)?;
            }
        }
        // If it is over already, nobody has to be told of it by its key.
        Ok(match self.entries[key as usize].outcome.take() {
            Some(delivery) => {
                self.ended.retain(|ended| *ended != key);
                self.free.push(key);
                Accepted::Over(delivery)
            }
            None => Accepted::Underway(key),
        })
    }

    /// The oldest envelope of `peer`, looked for so many times.
    #[inline]
    fn look_for_front(&mut self, peer: u32, looks: u32) -> Result<Option<(Envelope, *const u8)>> {
        for _ in 1..looks {
            if let Some(front) = self.wire.front(peer)? {
                return Ok(Some(front));
            }
        }
        self.wire.front(peer)
    }

    /// A letter to this rank itself: waits for its other half, or takes it.
    fn accept_own(&mut self, letter: &Letter) -> Accepted {
        if letter.is_in_pieces() {
            return Accepted::Over(Err(Error::Internal("a letter in pieces to oneself".into())));
        }
        let own = &mut self.peers[letter.peer() as usize];
        let others = if letter.is_send() { &mut own.waiting } else { &mut own.outgoing };
        let entries = &self.entries;
        let Some(at) = others.iter().position(|other| entries[*other as usize].letter.tag() == letter.tag()) else {
            let key = self.enter(letter);
            let own = &mut self.peers[letter.peer() as usize];
            if letter.is_send() { &mut own.outgoing } else { &mut own.waiting }.push_back(key);
            return Accepted::Underway(key);
        };
        let Some(other) = others.remove(at) else {
            return Accepted::Over(Err(Error::Internal("a lost letter".into())));
        };
        let counterpart = self.entries[other as usize].letter;
        let (send, receive) = if letter.is_send() { (letter, &counterpart) } else { (&counterpart, letter) };
        let delivery = match fits(send, receive) {
            true => {
                // SAFETY: both are as long as their makers promised, and the message is no longer than the room. That
                // they are apart is promised by neither, so they may overlap.
                unsafe { std::ptr::copy(send.memory(), receive.memory(), send.bytes() as usize) };
                Ok(send.count())
            }
            false => Err(self.mismatch(letter, send.bytes(), send.dtype(), receive.bytes(), receive.dtype())),
        };
        self.end(other, delivery.clone());
        Accepted::Over(delivery)
    }

    /// Goes on with everything between this rank and `peer`, and says whether anything moved.
    fn serve(&mut self, peer: u32) -> Result<bool> {
        let mut moved = false;
        let with = &self.peers[peer as usize];
        if !with.waiting.is_empty() {
            moved |= self.open_mail(peer)?;
        }
        if !self.peers[peer as usize].streams_in.is_empty() {
            moved |= self.stream_in(peer)?;
        }
        if !self.peers[peer as usize].outgoing.is_empty() {
            moved |= self.post_outgoing(peer)?;
        }
        if !self.peers[peer as usize].held.is_empty() {
            moved |= self.hear_replies(peer)?;
        }
        if !self.peers[peer as usize].streams_out.is_empty() {
            moved |= self.stream_out(peer)?;
        }
        if !self.peers[peer as usize].replies.is_empty() {
            moved |= self.reply(peer)?;
        }
        if !self.peers[peer as usize].settling.is_empty() {
            moved |= self.settle(peer);
        }
        Ok(moved)
    }

    /// Posts a message: `None` if there is no room, else its number if it is held.
    #[inline]
    fn post(&mut self, letter: &Letter) -> Result<Option<Option<u64>>> {
        let peer = letter.peer();
        if !self.wire.has_room(peer)? {
            return Ok(None);
        }
        let bytes = letter.bytes();
        let to = &mut self.peers[peer as usize];
        let unheld = to.unheld + units(bytes);
        if unheld - to.credited > CREDIT {
            to.credited = self.wire.credit(peer)?;
        }
        // What is in pieces is asked for: it goes straight to where it is wanted.
        let held = bytes > self.wire.eager() || letter.is_in_pieces() || unheld - to.credited > CREDIT;
        let envelope = Envelope { tag: letter.tag(), dtype: letter.dtype(), bytes, held };
        // SAFETY: readable, as the letter's maker promised.
        unsafe { self.wire.post(peer, &envelope, letter.memory()) }?;
        let number = to.posted;
        to.posted += 1;
        if !held {
            to.unheld = unheld;
        }
        Ok(Some(held.then_some(number)))
    }

    /// Posts what had no room before.
    fn post_outgoing(&mut self, peer: u32) -> Result<bool> {
        let mut moved = false;
        while let Some(key) = self.peers[peer as usize].outgoing.front().copied() {
            let letter = self.entries[key as usize].letter;
            let Some(number) = self.post(&letter)? else { break };
            let to = &mut self.peers[peer as usize];
            to.outgoing.pop_front();
            match number {
                Some(number) => to.held.push_back((number, key)),
                None => to.settling.push_back(key),
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Hears which of the held messages the peer wants.
    fn hear_replies(&mut self, peer: u32) -> Result<bool> {
        let mut moved = false;
        while let Some(reply) = self.wire.take_reply(peer)? {
            let to = &mut self.peers[peer as usize];
            let at = to.held.iter().position(|(number, _)| *number == reply.number);
            let Some((_, key)) = at.and_then(|at| to.held.remove(at)) else {
                let what = format!("wants message {}, which is none of those held for it", reply.number);
                return Err(super::exchange::protocol_error(&self.members, peer, &what));
            };
            let letter = self.entries[key as usize].letter;
            match reply.wanted {
                true => to.streams_out.push_back(Stream { key, bytes: letter.bytes(), done: 0 }),
                false => {
                    let error = self.mismatch(&letter, letter.bytes(), letter.dtype(), reply.room, reply.dtype);
                    self.end(key, Err(error));
                }
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Pushes chunks of what the peer wants.
    fn stream_out(&mut self, peer: u32) -> Result<bool> {
        let chunk = self.wire.chunk() as u64;
        let mut pushed = 0;
        while pushed < TURN
            && let Some(stream) = self.peers[peer as usize].streams_out.front_mut()
            && self.wire.has_chunk_room(peer)?
        {
            let length = (stream.bytes - stream.done).min(chunk);
            let letter = &self.entries[stream.key as usize].letter;
            // SAFETY: inside the message, each byte once.
            unsafe { self.wire.push(peer, letter, stream.done, length as usize) };
            stream.done += length;
            pushed += 1;
            if stream.done == stream.bytes {
                let key = stream.key;
                let to = &mut self.peers[peer as usize];
                to.streams_out.pop_front();
                to.settling.push_back(key);
            }
        }
        Ok(pushed > 0)
    }

    /// Ends sends of which nothing is left in this process.
    fn settle(&mut self, peer: u32) -> bool {
        if !self.wire.is_settled(peer) {
            return false;
        }
        while let Some(key) = self.peers[peer as usize].settling.pop_front() {
            let count = self.entries[key as usize].letter.count();
            self.end(key, Ok(count));
        }
        true
    }

    /// Opens envelopes while something is awaited: each goes to a receive, or to the shelf.
    fn open_mail(&mut self, peer: u32) -> Result<bool> {
        let mut moved = false;
        while !self.peers[peer as usize].waiting.is_empty()
            && let Some((envelope, message)) = self.wire.front(peer)?
        {
            moved = true;
            reads(message);
            let entries = &self.entries;
            let from = &mut self.peers[peer as usize];
            let at = from.waiting.iter().position(|key| entries[*key as usize].letter.tag() == envelope.tag);
            let number = from.opened;
            match at.and_then(|at| from.waiting.remove(at)) {
                Some(key) if envelope.held => self.match_held(peer, key, &envelope, number)?,
                Some(key) => {
                    let letter = self.entries[key as usize].letter;
                    // SAFETY: the wire shows a message of so many bytes, readable until it is opened.
                    let delivery = unsafe { self.take_unheld(&letter, &envelope, message) };
                    self.end(key, delivery);
                }
                None => {
                    let message = match envelope.held {
                        true => Vec::new(),
                        // SAFETY: as above.
                        false => unsafe { std::slice::from_raw_parts(message, envelope.bytes as usize) }.to_vec(),
                    };
                    from.shelf.push_back(Shelved { envelope, number, message });
                }
            }
            self.open(peer);
        }
        Ok(moved)
    }

    fn open(&mut self, peer: u32) {
        self.peers[peer as usize].opened += 1;
        self.wire.open(peer);
    }

    /// Takes the oldest message for this receive off the shelf.
    fn take_shelved(&mut self, letter: &Letter) -> Option<Shelved> {
        let shelf = &mut self.peers[letter.peer() as usize].shelf;
        let at = shelf.iter().position(|shelved| shelved.envelope.tag == letter.tag())?;
        shelf.remove(at)
    }

    fn match_shelved(&mut self, peer: u32, key: u32, shelved: &Shelved) -> Result<()> {
        if shelved.envelope.held {
            return self.match_held(peer, key, &shelved.envelope, shelved.number);
        }
        let letter = self.entries[key as usize].letter;
        // SAFETY: the shelf keeps the whole message.
        let delivery = unsafe { self.take_unheld(&letter, &shelved.envelope, shelved.message.as_ptr()) };
        self.end(key, delivery);
        Ok(())
    }

    /// A receive has met a message that came with its envelope.
    ///
    /// # Safety
    /// `message` is readable for the envelope's bytes.
    unsafe fn take_unheld(&mut self, letter: &Letter, envelope: &Envelope, message: *const u8) -> Delivery {
        let peer = letter.peer();
        let from = &mut self.peers[peer as usize];
        from.matched += units(envelope.bytes);
        self.wire.give_credit(peer, from.matched);
        if envelope.bytes > letter.bytes() || envelope.dtype != letter.dtype() {
            return Err(self.mismatch(letter, envelope.bytes, envelope.dtype, letter.bytes(), letter.dtype()));
        }
        // SAFETY: readable, as the caller promises; the receive has room, as its maker promised and was just checked.
        unsafe { letter.put(0, message, envelope.bytes as usize, false) };
        Ok(envelope.bytes / letter.dtype().size() as u64)
    }

    /// A receive has met a message that is held: asks for it, or says why it cannot be taken.
    fn match_held(&mut self, peer: u32, key: u32, envelope: &Envelope, number: u64) -> Result<()> {
        let letter = self.entries[key as usize].letter;
        let wanted = envelope.bytes <= letter.bytes() && envelope.dtype == letter.dtype();
        let reply = Reply { number, wanted, room: letter.bytes(), dtype: letter.dtype() };
        let refused = (!wanted)
            .then(|| (key, self.mismatch(&letter, envelope.bytes, envelope.dtype, letter.bytes(), letter.dtype())));
        let from = &mut self.peers[peer as usize];
        if wanted {
            from.streams_in.push_back(Stream { key, bytes: envelope.bytes, done: 0 });
        }
        from.replies.push_back((reply, refused));
        self.reply(peer).map(drop)
    }

    /// Replies as far as there is room.
    fn reply(&mut self, peer: u32) -> Result<bool> {
        let mut moved = false;
        while let Some((reply, _)) = self.peers[peer as usize].replies.front() {
            if !self.wire.reply(peer, reply)? {
                break;
            }
            if let Some((_, Some((key, error)))) = self.peers[peer as usize].replies.pop_front() {
                self.end(key, Err(error));
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Takes the chunks that have come.
    fn stream_in(&mut self, peer: u32) -> Result<bool> {
        let chunk = self.wire.chunk() as u64;
        let mut taken = 0;
        while taken < TURN
            && let Some(stream) = self.peers[peer as usize].streams_in.front_mut()
        {
            let length = (stream.bytes - stream.done).min(chunk) as usize;
            let Some(from) = self.wire.chunk_from(peer, length)? else { break };
            let letter = &self.entries[stream.key as usize].letter;
            reads(from);
            // SAFETY: the wire shows so many bytes, readable until the chunk is finished; the receive has room for all of
            // the message, which was checked before it was asked for.
            unsafe { letter.put(stream.done, from, length, stream.bytes >= STREAMED) };
            self.wire.finish(peer);
            stream.done += length as u64;
            taken += 1;
            if stream.done == stream.bytes {
                let (key, count) = (stream.key, stream.bytes / letter.dtype().size() as u64);
                self.peers[peer as usize].streams_in.pop_front();
                self.end(key, Ok(count));
            }
        }
        Ok(taken > 0)
    }

    fn enter(&mut self, letter: &Letter) -> u32 {
        let entry = Entry { letter: *letter, outcome: None };
        match self.free.pop() {
            Some(key) => {
                self.entries[key as usize] = entry;
                key
            }
            None => {
                self.entries.push(entry);
                // So that giving it back never allocates.
                self.free.reserve(self.entries.len());
                self.entries.len() as u32 - 1
            }
        }
    }

    fn end(&mut self, key: u32, delivery: Delivery) {
        self.entries[key as usize].outcome = Some(delivery);
        self.ended.push_back(key);
    }

    /// The error of a message and a receive that do not fit each other, as one of the two letters has it.
    #[cold]
    fn mismatch(
        &self,
        letter: &Letter,
        bytes: u64,
        dtype: crate::dtype::DType,
        room: u64,
        room_dtype: crate::dtype::DType,
    ) -> Error {
        let (me, name, tag) = (self.members.rank(), self.members.name(), letter.tag());
        let (from, to) = if letter.is_send() { (me, letter.peer()) } else { (letter.peer(), me) };
        let elements = |bytes: u64, dtype: crate::dtype::DType| {
            format!("{} x {} ({bytes} bytes)", bytes / dtype.size() as u64, dtype.name())
        };
        Error::from(Failure {
            status: Status::Mismatch,
            rank: Some(letter.peer()),
            collective: Some(letter.collective()),
            sequence: 0,
            text: format!(
                "group {name:?}: rank {from} sent {} to rank {to} with tag {tag}, which has room for {}; the message is \
                 lost, nothing was written, and the group lives on",
                elements(bytes, dtype),
                elements(room, room_dtype)
            ),
        })
    }
}

/// Whether a receive can take a message.
fn fits(send: &Letter, receive: &Letter) -> bool {
    send.bytes() <= receive.bytes() && send.dtype() == receive.dtype()
}
