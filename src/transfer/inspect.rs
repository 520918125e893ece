//! What a plan costs, per rank and in all, beside what it could not cost less.
//!
//! Everything here is counted from the finished plan, not carried over from its making, so that a plan that does
//! something else than intended shows it.

use super::cells::Needs;
use super::layout::Side;
use super::plan::{ALIGN, Bucket, Plan, Transport};

/// What one rank does, in bytes of payload (gaps between chunks not counted).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// The rank.
    pub rank: u32,
    /// Its operations.
    pub operations: u64,
    /// Sent to targets; a broadcast counts once.
    pub sent: u64,
    /// Received for its target tensors.
    pub received: u64,
    /// What it must receive at least: what its target tensors need and its own source tensors do not have.
    pub receive_bound: u64,
    /// Copied within the rank.
    pub local: u64,
    /// Contributions it sends to be reduced on others.
    pub reduce_sent: u64,
    /// Contributions it receives to reduce them.
    pub reduce_received: u64,
    /// The most it holds at once in buckets and reduced blocks, padding included.
    pub staging: u64,
}

impl Load {
    /// The busier of its two directions.
    fn busiest(&self) -> u64 {
        (self.sent + self.reduce_sent).max(self.received + self.reduce_received)
    }
}

/// What a plan does in all, in bytes of payload, beside lower bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tensors.
    pub items: u64,
    /// Chunks.
    pub chunks: u64,
    /// Buckets.
    pub buckets: u64,
    /// Buckets by transport: P2P, broadcast, local, and rounds of reductions.
    pub by_transport: [u64; 4],
    /// Different sets of ranks that broadcast or reduce together.
    pub groups: u64,
    /// Received by targets over the wire.
    pub wire: u64,
    /// What targets lack, all together; a sum counts one message less where a contributor wants it. Met exactly, but
    /// for sums of which one rank wants so much that it would drown in contributions.
    pub wire_bound: u64,
    /// Sent by sources, a broadcast counted once.
    pub injected: u64,
    /// What must leave its holders at least once.
    pub injection_bound: u64,
    /// Contributions that travel to be reduced.
    pub reduced: u64,
    /// One contribution less than there are, per element. A plan always meets it.
    pub reduce_bound: u64,
    /// Copied within ranks.
    pub local: u64,
    /// The most that one rank sends, contributions included.
    pub largest_send: u64,
    /// The least that the busiest sender can send, with these transports, however replicas share the work.
    pub send_bound: u64,
    /// The most that one rank receives, contributions included.
    pub largest_receive: u64,
    /// The most that one rank lacks.
    pub receive_bound: u64,
    /// How long it takes if every rank sends one byte and receives one byte at a time, buckets begin in order, and
    /// everything else takes no time. In bytes.
    pub duration: u64,
    /// The most that one rank sends or receives: no order of these buckets could take less.
    pub duration_bound: u64,
    /// The most that one rank stages.
    pub staging: u64,
    /// What it may stage.
    pub staging_cap: u64,
    /// Buckets in flight per rank.
    pub in_flight: u32,
}

impl Plan {
    /// What the plan does in all.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// What a rank does; `None` if the descriptions do not name it. Any rank's, from anywhere.
    pub fn load(&self, rank: u32) -> Option<&Load> {
        self.loads.get(self.ranks.binary_search(&rank).ok()?)
    }

    /// What every rank that takes part does, by rank.
    pub fn loads(&self) -> &[Load] {
        &self.loads
    }

    /// Calls `each` with (sender, receiver, bytes, transport) for everything that reaches somebody: payload per target
    /// of a bucket, a rank with itself for local copies, and contributions on their way to where they are reduced.
    pub(super) fn each_move(&self, mut each: impl FnMut(u32, u32, u64, Transport)) {
        for index in 0..self.chunk_count() {
            let Some(chunk) = self.chunk(index) else { continue };
            for target in chunk.targets {
                each(chunk.source, *target, chunk.bytes, chunk.transport);
            }
            for from in chunk.contributors.iter().filter(|from| **from != chunk.source) {
                each(*from, chunk.source, chunk.bytes, Transport::None);
            }
        }
    }
}

pub(super) fn loads(plan: &Plan) -> Vec<Load> {
    let load = |rank: &u32| Load {
        rank: *rank,
        operations: plan.operations(*rank).len() as u64,
        receive_bound: receive_bound(plan, *rank),
        ..Load::default()
    };
    let mut loads: Vec<Load> = plan.ranks.iter().map(load).collect();
    let at = |rank: u32| plan.ranks.binary_search(&rank).unwrap_or(0);
    plan.each_move(|from, to, bytes, transport| match transport {
        Transport::P2p => {
            loads[at(from)].sent += bytes;
            loads[at(to)].received += bytes;
        }
        Transport::Broadcast => loads[at(to)].received += bytes,
        Transport::Local => loads[at(to)].local += bytes,
        Transport::None => {
            loads[at(from)].reduce_sent += bytes;
            loads[at(to)].reduce_received += bytes;
        }
    });
    for index in 0..plan.chunk_count() {
        let Some(chunk) = plan.chunk(index) else { continue };
        if chunk.transport == Transport::Broadcast {
            loads[at(chunk.source)].sent += chunk.bytes;
        }
    }
    loads
}

/// What a rank's targets need and its sources do not have, in bytes on the wire.
fn receive_bound(plan: &Plan, rank: u32) -> u64 {
    let lacks = |item: usize| {
        let wanted = plan.region(item, Side::Target, rank)?;
        let held = plan.region(item, Side::Source, rank).and_then(|source| source.intersect(&wanted));
        let size = plan.wire(item)?.size() as u64;
        Some((wanted.elements() - held.map_or(0, |held| held.elements())) * size)
    };
    (0..plan.item_count()).filter_map(lacks).sum()
}

/// Finds how many operations every rank may have in flight within the staging cap, and what each then stages.
pub(super) fn bound_staging(plan: &mut Plan) -> u32 {
    let holds: Vec<Vec<Hold>> = plan.ranks.iter().map(|rank| holds(plan, *rank)).collect();
    // More never hold less.
    let longest = holds.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let most = longest.min(plan.options.in_flight as usize);
    let low = deepest(most, |depth| holds.iter().all(|holds| peak(holds, depth) <= plan.options.staging_bytes));
    for (load, holds) in plan.loads.iter_mut().zip(&holds) {
        load.staging = peak(holds, low);
    }
    low as u32
}

/// As [`bound_staging`], for one rank that stages so much more for every bucket: how many operations it may have in
/// flight, and how much it then stages. One it may have even where that exceeds the cap.
pub(super) fn staging_with(plan: &Plan, rank: u32, more: impl Fn(&Bucket<'_>) -> u64) -> (usize, u64) {
    let mut holds = holds(plan, rank);
    for (hold, operation) in holds.iter_mut().zip(plan.operations(rank)) {
        hold.bytes += plan.bucket(*operation as usize).map_or(0, |bucket| more(&bucket));
    }
    let depth = deepest(plan.in_flight() as usize, |depth| peak(&holds, depth) <= plan.options.staging_bytes);
    (depth, peak(&holds, depth))
}

/// The largest number up to `most` that fits, if all that are smaller do; 1 if none does.
fn deepest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (1, most.max(1));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

/// What an operation holds while it is in flight, and a block that stays until a later operation is done.
#[derive(Clone, Copy, Default)]
struct Hold {
    bytes: u64,
    block: u64,
    last_reader: usize,
}

fn holds(plan: &Plan, rank: u32) -> Vec<Hold> {
    let operations = plan.operations(rank);
    let mut holds = vec![Hold::default(); operations.len()];
    for (at, operation) in operations.iter().enumerate() {
        let Some(bucket) = plan.bucket(*operation as usize) else { continue };
        if bucket.transport != Transport::Local {
            holds[at].bytes = bucket.bytes.next_multiple_of(ALIGN);
        }
        if let Some(round) = bucket.round
            && let Some((begin, end)) = round.block(rank)
        {
            // The others' contributions to its block come beside what it brings.
            holds[at].bytes += (end - begin) * (round.members.len() as u64 - 1);
            holds[at].block = end - begin;
            holds[at].last_reader = at;
        }
        // Only the owner of a block sends it on.
        if let Some(round) = bucket.after.filter(|_| bucket.source == rank)
            && let Ok(round) = operations.binary_search(&(round as u32))
        {
            holds[round].last_reader = at;
        }
    }
    holds
}

/// The most held at once, if operation i begins when operation i - in_flight is done.
fn peak(holds: &[Hold], in_flight: usize) -> u64 {
    let mut ends = vec![0u64; holds.len() + 1];
    let (mut held, mut most) = (0, 0);
    for (at, hold) in holds.iter().enumerate() {
        held += hold.bytes + hold.block;
        if at >= in_flight {
            held -= holds[at - in_flight].bytes;
        }
        held -= ends[at];
        if hold.block > 0 {
            // Freed when the operation `in_flight` behind its last reader begins.
            let free = (hold.last_reader + in_flight).min(holds.len());
            ends[free] += hold.block;
        }
        most = most.max(held);
    }
    most
}

pub(super) fn totals(plan: &Plan, needs: Needs, send_bound: u64) -> Totals {
    let mut totals = Totals {
        items: plan.item_count() as u64,
        chunks: plan.chunk_count() as u64,
        buckets: plan.bucket_count() as u64,
        wire_bound: needs.wire,
        injection_bound: needs.injected,
        reduce_bound: needs.reduced,
        send_bound,
        staging_cap: plan.options.staging_bytes,
        in_flight: plan.in_flight(),
        ..Totals::default()
    };
    for load in &plan.loads {
        totals.wire += load.received;
        totals.injected += load.sent;
        totals.reduced += load.reduce_sent;
        totals.local += load.local;
        totals.largest_send = totals.largest_send.max(load.sent + load.reduce_sent);
        totals.largest_receive = totals.largest_receive.max(load.received + load.reduce_received);
        totals.receive_bound = totals.receive_bound.max(load.receive_bound);
        totals.staging = totals.staging.max(load.staging);
    }
    for index in 0..plan.bucket_count() {
        let Some(bucket) = plan.bucket(index) else { continue };
        totals.by_transport[bucket.transport as usize] += 1;
    }
    totals.groups = plan.count_groups();
    totals.duration = duration(plan);
    totals.duration_bound = plan.loads.iter().map(Load::busiest).max().unwrap_or(0);
    totals
}

/// A rank on its way through its operations.
#[derive(Clone, Default)]
struct Clock {
    sends: u64,
    receives: u64,
    begun: u64,
    /// When each operation is done, as a running maximum.
    done: Vec<u64>,
}

impl Clock {
    fn may_begin(&self, in_flight: usize) -> u64 {
        let window = self.done.len().checked_sub(in_flight).map_or(0, |at| self.done[at]);
        self.begun.max(window)
    }

    fn begin(&mut self, begin: u64, done: u64) {
        self.begun = begin;
        self.done.push(done.max(self.done.last().copied().unwrap_or(0)));
    }
}

/// See [`Totals::duration`].
fn duration(plan: &Plan) -> u64 {
    let in_flight = plan.in_flight() as usize;
    let mut clocks = vec![Clock::default(); plan.ranks.len()];
    let mut done_at = vec![0u64; plan.bucket_count()];
    let at = |rank: &u32| plan.ranks.binary_search(rank).unwrap_or(0);
    let mut members = Vec::new();
    for index in 0..plan.bucket_count() {
        let Some(bucket) = plan.bucket(index) else { continue };
        members.clear();
        match bucket.round {
            Some(round) => members.extend(round.members.iter().map(at)),
            None => members.extend(std::iter::once(&bucket.source).chain(bucket.targets).map(at)),
        }
        let mut begin = members.iter().map(|rank| clocks[*rank].may_begin(in_flight)).max().unwrap_or(0);
        if let Some(round) = bucket.after {
            begin = begin.max(done_at[round]);
        }
        let mut done = begin;
        match bucket.round {
            Some(round) => {
                let others = round.members.len() as u64 - 1;
                for (rank, block) in members.iter().zip(round.blocks.windows(2)) {
                    let own = block[1] - block[0];
                    let clock = &mut clocks[*rank];
                    clock.sends = clock.sends.max(begin) + bucket.bytes - own;
                    clock.receives = clock.receives.max(begin) + others * own;
                    done = done.max(clock.sends).max(clock.receives);
                }
            }
            None if bucket.transport == Transport::Local => {}
            None => {
                let receivers = members[1..].iter().map(|rank| clocks[*rank].receives).max().unwrap_or(0);
                done = clocks[members[0]].sends.max(receivers).max(begin) + bucket.bytes;
                clocks[members[0]].sends = done;
                for rank in &members[1..] {
                    clocks[*rank].receives = done;
                }
            }
        }
        done_at[index] = done;
        for rank in &members {
            let begin = clocks[*rank].may_begin(in_flight);
            clocks[*rank].begin(begin, done);
        }
    }
    done_at.into_iter().max().unwrap_or(0)
}
