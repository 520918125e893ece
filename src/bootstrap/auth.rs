//! How strangers prove that they know a secret without saying it, before anything else they send is read.
//!
//! ```text
//!   joiner                                       host
//!     magic, mode, nonce J              ->
//!                                       <-       magic, mode, nonce H
//!     HMAC(key, "joiner", J, H)         ->
//!                                       <-       accepted or not, HMAC(key, "host", J, H)
//! ```
//!
//! Both nonces are fresh, so no proof can be used again; the sides are named in it, so none can be sent back. The joiner
//! proves first: whoever only listens in the network must already know the secret to be told anything. A secret that
//! can be guessed can be found by someone who sees a proof, so it should be long and random. What is said after the
//! proofs is neither hidden nor protected: the network itself is trusted not to change connections.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{
    channel::{Broken, Channel},
    plan::{digest, random},
};

/// How both sides begin; the last byte is the version of this handshake.
const MAGIC: [u8; 8] = *b"tuttipr\x01";
/// Bytes of a nonce, and of a proof.
const SIZE: usize = 32;
/// Magic, mode, nonce.
const GREETING: usize = MAGIC.len() + 1 + SIZE;
/// HMAC-SHA256 pads its keys to a block of the hash, in bytes.
const BLOCK: usize = 64;

/// What lets a stranger in.
#[derive(Clone, Debug)]
pub(super) enum Trust {
    /// Knowing this.
    Secret(Key),
    /// Nothing: the caller allows unauthenticated ranks.
    Anyone,
}

impl Trust {
    /// How the greeting says it.
    fn mode(&self) -> u8 {
        match self {
            Trust::Anyone => 0,
            Trust::Secret(_) => 1,
        }
    }

    /// What lets the ranks of one world into each other's doors. Who only saw `nonce` on the network cannot make it.
    pub(super) fn of_world(&self, nonce: &[u8; SIZE]) -> Trust {
        let base = match self {
            Trust::Secret(key) => key.clone(),
            Trust::Anyone => Key::new(b""),
        };
        Trust::Secret(Key::new(&base.proof(b"world", &[nonce])))
    }
}

/// A key made from a secret.
#[derive(Clone)]
pub(super) struct Key([u8; BLOCK]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// The key of a secret of any length.
    pub(super) fn new(secret: &[u8]) -> Self {
        let mut block = [0; BLOCK];
        block[..SIZE].copy_from_slice(&digest(&[b"tutti key", secret]));
        Key(block)
    }

    fn proof(&self, purpose: &[u8], nonces: &[&[u8; SIZE]]) -> [u8; SIZE] {
        self.mac(purpose, nonces).finalize().into_bytes().into()
    }

    /// Compares in constant time.
    fn accepts(&self, purpose: &[u8], nonces: &[&[u8; SIZE]], proof: &[u8; SIZE]) -> bool {
        self.mac(purpose, nonces).verify(proof.into()).is_ok()
    }

    fn mac(&self, purpose: &[u8], nonces: &[&[u8; SIZE]]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new(&self.0.into());
        mac.update(&[purpose.len() as u8]);
        mac.update(purpose);
        nonces.iter().for_each(|nonce| mac.update(nonce.as_slice()));
        mac
    }
}

/// Why one side is not trusted, or was not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// The connection ended first.
    Broken(Broken),
    /// The other side speaks something else.
    Stranger,
    /// One side demands a proof and the other wants none; true where the other one demands it.
    Demand(bool),
    /// The other side's proof is wrong, or it says that ours is.
    Secret,
}

impl From<Broken> for Denied {
    fn from(broken: Broken) -> Self {
        Denied::Broken(broken)
    }
}

impl std::fmt::Display for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Denied::Broken(broken) => return broken.fmt(f),
            Denied::Stranger => "the other side is no rank of this version of libtutti",
            Denied::Demand(true) => {
                "the other side demands a secret and this one has none: set TUTTI_SECRET on all ranks"
            }
            Denied::Demand(false) => "this side demands a secret and the other has none: set TUTTI_SECRET on all ranks",
            Denied::Secret => "the two sides do not know the same secret (TUTTI_SECRET, or the unique id)",
        })
    }
}

/// The joiner's side: proves the secret, then demands the proof of whoever listens.
pub(super) async fn prove(channel: &Channel, trust: &Trust) -> Result<(), Denied> {
    let own = greet(channel, trust).await?;
    let theirs = hear_greeting(channel, trust).await?;
    let Trust::Secret(key) = trust else { return Ok(()) };
    channel.send_bytes(&key.proof(b"joiner", &[&own, &theirs]), &[]).await?;
    // Who does not accept a proof says so or closes; an honest host does the former.
    let [accepted] = channel.receive_bytes().await?;
    let proof = channel.receive_bytes().await?;
    let honest = accepted == 1 && key.accepts(b"host", &[&own, &theirs], &proof);
    if honest { Ok(()) } else { Err(Denied::Secret) }
}

/// The host's side: hears the joiner's proof, then gives its own.
pub(super) async fn demand(channel: &Channel, trust: &Trust) -> Result<(), Denied> {
    // The greeting goes out even when the modes differ, so that the joiner learns it.
    let greeting = read_greeting(channel).await?;
    let own = greet(channel, trust).await?;
    let theirs = check_greeting(greeting, trust)?;
    let Trust::Secret(key) = trust else { return Ok(()) };
    let proof = channel.receive_bytes().await?;
    if !key.accepts(b"joiner", &[&theirs, &own], &proof) {
        channel.send_bytes(&[0; 1 + SIZE], &[]).await?;
        return Err(Denied::Secret);
    }
    let mut answer = [1; 1 + SIZE];
    answer[1..].copy_from_slice(&key.proof(b"host", &[&theirs, &own]));
    Ok(channel.send_bytes(&answer, &[]).await?)
}

/// Sends this side's greeting; its nonce.
async fn greet(channel: &Channel, trust: &Trust) -> Result<[u8; SIZE], Denied> {
    let nonce = random().map_err(|_| Denied::Broken(Broken::System(rustix::io::Errno::IO)))?;
    let mut greeting = [0; GREETING];
    greeting[..MAGIC.len()].copy_from_slice(&MAGIC);
    greeting[MAGIC.len()] = trust.mode();
    greeting[MAGIC.len() + 1..].copy_from_slice(&nonce);
    channel.send_bytes(&greeting, &[]).await?;
    Ok(nonce)
}

async fn hear_greeting(channel: &Channel, trust: &Trust) -> Result<[u8; SIZE], Denied> {
    check_greeting(read_greeting(channel).await?, trust)
}

/// The mode and the nonce of the other side.
async fn read_greeting(channel: &Channel) -> Result<(u8, [u8; SIZE]), Denied> {
    if channel.receive_bytes::<{ MAGIC.len() }>().await? != MAGIC {
        return Err(Denied::Stranger);
    }
    let [mode] = channel.receive_bytes().await?;
    Ok((mode, channel.receive_bytes().await?))
}

fn check_greeting((mode, nonce): (u8, [u8; SIZE]), trust: &Trust) -> Result<[u8; SIZE], Denied> {
    if mode == trust.mode() { Ok(nonce) } else { Err(Denied::Demand(mode == 1)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::{channel::pair, tasks::block_on};

    /// What joiner and host make of each other.
    fn meet(joiner: Trust, host: Trust) -> (Result<(), Denied>, Result<(), Denied>) {
        let (one, other) = pair().unwrap();
        let thread = std::thread::spawn(move || block_on(demand(&Channel::new(other), &host)));
        let channel = Channel::new(one);
        let proven = block_on(prove(&channel, &joiner));
        drop(channel);
        (proven, thread.join().unwrap())
    }

    fn secret(text: &str) -> Trust {
        Trust::Secret(Key::new(text.as_bytes()))
    }

    #[test]
    fn only_equal_secrets_meet() {
        assert_eq!(meet(secret("a"), secret("a")), (Ok(()), Ok(())));
        assert_eq!(meet(Trust::Anyone, Trust::Anyone), (Ok(()), Ok(())));
        assert_eq!(meet(secret("a"), secret("b")), (Err(Denied::Secret), Err(Denied::Secret)));
        assert_eq!(meet(Trust::Anyone, secret("b")), (Err(Denied::Demand(true)), Err(Denied::Demand(false))));
        assert_eq!(meet(secret("a"), Trust::Anyone), (Err(Denied::Demand(false)), Err(Denied::Demand(true))));
    }

    #[test]
    fn each_world_has_its_own_key() {
        let (one, other) = (secret("a").of_world(&[1; 32]), secret("a").of_world(&[2; 32]));
        assert_eq!(meet(one.clone(), other).1, Err(Denied::Secret));
        assert_eq!(meet(one.clone(), secret("a").of_world(&[1; 32])).1, Ok(()));
        assert_eq!(meet(one, secret("b").of_world(&[1; 32])).1, Err(Denied::Secret));
    }

    /// A host that knows nothing answers with what it was sent.
    #[test]
    fn a_mirror_is_no_host() {
        let (one, other) = pair().unwrap();
        let mirror = std::thread::spawn(move || {
            block_on(async {
                let channel = Channel::new(other);
                let greeting: [u8; GREETING] = channel.receive_bytes().await.unwrap();
                channel.send_bytes(&greeting, &[]).await.unwrap();
                let proof: [u8; SIZE] = channel.receive_bytes().await.unwrap();
                channel.send_bytes(&[1], &[]).await.unwrap();
                channel.send_bytes(&proof, &[]).await.unwrap();
            });
        });
        assert_eq!(block_on(prove(&Channel::new(one), &secret("a"))), Err(Denied::Secret));
        mirror.join().unwrap();
    }
}
