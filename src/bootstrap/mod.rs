//! How the ranks of a world find, trust, hear and miss each other.
//!
//! * [`mesh`] — what the rendezvous hands over: a connection to every other rank.

mod mesh;

pub use mesh::{Link, Mesh, Peer};
