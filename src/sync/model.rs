//! How a model is run, and how it is shown to be able to fail.
//!
//! A model is a small world of the real protocol code that loom drives through every interleaving, and through every
//! value that a load may see, within a bound on preemptions. [`prove`] explores it; then, in processes of their own,
//! it explores it again with one order weakened to relaxed (a fence: gone) at a time, for every line that asked for
//! one, and with each bug that the model knows how to plant; all of these must fail. So no order is stronger than
//! what the models can tell, and no model is blind.

use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

pub(crate) use super::checked::watch;
use super::checked::{self, WEAKEN};

/// The bug to plant in this process.
const PLANT: &str = "TUTTI_MODEL_PLANT";
/// Steps of one execution; more means that some loop does not end.
const MOST_BRANCHES: usize = 10_000;
/// An exploration that takes longer is no test; all take seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// A model.
pub(crate) struct Model {
    /// The test that runs it, as `module_path!()` and its name.
    pub(crate) test: (&'static str, &'static str),
    /// How often loom may interrupt a thread that could go on.
    pub(crate) preemptions: usize,
    /// Bugs that the body plants when told, each of which must be noticed.
    pub(crate) bugs: &'static [&'static str],
    /// Beginnings of lines whose order the model cannot miss, each with the reason told beside it.
    pub(crate) spare: &'static [&'static str],
}

/// Explores `body`, which is told which bug to plant (none: ""), and all its failures.
pub(crate) fn prove(model: Model, body: fn(&'static str)) {
    let planted = std::env::var(PLANT).ok();
    let planted = model.bugs.iter().copied().find(|bug| Some(*bug) == planted.as_deref()).unwrap_or_default();
    let executions = Arc::new(AtomicUsize::new(0));
    let counted = executions.clone();
    let began = Instant::now();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(model.preemptions);
    builder.max_branches = MOST_BRANCHES;
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        checked::forget();
        body(planted);
    });
    println!("{}: {} executions in {:.1?}", model.test.1, executions.load(Ordering::Relaxed), began.elapsed());
    if std::env::var_os(PLANT).is_some() || std::env::var_os(WEAKEN).is_some() {
        return;
    }
    for bug in model.bugs {
        must_fail(&model, PLANT, bug, bug);
    }
    for (file, line) in checked::sites() {
        let source = std::fs::read_to_string(file).unwrap_or_default();
        let text = source.lines().nth(line as usize - 1).unwrap_or_default().trim();
        if !model.spare.iter().any(|spare| text.starts_with(spare)) {
            must_fail(&model, WEAKEN, &format!("{file}:{line}"), text);
        }
    }
}

/// Runs this test once more, in a process of its own, since a model that fails may take its process down.
fn must_fail(model: &Model, variable: &str, value: &str, what: &str) {
    let (module, name) = model.test;
    let test = format!("{}::{name}", module.split_once("::").map_or("", |(_, path)| path));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &test, "--nocapture"])
        .env(variable, value)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let output = std::thread::scope(|scope| {
        let id = rustix::process::Pid::from_child(&child);
        let (over, watch) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            if watch.recv_timeout(PATIENCE).is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
            }
        });
        let mut text = Vec::new();
        use std::io::Read;
        child.stdout.take().unwrap().read_to_end(&mut text).unwrap();
        child.stderr.take().unwrap().read_to_end(&mut text).unwrap();
        drop(over);
        (child.wait().unwrap(), String::from_utf8_lossy(&text).into_owned())
    });
    let (status, text) = output;
    assert!(text.contains("running 1 test"), "{test} did not run: {text}");
    let reason = text.lines().skip_while(|line| !line.contains("panicked at")).nth(1);
    let Some(reason) = reason.filter(|_| !status.success()) else {
        panic!("{name} did not notice: {what} ({value}); it ended with {status} after {:.1?}\n{text}", began.elapsed());
    };
    println!("  noticed in {:.1?}: {what}: {reason}", began.elapsed());
}
