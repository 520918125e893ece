//! Rows that take the place of a plan's defaults: the text of `TUTTI_PLAN`'s file, parsed.
//!
//! ```text
//! # collective    up to    who serves it     (# begins a comment)
//! all_reduce      1KiB     shm/lines
//! all_reduce      *        shm/pipelined+pull
//! *               *        sockets/exchange
//! ```
//!
//! The first row that names the collective (or `*`), reaches up to a call's contribution and can serve it does; where
//! none does, the defaults hold. Sizes are bytes of one rank's contribution, with KiB, MiB or GiB or without. What stands
//! behind `+` serves calls whose buffers all lie in memory of tutti_mem_alloc.

use crate::{
    communicator::Algorithm,
    dtype::{COLLECTIVES, Collective},
    error::{Error, Result},
};

/// A row of the text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Override {
    /// `None`: every collective.
    pub(super) collective: Option<Collective>,
    pub(super) up_to: u64,
    pub(super) communicator: &'static str,
    pub(super) algorithm: u8,
    pub(super) registered: u8,
}

/// What the rows may name: every communicator, with its algorithms.
pub(super) type Known<'a> = &'a [(&'static str, &'static [Algorithm])];

/// Parses the text; an error names the line.
pub(super) fn parse(text: &str, known: Known) -> Result<Vec<Override>> {
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let row = match words.as_slice() {
            [] => continue,
            [collective, up_to, who] => row(collective, up_to, who, known),
            _ => Err("a row is a collective, a size, and communicator/algorithm".to_owned()),
        };
        rows.push(row.map_err(|why| Error::invalid(format_args!("line {}: {why}", index + 1)))?);
    }
    Ok(rows)
}

/// The rows as a text that is equal where they are.
pub(super) fn render(rows: &[Override]) -> String {
    let one = |row: &Override| {
        let collective = row.collective.map_or("*", Collective::name);
        format!("{collective} {} {}/{}+{}", row.up_to, row.communicator, row.algorithm, row.registered)
    };
    rows.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn row(collective: &str, up_to: &str, who: &str, known: Known) -> Result<Override, String> {
    let collective = match collective {
        "*" => None,
        name => Some(
            COLLECTIVES
                .into_iter()
                .find(|collective| collective.name() == name)
                .ok_or_else(|| format!("{name:?} is no collective"))?,
        ),
    };
    let up_to = size(up_to).ok_or_else(|| format!("{up_to:?} is no size (4096, 64KiB, 1MiB, *)"))?;
    let (communicator, algorithm) =
        who.split_once('/').ok_or_else(|| format!("{who:?} is no communicator/algorithm"))?;
    let (name, algorithms) = known.iter().find(|(name, _)| *name == communicator).ok_or_else(|| {
        format!("there is no communicator {communicator:?}; there are {}", list(known.iter().map(|k| k.0)))
    })?;
    let find = |wanted: &str| {
        algorithms
            .iter()
            .position(|algorithm| algorithm.name == wanted)
            .map(|index| index as u8)
            .ok_or_else(|| format!("{name} has no {wanted:?}; it has {}", list(algorithms.iter().map(|a| a.name))))
    };
    let (plain, registered) = algorithm.split_once('+').unwrap_or((algorithm, algorithm));
    let (algorithm, registered) = (find(plain)?, find(registered)?);
    if algorithms[usize::from(algorithm)].registered {
        return Err(format!("{plain} needs registered memory: write some other algorithm, then +{plain}"));
    }
    Ok(Override { collective, up_to, communicator: name, algorithm, registered })
}

fn size(text: &str) -> Option<u64> {
    if text == "*" {
        return Some(u64::MAX);
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn list(names: impl Iterator<Item = &'static str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAYS: [Algorithm; 2] =
        [Algorithm::new("small", 1024), Algorithm { registered: true, ..Algorithm::new("pull", u64::MAX) }];
    const KNOWN: Known = &[("shm", &WAYS)];

    #[test]
    fn rows_are_read_in_order() {
        let rows = parse("# nothing\nall_reduce 1KiB shm/small+pull # why not\n\n * * shm/small\n", KNOWN).unwrap();
        let first = Override {
            collective: Some(Collective::AllReduce),
            up_to: 1024,
            communicator: "shm",
            algorithm: 0,
            registered: 1,
        };
        assert_eq!(
            rows,
            [first, Override { collective: None, up_to: u64::MAX, communicator: "shm", algorithm: 0, registered: 0 }]
        );
        assert_eq!(render(&rows), "all_reduce 1024 shm/0+1; * 18446744073709551615 shm/0+0");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, why) in [
            ("all_reduce 1KiB", "a row is"),
            ("all_produce 1 shm/small", "no collective"),
            ("* 1kB shm/small", "no size"),
            ("* 99999999999GiB shm/small", "no size"),
            ("* 1 nccl/small", "there are shm"),
            ("* 1 shm/large", "it has small, pull"),
            ("* 1 shm", "no communicator/algorithm"),
            ("* 1 shm/pull", "registered memory"),
        ] {
            let error = parse(&format!("\n{text}"), KNOWN).unwrap_err().to_string();
            assert!(error.contains("line 2") && error.contains(why), "{error}");
        }
    }
}
