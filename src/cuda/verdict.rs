//! Whether devices can reach each other's memory: decided by trying.
//!
//! A driver that says yes may be wrong: under some hypervisors and bridges, writes to a peer arrive late, elsewhere or
//! not at all. So for every two devices a **helper** process makes the real kernels write and read both ways, and looks
//! at what arrived. It is a program of its own, found beside the library, because a test that goes wrong can leave
//! its process without a usable context; and it has a deadline. What was found is kept in a small file for each
//! driver and pair of devices. A verdict can only forbid: whatever else forbids still does.

use std::{
    ffi::CStr,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    task::Poll,
    time::{Duration, Instant},
};

use super::driver::{Driver, Uuid};
use crate::config;

/// The helper's file name.
const HELPER: &str = "tutti-peer-check";
/// How long the helper may take: it starts two contexts and compiles the kernels, where no cache has them.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this process is the helper, which must not ask itself.
static TRYING: AtomicBool = AtomicBool::new(false);

/// Whether the user forbids it.
pub(super) fn is_forbidden() -> bool {
    config::variable("NCCL_P2P_DISABLE").is_some_and(|value| value != "0")
}

/// Says nothing if every two of the devices can reach each other's memory, else which cannot, and why.
pub(super) async fn on(devices: &[Uuid], deadline: Option<Instant>) -> Result<(), String> {
    if is_trying() {
        return Ok(());
    }
    let driver = Driver::get()?.version();
    let cache = cache();
    for (index, one) in devices.iter().enumerate() {
        for other in &devices[index + 1..] {
            let file = cache.as_ref().map(|folder| folder.join(format!("{driver}-{one}-{other}")));
            let known = file.as_ref().and_then(|file| fs::read_to_string(file).ok());
            let verdict = match known.as_deref().map(str::trim) {
                Some("works") => Ok(()),
                Some(refused) if refused.starts_with("refused: ") => Err(Refusal::Sure(refused[9..].to_owned())),
                _ => ask(*one, *other, deadline).await,
            };
            if let Some(file) = &file
                && known.is_none()
            {
                match &verdict {
                    Ok(()) => keep(file, "works"),
                    Err(Refusal::Sure(why)) => keep(file, &format!("refused: {why}")),
                    Err(Refusal::Unknown(_)) => {}
                }
            }
            if let Err(Refusal::Sure(why) | Refusal::Unknown(why)) = verdict {
                return Err(format!("{one} and {other} do not reach each other's memory: {why}"));
            }
        }
    }
    Ok(())
}

/// Says that this process is the helper: it believes that all devices can, and finds out.
pub fn begin_trying() {
    TRYING.store(true, Ordering::Relaxed);
}

/// Whether it is.
pub(super) fn is_trying() -> bool {
    TRYING.load(Ordering::Relaxed)
}

/// Why not.
enum Refusal {
    /// It was tried.
    Sure(String),
    /// It could not be tried, so this is worth no file.
    Unknown(String),
}

/// Runs the helper.
async fn ask(one: Uuid, other: Uuid, deadline: Option<Instant>) -> Result<(), Refusal> {
    let helper = find_helper().map_err(Refusal::Unknown)?;
    let until = Instant::now() + PATIENCE;
    let until = deadline.map_or(until, |deadline| deadline.min(until));
    log::info!(target: "tutti::cuda", "trying whether {one} and {other} reach each other's memory");
    let child = Command::new(&helper)
        .args([one.to_string(), other.to_string()])
        // The helper sees all devices of the container, whichever this rank was given.
        .env_remove("CUDA_VISIBLE_DEVICES")
        .env_remove("TUTTI_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Refusal::Unknown(format!("{} does not start: {error}", helper.display())))?;
    let mut child = Running(child);
    let ended = std::future::poll_fn(|_| match child.0.try_wait() {
        Ok(Some(status)) => Poll::Ready(Some(status.code())),
        Ok(None) if Instant::now() < until => Poll::Pending,
        _ => Poll::Ready(None),
    })
    .await;
    let mut said = String::new();
    match ended {
        None => return Err(Refusal::Unknown(format!("{HELPER} did not end within {} s", PATIENCE.as_secs()))),
        Some(Some(0)) => return Ok(()),
        Some(_) => {
            if let Some(out) = child.0.stdout.take() {
                let _ = out.take(4096).read_to_string(&mut said);
            }
        }
    }
    match (ended.flatten(), said.trim()) {
        (Some(1), why) if !why.is_empty() => Err(Refusal::Sure(why.to_owned())),
        (_, why) => Err(Refusal::Unknown(format!("{HELPER} failed {why}"))),
    }
}

/// A child that does not outlive the one who waits for it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// The helper: where `TUTTI_PEER_CHECK` says, else beside the library, else where the package puts programs.
fn find_helper() -> Result<PathBuf, String> {
    if let Some(path) = config::variable("TUTTI_PEER_CHECK") {
        return Ok(path.into());
    }
    let folder = folder_of_library().unwrap_or_default();
    let places = [folder.join(HELPER), folder.join("../bin").join(HELPER)];
    places.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        format!(
            "{HELPER}, which tries it, is neither beside the library nor in the bin folder next to it (looked in {}); \
             install it, or name it in TUTTI_PEER_CHECK",
            folder.display()
        )
    })
}

/// The folder of the file that this code was loaded from.
fn folder_of_library() -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: `info` is writable, and any address may be asked for.
    let found = unsafe {
        libc::dladdr((folder_of_library as fn() -> Option<PathBuf>) as *const libc::c_void, info.as_mut_ptr())
    };
    // SAFETY: all bytes zero is a value of the struct, and the linker has filled it if it found something.
    let info = unsafe { info.assume_init() };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the linker's text ends with NUL and lives as long as the library is loaded, which is for good.
    let name = unsafe { CStr::from_ptr(info.dli_fname) }.to_string_lossy().into_owned();
    fs::canonicalize(name).ok()?.parent().map(Path::to_owned)
}

/// Where verdicts are kept; `None` where there is no home.
fn cache() -> Option<PathBuf> {
    let base = config::variable("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| config::variable("HOME").map(|home| Path::new(&home).join(".cache")))?;
    Some(base.join("tutti/peers"))
}

/// Writes a verdict; another process may do the same, and either file is whole.
fn keep(file: &Path, verdict: &str) {
    let Some(folder) = file.parent() else { return };
    let fresh = file.with_extension(format!("new-{}", std::process::id()));
    let written =
        fs::create_dir_all(folder).and_then(|()| fs::write(&fresh, verdict)).and_then(|()| fs::rename(&fresh, file));
    if let Err(error) = written {
        log::debug!(target: "tutti::cuda", "the verdict is not kept in {}: {error}", file.display());
    }
}
