//! How much processor time the cgroups of this process leave it, from version 1 and version 2 hierarchies.
//!
//! Only files are read, through a function, so that the tests can show any machine. A limit counts wherever it stands
//! between the process and the root that is visible here; the tightest one wins.

use std::path::{Component, Path, PathBuf};

/// The tightest quota in thousandths of a core; `None` without one, or where nothing can be read.
pub(super) fn millicores(read: &dyn Fn(&Path) -> Option<String>) -> Option<u32> {
    let groups = read(Path::new("/proc/self/cgroup"))?;
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    groups.lines().filter_map(|line| of_group(line, &mounts, read)).min()
}

/// The quota by one line of `/proc/self/cgroup`: `hierarchy:controllers:path`.
fn of_group(line: &str, mounts: &str, read: &dyn Fn(&Path) -> Option<String>) -> Option<u32> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let unified = controllers.is_empty();
    if !unified && !controllers.split(',').any(|controller| controller == "cpu") {
        return None;
    }
    let mount = mounts.lines().filter_map(Mount::parse).find(|mount| mount.carries_cpu(unified))?;
    let mut folder = mount.folder_of(path);
    let mut tightest = None;
    loop {
        let quota = if unified { of_cpu_max(&folder, read) } else { of_cfs(&folder, read) };
        tightest = match (tightest, quota) {
            (Some(one), Some(other)) => Some(u32::min(one, other)),
            (one, other) => one.or(other),
        };
        if folder == mount.point || !folder.pop() || !folder.starts_with(&mount.point) {
            return tightest;
        }
    }
}

/// Version 2: `cpu.max` holds `max` or a quota, then the period, both in microseconds.
fn of_cpu_max(folder: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Option<u32> {
    let text = read(&folder.join("cpu.max"))?;
    let mut fields = text.split_whitespace();
    in_millicores(fields.next()?.parse().ok()?, fields.next()?.parse().ok()?)
}

/// Version 1: two files; a quota of -1 means none.
fn of_cfs(folder: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Option<u32> {
    let number = |name: &str| read(&folder.join(name))?.trim().parse::<u64>().ok();
    in_millicores(number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
}

fn in_millicores(quota: u64, period: u64) -> Option<u32> {
    let millicores = quota.checked_mul(1000)?.checked_div(period)?;
    Some(u32::try_from(millicores).unwrap_or(u32::MAX))
}

/// A line of `/proc/self/mountinfo` (see proc_pid_mountinfo(5)), as far as it matters here.
struct Mount<'a> {
    /// The folder of the hierarchy that is mounted.
    root: PathBuf,
    /// Where.
    point: PathBuf,
    kind: &'a str,
    super_options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let (root, point) = (front.next()?, front.next()?);
        let mut back = back.split(' ');
        let (kind, _, super_options) = (back.next()?, back.next()?, back.next()?);
        Some(Mount { root: unescape(root).into(), point: unescape(point).into(), kind, super_options })
    }

    fn carries_cpu(&self, unified: bool) -> bool {
        match unified {
            true => self.kind == "cgroup2",
            false => self.kind == "cgroup" && self.super_options.split(',').any(|option| option == "cpu"),
        }
    }

    /// Where the group `path` of this hierarchy is seen. A container may see only its own part, mounted at the point.
    fn folder_of(&self, path: &str) -> PathBuf {
        let path = Path::new(path);
        let below = path.strip_prefix(&self.root).unwrap_or(Path::new(""));
        // Above the root of a cgroup namespace a path climbs with `..`: nothing of it is visible here.
        let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        if plain { self.point.join(below) } else { self.point.clone() }
    }
}

/// mountinfo writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &'static [(&'static str, &'static str)]) -> impl Fn(&Path) -> Option<String> {
        move |path| files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned())
    }

    #[test]
    fn the_tightest_quota_above_a_group_counts() {
        let read = machine(&[
            ("/proc/self/cgroup", "0::/pods/one/box\n"),
            (
                "/proc/self/mountinfo",
                "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
            ),
            ("/sys/fs/cgroup/pods/one/box/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/pods/one/cpu.max", "250000 100000\n"),
            ("/sys/fs/cgroup/pods/cpu.max", "800000 100000\n"),
        ]);
        assert_eq!(millicores(&read), Some(2500));
    }

    #[test]
    fn a_container_that_sees_only_its_own_group_finds_its_quota() {
        let read = machine(&[
            ("/proc/self/cgroup", "0::/docker/77aa\n"),
            ("/proc/self/mountinfo", "30 23 0:26 /docker/77aa /sys/fs/cgroup ro - cgroup2 cgroup rw\n"),
            ("/sys/fs/cgroup/cpu.max", "50000 100000\n"),
        ]);
        assert_eq!(millicores(&read), Some(500));
    }

    #[test]
    fn version_one_hierarchies_count_too() {
        let read = machine(&[
            ("/proc/self/cgroup", "4:memory:/a\n3:cpu,cpuacct:/a\n1:name=systemd:/a\n"),
            ("/proc/self/mountinfo", "31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "150000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(millicores(&read), Some(1500));
    }

    #[test]
    fn no_quota_and_no_cgroups_are_no_limit() {
        assert_eq!(millicores(&machine(&[])), None);
        let read = machine(&[
            ("/proc/self/cgroup", "0::/../outside\n"),
            ("/proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
            ("/sys/fs/cgroup/cpu.max", "max 100000\n"),
        ]);
        assert_eq!(millicores(&read), None);
    }
}
