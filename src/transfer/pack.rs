//! Chunks on their way into buckets, one stream for all that may share buckets.
//!
//! A bucket is filled in the order in which chunks come and is never more than full; a box that is larger than a bucket
//! is split before it gets here in pieces. This file counts chunks, so that a plan of too many is refused before it has
//! eaten the memory.

use std::collections::HashMap;

use crate::error::{Error, Result};

use super::layout::Resolved;
use super::plan::{ALIGN, MAX_CHUNKS, Options, Transport};
use super::region::{self, Boxes, Region};

/// No round.
pub(super) const NONE: u32 = u32::MAX;

/// What may share a bucket: chunks with the same transport, sender and receivers, of the same round of a reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) transport: Transport,
    pub(super) source: u32,
    /// A set of nodes: the receivers; the contributors of a reduction; empty for Local.
    pub(super) targets: u32,
    /// The round (a stream with transport None) whose result is read, or NONE.
    pub(super) round: u32,
}

/// A chunk before its bucket has its final number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draft {
    pub(super) item: u32,
    /// Its box, in [`Packer::boxes`].
    pub(super) region: u32,
    pub(super) offset: u64,
    /// Where in its round's bucket its elements are.
    pub(super) reduced: u64,
}

/// Chunks with one key, and where its buckets begin.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) key: Key,
    pub(super) chunks: Vec<Draft>,
    /// First chunk and bytes of each bucket.
    pub(super) buckets: Vec<(u32, u64)>,
}

/// All streams of a plan in the making.
pub(super) struct Packer<'a> {
    items: &'a [Resolved],
    options: &'a Options,
    pub(super) boxes: Boxes,
    pub(super) streams: Vec<Stream>,
    stream_of: HashMap<Key, u32>,
    chunks: u64,
}

impl<'a> Packer<'a> {
    pub(super) fn new(items: &'a [Resolved], options: &'a Options, boxes: Boxes) -> Self {
        Packer { items, options, boxes, streams: Vec::new(), stream_of: HashMap::new(), chunks: 0 }
    }

    /// A box that was kept.
    pub(super) fn region(&self, item: u32, kept: u32) -> Region {
        self.boxes.get(kept, self.items[item as usize].shape.len())
    }

    /// Adds a box to a stream, split so that every chunk fits a bucket. `kept` says where the whole box is kept, if it
    /// is.
    pub(super) fn push(&mut self, key: Key, item: u32, region: &Region, kept: Option<u32>) -> Result<()> {
        let size = self.items[item as usize].wire.size() as u64;
        let limit = self.options.bucket_bytes / size;
        let pieces = region::count_pieces(&region.extent, limit).unwrap_or(u64::MAX);
        self.count(pieces, item)?;
        let stream = self.stream(key);
        if let (1, Some(kept)) = (pieces, kept) {
            self.append(stream, item, kept, region.elements() * size, 0);
            return Ok(());
        }
        region::split(region, limit, &mut |piece| {
            let kept = self.boxes.keep(piece);
            self.append(stream, item, kept, piece.elements() * size, 0);
            Ok(())
        })
    }

    /// Puts a chunk behind the others of its stream, in the last bucket if it fits, else in a new one.
    pub(super) fn append(&mut self, stream: u32, item: u32, kept: u32, bytes: u64, reduced: u64) {
        let stream = &mut self.streams[stream as usize];
        let offset = match stream.buckets.last_mut() {
            Some((_, fill)) if fill.next_multiple_of(ALIGN) + bytes <= self.options.bucket_bytes => {
                let offset = fill.next_multiple_of(ALIGN);
                *fill = offset + bytes;
                offset
            }
            _ => {
                stream.buckets.push((stream.chunks.len() as u32, bytes));
                0
            }
        };
        stream.chunks.push(Draft { item, region: kept, offset, reduced });
    }

    /// Takes note of chunks to come, of a tensor.
    pub(super) fn count(&mut self, more: u64, item: u32) -> Result<()> {
        self.chunks = self.chunks.saturating_add(more);
        limit(self.chunks, item as usize, self.options)
    }

    /// The stream with this key.
    pub(super) fn stream(&mut self, key: Key) -> u32 {
        *self.stream_of.entry(key).or_insert_with(|| {
            self.streams.push(Stream { key, chunks: Vec::new(), buckets: Vec::new() });
            self.streams.len() as u32 - 1
        })
    }
}

/// Refuses more chunks than a plan may have. Every cell becomes at least one, so this bounds them too.
pub(super) fn limit(chunks: u64, item: usize, options: &Options) -> Result<()> {
    if chunks <= MAX_CHUNKS {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "the plan needs more than {MAX_CHUNKS} chunks (reached at tensor {item}): plan fewer tensors at once, or use \
         larger buckets than {} bytes",
        options.bucket_bytes
    )))
}
