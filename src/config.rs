//! Options and environment variables, parsed once at the boundary.
//!
//! Every setting is of one of two kinds. A *group* setting changes what ranks agree on and must be equal on all of
//! them: it is compared when a group is made, and a difference is an error naming ranks and values. A *rank*
//! setting (devices, logging, host labels) may differ; it counts only through what it makes possible.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// This library's version: 10000 * major + 100 * minor + patch. All ranks of a world must have the same.
pub const VERSION: u32 = 10_000 * number(env!("CARGO_PKG_VERSION_MAJOR"))
    + 100 * number(env!("CARGO_PKG_VERSION_MINOR"))
    + number(env!("CARGO_PKG_VERSION_PATCH"));

/// A decimal number, read while compiling.
const fn number(digits: &str) -> u32 {
    let (digits, mut at, mut number) = (digits.as_bytes(), 0, 0);
    while at < digits.len() {
        number = 10 * number + (digits[at] - b'0') as u32;
        at += 1;
    }
    number
}

/// The deadline of calls whose caller named none.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// How long a call may wait, counted from when this rank enters it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Timeout {
    /// The group's; for a group, ten minutes.
    #[default]
    Default,
    /// So long.
    After(Duration),
    /// For ever.
    Never,
}

impl Timeout {
    /// Parses milliseconds as the C API has them: 0 the default, -1 never.
    pub fn from_ms(ms: i64) -> Result<Self> {
        match ms {
            0 => Ok(Timeout::Default),
            -1 => Ok(Timeout::Never),
            1.. => Ok(Timeout::After(Duration::from_millis(ms as u64))),
            _ => Err(Error::invalid(format_args!("timeout_ms is {ms}; it is 0 (the default), -1 (none) or positive"))),
        }
    }

    /// This timeout, or `other` where this is the default.
    pub fn or(self, other: Timeout) -> Timeout {
        if self == Timeout::Default { other } else { self }
    }

    /// The duration; `None` for never.
    pub fn duration(self) -> Option<Duration> {
        match self {
            Timeout::Default => Some(DEFAULT_TIMEOUT),
            Timeout::After(duration) => Some(duration),
            Timeout::Never => None,
        }
    }

    /// The moment at which a call that begins now has waited too long; `None` for never.
    pub fn deadline(self) -> Option<Instant> {
        self.duration().and_then(|duration| Instant::now().checked_add(duration))
    }
}

/// Which communicators a group may use (a *group* setting): `"shm,sockets"`, `"^shm"`, `"=shm"`, or all.
#[derive(Clone, Debug, PartialEq, Eq, Default, Hash)]
pub enum Selection {
    /// Whatever works, in the order of the list.
    #[default]
    All,
    /// Only these.
    Only(Vec<String>),
    /// All but these.
    Except(Vec<String>),
    /// This one for every call; what it cannot serve is an error.
    Forced(String),
}

impl Selection {
    /// Parses the text of the option.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let names = |list: &str| -> Result<Vec<String>> {
            list.split(',')
                .map(|name| {
                    let name = name.trim();
                    let valid = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
                    valid.then(|| name.to_owned()).ok_or_else(|| {
                        Error::invalid(format_args!(
                            "{text:?} is no list of communicators (\"shm,sockets\" only these, \"^shm\" all but these, \"=shm\" forced)"
                        ))
                    })
                })
                .collect()
        };
        match text.as_bytes().first() {
            None => Ok(Selection::All),
            Some(b'^') => Ok(Selection::Except(names(&text[1..])?)),
            Some(b'=') => match names(&text[1..])?.as_slice() {
                [one] => Ok(Selection::Forced(one.clone())),
                _ => Err(Error::invalid(format_args!("{text:?}: only one communicator can be forced"))),
            },
            Some(_) => Ok(Selection::Only(names(text)?)),
        }
    }

    /// Whether a communicator of this name may be made.
    pub fn allows(&self, name: &str) -> bool {
        match self {
            Selection::All => true,
            Selection::Only(names) => names.iter().any(|n| n == name),
            Selection::Except(names) => names.iter().all(|n| n != name),
            Selection::Forced(forced) => forced == name,
        }
    }

    /// The names mentioned, so that an unknown one can be refused.
    pub fn names(&self) -> &[String] {
        match self {
            Selection::All => &[],
            Selection::Only(names) | Selection::Except(names) => names,
            Selection::Forced(name) => std::slice::from_ref(name),
        }
    }
}

/// Excludes what cannot promise the same bits in every run.
pub const FLAG_DETERMINISTIC: u32 = 1;
/// Lets ranks on other hosts join without a secret.
pub const FLAG_ALLOW_UNAUTHENTICATED: u32 = 2;
/// Call flag: every rank's buffers are registered memory.
pub const FLAG_REGISTERED: u32 = 2;

/// What a group is made with; all of it *group* settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupOptions {
    /// Rows that take the place of the plan's defaults, as in the file that `TUTTI_PLAN` names; `None`: that file's.
    pub plan: Option<String>,
    /// The name in texts.
    pub name: Option<String>,
    /// The deadline of calls that name none.
    pub timeout: Timeout,
    /// [`FLAG_DETERMINISTIC`].
    pub flags: u32,
    /// Which communicators it may use.
    pub communicators: Selection,
}

/// The caller's own way to exchange bytes between all ranks: `(mine) -> everyone's, in rank order`.
pub type AllGather = Box<dyn Fn(&[u8], u32) -> Result<Vec<u8>> + Send>;

/// How this process's rank finds its world.
#[derive(Default)]
pub struct WorldOptions {
    /// Size and rank, where the caller names them.
    pub size_and_rank: Option<(u32, u32)>,
    /// A unique id made by rank 0.
    pub unique_id: Option<Vec<u8>>,
    /// The CUDA device of this rank, by its ordinal; `None`: buffers are host memory.
    pub device: Option<i32>,
    /// `host:port` where rank 0 listens for other hosts.
    pub address: Option<String>,
    /// The caller's own bootstrap.
    pub all_gather: Option<AllGather>,
    /// [`FLAG_DETERMINISTIC`], [`FLAG_ALLOW_UNAUTHENTICATED`].
    pub flags: u32,
    /// The options of the world as a group.
    pub group: GroupOptions,
}

/// An environment variable, trimmed; unset, empty and unreadable are all `None`.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}
