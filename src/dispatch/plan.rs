//! The selection plan: for every kind and size of call, who serves it and how. Data, and the lookup of it.
//!
//! A plan is made from what all ranks know alike, is the same on all of them (its digest is compared), and changes
//! only when all change it together.

use super::{Policy, table::Override};
use crate::{
    communicator::{Algorithm, Capabilities, Descriptor, Row, Way},
    config::Selection,
    dtype::{COLLECTIVES, Collective, DType, OPS, Op, REDUCIBLE},
    error::{Error, Result},
};

/// Whether a group has a communicator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It is made, and all ranks can do this.
    Ready(Capabilities),
    /// Some rank cannot have it; the first one, and why.
    Unavailable(String),
    /// The group's options leave it out.
    Excluded,
}

/// A communicator, as a group knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: &'static str,
    /// How it serves calls.
    pub algorithms: &'static [Algorithm],
    /// Which algorithm is for which size, by the numbers of the collectives.
    pub rows: Vec<Vec<Row>>,
    /// Where the limits of the rows come from; empty where that follows from the algorithms.
    pub sources: Vec<String>,
    /// Whether the group has it.
    pub standing: Standing,
    /// Whether it may be used now; changed by all ranks together.
    pub enabled: bool,
}

/// Who serves a call, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    /// Index of the candidate.
    pub candidate: usize,
    /// In which way.
    pub way: Way,
}

/// Calls whose contribution is at most `up_to` bytes (and above the range before) are served so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Range {
    pub(super) up_to: u64,
    pub(super) choice: Option<Choice>,
}

/// The plan of a group.
#[derive(Clone, Debug)]
pub struct Plan {
    size: u32,
    one_host: bool,
    policy: Policy,
    candidates: Vec<Candidate>,
    /// Distinct lists of ranges; most kinds of call share one.
    lists: Vec<Vec<Range>>,
    /// The list of each kind of call, by [`kind`].
    kinds: Vec<u8>,
    digest: u64,
}

const DTYPES: usize = REDUCIBLE.len() + 1;
const KINDS: usize = COLLECTIVES.len() * DTYPES * OPS.len();

/// Where a kind of call stands in the table. Movement-only types are one kind: nothing is reduced in them.
fn kind(collective: Collective, dtype: DType, op: Op) -> usize {
    let dtype = if dtype.is_reducible() { dtype as usize } else { DTYPES - 1 };
    (collective as usize * DTYPES + dtype) * OPS.len() + op as usize
}

impl Plan {
    /// The plan for a group of `size` with these candidates, in the order of preference. An error if a forced
    /// communicator is not there, or if none is.
    pub fn new(size: u32, one_host: bool, policy: Policy, candidates: Vec<Candidate>) -> Result<Self> {
        let mut plan = Plan { size, one_host, policy, candidates, lists: Vec::new(), kinds: vec![0; KINDS], digest: 0 };
        plan.check_forced()?;
        plan.fill();
        if plan.candidates.iter().all(|candidate| !matches!(candidate.standing, Standing::Ready(_))) {
            return Err(Error::Unsupported(format!("no communicator is left: {}", plan.reasons())));
        }
        Ok(plan)
    }

    /// Who serves this call.
    #[inline]
    pub fn choose(&self, call: &Descriptor) -> Option<Choice> {
        let list = &self.lists[usize::from(self.kinds[kind(call.collective, call.dtype, call.op)])];
        let bytes = call.contribution(self.size);
        list.iter().find(|range| bytes <= range.up_to).and_then(|range| range.choice)
    }

    /// Why nobody serves this call.
    pub fn refusal(&self, call: &Descriptor) -> Error {
        let enabled = self.candidates.iter().any(|c| c.enabled && matches!(c.standing, Standing::Ready(_)));
        let advice = if enabled { "" } else { "; enable one again with tutti_group_set_enabled" };
        Error::Unsupported(format!("nothing serves {call}: {}{advice}", self.reasons()))
    }

    /// Switches a communicator on or off. To be done by all ranks between the same two calls.
    pub fn set_enabled(&mut self, name: &str, enabled: bool) -> Result<()> {
        let candidate = self
            .candidates
            .iter_mut()
            .find(|candidate| candidate.name == name)
            .ok_or_else(|| Error::invalid(format_args!("this group has no communicator {name:?}")))?;
        candidate.enabled = enabled;
        self.fill();
        Ok(())
    }

    /// Equal on all ranks.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The candidates, in the order of preference.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Ranks in the group.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Whether all ranks are on one host.
    pub fn is_on_one_host(&self) -> bool {
        self.one_host
    }

    /// What a choice is called in texts: communicator, algorithm, and what takes its place for registered buffers.
    pub fn name(&self, choice: Choice) -> (&'static str, &'static str, Option<&'static str>) {
        let candidate = &self.candidates[choice.candidate];
        let name = |algorithm: u8| candidate.algorithms[usize::from(algorithm)].name;
        let Way { algorithm, registered } = choice.way;
        (candidate.name, name(algorithm), (registered != algorithm).then(|| name(registered)))
    }

    /// Where the limit of the row comes from that serves this call; `None` where that follows from the algorithm.
    pub(super) fn source(&self, call: &Descriptor) -> Option<&str> {
        let candidate = &self.candidates[self.choose(call)?.candidate];
        let bytes = call.contribution(self.size);
        let row = rows_of(candidate, call.collective).iter().position(|row| bytes <= row.up_to)?;
        candidate.sources.get(row).map(String::as_str)
    }

    /// Whether a row of `TUTTI_PLAN` serves this call.
    pub(super) fn is_overridden(&self, call: &Descriptor) -> bool {
        let Some(choice) = self.choose(call) else { return false };
        let name = self.candidates[choice.candidate].name;
        let bytes = call.contribution(self.size);
        self.policy.overrides.iter().any(|row| {
            row.collective.is_none_or(|collective| collective == call.collective)
                && bytes <= row.up_to
                && row.communicator == name
                && (Way { algorithm: row.algorithm, registered: row.registered }) == choice.way
        })
    }

    /// The ranges of this kind of call.
    pub(super) fn ranges(&self, call: &Descriptor) -> &[Range] {
        &self.lists[usize::from(self.kinds[kind(call.collective, call.dtype, call.op)])]
    }

    /// Why a candidate may not serve this kind of call, whatever its size.
    pub(super) fn obstacle(&self, candidate: &Candidate, call: &Descriptor) -> Option<String> {
        let capabilities = match &candidate.standing {
            Standing::Unavailable(reason) => return Some(reason.clone()),
            Standing::Excluded => return Some("excluded by the group's options".into()),
            Standing::Ready(capabilities) => capabilities,
        };
        if !candidate.enabled {
            return Some("switched off".into());
        }
        if call.collective == Collective::AllReduce && !self.policy.all_reduce.allows(candidate.name) {
            return Some("excluded by TUTTI_ALL_REDUCE".into());
        }
        if self.policy.deterministic && call.collective.reduces() && !capabilities.rank_order {
            return Some("cannot promise the same bits in every run".into());
        }
        if !capabilities.serves(call.collective, call.dtype, call.op) {
            return Some(format!("does not serve {}", call.collective.name()));
        }
        None
    }

    /// Fills the table, and takes the digest of it.
    fn fill(&mut self) {
        self.lists.clear();
        for collective in COLLECTIVES {
            for dtype in REDUCIBLE.into_iter().chain([DType::Bytes]) {
                for op in OPS {
                    let call = Descriptor { collective, dtype, op, root: 0, flags: 0, count: 0 };
                    let list = self.list(&call);
                    let index = self.lists.iter().position(|known| *known == list).unwrap_or_else(|| {
                        self.lists.push(list);
                        self.lists.len() - 1
                    });
                    self.kinds[kind(collective, dtype, op)] = index as u8;
                }
            }
        }
        self.digest = self.take_digest();
    }

    /// The ranges for one kind of call: in each stretch of sizes, the first candidate that serves it.
    fn list(&self, call: &Descriptor) -> Vec<Range> {
        let able: Vec<_> = self
            .candidates
            .iter()
            .enumerate()
            .filter(|(_, candidate)| self.obstacle(candidate, call).is_none())
            .filter_map(|(index, candidate)| match &candidate.standing {
                Standing::Ready(capabilities) => Some((index, candidate, capabilities.max_bytes)),
                _ => None,
            })
            .collect();
        let overrides: Vec<_> =
            self.policy.overrides.iter().filter(|row| row.collective.is_none_or(|c| c == call.collective)).collect();
        let rows = |candidate| rows_of(candidate, call.collective);
        let mut ends: Vec<u64> = able
            .iter()
            .flat_map(|(_, candidate, most)| {
                let carried = candidate.algorithms.iter().map(|algorithm| algorithm.most);
                let rows = rows(candidate).iter().map(|row| row.up_to);
                carried.chain(rows).map(|end| end.min(*most)).collect::<Vec<_>>()
            })
            .chain(overrides.iter().map(|row| row.up_to))
            .chain([u64::MAX])
            .collect();
        ends.sort_unstable();
        ends.dedup();
        let serves = |candidate: &Candidate, way: Way, bytes: u64| {
            [way.algorithm, way.registered].into_iter().all(|algorithm| {
                let algorithm = candidate.algorithms.get(usize::from(algorithm));
                algorithm.is_some_and(|algorithm| algorithm.serves(call.collective, bytes))
            })
        };
        let named = |row: &Override, up_to: u64| {
            let (index, candidate, most) = able.iter().find(|(_, candidate, _)| candidate.name == row.communicator)?;
            let way = Way { algorithm: row.algorithm, registered: row.registered };
            (up_to <= row.up_to.min(*most) && serves(candidate, way, up_to))
                .then_some(Choice { candidate: *index, way })
        };
        let mut list: Vec<Range> = Vec::new();
        for up_to in ends {
            let default = || {
                let (index, candidate, _) = able.iter().find(|(_, _, most)| up_to <= *most)?;
                let row = rows(candidate).iter().find(|row| up_to <= row.up_to && serves(candidate, row.way, up_to))?;
                Some(Choice { candidate: *index, way: row.way })
            };
            let choice = overrides.iter().find_map(|row| named(row, up_to)).or_else(default);
            match list.last_mut() {
                Some(last) if last.choice == choice => last.up_to = up_to,
                _ => list.push(Range { up_to, choice }),
            }
        }
        list
    }

    /// A forced communicator that is not there is an error, not a silent change.
    fn check_forced(&self) -> Result<()> {
        for (selection, what) in
            [(&self.policy.communicators, "the group's options"), (&self.policy.all_reduce, "TUTTI_ALL_REDUCE")]
        {
            let Selection::Forced(forced) = selection else { continue };
            let why = match self.candidates.iter().find(|candidate| candidate.name == forced) {
                Some(Candidate { standing: Standing::Ready(_), .. }) => continue,
                Some(Candidate { standing: Standing::Unavailable(reason), .. }) => reason.as_str(),
                Some(_) => "the group's options exclude it",
                None => "this build does not have it",
            };
            return Err(Error::Unsupported(format!("{what} force {forced}, which cannot serve: {why}")));
        }
        Ok(())
    }

    fn reasons(&self) -> String {
        let reasons: Vec<_> = self
            .candidates
            .iter()
            .map(|candidate| match &candidate.standing {
                Standing::Ready(_) if candidate.enabled => format!("{} does not serve it", candidate.name),
                Standing::Ready(_) => format!("{} is switched off", candidate.name),
                Standing::Unavailable(reason) => format!("{} is unavailable ({reason})", candidate.name),
                Standing::Excluded => format!("{} is excluded by the group's options", candidate.name),
            })
            .collect();
        reasons.join("; ")
    }

    /// FNV-1a, 64 bits, over a rendering of all that was agreed: the same on every machine and compiler.
    fn take_digest(&self) -> u64 {
        let rendering = format!(
            "{} {} {:?} {:?} {:?} {:?}",
            self.size, self.one_host, self.policy, self.candidates, self.lists, self.kinds
        );
        rendering
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    }
}

fn rows_of(candidate: &Candidate, collective: Collective) -> &[Row] {
    candidate.rows.get(collective as usize).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL_AND_LARGE: [Algorithm; 2] = [Algorithm::new("small", 2048), Algorithm::new("large", u64::MAX)];
    const ANY: [Algorithm; 1] = [Algorithm::new("any", u64::MAX)];

    fn policy() -> Policy {
        let (communicators, all_reduce) = (Selection::All, Selection::All);
        Policy { communicators, all_reduce, deterministic: false, overrides: Vec::new() }
    }

    fn candidate(name: &'static str, max_bytes: u64) -> Candidate {
        let mut capabilities = Capabilities::new(&[Collective::AllReduce], &[DType::Float32], &[Op::Sum]);
        capabilities.max_bytes = max_bytes;
        let algorithms: &'static [Algorithm] = if name == "fast" { &SMALL_AND_LARGE } else { &ANY };
        let last = Row { up_to: u64::MAX, way: Way::of(algorithms.len() as u8 - 1) };
        let rows = if name == "fast" { vec![Row { up_to: 1024, way: Way::of(0) }, last] } else { vec![last] };
        let rows = vec![rows; COLLECTIVES.len()];
        let sources = Vec::new();
        Candidate { name, algorithms, rows, sources, standing: Standing::Ready(capabilities), enabled: true }
    }

    fn call(count: u64) -> Descriptor {
        Descriptor { collective: Collective::AllReduce, dtype: DType::Float32, op: Op::Sum, root: 0, flags: 0, count }
    }

    fn names(plan: &Plan, counts: &[u64]) -> Vec<Option<(&'static str, &'static str)>> {
        let name = |choice| {
            let (communicator, algorithm, _) = plan.name(choice);
            (communicator, algorithm)
        };
        counts.iter().map(|count| plan.choose(&call(*count)).map(name)).collect()
    }

    #[test]
    fn the_first_that_serves_a_size_is_chosen() {
        let plan = Plan::new(2, true, policy(), vec![candidate("fast", 4096), candidate("slow", u64::MAX)]).unwrap();
        let chosen = names(&plan, &[0, 256, 257, 1024, 1025, 1 << 40]);
        let (small, large, any) = (Some(("fast", "small")), Some(("fast", "large")), Some(("slow", "any")));
        assert_eq!(chosen, [small, small, large, large, any, any]);
    }

    #[test]
    fn rows_of_the_user_come_first_where_they_can_serve() {
        let row = |up_to, communicator, algorithm| Override {
            collective: Some(Collective::AllReduce),
            up_to,
            communicator,
            algorithm,
            registered: algorithm,
        };
        let candidates = vec![candidate("fast", 8192), candidate("slow", u64::MAX)];
        // The first reaches no further than its algorithm carries, and the second than its communicator.
        let overrides = vec![row(u64::MAX, "fast", 0), row(1 << 20, "fast", 1), row(3 << 20, "gone", 0)];
        let plan = Plan::new(2, true, Policy { overrides, ..policy() }, candidates).unwrap();
        let (small, large, any) = (Some(("fast", "small")), Some(("fast", "large")), Some(("slow", "any")));
        assert_eq!(names(&plan, &[1, 512, 513, 2048, 2049, 1 << 20]), [small, small, large, large, any, any]);
    }

    #[test]
    fn what_nobody_serves_is_refused_with_every_reason() {
        let mut plan = Plan::new(2, true, policy(), vec![candidate("fast", 4096)]).unwrap();
        assert_eq!(names(&plan, &[1025]), [None]);
        plan.set_enabled("fast", false).unwrap();
        assert_eq!(names(&plan, &[1]), [None]);
        assert!(plan.refusal(&call(1)).to_string().contains("fast is switched off"));
        assert!(plan.set_enabled("nonsense", false).is_err());
    }

    #[test]
    fn a_forced_communicator_that_cannot_serve_is_an_error() {
        let forced = Policy { all_reduce: Selection::Forced("fast".into()), ..policy() };
        let plan =
            Plan::new(2, true, forced.clone(), vec![candidate("fast", 4096), candidate("slow", 1 << 20)]).unwrap();
        assert_eq!(names(&plan, &[1025]), [None]);
        let gone = Candidate { standing: Standing::Unavailable("rank 1: no".into()), ..candidate("fast", 4096) };
        let error = Plan::new(2, true, forced, vec![gone, candidate("slow", 1 << 20)]).unwrap_err();
        assert!(error.to_string().contains("rank 1: no"), "{error}");
    }

    #[test]
    fn plans_differ_in_their_digest_when_anything_agreed_differs() {
        let plans = [
            Plan::new(2, true, policy(), vec![candidate("fast", 4096)]).unwrap(),
            Plan::new(3, true, policy(), vec![candidate("fast", 4096)]).unwrap(),
            Plan::new(2, true, policy(), vec![candidate("fast", 4095)]).unwrap(),
            Plan::new(2, true, policy(), vec![candidate("slow", 4096)]).unwrap(),
        ];
        for (i, plan) in plans.iter().enumerate() {
            assert!(plans[..i].iter().all(|other| other.digest() != plan.digest()));
        }
    }
}
