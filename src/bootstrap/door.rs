//! Where strangers knock: takes connections, and lets through only those that have proved what is asked for and have
//! said their first message.
//!
//! Every visitor is heard beside the others, for a short time, and only so many at once; the longest silent one makes
//! room. So nobody who connects and says nothing, half a thing or rubbish keeps a rank waiting, or costs more than a
//! descriptor and a few kilobytes.

use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;

use super::{
    channel::{Channel, Listener, credentials},
    tasks::{Crowd, First, race, sleep, until},
    wire::Message,
};

/// How long a visitor may take to say who it is.
const HEARING: Duration = Duration::from_secs(5);
/// Visitors heard at once beside one per rank of the world.
const EXTRA_VISITORS: usize = 64;
/// How long to leave new connections alone when this process can open no more files.
const FULL: Duration = Duration::from_millis(20);
/// Refusals that are logged; the rest is only counted.
const LOGGED: u64 = 10;

/// Somebody who may speak, and what was said first.
pub(super) struct Visitor {
    pub(super) channel: Channel,
    pub(super) message: Message,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// A listener with the visitors that are being heard.
pub(super) struct Door {
    listener: Listener,
    heard: Crowd<'static, Result<Visitor, String>>,
    limit: usize,
    refused: u64,
    /// Why the last one was not let in.
    reason: String,
}

impl Door {
    /// A door for a world of `size` ranks.
    pub(super) fn new(listener: Listener, size: u32) -> Self {
        let limit = EXTRA_VISITORS.saturating_add(size as usize);
        Door { listener, heard: Crowd::new(), limit, refused: 0, reason: String::new() }
    }

    /// The next visitor. Dropping this loses nobody.
    pub(super) async fn next(&mut self) -> Visitor {
        loop {
            match race(self.heard.next(), self.listener.accept()).await {
                First::Left(Ok(visitor)) => return visitor,
                First::Left(Err(reason)) => self.refuse(reason),
                First::Right(Ok(channel)) => {
                    while self.heard.len() >= self.limit {
                        self.heard.drop_oldest();
                        self.refuse("too many said nothing".into());
                    }
                    self.heard.push(hear(channel));
                }
                First::Right(Err(errno)) => {
                    self.refuse(format!("accepting failed: {}", std::io::Error::from(errno)));
                    sleep(FULL).await;
                }
            }
        }
    }

    /// What to add to the report of a timeout: who came and was sent away.
    pub(super) fn refusals(&self) -> String {
        match self.refused {
            0 => String::new(),
            count => format!("; {count} connections were refused, the last because {}", self.reason),
        }
    }

    fn refuse(&mut self, reason: String) {
        self.refused += 1;
        if self.refused <= LOGGED {
            log::warn!("a connection to this world's rendezvous was refused: {reason}");
        }
        self.reason = reason;
    }
}

/// Hears one visitor out.
async fn hear(channel: Channel) -> Result<Visitor, String> {
    let deadline = Instant::now().checked_add(HEARING);
    let conversation = async {
        same_user(&channel)?;
        let (message, descriptors) = channel.receive().await.map_err(|broken| broken.to_string())?;
        Ok((message, descriptors))
    };
    match until(deadline, conversation).await {
        Some(Ok((message, descriptors))) => Ok(Visitor { channel, message, descriptors }),
        Some(Err(reason)) => Err(reason),
        None => Err(format!("nothing useful came within {} s", HEARING.as_secs())),
    }
}

/// Whether the other end of a Unix socket belongs to this user.
fn same_user(channel: &Channel) -> Result<(), String> {
    let own = rustix::process::geteuid().as_raw();
    match credentials(channel.socket()) {
        Ok((_, user)) if user == own => Ok(()),
        Ok((process, user)) => Err(format!("it came from user {user} (process {process}), not from user {own}")),
        Err(errno) => Err(format!("its user is unknown: {}", std::io::Error::from(errno))),
    }
}
