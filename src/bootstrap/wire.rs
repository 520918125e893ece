//! What ranks say to each other while they meet: messages and their bytes, apart from any socket.
//!
//! A frame is a header of four bytes (kind, number of descriptors that come along, length of the body) and a body of
//! at most [`MAX_BODY`] bytes; all numbers are little-endian. The header, [`Message::Verdict`] and the first fields
//! of a greeting never change, so that two versions of the library can still tell each other that they differ.
//! Reading never panics and never allocates more than the body it was given.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{
    config::VERSION,
    error::{Error, Failure, Status},
    topology::Facts,
};

/// Bytes of a header.
pub(super) const HEADER: usize = 4;
/// Bytes of the longest body.
pub(super) const MAX_BODY: usize = 2048;
/// Descriptors that may come along with one frame.
pub(super) const MAX_DESCRIPTORS: usize = 2;
/// Ranks of the largest world.
pub(super) const MAX_RANKS: u32 = 1 << 16;
/// Bytes of the longest text of a verdict.
const MAX_TEXT: usize = 1500;
/// How a greeting begins.
const MAGIC: [u8; 8] = *b"tutti/hi";

const _: () = assert!(Facts::MAX_ENCODED + 128 < MAX_BODY && MAX_TEXT + 64 < MAX_BODY);

/// A rank's first words to rank 0.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hello {
    pub(super) rank: u32,
    pub(super) size: u32,
    /// Which world the rank means, without the user: they may be numbered differently on another host.
    pub(super) world: u64,
    /// A hash of `TUTTI_HOST_ID`.
    pub(super) host_id: u64,
    pub(super) contact: Contact,
    pub(super) facts: Facts,
}

/// Where a rank can be reached when the world has several hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contact {
    /// Its TCP listener, unspecified (port 0) where it has none.
    pub(super) address: SocketAddr,
    /// The number its abstract Unix socket is named from.
    pub(super) name: [u8; 16],
}

impl Contact {
    /// No way but the connection that is there already.
    pub(super) const NONE: Contact =
        Contact { address: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), name: [0; 16] };
}

/// All that is ever said.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Message {
    /// Joiner to rank 0, first. On a Unix socket its pidfd may come along.
    Hello(Box<Hello>),
    /// The same from another version of the library, of which only this can be read.
    Foreign { version: u32, rank: u32, size: u32 },
    /// Rank 0 to a joiner: I am here.
    Noted,
    /// The joiner's answer: how many milliseconds it will still wait for the others, and how many it meant to wait when
    /// it began; `u64::MAX` for ever.
    Waits { patience_ms: u64, timeout_ms: u64 },
    /// Rank 0 to all when all are there; the members follow.
    Roster { uid: u64, nonce: [u8; 32] },
    /// One rank of the world.
    Member { rank: u32, contact: Contact, facts: Facts },
    /// The first words on a connection between two ranks other than rank 0's. A descriptor may come along.
    Here { rank: u32 },
    /// `rank` shares descriptors with `leader`, the lowest rank that does.
    Led { rank: u32, leader: u32 },
    /// Your connection to `rank` (if `link`) and its pidfd (if `pidfd`) come along.
    Pair { rank: u32, link: bool, pidfd: bool },
    /// This rank has all it needs.
    Ready,
    /// All ranks have.
    Commit,
    /// The world cannot be made.
    Verdict { status: Status, rank: Option<u32>, text: String },
}

impl Message {
    /// The verdict that tells another rank of `error`, as seen by `rank`.
    pub(super) fn verdict(error: &Error, rank: u32) -> Self {
        let named = match error {
            Error::Failed(failure) => failure.rank,
            _ => Some(rank),
        };
        let mut text = error.to_string();
        let own = matches!(error, Error::System { .. } | Error::OutOfMemory(_) | Error::Internal(_));
        if own && !text.starts_with(&format!("rank {rank} ")) {
            text = format!("rank {rank}: {text}");
        }
        while text.len() > MAX_TEXT {
            text.pop();
        }
        Message::Verdict { status: error.status(), rank: named, text }
    }

    /// Whether somebody says hello, in any version.
    pub(super) fn is_greeting(&self) -> bool {
        matches!(self, Message::Hello(_) | Message::Foreign { .. })
    }

    /// How many descriptors belong to the message; a greeting's is optional.
    fn descriptors(&self) -> std::ops::RangeInclusive<usize> {
        match self {
            Message::Hello(_) | Message::Foreign { .. } | Message::Here { .. } => 0..=1,
            Message::Pair { link, pidfd, .. } => {
                let count = usize::from(*link) + usize::from(*pidfd);
                count..=count
            }
            _ => 0..=0,
        }
    }

    /// The frame of this message when `descriptors` come along.
    pub(super) fn encode(&self, descriptors: usize) -> Vec<u8> {
        let mut frame = vec![self.kind(), descriptors as u8, 0, 0];
        match self {
            Message::Hello(hello) => {
                frame.extend(MAGIC);
                frame.extend(VERSION.to_le_bytes());
                frame.extend(hello.rank.to_le_bytes());
                frame.extend(hello.size.to_le_bytes());
                frame.extend(hello.world.to_le_bytes());
                frame.extend(hello.host_id.to_le_bytes());
                hello.contact.encode(&mut frame);
                hello.facts.encode(&mut frame);
            }
            Message::Foreign { version, rank, size } => {
                frame.extend(MAGIC);
                for number in [version, rank, size] {
                    frame.extend(number.to_le_bytes());
                }
            }
            Message::Noted | Message::Ready | Message::Commit => {}
            Message::Waits { patience_ms, timeout_ms } => {
                frame.extend(patience_ms.to_le_bytes());
                frame.extend(timeout_ms.to_le_bytes());
            }
            Message::Roster { uid, nonce } => {
                frame.extend(uid.to_le_bytes());
                frame.extend(nonce);
            }
            Message::Member { rank, contact, facts } => {
                frame.extend(rank.to_le_bytes());
                contact.encode(&mut frame);
                facts.encode(&mut frame);
            }
            Message::Here { rank } => frame.extend(rank.to_le_bytes()),
            Message::Led { rank, leader } => {
                frame.extend(rank.to_le_bytes());
                frame.extend(leader.to_le_bytes());
            }
            Message::Pair { rank, link, pidfd } => {
                frame.extend(rank.to_le_bytes());
                frame.extend([u8::from(*link), u8::from(*pidfd)]);
            }
            Message::Verdict { status, rank, text } => {
                frame.extend((*status as i32).to_le_bytes());
                frame.extend(rank.unwrap_or(u32::MAX).to_le_bytes());
                frame.extend(text.as_bytes());
            }
        }
        let length = (frame.len() - HEADER) as u16;
        frame[2..HEADER].copy_from_slice(&length.to_le_bytes());
        frame
    }

    fn kind(&self) -> u8 {
        match self {
            Message::Hello(_) | Message::Foreign { .. } => 1,
            Message::Verdict { .. } => 2,
            Message::Noted => 3,
            Message::Roster { .. } => 4,
            Message::Member { .. } => 5,
            Message::Here { .. } => 6,
            Message::Led { .. } => 7,
            Message::Pair { .. } => 8,
            Message::Ready => 9,
            Message::Commit => 10,
            Message::Waits { .. } => 11,
        }
    }

    /// The message with this header and body, and as many descriptors as it must have; `None` for anything
    /// [`Message::encode`] cannot have written.
    pub(super) fn decode(header: Header, mut body: &[u8]) -> Option<Self> {
        let bytes = &mut body;
        let message = match header.kind {
            1 => {
                if take::<8>(bytes)? != MAGIC {
                    return None;
                }
                let (version, rank, size) = (number(bytes)?, number(bytes)?, number(bytes)?);
                if size > MAX_RANKS || rank >= size {
                    return None;
                }
                if version != VERSION {
                    return Some(Message::Foreign { version, rank, size });
                }
                let (world, host_id) = (long(bytes)?, long(bytes)?);
                let (contact, facts) = (Contact::decode(bytes)?, Facts::decode(bytes)?);
                Message::Hello(Box::new(Hello { rank, size, world, host_id, contact, facts }))
            }
            2 => {
                let status = Status::from_code(number(bytes)? as i32).filter(|status| *status != Status::Success)?;
                let rank = Some(number(bytes)?).filter(|rank| *rank < MAX_RANKS);
                let text = String::from_utf8_lossy(std::mem::take(bytes)).into_owned();
                Message::Verdict { status, rank, text }
            }
            3 => Message::Noted,
            4 => Message::Roster { uid: long(bytes)?, nonce: take(bytes)? },
            5 => {
                Message::Member { rank: number(bytes)?, contact: Contact::decode(bytes)?, facts: Facts::decode(bytes)? }
            }
            6 => Message::Here { rank: number(bytes)? },
            7 => Message::Led { rank: number(bytes)?, leader: number(bytes)? },
            8 => Message::Pair { rank: number(bytes)?, link: flag(bytes)?, pidfd: flag(bytes)? },
            9 => Message::Ready,
            10 => Message::Commit,
            11 => Message::Waits { patience_ms: long(bytes)?, timeout_ms: long(bytes)? },
            _ => return None,
        };
        (bytes.is_empty() && message.descriptors().contains(&usize::from(header.descriptors))).then_some(message)
    }
}

/// What a verdict from elsewhere means here.
pub(super) fn error_of(status: Status, rank: Option<u32>, text: String) -> Error {
    match status {
        Status::InvalidArgument => Error::InvalidArgument(text),
        Status::InvalidUsage => Error::InvalidUsage(text),
        Status::Unsupported => Error::Unsupported(text),
        _ => Error::from(Failure { status, rank, collective: None, sequence: 0, text }),
    }
}

/// The front of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    kind: u8,
    pub(super) descriptors: u8,
    pub(super) length: u16,
}

impl Header {
    /// Reads a header; `None` where it announces what never comes, so that nothing is made for it.
    pub(super) fn decode(bytes: [u8; HEADER]) -> Option<Self> {
        let [kind, descriptors, low, high] = bytes;
        let length = u16::from_le_bytes([low, high]);
        let known =
            (1..=11).contains(&kind) && usize::from(length) <= MAX_BODY && usize::from(descriptors) <= MAX_DESCRIPTORS;
        known.then_some(Header { kind, descriptors, length })
    }
}

impl Contact {
    /// Sixteen bytes of an IPv6 address (IPv4 mapped), the port, the name.
    fn encode(&self, out: &mut Vec<u8>) {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        out.extend(ip.octets());
        out.extend(self.address.port().to_le_bytes());
        out.extend(self.name);
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let ip = Ipv6Addr::from(take::<16>(bytes)?).to_canonical();
        let port = u16::from_le_bytes(take(bytes)?);
        Some(Contact { address: SocketAddr::new(ip, port), name: take(bytes)? })
    }
}

fn number(bytes: &mut &[u8]) -> Option<u32> {
    take(bytes).map(u32::from_le_bytes)
}

fn long(bytes: &mut &[u8]) -> Option<u64> {
    take(bytes).map(u64::from_le_bytes)
}

fn flag(bytes: &mut &[u8]) -> Option<bool> {
    match take(bytes)? {
        [0] => Some(false),
        [1] => Some(true),
        _ => None,
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(frame: &[u8]) -> Option<Message> {
        let (header, body) = frame.split_first_chunk::<HEADER>()?;
        let header = Header::decode(*header)?;
        (usize::from(header.length) == body.len()).then(|| Message::decode(header, body))?
    }

    #[test]
    fn every_message_is_read_as_it_was_written() {
        let facts = Facts::gather(None);
        let contact = Contact { address: "10.1.2.3:4567".parse().unwrap(), name: [7; 16] };
        let hello = Hello { rank: 1, size: 2, world: 3, host_id: 4, contact, facts: facts.clone() };
        for (message, descriptors) in [
            (Message::Hello(Box::new(hello)), 1),
            (Message::Foreign { version: VERSION + 1, rank: 3, size: 4 }, 0),
            (Message::Noted, 0),
            (Message::Waits { patience_ms: 5, timeout_ms: u64::MAX }, 0),
            (Message::Roster { uid: 9, nonce: [3; 32] }, 0),
            (Message::Member { rank: 5, contact: Contact::NONE, facts }, 0),
            (Message::Here { rank: 6 }, 1),
            (Message::Led { rank: 7, leader: 2 }, 0),
            (Message::Pair { rank: 8, link: true, pidfd: false }, 1),
            (Message::Ready, 0),
            (Message::Commit, 0),
            (Message::Verdict { status: Status::Mismatch, rank: None, text: "ranks differ".into() }, 0),
        ] {
            assert_eq!(read(&message.encode(descriptors)), Some(message));
        }
    }

    #[test]
    fn descriptors_that_do_not_belong_to_a_message_are_refused() {
        assert_eq!(read(&Message::Ready.encode(1)), None);
        assert_eq!(read(&Message::Pair { rank: 1, link: true, pidfd: true }.encode(1)), None);
    }

    #[test]
    fn a_verdict_of_any_length_fits_a_frame() {
        let error = Error::failed(Status::Timeout, Some(3), "ä".repeat(3000));
        let frame = Message::verdict(&error, 0).encode(0);
        assert!(frame.len() <= HEADER + MAX_BODY);
        assert!(matches!(read(&frame), Some(Message::Verdict { status: Status::Timeout, rank: Some(3), .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_crash_the_reader(kind in 0u8..14, descriptors in 0u8..4, body in prop::collection::vec(any::<u8>(), 0..400)) {
            let length = (body.len() as u16).to_le_bytes();
            if let Some(header) = Header::decode([kind, descriptors, length[0], length[1]]) {
                let _ = Message::decode(header, &body);
                let mut greeting = MAGIC.to_vec();
                greeting.extend(VERSION.to_le_bytes());
                greeting.extend(&body);
                let _ = Message::decode(header, &greeting);
            }
        }
    }
}
