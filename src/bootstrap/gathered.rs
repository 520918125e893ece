//! A world that meets by the caller's own all-gather: rank 0 makes a unique id and the call brings it to all.
//!
//! The call is made once, on every rank, whatever went wrong before, because the others wait in it. What it returns is
//! believed as little as what comes from a network: a wrong answer is an error here, not a world gone wrong.

use super::{
    environment::Place,
    hosts::Address,
    plan::NEEDS_ADDRESS,
    unique_id::{self, UniqueId},
};
use crate::{
    config::{AllGather, VERSION},
    error::{Error, Result, Status},
    topology::Facts,
};

/// How a record begins.
const MAGIC: [u8; 8] = *b"tutti/ag";
/// Bytes of what every rank contributes: magic, version, rank, size, host, whether it failed, the id or the reason.
const RECORD: usize = 8 + 4 + 4 + 4 + 8 + 1 + BODY;
/// Bytes of the id, or of the reason why there is none, ended by zeros.
const BODY: usize = 256;

/// The unique id that rank 0 has made, brought here by `all_gather`. `address` is where rank 0 shall listen for other
/// hosts.
pub(super) fn exchange(
    all_gather: &AllGather,
    place: &Place,
    facts: &Facts,
    address: Option<Address>,
) -> Result<UniqueId> {
    let made = if place.rank == 0 { unique_id::create_at(address) } else { Ok(Vec::new()) };
    let mine = encode(place, facts.host, &made);
    let all = all_gather(&mine, place.size);
    let made = made?;
    all.and_then(|all| judge(place, &mine, &all)).inspect_err(|_| unique_id::discard(&made))
}

fn encode(place: &Place, host: u64, made: &Result<Vec<u8>>) -> Vec<u8> {
    let mut record = MAGIC.to_vec();
    for number in [VERSION, place.rank, place.size] {
        record.extend(number.to_le_bytes());
    }
    record.extend(host.to_le_bytes());
    record.push(u8::from(made.is_err()));
    match made {
        Ok(id) => record.extend(id),
        Err(error) => record.extend(error.to_string().bytes().take(BODY)),
    }
    record.resize(RECORD, 0);
    record
}

/// The id in what the call returned, if all of it is what the ranks must have contributed.
fn judge(place: &Place, mine: &[u8], all: &[u8]) -> Result<UniqueId> {
    let Place { rank: own, size, .. } = *place;
    let expected = RECORD * size as usize;
    if all.len() != expected {
        return Err(wrong(format_args!("{} bytes instead of {expected}", all.len())));
    }
    let mut id = None;
    let mut elsewhere = None;
    for (rank, record) in (0u32..).zip(all.chunks_exact(RECORD)) {
        let theirs =
            Record::parse(record).ok_or_else(|| wrong(format_args!("no record of rank {rank} in its place")))?;
        let differs = |what: &str, theirs: u32, ours: u32| {
            Error::failed(
                Status::Mismatch,
                Some(rank),
                format_args!("rank {rank} has {what} {theirs}, rank {own} has {ours}"),
            )
        };
        if theirs.version != VERSION {
            return Err(differs("libtutti version", theirs.version, VERSION));
        }
        if theirs.size != size {
            return Err(differs("a world of size", theirs.size, size));
        }
        if theirs.rank != rank {
            return Err(wrong(format_args!("the record of rank {} in the place of rank {rank}", theirs.rank)));
        }
        if rank == own && record != mine {
            return Err(wrong(format_args!("another record of rank {own} than it was given")));
        }
        match rank {
            0 if theirs.failed => {
                let reason = String::from_utf8_lossy(theirs.body);
                let text = format!("rank 0 could not make a unique id: {}", reason.trim_end_matches('\0'));
                return Err(Error::failed(Status::SystemError, Some(0), text));
            }
            0 => id = Some((UniqueId::parse(theirs.body.get(..unique_id::SIZE).unwrap_or_default())?, theirs.host)),
            _ => {}
        }
        if id.as_ref().is_some_and(|(_, host)| *host != theirs.host) {
            elsewhere = elsewhere.or(Some(rank));
        }
    }
    let (id, _) = id.ok_or_else(|| wrong("nothing"))?;
    match elsewhere {
        // All ranks see this, and none waits for another.
        Some(rank) if id.address.is_none() => {
            Err(Error::usage(format_args!("rank {rank} is on another host than rank 0: {NEEDS_ADDRESS}")))
        }
        _ => Ok(id),
    }
}

struct Record<'a> {
    version: u32,
    rank: u32,
    size: u32,
    host: u64,
    failed: bool,
    body: &'a [u8],
}

impl<'a> Record<'a> {
    fn parse(record: &'a [u8]) -> Option<Self> {
        let rest = record.strip_prefix(&MAGIC)?;
        let (version, rest) = rest.split_first_chunk()?;
        let (rank, rest) = rest.split_first_chunk()?;
        let (size, rest) = rest.split_first_chunk()?;
        let (host, rest) = rest.split_first_chunk()?;
        let (failed, body) = rest.split_first()?;
        Some(Record {
            version: u32::from_le_bytes(*version),
            rank: u32::from_le_bytes(*rank),
            size: u32::from_le_bytes(*size),
            host: u64::from_le_bytes(*host),
            failed: *failed != 0,
            body,
        })
    }
}

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::invalid(format_args!("the caller's all_gather returned {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(rank: u32) -> Place {
        Place { rank, size: 3, hosts: None }
    }

    fn records(hosts: [u64; 3]) -> Vec<Vec<u8>> {
        let made = |rank| if rank == 0 { unique_id::create_at(None) } else { Ok(Vec::new()) };
        (0u32..).zip(hosts).map(|(rank, host)| encode(&place(rank), host, &made(rank))).collect()
    }

    #[test]
    fn true_records_give_the_id_to_all() {
        let records = records([5, 5, 5]);
        let all = records.concat();
        for rank in 0..3 {
            let id = judge(&place(rank), &records[rank as usize], &all).unwrap();
            assert_eq!(id, UniqueId::parse(&records[0][29..29 + unique_id::SIZE]).unwrap());
        }
    }

    #[test]
    fn lies_are_told_apart() {
        let told = records([5, 5, 5]);
        let text = |all: &[u8]| judge(&place(1), &told[1], all).unwrap_err().to_string();
        assert!(text(&told.concat()[1..]).contains("bytes instead of"));
        assert!(text(&[told[0].clone(), told[1].clone(), vec![0; RECORD]].concat()).contains("no record of rank 2"));
        assert!(
            text(&[told[0].clone(), told[1].clone(), told[1].clone()].concat())
                .contains("rank 1 in the place of rank 2")
        );
        let mut changed = told.clone();
        changed[1][200] ^= 1;
        assert!(text(&changed.concat()).contains("another record of rank 1"));
        let mut changed = told.clone();
        changed[0][60] ^= 1;
        assert!(text(&changed.concat()).contains("unique id was changed"));
        let mut changed = told.clone();
        changed[2][16] = 4;
        assert!(text(&changed.concat()).contains("rank 2 has a world of size 4, rank 1 has 3"));
    }

    #[test]
    fn hosts_without_an_address_are_refused_on_all_ranks() {
        let told = records([5, 5, 6]);
        for rank in 0..3 {
            let error = judge(&place(rank), &told[rank as usize], &told.concat()).unwrap_err();
            assert_eq!(error.status(), Status::InvalidUsage);
            assert!(error.to_string().contains("rank 2") && error.to_string().contains("TUTTI_ADDR"));
        }
    }

    #[test]
    fn what_hinders_rank_0_is_told_to_all() {
        let mut told = records([5, 5, 5]);
        told[0] = encode(&place(0), 5, &Err(Error::usage("the port is taken")));
        let error = judge(&place(2), &told[2], &told.concat()).unwrap_err();
        assert!(error.to_string().ends_with("the port is taken"), "{error}");
    }

    proptest! {
        #[test]
        fn no_answer_crashes_the_reader(noise in prop::collection::vec(any::<u8>(), RECORD), at in 0usize..3, keep in 0usize..RECORD) {
            let told = records([5, 5, 5]);
            let mut changed = told.clone();
            changed[at][keep..].copy_from_slice(&noise[keep..]);
            let _ = judge(&place(1), &told[1], &changed.concat());
        }
    }
}
