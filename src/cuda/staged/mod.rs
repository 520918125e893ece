//! The last resort of CUDA groups: through the memory of the host, and from there as CPU groups do it. Correct for
//! everything that CPU groups do, on any hosts, without peer access; slow, and not to be captured.
//!
//! A call is three steps: the contribution is copied out behind what is on the stream, a communicator of CPU groups
//! moves it, the result is copied in on the stream. The first two end before the call returns. Letters go the same way,
//! beside the calls (`letters`).

mod letters;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use self::letters::Letters;
use super::{
    device::Device,
    driver,
    lane::{Admitted, GLANCE, Lane, Mark},
    peers::copy,
    pinned::Pinned,
};
use crate::{
    bootstrap::Members,
    communicator::{
        Algorithm, Call, Capabilities, Capture, Carries, Communicator, Letter, Part, Pattern, Progress, Provider, Row,
        Task, Uneven, Way,
        post::{Accepted, Delivery, Post},
    },
    dtype::{COLLECTIVES, Collective, OPS, REDUCIBLE},
    error::{Error, Result},
    shm::Shm,
    sockets::Sockets,
};

/// The entry in the dispatcher's list.
pub struct Staged;

const ALGORITHMS: [Algorithm; 3] = [
    Algorithm::new("through_host", u64::MAX),
    Algorithm { carries: Carries::Parts, ..Algorithm::new("parts_through_host", u64::MAX) },
    Algorithm { carries: Carries::Letters, ..Algorithm::new("post_through_host", u64::MAX) },
];

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

    fn rows(&self, _: &Members, collective: Collective) -> Vec<Row> {
        vec![Row::only(collective)]
    }

    fn probe(&self, members: &Members) -> Result<Capabilities, String> {
        let ordinal = members.device().ok_or("the group's buffers are host memory")?;
        Device::open(ordinal).map_err(|error| error.to_string())?;
        let theirs = inner(members).probe(members)?;
        let mut capabilities = Capabilities::new(&COLLECTIVES, &REDUCIBLE, &OPS).and(&theirs);
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
            let letters = Letters::new(lane.clone());
            let (out, back) = (Pinned::new(device), Pinned::new(device));
            let made =
                Communication { members, lane, inner, provider, letters, sequence: 0, out, back, step: Step::Idle };
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
    letters: Letters,
    /// Calls that went this way: the inner communicator counts without gaps.
    sequence: u64,
    /// The contribution.
    out: Pinned,
    /// The result.
    back: Pinned,
    step: Step,
}

enum Step {
    Idle,
    /// Behind the mark, the contribution is in `out`.
    CopiesOut(Job, Arc<Mark>),
    Moves(Home),
}

/// What is left of a call once its contribution is copied out.
struct Job {
    what: What,
    home: Home,
}

/// The call on the host.
enum What {
    Call(Call),
    Uneven(Uneven),
}

/// Where the result is to be copied.
struct Home {
    /// From places in `back` to the device.
    copies: Vec<Copy>,
    stream: driver::Stream,
}

/// Bytes that are at one place in host memory and at one of the device.
#[derive(Clone, Copy)]
struct Copy {
    host: usize,
    device: u64,
    bytes: usize,
}

// SAFETY: the pointers are the current call's, which may be used from any thread (see `Call`).
unsafe impl Send for Step {}

impl Communication {
    /// The first step, for a call that was admitted: copies out, to what is then in `out` at the places that they name.
    fn copy_out(&mut self, copies: &[Copy], job: Job, bytes: usize) -> Result<Progress> {
        let mut admitted = self.lane.take()?;
        self.out.make_room(bytes)?;
        self.out.keep();
        for copy in copies {
            let to = self.out.start() as u64 + copy.host as u64;
            transfer(&self.lane, &mut admitted, to, copy.device, copy.bytes, job.home.stream)?;
        }
        let mark = Arc::new(self.lane.mark(job.home.stream)?);
        self.out.keep_until(&mark);
        self.step = Step::CopiesOut(job, mark);
        drop(admitted);
        Communicator::poll(self)
    }

    /// Begins the second step, once the first has ended and nobody reads the last result.
    fn begin(&mut self, job: Job) -> Result<Progress> {
        let (rank, size) = (self.members.rank(), self.members.size());
        let bytes = job.home.copies.iter().map(|copy| copy.host + copy.bytes).max().unwrap_or(0);
        self.back.make_room(bytes)?;
        self.step = Step::Moves(job.home);
        self.sequence += 1;
        // What a reduce_scatter leaves alone, and what only the root has, is what the caller's buffer holds: copied
        // back is only what the call writes.
        let (send, recv) = (self.out.start().cast_const(), self.back.start());
        match job.what {
            What::Call(call) => {
                let contribution = call.descriptor.contribution(size);
                let rows = self.provider.rows(&self.members, call.descriptor.collective);
                let row = rows.iter().find(|row| contribution <= row.up_to);
                // The scratch memory is registered with nobody.
                let way = row.map_or(Way::of(0), |row| Way::of(row.way.algorithm));
                log::trace!(target: "tutti::cuda", "rank {rank}: {} goes through the host", call.descriptor);
                let host = Call { send, recv, stream: std::ptr::null_mut(), ..call };
                self.inner.start(&host, self.sequence, way)
            }
            What::Uneven(call) => {
                log::trace!(target: "tutti::cuda", "rank {rank}: {} goes through the host", call.descriptor);
                self.inner.start_uneven(Uneven { send, recv, ..call }, self.sequence)
            }
        }
    }

    /// The third step.
    fn copy_in(&mut self, home: &Home) -> Result<()> {
        refuse_capture(&self.lane, home.stream)?;
        let mut admitted = self.lane.resume()?;
        if !home.copies.is_empty() {
            self.back.keep();
            for copy in &home.copies {
                let from = self.back.start() as u64 + copy.host as u64;
                transfer(&self.lane, &mut admitted, copy.device, from, copy.bytes, home.stream)?;
            }
            self.back.keep_until(&Arc::new(self.lane.mark(home.stream)?));
        }
        self.lane.finish(admitted, home.stream, 0)
    }

    fn advance(&mut self, progress: Progress) -> Result<Progress> {
        if progress != Progress::Done {
            return Ok(progress);
        }
        match std::mem::replace(&mut self.step, Step::Idle) {
            Step::Moves(home) => self.copy_in(&home).map(|()| Progress::Done),
            _ => Ok(Progress::Done),
        }
    }
}

impl Communicator for Communication {
    fn start(&mut self, call: &Call, _sequence: u64, _: Way) -> Result<Progress> {
        if self.members.size() == 1 {
            let mut admitted = self.lane.take()?;
            copy(&self.lane, &mut admitted, call)?;
            self.lane.finish(admitted, call.stream, 0)?;
            return Ok(Progress::Done);
        }
        let (rank, size) = (self.members.rank(), self.members.size());
        let pattern = Pattern::new(&call.descriptor, rank, size)
            .ok_or_else(|| Error::Internal(format!("{} is no exchange", call.descriptor)))?;
        let whole = |memory: *const u8, bytes: usize| match bytes {
            0 => Vec::new(),
            bytes => vec![Copy { host: 0, device: memory as u64, bytes }],
        };
        let sent = pattern.send_bytes(rank);
        let home = Home { copies: whole(call.recv, pattern.recv_bytes(size)), stream: call.stream };
        self.copy_out(&whole(call.send, sent), Job { what: What::Call(*call), home }, sent)
    }

    fn start_uneven(&mut self, call: Uneven, _sequence: u64) -> Result<Progress> {
        let (send_parts, out, sent) =
            packed(call.send, &call.send_parts, call.descriptor.collective == Collective::AllGatherV);
        let is_one = call.descriptor.collective == Collective::ReduceScatterV;
        let (recv_parts, copies, _) = packed(call.recv, &call.recv_parts, is_one);
        let home = Home { copies, stream: call.stream };
        let host = Uneven { send_parts, recv_parts, stream: std::ptr::null_mut(), ..call };
        self.copy_out(&out, Job { what: What::Uneven(host), home }, sent)
    }

    fn poll(&mut self) -> Result<Progress> {
        let progress = match std::mem::replace(&mut self.step, Step::Idle) {
            Step::Idle => return Ok(Progress::Done),
            Step::CopiesOut(job, mark) => {
                if !mark.is_passed()? || !self.back.is_at_rest()? {
                    self.step = Step::CopiesOut(job, mark);
                    return Ok(Progress::Pending);
                }
                self.begin(job)?
            }
            moves => {
                self.step = moves;
                self.inner.poll()?
            }
        };
        self.advance(progress)
    }

    fn rest(&mut self, at_most: Duration) {
        match self.step {
            Step::CopiesOut(..) => std::thread::sleep(at_most.min(GLANCE)),
            _ if self.letters.wait_for_the_device() => std::thread::sleep(at_most.min(GLANCE)),
            _ => self.inner.rest(at_most),
        }
    }

    fn awaits(&mut self, rank: u32) -> bool {
        // Before it has shown its peers what it calls, this rank waits for its own stream.
        matches!(self.step, Step::Moves(..)) && self.inner.awaits(rank)
    }

    fn post(&mut self) -> Option<&mut dyn Post> {
        Some(self)
    }
}

/// Letters are the inner communicator's, but for the ways between device and host.
impl Post for Communication {
    fn accept(&mut self, letter: &Letter, _alone: bool) -> Result<Accepted> {
        self.letters.accept(letter, post_of(&mut self.inner)?)
    }

    fn poll(&mut self) -> Result<Progress> {
        self.letters.poll(post_of(&mut self.inner)?)
    }

    fn is_leaving(&self, key: u32) -> bool {
        self.letters.is_leaving(key)
    }

    fn collect(&mut self) -> Option<(u32, Delivery)> {
        self.letters.collect()
    }

    fn let_go(&mut self) {
        self.letters.let_go();
        if let Some(post) = self.inner.post() {
            post.let_go();
        }
    }

    fn rest(&mut self, at_most: Duration) {
        match self.inner.post() {
            Some(post) if !self.letters.wait_for_the_device() => post.rest(at_most),
            _ => std::thread::sleep(at_most.min(GLANCE)),
        }
    }
}

fn post_of(inner: &mut Box<dyn Communicator>) -> Result<&mut dyn Post> {
    inner.post().ok_or_else(|| Error::Internal("letters go through the host by what carries none".into()))
}

/// Where parts lie when they are put one after the other, what is to be copied for that, and how much it is. If all are
/// the same bytes (`is_one`), they are copied once.
fn packed(memory: *const u8, parts: &[Part], is_one: bool) -> (Vec<Part>, Vec<Copy>, usize) {
    let (mut at, mut copies) = (0, Vec::new());
    let packed = parts.iter().enumerate().map(|(index, part)| {
        let host = if is_one { 0 } else { at };
        if part.bytes > 0 && (index == 0 || !is_one) {
            copies.push(Copy { host, device: memory.wrapping_add(part.start) as u64, bytes: part.bytes });
        }
        at = host + part.bytes;
        Part { start: host, bytes: part.bytes }
    });
    let packed = packed.collect();
    (packed, copies, at)
}

/// A stream whose capture has begun since it was given would get the copy home into its graph, and not now.
fn refuse_capture(lane: &Lane, stream: driver::Stream) -> Result<()> {
    match lane.device.is_capturing(stream) {
        Ok(false) => Ok(()),
        // The legacy stream says with an error that a stream beside it is captured.
        Ok(true) | Err(Error::Cuda { code: driver::CAPTURE_IMPLICIT, .. }) => Err(Error::usage(
            "the stream of a call that goes through the host is captured before the call is over: wait for it first",
        )),
        Err(error) => Err(error),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_packed_one_after_the_other_and_equal_ones_once() {
        let memory = std::ptr::without_provenance::<u8>(1000);
        let part = |start, bytes| Part { start, bytes };
        let (parts, copies, bytes) = packed(memory, &[part(50, 10), part(0, 0), part(20, 7)], false);
        assert_eq!(parts, [part(0, 10), part(10, 0), part(10, 7)]);
        let copies: Vec<_> = copies.iter().map(|copy| (copy.host, copy.device, copy.bytes)).collect();
        assert_eq!((copies, bytes), (vec![(0, 1050, 10), (10, 1020, 7)], 17));
        let (parts, copies, bytes) = packed(memory, &[part(0, 9); 3], true);
        assert_eq!((parts, copies.len(), bytes), (vec![part(0, 9); 3], 1, 9));
    }
}
