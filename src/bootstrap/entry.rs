//! A joiner's side of a rendezvous: finding rank 0, and hearing from it until the world is made or is not.

use std::time::{Duration, Instant};

use rustix::{
    fd::{AsFd, OwnedFd},
    io::Errno,
};

use super::{
    assembly::farewell,
    channel::{Broken, Channel},
    plan::Plan,
    tasks::{sleep, until},
    wire::{Contact, Hello, Message, error_of},
};
use crate::{
    error::{Error, Result, Status},
    topology::Facts,
};

/// The first and the longest pause between two attempts to reach rank 0.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// How much longer than its own deadline a joiner waits for rank 0 to say whom everybody missed.
const GRACE: Duration = Duration::from_secs(2);

/// See [`soon`].
const RIVAL: Duration = Duration::from_secs(3);

/// Why rank 0 cannot be spoken to.
pub(super) enum Refusal {
    /// It may come yet.
    Later(String),
    /// Waiting will not help.
    Never(Error),
}

/// What rank 0 tells when all have arrived.
pub(super) struct Roster {
    pub(super) uid: u64,
    pub(super) nonce: [u8; 32],
    pub(super) members: Vec<(Contact, Facts)>,
}

/// The connection to rank 0 while the world is made.
pub(super) struct Entry<'a> {
    pub(super) plan: &'a Plan,
    pub(super) channel: Channel,
    /// When to stop hoping that rank 0 says something.
    pub(super) deadline: Option<Instant>,
}

impl<'a> Entry<'a> {
    /// Greets rank 0, trying again until it is there. `knock` connects once and says how this rank can be reached.
    pub(super) async fn open(
        plan: &'a Plan,
        pidfd: Option<&OwnedFd>,
        mut knock: impl AsyncFnMut() -> Result<(Channel, Contact), Refusal>,
    ) -> Result<Self> {
        let mut reason = String::new();
        let attempts = async {
            let mut pause = PAUSES.0;
            loop {
                match knock().await {
                    Ok((channel, contact)) => match greet(plan, &channel, contact, pidfd).await {
                        Ok(None) => return Ok(channel),
                        Ok(Some(verdict)) => return Err(verdict),
                        Err(broken) => reason = format!("; it took the connection, but then {broken}"),
                    },
                    Err(Refusal::Later(why)) => reason = why,
                    Err(Refusal::Never(error)) => return Err(error),
                }
                sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        };
        match until(plan.patience.deadline, attempts).await {
            Some(outcome) => {
                let deadline = plan.patience.deadline.and_then(|deadline| deadline.checked_add(GRACE));
                Ok(Entry { plan, channel: outcome?, deadline })
            }
            None => {
                let (size, within) = (plan.size, plan.patience.within());
                let text = format!("rank 0 of {size} did not arrive {within}{reason}");
                Err(Error::failed(Status::Timeout, Some(0), text))
            }
        }
    }

    /// The next message from rank 0 that is no verdict.
    pub(super) async fn hear(&self) -> Result<(Message, Vec<OwnedFd>)> {
        match until(self.deadline, self.channel.receive()).await {
            Some(Ok((Message::Verdict { status, rank, text }, _))) => Err(error_of(status, rank, text)),
            Some(Ok(heard)) => Ok(heard),
            Some(Err(broken)) => Err(lost(0, broken)),
            None => Err(self.silent()),
        }
    }

    /// Tells rank 0 something.
    pub(super) async fn tell(&self, message: &Message) -> Result<()> {
        match until(self.deadline, self.channel.send(message, &[])).await {
            Some(Ok(())) => Ok(()),
            // Rank 0 says why before it closes.
            Some(Err(broken)) => Err(self.hear().await.err().unwrap_or_else(|| lost(0, broken))),
            None => Err(self.silent()),
        }
    }

    /// Who is in the world.
    pub(super) async fn roster(&self) -> Result<Roster> {
        let (Message::Roster { uid, nonce }, _) = self.hear().await? else { return Err(lost(0, Broken::Garbled)) };
        let mut members = Vec::new();
        for expected in 0..self.plan.size {
            match self.hear().await? {
                (Message::Member { rank, contact, facts }, _) if rank == expected => members.push((contact, facts)),
                _ => return Err(lost(0, Broken::Garbled)),
            }
        }
        Ok(Roster { uid, nonce, members })
    }

    /// Says that this rank has all it needs and waits until all have.
    pub(super) async fn finish(&self) -> Result<()> {
        self.tell(&Message::Ready).await?;
        match self.hear().await? {
            (Message::Commit, _) => Ok(()),
            _ => Err(lost(0, Broken::Garbled)),
        }
    }

    /// Tells rank 0 why this rank cannot go on.
    pub(super) async fn give_up(self, error: &Error) {
        farewell(self.channel, Message::verdict(error, self.plan.rank)).await;
    }

    /// Rank 0 has said nothing for too long.
    pub(super) fn silent(&self) -> Error {
        let text = format!("the world was not made {}, and rank 0 does not say why", self.plan.patience.within());
        Error::failed(Status::Timeout, Some(0), text)
    }
}

/// Says hello and waits until rank 0 has noted it; the verdict if there is one.
async fn greet(
    plan: &Plan,
    channel: &Channel,
    contact: Contact,
    pidfd: Option<&OwnedFd>,
) -> Result<Option<Error>, Broken> {
    let Plan { rank, size, world, host_id, .. } = *plan;
    let hello = Message::Hello(Box::new(Hello { rank, size, world, host_id, contact, facts: plan.facts.clone() }));
    let descriptors: Vec<_> = pidfd.iter().map(|pidfd| pidfd.as_fd()).collect();
    channel.send(&hello, &descriptors).await?;
    match channel.receive().await?.0 {
        Message::Noted => {
            let (patience_ms, timeout_ms) = plan.patience.in_ms();
            channel.send(&Message::Waits { patience_ms, timeout_ms }, &[]).await?;
            Ok(None)
        }
        Message::Verdict { status, rank, text } => Ok(Some(error_of(status, rank, text))),
        _ => Err(Broken::Garbled),
    }
}

/// How long a second rank 0 that cannot become the first waits for that one's verdict. It is rarely needed: either
/// rank 0 is there and answers at once, or nobody is.
pub(super) fn soon() -> Option<Instant> {
    Instant::now().checked_add(RIVAL)
}

/// Speaks, as a second rank 0, to the process that holds the name of the world. It will tell all ranks that there are
/// two; `None` if it goes away instead.
pub(super) async fn challenge_rival(plan: &Plan, rival: &Channel) -> Option<Error> {
    match greet(plan, rival, Contact::NONE, None).await {
        Ok(Some(verdict)) => Some(verdict),
        Ok(None) => match rival.receive().await {
            Ok((Message::Verdict { status, rank, text }, _)) => Some(error_of(status, rank, text)),
            _ => None,
        },
        Err(_) => None,
    }
}

/// What a broken channel to a rank means.
pub(super) fn lost(rank: u32, broken: Broken) -> Error {
    if broken == Broken::DescriptorsLost {
        return Error::system("the connections to the other ranks cannot be kept (raise `ulimit -n`)", Errno::MFILE);
    }
    Error::failed(Status::PeerLost, Some(rank), format_args!("rank {rank} left while the world was made: {broken}"))
}
