//! What a collective means for one rank: which bytes it contributes, and what it does with everyone's.
//!
//! Every collective is the same dance. Each contributor offers `length` bytes; each consumer takes a `window` of
//! every contribution and either reduces the windows in rank order or places them side by side. The table in
//! [`Pattern::new`] is all the difference there is between an all_reduce and a scatter, so every communicator that
//! can move "everyone's bytes i..j to everyone" can serve them all.

use std::ops::Range;

use super::Descriptor;
use crate::dtype::{COLLECTIVES, Collective};

/// Some or all ranks of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranks {
    /// Nobody.
    None,
    /// Every rank.
    All,
    /// One rank.
    One(u32),
}

impl Ranks {
    /// Whether `rank` is among them.
    pub fn contains(self, rank: u32) -> bool {
        match self {
            Ranks::None => false,
            Ranks::All => true,
            Ranks::One(one) => one == rank,
        }
    }
}

/// What a consumer does with the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reduces them in rank order into one.
    Reduce,
    /// Copies contributor `i`'s window to `i * stride`, where `i` counts all ranks (or is 0 with one contributor).
    Place {
        /// Bytes between two windows.
        stride: usize,
    },
}

/// A collective, as one rank sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Who offers bytes.
    pub contributors: Ranks,
    /// Bytes each contributor offers.
    pub length: usize,
    /// Who takes bytes.
    pub consumers: Ranks,
    /// Which bytes of every contribution this rank takes; empty if it takes none.
    pub window: Range<usize>,
    /// What it does with them.
    pub action: Action,
}

impl Pattern {
    /// The collectives that have a pattern.
    pub fn collectives() -> Vec<Collective> {
        use Collective::*;
        COLLECTIVES
            .into_iter()
            .filter(|c| !matches!(c, Send | Recv | AllGatherV | ReduceScatterV | AllToAllV))
            .collect()
    }

    /// The pattern of `call` for `rank` of `size`; `None` for what is no such dance (send and recv, the v-forms).
    pub fn new(call: &Descriptor, rank: u32, size: u32) -> Option<Self> {
        use Collective::*;
        let part = call.bytes();
        let everything = part * size as usize;
        let mine = part * rank as usize..part * (rank as usize + 1);
        let root = Ranks::One(call.root);
        let (contributors, length, consumers, window, action) = match call.collective {
            AllReduce => (Ranks::All, part, Ranks::All, 0..part, Action::Reduce),
            Reduce => (Ranks::All, part, root, 0..part, Action::Reduce),
            ReduceScatter => (Ranks::All, everything, Ranks::All, mine, Action::Reduce),
            Broadcast => (root, part, Ranks::All, 0..part, Action::Place { stride: part }),
            Scatter => (root, everything, Ranks::All, mine, Action::Place { stride: part }),
            AllGather => (Ranks::All, part, Ranks::All, 0..part, Action::Place { stride: part }),
            Gather => (Ranks::All, part, root, 0..part, Action::Place { stride: part }),
            AllToAll => (Ranks::All, everything, Ranks::All, mine, Action::Place { stride: part }),
            Barrier => (Ranks::None, 0, Ranks::None, 0..0, Action::Place { stride: 0 }),
            Send | Recv | AllGatherV | ReduceScatterV | AllToAllV => return None,
        };
        let window = if consumers.contains(rank) { window } else { 0..0 };
        Some(Pattern { contributors, length, consumers, window, action })
    }

    /// Bytes that `rank` reads from its `send`.
    pub fn send_bytes(&self, rank: u32) -> usize {
        if self.contributors.contains(rank) { self.length } else { 0 }
    }

    /// Bytes that this rank of `size` writes to its `recv`.
    pub fn recv_bytes(&self, size: u32) -> usize {
        let windows = match (self.action, self.contributors) {
            (Action::Reduce, _) | (_, Ranks::One(_)) => 1,
            (_, Ranks::All) => size as usize,
            (_, Ranks::None) => 0,
        };
        windows * self.window.len()
    }

    /// Where in `recv` the bytes of `contributor`'s window begin.
    pub fn place(&self, contributor: u32) -> usize {
        match (self.action, self.contributors) {
            (Action::Reduce, _) | (_, Ranks::One(_) | Ranks::None) => 0,
            (Action::Place { stride }, Ranks::All) => contributor as usize * stride,
        }
    }
}
