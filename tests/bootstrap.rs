//! Ranks that are real processes and threads meet, or fail to meet for every reason there is.
//!
//! A rank process is this test program again, running only `rank_process`, with the environment a launcher would give
//! it. What it found out it prints, one line per world; the tests read that. Every process has a watchdog.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    process::{Child, ChildStderr, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::OFlags,
    io::FdFlags,
};
use tutti::{
    bootstrap::{self, Link, Mesh, unique_id},
    config::{AllGather, GroupOptions, Timeout, WorldOptions},
    error::{Error, Status},
};

/// No test may take longer, whatever goes wrong.
const WATCHDOG: Duration = Duration::from_secs(60);

// ---------------------------------------------------------------------------------------------- rank processes

/// What a rank process does; not a test of its own.
#[test]
#[ignore = "run by the other tests, as a process of its own"]
fn rank_process() {
    env_logger::builder().filter_level(log::LevelFilter::Debug).init();
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    if let Some(user) = number("TEST_USER") {
        let user = rustix::process::Uid::from_raw(user as u32);
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
    }
    if let Some(files) = number("TEST_FILES") {
        let limit = rustix::process::Rlimit { current: Some(files), maximum: Some(files) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    }
    for _ in 0..number("TEST_WORLDS").unwrap_or(1) {
        let mut options = options(number("TEST_TIMEOUT_MS").unwrap_or(20_000));
        options.unique_id = match std::env::var("TEST_ID").as_deref() {
            Err(_) => None,
            Ok("make") => {
                let id = unique_id::create().unwrap();
                log::info!("the id is {}", id.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
                Some(id)
            }
            Ok(id) => {
                Some((0..id.len()).step_by(2).map(|at| u8::from_str_radix(&id[at..at + 2], 16).unwrap()).collect())
            }
        };
        let begin = Instant::now();
        match bootstrap::join(&options) {
            Ok(mesh) => {
                if number("TEST_JOIN_ONLY").is_none() {
                    exercise(&mesh);
                }
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
    // First, while all processes live: none ends before it has heard from all.
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
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(Guarded(child.stderr.take().unwrap(), Instant::now() + WATCHDOG));
        Process { child, log }
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
struct Process {
    child: Child,
    log: BufReader<Guarded<ChildStderr>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it logs this.
    fn await_log(&mut self, text: &str) -> String {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "it ended without saying {text:?}");
        }
        line
    }

    /// What it said, when it has ended.
    fn outcomes(mut self) -> Vec<Outcome> {
        let deadline = Instant::now() + WATCHDOG;
        let stdout = std::io::read_to_string(Guarded(self.child.stdout.take().unwrap(), deadline)).unwrap();
        let log = std::io::read_to_string(&mut self.log).unwrap();
        assert!(self.child.wait().unwrap().success(), "{stdout}\n{log}");
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
fn the_least_patient_rank_decides_for_all() {
    let outcomes = outcome_of_all(start(
        [20_000, 900].iter().zip(0..).map(|(timeout, rank)| own_key(rank, 3).set("TEST_TIMEOUT_MS", timeout)),
    ));
    for outcome in outcomes {
        assert_eq!(outcome.error().1, "rank 2 of 3 did not arrive within 0.9 s");
    }
}

#[test]
fn a_rank_that_may_open_no_more_files_says_so_to_all() {
    // Standard streams, the harness and the way in take about a dozen.
    for poor in [0, 2] {
        let ranks = (0..12).map(|rank| own_key(rank, 12)).enumerate();
        let ranks =
            ranks.map(|(rank, environment)| if rank == poor { environment.set("TEST_FILES", 18) } else { environment });
        for (rank, outcome) in outcome_of_all(start(ranks)).iter().enumerate() {
            let (_, text, after) = outcome.error();
            assert!(text.contains("ulimit -n"), "rank {rank}: {text}");
            assert!(rank == poor || text.starts_with(&format!("rank {poor}")), "rank {rank}: {text}");
            assert!(after < Duration::from_secs(10), "told, not timed out: {after:?}");
        }
    }
}

/// Whenever a rank is killed, the others end: with a world, or with an error that names it.
#[test]
fn a_rank_killed_at_any_moment_leaves_nobody_waiting() {
    for round in 0..12u32 {
        let two_hosts = two_hosts(4, 2);
        let ranks = (0..4).map(|rank| if round % 2 == 0 { own_key(rank, 4) } else { two_hosts[rank as usize].clone() });
        let mut processes = start(ranks.map(|rank| rank.set("TEST_JOIN_ONLY", 1).set("TEST_TIMEOUT_MS", 3000)));
        let victim = (round / 2 % 3 + 1) as usize;
        // Rank 0 logs arrivals; a little later each round, the victim is somewhere behind its arrival.
        processes[0].await_log(&format!("rank {victim} of 4 has arrived"));
        let moment = Instant::now() + Duration::from_micros(u64::from(round) * 150);
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        let mut killed = processes.remove(victim);
        killed.kill();
        for outcome in outcome_of_all(processes) {
            if let Outcome::Error { text, .. } = &outcome {
                assert!(text.contains(&format!("rank {victim}")) || text.contains("rank 0 left"), "{text}");
            }
        }
    }
}

#[test]
fn a_missing_rank_0_is_named() {
    let outcome = own_key(1, 2).set("TEST_TIMEOUT_MS", 300).start().outcome();
    assert_eq!(outcome.error().1, "rank 0 of 2 did not arrive within 0.3 s");
}

#[test]
fn a_rank_that_is_taken_twice_is_named_to_all_at_once() {
    for outcome in outcome_of_all(start([0, 1, 1, 2].map(|rank| own_key(rank, 4)))) {
        let (status, text, after) = outcome.error();
        assert_eq!(status, "Mismatch");
        assert!(text.starts_with("two ranks say they are rank 1: process "), "{text}");
        assert!(after < Duration::from_secs(10), "told, not timed out: {after:?}");
    }
}

#[test]
fn two_ranks_0_are_named_to_all() {
    for outcome in outcome_of_all(start([0, 0, 1].map(|rank| own_key(rank, 3)))) {
        let (status, text, _) = outcome.error();
        assert_eq!(status, "Mismatch", "{text}");
        assert!(text.starts_with("two ranks say they are rank 0: process "), "{text}");
    }
}

#[test]
fn ranks_that_disagree_on_the_size_are_named_to_all() {
    let processes = start([own_key(0, 4), own_key(1, 4), own_key(2, 5), own_key(3, 4)]);
    for outcome in outcome_of_all(processes) {
        let (status, text, after) = outcome.error();
        assert_eq!((status, text), ("Mismatch", "rank 2 says the world has 5 ranks, rank 0 says 4"));
        assert!(after < Duration::from_secs(10), "told, not timed out: {after:?}");
    }
}

#[test]
fn a_rank_that_dies_while_others_are_awaited_is_named() {
    let mut processes = start([0, 1, 2].map(|rank| own_key(rank, 4)));
    let mut killed = processes.remove(2);
    processes[0].await_log("rank 2 of 4 has arrived");
    killed.kill();
    for outcome in outcome_of_all(processes) {
        let (status, text, after) = outcome.error();
        assert_eq!(status, "PeerLost", "{text}");
        assert!(text.starts_with("rank 2 (process "), "{text}");
        assert!(after < Duration::from_secs(10), "{after:?}");
    }
}

/// The name of the abstract socket that a process listens on, as soon as it does.
fn listening_name(process: &Process) -> Vec<u8> {
    let deadline = Instant::now() + WATCHDOG;
    loop {
        assert!(Instant::now() < deadline, "the process never listened");
        let folder = std::fs::read_dir(format!("/proc/{}/fd", process.child.id())).unwrap();
        let targets = folder.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        let sockets: Vec<String> = targets.map(|target| target.to_string_lossy().into_owned()).collect();
        for line in std::fs::read_to_string("/proc/net/unix").unwrap().lines() {
            // Num, reference count, protocol, flags, type, state, inode, path
            let fields: Vec<&str> = line.split_whitespace().collect();
            if let [.., inode, name] = fields.as_slice()
                && let Some(name) = name.strip_prefix('@')
                && sockets.contains(&format!("socket:[{inode}]"))
            {
                return name.into();
            }
        }
        std::thread::yield_now();
    }
}

/// Does something as another user, on a thread of its own; `None` where that is not allowed.
fn as_user<T: Send>(user: u32, work: impl FnOnce() -> T + Send) -> Option<T> {
    let become_user = move || {
        let uid = rustix::process::Uid::from_raw(user);
        rustix::thread::set_thread_res_uid(uid, uid, uid).ok()?;
        Some(work())
    };
    std::thread::scope(|scope| scope.spawn(become_user).join().unwrap())
}

#[test]
fn a_restarted_job_does_not_meet_the_old_one() {
    let master = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = master.local_addr().unwrap().port();
    // Rank 0 of the first attempt never learns that its rank 1 was restarted.
    let old = torchrun(0, 2, port).set("TEST_TIMEOUT_MS", 1500).start();
    listening_name(&old);
    let new = start((0..2).map(|rank| torchrun(rank, 2, port).set("TORCHELASTIC_RESTART_COUNT", 1)));
    let outcomes = outcome_of_all(new);
    assert_eq!(outcomes[0].world().0, outcomes[1].world().0);
    assert_eq!(old.outcome().error().1, "rank 1 of 2 did not arrive within 1.5 s");
}

#[test]
fn several_hosts_without_an_address_are_refused_with_the_variable_to_set() {
    let outcome = torchrun(0, 4, 1).set("LOCAL_WORLD_SIZE", 2).start().outcome();
    let (status, text, _) = outcome.error();
    assert_eq!(status, "InvalidUsage");
    assert!(text.contains("LOCAL_WORLD_SIZE is 2") && text.contains("TUTTI_ADDR"), "{text}");
    for outcome in outcome_of_all(start([0, 1].map(|rank| own_key(rank, 2).set("TUTTI_HOST_ID", rank)))) {
        let (status, text, _) = outcome.error();
        assert_eq!(status, "InvalidUsage", "{text}");
        assert!(text.contains("TUTTI_ADDR"), "{text}");
    }
}

/// The name of a world is no secret from other users where it comes from the environment.
fn name_of_this_world() -> Vec<u8> {
    let mut first = own_key(0, 2).start();
    let name = listening_name(&first);
    first.kill();
    name
}

#[test]
fn a_socket_held_by_another_user_fails_at_once_and_names_the_user() {
    let address = SocketAddr::from_abstract_name(name_of_this_world()).unwrap();
    let Some(holder) = as_user(4711, || UnixListener::bind_addr(&address).unwrap()) else {
        eprintln!("skipped: this user cannot become another one");
        return;
    };
    for outcome in outcome_of_all(start([0, 1].map(|rank| own_key(rank, 2)))) {
        let (status, text, after) = outcome.error();
        assert_eq!(status, "SystemError", "{text}");
        assert!(text.contains("held by user 4711 (process ") && text.contains("not by user 0"), "{text}");
        assert!(after < Duration::from_secs(5), "{after:?}");
    }
    drop(holder);
}

#[test]
fn other_users_who_connect_neither_join_nor_stall() {
    let rank_0 = own_key(0, 2).start();
    let address = SocketAddr::from_abstract_name(listening_name(&rank_0)).unwrap();
    let connect = || (0..200).map(|_| UnixStream::connect_addr(&address).unwrap()).collect::<Vec<_>>();
    let Some(strangers) = as_user(4711, connect) else {
        eprintln!("skipped: this user cannot become another one");
        return;
    };
    let rank_1 = own_key(1, 2).start();
    for outcome in outcome_of_all(vec![rank_0, rank_1]) {
        outcome.world();
    }
    drop(strangers);
}

/// Programs of the same user are not enemies, but they make mistakes.
#[test]
fn rubbish_and_silence_on_the_socket_neither_join_nor_stall_nor_crash() {
    let rank_0 = own_key(0, 3).start();
    let address = SocketAddr::from_abstract_name(listening_name(&rank_0)).unwrap();
    let silent: Vec<UnixStream> = (0..300).map(|_| UnixStream::connect_addr(&address).unwrap()).collect();
    let mut noise = Noise::new(1);
    for _ in 0..500 {
        let mut stream = UnixStream::connect_addr(&address).unwrap();
        let bytes = noise.message();
        let _ = stream.write_all(&bytes);
    }
    for outcome in outcome_of_all([rank_0].into_iter().chain(start([1, 2].map(|rank| own_key(rank, 3)))).collect()) {
        outcome.world();
    }
    drop(silent);
}

/// Reproducible rubbish, some of it close to what ranks say.
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Self {
        Noise(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
        let mut word = self.0;
        word ^= word >> 29;
        word = word.wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word ^ word >> 32
    }

    fn message(&mut self) -> Vec<u8> {
        let length = (self.next() % 300) as usize;
        let mut bytes: Vec<u8> = (0..length).map(|_| self.next() as u8).collect();
        let front: &[u8] = match self.next() % 6 {
            0 => b"tuttipr\x01\x01",
            1 => b"tuttipr\x01\x00",
            2 => b"\x01\x00\xff\xfftutti/hi",
            3 => b"\x01\x00\x40\x00tutti/hi",
            4 => b"\x02\x00\x10\x00",
            _ => b"",
        };
        let covered = front.len().min(bytes.len());
        bytes[..covered].copy_from_slice(&front[..covered]);
        bytes
    }
}

#[test]
fn a_unique_id_makes_one_world_and_needs_its_maker() {
    let id = unique_id::create().unwrap();
    on_threads(0..2, |rank| bootstrap::join(&with_id(&id, 2, rank)).unwrap());
    for rank in 0..2 {
        let error = bootstrap::join(&with_id(&id, 2, rank)).unwrap_err();
        assert_eq!(error.status(), Status::InvalidUsage);
        assert!(error.to_string().contains("used already"), "{error}");
    }
}

#[test]
fn threads_that_take_one_rank_are_told_to_all() {
    let id = unique_id::create().unwrap();
    let errors = on_threads([0, 1, 1, 2], |rank| bootstrap::join(&with_id(&id, 4, rank)).unwrap_err());
    assert!(errors.iter().all(|error| failure_of(error) == (Status::Mismatch, Some(1))), "{errors:?}");
}

#[test]
fn threads_that_both_take_rank_0_are_told_to_all() {
    let id = unique_id::create().unwrap();
    let begin = Instant::now();
    let errors = on_threads([0, 0, 1], |rank| bootstrap::join(&with_id(&id, 4, rank)).unwrap_err());
    assert!(errors.iter().all(|error| failure_of(error) == (Status::Mismatch, Some(0))), "{errors:?}");
    let text = errors[0].to_string();
    assert!(
        text.starts_with("two ranks say they are rank 0: process ") && text.ends_with("another thread of it"),
        "{text}"
    );
    assert!(begin.elapsed() < Duration::from_secs(10), "told, not timed out: {:?}", begin.elapsed());
}

#[test]
fn a_rank_0_that_did_not_make_the_id_is_named_to_all() {
    for address in [None, Some("127.0.0.1:0")] {
        let rank = |rank, id: &str| {
            let rank = Environment::default().set("TEST_ID", id).set("RANK", rank).set("WORLD_SIZE", 3);
            address.into_iter().fold(rank, |rank, address| rank.set("TUTTI_ADDR", address))
        };
        let mut maker = rank(0, "make").start();
        let id = maker.await_log("the id is ");
        let id = id.split_whitespace().last().unwrap().to_owned();
        let other = rank(1, &id).start();
        maker.await_log("rank 1 of 3 has arrived");
        let stranger = rank(0, &id).start();
        for outcome in outcome_of_all(vec![maker, other, stranger]) {
            let (status, text, after) = outcome.error();
            assert_eq!(status, "Mismatch", "{text}");
            assert!(text.starts_with("two ranks say they are rank 0: process "), "{text}");
            assert!(after < Duration::from_secs(10), "told, not timed out: {after:?}");
        }
    }
}

// ------------------------------------------------------------------------------------------------ several hosts

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Ranks of a world whose first `split` ranks say they are on one host and the others that they are on another.
fn two_hosts(size: u32, split: u32) -> Vec<Environment> {
    two_hosts_at("127.0.0.1", size, split)
}

fn two_hosts_at(host: &str, size: u32, split: u32) -> Vec<Environment> {
    let address = format!("{host}:{}", free_port());
    let rank = |rank| {
        own_key(rank, size)
            .set("TUTTI_ADDR", &address)
            .set("TUTTI_SECRET", "a secret of sufficient length")
            .set("TUTTI_HOST_ID", if rank < split { "one" } else { "two" })
    };
    (0..size).map(rank).collect()
}

#[test]
fn two_hosts_meet_over_tcp_and_keep_descriptors_to_themselves() {
    let outcomes = outcome_of_all(start(two_hosts(5, 2)));
    let uid = outcomes[0].world().0;
    assert_eq!(outcomes[0].world(), (uid, "-LRRR", 1));
    assert_eq!(outcomes[1].world(), (uid, "L-RRR", 1));
    assert_eq!(outcomes[2].world(), (uid, "RR-LL", 2));
    assert_eq!(outcomes[3].world(), (uid, "RRL-L", 2));
    assert_eq!(outcomes[4].world(), (uid, "RRLL-", 2));
}

#[test]
fn an_address_changes_nothing_for_ranks_of_one_host() {
    for outcome in outcome_of_all(start(two_hosts(3, 3))) {
        let (_, links, pidfds) = outcome.world();
        assert_eq!((links.matches('L').count(), pidfds), (2, 2));
    }
}

#[test]
fn an_address_may_be_a_name_all_interfaces_or_ipv6() {
    for host in ["localhost", "0.0.0.0", "[::1]"] {
        if host == "[::1]" && TcpListener::bind("[::1]:0").is_err() {
            eprintln!("skipped: this machine has no IPv6");
            continue;
        }
        let outcomes = outcome_of_all(start(two_hosts_at(host, 3, 1)));
        let links: Vec<&str> = outcomes.iter().map(|outcome| outcome.world().1).collect();
        assert_eq!(links, ["-RR", "R-L", "RL-"]);
    }
}

/// The kernel passes descriptors between users, but we do not: they cannot trust each other's memory.
#[test]
fn ranks_of_one_machine_that_may_not_share_descriptors_use_tcp() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: this user cannot become another one");
        return;
    }
    let mut ranks = two_hosts(4, 4);
    for rank in &mut ranks[2..] {
        *rank = rank.clone().set("TEST_USER", 4711);
    }
    let outcomes = outcome_of_all(start(ranks));
    let links: Vec<&str> = outcomes.iter().map(|outcome| outcome.world().1).collect();
    assert_eq!(links, ["-LRR", "L-RR", "RR-L", "RRL-"]);
}

#[test]
fn worlds_over_tcp_made_one_after_the_other_do_not_meet() {
    let processes = start(two_hosts(3, 1).into_iter().map(|rank| rank.set("TEST_WORLDS", 4)));
    let outcomes: Vec<Vec<Outcome>> = processes.into_iter().map(Process::outcomes).collect();
    for world in 0..4 {
        let uid = outcomes[0][world].world().0;
        assert!(outcomes.iter().all(|rank| rank[world].world().0 == uid));
        assert!(world == 0 || outcomes[0][world - 1].world().0 != uid);
    }
}

#[test]
fn a_wrong_secret_is_refused_and_everybody_hears_who_is_missing() {
    let mut ranks = two_hosts(3, 1);
    for rank in &mut ranks {
        *rank = rank.clone().set("TEST_TIMEOUT_MS", 3000);
    }
    ranks[2] = ranks[2].clone().set("TUTTI_SECRET", "another secret of that length");
    let outcomes = outcome_of_all(start(ranks));
    let (status, text, after) = outcomes[2].error();
    assert_eq!(status, "Mismatch", "{text}");
    assert!(text.contains("do not know the same secret") && after < Duration::from_secs(3), "{text}");
    for outcome in &outcomes[..2] {
        let (status, text, _) = outcome.error();
        assert_eq!(status, "Timeout", "{text}");
        assert!(text.starts_with("rank 2 of 3 did not arrive within 3 s; 1 connection was refused"), "{text}");
        assert!(text.contains("do not know the same secret"), "{text}");
    }
}

#[test]
fn no_secret_is_an_error_that_says_what_to_set_unless_it_is_allowed() {
    let mut open = two_hosts(2, 1);
    for rank in &mut open {
        rank.0.remove("TUTTI_SECRET");
    }
    for outcome in outcome_of_all(start(open.clone())) {
        let (status, text, _) = outcome.error();
        assert_eq!(status, "InvalidUsage", "{text}");
        assert!(text.contains("TUTTI_SECRET") && text.contains("TUTTI_ALLOW_UNAUTHENTICATED"), "{text}");
    }
    for outcome in outcome_of_all(start(open.into_iter().map(|rank| rank.set("TUTTI_ALLOW_UNAUTHENTICATED", 1)))) {
        outcome.world();
    }
}

#[test]
fn who_has_a_secret_and_who_has_none_do_not_meet() {
    let mut ranks = two_hosts(2, 1);
    ranks[1].0.remove("TUTTI_SECRET");
    ranks[1] = ranks[1].clone().set("TUTTI_ALLOW_UNAUTHENTICATED", 1);
    ranks[0] = ranks[0].clone().set("TEST_TIMEOUT_MS", 2000);
    let outcomes = outcome_of_all(start(ranks));
    assert!(outcomes[1].error().1.contains("demands a secret"), "{outcomes:?}");
    assert_eq!(outcomes[0].error().0, "Timeout");
}

#[test]
fn late_ranks_of_another_host_are_named() {
    let ranks = two_hosts(4, 2).into_iter().map(|rank| rank.set("TEST_TIMEOUT_MS", 1500)).take(3);
    for outcome in outcome_of_all(start(ranks)) {
        let (status, text, _) = outcome.error();
        assert_eq!((status, text), ("Timeout", "rank 3 of 4 did not arrive within 1.5 s"));
    }
}

#[test]
fn strangers_on_the_network_neither_join_nor_stall_nor_crash() {
    for mode in ["TUTTI_SECRET", "TUTTI_ALLOW_UNAUTHENTICATED"] {
        let mut ranks = two_hosts(3, 1);
        if mode != "TUTTI_SECRET" {
            for rank in &mut ranks {
                rank.0.remove("TUTTI_SECRET");
                *rank = rank.clone().set(mode, 1);
            }
        }
        let address = ranks[0].0["TUTTI_ADDR"].clone();
        let rank_0 = ranks[0].start();
        let deadline = Instant::now() + WATCHDOG;
        let connect = || loop {
            match TcpStream::connect(&address) {
                Ok(stream) => return stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        };
        let silent: Vec<TcpStream> = (0..200).map(|_| connect()).collect();
        let mut noise = Noise::new(2);
        for _ in 0..400 {
            let _ = connect().write_all(&noise.message());
        }
        let outcomes = outcome_of_all([rank_0].into_iter().chain(start(ranks.drain(1..))).collect());
        assert!(outcomes.iter().all(|outcome| outcome.world().0 == outcomes[0].world().0));
        drop(silent);
    }
}

#[test]
fn a_unique_id_with_an_address_brings_hosts_together() {
    let mut maker = Environment::default()
        .set("TEST_ID", "make")
        .set("RANK", 0)
        .set("WORLD_SIZE", 3)
        .set("TUTTI_ADDR", "127.0.0.1:0")
        .set("TUTTI_HOST_ID", "one")
        .start();
    let id = maker.await_log("the id is ");
    let id = id.split_whitespace().last().unwrap();
    let others = [(1, "one"), (2, "two")].map(|(rank, host)| {
        Environment::default().set("TEST_ID", id).set("RANK", rank).set("WORLD_SIZE", 3).set("TUTTI_HOST_ID", host)
    });
    let outcomes = outcome_of_all([maker].into_iter().chain(start(others)).collect());
    let links: Vec<&str> = outcomes.iter().map(|outcome| outcome.world().1).collect();
    assert_eq!(links, ["-LR", "L-R", "RR-"]);
}

#[test]
fn a_unique_id_without_an_address_is_refused_on_another_host() {
    let id = unique_id::create().unwrap();
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let other =
        Environment::default().set("TEST_ID", id).set("RANK", 1).set("WORLD_SIZE", 2).set("TUTTI_HOST_ID", "far");
    let outcome = other.start().outcome();
    let (status, text, _) = outcome.error();
    assert_eq!(status, "InvalidUsage", "{text}");
    assert!(text.contains("another host") && text.contains("TUTTI_ADDR"), "{text}");
}

// ------------------------------------------------------------------------------------------ the caller's all-gather

/// An all-gather between threads.
fn all_gather_between(size: u32) -> Vec<AllGather> {
    let shared = Arc::new((Mutex::new(vec![None; size as usize]), Condvar::new()));
    let of = |rank: u32| -> AllGather {
        let shared = shared.clone();
        Box::new(move |mine: &[u8], asked: u32| {
            assert_eq!(asked, size);
            let (records, changed) = &*shared;
            let mut records = records.lock().unwrap();
            records[rank as usize] = Some(mine.to_vec());
            changed.notify_all();
            while records.iter().any(Option::is_none) {
                let (more, waited) = changed.wait_timeout(records, WATCHDOG).unwrap();
                assert!(!waited.timed_out());
                records = more;
            }
            Ok(records.iter().flatten().flatten().copied().collect())
        })
    };
    (0..size).map(of).collect()
}

fn join_with(all_gather: AllGather, size: u32, rank: u32) -> Result<Mesh, Error> {
    bootstrap::join(&WorldOptions {
        size_and_rank: Some((size, rank)),
        all_gather: Some(all_gather),
        ..options(20_000)
    })
}

#[test]
fn ranks_meet_by_the_all_gather_of_their_caller() {
    let all_gathers = Mutex::new(all_gather_between(3).into_iter().map(Some).collect::<Vec<_>>());
    let meshes = on_threads(0..3, |rank| {
        let all_gather = all_gathers.lock().unwrap()[rank as usize].take().unwrap();
        let mesh = join_with(all_gather, 3, rank).unwrap();
        exercise(&mesh);
        mesh
    });
    assert!(meshes.iter().all(|mesh| mesh.uid == meshes[0].uid));
}

#[test]
fn an_all_gather_that_fails_or_lies_is_an_error() {
    for rank in 0..2 {
        let failing: AllGather = Box::new(|_, _| Err(Error::usage("no network today")));
        assert!(join_with(failing, 2, rank).unwrap_err().to_string().contains("no network today"));
        let short: AllGather = Box::new(|mine, _| Ok(mine.to_vec()));
        assert!(join_with(short, 2, rank).unwrap_err().to_string().contains("all_gather"));
        let echo: AllGather = Box::new(|mine, size| Ok(mine.repeat(size as usize)));
        assert!(join_with(echo, 2, rank).unwrap_err().to_string().contains("all_gather"));
        let zeros: AllGather = Box::new(|mine, size| Ok(vec![0; mine.len() * size as usize]));
        assert!(join_with(zeros, 2, rank).unwrap_err().to_string().contains("all_gather"));
    }
}
