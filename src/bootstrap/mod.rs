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

