//! The memory of one rank's tensors: bound to the plan's items, checked once, and asked by the walk.
//!
//! A target must not share a byte with anything else that is bound, because a bucket may be written before another is
//! read. The one exception is a tensor that stays what it is where it is (see [`Plan::may_alias`]).

use std::ops::Range;

use super::{
    super::{
        layout::Side,
        plan::{Chunk, Plan},
        view::View,
    },
    convey::Place,
};
use crate::{
    cuda::device::Device,
    dtype::DType,
    error::{Error, Result},
};

/// Overlapping spans are compared run by run, as long as there are no more runs than this.
const MOST_RUNS: usize = 1 << 22;

/// One side of one tensor.
pub(super) struct Bound {
    /// The view's base address.
    pub(super) memory: *mut u8,
    pub(super) view: View,
    pub(super) is_on_device: bool,
}

/// All tensors of one rank.
pub(super) struct Tensors {
    rank: u32,
    /// Whose memory it may be, beside the host's.
    device: Option<&'static Device>,
    /// By item; `None` while nothing is bound, and where the rank is not in the mesh.
    sources: Vec<Option<Bound>>,
    targets: Vec<Option<Bound>>,
    /// Whether all was checked since something was bound.
    checked: bool,
}

// SAFETY: whoever bound the memory promised its use from any thread.
unsafe impl Send for Tensors {}

impl Tensors {
    pub(super) fn new(plan: &Plan, rank: u32, device: Option<&'static Device>) -> Tensors {
        let none = || (0..plan.item_count()).map(|_| None).collect();
        Tensors { rank, device, sources: none(), targets: none(), checked: false }
    }

    /// Binds one side of a tensor.
    pub(super) fn bind(
        &mut self,
        plan: &Plan,
        item: usize,
        side: Side,
        memory: *mut u8,
        strides: Option<&[i64]>,
    ) -> Result<()> {
        let what = |error: Error| {
            Error::invalid(format_args!("the {} of tensor {item} {:?}: {error}", side.name(), plan.name(item)))
        };
        let (Some(region), Some(dtype)) = (plan.region(item, side, self.rank), plan.dtype(item, side)) else {
            return Err(match item < plan.item_count() {
                true => what(Error::invalid(format_args!("rank {} is not in its mesh", self.rank))),
                false => Error::invalid(format_args!("tensor {item} of a plan of {}", plan.item_count())),
            });
        };
        let view = View::new(region, dtype, side, strides).map_err(what)?;
        let span = view.span();
        let inside = (memory.addr() as i128 + i128::from(span.start), memory.addr() as i128 + i128::from(span.end));
        if inside.0 < 0 || inside.1 > usize::MAX as i128 {
            return Err(what(Error::invalid("it reaches beyond the address space")));
        }
        let mut bound = Bound { memory, view, is_on_device: false };
        if let Some(device) = self.device {
            let span = bound.span();
            let owned = device.owned(span.start as u64, (span.end - span.start) as u64);
            bound.is_on_device = owned.map_err(what)?.is_some();
        }
        let slot = if side == Side::Source { &mut self.sources[item] } else { &mut self.targets[item] };
        *slot = Some(bound);
        self.checked = false;
        Ok(())
    }

    /// One side of a tensor.
    fn get(&self, item: usize, side: Side) -> Result<&Bound> {
        let bound = if side == Side::Source { self.sources.get(item) } else { self.targets.get(item) };
        bound.and_then(Option::as_ref).ok_or_else(|| Error::Internal(format!("tensor {item} moves unbound")))
    }

    /// Where one side of a chunk is.
    pub(super) fn place(&self, chunk: &Chunk<'_>, side: Side, dtype: DType) -> Result<Place> {
        let bound = self.get(chunk.item, side)?;
        let cursor = bound.view.cursor(chunk.start, chunk.extent);
        let cursor = cursor.ok_or_else(|| Error::Internal(format!("a chunk reaches out of tensor {}", chunk.item)))?;
        Ok(Place { cursor, memory: bound.memory, dtype, is_on_device: bound.is_on_device })
    }

    /// Whether one side of a tensor is on the device.
    pub(super) fn is_on_device(&self, item: usize, side: Side) -> bool {
        self.get(item, side).is_ok_and(|bound| bound.is_on_device)
    }

    /// Whether source and target of a tensor are one memory, so that copying one to the other changes nothing.
    pub(super) fn are_one(&self, item: usize) -> bool {
        match (&self.sources[item], &self.targets[item]) {
            (Some(source), Some(target)) => source.memory == target.memory && source.view == target.view,
            _ => false,
        }
    }

    /// Whether everything that moves is bound, and nothing overlaps that may not.
    pub(super) fn check(&mut self, plan: &Plan) -> Result<()> {
        if self.checked {
            return Ok(());
        }
        for item in 0..plan.item_count() {
            for (side, bound) in [(Side::Source, &self.sources[item]), (Side::Target, &self.targets[item])] {
                let moves = plan.region(item, side, self.rank).is_some_and(|region| region.elements() > 0);
                if moves && bound.as_ref().is_none_or(|bound| bound.memory.is_null()) {
                    return Err(Error::invalid(format_args!(
                        "the {} of tensor {item} {:?} has no memory on rank {}: bind it before the start",
                        side.name(),
                        plan.name(item),
                        self.rank
                    )));
                }
            }
        }
        self.check_overlap(plan)?;
        self.checked = true;
        Ok(())
    }

    fn check_overlap(&self, plan: &Plan) -> Result<()> {
        let mut spans = Vec::new();
        for (side, bounds) in [(Side::Source, &self.sources), (Side::Target, &self.targets)] {
            for (item, bound) in bounds.iter().enumerate() {
                let span = bound.as_ref().map_or(0..0, Bound::span);
                if span.start < span.end {
                    spans.push((span, item, side));
                }
            }
        }
        spans.sort_by_key(|(span, ..)| span.start);
        // Those that reach beyond where we are: few, unless sources overlap, which they may.
        let mut open: Vec<usize> = Vec::new();
        for (at, (span, item, side)) in spans.iter().enumerate() {
            open.retain(|other| spans[*other].0.end > span.start);
            for (_, other, other_side) in open.iter().map(|other| &spans[*other]) {
                if *side == Side::Source && *other_side == Side::Source {
                    continue;
                }
                if item == other && plan.may_alias(*item, self.rank) && self.are_one(*item) {
                    continue;
                }
                if share_bytes(self.get(*item, *side)?, self.get(*other, *other_side)?) {
                    return Err(Error::invalid(format_args!(
                        "the {} of tensor {item} {:?} and the {} of tensor {other} {:?} overlap on rank {}: a target \
                         must be apart from everything, unless the tensor keeps its layout and type in place",
                        side.name(),
                        plan.name(*item),
                        other_side.name(),
                        plan.name(*other),
                        self.rank
                    )));
                }
            }
            open.push(at);
        }
        Ok(())
    }
}

impl Bound {
    /// The addresses that may be touched.
    fn span(&self) -> Range<usize> {
        let span = self.view.span();
        self.memory.addr().wrapping_add_signed(span.start as isize)
            ..self.memory.addr().wrapping_add_signed(span.end as isize)
    }

    /// All its runs, ascending; `None` if they are too many.
    fn runs(&self) -> Option<Vec<Range<usize>>> {
        let region = self.view.region();
        let mut cursor = self.view.cursor(&region.start, &region.extent)?;
        let mut runs = Vec::new();
        while let Some((offset, bytes)) = cursor.run() {
            let start = self.memory.addr().wrapping_add_signed(offset as isize);
            runs.push(start..start + bytes);
            cursor.advance(bytes);
            if runs.len() > MOST_RUNS {
                return None;
            }
        }
        runs.sort_unstable_by_key(|run| run.start);
        Some(runs)
    }
}

/// Whether two memories whose spans overlap share a byte, such as not two halves of the columns of one matrix. Too
/// many runs count as sharing.
fn share_bytes(left: &Bound, right: &Bound) -> bool {
    let (Some(left), Some(right)) = (left.runs(), right.runs()) else { return true };
    let (mut at, mut other) = (0, 0);
    while at < left.len() && other < right.len() {
        if left[at].end <= right[other].start {
            at += 1;
        } else if right[other].end <= left[at].start {
            other += 1;
        } else {
            return true;
        }
    }
    false
}
