//! Unique ids: one rank makes 128 bytes, the others get them by whatever way the caller has, and meet with them.
//!
//! An id holds a random secret, which is all that a rank needs to be let in, and the address of its maker where there
//! is one. The sockets are bound when the id is made and are kept in a table of the process, because its maker is rank 0;
//! they are given out once, so that an id makes one world. An id is a secret: whoever has it can join.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::{
    channel::Listener,
    hosts::{Address, listen},
    plan::{Name, digest, random},
};
use crate::{
    config,
    error::{Error, Result},
    topology::Facts,
};

/// Bytes of an id.
pub const SIZE: usize = 128;
/// How an id begins; the last byte is the version of its form.
const MAGIC: [u8; 8] = *b"tuttiid\x01";
/// Bytes of the longest address.
const MAX_ADDRESS: usize = SIZE - MAGIC.len() - 16 - 8 - 1 - CHECK;
/// Bytes at the end that show whether an id was cut or mixed up on its way.
const CHECK: usize = 8;

/// What an id says.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct UniqueId {
    secret: [u8; 16],
    /// The maker's host, as in [`Facts`].
    pub(super) host: u64,
    /// Where the maker listens for other hosts.
    pub(super) address: Option<String>,
}

impl std::fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UniqueId").field("host", &self.host).field("address", &self.address).finish_non_exhaustive()
    }
}

impl UniqueId {
    fn encode(&self) -> Vec<u8> {
        let address = self.address.as_deref().unwrap_or_default().as_bytes();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.secret);
        bytes.extend(self.host.to_le_bytes());
        bytes.push(address.len() as u8);
        bytes.extend(address);
        bytes.resize(SIZE - CHECK, 0);
        let check = check(&bytes);
        bytes.extend(check);
        bytes
    }

    /// Reads an id; anything else, cut, changed or from another version, is an error that says so.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let wrong = |what: &str| {
            Error::invalid(format_args!(
                "the unique id {what}; pass all {SIZE} bytes that tutti_unique_id_create wrote"
            ))
        };
        if bytes.len() != SIZE {
            return Err(wrong(&format!("has {} bytes", bytes.len())));
        }
        let (body, sum) = bytes.split_at(SIZE - CHECK);
        let Some(rest) = body.strip_prefix(&MAGIC) else {
            return Err(wrong("was not made by this version of libtutti"));
        };
        if sum != check(body) {
            return Err(wrong("was changed on its way"));
        }
        let parsed = || {
            let (secret, rest) = rest.split_first_chunk::<16>()?;
            let (host, rest) = rest.split_first_chunk::<8>()?;
            let (length, rest) = rest.split_first()?;
            let address = std::str::from_utf8(rest.get(..usize::from(*length))?).ok()?;
            let address = Some(address.to_owned()).filter(|address| !address.is_empty());
            Some(UniqueId { secret: *secret, host: u64::from_le_bytes(*host), address })
        };
        parsed().ok_or_else(|| wrong("cannot be read"))
    }

    /// The secret, for keyed hashes only; it never travels.
    pub(super) fn secret(&self) -> &[u8] {
        &self.secret
    }

    /// The name of the maker's abstract Unix socket, which says nothing about the secret.
    pub(super) fn name(&self) -> Name {
        Name::of(&[b"unique id", &self.secret])
    }

    /// Stands for the id in the table.
    fn fingerprint(&self) -> [u8; 32] {
        digest(&[b"fingerprint", &self.secret])
    }
}

fn check(bytes: &[u8]) -> [u8; CHECK] {
    let mut sum = [0; CHECK];
    for (to, from) in sum.iter_mut().zip(digest(&[b"check", bytes])) {
        *to = from;
    }
    sum
}

/// What an id's maker has bound.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) unix: Listener,
    /// Where other hosts are awaited, if the id has an address.
    pub(super) tcp: Option<Listener>,
}

/// Where an id stands in the process that made it.
#[derive(Debug)]
enum State {
    /// Made, not used. The sockets belong to this process, not to its forked children.
    Held { sockets: Sockets, process: u32 },
    /// Rank 0 is joining.
    Joining,
    /// Its world was made, or could not be.
    Used,
}

static IDS: Mutex<Option<HashMap<[u8; 32], State>>> = Mutex::new(None);

/// Makes a unique id of [`SIZE`] bytes and binds its sockets now, so that other ranks may come before rank 0 itself joins.
///
/// The process that makes it must hold rank 0. With TUTTI_ADDR (`host:port`, port 0 takes any) it also listens there
/// for ranks on other hosts. An id makes one world; one that is never used keeps its sockets until the process ends.
/// Any thread may call this. The id is a secret: whoever knows it can join.
pub fn create() -> Result<Vec<u8>> {
    create_at(config::variable("TUTTI_ADDR").map(|text| Address::parse("TUTTI_ADDR", &text)).transpose()?)
}

/// The same with an address that is known already.
pub(super) fn create_at(address: Option<Address>) -> Result<Vec<u8>> {
    let facts = Facts::gather(config::variable("TUTTI_HOST_ID").as_deref());
    let mut id = UniqueId { secret: random()?, host: facts.host, address: None };
    let mut tcp = None;
    if let Some(address) = address {
        if address.is_unspecified() {
            return Err(Error::invalid(format_args!(
                "TUTTI_ADDR is {address}, which other hosts cannot connect to: a unique id needs the name or address of this host"
            )));
        }
        let listener = listen(&address)?;
        let port = listener.address().map_err(|errno| Error::system("a socket has no address", errno))?.port();
        let text = address.with_port(port).to_string();
        if text.len() > MAX_ADDRESS {
            return Err(Error::invalid(format_args!(
                "TUTTI_ADDR is {text}; a unique id holds addresses of up to {MAX_ADDRESS} bytes"
            )));
        }
        (id.address, tcp) = (Some(text), Some(listener));
    }
    let unix = Listener::unix(id.name().as_bytes())
        .map_err(|errno| Error::system("a unique id needs a Unix socket", errno))?;
    let state = State::Held { sockets: Sockets { unix, tcp }, process: facts.pid };
    IDS.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().insert(id.fingerprint(), state);
    Ok(id.encode())
}

/// Closes the sockets of an id that nobody will use; anything but such an id is ignored.
pub(super) fn discard(bytes: &[u8]) {
    if let Ok(id) = UniqueId::parse(bytes) {
        drop(begin(&id));
    }
}

/// Rank 0's use of an id; dropping it marks the id as used.
#[derive(Debug)]
pub(super) struct Use {
    fingerprint: [u8; 32],
}

impl Drop for Use {
    fn drop(&mut self) {
        IDS.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_default()
            .insert(self.fingerprint, State::Used);
    }
}

/// What becomes of a rank's claim to be rank 0 of an id's world.
#[derive(Debug)]
pub(super) enum Claim {
    /// It is; these are the sockets.
    Granted(Use, Sockets),
    /// The sockets are with another thread or process, which is rank 0 or may yet be. The error is for the case that
    /// it says nothing.
    Elsewhere(Error),
}

/// Rank 0 begins to use the id and gets its sockets.
pub(super) fn begin(id: &UniqueId) -> Result<Claim> {
    let fingerprint = id.fingerprint();
    let mut ids = IDS.lock().unwrap_or_else(PoisonError::into_inner);
    let ids = ids.get_or_insert_default();
    match ids.get(&fingerprint) {
        Some(State::Held { process, .. }) if *process == std::process::id() => {}
        Some(State::Joining) => {
            return Ok(Claim::Elsewhere(Error::usage("two threads join as rank 0 with one unique id")));
        }
        Some(State::Used) => return Err(used()),
        // In a forked child the table is a copy, and the sockets in it are its parent's.
        Some(State::Held { .. }) | None => {
            return Ok(Claim::Elsewhere(Error::usage(
                "rank 0 must be in the process that made the unique id, and this process did not",
            )));
        }
    }
    match ids.insert(fingerprint, State::Joining) {
        Some(State::Held { sockets, .. }) => Ok(Claim::Granted(Use { fingerprint }, sockets)),
        _ => Err(used()),
    }
}

/// Refuses a rank other than 0 where this process knows that the id's world is past.
pub(super) fn check_unused(id: &UniqueId) -> Result<()> {
    let ids = IDS.lock().unwrap_or_else(PoisonError::into_inner);
    match ids.as_ref().and_then(|ids| ids.get(&id.fingerprint())) {
        Some(State::Used) => Err(used()),
        _ => Ok(()),
    }
}

fn used() -> Error {
    Error::usage("this unique id was used already: an id makes one world, make another for the next")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_made() {
        for address in [None, Some("a".repeat(MAX_ADDRESS))] {
            let id = UniqueId { secret: [9; 16], host: 7, address };
            let bytes = id.encode();
            assert_eq!(bytes.len(), SIZE);
            assert_eq!(UniqueId::parse(&bytes).unwrap(), id);
        }
    }

    #[test]
    fn a_damaged_id_is_refused_with_a_reason() {
        let bytes = create_at(None).unwrap();
        assert!(UniqueId::parse(&bytes[..127]).unwrap_err().to_string().contains("127 bytes"));
        let mut changed = bytes.clone();
        changed[40] ^= 1;
        assert!(UniqueId::parse(&changed).unwrap_err().to_string().contains("changed"));
        assert!(UniqueId::parse(&[0; SIZE]).unwrap_err().to_string().contains("not made by this version"));
    }

    #[test]
    fn an_id_is_given_out_once_and_the_name_hides_the_secret() {
        let bytes = create_at(None).unwrap();
        let id = UniqueId::parse(&bytes).unwrap();
        let held = begin(&id).unwrap();
        assert!(matches!(held, Claim::Granted(..)));
        assert!(matches!(begin(&id).unwrap(), Claim::Elsewhere(_)));
        check_unused(&id).unwrap();
        drop(held);
        assert!(begin(&id).unwrap_err().to_string().contains("used already"));
        assert!(check_unused(&id).is_err());
        let stranger = UniqueId { secret: [1; 16], host: 0, address: None };
        let Claim::Elsewhere(error) = begin(&stranger).unwrap() else { panic!("a stranger's id was granted") };
        assert!(error.to_string().contains("process that made"), "{error}");
        let secret: String = id.secret().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!String::from_utf8_lossy(id.name().as_bytes()).contains(&secret));
    }

    #[test]
    fn an_id_holds_the_port_that_was_bound_and_no_address_that_is_nowhere() {
        let at = |text| create_at(Some(Address::parse("TUTTI_ADDR", text).unwrap()));
        let id = UniqueId::parse(&at("127.0.0.1:0").unwrap()).unwrap();
        let address = id.address.clone().unwrap();
        assert!(address.starts_with("127.0.0.1:") && !address.ends_with(":0"), "{address}");
        assert!(at(&address).unwrap_err().to_string().contains("another process listens there"));
        assert!(at("0.0.0.0:0").unwrap_err().to_string().contains("0.0.0.0:0"));
    }

    proptest! {
        #[test]
        fn no_bytes_crash_the_reader_of_ids(body in prop::collection::vec(any::<u8>(), SIZE - CHECK - MAGIC.len())) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(body);
            let sum = check(&bytes);
            bytes.extend(sum);
            let _ = UniqueId::parse(&bytes);
        }
    }
}
