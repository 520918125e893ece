//! Groups: ordered ranks that communicate, and all that belongs to them.
//!
//! * this page — [`Group`], what a caller sees;
//! * [`core`](self) — the operation that is going on and those behind it; `gate` — who may touch it;
//! * `wait` — how a thread spends the time until its peers come;
//! * `letters` — messages from rank to rank, beside the calls;
//! * [`request`](Request), [`batch`] — calls that are waited for later, and calls made together;
//! * [`layout`] — how a world splits into tensor, pipeline, data, … parallel groups, as pure data;
//! * `create` — how groups come to be; `memory` — memory that their ranks read in place;
//! * `capture` — a rank's part in the commit of a capture;
//! * `registry` — groups by name;
//! * [`queue`] — control messages from one rank to all others.

pub mod batch;
mod capture;
mod core;
mod create;
mod gate;
pub mod layout;
mod letters;
mod memory;
pub mod queue;
mod registry;
mod request;
mod wait;

use std::{
    borrow::Borrow,
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use self::{
    capture::{Commit, Settled},
    core::{Core, Outcome, Work},
    gate::{Gate, Inside},
    layout::{Kind, Layout},
    queue::{DeliverQueue, QueueOptions},
};
pub use self::{memory::free_memory, request::Request};
pub use crate::bootstrap::fork::forked;
use crate::{
    bootstrap::{Members, members::Buffers},
    communicator::{Call, Descriptor, Letter, Placement, Uneven, post::Delivery},
    config::{GroupOptions, Timeout, WorldOptions},
    cuda::lane::{Lane, Notes},
    dispatch::{Format, Plan, Standing},
    dtype::DType,
    error::{Error, Failure, Result, Status},
};

/// What is done with a group that was made: before the making call returns, or at the end of its batch. `None` for
/// a rank that is not in it.
pub type Deliver = Box<dyn FnOnce(Option<Arc<Group>>) + Send>;

/// As [`Deliver`], for the groups of a layout that this rank is in, by kind.
pub type DeliverKinds = Box<dyn FnOnce(Vec<(Kind, Arc<Group>)>) + Send>;

/// How long whoever ends a call from outside waits for it to let go of its buffers.
const LETTING_GO: Duration = Duration::from_secs(10);

/// A group of ranks.
///
/// One thread at a time calls collectives; checking, aborting, explaining and asking are for any thread at any time.
pub struct Group {
    members: Arc<Members>,
    /// Resolved: nothing in it means "the default".
    options: GroupOptions,
    core: Gate<Core>,
    /// Whether a thread is in a call that it waits for without holding the gate.
    occupied: AtomicBool,
    /// The plan, for whoever asks from another thread.
    plan: Arc<Mutex<Arc<Plan>>>,
    /// The group of the same ranks for host memory, where this one is for that of devices.
    cpu: Option<Arc<Group>>,
    /// See [`Group::tag`].
    tag: OnceLock<usize>,
    /// See [`Group::line_up`].
    lines: Mutex<Lines>,
}

/// Lines in which things stand, by number.
#[derive(Default)]
struct Lines {
    next: u64,
    lines: BTreeMap<(u32, u32), VecDeque<u64>>,
}

/// A place in a line of a group, given up when it is dropped.
pub struct Turn {
    group: Arc<Group>,
    line: (u32, u32),
    number: u64,
}

impl Group {
    /// Joins the world that the options or the environment name, as one rank of it. Blocks until all ranks came.
    pub fn world(options: WorldOptions) -> Result<Arc<Self>> {
        create::world(options)
    }

    /// A world whose `size` ranks are all in this process, for one thread or several to drive.
    /// `devices`: the CUDA device of each rank; without, buffers are host memory.
    pub fn world_local(size: u32, devices: Option<&[i32]>, options: WorldOptions) -> Result<Vec<Arc<Self>>> {
        create::world_local(size, devices, options)
    }

    /// Makes a group of some ranks of this one, which becomes theirs in the given order. Collective over those ranks
    /// alone; any other rank that calls gets `None`. A failure leaves this group as it is, and works on a group that
    /// has failed: that is how survivors go on.
    pub fn create(self: &Arc<Self>, ranks: &[u32], options: GroupOptions, deliver: Deliver) -> Result<()> {
        let what = || format!("the making of a group from {:?}", self.name());
        batch::checked(what(), create::check_ranks(ranks, self.size()))?;
        if !ranks.contains(&self.rank()) {
            deliver(None);
            return Ok(());
        }
        let policy = batch::checked(what(), create::policy(&options))?;
        let (parent, aborted) = (self.members.clone(), self.members.aborted().is_some());
        let task = create::from_list(parent, ranks.to_vec(), aborted, self.inherit(options), policy, deliver);
        self.perform(Work::Task(Box::pin(task)))
    }

    /// Splits the group: ranks with one color make a group, ordered by key, then by rank. Collective over all ranks;
    /// a negative color gets `None`.
    pub fn split(self: &Arc<Self>, color: i32, key: i32, options: GroupOptions, deliver: Deliver) -> Result<()> {
        let what = || format!("the split of group {:?}", self.name());
        batch::checked(what(), self.members.check())?;
        let policy = batch::checked(what(), create::policy(&options))?;
        let task = create::by_color(self.members.clone(), color, key, self.inherit(options), policy, deliver);
        self.perform(Work::Task(Box::pin(task)))
    }

    /// Makes the groups of these kinds that this rank has in a layout of this group: one of each, named after its kind
    /// and number, as `tp:0`, behind `options.name` and a slash where there is one. Collective over all ranks, which
    /// must have been given the same layout and ask for the same kinds; otherwise no group is made. A failure on any
    /// rank fails it on all, and leaves this group as it is.
    pub fn create_layout(
        self: &Arc<Self>,
        layout: &Arc<Layout>,
        kinds: &[Kind],
        options: GroupOptions,
        deliver: DeliverKinds,
    ) -> Result<()> {
        let what = || format!("the making of a layout's groups from {:?}", self.name());
        batch::checked(what(), self.members.check())?;
        batch::checked(what(), create::check_layout(layout, kinds, options.name.as_deref(), self.size()))?;
        let policy = batch::checked(what(), create::policy(&options))?;
        let (parent, layout, options) = (self.members.clone(), layout.clone(), self.inherit(options));
        let task = create::from_layout(parent, layout, kinds.to_vec(), options, policy, deliver);
        self.perform(Work::Task(Box::pin(task)))
    }

    /// Makes a queue of all ranks, through which one of them writes messages to all others. Collective. The queue's
    /// failures are its own; it ends with its handle, not with the group's.
    pub fn create_queue(self: &Arc<Self>, mut options: QueueOptions, deliver: DeliverQueue) -> Result<()> {
        let what = || format!("the making of a queue from {:?}", self.name());
        batch::checked(what(), self.members.check())?;
        let slots = batch::checked(what(), options.slots())?;
        batch::checked(what(), create::check_queue(&options, self.size()))?;
        options.timeout = options.timeout.or(self.options.timeout);
        self.perform(Work::Task(Box::pin(create::queue(self.members.clone(), options, slots, deliver))))
    }

    /// The group of this name in this process. Where ranks share the process and more than one of them is in it, `rank`
    /// says whose; where several groups share a name, none is found.
    pub fn find(name: &str, rank: Option<u32>) -> Result<Arc<Self>> {
        registry::find(name, rank)
    }

    /// A number that whoever keeps the group finds again with it; 0 until it is set.
    pub fn tag(&self) -> usize {
        self.tag.get().copied().unwrap_or(0)
    }

    /// Sets [`Group::tag`], once.
    pub fn set_tag(&self, tag: usize) {
        let _ = self.tag.set(tag);
    }

    /// A place at the end of a line, which is for things of this rank that have to come one after the other; `enter` is what
    /// puts them in that order. Nobody else lines up meanwhile, so the two orders are one.
    pub fn line_up<T>(self: &Arc<Self>, line: (u32, u32), enter: impl FnOnce() -> Result<T>) -> Result<(Turn, T)> {
        let mut lines = self.lines();
        let entered = enter()?;
        let number = lines.next;
        lines.next += 1;
        lines.lines.entry(line).or_default().push_back(number);
        Ok((Turn { group: self.clone(), line, number }, entered))
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This rank.
    pub fn rank(&self) -> u32 {
        self.members.rank()
    }

    /// Ranks in the group.
    pub fn size(&self) -> u32 {
        self.members.size()
    }

    /// The CUDA device of this rank; `None` where buffers are host memory.
    pub fn device(&self) -> Option<i32> {
        self.members.device()
    }

    /// The group of the same ranks for host memory; `None` where this is it.
    pub fn cpu(&self) -> Option<&Arc<Group>> {
        self.cpu.as_ref()
    }

    /// The name, for texts.
    pub fn name(&self) -> &str {
        self.members.name()
    }

    /// The group's first failure, as an error.
    pub fn check(&self) -> Result<()> {
        self.hear();
        self.members.check()
    }

    /// The group's first failure.
    pub fn failure(&self) -> Option<Failure> {
        self.hear();
        self.members.failure()
    }

    /// Which ranks are alive and have not left, as far as can be told now. A rank whose loss failed the group is not,
    /// even where this rank has yet to see it go: all ranks tell one story.
    pub fn alive(&self) -> Vec<bool> {
        let failed_by = self.failure().filter(|failure| failure.status == Status::PeerLost).and_then(|loss| loss.rank);
        (0..self.size()).map(|rank| failed_by != Some(rank) && self.members.lost(rank).is_none()).collect()
    }

    /// Returns when all ranks have called it.
    pub fn sync(self: &Arc<Self>, timeout: Timeout) -> Result<()> {
        if let Some(cpu) = &self.cpu {
            batch::checked("a sync", self.members.check())?;
            return cpu.sync(timeout);
        }
        self.run(Call::new(Descriptor::BARRIER, std::ptr::null(), std::ptr::null_mut()), timeout)
    }

    /// Fails the group on all ranks: whoever waits in it returns within 10 ms. From any thread.
    pub fn abort(&self) {
        let rank = self.rank();
        self.members.fail(Failure {
            status: Status::Aborted,
            rank: Some(rank),
            collective: None,
            sequence: 0,
            text: format!("rank {rank} aborted group {:?}", self.name()),
        });
        if let Some(cpu) = &self.cpu {
            cpu.abort();
        }
    }

    /// Fails the group on all ranks over what this one cannot do; what was its first failure is.
    pub(crate) fn fail(&self, error: Error) -> Error {
        match self.members.is_closed() {
            true => self.members.check().err().unwrap_or(error),
            false => self.members.fail_with(error).into(),
        }
    }

    /// Goes on with everything that this thread has started, for whoever waits for something else.
    pub(crate) fn go_on() {
        wait::advance_started(true);
    }

    /// How long its calls may take.
    pub(crate) fn timeout(&self) -> Timeout {
        self.options.timeout
    }

    /// Leaves the group: a call that is going on ends with `ABORTED`, later ones are refused, and peers that wait for
    /// this rank hear that it left. What it has delivered stays readable to them.
    pub fn leave(&self) {
        if forked() {
            return;
        }
        self.members.leave();
        if let Some(cpu) = &self.cpu {
            cpu.leave();
        }
        // What was started and not waited for ends here. A thread that is inside ends its call itself; whoever is
        // told that the group is destroyed may free the buffers, so it has to be out.
        let deadline = Instant::now() + LETTING_GO;
        while Instant::now() < deadline {
            if let Some(mut core) = self.core.poll() {
                core.advance(false);
                return;
            }
            rustix::thread::sched_yield();
        }
    }

    /// Makes a call and waits for it; in a batch, writes it down.
    #[inline]
    pub fn run(self: &Arc<Self>, call: impl Borrow<Call>, timeout: Timeout) -> Result<()> {
        let call = call.borrow(); // most calls are over at their first look, and then were never copied
        let timeout = timeout.or(self.options.timeout);
        if batch::is_open() {
            batch::checked(call.descriptor, self.refuse_call(call))?;
            batch::push(self, Work::Call(*call, timeout));
            return Ok(());
        }
        let mut core = self.enter()?;
        if core.is_in_call() {
            let _occupied = self.occupy();
            let ticket = core.enqueue(Work::Call(*call, timeout));
            drop(core);
            return wait::for_tickets(&[(self.clone(), ticket)], Timeout::Never).unwrap_or(Ok(()));
        }
        match core.begin(call, timeout) {
            Some(outcome) => outcome,
            None => wait::for_call(self, &mut core),
        }
    }

    /// Starts a call, behind those that were started before it.
    pub fn start(self: &Arc<Self>, call: Call, timeout: Timeout) -> Result<Arc<Request>> {
        Request::start(self, Work::Call(call, timeout.or(self.options.timeout)))
    }

    /// Makes a v-form and waits for it; in a batch, writes it down.
    pub fn run_uneven(self: &Arc<Self>, call: Uneven, timeout: Timeout) -> Result<()> {
        batch::checked(call.descriptor, self.refuse_uneven(&call))?;
        self.perform(Work::Uneven(call, timeout.or(self.options.timeout)))
    }

    /// Starts a v-form, behind the calls that were started before it.
    pub fn start_uneven(self: &Arc<Self>, call: Uneven, timeout: Timeout) -> Result<Arc<Request>> {
        Request::start(self, Work::Uneven(call, timeout.or(self.options.timeout)))
    }

    /// Sends and receives, all letters at once, and waits for all of them; in a batch, writes them down. Says how many
    /// elements were received (0 in a batch).
    ///
    /// Letters take no turn among the group's calls; see [`crate::communicator::post`] for how they meet. A message that
    /// does not fit its receive, or is of another dtype, is a `MISMATCH` that leaves the group alive; every other error
    /// fails it, but for those that are found before anything happens.
    #[inline]
    pub fn exchange(self: &Arc<Self>, letters: &[Letter], timeout: Timeout) -> Delivery {
        let timeout = timeout.or(self.options.timeout);
        if batch::is_open() {
            for letter in letters {
                batch::checked(letter, self.refuse_letter(letter))?;
            }
            letters.iter().for_each(|letter| batch::push(self, Work::Letter(*letter, timeout)));
            return Ok(0);
        }
        letters.iter().try_for_each(|letter| self.check_letter(letter))?;
        let mut core = self.enter()?;
        let mut begun = Ok(());
        for (index, letter) in letters.iter().enumerate() {
            let last = index + 1 == letters.len();
            begun = begun.and_then(|()| core.begin_letter(*letter, last, timeout));
        }
        let outcome = match core.letters_outcome() {
            Some(outcome) => outcome,
            None => wait::for_letters(self, &mut core),
        };
        begun.and(outcome)
    }

    /// Starts a letter, beside everything else. [`Request::received`] says how many elements came.
    pub fn post(self: &Arc<Self>, letter: Letter, timeout: Timeout) -> Result<Arc<Request>> {
        Request::start(self, Work::Letter(letter, timeout.or(self.options.timeout)))
    }

    /// Sends bytes to `peer` and waits until the memory may be used again.
    pub fn send_bytes(self: &Arc<Self>, bytes: &[u8], peer: u32, tag: i64, timeout: Timeout) -> Result<()> {
        refuse_batch()?;
        // SAFETY: the slice is borrowed until the letter is over, which it is when `exchange` returns without a batch.
        let letter = unsafe { Letter::send(peer, tag, DType::Bytes, bytes.as_ptr(), bytes.len() as u64) };
        self.exchange(&[letter], timeout).map(drop)
    }

    /// Receives up to as many bytes as there is room for from `peer`, waits for them, and says how many came.
    pub fn receive_bytes(self: &Arc<Self>, room: &mut [u8], peer: u32, tag: i64, timeout: Timeout) -> Result<usize> {
        refuse_batch()?;
        // SAFETY: as in `send_bytes`.
        let letter = unsafe { Letter::receive(peer, tag, DType::Bytes, room.as_mut_ptr(), room.len() as u64) };
        self.exchange(&[letter], timeout).map(|count| count as usize)
    }

    /// Where the communicator that serves this all_reduce can put its result without staging.
    pub fn all_reduce_mode(&self, descriptor: &Descriptor) -> Placement {
        let plan = self.plan();
        match plan.choose(descriptor).map(|choice| &plan.candidates()[choice.candidate].standing) {
            Some(Standing::Ready(capabilities)) => capabilities.placement,
            _ => Placement::None,
        }
    }

    /// What serves a call, and why nothing else does.
    pub fn explain(&self, descriptor: &Descriptor, format: Format) -> Result<String> {
        Ok(self.plan().explain(self.name(), descriptor, format))
    }

    /// Switches a communicator on or off, together with all ranks; what it served, the next in the list serves.
    pub fn set_enabled(self: &Arc<Self>, communicator: &str, enabled: bool) -> Result<()> {
        if batch::is_open() {
            return Err(Error::usage("tutti_group_set_enabled cannot stand in a batch"));
        }
        let mut plan = Plan::clone(&self.plan());
        plan.set_enabled(communicator, enabled)?;
        let plan = Arc::new(plan);
        let (members, deadline) = (self.members.clone(), self.options.timeout.deadline());
        members.check()?;
        self.perform(Work::Task(Box::pin(async move {
            create::agree_on(&members, plan.digest(), deadline).await?;
            Ok(Outcome::Plan(plan))
        })))
    }

    /// Lets a capture session hear which calls are captured from now on, for as long as it keeps the notes; `None`
    /// where nothing can be captured.
    pub fn note_captures(&self) -> Option<Arc<Notes>> {
        let lane = Lane::existing(&self.members)?;
        let notes = Arc::new(Notes::default());
        lane.note_into(&notes);
        Some(notes)
    }

    /// Agrees with all ranks that they have captured the same calls; ranks that have not fail the group. Where the
    /// commit of the group `before` it did not succeed, or this one cannot begin, the others hear that this rank gives up.
    /// Also gives how it ended, for the group behind it: in a batch that is not known yet.
    pub(crate) fn commit_capture(
        self: &Arc<Self>,
        notes: &Arc<Notes>,
        before: Option<Arc<Settled>>,
    ) -> (Result<()>, Arc<Settled>) {
        let (settled, timeout) = (Arc::new(Settled::default()), self.options.timeout);
        let commit = Commit::new(self.members.clone(), notes.clone(), settled.clone());
        if let Err(error) = batch::checked("a commit of a capture", self.members.check()) {
            commit.give_up(&error);
            return (Err(error), settled);
        }
        if let Some(cause) = before.as_deref().and_then(Settled::error) {
            return (Err(commit.give_up(&cause)), settled);
        }
        let work = Work::Task(Box::pin(async move {
            match before {
                Some(before) => commit.run_after(&before, timeout).await,
                None => commit.run(timeout).await,
            }
            .map(|()| Outcome::Nothing)
        }));
        (self.perform(work), settled)
    }

    /// Tells the ranks that wait in [`Group::commit_capture`] that this one will not come. Never waits.
    pub(crate) fn abort_capture(&self) {
        capture::give_up(&self.members, format_args!("rank {} aborted its capture", self.rank()), None);
    }

    /// Allocates `bytes` on every rank that all ranks of the group, and of groups made from it, can read in place. What it
    /// gives is at least a page, zeroed, and lives until [`free_memory`]. Collective, with equal `bytes`.
    pub fn allocate(self: &Arc<Self>, bytes: usize, deliver: Box<dyn FnOnce(*mut u8) + Send>) -> Result<()> {
        batch::checked("an allocation", self.members.check())?;
        self.perform(Work::Task(Box::pin(memory::allocate(self.members.clone(), bytes, self.options.timeout, deliver))))
    }

    /// A group of members that have agreed on everything.
    fn new(
        members: Arc<Members>,
        options: GroupOptions,
        plan: Plan,
        communicators: crate::dispatch::Communicators,
        cpu: Option<Arc<Group>>,
    ) -> Arc<Self> {
        let plan = Arc::new(Mutex::new(Arc::new(plan)));
        let core = Gate::new(Core::new(members.clone(), plan.clone(), communicators));
        Arc::new(Group {
            members,
            options,
            core,
            occupied: AtomicBool::new(false),
            plan,
            cpu,
            tag: OnceLock::new(),
            lines: Mutex::default(),
        })
    }

    /// Work that is not a call: waited for, or written down in a batch.
    fn perform(self: &Arc<Self>, work: Work) -> Result<()> {
        if batch::is_open() {
            batch::push(self, work);
            return Ok(());
        }
        let mut core = self.enter()?;
        let _occupied = self.occupy();
        let ticket = core.enqueue(work);
        drop(core);
        wait::for_tickets(&[(self.clone(), ticket)], Timeout::Never).unwrap_or(Ok(()))
    }

    /// The way inside for a call, if no other is going on.
    #[inline(always)]
    fn enter(&self) -> Result<Inside<'_, Core>> {
        let core = self.core.call(|| self.members.ring(self.rank()))?;
        match self.occupied.load(Ordering::Relaxed) {
            true => Err(gate::occupied()),
            false => Ok(core),
        }
    }

    /// To be held by whoever waits for a call outside the gate; taken while inside.
    fn occupy(&self) -> Occupied<'_> {
        self.occupied.store(true, Ordering::Relaxed);
        Occupied(self)
    }

    /// What can be refused before anything is published.
    fn refuse_unserved(&self, descriptor: &Descriptor) -> Result<()> {
        self.members.check()?;
        let plan = self.plan();
        plan.choose(descriptor).map(|_| ()).ok_or_else(|| plan.refusal(descriptor))
    }

    fn refuse_call(&self, call: &Call) -> Result<()> {
        self.refuse_unserved(&call.descriptor)?;
        match self.members.outpost() {
            Some(outpost) => outpost.check(&core::buffers(call, &self.members)),
            None => Ok(()),
        }
    }

    fn refuse_uneven(&self, call: &Uneven) -> Result<()> {
        let size = self.size() as usize;
        if call.send_parts.len() != size || call.recv_parts.len() != size {
            return Err(Error::invalid(format_args!("{}: every one of the {size} ranks has a part", call.descriptor)));
        }
        self.refuse_unserved(&call.descriptor)?;
        match self.members.outpost() {
            Some(outpost) => {
                core::uneven_buffers(call).try_for_each(|part| outpost.check(&part))?;
                outpost.check_eager(&Buffers::NONE, call.stream)
            }
            None => Ok(()),
        }
    }

    fn refuse_letter(&self, letter: &Letter) -> Result<()> {
        self.check_letter(letter)?;
        self.refuse_unserved(&letter.descriptor())
    }

    #[inline]
    fn check_letter(&self, letter: &Letter) -> Result<()> {
        if letter.peer() >= self.size() {
            return Err(Error::invalid(format_args!("{letter}: the group has {} ranks", self.size())));
        }
        match self.members.outpost() {
            Some(outpost) => outpost.check_eager(&core::letter_buffers(letter), letter.stream()),
            None => Ok(()),
        }
    }

    /// Options of a group made from this one: what they leave open is inherited.
    fn inherit(&self, mut options: GroupOptions) -> GroupOptions {
        options.timeout = options.timeout.or(self.options.timeout);
        options.plan = options.plan.or_else(|| self.options.plan.clone());
        options
    }

    fn plan(&self) -> Arc<Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets failures arrive: those that travel as messages, and those of work that nobody waits for now.
    fn hear(&self) {
        self.members.hear();
        if let Some(mut core) = self.core.poll()
            && !core.is_idle()
        {
            core.advance(true);
        }
    }
}

/// For what may not outlive its call.
fn refuse_batch() -> Result<()> {
    match batch::is_open() {
        true => Err(Error::usage("borrowed memory cannot stand in a batch, whose end may outlive it: use Letter")),
        false => Ok(()),
    }
}

/// A call that is waited for outside the gate.
struct Occupied<'a>(&'a Group);

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        self.0.occupied.store(false, Ordering::Release);
    }
}

impl Turn {
    /// Whether nobody stands before it.
    pub fn has_come(&self) -> bool {
        self.group.lines().lines.get(&self.line).and_then(VecDeque::front) == Some(&self.number)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut lines = self.group.lines();
        if let Some(line) = lines.lines.get_mut(&self.line) {
            line.retain(|number| *number != self.number);
            if line.is_empty() {
                lines.lines.remove(&self.line);
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.members.leave();
        if !forked() {
            registry::leave(self);
        }
    }
}
