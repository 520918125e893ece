//! The table of thresholds: which algorithm serves which size, by architecture and ranks. Read from `thresholds.txt`,
//! or from the file that `TUTTI_CUDA_PLAN` names; where each number comes from stands beside it.

use std::{borrow::Cow, sync::OnceLock};

use super::{
    kernels::Way,
    params::{MAX_THREADS, MAX_WORLD, MOST_BYTES},
};
use crate::{
    communicator, config,
    error::{Error, Result},
};

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// From this architecture on.
    arch: u32,
    /// Up to so many ranks.
    ranks: u32,
    way: Way,
    two_shot: bool,
    /// Up to so many bytes of one rank's contribution.
    pub(super) up_to: u64,
    /// Of a launch at most.
    pub(super) blocks: u32,
    /// Of a block.
    pub(super) threads: u32,
    source: String,
}

/// A table.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Row>,
    name: String,
    text: Cow<'static, str>,
}

impl Table {
    /// The table of this process.
    pub(super) fn get() -> Result<&'static Table> {
        static TABLE: OnceLock<Result<Table>> = OnceLock::new();
        TABLE.get_or_init(Table::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Table> {
        let Some(path) = config::variable("TUTTI_CUDA_PLAN") else {
            return Table::parse("thresholds.txt", Cow::Borrowed(include_str!("thresholds.txt")));
        };
        let text = std::fs::read_to_string(&path)
            .map_err(|error| Error::invalid(format_args!("TUTTI_CUDA_PLAN: {path}: {error}")))?;
        Table::parse(&path, Cow::Owned(text))
    }

    pub(super) fn parse(name: &str, text: Cow<'static, str>) -> Result<Table> {
        let mut rows = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let row = Row::parse(line).ok_or_else(|| {
                Error::invalid(format_args!(
                    "{name}:{}: {line:?} is no row \"arch ranks algorithm up-to blocks threads source\"",
                    number + 1
                ))
            })?;
            rows.push(row);
        }
        Ok(Table { rows, name: name.to_owned(), text })
    }

    /// The whole text: what ranks compare.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The rows of a way, for a device and a number of ranks, from small to large; empty if there is none.
    pub(super) fn rows(&self, arch: u32, ranks: u32, way: Way) -> Vec<&Row> {
        let arch = self.rows.iter().map(|row| row.arch).filter(|of| *of <= arch).max();
        let fitting = |row: &&Row| Some(row.arch) == arch && row.ranks >= ranks;
        let ranks = self.rows.iter().filter(fitting).map(|row| row.ranks).min();
        self.rows.iter().filter(fitting).filter(|row| Some(row.ranks) == ranks && row.way == way).collect()
    }

    /// The same as rows of the plan. Only an all_reduce can take two steps; others go on in the one way they have.
    pub(super) fn plan(&self, arch: u32, ranks: u32, way: Way, reduces_all: bool) -> Vec<communicator::Row> {
        let row = |row: &Row| {
            let algorithm = u8::from(row.two_shot && reduces_all);
            communicator::Row { up_to: row.up_to, way: communicator::Way::of(algorithm) }
        };
        self.rows(arch, ranks, way).into_iter().map(row).collect()
    }

    /// Where the numbers in those rows come from.
    pub(super) fn sources(&self, arch: u32, ranks: u32, way: Way) -> Vec<String> {
        let source =
            |row: &Row| format!("{}, sm_{} with up to {} ranks: {}", self.name, row.arch, row.ranks, row.source);
        self.rows(arch, ranks, way).into_iter().map(source).collect()
    }
}

impl Row {
    /// Whether it reduces in two steps.
    pub(super) fn is_two_shot(&self) -> bool {
        self.two_shot
    }

    fn parse(line: &str) -> Option<Row> {
        let mut words = line.split_whitespace();
        let mut number = || words.next()?.parse::<u32>().ok();
        let (arch, ranks) = (number()?, number()?);
        let (way, two_shot) = match words.next()? {
            "push/one_shot" => (Way::Push, false),
            "push/two_shot" => (Way::Push, true),
            "pull/one_shot" => (Way::Pull, false),
            "pull/two_shot" => (Way::Pull, true),
            _ => return None,
        };
        let up_to = match words.next()? {
            "max" => u64::MAX,
            count => {
                let unit = match words.next()? {
                    "B" => 1,
                    "KiB" => 1 << 10,
                    "MiB" => 1 << 20,
                    _ => return None,
                };
                count.parse::<u64>().ok()?.checked_mul(unit).filter(|bytes| *bytes <= MOST_BYTES)?
            }
        };
        let mut number = || words.next()?.parse::<u32>().ok();
        let blocks = number().filter(|blocks| (1..=1024).contains(blocks))?;
        let threads = number().filter(|threads| (MAX_WORLD as u32..=MAX_THREADS).contains(threads))?;
        let source = words.collect::<Vec<_>>().join(" ");
        Some(Row { arch, ranks, way, two_shot, up_to, blocks, threads, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table::parse("thresholds.txt", Cow::Borrowed(include_str!("thresholds.txt"))).unwrap()
    }

    #[test]
    fn every_device_and_world_has_rows_that_reach_every_size() {
        let table = table();
        for arch in [80, 86, 89, 90, 100, 103, 120] {
            for ranks in 1..=MAX_WORLD as u32 {
                let push = table.rows(arch, ranks, Way::Push);
                let pull = table.rows(arch, ranks, Way::Pull);
                assert!(!push.is_empty() && push.iter().all(|row| row.up_to < u64::MAX), "{arch} {ranks}");
                assert_eq!(pull.last().map(|row| row.up_to), Some(u64::MAX), "{arch} {ranks}");
                assert!(push.windows(2).chain(pull.windows(2)).all(|pair| pair[0].up_to < pair[1].up_to));
                assert!(push.iter().chain(&pull).all(|row| !row.source.is_empty()));
            }
            assert!(table.rows(arch, 17, Way::Push).is_empty());
        }
        assert!(table.rows(75, 2, Way::Push).is_empty(), "older devices have no row");
    }

    #[test]
    fn the_row_of_the_next_older_device_and_the_next_larger_world_holds() {
        let table = table();
        assert_eq!(table.rows(89, 3, Way::Push)[0].up_to, 128 << 10);
        assert_eq!(table.rows(103, 8, Way::Push)[0].up_to, 128 << 10);
        let rows = table.plan(90, 5, Way::Push, true);
        assert_eq!(rows[1].way, communicator::Way::of(1));
        assert_eq!(table.plan(90, 5, Way::Push, false)[1].way, communicator::Way::of(0));
        assert!(table.sources(90, 5, Way::Push)[0].starts_with("thresholds.txt, sm_90 with up to 8 ranks: break-even"));
    }

    #[test]
    fn a_row_that_is_none_is_refused_with_its_line() {
        for wrong in [
            "90 2 push/three_shot 1 MiB 8 256 x",
            "90 2 push/one_shot 1 GiB 8 256 x",
            "90 2 push/one_shot 1 MiB 0 256 x",
            "90 2 push/one_shot 1 MiB 8 512 x",
            "90 2 push/one_shot 99999999 MiB 8 256 x",
        ] {
            let text = format!("# nothing\n\n{wrong}\n");
            let error = Table::parse("mine", Cow::Owned(text)).unwrap_err().to_string();
            assert!(error.starts_with("mine:3: "), "{error}");
        }
    }
}
