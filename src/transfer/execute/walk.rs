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
//!
//! A bucket with chunks in the memory of a device is always staged. It is *fetched* before it sets out, and *stored* when it
//! has come; while the device copies, its flight does nothing else. Elements that are cast are copied as they are, and cast
//! on the host: that takes a second, raw buffer beside the bucket. What stays on a rank, and is not cast, the device copies
//! from tensor to tensor.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    super::{
        inspect,
        layout::Side,
        plan::{ALIGN, Bucket, Chunk, Plan, Round, Transport},
    },
    convey::{self, Conveyor, Loaded, Part, Place},
    ferry::{Copies, Ferry, Way},
    staging::{Buffer, Staging},
    tensors::Tensors,
    wire::{Memory, Wire},
};
use crate::{
    communicator::reduce,
    dtype::{DType, Op},
    error::{Error, Result},
};

/// Blocks of a broadcast are not made smaller than this to give every target one: a message costs about what so many
/// bytes do.
const SMALLEST_BLOCK: u64 = 4096;
/// Buckets between two ranks that are no larger are staged: in one piece they may travel without being asked for.
const SMALL_BUCKET: u64 = if cfg!(test) { 64 } else { 4096 };
/// How long a look at a device is put off.
pub(super) const GLANCE: Duration = Duration::from_micros(20);
/// Blocks of a broadcast begin at multiples of this.
const BLOCK_ALIGN: u64 = 64;

/// See the module.
pub(super) struct Walk<W: Wire> {
    plan: Arc<Plan>,
    rank: u32,
    wire: W,
    /// The way to tensors on a device.
    ferry: Option<Arc<Ferry>>,
    /// Operations that may be in flight.
    depth: usize,
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
    /// Elements on their way between it and a device, before they are cast or after.
    raw: Option<Buffer>,
    /// What the device copies.
    copies: Option<Copies>,
    /// Whether that is the last thing.
    is_stored: bool,
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
    /// `ferry`: where tensors may lie on a device.
    pub(super) fn new(plan: Arc<Plan>, rank: u32, wire: W, ferry: Option<Arc<Ferry>>) -> Walk<W> {
        let device = ferry.as_ref().map(|ferry| ferry.device());
        let (depth, planned) = match device {
            None => (plan.in_flight() as usize, plan.load(rank).map_or(0, |load| load.staging)),
            Some(_) => inspect::staging_with(&plan, rank, |bucket| for_device(&plan, bucket, rank)),
        };
        let mut readers = HashMap::new();
        for bucket in plan.operations(rank).iter().filter_map(|operation| plan.bucket(*operation as usize)) {
            if let Some(round) = bucket.after.filter(|_| bucket.source == rank) {
                *readers.entry(round).or_default() += 1;
            }
        }
        Walk {
            readers,
            staging: Staging::new(plan.options().staging_bytes.max(planned), planned, device),
            ferry,
            depth,
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
            if self.flights.len() < self.depth
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
        // No bell says when a device is done.
        let copies = self.flights.iter().any(|flight| flight.copies.is_some());
        let at_most = if copies { at_most.min(GLANCE) } else { at_most };
        if !tickets.is_empty() {
            self.wire.rest(&tickets, at_most);
        } else if copies {
            std::thread::sleep(at_most);
        }
    }

    /// Lets go of all memory.
    pub(super) fn give_up(&mut self) {
        for flight in &mut self.flights {
            for ticket in flight.tickets.drain(..).chain(flight.to_pass_on.take().map(|(ticket, ..)| ticket)) {
                self.wire.give_up(&ticket);
            }
        }
        if self.ferry.as_ref().is_some_and(|ferry| !ferry.settle()) {
            log::error!(target: "tutti::transfer", "a device does not end its copies: the memory they use is kept");
            for flight in &mut self.flights {
                flight.buffers.drain(..).chain(flight.raw.take()).for_each(std::mem::forget);
            }
            std::mem::take(&mut self.blocks).into_values().for_each(|block| std::mem::forget(block.buffer));
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
        let bucket = plan.bucket(flight.bucket);
        let bucket = bucket.ok_or_else(|| Error::Internal("an operation without a bucket".into()))?;
        // SAFETY: the caller's promises.
        unsafe {
            match is_read_on(&bucket, self.rank) && self.is_on_device(&bucket, tensors)? {
                true => self.fetch(flight, &bucket, tensors),
                false => self.depart(flight, &bucket, tensors),
            }
        }
    }

    /// Copies what stays, begins the messages of what does not. What was fetched is in the flight's memory.
    ///
    /// # Safety
    /// As [`Walk::begin`].
    unsafe fn depart(&mut self, flight: &mut Flight<W::Ticket>, bucket: &Bucket<'_>, tensors: &Tensors) -> Result<()> {
        let plan = self.plan.clone();
        let tag = flight.bucket as u32;
        // SAFETY: the caller's promises; the flight keeps the memory until its messages are over.
        unsafe {
            match bucket.transport {
                Transport::Local => {
                    for chunk in chunks(&plan, bucket) {
                        self.copy(&chunk, tensors)?;
                    }
                    self.land(flight, bucket);
                }
                Transport::None => self.begin_round(flight, bucket, tensors)?,
                Transport::P2p => self.begin_pair(flight, bucket, tensors)?,
                _ if bucket.source == self.rank => {
                    self.fill(flight, bucket, tensors)?;
                    let (memory, targets) = (flight.memory, bucket.targets);
                    for (target, (begin, end)) in targets.iter().zip(blocks(bucket.bytes, targets.len())) {
                        if begin < end {
                            let place = Memory::Place(memory.add(begin as usize));
                            flight.tickets.push(self.wire.send(*target, tag, place, end - begin)?);
                        }
                    }
                }
                _ => {
                    self.make_room(flight, bucket, tensors)?;
                    let (memory, targets) = (flight.memory, bucket.targets);
                    for (target, (begin, end)) in targets.iter().zip(blocks(bucket.bytes, targets.len())) {
                        if begin == end {
                            continue;
                        }
                        let own = *target == self.rank;
                        let from = if own { bucket.source } else { *target };
                        let place = Memory::Place(memory.add(begin as usize));
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
    /// As [`Walk::begin`].
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
        let is_large = bucket.bytes > SMALL_BUCKET;
        let is_staged = !flight.memory.is_null() || self.is_on_device(bucket, tensors)?;
        // SAFETY: the caller's promises; the flight keeps memory and conveyor until its message is over.
        let ticket = unsafe {
            let memory = if is_large && !is_staged && self.lies_at(bucket, tensors, is_source)?.is_none() {
                let parts = self.parts(bucket, tensors, is_source)?;
                Memory::Pieces(flight.conveyor.insert(Loaded::new(Conveyor::new(parts, is_source))).pieces())
            } else {
                match is_source {
                    true => self.fill(flight, bucket, tensors)?,
                    false => self.make_room(flight, bucket, tensors)?,
                }
                Memory::Place(flight.memory)
            };
            match is_source {
                true => self.wire.send(peer, tag, memory, bucket.bytes)?,
                false => self.wire.receive(peer, tag, memory, bucket.bytes)?,
            }
        };
        flight.tickets.push(ticket);
        Ok(())
    }

    /// The chunks of a bucket, for a conveyor.
    fn parts(&self, bucket: &Bucket<'_>, tensors: &Tensors, is_source: bool) -> Result<Vec<Part>> {
        let part = |chunk: Chunk<'_>| {
            let place = self.place(&chunk, tensors, is_source)?;
            Ok(Part { place, wire: chunk.dtype, offset: chunk.offset, bytes: chunk.bytes })
        };
        chunks(&self.plan, bucket).map(part).collect()
    }

    /// Sends the other members of a round their blocks, and receives theirs of this rank's.
    ///
    /// # Safety
    /// As [`Walk::begin`].
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
            if flight.memory.is_null() {
                self.fill_staged(flight, bucket, tensors)?;
            }
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
                    flight.tickets.push(self.wire.receive(*member, tag, Memory::Place(place), own)?);
                    place = place.add(own as usize);
                }
                if block[0] < block[1] {
                    let contribution = Memory::Place(packed.add(block[0] as usize));
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
        if let Some(copies) = &self.flights[at].copies {
            if !copies.are_over()? {
                return Ok(false);
            }
            let index = self.flights[at].bucket;
            let mut flight = std::mem::replace(&mut self.flights[at], Flight::new(index));
            flight.copies = None;
            // SAFETY: the caller's promises; the copies are over.
            let gone_on = unsafe { self.go_on(&mut flight, &bucket, tensors) };
            // Also if it failed: messages and copies that were begun still use its memory.
            self.flights[at] = flight;
            return gone_on.map(|()| true);
        }
        let flight = &mut self.flights[at];
        if let Some((mut ticket, begin, end)) = flight.to_pass_on.take() {
            if self.wire.is_over(&mut ticket)? {
                moved = true;
                for target in bucket.targets.iter().filter(|target| **target != self.rank) {
                    // SAFETY: the block has come, and stays until the messages are over.
                    let sent = unsafe {
                        let place = Memory::Place(flight.memory.add(begin as usize));
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
        let mut flight = std::mem::replace(flight, Flight::new(flight.bucket));
        // SAFETY: the caller's promises; all messages are over.
        let arrived = unsafe { self.arrive(&mut flight, &bucket, tensors) };
        // Also if it failed: copies that were begun still use its memory.
        self.flights[at] = flight;
        arrived.map(|()| true)
    }

    /// Goes on with a flight whose messages are over.
    ///
    /// # Safety
    /// As [`Walk::poll`].
    unsafe fn arrive(&mut self, flight: &mut Flight<W::Ticket>, bucket: &Bucket<'_>, tensors: &Tensors) -> Result<()> {
        // SAFETY: the caller's promises; all messages are over.
        unsafe {
            if bucket.transport == Transport::None {
                self.reduce(flight, bucket)?;
            } else if bucket.source != self.rank {
                if self.is_on_device(bucket, tensors)? {
                    return self.store(flight, bucket, tensors);
                }
                self.empty(flight, bucket, tensors)?;
            }
        }
        self.land(flight, bucket);
        Ok(())
    }

    /// Goes on with a flight whose copies are over.
    ///
    /// # Safety
    /// As [`Walk::poll`].
    unsafe fn go_on(&mut self, flight: &mut Flight<W::Ticket>, bucket: &Bucket<'_>, tensors: &Tensors) -> Result<()> {
        if flight.is_stored {
            for chunk in chunks(&self.plan.clone(), bucket) {
                self.note_written(&chunk)?;
            }
            self.land(flight, bucket);
            return Ok(());
        }
        // SAFETY: the caller's promises; what was to be cast has come.
        unsafe {
            self.cast_fetched(flight, bucket, tensors)?;
            match bucket.transport {
                Transport::Local => self.store(flight, bucket, tensors),
                _ => self.depart(flight, bucket, tensors),
            }
        }
    }

    /// Lets the device copy a bucket out, or, of one that stays here, what is not cast to where it belongs.
    ///
    /// # Safety
    /// As [`Walk::begin`].
    unsafe fn fetch(&mut self, flight: &mut Flight<W::Ticket>, bucket: &Bucket<'_>, tensors: &Tensors) -> Result<()> {
        let (plan, ferry) = (self.plan.clone(), self.ferry()?);
        if bucket.transport != Transport::Local || raw_bytes(&plan, bucket, true) + raw_bytes(&plan, bucket, false) > 0
        {
            self.stage(flight, bucket)?;
        }
        let mut next = self.take_raw(flight, bucket, true)?;
        let mut end = 0;
        for chunk in chunks(&plan, bucket) {
            let raw = next;
            next = next.wrapping_add(raw_of(&plan, &chunk, true) as usize);
            let mut from = self.place(&chunk, tensors, true)?;
            let (count, bytes) = (count(&chunk), from.cursor.left());
            // SAFETY: chunks lie within the bucket, one behind the other, and so does what is raw; the rest the caller
            // promises.
            unsafe {
                if bucket.transport == Transport::Local {
                    let mut to = self.place(&chunk, tensors, false)?;
                    let is_cast = is_cast(&plan, &chunk, true) || is_cast(&plan, &chunk, false);
                    if !from.is_on_device && !to.is_on_device {
                        self.relay(&chunk, from, to, tensors);
                        continue;
                    } else if !is_cast {
                        if chunk.reduced.is_some() || !tensors.are_one(chunk.item) {
                            ferry.copy(Way::Out, &mut from, &mut to, bytes)?;
                        }
                        continue;
                    }
                }
                // Nobody gets to see what was in the memory before.
                flight.memory.add(end as usize).write_bytes(0, (chunk.offset - end) as usize);
                let place = flight.memory.add(chunk.offset as usize);
                match (from.is_on_device, is_cast(&plan, &chunk, true)) {
                    (false, _) => convey::pack(from.elements(), chunk.dtype, place, count),
                    (true, false) => {
                        ferry.copy(Way::Out, &mut from, &mut Place::on_host(place, chunk.dtype, count), bytes)?;
                    }
                    (true, true) => {
                        let mut to = Place::on_host(raw, from.dtype, count);
                        ferry.copy(Way::Out, &mut from, &mut to, bytes)?;
                    }
                }
            }
            end = chunk.offset + chunk.bytes;
        }
        if !flight.memory.is_null() {
            // SAFETY: as above.
            unsafe { flight.memory.add(end as usize).write_bytes(0, (bucket.bytes - end) as usize) };
        }
        flight.copies = Some(ferry.copies(Way::Out)?);
        Ok(())
    }

    /// Casts what was fetched raw.
    ///
    /// # Safety
    /// It has come.
    unsafe fn cast_fetched(
        &mut self,
        flight: &mut Flight<W::Ticket>,
        bucket: &Bucket<'_>,
        tensors: &Tensors,
    ) -> Result<()> {
        let plan = self.plan.clone();
        let Some(buffer) = flight.raw.take() else { return Ok(()) };
        let mut raw = buffer.start();
        for chunk in chunks(&plan, bucket) {
            let from = self.place(&chunk, tensors, true)?;
            if from.is_on_device && is_cast(&plan, &chunk, true) {
                // SAFETY: both buffers hold the elements, in the places that `fetch` gave them.
                unsafe {
                    let place = flight.memory.add(chunk.offset as usize);
                    reduce::convert(from.dtype, chunk.dtype, raw, place, count(&chunk));
                }
            }
            raw = raw.wrapping_add(raw_of(&plan, &chunk, true) as usize);
        }
        self.staging.give(buffer);
        Ok(())
    }

    /// Lets the device copy a bucket that has come to where it belongs.
    ///
    /// # Safety
    /// As [`Walk::poll`]; the bucket is in the flight's memory.
    unsafe fn store(&mut self, flight: &mut Flight<W::Ticket>, bucket: &Bucket<'_>, tensors: &Tensors) -> Result<()> {
        let (plan, ferry) = (self.plan.clone(), self.ferry()?);
        flight.is_stored = true;
        let mut next = self.take_raw(flight, bucket, false)?;
        for chunk in chunks(&plan, bucket) {
            let raw = next;
            next = next.wrapping_add(raw_of(&plan, &chunk, false) as usize);
            let (casts, mut to) = (is_cast(&plan, &chunk, false), self.place(&chunk, tensors, false)?);
            let (count, bytes) = (count(&chunk), to.cursor.left());
            if bucket.transport == Transport::Local {
                let from = self.place(&chunk, tensors, true)?;
                let is_cast = casts || is_cast(&plan, &chunk, true);
                if !is_cast || !from.is_on_device && !to.is_on_device {
                    continue; // `fetch` did that
                }
            }
            // SAFETY: the chunk lies within the bucket, and what is raw in its buffer; the rest the caller promises.
            unsafe {
                let place = flight.memory.add(chunk.offset as usize);
                match (to.is_on_device, casts) {
                    (false, _) => convey::unpack(to.elements(), chunk.dtype, place, count),
                    (true, false) => {
                        ferry.copy(Way::Home, &mut Place::on_host(place, chunk.dtype, count), &mut to, bytes)?;
                    }
                    (true, true) => {
                        reduce::convert(chunk.dtype, to.dtype, place, raw, count);
                        let mut from = Place::on_host(raw, to.dtype, count);
                        ferry.copy(Way::Home, &mut from, &mut to, bytes)?;
                    }
                }
            }
        }
        flight.copies = Some(ferry.copies(Way::Home)?);
        Ok(())
    }

    /// Memory for what one side of a bucket is before it is cast, or after.
    fn take_raw(&mut self, flight: &mut Flight<W::Ticket>, bucket: &Bucket<'_>, is_source: bool) -> Result<*mut u8> {
        let bytes = raw_bytes(&self.plan, bucket, is_source);
        if bytes == 0 {
            return Ok(std::ptr::null_mut());
        }
        Ok(flight.raw.insert(self.staging.take(bytes)?).start())
    }

    fn ferry(&self) -> Result<Arc<Ferry>> {
        self.ferry.clone().ok_or_else(|| Error::Internal("a tensor on a device, and no way to it".into()))
    }

    /// Whether anything that this rank reads or writes for a bucket is on a device.
    fn is_on_device(&self, bucket: &Bucket<'_>, tensors: &Tensors) -> Result<bool> {
        if self.ferry.is_none() {
            return Ok(false);
        }
        for chunk in chunks(&self.plan, bucket) {
            let reads = is_read_on(bucket, self.rank);
            let writes = !reads || bucket.transport == Transport::Local;
            if reads && chunk.reduced.is_none() && tensors.is_on_device(chunk.item, Side::Source)
                || writes && tensors.is_on_device(chunk.item, Side::Target)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The operation is over.
    fn land(&mut self, flight: &mut Flight<W::Ticket>, bucket: &Bucket<'_>) {
        flight.buffers.drain(..).chain(flight.raw.take()).for_each(|buffer| self.staging.give(buffer));
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

    /// Where the bucket is to be sent from: fetched, packed, or in place if it lies there as it travels.
    ///
    /// # Safety
    /// As [`Walk::poll`].
    unsafe fn fill(&mut self, flight: &mut Flight<W::Ticket>, bucket: &Bucket<'_>, tensors: &Tensors) -> Result<()> {
        if flight.memory.is_null() {
            match self.lies_at(bucket, tensors, true)? {
                Some(place) => flight.memory = place,
                // SAFETY: the caller's promises.
                None => unsafe { self.fill_staged(flight, bucket, tensors) }?,
            }
        }
        Ok(())
    }

    /// Where the bucket lies, or will lie, as it travels, if it does.
    fn lies_at(&self, bucket: &Bucket<'_>, tensors: &Tensors, is_source: bool) -> Result<Option<*mut u8>> {
        let Some(chunk) = only(&self.plan, bucket) else { return Ok(None) };
        match is_cast(&self.plan, &chunk, is_source) {
            true => Ok(None),
            false => Ok(self.place(&chunk, tensors, is_source)?.in_one_run()),
        }
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
        self.stage(flight, bucket)?;
        let plan = self.plan.clone();
        let mut end = 0;
        for chunk in chunks(&plan, bucket) {
            let mut from = self.place(&chunk, tensors, true)?;
            // SAFETY: chunks lie within the bucket, one behind the other; the origin is readable by the caller's promise,
            // or a block that was reduced.
            unsafe {
                // Nobody gets to see what was in the memory before.
                flight.memory.add(end as usize).write_bytes(0, (chunk.offset - end) as usize);
                let place = flight.memory.add(chunk.offset as usize);
                convey::pack(from.elements(), chunk.dtype, place, count(&chunk));
            }
            end = chunk.offset + chunk.bytes;
        }
        // SAFETY: as above.
        unsafe { flight.memory.add(end as usize).write_bytes(0, (bucket.bytes - end) as usize) };
        Ok(())
    }

    /// Where the bucket is to be received: staged, or in place if it lies there as it travels.
    fn make_room(&mut self, flight: &mut Flight<W::Ticket>, bucket: &Bucket<'_>, tensors: &Tensors) -> Result<()> {
        match self.lies_at(bucket, tensors, false)? {
            Some(place) => flight.memory = place,
            None => self.stage(flight, bucket)?,
        }
        Ok(())
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
                let mut to = self.place(&chunk, tensors, false)?;
                // SAFETY: the chunk lies within the bucket, which has come.
                unsafe {
                    let place = flight.memory.add(chunk.offset as usize);
                    convey::unpack(to.elements(), chunk.dtype, place, count(&chunk));
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
        let (from, to) = (self.place(chunk, tensors, true)?, self.place(chunk, tensors, false)?);
        // SAFETY: the caller's promises.
        unsafe { self.relay(chunk, from, to, tensors) };
        self.note_written(chunk)
    }

    /// # Safety
    /// As [`Walk::copy`], between these places, both of which are on the host.
    unsafe fn relay(&self, chunk: &Chunk<'_>, mut from: Place, mut to: Place, tensors: &Tensors) {
        if chunk.reduced.is_some() || !tensors.are_one(chunk.item) {
            // SAFETY: the caller's promises; the tensors are apart, which was checked.
            unsafe { convey::relay(from.elements(), chunk.dtype, to.elements(), count(chunk)) };
        }
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

    /// Where a chunk is read: its source tensor, or the block it was reduced into. Or where it is written.
    fn place(&self, chunk: &Chunk<'_>, tensors: &Tensors, is_source: bool) -> Result<Place> {
        let dtype = dtype(&self.plan, chunk, is_source)?;
        let Some((round, offset)) = chunk.reduced.filter(|_| is_source) else {
            return tensors.place(chunk, if is_source { Side::Source } else { Side::Target }, dtype);
        };
        let block = self.blocks.get(&round).ok_or_else(|| Error::Internal("a sum is read before it is made".into()))?;
        let place = block.buffer.start().wrapping_add((offset - block.begin) as usize);
        Ok(Place::on_host(place, dtype, count(chunk)))
    }

    fn note_written(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        self.written[chunk.item] += count(chunk) as u64 * dtype(&self.plan, chunk, false)?.size() as u64;
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
            raw: None,
            copies: None,
            is_stored: false,
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

fn count(chunk: &Chunk<'_>) -> usize {
    chunk.bytes as usize / chunk.dtype.size()
}

fn round_of<'a>(bucket: &Bucket<'a>) -> Result<Round<'a>> {
    bucket.round.ok_or_else(|| Error::Internal("a reduction without members".into()))
}

fn dtype(plan: &Plan, chunk: &Chunk<'_>, is_source: bool) -> Result<DType> {
    let side = if is_source { Side::Source } else { Side::Target };
    plan.dtype(chunk.item, side).ok_or_else(|| Error::Internal("a chunk of no tensor".into()))
}

/// Whether a chunk is of another type there than on its way.
fn is_cast(plan: &Plan, chunk: &Chunk<'_>, is_source: bool) -> bool {
    dtype(plan, chunk, is_source).is_ok_and(|dtype| dtype != chunk.dtype)
}

/// Whether a rank reads a bucket's chunks for it, rather than only writes them.
fn is_read_on(bucket: &Bucket<'_>, rank: u32) -> bool {
    matches!(bucket.transport, Transport::Local | Transport::None) || bucket.source == rank
}

/// Room for a chunk before it is cast, or after.
fn raw_of(plan: &Plan, chunk: &Chunk<'_>, is_source: bool) -> u64 {
    match dtype(plan, chunk, is_source) {
        Ok(dtype) if dtype != chunk.dtype => ((count(chunk) * dtype.size()) as u64).next_multiple_of(ALIGN),
        _ => 0,
    }
}

fn raw_bytes(plan: &Plan, bucket: &Bucket<'_>, is_source: bool) -> u64 {
    chunks(plan, bucket).map(|chunk| raw_of(plan, &chunk, is_source)).sum()
}

/// What a bucket takes more, if all its tensors are on a device.
fn for_device(plan: &Plan, bucket: &Bucket<'_>, rank: u32) -> u64 {
    let (before, after) = (raw_bytes(plan, bucket, true), raw_bytes(plan, bucket, false));
    match bucket.transport {
        Transport::Local if before + after == 0 => 0,
        Transport::Local => bucket.bytes.next_multiple_of(ALIGN) + before.max(after),
        _ if is_read_on(bucket, rank) => before,
        _ => after,
    }
}

/// How a bucket is divided among its targets: who gets which block from the source, to pass on. Just one target gets
/// all; small buckets have fewer blocks than targets.
fn blocks(bytes: u64, targets: usize) -> impl Iterator<Item = (u64, u64)> {
    let even = bytes.div_ceil(targets.max(1) as u64).next_multiple_of(BLOCK_ALIGN);
    let size = if targets == 1 { bytes } else { even.max(SMALLEST_BLOCK) };
    (0..targets as u64).map(move |at| ((at * size).min(bytes), ((at + 1) * size).min(bytes)))
}
