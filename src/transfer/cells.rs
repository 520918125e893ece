//! What every pair of a source part and a target part shares, and who has and who wants it.
//!
//! Works on *nodes*, the ranks numbered in the order in which the descriptions first name them, so that renaming the
//! ranks renames the plan and changes nothing else. Everything iterates in the order of the descriptions, hash maps only
//! look up. Nothing is decided here: what is found are needs, grouped by who can serve them.

use std::collections::HashMap;
use std::rc::Rc;

use crate::dtype::DType;
use crate::error::Result;

use super::layout::{Part, Reduction, Resolved};
use super::owners::Sum;
use super::region::{Boxes, Region};

/// No flow, set or mesh position yet.
const NONE: u32 = u32::MAX;

/// A part of one source part that one target part needs.
#[derive(Clone, Copy)]
pub(super) struct Cell {
    pub(super) item: u32,
    /// Its box, in [`Found::boxes`].
    pub(super) region: u32,
}

/// Cells with the same holders and the same receivers.
pub(super) struct Flow {
    pub(super) holders: u32,
    /// Those who want it and do not hold it; never empty.
    pub(super) targets: u32,
    /// Of one copy, on the wire.
    pub(super) bytes: u64,
    pub(super) cells: Vec<Cell>,
}

/// Nodes whose contributions are added up element by element.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Group {
    /// In the order of their mesh.
    pub(super) members: u32,
    pub(super) dtype: DType,
    pub(super) reduction: Reduction,
}

/// One who can own a part of a sum.
#[derive(Clone, Copy)]
pub(super) struct Owner {
    pub(super) group: u32,
    /// Its place among the members of the group.
    pub(super) member: usize,
    pub(super) node: u32,
}

/// All that has to be served.
#[derive(Default)]
pub(super) struct Found {
    /// The rank of every node.
    pub(super) ranks: Vec<u32>,
    pub(super) sets: Sets,
    pub(super) boxes: Boxes,
    /// What a node holds and wants.
    pub(super) copies: Vec<(u32, Cell)>,
    pub(super) flows: Vec<Flow>,
    pub(super) groups: Vec<Group>,
    pub(super) sums: Vec<Sum>,
    /// Who can own each sum, in the order of its candidates, and its cells.
    pub(super) sum_cells: Vec<(Vec<Owner>, Vec<Cell>)>,
    /// What flows bring to each node, in bytes on the wire.
    pub(super) received: Vec<u64>,
    pub(super) needs: Needs,
}

/// What no plan can do with less, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    /// What receivers lack, all together; a sum needs one message less where a contributor wants it.
    pub(super) wire: u64,
    /// What must leave its holders at least once.
    pub(super) injected: u64,
    /// One contribution less than there are, for every element that is reduced.
    pub(super) reduced: u64,
}

/// Lists of nodes, each kept once.
#[derive(Default)]
pub(super) struct Sets {
    ids: HashMap<Rc<[u32]>, u32>,
    lists: Vec<Rc<[u32]>>,
}

impl Sets {
    pub(super) fn intern(&mut self, list: &[u32]) -> u32 {
        if let Some(id) = self.ids.get(list) {
            return *id;
        }
        let (id, list): (u32, Rc<[u32]>) = (self.lists.len() as u32, list.into());
        self.ids.insert(list.clone(), id);
        self.lists.push(list);
        id
    }

    pub(super) fn get(&self, id: u32) -> Rc<[u32]> {
        self.lists[id as usize].clone()
    }

    pub(super) fn len(&self) -> usize {
        self.lists.len()
    }
}

/// Finds the cells of all tensors. `limit` is told how many there will be, and at which tensor, before any is made.
pub(super) fn find(items: &[Resolved], limit: impl Fn(u64, usize) -> Result<()>) -> Result<Found> {
    let mut finder = Finder::new(items);
    let mut count = 0u64;
    let mut all = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate().filter(|(_, item)| !item.shape.contains(&0)) {
        let dims = 0..item.shape.len();
        let overlaps: Vec<Vec<Overlap>> =
            dims.map(|dim| overlaps(&item.source.parts(dim), &item.target.parts(dim))).collect();
        let cells = overlaps.iter().try_fold(1u64, |cells, overlaps| cells.checked_mul(overlaps.len() as u64));
        count = count.saturating_add(cells.unwrap_or(u64::MAX));
        limit(count, index)?;
        all.push((index, overlaps));
    }
    for (index, overlaps) in all {
        finder.find(index, &overlaps);
    }
    Ok(finder.found)
}

struct Finder<'a> {
    items: &'a [Resolved],
    found: Found,
    node_of: HashMap<u32, u32>,
    flow_of: HashMap<(u32, u32), u32>,
    group_of: HashMap<Group, u32>,
    /// By groups, receivers and bytes of an element on the wire.
    sum_of: HashMap<(Vec<u32>, u32, u64), usize>,
}

impl<'a> Finder<'a> {
    fn new(items: &'a [Resolved]) -> Self {
        let (mut found, mut node_of) = (Found::default(), HashMap::new());
        for grid in items.iter().flat_map(|item| [&item.source, &item.target]) {
            for rank in grid.mesh.ranks() {
                node_of.entry(*rank).or_insert_with(|| {
                    found.ranks.push(*rank);
                    found.ranks.len() as u32 - 1
                });
            }
        }
        found.received = vec![0; found.ranks.len()];
        let (flow_of, group_of, sum_of) = (HashMap::new(), HashMap::new(), HashMap::new());
        Finder { items, found, node_of, flow_of, group_of, sum_of }
    }

    /// Goes through all combinations of overlaps, one per dimension.
    fn find(&mut self, index: usize, overlaps: &[Vec<Overlap>]) {
        let dims = overlaps.len();
        let mut local = Local::new(&self.items[index]);
        let mut at = vec![0usize; dims];
        let mut region = Region { start: vec![0; dims], extent: vec![1; dims] };
        loop {
            let (mut source, mut target) = (0, 0);
            for dim in 0..dims {
                let overlap = &overlaps[dim][at[dim]];
                region.start[dim] = overlap.start;
                region.extent[dim] = overlap.end - overlap.start;
                source += overlap.source;
                target += overlap.target;
            }
            let cell = Cell { item: index as u32, region: self.found.boxes.keep(&region) };
            let targets = self.receivers(index, &mut local, target);
            if self.items[index].source.contributions.len() > 1 {
                self.add_partial(&mut local, cell, region.elements(), source, targets);
            } else {
                self.add_plain(&mut local, cell, region.elements(), source, targets);
            }
            let Some(dim) = (0..dims).rev().find(|dim| at[*dim] + 1 < overlaps[*dim].len()) else { return };
            at[dim] += 1;
            at[dim + 1..].fill(0);
        }
    }

    /// A cell whose elements lie ready on every holder.
    fn add_plain(&mut self, local: &mut Local, cell: Cell, elements: u64, source: u32, targets: u32) {
        let item = &self.items[cell.item as usize];
        let holders = self.holders(cell.item as usize, local, source);
        let (flow, copies) = match local.routes.get(&(holders, targets)) {
            Some(route) => *route,
            None => {
                let (held, wanted) = (self.found.sets.get(holders), self.found.sets.get(targets));
                let (copies, missing): (Vec<u32>, Vec<u32>) =
                    wanted.iter().partition(|node| held.binary_search(node).is_ok());
                let flow = if missing.is_empty() { NONE } else { self.flow(holders, &missing) };
                let copies = self.found.sets.intern(&copies);
                local.routes.insert((holders, targets), (flow, copies));
                (flow, copies)
            }
        };
        let found = &mut self.found;
        found.copies.extend(found.sets.get(copies).iter().map(|node| (*node, cell)));
        if flow == NONE {
            return;
        }
        let flow = &mut found.flows[flow as usize];
        let (bytes, targets) = (elements * item.wire.size() as u64, found.sets.get(flow.targets));
        flow.bytes += bytes;
        flow.cells.push(cell);
        found.needs.injected += bytes;
        found.needs.wire += bytes * targets.len() as u64;
        for node in targets.iter() {
            found.received[*node as usize] += bytes;
        }
    }

    /// A cell whose elements are sums of what several hold.
    fn add_partial(&mut self, local: &mut Local, cell: Cell, elements: u64, source: u32, targets: u32) {
        let item = &self.items[cell.item as usize];
        let groups = self.reducers(cell.item as usize, local, source);
        let (size, wire) = (item.source_dtype.size() as u64, item.wire.size() as u64);
        let found = &mut self.found;
        let next = found.sums.len();
        let sum = *self.sum_of.entry((groups.clone(), targets, wire)).or_insert(next);
        if sum == next {
            let mut owners = Vec::new();
            for group in groups {
                let members = found.sets.get(found.groups[group as usize].members);
                let owner = |(member, node): (usize, &u32)| Owner { group, member, node: *node };
                owners.extend(members.iter().enumerate().map(owner));
            }
            let candidates = owners.iter().map(|owner| owner.node).collect();
            let (contributions, targets) = (item.source.contributions.len() as u64, found.sets.get(targets));
            found.sums.push(Sum { elements: 0, size, wire, contributions, candidates, targets });
            found.sum_cells.push((owners, Vec::new()));
        }
        found.sum_cells[sum].1.push(cell);
        let sum = &mut found.sums[sum];
        sum.elements += elements;
        let messages = sum.targets.len() as u64 - u64::from(sum.candidates.iter().any(|node| sum.wants(*node)));
        found.needs.reduced += elements * size * (sum.contributions - 1);
        found.needs.wire += elements * wire * messages;
        found.needs.injected += elements * wire * messages.min(1);
    }

    fn flow(&mut self, holders: u32, missing: &[u32]) -> u32 {
        let targets = self.found.sets.intern(missing);
        *self.flow_of.entry((holders, targets)).or_insert_with(|| {
            self.found.flows.push(Flow { holders, targets, bytes: 0, cells: Vec::new() });
            self.found.flows.len() as u32 - 1
        })
    }

    /// The nodes that hold the source part whose first replica is at this mesh position.
    fn holders(&mut self, index: usize, local: &mut Local, position: u32) -> u32 {
        let source = &self.items[index].source;
        if local.holders[position as usize] == NONE {
            local.holders[position as usize] = self.nodes_at(source.mesh.ranks(), &source.replicas, position);
        }
        local.holders[position as usize]
    }

    /// The nodes that want the target part whose first replica is at this mesh position.
    fn receivers(&mut self, index: usize, local: &mut Local, position: u32) -> u32 {
        let target = &self.items[index].target;
        if local.targets[position as usize] == NONE {
            local.targets[position as usize] = self.nodes_at(target.mesh.ranks(), &target.replicas, position);
        }
        local.targets[position as usize]
    }

    fn nodes_at(&mut self, ranks: &[u32], offsets: &[u32], position: u32) -> u32 {
        let node = |offset: &u32| self.node_of[&ranks[(position + offset) as usize]];
        let mut nodes: Vec<u32> = offsets.iter().map(node).collect();
        nodes.sort_unstable();
        self.found.sets.intern(&nodes)
    }

    /// The groups, one per replica, whose members hold contributions to the source part at this mesh position.
    fn reducers(&mut self, index: usize, local: &mut Local, position: u32) -> Vec<u32> {
        let item = &self.items[index];
        let Some(reduction) = item.source.reduction else { return Vec::new() };
        if let Some(groups) = local.groups.get(&position) {
            return groups.clone();
        }
        let mut found = Vec::new();
        for replica in &item.source.replicas {
            let at = |offset: &u32| item.source.mesh.ranks()[(position + replica + offset) as usize];
            let members: Vec<u32> = item.source.contributions.iter().map(|offset| self.node_of[&at(offset)]).collect();
            let members = self.found.sets.intern(&members);
            let group = Group { members, dtype: item.source_dtype, reduction };
            found.push(*self.group_of.entry(group).or_insert_with(|| {
                self.found.groups.push(group);
                self.found.groups.len() as u32 - 1
            }));
        }
        local.groups.insert(position, found.clone());
        found
    }
}

/// What is found once per tensor.
struct Local {
    /// Set of holders by mesh position of the first replica.
    holders: Vec<u32>,
    targets: Vec<u32>,
    groups: HashMap<u32, Vec<u32>>,
    /// (holders, receivers) to (flow, nodes that hold what they want).
    routes: HashMap<(u32, u32), (u32, u32)>,
}

impl Local {
    fn new(item: &Resolved) -> Local {
        Local {
            holders: vec![NONE; item.source.mesh.ranks().len()],
            targets: vec![NONE; item.target.mesh.ranks().len()],
            groups: HashMap::new(),
            routes: HashMap::new(),
        }
    }
}

/// Where a source part and a target part of one tensor dimension meet.
struct Overlap {
    start: u64,
    end: u64,
    /// The mesh positions that the two parts add to those of the other dimensions.
    source: u32,
    target: u32,
}

/// All meetings of two partitions of one dimension, in order.
fn overlaps(source: &[Part], target: &[Part]) -> Vec<Overlap> {
    let (mut found, mut from) = (Vec::new(), 0);
    for wanted in target.iter().filter(|part| part.start < part.end) {
        while source[from].end <= wanted.start {
            from += 1;
        }
        for held in source[from..].iter().take_while(|part| part.start < wanted.end) {
            let (start, end) = (held.start.max(wanted.start), held.end.min(wanted.end));
            if start < end {
                found.push(Overlap { start, end, source: held.position, target: wanted.position });
            }
        }
    }
    found
}
