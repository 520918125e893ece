//! What execution needs of whoever carries bytes: a message to a rank, a message from a rank, and when it is over.
//!
//! Messages between two ranks are told apart by tags; two with one tag keep their order. Nothing waits but
//! [`Wire::rest`], which ends in time.

use std::{ptr::NonNull, sync::Arc, time::Duration};

use crate::{
    communicator::{Letter, Pieces, Progress},
    config::Timeout,
    dtype::DType,
    error::{Error, Result},
    group::{Group, Request},
};

/// Where a message's bytes are.
#[derive(Clone, Copy)]
pub(super) enum Memory {
    /// One behind the other.
    Place(*mut u8),
    /// They pass through these.
    Pieces(NonNull<dyn Pieces>),
}

/// See the module.
pub(super) trait Wire {
    /// A message under way.
    type Ticket;

    /// Sends bytes to a rank.
    ///
    /// # Safety
    /// Until the message is over, or was given up, the bytes are readable and nobody writes there; pieces have so many.
    unsafe fn send(&mut self, to: u32, tag: u32, memory: Memory, bytes: u64) -> Result<Self::Ticket>;

    /// Receives bytes from a rank, exactly so many.
    ///
    /// # Safety
    /// Until the message is over, or was given up, the memory is writable and nobody else touches it; pieces have room for
    /// so many.
    unsafe fn receive(&mut self, from: u32, tag: u32, memory: Memory, bytes: u64) -> Result<Self::Ticket>;

    /// Whether a message is over: its memory is the caller's again, and received bytes are there. It is over, too, if
    /// this fails. Also goes on with whatever is under way.
    fn is_over(&mut self, ticket: &mut Self::Ticket) -> Result<bool>;

    /// Lets a message go: nothing touches its memory any more. One that is not over fails its group.
    fn give_up(&mut self, ticket: &Self::Ticket);

    /// Sleeps until one of the messages is over, but no longer than `at_most`. Meanwhile all go on.
    fn rest(&mut self, tickets: &[&Self::Ticket], at_most: Duration);
}

impl Memory {
    /// A letter of these bytes, from one of bytes in a place.
    ///
    /// # Safety
    /// What letters want of their memory, or their pieces.
    unsafe fn with(self, letter: impl FnOnce(*mut u8) -> Letter) -> Letter {
        match self {
            Memory::Place(place) => letter(place),
            // SAFETY: the caller's promises; the memory of a letter in pieces is left alone.
            Memory::Pieces(pieces) => unsafe { letter(std::ptr::dangling_mut()).in_pieces(pieces) },
        }
    }
}

/// How long to sleep while another thread is inside a call of the group.
const SHORT_NAP: Duration = Duration::from_micros(50);

/// The messages of a group.
pub(super) struct Post {
    pub(super) group: Arc<Group>,
    /// Which transfer of the group this is, so that several at once do not take each other's messages.
    pub(super) number: u32,
}

/// A message of a group.
pub(super) enum Ticket {
    /// The group has it.
    Posted(Arc<Request>),
    /// Another thread was inside a call of the group, so it is tried again. Messages of a transfer need no order: none
    /// has the peer, direction and tag of another.
    Kept(Letter),
}

impl Post {
    /// Tags of transfers are the lowest there are, out of the way of everybody else's: those of tensor dicts begin above.
    fn tag(&self, tag: u32) -> i64 {
        i64::MIN + (i64::from(self.number & 0x3fff_ffff) << 32 | i64::from(tag))
    }

    fn post(&self, letter: Letter) -> Result<Ticket> {
        match self.group.post(letter, Timeout::Default) {
            Ok(request) => Ok(Ticket::Posted(request)),
            Err(Error::InvalidUsage(_)) => Ok(Ticket::Kept(letter)),
            Err(error) => Err(error),
        }
    }
}

impl Wire for Post {
    type Ticket = Ticket;

    unsafe fn send(&mut self, to: u32, tag: u32, memory: Memory, bytes: u64) -> Result<Ticket> {
        // SAFETY: the caller's promises.
        self.post(unsafe { memory.with(|place| Letter::send(to, self.tag(tag), DType::Bytes, place, bytes)) })
    }

    unsafe fn receive(&mut self, from: u32, tag: u32, memory: Memory, bytes: u64) -> Result<Ticket> {
        // SAFETY: the caller's promises.
        self.post(unsafe { memory.with(|place| Letter::receive(from, self.tag(tag), DType::Bytes, place, bytes)) })
    }

    fn is_over(&mut self, ticket: &mut Ticket) -> Result<bool> {
        if let Ticket::Kept(letter) = ticket {
            *ticket = self.post(*letter)?;
        }
        match ticket {
            Ticket::Posted(request) => Ok(request.test()? == Progress::Done),
            Ticket::Kept(_) => Ok(false),
        }
    }

    fn give_up(&mut self, ticket: &Ticket) {
        if let Ticket::Posted(request) = ticket {
            request.release();
        }
    }

    fn rest(&mut self, tickets: &[&Ticket], at_most: Duration) {
        let posted = tickets.iter().filter_map(|ticket| match ticket {
            Ticket::Posted(request) => Some(&**request),
            Ticket::Kept(_) => None,
        });
        let posted: Vec<&Request> = posted.collect();
        if posted.len() == tickets.len() {
            Request::wait_for_any(&posted, at_most);
        } else {
            // No bell says when the other thread has left the group.
            std::thread::sleep(at_most.min(SHORT_NAP));
        }
    }
}
