//! Which world a process belongs to, as its launcher's environment variables tell.
//!
//! Only reads variables, through a function, so that tests need no process environment; binds and connects nothing,
//! MASTER_PORT least of all, which belongs to torchrun. [`Turn`] alone keeps state: how often this process has been
//! in an environment world, because two worlds made one after the other must not meet each other.

use std::{
    collections::HashMap,
    fmt::Display,
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use super::wire::MAX_RANKS;
use crate::error::{Error, Result};

/// Reads a variable; unset and empty are both `None`.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What a launcher calls its variables. Of several names the first that is set counts.
struct Launcher {
    name: &'static str,
    rank: &'static str,
    size: &'static [&'static str],
    /// Ranks on this host.
    local_size: &'static [&'static str],
    /// Hosts.
    nodes: &'static [&'static str],
    /// What must be set too; inside a batch script Slurm sets the rest for a process it did not start as a rank.
    also: Option<&'static str>,
    /// The job; all of a set's names together.
    job: &'static [&'static [&'static str]],
}

/// In the order of precedence.
const LAUNCHERS: [Launcher; 4] = [
    Launcher {
        name: "torchrun",
        rank: "RANK",
        size: &["WORLD_SIZE"],
        local_size: &["LOCAL_WORLD_SIZE"],
        nodes: &[],
        also: None,
        job: &[],
    },
    Launcher {
        name: "Open MPI",
        rank: "OMPI_COMM_WORLD_RANK",
        size: &["OMPI_COMM_WORLD_SIZE"],
        local_size: &["OMPI_COMM_WORLD_LOCAL_SIZE"],
        nodes: &[],
        also: None,
        job: &[&["PMIX_NAMESPACE"], &["OMPI_MCA_ess_base_jobid"], &["OMPI_MCA_orte_ess_jobid"]],
    },
    Launcher {
        name: "MPICH",
        rank: "PMI_RANK",
        size: &["PMI_SIZE"],
        local_size: &["MPI_LOCALNRANKS"],
        nodes: &[],
        also: None,
        job: &[&["PMI_JOBID"], &["PMIX_NAMESPACE"], &["PBS_JOBID"], &["LSB_JOBID"]],
    },
    Launcher {
        name: "Slurm",
        rank: "SLURM_PROCID",
        size: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        local_size: &[],
        nodes: &["SLURM_STEP_NUM_NODES", "SLURM_NNODES"],
        also: Some("SLURM_STEP_ID"),
        job: &[&["SLURM_JOB_ID", "SLURM_STEP_ID"]],
    },
];

/// What the environment says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) rank: u32,
    pub(super) size: u32,
    /// Why the world must have several hosts, where that is known.
    pub(super) hosts: Option<String>,
}

/// This process's rank and the size of its world: `given` (size, rank), or the first launcher's.
pub(super) fn place(lookup: Lookup<'_>, given: Option<(u32, u32)>) -> Result<Place> {
    if let Some((size, rank)) = given {
        check_rank("rank", rank, "size", size)?;
        return Ok(Place { rank, size, hosts: hosts(lookup, size)? });
    }
    for launcher in &LAUNCHERS {
        let size = first(lookup, launcher.size);
        if let (Some(rank), Some((size_name, size))) = (lookup(launcher.rank), size)
            && launcher.also.is_none_or(|also| lookup(also).is_some())
        {
            let (rank, size) = (parse(launcher.rank, &rank)?, parse(size_name, &size)?);
            check_rank(launcher.rank, rank, size_name, size)?;
            return Ok(Place { rank, size, hosts: hosts(lookup, size)? });
        }
    }
    Err(Error::usage(nothing_found(lookup)))
}

/// What all ranks of the world share and no other world on this host has: the job that started them.
pub(super) fn key(lookup: Lookup<'_>) -> Result<String> {
    let restart = lookup("TORCHELASTIC_RESTART_COUNT").unwrap_or_default();
    if let Some(key) = lookup("TUTTI_WORLD_KEY") {
        return Ok(joined(["key", &key, &restart]));
    }
    let by_master = || {
        let port = lookup("MASTER_PORT")?;
        let (address, run) =
            (lookup("MASTER_ADDR").unwrap_or_default(), lookup("TORCHELASTIC_RUN_ID").unwrap_or_default());
        Some(joined(["torchrun", &address, &port, &run, &restart]))
    };
    let by_job =
        || LAUNCHERS.iter().filter(|launcher| is_present(lookup, launcher)).find_map(|launcher| job(lookup, launcher));
    // torchrun's own variables say more than those of the job it runs in, but only the ranks it started have them.
    let torchrun = LAUNCHERS.first().is_some_and(|launcher| is_present(lookup, launcher));
    let key = if torchrun { by_master().or_else(by_job) } else { by_job().or_else(by_master) };
    key.ok_or_else(|| {
        Error::usage(
            "nothing in the environment tells this world from others: set MASTER_ADDR and MASTER_PORT, or TUTTI_WORLD_KEY to \
             any text that all ranks of this world share and no other world has, or pass a unique id",
        )
    })
}

/// Why a world of `size` ranks must have several hosts: its launcher put fewer ranks than that on this one.
fn hosts(lookup: Lookup<'_>, size: u32) -> Result<Option<String>> {
    for launcher in &LAUNCHERS {
        let Some((size_name, text)) = first(lookup, launcher.size) else { continue };
        if lookup(launcher.rank).is_none() || parse::<u32>(size_name, &text)? != size {
            continue;
        }
        if let Some((name, text)) = first(lookup, launcher.local_size)
            && parse::<u32>(name, &text)? < size
        {
            return Ok(Some(format!("{name} is {text}, {size_name} is {size}")));
        }
        if let Some((name, text)) = first(lookup, launcher.nodes)
            && parse::<u32>(name, &text)? > 1
        {
            return Ok(Some(format!("{name} is {text}")));
        }
        return Ok(None);
    }
    Ok(None)
}

fn is_present(lookup: Lookup<'_>, launcher: &Launcher) -> bool {
    lookup(launcher.rank).is_some() && first(lookup, launcher.size).is_some()
}

fn job(lookup: Lookup<'_>, launcher: &Launcher) -> Option<String> {
    launcher.job.iter().find_map(|names| {
        let values: Option<Vec<String>> = names.iter().map(|name| lookup(name)).collect();
        Some(joined(std::iter::once(launcher.name).chain(values?.iter().map(String::as_str))))
    })
}

/// Parts in one text, told apart by a character that no variable can hold.
fn joined<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    parts.into_iter().collect::<Vec<_>>().join("\0")
}

fn first(lookup: Lookup<'_>, names: &[&'static str]) -> Option<(&'static str, String)> {
    names.iter().find_map(|name| Some((*name, lookup(name)?)))
}

fn parse<T: FromStr>(name: &str, text: &str) -> Result<T> {
    text.parse()
        .map_err(|_| Error::invalid(format_args!("{name} is {text:?}, which is not a number of ranks or hosts")))
}

fn check_rank(rank_name: impl Display, rank: u32, size_name: impl Display, size: u32) -> Result<()> {
    if size == 0 || size > MAX_RANKS {
        return Err(Error::invalid(format_args!("{size_name} is {size}; a world has 1 to {MAX_RANKS} ranks")));
    }
    if rank >= size {
        let last = size - 1;
        return Err(Error::invalid(format_args!(
            "{rank_name} is {rank}, but {size_name} is {size}: ranks count from 0 to {last}"
        )));
    }
    Ok(())
}

/// Why there is no world in the environment; a variable without its partner is named.
fn nothing_found(lookup: Lookup<'_>) -> String {
    for launcher in &LAUNCHERS {
        let size_name = launcher.size.last().copied().unwrap_or_default();
        match (lookup(launcher.rank), first(lookup, launcher.size)) {
            (Some(rank), None) => return format!("{} is {rank}, but {size_name} is not set", launcher.rank),
            (None, Some((name, size))) if launcher.also.is_none() => {
                return format!("{name} is {size}, but {} is not set", launcher.rank);
            }
            _ => {}
        }
    }
    "this process was not started by a launcher known here: set RANK and WORLD_SIZE (as torchrun does), start it with \
     mpirun or srun, or pass size and rank"
        .into()
}

/// How often each rank of each environment world has been made by this process.
static MADE: Mutex<Option<HashMap<(String, u32), State>>> = Mutex::new(None);

#[derive(Clone, Copy, Default)]
struct State {
    made: u64,
    busy: bool,
}

/// The right of one thread to make one rank of an environment world; others of the process are refused meanwhile.
#[derive(Debug)]
pub(super) struct Turn {
    key: (String, u32),
    /// How many such worlds this process has made before.
    pub(super) made: u64,
    finished: bool,
}

impl Turn {
    /// Begins to make the world of this key as this rank.
    pub(super) fn begin(key: String, rank: u32) -> Result<Self> {
        let key = (key, rank);
        let mut worlds = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        let state = worlds.get_or_insert_default().entry(key.clone()).or_default();
        if state.busy {
            return Err(Error::usage(format_args!(
                "another thread of this process is making rank {rank} of this world; ranks that are threads need a unique id \
                 or their own size and rank"
            )));
        }
        state.busy = true;
        Ok(Turn { key, made: state.made, finished: false })
    }

    /// The world was made; the next one is another.
    pub(super) fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut worlds = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = worlds.get_or_insert_default().get_mut(&self.key) {
            state.busy = false;
            state.made += u64::from(self.finished);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<'a>(variables: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    const TORCHRUN: [(&str, &str); 7] = [
        ("RANK", "1"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_WORLD_SIZE", "4"),
        ("MASTER_ADDR", "node0"),
        ("MASTER_PORT", "29500"),
        ("TORCHELASTIC_RUN_ID", "none"),
        ("TORCHELASTIC_RESTART_COUNT", "0"),
    ];

    #[test]
    fn torchrun_says_who_and_where_and_a_restart_is_another_world() {
        assert_eq!(place(&with(&TORCHRUN), None).unwrap(), Place { rank: 1, size: 4, hosts: None });
        let mut again = TORCHRUN;
        again[6].1 = "1";
        assert_ne!(key(&with(&TORCHRUN)).unwrap(), key(&with(&again)).unwrap());
        let mut other = TORCHRUN;
        other[4].1 = "29501";
        assert_ne!(key(&with(&TORCHRUN)).unwrap(), key(&with(&other)).unwrap());
    }

    #[test]
    fn every_launcher_is_known() {
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "2"),
            ("OMPI_COMM_WORLD_SIZE", "3"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "3"),
            ("PMIX_NAMESPACE", "job@1"),
        ];
        assert_eq!(place(&with(&open_mpi), None).unwrap(), Place { rank: 2, size: 3, hosts: None });
        assert!(key(&with(&open_mpi)).unwrap().contains("job@1"));
        let mpich = [("PMI_RANK", "0"), ("PMI_SIZE", "2"), ("PMI_JOBID", "77")];
        assert_eq!(place(&with(&mpich), None).unwrap(), Place { rank: 0, size: 2, hosts: None });
        assert!(key(&with(&mpich)).unwrap().contains("77"));
        let slurm = [
            ("SLURM_PROCID", "5"),
            ("SLURM_NTASKS", "6"),
            ("SLURM_JOB_ID", "9"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_NNODES", "2"),
        ];
        let found = place(&with(&slurm), None).unwrap();
        assert_eq!((found.rank, found.size, found.hosts.as_deref()), (5, 6, Some("SLURM_NNODES is 2")));
        assert!(key(&with(&slurm)).is_ok());
    }

    #[test]
    fn a_batch_script_is_not_a_rank_of_slurm() {
        let script = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "6"), ("SLURM_JOB_ID", "9")];
        assert!(place(&with(&script), None).is_err());
    }

    #[test]
    fn fewer_local_ranks_than_ranks_mean_several_hosts() {
        let mut split = TORCHRUN;
        split[2].1 = "2";
        assert_eq!(
            place(&with(&split), None).unwrap().hosts.as_deref(),
            Some("LOCAL_WORLD_SIZE is 2, WORLD_SIZE is 4")
        );
        assert_eq!(place(&with(&split), Some((2, 0))).unwrap().hosts, None, "a world of one host inside a larger job");
    }

    #[test]
    fn wrong_variables_are_named_with_their_values() {
        let text = |variables: &[(&str, &str)]| place(&with(variables), None).unwrap_err().to_string();
        assert_eq!(
            text(&[("RANK", "4"), ("WORLD_SIZE", "4")]),
            "RANK is 4, but WORLD_SIZE is 4: ranks count from 0 to 3"
        );
        assert_eq!(
            text(&[("RANK", "0"), ("WORLD_SIZE", "four")]),
            "WORLD_SIZE is \"four\", which is not a number of ranks or hosts"
        );
        assert_eq!(text(&[("RANK", "0")]), "RANK is 0, but WORLD_SIZE is not set");
        assert_eq!(text(&[("RANK", "0"), ("WORLD_SIZE", "0")]), "WORLD_SIZE is 0; a world has 1 to 65536 ranks");
        assert!(text(&[]).contains("set RANK and WORLD_SIZE"));
        assert!(place(&with(&[]), Some((2, 2))).unwrap_err().to_string().contains("rank is 2, but size is 2"));
    }

    #[test]
    fn without_a_key_the_error_says_what_to_set() {
        let text = key(&with(&[("RANK", "0"), ("WORLD_SIZE", "2")])).unwrap_err().to_string();
        assert!(text.contains("TUTTI_WORLD_KEY") && text.contains("MASTER_PORT"), "{text}");
        assert!(key(&with(&[("TUTTI_WORLD_KEY", "mine")])).is_ok());
    }

    #[test]
    fn a_world_counts_only_when_it_was_made() {
        let turn = || Turn::begin("turns".into(), 3);
        drop(turn().unwrap());
        let first = turn().unwrap();
        assert_eq!(first.made, 0);
        assert!(turn().unwrap_err().to_string().contains("rank 3"));
        first.finish();
        assert_eq!(turn().unwrap().made, 1);
        assert_eq!(Turn::begin("turns".into(), 4).unwrap().made, 0);
    }
}
