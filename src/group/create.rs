//! How groups come to be.
//!
//! All members say hello to each other: what they are about to make and with which settings. If they agree, they
//! share a board, then settle what they can use and make it (see [`crate::dispatch`]). Any rank's failure is
//! everybody's, with its reason, and undoes everything.

use std::{
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
    time::Instant,
};

use serde::{Deserialize, Serialize};

use super::{
    Deliver, DeliverKinds, Group,
    core::Outcome,
    layout::{self, KINDS, Kind, Layout},
    queue::{DeliverQueue, Queue, QueueOptions},
    registry, wait,
};
use crate::{
    bootstrap::{
        self, Channel, Members,
        control::{self, Endpoint, Message},
        fork,
        members::{channel_of, make_board},
        session::{SLICE, Session, block_on_while},
    },
    communicator::Task,
    config::{GroupOptions, Selection, Timeout, WorldOptions},
    cuda::{self, device::Device},
    dispatch::{self, Policy},
    error::{Error, Result, Status},
    shm::ring::Ring,
};

/// The longest name of a group.
const LONGEST_NAME: usize = 255;

/// What every member says first.
#[derive(Serialize, Deserialize)]
struct Hello {
    /// Settings that must be equal, by name.
    settings: Vec<(String, String)>,
    /// Half of what makes the group's number unique; everybody adds some.
    nonce: u64,
}

/// See [`Group::world`].
pub(super) fn world(options: WorldOptions) -> Result<Arc<Group>> {
    fork::watch();
    let (group, policy) = world_settings(&options)?;
    let deadline = group.timeout.deadline();
    open_devices(options.device.as_slice())?;
    let mesh = bootstrap::join_while(&options, go_on)?;
    let endpoint = Arc::new(Endpoint::new(mesh));
    open_first_channel(&endpoint);
    bootstrap::service::watch(&endpoint, options.device.is_some());
    block_on_while(&endpoint, Box::pin(world_of(endpoint.clone(), group, policy, options.device, deadline)), go_on)
}

/// What a thread does besides while it waits for a world.
fn go_on() -> bool {
    wait::advance_started(true)
}

/// See [`Group::world_local`].
pub(super) fn world_local(size: u32, devices: Option<&[i32]>, options: WorldOptions) -> Result<Vec<Arc<Group>>> {
    fork::watch();
    if devices.is_some_and(|devices| devices.len() != size as usize) {
        return Err(Error::invalid("there must be one device for each rank"));
    }
    open_devices(devices.unwrap_or_default())?;
    let (group, policy) = world_settings(&options)?;
    let deadline = group.timeout.deadline();
    let endpoints: Vec<_> = bootstrap::local(size)?.into_iter().map(|mesh| Arc::new(Endpoint::new(mesh))).collect();
    endpoints.iter().for_each(|endpoint| open_first_channel(endpoint));
    let mut tasks: Vec<Task<Arc<Group>>> = Vec::with_capacity(endpoints.len());
    for (rank, endpoint) in endpoints.iter().enumerate() {
        let device = devices.map(|devices| devices[rank]);
        bootstrap::service::watch(endpoint, device.is_some());
        tasks.push(Box::pin(world_of(endpoint.clone(), group.clone(), policy.clone(), device, deadline)));
    }
    let mut groups: Vec<Option<Result<Arc<Group>>>> = tasks.iter().map(|_| None).collect();
    let mut context = Context::from_waker(Waker::noop());
    while groups.iter().any(Option::is_none) {
        for (task, group) in tasks.iter_mut().zip(&mut groups).filter(|(_, group)| group.is_none()) {
            if let Poll::Ready(made) = task.as_mut().poll(&mut context) {
                *group = Some(made);
            }
        }
        let waiting = endpoints.iter().zip(&groups).filter(|(_, group)| group.is_none());
        let waiting: Vec<&Endpoint> = waiting.map(|(endpoint, _)| &**endpoint).collect();
        if !waiting.is_empty() {
            control::wait_for_any(&waiting, SLICE);
        }
    }
    groups.into_iter().flatten().collect()
}

/// The group of `ranks` of `parent`, this one among them; `aborted` says whether the parent was when this was asked for.
pub(super) async fn from_list(
    parent: Arc<Members>,
    ranks: Vec<u32>,
    aborted: bool,
    options: GroupOptions,
    policy: Policy,
    deliver: Deliver,
) -> Result<Outcome> {
    let deadline = options.timeout.deadline();
    let group = of_list(&parent, &ranks, aborted, options, policy, deadline).await?;
    deliver(Some(group));
    Ok(Outcome::Nothing)
}

async fn of_list(
    parent: &Arc<Members>,
    ranks: &[u32],
    aborted: bool,
    mut options: GroupOptions,
    policy: Policy,
    deadline: Option<Instant>,
) -> Result<Arc<Group>> {
    let name = options.name.take().unwrap_or_else(|| default_name(parent, ranks));
    let session = parent.session_of(ranks, deadline, format!("creation of group {name:?}")).asked_for(aborted);
    options.name = Some(name);
    let world_ranks = ranks.iter().map(|rank| parent.world_rank(*rank)).collect();
    let endpoint = parent.endpoint().clone();
    let wanted = Wanted { ranks: world_ranks, options, policy, device: parent.device(), deadline };
    make(endpoint, session, parent.uid(), wanted).await
}

/// The group of the ranks of `parent` that name this color.
pub(super) async fn by_color(
    parent: Arc<Members>,
    color: i32,
    key: i32,
    options: GroupOptions,
    policy: Policy,
    deliver: Deliver,
) -> Result<Outcome> {
    let deadline = options.timeout.deadline();
    let mut session = parent.session(deadline, format!("split of group {:?}", parent.name()));
    let mine = [color.to_le_bytes(), key.to_le_bytes()].concat();
    let said = match session.all_gather(&mine, None).await {
        Ok(said) => said,
        Err(error) => {
            session.give_up(&error);
            return Err(error);
        }
    };
    session.finish().await?;
    if color < 0 {
        deliver(None);
        return Ok(Outcome::Nothing);
    }
    let mut ranks = Vec::new();
    for (rank, message) in said.iter().enumerate() {
        let (theirs, key) = color_and_key(&message.body).ok_or_else(|| {
            Error::failed(Status::Mismatch, Some(rank as u32), format_args!("rank {rank} sent no color to the split"))
        })?;
        if theirs == color {
            ranks.push((key, rank as u32));
        }
    }
    ranks.sort_unstable();
    let ranks = ranks.into_iter().map(|(_, rank)| rank).collect();
    from_list(parent, ranks, false, options, policy, deliver).await
}

/// The groups of these kinds that this rank of `parent` has in a layout; their names begin with `options.name`.
///
/// Everybody first says which layout it was given. Then the groups are made kind by kind, in one order for all ranks,
/// and after each kind everybody hears how it went everywhere: so a failure anywhere is everybody's, undoes
/// everything, and is waited for by nobody.
pub(super) async fn from_layout(
    parent: Arc<Members>,
    layout: Arc<Layout>,
    kinds: Vec<Kind>,
    options: GroupOptions,
    policy: Policy,
    deliver: DeliverKinds,
) -> Result<Outcome> {
    let deadline = options.timeout.deadline();
    let mut session = parent.session(deadline, format!("layout of group {:?}", parent.name()));
    match layout_in(&mut session, &parent, &layout, &kinds, options, policy).await {
        Ok(groups) => {
            session.finish().await?;
            deliver(groups);
            Ok(Outcome::Nothing)
        }
        Err(error) => {
            session.give_up(&error);
            Err(error)
        }
    }
}

async fn layout_in(
    session: &mut Session,
    parent: &Arc<Members>,
    layout: &Layout,
    kinds: &[Kind],
    options: GroupOptions,
    policy: Policy,
) -> Result<Vec<(Kind, Arc<Group>)>> {
    let mask = kinds.iter().fold(0_u8, |mask, kind| mask | 1 << *kind as u8);
    let mine = [layout.digest().to_le_bytes().as_slice(), &[mask]].concat();
    let said = session.all_gather(&mine, None).await?;
    let mut digests = Vec::with_capacity(said.len());
    let mut differs = None;
    for (rank, message) in said.iter().enumerate() {
        let (digest, theirs) = message.body.split_first_chunk().unwrap_or((&[0; 8], &[]));
        digests.push(u64::from_le_bytes(*digest));
        if theirs != [mask] {
            differs.get_or_insert(rank);
        }
    }
    layout::agree(&digests)?;
    if let Some(rank) = differs {
        return Err(Error::failed(
            Status::Mismatch,
            Some(rank as u32),
            format_args!(
                "{}: rank {rank} asks for groups of other kinds than rank {}",
                session.subject(),
                parent.rank()
            ),
        ));
    }
    // A group of one needs nobody, so all of these come first, and one round tells of them.
    let (alone, shared): (Vec<Kind>, Vec<Kind>) =
        kinds.iter().copied().partition(|kind| layout.groups(*kind).size() == 1);
    let steps = std::iter::once(alone).chain(shared.into_iter().map(|kind| vec![kind]));
    let mut groups = Vec::with_capacity(kinds.len());
    for step in steps.filter(|step| !step.is_empty()) {
        let made = some_of_layout(session, parent, layout, &step, &options, &policy).await;
        session.settle(&made.as_ref().map(|_| ()).map_err(Error::clone)).await?;
        groups.extend(made?);
    }
    groups.sort_unstable_by_key(|(kind, _)| *kind as u8);
    Ok(groups)
}

async fn some_of_layout(
    session: &Session,
    parent: &Arc<Members>,
    layout: &Layout,
    kinds: &[Kind],
    options: &GroupOptions,
    policy: &Policy,
) -> Result<Vec<(Kind, Arc<Group>)>> {
    let prefix = options.name.as_deref().map_or_else(String::new, |name| format!("{name}/"));
    // Whoever waits for a rank here is to tell of it before those do who wait for the outcome.
    let patience = options.timeout.duration().map(|all| all.saturating_sub(session.elapsed()) / 10 * 9);
    let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
    let mut groups = Vec::with_capacity(kinds.len());
    for kind in kinds {
        let Some(membership) = layout.groups(*kind).of(parent.rank()) else {
            return Err(Error::Internal(format!("rank {} is in no {} group", parent.rank(), kind.name())));
        };
        let name = Some(format!("{prefix}{}:{}", kind.name(), membership.index));
        let options = GroupOptions { name, ..options.clone() };
        let made = of_list(parent, membership.ranks, false, options, policy.clone(), deadline).await;
        groups.push((*kind, made.map_err(|error| in_parent(error, membership.ranks))?));
    }
    Ok(groups)
}

/// The error of a group's making, in which ranks are counted as the parent does.
fn in_parent(error: Error, ranks: &[u32]) -> Error {
    match error {
        Error::Failed(mut failure) => {
            failure.rank = failure.rank.and_then(|rank| ranks.get(rank as usize).copied());
            Error::Failed(failure)
        }
        error => error,
    }
}

/// Agrees with all members on a number.
pub(super) async fn agree_on(members: &Arc<Members>, number: u64, deadline: Option<Instant>) -> Result<()> {
    let mut session = members.session(deadline, format!("a change of plan of group {:?}", members.name()));
    let said = match session.all_gather(&number.to_le_bytes(), None).await {
        Ok(said) => said,
        Err(error) => {
            session.give_up(&error);
            // Others may have heard from everybody and changed their plan: nothing may run on two plans.
            return Err(members.fail_with(error).into());
        }
    };
    let differs = said.iter().position(|message| message.body != number.to_le_bytes());
    session.finish().await?;
    match differs {
        None => Ok(()),
        Some(rank) => Err(Error::failed(
            Status::Mismatch,
            Some(rank as u32),
            format_args!(
                "group {:?}: rank {rank} wants another change of plan than rank {}; nothing was changed",
                members.name(),
                members.rank()
            ),
        )),
    }
}

/// Whether these can be the ranks of a group made from one of `size`.
pub(super) fn check_ranks(ranks: &[u32], size: u32) -> Result<()> {
    if ranks.is_empty() {
        return Err(Error::invalid("a group needs at least one rank"));
    }
    let mut seen = vec![false; size as usize];
    for rank in ranks {
        match seen.get_mut(*rank as usize) {
            None => {
                return Err(Error::invalid(format_args!("rank {rank} is not among the {size} of the parent group")));
            }
            Some(true) => return Err(Error::invalid(format_args!("rank {rank} stands twice in the list"))),
            Some(seen) => *seen = true,
        }
    }
    Ok(())
}

/// The bytes that the name of a group of a layout has at most, beside the prefix.
const KIND_AND_INDEX: usize = "/external_dp:1048575".len();

/// Whether the groups of `kinds` can be made in a group of `size`, named with this prefix.
pub(super) fn check_layout(layout: &Layout, kinds: &[Kind], name: Option<&str>, size: u32) -> Result<()> {
    if layout.world() != size {
        return Err(Error::invalid(format_args!(
            "the layout is for {} ranks, but the group has {size}",
            layout.world()
        )));
    }
    if let Some(twice) = KINDS.into_iter().find(|kind| kinds.iter().filter(|other| *other == kind).count() > 1) {
        return Err(Error::invalid(format_args!("groups of kind {} are asked for twice", twice.name())));
    }
    let longest = LONGEST_NAME - KIND_AND_INDEX;
    if name.is_some_and(|name| name.len() > longest) {
        return Err(Error::invalid(format_args!("what the names of groups begin with has at most {longest} bytes")));
    }
    Ok(())
}

/// Whether such a queue can be made in a group of `size`.
pub(super) fn check_queue(options: &QueueOptions, size: u32) -> Result<()> {
    if options.writer >= size {
        return Err(Error::invalid(format_args!("writer is {}, but the group has {size} ranks", options.writer)));
    }
    match &options.name {
        Some(name) if name.len() > LONGEST_NAME => {
            Err(Error::invalid(format_args!("a queue's name has at most {LONGEST_NAME} bytes")))
        }
        _ => Ok(()),
    }
}

/// What the options and this process's environment say about the choice of communicators.
pub(super) fn policy(options: &GroupOptions) -> Result<Policy> {
    if let Some(name) = &options.name
        && name.len() > LONGEST_NAME
    {
        return Err(Error::invalid(format_args!("a group's name has at most {LONGEST_NAME} bytes")));
    }
    Policy::new(&options.communicators, options.flags, options.plan.as_deref())
}

fn world_settings(options: &WorldOptions) -> Result<(GroupOptions, Policy)> {
    let mut group = options.group.clone();
    group.flags |= options.flags & crate::config::FLAG_DETERMINISTIC;
    let policy = policy(&group)?;
    Ok((group, policy))
}

/// Opens the channel of the world's creation, before anybody reads what has come for it.
fn open_first_channel(endpoint: &Endpoint) {
    endpoint.open(channel_of(endpoint.uid(), Channel::Creations), Weak::new());
}

/// What a group is to be, as this rank wants it.
struct Wanted {
    /// World ranks.
    ranks: Vec<u32>,
    options: GroupOptions,
    policy: Policy,
    /// The CUDA device of this rank; `None`: buffers are host memory.
    device: Option<i32>,
    deadline: Option<Instant>,
}

async fn world_of(
    endpoint: Arc<Endpoint>,
    mut options: GroupOptions,
    policy: Policy,
    device: Option<i32>,
    deadline: Option<Instant>,
) -> Result<Arc<Group>> {
    options.name.get_or_insert_with(|| "world".into());
    let channel = channel_of(endpoint.uid(), Channel::Creations);
    let ranks: Vec<u32> = (0..endpoint.size()).collect();
    let numbers = vec![1; ranks.len()];
    let session =
        Session::new(endpoint.clone(), channel, ranks.clone(), numbers, deadline, "creation of the world".into());
    let uid = endpoint.uid();
    make(endpoint, session, uid, Wanted { ranks, options, policy, device, deadline }).await
}

/// Makes a group in a session of its members.
async fn make(endpoint: Arc<Endpoint>, mut session: Session, parent: u64, wanted: Wanted) -> Result<Arc<Group>> {
    match make_in(endpoint, &mut session, parent, wanted).await {
        Ok(group) => {
            session.finish().await?;
            registry::enter(&group);
            Ok(group)
        }
        Err(error) => {
            session.give_up(&error);
            Err(error)
        }
    }
}

async fn make_in(endpoint: Arc<Endpoint>, session: &mut Session, parent: u64, wanted: Wanted) -> Result<Arc<Group>> {
    let uid = greet(session, &endpoint, parent, &wanted.ranks, settings(&wanted)?).await?;
    // The calls of a CUDA group do not touch the host; what its ranks do there, they do in a group of their own.
    let cpu = match wanted.device {
        Some(_) => Some(assemble(&endpoint, session, mix(uid, SIBLING), wanted.sibling(), None).await?),
        None => None,
    };
    assemble(&endpoint, session, uid, wanted, cpu).await
}

impl Wanted {
    /// The same ranks for host memory, with whatever serves that.
    fn sibling(&self) -> Wanted {
        let name = self.options.name.clone().unwrap_or_default();
        Wanted {
            ranks: self.ranks.clone(),
            options: GroupOptions { name: Some(format!("{name}/cpu")), ..self.options.clone() },
            policy: self.policy.for_host_memory(),
            device: None,
            deadline: self.deadline,
        }
    }
}

/// What makes the number of a CPU sibling out of its group's.
const SIBLING: u64 = 0x7369_626c_696e_6721;

/// Makes a group whose ranks agree on its settings.
async fn assemble(
    endpoint: &Arc<Endpoint>,
    session: &mut Session,
    uid: u64,
    wanted: Wanted,
    cpu: Option<Arc<Group>>,
) -> Result<Arc<Group>> {
    let Wanted { ranks, options, policy, device, deadline } = wanted;
    let name = options.name.clone().unwrap_or_default();
    let members = meet(endpoint, session, uid, ranks, &name, device).await?;
    if let Some(trouble) = members.unshared()
        && members.on_one_host()
    {
        log::warn!(target: "tutti::group", "group {name:?} shares no memory, so its calls will be slow: {trouble}");
    }
    let (plan, communicators) = dispatch::agree(&members, policy, deadline).await?;
    let (name, rank, size, digest) = (members.name(), members.rank(), members.size(), plan.digest());
    log::info!(target: "tutti::group", "group {name:?} is made: rank {rank} of {size}, plan {digest:016x}");
    Ok(Group::new(members, options, plan, communicators, cpu))
}

/// Says hello to the members of something new, and compares settings with theirs: its number.
async fn greet(
    session: &mut Session,
    endpoint: &Endpoint,
    parent: u64,
    ranks: &[u32],
    settings: Vec<(String, String)>,
) -> Result<u64> {
    let hello = Hello { settings, nonce: random()? };
    let mine = postcard::to_allocvec(&hello).map_err(|error| Error::Internal(format!("hello: {error}")))?;
    let said = session.all_gather(&mine, None).await?;
    compare(session.subject(), parent, endpoint, ranks, &hello, &said)
}

/// The members of something new whose ranks agree on its settings: they share a board if they can.
async fn meet(
    endpoint: &Arc<Endpoint>,
    session: &mut Session,
    uid: u64,
    ranks: Vec<u32>,
    name: &str,
    device: Option<i32>,
) -> Result<Arc<Members>> {
    // From here on peers may send on its channels.
    let channels = Channels::open(endpoint, uid);
    let board = make_board(session, &ranks, endpoint).await?;
    let members = Members::new(name.to_owned(), uid, ranks, endpoint.clone(), board, device)?;
    channels.keep();
    Ok(members)
}

/// A queue of all ranks of `parent`.
pub(super) async fn queue(
    parent: Arc<Members>,
    options: QueueOptions,
    slots: u64,
    deliver: DeliverQueue,
) -> Result<Outcome> {
    let deadline = options.timeout.deadline();
    let name = options.name.clone().unwrap_or_else(|| format!("queue of {}", parent.name()));
    let all: Vec<u32> = (0..parent.size()).collect();
    let mut session = parent.session_of(&all, deadline, format!("creation of queue {name:?}"));
    match queue_in(&mut session, &parent, &name, &options, slots, deadline).await {
        Ok(queue) => {
            session.finish().await?;
            deliver(queue);
            Ok(Outcome::Nothing)
        }
        Err(error) => {
            session.give_up(&error);
            Err(error)
        }
    }
}

async fn queue_in(
    session: &mut Session,
    parent: &Members,
    name: &str,
    options: &QueueOptions,
    slots: u64,
    deadline: Option<Instant>,
) -> Result<Arc<Queue>> {
    let settings = [("version", 0), ("queue written by", options.writer.into()), ("slots", slots)];
    let mut settings: Vec<_> = settings.map(|(name, value)| (name.to_owned(), value.to_string())).to_vec();
    settings[0].1 = env!("CARGO_PKG_VERSION").to_owned();
    settings.push(("name".to_owned(), name.to_owned()));
    let (endpoint, ranks) = (parent.endpoint().clone(), parent.world_ranks().to_vec());
    let uid = greet(session, &endpoint, parent.uid(), &ranks, settings).await?;
    let members = meet(&endpoint, session, uid, ranks, name, None).await?;
    if let Some(why) = members.unshared() {
        return Err(Error::Unsupported(format!(
            "a queue needs memory that all its ranks share: {why}; make it in a group of ranks of one host, or send objects"
        )));
    }
    let ring = Ring::share(&members, options.writer, slots, deadline).await?;
    Ok(Queue::new(members, options.writer, options.timeout, ring))
}

/// Channels that are open but belong to nobody yet.
struct Channels<'a> {
    endpoint: &'a Endpoint,
    uid: Option<u64>,
}

impl<'a> Channels<'a> {
    fn open(endpoint: &'a Endpoint, uid: u64) -> Self {
        for channel in Members::CHANNELS {
            endpoint.open(channel_of(uid, channel), Weak::new());
        }
        Channels { endpoint, uid: Some(uid) }
    }

    /// The members look after them from now on.
    fn keep(mut self) {
        self.uid = None;
    }
}

impl Drop for Channels<'_> {
    fn drop(&mut self) {
        let Some(uid) = self.uid else { return };
        for channel in Members::CHANNELS {
            self.endpoint.close(channel_of(uid, channel));
        }
    }
}

/// The *group* settings: what must be equal on all members.
fn settings(wanted: &Wanted) -> Result<Vec<(String, String)>> {
    let Wanted { ranks, options, policy, device, .. } = wanted;
    let selection = |selection: &Selection| match selection {
        Selection::All => "all".to_owned(),
        Selection::Only(names) => names.join(","),
        Selection::Except(names) => format!("^{}", names.join(",")),
        Selection::Forced(name) => format!("={name}"),
    };
    let timeout = match options.timeout {
        Timeout::Never => "none".to_owned(),
        timeout => timeout.duration().map_or_else(String::new, |duration| format!("{} ms", duration.as_millis())),
    };
    let kind = if device.is_some() { "cuda" } else { "cpu" };
    let mut settings = vec![
        ("device kind", kind.to_owned()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("ranks (of the world)", format!("{ranks:?}")),
        ("name", options.name.clone().unwrap_or_default()),
        ("timeout_ms", timeout),
        ("flags", options.flags.to_string()),
        ("communicators", selection(&policy.communicators)),
        ("TUTTI_ALL_REDUCE", selection(&policy.all_reduce)),
        ("TUTTI_PLAN", policy.overrides()),
    ];
    if device.is_some() {
        // As a number: it stands in the text of a difference.
        let plan = cuda::plan_text()?.bytes().fold(0, |number, byte| mix(number, byte.into()));
        settings.push(("TUTTI_CUDA_PLAN", format!("a table with the digest {plan:016x}")));
    }
    Ok(settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Compares everybody's hello with this rank's, and makes the group's number out of all of them.
fn compare(
    subject: &str,
    parent: u64,
    endpoint: &Endpoint,
    ranks: &[u32],
    mine: &Hello,
    said: &[Message],
) -> Result<u64> {
    let me = endpoint.rank();
    let mut uid = parent;
    for (index, (rank, message)) in ranks.iter().zip(said).enumerate() {
        let mismatch =
            |text: String| Error::failed(Status::Mismatch, Some(index as u32), format_args!("{subject}: {text}"));
        let theirs: Hello = postcard::from_bytes(&message.body)
            .map_err(|_| mismatch(format!("rank {rank} of the world runs another version of this library")))?;
        for ((name, mine), (other, theirs)) in mine.settings.iter().zip(&theirs.settings) {
            if name != other || mine != theirs {
                return Err(mismatch(format!(
                    "ranks differ in {name}: rank {me} of the world has {mine:?}, rank {rank} has {theirs:?}"
                )));
            }
        }
        uid = mix(uid, theirs.nonce);
    }
    Ok(uid)
}

/// SplitMix64's finaliser, over a number and what is mixed into it.
fn mix(number: u64, more: u64) -> u64 {
    let mut mixed = (number ^ more).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// Opens the devices before a rank joins: one that cannot be had is an error of this rank alone, at once.
fn open_devices(devices: &[i32]) -> Result<()> {
    devices.iter().try_for_each(|ordinal| Device::open(*ordinal).map(|_| ()))
}

/// "world[0,2]": the parent and the ranks, or how many where they are many.
fn default_name(parent: &Members, ranks: &[u32]) -> String {
    let ranks: Vec<_> = ranks.iter().map(u32::to_string).collect();
    let list = ranks.join(",");
    let name = parent.name();
    let name = match list.len() {
        ..=40 => format!("{name}[{list}]"),
        _ => format!("{name}[{},{} .. {}: {} ranks]", ranks[0], ranks[1], ranks[ranks.len() - 1], ranks.len()),
    };
    name.chars().take(LONGEST_NAME / 4).collect()
}

fn color_and_key(body: &[u8]) -> Option<(i32, i32)> {
    let (color, key) = body.split_at_checked(4)?;
    Some((i32::from_le_bytes(color.try_into().ok()?), i32::from_le_bytes(key.try_into().ok()?)))
}

fn random() -> Result<u64> {
    let mut bytes = [0_u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::system("getrandom", errno))?;
    Ok(u64::from_le_bytes(bytes))
}
