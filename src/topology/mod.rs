//! What a rank's surroundings are: its process, host and cores. Facts, never decisions.
//!
//! [`Facts::gather`] reads them once, when a rank joins; the rendezvous carries them to all ranks in the bounded
//! form of [`Facts::encode`]. Nothing here waits, fails or talks to another rank: what cannot be read is left open.

mod quota;

use std::{fs, sync::OnceLock};

use sha2::{Digest, Sha256};

use crate::{config, sync::Fences};

/// The longest host name that travels, in bytes (Linux allows 64).
const MAX_HOST_NAME: usize = 64;
/// The highest number of CPUs that travels; Linux can be built for as many.
const MAX_CPUS: usize = 8192;

/// What a rank says of itself when it joins; all ranks get to know all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The process, in its own PID namespace.
    pub pid: u32,
    /// The user, as this host numbers them.
    pub uid: u32,
    /// A random number of the process: equal for ranks that are threads of one process.
    pub process: u64,
    /// The boot of the machine, and `TUTTI_HOST_ID` where it splits a host for tests.
    pub host: u64,
    /// The machine's name, for texts only.
    pub host_name: String,
    /// The cores the rank may run on, as a set of CPU numbers (sched_getaffinity when it joined).
    pub cpus: Vec<u32>,
    /// Thousandths of a core that cgroup quotas leave the process; `u32::MAX` without a quota.
    pub quota_millicores: u32,
    /// The library's version, as `tutti_version` has it.
    pub version: u32,
    /// Whether the kernel lets the process divide fences unevenly ([`Fences::can_be_lopsided`]).
    pub lopsided: bool,
}

impl Facts {
    /// The longest encoding, in bytes.
    pub const MAX_ENCODED: usize = 4 + 4 + 8 + 8 + 4 + 4 + 1 + 1 + MAX_HOST_NAME + 2 + MAX_CPUS / 8;

    /// What can be said of the calling thread and its process now. `host_id` is `TUTTI_HOST_ID`, where it is set.
    pub fn gather(host_id: Option<&str>) -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let uname = rustix::system::uname();
        Facts {
            pid: std::process::id(),
            uid: rustix::process::geteuid().as_raw(),
            process: process_token(),
            host: hash(&[b"host", boot.trim().as_bytes(), host_id.unwrap_or_default().as_bytes()]),
            host_name: shorten(&uname.nodename().to_string_lossy(), MAX_HOST_NAME).to_owned(),
            cpus: affinity(),
            quota_millicores: quota::millicores(&|path| fs::read_to_string(path).ok()).unwrap_or(u32::MAX),
            version: config::VERSION,
            lopsided: Fences::can_be_lopsided(),
        }
    }

    /// Appends the facts to `out`, at most [`Facts::MAX_ENCODED`] bytes of them.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.pid.to_le_bytes());
        out.extend(self.uid.to_le_bytes());
        out.extend(self.process.to_le_bytes());
        out.extend(self.host.to_le_bytes());
        out.extend(self.quota_millicores.to_le_bytes());
        out.extend(self.version.to_le_bytes());
        out.push(u8::from(self.lopsided));
        let name = shorten(&self.host_name, MAX_HOST_NAME);
        out.push(name.len() as u8);
        out.extend(name.as_bytes());
        let mut bits = Vec::new();
        for cpu in self.cpus.iter().map(|&cpu| cpu as usize).filter(|&cpu| cpu < MAX_CPUS) {
            if bits.len() <= cpu / 8 {
                bits.resize(cpu / 8 + 1, 0u8);
            }
            if let Some(byte) = bits.get_mut(cpu / 8) {
                *byte |= 1 << (cpu % 8);
            }
        }
        out.extend((bits.len() as u16).to_le_bytes());
        out.extend(bits);
    }

    /// Reads facts from the front of `bytes` and moves it behind them; `None` for anything [`Facts::encode`] cannot
    /// have written. Nothing is allocated beyond [`Facts::MAX_ENCODED`] bytes and the list of CPUs they name.
    pub fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let pid = u32::from_le_bytes(take(bytes)?);
        let uid = u32::from_le_bytes(take(bytes)?);
        let process = u64::from_le_bytes(take(bytes)?);
        let host = u64::from_le_bytes(take(bytes)?);
        let quota_millicores = u32::from_le_bytes(take(bytes)?);
        let version = u32::from_le_bytes(take(bytes)?);
        let [lopsided @ 0..=1] = take(bytes)? else { return None };
        let lopsided = lopsided == 1;
        let [length] = take(bytes)?;
        let name = bytes.split_off(..usize::from(length)).filter(|name| name.len() <= MAX_HOST_NAME)?;
        let host_name = std::str::from_utf8(name).ok()?.to_owned();
        let length = u16::from_le_bytes(take(bytes)?);
        let bits = bytes.split_off(..usize::from(length)).filter(|bits| bits.len() <= MAX_CPUS / 8)?;
        let cpus = (0u32..)
            .zip(bits)
            .flat_map(|(at, byte)| (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| at * 8 + bit));
        Some(Facts { pid, uid, process, host, host_name, cpus: cpus.collect(), quota_millicores, version, lopsided })
    }
}

/// The next `N` bytes, taken from the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*first)
}

/// A random number of this process. A fork changes it, because the process number is part of it.
fn process_token() -> u64 {
    static RANDOM: OnceLock<[u8; 16]> = OnceLock::new();
    let random = RANDOM.get_or_init(|| {
        let mut bytes = [0; 16];
        // Without a source of randomness the address of this library and the time of the call still tell processes
        // of one host apart; nobody's safety stands on this number.
        if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) != Ok(16) {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            bytes = (now.as_nanos() ^ ((&raw const RANDOM).addr() as u128) << 64).to_le_bytes();
        }
        bytes
    });
    hash(&[b"process", random, &std::process::id().to_le_bytes()])
}

/// The CPUs the calling thread may run on.
fn affinity() -> Vec<u32> {
    if let Ok(set) = rustix::thread::sched_getaffinity(None) {
        return (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).map(|cpu| cpu as u32).collect();
    }
    // Kernels built for more CPUs than the fixed set holds refuse the call; the text form has no such limit.
    fs::read_to_string("/proc/thread-self/status")
        .ok()
        .and_then(|status| parse_cpu_list(status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?))
        .unwrap_or_default()
}

/// The CPUs named by a list such as `0-3,8`; `None` where it is no such list.
fn parse_cpu_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?);
        if last as usize >= MAX_CPUS {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// The longest front of `text` of at most `bytes` bytes that ends between characters.
fn shorten(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    &text[..end]
}

/// Eight bytes of a hash over parts whose bounds count.
fn hash(parts: &[&[u8]]) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let digest = hasher.finalize();
    digest.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn gathered_facts_survive_the_journey() {
        let facts = Facts::gather(None);
        assert!(!facts.cpus.is_empty() && facts.pid == std::process::id());
        let mut bytes = Vec::new();
        facts.encode(&mut bytes);
        let mut rest = bytes.as_slice();
        assert_eq!(Facts::decode(&mut rest), Some(facts));
        assert!(rest.is_empty());
    }

    #[test]
    fn a_host_id_splits_a_host_and_a_process_is_one() {
        let (one, two) = (Facts::gather(Some("a")), Facts::gather(Some("b")));
        assert_ne!(one.host, two.host);
        assert_eq!(one.process, two.process);
        assert_eq!(std::thread::spawn(process_token).join().unwrap(), one.process);
    }

    #[test]
    fn cpu_lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_cpu_list("\t0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_cpu_list("0-4294967295"), None);
        assert_eq!(parse_cpu_list("x"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_crash_the_reader_of_facts(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = bytes.as_slice();
            if let Some(facts) = Facts::decode(&mut rest) {
                let mut again = Vec::new();
                facts.encode(&mut again);
                prop_assert!(again.len() <= Facts::MAX_ENCODED);
                prop_assert_eq!(Facts::decode(&mut again.as_slice()), Some(facts));
            }
        }
    }
}
