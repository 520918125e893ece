//! The stage: ranks that are processes, and the test that directs them.
//!
//! A test opens with [`Stage::set`], which takes what every rank does. In the test's own process it returns the
//! stage, from which worlds are launched. A rank is this program again, told to run only that test; there `set` plays
//! the part and ends the process. The two talk by lines of JSON over the rank's standard input and output.
//!
//! Nothing waits for ever: whatever the director waits for has a deadline, and a rank has an alarm that kills it.

use std::{
    io::{BufRead, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, Signal, kill_process},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tutti::{
    communicator::{Call, Descriptor},
    config::{GroupOptions, Selection, Timeout, WorldOptions},
    dispatch::Format,
    dtype::{Collective, DType, Op},
    error::{Error, Result},
    group::Group,
};

use crate::sandbox::{self, Refused};

/// No test may take longer, whatever goes wrong; the longest takes a quarter of it on a busy machine.
const WATCHDOG: Duration = Duration::from_secs(240);
/// The deadline of calls that are not meant to reach it.
pub(crate) const PATIENT: Duration = Duration::from_secs(60);
/// The ways in which ranks hear of each other: by shared memory; by sockets beside a shared board, which carries the
/// headers of calls and failures; by messages alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Way {
    Memory,
    Sockets,
    Messages,
}

pub(crate) const WAYS: [Way; 3] = [Way::Memory, Way::Sockets, Way::Messages];

/// What a line for the director begins with, to tell it from what the test harness prints.
const MARK: &str = "@rank ";

/// Nanoseconds of the clock that all processes of the machine share.
pub(crate) fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Milliseconds between two readings of [`now`].
pub(crate) fn ms(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e6
}

/// The middle one, and the largest.
pub(crate) fn median_and_worst(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[values.len() - 1])
}

// ---------------------------------------------------------------------------------------------------- the ranks

/// One rank, inside its process.
pub(crate) struct Rank {
    pub(crate) rank: u32,
    pub(crate) size: u32,
    /// Which variant of the play is on.
    pub(crate) scene: String,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The number of its status; 0 is success.
    pub(crate) status: i32,
    /// The rank that the failure names.
    pub(crate) rank: Option<u32>,
    pub(crate) text: String,
    /// When it began and when it returned.
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Rank {
    fn from_environment() -> Option<Self> {
        let number = |name: &str| std::env::var(name).unwrap().parse().unwrap();
        let scene = std::env::var("FAULTS_SCENE").ok()?;
        Some(Rank { rank: number("RANK"), size: number("WORLD_SIZE"), scene })
    }

    /// Joins the world; calls of it are patient.
    pub(crate) fn world(&self) -> Arc<Group> {
        self.join().unwrap()
    }

    /// As [`Rank::world`], where that may fail.
    pub(crate) fn join(&self) -> Result<Arc<Group>> {
        let communicators = Selection::parse(&std::env::var("FAULTS_COMMUNICATORS").unwrap())?;
        let group = GroupOptions { timeout: Timeout::After(PATIENT), communicators, ..GroupOptions::default() };
        Group::world(WorldOptions { group, ..WorldOptions::default() })
    }

    /// Tells the director something.
    pub(crate) fn tell(&self, what: impl Serialize) {
        // The harness may have left a line unfinished.
        let line = format!("\n{MARK}{}\n", serde_json::to_string(&what).unwrap());
        let mut out = std::io::stdout().lock();
        out.write_all(line.as_bytes()).unwrap();
        out.flush().unwrap();
    }

    /// Waits for the director's next word. A rank whose director is gone goes, too.
    pub(crate) fn cue(&self) -> String {
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line).unwrap();
        if read == 0 {
            std::process::exit(2);
        }
        line.trim_end().to_owned()
    }
}

/// What a group is made of, and its result.
pub(crate) fn make(group: &Arc<Group>, ranks: &[u32]) -> Result<Arc<Group>> {
    make_within(group, ranks, Timeout::Default)
}

/// As [`make`], with a timeout.
pub(crate) fn make_within(group: &Arc<Group>, ranks: &[u32], timeout: Timeout) -> Result<Arc<Group>> {
    let made = Arc::new(std::sync::Mutex::new(None));
    let place = made.clone();
    let options = GroupOptions { timeout, ..GroupOptions::default() };
    group.create(ranks, options, Box::new(move |group| *place.lock().unwrap() = group))?;
    let group = made.lock().unwrap().take();
    Ok(group.expect("this rank is a member"))
}

/// An all_reduce of `count` numbers whose sum is known, checked.
pub(crate) fn sum(group: &Arc<Group>, count: usize) -> Result<()> {
    sum_within(group, count, Timeout::Default)
}

/// As [`sum`], with a timeout.
pub(crate) fn sum_within(group: &Arc<Group>, count: usize, timeout: Timeout) -> Result<()> {
    let factor = |i: usize| (i % 251 + 1) as i32;
    let send: Vec<i32> = (0..count).map(|i| (group.rank() as i32 + 1) * factor(i)).collect();
    let mut recv = vec![0_i32; count];
    group.run(reduction(&send, &mut recv), timeout)?;
    let all = (group.size() * (group.size() + 1) / 2) as i32;
    assert!(recv.iter().enumerate().all(|(i, value)| *value == all * factor(i)), "a wrong sum");
    Ok(())
}

/// The call that adds up `send` into `recv`.
pub(crate) fn reduction(send: &[i32], recv: &mut [i32]) -> Call {
    let descriptor = all_reduce_of(send.len());
    Call::new(descriptor, send.as_ptr().cast(), recv.as_mut_ptr().cast())
}

pub(crate) fn all_reduce_of(count: usize) -> Descriptor {
    Descriptor {
        collective: Collective::AllReduce,
        dtype: DType::Int32,
        op: Op::Sum,
        root: 0,
        flags: 0,
        count: count as u64,
    }
}

/// What serves a small all_reduce of the group, and why nothing else does.
pub(crate) fn explain(group: &Group) -> String {
    group.explain(&all_reduce_of(2), Format::Text).unwrap()
}

/// Makes a call and notes how it ended.
pub(crate) fn outcome(call: impl FnOnce() -> Result<()>) -> Outcome {
    let from = now();
    let result = call();
    let to = now();
    match result {
        Ok(()) => Outcome { status: 0, rank: None, text: String::new(), from, to },
        Err(error) => {
            let rank = match &error {
                Error::Failed(failure) => failure.rank,
                _ => None,
            };
            Outcome { status: error.status() as i32, rank, text: error.to_string(), from, to }
        }
    }
}

/// Makes a call again and again until it fails.
pub(crate) fn until_failure(mut call: impl FnMut() -> Result<()>) -> Outcome {
    loop {
        let ended = outcome(&mut call);
        if ended.status != 0 {
            return ended;
        }
    }
}

// ------------------------------------------------------------------------------------------------- the director

/// Where worlds of one test are launched.
pub(crate) struct Stage {
    test: String,
}

/// A world to be, until it is launched.
pub(crate) struct Cast<'a> {
    stage: &'a Stage,
    scene: String,
    communicators: &'static str,
    /// Whether a failure is recorded once for all; else each rank has its own words for it.
    one_story: bool,
    prepare: Vec<Preparation<'a>>,
    namespaced: bool,
}

/// What is done to a rank's process before it starts.
type Preparation<'a> = Box<dyn Fn(u32, &mut Command) + 'a>;

/// The ranks of a running world. Dropped, they are killed.
pub(crate) struct World {
    actors: Vec<Actor>,
    one_story: bool,
    deadline: Instant,
}

struct Actor {
    child: Child,
    heard: Vec<u8>,
}

impl Stage {
    /// In the test's process, the stage. In a rank's, plays the part, which must have been cast, and never returns.
    pub(crate) fn set(part: impl FnOnce(&Rank)) -> Stage {
        if let Some(rank) = Rank::from_environment() {
            part(&rank);
            std::process::exit(0);
        }
        Stage { test: std::thread::current().name().expect("tests have threads of their own").to_owned() }
    }

    /// A variant of the play.
    pub(crate) fn scene(&self, scene: &str) -> Cast<'_> {
        Cast {
            stage: self,
            scene: scene.to_owned(),
            communicators: "",
            one_story: true,
            prepare: Vec::new(),
            namespaced: false,
        }
    }

    /// The play over this way.
    pub(crate) fn over(&self, way: Way) -> Cast<'_> {
        let cast = self.scene("");
        match way {
            Way::Memory => cast.choosing("=shm"),
            Way::Sockets => cast.choosing("=sockets"),
            Way::Messages => Cast { one_story: false, ..cast }
                .prepared(|_, command| sandbox::refuse(command, Refused::Always(libc::SYS_memfd_create))),
        }
    }
}

impl<'a> Cast<'a> {
    /// Another variant of it.
    pub(crate) fn playing(mut self, scene: &str) -> Self {
        self.scene = scene.to_owned();
        self
    }

    /// With this choice of communicators.
    pub(crate) fn choosing(mut self, communicators: &'static str) -> Self {
        self.communicators = communicators;
        self
    }

    /// Prepares the process of every rank before it starts.
    pub(crate) fn prepared(mut self, prepare: impl Fn(u32, &mut Command) + 'a) -> Self {
        self.prepare.push(Box::new(prepare));
        self
    }

    /// Puts every rank into a PID namespace of its own.
    pub(crate) fn in_pid_namespaces(mut self) -> Self {
        self.namespaced = true;
        self
    }

    /// Starts the processes.
    pub(crate) fn launch(self, size: u32) -> World {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let key = format!("faults-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let start = |rank: u32| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .args(["--exact", &self.stage.test, "--nocapture", "--test-threads=1"])
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", size.to_string())
                .env("TUTTI_WORLD_KEY", &key)
                .env("FAULTS_SCENE", &self.scene)
                .env("FAULTS_COMMUNICATORS", self.communicators)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            // SAFETY: `alarm` may be called between fork and exec.
            unsafe {
                command.pre_exec(|| {
                    libc::alarm(2 * WATCHDOG.as_secs() as u32);
                    Ok(())
                })
            };
            self.prepare.iter().for_each(|prepare| prepare(rank, &mut command));
            let child = match self.namespaced {
                true => sandbox::spawn_in_pid_namespace(command),
                false => command.spawn(),
            };
            Actor { child: child.unwrap(), heard: Vec::new() }
        };
        World { actors: (0..size).map(start).collect(), one_story: self.one_story, deadline: Instant::now() + WATCHDOG }
    }
}

impl World {
    /// Gives a rank its cue.
    pub(crate) fn cue(&mut self, rank: u32, word: &str) {
        let stdin = self.actors[rank as usize].child.stdin.as_mut().unwrap();
        stdin.write_all(format!("{word}\n").as_bytes()).unwrap();
    }

    /// Gives several ranks the same cue.
    pub(crate) fn cue_all(&mut self, ranks: &[u32], word: &str) {
        ranks.iter().for_each(|rank| self.cue(*rank, word));
    }

    /// What a rank says next.
    pub(crate) fn hear<T: DeserializeOwned>(&mut self, rank: u32) -> T {
        loop {
            let actor = &mut self.actors[rank as usize];
            while let Some(end) = actor.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = actor.heard.drain(..=end).collect();
                if let Some(said) = std::str::from_utf8(&line).unwrap().strip_prefix(MARK) {
                    return serde_json::from_str(said)
                        .unwrap_or_else(|error| panic!("rank {rank} said {said:?}: {error}"));
                }
            }
            let stdout = actor.child.stdout.as_mut().unwrap();
            let left = self.deadline.saturating_duration_since(Instant::now()).try_into().unwrap();
            let ready = poll(&mut [PollFd::new(stdout, PollFlags::IN)], Some(&left)).unwrap();
            assert!(ready > 0, "rank {rank} says nothing");
            let mut bytes = [0; 4096];
            let read = stdout.read(&mut bytes).unwrap();
            assert!(read > 0, "rank {rank} has ended: {:?}", actor.child.wait());
            actor.heard.extend_from_slice(&bytes[..read]);
        }
    }

    /// What each of these ranks says next.
    pub(crate) fn hear_all<T: DeserializeOwned>(&mut self, ranks: &[u32]) -> Vec<T> {
        ranks.iter().map(|rank| self.hear(*rank)).collect()
    }

    /// What each of these ranks says of the end of a call. All name the same failure, this one.
    pub(crate) fn hear_failure(&mut self, ranks: &[u32], status: tutti::error::Status, of: u32) -> Vec<Outcome> {
        let outcomes: Vec<Outcome> = self.hear_all(ranks);
        for outcome in &outcomes {
            assert_eq!((outcome.status, outcome.rank), (status as i32, Some(of)), "{outcome:?}");
            self.is_one_story(outcome, &outcomes[0]);
        }
        outcomes
    }

    /// Two ranks tell of the same failure.
    pub(crate) fn is_one_story(&self, one: &Outcome, other: &Outcome) {
        assert_eq!((one.status, one.rank), (other.status, other.rank), "{one:?} {other:?}");
        assert!(!self.one_story || one.text == other.text, "one failure, one story: {one:?} {other:?}");
    }

    /// Kills a rank, and says when.
    pub(crate) fn kill(&mut self, rank: u32) -> u64 {
        let at = now();
        self.signal(rank, Signal::KILL);
        at
    }

    /// Stops a rank; it has stopped when this returns.
    pub(crate) fn stop(&mut self, rank: u32) -> u64 {
        let at = now();
        self.signal(rank, Signal::STOP);
        let pid = self.pid(rank) as libc::pid_t;
        let mut status = 0;
        // SAFETY: `status` is writable; a stopped child is only looked at, not reaped.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, libc::WUNTRACED) }, pid);
        assert!(libc::WIFSTOPPED(status));
        at
    }

    /// Lets a stopped rank go on.
    pub(crate) fn go_on(&mut self, rank: u32) {
        self.signal(rank, Signal::CONT);
    }

    /// A rank's process, as this process sees it.
    pub(crate) fn pid(&self, rank: u32) -> u32 {
        self.actors[rank as usize].child.id()
    }

    /// How a rank's process ended, when it has.
    pub(crate) fn end(&mut self, rank: u32) -> ExitStatus {
        loop {
            let actor = &mut self.actors[rank as usize];
            if let Some(status) = actor.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < self.deadline, "rank {rank} does not end");
            // Waiting for a child cannot be bounded but by looking again.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// All these ranks played their part to the end.
    pub(crate) fn succeeds(mut self, ranks: &[u32]) {
        for rank in ranks {
            let status = self.end(*rank);
            assert!(status.success(), "rank {rank}: {status}, signal {:?}", status.signal());
        }
    }

    fn signal(&self, rank: u32, signal: Signal) {
        kill_process(Pid::from_raw(self.pid(rank) as i32).unwrap(), signal).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for actor in &mut self.actors {
            let _ = actor.child.kill();
        }
        for actor in &mut self.actors {
            let _ = actor.child.wait();
        }
    }
}
