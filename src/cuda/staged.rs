//! The last resort of CUDA groups: through the memory of the host, and from there as CPU groups do it. Correct for every
//! collective, on any hosts, without peer access; slow, and not to be captured.
//!
//! A call is three steps: the contribution is copied out behind what is on the stream, a communicator of CPU groups
//! moves it, the result is copied in on the stream. The first two end before the call returns.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    device::Device,
    driver,
    lane::{Admitted, Lane, Mark},
    peers::copy,
    pinned::Pinned,
};
use crate::{
    bootstrap::Members,
    communicator::{Algorithm, Call, Capabilities, Capture, Communicator, Pattern, Progress, Provider, Row, Task, Way},
    dtype::{Collective, OPS, REDUCIBLE},
    error::{Error, Result},
    shm::Shm,
    sockets::Sockets,
};

/// How long a look at the device is put off.
const GLANCE: Duration = Duration::from_micros(20);

/// The entry in the dispatcher's list.
pub struct Staged;

const ALGORITHMS: [Algorithm; 1] = [Algorithm::new("through_host", u64::MAX)];

impl Provider for Staged {
    fn name(&self) -> &'static str {
        "staged"
    }

    fn is_for_devices(&self) -> bool {
        true
    }

    fn algorithms(&self) -> &'static [Algorithm] {
        &ALGORITHMS
    }

    fn rows(&self, _: &Members, _: Collective) -> Vec<Row> {
        vec![Row { up_to: u64::MAX, way: Way::of(0) }]
    }

    fn probe(&self, members: &Members) -> Result<Capabilities, String> {
        let ordinal = members.device().ok_or("the group's buffers are host memory")?;
        Device::open(ordinal).map_err(|error| error.to_string())?;
        let theirs = inner(members).probe(members)?;
        let mut capabilities = Capabilities::new(&Pattern::collectives(), &REDUCIBLE, &OPS).and(&theirs);
        capabilities.detects_mismatch = theirs.detects_mismatch;
        capabilities.rank_order = theirs.rank_order;
        capabilities.cancellable_within_ms = theirs.cancellable_within_ms;
        capabilities.capture = Capture::Impossible;
        Ok(capabilities)
    }

    fn create(&self, members: Arc<Members>, deadline: Option<Instant>) -> Task<Box<dyn Communicator>> {
        Box::pin(async move {
            let provider = inner(&members);
            let inner = provider.create(members.clone(), deadline).await?;
            let ordinal = members.device().ok_or_else(|| Error::Internal("a staged group without a device".into()))?;
            let device = Device::open(ordinal)?;
            let lane = Lane::of(&members, device);
            let made = Communication {
                members,
                lane,
                inner,
                provider,
                sequence: 0,
                out: Pinned::new(device),
                back: Pinned::new(device),
                read: None,
                step: Step::Idle,
            };
            Ok(Box::new(made) as Box<dyn Communicator>)
        })
    }
}

/// What moves the bytes: the first of the CPU's communicators that can. The same on all ranks, since both ask only what
/// the members agreed on.
fn inner(members: &Members) -> &'static dyn Provider {
    if Shm.probe(members).is_ok() { &Shm } else { &Sockets }
}

struct Communication {
    members: Arc<Members>,
    lane: Arc<Lane>,
    inner: Box<dyn Communicator>,
    /// What made it, and has its rows.
    provider: &'static dyn Provider,
    /// Calls that went this way: the inner communicator counts without gaps.
    sequence: u64,
    /// The contribution.
    out: Pinned,
    /// The result.
    back: Pinned,
    /// Behind the copy that reads `back`.
    read: Option<Mark>,
    step: Step,
}

enum Step {
    Idle,
    /// Behind the mark, the contribution is in `out`.
    CopiesOut(Call, Pattern, Mark),
    Moves(Call, Pattern),
}

// SAFETY: the pointers are the current call's, which may be used from any thread (see `Call`).
unsafe impl Send for Step {}

impl Communication {
    /// Begins the second step, once the first has ended and nobody reads the last result.
    fn begin(&mut self, call: Call, pattern: Pattern) -> Result<Progress> {
        let (rank, size) = (self.members.rank(), self.members.size());
        self.back.make_room(pattern.recv_bytes(size))?;
        // What a reduce_scatter leaves alone, and what only the root has, is what the caller's buffer holds: copied
        // back is only what the pattern writes.
        let (send, recv) = (self.out.start(), self.back.start());
        let host = Call { send, recv, stream: std::ptr::null_mut(), ..call };
        self.sequence += 1;
        let contribution = call.descriptor.contribution(size);
        let rows = self.provider.rows(&self.members, call.descriptor.collective);
        let row = rows.iter().find(|row| contribution <= row.up_to);
        // The scratch memory is registered with nobody.
        let way = row.map_or(Way::of(0), |row| Way::of(row.way.algorithm));
        log::trace!(target: "tutti::cuda", "rank {rank}: {} goes through the host", call.descriptor);
        self.step = Step::Moves(call, pattern);
        self.inner.start(&host, self.sequence, way)
    }

    /// The third step.
    fn copy_in(&mut self, call: &Call, pattern: &Pattern) -> Result<()> {
        let mut admitted = self.lane.resume()?;
        let bytes = pattern.recv_bytes(self.members.size());
        if bytes > 0 {
            let from = self.back.start() as u64;
            transfer(&self.lane, &mut admitted, call.recv as u64, from, bytes, call.stream)?;
            self.read = Some(self.lane.mark(call.stream)?);
        }
        self.lane.finish(admitted, call.stream, 0)
    }

    fn advance(&mut self, progress: Progress) -> Result<Progress> {
        if progress != Progress::Done {
            return Ok(progress);
        }
        match std::mem::replace(&mut self.step, Step::Idle) {
            Step::Moves(call, pattern) => self.copy_in(&call, &pattern).map(|()| Progress::Done),
            _ => Ok(Progress::Done),
        }
    }
}

impl Communicator for Communication {
    fn start(&mut self, call: &Call, _sequence: u64, _: Way) -> Result<Progress> {
        let mut admitted = self.lane.take()?;
        if self.members.size() == 1 {
            copy(&self.lane, &mut admitted, call)?;
            self.lane.finish(admitted, call.stream, 0)?;
            return Ok(Progress::Done);
        }
        let (rank, size) = (self.members.rank(), self.members.size());
        let pattern = Pattern::new(&call.descriptor, rank, size)
            .ok_or_else(|| Error::Internal(format!("{} is no exchange", call.descriptor)))?;
        let bytes = pattern.send_bytes(rank);
        self.out.make_room(bytes)?;
        if bytes > 0 {
            let to = self.out.start() as u64;
            transfer(&self.lane, &mut admitted, to, call.send as u64, bytes, call.stream)?;
        }
        let mark = self.lane.mark(call.stream)?;
        self.step = Step::CopiesOut(*call, pattern, mark);
        drop(admitted);
        self.poll()
    }

    fn poll(&mut self) -> Result<Progress> {
        let ready = match &self.step {
            Step::Idle => return Ok(Progress::Done),
            Step::Moves(..) => None,
            Step::CopiesOut(_, _, mark) => {
                let read = self.read.as_ref().map_or(Ok(true), Mark::is_passed)?;
                Some(read && mark.is_passed()?)
            }
        };
        let progress = match ready {
            None => self.inner.poll()?,
            Some(false) => return Ok(Progress::Pending),
            Some(true) => match std::mem::replace(&mut self.step, Step::Idle) {
                Step::CopiesOut(call, pattern, _) => {
                    self.read = None;
                    self.begin(call, pattern)?
                }
                other => {
                    self.step = other;
                    Progress::Pending
                }
            },
        };
        self.advance(progress)
    }

    fn rest(&mut self, at_most: Duration) {
        match self.step {
            Step::CopiesOut(..) => std::thread::sleep(at_most.min(GLANCE)),
            _ => self.inner.rest(at_most),
        }
    }

    fn awaits(&mut self, rank: u32) -> bool {
        // Before it has shown its peers what it calls, this rank waits for its own stream.
        matches!(self.step, Step::Moves(..)) && self.inner.awaits(rank)
    }
}

/// A copy between host and device, either way.
fn transfer(
    lane: &Lane,
    admitted: &mut Admitted,
    to: u64,
    from: u64,
    bytes: usize,
    stream: driver::Stream,
) -> Result<()> {
    // SAFETY: the caller's buffer and ours, both as long as said until the copy is complete.
    lane.call(admitted, |driver| unsafe { driver.memcpy_async(to, from, bytes, stream) })
        .map_err(|error| error.during(format_args!("a copy between the host and {}", lane.device)))
}
