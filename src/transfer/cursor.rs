//! The way through a box of a strided memory, and the copies between such memory and a buffer.
//!
//! A [`super::View`] makes cursors and answers for their bounds: every run they yield is inside the view's span. Copies
//! of single elements are loops over a fixed type, which the compiler turns into vectors where the processor has them.

use crate::communicator::copy;

/// Runs that are worth streaming: of shorter ones too many lines are written in part.
const STREAMED: usize = if cfg!(test) { 16 } else { 512 };

/// Runs of so many bytes are asked for while the one before is copied, up to a page of each: shorter ones are over too
/// soon.
const EXPECTED: usize = 2048;
const PAGE: usize = 4096;

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
    /// Whether long runs are written past the caches.
    streams: bool,
}

#[derive(Debug)]
struct Axis {
    extent: u64,
    /// In bytes.
    stride: i64,
    at: u64,
}

/// See [`Cursor::stretch`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    /// Where the first run begins.
    pub(super) offset: i64,
    /// Bytes of a run; of the rest of one if it is the only.
    pub(super) run: usize,
    /// From run to run, in bytes.
    pub(super) stride: i64,
    pub(super) count: usize,
}

impl Cursor {
    /// From `base` on, `left` bytes in runs of `run`, repeated along axes of (extent, stride in bytes), outermost first.
    pub(super) fn new(base: i64, run: usize, left: u64, axes: impl Iterator<Item = (u64, i64)>) -> Cursor {
        let axes = axes.map(|(extent, stride)| Axis { extent, stride, at: 0 }).collect();
        Cursor { base, run, within: 0, left, axes, streams: false }
    }

    /// A way through bytes that lie one behind the other.
    pub fn contiguous(bytes: u64) -> Cursor {
        Cursor { base: 0, run: bytes as usize, within: 0, left: bytes, axes: Vec::new(), streams: false }
    }

    /// Whether long runs are to be written past the caches from here on: whoever wants that drains them.
    pub(super) fn stream(&mut self, streams: bool) {
        self.streams = streams;
    }

    /// Bytes from here to the end.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Where the next byte is, and how many follow it in memory; `None` at the end.
    pub fn run(&self) -> Option<(i64, usize)> {
        (self.left > 0).then(|| (self.base + self.within as i64, self.run - self.within))
    }

    /// The next bytes that lie in runs of one length and distance, at most so many; `None` at the end.
    pub(super) fn stretch(&self, at_most: usize) -> Option<Stretch> {
        let (offset, left) = self.run()?;
        let (row, stride) = self.axes.last().map_or((0, 0), |axis| ((axis.extent - axis.at) as usize, axis.stride));
        let count = row.min(at_most / self.run);
        match self.within == 0 && count > 1 {
            true => Some(Stretch { offset, run: self.run, stride, count }),
            false => Some(Stretch { offset, run: left.min(at_most), stride: 0, count: 1 }),
        }
    }

    /// Goes on by some bytes, to the end at most.
    pub(super) fn skip(&mut self, mut bytes: usize) {
        while bytes > 0
            && let Some(stretch) = self.stretch(bytes)
        {
            bytes -= stretch.run * stretch.count;
            match stretch.count {
                1 => self.advance(stretch.run),
                count => self.pass(count),
            }
        }
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
        while bytes > 0
            && let Some(Stretch { offset, run, stride, count }) = self.stretch(bytes)
        {
            // SAFETY: `count` runs follow, each within the span by the making of the view; the buffer has room.
            unsafe {
                let (place, stride) = (memory.offset(offset as isize), stride as isize);
                match run {
                    _ if count == 1 => one::<READ>(place, buffer, run, self.streams),
                    1 => strided::<u8, READ>(place, stride, buffer, count),
                    2 => strided::<u16, READ>(place, stride, buffer, count),
                    4 => strided::<u32, READ>(place, stride, buffer, count),
                    8 => strided::<u64, READ>(place, stride, buffer, count),
                    16 => strided::<u128, READ>(place, stride, buffer, count),
                    run => rows::<READ>(place, stride, buffer, count, run, self.streams),
                }
                buffer = buffer.add(count * run);
            }
            bytes -= count * run;
            match count {
                1 => self.advance(run),
                count => self.pass(count),
            }
        }
    }

    /// Goes on by some whole runs of the present row.
    fn pass(&mut self, runs: usize) {
        self.left -= (runs * self.run) as u64;
        if self.left > 0 {
            self.step(runs as u64);
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
unsafe fn rows<const READ: bool>(
    place: *mut u8,
    stride: isize,
    buffer: *mut u8,
    count: usize,
    run: usize,
    streams: bool,
) {
    for at in 0..count {
        if READ && run >= EXPECTED {
            copy::expect(place.wrapping_offset(stride * (at + 1) as isize), run.min(PAGE));
        }
        // SAFETY: the caller's promises.
        unsafe { one::<READ>(place.offset(stride * at as isize), buffer.add(at * run), run, streams) }
    }
}

/// # Safety
/// As [`strided`], for one element of so many bytes.
#[inline]
unsafe fn one<const READ: bool>(place: *mut u8, buffer: *mut u8, bytes: usize, streams: bool) {
    let (from, to) = if READ { (place, buffer) } else { (buffer, place) };
    // SAFETY: the caller's promises.
    unsafe {
        match streams && bytes >= STREAMED {
            true => copy::stream(from, to, bytes),
            false => copy::copy(from, to, bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        dtype::DType,
        transfer::{Region, Side, View},
    };

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
            let region = Region { start: vec![10; extent.len()], extent: extent.to_vec() };
            let whole = View::new(region, DType::Int16, Side::Source, strides).unwrap();
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
}
