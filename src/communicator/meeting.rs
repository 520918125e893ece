//! The meeting: every call begins with all ranks showing each other what they call.
//!
//! It is the same for all communicators, sizes and collectives, so ranks that disagree find out even where the
//! disagreement would have sent them to different communicators. Nothing may be written to a result before the
//! meeting is over: then all descriptors were equal.
//!
//! On a shared board the headers are cache lines (see [`crate::bootstrap::board`]); elsewhere they are messages.

use std::sync::Arc;

use super::{Descriptor, Progress};
use crate::{
    bootstrap::{
        Channel, Members,
        control::{Kind, Message, Verdict},
    },
    error::{Error, Failure, Result, Status},
};

/// Looks at a header in one poll where every rank has a core: about as long as a line needs from core to core, so that
/// peers in step meet in the first poll, and a thread that drives several ranks loses little.
const LOOKS: u32 = if cfg!(loom) { 1 } else { 64 };

/// The meeting of one call.
pub struct Meeting {
    members: Arc<Members>,
    sequence: u64,
    descriptor: Descriptor,
    digest: u32,
    /// Ranks below this have been met.
    next: u32,
    looks: u32,
    /// Where more of what comes with a header lies; see [`Meeting::fetch_along`].
    along: Option<(*const u8, usize)>,
}

// SAFETY: the address is never read, only named to the processor.
unsafe impl Send for Meeting {}

impl Meeting {
    /// A meeting that is over, to begin the first one from.
    pub fn new(members: Arc<Members>) -> Self {
        let next = members.size();
        let looks = if members.is_crowded() { 1 } else { LOOKS };
        Meeting {
            members,
            sequence: 0,
            descriptor: Descriptor::BARRIER,
            digest: Descriptor::BARRIER.digest(),
            next,
            looks,
            along: None,
        }
    }

    /// Shows this rank's call to all, with a few bytes of its contribution where the board is shared.
    ///
    /// # Safety
    /// `payload` is readable. Only the group's current call may begin a meeting, its sequence one above the last.
    #[inline]
    pub unsafe fn begin(&mut self, descriptor: Descriptor, sequence: u64, payload: &[u8]) {
        // SAFETY: passed on.
        unsafe { self.post(descriptor, sequence, payload) };
        self.ring();
    }

    /// [`Meeting::begin`] without waking who sleeps: [`Meeting::ring`] has to follow.
    ///
    /// # Safety
    /// As for [`Meeting::begin`].
    #[inline(always)]
    pub unsafe fn post(&mut self, descriptor: Descriptor, sequence: u64, payload: &[u8]) {
        self.sequence = sequence;
        if self.descriptor != descriptor {
            self.descriptor = descriptor;
            self.digest = descriptor.digest();
        }
        self.next = 0;
        self.along = None;
        let (board, me) = (self.members.board(), self.members.rank());
        if board.is_shared() {
            // SAFETY: one call at a time, in sequence, as the caller promises; `poll` sees every header of a call.
            return unsafe { board.post(me, sequence, self.digest, descriptor.to_words(), payload) };
        }
        let body: Vec<u8> = descriptor.to_words().into_iter().flat_map(u64::to_le_bytes).collect();
        let channel = self.members.channel(Channel::Calls);
        for peer in (0..self.members.size()).filter(|peer| *peer != me) {
            let peer = self.members.world_rank(peer);
            self.members.endpoint().send(peer, Kind::Mail, channel, sequence, &body, Vec::new());
        }
    }

    /// Has the processor fetch, with every look at the header of rank `r`, the lines at `start + r * stride` too: what is
    /// written there right behind the header then comes with it, and not one hand-over later. For this meeting.
    #[inline]
    pub fn fetch_along(&mut self, start: *const u8, stride: usize) {
        self.along = Some((start, stride));
    }

    /// Wakes whoever sleeps until this rank's call is there. Messages wake by themselves.
    #[inline]
    pub fn ring(&self) {
        if self.members.board().is_shared() {
            self.members.ring_all();
        }
    }

    /// Meets whoever has come. `Done` once all ranks were seen to call the same.
    #[inline(always)]
    pub fn poll(&mut self) -> Result<Progress> {
        if self.is_over() {
            return Ok(Progress::Done);
        }
        while self.next < self.members.size() {
            if self.next != self.members.rank() && !self.meet(self.next)? {
                return Ok(Progress::Pending);
            }
            self.next += 1;
        }
        let board = self.members.board();
        if board.is_shared() {
            board.make_ready(self.members.rank(), self.sequence + 1);
        }
        Ok(Progress::Done)
    }

    /// How often something is looked for in one poll.
    pub fn looks(&self) -> u32 {
        self.looks
    }

    /// Whether all have met.
    pub fn is_over(&self) -> bool {
        self.next == self.members.size()
    }

    /// Whether `rank` has not come yet.
    pub fn awaits(&self, rank: u32) -> bool {
        if rank < self.next || rank == self.members.rank() {
            return false;
        }
        let board = self.members.board();
        !board.is_shared() || board.posted(rank, self.sequence).is_none()
    }

    /// Whether the call of `peer` is there; an error if it is another call.
    #[inline]
    fn meet(&self, peer: u32) -> Result<bool> {
        let board = self.members.board();
        if !board.is_shared() {
            return self.meet_by_message(peer);
        }
        for _ in 0..self.looks {
            if let Some((start, stride)) = self.along {
                let at = start.wrapping_add(peer as usize * stride);
                crate::sync::prefetch(at);
                crate::sync::prefetch(at.wrapping_add(64));
            }
            match board.posted(peer, self.sequence) {
                None => {}
                Some(digest) if digest == self.digest => return Ok(true),
                Some(_) => return Err(self.mismatch(peer, Descriptor::from_words(board.words(peer, self.sequence)))),
            }
        }
        Ok(false)
    }

    fn meet_by_message(&self, peer: u32) -> Result<bool> {
        let take = |message: &Message| if message.tag < self.sequence { Verdict::Stale } else { Verdict::Take };
        let channel = self.members.channel(Channel::Calls);
        let Some(message) = self.members.endpoint().receive(self.members.world_rank(peer), channel, take) else {
            return Ok(false);
        };
        let mut words = [0_u64; 3];
        for (word, bytes) in words.iter_mut().zip(message.body.chunks_exact(8)) {
            *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        match Descriptor::from_words(words) {
            Some(theirs) if theirs == self.descriptor && message.tag == self.sequence => Ok(true),
            theirs => Err(self.mismatch(peer, theirs)),
        }
    }

    fn mismatch(&self, peer: u32, theirs: Option<Descriptor>) -> Error {
        let (me, name, sequence) = (self.members.rank(), self.members.name(), self.sequence);
        let theirs = theirs.map_or_else(|| "something unknown".to_owned(), |theirs| theirs.to_string());
        let mine = self.descriptor;
        let text = format!(
            "ranks of group {name:?} differ: rank {me} called {mine}, rank {peer} called {theirs} (call #{sequence}); \
             nothing was written"
        );
        Error::from(Failure {
            status: Status::Mismatch,
            rank: Some(peer),
            collective: Some(mine.collective),
            sequence,
            text,
        })
    }
}
