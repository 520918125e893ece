//! Which communicator serves which call: agreed by all ranks once, frozen in a plan, and explained on demand.
//!
//! * this page — the list of communicators, and the votes by which a group agrees on what it has;
//! * [`plan`] — the plan: a table that can be looked up, compared and printed;
//! * `table` — rows that a user puts in the place of the plan's defaults;
//! * [`explain`] — the plan in words.
//!
//! Nothing else chooses. A communicator is used only if every rank can use it and all managed to make it.

mod explain;
mod plan;
mod table;

use std::{sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};

pub use explain::Format;
pub use plan::{Candidate, Choice, Plan, Standing};

use crate::{
    bootstrap::{Members, session::Session},
    communicator::{Algorithm, Capabilities, Communicator, Provider, Row},
    config::{self, Selection},
    cuda,
    dtype::COLLECTIVES,
    error::{Error, Result, Status},
    shm::Shm,
    sockets::Sockets,
};

/// The communicators, in the order of preference. Adding one is a line here and a folder of its own.
const PROVIDERS: [&dyn Provider; 5] = [&cuda::Push, &cuda::Pull, &cuda::Staged, &Shm, &Sockets];

/// Names that options may mention although this build does not have them.
const FORESEEN: [&str; 4] = ["nccl", "multicast", "quantised", "mpi"];

/// What a group decides by; equal on all ranks, or it is not made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Which communicators may be made.
    pub communicators: Selection,
    /// Which of those may serve all_reduce: `TUTTI_ALL_REDUCE`.
    pub all_reduce: Selection,
    /// Whether only those may serve that give the same bits in every run.
    pub deterministic: bool,
    /// The rows of `TUTTI_PLAN`.
    overrides: Vec<table::Override>,
}

impl Policy {
    /// The policy from a group's options and this process's environment.
    pub fn new(communicators: &Selection, flags: u32, plan: Option<&str>) -> Result<Self> {
        let all_reduce = match config::variable("TUTTI_ALL_REDUCE") {
            Some(text) => {
                Selection::parse(&text).map_err(|error| Error::invalid(format_args!("TUTTI_ALL_REDUCE: {error}")))?
            }
            None => Selection::All,
        };
        for name in communicators.names().iter().chain(all_reduce.names()) {
            let known = PROVIDERS.iter().any(|provider| provider.name() == name) || FORESEEN.contains(&name.as_str());
            if !known {
                let names: Vec<_> = PROVIDERS.iter().map(|provider| provider.name()).chain(FORESEEN).collect();
                return Err(Error::invalid(format_args!(
                    "there is no communicator {name:?}; there are {}",
                    names.join(", ")
                )));
            }
        }
        Ok(Policy {
            communicators: communicators.clone(),
            all_reduce,
            deterministic: flags & config::FLAG_DETERMINISTIC != 0,
            overrides: overrides(plan)?,
        })
    }

    /// The same for the CPU sibling of a CUDA group, which takes whatever serves host memory.
    pub fn for_host_memory(&self) -> Policy {
        Policy { communicators: Selection::All, all_reduce: Selection::All, ..self.clone() }
    }

    /// The rows of `TUTTI_PLAN` as a text that is equal on ranks where they are.
    pub fn overrides(&self) -> String {
        table::render(&self.overrides)
    }
}

/// The algorithms of a communicator, for whoever writes rows of a plan.
pub fn algorithms(communicator: &str) -> &'static [Algorithm] {
    PROVIDERS.iter().find(|provider| provider.name() == communicator).map_or(&[], |provider| provider.algorithms())
}

/// The rows of the option, or else those in the file that `TUTTI_PLAN` names.
fn overrides(plan: Option<&str>) -> Result<Vec<table::Override>> {
    let known: Vec<_> = PROVIDERS.iter().map(|provider| (provider.name(), provider.algorithms())).collect();
    if let Some(text) = plan {
        return table::parse(text, &known).map_err(|error| Error::invalid(format_args!("plan: {error}")));
    }
    let Some(path) = config::variable("TUTTI_PLAN") else { return Ok(Vec::new()) };
    let wrong = |why: String| Error::invalid(format_args!("TUTTI_PLAN: {path}: {why}"));
    let text = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
    table::parse(&text, &known).map_err(|error| wrong(error.to_string()))
}

/// What one rank says before the group agrees.
#[derive(Serialize, Deserialize)]
struct Ballot {
    probes: Vec<Result<Offer, String>>,
}

/// What a communicator could do, and in which way for which size.
#[derive(Serialize, Deserialize)]
struct Offer {
    capabilities: Capabilities,
    /// By the numbers of the collectives.
    rows: Vec<Vec<Row>>,
    sources: Vec<String>,
}

impl Offer {
    fn of(provider: &dyn Provider, members: &Members) -> Result<Self, String> {
        let capabilities = provider.probe(members)?;
        let rows = COLLECTIVES.map(|collective| provider.rows(members, collective)).to_vec();
        Ok(Offer { capabilities, rows, sources: provider.sources(members) })
    }
}

/// The communicators for the kind of memory that a group's buffers are.
fn providers(members: &Members) -> Vec<&'static dyn Provider> {
    PROVIDERS.into_iter().filter(|provider| provider.is_for_devices() == members.device().is_some()).collect()
}

/// A group's communicators, one for each candidate of its plan that is there.
pub type Communicators = Vec<Option<Box<dyn Communicator>>>;

/// Agrees with all members on a plan and makes its communicators: every rank says what it could do, what all can do
/// is made, and what any rank failed to make is dropped on all.
pub async fn agree(members: &Arc<Members>, policy: Policy, deadline: Option<Instant>) -> Result<(Plan, Communicators)> {
    let mut session = members.session(deadline, format!("agreement of group {:?}", members.name()));
    match agree_in(&mut session, members, policy, deadline).await {
        Ok(agreed) => session.finish().await.map(|()| agreed),
        Err(error) => {
            session.give_up(&error);
            Err(error)
        }
    }
}

async fn agree_in(
    session: &mut Session,
    members: &Arc<Members>,
    policy: Policy,
    deadline: Option<Instant>,
) -> Result<(Plan, Communicators)> {
    let providers = providers(members);
    let probes: Vec<_> = providers.iter().map(|provider| Offer::of(*provider, members)).collect();
    let mine = postcard::to_allocvec(&Ballot { probes }).map_err(|e| Error::Internal(format!("ballot: {e}")))?;
    let said = session.all_gather(&mine, None).await?;
    let mut ballots = Vec::with_capacity(said.len());
    for (rank, message) in said.iter().enumerate() {
        let ballot: Ballot = postcard::from_bytes(&message.body)
            .ok()
            .filter(|ballot: &Ballot| ballot.probes.len() == providers.len())
            .ok_or_else(|| garbled(members, rank as u32))?;
        ballots.push(ballot);
    }
    let mut candidates = Vec::with_capacity(providers.len());
    let mut communicators: Communicators = Vec::with_capacity(providers.len());
    for (index, provider) in providers.iter().enumerate() {
        let standing = match policy.communicators.allows(provider.name()) {
            false => Standing::Excluded,
            true => together(&ballots, index),
        };
        let (standing, communicator) = match standing {
            Standing::Ready(capabilities) => {
                let made = provider.create(members.clone(), deadline).await;
                let trouble = made.as_ref().err().map(Error::to_string).unwrap_or_default();
                let said = session.all_gather(trouble.as_bytes(), None).await?;
                let failed = said.iter().enumerate().find(|(_, message)| !message.body.is_empty());
                match (failed, made) {
                    (None, Ok(made)) => (Standing::Ready(capabilities), Some(made)),
                    (Some((rank, message)), _) => {
                        let reason = format!("rank {rank}: {}", String::from_utf8_lossy(&message.body));
                        log::warn!(target: "tutti::dispatch", "group {:?} does without {}: {reason}", members.name(), provider.name());
                        (Standing::Unavailable(reason), None)
                    }
                    (None, Err(error)) => return Err(error),
                }
            }
            other => (other, None),
        };
        let first = ballots.first().and_then(|ballot| ballot.probes[index].as_ref().ok());
        let (rows, sources) = first.map(|first| (first.rows.clone(), first.sources.clone())).unwrap_or_default();
        candidates.push(Candidate {
            name: provider.name(),
            algorithms: provider.algorithms(),
            rows,
            sources,
            standing,
            enabled: true,
        });
        communicators.push(communicator);
    }
    let plan = Plan::new(members.size(), members.on_one_host(), policy, candidates)?;
    let said = session.all_gather(&plan.digest().to_le_bytes(), None).await?;
    if let Some(rank) = said.iter().position(|message| message.body != plan.digest().to_le_bytes()) {
        return Err(Error::failed(
            Status::Mismatch,
            Some(rank as u32),
            format_args!("group {:?}: rank {rank} made another plan than rank {}", members.name(), members.rank()),
        ));
    }
    Ok((plan, communicators))
}

/// The AND over all ranks' probes of one communicator.
fn together(ballots: &[Ballot], index: usize) -> Standing {
    let mut agreed: Option<Capabilities> = None;
    for (rank, ballot) in ballots.iter().enumerate() {
        match &ballot.probes[index] {
            Ok(Offer { capabilities: theirs, .. }) => {
                agreed = Some(agreed.map_or(*theirs, |agreed| agreed.and(theirs)));
            }
            Err(reason) => return Standing::Unavailable(format!("rank {rank}: {reason}")),
        }
    }
    agreed.map_or_else(|| Standing::Unavailable("no rank".into()), Standing::Ready)
}

fn garbled(members: &Members, rank: u32) -> Error {
    Error::failed(
        Status::Mismatch,
        Some(rank),
        format_args!("group {:?}: rank {rank} runs another version of this library", members.name()),
    )
}
