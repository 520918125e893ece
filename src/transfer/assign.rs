//! Who sends what to whom, by what: from what is needed to streams of buckets.
//!
//! Totals decide: first onto whom sums are reduced, then which flows are broadcast, then how replicas share the rest.
//! Only then is anything cut and packed. There is no order among streams yet, and no rank in particular.

use std::collections::HashMap;

use crate::dtype::DType;
use crate::error::{Error, Result};

use super::cells::{Cell, Flow, Found, Group, Needs, Owner, Sets};
use super::flow::{self, Demand, Share};
use super::layout::{Reduction, Resolved};
use super::owners::{self, Sum};
use super::pack::{Draft, Key, NONE, Packer, Stream};
use super::plan::{ALIGN, Options, Transport};
use super::region::{self, Boxes, Region};

/// How evenly loads are met before pieces stop being cut: a share of a load may be off by 1/256 of it.
const EVENNESS: u64 = 256;

/// Which nodes add up what: one round of a reduce-scatter. Its stream has exactly one bucket.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) stream: u32,
    pub(super) members: u32,
    pub(super) dtype: DType,
    pub(super) reduction: Reduction,
    /// Where in the bucket the block of each member begins, and the end.
    pub(super) blocks: Vec<u64>,
    /// Streams that read the result.
    pub(super) readers: Vec<u32>,
}

/// All that is to be ordered.
pub(super) struct Assigned {
    /// The rank of every node.
    pub(super) ranks: Vec<u32>,
    pub(super) sets: Sets,
    pub(super) boxes: Boxes,
    pub(super) streams: Vec<Stream>,
    pub(super) rounds: Vec<Round>,
    pub(super) needs: Needs,
    /// The least possible largest load of a sender, with these transports and owners.
    pub(super) send_bound: u64,
}

/// Assigns every element that a target needs to a sender and a bucket.
pub(super) fn assign(mut found: Found, items: &[Resolved], options: &Options) -> Result<Assigned> {
    let packer = Packer::new(items, options, std::mem::take(&mut found.boxes));
    let (ranks, needs, groups) = (found.ranks, found.needs, found.groups);
    let mut planner = Planner {
        items,
        options,
        sets: found.sets,
        packer,
        base: vec![0; ranks.len()],
        received: found.received,
        owned: groups.iter().map(|_| Vec::new()).collect(),
        groups,
        onward: HashMap::new(),
        onward_order: Vec::new(),
        rounds: Vec::new(),
    };
    planner.choose_owners(found.sums, found.sum_cells)?;
    planner.choose_for_owners();
    let classes = planner.choose_transports(found.flows);
    let shares = flow::balance(&planner.demands(&classes), &planner.base);
    let mut loads = planner.base.clone();
    for share in shares.iter().flatten() {
        loads[share.node as usize] += share.bytes;
    }
    let send_bound = loads.into_iter().max().unwrap_or(0);

    planner.emit_copies(found.copies)?;
    planner.emit_rounds()?;
    for (class, shares) in classes.into_iter().zip(shares) {
        planner.emit_class(class, shares)?;
    }
    let (sets, rounds) = (planner.sets, planner.rounds);
    let (boxes, streams) = (planner.packer.boxes, planner.packer.streams);
    Ok(Assigned { ranks, sets, boxes, streams, rounds, needs, send_bound })
}

/// Flows with the same holders, and whether each is broadcast.
struct Class {
    holders: u32,
    flows: Vec<(Flow, bool)>,
}

/// A box that is reduced onto one node.
#[derive(Clone, Copy)]
struct Piece {
    item: u32,
    region: u32,
    elements: u64,
    targets: u32,
    /// Whether the owner wants it for itself.
    keeps: bool,
}

/// What one owner of reduced pieces sends to one set of receivers.
#[derive(Clone, Copy, Default)]
struct Onward {
    bytes: u64,
    broadcast: bool,
}

struct Planner<'a> {
    items: &'a [Resolved],
    options: &'a Options,
    sets: Sets,
    packer: Packer<'a>,
    groups: Vec<Group>,
    /// Per group and member, the pieces that are reduced onto it.
    owned: Vec<Vec<Vec<Piece>>>,
    onward: HashMap<(u32, u32), Onward>,
    /// The keys of `onward` in the order of their first use.
    onward_order: Vec<(u32, u32)>,
    /// Bytes that each node sends whatever is chosen for replicas.
    base: Vec<u64>,
    received: Vec<u64>,
    rounds: Vec<Round>,
}

impl Planner<'_> {
    /// Deals the cells of every sum to owners.
    fn choose_owners(&mut self, sums: Vec<Sum>, cells: Vec<(Vec<Owner>, Vec<Cell>)>) -> Result<()> {
        for (owned, group) in self.owned.iter_mut().zip(&self.groups) {
            owned.resize(self.sets.get(group.members).len(), Vec::new());
        }
        let shares = owners::choose(&sums, &self.received);
        for ((sum, (owners, cells)), shares) in sums.iter().zip(cells).zip(shares) {
            let mut dealer = Dealer::new(owners.into_iter().zip(shares.iter().map(|share| share * sum.size)));
            for cell in cells {
                let region = self.packer.region(cell.item, cell.region);
                for (owner, part) in dealer.deal(region, sum.size, self.options) {
                    self.add_piece(cell.item, owner, &part, sum)?;
                }
            }
        }
        Ok(())
    }

    /// A box that is reduced onto one member of a group.
    fn add_piece(&mut self, item: u32, owner: Owner, part: &Region, sum: &Sum) -> Result<()> {
        let Owner { group, member, node } = owner;
        let members = self.sets.get(self.groups[group as usize].members);
        let receivers: Vec<u32> = sum.targets.iter().copied().filter(|target| *target != node).collect();
        let keeps = receivers.len() < sum.targets.len();
        let (contributed, result) = (part.elements() * sum.size, part.elements() * sum.wire);
        for other in members.iter().filter(|other| **other != node) {
            self.base[*other as usize] += contributed;
            self.received[node as usize] += contributed;
        }
        for receiver in &receivers {
            self.received[*receiver as usize] += result;
        }
        self.base[node as usize] += result * receivers.len() as u64;
        let targets = self.sets.intern(&receivers);
        if !receivers.is_empty() {
            let onward = self.onward.entry((node, targets)).or_insert_with(|| {
                self.onward_order.push((node, targets));
                Onward::default()
            });
            onward.bytes += result;
        }
        let limit = (self.block_bytes(members.len())? / sum.size).min(self.options.bucket_bytes / sum.wire);
        self.packer.count(region::count_pieces(&part.extent, limit).unwrap_or(u64::MAX), item)?;
        let pieces = &mut self.owned[group as usize][member];
        region::split(part, limit, &mut |piece| {
            let region = self.packer.boxes.keep(piece);
            pieces.push(Piece { item, region, elements: piece.elements(), targets, keeps });
            Ok(())
        })
    }

    /// What one member of a reduction may own per round, so that a round of all fits a bucket.
    fn block_bytes(&self, members: usize) -> Result<u64> {
        match self.options.bucket_bytes / members as u64 / ALIGN * ALIGN {
            0 => Err(Error::invalid(format_args!(
                "buckets of {} bytes do not hold a block of {ALIGN} for each of {members} ranks whose contributions are \
                 added up: at least {} are needed",
                self.options.bucket_bytes,
                members as u64 * ALIGN
            ))),
            bytes => Ok(bytes),
        }
    }

    /// The most that any node receives: senders that send no more are no bottleneck.
    fn level(&self) -> u64 {
        self.received.iter().copied().max().unwrap_or(0)
    }

    /// Lets owners that would send more than anybody receives broadcast, what has the most receivers first.
    fn choose_for_owners(&mut self) {
        let level = self.level();
        let mut order = self.onward_order.clone();
        order.sort_by_key(|key| std::cmp::Reverse(self.sets.get(key.1).len()));
        for key in order {
            let fan_out = self.sets.get(key.1).len() as u64;
            let base = &mut self.base[key.0 as usize];
            if let Some(onward) = self.onward.get_mut(&key).filter(|_| *base > level && fan_out > 1) {
                onward.broadcast = true;
                *base -= onward.bytes * (fan_out - 1);
            }
        }
    }

    /// P2P is as fast as the network allows unless the senders are the bottleneck. Where they are, flows with the most
    /// receivers are broadcast until they are not (or nothing is left to broadcast).
    fn choose_transports(&self, flows: Vec<Flow>) -> Vec<Class> {
        let mut classes: Vec<Class> = Vec::new();
        let mut class_of = HashMap::new();
        for flow in flows {
            let class = *class_of.entry(flow.holders).or_insert(classes.len());
            if class == classes.len() {
                classes.push(Class { holders: flow.holders, flows: Vec::new() });
            }
            classes[class].flows.push((flow, false));
        }
        let level = self.level();
        loop {
            let mut changed = false;
            for (over, mut excess) in flow::overloaded(&self.demands(&classes), &self.base, level) {
                let mut candidates = Vec::new();
                for class in over {
                    for (at, (flow, broadcast)) in classes[class].flows.iter().enumerate() {
                        let fan_out = self.sets.get(flow.targets).len() as u64;
                        if !broadcast && fan_out > 1 {
                            candidates.push((fan_out, class, at));
                        }
                    }
                }
                candidates.sort_by_key(|(fan_out, ..)| std::cmp::Reverse(*fan_out));
                for (fan_out, class, at) in candidates {
                    if excess == 0 {
                        break;
                    }
                    let (flow, broadcast) = &mut classes[class].flows[at];
                    *broadcast = true;
                    changed = true;
                    excess = excess.saturating_sub(flow.bytes * (fan_out - 1));
                }
            }
            if !changed {
                return classes;
            }
        }
    }

    /// What the holders of each class must send.
    fn demands(&self, classes: &[Class]) -> Vec<Demand> {
        let load = |(flow, broadcast): &(Flow, bool)| {
            if *broadcast { flow.bytes } else { flow.bytes * self.sets.get(flow.targets).len() as u64 }
        };
        let demand = |class: &Class| Demand {
            holders: self.sets.get(class.holders).to_vec(),
            bytes: class.flows.iter().map(load).sum(),
        };
        classes.iter().map(demand).collect()
    }

    fn emit_copies(&mut self, copies: Vec<(u32, Cell)>) -> Result<()> {
        let targets = self.sets.intern(&[]);
        for (source, cell) in copies {
            let key = Key { transport: Transport::Local, source, targets, round: NONE };
            let region = self.packer.region(cell.item, cell.region);
            self.packer.push(key, cell.item, &region, Some(cell.region))?;
        }
        Ok(())
    }

    /// Packs the pieces of every group into rounds, and what is read from each round into streams.
    fn emit_rounds(&mut self) -> Result<()> {
        for (group, mut owned) in std::mem::take(&mut self.groups).into_iter().zip(std::mem::take(&mut self.owned)) {
            // Everybody begins somewhere else, so that what comes out of a round does not all go to one target.
            let members = owned.len();
            for (member, pieces) in owned.iter_mut().enumerate() {
                let turn = pieces.len() * member / members;
                pieces.rotate_left(turn);
            }
            let mut next = vec![0usize; members];
            while next.iter().zip(&owned).any(|(next, pieces)| *next < pieces.len()) {
                self.emit_round(group, &owned, &mut next)?;
            }
        }
        Ok(())
    }

    /// One round: of every member's pieces from `next` on as many as fit its block.
    fn emit_round(&mut self, group: Group, owned: &[Vec<Piece>], next: &mut [usize]) -> Result<()> {
        let members = self.sets.get(group.members);
        let (quota, size) = (self.block_bytes(members.len())?, group.dtype.size() as u64);
        let stream = self.packer.streams.len() as u32;
        let key = Key { transport: Transport::None, source: members[0], targets: group.members, round: NONE };
        self.packer.streams.push(Stream { key, chunks: Vec::new(), buckets: Vec::new() });
        let (mut drafts, mut blocks, mut readers, mut fill) = (Vec::new(), vec![0], Vec::new(), 0u64);
        for (member, pieces) in owned.iter().enumerate() {
            let begin = fill;
            for piece in &pieces[next[member]..] {
                let end = fill + (piece.elements * size).next_multiple_of(ALIGN);
                if end - begin > quota || end > self.options.bucket_bytes {
                    break;
                }
                drafts.push(Draft { item: piece.item, region: piece.region, offset: fill, reduced: 0 });
                self.emit_reduced(piece, members[member], (stream, fill), &mut readers)?;
                fill = end;
                next[member] += 1;
            }
            blocks.push(fill);
        }
        let packed = &mut self.packer.streams[stream as usize];
        packed.chunks = drafts;
        packed.buckets.push((0, fill));
        let Group { members, dtype, reduction } = group;
        self.rounds.push(Round { stream, members, dtype, reduction, blocks, readers });
        Ok(())
    }

    /// Sends a reduced piece from its owner to those who want it.
    fn emit_reduced(
        &mut self,
        piece: &Piece,
        source: u32,
        (round, offset): (u32, u64),
        readers: &mut Vec<u32>,
    ) -> Result<()> {
        let mut ways = Vec::new();
        if piece.keeps {
            ways.push((Transport::Local, self.sets.intern(&[])));
        }
        if self.onward.get(&(source, piece.targets)).is_some_and(|onward| onward.broadcast) {
            ways.push((Transport::Broadcast, piece.targets));
        } else {
            let targets = self.sets.get(piece.targets);
            ways.extend(targets.iter().map(|target| (Transport::P2p, self.sets.intern(&[*target]))));
        }
        self.packer.count(ways.len() as u64, piece.item)?;
        let bytes = piece.elements * self.items[piece.item as usize].wire.size() as u64;
        for (transport, targets) in ways {
            let stream = self.packer.stream(Key { transport, source, targets, round });
            if self.packer.streams[stream as usize].chunks.is_empty() {
                readers.push(stream);
            }
            self.packer.append(stream, piece.item, piece.region, bytes, offset);
        }
        Ok(())
    }

    /// Deals the cells of a class to its senders.
    fn emit_class(&mut self, class: Class, shares: Vec<Share>) -> Result<()> {
        let mut dealer = Dealer::new(shares.into_iter().map(|share| (share.node, share.bytes)));
        for (flow, broadcast) in class.flows {
            if broadcast {
                self.emit_flow(&mut dealer, Transport::Broadcast, flow.targets, &flow.cells)?;
                continue;
            }
            for target in self.sets.get(flow.targets).iter() {
                let target = self.sets.intern(&[*target]);
                self.emit_flow(&mut dealer, Transport::P2p, target, &flow.cells)?;
            }
        }
        Ok(())
    }

    fn emit_flow(
        &mut self,
        dealer: &mut Dealer<u32>,
        transport: Transport,
        targets: u32,
        cells: &[Cell],
    ) -> Result<()> {
        for cell in cells {
            let size = self.items[cell.item as usize].wire.size() as u64;
            let dealt = dealer.deal(self.packer.region(cell.item, cell.region), size, self.options);
            let whole = (dealt.len() == 1).then_some(cell.region);
            for (source, region) in dealt {
                self.packer.push(Key { transport, source, targets, round: NONE }, cell.item, &region, whole)?;
            }
        }
        Ok(())
    }
}

/// Deals boxes to takers, in their order, each as many bytes as his share.
struct Dealer<T> {
    takers: Vec<(T, u64)>,
    at: usize,
    left: u64,
}

impl<T: Copy> Dealer<T> {
    /// There must be a share if anything is to be dealt.
    fn new(takers: impl Iterator<Item = (T, u64)>) -> Self {
        let takers: Vec<(T, u64)> = takers.filter(|(_, share)| *share > 0).collect();
        let left = takers.first().map_or(0, |(_, share)| *share);
        Dealer { takers, at: 0, left }
    }

    /// Who gets which part of the next box. A cut is made where that is worth it, always a little early: what the
    /// taker before it was spared is on top of the share of the one behind it.
    fn deal(&mut self, region: Region, size: u64, options: &Options) -> Vec<(T, Region)> {
        let (mut dealt, mut rest) = (Vec::new(), vec![region]);
        while let Some(region) = rest.pop() {
            let bytes = region.elements() * size;
            let (taker, share) = self.takers[self.at];
            if self.at + 1 == self.takers.len() || bytes <= self.left {
                self.left = self.left.saturating_sub(bytes);
                dealt.push((taker, region));
                continue;
            }
            // A quarter of a bucket is less than the chunks that a larger box would be split into.
            let slack = (share / EVENNESS).max(options.split_bytes).min(options.bucket_bytes / 4);
            let (before, after) = region::cut(region, self.left / size, slack / size);
            for region in before {
                self.left -= region.elements() * size;
                dealt.push((taker, region));
            }
            rest.extend(after.into_iter().rev());
            self.at += 1;
            self.left += self.takers[self.at].1;
        }
        dealt
    }
}
