//! What the rendezvous hands to the rest: one connection to every other rank, and what each rank said of itself.

use rustix::fd::OwnedFd;

use crate::topology::Facts;

/// A connection to one other rank: a non-blocking, close-on-exec stream socket with nothing left unread on it.
#[derive(Debug)]
pub enum Link {
    /// A Unix socket to a rank on this host. Descriptors can travel on it.
    Local(OwnedFd),
    /// A TCP connection to a rank on another host, authenticated.
    Remote(OwnedFd),
}

impl Link {
    /// The socket.
    pub fn socket(&self) -> &OwnedFd {
        match self {
            Link::Local(socket) | Link::Remote(socket) => socket,
        }
    }

    /// Whether descriptors can travel on it, which is what "on the same host" means.
    pub fn is_local(&self) -> bool {
        matches!(self, Link::Local(_))
    }
}

/// One rank of the world, as this rank sees it.
#[derive(Debug)]
pub struct Peer {
    /// What the rank said of itself.
    pub facts: Facts,
    /// The way to it; `None` for this rank itself.
    pub link: Option<Link>,
    /// Becomes readable when its process ends. `None` for this process, for other hosts, and where the kernel
    /// refuses pidfds (then the end of the connection must do).
    pub pidfd: Option<OwnedFd>,
}

/// A world after its ranks have met.
#[derive(Debug)]
pub struct Mesh {
    /// This rank.
    pub rank: u32,
    /// A random number all ranks share, different in every world.
    pub uid: u64,
    /// All ranks, in order, this one included.
    pub peers: Vec<Peer>,
}
