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
//! * [`reduce`] — the arithmetic, the same bits in every communicator; `copy` — copies of many bytes.

mod call;
mod capabilities;
pub(crate) mod copy;
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
pub use letter::{Letter, Pieces};
pub use meeting::Meeting;
pub use pattern::{Action, Pattern, Ranks};
pub use uneven::{Part, Parts, Uneven};

use serde::{Deserialize, Serialize};

use crate::{bootstrap::Members, dtype::Collective, error::Result};

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
    /// Starts `call` as the group's `sequence`-th, in the way that the plan chose. What [`Capabilities::serves_call`] or
    /// [`Algorithm::serves`] refuses never arrives.
    fn start(&mut self, call: &Call, sequence: u64, way: Way) -> Result<Progress>;

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

    /// Whether it serves groups whose buffers are memory of CUDA devices; else it serves those of host memory.
    fn is_for_devices(&self) -> bool {
        false
    }

    /// The ways in which it serves calls.
    fn algorithms(&self) -> &'static [Algorithm];

    /// Which of them serve a collective best in this group, by size, as far as is known beforehand. From what all members
    /// know alike; where ranks differ (in their devices), what rank 0 says holds. The plan takes the first row that
    /// reaches up to a call's contribution.
    fn rows(&self, members: &Members, collective: Collective) -> Vec<Row>;

    /// Where the limits of those rows come from, row by row, for `explain`; nothing where that follows from how the
    /// algorithms work.
    fn sources(&self, members: &Members) -> Vec<String> {
        let _ = members;
        Vec::new()
    }

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
    /// The largest contribution that it can carry, in bytes.
    pub most: u64,
    /// What it carries.
    pub carries: Carries,
    /// The collective that it serves; `None`: all of those.
    pub only: Option<Collective>,
    /// Whether it needs all ranks' buffers to be registered.
    pub registered: bool,
}

impl Algorithm {
    /// An algorithm for all even calls, up to `most` bytes.
    pub const fn new(name: &'static str, most: u64) -> Self {
        Algorithm { name, most, carries: Carries::Calls, only: None, registered: false }
    }

    /// Whether it can serve contributions of `bytes`.
    pub fn serves(&self, collective: Collective, bytes: u64) -> bool {
        bytes <= self.most && self.carries == Carries::of(collective) && self.only.is_none_or(|only| only == collective)
    }
}

/// What an algorithm carries: these travel in ways of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// Calls whose parts are of one size.
    Calls,
    /// V-forms.
    Parts,
    /// Sends and receives.
    Letters,
}

impl Carries {
    /// What a collective is.
    pub const fn of(collective: Collective) -> Self {
        match collective {
            Collective::Send | Collective::Recv => Carries::Letters,
            Collective::AllGatherV | Collective::ReduceScatterV | Collective::AllToAllV => Carries::Parts,
            _ => Carries::Calls,
        }
    }
}

/// Calls whose contribution is at most `up_to` bytes (and above the row before) are best served so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Row {
    /// Bytes.
    pub up_to: u64,
    /// How.
    pub way: Way,
}

/// How a call is served: indices of a communicator's algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Way {
    /// For buffers of any kind.
    pub algorithm: u8,
    /// Where every rank's buffers turn out to be registered.
    pub registered: u8,
}

impl Row {
    /// The row of a communicator that has one algorithm for each of [`Carries`], in its order.
    pub fn only(collective: Collective) -> Self {
        Row { up_to: u64::MAX, way: Way::of(Carries::of(collective) as u8) }
    }
}

impl Way {
    /// The same for buffers of any kind.
    pub const fn of(algorithm: u8) -> Self {
        Way { algorithm, registered: algorithm }
    }
}
