//! Ranks on several hosts: they meet at rank 0's TCP address, prove a secret, and connect to each other.
//!
//! 1. Rank 0 assembles the ranks as on one host, but over TCP and behind the proofs of `auth`.
//! 2. Ranks whose machine was booted together try each other's abstract Unix sockets. The lowest that passes a rank a
//!    descriptor is its leader; ranks with one leader are on one host, whatever names and numbers say. Each reports its
//!    leader to rank 0, and rank 0 tells all.
//! 3. Leaders deal out connections on their host; across hosts the higher rank calls the lower one's TCP listener. Every
//!    connection of this step and the last is behind a proof of the world's own key.
//!
//! Listeners exist before their rank says hello, so nobody waits for one, and are closed when this returns.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    fd::{AsFd, OwnedFd},
    io::Errno,
};

use super::{
    assembly::{Assembly, full},
    auth::{Denied, Trust, prove},
    channel::{Broken, Channel, Listener, connect_tcp, connect_unix, credentials},
    deal::{Gift, Misdeal, Seat, deal, own_pidfd, take},
    door::{Check, Door, Visitor},
    entry::{Entry, Refusal, challenge_rival, lost, soon},
    mesh::{Link, Mesh, Peer},
    plan::{Name, Plan, name_ranks, random, random_uid},
    tasks::{Boxed, Crowd, First, block_on, both, race, sleep, until},
    wire::{Contact, Message},
};
use crate::{
    error::{Error, Result, Status},
    topology::Facts,
};

/// How long rank 0 waits for an address that is still taken, by an earlier world perhaps.
const TAKEN: Duration = Duration::from_secs(5);
/// How long one attempt to connect may take before the next address is tried.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The pause before an attempt is repeated.
const AGAIN: Duration = Duration::from_millis(20);

/// `host:port`, as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// Reads an address; `source` says whose it is.
    pub(super) fn parse(source: &str, text: &str) -> Result<Self> {
        let wrong = || Error::invalid(format_args!("{source} is {text:?}; it must be host:port, as in node0:4242"));
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if host.is_empty() || (bare.is_none() && host.contains(':')) {
            return Err(wrong());
        }
        Ok(Address { host: bare.unwrap_or(host).to_owned(), port: port.parse().map_err(|_| wrong())? })
    }

    /// The same host with another port.
    pub(super) fn with_port(&self, port: u16) -> Self {
        Address { port, ..self.clone() }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is `0.0.0.0` or `[::]`, which can be listened on but is nowhere.
    pub(super) fn is_unspecified(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }

    /// Whether it can only mean this machine.
    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// What it stands for now. Names are looked up by the system, in its own time.
    fn resolve(&self) -> Result<Vec<SocketAddr>, std::io::Error> {
        Ok((self.host.as_str(), self.port).to_socket_addrs()?.collect())
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The way to rank 0.
pub(super) struct Route {
    pub(super) address: Address,
    pub(super) trust: Trust,
    /// Rank 0's listener, where it was bound before.
    pub(super) held: Option<Listener>,
}

/// Meets the other ranks of a world at the address of rank 0.
#[inline(never)]
pub(super) fn join(plan: &Plan, route: Route) -> Result<Mesh> {
    block_on(match plan.rank {
        0 => lead(plan, route),
        _ => follow(plan, route),
    })
}

/// As [`super::local::challenge`].
#[inline(never)]
pub(super) fn challenge(plan: &Plan, route: &Route) -> Option<Error> {
    let challenge: Boxed<_> = Box::pin(async { challenge_rival(plan, &knock(route).await.ok()?.0).await });
    block_on(until(soon(), challenge)).flatten()
}

/// Listens where the address says, which must be on this host.
pub(super) fn listen(address: &Address) -> Result<Listener> {
    let resolved = address.resolve().map_err(|error| {
        Error::failed(Status::SystemError, Some(0), format_args!("rank 0 cannot listen on {address}: {error}"))
    })?;
    let mut refused = Errno::ADDRNOTAVAIL;
    for candidate in resolved {
        match Listener::tcp(candidate) {
            Ok(listener) => return Ok(listener),
            Err(errno) => refused = errno,
        }
    }
    let advice = match refused {
        Errno::ADDRNOTAVAIL => "; it is not an address of this host, set TUTTI_ADDR to 0.0.0.0 and the port on rank 0",
        Errno::ADDRINUSE => "; another process listens there, use another port (MASTER_PORT belongs to torchrun)",
        _ => "",
    };
    let errno = refused.raw_os_error();
    let what = format!("rank 0 cannot listen on {address}{advice}");
    Err(Error::System { what, errno })
}

// ------------------------------------------------------------------------------------------------------- rank 0

#[inline(never)]
fn lead(plan: &Plan, route: Route) -> Boxed<'_, Result<Mesh>> {
    Box::pin(async move {
        let listener = match route.held {
            Some(listener) => listener,
            None => listen_patiently(plan, &route.address).await?,
        };
        let mut door = Door::new(listener, Check::Trust(route.trust.clone()), plan.size);
        let mut assembly = Assembly::new(plan, true);
        match assemble(&mut assembly, &mut door, &route.trust).await {
            Ok((uid, mut near)) => {
                let mut peers = vec![Peer { facts: plan.facts.clone(), link: None, pidfd: None }];
                for (rank, guest) in assembly.guests {
                    let (link, pidfd) = match near.remove(&rank) {
                        Some(neighbour) => (Link::Local(neighbour.channel.into_socket()?), neighbour.pidfd),
                        None => (Link::Remote(guest.channel.into_socket()?), None),
                    };
                    let pidfd = pidfd.filter(|_| guest.facts.process != plan.facts.process);
                    peers.push(Peer { facts: guest.facts, link: Some(link), pidfd });
                }
                Ok(Mesh { rank: 0, uid, peers })
            }
            Err(error) => {
                assembly.dismiss(&mut door, &error).await;
                Err(error)
            }
        }
    })
}

/// Listens as soon as the address is free.
async fn listen_patiently(plan: &Plan, address: &Address) -> Result<Listener> {
    let give_up = Instant::now().checked_add(TAKEN);
    let give_up = plan.patience.deadline.map_or(give_up, |deadline| give_up.map(|at| at.min(deadline)));
    loop {
        match listen(address) {
            Err(Error::System { errno, .. })
                if errno == Errno::ADDRINUSE.raw_os_error() && give_up.is_some_and(|at| Instant::now() < at) =>
            {
                sleep(AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

/// Rank 0's part, until all ranks have what they need: the world's number, and the other ranks of its host.
#[inline(never)]
fn assemble<'a>(
    assembly: &'a mut Assembly<'_>,
    door: &'a mut Door,
    trust: &'a Trust,
) -> Boxed<'a, Result<(u64, BTreeMap<u32, Neighbour>)>> {
    Box::pin(async move {
        let plan = assembly.plan;
        let pidfd = own_pidfd();
        let (near_socket, name) = near_listener()?;
        assembly.gather(door).await?;
        show_reachable_addresses(assembly);
        let (uid, nonce) = (random_uid()?, random()?);
        let contact = Contact { name, ..Contact::NONE };
        assembly.introduce(contact, uid, nonce).await?;
        let trust = trust.of_world(&nonce);

        let mut members = vec![(contact, plan.facts.clone())];
        members.extend(assembly.guests.values().map(|guest| (guest.contact, guest.facts.clone())));
        let mut near = Near::new(plan, near_socket, &trust, &members);
        let reported = assembly.hear_all(|from, message| match message {
            Message::Led { rank, leader } if rank == from && leader <= rank => Some(leader),
            _ => None,
        });
        let mut leaders = match race(reported, near.serve()).await {
            First::Left(reported) => reported?,
            First::Right(error) => return Err(error),
        };
        leaders.insert(0, 0);
        if let Some((&rank, &leader)) = leaders.iter().find(|(_, leader)| leaders.get(leader) != Some(leader)) {
            let text =
                format!("rank {rank} says rank {leader} is the lowest rank on its host, but that is led by another");
            return Err(Error::failed(Status::SystemError, Some(rank), text));
        }
        assembly
            .tell_all(&leaders.iter().map(|(&rank, &leader)| Message::Led { rank, leader }).collect::<Vec<_>>())
            .await?;

        let near = near.led(&leaders)?;
        deal_to(plan, &near, pidfd.as_ref()).await?;
        assembly.finish().await?;
        Ok((uid, near))
    })
}

/// Ranks that reached rank 0 by the loopback interface listen on all others, but can only name the loopback address. To
/// other hosts they are where rank 0 is.
fn show_reachable_addresses(assembly: &mut Assembly<'_>) {
    let far = assembly.guests.values().find(|guest| !guest.contact.address.ip().is_loopback());
    let Some(visible) = far.and_then(|guest| guest.channel.local_address().ok()) else { return };
    for guest in assembly.guests.values_mut() {
        if guest.contact.address.ip().is_loopback() {
            guest.contact.address.set_ip(visible.ip());
        }
    }
}

// ------------------------------------------------------------------------------------------------- the other ranks

#[inline(never)]
fn follow(plan: &Plan, route: Route) -> Boxed<'_, Result<Mesh>> {
    Box::pin(async move {
        let (near_socket, name) = near_listener()?;
        let pidfd = own_pidfd();
        let mut far_socket = None;
        let entry = Entry::open(plan, None, async || {
            let (channel, own) = knock(&route).await?;
            // The next attempt may find rank 0 by another interface.
            let listener = Listener::tcp(SocketAddr::new(own, 0)).map_err(|errno| {
                Refusal::Never(Error::system(format_args!("rank {} cannot listen on {own}", plan.rank), errno))
            })?;
            let port = listener
                .address()
                .map_err(|errno| Refusal::Later(format!("; {}", std::io::Error::from(errno))))?
                .port();
            let reached_by = channel.local_address().map_or(own, |address| address.ip());
            far_socket = Some(listener);
            Ok((channel, Contact { address: SocketAddr::new(reached_by, port), name }))
        })
        .await?;
        let outcome = async {
            let far_socket =
                far_socket.ok_or_else(|| Error::Internal("a rank has joined without a listener".into()))?;
            let roster = entry.roster().await?;
            let trust = route.trust.of_world(&roster.nonce);
            let near = Near::new(plan, near_socket, &trust, &roster.members);
            let (leaders, near, leader) = settle(&entry, near, pidfd.as_ref()).await?;
            let links = async {
                let far = far_links(plan, &trust, far_socket, &roster.members, &leaders);
                both(far, near_links(plan, &leaders, near, leader, pidfd.as_ref())).await
            };
            let (far, near) = unless_told(&entry, links).await?;
            entry.finish().await?;
            Ok((roster, far, near))
        }
        .await;
        let (roster, mut far, mut near) = match outcome {
            Ok(met) => met,
            Err(error) => {
                entry.give_up(&error).await;
                return Err(error);
            }
        };
        let mut to_rank_0 = Some(entry.channel);
        let mut peers = Vec::new();
        for (rank, (_, facts)) in (0u32..).zip(roster.members) {
            let gift = near.remove(&rank).unwrap_or_default();
            let far = far.remove(&rank).or_else(|| to_rank_0.take_if(|_| rank == 0 && gift.link.is_none()));
            let link = match (gift.link, far) {
                (Some(socket), _) => Some(Link::Local(socket)),
                (None, Some(channel)) => Some(Link::Remote(channel.into_socket()?)),
                (None, None) => None,
            };
            peers.push(Peer { facts, link, pidfd: gift.pidfd });
        }
        Ok(Mesh { rank: plan.rank, uid: roster.uid, peers })
    })
}

/// Connects to rank 0 and proves who this is; also the address to listen on for other ranks.
async fn knock(route: &Route) -> Result<(Channel, IpAddr), Refusal> {
    let address = &route.address;
    let later = |why: &dyn std::fmt::Display| Refusal::Later(format!("; connecting to {address} failed: {why}"));
    let mut refusal = later(&"the name has no address");
    for candidate in address.resolve().map_err(|error| later(&error))? {
        let channel = match until(Instant::now().checked_add(ATTEMPT), connect_tcp(candidate)).await {
            Some(Ok(channel)) => channel,
            Some(Err(errno)) => {
                refusal = later(&std::io::Error::from(errno));
                continue;
            }
            None => {
                refusal = later(&"nothing answers");
                continue;
            }
        };
        match prove(&channel, &route.trust).await {
            Ok(()) => {}
            Err(Denied::Broken(broken)) => return Err(later(&broken)),
            Err(denied) => {
                let text = format!("this rank and rank 0 at {address} do not trust each other: {denied}");
                return Err(Refusal::Never(Error::failed(Status::Mismatch, Some(0), text)));
            }
        }
        let own = channel.local_address().map_err(|errno| later(&std::io::Error::from(errno)))?.ip();
        // A name of this very host may lead to its loopback interface, where other hosts do not find us.
        let everywhere = own.is_loopback() && !address.is_loopback();
        return Ok((channel, if everywhere { unspecified_like(own) } else { own }));
    }
    Err(refusal)
}

fn unspecified_like(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Finds this rank's leader and learns everybody's. Also returns the ranks that this one leads, and its own leader's
/// channel where it is led.
async fn settle(
    entry: &Entry<'_>,
    mut near: Near<'_>,
    pidfd: Option<&OwnedFd>,
) -> Result<(BTreeMap<u32, u32>, BTreeMap<u32, Neighbour>, Option<Channel>)> {
    let (plan, trust, members) = (entry.plan, near.trust, near.members);
    let talk = async {
        let leader = unless_told(entry, async { Ok(find_leader(plan, trust, members, pidfd).await) }).await?;
        let number = leader.as_ref().map_or(plan.rank, |(rank, _)| *rank);
        entry.tell(&Message::Led { rank: plan.rank, leader: number }).await?;
        let mut leaders = BTreeMap::new();
        for expected in 0..plan.size {
            match entry.hear().await?.0 {
                Message::Led { rank, leader } if rank == expected && leader <= rank => leaders.insert(rank, leader),
                _ => return Err(lost(0, Broken::Garbled)),
            };
        }
        Ok((leaders, leader))
    };
    let (leaders, leader) = match race(talk, near.serve()).await {
        First::Left(talked) => talked?,
        First::Right(error) => return Err(error),
    };
    let neighbours = near.led(&leaders)?;
    Ok((leaders, neighbours, leader.map(|(_, channel)| channel)))
}

/// Does something, unless rank 0 says meanwhile that it is in vain.
async fn unless_told<T>(entry: &Entry<'_>, task: impl Future<Output = Result<T>>) -> Result<T> {
    match until(entry.deadline, race(task, entry.channel.readable())).await {
        Some(First::Left(outcome)) => outcome,
        Some(First::Right(())) => Err(entry.hear().await.err().unwrap_or_else(|| lost(0, Broken::Garbled))),
        None => Err(entry.silent()),
    }
}

/// The lowest rank that can pass this one a descriptor, of those that may be on the same host.
async fn find_leader(
    plan: &Plan,
    trust: &Trust,
    members: &[(Contact, Facts)],
    pidfd: Option<&OwnedFd>,
) -> Option<(u32, Channel)> {
    for (rank, (contact, facts)) in (0..plan.rank).zip(members) {
        if facts.host != plan.facts.host {
            continue;
        }
        match try_leader(plan, trust, rank, contact, pidfd).await {
            Ok(channel) => return Some((rank, channel)),
            Err(denied) => log::info!(
                "rank {rank} runs on the machine of rank {} but cannot pass it descriptors ({denied}): they use TCP",
                plan.rank
            ),
        }
    }
    None
}

async fn try_leader(
    plan: &Plan,
    trust: &Trust,
    rank: u32,
    contact: &Contact,
    pidfd: Option<&OwnedFd>,
) -> Result<Channel, Denied> {
    let channel = connect_unix(near_name(contact.name).as_bytes()).map_err(Broken::from)?;
    match credentials(channel.socket()) {
        Ok((_, user)) if user == plan.facts.uid => {}
        Ok(_) => return Err(Denied::Stranger),
        Err(errno) => return Err(Broken::from(errno).into()),
    }
    prove(&channel, trust).await?;
    let descriptors: Vec<_> = pidfd.iter().map(|pidfd| pidfd.as_fd()).collect();
    channel.send(&Message::Here { rank: plan.rank }, &descriptors).await?;
    let (message, descriptors) = channel.receive().await?;
    let arrived = message == Message::Here { rank } && !descriptors.is_empty();
    if arrived { Ok(channel) } else { Err(Broken::Garbled.into()) }
}

// ------------------------------------------------------------------------------------------------ ranks of one host

/// A rank of this host that this one leads.
struct Neighbour {
    channel: Channel,
    facts: Facts,
    pidfd: Option<OwnedFd>,
}

/// Where ranks of this host ask whether they can be led.
struct Near<'a> {
    plan: &'a Plan,
    trust: &'a Trust,
    members: &'a [(Contact, Facts)],
    door: Door,
    came: BTreeMap<u32, Neighbour>,
}

impl<'a> Near<'a> {
    fn new(plan: &'a Plan, listener: Listener, trust: &'a Trust, members: &'a [(Contact, Facts)]) -> Self {
        let door = Door::new(listener, Check::SameUserAnd(trust.clone()), plan.size);
        Near { plan, trust, members, door, came: BTreeMap::new() }
    }

    /// Passes a descriptor to everybody who asks for one, until that is no longer possible.
    async fn serve(&mut self) -> Error {
        loop {
            let visitor = self.door.next().await;
            let Visitor { channel, message, mut descriptors } = match visitor {
                Ok(visitor) => visitor,
                Err(errno) => return full(self.plan.rank, errno),
            };
            let Message::Here { rank } = message else { continue };
            let Some((_, facts)) = self.members.get(rank as usize).filter(|_| rank > self.plan.rank) else { continue };
            let token = eventfd(0, EventfdFlags::CLOEXEC);
            let Ok(token) = token.inspect_err(|errno| log::warn!("no descriptor can be made to pass on: {errno}"))
            else {
                continue;
            };
            if channel.send(&Message::Here { rank: self.plan.rank }, &[token.as_fd()]).await.is_ok() {
                let neighbour = Neighbour { channel, facts: facts.clone(), pidfd: descriptors.pop() };
                self.came.insert(rank, neighbour);
            }
        }
    }

    /// Those that came and have this rank for their leader.
    fn led(self, leaders: &BTreeMap<u32, u32>) -> Result<BTreeMap<u32, Neighbour>> {
        let mut came = self.came;
        let own = self.plan.rank;
        let mut neighbours = BTreeMap::new();
        for (&rank, _) in leaders.iter().filter(|&(&rank, &leader)| leader == own && rank != own) {
            let Some(neighbour) = came.remove(&rank) else {
                let text = format!("rank {rank} says it is led by rank {own}, but has never asked it");
                return Err(Error::failed(Status::SystemError, Some(rank), text));
            };
            neighbours.insert(rank, neighbour);
        }
        Ok(neighbours)
    }
}

/// A socket for the ranks of this host, and the number of its name.
fn near_listener() -> Result<(Listener, [u8; 16])> {
    let number = random()?;
    let listener = Listener::unix(near_name(number).as_bytes());
    Ok((listener.map_err(|errno| Error::system("ranks of one host need a Unix socket", errno))?, number))
}

fn near_name(number: [u8; 16]) -> Name {
    Name::of(&[b"near", &number])
}

/// Deals to the ranks that this one leads.
async fn deal_to(plan: &Plan, near: &BTreeMap<u32, Neighbour>, pidfd: Option<&OwnedFd>) -> Result<()> {
    let own = Seat { rank: plan.rank, process: plan.facts.process, pidfd: pidfd.map(AsFd::as_fd), channel: None };
    let others = near.iter().map(|(&rank, neighbour)| Seat {
        rank,
        process: neighbour.facts.process,
        pidfd: neighbour.pidfd.as_ref().map(AsFd::as_fd),
        channel: Some(&neighbour.channel),
    });
    let seats: Vec<Seat<'_>> = std::iter::once(own).chain(others).collect();
    match until(plan.patience.deadline, deal(&seats)).await {
        Some(Ok(())) => Ok(()),
        Some(Err(Misdeal::Rank(rank, broken))) => Err(lost(rank, broken)),
        Some(Err(Misdeal::Own(error))) => Err(error),
        None => Err(unconnected(plan, &near.keys().copied().collect::<Vec<_>>())),
    }
}

/// The connections to the other ranks of this host: dealt by the leader, or those that this rank has as the leader.
async fn near_links(
    plan: &Plan,
    leaders: &BTreeMap<u32, u32>,
    near: BTreeMap<u32, Neighbour>,
    leader: Option<Channel>,
    pidfd: Option<&OwnedFd>,
) -> Result<BTreeMap<u32, Gift>> {
    let Some(channel) = leader else {
        deal_to(plan, &near, pidfd).await?;
        let mut gifts = BTreeMap::new();
        for (rank, neighbour) in near {
            let pidfd = neighbour.pidfd.filter(|_| neighbour.facts.process != plan.facts.process);
            gifts.insert(rank, Gift { link: Some(neighbour.channel.into_socket()?), pidfd });
        }
        return Ok(gifts);
    };
    let leader = leaders.get(&plan.rank).copied().unwrap_or_default();
    let count = leaders.values().filter(|&&other| other == leader).count();
    let mut gifts = BTreeMap::new();
    for _ in 1..count {
        match until(plan.patience.deadline, channel.receive()).await {
            Some(Ok((message, descriptors))) => {
                take(&mut gifts, (plan.rank, leader), &message, descriptors)
                    .ok_or_else(|| lost(leader, Broken::Garbled))?;
            }
            Some(Err(broken)) => return Err(lost(leader, broken)),
            None => return Err(unconnected(plan, &[leader])),
        }
    }
    if let Some(gift) = gifts.get_mut(&leader) {
        gift.link = Some(channel.into_socket()?);
    }
    Ok(gifts)
}

// ------------------------------------------------------------------------------------------------------ other hosts

/// The connections to ranks of other hosts but rank 0, which is connected already.
async fn far_links(
    plan: &Plan,
    trust: &Trust,
    listener: Listener,
    members: &[(Contact, Facts)],
    leaders: &BTreeMap<u32, u32>,
) -> Result<BTreeMap<u32, Channel>> {
    let own = leaders.get(&plan.rank);
    let is_far = |rank: u32| leaders.get(&rank) != own;
    let mut called = Crowd::new();
    for (rank, (contact, _)) in (0u32..).zip(members).filter(|&(rank, _)| rank != 0 && rank < plan.rank && is_far(rank))
    {
        called.push(async move { (rank, contact.address, call(plan, trust, rank, contact.address).await) });
    }
    let mut waiting: Vec<u32> = (1..plan.size).filter(|&rank| rank != plan.rank && is_far(rank)).collect();
    let mut links = BTreeMap::new();
    let mut door = Door::new(listener, Check::Trust(trust.clone()), plan.size);
    while !waiting.is_empty() {
        let (rank, channel) = match until(plan.patience.deadline, race(called.next(), door.next())).await {
            Some(First::Left((rank, _, Ok(channel)))) => (rank, channel),
            Some(First::Left((rank, address, Err(denied)))) => {
                let text = format!(
                    "rank {} cannot connect to rank {rank} at {address}: {denied}; ranks of different hosts connect to each \
                     other on ports that the system chooses",
                    plan.rank
                );
                return Err(Error::failed(Status::SystemError, Some(rank), text));
            }
            Some(First::Right(Err(errno))) => return Err(full(plan.rank, errno)),
            Some(First::Right(Ok(visitor))) => match visitor.message {
                Message::Here { rank } if rank > plan.rank && waiting.contains(&rank) => {
                    // An answer that does not arrive is the caller's to notice; it will call again.
                    if visitor.channel.send(&Message::Here { rank: plan.rank }, &[]).await.is_err() {
                        continue;
                    }
                    (rank, visitor.channel)
                }
                _ => continue,
            },
            None => return Err(unconnected(plan, &waiting)),
        };
        waiting.retain(|&other| other != rank);
        links.insert(rank, channel);
    }
    Ok(links)
}

/// Calls a lower rank. A connection that breaks is tried again: the other side may have been busy with strangers.
async fn call(plan: &Plan, trust: &Trust, rank: u32, address: SocketAddr) -> Result<Channel, Denied> {
    loop {
        let attempt = async {
            let channel = connect_tcp(address).await.map_err(Broken::System)?;
            prove(&channel, trust).await?;
            channel.send(&Message::Here { rank: plan.rank }, &[]).await?;
            match channel.receive().await? {
                (Message::Here { rank: answered }, _) if answered == rank => Ok(channel),
                _ => Err(Denied::Stranger),
            }
        };
        match attempt.await {
            Err(Denied::Broken(Broken::Closed)) => sleep(AGAIN).await,
            outcome => return outcome,
        }
    }
}

fn unconnected(plan: &Plan, ranks: &[u32]) -> Error {
    let (own, names, within) = (plan.rank, name_ranks(ranks), plan.patience.within());
    let text = format!("rank {own} could not be connected to {names} {within}");
    Error::failed(Status::Timeout, ranks.first().copied(), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let parse = |text| Address::parse("TUTTI_ADDR", text);
        assert_eq!(parse("node0:4242").unwrap().to_string(), "node0:4242");
        assert_eq!(parse("[::1]:1").unwrap().to_string(), "[::1]:1");
        assert!(parse("[::]:1").unwrap().is_unspecified() && parse("127.0.0.1:1").unwrap().is_loopback());
        for wrong in ["node0", ":4242", "node0:", "node0:70000", "::1:4242", "node0:port"] {
            let text = parse(wrong).unwrap_err().to_string();
            assert!(text.contains("TUTTI_ADDR") && text.contains(wrong), "{text}");
        }
    }

    #[test]
    fn an_address_elsewhere_cannot_be_listened_on_and_the_error_says_what_can() {
        // TEST-NET-1 (RFC 5737): nobody has it.
        let text = listen(&Address::parse("TUTTI_ADDR", "192.0.2.1:4242").unwrap()).unwrap_err().to_string();
        assert!(text.contains("192.0.2.1:4242") && text.contains("0.0.0.0"), "{text}");
    }
}
