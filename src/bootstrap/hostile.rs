//! Tests only: ranks that lie, each playing one side of the conversation against a real one.

use std::time::{Duration, Instant};

use rustix::fd::AsFd;

use super::{
    channel::{Broken, Channel, Listener, connect_unix, pair},
    join,
    plan::{Name, short_digest},
    tasks::{block_on, until},
    unique_id::{UniqueId, create_at},
    wire::{Contact, Hello, Message},
};
use crate::{
    config::{GroupOptions, Timeout, VERSION, WorldOptions},
    error::{Error, Status},
    topology::Facts,
};

/// No conversation here takes longer unless something hangs.
const WATCHDOG: Duration = Duration::from_secs(30);

/// Reproducible numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ word >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A message that may make sense, or not.
    fn message(&mut self, facts: &Facts) -> Message {
        let rank = self.below(5) as u32;
        match self.below(10) {
            0 => Message::Noted,
            1 => Message::Waits { patience_ms: self.next(), timeout_ms: self.next() },
            2 => Message::Roster { uid: self.next(), nonce: [0; 32] },
            3 | 4 => Message::Member { rank, contact: Contact::NONE, facts: facts.clone() },
            5 => Message::Led { rank, leader: self.below(5) as u32 },
            6 => Message::Pair { rank, link: self.below(2) == 0, pidfd: self.below(2) == 0 },
            7 => Message::Ready,
            8 => Message::Commit,
            _ => Message::Here { rank },
        }
    }

    /// Sends a few messages with the descriptors they announce, some of them damaged, then perhaps hears something.
    async fn babble(&mut self, channel: &Channel, facts: &Facts) -> Result<(), Broken> {
        for _ in 0..self.below(6) {
            let message = self.message(facts);
            let (one, other) = pair().unwrap();
            let all = [one.as_fd(), other.as_fd()];
            let count = match &message {
                Message::Pair { link, pidfd, .. } => usize::from(*link) + usize::from(*pidfd),
                _ => 0,
            };
            let mut frame = message.encode(count);
            if self.below(3) == 0 {
                let at = self.below(frame.len() as u64) as usize;
                frame[at] = self.next() as u8;
            }
            if self.below(6) == 0 {
                frame.truncate(self.below(frame.len() as u64) as usize);
            }
            channel.send_bytes(&frame, &all[..count]).await?;
        }
        let soon = Instant::now().checked_add(Duration::from_millis(self.below(3)));
        until(soon, channel.receive()).await.transpose().map(drop)
    }
}

fn options(id: &[u8], size: u32, rank: u32, timeout_ms: u64) -> WorldOptions {
    let timeout = Timeout::After(Duration::from_millis(timeout_ms));
    let group = GroupOptions { timeout, ..Default::default() };
    WorldOptions { size_and_rank: Some((size, rank)), unique_id: Some(id.to_vec()), group, ..Default::default() }
}

fn hello(id: &UniqueId, size: u32, rank: u32) -> Hello {
    let world = short_digest(&[b"unique id", id.secret()]);
    Hello { rank, size, world, host_id: 0, contact: Contact::NONE, facts: Facts::gather(None) }
}

/// Joins as rank 0 while rank 1 is played; the number of its world.
fn against_rank_0(size: u32, timeout_ms: u64, rank_1: impl AsyncFnOnce(UniqueId, Channel)) -> Result<u64, Error> {
    let bytes = create_at(None).unwrap();
    let id = UniqueId::parse(&bytes).unwrap();
    let name = id.name();
    let options = move || options(&bytes, size, 0, timeout_ms);
    let thread = std::thread::spawn(move || join(&options()).map(|mesh| mesh.uid));
    let channel = connect_unix(name.as_bytes()).unwrap();
    block_on(until(Instant::now().checked_add(WATCHDOG), rank_1(id, channel))).expect("rank 0 hangs");
    thread.join().unwrap()
}

#[test]
fn another_version_is_named_to_both_sides() {
    let error = against_rank_0(2, 10_000, async |_, channel| {
        channel.send(&Message::Foreign { version: VERSION + 1, rank: 1, size: 2 }, &[]).await.unwrap();
        let (heard, _) = channel.receive().await.unwrap();
        assert!(matches!(heard, Message::Verdict { status: Status::Mismatch, rank: Some(1), .. }), "{heard:?}");
    })
    .unwrap_err();
    assert_eq!(error.status(), Status::Mismatch);
    assert!(error.to_string().starts_with("rank 1 has libtutti 0.1.1, rank 0 has 0.1.0"), "{error}");
}

#[test]
fn a_rank_of_another_world_is_not_let_in_and_harms_nobody() {
    let error = against_rank_0(2, 400, async |id, channel| {
        let stranger = Hello { world: 1, ..hello(&id, 2, 1) };
        channel.send(&Message::Hello(Box::new(stranger)), &[]).await.unwrap();
        assert_eq!(channel.receive().await.unwrap_err(), Broken::Closed);
    })
    .unwrap_err();
    assert_eq!(error.to_string(), "rank 1 of 2 did not arrive within 0.4 s");
}

#[test]
fn what_any_joiner_says_ends_rank_0_in_time() {
    let mut random = Random(1);
    for round in 0..120 {
        let begin = Instant::now();
        // In a world of three rank 0 takes its time to tell the third, so only a few of those.
        let size = if round % 60 == 0 { 3 } else { 2 };
        let outcome = against_rank_0(size, 60, async |id, channel| {
            if random.below(4) > 0 {
                let _ = channel.send(&Message::Hello(Box::new(hello(&id, size, 1))), &[]).await;
            }
            if random.below(4) > 0 {
                let _ = channel.send(&Message::Waits { patience_ms: 60, timeout_ms: 60 }, &[]).await;
            }
            let _ = random.babble(&channel, &Facts::gather(None)).await;
        });
        let Err(error) = outcome else {
            assert_eq!(size, 2, "rank 2 never came");
            continue;
        };
        let expected =
            matches!(error.status(), Status::PeerLost | Status::Timeout | Status::Mismatch | Status::SystemError);
        assert!(expected && error.to_string().contains("rank"), "round {round}: {error}");
        assert!(begin.elapsed() < Duration::from_secs(5), "round {round}: {error}");
    }
}

#[test]
fn what_any_rank_0_says_ends_a_joiner_in_time() {
    let mut random = Random(2);
    for round in 0..120u64 {
        let name = Name::of(&[b"hostile", &std::process::id().to_le_bytes(), &round.to_le_bytes()]);
        let listener = Listener::unix(name.as_bytes()).unwrap();
        let thread = std::thread::spawn(move || {
            let facts = Facts::gather(None);
            let patience = super::plan::Patience::begin(Timeout::After(Duration::from_millis(60)));
            let plan = super::plan::Plan { rank: 1, size: 3, world: 7, name, host_id: 0, facts, patience };
            super::local::join(&plan, None).map(|mesh| mesh.uid)
        });
        let begin = Instant::now();
        let conversation = async {
            let channel = listener.accept().await.unwrap();
            let facts = Facts::gather(None);
            let _ = channel.receive().await;
            let _ = channel.send(&Message::Noted, &[]).await;
            let _ = channel.receive().await;
            if random.below(2) == 0 {
                let _ = channel.send(&Message::Roster { uid: 1, nonce: [0; 32] }, &[]).await;
                for rank in 0..3 {
                    let _ = channel
                        .send(&Message::Member { rank, contact: Contact::NONE, facts: facts.clone() }, &[])
                        .await;
                }
            }
            let _ = random.babble(&channel, &facts).await;
        };
        block_on(until(Instant::now().checked_add(WATCHDOG), conversation)).expect("the joiner hangs");
        drop(listener);
        let error = thread.join().unwrap().expect_err("a liar makes no world");
        assert!(
            begin.elapsed() < Duration::from_secs(5) && error.to_string().contains("rank 0"),
            "round {round}: {error}"
        );
    }
}
