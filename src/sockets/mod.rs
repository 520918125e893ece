//! The sockets communicator: over the connections of the control plane.
//!
//! It is plain, correct on any hosts, and not meant to be fast: the last resort, and what remains where memory
//! cannot be shared. It is the plain [`Exchange`], with pieces as messages.
//!
//! A rank keeps at most [`WINDOW`] chunks on the way to a peer, and sends nothing that the peer does not take. So a
//! peer that has not yet entered the call holds a few chunks in its mailbox and never more, and one that has what
//! it wants is never waited for.

mod post;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    bootstrap::{
        Channel, Members,
        control::{Kind, Verdict},
    },
    communicator::{
        Algorithm, Call, Capabilities, Carries, Communicator, Meeting, Parts, Pattern, Placement, Progress, Provider,
        Ranks, Row, Task, Uneven, Way,
        exchange::{Exchange, Lanes, Piece, protocol_error},
        post::Post,
    },
    dtype::{COLLECTIVES, Collective, OPS, REDUCIBLE},
    error::{Error, Result},
};

/// Bytes of a chunk: a few system calls' worth, and small against a socket's buffer (208 KiB by default).
const CHUNK: usize = 64 * 1024;
/// Chunks on the way to a peer.
const WINDOW: usize = 4;
/// Marks the message that says "I have finished these steps".
const FINISHED: u64 = 1 << 63;

/// The entry in the dispatcher's list.
pub struct Sockets;

const ALGORITHMS: [Algorithm; 3] = [
    Algorithm::new("exchange", u64::MAX),
    Algorithm { carries: Carries::Parts, ..Algorithm::new("parts", u64::MAX) },
    Algorithm { carries: Carries::Letters, ..Algorithm::new("post", u64::MAX) },
];

impl Provider for Sockets {
    fn name(&self) -> &'static str {
        "sockets"
    }

    fn algorithms(&self) -> &'static [Algorithm] {
        &ALGORITHMS
    }

    fn rows(&self, _: &Members, collective: Collective) -> Vec<Row> {
        vec![Row::only(collective)]
    }

    fn probe(&self, _: &Members) -> Result<Capabilities, String> {
        let mut capabilities = Capabilities::new(&COLLECTIVES, &REDUCIBLE, &OPS);
        capabilities.placement = Placement::Both;
        capabilities.rank_order = true;
        capabilities.detects_mismatch = true;
        // On one host; between hosts, as long as the network takes.
        capabilities.cancellable_within_ms = Some(10);
        Ok(capabilities)
    }

    fn create(&self, members: Arc<Members>, _: Option<Instant>) -> Task<Box<dyn Communicator>> {
        Box::pin(async move { Ok(Box::new(Communication::new(members)) as Box<dyn Communicator>) })
    }
}

/// One rank's communicator.
struct Communication {
    members: Arc<Members>,
    meeting: Meeting,
    exchange: Exchange<Messages>,
    parts: Parts,
    /// Whether what goes on is a v-form.
    by_parts: bool,
    letters: post::Letters,
}

impl Communication {
    fn new(members: Arc<Members>) -> Self {
        let size = members.size() as usize;
        let lanes = Messages {
            members: members.clone(),
            arrived: (0..size).map(|_| VecDeque::new()).collect(),
            on_the_way: (0..size).map(|_| VecDeque::new()).collect(),
        };
        Communication {
            meeting: Meeting::new(members.clone()),
            exchange: Exchange::new(members.clone(), lanes),
            parts: Parts::new(members.clone()),
            by_parts: false,
            letters: post::Letters::new(members.clone()),
            members,
        }
    }
}

impl Communicator for Communication {
    fn start(&mut self, call: &Call, sequence: u64, _way: Way) -> Result<Progress> {
        let pattern = Pattern::new(&call.descriptor, self.members.rank(), self.members.size())
            .ok_or_else(|| Error::Internal(format!("{} is no exchange", call.descriptor)))?;
        // SAFETY: the group calls this once per sequence, in order; there is no payload.
        unsafe { self.meeting.begin(call.descriptor, sequence, &[]) };
        self.exchange.begin(call, pattern);
        self.by_parts = false;
        self.poll()
    }

    fn start_uneven(&mut self, call: Uneven, sequence: u64) -> Result<Progress> {
        // SAFETY: as above.
        unsafe { self.meeting.begin(call.descriptor, sequence, &[]) };
        self.parts.begin(call, sequence);
        self.by_parts = true;
        self.poll()
    }

    fn poll(&mut self) -> Result<Progress> {
        match self.by_parts {
            true => self.parts.poll(&mut self.exchange, &mut self.meeting),
            false => self.exchange.poll(&mut self.meeting),
        }
    }

    fn rest(&mut self, at_most: Duration) {
        // Headers and failures may come by the board, which rings no socket: look again soon.
        self.members.endpoint().wait(at_most.min(Duration::from_millis(1)));
    }

    fn awaits(&mut self, rank: u32) -> bool {
        let moving = match self.by_parts {
            true => self.parts.awaits(&mut self.exchange, rank),
            false => self.exchange.awaits(rank),
        };
        moving || self.meeting.awaits(rank)
    }

    fn post(&mut self) -> Option<&mut dyn Post> {
        Some(&mut self.letters)
    }
}

/// Chunks as messages.
struct Messages {
    members: Arc<Members>,
    /// Chunks of each rank that have come and are not finished, oldest first.
    arrived: Vec<VecDeque<(u64, Vec<u8>)>>,
    /// Steps of this rank's chunks that were sent to each rank and that it has not finished, oldest first.
    on_the_way: Vec<VecDeque<u64>>,
}

impl Messages {
    /// Takes what has come from `rank`.
    fn gather(&mut self, rank: u32) {
        let (endpoint, channel) = (self.members.endpoint(), self.members.channel(Channel::Data));
        while let Some(message) = endpoint.receive(self.members.world_rank(rank), channel, |_| Verdict::Take) {
            match message.tag & FINISHED {
                0 => self.arrived[rank as usize].push_back((message.tag, message.body)),
                _ => {
                    let sent = &mut self.on_the_way[rank as usize];
                    while sent.front().is_some_and(|step| *step < message.tag & !FINISHED) {
                        sent.pop_front();
                    }
                }
            }
        }
    }

    fn send(&self, rank: u32, tag: u64, body: &[u8]) {
        let (endpoint, channel) = (self.members.endpoint(), self.members.channel(Channel::Data));
        endpoint.send(self.members.world_rank(rank), Kind::Mail, channel, tag, body, Vec::new());
    }
}

impl Lanes for Messages {
    fn piece(&self, _side_by_side: u32) -> usize {
        // Every rank is sent its own piece alone.
        CHUNK
    }

    fn denies_room(&mut self, rank: u32, _step: u64, needed: bool) -> bool {
        if !needed || self.on_the_way[rank as usize].len() < WINDOW {
            return false;
        }
        self.gather(rank);
        self.on_the_way[rank as usize].len() >= WINDOW
    }

    fn has_room(&mut self, step: u64, needs: impl Fn(u32) -> bool) -> bool {
        !(0..self.members.size()).any(|rank| self.denies_room(rank, step, needs(rank)))
    }

    unsafe fn publish(&mut self, step: u64, piece: impl Fn(u32) -> Option<Piece>) {
        for rank in 0..self.members.size() {
            let Some(piece) = piece(rank) else { continue };
            // SAFETY: readable, as the caller promises.
            let body = unsafe { std::slice::from_raw_parts(piece.bytes, piece.length) };
            self.on_the_way[rank as usize].push_back(step);
            self.send(rank, step, body);
        }
    }

    fn published(&mut self, rank: u32, step: u64, _at: usize, length: usize) -> Result<Option<*const u8>> {
        self.gather(rank);
        let queue = &mut self.arrived[rank as usize];
        while queue.front().is_some_and(|(of, _)| *of < step) {
            queue.pop_front();
        }
        match queue.front() {
            Some((of, body)) if *of == step && body.len() == length => Ok(Some(body.as_ptr())),
            Some((of, body)) if *of == step => {
                let what = format!("sent {} bytes where {length} were agreed", body.len());
                Err(protocol_error(&self.members, rank, &what))
            }
            _ => Ok(None),
        }
    }

    fn finish(&mut self, steps: u64, contributors: Ranks) {
        let me = self.members.rank();
        for rank in (0..self.members.size()).filter(|rank| *rank != me && contributors.contains(*rank)) {
            let queue = &mut self.arrived[rank as usize];
            while queue.front().is_some_and(|(of, _)| *of < steps) {
                queue.pop_front();
            }
            self.send(rank, FINISHED | steps, &[]);
        }
    }

    fn is_settled(&mut self, rank: u32) -> bool {
        self.members.endpoint().is_flushed(self.members.world_rank(rank))
    }
}
