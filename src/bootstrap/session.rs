//! Sessions: several ranks doing one thing of the control plane together, round by round.
//!
//! A session is written as ordinary sequential code with `.await` where another rank is awaited; the waiting loops
//! of the crate poll it, so one thread can drive the sessions of several ranks. Every await ends: with the message,
//! at the deadline, when the peer is lost, or when the peer says that it has given up, and then says why. Whoever
//! fails, or drops a session half done, tells the others, so nobody waits for it.
//!
//! Messages carry a number per pair of ranks that counts the sessions the two have had on this channel. A rank that
//! finds another number than its own knows that the two are not doing the same thing.

use std::{
    future::poll_fn,
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::{
    control::{self, Endpoint, Kind, Loss, Message, Verdict},
    members::Members,
};
use crate::error::{Error, Failure, Result, Status};

/// The round that says "I gave up".
const GAVE_UP: u64 = 0xffff;
/// How long a polling loop sleeps before it looks at deadlines and lives again.
pub const SLICE: Duration = Duration::from_millis(1);

/// One thing done together.
pub struct Session {
    endpoint: Arc<Endpoint>,
    channel: u64,
    /// World ranks, this one included.
    ranks: Vec<u32>,
    /// The number of this session between this rank and each of `ranks`.
    numbers: Vec<u64>,
    round: u64,
    deadline: Option<Instant>,
    began: Instant,
    /// What is being done, for texts: `creation of group "tp"`.
    subject: String,
    finished: bool,
    /// The group in which the session takes place, whose members may leave it.
    parent: Option<Arc<Members>>,
    /// Whether an abort of the parent ends the session, as it does unless the parent was aborted before.
    abortable: bool,
    /// See [`Session::ending_at_once`].
    hasty: bool,
}

impl Session {
    /// A session of `ranks` (world ranks, among them this one) on `channel`. `numbers[i]` counts the sessions that
    /// this rank and `ranks[i]` have begun on the channel.
    pub fn new(
        endpoint: Arc<Endpoint>,
        channel: u64,
        ranks: Vec<u32>,
        numbers: Vec<u64>,
        deadline: Option<Instant>,
        subject: String,
    ) -> Self {
        Session {
            endpoint,
            channel,
            ranks,
            numbers,
            round: 0,
            deadline,
            began: Instant::now(),
            subject,
            finished: false,
            parent: None,
            abortable: false,
            hasty: false,
        }
    }

    /// The same session, in which a rank that has left `parent` is not waited for, and which ends when `parent` is
    /// aborted. No other failure of `parent` ends it, since that is how its survivors go on.
    pub fn within(mut self, parent: Arc<Members>) -> Self {
        self.abortable = true;
        self.parent = Some(parent);
        self
    }

    /// The same session, begun by a rank that knew its parent to be aborted, or not (`aborted`): an abort ends what was
    /// asked for before it, and nothing that was asked for after it.
    pub fn asked_for(mut self, aborted: bool) -> Self {
        self.abortable = !aborted;
        self
    }

    /// The same session, which ends as soon as any rank gives up, not only when that one's turn to be heard has come.
    pub fn ending_at_once(mut self) -> Self {
        self.hasty = true;
        self
    }

    /// Everybody's body and descriptors, in the order of the ranks; `descriptor` goes to all others.
    pub async fn all_gather(&mut self, body: &[u8], descriptor: Option<&OwnedFd>) -> Result<Vec<Message>> {
        let me = self.endpoint.rank();
        for (peer, number) in self.ranks.iter().zip(&self.numbers).filter(|(peer, _)| **peer != me) {
            let descriptors = match descriptor {
                Some(fd) => vec![fd.try_clone().map_err(|e| io_error("dup", &e))?],
                None => Vec::new(),
            };
            self.endpoint.send(*peer, Kind::Mail, self.channel, number << 16 | self.round, body, descriptors);
        }
        let mut gathered = Vec::with_capacity(self.ranks.len());
        for index in 0..self.ranks.len() {
            gathered.push(match self.ranks[index] == me {
                true => Message { tag: 0, body: body.to_vec(), descriptors: Vec::new() },
                false => self.hear(index).await?,
            });
        }
        self.round += 1;
        Ok(gathered)
    }

    /// Everybody says how its own part went. A failure of any is everybody's: the first one, in the order of the ranks.
    pub async fn settle(&mut self, mine: &Result<()>) -> Result<()> {
        let body = mine.as_ref().err().map_or_else(Vec::new, |error| control::encode_failure(&failure_of(error)));
        let said = self.all_gather(&body, None).await?;
        match self.ranks.iter().zip(&said).find(|(_, message)| !message.body.is_empty()) {
            Some((peer, message)) => Err(told_by(*peer, &message.body)),
            None => Ok(()),
        }
    }

    /// Ends the session well: everything said has left this process.
    pub async fn finish(mut self) -> Result<()> {
        for index in 0..self.ranks.len() {
            let peer = self.ranks[index];
            poll_fn(|_| if self.endpoint.is_flushed(peer) || self.is_late() { Poll::Ready(()) } else { Poll::Pending })
                .await;
        }
        self.finished = true;
        Ok(())
    }

    /// Ends the session badly and tells everybody why.
    pub fn give_up(mut self, error: &Error) {
        self.tell(error);
    }

    /// Time since the session began.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// What is being done.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    fn tell(&mut self, error: &Error) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let body = control::encode_failure(&failure_of(error));
        for (peer, number) in self.ranks.iter().zip(&self.numbers).filter(|(peer, _)| **peer != self.endpoint.rank()) {
            self.endpoint.send(*peer, Kind::Mail, self.channel, number << 16 | GAVE_UP, &body, Vec::new());
        }
    }

    /// The message of `ranks[index]` in this round.
    async fn hear(&self, index: usize) -> Result<Message> {
        let (peer, number) = (self.ranks[index], self.numbers[index]);
        let take = |message: &Message| match (message.tag >> 16, message.tag & 0xffff) {
            (theirs, _) if theirs < number => Verdict::Stale,
            (theirs, round) if theirs == number && round < self.round => Verdict::Stale,
            _ => Verdict::Take,
        };
        let message = poll_fn(|_| {
            if let Some(message) = self.endpoint.receive(peer, self.channel, take) {
                return Poll::Ready(Ok(message));
            }
            if let Some(loss) = self.lost(peer) {
                // It may have said something before it went.
                return Poll::Ready(self.endpoint.receive(peer, self.channel, take).ok_or_else(|| {
                    let text = format!("{}: rank {peer} of the world is lost: {}", self.subject, loss.text);
                    Error::failed(Status::PeerLost, Some(index as u32), text)
                }));
            }
            if let Some(failure) = self.parent.as_deref().filter(|_| self.abortable).and_then(Members::aborted) {
                return Poll::Ready(Err(failure.into()));
            }
            if let Some(error) = self.hasty.then(|| self.given_up()).flatten() {
                return Poll::Ready(Err(error));
            }
            if self.is_late() {
                return Poll::Ready(Err(Error::failed(
                    Status::Timeout,
                    Some(index as u32),
                    self.describe_lateness(index),
                )));
            }
            Poll::Pending
        })
        .await?;
        match (message.tag >> 16, message.tag & 0xffff) {
            (theirs, GAVE_UP) if theirs == number => Err(told_by(peer, &message.body)),
            (theirs, round) if theirs == number && round == self.round => Ok(message),
            (theirs, _) => Err(Error::failed(
                Status::Mismatch,
                Some(index as u32),
                format!(
                    "{}: it is number {number} between this rank and rank {peer} of the world, which is at number {theirs}; \
                     ranks that share groups must make them in one order",
                    self.subject
                ),
            )),
        }
    }

    /// Why a rank has given up that has said nothing since that is to be heard first.
    fn given_up(&self) -> Option<Error> {
        self.ranks.iter().zip(&self.numbers).find_map(|(peer, number)| {
            let take = |message: &Message| match (message.tag >> 16, message.tag & 0xffff) {
                (theirs, GAVE_UP) if theirs == *number => Verdict::Take,
                (theirs, _) if theirs < *number => Verdict::Stale,
                _ => Verdict::Later,
            };
            self.endpoint.receive(*peer, self.channel, take).map(|message| told_by(*peer, &message.body))
        })
    }

    fn lost(&self, peer: u32) -> Option<Loss> {
        match &self.parent {
            Some(parent) => parent.lost_in_world(peer),
            None => self.endpoint.lost(peer),
        }
    }

    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn describe_lateness(&self, first: usize) -> String {
        let has_come = |index: &usize| {
            let number = self.numbers[*index];
            let mut come = false;
            self.endpoint.receive(self.ranks[*index], self.channel, |message| {
                come = message.tag >> 16 == number;
                Verdict::Later
            });
            come
        };
        let missing: Vec<String> = (first..self.ranks.len())
            .filter(|index| self.ranks[*index] != self.endpoint.rank())
            .filter(|index| *index == first || !has_come(index))
            .map(|index| self.ranks[index].to_string())
            .collect();
        format!(
            "{}: rank{} {} of the world did not arrive within {:.1} s",
            self.subject,
            if missing.len() == 1 { "" } else { "s" },
            missing.join(", "),
            self.began.elapsed().as_secs_f64()
        )
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.tell(&Error::failed(Status::Aborted, None, format_args!("{} was cancelled", self.subject)));
    }
}

/// The number of the session that a message with this tag belongs to.
pub(super) fn number_of(tag: u64) -> u64 {
    tag >> 16
}

/// An error as others are told of it.
fn failure_of(error: &Error) -> Failure {
    match error {
        Error::Failed(failure) => Failure::clone(failure),
        error => Failure { status: error.status(), rank: None, collective: None, sequence: 0, text: error.to_string() },
    }
}

/// What a rank of the world told of an error.
fn told_by(peer: u32, body: &[u8]) -> Error {
    let failure = control::decode_failure(body);
    // A sentence that already tells which rank told it is passed on as it is.
    let text = match failure.text {
        text if text.contains("of the world says: ") => text,
        text => format!("rank {peer} of the world says: {text}"),
    };
    Error::failed(failure.status, failure.rank, text)
}

/// Runs a future of this crate to its end on this thread, which meanwhile goes on with `work`.
pub fn block_on_while<T>(
    endpoint: &Endpoint,
    mut future: Pin<Box<dyn Future<Output = T> + Send>>,
    work: fn() -> bool,
) -> T {
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
        work();
        endpoint.wait(SLICE);
    }
}

fn io_error(what: &str, error: &std::io::Error) -> Error {
    Error::System { what: what.to_owned(), errno: error.raw_os_error().unwrap_or(0) }
}
