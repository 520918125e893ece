//! Tensor dicts and objects: named tensors that travel as one message, from rank to rank or from one to all.
//!
//! * [`manifest`] — what goes ahead of the data and says what it is: a binary format, checked;
//! * [`shape`] — extents and strides, and copies between them;
//! * `device` — tensors in the memory of a device;
//! * [`load`](self) — which tensors travel together and which alone; `slab` — memory of the library;
//! * this page — sending, receiving, broadcasting.
//!
//! # A message
//!
//! First the manifest, as one message of bytes to [`FIRST`] long, and a second with what is longer; then the loads, one
//! after the other, all under way at once. Everything travels as bytes under two tags of its own per tag of the caller, one
//! for the beginning and one for what follows; so several messages may be awaited at once, if they are fetched in turn, and
//! nothing here meets what the caller sends and receives itself. In a broadcast the same bytes go by the group's broadcasts, which every rank can tell
//! in advance as soon as it has the manifest.
//!
//! # Slices
//!
//! Where the ranks of a *replicating* group all hold the same tensors, each sends its own slice of the large ones to its
//! counterpart, and the receivers gather the slices among themselves. Whether a tensor is sliced is for the sender to
//! decide, by what all senders know alike (size and flags), and the manifest tells; so the two sides cannot disagree.

mod device;
pub(crate) mod load;
pub mod manifest;
pub mod shape;
mod slab;

use std::{
    ptr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering},
    },
};

use self::{
    device::StandIns,
    load::{ALIGNMENT, Load, loads},
    manifest::{Device, Manifest, Record},
    shape::Shape,
    slab::Slab,
};
use crate::{
    communicator::{Call, Descriptor, Letter, Progress},
    config::Timeout,
    dtype::{Collective, DType, Op},
    error::{Error, Result, Status},
    group::{Group, Request, Turn, batch},
};

/// Bytes of the first message of a manifest: they travel with their envelope over shared memory.
pub const FIRST: usize = 4096;
/// Tensors from this size on are sliced, where there is a replicating group and no flag says otherwise: below it a
/// gather costs more than it saves.
const SLICED_FROM: usize = 64 * 1024;
/// Where the tags of tensor dicts begin, two for each of the caller's: callers' own tags are not negative, and those of
/// transfers lie below.
const TAGS: i64 = i64::MIN / 2;

/// Whether each rank of a replicating group sends a slice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Slicing {
    /// Where it is large enough for that to be faster.
    #[default]
    Auto,
    /// Never: the ranks of the group do not hold the same.
    Whole,
    /// Always.
    Sliced,
}

/// A tensor of the caller's: what it is, and where its elements are.
#[derive(Clone, Debug)]
pub struct View {
    /// Its name among the others of its dict.
    pub name: String,
    /// The element type.
    pub dtype: DType,
    /// Where the elements are.
    pub device: Device,
    /// Extents and strides.
    pub shape: Shape,
    /// The element with all indices 0.
    pub data: *mut u8,
    /// How a replicating group sends it.
    pub slicing: Slicing,
}

// SAFETY: the memory belongs to the caller, who promises its use until the operation is done, from any thread.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

/// With whom, and how.
#[derive(Clone, Default)]
pub struct Options {
    /// The other rank; the root of a broadcast.
    pub peer: u32,
    /// Messages meet by peer and tag, in order.
    pub tag: u32,
    /// The ranks that all hold the same tensors, for sends; that gather the slices, for receives.
    pub replicas: Option<Arc<Group>>,
    /// The deadline of each step that waits.
    pub timeout: Timeout,
    /// The stream behind which tensors of a device are read and written, as a number; 0: the legacy default stream.
    pub stream: usize,
}

impl Options {
    fn tag(&self, of: i64) -> i64 {
        TAGS + 2 * i64::from(self.tag) + of
    }

    fn manifest_tag(&self) -> i64 {
        self.tag(0)
    }

    fn data_tag(&self) -> i64 {
        self.tag(1)
    }
}

/// A message: on its way out, awaited, or here with its tensors.
pub struct Dict {
    /// The group that it was started on.
    group: Arc<Group>,
    /// What carries it: the group, or its CPU sibling.
    carrier: Arc<Group>,
    options: Options,
    is_broadcast: bool,
    state: Mutex<State>,
    /// Whether who has the state waits with it, for a peer.
    is_waiting: AtomicBool,
}

enum State {
    /// On its way out; what it is sent from is kept until it is over.
    Sending { requests: Vec<Arc<Request>>, _parcel: Parcel },
    /// A broadcast of this rank, whose manifest is on its way; the rest goes with the wait.
    Broadcasting { requests: Vec<Arc<Request>>, parcel: Parcel },
    /// The beginning of the manifest is awaited.
    Awaited { request: Arc<Request>, first: Slab, turn: Option<Turn> },
    /// The manifest is here, the data are not.
    Announced { manifest: Manifest, turn: Option<Turn> },
    /// All is here: in memory of the library, or of the caller.
    Here { manifest: Manifest, places: Vec<*mut u8>, devices: Vec<Device>, shapes: Vec<Shape>, _slab: Slab },
    /// Nothing is left of it: a send that is over, or one that failed.
    Over,
}

// SAFETY: the places are the slab's, or the caller's, who promises their use from any thread.
unsafe impl Send for State {}

/// A tensor that has come.
#[derive(Clone, Debug)]
pub struct Received {
    /// What it is; its strides are those of the sender where there were no gaps.
    pub record: Record,
    /// Extents and strides as it lies here.
    pub shape: Shape,
    /// Where that is; of what is only announced, where its sender has it.
    pub device: Device,
    /// The element with all indices 0.
    pub data: *mut u8,
}

impl Dict {
    /// Sends tensors to a rank, with `object` one that is an object, and waits until their memory may be used again.
    pub fn send(group: &Arc<Group>, views: &[View], object: bool, options: Options) -> Result<()> {
        let (carrier, options) = carriers(group, options);
        let parcel = Parcel::new(group, views, object, &options)?;
        carrier.exchange(&parcel.letters(&options), options.timeout).map(drop)
    }

    /// Starts to send tensors; with `object`, one that is an object. Their memory must stay until the dict is over.
    pub fn start_send(group: &Arc<Group>, views: &[View], object: bool, options: Options) -> Result<Arc<Self>> {
        let (carrier, options) = carriers(group, options);
        let parcel = Parcel::new(group, views, object, &options)?;
        let letters = parcel.letters(&options);
        let timeout = options.timeout;
        let dict =
            Self::new((group, &carrier), options, false, State::Sending { requests: Vec::new(), _parcel: parcel });
        for letter in letters {
            // Where one is refused, those before it are released with the dict.
            let request = carrier.post(letter, timeout)?;
            if let State::Sending { requests, .. } = &mut *dict.state() {
                requests.push(request);
            }
        }
        Ok(dict)
    }

    /// Starts to receive a message. [`Dict::wait`] brings it here.
    pub fn start_receive(group: &Arc<Group>, options: Options) -> Result<Arc<Self>> {
        refuse_batch()?;
        let (carrier, options) = carriers(group, options);
        check_peer(group, &options)?;
        let first = Slab::new(FIRST)?;
        // SAFETY: the slab is kept beside the request, which is released before the slab goes.
        let letter = unsafe {
            Letter::receive(options.peer, options.manifest_tag(), DType::Bytes, first.at(0, FIRST), FIRST as u64)
        };
        let post = || carrier.post(letter, options.timeout);
        let (turn, request) = carrier.line_up((options.peer, options.tag), post)?;
        Ok(Self::new((group, &carrier), options, false, State::Awaited { request, first, turn: Some(turn) }))
    }

    /// Starts to broadcast: the root its tensors, all others to receive them. Collective. Every rank must wait for it before
    /// its next collective call on the group: the data go by the group's own broadcasts, in the wait.
    pub fn start_broadcast(group: &Arc<Group>, views: &[View], object: bool, options: Options) -> Result<Arc<Self>> {
        refuse_batch()?;
        let (carrier, options) = carriers(group, options);
        check_peer(group, &options)?;
        if options.replicas.is_some() {
            return Err(Error::invalid("a broadcast takes no replicating group: all ranks get everything"));
        }
        if group.rank() == options.peer {
            let parcel = Parcel::new(group, views, object, &options)?;
            let requests = vec![carrier.start(broadcast(&options, parcel.head.at(0, FIRST), FIRST), options.timeout)?];
            return Ok(Self::new((group, &carrier), options, true, State::Broadcasting { requests, parcel }));
        }
        let first = Slab::new(FIRST)?;
        let request = carrier.start(broadcast(&options, first.at(0, FIRST), FIRST), options.timeout)?;
        Ok(Self::new((group, &carrier), options, true, State::Awaited { request, first, turn: None }))
    }

    /// How far it is: `Done` for a send that is over, and for a message of which [`Dict::wait`] will not wait for the
    /// beginning.
    pub fn test(&self) -> Result<Progress> {
        // Whoever waits for it in another thread goes on with it, too.
        let Some(state) = self.state_at_rest() else { return Ok(Progress::Pending) };
        let requests = match &*state {
            State::Sending { requests, .. } | State::Broadcasting { requests, .. } => requests.as_slice(),
            State::Awaited { request, .. } => std::slice::from_ref(request),
            State::Announced { .. } | State::Here { .. } | State::Over => &[],
        };
        for request in requests {
            if request.test()? != Progress::Done {
                return Ok(Progress::Pending);
            }
        }
        Ok(Progress::Done)
    }

    /// Waits until it is known what comes; `Pending` if `timeout` ends first.
    pub fn probe(&self, timeout: Timeout) -> Result<Progress> {
        refuse_batch()?;
        let mut state = self.state_to_tell()?;
        let _waiting = self.waiting();
        self.announce(&mut state, timeout)
    }

    /// Finishes: a send or broadcast of this rank until its memory may be used again; a message until it is here, in memory
    /// of the library. `Pending` if `timeout` ends before its beginning has come.
    pub fn wait(&self, timeout: Timeout) -> Result<Progress> {
        self.finish(None, timeout)
    }

    /// As [`Dict::wait`], into the caller's tensors: one for each of the message's, in its order, of the same dtypes and
    /// extents, with any strides. Where that is not so, nothing is received, and it can be tried again.
    pub fn wait_into(&self, views: &[View], timeout: Timeout) -> Result<Progress> {
        self.finish(Some(views), timeout)
    }

    /// The tensors of a message: what they are, as soon as that is known; where they are, once they are here.
    pub fn records(&self) -> Result<Vec<Received>> {
        let state = self.state_to_tell()?;
        match &*state {
            State::Announced { manifest, .. } => Ok(manifest
                .records
                .iter()
                .map(|record| Received {
                    record: record.clone(),
                    shape: record.shape.clone(),
                    device: record.device,
                    data: ptr::null_mut(),
                })
                .collect()),
            State::Here { manifest, places, devices, shapes, .. } => Ok(manifest
                .records
                .iter()
                .zip(places.iter().zip(devices))
                .zip(shapes)
                .map(|((record, (data, device)), shape)| Received {
                    record: record.clone(),
                    shape: shape.clone(),
                    device: *device,
                    data: *data,
                })
                .collect()),
            State::Awaited { .. } => Err(Error::usage("it is not known yet what comes: wait for it or probe")),
            _ => Err(Error::usage("this is no message that comes here, but one that was sent")),
        }
    }

    /// Whether a message that was announced is an object.
    pub fn is_object(&self) -> Result<bool> {
        let state = self.state_to_tell()?;
        Ok(matches!(&*state, State::Announced { manifest, .. } | State::Here { manifest, .. } if manifest.object))
    }

    /// Gives it up. One that is not over aborts its group first, since its memory may go and its peer counts on it. A wait
    /// in another thread ends by that.
    pub fn release(&self) {
        let mut state = match self.state_at_rest() {
            Some(state) => state,
            None => {
                self.carrier.abort();
                if let Some(replicas) = &self.options.replicas {
                    replicas.abort();
                }
                self.state()
            }
        };
        let _waiting = self.waiting();
        match &*state {
            State::Sending { requests, .. } | State::Broadcasting { requests, .. } => {
                requests.iter().for_each(|request| request.release());
            }
            State::Awaited { request, .. } => request.release(),
            State::Announced { .. } | State::Here { .. } | State::Over => {}
        }
        // The data of what was announced, and of a broadcast, are still counted on.
        if matches!(&*state, State::Announced { .. }) || matches!(&*state, State::Broadcasting { .. }) {
            self.carrier.abort();
        }
        *state = State::Over;
    }

    fn new(
        (group, carrier): (&Arc<Group>, &Arc<Group>),
        options: Options,
        is_broadcast: bool,
        state: State,
    ) -> Arc<Self> {
        let (state, is_waiting) = (Mutex::new(state), AtomicBool::new(false));
        Arc::new(Dict { group: group.clone(), carrier: carrier.clone(), options, is_broadcast, state, is_waiting })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, but not while another thread waits with it for a peer.
    fn state_at_rest(&self) -> Option<MutexGuard<'_, State>> {
        loop {
            match self.state.try_lock() {
                Ok(state) => return Some(state),
                Err(TryLockError::Poisoned(state)) => return Some(state.into_inner()),
                Err(TryLockError::WouldBlock) if self.is_waiting.load(Ordering::Acquire) => return None,
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
    }

    /// [`Dict::state_at_rest`] for who needs it.
    fn state_to_tell(&self) -> Result<MutexGuard<'_, State>> {
        self.state_at_rest().ok_or_else(|| Error::usage("another thread waits for this dict: test it, or wait there"))
    }

    /// To be held by whoever waits with the state; dropped before it.
    fn waiting(&self) -> impl Drop {
        struct Waiting<'a>(&'a AtomicBool);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::Release);
            }
        }
        self.is_waiting.store(true, Ordering::Release);
        Waiting(&self.is_waiting)
    }

    fn finish(&self, views: Option<&[View]>, timeout: Timeout) -> Result<Progress> {
        refuse_batch()?;
        let mut state = self.state_to_tell()?;
        let _waiting = self.waiting();
        match &*state {
            State::Sending { requests, .. } => {
                for request in requests {
                    if request.wait(timeout)? != Progress::Done {
                        return Ok(Progress::Pending);
                    }
                }
                *state = State::Over;
                return Ok(Progress::Done);
            }
            State::Broadcasting { requests, parcel } => {
                for request in requests {
                    if request.wait(timeout)? != Progress::Done {
                        return Ok(Progress::Pending);
                    }
                }
                let outcome = parcel.rest().try_for_each(|(start, bytes)| {
                    self.carrier.run(broadcast(&self.options, start.cast_mut(), bytes), self.options.timeout)
                });
                *state = State::Over;
                return outcome.map(|()| Progress::Done);
            }
            State::Here { .. } | State::Over => return Ok(Progress::Done),
            State::Awaited { .. } | State::Announced { .. } => {}
        }
        if self.announce(&mut state, timeout)? != Progress::Done {
            return Ok(Progress::Pending);
        }
        let State::Announced { manifest, turn } = &*state else { return Ok(Progress::Done) };
        refuse_overtaking(turn.as_ref())?;
        let devices = match views {
            Some(views) => views.iter().map(|view| view.device).collect(),
            None => vec![Device::Host; manifest.records.len()],
        };
        let (views, stand_ins) = match views {
            Some(views) => {
                let (views, stand_ins) = StandIns::of(&self.group, views, self.options.stream)?;
                (Some(views), Some(stand_ins))
            }
            None => (None, None),
        };
        let mut plan = Arrival::new(manifest, views.as_deref(), &self.options)?;
        let here = plan.fetch(&self.carrier, manifest, &self.options, self.is_broadcast);
        let State::Announced { manifest, .. } = std::mem::replace(&mut *state, State::Over) else {
            return Ok(Progress::Done);
        };
        here?;
        if let Some(stand_ins) = stand_ins {
            stand_ins.bring_home(&mut plan.places)?;
        }
        *state = State::Here { manifest, places: plan.places, devices, shapes: plan.shapes, _slab: plan.slab };
        Ok(Progress::Done)
    }

    /// Goes on until the manifest is here.
    fn announce(&self, state: &mut State, timeout: Timeout) -> Result<Progress> {
        let State::Awaited { request, first, turn } = state else { return Ok(Progress::Done) };
        if request.wait(timeout)? != Progress::Done {
            return Ok(Progress::Pending);
        }
        let came = if self.is_broadcast { FIRST } else { request.received().map_or(FIRST, |bytes| bytes as usize) };
        // SAFETY: the slab has so many bytes, and the request that wrote to them is over.
        let mut bytes = unsafe { std::slice::from_raw_parts(first.at(0, came.min(FIRST)), came.min(FIRST)) }.to_vec();
        // What follows the beginning keeps its order among the messages of this peer and tag.
        if Manifest::length(&bytes).is_ok_and(|length| length > came) {
            refuse_overtaking(turn.as_ref())?;
        }
        let turn = turn.take();
        let read =
            self.rest_of_manifest(&mut bytes).and_then(|()| Manifest::decode(&bytes).map_err(|why| self.refused(why)));
        match read {
            Ok(manifest) => {
                *state = State::Announced { manifest, turn };
                Ok(Progress::Done)
            }
            Err(error) => {
                *state = State::Over;
                Err(error)
            }
        }
    }

    /// Makes the beginning of a manifest the whole of it.
    fn rest_of_manifest(&self, bytes: &mut Vec<u8>) -> Result<()> {
        // At most `LONGEST`, whatever the peer says.
        let length = Manifest::length(bytes).map_err(|why| self.refused(why))?;
        let came = bytes.len();
        bytes.resize(length, 0);
        if length <= came {
            return Ok(());
        }
        let rest = &mut bytes[came..];
        if self.is_broadcast {
            return self.carrier.run(broadcast(&self.options, rest.as_mut_ptr(), rest.len()), self.options.timeout);
        }
        let (peer, tag, timeout) = (self.options.peer, self.options.data_tag(), self.options.timeout);
        let more = self.carrier.receive_bytes(rest, peer, tag, timeout)?;
        bytes.truncate(came + more);
        Ok(())
    }

    fn refused(&self, why: manifest::Refusal) -> Error {
        let peer = self.options.peer;
        Error::failed(Status::Mismatch, Some(peer), format_args!("rank {peer} sent what is no tensor dict: {why}"))
    }
}

impl Drop for Dict {
    fn drop(&mut self) {
        self.release();
    }
}

/// What a message is sent from: the manifest, copies of what cannot be sent from where it lies, and where all of it is.
struct Parcel {
    /// The manifest, as long as [`FIRST`] or longer.
    head: Slab,
    /// Bytes of the manifest.
    length: usize,
    _copies: Vec<Slab>,
    _stand_ins: StandIns,
    /// The loads.
    pieces: Vec<(*const u8, usize)>,
}

// SAFETY: what the pointers point to is kept here, or by the caller, who promises so until the message is over.
unsafe impl Send for Parcel {}

impl Parcel {
    fn new(group: &Group, views: &[View], object: bool, options: &Options) -> Result<Self> {
        refuse_batch()?;
        check_peer(group, options)?;
        if object && options.replicas.is_some() {
            return Err(Error::invalid("an object is not sliced: options->replicas must be NULL"));
        }
        let (on_host, mut stand_ins) = StandIns::of(group, views, options.stream)?;
        let (parts, part) = options.replicas.as_ref().map_or((1, 0), |replicas| (replicas.size(), replicas.rank()));
        let record = |view: &View| {
            let shape = view.shape.on_the_way();
            let bytes = shape.count() as usize * view.dtype.size();
            let sliced = match view.slicing {
                Slicing::Auto => parts > 1 && bytes >= SLICED_FROM,
                Slicing::Whole => false,
                Slicing::Sliced => parts > 1,
            };
            Ok(Record { name: view.name.clone(), dtype: view.dtype, device: view.device, shape, sliced })
        };
        let records = views.iter().map(record).collect::<Result<Vec<_>>>()?;
        let manifest = Manifest { object, parts, part, records };
        let encoded =
            manifest.encode().map_err(|why| Error::invalid(format_args!("these tensors cannot be sent: {why}")))?;
        // Peers may wait for the message already.
        stand_ins
            .fill(group, options.timeout)
            .map_err(|error| group.cpu().map_or(error.clone(), |cpu| cpu.fail(error)))?;
        let views = &*on_host;
        let head = Slab::new(encoded.len().max(FIRST))?;
        // SAFETY: the slab is as long.
        unsafe { ptr::copy_nonoverlapping(encoded.as_ptr(), head.at(0, encoded.len()), encoded.len()) };
        let mut parcel =
            Parcel { head, length: encoded.len(), _copies: Vec::new(), _stand_ins: stand_ins, pieces: Vec::new() };
        for load in loads(&manifest) {
            let piece = match load {
                Load::One(index) => {
                    let (view, record) = (&views[index], &manifest.records[index]);
                    let window = manifest.window(record);
                    let start = match view.shape.is_alike(&record.shape) {
                        true => view.data,
                        false => parcel.copy(Slab::unwritten(record.bytes())?, |to| view.copy_to(to, &record.shape)),
                    };
                    // SAFETY: the window lies within the tensor, whose elements have no gaps.
                    (unsafe { start.add(window.start) }.cast_const(), window.len())
                }
                Load::Pack(pack, bytes) => {
                    let start = parcel.copy(Slab::new(bytes)?, |to| {
                        for (index, at) in &pack {
                            // SAFETY: the pack has room for the tensor there.
                            views[*index].copy_to(unsafe { to.add(*at) }, &manifest.records[*index].shape);
                        }
                    });
                    (start.cast_const(), bytes)
                }
            };
            parcel.pieces.push(piece);
        }
        Ok(parcel)
    }

    /// Keeps a stretch of memory here, which `fill` fills.
    fn copy(&mut self, slab: Slab, fill: impl FnOnce(*mut u8)) -> *mut u8 {
        let start = slab.at(0, 0);
        fill(start);
        self._copies.push(slab);
        start
    }

    /// What follows the first message of the manifest.
    fn rest(&self) -> impl Iterator<Item = (*const u8, usize)> {
        let more = (self.length > FIRST).then(|| {
            let bytes = self.length - FIRST;
            (self.head.at(FIRST, bytes).cast_const(), bytes)
        });
        more.into_iter().chain(self.pieces.iter().copied())
    }

    /// The letters of the message.
    fn letters(&self, options: &Options) -> Vec<Letter> {
        let head = self.length.min(FIRST);
        let manifest =
            (self.length > FIRST).then(|| (self.head.at(FIRST, self.length - FIRST).cast_const(), self.length - FIRST));
        let heads = std::iter::once((self.head.at(0, head).cast_const(), head));
        let heads = heads.map(|piece| (piece, options.manifest_tag()));
        let data = manifest.into_iter().chain(self.pieces.iter().copied()).map(|piece| (piece, options.data_tag()));
        let letter = |((start, bytes), tag): ((*const u8, usize), i64)| {
            // SAFETY: readable until the message is over: kept in this parcel, or promised by the caller.
            unsafe { Letter::send(options.peer, tag, DType::Bytes, start, bytes as u64) }
        };
        heads.chain(data).map(letter).collect()
    }
}

impl View {
    /// Copies all elements to a place of the same extents.
    fn copy_to(&self, to: *mut u8, shape: &Shape) {
        // SAFETY: the view's elements are readable, as its maker promised, and the place is memory of this crate that is
        // large enough for the dense shape.
        unsafe { shape::copy(self.data, &self.shape, to, shape, self.dtype.size()) };
    }
}

/// Where a message's tensors are to be, and through what memory they come there.
struct Arrival {
    slab: Slab,
    /// Where each tensor will be.
    places: Vec<*mut u8>,
    shapes: Vec<Shape>,
    /// Where each load is received.
    targets: Vec<(*mut u8, usize)>,
    /// Slices to be gathered: where all of them are to lie, and the bytes of one.
    gathers: Vec<(*mut u8, usize)>,
    /// Tensors to be copied when all is here: from where, and which.
    copies: Vec<(*mut u8, usize)>,
}

impl Arrival {
    fn new(manifest: &Manifest, views: Option<&[View]>, options: &Options) -> Result<Self> {
        if let Some(views) = views {
            check_views(manifest, views)?;
        }
        check_replicas(manifest, options)?;
        let loads = loads(manifest);
        // Whether a tensor is received where it is to be: a whole one in memory that takes it as it comes, a sliced one
        // if all slices have room there, the padding of the last included.
        let is_direct = |index: usize| {
            let record = &manifest.records[index];
            views.is_some_and(|views| views[index].shape.is_alike(&record.shape))
                && (!record.sliced || manifest.run(record) * manifest.parts as usize == record.bytes())
        };
        let room = |index: usize| {
            let record = &manifest.records[index];
            if record.sliced { manifest.run(record).saturating_mul(manifest.parts as usize) } else { record.bytes() }
        };
        // First where everything goes, then the memory.
        let (mut bytes, mut offsets) = (0_usize, Vec::with_capacity(loads.len()));
        for load in &loads {
            let needed = match load {
                Load::One(index) if is_direct(*index) => None,
                Load::One(index) => Some(room(*index)),
                Load::Pack(_, bytes) => Some(*bytes),
            };
            offsets.push(needed.map(|needed| {
                let at = bytes;
                bytes = bytes.saturating_add(needed).checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
                at
            }));
        }
        // Slices are gathered with the padding of the last one, which may not tell what this memory held.
        let slab = match loads.iter().any(|load| matches!(load, Load::One(index) if manifest.records[*index].sliced)) {
            true => Slab::new(bytes)?,
            false => Slab::unwritten(bytes)?,
        };
        let mut arrival = Arrival {
            places: match views {
                Some(views) => views.iter().map(|view| view.data).collect(),
                // Tensors without elements have no place, but one that is not NULL.
                None => vec![slab.at(0, 0); manifest.records.len()],
            },
            shapes: match views {
                Some(views) => views.iter().map(|view| view.shape.clone()).collect(),
                None => manifest.records.iter().map(|record| record.shape.clone()).collect(),
            },
            slab,
            targets: Vec::with_capacity(loads.len()),
            gathers: Vec::new(),
            copies: Vec::new(),
        };
        for (load, offset) in loads.into_iter().zip(offsets) {
            match load {
                Load::One(index) => {
                    let record = &manifest.records[index];
                    let window = manifest.window(record);
                    let base = match offset {
                        Some(offset) => arrival.slab.at(offset, room(index)),
                        None => arrival.places[index],
                    };
                    // SAFETY: the window lies within the tensor, for which there is room.
                    arrival.targets.push((unsafe { base.add(window.start) }, window.len()));
                    if record.sliced {
                        arrival.gathers.push((base, manifest.run(record)));
                    }
                    arrival.put(index, base, views.is_some() && offset.is_some());
                }
                Load::Pack(pack, bytes) => {
                    let base = arrival.slab.at(offset.unwrap_or(0), bytes);
                    arrival.targets.push((base, bytes));
                    for (index, at) in pack {
                        // SAFETY: the place lies within the pack.
                        arrival.put(index, unsafe { base.add(at) }, views.is_some());
                    }
                }
            }
        }
        Ok(arrival)
    }

    /// Notes that a tensor comes to `at`: its place, or where it is copied from.
    fn put(&mut self, index: usize, at: *mut u8, copied: bool) {
        match copied {
            true => self.copies.push((at, index)),
            false => self.places[index] = at,
        }
    }

    /// Receives everything, gathers the slices, and puts what came elsewhere where it is to be.
    fn fetch(&self, group: &Arc<Group>, manifest: &Manifest, options: &Options, is_broadcast: bool) -> Result<()> {
        if is_broadcast {
            for (start, bytes) in &self.targets {
                group.run(broadcast(options, *start, *bytes), options.timeout)?;
            }
        } else {
            let letter = |(start, bytes): &(*mut u8, usize)| {
                // SAFETY: the slab's, or the caller's, writable until this returns, by which the letter is over.
                unsafe { Letter::receive(options.peer, options.data_tag(), DType::Bytes, *start, *bytes as u64) }
            };
            let letters: Vec<Letter> = self.targets.iter().map(letter).collect();
            group.exchange(&letters, options.timeout)?;
        }
        if let Some(replicas) = &options.replicas {
            for (base, run) in &self.gathers {
                let descriptor = Descriptor {
                    collective: Collective::AllGather,
                    dtype: DType::Bytes,
                    op: Op::Sum,
                    root: 0,
                    flags: 0,
                    count: *run as u64,
                };
                // SAFETY: there is room for every part's run, and this rank's part was checked to be its rank.
                let mine = unsafe { base.add(manifest.part as usize * run) };
                replicas.run(Call::new(descriptor, mine, *base), options.timeout)?;
            }
        }
        for (from, index) in &self.copies {
            let record = &manifest.records[*index];
            // SAFETY: all elements have come to `from`, densely; the caller's tensor has the same extents and is writable,
            // as its maker promised.
            unsafe {
                shape::copy(*from, &record.shape, self.places[*index], &self.shapes[*index], record.dtype.size())
            };
        }
        Ok(())
    }
}

/// Whether the caller's tensors can take the message's.
fn check_views(manifest: &Manifest, views: &[View]) -> Result<()> {
    if views.len() != manifest.records.len() {
        return Err(Error::invalid(format_args!(
            "the message has {} tensors, but {} were given to receive them",
            manifest.records.len(),
            views.len()
        )));
    }
    for (view, record) in views.iter().zip(&manifest.records) {
        let (name, theirs) = (&record.name, record.shape.extents());
        if view.dtype != record.dtype || view.shape.extents() != theirs {
            return Err(Error::invalid(format_args!(
                "tensor {name:?} comes as {} of shape {theirs:?}, but was given memory for {} of shape {:?}",
                record.dtype.name(),
                view.dtype.name(),
                view.shape.extents()
            )));
        }
    }
    Ok(())
}

/// Whether this rank's replicating group can gather the slices.
fn check_replicas(manifest: &Manifest, options: &Options) -> Result<()> {
    if !manifest.records.iter().any(|record| record.sliced) {
        return Ok(());
    }
    let (parts, part) = (manifest.parts, manifest.part);
    let mismatch = |text: String| Err(Error::failed(Status::Mismatch, Some(options.peer), text));
    match &options.replicas {
        None => mismatch(format!(
            "rank {} sent slice {part} of {parts} of some tensors: give the group of the {parts} ranks that receive them all",
            options.peer
        )),
        Some(replicas) if replicas.size() != parts || replicas.rank() != part => mismatch(format!(
            "rank {} sent slice {part} of {parts}, but this is rank {} of the {} that gather: senders and receivers must be \
             as many, each sending to the one of its own rank",
            options.peer,
            replicas.rank(),
            replicas.size()
        )),
        Some(_) => Ok(()),
    }
}

/// A broadcast of bytes, in place.
fn broadcast(options: &Options, start: *mut u8, bytes: usize) -> Call {
    let descriptor = Descriptor {
        collective: Collective::Broadcast,
        dtype: DType::Bytes,
        op: Op::Sum,
        root: options.peer,
        flags: 0,
        count: bytes as u64,
    };
    Call::new(descriptor, start, start)
}

/// The groups that carry a message: what is sent lies in host memory by then, so of CUDA groups their CPU siblings.
fn carriers(group: &Arc<Group>, mut options: Options) -> (Arc<Group>, Options) {
    let carrier = |group: Arc<Group>| group.cpu().cloned().unwrap_or(group);
    options.replicas = options.replicas.map(carrier);
    (carrier(group.clone()), options)
}

fn check_peer(group: &Group, options: &Options) -> Result<()> {
    match options.peer < group.size() {
        true => Ok(()),
        false => {
            Err(Error::invalid(format_args!("peer is {}, but the group has {} ranks", options.peer, group.size())))
        }
    }
}

/// The data of messages of one peer and tag come in the order in which these were sent.
fn refuse_overtaking(turn: Option<&Turn>) -> Result<()> {
    match turn.is_none_or(Turn::has_come) {
        true => Ok(()),
        false => Err(Error::usage(
            "a message of the same peer and tag, whose receive was started before, is not here yet: wait for that one \
             first, or give them different tags",
        )),
    }
}

fn refuse_batch() -> Result<()> {
    match batch::is_open() {
        true => Err(Error::usage("tensor dicts cannot stand in a batch: start them instead")),
        false => Ok(()),
    }
}
