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
    /// Bytes of every consumer's window.
    pub part: usize,
    /// Whether rank `r`'s window begins at `r * part`; else everybody's begins at 0.
    pub sliced: bool,
    /// What it does with them.
    pub action: Action,
}

impl Pattern {
    /// The pattern of [`Descriptor::BARRIER`], for every rank.
    pub const BARRIER: Pattern = Pattern {
        contributors: Ranks::None,
        length: 0,
        consumers: Ranks::None,
        window: 0..0,
        part: 0,
        sliced: false,
        action: Action::Place { stride: 0 },
    };

    /// The collectives that have a pattern.
    pub fn collectives() -> Vec<Collective> {
        use Collective::*;
        COLLECTIVES
            .into_iter()
            .filter(|c| !matches!(c, Send | Recv | AllGatherV | ReduceScatterV | AllToAllV))
            .collect()
    }

    /// The pattern of `call` for `rank` of `size`; `None` for what is no such dance (send and recv, the v-forms).
    #[inline(always)]
    pub fn new(call: &Descriptor, rank: u32, size: u32) -> Option<Self> {
        use Collective::*;
        let part = call.bytes();
        let everything = part * size as usize;
        let root = Ranks::One(call.root);
        let side_by_side = Action::Place { stride: part };
        let (contributors, length, consumers, sliced, action) = match call.collective {
            AllReduce => (Ranks::All, part, Ranks::All, false, Action::Reduce),
            Reduce => (Ranks::All, part, root, false, Action::Reduce),
            ReduceScatter => (Ranks::All, everything, Ranks::All, true, Action::Reduce),
            Broadcast => (root, part, Ranks::All, false, side_by_side),
            Scatter => (root, everything, Ranks::All, true, side_by_side),
            AllGather => (Ranks::All, part, Ranks::All, false, side_by_side),
            Gather => (Ranks::All, part, root, false, side_by_side),
            AllToAll => (Ranks::All, everything, Ranks::All, true, side_by_side),
            Barrier => (Ranks::None, 0, Ranks::None, false, side_by_side),
            Send | Recv | AllGatherV | ReduceScatterV | AllToAllV => return None,
        };
        let mut pattern = Pattern { contributors, length, consumers, window: 0..0, part, sliced, action };
        pattern.window = pattern.window_of(rank);
        Some(pattern)
    }

    /// Which bytes of every contribution `rank` takes.
    #[inline]
    pub fn window_of(&self, rank: u32) -> Range<usize> {
        match (self.consumers.contains(rank), self.sliced) {
            (false, _) => 0..0,
            (true, false) => 0..self.part,
            (true, true) => rank as usize * self.part..(rank as usize + 1) * self.part,
        }
    }

    /// Whether `from` has to show `to` anything of its contribution, if there is anything: what a rank gives itself it
    /// need not show.
    pub fn gives(&self, from: u32, to: u32) -> bool {
        from != to && self.contributors.contains(from) && self.consumers.contains(to)
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
