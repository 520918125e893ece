//! What one rank knows before it meets the others, and the words all of them use about it.

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::{
    config::Timeout,
    error::{Error, Result},
    topology::Facts,
};

/// What must be set where a world has several hosts and no address.
pub(super) const NEEDS_ADDRESS: &str = "set TUTTI_ADDR on all ranks to host:port, an address of rank 0's host that the others reach (not MASTER_PORT, which \
     belongs to torchrun), or pass an address";

/// One rank's way into its world.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) rank: u32,
    pub(super) size: u32,
    /// Which world, whatever the user's number.
    pub(super) world: u64,
    /// What rank 0's abstract Unix socket is named on one host.
    pub(super) name: Name,
    /// A hash of `TUTTI_HOST_ID`; 0 without one.
    pub(super) host_id: u64,
    pub(super) facts: Facts,
    pub(super) patience: Patience,
}

/// The name of an abstract Unix socket: long enough that nobody meets it by chance, and a hash, so that it gives
/// away nothing of what it was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name(String);

impl Name {
    /// The name for these parts.
    pub(super) fn of(parts: &[&[u8]]) -> Self {
        let digest = digest(&[&[b"socket".as_slice()], parts].concat());
        Name(digest.iter().take(16).fold(String::from("tutti-"), |name, byte| format!("{name}{byte:02x}")))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// How long this rank waits for the world.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// From the beginning; `None` for ever.
    pub(super) limit: Option<Duration>,
    /// Until then.
    pub(super) deadline: Option<Instant>,
}

impl Patience {
    /// Begins to wait now.
    pub(super) fn begin(timeout: Timeout) -> Self {
        Patience { limit: timeout.duration(), deadline: timeout.deadline() }
    }

    /// What is left, and what it was at the beginning, in milliseconds; `u64::MAX` for ever.
    pub(super) fn in_ms(&self) -> (u64, u64) {
        let ms = |duration: Option<Duration>| {
            duration.map_or(u64::MAX, |duration| duration.as_millis().try_into().unwrap_or(u64::MAX))
        };
        (ms(self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))), ms(self.limit))
    }

    /// Somebody who waits so long as from now.
    pub(super) fn from_ms(left: u64, limit: u64) -> Self {
        let duration = |ms: u64| (ms != u64::MAX).then(|| Duration::from_millis(ms));
        Patience { limit: duration(limit), deadline: duration(left).and_then(|left| Instant::now().checked_add(left)) }
    }

    /// The one that ends first.
    pub(super) fn shorter(self, other: Patience) -> Patience {
        match (self.deadline, other.deadline) {
            (Some(own), Some(others)) if others < own => other,
            (None, Some(_)) => other,
            _ => self,
        }
    }

    /// "within 30 s".
    pub(super) fn within(&self) -> String {
        match self.limit {
            Some(limit) if limit.subsec_millis() == 0 => format!("within {} s", limit.as_secs()),
            Some(limit) => format!("within {} s", limit.as_millis() as f64 / 1000.0),
            None => "in any time".into(),
        }
    }
}

/// "rank 3", "ranks 2, 5-7".
pub(super) fn name_ranks(ranks: &[u32]) -> String {
    let mut spans: Vec<(u32, u32)> = Vec::new();
    for &rank in ranks {
        match spans.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(rank) => *last = rank,
            _ => spans.push((rank, rank)),
        }
    }
    let spans = spans.iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}-{last}"),
    });
    let plural = if ranks.len() == 1 { "rank" } else { "ranks" };
    format!("{plural} {}", spans.collect::<Vec<_>>().join(", "))
}

/// A hash over parts whose bounds count.
pub(super) fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// Eight bytes of [`digest`].
pub(super) fn short_digest(parts: &[&[u8]]) -> u64 {
    digest(parts).first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Fresh random bytes.
pub(super) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::system("no random numbers", errno)),
        }
    }
    Ok(bytes)
}

/// The number of a new world.
pub(super) fn random_uid() -> Result<u64> {
    random().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_named_briefly() {
        assert_eq!(name_ranks(&[3]), "rank 3");
        assert_eq!(name_ranks(&[2, 5]), "ranks 2, 5");
        assert_eq!(name_ranks(&[1, 2, 4, 5, 6, 7]), "ranks 1, 2, 4-7");
    }

    #[test]
    fn names_depend_on_every_part_and_its_bounds() {
        assert_ne!(Name::of(&[b"ab", b"c"]), Name::of(&[b"a", b"bc"]));
        assert!(Name::of(&[b"x"]).as_bytes().len() < 108, "must fit an address");
    }

    #[test]
    fn the_shorter_patience_counts() {
        let (short, never) = (Patience::from_ms(10, 1500), Patience::from_ms(u64::MAX, u64::MAX));
        assert_eq!(never.shorter(short).within(), "within 1.5 s");
        assert_eq!(short.shorter(Patience::begin(Timeout::Default)).within(), "within 1.5 s");
    }
}
