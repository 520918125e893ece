//! What layouts mean, element by element: lists of indices split with no arithmetic to speak of.

use tutti::transfer::{Item, Layout, Placement, Side, Split};

/// The indices that a rank holds of every dimension of a tensor; `None` if it is not in the mesh.
pub(crate) fn indices(item: &Item, side: Side, rank: u32) -> Option<Vec<Vec<u64>>> {
    let layout = if side == Side::Source { &item.source } else { &item.target };
    let position = layout.mesh.ranks().iter().position(|other| *other == rank)?;
    let coordinates = coordinates(layout, position);
    let mut held = Vec::new();
    for (dim, length) in item.shape.iter().enumerate() {
        let mut nest: Vec<(i32, usize, &Split)> = Vec::new();
        for (at, placement) in layout.placements.iter().enumerate() {
            if let Placement::Shard { dim: split, split: how, order } = placement
                && *split == dim
            {
                nest.push((*order, at, how));
            }
        }
        nest.sort_by_key(|(order, at, _)| (*order, *at));
        let mut pieces: Vec<Vec<u64>> = vec![(0..*length).collect()];
        let mut mine = 0;
        for (_, at, how) in nest {
            let parts = layout.mesh.dims()[at] as usize;
            pieces = pieces.iter().enumerate().flat_map(|(outer, piece)| split(piece, parts, how, outer)).collect();
            mine = mine * parts + coordinates[at];
        }
        held.push(pieces[mine].clone());
    }
    Some(held)
}

pub(crate) fn coordinates(layout: &Layout, position: usize) -> Vec<usize> {
    let mut rest = position;
    let dims = layout.mesh.dims();
    let mut coordinates: Vec<usize> = dims
        .iter()
        .rev()
        .map(|size| {
            let coordinate = rest % *size as usize;
            rest /= *size as usize;
            coordinate
        })
        .collect();
    coordinates.reverse();
    coordinates
}

fn split(piece: &[u64], parts: usize, how: &Split, outer: usize) -> Vec<Vec<u64>> {
    let sizes: Vec<usize> = match how {
        Split::Ceil => vec![piece.len().div_ceil(parts); parts],
        Split::Balanced => {
            (0..parts).map(|part| piece.len() / parts + usize::from(part < piece.len() % parts)).collect()
        }
        Split::Explicit(sizes) => {
            let from = if sizes.len() == parts { 0 } else { outer * parts };
            sizes[from..from + parts].iter().map(|size| *size as usize).collect()
        }
    };
    let mut rest = piece;
    let mut pieces = Vec::new();
    for size in sizes {
        let (taken, left) = rest.split_at(size.min(rest.len()));
        pieces.push(taken.to_vec());
        rest = left;
    }
    assert!(rest.is_empty(), "a split that loses elements");
    pieces
}

/// Per element of the tensor in row-major order, whether a rank has it.
pub(crate) fn mask(item: &Item, side: Side, rank: u32) -> Vec<bool> {
    let count = item.shape.iter().product::<u64>() as usize;
    let Some(held) = indices(item, side, rank) else { return vec![false; count] };
    let mut mask = vec![true];
    for (length, held) in item.shape.iter().zip(&held) {
        mask = mask.iter().flat_map(|has| (0..*length).map(move |index| *has && held.contains(&index))).collect();
    }
    mask
}
