//! How the ranks of a world find, trust, hear and miss each other.
//!
//! [`join`] brings one rank into its world, [`local`] makes a world inside this process; both hand over a [`Mesh`]:
//! a connection to every other rank. They block until a deadline and leave no thread, name or file behind.
//!
//! The rendezvous:
//!
//! * `environment` — which world: what the launcher's variables say;
//! * [`unique_id`] — a world named by 128 secret bytes instead;
//! * `plan` — what one rank knows before it meets the others;
//! * `assembly`, `entry` — rank 0's and the others' side of the conversation, told in `assembly`;
//! * `local` — ranks on one host; `deal` — how they get their connections;
//! * `door` — strangers: taken one beside the other, briefly, until they have proved who they are;
//! * `wire`, `channel`, `tasks` — messages, sockets, waiting for many of them on one thread;
//! * `mesh` — what is handed over.
//!
//! And what stands on it:
//!
//! * [`control`] — messages and descriptors over those connections, for all groups of a rank;
//! * [`session`] — several ranks doing one thing together, round by round, bounded;
//! * [`members`] — the members of a group: who is there, who is lost, what failed first;
//! * [`board`] and [`bell`] — what a group on one host shares: headers of calls, the first failure, wake-ups;
//! * [`mapping`] — memory that ranks share;
//! * [`service`] — the thread that hears other hosts.

mod assembly;
pub mod bell;
pub mod board;
mod channel;
pub mod control;
mod deal;
mod door;
mod entry;
mod environment;
mod local;
pub mod mapping;
pub mod members;
mod mesh;
mod plan;
pub mod service;
pub mod session;
mod tasks;
pub mod unique_id;
mod wire;

pub use members::{Channel, Members};
pub use mesh::{Link, Mesh, Peer};

use self::{
    environment::{Place, Turn},
    plan::{NEEDS_ADDRESS, Name, Patience, Plan, random_uid, short_digest},
    unique_id::UniqueId,
    wire::MAX_RANKS,
};
use crate::{
    config::{WorldOptions, variable},
    error::{Error, Result},
    topology::Facts,
};

/// Brings this rank into its world and returns when all ranks are in it, within the timeout of the group's options.
///
/// Any thread may call this, several at once too, each for its own rank. All ranks succeed or all fail; the error
/// names the ranks that are missing, doubled or different. Nothing stays open after an error.
pub fn join(options: &WorldOptions) -> Result<Mesh> {
    let patience = Patience::begin(options.group.timeout);
    let place = environment::place(&variable, options.size_and_rank)?;
    let host_id = variable("TUTTI_HOST_ID");
    let facts = Facts::gather(host_id.as_deref());
    let host_id = host_id.map_or(0, |id| short_digest(&[b"host id", id.as_bytes()]));
    if let Some(bytes) = &options.unique_id {
        let id = UniqueId::parse(bytes)?;
        return join_by_id(&id, place, facts, host_id, patience);
    }
    if place.size == 1 {
        return alone(facts);
    }
    if let Some(reason) = &place.hosts {
        return Err(Error::usage(format_args!("this world has several hosts ({reason}): {NEEDS_ADDRESS}")));
    }
    let key = environment::key(&variable)?;
    let turn = Turn::begin(key.clone(), place.rank)?;
    let made = turn.made.to_le_bytes();
    let world = [b"environment", key.as_bytes(), &made];
    let user = facts.uid.to_le_bytes();
    let name = Name::of(&[b"environment", &user, key.as_bytes(), &made]);
    let (rank, size, world) = (place.rank, place.size, short_digest(&world));
    let mesh = local::join(&Plan { rank, size, world, name, host_id, facts, patience }, None)?;
    turn.finish();
    Ok(mesh)
}

/// Makes a world of `size` ranks, all of them in this process, in rank order. Needs no name and no other process.
pub fn local(size: u32) -> Result<Vec<Mesh>> {
    if size == 0 || size > MAX_RANKS {
        return Err(Error::invalid(format_args!("size is {size}; a world has 1 to {MAX_RANKS} ranks")));
    }
    local::within_process(size, &Facts::gather(variable("TUTTI_HOST_ID").as_deref()))
}

fn join_by_id(id: &UniqueId, place: Place, facts: Facts, host_id: u64, patience: Patience) -> Result<Mesh> {
    let Place { rank, size, .. } = place;
    let held = match rank {
        0 => Some(unique_id::begin(id)?),
        _ => {
            unique_id::check_unused(id)?;
            None
        }
    };
    if size == 1 {
        return alone(facts);
    }
    if id.address.is_none() && id.host != facts.host {
        return Err(Error::usage(format_args!(
            "the unique id was made on another host and holds no address: {NEEDS_ADDRESS}, before the id is made"
        )));
    }
    let world = short_digest(&[b"unique id", id.secret()]);
    let plan = Plan { rank, size, world, name: id.name(), host_id, facts, patience };
    let (_use, sockets) = held.unzip();
    local::join(&plan, sockets.map(|sockets| sockets.unix))
}

/// A world of one rank needs nobody.
fn alone(facts: Facts) -> Result<Mesh> {
    Ok(Mesh { rank: 0, uid: random_uid()?, peers: vec![Peer { facts, link: None, pidfd: None }] })
}
