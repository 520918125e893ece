//! What a rank's surroundings are: its process, host and cores. Facts, never decisions.

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
}
