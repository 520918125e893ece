//! Carrying a plan out over a group.
//!
//! * this page — [`Transfer`], what a caller sees: bind memory, start, poll or wait, and again;
//! * `tensors` — the bound memory, and whether anything overlaps that may not;
//! * `walk` — the operations of this rank, several in flight; `wire` — what they travel by;
//! * `convey` — strides, casts and copies; `ferry` — copies that a device makes; `staging` — memory for buckets.
//!
//! A CUDA group's transfer is carried out by its CPU sibling: what lies on a device passes through the host's memory, or
//! stays on the device.
//!
//! All decisions were taken by the plan, which the ranks prove to have in common before the first byte moves. Messages
//! between two ranks are all that is used, beside the group's collectives, so that no groups have to be made.

mod convey;
mod ferry;
mod staging;
mod tensors;
#[cfg(test)]
mod tests;
mod walk;
mod wire;

use std::{
    ffi::c_void,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use self::{
    ferry::{Copies, Ferry},
    tensors::Tensors,
    walk::{GLANCE, Walk},
    wire::Post,
};
use super::{layout::Side, plan::Plan};
use crate::{
    communicator::{Call, Descriptor, Progress},
    config::Timeout,
    dtype::{Collective, DType, Op},
    error::{Error, Failure, Result, Status},
    group::{Group, Request, batch},
};

/// How long a waiting thread sleeps at most, if nothing wakes it: others may want to ask, meanwhile, how far it is.
const NAP: Duration = Duration::from_millis(1);

/// A plan and a group, with the memory of this rank's tensors.
pub struct Transfer {
    plan: Arc<Plan>,
    group: Arc<Group>,
    /// Carries the messages: the group, or its CPU sibling.
    carrier: Arc<Group>,
    /// The way to tensors on a device.
    ferry: Option<Arc<Ferry>>,
    tensors: Tensors,
    state: State,
    /// What was on the caller's stream at the start.
    before: Option<Copies>,
    walk: Option<Walk<Post>>,
    /// Bytes in all buckets of this rank.
    bytes: u64,
}

/// Where a transfer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Not started, or bound anew.
    Idle = 0,
    /// Ranks are comparing plans; nothing has moved.
    Checking = 1,
    /// Buckets are moving.
    Moving = 2,
    /// Everything this rank sends, receives and copies is over.
    Done = 3,
    /// It failed; what was written is written.
    Failed = 4,
}

/// How far a transfer has come on this rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Where it stands.
    pub phase: Phase,
    /// Buckets of this rank that are over, and all of them.
    pub buckets: (u64, u64),
    /// Bytes in those buckets.
    pub bytes: (u64, u64),
    /// Bytes of memory for staging.
    pub staged: u64,
    /// With [`Phase::Failed`], the rank that is missing, lost or disagreeing, if one is named.
    pub failed_rank: Option<u32>,
}

enum State {
    Idle,
    Checking(Check),
    Moving,
    Done,
    Failed(Error),
}

/// The comparison of plans under way.
struct Check {
    request: Arc<Request>,
    /// Boxed, so that they stay where they are.
    _mine: Box<[u8]>,
    all: Box<[u8]>,
}

/// What every rank says before the first byte: its plan's hash, and a number that its process has not used before. The
/// number of rank 0 tells this transfer's messages from those of others.
const TICKET: usize = 24;

impl Transfer {
    /// A transfer of the group by a plan for a world of as many ranks. Local; ranks that disagree about the plan hear of
    /// it at the first start.
    pub fn new(plan: Arc<Plan>, group: Arc<Group>) -> Result<Transfer> {
        if plan.options().world != group.size() {
            return Err(Error::invalid(format_args!(
                "the plan is for a world of {} ranks, but group {:?} has {}",
                plan.options().world,
                group.name(),
                group.size()
            )));
        }
        let carrier = group.cpu().unwrap_or(&group).clone();
        let ferry = group.device().map(|ordinal| Ferry::new(ordinal, group.timeout())).transpose()?.map(Arc::new);
        let tensors = Tensors::new(&plan, group.rank(), ferry.as_ref().map(|ferry| ferry.device()));
        let operations = plan.operations(group.rank()).iter();
        let bytes =
            operations.filter_map(|operation| plan.bucket(*operation as usize)).map(|bucket| bucket.bytes).sum();
        Ok(Transfer { plan, group, carrier, ferry, tensors, state: State::Idle, before: None, walk: None, bytes })
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The group.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// Says where this rank's part of a tensor lies on one side: the address of its first element, and strides in
    /// elements (`None`: contiguous and row-major). On a CUDA group that is memory of the rank's device or of the host.
    /// Not while the transfer is going on.
    ///
    /// # Safety
    /// The memory is readable, or writable for a target, for the span of [`super::View::new`] with these strides, until
    /// it is bound anew or the transfer is dropped. While the transfer is going on nobody else writes a source or
    /// touches a target.
    pub unsafe fn bind(&mut self, item: usize, side: Side, memory: *mut u8, strides: Option<&[i64]>) -> Result<()> {
        self.refuse_while_moving("bound")?;
        self.tensors.bind(&self.plan, item, side, memory, strides)
    }

    /// Begins. The first start of a transfer takes a turn among the calls of the group, since all its ranks compare
    /// plans: every rank must make it, also one that moves nothing.
    ///
    /// Tensors that are not bound, or overlap where that is not allowed, are INVALID_ARGUMENT and nothing has happened.
    pub fn start(&mut self) -> Result<()> {
        self.start_behind(std::ptr::null_mut())
    }

    /// As [`Transfer::start`], behind what is on a stream of the rank's device now: before that is over no tensor is
    /// read or written. NULL: the legacy default stream, or none on a CPU group.
    pub fn start_behind(&mut self, stream: *mut c_void) -> Result<()> {
        self.refuse_while_moving("started")?;
        if let State::Failed(error) = &self.state {
            return Err(error.clone());
        }
        self.group.check()?;
        self.tensors.check(&self.plan)?;
        self.before = match &self.ferry {
            Some(ferry) => Some(ferry.work_of(stream)?),
            None if stream.is_null() => None,
            None => {
                let why = "stream is not NULL, but this is a CPU group: its calls happen on no stream";
                return Err(Error::invalid(why));
            }
        };
        if let Some(walk) = &mut self.walk {
            walk.restart();
            self.state = State::Moving;
            return Ok(());
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut mine: Box<[u8]> = vec![0; TICKET].into();
        mine[..16].copy_from_slice(&self.plan.hash());
        mine[16..20].copy_from_slice(&NUMBER.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        let mut all: Box<[u8]> = vec![0; TICKET * self.group.size() as usize].into();
        let descriptor = Descriptor {
            collective: Collective::AllGather,
            dtype: DType::Bytes,
            op: Op::Sum,
            root: 0,
            flags: 0,
            count: TICKET as u64,
        };
        let call = Call::new(descriptor, mine.as_ptr(), all.as_mut_ptr());
        let request = self.carrier.start(call, Timeout::Default)?;
        self.state = State::Checking(Check { request, _mine: mine, all });
        Ok(())
    }

    /// Goes on as far as possible without waiting.
    ///
    /// A failure is the group's, or MISMATCH naming a rank whose plan differs: then nothing has moved on any rank, and
    /// the group lives on. It comes back from every later call.
    pub fn poll(&mut self) -> Result<Progress> {
        if batch::is_open() && self.is_going_on() {
            return Err(Error::usage(
                "a transfer cannot go on while this thread has a batch open: end the batch first",
            ));
        }
        loop {
            match &mut self.state {
                State::Idle => return Err(Error::usage("the transfer was not started")),
                State::Done => return Ok(Progress::Done),
                State::Failed(error) => return Err(error.clone()),
                State::Checking(check) => match check.request.test() {
                    Ok(Progress::Done) => {
                        let compared = compare(&check.all, &self.plan.hash(), &self.group);
                        match compared {
                            Ok(number) => {
                                let post = Post { group: self.carrier.clone(), number };
                                let (plan, ferry) = (self.plan.clone(), self.ferry.clone());
                                self.walk = Some(Walk::new(plan, self.group.rank(), post, ferry));
                                self.state = State::Moving;
                            }
                            Err(error) => return Err(self.fail(error)),
                        }
                    }
                    Ok(_) => return Ok(Progress::Pending),
                    Err(error) => return Err(self.fail_group(error)),
                },
                State::Moving => {
                    match self.before.as_ref().map(Copies::are_over) {
                        None => {}
                        Some(Ok(true)) => self.before = None,
                        Some(Ok(false)) => return Ok(Progress::Pending),
                        Some(Err(error)) => return Err(self.fail_group(error)),
                    }
                    let Some(walk) = &mut self.walk else { return Err(Error::Internal("nothing moves".into())) };
                    // SAFETY: `start` checked the tensors; who bound them promised the rest.
                    match unsafe { walk.poll(&self.tensors) } {
                        Ok(true) => self.state = State::Done,
                        Ok(false) => return Ok(Progress::Pending),
                        Err(error) => return Err(self.fail_group(error)),
                    }
                }
            }
        }
    }

    /// Waits until the transfer is over, but no longer than `timeout` (the default: the group's own deadlines); then it
    /// is still `Pending`, and nothing has failed.
    pub fn wait(&mut self, timeout: Timeout) -> Result<Progress> {
        let deadline = timeout.deadline();
        loop {
            if self.poll()? == Progress::Done {
                return Ok(Progress::Done);
            }
            let left = deadline.map_or(NAP, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(Progress::Pending);
            }
            self.rest(left);
        }
    }

    /// Sleeps until something has come or gone for which this rank has more to do, but no longer than `at_most`, nor
    /// than a millisecond.
    pub fn rest(&mut self, at_most: Duration) {
        match (&mut self.state, &mut self.walk) {
            (State::Checking(check), _) => {
                // How it ended, `poll` says.
                let _ = check.request.wait(Timeout::After(NAP.min(at_most)));
            }
            (State::Moving, _) if self.before.is_some() => std::thread::sleep(GLANCE.min(at_most)),
            (State::Moving, Some(walk)) => walk.rest(NAP.min(at_most)),
            _ => {}
        }
    }

    /// How far it has come.
    pub fn standing(&self) -> Standing {
        let load = self.plan.load(self.group.rank());
        let (buckets, moved) = self.walk.as_ref().map_or((0, 0), Walk::done);
        let (phase, failed_rank) = match &self.state {
            State::Idle => (Phase::Idle, None),
            State::Checking(_) => (Phase::Checking, None),
            State::Moving => (Phase::Moving, None),
            State::Done => (Phase::Done, None),
            State::Failed(error) => (Phase::Failed, rank_of(error)),
        };
        Standing {
            phase,
            buckets: (buckets, load.map_or(0, |load| load.operations)),
            bytes: (moved, self.bytes),
            staged: self.walk.as_ref().map_or(0, Walk::staged),
            failed_rank,
        }
    }

    /// Bytes of a tensor's target that were written on this rank since the start, and all that will be. Elements count
    /// when their bucket is over; in a failed transfer, a target of which less than all was written holds a mixture.
    pub fn written(&self, item: usize) -> Result<(u64, u64)> {
        let Some(dtype) = self.plan.dtype(item, Side::Target) else {
            return Err(Error::invalid(format_args!("tensor {item} of a plan of {}", self.plan.item_count())));
        };
        let region = self.plan.region(item, Side::Target, self.group.rank());
        let all = region.map_or(0, |region| region.elements() * dtype.size() as u64);
        Ok((self.walk.as_ref().map_or(0, |walk| walk.written(item)), all))
    }

    /// Whether it was started and is not over.
    pub fn is_going_on(&self) -> bool {
        matches!(self.state, State::Checking(_) | State::Moving)
    }

    fn refuse_while_moving(&self, what: &str) -> Result<()> {
        match self.is_going_on() {
            true => Err(Error::usage(format_args!("the transfer is going on; it cannot be {what} before it is over"))),
            false => Ok(()),
        }
    }

    /// Others count on what this rank does not do any more: they hear of it.
    fn fail_group(&mut self, mut error: Error) -> Error {
        if !error.is_harmless() {
            error = self.carrier.fail(error);
            if !Arc::ptr_eq(&self.carrier, &self.group) {
                self.group.fail(error.clone());
            }
        }
        self.fail(error)
    }

    fn fail(&mut self, error: Error) -> Error {
        if let Some(walk) = &mut self.walk {
            walk.give_up();
        }
        self.state = State::Failed(error.clone());
        error
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // Other ranks count on what this one has not sent, and messages still use its memory: that ends the group.
        if let State::Checking(check) = &self.state {
            check.request.release();
        }
        if matches!(self.state, State::Moving) {
            self.group.abort();
        }
    }
}

/// The number of the transfer, if all ranks have this plan.
fn compare(all: &[u8], hash: &[u8; 16], group: &Group) -> Result<u32> {
    let others: Vec<usize> =
        all.chunks(TICKET).enumerate().filter(|(_, one)| one[..16] != hash[..]).map(|(at, _)| at).collect();
    if let Some(first) = others.first() {
        let (me, name) = (group.rank(), group.name());
        let list: Vec<String> = others.iter().take(8).map(usize::to_string).collect();
        return Err(Error::from(Failure {
            status: Status::Mismatch,
            rank: Some(*first as u32),
            collective: None,
            sequence: 0,
            text: format!(
                "transfer on group {name:?}: the plan of rank {me} differs from that of {} other ranks ({}): items, \
                 layouts and options must be the same everywhere; nothing has moved, and the group lives on",
                others.len(),
                list.join(", ")
            ),
        }));
    }
    let number = all.get(16..20).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
    Ok(number)
}

fn rank_of(error: &Error) -> Option<u32> {
    match error {
        Error::Failed(failure) => failure.rank,
        _ => None,
    }
}
