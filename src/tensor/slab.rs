//! Memory of the library for tensors: one stretch, aligned for any element type and for whole cache lines.

use std::{
    alloc::{Layout, alloc, alloc_zeroed, dealloc},
    ptr::NonNull,
};

use super::load::ALIGNMENT;
use crate::error::{Error, Result};

/// A stretch of memory.
#[derive(Debug)]
pub(crate) struct Slab {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is memory alone, owned like a Vec's.
unsafe impl Send for Slab {}
// SAFETY: as above; it is written through raw pointers by whoever was given a part of it.
unsafe impl Sync for Slab {}

impl Slab {
    /// So many bytes, zeroed, so that padding which travels tells nothing; none of them cost nothing.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        // SAFETY: the layout has a size.
        Self::of(bytes, |layout| unsafe { alloc_zeroed(layout) })
    }

    /// So many bytes that hold anything, for what is written before it is read: zeroing takes as long as receiving.
    pub(crate) fn unwritten(bytes: usize) -> Result<Self> {
        // SAFETY: the layout has a size.
        Self::of(bytes, |layout| unsafe { alloc(layout) })
    }

    /// `allocate` gets a layout that has a size.
    fn of(bytes: usize, allocate: impl FnOnce(Layout) -> *mut u8) -> Result<Self> {
        let refused = || Error::OutOfMemory(format!("{bytes} bytes for tensors"));
        let layout = Layout::from_size_align(bytes, ALIGNMENT).map_err(|_| refused())?;
        if bytes == 0 {
            return Ok(Slab {
                start: NonNull::without_provenance(std::num::NonZero::new(ALIGNMENT).ok_or_else(refused)?),
                bytes,
            });
        }
        let start = NonNull::new(allocate(layout)).ok_or_else(refused)?;
        Ok(Slab { start, bytes })
    }

    /// The place `offset` bytes from the beginning, of which `bytes` must lie inside.
    ///
    /// # Panics
    /// Where they do not: places are this crate's own arithmetic.
    pub(crate) fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= self.bytes), "outside the slab");
        // SAFETY: inside, as just checked.
        unsafe { self.start.as_ptr().add(offset) }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        if let Ok(layout) = Layout::from_size_align(self.bytes, ALIGNMENT)
            && self.bytes > 0
        {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(self.start.as_ptr(), layout) };
        }
    }
}
