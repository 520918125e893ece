//! What a caller says about a tensor: its shape, and on which ranks which part of it lies, before and after.
//!
//! [`Item::resolve`] is the only way from a description to arithmetic: it refuses whatever does not add up (naming the
//! tensor, the side and the number that is wrong), so that everything behind it can compute without checking again.
//! This file never asks who sends what.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::dtype::{DType, Op};
use crate::error::{Error, Result};

use super::region::Region;

/// The most dimensions a tensor or a mesh may have.
pub const MAX_DIMS: usize = 16;

/// Ranks in a grid of any number of dimensions, row-major. No dimensions at all is one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    dims: Vec<u32>,
    ranks: Vec<u32>,
    /// Position of each rank in `ranks`.
    positions: HashMap<u32, u32>,
}

impl Mesh {
    /// A mesh of `dims` with these ranks of the world, row-major; any ranks in any order, each once.
    pub fn new(dims: &[u64], ranks: &[u32]) -> Result<Arc<Mesh>> {
        if dims.len() > MAX_DIMS {
            return Err(Error::invalid(format_args!("a mesh of {} dimensions (at most {MAX_DIMS})", dims.len())));
        }
        let size = dims.iter().try_fold(1u64, |size, dim| size.checked_mul(*dim));
        if size == Some(0) {
            return Err(Error::invalid(format_args!("mesh {dims:?} has no ranks: every dimension must be at least 1")));
        }
        if size != Some(ranks.len() as u64) || u32::try_from(ranks.len()).is_err() {
            return Err(Error::invalid(format_args!("mesh {dims:?} does not hold the {} ranks given", ranks.len())));
        }
        let mut positions = HashMap::with_capacity(ranks.len());
        for (position, rank) in ranks.iter().enumerate() {
            if let Some(first) = positions.insert(*rank, position as u32) {
                return Err(Error::invalid(format_args!(
                    "a mesh names rank {rank} twice (positions {first} and {position})"
                )));
            }
        }
        let dims = dims.iter().map(|dim| *dim as u32).collect();
        Ok(Arc::new(Mesh { dims, ranks: ranks.to_vec(), positions }))
    }

    /// The dimensions.
    pub fn dims(&self) -> &[u32] {
        &self.dims
    }

    /// The ranks, row-major.
    pub fn ranks(&self) -> &[u32] {
        &self.ranks
    }

    /// Where in [`Mesh::ranks`] a rank stands.
    pub fn position(&self, rank: u32) -> Option<usize> {
        self.positions.get(&rank).map(|position| *position as usize)
    }
}

/// How a dimension of `length` indices is divided over `parts` mesh coordinates.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// `ceil(length / parts)` each until nothing is left, as torch.chunk does; trailing parts may be empty.
    Ceil,
    /// The first `length % parts` get one more than the others.
    Balanced,
    /// These sizes; 0 is allowed. One per mesh coordinate, or, where other mesh dimensions split the same tensor
    /// dimension before this one, one per (outer parts in order, own coordinate).
    Explicit(Vec<u64>),
}

/// What one mesh dimension does to a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// Every coordinate holds the same.
    Replicate,
    /// Coordinates hold consecutive parts of tensor dimension `dim`. Where several mesh dimensions split one tensor
    /// dimension, the one with the lowest `order` splits first (outermost); equal orders split in mesh order.
    Shard {
        /// The tensor dimension.
        dim: usize,
        /// The sizes of the parts.
        split: Split,
        /// The place in the nesting.
        order: i32,
    },
    /// Every coordinate holds an addend of the same elements (source side only). Sum and avg may meet on one tensor;
    /// no other two operations may.
    Partial(Op),
}

impl Placement {
    /// `Shard` of `dim` with [`Split::Ceil`], nested in mesh order.
    pub fn shard(dim: usize) -> Placement {
        Placement::Shard { dim, split: Split::Ceil, order: 0 }
    }
}

/// Where a tensor lies: one placement per mesh dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The type of its elements there.
    pub dtype: DType,
    /// The ranks.
    pub mesh: Arc<Mesh>,
    /// What each mesh dimension does.
    pub placements: Vec<Placement>,
}

/// One tensor to move. Identical on all ranks; where a rank's memory lies and how it is strided is not part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// A name for texts.
    pub name: String,
    /// The whole tensor's shape. Dimensions of size 0 are allowed, and so are none (one element).
    pub shape: Vec<u64>,
    /// Where it lies now.
    pub source: Layout,
    /// Where it shall lie.
    pub target: Layout,
    /// What travels; `None`: the narrower of both types (the source's if they are equally wide). Every element goes
    /// source type, wire type, target type, also where it does not leave its rank.
    pub wire: Option<DType>,
}

/// Which end of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Side {
    Source,
    Target,
}

impl Side {
    /// The name used in texts.
    pub const fn name(self) -> &'static str {
        match self {
            Side::Source => "source",
            Side::Target => "target",
        }
    }
}

/// How the contributions to a source are added up: `op` over all of them in the order of the mesh, in the source's
/// dtype with the accumulation rules of [`Op`], then one division by `divisor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reduction {
    /// Sum, Prod, Max or Min; an avg is a sum with a divisor.
    pub op: Op,
    /// 1, or the number of contributions over which an avg is taken.
    pub divisor: u32,
}

/// A described tensor that adds up.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    pub(super) shape: Vec<u64>,
    pub(super) source: Grid,
    pub(super) target: Grid,
    pub(super) source_dtype: DType,
    pub(super) target_dtype: DType,
    pub(super) wire: DType,
}

impl Item {
    /// Checks the description, for a world of `world` ranks.
    pub(super) fn resolve(&self, index: usize, world: u32) -> Result<Resolved> {
        let refuse =
            |error: Error| Error::invalid(format_args!("tensor {index} \"{}\" cannot be moved: {error}", self.name));
        let elements = count_elements(&self.shape).map_err(refuse)?;
        let wire = self.wire.unwrap_or({
            if self.target.dtype.size() < self.source.dtype.size() { self.target.dtype } else { self.source.dtype }
        });
        for (from, to) in [(self.source.dtype, wire), (wire, self.target.dtype)] {
            check_cast(from, to).map_err(|error| match error {
                Error::Unsupported(text) => {
                    Error::Unsupported(format!("tensor {index} \"{}\" cannot be moved: {text}", self.name))
                }
                error => refuse(error),
            })?;
        }
        let side = |side: Side, layout: &Layout| {
            Grid::new(&self.shape, elements, side, layout, world).map_err(|error| {
                let text = format!("tensor {index} \"{}\" cannot be moved: its {}: {error}", self.name, side.name());
                if matches!(error, Error::Unsupported(_)) { Error::Unsupported(text) } else { Error::invalid(text) }
            })
        };
        Ok(Resolved {
            shape: self.shape.clone(),
            source: side(Side::Source, &self.source)?,
            target: side(Side::Target, &self.target)?,
            source_dtype: self.source.dtype,
            target_dtype: self.target.dtype,
            wire,
        })
    }
}

/// The element count; an error unless the bytes of every dtype fit an i64, even were no dimension empty (so that
/// strides exist too).
fn count_elements(shape: &[u64]) -> Result<u64> {
    if shape.len() > MAX_DIMS {
        return Err(Error::invalid(format_args!("it has {} dimensions (at most {MAX_DIMS})", shape.len())));
    }
    let widest = shape.iter().try_fold(1u64, |count, dim| count.checked_mul((*dim).max(1)));
    if widest.and_then(|count| count.checked_mul(8)).is_none_or(|bytes| bytes > i64::MAX as u64) {
        return Err(Error::invalid(format_args!("shape {shape:?} holds more bytes than 63 bits count")));
    }
    Ok(shape.iter().product())
}

fn check_cast(from: DType, to: DType) -> Result<()> {
    use DType::*;
    let float = |dtype| matches!(dtype, Float16 | Float32 | Float64 | Bfloat16 | Float8E4M3 | Float8E5M2);
    if from == to || float(from) && float(to) {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "{} cannot become {} on the way: only float types convert into each other",
        from.name(),
        to.name()
    )))
}

/// A layout that adds up: who holds which box.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    pub(super) mesh: Arc<Mesh>,
    /// Per tensor dimension, what splits it, outermost first.
    axes: Vec<Vec<Cut>>,
    shape: Vec<u64>,
    /// Mesh positions of all replicas, relative to the first.
    pub(super) replicas: Vec<u32>,
    /// Mesh positions of all contributions, relative to the first; just 0 without Partial.
    pub(super) contributions: Vec<u32>,
    pub(super) reduction: Option<Reduction>,
}

/// One mesh dimension splitting one tensor dimension.
#[derive(Clone, Debug)]
struct Cut {
    parts: u32,
    /// Distance of neighbouring coordinates in the mesh's ranks.
    stride: u32,
    sizes: Sizes,
}

#[derive(Clone, Debug)]
enum Sizes {
    Ceil,
    Balanced,
    /// Where each part starts within its outer part; the same for every outer part, or one table per outer part.
    Starts {
        starts: Vec<u64>,
        per_outer: bool,
    },
}

impl Cut {
    /// The `part`-th part of `length` indices that are the `outer`-th part of what is split before.
    fn part(&self, length: u64, outer: u64, part: u32) -> Range<u64> {
        let (parts, index) = (u64::from(self.parts), u64::from(part));
        match &self.sizes {
            Sizes::Ceil => {
                let size = length.div_ceil(parts);
                (size * index).min(length)..(size * (index + 1)).min(length)
            }
            Sizes::Balanced => {
                let (size, more) = (length / parts, length % parts);
                let start = |index: u64| size * index + index.min(more);
                start(index)..start(index + 1)
            }
            Sizes::Starts { starts, per_outer } => {
                let table = if *per_outer { outer } else { 0 };
                let at = (table * parts + index) as usize;
                starts[at]..if part + 1 < self.parts { starts[at + 1] } else { length }
            }
        }
    }
}

/// One part of a tensor dimension, and where in the mesh its holders stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) position: u32,
}

impl Grid {
    fn new(shape: &[u64], elements: u64, side: Side, layout: &Layout, world: u32) -> Result<Grid> {
        let mesh = &layout.mesh;
        if let Some(rank) = mesh.ranks.iter().find(|rank| **rank >= world) {
            return Err(Error::invalid(format_args!("rank {rank} is not in a world of {world} ranks")));
        }
        if layout.placements.len() != mesh.dims.len() {
            return Err(Error::invalid(format_args!(
                "{} placements for a mesh of {} dimensions: one per mesh dimension is needed",
                layout.placements.len(),
                mesh.dims.len()
            )));
        }
        let mut grid = Grid {
            mesh: mesh.clone(),
            axes: vec![Vec::new(); shape.len()],
            shape: shape.to_vec(),
            replicas: vec![0],
            contributions: vec![0],
            reduction: None,
        };
        let mut stride = mesh.ranks.len() as u32;
        let mut shards = Vec::new();
        for (placement, parts) in layout.placements.iter().zip(&mesh.dims) {
            stride /= parts;
            match placement {
                Placement::Replicate => grid.replicas = spread(&grid.replicas, *parts, stride),
                Placement::Partial(op) => {
                    grid.add_partial(*op, *parts, side, layout.dtype)?;
                    grid.contributions = spread(&grid.contributions, *parts, stride);
                }
                Placement::Shard { dim, split, order } => shards.push((*order, *dim, *parts, stride, split)),
            }
        }
        shards.sort_by_key(|(order, ..)| *order);
        for (_, dim, parts, stride, split) in shards {
            if dim >= shape.len() {
                return Err(Error::invalid(format_args!(
                    "it is split along dimension {dim}, but shape {shape:?} has {}",
                    shape.len()
                )));
            }
            let sizes = grid.sizes(dim, parts, split)?;
            grid.axes[dim].push(Cut { parts, stride, sizes });
        }
        debug_assert_eq!(elements, shape.iter().product::<u64>());
        Ok(grid)
    }

    fn add_partial(&mut self, op: Op, parts: u32, side: Side, dtype: DType) -> Result<()> {
        if side == Side::Target {
            return Err(Error::Unsupported(
                "a target cannot be Partial: say which sums to deliver with Shard or Replicate".into(),
            ));
        }
        if !dtype.is_reducible() {
            return Err(Error::Unsupported(format!("{} cannot be added up, so it cannot be Partial", dtype.name())));
        }
        let (kernel, factor) = if op == Op::Avg { (Op::Sum, parts) } else { (op, 1) };
        let before = self.reduction.unwrap_or(Reduction { op: kernel, divisor: 1 });
        if before.op != kernel {
            return Err(Error::Unsupported(format!(
                "it is Partial by {} and by {}: which comes first would change the result",
                before.op.name(),
                op.name()
            )));
        }
        self.reduction = Some(Reduction { op: kernel, divisor: before.divisor * factor });
        Ok(())
    }

    /// Checks the sizes of a split that nests inside those already on `dim`.
    fn sizes(&self, dim: usize, parts: u32, split: &Split) -> Result<Sizes> {
        let sizes = match split {
            Split::Ceil => return Ok(Sizes::Ceil),
            Split::Balanced => return Ok(Sizes::Balanced),
            Split::Explicit(sizes) => sizes,
        };
        let outer = self.parts(dim);
        let per_outer = sizes.len() != parts as usize;
        if per_outer && sizes.len() as u64 != outer.len() as u64 * u64::from(parts) {
            return Err(Error::invalid(format_args!(
                "{} sizes for dimension {dim}: {parts} are needed, or {} to give every outer part its own",
                sizes.len(),
                outer.len() as u64 * u64::from(parts)
            )));
        }
        let mut starts = Vec::with_capacity(sizes.len());
        for (table, sizes) in sizes.chunks(parts as usize).enumerate() {
            let mut end = Some(0u64);
            for size in sizes {
                starts.push(end.unwrap_or(0));
                end = end.and_then(|end| end.checked_add(*size));
            }
            let wanted = if per_outer { &outer[table..=table] } else { &outer[..] };
            if let Some(part) = wanted.iter().find(|part| end != Some(part.end - part.start)) {
                return Err(Error::invalid(format_args!(
                    "sizes {sizes:?} do not add up to the {} indices of dimension {dim} that they split",
                    part.end - part.start
                )));
            }
        }
        Ok(Sizes::Starts { starts, per_outer })
    }

    /// All parts of a tensor dimension in order, empty ones too.
    pub(super) fn parts(&self, dim: usize) -> Vec<Part> {
        let mut parts = vec![Part { start: 0, end: self.shape[dim], position: 0 }];
        for cut in &self.axes[dim] {
            let mut finer = Vec::with_capacity(parts.len() * cut.parts as usize);
            for (outer, part) in parts.iter().enumerate() {
                for index in 0..cut.parts {
                    let range = cut.part(part.end - part.start, outer as u64, index);
                    finer.push(Part {
                        start: part.start + range.start,
                        end: part.start + range.end,
                        position: part.position + index * cut.stride,
                    });
                }
            }
            parts = finer;
        }
        parts
    }

    /// Calls `each` with numbers that differ wherever two layouts of one shape do.
    pub(super) fn each_word(&self, mut each: impl FnMut(u64)) {
        let mut list = |words: &mut dyn ExactSizeIterator<Item = u64>| {
            each(words.len() as u64);
            words.for_each(&mut each);
        };
        list(&mut self.mesh.dims.iter().map(|dim| u64::from(*dim)));
        list(&mut self.mesh.ranks.iter().map(|rank| u64::from(*rank)));
        list(&mut self.contributions.iter().map(|offset| u64::from(*offset)));
        for cuts in &self.axes {
            list(&mut cuts.iter().map(|cut| u64::from(cut.stride)));
            for cut in cuts {
                match &cut.sizes {
                    Sizes::Ceil => list(&mut [0].into_iter()),
                    Sizes::Balanced => list(&mut [1].into_iter()),
                    Sizes::Starts { starts, .. } => list(&mut starts.iter().copied()),
                }
            }
        }
    }

    /// What a rank holds (or contributes to, if Partial); `None` if it is not in the mesh. May be empty.
    pub(super) fn region(&self, rank: u32) -> Option<Region> {
        let position = self.mesh.position(rank)? as u32;
        let mut region = Region { start: vec![0; self.shape.len()], extent: self.shape.clone() };
        for (dim, cuts) in self.axes.iter().enumerate() {
            let mut outer = 0;
            for cut in cuts {
                let index = position / cut.stride % cut.parts;
                let range = cut.part(region.extent[dim], outer, index);
                region.start[dim] += range.start;
                region.extent[dim] = range.end - range.start;
                outer = outer * u64::from(cut.parts) + u64::from(index);
            }
        }
        Some(region)
    }
}

/// Every offset, repeated at `parts` positions `stride` apart.
fn spread(offsets: &[u32], parts: u32, stride: u32) -> Vec<u32> {
    offsets.iter().flat_map(|offset| (0..parts).map(move |part| offset + part * stride)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dims: &[u64], placements: Vec<Placement>) -> Layout {
        let size: u64 = dims.iter().product();
        let ranks: Vec<u32> = (0..size as u32).collect();
        Layout { dtype: DType::Float32, mesh: Mesh::new(dims, &ranks).unwrap(), placements }
    }

    fn grid(shape: &[u64], dims: &[u64], placements: Vec<Placement>) -> Grid {
        Grid::new(shape, shape.iter().product(), Side::Source, &layout(dims, placements), 1000).unwrap()
    }

    fn ranges(grid: &Grid, dim: usize) -> Vec<(u64, u64)> {
        (0..grid.mesh.ranks().len() as u32)
            .map(|rank| grid.region(rank).unwrap())
            .map(|region| (region.start[dim], region.start[dim] + region.extent[dim]))
            .collect()
    }

    #[test]
    fn ceil_splits_leave_trailing_parts_empty_and_balanced_ones_do_not() {
        let shard = |split| vec![Placement::Shard { dim: 0, split, order: 0 }];
        assert_eq!(ranges(&grid(&[5], &[4], shard(Split::Ceil)), 0), [(0, 2), (2, 4), (4, 5), (5, 5)]);
        assert_eq!(ranges(&grid(&[5], &[4], shard(Split::Balanced)), 0), [(0, 2), (2, 3), (3, 4), (4, 5)]);
        let sizes = Split::Explicit(vec![0, 4, 0, 1]);
        assert_eq!(ranges(&grid(&[5], &[4], shard(sizes)), 0), [(0, 0), (0, 4), (4, 4), (4, 5)]);
    }

    #[test]
    fn the_nesting_order_decides_which_mesh_dimension_splits_first() {
        let shard = |order| Placement::Shard { dim: 0, split: Split::Ceil, order };
        let mesh_order = grid(&[8], &[2, 2], vec![shard(0), shard(0)]);
        assert_eq!(ranges(&mesh_order, 0), [(0, 2), (2, 4), (4, 6), (6, 8)]);
        let strided = grid(&[8], &[2, 2], vec![shard(1), shard(0)]);
        assert_eq!(ranges(&strided, 0), [(0, 2), (4, 6), (2, 4), (6, 8)]);
    }

    #[test]
    fn explicit_sizes_may_differ_per_outer_part() {
        let shard = |sizes: &[u64]| Placement::Shard { dim: 0, split: Split::Explicit(sizes.to_vec()), order: 0 };
        let uneven = grid(&[10], &[2, 2], vec![shard(&[7, 3]), shard(&[5, 2, 0, 3])]);
        assert_eq!(ranges(&uneven, 0), [(0, 5), (5, 7), (7, 7), (7, 10)]);
        let wrong = layout(&[2, 2], vec![shard(&[7, 3]), shard(&[5, 2])]);
        let error = Grid::new(&[10], 10, Side::Source, &wrong, 9).unwrap_err().to_string();
        assert!(error.contains("do not add up to the 3 indices"), "{error}");
    }

    #[test]
    fn parts_and_regions_agree() {
        let shard = |dim, order| Placement::Shard { dim, split: Split::Balanced, order };
        let grid = grid(&[7, 11], &[2, 3, 2], vec![shard(1, 2), shard(0, 0), shard(1, 1)]);
        for dim in 0..2 {
            for part in grid.parts(dim) {
                let region = grid.region(part.position).unwrap();
                assert_eq!((region.start[dim], region.extent[dim]), (part.start, part.end - part.start));
            }
        }
    }
}
