//! Whether devices can reach each other's memory: decided by trying.
//!
//! A driver that says yes may be wrong: under some hypervisors and bridges, writes to a peer arrive late, elsewhere or
//! not at all. So for every two devices a **helper** process makes the real kernels write and read both ways, and looks
//! at what arrived. It is a program of its own, found beside the library, because a test that goes wrong can leave
//! its process without a usable context; and it has a deadline. What was found is kept in a small file for each
//! library, driver and pair of devices. A verdict can only forbid: whatever else forbids still does.
//!
//! Only what the driver says and what memory holds is found: a device that is busy, full, or not for this process today
//! says nothing about its way to another. Then peer access is off in this group, which says why, and nothing is kept.

use std::{
    ffi::{CStr, OsString},
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    ptr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    task::Poll,
    time::{Duration, Instant},
};

use super::{
    device::Device,
    driver::{Driver, Uuid},
    memory::{Memory, Way},
};
use crate::{config, error::Result as Outcome};

/// The helper's file name.
const HELPER: &str = "tutti-peer-check";
/// What the helper's exit code says: the devices do not reach each other's memory.
pub const REFUSED: u8 = 1;
/// What the helper's exit code says: it could not find out.
pub const UNKNOWN: u8 = 3;
/// How long the helper may take: it starts two contexts and compiles the kernels, where no cache has them.
const PATIENCE: Duration = Duration::from_secs(60);

/// The one setting of ours that the helper needs: which driver. All others would make its groups other than it wants them.
const KEPT: &str = "TUTTI_CUDA_LIBRARY";
/// Settings of others that it must not have. It uses all devices of the container, whichever this rank was given; and it
/// launches kernels that wait for each other from one thread.
const OTHERS: [&str; 3] = ["CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "NCCL_P2P_DISABLE"];
/// Where the kernel module says which build of the driver it is.
const BUILD: &str = "/sys/module/nvidia/version";

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
    let (version, build) = (Driver::get()?.version(), fs::read_to_string(BUILD).unwrap_or_default());
    let cache = cache();
    for (index, one) in devices.iter().enumerate() {
        for other in &devices[index + 1..] {
            let file = cache.as_ref().map(|folder| folder.join(file_name(version, &build, *one, *other)));
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

/// Whether what `from` writes into memory of `to` is there, and what it reads there is what is there: by plain copies,
/// which wait for nobody, so that a wrong answer is never a late one. An error says that it could not be tried.
pub fn copies_arrive(from: &'static Device, to: &'static Device) -> Outcome<bool> {
    // As processes do it, as far as that can be done in one.
    let way = if from.exports && to.exports { Way::Descriptors } else { Way::Plain };
    let (there, ticket, descriptor) = Memory::make(to, BYTES as u64, way)?;
    let seen = Memory::reach(from, &ticket, descriptor.as_ref(), way, way == Way::Plain)?;
    let (own, ..) = Memory::make(from, BYTES as u64, Way::Plain)?;
    let pattern = |seed: usize| (0..BYTES).map(|at| (at * 37 + at / 241 + seed) as u8).collect::<Vec<u8>>();
    from.write(own.address(), &pattern(1))?;
    copy(from, seen.address(), own.address())?;
    if read(to, there.address())? != pattern(1) {
        return Ok(false);
    }
    to.write(there.address(), &pattern(2))?;
    copy(from, own.address(), seen.address())?;
    Ok(read(from, own.address())? == pattern(2))
}

/// Bytes that are copied.
const BYTES: usize = 4096;

fn copy(device: &Device, to: u64, from: u64) -> Outcome<()> {
    let _entered = device.enter()?;
    // SAFETY: both ends are memory that this device reaches, and as long as that.
    unsafe {
        let (driver, stream) = (device.driver, ptr::null_mut());
        driver.memcpy_async(to, from, BYTES, stream).and_then(|()| driver.stream_synchronize(stream))
    }
    .map_err(|error| error.during(format_args!("a copy by {device}")))
}

fn read(device: &Device, from: u64) -> Outcome<Vec<u8>> {
    let mut content = vec![0; BYTES];
    copy(device, content.as_mut_ptr() as u64, from)?;
    Ok(content)
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
    let since = Instant::now();
    let until = deadline.map_or(since + PATIENCE, |deadline| deadline.min(since + PATIENCE));
    log::info!(target: "tutti::cuda", "trying whether {one} and {other} reach each other's memory");
    let mut command = Command::new(&helper);
    let ours = std::env::vars_os().map(|(name, _)| name).filter(|name| name.as_encoded_bytes().starts_with(b"TUTTI_"));
    for name in ours.filter(|name| name != KEPT).chain(OTHERS.map(OsString::from)) {
        command.env_remove(name);
    }
    let child = command
        .args([one.to_string(), other.to_string()])
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
        None => {
            let waited = since.elapsed().as_secs_f64();
            return Err(Refusal::Unknown(format!("{HELPER} did not end within {waited:.0} s")));
        }
        Some(Some(0)) => return Ok(()),
        Some(_) => {
            if let Some(out) = child.0.stdout.take() {
                let _ = out.take(4096).read_to_string(&mut said);
            }
        }
    }
    match (ended.flatten(), said.trim()) {
        (Some(code), why) if code == i32::from(REFUSED) && !why.is_empty() => Err(Refusal::Sure(why.to_owned())),
        (Some(code), why) if code == i32::from(UNKNOWN) => {
            Err(Refusal::Unknown(format!("{HELPER} could not find out: {why}")))
        }
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

/// The file of a verdict. The builds of one CUDA version differ in what they allow, and our own versions in what they try.
fn file_name(version: i32, build: &str, one: Uuid, other: Uuid) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let build: String = build.trim().chars().filter(plain).collect();
    let build = if build.is_empty() { "unknown" } else { &build };
    format!("{}-{version}-{build}-{one}-{other}", env!("CARGO_PKG_VERSION"))
}

/// Writes a verdict; another process or thread may do the same, and every file is whole.
fn keep(file: &Path, verdict: &str) {
    static WRITTEN: AtomicU32 = AtomicU32::new(0);
    let Some(folder) = file.parent() else { return };
    let mut fresh = file.as_os_str().to_owned();
    fresh.push(format!(".new-{}-{}", std::process::id(), WRITTEN.fetch_add(1, Ordering::Relaxed)));
    let fresh = PathBuf::from(fresh);
    let written =
        fs::create_dir_all(folder).and_then(|()| fs::write(&fresh, verdict)).and_then(|()| fs::rename(&fresh, file));
    if let Err(error) = written {
        log::debug!(target: "tutti::cuda", "the verdict is not kept in {}: {error}", file.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_build_of_the_driver_has_verdicts_of_its_own() {
        let devices = [Uuid([1; 16]), Uuid([2; 16])];
        let name = |version, build| file_name(version, build, devices[0], devices[1]);
        let names = [name(12020, "535.104.05\n"), name(12020, "535.261.03\n"), name(12020, ""), name(12040, "")];
        for (index, name) in names.iter().enumerate() {
            assert!(names[..index].iter().all(|other| other != name), "{names:?}");
            assert!(name.starts_with(&format!("{}-120", env!("CARGO_PKG_VERSION"))), "{name}");
            assert!(name.contains(&devices[0].to_string()) && name.ends_with(&devices[1].to_string()), "{name}");
        }
        assert!(names[0].contains("-535.104.05-"), "{}", names[0]);
        assert!(!name(12020, "../../up").contains('/'));
    }
}
