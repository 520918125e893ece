//! What is inside a group: its communicators, the operation that is going on, and those queued behind it; and, beside
//! them, the letters that are under way.
//!
//! Operations of a group run one after the other, in the order in which they were started, which is the same on all
//! ranks. Each is a call, served by the communicator that the plan names, or a task of the control plane (making
//! groups, agreeing on something). The core never waits: it is polled, and told to rest by whoever waits.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::{gate::Collapse, letters::Letters};
use crate::{
    bootstrap::{
        Members,
        members::{Buffers, nap},
        session::SLICE,
    },
    communicator::{
        Call, Capture, Descriptor, Letter, Part, Pattern, Placement, Progress, Task, Uneven, post::Delivery,
    },
    config::{FLAG_REGISTERED, Timeout},
    dispatch::{Choice, Communicators, Plan, Standing},
    dtype::Collective,
    error::{Error, Failure, Result, Status},
};

/// How long a thread sleeps that waits for several things of which no single bell wakes it.
pub(super) const SHORT_NAP: Duration = Duration::from_micros(100);

/// Something to be done in a group.
pub(super) enum Work {
    /// A collective call; the timeout is resolved.
    Call(Call, Timeout),
    /// A v-form; the timeout is resolved.
    Uneven(Uneven, Timeout),
    /// A letter, which goes beside the others; the timeout is resolved.
    Letter(Letter, Timeout),
    /// A task of the control plane.
    Task(Task<Outcome>),
}

/// What a task of the control plane has brought about.
pub(super) enum Outcome {
    /// Nothing in this group.
    Nothing,
    /// A new plan, agreed by all ranks, that holds from here on.
    Plan(Arc<Plan>),
}

/// Where the outcome of started work will be.
#[derive(Default)]
pub(super) struct Ticket {
    outcome: OnceLock<Result<()>>,
    /// Elements received, where that is what was started; set before the outcome.
    received: OnceLock<u64>,
}

impl Ticket {
    /// The outcome, once there is one.
    pub(super) fn outcome(&self) -> Option<Result<()>> {
        self.outcome.get().cloned()
    }

    /// Elements that a receive which is over has got.
    pub(super) fn received(&self) -> Option<u64> {
        self.outcome.get().and_then(|_| self.received.get().copied())
    }

    fn complete(&self, outcome: Result<()>) {
        let _ = self.outcome.set(outcome);
    }

    pub(super) fn complete_letter(&self, received: Delivery) {
        if let Ok(count) = &received {
            let _ = self.received.set(*count);
        }
        self.complete(received.map(|_| ()));
    }
}

/// The inside of a group.
pub(super) struct Core {
    members: Arc<Members>,
    plan: Arc<Plan>,
    /// The same plan, for whoever asks without going inside.
    shown: Arc<Mutex<Arc<Plan>>>,
    communicators: Communicators,
    /// What the plan says of the last call that was no v-form: most calls are like the one before.
    last: Option<Chosen>,
    /// Calls begun so far.
    sequence: u64,
    active: Option<Active>,
    queue: VecDeque<Queued>,
    letters: Letters,
    /// When deadlines and lives were last looked at.
    looked: Option<Instant>,
}

/// What a plan says of a call.
#[derive(Clone, Copy)]
struct Chosen {
    descriptor: Descriptor,
    choice: Choice,
    placement: Placement,
}

struct Queued {
    work: Work,
    ticket: Arc<Ticket>,
    since: Instant,
}

/// The operation that is going on.
struct Active {
    doing: Doing,
    /// `None` for a blocking call, whose caller polls it.
    ticket: Option<Arc<Ticket>>,
    /// When this rank entered the call; known from the first slow look on, so that a call that meets its peers
    /// asks no clock.
    since: Option<Instant>,
}

enum Doing {
    Call { candidate: usize, descriptor: Descriptor, sequence: u64, timeout: Timeout, staging: Option<Box<Staging>> },
    Task(Task<Outcome>),
}

/// The result of a call whose communicator cannot put it where the caller wants it.
struct Staging {
    scratch: Vec<u64>,
    to: *mut u8,
    bytes: usize,
}

// SAFETY: `to` is the call's result, which may be used from any thread (see `Call`).
unsafe impl Send for Staging {}

impl Core {
    pub(super) fn new(members: Arc<Members>, shown: Arc<Mutex<Arc<Plan>>>, communicators: Communicators) -> Self {
        let plan = shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Core {
            members,
            plan,
            shown,
            communicators,
            last: None,
            sequence: 0,
            active: None,
            queue: VecDeque::new(),
            letters: Letters::new(),
            looked: None,
        }
    }

    /// Whether nothing is going on or queued, letters included.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_in_call() && self.letters.is_empty()
    }

    /// Whether a call or a task is going on or queued.
    pub(super) fn is_in_call(&self) -> bool {
        self.active.is_some() || !self.queue.is_empty()
    }

    /// Whether what is going on is a task of the control plane: looking at one costs system calls, and what it awaits
    /// comes by a socket, which wakes whoever sleeps. So there is nothing to be had from looking often.
    pub(super) fn is_in_task(&self) -> bool {
        matches!(self.active, Some(Active { doing: Doing::Task(_), .. }))
    }

    /// Begins a blocking call, of a core that is in none. `Some` if it is over already.
    #[inline]
    pub(super) fn begin(&mut self, call: &Call, timeout: Timeout) -> Option<Result<()>> {
        debug_assert!(!self.is_in_call());
        self.start(call, timeout, None).err()
    }

    /// Begins a letter of the blocking call, of which it may be the last; all of it that is under way is over if this fails.
    #[inline]
    pub(super) fn begin_letter(&mut self, letter: Letter, last: bool, timeout: Timeout) -> Result<()> {
        self.members.hear();
        let last = last && !self.is_in_call();
        let inside = (&*self.members, &*self.plan, &mut self.communicators);
        let begun = self.letters.begin(inside, (letter, last), timeout, None);
        if begun.is_err() && !self.letters.is_empty() {
            self.poll_letters(false);
        }
        begun
    }

    /// How the letters of the blocking call ended, once all have: how many elements came.
    #[inline]
    pub(super) fn letters_outcome(&mut self) -> Option<Delivery> {
        self.letters.take_outcome()
    }

    /// Queues work behind what is going on; a letter goes beside it.
    pub(super) fn enqueue(&mut self, work: Work) -> Arc<Ticket> {
        let ticket = Arc::new(Ticket::default());
        match work {
            Work::Letter(letter, timeout) => {
                self.members.hear();
                let inside = (&*self.members, &*self.plan, &mut self.communicators);
                if let Err(error) = self.letters.begin(inside, (letter, false), timeout, Some(ticket.clone())) {
                    ticket.complete(Err(error));
                }
            }
            work => self.queue.push_back(Queued { work, ticket: ticket.clone(), since: Instant::now() }),
        }
        self.advance(false);
        ticket
    }

    /// Polls the blocking call; `Err` with how far it got if it is not over. A slow look (`look`) also checks the
    /// deadline and the lives of those awaited.
    #[inline]
    pub(super) fn poll_call(&mut self, look: bool) -> Result<Result<()>, Progress> {
        let moved = self.poll_letters(look);
        self.poll_active(look)
            .map(|(_, outcome)| outcome)
            .map_err(|progress| if moved { Progress::Moved } else { progress })
    }

    /// Goes on with what is going on, and begins what is queued behind it. Says whether anything moved.
    pub(super) fn advance(&mut self, look: bool) -> bool {
        let look = look && self.is_time_to_look();
        let moved = self.poll_letters(look);
        self.advance_calls(look) || moved
    }

    /// Goes on with everything for whoever waits for the letters of the blocking call.
    #[inline]
    pub(super) fn poll_exchange(&mut self, look: bool) -> Result<Delivery, Progress> {
        let moved = self.poll_letters(look);
        let others = self.is_in_call() && {
            let look = look && self.is_time_to_look();
            self.advance_calls(look)
        };
        self.letters.take_outcome().ok_or(if moved || others { Progress::Moved } else { Progress::Pending })
    }

    /// Goes on with the letters, and says whether anything moved.
    #[inline]
    fn poll_letters(&mut self, look: bool) -> bool {
        self.letters.poll(&self.members, &mut self.communicators, look)
    }

    fn advance_calls(&mut self, look: bool) -> bool {
        let mut moved = false;
        loop {
            if self.active.is_none() {
                let Some(next) = self.queue.pop_front() else { return moved };
                self.launch(next);
                moved = true;
                continue;
            }
            // A blocking call is polled by its caller alone.
            if self.active.as_ref().is_some_and(|active| active.ticket.is_none()) {
                return moved;
            }
            match self.poll_active(look) {
                Ok((ticket, outcome)) => {
                    moved = true;
                    if let Some(ticket) = ticket {
                        ticket.complete(outcome);
                    }
                }
                Err(progress) => return moved || progress == Progress::Moved,
            }
        }
    }

    /// Sleeps until something may have changed for what is going on.
    pub(super) fn rest(&mut self, at_most: Duration) {
        let active = self.active.as_ref().map(|active| active.since.map_or(Duration::ZERO, |since| since.elapsed()));
        // The one that has waited least decides how soon the world is looked at again.
        let waited = active.into_iter().chain(self.letters.waited()).min().unwrap_or_default();
        let at_most = at_most.min(nap(waited));
        match &self.active {
            Some(Active { doing: Doing::Call { candidate, .. }, .. }) => {
                // No single bell wakes for two communicators.
                let at_most = if self.letters.are_all_with(*candidate) { at_most } else { at_most.min(SHORT_NAP) };
                if let Some(communicator) = &mut self.communicators[*candidate] {
                    communicator.rest(at_most);
                }
            }
            Some(_) if !self.letters.is_empty() => self.members.endpoint().wait(at_most.min(SHORT_NAP)),
            Some(_) => self.members.endpoint().wait(at_most.min(SLICE)),
            None => match self.letters.post(&mut self.communicators) {
                Some(post) => post.rest(at_most),
                None => self.members.endpoint().wait(at_most.min(SLICE)),
            },
        }
    }

    /// Whether the last slow look is long enough ago: one costs two system calls per rank.
    fn is_time_to_look(&mut self) -> bool {
        let now = Instant::now();
        let due = self.looked.is_none_or(|looked| now.duration_since(looked) >= SLICE);
        if due {
            self.looked = Some(now);
        }
        due
    }

    fn launch(&mut self, queued: Queued) {
        let queue = |ticket: &Arc<Ticket>| (ticket.clone(), queued.since);
        match queued.work {
            Work::Task(task) => {
                let (ticket, since) = (Some(queued.ticket), Some(queued.since));
                self.active = Some(Active { doing: Doing::Task(task), ticket, since });
            }
            Work::Letter(..) => {
                queued.ticket.complete(Err(Error::Internal("a letter was queued behind a call".into())));
            }
            Work::Call(call, timeout) => {
                if let Err(outcome) = self.start(&call, timeout, Some(queue(&queued.ticket))) {
                    queued.ticket.complete(outcome);
                }
            }
            Work::Uneven(call, timeout) => {
                if let Err(outcome) = self.start_uneven(call, timeout, queue(&queued.ticket)) {
                    queued.ticket.complete(outcome);
                }
            }
        }
    }

    /// Starts a call with the communicator that the plan names, in whichever way that one can place the result, and makes
    /// it the operation that goes on. `Err` with what came of it if it is over already.
    #[inline]
    fn start(
        &mut self,
        call: &Call,
        timeout: Timeout,
        queued: Option<(Arc<Ticket>, Instant)>,
    ) -> Result<(), Result<()>> {
        self.members.hear();
        self.members.check().map_err(Err)?;
        let (choice, placement) = match &self.last {
            Some(last) if last.descriptor == call.descriptor => (last.choice, last.placement),
            _ => self.choose(&call.descriptor).map_err(Err)?,
        };
        let (mut staged, staging) = stage(call, placement).map_err(Err)?;
        let Some(communicator) = &mut self.communicators[choice.candidate] else {
            let what = format!("the plan names a communicator that is not there for {}", call.descriptor);
            return Err(Err(Error::Internal(what)));
        };
        if let Some(outpost) = self.members.outpost() {
            let capturable = is_capturable(&self.plan, choice.candidate);
            outpost.admit(&buffers(call, &self.members), call.stream, capturable).map_err(Err)?;
            staged.get_or_insert(*call).timeout = timeout;
        }
        self.sequence += 1;
        let sequence = self.sequence;
        match communicator.start(staged.as_ref().unwrap_or(call), sequence, choice.way) {
            Ok(Progress::Done) => Err(finish(staging)),
            Ok(_) => {
                let (candidate, descriptor) = (choice.candidate, call.descriptor);
                let (ticket, since) = queued.unzip();
                let doing = Doing::Call { candidate, descriptor, sequence, timeout, staging };
                self.active = Some(Active { doing, ticket, since });
                Ok(())
            }
            Err(error) => Err(Err(self.failed(error, &call.descriptor, sequence))),
        }
    }

    /// Asks the plan who serves a call, and where that one can put the result.
    fn choose(&mut self, call: &Descriptor) -> Result<(Choice, Placement)> {
        let choice = self.plan.choose(call).ok_or_else(|| self.plan.refusal(call))?;
        let placement = match call.collective {
            Collective::AllReduce => placement(&self.plan, choice.candidate),
            _ => Placement::Both,
        };
        self.last = Some(Chosen { descriptor: *call, choice, placement });
        Ok((choice, placement))
    }

    /// Starts a v-form, and makes it the operation that goes on. `Err` with what came of it if it is over already.
    fn start_uneven(
        &mut self,
        call: Uneven,
        timeout: Timeout,
        (ticket, since): (Arc<Ticket>, Instant),
    ) -> Result<(), Result<()>> {
        self.members.hear();
        self.members.check().map_err(Err)?;
        let descriptor = call.descriptor;
        let Some(Choice { candidate, .. }) = self.plan.choose(&descriptor) else {
            return Err(Err(self.plan.refusal(&descriptor)));
        };
        let Some(communicator) = &mut self.communicators[candidate] else {
            let what = format!("the plan names a communicator that is not there for {descriptor}");
            return Err(Err(Error::Internal(what)));
        };
        if let Some(outpost) = self.members.outpost() {
            // The buffers were looked at before it was written down.
            outpost.admit(&Buffers::NONE, call.stream, false).map_err(Err)?;
        }
        self.sequence += 1;
        let sequence = self.sequence;
        match communicator.start_uneven(call, sequence) {
            Ok(Progress::Done) => Err(Ok(())),
            Ok(_) => {
                let doing = Doing::Call { candidate, descriptor, sequence, timeout, staging: None };
                self.active = Some(Active { doing, ticket: Some(ticket), since: Some(since) });
                Ok(())
            }
            Err(error) => Err(Err(self.failed(error, &descriptor, sequence))),
        }
    }

    #[inline]
    fn poll_active(&mut self, look: bool) -> Result<(Option<Arc<Ticket>>, Result<()>), Progress> {
        let Some(active) = &mut self.active else { return Err(Progress::Pending) };
        let outcome = match &mut active.doing {
            Doing::Task(task) => match task.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(Outcome::Plan(plan))) => {
                    self.plan = plan.clone();
                    self.last = None;
                    *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = plan;
                    Ok(())
                }
                Poll::Ready(outcome) => outcome.map(|_| ()),
                Poll::Pending if self.members.is_closed() => self.members.check(),
                Poll::Pending => return Err(Progress::Pending),
            },
            Doing::Call { candidate, descriptor, sequence, .. } => {
                let (descriptor, sequence) = (*descriptor, *sequence);
                let progress = match &mut self.communicators[*candidate] {
                    // Whoever destroyed the group may have freed the buffers.
                    _ if self.members.is_closed() => self.members.check().map(|()| Progress::Pending),
                    Some(communicator) => communicator.poll(),
                    None => Err(Error::Internal("the communicator of a call is gone".into())),
                };
                let progress = match progress {
                    Ok(Progress::Done) => Ok(Progress::Done),
                    Ok(waiting) => match self.members.check() {
                        Ok(()) if look => self.look(),
                        checked => checked.map(|()| waiting),
                    },
                    Err(error) => Err(error),
                };
                match progress {
                    Ok(Progress::Done) => Ok(()),
                    Ok(waiting) => return Err(waiting),
                    Err(error) => Err(self.failed(error, &descriptor, sequence)),
                }
            }
        };
        let Some(active) = &mut self.active else { return Err(Progress::Pending) };
        let ticket = active.ticket.take();
        let staging = match &mut active.doing {
            Doing::Call { staging, .. } => staging.take(),
            Doing::Task(_) => None,
        };
        self.active = None;
        Ok((ticket, outcome.and_then(|()| finish(staging))))
    }

    /// The slow look at a call that waits: has a rank it awaits died, has the deadline passed? Before either is
    /// reported, the data is read once more: what a rank published before it went counts.
    #[cold]
    fn look(&mut self) -> Result<Progress> {
        let now = Instant::now();
        let Some(Active { doing: Doing::Call { candidate, descriptor, sequence, timeout, .. }, since, .. }) =
            &mut self.active
        else {
            return Ok(Progress::Pending);
        };
        let Some(communicator) = &mut self.communicators[*candidate] else { return Ok(Progress::Pending) };
        let since = *since.get_or_insert(now);
        let (members, descriptor, sequence) = (&self.members, *descriptor, *sequence);
        let failure = |status, rank, text| {
            Error::from(Failure { status, rank, collective: Some(descriptor.collective), sequence, text })
        };
        let what = || format!("{} #{sequence} on group {:?}", descriptor.collective.name(), members.name());
        for rank in 0..members.size() {
            if let Some(loss) = members.lost(rank) {
                let progress = communicator.poll()?;
                if progress == Progress::Done {
                    return Ok(progress);
                }
                members.check()?;
                if communicator.awaits(rank) {
                    let text = format!("{}: rank {rank} is lost: {}", what(), loss.text);
                    return Err(failure(Status::PeerLost, Some(rank), text));
                }
            }
        }
        let Some(patience) = timeout.duration() else { return Ok(Progress::Pending) };
        if now.duration_since(since) < patience {
            return Ok(Progress::Pending);
        }
        let progress = communicator.poll()?;
        if progress == Progress::Done {
            return Ok(progress);
        }
        let (late, here): (Vec<u32>, Vec<u32>) = (0..members.size()).partition(|rank| communicator.awaits(*rank));
        let who = match late.as_slice() {
            [] => "nobody was awaited, and yet it did not end".to_owned(),
            _ => format!("{} did not arrive", list(&late)),
        };
        let others = match here.as_slice() {
            [one] => format!("rank {one} did"),
            _ => format!("{} did", list(&here)),
        };
        let alive: Vec<_> =
            late.iter().map(|rank| format!("process {} of rank {rank} is alive", members.facts(*rank).pid)).collect();
        let text = format!("{}: {who} within {:.1} s ({others}); {}", what(), patience.as_secs_f64(), alive.join(", "));
        Err(failure(Status::Timeout, late.first().copied(), text))
    }

    /// What the error of a call that was begun means: it fails the group, and what is reported is the group's first
    /// failure. Errors that change nothing are found before.
    #[cold]
    fn failed(&self, error: Error, descriptor: &Descriptor, sequence: u64) -> Error {
        if self.members.is_closed() {
            return self.members.check().err().unwrap_or(error);
        }
        let failure = match error {
            Error::Failed(failure) => *failure,
            error => Failure {
                status: error.status(),
                rank: Some(self.members.rank()),
                collective: Some(descriptor.collective),
                sequence,
                text: error.to_string(),
            },
        };
        Error::from(self.members.fail(failure))
    }
}

/// What a call reads and writes on this rank.
pub(super) fn buffers(call: &Call, members: &Members) -> Buffers {
    let (rank, size) = (members.rank(), members.size());
    let (send, recv) = Pattern::new(&call.descriptor, rank, size)
        .map_or((0, 0), |pattern| (pattern.send_bytes(rank), pattern.recv_bytes(size)));
    let registered = call.descriptor.flags & FLAG_REGISTERED != 0;
    Buffers { send: (call.send, send), recv: (call.recv.cast_const(), recv), registered }
}

/// What a v-form reads and writes on this rank, part by part: what lies between is nobody's business here.
pub(super) fn uneven_buffers(call: &Uneven) -> impl Iterator<Item = Buffers> {
    let at = |memory: *const u8, part: &Part| (memory.wrapping_add(part.start), part.bytes);
    let sends = call.send_parts.iter().map(move |part| Buffers { send: at(call.send, part), ..Buffers::NONE });
    let recvs = call.recv_parts.iter().map(move |part| Buffers { recv: at(call.recv, part), ..Buffers::NONE });
    sends.chain(recvs)
}

/// What a letter reads or writes.
pub(super) fn letter_buffers(letter: &Letter) -> Buffers {
    let this = (letter.memory().cast_const(), letter.bytes() as usize);
    match letter.is_send() {
        true => Buffers { send: this, ..Buffers::NONE },
        false => Buffers { recv: this, ..Buffers::NONE },
    }
}

fn is_capturable(plan: &Plan, candidate: usize) -> bool {
    match &plan.candidates()[candidate].standing {
        Standing::Ready(capabilities) => capabilities.capture != Capture::Impossible,
        _ => false,
    }
}

impl Collapse for Core {
    fn collapse(&mut self) {
        let failure = self.members.fail_with(Error::Internal("a panic came over a call of this rank".into()));
        let tickets = self.active.take().and_then(|active| active.ticket).into_iter();
        for ticket in tickets.chain(self.queue.drain(..).map(|queued| queued.ticket)) {
            ticket.complete(Err(failure.clone().into()));
        }
        self.letters.let_go(&mut self.communicators, &failure.into());
    }
}

/// "rank 2", "ranks 2, 5".
fn list(ranks: &[u32]) -> String {
    let names: Vec<_> = ranks.iter().map(u32::to_string).collect();
    format!("rank{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}

fn placement(plan: &Plan, candidate: usize) -> Placement {
    match &plan.candidates()[candidate].standing {
        Standing::Ready(capabilities) => capabilities.placement,
        _ => Placement::None,
    }
}

/// The call that a communicator of this placement can serve, if it is not this one. Where the result must pass through
/// scratch memory, that comes too, to be copied when the call is done.
#[inline]
fn stage(call: &Call, placement: Placement) -> Result<(Option<Call>, Option<Box<Staging>>)> {
    if placement == Placement::Both {
        return Ok((None, None));
    }
    let in_place = std::ptr::eq(call.send, call.recv);
    let bytes = call.descriptor.bytes();
    match placement {
        Placement::InPlace if !in_place && bytes > 0 => {
            // SAFETY: both are `bytes` long and do not overlap, as the call's maker promised; `send` stays untouched.
            unsafe { std::ptr::copy_nonoverlapping(call.send, call.recv, bytes) };
            Ok((Some(Call { send: call.recv, ..*call }), None))
        }
        Placement::OutOfPlace if in_place && bytes > 0 => {
            let mut scratch = Vec::new();
            let words = bytes.div_ceil(size_of::<u64>());
            scratch
                .try_reserve_exact(words)
                .map_err(|_| Error::OutOfMemory(format!("{bytes} bytes to stage {} in place", call.descriptor)))?;
            scratch.resize(words, 0);
            let staged = Call { recv: scratch.as_mut_ptr().cast(), ..*call };
            Ok((Some(staged), Some(Box::new(Staging { scratch, to: call.recv, bytes }))))
        }
        _ => Ok((None, None)),
    }
}

/// Puts the result of a call that is done where its caller wants it.
#[inline]
fn finish(staging: Option<Box<Staging>>) -> Result<()> {
    if let Some(staging) = staging {
        // SAFETY: the result has room for the bytes, as the call's maker promised, and the scratch is that long.
        unsafe { std::ptr::copy_nonoverlapping(staging.scratch.as_ptr().cast(), staging.to, staging.bytes) };
    }
    Ok(())
}
