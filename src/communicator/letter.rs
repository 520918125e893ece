//! A letter: one side of a message from one rank to another, after parsing.
//!
//! A message is two letters, a send on one rank and a receive on the other. They meet by (peer, direction, tag), in the
//! order in which each side posted them, beside the group's collectives: letters take no sequence number of a group,
//! wait for no collective, and let none wait.

use std::fmt;

use super::Descriptor;
use crate::dtype::{Collective, DType, Op};

/// One rank's side of a message: what to send or where to receive, checked.
///
/// Whoever makes one by [`Letter::send`] or [`Letter::receive`] promises what those say, until the letter is done.
#[derive(Clone, Copy, Debug)]
pub struct Letter {
    /// [`Collective::Send`] or [`Collective::Recv`].
    collective: Collective,
    /// The other rank, within the group; it may be this one.
    peer: u32,
    tag: i64,
    dtype: DType,
    count: u64,
    /// Read by a send, written by a receive.
    memory: *mut u8,
}

// SAFETY: the memory belongs to the caller, who promises its exclusive use until the letter is done, from any thread.
unsafe impl Send for Letter {}

impl Letter {
    /// Sends `count` elements to `peer`. Done when the memory may be used again, which may be before it is received.
    ///
    /// Both sides must name the same dtype; the receiver must have room for all elements.
    ///
    /// # Safety
    /// Until the letter is done or its group was told to let go of it, `memory` is readable for the elements and
    /// nobody writes there. With `count` 0 it may be anything.
    pub unsafe fn send(peer: u32, tag: i64, dtype: DType, memory: *const u8, count: u64) -> Self {
        Letter { collective: Collective::Send, peer, tag, dtype, count, memory: memory.cast_mut() }
    }

    /// Receives up to `count` elements from `peer`. A message of fewer leaves the rest of the memory as it is.
    ///
    /// # Safety
    /// Until the letter is done or its group was told to let go of it, `memory` is writable for the elements and
    /// nobody else touches it. With `count` 0 it may be anything.
    pub unsafe fn receive(peer: u32, tag: i64, dtype: DType, memory: *mut u8, count: u64) -> Self {
        Letter { collective: Collective::Recv, peer, tag, dtype, count, memory }
    }

    /// Whether this is the sender's side.
    pub fn is_send(&self) -> bool {
        self.collective == Collective::Send
    }

    /// Send or receive, as the table of collectives has them.
    pub fn collective(&self) -> Collective {
        self.collective
    }

    /// The other rank.
    pub fn peer(&self) -> u32 {
        self.peer
    }

    /// What this letter meets its other half by, besides the peer.
    pub fn tag(&self) -> i64 {
        self.tag
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Elements: of the message, or those there is room for.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Bytes of the elements; whoever made the letter saw that they can be addressed.
    pub fn bytes(&self) -> u64 {
        self.count * self.dtype.size() as u64
    }

    /// Where the elements are.
    pub(crate) fn memory(&self) -> *mut u8 {
        self.memory
    }

    /// What the plan is asked about. A receive does not know how much will come, so letters are not chosen by size.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor { collective: self.collective, dtype: self.dtype, op: Op::Sum, root: 0, flags: 0, count: 0 }
    }
}

impl fmt::Display for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, way) = if self.is_send() { ("send", "to") } else { ("recv", "from") };
        let (count, dtype, peer, tag) = (self.count, self.dtype.name(), self.peer, self.tag);
        write!(f, "{name} of {count} x {dtype} {way} rank {peer} with tag {tag}")
    }
}

/// What goes ahead of a message's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The letter's.
    pub tag: i64,
    /// The letter's.
    pub dtype: DType,
    /// Bytes of the message.
    pub bytes: u64,
    /// Whether the bytes stay with the sender until the receiver asks for them.
    pub held: bool,
}

/// What a receiver says to a message whose bytes are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Which message: how many envelopes the sender had posted to this rank before.
    pub number: u64,
    /// Whether the bytes are wanted. If not, the message is over: it does not fit.
    pub wanted: bool,
    /// What the receiver has room for, and of which dtype.
    pub room: u64,
    /// See `room`.
    pub dtype: DType,
}
