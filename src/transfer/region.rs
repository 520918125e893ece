//! Boxes of elements inside a tensor: where two meet, and how one is cut into several.
//!
//! Everything is exact integer arithmetic on (start, extent) pairs. Callers have checked that the element count of the
//! whole tensor fits, so no product of extents here can overflow. Nothing in this file knows ranks.

use crate::error::{Error, Result};

/// A box of elements: per tensor dimension where it starts and how far it reaches. Empty if any extent is 0; a
/// 0-dimensional box is one element.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// The first index of every dimension.
    pub start: Vec<u64>,
    /// The number of indices of every dimension.
    pub extent: Vec<u64>,
}

impl Region {
    /// The number of elements.
    pub fn elements(&self) -> u64 {
        self.extent.iter().product()
    }

    /// The part that both boxes have, `None` if they have none. Both must have the same number of dimensions.
    pub fn intersect(&self, other: &Region) -> Option<Region> {
        let mut both = Region { start: Vec::new(), extent: Vec::new() };
        for dim in 0..self.start.len() {
            let low = self.start[dim].max(other.start[dim]);
            let high = (self.start[dim] + self.extent[dim]).min(other.start[dim] + other.extent[dim]);
            if low >= high {
                return None;
            }
            both.start.push(low);
            both.extent.push(high - low);
        }
        Some(both)
    }

    /// The same box, divided along `dim`: its first `count` indices, and the rest.
    fn divide(&self, dim: usize, count: u64) -> (Region, Region) {
        let (mut head, mut tail) = (self.clone(), self.clone());
        head.extent[dim] = count;
        tail.start[dim] += count;
        tail.extent[dim] -= count;
        (head, tail)
    }

    /// The outermost dimension along which the box can be divided.
    fn outermost(&self) -> Option<usize> {
        self.extent.iter().position(|extent| *extent > 1)
    }
}

/// Many boxes in one piece of memory.
#[derive(Debug, Default)]
pub(super) struct Boxes(Vec<u64>);

impl Boxes {
    /// Keeps a box; the number finds it again.
    pub(super) fn keep(&mut self, region: &Region) -> u32 {
        let at = self.0.len() as u32;
        self.0.extend_from_slice(&region.start);
        self.0.extend_from_slice(&region.extent);
        at
    }

    /// Start and extent of a kept box of `dims` dimensions.
    pub(super) fn slices(&self, kept: u32, dims: usize) -> (&[u64], &[u64]) {
        self.0[kept as usize..kept as usize + 2 * dims].split_at(dims)
    }

    /// A kept box of `dims` dimensions.
    pub(super) fn get(&self, kept: u32, dims: usize) -> Region {
        let (start, extent) = self.slices(kept, dims);
        Region { start: start.to_vec(), extent: extent.to_vec() }
    }
}

/// How many boxes [`split`] makes of one with these extents, `None` if more than a u64 counts.
pub(super) fn count_pieces(extent: &[u64], limit: u64) -> Option<u64> {
    let elements: u64 = extent.iter().product();
    if elements <= limit {
        return Some(1);
    }
    let Some(dim) = extent.iter().position(|extent| *extent > 1) else { return Some(1) };
    let row = elements / extent[dim];
    match limit / row {
        0 => extent[dim].checked_mul(count_pieces(&extent[dim + 1..], limit)?),
        rows => Some(extent[dim].div_ceil(rows)),
    }
}

/// Splits a box into boxes of at most `limit` elements (at least 1), outer dimensions first and as evenly as whole
/// rows allow, and hands them to `each` in row-major order.
pub(super) fn split(region: &Region, limit: u64, each: &mut dyn FnMut(&Region) -> Result<()>) -> Result<()> {
    let elements = region.elements();
    if elements <= limit {
        return each(region);
    }
    let Some(dim) = region.outermost() else {
        return Err(Error::Internal("a box of one element is larger than a piece may be".into()));
    };
    let extent = region.extent[dim];
    let row = elements / extent;
    let rows = (limit / row).max(1);
    let parts = extent.div_ceil(rows);
    let mut piece = region.clone();
    let mut begin = 0;
    for part in 0..parts {
        let end = (u128::from(extent) * u128::from(part + 1) / u128::from(parts)) as u64;
        piece.start[dim] = region.start[dim] + begin;
        piece.extent[dim] = end - begin;
        if row > limit {
            split(&piece, limit, each)?
        } else {
            each(&piece)?
        }
        begin = end;
    }
    Ok(())
}

/// Cuts a box near element `position` in row-major order: what comes before, what comes after. The cut is moved down
/// to a boundary of whole rows where that gives up at most `slack` elements, so `before` never holds more than
/// `position` elements and never less than `position - slack`. A cut makes at most two boxes per dimension.
pub(super) fn cut(region: Region, position: u64, slack: u64) -> (Vec<Region>, Vec<Region>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let mut rest = region;
    let mut wanted = position;
    loop {
        if wanted >= rest.elements() {
            before.push(rest);
            break;
        }
        let Some(dim) = rest.outermost().filter(|_| wanted > slack) else {
            after.push(rest);
            break;
        };
        let row = rest.elements() / rest.extent[dim];
        let rows = wanted / row;
        if rows > 0 {
            let (head, tail) = rest.divide(dim, rows);
            before.push(head);
            rest = tail;
            wanted -= rows * row;
        }
        if wanted <= slack {
            after.push(rest);
            break;
        }
        if rest.extent[dim] > 1 {
            let (head, tail) = rest.divide(dim, 1);
            after.push(tail);
            rest = head;
        }
    }
    after.reverse();
    (before, after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start: &[u64], extent: &[u64]) -> Region {
        Region { start: start.to_vec(), extent: extent.to_vec() }
    }

    /// Every element of `whole` in exactly one of `parts`.
    fn assert_partition(whole: &Region, parts: &[Region]) {
        assert_eq!(parts.iter().map(Region::elements).sum::<u64>(), whole.elements());
        for (index, part) in parts.iter().enumerate() {
            assert_eq!(part.intersect(whole).as_ref(), Some(part), "a part sticks out");
            assert!(parts[..index].iter().all(|other| part.intersect(other).is_none()), "parts overlap");
        }
    }

    #[test]
    fn pieces_of_a_split_cover_the_box_once_and_stay_below_the_limit() {
        for extent in [vec![], vec![1], vec![7], vec![3, 5, 7], vec![1, 13, 1, 4], vec![2, 1, 9]] {
            let whole = region(&vec![10; extent.len()], &extent);
            for limit in 1..=whole.elements() + 1 {
                let mut parts = Vec::new();
                split(&whole, limit, &mut |part| {
                    parts.push(part.clone());
                    Ok(())
                })
                .unwrap();
                assert_partition(&whole, &parts);
                assert!(parts.iter().all(|part| part.elements() <= limit));
                assert_eq!(count_pieces(&extent, limit), Some(parts.len() as u64), "{extent:?} by {limit}");
            }
        }
    }

    #[test]
    fn a_cut_gives_up_at_most_the_slack_and_loses_nothing() {
        for extent in [vec![], vec![7], vec![3, 5, 7], vec![1, 13, 1, 4]] {
            let whole = region(&vec![3; extent.len()], &extent);
            for position in 0..=whole.elements() + 1 {
                for slack in [0, 1, 5, 40] {
                    let (before, after) = cut(whole.clone(), position, slack);
                    let parts: Vec<_> = before.iter().chain(&after).cloned().collect();
                    assert_partition(&whole, &parts);
                    let held: u64 = before.iter().map(Region::elements).sum();
                    assert!(held <= position && held + slack >= position.min(whole.elements()));
                    assert!(parts.len() <= 2 * extent.len().max(1));
                }
            }
        }
    }

    #[test]
    fn a_count_of_pieces_beyond_64_bits_is_refused() {
        assert_eq!(count_pieces(&[1 << 40, 1 << 20], 1), Some(1 << 60));
        assert_eq!(count_pieces(&[1 << 31, 1 << 31], u64::MAX), Some(1));
    }
}
