//! Ranks that are real processes and threads meet, or fail to meet for every reason there is.
//!
//! A rank process is this test program again, running only `rank_process`, with the environment a launcher would give
//! it. What it found out it prints, one line per world; the tests read that. Every process has a watchdog.

use std::{
    collections::HashMap,
    net::TcpListener,
    os::fd::{AsFd, AsRawFd},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::OFlags,
    io::FdFlags,
};
use tutti::{
    bootstrap::{self, Link, Mesh, unique_id},
    config::{GroupOptions, Timeout, WorldOptions},
    error::{Error, Status},
};

/// No test may take longer, whatever goes wrong.
const WATCHDOG: Duration = Duration::from_secs(60);

// ---------------------------------------------------------------------------------------------- rank processes

/// What a rank process does; not a test of its own.
#[test]
#[ignore = "run by the other tests, as a process of its own"]
fn rank_process() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    for _ in 0..number("TEST_WORLDS").unwrap_or(1) {
        let options = options(number("TEST_TIMEOUT_MS").unwrap_or(20_000));
        let begin = Instant::now();
        match bootstrap::join(&options) {
            Ok(mesh) => {
                exercise(&mesh);
                let links: String = mesh.peers.iter().map(|peer| show_link(peer.link.as_ref())).collect();
                let pidfds = mesh.peers.iter().filter(|peer| peer.pidfd.is_some()).count();
                println!("\n@world {:x} {links} {pidfds}", mesh.uid);
            }
            Err(error) => println!("\n@error {:?} {} {error}", error.status(), begin.elapsed().as_millis()),
        }
        assert_eq!(open_descriptors(), 0, "sockets left open");
    }
}

fn show_link(link: Option<&Link>) -> char {
    match link {
        None => '-',
        Some(Link::Local(_)) => 'L',
        Some(Link::Remote(_)) => 'R',
    }
}

/// Sockets and pidfds this process holds.
fn open_descriptors() -> usize {
    let targets =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    targets
        .filter(|target| {
            let name = target.to_string_lossy().into_owned();
            name.starts_with("socket:") || name.contains("pidfd")
        })
        .count()
}

fn options(timeout_ms: u64) -> WorldOptions {
    let timeout = Timeout::After(Duration::from_millis(timeout_ms));
    WorldOptions { group: GroupOptions { timeout, ..Default::default() }, ..Default::default() }
}

/// Whether the mesh is what it promises: every rank says its number to every other on its link, which carries nothing
/// else, and pidfds are those of the processes they stand for.
fn exercise(mesh: &Mesh) {
    for peer in &mesh.peers {
        let Some(link) = &peer.link else { continue };
        let socket = link.socket();
        assert!(rustix::fs::fcntl_getfl(socket).unwrap().contains(OFlags::NONBLOCK));
        assert!(rustix::io::fcntl_getfd(socket).unwrap().contains(FdFlags::CLOEXEC));
        if !link.is_local() {
            assert!(rustix::net::sockopt::tcp_nodelay(socket).unwrap());
        }
        let words = [mesh.rank.to_le_bytes().as_slice(), &mesh.uid.to_le_bytes()].concat();
        assert_eq!(rustix::net::send(socket, &words, rustix::net::SendFlags::NOSIGNAL).unwrap(), words.len());
    }
    for (rank, peer) in (0u32..).zip(&mesh.peers) {
        let Some(link) = &peer.link else {
            assert_eq!(rank, mesh.rank);
            continue;
        };
        let mut words = [0u8; 12];
        let mut filled = 0;
        while filled < words.len() {
            await_readable(link.socket().as_fd());
            filled +=
                rustix::net::recv(link.socket(), &mut words[filled..], rustix::net::RecvFlags::empty()).unwrap().1;
        }
        assert_eq!(words[..4], rank.to_le_bytes());
        assert_eq!(words[4..], mesh.uid.to_le_bytes());
    }
    let own = &mesh.peers[mesh.rank as usize].facts;
    for peer in &mesh.peers {
        let another_process_here = peer.facts.process != own.process && matches!(peer.link, Some(Link::Local(_)));
        assert_eq!(peer.pidfd.is_some(), another_process_here);
        if let Some(pidfd) = &peer.pidfd {
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
            let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap();
            assert_eq!(pid.trim(), peer.facts.pid.to_string());
            assert!(rustix::io::fcntl_getfd(pidfd).unwrap().contains(FdFlags::CLOEXEC));
        }
    }
}

fn await_readable(socket: rustix::fd::BorrowedFd<'_>) {
    let timeout = WATCHDOG.try_into().unwrap();
    assert_eq!(poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout)), Ok(1), "nothing came");
}

// -------------------------------------------------------------------------------------------------- the tests' side

/// The environment of one rank.
#[derive(Clone, Default)]
struct Environment(HashMap<String, String>);

impl Environment {
    fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.0.insert(name.into(), value.to_string());
        self
    }

    fn start(&self) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "rank_process", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env_clear().envs(&self.0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Process(command.spawn().unwrap())
    }
}

/// As torchrun sets it, for a master that is not ours.
fn torchrun(rank: u32, size: u32, port: u16) -> Environment {
    Environment::default()
        .set("RANK", rank)
        .set("WORLD_SIZE", size)
        .set("LOCAL_RANK", rank)
        .set("LOCAL_WORLD_SIZE", size)
        .set("MASTER_ADDR", "127.0.0.1")
        .set("MASTER_PORT", port)
        .set("TORCHELASTIC_RUN_ID", "none")
        .set("TORCHELASTIC_RESTART_COUNT", 0)
}

/// A world of the environment that no other test shares.
fn own_key(rank: u32, size: u32) -> Environment {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    thread_local!(static KEY: u32 = NEXT.fetch_add(1, Ordering::Relaxed));
    let key = format!("{}-{}", std::process::id(), KEY.with(|key| *key));
    Environment::default().set("RANK", rank).set("WORLD_SIZE", size).set("TUTTI_WORLD_KEY", key)
}

/// A running rank, killed if it outlives its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a rank said of one world.
#[derive(Debug, PartialEq)]
enum Outcome {
    World { uid: String, links: String, pidfds: usize },
    Error { status: String, after: Duration, text: String },
}

impl Outcome {
    fn world(&self) -> (&str, &str, usize) {
        match self {
            Outcome::World { uid, links, pidfds } => (uid, links, *pidfds),
            Outcome::Error { status, text, .. } => panic!("{status}: {text}"),
        }
    }

    fn error(&self) -> (&str, &str, Duration) {
        match self {
            Outcome::Error { status, after, text } => (status, text, *after),
            Outcome::World { .. } => panic!("a world was made"),
        }
    }
}

impl Process {
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// What it said, when it has ended.
    fn outcomes(mut self) -> Vec<Outcome> {
        let deadline = Instant::now() + WATCHDOG;
        let stdout = std::io::read_to_string(Guarded(self.0.stdout.take().unwrap(), deadline)).unwrap();
        let stderr = std::io::read_to_string(Guarded(self.0.stderr.take().unwrap(), deadline)).unwrap();
        assert!(self.0.wait().unwrap().success(), "{stdout}\n{stderr}");
        let outcomes = stdout.lines().filter_map(|line| {
            if let Some(world) = line.strip_prefix("@world ") {
                let mut words = world.split(' ').map(str::to_owned);
                let (uid, links) = (words.next().unwrap(), words.next().unwrap());
                return Some(Outcome::World { uid, links, pidfds: words.next().unwrap().parse().unwrap() });
            }
            let mut words = line.strip_prefix("@error ")?.splitn(3, ' ').map(str::to_owned);
            let (status, after) = (words.next().unwrap(), words.next().unwrap());
            let after = Duration::from_millis(after.parse().unwrap());
            Some(Outcome::Error { status, after, text: words.next().unwrap() })
        });
        outcomes.collect()
    }

    fn outcome(self) -> Outcome {
        let mut outcomes = self.outcomes();
        assert_eq!(outcomes.len(), 1, "{outcomes:?}");
        outcomes.remove(0)
    }
}

/// A pipe whose reading fails at a deadline.
struct Guarded<R>(R, Instant);

impl<R: std::io::Read + AsFd> std::io::Read for Guarded<R> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let left = self.1.saturating_duration_since(Instant::now()).try_into().unwrap();
        let ready = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left))?;
        if ready == 0 { Err(std::io::ErrorKind::TimedOut.into()) } else { self.0.read(bytes) }
    }
}

fn start(environments: impl IntoIterator<Item = Environment>) -> Vec<Process> {
    environments.into_iter().map(|environment| environment.start()).collect()
}

fn outcome_of_all(processes: Vec<Process>) -> Vec<Outcome> {
    processes.into_iter().map(Process::outcome).collect()
}

/// Runs a closure on a thread of its own for each rank.
fn on_threads<T: Send>(ranks: impl IntoIterator<Item = u32>, work: impl Fn(u32) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(move || work(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn with_id(id: &[u8], size: u32, rank: u32) -> WorldOptions {
    WorldOptions { size_and_rank: Some((size, rank)), unique_id: Some(id.to_vec()), ..options(20_000) }
}

fn failure_of(error: &Error) -> (Status, Option<u32>) {
    match error {
        Error::Failed(failure) => (failure.status, failure.rank),
        other => (other.status(), None),
    }
}

// ----------------------------------------------------------------------------------------------------- one host

#[test]
fn ranks_under_torchrun_meet_while_a_listener_owns_master_port() {
    let master = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = master.local_addr().unwrap().port();
    let outcomes = outcome_of_all(start((0..3).map(|rank| torchrun(rank, 3, port))));
    let (uid, ..) = outcomes[0].world();
    assert_eq!(outcomes[0].world(), (uid, "-LL", 2));
    assert_eq!(outcomes[1].world(), (uid, "L-L", 2));
    assert_eq!(outcomes[2].world(), (uid, "LL-", 2));
    master.set_nonblocking(true).unwrap();
    assert!(master.accept().is_err(), "nobody may touch MASTER_PORT");
}

#[test]
fn worlds_made_one_after_the_other_do_not_meet() {
    let processes = start((0..3).map(|rank| own_key(rank, 3).set("TEST_WORLDS", 5)));
    let outcomes: Vec<Vec<Outcome>> = processes.into_iter().map(Process::outcomes).collect();
    let mut uids = Vec::new();
    for world in 0..5 {
        let uid = outcomes[0][world].world().0;
        assert!(outcomes.iter().all(|rank| rank[world].world().0 == uid));
        uids.push(uid);
    }
    uids.sort_unstable();
    uids.dedup();
    assert_eq!(uids.len(), 5);
}

#[test]
fn threads_of_one_process_meet_with_a_unique_id() {
    let id = unique_id::create().unwrap();
    let meshes = on_threads(0..7, |rank| {
        let mesh = bootstrap::join(&with_id(&id, 7, rank)).unwrap();
        exercise(&mesh);
        mesh
    });
    assert!(meshes.iter().all(|mesh| mesh.uid == meshes[0].uid && mesh.peers.iter().all(|peer| peer.pidfd.is_none())));
}

#[test]
fn a_world_inside_one_process_is_fully_connected() {
    for size in [1, 2, 5] {
        let meshes = bootstrap::local(size).unwrap();
        std::thread::scope(|scope| meshes.iter().for_each(|mesh| drop(scope.spawn(|| exercise(mesh)))));
        assert!(meshes.iter().all(|mesh| mesh.uid == meshes[0].uid));
    }
    assert_eq!(failure_of(&bootstrap::local(0).unwrap_err()), (Status::InvalidArgument, None));
}

#[test]
fn ranks_that_never_come_are_named_to_all_who_did() {
    let processes = start([0, 1, 3].map(|rank| own_key(rank, 6).set("TEST_TIMEOUT_MS", 1200)));
    for outcome in outcome_of_all(processes) {
        let (status, text, after) = outcome.error();
        assert_eq!((status, text), ("Timeout", "ranks 2, 4, 5 of 6 did not arrive within 1.2 s"));
        assert!(after >= Duration::from_millis(900) && after < Duration::from_secs(5), "{after:?}");
    }
}

#[test]
fn a_missing_rank_0_is_named() {
    let outcome = own_key(1, 2).set("TEST_TIMEOUT_MS", 300).start().outcome();
    assert_eq!(outcome.error().1, "rank 0 of 2 did not arrive within 0.3 s");
}
