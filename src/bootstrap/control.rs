//! The control plane: framed messages, with descriptors where the peer is local, over one connection per peer.
//!
//! All groups of a rank share its [`Endpoint`]; a message names the *channel* it belongs to, and waits in that
//! channel's mailbox until somebody asks. Nothing here blocks but [`Endpoint::wait`], which is bounded, and no
//! thread is needed: whoever waits for something moves everybody's bytes. Lengths are checked before anything is
//! allocated, and mail for a channel nobody has opened is dropped.

use std::{
    any::Any,
    collections::{HashMap, VecDeque},
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags},
};

use super::{
    channel::CROWDED,
    fork,
    members::Members,
    mesh::{Link, Mesh},
    regions::Regions,
};
use crate::{
    dtype::Collective,
    error::{Failure, Status},
    topology::Facts,
};

/// The longest body of a message. Data moves in chunks far below it.
pub const LONGEST_BODY: usize = 1 << 20;
/// The most descriptors in one message.
const MOST_DESCRIPTORS: usize = 4;
/// What every frame begins with; anything else means that the stream is lost.
const MAGIC: u32 = 0x3154_5554;
const HEADER: usize = 32;
/// Bytes read from one peer before the others get their turn.
const READ_TURN: usize = 1 << 20;
/// How long a process may take from closing its connections to its end; the kernel needs well below a millisecond.
const PARTING: Duration = Duration::from_millis(20);
/// Bytes taken by one read.
const ARRIVALS: usize = 64 * 1024;

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Waits in its channel's mailbox.
    Mail = 1,
    /// The channel's group has failed; the body says how.
    Fail = 2,
    /// The sender has destroyed its handle of the channel's group.
    Left = 3,
    /// The sender is alive. Only between hosts.
    Alive = 4,
}

impl Kind {
    fn parse(code: u32) -> Option<Self> {
        [Kind::Mail, Kind::Fail, Kind::Left, Kind::Alive].into_iter().find(|kind| *kind as u32 == code)
    }
}

/// A message in a mailbox.
#[derive(Debug)]
pub struct Message {
    /// Whatever the channel's protocol wants; usually which step of which operation.
    pub tag: u64,
    /// The content.
    pub body: Vec<u8>,
    /// The descriptors that came along.
    pub descriptors: Vec<OwnedFd>,
}

/// A rank's place in its world: a connection to every other rank.
pub struct Endpoint {
    rank: u32,
    uid: u64,
    facts: Vec<Facts>,
    pidfds: Vec<Option<OwnedFd>>,
    /// Peers whose pidfd has spoken; it would go on speaking for ever.
    dead: Vec<AtomicBool>,
    /// Peers whose connection closed and whose process was then given a moment to end.
    parted: Vec<AtomicBool>,
    /// Whether each rank can be handed descriptors; true for this one.
    local: Vec<bool>,
    state: Mutex<State>,
    regions: Arc<Regions>,
    annex: Mutex<Option<Weak<dyn Any + Send + Sync>>>,
}

struct State {
    connections: Vec<Option<Connection>>,
    mail: HashMap<(u64, u32), VecDeque<Message>>,
    /// Open channels; groups hear of failures through theirs.
    channels: HashMap<u64, Weak<Members>>,
    /// What groups are to hear once the lock is released, since hearing may drop one, which closes its channel.
    hearings: Vec<(Weak<Members>, u32, Kind, Vec<u8>)>,
    /// Where bytes arrive. Too large for the stacks that some programs give their threads.
    arrivals: Vec<u8>,
}

struct Connection {
    link: Link,
    /// Read but not yet a whole frame.
    inbox: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
    /// Not yet taken by the kernel.
    outbox: VecDeque<Outgoing>,
    /// Whether the kernel took no more descriptors at the last try, which no readiness of the socket tells about.
    crowded: bool,
    /// Why nothing will come any more; what came before is in the mailboxes.
    closed: Option<String>,
    heard: Instant,
    spoke: Instant,
}

struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<OwnedFd>,
}

impl Endpoint {
    /// The endpoint of `mesh.rank`.
    pub fn new(mesh: Mesh) -> Self {
        let now = Instant::now();
        let mut endpoint = Endpoint {
            rank: mesh.rank,
            uid: mesh.uid,
            facts: Vec::with_capacity(mesh.peers.len()),
            pidfds: Vec::with_capacity(mesh.peers.len()),
            local: Vec::with_capacity(mesh.peers.len()),
            dead: mesh.peers.iter().map(|_| AtomicBool::new(false)).collect(),
            parted: mesh.peers.iter().map(|_| AtomicBool::new(false)).collect(),
            state: Mutex::new(State {
                connections: Vec::new(),
                mail: HashMap::new(),
                channels: HashMap::new(),
                hearings: Vec::new(),
                arrivals: vec![0; ARRIVALS],
            }),
            regions: Arc::default(),
            annex: Mutex::new(None),
        };
        let mut connections = Vec::with_capacity(mesh.peers.len());
        for peer in mesh.peers {
            endpoint.facts.push(peer.facts);
            endpoint.pidfds.push(peer.pidfd);
            endpoint.local.push(peer.link.as_ref().is_none_or(Link::is_local));
            connections.push(peer.link.map(|link| Connection {
                link,
                inbox: Vec::new(),
                descriptors: VecDeque::new(),
                outbox: VecDeque::new(),
                crowded: false,
                closed: None,
                heard: now,
                spoke: now,
            }));
        }
        endpoint.lock().connections = connections;
        endpoint
    }

    /// This rank in the world.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Ranks in the world.
    pub fn size(&self) -> u32 {
        self.facts.len() as u32
    }

    /// The world's random number.
    pub fn uid(&self) -> u64 {
        self.uid
    }

    /// The memory that this rank shares with groups of its world.
    pub fn regions(&self) -> &Arc<Regions> {
        &self.regions
    }

    /// What communicators keep for this rank, whatever its groups; made when it is asked for and nobody has it. All must
    /// ask for one type.
    pub fn annex<T: Any + Send + Sync + Default>(&self) -> Arc<T> {
        let mut annex = self.annex.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(there)) = annex.as_ref().and_then(Weak::upgrade).map(Arc::downcast) {
            return there;
        }
        let made = Arc::<T>::default();
        let weak: Weak<T> = Arc::downgrade(&made);
        *annex = Some(weak);
        made
    }

    /// What a rank said of itself.
    pub fn facts(&self, rank: u32) -> &Facts {
        &self.facts[rank as usize]
    }

    /// Whether descriptors can be passed to a rank, which is what "on this host" means.
    pub fn is_local(&self, rank: u32) -> bool {
        self.local[rank as usize]
    }

    /// Opens a channel, so that mail for it is kept and failures reach `members`. To be done before any peer can
    /// know the channel.
    pub fn open(&self, channel: u64, members: Weak<Members>) {
        self.lock().channels.insert(channel, members);
    }

    /// Closes a channel and forgets its mail.
    pub fn close(&self, channel: u64) {
        let mut state = self.lock();
        state.channels.remove(&channel);
        state.mail.retain(|(of, _), _| *of != channel);
    }

    /// Sends to a peer, or keeps for when its connection can take more. To a lost peer nothing is sent: whoever
    /// waits for an answer will notice.
    pub fn send(&self, peer: u32, kind: Kind, channel: u64, tag: u64, body: &[u8], descriptors: Vec<OwnedFd>) {
        debug_assert!(body.len() <= LONGEST_BODY && descriptors.len() <= MOST_DESCRIPTORS);
        let mut state = self.lock();
        let Some(connection) = state.connections[peer as usize].as_mut() else { return };
        if connection.closed.is_some() {
            return;
        }
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(kind as u32).to_le_bytes());
        bytes.extend_from_slice(&(descriptors.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&channel.to_le_bytes());
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(body);
        connection.outbox.push_back(Outgoing { bytes, sent: 0, descriptors });
        connection.flush();
    }

    /// The oldest message of a peer in a channel that `wanted` accepts; older ones it calls stale are dropped.
    pub fn receive(&self, peer: u32, channel: u64, mut wanted: impl FnMut(&Message) -> Verdict) -> Option<Message> {
        self.with(|state| {
            state.read(peer);
            let queue = state.mail.get_mut(&(channel, peer))?;
            while let Some(first) = queue.front() {
                match wanted(first) {
                    Verdict::Take => return queue.pop_front(),
                    Verdict::Stale => drop(queue.pop_front()),
                    Verdict::Later => return None,
                }
            }
            None
        })
    }

    /// The tag of the newest message of a peer in a channel.
    pub fn newest(&self, peer: u32, channel: u64) -> Option<u64> {
        self.with(|state| {
            state.read(peer);
            state.mail.get(&(channel, peer)).and_then(VecDeque::back).map(|message| message.tag)
        })
    }

    /// Moves whatever can be moved: sends what is kept, reads what has come.
    pub fn progress(&self) {
        self.with(|state| {
            for peer in 0..state.connections.len() as u32 {
                state.read(peer);
            }
        });
    }

    /// Whether the kernel has taken everything sent to `peer` (or the peer is lost).
    pub fn is_flushed(&self, peer: u32) -> bool {
        let mut state = self.lock();
        let Some(connection) = state.connections[peer as usize].as_mut() else { return true };
        connection.flush();
        connection.outbox.is_empty() || connection.closed.is_some()
    }

    /// Sleeps until a connection or a peer's life changes, but no longer than `at_most`.
    pub fn wait(&self, at_most: Duration) {
        wait_for_any(&[self], at_most);
    }

    /// Why `peer` is lost, if it is: its process ended, its connection closed, or another host fell silent. What it
    /// sent before is in the mailboxes.
    pub fn lost(&self, peer: u32) -> Option<Loss> {
        let facts = &self.facts[peer as usize];
        if let Some(pidfd) = &self.pidfds[peer as usize] {
            let dead = &self.dead[peer as usize];
            if !dead.load(Ordering::Relaxed) {
                let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
                let ready = rustix::event::poll(&mut polled, Some(&Timespec::default())).unwrap_or(0);
                dead.store(ready > 0, Ordering::Relaxed);
            }
            if dead.load(Ordering::Relaxed) {
                self.with(|state| state.read(peer));
                return Some(Loss { text: format!("its process {} ended", facts.pid) });
            }
        }
        let closed = self.with(|state| {
            state.read(peer);
            let connection = state.connections[peer as usize].as_ref()?;
            connection.closed.as_ref().map(|why| Loss { text: why.clone() })
        })?;
        // A process that dies closes its connections a moment before its pidfd speaks; all ranks should tell one story.
        if let Some(pidfd) = &self.pidfds[peer as usize]
            && !self.parted[peer as usize].swap(true, Ordering::Relaxed)
        {
            let moment = Timespec { tv_sec: 0, tv_nsec: PARTING.as_nanos() as i64 };
            let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
            if rustix::event::poll(&mut polled, Some(&moment)).is_ok_and(|ready| ready > 0) {
                self.dead[peer as usize].store(true, Ordering::Relaxed);
                return Some(Loss { text: format!("its process {} ended", facts.pid) });
            }
        }
        Some(closed)
    }

    /// Sends a sign of life to every other host that has heard nothing for `interval`, and counts those as lost
    /// that have been silent for `patience`. For the service thread.
    pub fn keep_alive(&self, interval: Duration, patience: Duration) {
        let now = Instant::now();
        let mut quiet = Vec::new();
        {
            let mut state = self.lock();
            for (peer, connection) in state.connections.iter_mut().enumerate() {
                let Some(connection) = connection else { continue };
                if connection.link.is_local() || connection.closed.is_some() {
                    continue;
                }
                if now.duration_since(connection.heard) > patience {
                    connection.closed = Some(format!("its host has been silent for {} s", patience.as_secs()));
                } else if now.duration_since(connection.spoke) >= interval {
                    quiet.push(peer as u32);
                }
            }
        }
        for peer in quiet {
            self.send(peer, Kind::Alive, 0, 0, &[], Vec::new());
        }
    }

    /// Tells the groups of this rank which members are lost. For the service thread.
    pub fn tell_losses(&self) {
        let groups: Vec<_> = self.lock().channels.values().filter_map(Weak::upgrade).collect();
        groups.iter().for_each(|members| members.tell_losses());
    }

    /// Whether any rank is on another host.
    pub fn spans_hosts(&self) -> bool {
        self.local.iter().any(|local| !local)
    }

    /// Does something with the connections, then lets the groups hear what came for them.
    fn with<T>(&self, body: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = body(&mut state);
        let hearings = std::mem::take(&mut state.hearings);
        drop(state);
        for (members, peer, kind, body) in hearings {
            if let Some(members) = members.upgrade() {
                members.heard(peer, kind, &body);
            }
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What to do with the oldest message of a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the one.
    Take,
    /// It belongs to something that is over.
    Stale,
    /// It is for later.
    Later,
}

/// Why a rank is lost.
#[derive(Clone, Debug)]
pub struct Loss {
    /// A clause: "its process 4711 ended".
    pub text: String,
}

/// Sleeps until something comes for one of the endpoints, but no longer than `at_most`.
pub fn wait_for_any(endpoints: &[&Endpoint], at_most: Duration) {
    let guards: Vec<_> = endpoints.iter().map(|endpoint| endpoint.lock()).collect();
    // The numbers are polled without the locks. They stay open as long as the endpoints, which the caller holds:
    // a lost connection is kept until then.
    let (mut watched, mut crowded) = (Vec::new(), false);
    for guard in &guards {
        for connection in guard.connections.iter().flatten().filter(|connection| connection.closed.is_none()) {
            crowded |= connection.crowded;
            let awaits_room = !connection.outbox.is_empty() && !connection.crowded;
            let events = if awaits_room { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            watched.push((raw(connection.link.socket()), events));
        }
    }
    drop(guards);
    let connections = watched.len();
    let mut lives = Vec::new();
    for endpoint in endpoints {
        for (pidfd, dead) in endpoint.pidfds.iter().zip(&endpoint.dead) {
            if let (Some(pidfd), false) = (pidfd, dead.load(Ordering::Relaxed)) {
                watched.push((raw(pidfd), PollFlags::IN));
                lives.push(dead);
            }
        }
    }
    let mut polled: Vec<_> = watched
        .iter()
        // SAFETY: the descriptors are open for as long as the endpoints are borrowed, see above.
        .map(|(fd, events)| PollFd::from_borrowed_fd(unsafe { BorrowedFd::borrow_raw(*fd) }, *events))
        .collect();
    let at_most = if crowded { at_most.min(CROWDED) } else { at_most };
    let timeout = Timespec { tv_sec: at_most.as_secs() as i64, tv_nsec: i64::from(at_most.subsec_nanos()) };
    // Interrupted, timed out or ready: the caller looks again.
    let is_ready = rustix::event::poll(&mut polled, Some(&timeout)).is_ok_and(|ready| ready > 0);
    if is_ready {
        for (pidfd, dead) in polled[connections..].iter().zip(lives) {
            if !pidfd.revents().is_empty() {
                dead.store(true, Ordering::Relaxed);
            }
        }
    }
    if is_ready || crowded {
        // Everything that has come is moved, whoever it is for: left where it is, it would end the next sleep at once.
        for endpoint in endpoints {
            endpoint.progress();
        }
    }
}

fn raw(fd: &OwnedFd) -> std::os::fd::RawFd {
    std::os::fd::AsRawFd::as_raw_fd(fd)
}

impl State {
    /// Reads what `peer` has sent and sorts whole frames into mailboxes.
    fn read(&mut self, peer: u32) {
        let Some(connection) = self.connections[peer as usize].as_mut() else { return };
        // Whoever waits for an answer makes sure that the question leaves.
        connection.flush();
        connection.fill(&mut self.arrivals);
        while let Some((kind, channel, message)) = connection.next_frame() {
            let Some(members) = self.channels.get(&channel) else { continue };
            match kind {
                Kind::Mail => self.mail.entry((channel, peer)).or_default().push_back(message),
                Kind::Alive => {}
                Kind::Fail | Kind::Left => self.hearings.push((members.clone(), peer, kind, message.body)),
            }
        }
    }
}

impl Connection {
    /// Gives the kernel what it takes.
    fn flush(&mut self) {
        self.crowded = false;
        while let Some(first) = self.outbox.front_mut() {
            match send_some(self.link.socket().as_fd(), &first.bytes[first.sent..], &first.descriptors) {
                Ok(sent) => {
                    // Descriptors travel with the first byte.
                    first.descriptors.clear();
                    first.sent += sent;
                    self.spoke = Instant::now();
                    if first.sent == first.bytes.len() {
                        self.outbox.pop_front();
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                // Too many descriptors of this user are on their way; it passes as they arrive.
                Err(Errno::TOOMANYREFS) => {
                    self.crowded = true;
                    return;
                }
                Err(errno) => {
                    // What a peer said before it went still counts.
                    self.fill(&mut vec![0; ARRIVALS]);
                    return self.break_off(errno);
                }
            }
        }
    }

    /// Reads what is there, up to a turn's worth.
    fn fill(&mut self, buffer: &mut [u8]) {
        if self.closed.is_some() {
            return;
        }
        let mut taken = 0;
        while taken < READ_TURN {
            match receive_some(self.link.socket().as_fd(), buffer, &mut self.descriptors) {
                Ok(0) => return self.close("it closed its connection".into()),
                Ok(got) => {
                    self.inbox.extend_from_slice(&buffer[..got]);
                    self.heard = Instant::now();
                    // A short read says nothing: one ends at every message that brings descriptors.
                    taken += got;
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(errno) => return self.break_off(errno),
            }
        }
    }

    /// Nothing will come any more.
    fn break_off(&mut self, errno: Errno) {
        self.close(match errno {
            // A peer that closes with something unread says it so.
            Errno::CONNRESET | Errno::PIPE => "it closed its connection".into(),
            errno => format!("its connection broke ({errno})"),
        });
    }

    /// Takes the next whole frame off the inbox.
    fn next_frame(&mut self) -> Option<(Kind, u64, Message)> {
        let header = self.inbox.get(..HEADER)?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let (magic, length, kind, descriptors) = (word(0), word(4) as usize, Kind::parse(word(8)), word(12) as usize);
        let (channel, tag) = (long(16), long(24));
        let (Some(kind), true) = (kind, magic == MAGIC && length <= LONGEST_BODY && descriptors <= MOST_DESCRIPTORS)
        else {
            self.close("it sent what is no message of this library".into());
            self.inbox.clear();
            return None;
        };
        if self.inbox.len() < HEADER + length {
            return None;
        }
        if self.descriptors.len() < descriptors {
            self.close("descriptors were lost on the way from it (is the limit on open files reached?)".into());
            self.inbox.clear();
            return None;
        }
        let body = self.inbox[HEADER..HEADER + length].to_vec();
        self.inbox.drain(..HEADER + length);
        let descriptors = self.descriptors.drain(..descriptors).collect();
        Some((kind, channel, Message { tag, body, descriptors }))
    }

    fn close(&mut self, why: String) {
        self.closed.get_or_insert(why);
        self.outbox.clear();
    }
}

impl Drop for Endpoint {
    /// Last words (a failure, a goodbye) still leave where the kernel takes them at once.
    fn drop(&mut self) {
        if fork::forked() {
            return;
        }
        for connection in self.lock().connections.iter_mut().flatten() {
            connection.flush();
        }
    }
}

/// Encodes a failure for a message: status, rank, collective (-1: none), sequence, text.
pub(super) fn encode_failure(failure: &Failure) -> Vec<u8> {
    let mut body = Vec::with_capacity(20 + failure.text.len());
    body.extend_from_slice(&(failure.status as i32).to_le_bytes());
    body.extend_from_slice(&failure.rank.map_or(-1_i32, |rank| rank as i32).to_le_bytes());
    body.extend_from_slice(&failure.collective.map_or(-1_i32, |collective| collective as i32).to_le_bytes());
    body.extend_from_slice(&failure.sequence.to_le_bytes());
    body.extend_from_slice(failure.text.as_bytes());
    body.truncate(LONGEST_BODY);
    body
}

/// Decodes what [`encode_failure`] made.
pub(super) fn decode_failure(body: &[u8]) -> Failure {
    let int = |at: usize| body.get(at..at + 4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let sequence = int(12).zip(int(16)).map_or(0, |(low, high)| u64::from(low as u32) | u64::from(high as u32) << 32);
    Failure {
        status: int(0).and_then(Status::from_code).unwrap_or(Status::CommunicatorError),
        rank: int(4).and_then(|rank| u32::try_from(rank).ok()),
        collective: int(8).and_then(|code| Collective::parse(code).ok()),
        sequence,
        text: String::from_utf8_lossy(body.get(20..).unwrap_or_default()).into_owned(),
    }
}

/// One `sendmsg`: some of `bytes`, with the descriptors before the first.
fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[OwnedFd]) -> Result<usize, Errno> {
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::INVAL);
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

/// One `recvmsg`: some bytes, and whatever descriptors came before them.
fn receive_some(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok(received.bytes)
}
