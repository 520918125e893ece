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
    let mesh = bootstrap::join_while(&options, go_on)?;
    let endpoint = Arc::new(Endpoint::new(mesh));
    open_first_channel(&endpoint);
    bootstrap::service::watch(&endpoint);
    block_on_while(&endpoint, Box::pin(world_of(endpoint.clone(), group, policy, deadline)), go_on)
}

/// What a thread does besides while it waits for a world.
fn go_on() -> bool {
    wait::advance_started(true)
}

/// See [`Group::world_local`].
pub(super) fn world_local(size: u32, options: WorldOptions) -> Result<Vec<Arc<Group>>> {
    fork::watch();
    let (group, policy) = world_settings(&options)?;
    let deadline = group.timeout.deadline();
    let endpoints: Vec<_> = bootstrap::local(size)?.into_iter().map(|mesh| Arc::new(Endpoint::new(mesh))).collect();
    endpoints.iter().for_each(|endpoint| open_first_channel(endpoint));
    let mut tasks: Vec<Task<Arc<Group>>> = Vec::with_capacity(endpoints.len());
    for endpoint in &endpoints {
        tasks.push(Box::pin(world_of(endpoint.clone(), group.clone(), policy.clone(), deadline)));
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
    let group = make(endpoint, session, parent.uid(), world_ranks, options, policy, deadline).await?;
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

async fn world_of(
    endpoint: Arc<Endpoint>,
    mut options: GroupOptions,
    policy: Policy,
    deadline: Option<Instant>,
) -> Result<Arc<Group>> {
    options.name.get_or_insert_with(|| "world".into());
    let channel = channel_of(endpoint.uid(), Channel::Creations);
    let ranks: Vec<u32> = (0..endpoint.size()).collect();
    let numbers = vec![1; ranks.len()];
    let session =
        Session::new(endpoint.clone(), channel, ranks.clone(), numbers, deadline, "creation of the world".into());
    let uid = endpoint.uid();
    make(endpoint, session, uid, ranks, options, policy, deadline).await
}

/// Makes a group in a session of its members.
async fn make(
    endpoint: Arc<Endpoint>,
    mut session: Session,
    parent: u64,
    ranks: Vec<u32>,
    options: GroupOptions,
    policy: Policy,
    deadline: Option<Instant>,
) -> Result<Arc<Group>> {
    match make_in(endpoint, &mut session, parent, ranks, options, policy, deadline).await {
        Ok(group) => session.finish().await.map(|()| group),
        Err(error) => {
            session.give_up(&error);
            Err(error)
        }
    }
}

async fn make_in(
    endpoint: Arc<Endpoint>,
    session: &mut Session,
    parent: u64,
    ranks: Vec<u32>,
    options: GroupOptions,
    policy: Policy,
    deadline: Option<Instant>,
) -> Result<Arc<Group>> {
    let hello = Hello { settings: settings(&ranks, &options, &policy), nonce: random()? };
    let mine = postcard::to_allocvec(&hello).map_err(|error| Error::Internal(format!("hello: {error}")))?;
    let said = session.all_gather(&mine, None).await?;
    let uid = compare(session.subject(), parent, &endpoint, &ranks, &hello, &said)?;
    // From here on peers may send on the group's channels.
    let channels = Channels::open(&endpoint, uid);
    let board = make_board(session, &ranks, &endpoint).await?;
    let name = options.name.clone().unwrap_or_default();
    if let Some(trouble) = &board.1
        && ranks.iter().all(|rank| endpoint.is_local(*rank))
    {
        log::warn!(target: "tutti::group", "group {name:?} shares no memory, so its calls will be slow: {trouble}");
    }
    let members = Members::new(name, uid, ranks, endpoint.clone(), board)?;
    channels.keep();
    let (plan, communicators) = dispatch::agree(&members, policy, deadline).await?;
    let (name, rank, size, digest) = (members.name(), members.rank(), members.size(), plan.digest());
    log::info!(target: "tutti::group", "group {name:?} is made: rank {rank} of {size}, plan {digest:016x}");
    Ok(Group::new(members, options, plan, communicators))
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
fn settings(ranks: &[u32], options: &GroupOptions, policy: &Policy) -> Vec<(String, String)> {
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
    [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("ranks (of the world)", format!("{ranks:?}")),
        ("name", options.name.clone().unwrap_or_default()),
        ("timeout_ms", timeout),
        ("flags", options.flags.to_string()),
        ("communicators", selection(&policy.communicators)),
        ("TUTTI_ALL_REDUCE", selection(&policy.all_reduce)),
        ("TUTTI_PLAN", policy.overrides()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
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
    // SplitMix64's finaliser, over everybody's nonce in turn.
    let mix = |number: u64, nonce: u64| {
        let mut mixed = (number ^ nonce).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    };
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
