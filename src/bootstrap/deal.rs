//! How the ranks of one host get their connections to each other: the lowest of them deals them out.
//!
//! The leader, who is connected to every other rank of its host, makes a pair of connected sockets for every two of
//! them and passes the ends, together with the pidfd that each process has opened of itself. A pair is closed here as
//! soon as it was sent, so the leader never holds more descriptors than anybody else.

use std::collections::BTreeMap;

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    process::{PidfdFlags, getpid, pidfd_open},
};

use super::{
    channel::{Broken, Channel, pair},
    wire::Message,
};
use crate::error::{Error, Result};

/// One rank of the host, as its leader sees it.
pub(super) struct Seat<'a> {
    pub(super) rank: u32,
    pub(super) process: u64,
    pub(super) pidfd: Option<BorrowedFd<'a>>,
    /// The connection to it; `None` for the leader itself.
    pub(super) channel: Option<&'a Channel>,
}

/// What a rank is dealt for one other: a connection (none to the leader, who is connected already) and its pidfd (none
/// within one process, and where the kernel has none).
#[derive(Debug, Default)]
pub(super) struct Gift {
    pub(super) link: Option<OwnedFd>,
    pub(super) pidfd: Option<OwnedFd>,
}

/// Why dealing ended early.
pub(super) enum Misdeal {
    /// This rank cannot be reached.
    Rank(u32, Broken),
    /// The leader is at its own limits.
    Own(Error),
}

/// Deals to every rank what it needs for every other.
pub(super) async fn deal(seats: &[Seat<'_>]) -> Result<(), Misdeal> {
    for (at, one) in seats.iter().enumerate() {
        for other in seats.iter().skip(at + 1) {
            let ends = match (one.channel, other.channel) {
                (Some(_), Some(_)) => {
                    let ends = pair().map_err(|errno| {
                        Misdeal::Own(Error::system("two ranks cannot be connected (raise `ulimit -n`)", errno))
                    })?;
                    (Some(ends.0), Some(ends.1))
                }
                _ => (None, None),
            };
            give(one, other, ends.0).await?;
            give(other, one, ends.1).await?;
        }
    }
    Ok(())
}

/// Sends `to` what it needs for `about`.
async fn give(to: &Seat<'_>, about: &Seat<'_>, link: Option<OwnedFd>) -> Result<(), Misdeal> {
    let Some(channel) = to.channel else { return Ok(()) };
    let pidfd = about.pidfd.filter(|_| about.process != to.process);
    let message = Message::Pair { rank: about.rank, link: link.is_some(), pidfd: pidfd.is_some() };
    let descriptors: Vec<_> = link.as_ref().map(AsFd::as_fd).into_iter().chain(pidfd).collect();
    channel.send(&message, &descriptors).await.map_err(|broken| Misdeal::Rank(to.rank, broken))
}

/// Adds a dealt message to what rank `own` has got so far; `None` for what no leader deals.
pub(super) fn take(
    gifts: &mut BTreeMap<u32, Gift>,
    (own, leader): (u32, u32),
    message: &Message,
    descriptors: Vec<OwnedFd>,
) -> Option<()> {
    let Message::Pair { rank, link, pidfd } = *message else { return None };
    if rank == own || link == (rank == leader) || gifts.contains_key(&rank) {
        return None;
    }
    let mut descriptors = descriptors.into_iter();
    let mut next = |wanted: bool| if wanted { descriptors.next().map(Some) } else { Some(None) };
    gifts.insert(rank, Gift { link: next(link)?, pidfd: next(pidfd)? });
    Some(())
}

/// A pidfd of this process; `None` where the kernel or a filter refuses it.
pub(super) fn own_pidfd() -> Option<OwnedFd> {
    pidfd_open(getpid(), PidfdFlags::empty())
        .inspect_err(|errno| {
            log::info!("pidfd_open is refused here ({errno}): the end of a process is seen by its sockets")
        })
        .ok()
}
