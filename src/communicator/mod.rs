//! What a communicator must say and do, and nothing else.
//!
//! * [`Provider`] — probe here, create together: what stands in the dispatcher's list;
//! * [`Communicator`] — start a call, poll it, rest until something may have changed;
//! * [`Capabilities`] — what a communicator claims, and the conformance suite then asks for;
//! * [`Call`], [`Descriptor`], [`Pattern`] — a parsed call, what all ranks share of it, and what it means;
//! * [`Letter`], [`post`] — messages from one rank to another, beside the calls;
//! * [`Meeting`] — how every call begins: all ranks show each other what they call;
//! * [`exchange`] — the plain algorithm of every collective, over any way to show a chunk to the others;
//! * [`Uneven`], [`Parts`] — the v-forms: a parsed call, and their plain algorithm over the lanes of the exchange;
//! * [`reduce`] — the arithmetic, the same bits in every communicator.

mod call;
mod capabilities;
pub mod exchange;
pub mod letter;
mod meeting;
mod pattern;
pub mod post;
pub mod reduce;
mod uneven;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

pub use call::{Call, Descriptor};
pub use capabilities::{Capabilities, Capture, Placement};
pub use letter::Letter;
pub use meeting::Meeting;
pub use pattern::{Action, Pattern, Ranks};
pub use uneven::{Part, Parts, Uneven};

use crate::{bootstrap::Members, error::Result};

/// How far an operation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Others are awaited, and nothing has moved since the last look.
    Pending,
    /// Others are awaited, but something has moved: it is worth looking again soon.
    Moved,
    /// The result is there (CPU groups) or enqueued (CUDA groups).
    Done,
}

/// One way for one group to move bytes.
///
/// A group owns its communicators and calls them under a lock of its own, one operation at a time and in the
/// same order on all ranks; so every method takes `&mut self` and none may block. Failures that concern the group
/// are recorded with [`Members::fail`], which wakes every rank, and returned.
pub trait Communicator: Send {
    /// Starts `call` as the group's `sequence`-th, by the plan's choice of [`Provider::algorithms`]. What
    /// [`Capabilities::serves_call`] refuses never arrives.
    fn start(&mut self, call: &Call, sequence: u64, algorithm: u8) -> Result<Progress>;

    /// Starts a v-form as the group's `sequence`-th call.
    fn start_uneven(&mut self, call: Uneven, sequence: u64) -> Result<Progress> {
        Err(crate::error::Error::Internal(format!("{} #{sequence} is served by nothing", call.descriptor)))
    }

    /// Goes on with the started call as far as it can without waiting.
    fn poll(&mut self) -> Result<Progress>;

    /// Sleeps until something may have changed for the started call, or for a letter of this communicator's post, but
    /// no longer than `at_most`.
    fn rest(&mut self, at_most: Duration);

    /// Whether the started call cannot end before `rank` does something: such a rank is named when the deadline
    /// passes, and its death fails the call.
    fn awaits(&mut self, rank: u32) -> bool;

    /// How this communicator carries letters, beside calls; `None` if it carries none.
    fn post(&mut self) -> Option<&mut dyn post::Post> {
        None
    }
}

/// A future that the waiting loops of this crate poll; none needs a waker.
pub type Task<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// What the dispatcher's list holds: a communicator before it is made.
pub trait Provider: Send + Sync {
    /// The name in options, plans and tables: one lower-case word.
    fn name(&self) -> &'static str;

    /// How it serves calls, by size: the plan takes the first that reaches up to a call's contribution.
    fn algorithms(&self) -> &'static [Algorithm];

    /// What the communicator could do for these members as far as this rank can tell, or why not.
    /// Local and cheap: no communication.
    fn probe(&self, members: &Members) -> Result<Capabilities, String>;

    /// Makes the communicator together with the other members, all of which call this in the same order.
    /// An error on one rank is reported to all by the dispatcher, which then drops the others' halves.
    fn create(&self, members: Arc<Members>, deadline: Option<Instant>) -> Task<Box<dyn Communicator>>;
}

/// A way in which a communicator serves calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithm {
    /// One lower-case word.
    pub name: &'static str,
    /// The largest contribution, in bytes, that it is for.
    pub up_to: u64,
}
