//! In which order buckets move.
//!
//! All buckets get one order, and every rank goes through its own in that order. So whichever unfinished bucket comes
//! first in it, all its ranks have nothing before it: a plan cannot deadlock, even when nobody has more than one bucket
//! in flight and nothing is buffered. Within that promise the order serves speed: in every turn a rank sends at
//! most one bucket and receives at most one, and those with the most left to do choose first, so that both ends of every
//! link stay busy. Rounds of a reduction come first, in waves in which no rank is in two of them, each followed by all
//! that reads its result, so that a rank holds one reduced block at a time.

use std::collections::HashMap;
use std::rc::Rc;

use super::assign::Assigned;
use super::pack::{NONE, Stream};
use super::plan::Transport;

/// All buckets in their order, as (stream, bucket of the stream).
pub(super) fn order(assigned: &Assigned) -> Vec<(u32, u32)> {
    let mut ordered = Vec::new();
    let mut turns = Turns::new(assigned);
    for wave in waves(assigned) {
        ordered.extend(wave.iter().map(|round| (assigned.rounds[*round].stream, 0)));
        turns.take(wave.iter().flat_map(|round| assigned.rounds[*round].readers.iter().copied()), &mut ordered);
    }
    let free = (0..assigned.streams.len() as u32).filter(|stream| {
        let key = &assigned.streams[*stream as usize].key;
        key.transport != Transport::None && key.round == NONE
    });
    turns.take(free, &mut ordered);
    ordered
}

/// Rounds that can run side by side: the k-th of every group together, none sharing a rank with another.
fn waves(assigned: &Assigned) -> Vec<Vec<usize>> {
    let mut seen_of_group = HashMap::new();
    let mut turn = Vec::with_capacity(assigned.rounds.len());
    for (index, round) in assigned.rounds.iter().enumerate() {
        let seen = seen_of_group.entry((round.members, round.dtype, round.reduction)).or_insert(0usize);
        turn.push((*seen, index));
        *seen += 1;
    }
    turn.sort_unstable();
    let mut free_at = vec![0usize; assigned.ranks.len()];
    let mut waves: Vec<Vec<usize>> = Vec::new();
    for (_, index) in turn {
        let members = assigned.sets.get(assigned.rounds[index].members);
        let wave = members.iter().map(|node| free_at[*node as usize]).max().unwrap_or(0);
        for node in members.iter() {
            free_at[*node as usize] = wave + 1;
        }
        if waves.len() <= wave {
            waves.resize(wave + 1, Vec::new());
        }
        waves[wave].push(index);
    }
    waves
}

struct Turns<'a> {
    assigned: &'a Assigned,
    /// The receivers of every stream.
    targets: Vec<Rc<[u32]>>,
    /// Bytes that each node has still to send, and to receive, in the present batch.
    to_send: Vec<u64>,
    to_receive: Vec<u64>,
    /// The last turn in which a node was given something to send, and to receive.
    sends: Vec<u64>,
    receives: Vec<u64>,
    turn: u64,
}

/// The streams of one node that are not finished, each with its next bucket.
struct Queue {
    node: u32,
    streams: Vec<(u32, u32)>,
}

impl<'a> Turns<'a> {
    fn new(assigned: &'a Assigned) -> Self {
        let zeros = || vec![0; assigned.ranks.len()];
        let targets = assigned.streams.iter().map(|stream| assigned.sets.get(stream.key.targets)).collect();
        let (to_send, to_receive, sends, receives) = (zeros(), zeros(), zeros(), zeros());
        Turns { assigned, targets, to_send, to_receive, sends, receives, turn: 0 }
    }

    /// Orders the buckets of these streams.
    fn take(&mut self, streams: impl Iterator<Item = u32>, ordered: &mut Vec<(u32, u32)>) {
        let (local, wire): (Vec<u32>, Vec<u32>) =
            streams.partition(|stream| self.stream(*stream).key.transport == Transport::Local);
        for index in &wire {
            let bytes: u64 = self.stream(*index).buckets.iter().map(|(_, bytes)| *bytes).sum();
            let source = self.stream(*index).key.source;
            self.to_send[source as usize] += bytes;
            for node in self.targets[*index as usize].iter() {
                self.to_receive[*node as usize] += bytes;
            }
        }
        // The side with fewer nodes has more to do on each, so it chooses. Senders do where there are broadcasts.
        let by_sender = self.queues(&wire, |turns, index| turns.stream(index).key.source);
        let by_receiver = self.queues(&wire, |turns, index| turns.targets[index as usize][0]);
        let point_to_point = wire.iter().all(|index| self.targets[*index as usize].len() == 1);
        let receivers_choose = point_to_point && by_receiver.len() < by_sender.len();
        let mut queues = if receivers_choose { by_receiver } else { by_sender };
        let mut local: Vec<(u32, u32)> = local.into_iter().map(|index| (index, 0)).collect();
        while !queues.is_empty() || !local.is_empty() {
            self.turn += 1;
            let left = if receivers_choose { &self.to_receive } else { &self.to_send };
            queues.sort_by_key(|queue| (std::cmp::Reverse(left[queue.node as usize]), queue.node));
            for queue in &mut queues {
                let Some(at) = self.choose(queue, receivers_choose) else { continue };
                let (index, bucket) = &mut queue.streams[at];
                ordered.push((*index, *bucket));
                self.begin(*index, *bucket);
                *bucket += 1;
                if *bucket as usize == self.stream(*index).buckets.len() {
                    queue.streams.remove(at);
                }
            }
            queues.retain(|queue| !queue.streams.is_empty());
            // Copies that stay on their rank fill the gaps: one per turn.
            for (index, bucket) in &mut local {
                ordered.push((*index, *bucket));
                *bucket += 1;
            }
            local.retain(|(index, bucket)| (*bucket as usize) < self.stream(*index).buckets.len());
        }
    }

    fn stream(&self, index: u32) -> &'a Stream {
        &self.assigned.streams[index as usize]
    }

    fn queues(&self, streams: &[u32], node_of: impl Fn(&Self, u32) -> u32) -> Vec<Queue> {
        let mut queue_of = vec![u32::MAX; self.to_send.len()];
        let mut queues: Vec<Queue> = Vec::new();
        for index in streams {
            let node = node_of(self, *index);
            let queue = &mut queue_of[node as usize];
            if *queue == u32::MAX {
                *queue = queues.len() as u32;
                queues.push(Queue { node, streams: Vec::new() });
            }
            queues[*queue as usize].streams.push((*index, 0));
        }
        queues
    }

    /// The stream whose other end is free in this turn and has the most left to do.
    fn choose(&self, queue: &Queue, receivers_choose: bool) -> Option<usize> {
        let mut best: Option<(usize, u64)> = None;
        for (at, (index, _)) in queue.streams.iter().enumerate() {
            let left = if receivers_choose {
                let source = self.stream(*index).key.source as usize;
                (self.sends[source] < self.turn).then(|| self.to_send[source])
            } else {
                let targets = &self.targets[*index as usize];
                let free = targets.iter().all(|node| self.receives[*node as usize] < self.turn);
                free.then(|| targets.iter().map(|node| self.to_receive[*node as usize]).max().unwrap_or(0))
            };
            if let Some(left) = left.filter(|left| best.is_none_or(|(_, best)| *left > best)) {
                best = Some((at, left));
            }
        }
        best.map(|(at, _)| at)
    }

    fn begin(&mut self, index: u32, bucket: u32) {
        let Stream { key, buckets, .. } = self.stream(index);
        let bytes = buckets[bucket as usize].1;
        self.to_send[key.source as usize] -= bytes;
        self.sends[key.source as usize] = self.turn;
        for node in self.targets[index as usize].iter() {
            self.to_receive[*node as usize] -= bytes;
            self.receives[*node as usize] = self.turn;
        }
    }
}
