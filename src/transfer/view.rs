//! A rank's part of a tensor in its memory: any strides, as runs of contiguous bytes.
//!
//! A [`View`] is checked once, when memory is bound to a plan; what it yields then is inside the bounds it states. It
//! holds no pointer and touches no memory itself.

use std::ops::Range;

use crate::dtype::DType;
use crate::error::{Error, Result};

use super::cursor::Cursor;
use super::layout::Side;
use super::region::Region;

/// Memory of one rank that holds its part of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    region: Region,
    /// Bytes between neighbours of each dimension.
    strides: Vec<i64>,
    size: u64,
    span: Range<i64>,
}

impl View {
    /// Memory that holds `region` (as [`super::Plan::region`] has it) with `strides` in elements, `None` if contiguous
    /// and row-major. The base address is that of the region's first element.
    ///
    /// A source may have any strides. A target may not have negative ones, nor any by which two elements could share an
    /// address: going from the smallest stride up, each must reach beyond all that the smaller ones span.
    pub fn new(region: Region, dtype: DType, side: Side, strides: Option<&[i64]>) -> Result<View> {
        let size = dtype.size() as u64;
        let dims = region.extent.len();
        let too_far = || Error::invalid("the strides reach further than 63 bits count");
        let strides = match strides {
            None => contiguous(&region.extent, size).ok_or_else(too_far)?,
            Some(strides) if strides.len() == dims => {
                let scaled = strides.iter().map(|stride| stride.checked_mul(size as i64));
                scaled.collect::<Option<Vec<i64>>>().ok_or_else(too_far)?
            }
            Some(strides) => {
                return Err(Error::invalid(format_args!("{} strides for {dims} dimensions", strides.len())));
            }
        };
        let mut span = 0..size as i64;
        for (stride, extent) in strides.iter().zip(&region.extent) {
            let reach = i64::try_from(extent.saturating_sub(1)).ok().and_then(|steps| steps.checked_mul(*stride));
            let reach = reach.ok_or_else(too_far)?;
            let bound = if reach < 0 { &mut span.start } else { &mut span.end };
            *bound = bound.checked_add(reach).ok_or_else(too_far)?;
        }
        if region.extent.contains(&0) {
            span = 0..0;
        } else if side == Side::Target {
            check_target(&strides, &region.extent, size as i64)?;
        }
        Ok(View { region, strides, size, span })
    }

    /// The bytes that may be touched, relative to the base address.
    pub fn span(&self) -> Range<i64> {
        self.span.clone()
    }

    /// Calls `each` with the offset from the base address and the length of every run of bytes of a box (in the
    /// coordinates of the whole tensor), in row-major order. False, and no call, if the box is not inside the region.
    pub fn runs(&self, start: &[u64], extent: &[u64], mut each: impl FnMut(i64, usize)) -> bool {
        let Some(mut cursor) = self.cursor(start, extent) else { return false };
        while let Some((offset, bytes)) = cursor.run() {
            each(offset, bytes);
            cursor.advance(bytes);
        }
        true
    }

    /// A way through the bytes of a box in row-major order. `None` if the box is not inside the region.
    pub fn cursor(&self, start: &[u64], extent: &[u64]) -> Option<Cursor> {
        let dims = self.strides.len();
        if start.len() != dims || extent.len() != dims {
            return None;
        }
        let mut base = 0i64;
        let mut left = self.size;
        for dim in 0..dims {
            let begin = start[dim]
                .checked_sub(self.region.start[dim])
                .filter(|begin| extent[dim].checked_add(*begin).is_some_and(|end| end <= self.region.extent[dim]))?;
            if extent[dim] > 0 {
                base += begin as i64 * self.strides[dim];
            }
            left *= extent[dim];
        }
        if left == 0 {
            return Some(Cursor::contiguous(0));
        }
        // Inner dimensions that lie without gaps are one run.
        let (mut run, mut outer) = (self.size as i64, dims);
        while outer > 0 && (self.strides[outer - 1] == run || extent[outer - 1] == 1) {
            outer -= 1;
            run *= extent[outer] as i64;
        }
        let axes = (0..outer).map(|dim| (extent[dim], self.strides[dim])).filter(|(extent, _)| *extent > 1);
        Some(Cursor::new(base, run as usize, left, axes))
    }

    /// Where the region lies in the whole tensor.
    pub fn region(&self) -> &Region {
        &self.region
    }
}

fn contiguous(extent: &[u64], size: u64) -> Option<Vec<i64>> {
    let mut strides = vec![i64::try_from(size).ok()?; extent.len()];
    for dim in (1..extent.len()).rev() {
        strides[dim - 1] = strides[dim].checked_mul(i64::try_from(extent[dim].max(1)).ok()?)?;
    }
    Some(strides)
}

fn check_target(strides: &[i64], extent: &[u64], size: i64) -> Result<()> {
    let mut steps: Vec<(i64, i64)> = strides
        .iter()
        .zip(extent)
        .filter(|(_, extent)| **extent > 1)
        .map(|(stride, extent)| (*stride, *extent as i64 - 1))
        .collect();
    steps.sort_unstable();
    let mut reach = size;
    for (stride, count) in steps {
        if stride < reach {
            return Err(Error::invalid(format_args!(
                "a target with a stride of {} elements, where {} are needed to keep its elements apart",
                stride / size,
                reach / size
            )));
        }
        reach += stride * count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(extent: &[u64], side: Side, strides: Option<&[i64]>) -> Result<View> {
        let region = Region { start: vec![10; extent.len()], extent: extent.to_vec() };
        View::new(region, DType::Int16, side, strides)
    }

    fn runs(view: &View, start: &[u64], extent: &[u64]) -> Vec<(i64, usize)> {
        let mut runs = Vec::new();
        assert!(view.runs(start, extent, |offset, bytes| runs.push((offset, bytes))));
        runs
    }

    #[test]
    fn contiguous_inner_dimensions_are_one_run() {
        let whole = view(&[3, 4, 5], Side::Target, None).unwrap();
        assert_eq!(whole.span(), 0..120);
        assert_eq!(runs(&whole, &[10, 10, 10], &[3, 4, 5]), [(0, 120)]);
        assert_eq!(runs(&whole, &[11, 11, 10], &[2, 2, 5]), [(50, 20), (90, 20)]);
        assert_eq!(runs(&whole, &[11, 11, 11], &[1, 2, 1]), [(52, 2), (62, 2)]);
        assert_eq!(runs(&view(&[], Side::Target, None).unwrap(), &[], &[]), [(0, 2)]);
    }

    #[test]
    fn a_transposed_and_padded_view_yields_elements_in_row_major_order() {
        let transposed = view(&[2, 3], Side::Source, Some(&[1, 4])).unwrap();
        assert_eq!(transposed.span(), 0..20);
        let offsets: Vec<i64> = runs(&transposed, &[10, 10], &[2, 3]).into_iter().map(|(offset, _)| offset).collect();
        assert_eq!(offsets, [0, 8, 16, 2, 10, 18]);
    }

    #[test]
    fn a_box_outside_the_region_yields_nothing() {
        let whole = view(&[3, 4], Side::Source, None).unwrap();
        for (start, extent) in [([9, 10], [1, 1]), ([12, 10], [2, 1]), ([10, u64::MAX], [1, 2])] {
            assert!(!whole.runs(&start, &extent, |_, _| panic!("a run outside")));
        }
    }

    #[test]
    fn targets_whose_elements_could_share_an_address_are_refused() {
        for (extent, strides) in
            [(&[3, 4][..], &[3, 1][..]), (&[3, 4], &[4, -1]), (&[2, 2], &[0, 1]), (&[2, 2], &[1, 1])]
        {
            assert!(view(extent, Side::Target, Some(strides)).is_err(), "{extent:?} by {strides:?}");
            assert!(view(extent, Side::Source, Some(strides)).is_ok());
        }
        assert!(view(&[3, 4], Side::Target, Some(&[4, 1])).is_ok());
        assert!(view(&[1, 4], Side::Target, Some(&[-7, 1])).is_ok(), "a stride that is never taken");
        assert!(view(&[0, 4], Side::Target, Some(&[0, 0])).is_ok(), "nothing to share");
    }

    #[test]
    fn strides_that_overflow_are_refused() {
        for strides in [[i64::MAX, 1], [i64::MAX / 2, 1], [i64::MIN, 1], [i64::MAX / 4, i64::MAX / 4]] {
            assert!(view(&[4, 4], Side::Source, Some(&strides)).is_err(), "{strides:?}");
        }
    }
}
