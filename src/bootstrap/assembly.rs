//! Rank 0's side of a rendezvous: who has come, what they are told, and what all are told when it fails.
//!
//! ```text
//!   joiner                      rank 0
//!     Hello (pidfd)       ->      judged: rank, size, version
//!                         <-    Noted              I am here
//!     Waits               ->      counted as arrived
//!                         <-    Roster, Member x n   when all have arrived
//!     ... connections are made (local, hosts) ...
//!     Ready               ->
//!                         <-    Commit             when all are ready
//! ```
//!
//! Instead of any of these either side may send a `Verdict` and close: the world cannot be made. Rank 0 passes the first
//! verdict on to all that have come and, for a short while, to those that are still on their way. It gives up when the
//! least patient rank would, so that all ranks hear the same sentence. Nothing here knows what sockets the ranks use.

use std::{
    collections::BTreeMap,
    future::Future,
    time::{Duration, Instant},
};

use rustix::{fd::OwnedFd, io::Errno, net::Shutdown};

use super::{
    channel::{Broken, Channel},
    door::{Door, Visitor},
    plan::{NEEDS_ADDRESS, Patience, Plan, name_ranks},
    tasks::{Crowd, First, race, sleep, sleep_until, until},
    wire::{Contact, Hello, Message, error_of},
};
use crate::{
    config::VERSION,
    error::{Error, Result, Status},
    topology::Facts,
};

/// How long a joiner may take to answer `Noted`. It only waits for it, but its machine may be very busy.
const ANSWER: Duration = Duration::from_secs(30);
/// How long rank 0 still tells ranks on their way why there will be no world.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long to leave new connections alone when this process can open no more files.
const FULL: Duration = Duration::from_millis(10);
/// How long one rank may take to hear a verdict.
const LAST_WORD: Duration = Duration::from_secs(1);

/// A rank that has come.
pub(super) struct Guest {
    pub(super) channel: Channel,
    pub(super) facts: Facts,
    pub(super) contact: Contact,
    pub(super) pidfd: Option<OwnedFd>,
}

/// The ranks that have come to rank 0.
pub(super) struct Assembly<'a> {
    pub(super) plan: &'a Plan,
    several_hosts: bool,
    pub(super) guests: BTreeMap<u32, Guest>,
    /// The least of all ranks that have come.
    pub(super) patience: Patience,
    /// Those who have said hello and are asked how long they wait.
    greeted: Vec<Channel>,
    /// Those who came but are no guests, and shall hear why.
    owed: Vec<Channel>,
    /// How many came for a place that was taken.
    surplus: u64,
}

/// What happens at a guest's channel while others are awaited.
enum Event {
    /// A joiner has answered.
    Arrived(Box<Hello>, Guest, Patience),
    /// A joiner has gone before it answered, perhaps before rank 0 was here.
    Vanished(Channel),
    /// A guest says something, or is gone.
    Stirred(u32),
}

impl<'a> Assembly<'a> {
    pub(super) fn new(plan: &'a Plan, several_hosts: bool) -> Self {
        Assembly {
            plan,
            several_hosts,
            guests: BTreeMap::new(),
            patience: plan.patience,
            greeted: Vec::new(),
            owed: Vec::new(),
            surplus: 0,
        }
    }

    /// Waits for all ranks.
    pub(super) async fn gather(&mut self, door: &mut Door) -> Result<()> {
        let mut events: Crowd<'static, Event> = Crowd::new();
        while self.guests.len() as u64 + 1 < u64::from(self.plan.size) {
            match race(race(door.next(), events.next()), sleep_until(self.patience.deadline)).await {
                First::Left(First::Left(visitor)) => {
                    let visitor = visitor.map_err(|errno| full(0, errno))?;
                    if let Some((hello, guest)) = self.judge(visitor)? {
                        self.greeted.push(guest.channel.clone());
                        events.push(attend(hello, guest));
                    }
                }
                First::Left(First::Right(Event::Arrived(hello, guest, patience))) => {
                    let rank = hello.rank;
                    self.greeted.retain(|channel| !channel.is(&guest.channel));
                    self.seat(*hello, guest)?;
                    self.patience = self.patience.shorter(patience);
                    if let Some(channel) = self.guests.get(&rank).map(|guest| guest.channel.clone()) {
                        events.push(async move {
                            channel.readable().await;
                            Event::Stirred(rank)
                        });
                    }
                }
                First::Left(First::Right(Event::Vanished(gone))) => self.greeted.retain(|channel| !channel.is(&gone)),
                First::Left(First::Right(Event::Stirred(rank))) => return Err(self.hear_out(rank).await),
                First::Right(()) => return Err(self.missing(&door.refusals())),
            }
        }
        Ok(())
    }

    /// Whether a visitor may be a rank of this world. An error ends the world; `None` is somebody else's rank.
    fn judge(&mut self, visitor: Visitor) -> Result<Option<(Box<Hello>, Guest)>> {
        let Visitor { channel, message, mut descriptors } = visitor;
        let mismatch = |rank: u32, text: String| Err(Error::failed(Status::Mismatch, Some(rank), text));
        match message {
            Message::Foreign { version, rank, .. } => {
                self.owed.push(channel);
                let (theirs, ours) = (show_version(version), show_version(VERSION));
                mismatch(rank, format!("rank {rank} has libtutti {theirs}, rank 0 has {ours}: all ranks need the same"))
            }
            // Left over from another world at the same address; its rank will try again elsewhere or later.
            Message::Hello(hello) if hello.world != self.plan.world => Ok(None),
            Message::Hello(hello) if hello.size != self.plan.size => {
                self.owed.push(channel);
                let (rank, theirs, ours) = (hello.rank, hello.size, self.plan.size);
                mismatch(rank, format!("rank {rank} says the world has {theirs} ranks, rank 0 says {ours}"))
            }
            Message::Hello(hello) if hello.host_id != self.plan.host_id && !self.several_hosts => {
                self.owed.push(channel);
                let rank = hello.rank;
                let text = format!("TUTTI_HOST_ID puts rank {rank} and rank 0 on different hosts: {NEEDS_ADDRESS}");
                Err(Error::usage(text))
            }
            Message::Hello(hello) => {
                let (facts, contact) = (hello.facts.clone(), hello.contact);
                Ok(Some((hello, Guest { channel, facts, contact, pidfd: descriptors.pop() })))
            }
            _ => Ok(None),
        }
    }

    /// Gives a guest its place, which must be free.
    fn seat(&mut self, hello: Hello, guest: Guest) -> Result<()> {
        let rank = hello.rank;
        let taken_by = match self.guests.get(&rank) {
            _ if rank == 0 => Some(&self.plan.facts),
            Some(other) => Some(&other.facts),
            None => None,
        };
        if let Some(first) = taken_by {
            let others = match first.process == guest.facts.process {
                true => "another thread of it".to_owned(),
                false => show_process(&guest.facts),
            };
            let text = format!("two ranks say they are rank {rank}: {} and {others}", show_process(first));
            self.owed.push(guest.channel);
            self.surplus += 1;
            return Err(Error::failed(Status::Mismatch, Some(rank), text));
        }
        log::debug!("rank {rank} of {} has arrived: {}", self.plan.size, show_process(&guest.facts));
        self.guests.insert(rank, guest);
        Ok(())
    }

    fn missing(&self, refusals: &str) -> Error {
        let missing: Vec<u32> = (1..self.plan.size).filter(|rank| !self.guests.contains_key(rank)).collect();
        let (names, size, within) = (name_ranks(&missing), self.plan.size, self.patience.within());
        let text = format!("{names} of {size} did not arrive {within}{refusals}");
        Error::failed(Status::Timeout, missing.first().copied(), text)
    }

    /// Tells all ranks who is there.
    pub(super) async fn introduce(&self, contact: Contact, uid: u64, nonce: [u8; 32]) -> Result<()> {
        let own = Message::Member { rank: 0, contact, facts: self.plan.facts.clone() };
        let members = self.guests.iter().map(|(&rank, guest)| {
            Message::Member { rank, contact: guest.contact, facts: guest.facts.clone() }.encode(0)
        });
        let mut bytes = Message::Roster { uid, nonce }.encode(0);
        bytes.extend(own.encode(0));
        bytes.extend(members.flatten());
        self.send_all(&bytes).await
    }

    /// Hears one message from every rank, and takes from it what `wanted` finds.
    pub(super) async fn hear_all<T>(
        &self,
        wanted: impl Fn(u32, Message) -> Option<T> + Copy,
    ) -> Result<BTreeMap<u32, T>> {
        self.with_all(|rank, guest| async move {
            let (message, _) = guest.channel.receive().await?;
            if let Message::Verdict { status, rank, text } = message {
                return Ok(Err(error_of(status, rank, text)));
            }
            wanted(rank, message).map(Ok).ok_or(Broken::Garbled)
        })
        .await?
        .into_iter()
        .map(|(rank, result)| Ok((rank, result?)))
        .collect()
    }

    /// Tells all ranks the same.
    pub(super) async fn tell_all(&self, messages: &[Message]) -> Result<()> {
        self.send_all(&messages.iter().flat_map(|message| message.encode(0)).collect::<Vec<_>>()).await
    }

    async fn send_all(&self, bytes: &[u8]) -> Result<()> {
        self.with_all(|_, guest| guest.channel.send_bytes(bytes, &[])).await.map(drop)
    }

    /// Waits until every rank has all it needs, then lets them go.
    pub(super) async fn finish(&self) -> Result<()> {
        self.hear_all(|_, message| (message == Message::Ready).then_some(())).await?;
        self.tell_all(&[Message::Commit]).await
    }

    /// Does the same with every guest, side by side, until all have succeeded, one has failed, or time is up.
    async fn with_all<'g, T, F>(&'g self, talk: impl Fn(u32, &'g Guest) -> F) -> Result<BTreeMap<u32, T>>
    where
        F: Future<Output = Result<T, Broken>> + 'g,
        T: 'g,
    {
        let mut talks = Crowd::new();
        for (&rank, guest) in &self.guests {
            let task = talk(rank, guest);
            talks.push(async move { (rank, task.await) });
        }
        let mut results = BTreeMap::new();
        while talks.len() > 0 {
            match until(self.patience.deadline, talks.next()).await {
                Some((rank, Ok(value))) => drop(results.insert(rank, value)),
                Some((rank, Err(broken))) => return Err(self.lost(rank, broken).await),
                None => {
                    let silent: Vec<u32> =
                        self.guests.keys().copied().filter(|rank| !results.contains_key(rank)).collect();
                    let (names, size, within) = (name_ranks(&silent), self.plan.size, self.patience.within());
                    let text = format!("{names} of {size} arrived but did not finish joining {within}");
                    return Err(Error::failed(Status::Timeout, silent.first().copied(), text));
                }
            }
        }
        Ok(results)
    }

    /// Why this rank cannot be reached any more: what it said last, or that it left.
    pub(super) async fn lost(&self, rank: u32, broken: Broken) -> Error {
        let Some(guest) = self.guests.get(&rank) else {
            return Error::Internal(format!("rank {rank} is no guest"));
        };
        // A rank that gives up says why and closes; we may have found the closed end first.
        let soon = Instant::now().checked_add(LAST_WORD);
        if matches!(broken, Broken::Closed)
            && let Some(Ok((Message::Verdict { status, rank, text }, _))) = until(soon, guest.channel.receive()).await
        {
            return error_of(status, rank, text);
        }
        let text = format!("rank {rank} ({}) left while the world was made: {broken}", show_process(&guest.facts));
        Error::failed(Status::PeerLost, Some(rank), text)
    }

    /// Why a guest speaks, or leaves, before it was asked.
    async fn hear_out(&self, rank: u32) -> Error {
        let Some(guest) = self.guests.get(&rank) else {
            return Error::Internal(format!("rank {rank} is no guest"));
        };
        match until(Instant::now().checked_add(LAST_WORD), guest.channel.receive()).await {
            Some(Ok((Message::Verdict { status, rank, text }, _))) => error_of(status, rank, text),
            Some(Err(broken)) => self.lost(rank, broken).await,
            _ => self.lost(rank, Broken::Garbled).await,
        }
    }

    /// Tells everybody why there will be no world.
    pub(super) async fn dismiss(self, door: &mut Door, error: &Error) {
        let verdict = Message::verdict(error, 0);
        let mut farewells = Crowd::new();
        let mut told = 0u64;
        let guests = self.guests.into_values().map(|guest| guest.channel);
        for channel in self.owed.into_iter().chain(self.greeted).chain(guests) {
            farewells.push(farewell(channel, verdict.clone()));
            told += 1;
        }
        // After a timeout nobody is on the way any more, as far as one can tell.
        let others = u64::from(self.plan.size).saturating_sub(1) + self.surplus;
        let awaited = if error.status() == Status::Timeout { 0 } else { others };
        let conversation = async {
            while farewells.len() > 0 || told < awaited {
                match race(door.next(), farewells.next()).await {
                    First::Left(Ok(visitor)) if visitor.message.is_greeting() => {
                        farewells.push(farewell(visitor.channel, verdict.clone()));
                        told += 1;
                    }
                    // No room until somebody was told.
                    First::Left(Err(_)) => sleep(FULL).await,
                    _ => {}
                }
            }
        };
        until(Instant::now().checked_add(FAREWELL), conversation).await;
    }
}

/// Lets a joiner know that rank 0 is here and waits for its answer.
async fn attend(hello: Box<Hello>, guest: Guest) -> Event {
    let channel = guest.channel.clone();
    let conversation = async {
        channel.send(&Message::Noted, &[]).await?;
        channel.receive().await
    };
    match until(Instant::now().checked_add(ANSWER), conversation).await {
        Some(Ok((Message::Waits { patience_ms, timeout_ms }, _))) => {
            Event::Arrived(hello, guest, Patience::from_ms(patience_ms, timeout_ms))
        }
        _ => Event::Vanished(channel),
    }
}

/// Sends a last message and waits until it was taken, because closing with unread words on the way may destroy it.
pub(super) async fn farewell(channel: Channel, verdict: Message) {
    let conversation = async {
        if channel.send(&verdict, &[]).await.is_ok() {
            let _ = rustix::net::shutdown(channel.socket(), Shutdown::Write);
            while channel.receive_bytes::<1>().await.is_ok() {}
        }
    };
    until(Instant::now().checked_add(LAST_WORD), conversation).await;
}

/// A rank that cannot take all connections.
pub(super) fn full(rank: u32, errno: Errno) -> Error {
    Error::system(format_args!("rank {rank} cannot take the connections of all other ranks (raise `ulimit -n`)"), errno)
}

fn show_process(facts: &Facts) -> String {
    format!("process {} on {}", facts.pid, facts.host_name)
}

fn show_version(version: u32) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}
