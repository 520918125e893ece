//! How the ranks of a world find, trust, hear and miss each other.
//!
//! * [`mesh`] — what the rendezvous hands over: a connection to every other rank;
//! * [`control`] — messages and descriptors over those connections, for all groups of a rank;
//! * [`session`] — several ranks doing one thing together, round by round, bounded;
//! * [`members`] — the members of a group: who is there, who is lost, what failed first;
//! * [`board`] and [`bell`] — what a group on one host shares: headers of calls, the first failure, wake-ups;
//! * [`mapping`] — memory that ranks share.

pub mod bell;
pub mod board;
pub mod control;
pub mod mapping;
pub mod members;
mod mesh;
pub mod service;
pub mod session;

pub use members::{Channel, Members};
pub use mesh::{Link, Mesh, Peer};

// TEMPORARY until the rendezvous lands.
#[allow(missing_docs)]
pub fn local(size: u32) -> crate::error::Result<Vec<Mesh>> {
    use rustix::net::*;
    let facts = crate::topology::Facts { pid: std::process::id(), uid: 0, process: 1, host: 1, host_name: "x".into(), cpus: vec![0, 1], quota_millicores: u32::MAX, version: 1 };
    let mut meshes: Vec<Mesh> = (0..size).map(|rank| Mesh { rank, uid: 77 << 8 | rand(), peers: (0..size).map(|_| Peer { facts: facts.clone(), link: None, pidfd: None }).collect() }).collect();
    fn rand() -> u64 { 5 << 20 }
    for a in 0..size as usize { for b in a + 1..size as usize {
        let (x, y) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None).unwrap();
        meshes[a].peers[b].link = Some(Link::Local(x)); meshes[b].peers[a].link = Some(Link::Local(y));
    } }
    Ok(meshes)
}
#[allow(missing_docs)]
pub fn join(_: &crate::config::WorldOptions) -> crate::error::Result<Mesh> { unimplemented!() }
