//! Elements on their way between a tensor's memory and a buffer, or between two tensors: strides, casts and copies in
//! one pass.
//!
//! What lies in runs of some length is converted where it is; what is scattered passes through a tile that stays in the
//! nearest cache. A [`Conveyor`] does so for all chunks of a bucket, as the bytes come to be carried. Nothing here knows
//! a plan.

use std::{mem::MaybeUninit, ptr::NonNull};

use super::super::cursor::Cursor;
use crate::{
    communicator::{Pieces, copy, reduce},
    dtype::DType,
};

/// Elements of a tile: at most 4 KiB.
const TILE: usize = 512;
/// Runs of so many elements are worth a conversion of their own.
const LONG: usize = 64;

/// Room for a tile of any type.
struct Tile([MaybeUninit<u64>; TILE]);

impl Tile {
    fn new() -> Tile {
        Tile([MaybeUninit::uninit(); TILE])
    }

    fn start(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }
}

/// One side of a chunk: where its elements are, in order.
pub(super) struct Place {
    pub(super) cursor: Cursor,
    /// The view's base address.
    pub(super) memory: *mut u8,
    pub(super) dtype: DType,
    /// Whether that is memory of a device, which nobody here may touch.
    pub(super) is_on_device: bool,
}

impl Place {
    /// Elements of the host, one behind the other.
    pub(super) fn on_host(memory: *mut u8, dtype: DType, count: usize) -> Place {
        let cursor = Cursor::contiguous((count * dtype.size()) as u64);
        Place { cursor, memory, dtype, is_on_device: false }
    }

    /// What is left of them.
    pub(super) fn elements(&mut self) -> Elements<'_> {
        Elements { cursor: &mut self.cursor, memory: self.memory, dtype: self.dtype }
    }

    /// Where all of them are, if they lie one behind the other in memory of the host.
    pub(super) fn in_one_run(&self) -> Option<*mut u8> {
        let (offset, bytes) = self.cursor.run()?;
        let in_one = bytes as u64 == self.cursor.left() && !self.is_on_device;
        in_one.then(|| self.memory.wrapping_offset(offset as isize))
    }
}

/// What a cursor goes through: the elements of one side.
pub(super) struct Elements<'a> {
    pub(super) cursor: &'a mut Cursor,
    /// The view's base address.
    pub(super) memory: *mut u8,
    pub(super) dtype: DType,
}

impl Elements<'_> {
    /// Where the next elements are and how many of them lie one behind the other.
    fn run(&self) -> (*mut u8, usize) {
        let (offset, bytes) = self.cursor.run().unwrap_or((0, 0));
        (self.memory.wrapping_offset(offset as isize), bytes / self.dtype.size())
    }
}

/// Puts `count` elements into a buffer, as elements of `wire`.
///
/// # Safety
/// So many are left, readable in the view's memory; the buffer is writable and apart.
pub(super) unsafe fn pack(from: Elements<'_>, wire: DType, mut buffer: *mut u8, mut count: usize) {
    let (dtype, size) = (from.dtype, from.dtype.size());
    if dtype == wire {
        // SAFETY: the caller's promises.
        return unsafe { from.cursor.read(from.memory, buffer, count * size) };
    }
    let mut tile = Tile::new();
    while count > 0 {
        let (place, run) = from.run();
        let mut step = run.min(count);
        // SAFETY: `step` elements are left and fit the tile, or lie at `place`; the buffer has room for all.
        unsafe {
            if run >= LONG.min(count) {
                reduce::convert(dtype, wire, place, buffer, step);
                from.cursor.advance(step * size);
            } else {
                step = TILE.min(count);
                from.cursor.read(from.memory, tile.start(), step * size);
                reduce::convert(dtype, wire, tile.start(), buffer, step);
            }
            buffer = buffer.add(step * wire.size());
        }
        count -= step;
    }
}

/// Puts `count` elements of `wire` from a buffer where they belong.
///
/// # Safety
/// So many are left, writable in the view's memory; the buffer is readable and apart.
pub(super) unsafe fn unpack(to: Elements<'_>, wire: DType, mut buffer: *const u8, mut count: usize) {
    let (dtype, size) = (to.dtype, to.dtype.size());
    if dtype == wire {
        // SAFETY: the caller's promises.
        return unsafe { to.cursor.write(to.memory, buffer, count * size) };
    }
    let mut tile = Tile::new();
    while count > 0 {
        let (place, run) = to.run();
        let mut step = run.min(count);
        // SAFETY: as in `pack`, the other way.
        unsafe {
            if run >= LONG.min(count) {
                reduce::convert(wire, dtype, buffer, place, step);
                to.cursor.advance(step * size);
            } else {
                step = TILE.min(count);
                reduce::convert(wire, dtype, buffer, tile.start(), step);
                to.cursor.write(to.memory, tile.start(), step * size);
            }
            buffer = buffer.add(step * wire.size());
        }
        count -= step;
    }
}

/// Copies `count` elements from one tensor to another, as elements of `wire` in between.
///
/// # Safety
/// So many are left on both sides, readable and writable there, and apart.
pub(super) unsafe fn relay(from: Elements<'_>, wire: DType, to: Elements<'_>, mut count: usize) {
    let (size, to_size) = (from.dtype.size(), to.dtype.size());
    let (mut first, mut second, mut third) = (Tile::new(), Tile::new(), Tile::new());
    while count > 0 {
        let (place, run) = from.run();
        let (goal, room) = to.run();
        if from.dtype == wire && wire == to.dtype && run.min(room) >= LONG {
            let step = run.min(room).min(count);
            // SAFETY: `step` elements lie at both places.
            unsafe { copy::copy(place, goal, step * size) };
            from.cursor.advance(step * size);
            to.cursor.advance(step * size);
            count -= step;
            continue;
        }
        let step = TILE.min(count);
        // SAFETY: `step` elements are left on both sides; a tile holds as many of any type.
        unsafe {
            let mut at: *const u8 = place;
            if run >= step {
                from.cursor.advance(step * size);
            } else {
                from.cursor.read(from.memory, first.start(), step * size);
                at = first.start();
            }
            if from.dtype != wire {
                reduce::convert(from.dtype, wire, at, second.start(), step);
                at = second.start();
            }
            if wire != to.dtype {
                reduce::convert(wire, to.dtype, at, third.start(), step);
                at = third.start();
            }
            to.cursor.write(to.memory, at, step * to_size);
        }
        count -= step;
    }
}

/// A chunk of a bucket that is conveyed.
pub(super) struct Part {
    pub(super) place: Place,
    /// What its elements are in the bucket.
    pub(super) wire: DType,
    /// Where in the bucket they begin, and their bytes there.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// The bytes of a bucket, first to last, straight between tensors and whoever carries them.
pub(super) struct Conveyor {
    parts: Vec<Part>,
    /// The part that is next, and the byte of the bucket.
    next: usize,
    at: u64,
    is_source: bool,
}

// SAFETY: whoever made it promised the tensors' use from any thread.
unsafe impl Send for Conveyor {}

impl Conveyor {
    /// Of parts that lie one behind the other: to be packed, or unpacked.
    ///
    /// # Safety
    /// Each part's cursor has its elements, which are readable, or writable, as long as anything is passed.
    pub(super) unsafe fn new(parts: Vec<Part>, is_source: bool) -> Conveyor {
        Conveyor { parts, next: 0, at: 0, is_source }
    }
}

impl Pieces for Conveyor {
    unsafe fn pass(&mut self, mut place: *mut u8, mut length: usize, streams: bool) {
        while length > 0 {
            let (begin, end) =
                self.parts.get(self.next).map_or((u64::MAX, u64::MAX), |part| (part.offset, part.offset + part.bytes));
            let gap = begin.saturating_sub(self.at);
            let step = if gap > 0 { gap } else { end - self.at }.min(length as u64) as usize;
            // SAFETY: the caller's promise; `new` promised the elements.
            unsafe {
                match self.parts.get_mut(self.next) {
                    Some(part) if gap == 0 => {
                        part.place.cursor.stream(streams);
                        let count = step / part.wire.size();
                        match self.is_source {
                            true => pack(part.place.elements(), part.wire, place, count),
                            false => unpack(part.place.elements(), part.wire, place, count),
                        }
                    }
                    // Nobody gets to see what was in the memory before.
                    _ if self.is_source => place.write_bytes(0, step),
                    _ => {}
                }
                place = place.add(step);
            }
            length -= step;
            self.at += step as u64;
            self.next += usize::from(self.at == end);
        }
        if streams {
            copy::drain();
        }
    }
}

/// A conveyor that stays where it is, for letters that know it by its address.
pub(super) struct Loaded(NonNull<Conveyor>);

// SAFETY: it owns the conveyor, which may be sent.
unsafe impl Send for Loaded {}

impl Loaded {
    pub(super) fn new(conveyor: Conveyor) -> Loaded {
        Loaded(NonNull::from(Box::leak(Box::new(conveyor))))
    }

    /// What letters know. Valid as long as this lives.
    pub(super) fn pieces(&self) -> NonNull<dyn Pieces> {
        self.0
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: it came from a box, and whoever was given its address is done with it.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::{Region, Side, View};

    fn values(dtype: DType, count: usize) -> Vec<u8> {
        let wide: Vec<u8> = (0..count).flat_map(|at| ((at % 120) as f32).to_le_bytes()).collect();
        let mut narrow = vec![0; count * dtype.size()];
        // SAFETY: both hold `count` elements.
        unsafe { reduce::convert(DType::Float32, dtype, wide.as_ptr(), narrow.as_mut_ptr(), count) };
        narrow
    }

    #[test]
    fn a_bucket_is_conveyed_in_steps_of_any_size_and_its_gaps_are_zero() {
        // Two chunks with a gap between them: 5 floats that travel as half floats, and a column of 9 floats.
        let floats: Vec<f32> = (0..40).map(|at| at as f32).collect();
        let column = |memory: *mut u8| {
            let region = Region { start: vec![0, 0], extent: vec![9, 1] };
            let view = View::new(region, DType::Float32, Side::Target, Some(&[4, 1])).unwrap();
            let cursor = view.cursor(&[0, 0], &[9, 1]).unwrap();
            let place = Place { cursor, memory, dtype: DType::Float32, is_on_device: false };
            Part { place, wire: DType::Float32, offset: 16, bytes: 36 }
        };
        let parts = |memory: &mut [f32]| {
            let memory: *mut u8 = memory.as_mut_ptr().cast();
            let place = Place::on_host(memory, DType::Float32, 5);
            vec![Part { place, wire: DType::Bfloat16, offset: 0, bytes: 10 }, column(memory.wrapping_add(20))]
        };
        for step in [16, 32, 48, 52] {
            for streams in [false, true] {
                let mut from = floats.clone();
                let mut bucket = [0xa5_u8; 52];
                let mut arrived = vec![-1.0f32; 40];
                // SAFETY: memory of 40 floats holds both parts, and so does the bucket of 52 bytes.
                unsafe {
                    let mut packer = Conveyor::new(parts(&mut from), true);
                    bucket.chunks_mut(step).for_each(|place| packer.pass(place.as_mut_ptr(), place.len(), streams));
                    let mut unpacker = Conveyor::new(parts(&mut arrived), false);
                    bucket.chunks_mut(step).for_each(|place| unpacker.pass(place.as_mut_ptr(), place.len(), streams));
                }
                assert_eq!(bucket[10..16], [0; 6]);
                for (at, value) in arrived.iter().enumerate() {
                    let moved = at < 5 || (at - 5) % 4 == 0 && at <= 37;
                    assert_eq!(*value, if moved { at as f32 } else { -1.0 }, "element {at}, steps of {step}");
                }
            }
        }
    }

    const TYPES: [DType; 4] = [DType::Float32, DType::Bfloat16, DType::Float64, DType::Float16];
    /// Rows of 1, 3 and 700 elements; contiguous, padded and transposed.
    const SHAPES: [(&[u64], Option<&[i64]>); 5] = [
        (&[3000], None),
        (&[40, 3], Some(&[4, 1])),
        (&[5, 700], Some(&[701, 1])),
        (&[60, 50], Some(&[1, 61])),
        (&[], None),
    ];

    /// A view and memory for it, filled with `fill`; its base is where the view's span says.
    fn place(extent: &[u64], strides: Option<&[i64]>, dtype: DType, fill: u8) -> (View, Vec<u8>) {
        let region = Region { start: vec![0; extent.len()], extent: extent.to_vec() };
        let view = View::new(region, dtype, Side::Target, strides).unwrap();
        let bytes = vec![fill; view.span().end as usize];
        (view, bytes)
    }

    #[test]
    fn what_is_packed_and_unpacked_arrives_in_every_type_and_shape() {
        for (extent, strides) in SHAPES {
            let count = extent.iter().product::<u64>() as usize;
            let start = vec![0; extent.len()];
            for from in TYPES {
                for wire in TYPES {
                    for to in TYPES {
                        let (source, mut memory) = place(extent, strides, from, 0);
                        let mut cursor = source.cursor(&start, extent).unwrap();
                        // SAFETY: the memory spans the view, the values as many elements.
                        unsafe { cursor.write(memory.as_mut_ptr(), values(from, count).as_ptr(), count * from.size()) };
                        let mut buffer = vec![0u8; count * wire.size()];
                        let mut cursor = source.cursor(&start, extent).unwrap();
                        let elements = Elements { cursor: &mut cursor, memory: memory.as_mut_ptr(), dtype: from };
                        // SAFETY: as above.
                        unsafe { pack(elements, wire, buffer.as_mut_ptr(), count) };
                        assert_eq!(buffer, values(wire, count), "{extent:?}: {} as {}", from.name(), wire.name());

                        let read = |view: &View, memory: &[u8]| {
                            let mut found = vec![0u8; count * to.size()];
                            let mut cursor = view.cursor(&start, extent).unwrap();
                            // SAFETY: as above.
                            unsafe { cursor.read(memory.as_ptr(), found.as_mut_ptr(), found.len()) };
                            found
                        };
                        for (extent, strides) in [(extent, strides), (extent, None)] {
                            let (target, mut arrived) = place(extent, strides, to, 0);
                            let mut cursor = target.cursor(&start, extent).unwrap();
                            let elements = Elements { cursor: &mut cursor, memory: arrived.as_mut_ptr(), dtype: to };
                            // SAFETY: as above.
                            unsafe { unpack(elements, wire, buffer.as_ptr(), count) };
                            assert_eq!(read(&target, &arrived), values(to, count));

                            let (target, mut arrived) = place(extent, strides, to, 0);
                            let mut cursor = source.cursor(&start, extent).unwrap();
                            let mut goal = target.cursor(&start, extent).unwrap();
                            let left = Elements { cursor: &mut cursor, memory: memory.as_mut_ptr(), dtype: from };
                            let right = Elements { cursor: &mut goal, memory: arrived.as_mut_ptr(), dtype: to };
                            // SAFETY: as above.
                            unsafe { relay(left, wire, right, count) };
                            assert_eq!(read(&target, &arrived), values(to, count));
                        }
                    }
                }
            }
        }
    }
}
