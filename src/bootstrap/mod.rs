//! How the ranks of a world find, trust, hear and miss each other.
//!
//! [`join`] brings one rank into its world, [`local`] makes a world inside this process; both hand over a [`Mesh`]:
//! a connection to every other rank. They block until a deadline and leave no thread, name or file behind.
//!
//! The rendezvous:
//!
//! * `environment` — which world: what the launcher's variables say;
//! * [`unique_id`] — a world named by 128 secret bytes instead;
//! * `gathered` — or brought together by the caller's own all-gather;
//! * `plan` — what one rank knows before it meets the others;
//! * `assembly`, `entry` — rank 0's and the others' side of the conversation, told in `assembly`;
//! * `local`, `hosts` — the ways to rank 0 on one host and over the network; `deal` — connections on one host;
//! * `door`, `auth` — strangers: heard one beside the other, briefly, until they have proved who they are;
//! * `wire`, `channel`, `tasks` — messages, sockets, waiting for many of them on one thread;
//! * `mesh` — what is handed over.
//!
//! And what stands on it:
//!
//! * [`control`] — messages and descriptors over those connections, for all groups of a rank;
//! * [`session`] — several ranks doing one thing together, round by round, bounded;
//! * [`members`] — the members of a group: who is there, who is lost, what failed first;
//! * [`board`] and [`bell`] — what a group on one host shares: headers of calls, the first failure, wake-ups;
//! * [`mapping`] — memory that ranks share; [`sharing`] — how they come to; [`regions`] — what callers got of it;
//! * [`service`] — the thread that hears other hosts; [`fork`] — what a forked child may do: nothing.

mod assembly;
mod auth;
pub mod bell;
pub mod board;
mod channel;
pub mod control;
mod deal;
mod door;
mod entry;
mod environment;
pub mod fork;
mod gathered;
#[cfg(test)]
mod hostile;
mod hosts;
mod local;
pub mod mapping;
pub mod members;
mod mesh;
#[cfg(all(test, loom))]
pub(crate) mod model;
mod plan;
pub mod regions;
pub mod service;
pub mod session;
pub mod sharing;
mod tasks;
pub mod unique_id;
mod wire;

pub use members::{Channel, Members};
pub use mesh::{Link, Mesh, Peer};

use self::{
    auth::{Key, Trust},
    environment::{Place, Turn},
    hosts::{Address, Route},
    plan::{NEEDS_ADDRESS, Name, Patience, Plan, random_uid, short_digest},
    unique_id::{Claim, UniqueId},
    wire::MAX_RANKS,
};
use crate::{
    config::{FLAG_ALLOW_UNAUTHENTICATED, WorldOptions, variable},
    error::{Error, Result},
    topology::Facts,
};

/// Secrets shorter than this, in bytes, are too easily guessed by who has seen a proof; a random one of this length is not.
const SHORT_SECRET: usize = 16;

/// Brings this rank into its world and returns when all ranks are in it, within the timeout of the group's options.
///
/// Any thread may call this, several at once too, each for its own rank. All ranks succeed or all fail; the error
/// names the ranks that are missing, doubled or different. Nothing stays open after an error. While it waits it also
/// goes on with `work`, which says whether anything is left of it.
pub fn join_while(options: &WorldOptions, work: fn() -> bool) -> Result<Mesh> {
    tasks::meanwhile(work, || join(options))
}

/// [`join_while`] without other work.
pub fn join(options: &WorldOptions) -> Result<Mesh> {
    let patience = Patience::begin(options.group.timeout);
    let place = environment::place(&variable, options.size_and_rank)?;
    let host_id = variable("TUTTI_HOST_ID");
    let who = Who {
        facts: Facts::gather(host_id.as_deref()),
        host_id: host_id.map_or(0, |id| short_digest(&[b"host id", id.as_bytes()])),
        patience,
    };
    let address = address(options)?;
    if let Some(all_gather) = &options.all_gather {
        let id = gathered::exchange(all_gather, &place, &who.facts, address)?;
        return by_id(&id, None, place, who);
    }
    if let Some(bytes) = &options.unique_id {
        // TUTTI_ADDR is for who makes an id; afterwards the id knows better.
        return by_id(&UniqueId::parse(bytes)?, address.filter(|_| options.address.is_some()), place, who);
    }
    if place.size == 1 {
        return alone(who);
    }
    by_environment(options, address, place, who)
}

/// Makes a world of `size` ranks, all of them in this process, in rank order. Needs no name and no other process.
pub fn local(size: u32) -> Result<Vec<Mesh>> {
    if size == 0 || size > MAX_RANKS {
        return Err(Error::invalid(format_args!("size is {size}; a world has 1 to {MAX_RANKS} ranks")));
    }
    local::within_process(size, &Facts::gather(variable("TUTTI_HOST_ID").as_deref()))
}

/// What a rank knows of itself.
struct Who {
    facts: Facts,
    host_id: u64,
    patience: Patience,
}

impl Who {
    fn plan(self, place: &Place, world: u64, name: Name) -> Plan {
        let Who { facts, host_id, patience } = self;
        Plan { rank: place.rank, size: place.size, world, name, host_id, facts, patience }
    }
}

/// A world that the launcher's variables name.
fn by_environment(options: &WorldOptions, address: Option<Address>, place: Place, who: Who) -> Result<Mesh> {
    let trust = match (&address, &place.hosts) {
        (Some(_), _) => Some(trust_of_environment(options)?),
        (None, None) => None,
        (None, Some(reason)) => {
            return Err(Error::usage(format_args!("this world has several hosts ({reason}): {NEEDS_ADDRESS}")));
        }
    };
    if address.as_ref().is_some_and(|address| address.port() == 0) {
        return Err(Error::invalid("the address of rank 0 has port 0, which the other ranks cannot find: choose one"));
    }
    // An address is a meeting place of its own; only on one host must the key alone lead there.
    let key = match address {
        Some(_) => environment::key(&variable, None).unwrap_or_default(),
        None => environment::key(&variable, Some(&maker_of))?,
    };
    let turn = Turn::begin(key.clone(), place.rank)?;
    let made = turn.made.to_le_bytes();
    let user = who.facts.uid.to_le_bytes();
    let world = short_digest(&[b"environment", key.as_bytes(), &made]);
    let plan = who.plan(&place, world, Name::of(&[b"environment", &user, key.as_bytes(), &made]));
    let mesh = match address.zip(trust) {
        Some((address, trust)) => hosts::join(&plan, Route { address, trust, held: None })?,
        None => local::join(&plan, None)?,
    };
    turn.finish();
    Ok(mesh)
}

/// The process that made a socket of this process, where it has a number here.
fn maker_of(descriptor: i32) -> Option<u32> {
    channel::credentials_of_number(descriptor).ok().map(|(process, _)| process).filter(|&process| process != 0)
}

/// A world that a unique id names; `address` is where to look for rank 0 instead of where the id says.
fn by_id(id: &UniqueId, address: Option<Address>, place: Place, who: Who) -> Result<Mesh> {
    let (mut held, mut elsewhere) = (None, None);
    match place.rank {
        0 => match unique_id::begin(id)? {
            Claim::Granted(in_use, sockets) => held = Some((in_use, sockets)),
            Claim::Elsewhere(error) => elsewhere = Some(error),
        },
        _ => unique_id::check_unused(id)?,
    }
    if place.size == 1 {
        return elsewhere.map_or_else(|| alone(who), Err);
    }
    let in_id = id.address.as_deref().map(|text| Address::parse("the address in the unique id", text)).transpose()?;
    let address = address.or(in_id);
    if address.is_none() && id.host != who.facts.host {
        return Err(elsewhere.unwrap_or_else(|| {
            Error::usage(format_args!(
                "the unique id was made on another host and holds no address: before it is made, {NEEDS_ADDRESS}"
            ))
        }));
    }
    let plan = who.plan(&place, short_digest(&[b"unique id", id.secret()]), id.name());
    let (_in_use, sockets) = held.unzip();
    let trust = Trust::Secret(Key::new(id.secret()));
    if let Some(error) = elsewhere {
        // The rank 0 that is there, if one is, would wait for the rank that this one should have been: it has to know.
        let told = match address {
            Some(address) => hosts::challenge(&plan, &Route { address, trust, held: None }),
            None => local::challenge(&plan),
        };
        return Err(told.unwrap_or(error));
    }
    match address {
        Some(address) => hosts::join(&plan, Route { address, trust, held: sockets.and_then(|sockets| sockets.tcp) }),
        None => local::join(&plan, sockets.map(|sockets| sockets.unix)),
    }
}

/// A world of one rank needs nobody.
fn alone(who: Who) -> Result<Mesh> {
    Ok(Mesh { rank: 0, uid: random_uid()?, peers: vec![Peer { facts: who.facts, link: None, pidfd: None }] })
}

/// Where rank 0 listens for other hosts: as the caller says, or else as the environment does.
fn address(options: &WorldOptions) -> Result<Option<Address>> {
    match (&options.address, variable("TUTTI_ADDR")) {
        (Some(text), _) => Address::parse("address", text).map(Some),
        (None, Some(text)) => Address::parse("TUTTI_ADDR", &text).map(Some),
        (None, None) => Ok(None),
    }
}

/// What ranks from other hosts must prove where no unique id has a secret for them.
fn trust_of_environment(options: &WorldOptions) -> Result<Trust> {
    if let Some(secret) = variable("TUTTI_SECRET") {
        if secret.len() < SHORT_SECRET {
            log::warn!(
                "TUTTI_SECRET has fewer than {SHORT_SECRET} characters and might be guessed; use a long random one"
            );
        }
        return Ok(Trust::Secret(Key::new(secret.as_bytes())));
    }
    let allowed = match variable("TUTTI_ALLOW_UNAUTHENTICATED").as_deref() {
        None | Some("0") => (options.flags | options.group.flags) & FLAG_ALLOW_UNAUTHENTICATED != 0,
        Some("1") => true,
        Some(other) => {
            return Err(Error::invalid(format_args!("TUTTI_ALLOW_UNAUTHENTICATED is {other:?}; it is 0 or 1")));
        }
    };
    if !allowed {
        return Err(Error::usage(
            "ranks that come over the network must prove a secret: set TUTTI_SECRET to the same long random text on all ranks \
             (or, in a network where nobody else can connect, TUTTI_ALLOW_UNAUTHENTICATED=1)",
        ));
    }
    log::warn!("unauthenticated ranks are allowed: whoever can connect to rank 0's address can join this world");
    Ok(Trust::Anyone)
}
