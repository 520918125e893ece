//! One rank's way through its operations of a plan.
//!
//! A *flight* is an operation that was begun: its messages and its memory. Operations begin in the plan's order, and
//! operation i only when operation i - in_flight is over; so what is staged stays within what the plan counted, and ranks
//! that have begun what comes first never wait for one that has not. While one bucket is packed or unpacked others
//! travel.
//!
//! | transport | what a rank does |
//! |-----------|------------------|
//! | p2p       | the source packs and sends; the target receives and unpacks |
//! | broadcast | the source sends every target one block; the targets pass their blocks on to each other. So nobody sends more than the bucket once, whatever the number of targets |
//! | reduce    | every member sends every other the block that is reduced there, and reduces its own, in the order of the members |
//! | local     | copied at once |
//!
//! Messages carry the bucket's number as their tag, and of one bucket at most one goes from one rank to another; so no
//! order among buckets is needed for a message to meet its receive. A bucket that is one run of memory as it travels is
//! sent from there, and received there, without staging. So is any other between two ranks, unless it is small: it is
//! packed where whoever carries it wants its bytes, and unpacked from where it finds them.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    super::{
        cursor::Cursor,
        layout::Side,
        plan::{Bucket, Chunk, Plan, Round, Transport},
    },
    convey::{self, Conveyor, Elements, Loaded, Part},
    staging::{Buffer, Staging},
    tensors::Tensors,
    wire::Wire,
};
use crate::{
    communicator::reduce,
    dtype::Op,
    error::{Error, Result},
};

/// Blocks of a broadcast are not made smaller than this to give every target one: a message costs about what so many
/// bytes do.
const SMALLEST_BLOCK: u64 = 4096;
/// Buckets between two ranks that are no larger are staged: in one piece they may travel without being asked for.
const SMALL_BUCKET: u64 = if cfg!(test) { 64 } else { 4096 };
/// Blocks of a broadcast begin at multiples of this.
const BLOCK_ALIGN: u64 = 64;

/// See the module.
pub(super) struct Walk<W: Wire> {
    plan: Arc<Plan>,
    rank: u32,
    wire: W,
    staging: Staging,
    /// The next operation to begin.
    next: usize,
    /// Those begun, oldest first; the oldest is not over.
    flights: VecDeque<Flight<W::Ticket>>,
    /// What was reduced here and is still read, by the bucket that reduced it.
    blocks: HashMap<usize, Block>,
    /// How many operations read each of them.
    readers: HashMap<usize, usize>,
    /// Bytes written of every target.
    written: Vec<u64>,
    buckets_done: u64,
    bytes_done: u64,
}

struct Flight<T> {
    bucket: usize,
    /// Messages that are not over.
    tickets: Vec<T>,
    /// Where the bucket is.
    memory: *mut u8,
    /// What was staged for it.
    buffers: Vec<Buffer>,
    /// What it passes through instead, between two ranks.
    conveyor: Option<Loaded>,
    /// With a broadcast that is received, this rank's block, until it is passed on.
    to_pass_on: Option<(T, u64, u64)>,
    is_over: bool,
}

// SAFETY: `memory` is in one of the buffers or in a bound tensor, which may be used from any thread.
unsafe impl<T: Send> Send for Flight<T> {}

struct Block {
    buffer: Buffer,
    /// Where in its bucket it began.
    begin: u64,
    /// Operations that will read it.
    readers: usize,
}

impl<W: Wire> Walk<W> {
    pub(super) fn new(plan: Arc<Plan>, rank: u32, wire: W) -> Walk<W> {
        let planned = plan.load(rank).map_or(0, |load| load.staging);
        let mut readers = HashMap::new();
        for bucket in plan.operations(rank).iter().filter_map(|operation| plan.bucket(*operation as usize)) {
            if let Some(round) = bucket.after.filter(|_| bucket.source == rank) {
                *readers.entry(round).or_default() += 1;
            }
        }
        Walk {
            readers,
            staging: Staging::new(plan.options().staging_bytes, planned),
            written: vec![0; plan.item_count()],
            plan,
            rank,
            wire,
            next: 0,
            flights: VecDeque::new(),
            blocks: HashMap::new(),
            buckets_done: 0,
            bytes_done: 0,
        }
    }

    /// Back to the first operation; memory for staging is kept. Only after the last one was over.
    pub(super) fn restart(&mut self) {
        debug_assert!(self.flights.is_empty() && self.blocks.is_empty());
        (self.next, self.buckets_done, self.bytes_done) = (0, 0, 0);
        self.written.fill(0);
    }

    /// Buckets and bytes of this rank that are over.
    pub(super) fn done(&self) -> (u64, u64) {
        (self.buckets_done, self.bytes_done)
    }

    /// Bytes written of a target.
    pub(super) fn written(&self, item: usize) -> u64 {
        self.written.get(item).copied().unwrap_or(0)
    }

    /// Bytes of memory for staging.
    pub(super) fn staged(&self) -> u64 {
        self.staging.held()
    }

    /// Goes on as far as possible without waiting. True when all is over. After an error nothing may be done but
    /// [`Walk::give_up`].
    ///
    /// # Safety
    /// The tensors are checked, and their memory may be used until the walk is over or was given up.
    pub(super) unsafe fn poll(&mut self, tensors: &Tensors) -> Result<bool> {
        let plan = self.plan.clone();
        let operations = plan.operations(self.rank);
        loop {
            let mut moved = false;
            for at in 0..self.flights.len() {
                // SAFETY: the caller's promises.
                moved |= unsafe { self.advance(at, tensors) }?;
            }
            while self.flights.front().is_some_and(|flight| flight.is_over) {
                self.flights.pop_front();
            }
            // One at a time: what arrives while a bucket is packed is looked at before the next.
            if self.flights.len() < plan.in_flight() as usize
                && let Some(operation) = operations.get(self.next)
                && self.is_ready(*operation as usize)
            {
                self.next += 1;
                moved = true;
                let mut flight = Flight::new(*operation as usize);
                // SAFETY: the caller's promises.
                let begun = unsafe { self.begin(&mut flight, tensors) };
                // Also if it failed: messages that were begun still use its memory.
                self.flights.push_back(flight);
                begun?;
            }
            if !moved {
                return Ok(self.flights.is_empty() && self.next == operations.len());
            }
        }
    }

    /// Sleeps until one of the messages is over, but no longer than `at_most`.
    pub(super) fn rest(&mut self, at_most: Duration) {
        let mut tickets: Vec<&W::Ticket> = Vec::new();
        for flight in &self.flights {
            tickets.extend(flight.tickets.iter().chain(flight.to_pass_on.as_ref().map(|(ticket, ..)| ticket)));
        }
        if !tickets.is_empty() {
            self.wire.rest(&tickets, at_most);
        }
    }

    /// Lets go of all memory.
    pub(super) fn give_up(&mut self) {
        for flight in &mut self.flights {
            for ticket in flight.tickets.drain(..).chain(flight.to_pass_on.take().map(|(ticket, ..)| ticket)) {
                self.wire.give_up(&ticket);
            }
        }
        self.flights.clear();
        self.blocks.clear();
    }

    /// Whether what an operation reads is there.
    fn is_ready(&self, bucket: usize) -> bool {
        match self.plan.bucket(bucket) {
            Some(Bucket { after: Some(round), source, .. }) if source == self.rank => self.blocks.contains_key(&round),
            _ => true,
        }
    }

    /// Begins an operation.
    ///
    /// # Safety
    /// As [`Walk::poll`]; the flight stays, whatever comes of this, until its messages are over or given up.
    unsafe fn begin(&mut self, flight: &mut Flight<W::Ticket>, tensors: &Tensors) -> Result<()> {
        let plan = self.plan.clone();
        let index = flight.bucket;
        let bucket = plan.bucket(index).ok_or_else(|| Error::Internal("an operation without a bucket".into()))?;
        let tag = index as u32;
        // SAFETY: the caller's promises; the flight keeps the memory until its messages are over.
        unsafe {
            match bucket.transport {
                Transport::Local => {
                    for chunk in chunks(&plan, &bucket) {
                        self.copy(&chunk, tensors)?;
                    }
                    self.land(flight, &bucket);
                }
                Transport::None => self.begin_round(flight, &bucket, tensors)?,
                Transport::P2p => self.begin_pair(flight, &bucket, tensors)?,
                _ if bucket.source == self.rank => {
                    self.fill(flight, &bucket, tensors)?;
                    let (memory, targets) = (flight.memory, bucket.targets);
                    for (target, (begin, end)) in targets.iter().zip(blocks(bucket.bytes, targets.len())) {
                        if begin < end {
                            let place = memory.add(begin as usize);
                            flight.tickets.push(self.wire.send(*target, tag, place, end - begin)?);
                        }
                    }
                }
                _ => {
                    self.make_room(flight, &bucket, tensors)?;
                    let (memory, targets) = (flight.memory, bucket.targets);
                    for (target, (begin, end)) in targets.iter().zip(blocks(bucket.bytes, targets.len())) {
                        if begin == end {
                            continue;
                        }
                        let own = *target == self.rank;
                        let from = if own { bucket.source } else { *target };
                        let place = memory.add(begin as usize);
                        let ticket = self.wire.receive(from, tag, place, end - begin)?;
                        if own && targets.len() > 1 {
                            flight.to_pass_on = Some((ticket, begin, end));
                        } else {
                            flight.tickets.push(ticket);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends a bucket to its only target, or receives it there.
    ///
    /// # Safety
    /// As [`Walk::poll`].
    unsafe fn begin_pair(
        &mut self,
        flight: &mut Flight<W::Ticket>,
        bucket: &Bucket<'_>,
        tensors: &Tensors,
    ) -> Result<()> {
        let (tag, is_source) = (flight.bucket as u32, bucket.source == self.rank);
        let peer = match bucket.targets {
            [target] if is_source => *target,
            _ => bucket.source,
        };
        let place = if is_source { self.sent_from(bucket, tensors)? } else { self.received_at(bucket, tensors)? };
        // SAFETY: the caller's promises; the flight keeps memory and conveyor until its message is over.
        let ticket = unsafe {
            match place {
                Some(place) => flight.memory = place,
                None if bucket.bytes > SMALL_BUCKET => {
                    let parts = self.parts(bucket, tensors, is_source)?;
                    let conveyor = flight.conveyor.insert(Loaded::new(Conveyor::new(parts, is_source)));
                    let pieces = conveyor.pieces();
                    let ticket = match is_source {
                        true => self.wire.send_pieces(peer, tag, pieces, bucket.bytes),
                        false => self.wire.receive_pieces(peer, tag, pieces, bucket.bytes),
                    };
                    flight.tickets.push(ticket?);
                    return Ok(());
                }
                None if is_source => self.fill_staged(flight, bucket, tensors)?,
                None => self.stage(flight, bucket)?,
            }
            match is_source {
                true => self.wire.send(peer, tag, flight.memory, bucket.bytes)?,
                false => self.wire.receive(peer, tag, flight.memory, bucket.bytes)?,
            }
        };
        flight.tickets.push(ticket);
        Ok(())
    }

    /// The chunks of a bucket, for a conveyor.
    fn parts(&self, bucket: &Bucket<'_>, tensors: &Tensors, is_source: bool) -> Result<Vec<Part>> {
        let part = |chunk: Chunk<'_>| {
            let (memory, cursor, dtype) = match is_source {
                true => {
                    let (memory, cursor) = self.origin(&chunk, tensors)?;
                    (memory, cursor, source_dtype(&self.plan, &chunk)?)
                }
                false => {
                    let (bound, cursor) = tensors.cursor(chunk.item, Side::Target, chunk.start, chunk.extent)?;
                    (bound.memory, cursor, target_dtype(&self.plan, &chunk)?)
                }
            };
            Ok(Part { cursor, memory, dtype, wire: chunk.dtype, offset: chunk.offset, bytes: chunk.bytes })
        };
        chunks(&self.plan, bucket).map(part).collect()
    }

    /// Sends the other members of a round their blocks, and receives theirs of this rank's.
    ///
    /// # Safety
    /// As [`Walk::poll`].
    unsafe fn begin_round(
        &mut self,
        flight: &mut Flight<W::Ticket>,
        bucket: &Bucket<'_>,
        tensors: &Tensors,
    ) -> Result<()> {
        let round = round_of(bucket)?;
        let tag = flight.bucket as u32;
        // SAFETY: the caller's promises; both buffers stay with the flight until its messages are over.
        unsafe {
            self.fill_staged(flight, bucket, tensors)?;
            let own = round.block(self.rank).map_or(0, |(begin, end)| end - begin);
            let (packed, mut place) = (flight.memory, std::ptr::null_mut::<u8>());
            if own > 0 {
                let others = self.staging.take(own * (round.members.len() as u64).saturating_sub(1))?;
                place = others.start();
                flight.buffers.push(others);
            }
            for (member, block) in round.members.iter().zip(round.blocks.windows(2)) {
                if *member == self.rank {
                    continue;
                }
                if own > 0 {
                    flight.tickets.push(self.wire.receive(*member, tag, place, own)?);
                    place = place.add(own as usize);
                }
                if block[0] < block[1] {
                    let contribution = packed.add(block[0] as usize);
                    flight.tickets.push(self.wire.send(*member, tag, contribution, block[1] - block[0])?);
                }
            }
        }
        Ok(())
    }

    /// Goes on with a flight, and says whether anything moved.
    ///
    /// # Safety
    /// As [`Walk::poll`].
    unsafe fn advance(&mut self, at: usize, tensors: &Tensors) -> Result<bool> {
        if self.flights[at].is_over {
            return Ok(false);
        }
        let plan = self.plan.clone();
        let bucket = plan.bucket(self.flights[at].bucket).ok_or_else(|| Error::Internal("no such bucket".into()))?;
        let mut moved = false;
        let flight = &mut self.flights[at];
        if let Some((mut ticket, begin, end)) = flight.to_pass_on.take() {
            if self.wire.is_over(&mut ticket)? {
                moved = true;
                for target in bucket.targets.iter().filter(|target| **target != self.rank) {
                    // SAFETY: the block has come, and stays until the messages are over.
                    let sent = unsafe {
                        let place = flight.memory.add(begin as usize);
                        self.wire.send(*target, flight.bucket as u32, place, end - begin)
                    };
                    flight.tickets.push(sent?);
                }
            } else {
                flight.to_pass_on = Some((ticket, begin, end));
            }
        }
        let mut ticket = 0;
        while ticket < flight.tickets.len() {
            if self.wire.is_over(&mut flight.tickets[ticket])? {
                flight.tickets.swap_remove(ticket);
                moved = true;
            } else {
                ticket += 1;
            }
        }
        if !flight.tickets.is_empty() || flight.to_pass_on.is_some() {
            return Ok(moved);
        }
        // All its messages are over, so nothing is lost if what follows fails.
        let mut flight = std::mem::replace(flight, Flight::new(flight.bucket));
        // SAFETY: the caller's promises; all messages are over.
        unsafe {
            if bucket.transport == Transport::None {
                self.reduce(&mut flight, &bucket)?;
            } else if bucket.source != self.rank {
                self.empty(&flight, &bucket, tensors)?;
            }
        }
        self.land(&mut flight, &bucket);
        self.flights[at] = flight;
        Ok(true)
    }

    /// The operation is over.
    fn land(&mut self, flight: &mut Flight<W::Ticket>, bucket: &Bucket<'_>) {
        flight.buffers.drain(..).for_each(|buffer| self.staging.give(buffer));
        flight.conveyor = None;
        flight.is_over = true;
        self.buckets_done += 1;
        self.bytes_done += bucket.bytes;
        if let Some(round) = bucket.after.filter(|_| bucket.source == self.rank)
            && let Some(block) = self.blocks.get_mut(&round)
        {
            block.readers -= 1;
            if block.readers == 0
                && let Some(block) = self.blocks.remove(&round)
            {
                self.staging.give(block.buffer);
            }
        }
    }

    /// Where the bucket is to be sent from: packed, or in place if it lies there as it travels.
    ///
    /// # Safety
    /// As [`Walk::poll`].
    unsafe fn fill(&mut self, flight: &mut Flight<W::Ticket>, bucket: &Bucket<'_>, tensors: &Tensors) -> Result<()> {
        match self.sent_from(bucket, tensors)? {
            Some(place) => flight.memory = place,
            // SAFETY: the caller's promises.
            None => unsafe { self.fill_staged(flight, bucket, tensors) }?,
        }
        Ok(())
    }

    /// Where the bucket lies as it travels, if it does.
    fn sent_from(&self, bucket: &Bucket<'_>, tensors: &Tensors) -> Result<Option<*mut u8>> {
        let Some(chunk) = only(&self.plan, bucket) else { return Ok(None) };
        if self.plan.dtype(chunk.item, Side::Source) != Some(chunk.dtype) {
            return Ok(None);
        }
        let (memory, cursor) = self.origin(&chunk, tensors)?;
        Ok(in_one_run(memory, &cursor))
    }

    /// Packs the bucket.
    ///
    /// # Safety
    /// As [`Walk::poll`].
    unsafe fn fill_staged(
        &mut self,
        flight: &mut Flight<W::Ticket>,
        bucket: &Bucket<'_>,
        tensors: &Tensors,
    ) -> Result<()> {
        let buffer = self.staging.take(bucket.bytes)?;
        flight.memory = buffer.start();
        flight.buffers.push(buffer);
        let plan = self.plan.clone();
        let mut end = 0;
        for chunk in chunks(&plan, bucket) {
            let (memory, mut cursor) = self.origin(&chunk, tensors)?;
            let dtype = source_dtype(&plan, &chunk)?;
            let elements = Elements { cursor: &mut cursor, memory, dtype };
            // SAFETY: chunks lie within the bucket, one behind the other; the origin is readable by the caller's promise,
            // or a block that was reduced.
            unsafe {
                // Nobody gets to see what was in the memory before.
                flight.memory.add(end as usize).write_bytes(0, (chunk.offset - end) as usize);
                let place = flight.memory.add(chunk.offset as usize);
                convey::pack(elements, chunk.dtype, place, count(&chunk));
            }
            end = chunk.offset + chunk.bytes;
        }
        // SAFETY: as above.
        unsafe { flight.memory.add(end as usize).write_bytes(0, (bucket.bytes - end) as usize) };
        Ok(())
    }

    /// Where the bucket is to be received: staged, or in place if it lies there as it travels.
    fn make_room(&mut self, flight: &mut Flight<W::Ticket>, bucket: &Bucket<'_>, tensors: &Tensors) -> Result<()> {
        match self.received_at(bucket, tensors)? {
            Some(place) => flight.memory = place,
            None => self.stage(flight, bucket)?,
        }
        Ok(())
    }

    /// Where the bucket will lie as it travels, if it does.
    fn received_at(&self, bucket: &Bucket<'_>, tensors: &Tensors) -> Result<Option<*mut u8>> {
        let Some(chunk) = only(&self.plan, bucket) else { return Ok(None) };
        if self.plan.dtype(chunk.item, Side::Target) != Some(chunk.dtype) {
            return Ok(None);
        }
        let (bound, cursor) = tensors.cursor(chunk.item, Side::Target, chunk.start, chunk.extent)?;
        Ok(in_one_run(bound.memory, &cursor))
    }

    /// Memory for the bucket.
    fn stage(&mut self, flight: &mut Flight<W::Ticket>, bucket: &Bucket<'_>) -> Result<()> {
        let buffer = self.staging.take(bucket.bytes)?;
        flight.memory = buffer.start();
        flight.buffers.push(buffer);
        Ok(())
    }

    /// Puts what was received where it belongs, if it is not there already.
    ///
    /// # Safety
    /// As [`Walk::poll`]; the bucket has come.
    unsafe fn empty(&mut self, flight: &Flight<W::Ticket>, bucket: &Bucket<'_>, tensors: &Tensors) -> Result<()> {
        let plan = self.plan.clone();
        for chunk in chunks(&plan, bucket) {
            if !flight.buffers.is_empty() {
                let (bound, mut cursor) = tensors.cursor(chunk.item, Side::Target, chunk.start, chunk.extent)?;
                let dtype = target_dtype(&plan, &chunk)?;
                let elements = Elements { cursor: &mut cursor, memory: bound.memory, dtype };
                // SAFETY: the chunk lies within the bucket, which has come.
                unsafe {
                    let place = flight.memory.add(chunk.offset as usize);
                    convey::unpack(elements, chunk.dtype, place, count(&chunk));
                }
            }
            self.note_written(&chunk)?;
        }
        Ok(())
    }

    /// Copies a chunk that stays on this rank.
    ///
    /// # Safety
    /// As [`Walk::poll`].
    unsafe fn copy(&mut self, chunk: &Chunk<'_>, tensors: &Tensors) -> Result<()> {
        if chunk.reduced.is_some() || !tensors.are_one(chunk.item) {
            let (memory, mut from) = self.origin(chunk, tensors)?;
            let (bound, mut to) = tensors.cursor(chunk.item, Side::Target, chunk.start, chunk.extent)?;
            let from = Elements { cursor: &mut from, memory, dtype: source_dtype(&self.plan, chunk)? };
            let to = Elements { cursor: &mut to, memory: bound.memory, dtype: target_dtype(&self.plan, chunk)? };
            // SAFETY: the caller's promises; the tensors are apart, which was checked.
            unsafe { convey::relay(from, chunk.dtype, to, count(chunk)) };
        }
        self.note_written(chunk)
    }

    /// Reduces this rank's block, and keeps it for those who read it.
    ///
    /// # Safety
    /// All contributions have come.
    unsafe fn reduce(&mut self, flight: &mut Flight<W::Ticket>, bucket: &Bucket<'_>) -> Result<()> {
        let round = round_of(bucket)?;
        let Some((begin, end)) = round.block(self.rank).filter(|(begin, end)| begin < end) else { return Ok(()) };
        let result = self.staging.take(end - begin)?;
        let mut other = flight.buffers.last().map_or(std::ptr::null_mut(), Buffer::start);
        let mut sources = Vec::with_capacity(round.members.len());
        for member in round.members {
            // SAFETY: the second buffer holds a block of every other member, one behind the other; the first the bucket.
            unsafe {
                if *member == self.rank {
                    sources.push(flight.memory.add(begin as usize).cast_const());
                } else {
                    sources.push(other.cast_const());
                    other = other.add((end - begin) as usize);
                }
            }
        }
        let divisor = round.reduction.divisor.max(1) as usize;
        let op = if divisor > 1 { Op::Avg } else { round.reduction.op };
        let elements = (end - begin) as usize / round.dtype.size();
        // SAFETY: all sources and the result are as long as the block, and apart.
        unsafe { reduce::reduce_by(round.dtype, op, divisor, &sources, result.start(), elements) };
        match self.readers.get(&flight.bucket) {
            Some(readers) => {
                self.blocks.insert(flight.bucket, Block { buffer: result, begin, readers: *readers });
            }
            None => self.staging.give(result),
        }
        Ok(())
    }

    /// Where a chunk is read from: its source tensor, or the block it was reduced into.
    fn origin(&self, chunk: &Chunk<'_>, tensors: &Tensors) -> Result<(*mut u8, Cursor)> {
        let Some((round, offset)) = chunk.reduced else {
            let (bound, cursor) = tensors.cursor(chunk.item, Side::Source, chunk.start, chunk.extent)?;
            return Ok((bound.memory, cursor));
        };
        let block = self.blocks.get(&round).ok_or_else(|| Error::Internal("a sum is read before it is made".into()))?;
        let bytes = count(chunk) as u64 * source_dtype(&self.plan, chunk)?.size() as u64;
        Ok((block.buffer.start().wrapping_add((offset - block.begin) as usize), Cursor::contiguous(bytes)))
    }

    fn note_written(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        self.written[chunk.item] += count(chunk) as u64 * target_dtype(&self.plan, chunk)?.size() as u64;
        Ok(())
    }
}

impl<W: Wire> Drop for Walk<W> {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl<T> Flight<T> {
    fn new(bucket: usize) -> Flight<T> {
        Flight {
            bucket,
            tickets: Vec::new(),
            memory: std::ptr::null_mut(),
            buffers: Vec::new(),
            conveyor: None,
            to_pass_on: None,
            is_over: false,
        }
    }
}

fn chunks<'a>(plan: &'a Plan, bucket: &Bucket<'_>) -> impl Iterator<Item = Chunk<'a>> {
    (bucket.chunks.0..bucket.chunks.1).filter_map(|chunk| plan.chunk(chunk))
}

/// The chunk of a bucket that has just one.
fn only<'a>(plan: &'a Plan, bucket: &Bucket<'_>) -> Option<Chunk<'a>> {
    (bucket.chunks.1 - bucket.chunks.0 == 1).then(|| plan.chunk(bucket.chunks.0)).flatten()
}

/// Where all bytes of a cursor are, if they lie one behind the other.
fn in_one_run(memory: *mut u8, cursor: &Cursor) -> Option<*mut u8> {
    let (offset, bytes) = cursor.run()?;
    (bytes as u64 == cursor.left()).then(|| memory.wrapping_offset(offset as isize))
}

fn count(chunk: &Chunk<'_>) -> usize {
    chunk.bytes as usize / chunk.dtype.size()
}

fn round_of<'a>(bucket: &Bucket<'a>) -> Result<Round<'a>> {
    bucket.round.ok_or_else(|| Error::Internal("a reduction without members".into()))
}

fn source_dtype(plan: &Plan, chunk: &Chunk<'_>) -> Result<crate::dtype::DType> {
    plan.dtype(chunk.item, Side::Source).ok_or_else(|| Error::Internal("a chunk of no tensor".into()))
}

fn target_dtype(plan: &Plan, chunk: &Chunk<'_>) -> Result<crate::dtype::DType> {
    plan.dtype(chunk.item, Side::Target).ok_or_else(|| Error::Internal("a chunk of no tensor".into()))
}

/// How a bucket is divided among its targets: who gets which block from the source, to pass on. Just one target gets
/// all; small buckets have fewer blocks than targets.
fn blocks(bytes: u64, targets: usize) -> impl Iterator<Item = (u64, u64)> {
    let even = bytes.div_ceil(targets.max(1) as u64).next_multiple_of(BLOCK_ALIGN);
    let size = if targets == 1 { bytes } else { even.max(SMALLEST_BLOCK) };
    (0..targets as u64).map(move |at| ((at * size).min(bytes), ((at + 1) * size).min(bytes)))
}
