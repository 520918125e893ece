//! A rank's part of a tensor in its memory: any strides, as runs of contiguous bytes.
//!
//! A [`View`] is checked once, when memory is bound to a plan; what it yields then is inside the bounds it states. It
//! holds no pointer; its `Cursor` copies between such memory and a buffer.

use std::ops::Range;

use crate::dtype::DType;
use crate::error::{Error, Result};

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
        let mut axes: Vec<Axis> =
            (0..outer).map(|dim| Axis { extent: extent[dim], stride: self.strides[dim], at: 0 }).collect();
        axes.retain(|axis| axis.extent > 1);
        Some(Cursor { base, run: run as usize, within: 0, left, axes })
    }

    /// Where the region lies in the whole tensor.
    pub fn region(&self) -> &Region {
        &self.region
    }
}

/// A way through the bytes of a box in row-major order, run by run. Holds no pointer: whoever reads or writes says
/// where the view's base address is.
#[derive(Debug)]
pub struct Cursor {
    /// Where the present run begins.
    base: i64,
    /// Bytes of every run.
    run: usize,
    /// Bytes of the present run that are behind.
    within: usize,
    /// Bytes from here to the end.
    left: u64,
    /// The dimensions outside of the runs, outermost first.
    axes: Vec<Axis>,
}

#[derive(Debug)]
struct Axis {
    extent: u64,
    /// In bytes.
    stride: i64,
    at: u64,
}

impl Cursor {
    /// A way through bytes that lie one behind the other.
    pub fn contiguous(bytes: u64) -> Cursor {
        Cursor { base: 0, run: bytes as usize, within: 0, left: bytes, axes: Vec::new() }
    }

    /// Bytes from here to the end.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Where the next byte is, and how many follow it in memory; `None` at the end.
    pub fn run(&self) -> Option<(i64, usize)> {
        (self.left > 0).then(|| (self.base + self.within as i64, self.run - self.within))
    }

    /// Goes on by some bytes of the present run, to its end at most.
    pub fn advance(&mut self, bytes: usize) {
        let bytes = self.run().map_or(0, |(_, left)| bytes.min(left));
        self.within += bytes;
        self.left -= bytes as u64;
        if self.within == self.run && self.left > 0 {
            self.within = 0;
            self.step(1);
        }
    }

    /// Copies the next bytes out of the view's memory into a buffer.
    ///
    /// # Safety
    /// At least so many bytes are left; the view's span is readable from `memory` on, and `buffer` writable.
    pub unsafe fn read(&mut self, memory: *const u8, buffer: *mut u8, bytes: usize) {
        // SAFETY: the caller's promises; nothing is written to `memory`.
        unsafe { self.copy::<true>(memory.cast_mut(), buffer, bytes) }
    }

    /// Copies a buffer into the next bytes of the view's memory.
    ///
    /// # Safety
    /// At least so many bytes are left; the view's span is writable from `memory` on, and `buffer` readable.
    pub unsafe fn write(&mut self, memory: *mut u8, buffer: *const u8, bytes: usize) {
        // SAFETY: the caller's promises; nothing is written to `buffer`.
        unsafe { self.copy::<false>(memory, buffer.cast_mut(), bytes) }
    }

    /// # Safety
    /// As [`Cursor::read`] or, if not `READ`, [`Cursor::write`].
    unsafe fn copy<const READ: bool>(&mut self, memory: *mut u8, mut buffer: *mut u8, mut bytes: usize) {
        while bytes > 0 {
            let row = self.axes.last().map_or(0, |axis| axis.extent - axis.at) as usize;
            let count = row.min(bytes / self.run);
            if self.within == 0 && count > 1 {
                let stride = self.axes.last().map_or(0, |axis| axis.stride) as isize;
                // SAFETY: `count` runs follow, each within the span by the making of the view; the buffer has room.
                unsafe {
                    let place = memory.offset(self.base as isize);
                    match self.run {
                        1 => strided::<u8, READ>(place, stride, buffer, count),
                        2 => strided::<u16, READ>(place, stride, buffer, count),
                        4 => strided::<u32, READ>(place, stride, buffer, count),
                        8 => strided::<u64, READ>(place, stride, buffer, count),
                        16 => strided::<u128, READ>(place, stride, buffer, count),
                        run => rows::<READ>(place, stride, buffer, count, run),
                    }
                    buffer = buffer.add(count * self.run);
                }
                bytes -= count * self.run;
                self.left -= (count * self.run) as u64;
                if self.left > 0 {
                    self.step(count as u64);
                }
                continue;
            }
            let piece = bytes.min(self.run - self.within);
            // SAFETY: `piece` bytes of the present run follow, and the buffer has room.
            unsafe {
                let place = memory.offset(self.base as isize + self.within as isize);
                one::<READ>(place, buffer, piece);
                buffer = buffer.add(piece);
            }
            bytes -= piece;
            self.advance(piece);
        }
    }

    /// Goes to the run that is so many behind the present one, in the same row or at the beginning of the next.
    fn step(&mut self, runs: u64) {
        let mut by = runs;
        for axis in self.axes.iter_mut().rev() {
            axis.at += by;
            self.base += by as i64 * axis.stride;
            if axis.at < axis.extent {
                return;
            }
            self.base -= axis.extent as i64 * axis.stride;
            axis.at = 0;
            by = 1;
        }
    }
}

/// # Safety
/// `count` elements lie `stride` bytes apart from `place` on, and one behind the other from `buffer` on; they are
/// readable and writable in the direction of the copy.
unsafe fn strided<T: Copy, const READ: bool>(place: *mut u8, stride: isize, buffer: *mut u8, count: usize) {
    for at in 0..count {
        // SAFETY: the caller's promises.
        unsafe {
            let (element, slot) = (place.offset(stride * at as isize).cast::<T>(), buffer.cast::<T>().add(at));
            match READ {
                true => slot.write_unaligned(element.read_unaligned()),
                false => element.write_unaligned(slot.read_unaligned()),
            }
        }
    }
}

/// # Safety
/// As [`strided`], for elements of `run` bytes.
unsafe fn rows<const READ: bool>(place: *mut u8, stride: isize, buffer: *mut u8, count: usize, run: usize) {
    for at in 0..count {
        // SAFETY: the caller's promises.
        unsafe { one::<READ>(place.offset(stride * at as isize), buffer.add(at * run), run) }
    }
}

/// # Safety
/// As [`strided`], for one element of so many bytes.
unsafe fn one<const READ: bool>(place: *mut u8, buffer: *mut u8, bytes: usize) {
    // SAFETY: the caller's promises.
    unsafe {
        match READ {
            true => place.copy_to_nonoverlapping(buffer, bytes),
            false => buffer.copy_to_nonoverlapping(place, bytes),
        }
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
    fn a_cursor_reads_and_writes_in_pieces_of_any_size() {
        for (extent, strides) in [
            (&[2, 3, 4][..], None),
            (&[2, 3, 4], Some(&[1, 2, 6][..])),
            (&[3, 5], Some(&[9, 1])),
            (&[3, 5], Some(&[1, -3])),
            (&[4, 1, 3], Some(&[4, 77, 1])),
            (&[2, 3, 16], Some(&[64, 20, 1])),
        ] {
            let whole = view(extent, Side::Source, strides).unwrap();
            let (start, bytes) = (vec![10; extent.len()], extent.iter().product::<u64>() as usize * 2);
            let span = whole.span();
            let memory: Vec<u8> = (0..span.end - span.start).map(|at| at as u8).collect();
            let mut expected = Vec::new();
            whole.runs(&start, extent, |offset, length| {
                expected.extend_from_slice(&memory[(offset - span.start) as usize..][..length]);
            });
            assert_eq!(expected.len(), bytes);
            for piece in [1, 2, 3, 5, 8, 64, bytes] {
                let mut reader = whole.cursor(&start, extent).unwrap();
                let mut writer = whole.cursor(&start, extent).unwrap();
                let (mut found, mut back) = (vec![0u8; bytes], vec![0u8; memory.len()]);
                let mut at = 0;
                while reader.left() > 0 {
                    let length = piece.min(bytes - at);
                    // SAFETY: both memories hold the whole span, whose base is where its offset 0 is.
                    unsafe {
                        let base = memory.as_ptr().offset(-span.start as isize);
                        reader.read(base, found[at..].as_mut_ptr(), length);
                        let base = back.as_mut_ptr().offset(-span.start as isize);
                        writer.write(base, found[at..].as_ptr(), length);
                    }
                    at += length;
                }
                assert_eq!(found, expected, "{extent:?} by {strides:?} in pieces of {piece}");
                whole.runs(&start, extent, |offset, length| {
                    let range = (offset - span.start) as usize..(offset - span.start) as usize + length;
                    assert_eq!(back[range.clone()], memory[range]);
                });
            }
        }
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
