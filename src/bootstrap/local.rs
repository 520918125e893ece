//! Ranks that know they are on one host: they meet on an abstract Unix socket named from the key of their world.
//!
//! Rank 0 binds the name, leads the assembly and deals out the connections; so the mesh needs one name, for as long as
//! it takes the ranks to arrive, and nothing is ever put into the file system. Both sides ask the kernel whose process
//! the other one is, and deal with no other user.

use std::{collections::BTreeMap, time::Duration};

use rustix::{
    fd::{AsFd, OwnedFd},
    io::Errno,
};

use super::{
    assembly::Assembly,
    channel::{Broken, Channel, Listener, connect_unix, credentials, pair},
    deal::{Misdeal, Seat, deal, own_pidfd, take},
    door::{Check, Door},
    entry::{Entry, Refusal, challenge_rival, lost, soon},
    mesh::{Link, Mesh, Peer},
    plan::{Plan, random_uid},
    tasks::{Boxed, block_on, sleep, until},
    wire::Contact,
};
use crate::{
    error::{Error, Result, Status},
    topology::Facts,
};

/// How long to wait between two attempts to bind a name whose holder is going away.
const REBIND: Duration = Duration::from_millis(5);

/// All ranks of a world in this process.
pub(super) fn within_process(size: u32, facts: &Facts) -> Result<Vec<Mesh>> {
    let uid = random_uid()?;
    let unconnected = |rank| {
        let peers = (0..size).map(|_| Peer { facts: facts.clone(), link: None, pidfd: None });
        Mesh { rank, uid, peers: peers.collect() }
    };
    let mut ranks: Vec<Mesh> = (0..size).map(unconnected).collect();
    for low in 0..ranks.len() {
        for high in low + 1..ranks.len() {
            let (one, other) = pair().map_err(|errno| {
                Error::system(
                    format_args!("{size} ranks in one process cannot all be connected (raise `ulimit -n`)"),
                    errno,
                )
            })?;
            set_link(&mut ranks, low, high, one);
            set_link(&mut ranks, high, low, other);
        }
    }
    Ok(ranks)
}

fn set_link(ranks: &mut [Mesh], rank: usize, peer: usize, socket: OwnedFd) {
    if let Some(peer) = ranks.get_mut(rank).and_then(|mesh| mesh.peers.get_mut(peer)) {
        peer.link = Some(Link::Local(socket));
    }
}

/// Meets the other ranks of a world on this host. `held` is rank 0's listener, where it was bound before.
#[inline(never)]
pub(super) fn join(plan: &Plan, held: Option<Listener>) -> Result<Mesh> {
    block_on(match plan.rank {
        0 => lead(plan, held),
        _ => follow(plan),
    })
}

/// Says to the rank 0 of a world that this is a second one, if there is one to hear it: what it then tells all ranks.
#[inline(never)]
pub(super) fn challenge(plan: &Plan) -> Option<Error> {
    let challenge: Boxed<_> = Box::pin(async { challenge_rival(plan, &knock(plan).ok()?).await });
    block_on(until(soon(), challenge)).flatten()
}

#[inline(never)]
fn lead(plan: &Plan, held: Option<Listener>) -> Boxed<'_, Result<Mesh>> {
    Box::pin(async move {
        let listener = match held {
            Some(listener) => listener,
            None => bind(plan).await?,
        };
        let mut door = Door::new(listener, Check::SameUser, plan.size);
        let mut assembly = Assembly::new(plan, false);
        match assemble(&mut assembly, &mut door).await {
            Ok(uid) => {
                let mut peers = vec![Peer { facts: plan.facts.clone(), link: None, pidfd: None }];
                for guest in assembly.guests.into_values() {
                    let link = Some(Link::Local(guest.channel.into_socket()?));
                    let pidfd = guest.pidfd.filter(|_| guest.facts.process != plan.facts.process);
                    peers.push(Peer { facts: guest.facts, link, pidfd });
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

/// Rank 0's part, from the first arrival until all ranks have what they need; the world's number.
#[inline(never)]
fn assemble<'a>(assembly: &'a mut Assembly<'_>, door: &'a mut Door) -> Boxed<'a, Result<u64>> {
    Box::pin(async move {
        assembly.gather(door).await?;
        let uid = random_uid()?;
        assembly.introduce(Contact::NONE, uid, [0; 32]).await?;
        let own = own_pidfd();
        let mut seats = vec![Seat {
            rank: 0,
            process: assembly.plan.facts.process,
            pidfd: own.as_ref().map(AsFd::as_fd),
            channel: None,
        }];
        seats.extend(assembly.guests.iter().map(|(&rank, guest)| Seat {
            rank,
            process: guest.facts.process,
            pidfd: guest.pidfd.as_ref().map(AsFd::as_fd),
            channel: Some(&guest.channel),
        }));
        match until(assembly.patience.deadline, deal(&seats)).await {
            Some(Ok(())) => {}
            Some(Err(Misdeal::Rank(rank, broken))) => return Err(assembly.lost(rank, broken).await),
            Some(Err(Misdeal::Own(error))) => return Err(error),
            None => {
                let text = format!("all ranks arrived but could not be connected {}", assembly.patience.within());
                return Err(Error::failed(Status::Timeout, None, text));
            }
        }
        assembly.finish().await?;
        Ok(uid)
    })
}

/// Binds the name of the world. Whoever holds it already is another user, which is an error at once, or another process
/// that believes to be rank 0, which will say so, or one that is going away.
async fn bind(plan: &Plan) -> Result<Listener> {
    let attempts = async {
        loop {
            match Listener::unix(plan.name.as_bytes()) {
                Ok(listener) => return Ok(listener),
                Err(Errno::ADDRINUSE) => {}
                Err(errno) => return Err(Error::system("rank 0 cannot listen on a Unix socket", errno)),
            }
            match knock(plan) {
                Ok(rival) => {
                    if let Some(verdict) = challenge_rival(plan, &rival).await {
                        return Err(verdict);
                    }
                }
                Err(Refusal::Never(error)) => return Err(error),
                Err(Refusal::Later(_)) => {}
            }
            sleep(REBIND).await;
        }
    };
    until(plan.patience.deadline, attempts).await.unwrap_or_else(|| {
        let text =
            format!("another process holds the socket of this world and did not answer {}", plan.patience.within());
        Err(Error::failed(Status::Timeout, Some(0), text))
    })
}

#[inline(never)]
fn follow(plan: &Plan) -> Boxed<'_, Result<Mesh>> {
    Box::pin(async move {
        let pidfd = own_pidfd();
        let entry = Entry::open(plan, pidfd.as_ref(), async || Ok((knock(plan)?, Contact::NONE))).await?;
        let outcome = async {
            let roster = entry.roster().await?;
            let mut gifts = BTreeMap::new();
            for _ in 1..plan.size {
                let (message, descriptors) = entry.hear().await?;
                take(&mut gifts, (plan.rank, 0), &message, descriptors).ok_or_else(|| lost(0, Broken::Garbled))?;
            }
            entry.finish().await?;
            Ok((roster, gifts))
        }
        .await;
        let (roster, mut gifts) = match outcome {
            Ok(met) => met,
            Err(error) => {
                entry.give_up(&error).await;
                return Err(error);
            }
        };
        let mut peers = Vec::new();
        let mut to_leader = Some(entry.channel);
        for (rank, (_, facts)) in (0u32..).zip(roster.members) {
            let gift = gifts.remove(&rank).unwrap_or_default();
            let link = match to_leader.take_if(|_| rank == 0) {
                Some(channel) => Some(channel.into_socket()?),
                None => gift.link,
            };
            peers.push(Peer { facts, link: link.map(Link::Local), pidfd: gift.pidfd });
        }
        Ok(Mesh { rank: plan.rank, uid: roster.uid, peers })
    })
}

/// Connects to whoever holds the name, which must be this user.
fn knock(plan: &Plan) -> Result<Channel, Refusal> {
    let later = |errno: Errno| Refusal::Later(format!("; connecting failed: {}", std::io::Error::from(errno)));
    let channel = match connect_unix(plan.name.as_bytes()) {
        Ok(channel) => channel,
        // Nobody listens yet.
        Err(Errno::CONNREFUSED) => return Err(Refusal::Later(String::new())),
        Err(errno) => return Err(later(errno)),
    };
    let own = rustix::process::geteuid().as_raw();
    match credentials(channel.socket()) {
        Ok((_, user)) if user == own => Ok(channel),
        Ok((process, user)) => {
            let text = format!(
                "the socket of this world is held by user {user} (process {process}), not by user {own}: use another \
                 MASTER_PORT or TUTTI_WORLD_KEY, or a unique id"
            );
            Err(Refusal::Never(Error::failed(Status::SystemError, Some(0), text)))
        }
        Err(errno) => Err(later(errno)),
    }
}
