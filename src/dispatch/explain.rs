//! The plan in words: who serves a call, and why each of the others does not.

use std::fmt::Write;

use serde_json::json;

use super::{Choice, Plan, Standing, plan::Candidate};
use crate::{
    communicator::{Descriptor, Placement},
    config::FLAG_REGISTERED,
    error::{Error, Result},
};

/// How an explanation is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one object.
    Json,
}

impl Format {
    /// Parses the number a caller passed.
    pub fn parse(code: i32) -> Result<Self> {
        match code {
            0 => Ok(Format::Text),
            1 => Ok(Format::Json),
            _ => Err(Error::invalid(format_args!("{code} is no format (text 0, JSON 1)"))),
        }
    }
}

/// What becomes of a candidate for one call.
struct Verdict {
    state: &'static str,
    reason: String,
}

impl Plan {
    /// Explains what serves `call` in the group called `group`.
    pub fn explain(&self, group: &str, call: &Descriptor, format: Format) -> String {
        match format {
            Format::Text => self.explain_in_words(group, call),
            Format::Json => self.explain_as_json(group, call),
        }
    }

    fn explain_in_words(&self, group: &str, call: &Descriptor) -> String {
        let mut text = String::new();
        let hosts = if self.is_on_one_host() { "one host" } else { "several hosts" };
        let size = self.size();
        let digest = self.digest();
        let _ = writeln!(text, "{call} | group {group:?}, {size} ranks, {hosts} | plan {digest:016x}");
        match self.choose(call) {
            Some(choice) => {
                let _ = writeln!(text, "  served by {}: {}", self.full_name(choice, call.flags), self.why(call));
                if let (Some(source), false) = (self.source(call), self.is_overridden(call)) {
                    let _ = writeln!(text, "  up to there by the row of {source}");
                }
            }
            None => {
                let _ = writeln!(text, "  served by nothing");
            }
        }
        let mut from = "0 B".to_owned();
        for range in self.ranges(call) {
            let to = if range.up_to == u64::MAX { String::new() } else { bytes(range.up_to) };
            let who = range.choice.map_or_else(|| "nothing".to_owned(), |choice| self.full_name(choice, 0));
            let _ = writeln!(text, "  {from:>9} .. {to:<9}  {who}");
            from = to;
        }
        for candidate in self.candidates() {
            let verdict = self.verdict(candidate, call);
            let _ = writeln!(text, "  {:<10} {:<11} {}", candidate.name, verdict.state, verdict.reason);
        }
        text
    }

    fn explain_as_json(&self, group: &str, call: &Descriptor) -> String {
        let name = |choice| {
            let (communicator, algorithm, registered) = self.name(choice);
            let registered = registered.unwrap_or(algorithm);
            json!({ "communicator": communicator, "algorithm": algorithm, "registered": registered })
        };
        let mut from = 0;
        let ranges: Vec<_> = self
            .ranges(call)
            .iter()
            .map(|range| {
                let to = (range.up_to != u64::MAX).then_some(range.up_to);
                let row = json!({ "from_bytes": from, "to_bytes": to, "served_by": range.choice.map(name) });
                from = range.up_to.saturating_add(1);
                row
            })
            .collect();
        let candidates: Vec<_> = self
            .candidates()
            .iter()
            .map(|candidate| {
                let verdict = self.verdict(candidate, call);
                let mut row = json!({ "name": candidate.name, "state": verdict.state, "reason": verdict.reason });
                if let Standing::Ready(capabilities) = &candidate.standing {
                    row["capabilities"] = json!({
                        "all_reduce_mode": placement(capabilities.placement),
                        "rank_order": capabilities.rank_order,
                        "detects_mismatch": capabilities.detects_mismatch,
                        "cancellable_within_ms": capabilities.cancellable_within_ms,
                        "max_bytes": (capabilities.max_bytes != u64::MAX).then_some(capabilities.max_bytes),
                    });
                }
                row
            })
            .collect();
        json!({
            "collective": call.collective.name(),
            "dtype": call.dtype.name(),
            "op": call.collective.reduces().then(|| call.op.name()),
            "count": call.count,
            "contribution_bytes": call.contribution(self.size()),
            "group": group,
            "size": self.size(),
            "one_host": self.is_on_one_host(),
            "plan": format!("{:016x}", self.digest()),
            "chosen": self.choose(call).map(name),
            "row": self.source(call).filter(|_| !self.is_overridden(call)),
            "ranges": ranges,
            "candidates": candidates,
        })
        .to_string()
    }

    /// "shm/pipelined", and what serves registered buffers where that is another; that one alone if these are.
    fn full_name(&self, choice: Choice, flags: u32) -> String {
        let (communicator, algorithm, registered) = self.name(choice);
        match registered {
            Some(registered) if flags & FLAG_REGISTERED != 0 => format!("{communicator}/{registered}"),
            Some(registered) => format!("{communicator}/{algorithm} ({registered} where all buffers are registered)"),
            None => format!("{communicator}/{algorithm}"),
        }
    }

    /// Why the chosen one was chosen.
    fn why(&self, call: &Descriptor) -> &'static str {
        if self.is_overridden(call) {
            return "a row of TUTTI_PLAN";
        }
        let rivals = self.candidates().iter().filter(|candidate| self.obstacle(candidate, call).is_none()).count();
        if rivals > 1 { "the first in the list that serves this size" } else { "the only one that serves it" }
    }

    fn verdict(&self, candidate: &Candidate, call: &Descriptor) -> Verdict {
        let chosen = self.choose(call).map(|choice| &self.candidates()[choice.candidate]);
        if let Some(reason) = self.obstacle(candidate, call) {
            let state = match (&candidate.standing, candidate.enabled) {
                (Standing::Unavailable(_), _) => "unavailable",
                (Standing::Excluded, _) => "excluded",
                (Standing::Ready(_), false) => "disabled",
                (Standing::Ready(_), true) => "refused",
            };
            return Verdict { state, reason };
        }
        match chosen {
            Some(chosen) if chosen.name == candidate.name => Verdict { state: "chosen", reason: String::new() },
            Some(chosen) => Verdict { state: "ready", reason: format!("comes after {}", chosen.name) },
            None => Verdict { state: "refused", reason: "the call is too large for it".into() },
        }
    }
}

fn placement(placement: Placement) -> &'static str {
    match placement {
        Placement::None => "none",
        Placement::InPlace => "in_place",
        Placement::OutOfPlace => "out_of_place",
        Placement::Both => "both",
    }
}

/// A number of bytes, as people write it.
fn bytes(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| bytes >= 1 << shift && bytes.is_multiple_of(1 << shift)) {
        Some((unit, shift)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} B"),
    }
}
