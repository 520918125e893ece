//! Who of several holders sends how much, so that nobody sends more than he must.
//!
//! A *demand* is a number of bytes that any of its holders can send. The least possible largest load is the maximum,
//! over sets of nodes X, of (what only nodes of X can send + what they send anyway) / |X|; it is found as a maximum
//! flow whose capacity is raised to the bound that the violated cut proves, until nothing is cut. The nodes of that cut
//! can do no better, so they are settled, and the rest is balanced again without them: idle replicas do not stay idle
//! because somebody else is the bottleneck. All arithmetic is in whole bytes; this file knows neither tensors nor ranks.

use std::collections::{HashMap, VecDeque};

/// Bytes that any of `holders` (distinct nodes) can send.
#[derive(Clone, Debug)]
pub(super) struct Demand {
    pub(super) holders: Vec<u32>,
    pub(super) bytes: u64,
}

/// What one node sends of one demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) node: u32,
    pub(super) bytes: u64,
}

/// Splits every demand over its holders, given what each node sends anyway.
///
/// Demands and shares form a forest. The shares of a demand are in an order such that a caller who can only cut at
/// certain places, and moves each cut down, gives every node at most one cut's worth more than its shares: a node comes
/// first in every demand but one.
pub(super) fn balance(demands: &[Demand], base: &[u64]) -> Vec<Vec<Share>> {
    let mut shares = vec![Vec::new(); demands.len()];
    for component in components(demands, base.len()) {
        let mut open = component;
        let mut settled = vec![false; base.len()];
        while !open.is_empty() {
            let (tight, flow) = settle(demands, base, &open, &settled);
            let mut net = flow;
            net.remove_cycles();
            for (index, share) in net.ordered_shares() {
                shares[open[index]].extend(share);
            }
            for node in tight.nodes {
                settled[node as usize] = true;
            }
            open = (0..open.len()).filter(|index| !tight.demands[*index]).map(|index| open[index]).collect();
        }
    }
    shares
}

/// The demands that cannot all be met while no node sends more than `level`, with the bytes by which they exceed it,
/// one entry per connected component that has such.
pub(super) fn overloaded(demands: &[Demand], base: &[u64], level: u64) -> Vec<(Vec<usize>, u64)> {
    let mut over = Vec::new();
    for component in components(demands, base.len()) {
        let mut net = Net::new(demands, &component, &vec![false; base.len()]);
        net.set_level(base, level);
        let Some(cut) = net.maximise() else { continue };
        let stuck: Vec<usize> = (0..component.len()).filter(|index| cut.demands[*index]).collect();
        let excess = net.need.iter().sum();
        over.push((stuck.into_iter().map(|index| component[index]).collect(), excess));
    }
    over
}

/// The lowest level at which `demands` can be met, and the set that proves that it cannot be lower.
fn settle(demands: &[Demand], base: &[u64], open: &[usize], settled: &[bool]) -> (Cut, Net) {
    let mut net = Net::new(demands, open, settled);
    let mut tight = Cut { demands: vec![true; open.len()], nodes: net.nodes.clone() };
    loop {
        let bytes = (0..open.len()).filter(|index| tight.demands[*index]).map(|index| demands[open[index]].bytes).sum();
        let level = water_level(tight.nodes.iter().map(|node| base[*node as usize]), bytes);
        net.reset(demands, open);
        net.set_level(base, level);
        match net.maximise() {
            Some(cut) => tight = cut,
            None => break,
        }
    }
    // Only what is settled now is kept; the rest is computed again without the settled nodes.
    for index in (0..open.len()).filter(|index| !tight.demands[*index]) {
        for edge in net.demand_edges[index]..net.demand_edges[index + 1] {
            net.flow[edge as usize] = 0;
        }
    }
    (tight, net)
}

/// The least whole level up to which nodes with these loads can take `bytes` more in all.
fn water_level(loads: impl Iterator<Item = u64>, bytes: u64) -> u64 {
    let mut loads: Vec<u64> = loads.collect();
    loads.sort_unstable();
    let mut sum = bytes;
    for (count, load) in loads.iter().enumerate() {
        if count > 0 && sum.div_ceil(count as u64) <= *load {
            return sum.div_ceil(count as u64);
        }
        sum += load;
    }
    sum.div_ceil(loads.len().max(1) as u64)
}

/// Demands that share holders, directly or not, in the order of their first demand.
fn components(demands: &[Demand], nodes: usize) -> Vec<Vec<usize>> {
    let mut parent: Vec<u32> = (0..nodes as u32).collect();
    for demand in demands {
        for pair in demand.holders.windows(2) {
            let (left, right) = (root(&mut parent, pair[0]), root(&mut parent, pair[1]));
            parent[left as usize] = right;
        }
    }
    let mut found: Vec<Vec<usize>> = Vec::new();
    let mut of_root = vec![usize::MAX; nodes];
    for (index, demand) in demands.iter().enumerate().filter(|(_, demand)| demand.bytes > 0) {
        let root = root(&mut parent, demand.holders[0]) as usize;
        if of_root[root] == usize::MAX {
            of_root[root] = found.len();
            found.push(Vec::new());
        }
        found[of_root[root]].push(index);
    }
    found
}

/// The representative of a node's set; halves the path on the way.
fn root(parent: &mut [u32], mut node: u32) -> u32 {
    while parent[node as usize] != node {
        parent[node as usize] = parent[parent[node as usize] as usize];
        node = parent[node as usize];
    }
    node
}

/// The far side of a saturated cut: demands that are not met, and all that compete with them.
struct Cut {
    demands: Vec<bool>,
    nodes: Vec<u32>,
}

/// A flow network demands -> nodes. Edges are numbered by demand; `node_edges` lists them by node.
struct Net {
    nodes: Vec<u32>,
    demand_edges: Vec<u32>,
    node_edges: Vec<Vec<u32>>,
    edge_demand: Vec<u32>,
    edge_node: Vec<u32>,
    flow: Vec<u64>,
    /// What of each demand has no sender yet.
    need: Vec<u64>,
    /// What each node can still take.
    room: Vec<u64>,
}

impl Net {
    fn new(demands: &[Demand], open: &[usize], settled: &[bool]) -> Net {
        let mut local = vec![u32::MAX; settled.len()];
        let mut net = Net {
            nodes: Vec::new(),
            demand_edges: vec![0],
            node_edges: Vec::new(),
            edge_demand: Vec::new(),
            edge_node: Vec::new(),
            flow: Vec::new(),
            need: Vec::new(),
            room: Vec::new(),
        };
        for (index, demand) in open.iter().enumerate() {
            for holder in demands[*demand].holders.iter().filter(|holder| !settled[**holder as usize]) {
                let node = &mut local[*holder as usize];
                if *node == u32::MAX {
                    *node = net.nodes.len() as u32;
                    net.nodes.push(*holder);
                    net.node_edges.push(Vec::new());
                }
                net.node_edges[*node as usize].push(net.edge_node.len() as u32);
                net.edge_node.push(*node);
                net.edge_demand.push(index as u32);
            }
            net.demand_edges.push(net.edge_node.len() as u32);
        }
        net.reset(demands, open);
        net
    }

    fn reset(&mut self, demands: &[Demand], open: &[usize]) {
        self.flow = vec![0; self.edge_node.len()];
        self.need = open.iter().map(|demand| demands[*demand].bytes).collect();
    }

    fn set_level(&mut self, base: &[u64], level: u64) {
        self.room = self.nodes.iter().map(|node| level.saturating_sub(base[*node as usize])).collect();
    }

    /// Sends as much as possible (Dinic). `None` if every demand is met, else the cut that forbids more.
    fn maximise(&mut self) -> Option<Cut> {
        loop {
            let (demand_level, node_level, open) = self.levels();
            if !open {
                if self.need.iter().all(|need| *need == 0) {
                    return None;
                }
                return Some(Cut {
                    demands: demand_level.iter().map(|level| *level != u32::MAX).collect(),
                    nodes: (0..self.nodes.len())
                        .filter(|node| node_level[*node] != u32::MAX)
                        .map(|node| self.nodes[node])
                        .collect(),
                });
            }
            let mut next_of_demand: Vec<u32> = self.demand_edges[..self.need.len()].to_vec();
            let mut next_of_node = vec![0usize; self.nodes.len()];
            for demand in 0..self.need.len() {
                while self.need[demand] > 0
                    && self.augment(demand, &demand_level, &node_level, &mut next_of_demand, &mut next_of_node)
                {
                }
            }
        }
    }

    /// Distances from unmet demands, and whether a node with room is among what they reach.
    fn levels(&self) -> (Vec<u32>, Vec<u32>, bool) {
        let mut demand_level = vec![u32::MAX; self.need.len()];
        let mut node_level = vec![u32::MAX; self.nodes.len()];
        let mut queue: VecDeque<(bool, u32)> = VecDeque::new();
        for demand in (0..self.need.len()).filter(|demand| self.need[*demand] > 0) {
            demand_level[demand] = 0;
            queue.push_back((true, demand as u32));
        }
        let mut open = false;
        while let Some((is_demand, index)) = queue.pop_front() {
            if is_demand {
                let level = demand_level[index as usize] + 1;
                for edge in self.demand_edges[index as usize]..self.demand_edges[index as usize + 1] {
                    let node = self.edge_node[edge as usize];
                    if node_level[node as usize] == u32::MAX {
                        node_level[node as usize] = level;
                        open |= self.room[node as usize] > 0;
                        queue.push_back((false, node));
                    }
                }
            } else {
                let level = node_level[index as usize] + 1;
                for edge in self.node_edges[index as usize].iter().filter(|edge| self.flow[**edge as usize] > 0) {
                    let demand = self.edge_demand[*edge as usize];
                    if demand_level[demand as usize] == u32::MAX {
                        demand_level[demand as usize] = level;
                        queue.push_back((true, demand));
                    }
                }
            }
        }
        (demand_level, node_level, open)
    }

    /// Finds one path of the level graph from `start` to a node with room, and sends along it.
    fn augment(
        &mut self,
        start: usize,
        demand_level: &[u32],
        node_level: &[u32],
        next_of_demand: &mut [u32],
        next_of_node: &mut [usize],
    ) -> bool {
        // Edges alternate: demand to node, then back from that node to a demand it serves.
        let mut path: Vec<u32> = Vec::new();
        let mut demand = start;
        loop {
            // At a demand: step forward to a node one level on.
            let Some(edge) = (next_of_demand[demand]..self.demand_edges[demand + 1])
                .find(|edge| node_level[self.edge_node[*edge as usize] as usize] == demand_level[demand] + 1)
            else {
                next_of_demand[demand] = self.demand_edges[demand + 1];
                // Dead end: give up the backward edge that led here, or the search.
                let Some(back) = path.pop() else { return false };
                let node = self.edge_node[back as usize] as usize;
                next_of_node[node] += 1;
                // A backward edge always follows a forward one.
                let Some(forward) = path.pop() else { return false };
                demand = self.edge_demand[forward as usize] as usize;
                continue;
            };
            next_of_demand[demand] = edge;
            let node = self.edge_node[edge as usize] as usize;
            path.push(edge);
            if self.room[node] > 0 {
                self.send(start, node, &path);
                return true;
            }
            // At a full node: step back to a demand one level on that could send elsewhere.
            let edges = &self.node_edges[node];
            let back = (next_of_node[node]..edges.len()).find(|at| {
                let edge = edges[*at] as usize;
                self.flow[edge] > 0 && demand_level[self.edge_demand[edge] as usize] == node_level[node] + 1
            });
            match back {
                Some(at) => {
                    next_of_node[node] = at;
                    demand = self.edge_demand[edges[at] as usize] as usize;
                    path.push(edges[at]);
                }
                None => {
                    next_of_node[node] = edges.len();
                    path.pop();
                    next_of_demand[demand] += 1;
                }
            }
        }
    }

    fn send(&mut self, start: usize, node: usize, path: &[u32]) {
        let backward = path.iter().skip(1).step_by(2).map(|edge| self.flow[*edge as usize]);
        let amount = backward.chain([self.need[start], self.room[node]]).min().unwrap_or(0);
        for (step, edge) in path.iter().enumerate() {
            if step % 2 == 0 {
                self.flow[*edge as usize] += amount;
            } else {
                self.flow[*edge as usize] -= amount;
            }
        }
        self.need[start] -= amount;
        self.room[node] -= amount;
    }

    /// Moves flow around every cycle of used edges until one of them carries nothing. Loads do not change.
    fn remove_cycles(&mut self) {
        let demands = self.need.len();
        let mut tree: Vec<Vec<u32>> = vec![Vec::new(); demands + self.nodes.len()];
        let end = |net: &Net, edge: u32| demands + net.edge_node[edge as usize] as usize;
        // Nodes that were never joined have no path between them, which saves looking for most.
        let mut joined: Vec<u32> = (0..tree.len() as u32).collect();
        for edge in 0..self.flow.len() as u32 {
            if self.flow[edge as usize] == 0 {
                continue;
            }
            let (from, to) = (self.edge_demand[edge as usize] as usize, end(self, edge));
            let (left, right) = (root(&mut joined, from as u32), root(&mut joined, to as u32));
            joined[left as usize] = right;
            let path = if left == right { self.tree_path(&tree, to, from) } else { None };
            let Some(mut cycle) = path else {
                tree[from].push(edge);
                tree[to].push(edge);
                continue;
            };
            // From this edge on, every second edge loses what the others gain.
            cycle.insert(0, edge);
            let losing = || cycle.iter().step_by(2).copied();
            let amount = losing().map(|edge| self.flow[edge as usize]).min().unwrap_or(0);
            for (step, edge) in cycle.iter().enumerate() {
                let flow = &mut self.flow[*edge as usize];
                *flow = if step % 2 == 0 { *flow - amount } else { *flow + amount };
            }
            for empty in cycle[1..].iter().filter(|edge| self.flow[**edge as usize] == 0) {
                tree[self.edge_demand[*empty as usize] as usize].retain(|edge| edge != empty);
                tree[end(self, *empty)].retain(|edge| edge != empty);
            }
            if self.flow[edge as usize] > 0 {
                tree[from].push(edge);
                tree[to].push(edge);
            }
        }
    }

    /// The edges from `start` to `goal` in a forest.
    fn tree_path(&self, tree: &[Vec<u32>], start: usize, goal: usize) -> Option<Vec<u32>> {
        let demands = self.need.len();
        let mut came: HashMap<usize, u32> = HashMap::new();
        let mut queue = VecDeque::from([start]);
        let other = |edge: u32, at: usize| {
            let (left, right) = (self.edge_demand[edge as usize] as usize, self.edge_node[edge as usize] as usize);
            if at < demands { demands + right } else { left }
        };
        while let Some(at) = queue.pop_front() {
            if at == goal {
                let mut path = Vec::new();
                let mut back = goal;
                while back != start {
                    let edge = came[&back];
                    path.push(edge);
                    back = other(edge, back);
                }
                path.reverse();
                return Some(path);
            }
            for edge in &tree[at] {
                let next = other(*edge, at);
                if next != start && !came.contains_key(&next) {
                    came.insert(next, *edge);
                    queue.push_back(next);
                }
            }
        }
        None
    }

    /// The shares of each demand that has any, the node through which its tree was entered first.
    fn ordered_shares(&self) -> Vec<(usize, Vec<Share>)> {
        let mut entered: Vec<Option<Option<u32>>> = vec![None; self.need.len()];
        let mut seen = vec![false; self.nodes.len()];
        let mut ordered = Vec::new();
        for root in 0..self.need.len() {
            if entered[root].is_some() {
                continue;
            }
            entered[root] = Some(None);
            let mut queue = VecDeque::from([root]);
            while let Some(demand) = queue.pop_front() {
                let first = entered[demand].flatten();
                let edges = self.demand_edges[demand]..self.demand_edges[demand + 1];
                let mut used: Vec<u32> = edges.filter(|edge| self.flow[*edge as usize] > 0).collect();
                used.sort_by_key(|edge| Some(self.edge_node[*edge as usize]) != first);
                for edge in &used {
                    let node = self.edge_node[*edge as usize];
                    if std::mem::replace(&mut seen[node as usize], true) {
                        continue;
                    }
                    for other in self.node_edges[node as usize].iter().filter(|edge| self.flow[**edge as usize] > 0) {
                        let child = self.edge_demand[*other as usize] as usize;
                        if entered[child].is_none() {
                            entered[child] = Some(Some(node));
                            queue.push_back(child);
                        }
                    }
                }
                let share = |edge: &u32| Share {
                    node: self.nodes[self.edge_node[*edge as usize] as usize],
                    bytes: self.flow[*edge as usize],
                };
                if !used.is_empty() {
                    ordered.push((demand, used.iter().map(share).collect()));
                }
            }
        }
        ordered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(shares: &[Vec<Share>], base: &[u64]) -> Vec<u64> {
        let mut loads = base.to_vec();
        for share in shares.iter().flatten() {
            loads[share.node as usize] += share.bytes;
        }
        loads
    }

    /// The bound by its definition: over all sets of nodes, what only they can send.
    fn bound(demands: &[Demand], base: &[u64]) -> u64 {
        let mut best = 0;
        for set in 1u32..1 << base.len() {
            let inside = |node: u32| set >> node & 1 == 1;
            let bytes: u64 =
                demands.iter().filter(|d| d.holders.iter().all(|node| inside(*node))).map(|d| d.bytes).sum();
            let members = (0..base.len()).filter(|node| inside(*node as u32));
            // What members send anyway counts only below the level, which is what water_level does.
            if bytes > 0 {
                best = best.max(water_level(members.map(|node| base[node]), bytes));
            }
        }
        best
    }

    fn random(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *seed >> 33
    }

    #[test]
    fn the_largest_load_meets_the_cut_bound_and_shares_form_a_forest() {
        for case in 0..3000u64 {
            let seed = &mut (case + 1);
            let nodes = 1 + random(seed) % 6;
            let base: Vec<u64> =
                (0..nodes).map(|_| if random(seed).is_multiple_of(3) { random(seed) % 200 } else { 0 }).collect();
            let demands: Vec<Demand> = (0..random(seed) % 12)
                .map(|_| {
                    let set = 1 + random(seed) % ((1 << nodes) - 1);
                    let holders = (0..nodes as u32).filter(|node| set >> node & 1 == 1).collect();
                    Demand { holders, bytes: random(seed) % 100 }
                })
                .collect();
            let shares = balance(&demands, &base);
            for (demand, shares) in demands.iter().zip(&shares) {
                assert_eq!(shares.iter().map(|share| share.bytes).sum::<u64>(), demand.bytes, "case {case}");
                assert!(shares.iter().all(|share| share.bytes > 0 && demand.holders.contains(&share.node)));
            }
            let reached = loads(&shares, &base);
            let busy = (0..nodes as usize).filter(|node| reached[*node] > base[*node]);
            let largest = busy.map(|node| reached[node]).max().unwrap_or(0);
            assert_eq!(largest, bound(&demands, &base), "case {case}: {demands:?} on {base:?}: {shares:?}");
            // First in every demand but one.
            for node in 0..nodes as u32 {
                let later = shares.iter().filter(|shares| shares.iter().skip(1).any(|share| share.node == node));
                let leads = shares.iter().filter(|shares| shares.first().is_some_and(|share| share.node == node));
                let roots = leads.filter(|shares| shares.len() > 1).count();
                assert!(later.count() <= 1, "case {case}: node {node} is cut in several demands ({roots} led)");
            }
        }
    }

    #[test]
    fn a_bottleneck_elsewhere_does_not_leave_replicas_idle() {
        let demands = [
            Demand { holders: vec![0], bytes: 1000 },
            Demand { holders: vec![0, 1], bytes: 100 },
            Demand { holders: vec![1, 2, 3], bytes: 200 },
        ];
        let loads = loads(&balance(&demands, &[0; 4]), &[0; 4]);
        assert_eq!(loads, [1000, 100, 100, 100]);
    }

    #[test]
    fn only_what_exceeds_the_level_is_overloaded() {
        let demands = [
            Demand { holders: vec![0, 1], bytes: 300 },
            Demand { holders: vec![2, 3], bytes: 100 },
            Demand { holders: vec![1, 2], bytes: 10 },
        ];
        assert_eq!(overloaded(&demands, &[0; 4], 200), []);
        assert_eq!(overloaded(&demands, &[0; 4], 100), [(vec![0], 100)]);
    }
}
