//! A rank's lane: what all communicators of one CUDA group share on one rank.
//!
//! * **One in flight.** Calls of a group follow each other, whatever streams they are on. Each eager call records an event
//!   on its stream; the next one, on another stream, waits for it there. (The event, not the stream: that one may be
//!   gone. A new stream with its handle would be taken for it, which is why callers must not replace a stream whose
//!   calls are pending.) Calls that are captured are ordered by their graph, and replays by the caller; two at once
//!   are caught by the kernels.
//! * **Buffers** are memory of the group's device. What was seen to be so is remembered, a few allocations of it, since
//!   asking the driver costs more than the rest of a call.
//! * **The way between host and kernels**, one [`Line`] for each communicator: orders in, the first failure out.
//!
//! # Failures
//!
//! The lines of all ranks lie in one shared mapping, so whoever learns of a failure stops the kernels of all ranks with a
//! store to each: the orders are a set of bits that only grows, and relaxed, because nothing is handed over with
//! them. A kernel that fails fills its record and then stores `written` with release at system scope; the host loads it
//! with acquire before it reads the record. Records are read when somebody looks: at the next call, and at check.
//!
//! # Graphs
//!
//! A call that is captured may be replayed later. If capture sessions were open when it was captured, that is as long as
//! one of them lives, which keeps the group; else it may be at any time, and the process keeps all device memory.
//! A replay in between, after this rank has left the group, finds words in memory that make it return at once.

#![expect(clippy::not_unsafe_ptr_arg_deref, reason = "a stream is a handle of the driver; nobody here looks behind it")]

use std::{
    any::Any,
    cell::Cell,
    ffi::c_void,
    ptr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    device::{Device, Entered, beside_captures},
    directory::Directory,
    driver::{self, CudaError, Event, Stream},
    kernels::Way,
    memory::Presence,
    params::{ABORTED, MAX_WORLD, STOP, report},
    pinned::page,
    registered::Registry,
};
use crate::{
    bootstrap::{
        Members,
        mapping::Mapping,
        members::{Buffers, Outpost},
    },
    error::{Error, Failure, Result, Status},
};

/// How long a rank that leaves waits for what it has enqueued.
const LEAVING: Duration = Duration::from_secs(1);
/// The handles of streams that exist in every context: the legacy default one by either name, and the thread's.
const SPECIAL_STREAMS: usize = 2;
/// `CU_STREAM_LEGACY`, the other name of the stream 0.
const LEGACY: usize = 1;
/// `CU_STREAM_PER_THREAD`, another stream in every thread.
const PER_THREAD: usize = 2;
/// Instead of a deadline in milliseconds: there was no call yet.
const NO_CALL: u64 = u64::MAX;
/// Instead of a deadline in milliseconds: calls had different ones.
const DIFFERENT: u64 = u64::MAX - 1;
/// How long whoever waits for a device looks away: it rings no bell.
pub const GLANCE: Duration = Duration::from_micros(20);
/// Allocations that are remembered.
const REMEMBERED: usize = 16;

/// See the module.
pub struct Lane {
    /// The group's device on this rank.
    pub device: &'static Device,
    order: Mutex<Order>,
    lines: [OnceLock<Line>; 2],
    known: Mutex<Known>,
    /// The capture sessions that want to hear of captured calls.
    notes: Mutex<Vec<Weak<Notes>>>,
    /// Whether any call was captured.
    captured: AtomicBool,
    /// Whether one was captured outside of all sessions.
    captured_for_good: AtomicBool,
    /// The deadline of all calls, for the text of a failure, which does not know whose it was.
    patience_ms: AtomicU64,
    /// Frees what was parked when the last lane of the process goes.
    presence: Mutex<Option<Presence>>,
    /// Who shares streams with this rank: the group's number, and this rank in it.
    place: (u64, u32),
    /// What this rank has registered, in this group and others.
    pub(super) registry: Arc<Registry>,
    /// Where the group has registered memory, if its kernels read such.
    directory: OnceLock<Weak<Directory>>,
    /// Device words of this rank by which its kernels know that they shall return at once; see [`Lane::keep_off`].
    own: Mutex<Vec<(driver::Address, driver::Address)>>,
}

/// The last calls of every rank of this process, to find two that wait for each other on one stream.
static LAST: Mutex<Vec<Last>> = Mutex::new(Vec::new());

struct Last {
    place: (u64, u32),
    device: i32,
    /// The eager one and the captured one: where, and how many the group has had of that kind, the same number on all
    /// ranks.
    calls: [(Option<StreamId>, u64); 2],
}

/// Which stream a handle means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StreamId {
    handle: usize,
    /// The calling thread, where the handle is another stream in every thread; else 0.
    thread: u64,
}

impl StreamId {
    fn of(stream: Stream) -> Self {
        match stream as usize {
            LEGACY => StreamId { handle: 0, thread: 0 },
            PER_THREAD => StreamId { handle: PER_THREAD, thread: this_thread() },
            handle => StreamId { handle, thread: 0 },
        }
    }
}

/// This thread's number, which no other thread ever has.
fn this_thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static NUMBER: Cell<u64> = const { Cell::new(0) });
    if NUMBER.get() == 0 {
        NUMBER.set(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    NUMBER.get()
}

struct Order {
    /// Recorded behind the last eager call.
    event: Event,
    /// Its stream; `None` before the first.
    last: Option<StreamId>,
    /// The call that was admitted.
    admitted: Option<Admitted>,
}

/// A call that may be launched now.
pub struct Admitted {
    /// Whether it becomes part of a graph.
    pub captured: bool,
    /// Held where the device's context was not the caller's.
    entered: Option<Entered<'static>>,
}

// SAFETY: events and streams of the driver may be used from any thread. A guard of the context is made and dropped on
// one thread: `admit` and the communicator's start are one step of the group.
unsafe impl Send for Order {}

impl Lane {
    /// The lane of these members.
    pub fn of(members: &Members, device: &'static Device) -> Arc<Lane> {
        let outpost = members.outpost_or(|| Arc::new(Lane::new(members, device))).clone();
        let any: Arc<dyn Any + Send + Sync> = outpost;
        // The only outposts there are.
        any.downcast::<Lane>().unwrap_or_else(|_| Arc::new(Lane::new(members, device)))
    }

    /// The lane of these members, if it was made.
    pub fn existing(members: &Members) -> Option<Arc<Lane>> {
        let any: Arc<dyn Any + Send + Sync> = members.outpost()?.clone();
        any.downcast::<Lane>().ok()
    }

    fn new(members: &Members, device: &'static Device) -> Lane {
        let place = (members.uid(), members.rank());
        let last = Last { place, device: device.ordinal, calls: [(None, 0); 2] };
        LAST.lock().unwrap_or_else(PoisonError::into_inner).push(last);
        Lane {
            device,
            order: Mutex::new(Order { event: ptr::null_mut(), last: None, admitted: None }),
            lines: [OnceLock::new(), OnceLock::new()],
            known: Mutex::new(Known::default()),
            notes: Mutex::new(Vec::new()),
            captured: AtomicBool::new(false),
            captured_for_good: AtomicBool::new(false),
            patience_ms: AtomicU64::new(NO_CALL),
            presence: Mutex::new(Some(Presence::new())),
            place,
            registry: Registry::of(members),
            directory: OnceLock::new(),
            own: Mutex::new(Vec::new()),
        }
    }

    /// Takes the call that was admitted, to be launched by this thread.
    pub fn take(&self) -> Result<Admitted> {
        self.order().admitted.take().ok_or_else(|| Error::Internal("a call was started that was not admitted".into()))
    }

    /// The device's context, for the last step of a call that was admitted before.
    pub fn resume(&self) -> Result<Admitted> {
        Ok(Admitted { captured: false, entered: Some(self.device.enter()?) })
    }

    /// Runs a function of the driver in the right context: the caller's where that will do, else the device's.
    pub fn call(
        &self,
        admitted: &mut Admitted,
        function: impl Fn(&'static driver::Driver) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        attempt(self.device, &mut admitted.entered, || function(self.device.driver))
    }

    /// Ends an admitted call on `stream`, after its last launch.
    pub fn finish(&self, mut admitted: Admitted, stream: Stream, digest: u32) -> Result<()> {
        if admitted.captured {
            self.captured.store(true, Ordering::Relaxed);
            let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
            let mut noted = false;
            notes.retain(|note| note.upgrade().inspect(|note| noted |= note.add(digest)).is_some());
            if !noted {
                self.captured_for_good.store(true, Ordering::Relaxed);
            }
            return Ok(());
        }
        let mut order = self.order();
        if order.event.is_null() {
            order.event = new_event(self.device)?;
        }
        let event = order.event;
        // SAFETY: the event is ours and the stream the caller's, whose launch was accepted.
        self.call(&mut admitted, |driver| unsafe { driver.event_record(event, stream) })
            .map_err(|error| error.during("an event behind a call"))?;
        order.last = Some(StreamId::of(stream));
        Ok(())
    }

    /// An event behind everything that is on `stream` now.
    pub fn mark(&self, stream: Stream) -> Result<Mark> {
        Mark::behind(self.device, stream)
    }

    /// Lets a capture session hear of captured calls, from now until it closes the notes. The session has them for as long
    /// as what was captured may be replayed, and the group a little longer.
    pub fn note_into(&self, notes: &Arc<Notes>) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(notes));
    }

    /// The way to the kernels of one communicator.
    pub fn set_line(&self, way: Way, line: Line) {
        let _ = self.lines[way as usize].set(line);
    }

    /// Where the group's registered memory is looked up.
    pub(super) fn set_directory(&self, directory: &Arc<Directory>) {
        let _ = self.directory.set(Arc::downgrade(directory));
    }

    /// See [`Lane::set_directory`]. All ranks of the group have one, or none: it goes with its communicator.
    pub(super) fn directory(&self) -> Option<Arc<Directory>> {
        self.directory.get()?.upgrade()
    }

    /// What is to be set when this rank leaves and graphs may still be replayed: that its failure was told already (4
    /// bytes at `told`), so that it does not tell its peers; and that it has failed (8 bytes at `failed`).
    pub(super) fn keep_off(&self, told: driver::Address, failed: driver::Address) {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).push((told, failed));
    }

    /// Remembers the deadline that a call gives its kernels. Calls are made one after the other.
    pub fn set_patience(&self, patience: Duration) {
        let (before, now) = (self.patience_ms.load(Ordering::Relaxed), patience.as_millis() as u64);
        if before != now {
            self.patience_ms.store(if before == NO_CALL { now } else { DIFFERENT }, Ordering::Relaxed);
        }
    }

    /// Whether any call of the group was captured.
    pub fn was_captured(&self) -> bool {
        self.captured.load(Ordering::Relaxed)
    }

    /// Whether calls of the group may still be replayed, so that its kernels may run at any time.
    fn may_be_replayed(&self) -> bool {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = || notes.iter().filter_map(Weak::upgrade).any(|note| note.read().0 > 0);
        self.captured_for_good.load(Ordering::Relaxed) || noted()
    }

    /// Whether everything eager has come to its end.
    pub fn is_quiet(&self) -> bool {
        let order = self.order();
        let _beside = beside_captures(self.device.driver);
        // SAFETY: the event is ours.
        order.event.is_null() || unsafe { self.device.driver.event_query(order.event) }.is_ok()
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a call on a stream on which another rank waits for this very one. Captured calls count by themselves: a
    /// graph waits for nothing while it is made.
    fn check_stream(&self, stream: Stream, captured: bool) -> Result<()> {
        let (id, kind) = (StreamId::of(stream), usize::from(captured));
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(own) = last.iter().position(|one| one.place == self.place) else { return Ok(()) };
        let call = (Some(id), last[own].calls[kind].1 + 1);
        let waits = |one: &&Last| {
            one.place.0 == self.place.0
                && one.place != self.place
                && (one.device, one.calls[kind]) == (self.device.ordinal, call)
        };
        if let Some(other) = last.iter().find(waits) {
            return Err(Error::invalid(format_args!(
                "ranks {} and {} share {} and stream {stream:p}, on which the one would wait for the other: give each its own",
                other.place.1, self.place.1, self.device
            )));
        }
        last[own].calls[kind] = call;
        Ok(())
    }

    fn lines(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter_map(OnceLock::get)
    }
}

impl Outpost for Lane {
    fn check(&self, buffers: &Buffers) -> Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let both = [("send", buffers.send), ("recv", buffers.recv)];
        for (name, (start, length)) in both {
            known.check(self.device, name, start as u64, length as u64)?;
        }
        // Where ranks do not read each other's memory, nothing is registered, and the promise is worth nothing.
        if let (true, Some(directory)) = (buffers.registered, self.directory()) {
            for (name, (start, length)) in both {
                if length > 0 && directory.locate(start as u64, length as u64) == 0 {
                    return Err(Error::invalid(format_args!(
                        "the call promises registered buffers (TUTTI_CALL_REGISTERED), but {name} is {start:p} with \
                         {length} bytes, not memory of tutti_mem_alloc of this group or of one that it was made from"
                    )));
                }
            }
        }
        Ok(())
    }

    fn check_eager(&self, buffers: &Buffers, stream: *mut c_void) -> Result<()> {
        self.check(buffers)?;
        match self.device.is_capturing(stream) {
            Ok(false) => Ok(()),
            Ok(true) => Err(not_capturable()),
            Err(error) => {
                Err(Error::usage(format_args!("stream {stream:p} takes no call ({error}): is it of {}?", self.device)))
            }
        }
    }

    fn admit(&self, buffers: &Buffers, stream: *mut c_void, capturable: bool) -> Result<()> {
        self.check(buffers)?;
        let driver = self.device.driver;
        let mut order = self.order();
        order.admitted = None;
        let mut entered = None;
        if stream as usize <= SPECIAL_STREAMS && !self.device.is_current() {
            // Such a stream is one of the current context.
            entered = Some(self.device.enter()?);
        }
        let mut status = driver::CAPTURE_NONE;
        // SAFETY: `status` is writable, the stream the caller's.
        attempt(self.device, &mut entered, || unsafe { driver.stream_is_capturing(stream, &mut status) }).map_err(
            |error| {
                Error::usage(format_args!("stream {stream:p} cannot take a call ({error}): is it of {}?", self.device))
            },
        )?;
        let captured = match status {
            driver::CAPTURE_NONE => false,
            driver::CAPTURE_ACTIVE if capturable => true,
            driver::CAPTURE_ACTIVE => return Err(not_capturable()),
            _ => return Err(Error::usage(format_args!("the capture of stream {stream:p} has failed before"))),
        };
        if captured && entered.is_none() && !self.device.is_current() {
            // A launch from a wrong context, tried before the right one is, could end the capture.
            entered = Some(self.device.enter()?);
        }
        self.check_stream(stream, captured)?;
        if !captured && order.last.is_some_and(|last| last != StreamId::of(stream)) {
            let event = order.event;
            // SAFETY: the event is ours, the stream the caller's.
            attempt(self.device, &mut entered, || unsafe { driver.stream_wait_event(stream, event, 0) })
                .map_err(|error| error.during("waiting for the group's last call, on another stream"))?;
        }
        order.admitted = Some(Admitted { captured, entered });
        Ok(())
    }

    fn failure(&self, members: &Members) -> Option<Failure> {
        self.lines().find_map(|line| line.failure(members, self.patience_ms.load(Ordering::Relaxed)))
    }

    fn stop(&self) {
        self.lines().for_each(|line| line.order(STOP));
    }

    fn gone(&self, rank: u32) {
        self.lines().for_each(|line| line.order(1 << rank));
    }

    fn leave(&self, rank: u32) {
        // Peers may wait for kernels of ours that are enqueued and have not begun.
        let until = Instant::now() + LEAVING;
        while !self.is_quiet() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !self.is_quiet() {
            self.lines().for_each(|line| line.order_to(rank, STOP));
        }
        if self.was_captured() {
            // Replays that come later return at once.
            for (told, failed) in self.own.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                let kept_off = self.device.fill(*told, 1, 4).and_then(|()| self.device.fill(*failed, ABORTED, 8));
                if let Err(error) = kept_off {
                    log::warn!(target: "tutti::cuda", "replays of a group that is gone wait for its peers: {error}");
                }
            }
        }
        self.gone(rank);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let (quiet, may_be_replayed) = (self.is_quiet(), self.may_be_replayed());
        LAST.lock().unwrap_or_else(PoisonError::into_inner).retain(|one| one.place != self.place);
        let order = self.order.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !order.event.is_null() {
            // SAFETY: the event is ours, and destroyed once.
            let _ = unsafe { self.device.driver.event_destroy(order.event) };
        }
        let presence = self.presence.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if may_be_replayed || !quiet {
            // Kernels of this group may still run: nothing in this process is given back any more.
            log::info!(target: "tutti::cuda", "memory of a group whose kernels may still run is kept until the process ends");
            std::mem::forget(presence);
        }
    }
}

fn not_capturable() -> Error {
    Error::Unsupported("what serves this call goes through the host and cannot be captured; call it eagerly".into())
}

fn new_event(device: &Device) -> Result<Event> {
    let _entered = if device.is_current() { None } else { Some(device.enter()?) };
    let mut event = ptr::null_mut();
    // SAFETY: `event` is writable.
    unsafe { device.driver.event_create(&mut event, driver::EVENT_DISABLE_TIMING) }
        .map_err(|error| error.during("an event"))?;
    Ok(event)
}

/// Runs a function of the driver, and if the caller's context was the wrong one, once more in the device's.
fn attempt(
    device: &'static Device,
    entered: &mut Option<Entered<'static>>,
    mut function: impl FnMut() -> Result<(), CudaError>,
) -> Result<(), CudaError> {
    match function() {
        Err(error) if entered.is_none() && matches!(error.code, driver::INVALID_CONTEXT | driver::INVALID_HANDLE) => {
            match device.enter() {
                Ok(guard) => *entered = Some(guard),
                Err(_) => return Err(error),
            }
            function()
        }
        done => done,
    }
}

/// An event behind something enqueued.
pub struct Mark {
    device: &'static Device,
    event: Event,
}

// SAFETY: events of the driver may be used from any thread.
unsafe impl Send for Mark {}
// SAFETY: as above.
unsafe impl Sync for Mark {}

impl Mark {
    /// Behind everything that is on `stream` now.
    pub fn behind(device: &'static Device, stream: Stream) -> Result<Mark> {
        let _entered = if device.is_current() { None } else { Some(device.enter()?) };
        let mark = Mark { device, event: new_event(device)? };
        // SAFETY: the event is ours, the stream the caller's.
        unsafe { device.driver.event_record(mark.event, stream) }
            .map_err(|error| error.during("an event behind a request"))?;
        Ok(mark)
    }

    /// Whether everything before it has been executed.
    pub fn is_passed(&self) -> Result<bool> {
        let _beside = beside_captures(self.device.driver);
        // SAFETY: the event is ours.
        match unsafe { self.device.driver.event_query(self.event) } {
            Ok(()) => Ok(true),
            Err(error) if error.code == driver::NOT_READY => Ok(false),
            Err(error) => Err(error.during("an event behind a request")),
        }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: the event is ours, and destroyed once.
        let _ = unsafe { self.device.driver.event_destroy(self.event) };
    }
}

/// What a capture session hears of one group: how many calls were captured, and which.
#[derive(Default)]
pub struct Notes {
    count: AtomicU32,
    digest: AtomicU64,
    closed: AtomicBool,
}

impl Notes {
    /// Count and digest.
    pub fn read(&self) -> (u32, u64) {
        (self.count.load(Ordering::Acquire), self.digest.load(Ordering::Acquire))
    }

    /// Notes nothing from now on: the session has ended.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// One more call, unless the notes are closed. Calls of one group are made one after the other, so plain loads and
    /// stores will do.
    fn add(&self, digest: u32) -> bool {
        if self.closed.load(Ordering::Acquire) {
            return false;
        }
        let before = self.digest.load(Ordering::Acquire);
        // FNV-1a, a word at a time: the order counts.
        self.digest.store((before ^ u64::from(digest)).wrapping_mul(0x0000_0100_0000_01b3), Ordering::Release);
        self.count.fetch_add(1, Ordering::AcqRel);
        true
    }
}

/// Allocations that were seen to be memory of the group's device.
#[derive(Default)]
struct Known {
    ranges: [(u64, u64); REMEMBERED],
    next: usize,
}

impl Known {
    fn check(&mut self, device: &'static Device, name: &str, start: u64, length: u64) -> Result<()> {
        if length == 0 || self.ranges.iter().any(|(from, to)| *from <= start && start.saturating_add(length) <= *to) {
            return Ok(());
        }
        let facts = device.owned(start, length).map_err(|error| Error::invalid(format_args!("{name}: {error}")))?;
        let facts = facts.ok_or_else(|| {
            Error::invalid(format_args!(
                "{name} is {start:#x}, memory of the host; this is a CUDA group, whose buffers are memory of {device} \
                 (tutti_group_cpu gives the group for host memory)"
            ))
        })?;
        self.ranges[self.next % REMEMBERED] = (facts.base, facts.end());
        self.next += 1;
        Ok(())
    }
}

/// Orders to the kernels of one communicator, and the record of their first failure; see `kernels/params.h`.
pub struct Line {
    name: &'static str,
    mapping: Arc<Mapping>,
    rank: u32,
    world: u32,
}

impl Line {
    /// The line of `rank`, in a mapping of one page for each rank.
    pub fn new(name: &'static str, mapping: Arc<Mapping>, rank: u32, world: u32) -> Self {
        Line { name, mapping, rank, world }
    }

    /// Tells the kernels of all ranks.
    fn order(&self, bits: u64) {
        (0..self.world).for_each(|rank| self.order_to(rank, bits));
    }

    /// Tells the kernels of one rank.
    fn order_to(&self, rank: u32, bits: u64) {
        let at = self.mapping.at(rank as usize * page() + report::ORDERS, 8);
        // SAFETY: eight bytes of the mapping, aligned, that hosts and kernels touch only as an atomic.
        let orders = unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) };
        if orders.load(Ordering::Relaxed) & bits != bits {
            orders.fetch_or(bits, Ordering::Relaxed);
        }
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        let at = self.mapping.at(self.rank as usize * page() + offset, 4);
        // SAFETY: four bytes of the mapping, aligned, that hosts and kernels touch only as an atomic; it lives as long
        // as the mapping.
        unsafe { AtomicU32::from_ptr(at.as_ptr().cast()) }
    }

    /// The failure that this rank's kernels have recorded.
    fn failure(&self, members: &Members, patience_ms: u64) -> Option<Failure> {
        if self.word(report::WRITTEN).load(Ordering::Acquire) == 0 {
            return None;
        }
        let read = |offset| self.word(offset).load(Ordering::Relaxed);
        let (missing, reporter, sequence) = (read(report::MISSING), read(report::REPORTER), read(report::SEQUENCE));
        let missing: Vec<u32> = (0..self.world.min(MAX_WORLD as u32)).filter(|rank| missing >> rank & 1 == 1).collect();
        let first = missing.first().copied();
        let who = match missing.as_slice() {
            [one] => format!("rank {one}"),
            several => format!("ranks {}", several.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
        };
        let what = format!("call #{sequence} of {} on group {:?}", self.name, members.name());
        let (status, rank, text) = match read(report::KIND) {
            1 => (
                Status::Timeout,
                first,
                format!("{what}: {who} did not arrive on the device {} (rank {reporter} waited)", within(patience_ms)),
            ),
            2 => (Status::Aborted, first, format!("{what}: it was told to stop, and waited for {who}")),
            3 => (
                Status::InvalidUsage,
                Some(reporter),
                format!(
                    "{what}: two kernels of the group ran at once on rank {reporter}; replays of graphs with calls of one \
                     group must follow each other"
                ),
            ),
            5 => {
                let why =
                    first.and_then(|rank| members.lost(rank)).map_or_else(|| "it left".to_owned(), |loss| loss.text);
                (Status::PeerLost, first, format!("{what}: {who} is lost: {why}"))
            }
            kind => (
                Status::InternalError,
                Some(reporter),
                format!("{what}: rank {reporter} launched what does not fit the group (kind {kind})"),
            ),
        };
        Some(Failure { status, rank, collective: None, sequence: u64::from(sequence), text })
    }
}

/// How long a kernel has waited that met its deadline.
fn within(patience_ms: u64) -> String {
    match patience_ms {
        // Replays count on the device alone, so nobody here can tell whose deadline it was.
        NO_CALL | DIFFERENT => "before the deadline of the call".to_owned(),
        ms => format!("within {:.1} s", ms as f64 / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_may_be_several_streams_and_a_stream_have_several_handles() {
        let of = |handle: usize| StreamId::of(handle as Stream);
        assert_eq!(of(0), of(LEGACY));
        assert_ne!(of(0), of(PER_THREAD));
        assert_eq!(of(PER_THREAD), of(PER_THREAD));
        let theirs = |handle: usize| std::thread::spawn(move || StreamId::of(handle as Stream)).join().unwrap();
        assert_ne!(of(PER_THREAD), theirs(PER_THREAD), "each thread has its own");
        assert_ne!(theirs(PER_THREAD), theirs(PER_THREAD), "and a number is never used again");
        assert_eq!(of(0x1000), theirs(0x1000));
    }
}
