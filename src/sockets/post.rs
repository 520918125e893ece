//! The post of the sockets communicator: envelopes, replies, credits and chunks as messages of one channel. What travels
//! and why is told at [`crate::communicator::post`].
//!
//! A connection keeps the order of what is sent over it, so all kinds go one after the other and are sorted as they
//! arrive. A rank keeps at most [`CHUNKS`] chunks on the way to a peer and at most [`ENVELOPES`] envelopes that the peer
//! has not opened, so a peer that is busy with something else holds little in its mailbox.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use crate::{
    bootstrap::{
        Channel, Members,
        control::{Kind, Message, Verdict},
    },
    communicator::{
        Progress,
        exchange::protocol_error,
        letter::{Envelope, Letter, PIECE, Reply},
        post::{Accepted, Delivery, Desk, Post, Wire},
    },
    dtype::DType,
    error::Result,
};

/// The longest message that travels with its envelope.
const EAGER: usize = 16 * 1024;
/// Bytes of a chunk: as in the exchange.
const CHUNK: usize = 64 * 1024;
const _: () = assert!(CHUNK.is_multiple_of(PIECE));
/// Chunks on the way to a peer.
const CHUNKS: u64 = 4;
/// Envelopes that a peer has not opened.
const ENVELOPES: u64 = 64;

/// Credit that is said at once, though nothing else is to be said.
const SAID: u64 = 1024;

/// What a message is, in its tag.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Mail {
    /// An envelope, with the message if it is not held.
    Envelope = 0,
    Reply = 1,
    Chunk = 2,
    /// How far the sender of this has read: envelopes opened, chunks finished, credit.
    Receipt = 3,
}

/// The wire over sockets.
pub(super) struct Messages {
    members: Arc<Members>,
    peers: Vec<Peer>,
}

#[derive(Default)]
struct Peer {
    envelopes: VecDeque<(Envelope, Vec<u8>)>,
    replies: VecDeque<Reply>,
    chunks: VecDeque<Vec<u8>>,
    posted: u64,
    pushed: u64,
    /// The peer's receipt, as it last came.
    receipt: Receipt,
    /// What this rank has read of the peer's, and what it has said of it.
    read: Receipt,
    said: Receipt,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Receipt {
    opened: u64,
    finished: u64,
    credit: u64,
}

impl Messages {
    pub(super) fn new(members: Arc<Members>) -> Self {
        let peers = (0..members.size()).map(|_| Peer::default()).collect();
        Messages { members, peers }
    }

    /// Takes and sorts what has come from `rank`.
    fn gather(&mut self, rank: u32) -> Result<()> {
        let (endpoint, channel) = (self.members.endpoint(), self.members.channel(Channel::Post));
        while let Some(message) = endpoint.receive(self.members.world_rank(rank), channel, |_| Verdict::Take) {
            if !sort(&mut self.peers[rank as usize], message) {
                return Err(protocol_error(&self.members, rank, "sent what is no part of a message to this rank"));
            }
        }
        Ok(())
    }

    fn send(&self, rank: u32, mail: Mail, body: &[u8]) {
        let (endpoint, channel) = (self.members.endpoint(), self.members.channel(Channel::Post));
        endpoint.send(self.members.world_rank(rank), Kind::Mail, channel, mail as u64, body, Vec::new());
    }

    /// Tells `rank` how far this one has read, if it should know.
    fn say(&mut self, rank: u32, now: bool) {
        let peer = &mut self.peers[rank as usize];
        let unsaid = peer.read.opened - peer.said.opened;
        if peer.read == peer.said || !now && unsaid < ENVELOPES / 4 {
            return;
        }
        peer.said = peer.read;
        let body = words(&[peer.said.opened, peer.said.finished, peer.said.credit]);
        self.send(rank, Mail::Receipt, &body);
    }
}

/// Puts a message where it belongs; whether it could be one.
fn sort(peer: &mut Peer, message: Message) -> bool {
    let word = |at: usize| {
        let bytes = message.body.get(8 * at..8 * at + 8)?;
        Some(bytes.iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte)))
    };
    let dtype = |word: u64| DType::parse(i32::from(word as u8)).ok();
    let mut put = || -> Option<()> {
        match message.tag {
            tag if tag == Mail::Envelope as u64 => {
                let what = word(2)?;
                let envelope =
                    Envelope { tag: word(0)? as i64, dtype: dtype(what)?, bytes: word(1)?, held: what >> 8 != 0 };
                let rest = &message.body[24..];
                if !envelope.held && rest.len() as u64 != envelope.bytes {
                    return None;
                }
                peer.envelopes.push_back((envelope, rest.to_vec()));
            }
            tag if tag == Mail::Reply as u64 => {
                let what = word(2)?;
                peer.replies.push_back(Reply {
                    number: word(0)?,
                    wanted: what >> 8 != 0,
                    room: word(1)?,
                    dtype: dtype(what)?,
                });
            }
            tag if tag == Mail::Receipt as u64 => {
                peer.receipt = Receipt { opened: word(0)?, finished: word(1)?, credit: word(2)? };
            }
            tag if tag == Mail::Chunk as u64 => peer.chunks.push_back(Vec::new()),
            _ => return None,
        }
        Some(())
    };
    let sorted = put().is_some();
    if let (true, Some(chunk)) = (message.tag == Mail::Chunk as u64, peer.chunks.back_mut()) {
        *chunk = message.body;
    }
    sorted
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().copied().flat_map(u64::to_le_bytes).collect()
}

impl Wire for Messages {
    /// Each is a system call.
    const LOOKS: u32 = 1;

    fn eager(&self) -> u64 {
        EAGER as u64
    }

    fn chunk(&self) -> usize {
        CHUNK
    }

    fn has_room(&mut self, peer: u32) -> Result<bool> {
        let full = |peer: &Peer| peer.posted.saturating_sub(peer.receipt.opened) >= ENVELOPES;
        if full(&self.peers[peer as usize]) {
            self.gather(peer)?;
        }
        Ok(!full(&self.peers[peer as usize]))
    }

    unsafe fn post(&mut self, peer: u32, envelope: &Envelope, message: *const u8) -> Result<()> {
        let what = envelope.dtype as u64 | u64::from(envelope.held) << 8;
        let mut body = words(&[envelope.tag as u64, envelope.bytes, what]);
        if !envelope.held && envelope.bytes > 0 {
            // SAFETY: readable, as the caller promises.
            body.extend_from_slice(unsafe { std::slice::from_raw_parts(message, envelope.bytes as usize) });
        }
        self.send(peer, Mail::Envelope, &body);
        self.peers[peer as usize].posted += 1;
        Ok(())
    }

    fn credit(&mut self, peer: u32) -> Result<u64> {
        self.gather(peer)?;
        Ok(self.peers[peer as usize].receipt.credit)
    }

    fn take_reply(&mut self, peer: u32) -> Result<Option<Reply>> {
        self.gather(peer)?;
        Ok(self.peers[peer as usize].replies.pop_front())
    }

    fn has_chunk_room(&mut self, peer: u32) -> Result<bool> {
        let full = |peer: &Peer| peer.pushed.saturating_sub(peer.receipt.finished) >= CHUNKS;
        if full(&self.peers[peer as usize]) {
            self.gather(peer)?;
        }
        Ok(!full(&self.peers[peer as usize]))
    }

    unsafe fn push(&mut self, peer: u32, letter: &Letter, at: u64, length: usize) {
        let mut packed = Vec::new();
        let chunk = match letter.is_in_pieces() {
            true => {
                packed.resize(length, 0);
                // SAFETY: as the caller promises.
                unsafe { letter.take(at, packed.as_mut_ptr(), length, false) };
                &packed[..]
            }
            // SAFETY: as the caller promises, and readable as the letter's maker did.
            false => unsafe { std::slice::from_raw_parts(letter.memory().add(at as usize), length) },
        };
        self.send(peer, Mail::Chunk, chunk);
        self.peers[peer as usize].pushed += 1;
    }

    fn is_settled(&mut self, peer: u32) -> bool {
        self.members.endpoint().is_flushed(self.members.world_rank(peer))
    }

    fn front(&mut self, peer: u32) -> Result<Option<(Envelope, *const u8)>> {
        self.gather(peer)?;
        Ok(self.peers[peer as usize].envelopes.front().map(|(envelope, message)| (*envelope, message.as_ptr())))
    }

    fn open(&mut self, peer: u32) {
        let from = &mut self.peers[peer as usize];
        from.envelopes.pop_front();
        from.read.opened += 1;
        self.say(peer, false);
    }

    fn give_credit(&mut self, peer: u32, units: u64) {
        let from = &mut self.peers[peer as usize];
        from.read.credit = units;
        let now = units - from.said.credit >= SAID;
        self.say(peer, now);
    }

    fn reply(&mut self, peer: u32, reply: &Reply) -> Result<bool> {
        let what = reply.dtype as u64 | u64::from(reply.wanted) << 8;
        self.send(peer, Mail::Reply, &words(&[reply.number, reply.room, what]));
        Ok(true)
    }

    fn chunk_from(&mut self, peer: u32, length: usize) -> Result<Option<*const u8>> {
        self.gather(peer)?;
        match self.peers[peer as usize].chunks.front() {
            Some(chunk) if chunk.len() == length => Ok(Some(chunk.as_ptr())),
            Some(chunk) => {
                let what = format!("sent {} bytes of a message where {length} were to come", chunk.len());
                Err(protocol_error(&self.members, peer, &what))
            }
            None => Ok(None),
        }
    }

    fn finish(&mut self, peer: u32) {
        let from = &mut self.peers[peer as usize];
        from.chunks.pop_front();
        from.read.finished += 1;
        self.say(peer, true);
    }
}

/// The post of one rank.
pub(super) struct Letters {
    members: Arc<Members>,
    desk: Desk<Messages>,
}

impl Letters {
    pub(super) fn new(members: Arc<Members>) -> Self {
        Letters { desk: Desk::new(members.clone(), Messages::new(members.clone())), members }
    }
}

impl Post for Letters {
    fn accept(&mut self, letter: &Letter, alone: bool) -> Result<Accepted> {
        self.desk.accept(letter, alone)
    }

    fn poll(&mut self) -> Result<Progress> {
        self.desk.poll()
    }

    fn collect(&mut self) -> Option<(u32, Delivery)> {
        self.desk.collect()
    }

    fn let_go(&mut self) {
        self.desk.let_go();
    }

    fn rest(&mut self, at_most: Duration) {
        // Failures may come by the board, which rings no socket: look again soon.
        self.members.endpoint().wait(at_most.min(Duration::from_millis(1)));
    }
}
