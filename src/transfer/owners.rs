//! Onto whom sums are reduced.
//!
//! A contributor that wants the sum for itself is the natural owner: the reduction then delivers it. But one that wants
//! much of it would receive every contribution to all of that, where all contributors together could share the work and
//! send it the result. So owners are chosen by what links carry: those who want the sum first, as long as that keeps
//! nobody busier than somebody must be anyway; beyond that, evenly over all. Whole numbers throughout; this file knows
//! nodes and amounts only.

use std::rc::Rc;

/// Sums that the same nodes contribute to and the same nodes want.
pub(super) struct Sum {
    pub(super) elements: u64,
    /// Bytes of an element, as contributed and on the wire.
    pub(super) size: u64,
    pub(super) wire: u64,
    /// How many contributions there are to each element.
    pub(super) contributions: u64,
    /// All that can own a part: the members of every replica of the group.
    pub(super) candidates: Vec<u32>,
    /// All that want the sum, ascending.
    pub(super) targets: Rc<[u32]>,
}

/// How often shares are taken up again once the others are known.
const SWEEPS: usize = 2;

/// How many elements of each sum each of its candidates owns, given what nodes receive anyway.
pub(super) fn choose(sums: &[Sum], received: &[u64]) -> Vec<Vec<u64>> {
    let mut links =
        Links { receive: received.iter().map(|bytes| i128::from(*bytes)).collect(), send: vec![0; received.len()] };
    for sum in sums {
        for node in sum.targets.iter() {
            links.receive[*node as usize] += i128::from(sum.elements * sum.wire);
        }
        let replicas = sum.candidates.len() as u64 / sum.contributions;
        for node in &sum.candidates {
            links.send[*node as usize] += i128::from(sum.elements * sum.size / replicas);
        }
    }
    let anyway = links.receive.iter().copied().max().unwrap_or(0);
    let mut shares: Vec<Vec<u64>> = Vec::new();
    for sum in sums {
        let share = links.spread(sum, &sum.natural(), sum.elements);
        links.add(sum, &share, 1);
        shares.push(share);
    }
    for _ in 0..SWEEPS {
        for (sum, share) in sums.iter().zip(&mut shares) {
            links.add(sum, share, -1);
            *share = links.share(sum, anyway);
            links.add(sum, share, 1);
        }
    }
    shares
}

impl Sum {
    pub(super) fn wants(&self, node: u32) -> bool {
        self.targets.binary_search(&node).is_ok()
    }

    /// The candidates that want the sum, or all if none does.
    fn natural(&self) -> Vec<bool> {
        let wants: Vec<bool> = self.candidates.iter().map(|node| self.wants(*node)).collect();
        if wants.contains(&true) { wants } else { vec![true; wants.len()] }
    }

    /// By how many bytes each element owned makes a node receive and send more: it gets the other contributions but no
    /// result, and sends the result but no contribution.
    fn cost(&self, node: u32) -> (i128, i128) {
        let (size, wire, wants) = (i128::from(self.size), i128::from(self.wire), self.wants(node));
        let others = self.targets.len() as i128 - i128::from(wants);
        let receive = (i128::from(self.contributions) - 1) * size - if wants { wire } else { 0 };
        (receive, others * wire - size)
    }
}

/// What every node receives and sends.
struct Links {
    receive: Vec<i128>,
    send: Vec<i128>,
}

impl Links {
    fn add(&mut self, sum: &Sum, shares: &[u64], sign: i128) {
        for (node, share) in sum.candidates.iter().zip(shares) {
            let (receive, send) = sum.cost(*node);
            self.receive[*node as usize] += sign * receive * i128::from(*share);
            self.send[*node as usize] += sign * send * i128::from(*share);
        }
    }

    /// The shares of one sum while all others stay: no link above the level that evenness over all reaches, or that
    /// some link reaches anyway; within that, those who want the sum first.
    fn share(&self, sum: &Sum, anyway: i128) -> Vec<u64> {
        let all = vec![true; sum.candidates.len()];
        let natural = sum.natural();
        let level = self.level(sum, &all, sum.elements).max(anyway);
        let room: u64 = self.room(sum, &natural, level).iter().fold(0, |sum, room| sum.saturating_add(*room));
        let mut shares = self.spread(sum, &natural, sum.elements.min(room));
        let rest = sum.elements - shares.iter().sum::<u64>();
        if rest > 0 {
            let others: Vec<bool> = natural.iter().map(|natural| !natural).collect();
            for (share, more) in shares.iter_mut().zip(self.spread(sum, &others, rest)) {
                *share += more;
            }
        }
        shares
    }

    /// `elements` over the candidates that may, as evenly as their links allow.
    fn spread(&self, sum: &Sum, may: &[bool], elements: u64) -> Vec<u64> {
        let room = self.room(sum, may, self.level(sum, may, elements));
        let capped = |cap: i128| room.iter().map(move |room| u128::from(*room).min(cap as u128));
        let cap = lowest(|cap| capped(cap).sum::<u128>() >= u128::from(elements));
        let mut shares: Vec<u64> = capped(cap).map(|share| share as u64).collect();
        let mut surplus = shares.iter().map(|share| u128::from(*share)).sum::<u128>() - u128::from(elements);
        for share in shares.iter_mut().rev().filter(|share| i128::from(**share) == cap) {
            let less = surplus.min(1);
            *share -= less as u64;
            surplus -= less;
        }
        shares
    }

    /// The lowest level at which the candidates that may have room for `elements`.
    fn level(&self, sum: &Sum, may: &[bool], elements: u64) -> i128 {
        lowest(|level| {
            let room = self.room(sum, may, level);
            room.iter().map(|room| u128::from(*room)).sum::<u128>() >= u128::from(elements)
        })
    }

    /// How many elements each candidate could own without a link above `level`.
    fn room(&self, sum: &Sum, may: &[bool], level: i128) -> Vec<u64> {
        let room = |(node, may): (&u32, &bool)| {
            if !may {
                return 0;
            }
            let (receive, send) = sum.cost(*node);
            let all = i128::from(sum.elements);
            // A link that gets no busier sets no limit.
            let under = |load: i128, cost: i128| if cost > 0 { (level - load).max(0) / cost } else { all };
            let room = under(self.receive[*node as usize], receive).min(under(self.send[*node as usize], send));
            room.min(all) as u64
        };
        sum.candidates.iter().zip(may).map(room).collect()
    }
}

/// The lowest number from 0 on that is `enough`, where all above it are too.
fn lowest(enough: impl Fn(i128) -> bool) -> i128 {
    let (mut low, mut high) = (-1i128, i128::from(i64::MAX));
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if enough(middle) { high = middle } else { low = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(contributors: u32, targets: &[u32], elements: u64) -> Sum {
        Sum {
            elements,
            size: 4,
            wire: 4,
            contributions: contributors.into(),
            candidates: (0..contributors).collect(),
            targets: targets.into(),
        }
    }

    #[test]
    fn a_reduce_scatter_stays_where_its_parts_are_wanted() {
        let sums: Vec<Sum> = (0..4).map(|node| sum(4, &[node], 100)).collect();
        let shares = choose(&sums, &[0; 4]);
        for (node, share) in shares.iter().enumerate() {
            assert_eq!(share[node], 100, "{shares:?}");
        }
    }

    #[test]
    fn an_all_reduce_is_shared_evenly() {
        for ranks in [2, 3, 8] {
            let everybody: Vec<u32> = (0..ranks).collect();
            let shares = choose(&[sum(ranks, &everybody, 960)], &vec![0; ranks as usize]);
            assert!(shares[0].iter().all(|share| share.abs_diff(960 / u64::from(ranks)) <= 1), "{shares:?}");
        }
    }

    #[test]
    fn who_wants_all_of_it_is_not_sent_all_contributions() {
        let shares = choose(&[sum(8, &[0], 700)], &[0; 8]);
        assert_eq!(shares[0], [0, 100, 100, 100, 100, 100, 100, 100]);
    }

    #[test]
    fn sums_that_go_elsewhere_are_shared_evenly() {
        let shares = choose(&[sum(3, &[7, 8], 300)], &[0; 9]);
        assert_eq!(shares[0], [100, 100, 100]);
    }
}
