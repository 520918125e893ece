//! A letter: one side of a message from one rank to another, after parsing.
//!
//! A message is two letters, a send on one rank and a receive on the other. They meet by (peer, direction, tag), in the
//! order in which each side posted them, beside the group's collectives: letters take no sequence number of a group,
//! wait for no collective, and let none wait.

use std::{
    ffi::c_void,
    fmt,
    ptr::{self, NonNull},
};

use super::{Descriptor, copy};
use crate::dtype::{Collective, DType, Op};

/// A message whose bytes do not lie in one piece: they pass through here, first to last, each once. So what is packed,
/// cast or scattered on its way needs no memory of its own to wait in.
pub trait Pieces: Send {
    /// Passes the next `length` bytes: of a send into `place`, of a receive out of it. That is a multiple of
    /// [`PIECE`] bytes, unless it is the rest of the message. If it `streams`, they are best written past the caches,
    /// and are drained when this returns.
    ///
    /// # Safety
    /// So many bytes are left, and `place` is writable or readable for them.
    unsafe fn pass(&mut self, place: *mut u8, length: usize, streams: bool);
}

/// See [`Pieces::pass`]: elements of every type come whole.
pub const PIECE: usize = 16;

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
    /// What they pass through instead, if they are not in one piece.
    pieces: Option<NonNull<dyn Pieces>>,
    /// The stream behind which the memory is read or written, in a CUDA group.
    stream: *mut c_void,
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
        let (pieces, stream) = (None, ptr::null_mut());
        Letter { collective: Collective::Send, peer, tag, dtype, count, memory: memory.cast_mut(), pieces, stream }
    }

    /// Receives up to `count` elements from `peer`. A message of fewer leaves the rest of the memory as it is.
    ///
    /// # Safety
    /// Until the letter is done or its group was told to let go of it, `memory` is writable for the elements and
    /// nobody else touches it. With `count` 0 it may be anything.
    pub unsafe fn receive(peer: u32, tag: i64, dtype: DType, memory: *mut u8, count: u64) -> Self {
        let (pieces, stream) = (None, ptr::null_mut());
        Letter { collective: Collective::Recv, peer, tag, dtype, count, memory, pieces, stream }
    }

    /// The same letter, of elements that pass through `pieces` and are not in its memory. Not to oneself.
    ///
    /// # Safety
    /// Until the letter is done or its group was told to let go of it, `pieces` may be used from any thread and nobody
    /// else does; as many bytes as the letter has are left there. A receive gets just so many.
    pub unsafe fn in_pieces(self, pieces: NonNull<dyn Pieces>) -> Self {
        Letter { pieces: Some(pieces), ..self }
    }

    /// The same letter, on a stream of the device that its memory is of: of a CUDA group.
    pub fn on_stream(self, stream: *mut c_void) -> Self {
        Letter { stream, ..self }
    }

    /// The same letter, of elements elsewhere and on no stream.
    ///
    /// # Safety
    /// As for [`Letter::send`] or [`Letter::receive`], of `memory`.
    pub(crate) unsafe fn in_memory(self, memory: *mut u8) -> Self {
        Letter { memory, stream: ptr::null_mut(), ..self }
    }

    /// See [`Letter::on_stream`].
    pub fn stream(&self) -> *mut c_void {
        self.stream
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

    /// Whether the elements are not in the letter's memory.
    pub(crate) fn is_in_pieces(&self) -> bool {
        self.pieces.is_some()
    }

    /// Takes bytes out of a send, from `at` on; past the caches, and drained, if it `streams`. What is in pieces is taken in
    /// order.
    ///
    /// # Safety
    /// `to` is writable for so many bytes, which the letter has.
    pub(crate) unsafe fn take(&self, at: u64, to: *mut u8, length: usize, streams: bool) {
        // SAFETY: what is in the letter is readable by its maker's promise; the rest the caller promises.
        unsafe {
            match self.pieces {
                Some(mut pieces) => pieces.as_mut().pass(to, length, streams),
                None => copy::copy_by(streams, self.memory.add(at as usize), to, length),
            }
        }
    }

    /// Puts bytes into a receive, from `at` on; past the caches, and drained, if it `streams`. What is in pieces is put in
    /// order.
    ///
    /// # Safety
    /// `from` is readable for so many bytes, which the letter has room for.
    pub(crate) unsafe fn put(&self, at: u64, from: *const u8, length: usize, streams: bool) {
        // SAFETY: what is in the letter is writable by its maker's promise; the rest the caller promises. Nothing is
        // written to `from`.
        unsafe {
            match self.pieces {
                Some(mut pieces) => pieces.as_mut().pass(from.cast_mut(), length, streams),
                None => copy::copy_by(streams, from, self.memory.add(at as usize), length),
            }
        }
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
