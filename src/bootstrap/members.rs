//! The members of one group: who they are, how to reach them, how they fail.
//!
//! Everything above asks its questions here: which rank am I, is the group alive, who is lost. A failure is
//! recorded once for the whole group: on the shared board where there is one, else on each rank's own, with a
//! message to everybody.

use std::{
    any::Any,
    ffi::c_void,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    bell::Doze,
    board::Board,
    control::{self, Endpoint, Kind, Loss},
    fork,
    mapping::Mapping,
    session::{self, Session},
};
use crate::{
    error::{Error, Failure, Result, Status},
    sync::Fences,
    topology::Facts,
};

/// The channels of a group: its number plus one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Channel {
    /// Making groups of some of the members.
    Creations = 0,
    /// What all members do together on the control plane.
    Control = 1,
    /// Headers of calls, where no board is shared.
    Calls = 2,
    /// Data of the sockets communicator.
    Data = 3,
    /// Messages from rank to rank, where they travel over sockets.
    Post = 4,
    /// What all members say of captures: in each, what was captured, or that this rank gives it up.
    Captures = 5,
}

/// What a call reads and writes on one rank.
#[derive(Clone, Copy, Debug)]
pub struct Buffers {
    /// Start and length.
    pub send: (*const u8, usize),
    /// Likewise.
    pub recv: (*const u8, usize),
    /// Whether the caller promises that both are registered, as all ranks do.
    pub registered: bool,
}

impl Buffers {
    /// None.
    pub const NONE: Buffers = Buffers { send: (std::ptr::null(), 0), recv: (std::ptr::null(), 0), registered: false };
}

/// What works for a group where no thread of the host waits for it: on a device. It is asked for failures it has met,
/// and told of those that the host knows.
pub trait Outpost: Any + Send + Sync {
    /// Whether it may be given work on these buffers; an error changes nothing.
    fn check(&self, buffers: &Buffers) -> Result<()>;
    /// [`Outpost::check`], and whether `stream` is one for work that cannot be captured.
    fn check_eager(&self, buffers: &Buffers, stream: *mut c_void) -> Result<()>;
    /// [`Outpost::check`], and readies it for one call on `stream`, which begins at once and on this thread.
    /// `capturable`: whether the call may be captured.
    fn admit(&self, buffers: &Buffers, stream: *mut c_void, capturable: bool) -> Result<()>;
    /// The failure it has met, if any.
    fn failure(&self, members: &Members) -> Option<Failure>;
    /// Ends whatever waits there, on all ranks: the group has failed.
    fn stop(&self);
    /// Ends what waits there for `rank`, on all ranks: it will not come.
    fn gone(&self, rank: u32);
    /// This rank leaves: what it was given comes to an end, in bounded time.
    fn leave(&self, rank: u32);
}

/// The members of a group.
pub struct Members {
    name: String,
    /// Unique in the world, and equal on all members; its low bits are free for [`Channel`].
    uid: u64,
    rank: u32,
    /// World ranks, in the group's order.
    ranks: Vec<u32>,
    endpoint: Arc<Endpoint>,
    board: Board,
    /// Why the board is not shared.
    unshared: Option<String>,
    /// Whether there are more ranks than cores on this host, so that spinning takes time from those awaited.
    crowded: bool,
    /// Sessions begun with each member on [`Channel::Creations`].
    creations: Mutex<Vec<u64>>,
    /// Sessions begun with each member on [`Channel::Control`].
    controls: Mutex<Vec<u64>>,
    /// Sessions begun with each member on [`Channel::Captures`].
    captures: Mutex<Vec<u64>>,
    /// Set by this process when its handle is destroyed.
    closed: AtomicBool,
    /// The CUDA device of this rank, by its ordinal; `None` in groups whose buffers are host memory.
    device: Option<i32>,
    outpost: OnceLock<Arc<dyn Outpost>>,
}

impl Members {
    /// All channels of a group.
    pub const CHANNELS: [Channel; 6] =
        [Channel::Creations, Channel::Control, Channel::Calls, Channel::Data, Channel::Post, Channel::Captures];

    /// The members of the group `uid`; opens its channels. The board, from [`make_board`], must be the same memory for
    /// all if it is shared; if not, the reason comes with it.
    pub fn new(
        name: String,
        uid: u64,
        ranks: Vec<u32>,
        endpoint: Arc<Endpoint>,
        (board, unshared): (Board, Option<String>),
        device: Option<i32>,
    ) -> Result<Arc<Self>> {
        let rank = position(&ranks, endpoint.rank())?;
        let creations = Mutex::new(vec![0; ranks.len()]);
        let controls = Mutex::new(vec![0; ranks.len()]);
        let captures = Mutex::new(vec![0; ranks.len()]);
        let crowded = is_crowded(&endpoint);
        let members = Arc::new(Members {
            name,
            uid,
            rank,
            ranks,
            endpoint,
            board,
            unshared,
            crowded,
            creations,
            controls,
            captures,
            closed: AtomicBool::new(false),
            device,
            outpost: OnceLock::new(),
        });
        for channel in Self::CHANNELS {
            members.endpoint.open(members.channel(channel), Arc::downgrade(&members));
        }
        Ok(members)
    }

    /// The group's name, for texts.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The group's number.
    pub fn uid(&self) -> u64 {
        self.uid
    }

    /// This rank, within the group.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Ranks in the group.
    pub fn size(&self) -> u32 {
        self.ranks.len() as u32
    }

    /// The rank in the world of a rank of the group.
    pub fn world_rank(&self, rank: u32) -> u32 {
        self.ranks[rank as usize]
    }

    /// World ranks, in the group's order.
    pub fn world_ranks(&self) -> &[u32] {
        &self.ranks
    }

    /// This rank's connections.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The board, shared or not.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Why the board is not shared, if it is not.
    pub fn unshared(&self) -> Option<&str> {
        self.unshared.as_deref()
    }

    /// The CUDA device of this rank; `None` in groups whose buffers are host memory.
    pub fn device(&self) -> Option<i32> {
        self.device
    }

    /// What works for the group on a device; made by `make` when it is first asked for.
    pub fn outpost_or(&self, make: impl FnOnce() -> Arc<dyn Outpost>) -> &Arc<dyn Outpost> {
        self.outpost.get_or_init(make)
    }

    /// What works for the group on a device, if anything does.
    #[inline]
    pub fn outpost(&self) -> Option<&Arc<dyn Outpost>> {
        self.outpost.get()
    }

    /// What a member said of itself.
    pub fn facts(&self, rank: u32) -> &Facts {
        self.endpoint.facts(self.world_rank(rank))
    }

    /// Whether every member is on this host, proved by a descriptor that arrived.
    pub fn on_one_host(&self) -> bool {
        self.ranks.iter().all(|rank| self.endpoint.is_local(*rank))
    }

    /// Whether this host has more ranks than cores for them.
    pub fn is_crowded(&self) -> bool {
        self.crowded
    }

    /// The number of one of the group's channels.
    pub fn channel(&self, channel: Channel) -> u64 {
        channel_of(self.uid, channel)
    }

    /// A session of all members, to be begun in the same order by all.
    pub fn session(self: &Arc<Self>, deadline: Option<Instant>, subject: String) -> Session {
        let all: Vec<u32> = (0..self.size()).collect();
        self.begin(Channel::Control, &self.controls, &all, deadline, subject)
    }

    /// A session of all members over a capture, which ends as soon as one of them gives up. No rank leaves one out.
    pub fn capture_session(self: &Arc<Self>, deadline: Option<Instant>, subject: String) -> Session {
        let all: Vec<u32> = (0..self.size()).collect();
        self.begin(Channel::Captures, &self.captures, &all, deadline, subject).ending_at_once()
    }

    /// A session of some members (group ranks), to be begun in the same order by each two of them.
    pub fn session_of(self: &Arc<Self>, ranks: &[u32], deadline: Option<Instant>, subject: String) -> Session {
        self.begin(Channel::Creations, &self.creations, ranks, deadline, subject)
    }

    /// Begins a session, and counts it with each of `ranks`.
    ///
    /// A rank that has missed sessions (it refused to begin one, or failed before it could) learns here how far a
    /// peer has come, from the newest of its mail: what is older is over, and the peer will not answer to it. Over
    /// captures, every session is answered, if only by giving up; a peer that has given up two of them is heard in both.
    fn begin(
        self: &Arc<Self>,
        channel: Channel,
        counts: &Mutex<Vec<u64>>,
        ranks: &[u32],
        deadline: Option<Instant>,
        subject: String,
    ) -> Session {
        let skips = channel != Channel::Captures;
        let channel = self.channel(channel);
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut numbers = Vec::with_capacity(ranks.len());
        for rank in ranks {
            let newest = self.endpoint.newest(self.world_rank(*rank), channel).filter(|_| skips);
            let newest = newest.map_or(0, session::number_of);
            let count = &mut counts[*rank as usize];
            *count = (*count + 1).max(newest);
            numbers.push(*count);
        }
        let ranks = ranks.iter().map(|rank| self.world_rank(*rank)).collect();
        Session::new(self.endpoint.clone(), channel, ranks, numbers, deadline, subject).within(self.clone())
    }

    /// Records that the group has failed, unless it has already, and wakes everybody. Returns the first failure.
    pub fn fail(&self, failure: Failure) -> Failure {
        if self.board.fail(&failure) && !self.board.is_shared() {
            self.tell_all(Kind::Fail, &control::encode_failure(&failure));
        }
        if let Some(outpost) = self.outpost() {
            outpost.stop();
        }
        self.failure().unwrap_or(failure)
    }

    /// [`Members::fail`] for an error that names no call.
    pub fn fail_with(&self, error: Error) -> Failure {
        self.fail(match error {
            Error::Failed(failure) => *failure,
            error => Failure {
                status: error.status(),
                rank: Some(self.rank),
                collective: None,
                sequence: 0,
                text: error.to_string(),
            },
        })
    }

    /// Lets failures that travel as messages arrive; where the board is shared, they are there already.
    #[inline(always)]
    pub fn hear(&self) {
        if !self.board.is_shared() {
            self.endpoint.progress();
        }
        if let Some(outpost) = self.outpost() {
            self.hear_outpost(&**outpost);
        }
    }

    fn hear_outpost(&self, outpost: &dyn Outpost) {
        if let Some(failure) = outpost.failure(self)
            && !self.board.has_failed()
        {
            self.fail(failure);
        }
    }

    /// Tells what works on a device which members are lost. For the service thread.
    pub fn tell_losses(&self) {
        if let Some(outpost) = self.outpost() {
            (0..self.size()).filter(|rank| self.lost(*rank).is_some()).for_each(|rank| outpost.gone(rank));
        }
    }

    /// The group's first failure.
    pub fn failure(&self) -> Option<Failure> {
        self.board.failure()
    }

    /// The group's first failure, if that is an abort.
    pub fn aborted(&self) -> Option<Failure> {
        self.failure().filter(|failure| failure.status == Status::Aborted)
    }

    /// An error if the group has failed or its handle was destroyed: one load each, for every look at the world.
    #[inline]
    pub fn check(&self) -> Result<()> {
        if !self.board.has_failed() && !self.closed.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(self.failure().map_or_else(|| self.closed_error(), Error::from))
    }

    /// Why a member is lost, if it is: dead, disconnected, or gone of its own will.
    pub fn lost(&self, rank: u32) -> Option<Loss> {
        if rank == self.rank {
            return None;
        }
        if self.board.has_left(rank) {
            return Some(Loss { text: "it left: its handle of the group was destroyed".into() });
        }
        self.endpoint.lost(self.world_rank(rank))
    }

    /// [`Members::lost`], by the rank in the world.
    pub fn lost_in_world(&self, world_rank: u32) -> Option<Loss> {
        position(&self.ranks, world_rank).ok().and_then(|rank| self.lost(rank))
    }

    /// Says goodbye: this rank's calls end, and peers that wait for it hear that it left. What it delivered stays.
    pub fn leave(&self) {
        if self.closed.swap(true, Ordering::AcqRel) || fork::forked() {
            return;
        }
        if let Some(outpost) = self.outpost() {
            outpost.leave(self.rank);
        }
        self.board.leave(self.rank);
        if !self.board.is_shared() {
            self.tell_all(Kind::Left, &[]);
        }
    }

    /// Whether this rank's handle was destroyed.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Wakes every member that sleeps. What they should see has been published before.
    #[inline]
    pub fn ring_all(&self) {
        self.board.ring_all();
    }

    /// Wakes one member if it sleeps. What it should see has been published before.
    #[inline]
    pub fn ring(&self, rank: u32) {
        self.board.ring(rank);
    }

    /// See [`super::bell::Bell::doze`].
    pub fn doze(&self) -> Doze<'_> {
        self.board.doze(self.rank)
    }

    /// What a peer told this group, by a message.
    pub(super) fn heard(&self, world_rank: u32, kind: Kind, body: &[u8]) {
        let Ok(peer) = position(&self.ranks, world_rank) else { return };
        match kind {
            Kind::Fail => {
                self.board.fail(&control::decode_failure(body));
            }
            Kind::Left => self.board.leave(peer),
            Kind::Mail | Kind::Alive => {}
        }
    }

    fn tell_all(&self, kind: Kind, body: &[u8]) {
        for peer in self.ranks.iter().filter(|peer| **peer != self.endpoint.rank()) {
            self.endpoint.send(*peer, kind, self.channel(Channel::Control), 0, body, Vec::new());
        }
    }

    fn closed_error(&self) -> Error {
        Error::failed(Status::Aborted, Some(self.rank), format_args!("group {:?} was destroyed", self.name))
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        self.leave();
        for channel in Self::CHANNELS {
            self.endpoint.close(self.channel(channel));
        }
    }
}

/// The number of a channel of group `uid`.
pub fn channel_of(uid: u64, channel: Channel) -> u64 {
    (uid & !7) | channel as u64
}

/// Makes the board of a new group in a session of its members: shared where all are on one host and the kernel
/// gives the memory, else each rank's own. Also says why it is not shared.
pub async fn make_board(session: &mut Session, ranks: &[u32], endpoint: &Endpoint) -> Result<(Board, Option<String>)> {
    let size = ranks.len() as u32;
    let bytes = Board::bytes(size);
    let first = ranks.first() == Some(&endpoint.rank());
    let made: Result<Option<OwnedFd>> = match () {
        _ if !ranks.iter().all(|rank| endpoint.is_local(*rank)) => {
            Err(Error::Unsupported("the ranks are on several hosts".into()))
        }
        _ if first => {
            Mapping::create("tutti-board", bytes).and_then(|fd| Mapping::commit(&fd, 0, bytes).map(|()| fd)).map(Some)
        }
        _ => Ok(None),
    };
    let mine = made.as_ref().err().map(Error::to_string).unwrap_or_default();
    let descriptor = made.as_ref().ok().and_then(Option::as_ref);
    let said = session.all_gather(mine.as_bytes(), descriptor).await?;
    let mut trouble = first_trouble(ranks, &said);
    let mut mapping = None;
    if trouble.is_none() {
        let passed = descriptor.or_else(|| said.first().and_then(|message| message.descriptors.first()));
        let opened =
            passed.ok_or_else(|| Error::Internal("no descriptor came".into())).and_then(|fd| Mapping::open(fd, bytes));
        let mine = opened.as_ref().err().map(Error::to_string).unwrap_or_default();
        let said = session.all_gather(mine.as_bytes(), None).await?;
        trouble = first_trouble(ranks, &said);
        mapping = opened.ok();
    }
    match (mapping, &trouble) {
        (Some(mapping), None) => {
            let lopsided = ranks.iter().all(|rank| endpoint.facts(*rank).lopsided);
            let fences = if lopsided { Fences::Lopsided } else { Fences::Even };
            Ok((Board::new(mapping, true, size, fences), None))
        }
        _ => Ok((Board::new(Mapping::private(bytes)?, false, size, Fences::Even), trouble)),
    }
}

/// The first rank's complaint in a round in which no news is good news.
pub fn first_trouble(ranks: &[u32], said: &[control::Message]) -> Option<String> {
    ranks
        .iter()
        .zip(said)
        .find(|(_, message)| !message.body.is_empty())
        .map(|(rank, message)| format!("rank {rank} of the world: {}", String::from_utf8_lossy(&message.body)))
}

fn position(ranks: &[u32], world_rank: u32) -> Result<u32> {
    ranks
        .iter()
        .position(|rank| *rank == world_rank)
        .map(|index| index as u32)
        .ok_or_else(|| Error::Internal(format!("rank {world_rank} of the world is no member")))
}

/// Whether the ranks of this host are more than the cores they may use: those in any rank's affinity mask, and not
/// more than the cgroup quotas of their processes allow.
fn is_crowded(endpoint: &Endpoint) -> bool {
    let here = (0..endpoint.size()).filter(|rank| endpoint.is_local(*rank)).map(|rank| endpoint.facts(rank));
    let mut cpus = std::collections::BTreeSet::new();
    let (mut ranks, mut quota) = (0_u64, 0_u64);
    for facts in here {
        ranks += 1;
        cpus.extend(facts.cpus.iter().copied());
        // Ranks of one container share its quota; the smallest that any rank reports is taken for all.
        quota = if ranks == 1 { facts.quota_millicores.into() } else { quota.min(facts.quota_millicores.into()) };
    }
    ranks > cpus.len() as u64 || ranks * 1000 > quota
}

/// How long a rank sleeps at most before it looks at deadlines and lives again, after having waited for `waited`.
///
/// A millisecond at first, so that a death is seen at once by whoever has just begun to wait; then longer, so that
/// a rank that waits for a slow peer costs nothing; never so long that a death goes unseen for a second.
pub fn nap(waited: Duration) -> Duration {
    (waited / 50).clamp(Duration::from_millis(1), Duration::from_millis(20))
}

/// A weak handle, for tables that must not keep a group alive.
pub type WeakMembers = Weak<Members>;
