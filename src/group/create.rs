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

use super::{Deliver, Group, core::Outcome, wait};
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

/// The group of `ranks` of `parent`, this one among them.
pub(super) async fn from_list(
    parent: Arc<Members>,
    ranks: Vec<u32>,
    mut options: GroupOptions,
    policy: Policy,
    deliver: Deliver,
) -> Result<Outcome> {
    let deadline = options.timeout.deadline();
    let name = options.name.take().unwrap_or_else(|| default_name(&parent, &ranks));
    let session = parent.session_of(&ranks, deadline, format!("creation of group {name:?}"));
    options.name = Some(name);
    let world_ranks = ranks.iter().map(|rank| parent.world_rank(*rank)).collect();
    let endpoint = parent.endpoint().clone();
    let wanted = Wanted { ranks: world_ranks, options, policy, device: parent.device(), deadline };
    let group = make(endpoint, session, parent.uid(), wanted).await?;
    deliver(Some(group));
    Ok(Outcome::Nothing)
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
    from_list(parent, ranks, options, policy, deliver).await
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

/// Agrees with all members that they have captured the same: so many calls, with this digest. Ranks that differ fail
/// the group, as any failure does but one: a rank that aborted its capture only says so.
pub(super) async fn agree_on_capture(
    members: &Arc<Members>,
    captured: (u32, u64),
    deadline: Option<Instant>,
) -> Result<()> {
    let mut session = members.session(deadline, format!("a capture of group {:?}", members.name()));
    let mine = [u64::from(captured.0).to_le_bytes(), captured.1.to_le_bytes()].concat();
    let said = match session.all_gather(&mine, None).await {
        Ok(said) => said,
        Err(error) => {
            session.give_up(&error);
            return Err(match error.status() {
                Status::InvalidUsage => Error::usage(error),
                _ => members.fail_with(error).into(),
            });
        }
    };
    session.finish().await?;
    // All ranks compare with the first, and so tell one story.
    let Some((first, rank)) = said.first().zip(said.iter().position(|message| message.body != said[0].body)) else {
        return Ok(());
    };
    let calls = |message: &Message| message.body.first_chunk().map_or(0, |count| u64::from_le_bytes(*count));
    let (ours, theirs, name) = (calls(first), calls(&said[rank]), members.name());
    let text = match ours == theirs {
        true => format!("ranks 0 and {rank} captured {ours} calls each of group {name:?}, but different ones"),
        false => format!("rank 0 captured {ours} calls of group {name:?}, rank {rank} {theirs}"),
    };
    Err(members.fail_with(Error::failed(Status::Mismatch, Some(rank as u32), text)).into())
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
        Ok(group) => session.finish().await.map(|()| group),
        Err(error) => {
            session.give_up(&error);
            Err(error)
        }
    }
}

async fn make_in(endpoint: Arc<Endpoint>, session: &mut Session, parent: u64, wanted: Wanted) -> Result<Arc<Group>> {
    let hello = Hello { settings: settings(&wanted)?, nonce: random()? };
    let mine = postcard::to_allocvec(&hello).map_err(|error| Error::Internal(format!("hello: {error}")))?;
    let said = session.all_gather(&mine, None).await?;
    let uid = compare(session.subject(), parent, &endpoint, &wanted.ranks, &hello, &said)?;
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
    // From here on peers may send on the group's channels.
    let channels = Channels::open(endpoint, uid);
    let board = make_board(session, &ranks, endpoint).await?;
    let name = options.name.clone().unwrap_or_default();
    if let Some(trouble) = &board.1
        && ranks.iter().all(|rank| endpoint.is_local(*rank))
    {
        log::warn!(target: "tutti::group", "group {name:?} shares no memory, so its calls will be slow: {trouble}");
    }
    let members = Members::new(name, uid, ranks, endpoint.clone(), board, device)?;
    channels.keep();
    let (plan, communicators) = dispatch::agree(&members, policy, deadline).await?;
    let (name, rank, size, digest) = (members.name(), members.rank(), members.size(), plan.digest());
    log::info!(target: "tutti::group", "group {name:?} is made: rank {rank} of {size}, plan {digest:016x}");
    Ok(Group::new(members, options, plan, communicators, cpu))
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
