//! Where strangers knock: takes connections, and lets through only those that have proved what is asked for and have
//! said their first message.
//!
//! Every visitor is heard beside the others, for a short time, and only so many at once; the longest silent one makes
//! room. So nobody who connects and says nothing, half a thing or rubbish keeps a rank waiting, or costs more than a
//! descriptor and a few kilobytes.

use std::time::{Duration, Instant};

use rustix::{fd::OwnedFd, io::Errno};

use super::{
    auth::{Trust, demand},
    channel::{Broken, Channel, Listener, credentials},
    tasks::{Crowd, First, give_way, race, until},
    wire::Message,
};

/// How long a visitor may take to say who it is.
const HEARING: Duration = Duration::from_secs(5);
/// Visitors heard at once beside one per rank of the world.
const EXTRA_VISITORS: usize = 64;
/// Refusals that are logged; the rest is only counted.
const LOGGED: u64 = 10;

/// What is asked of everybody who comes.
#[derive(Clone, Debug)]
pub(super) enum Check {
    /// To be a process of this user, on this host.
    SameUser,
    /// To know something.
    Trust(Trust),
    /// Both.
    SameUserAnd(Trust),
}

/// Somebody who may speak, and what was said first.
pub(super) struct Visitor {
    pub(super) channel: Channel,
    pub(super) message: Message,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Why somebody is not let in.
enum Refused {
    /// It did not do what is asked for.
    For(String),
    /// This process can open no more files.
    Full(Errno),
}

/// A listener with the visitors that are being heard.
pub(super) struct Door {
    listener: Listener,
    check: Check,
    heard: Crowd<'static, Result<Visitor, Refused>>,
    limit: usize,
    refused: u64,
    /// Why the last one was not let in.
    reason: String,
}

impl Door {
    /// A door for a world of `size` ranks.
    pub(super) fn new(listener: Listener, check: Check, size: u32) -> Self {
        let limit = EXTRA_VISITORS.saturating_add(size as usize);
        Door { listener, check, heard: Crowd::new(), limit, refused: 0, reason: String::new() }
    }

    /// The next visitor; an error if this process is at its limits, and not because of strangers. Dropping this loses
    /// nobody.
    pub(super) async fn next(&mut self) -> Result<Visitor, Errno> {
        loop {
            let full = match race(self.heard.next(), self.listener.accept()).await {
                First::Left(Ok(visitor)) => return Ok(visitor),
                First::Left(Err(Refused::For(reason))) => {
                    self.refuse(reason);
                    continue;
                }
                First::Right(Ok(channel)) => {
                    while self.heard.len() >= self.limit {
                        self.heard.drop_oldest();
                        self.refuse("too many said nothing".into());
                    }
                    self.heard.push(hear(channel, self.check.clone()));
                    // However fast strangers come, those who are inside already must be heard too.
                    give_way().await;
                    continue;
                }
                First::Left(Err(Refused::Full(errno))) | First::Right(Err(errno)) => errno,
            };
            if self.heard.len() == 0 {
                return Err(full);
            }
            self.heard.drop_oldest();
            self.refuse(std::io::Error::from(full).to_string());
        }
    }

    /// What to add to the report of a timeout: who came and was sent away.
    pub(super) fn refusals(&self) -> String {
        match self.refused {
            0 => String::new(),
            1 => format!("; 1 connection was refused because {}", self.reason),
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
async fn hear(channel: Channel, check: Check) -> Result<Visitor, Refused> {
    let deadline = Instant::now().checked_add(HEARING);
    let refused = |reason: &dyn std::fmt::Display| Refused::For(format!("{reason} ({})", channel.peer_name()));
    let conversation = async {
        if let Check::SameUser | Check::SameUserAnd(_) = check {
            same_user(&channel).map_err(|reason| refused(&reason))?;
        }
        if let Check::Trust(trust) | Check::SameUserAnd(trust) = &check {
            demand(&channel, trust).await.map_err(|denied| refused(&denied))?;
        }
        channel.receive().await.map_err(|broken| match broken {
            Broken::DescriptorsLost => Refused::Full(Errno::MFILE),
            broken => refused(&broken),
        })
    };
    let outcome = until(deadline, conversation).await;
    let silence = || refused(&format_args!("nothing useful came within {} s", HEARING.as_secs()));
    let (message, descriptors) = outcome.unwrap_or_else(|| Err(silence()))?;
    Ok(Visitor { channel, message, descriptors })
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
