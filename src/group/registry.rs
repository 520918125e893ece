//! Groups by name: for code that can carry a text but no handle, such as a custom operator of a framework.
//!
//! A registry of this process alone, which decides nothing and keeps nothing alive: it holds weak references, and of
//! groups that are gone, for a while, their names, so that looking one up says what became of it. Names are the
//! caller's; that they are unique is checked when one is looked up, not when a group is made.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::Group;
use crate::error::{Error, Result};

/// Names of groups that are gone which are remembered.
const REMEMBERED: usize = 256;

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { names: BTreeMap::new(), gone: VecDeque::new() });

struct Registry {
    names: BTreeMap<String, Entry>,
    /// Names whose groups were all gone at some time, the oldest first, each once.
    gone: VecDeque<String>,
}

#[derive(Default)]
struct Entry {
    groups: Vec<Known>,
    /// Whether the name stands in `gone`.
    is_noted: bool,
}

struct Known {
    rank: u32,
    group: Weak<Group>,
}

/// The group of this name in this process; where ranks share the process, that of this rank.
pub(super) fn find(name: &str, rank: Option<u32>) -> Result<Arc<Group>> {
    // Upgraded inside, dropped outside: the last reference to a group may be one of these, and its end comes here.
    let (named, ranks): (Vec<Arc<Group>>, Vec<u32>) = {
        let registry = registry();
        let Some(entry) = registry.names.get(name) else {
            return Err(Error::invalid(format_args!("this process has no group named {name:?}")));
        };
        let asked = entry.groups.iter().filter(|known| rank.is_none_or(|rank| known.rank == rank));
        let ranks = entry.groups.iter().map(|known| known.rank).collect();
        (asked.filter_map(|known| known.group.upgrade()).collect(), ranks)
    };
    let live: Vec<&Arc<Group>> = named.iter().filter(|group| !group.members.is_closed()).collect();
    match live.as_slice() {
        [one] => Ok(Arc::clone(one)),
        [] => Err(Error::invalid(match rank {
            Some(rank) if !ranks.is_empty() && !ranks.contains(&rank) => {
                format!("rank {rank} of group {name:?} is not in this process, which has {}", list(ranks))
            }
            _ => format!("group {name:?} was destroyed"),
        })),
        [first, others @ ..] if others.iter().any(|other| other.members.uid() != first.members.uid()) => {
            Err(Error::invalid(format_args!(
                "{} groups of this process are named {name:?}; a group that is to be found needs a name of its own",
                live.len()
            )))
        }
        _ => Err(Error::invalid(format_args!("this process has {} of group {name:?}: say which", list(ranks)))),
    }
}

/// "ranks 0, 1".
fn list(mut ranks: Vec<u32>) -> String {
    ranks.sort_unstable();
    let names: Vec<String> = ranks.iter().map(u32::to_string).collect();
    format!("rank{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}

/// Makes a new group known.
pub(super) fn enter(group: &Arc<Group>) {
    let mut registry = registry();
    let name = group.name();
    if !registry.names.contains_key(name) {
        registry.names.insert(name.to_owned(), Entry::default());
    }
    if let Some(entry) = registry.names.get_mut(name) {
        entry.groups.push(Known { rank: group.rank(), group: Arc::downgrade(group) });
    }
}

/// Forgets a group that ends, but not yet its name.
pub(super) fn leave(group: &Group) {
    let mut registry = registry();
    let Registry { names, gone } = &mut *registry;
    // A group that was never entered, since its making failed, is not there.
    let Some(entry) = names.get_mut(group.name()) else { return };
    entry.groups.retain(|known| !std::ptr::eq(known.group.as_ptr(), group));
    if !entry.groups.is_empty() || std::mem::replace(&mut entry.is_noted, true) {
        return;
    }
    gone.push_back(group.name().to_owned());
    if gone.len() > REMEMBERED
        && let Some(oldest) = gone.pop_front()
        && let Some(entry) = names.get_mut(&oldest)
    {
        entry.is_noted = false;
        if entry.groups.is_empty() {
            names.remove(&oldest);
        }
    }
}

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::config::{GroupOptions, WorldOptions};

    fn world(name: &str, size: u32) -> Vec<Arc<Group>> {
        let group = GroupOptions { name: Some(name.into()), ..GroupOptions::default() };
        Group::world_local(size, None, WorldOptions { group, ..WorldOptions::default() }).unwrap()
    }

    fn refusal(name: &str, rank: Option<u32>) -> String {
        find(name, rank).err().expect("nothing is found").to_string()
    }

    #[test]
    fn a_group_is_found_by_its_name_and_where_ranks_share_the_process_by_its_rank() {
        let alone = world("registry:alone", 1);
        assert!(Arc::ptr_eq(&find("registry:alone", None).unwrap(), &alone[0]));
        assert!(Arc::ptr_eq(&find("registry:alone", Some(0)).unwrap(), &alone[0]));
        let pair = world("registry:pair", 2);
        assert!(Arc::ptr_eq(&find("registry:pair", Some(1)).unwrap(), &pair[1]));
        assert!(refusal("registry:pair", None).contains("has ranks 0, 1 of group \"registry:pair\": say which"));
        assert!(refusal("registry:pair", Some(2)).contains("rank 2 of group \"registry:pair\" is not in this process"));
        assert!(refusal("registry:none", None).contains("this process has no group named \"registry:none\""));
    }

    #[test]
    fn a_name_that_two_groups_have_finds_neither() {
        let (_first, _second) = (world("registry:twice", 1), world("registry:twice", 1));
        assert!(refusal("registry:twice", None).contains("2 groups of this process are named \"registry:twice\""));
    }

    #[test]
    fn the_registry_keeps_no_group_alive_and_tells_of_one_that_was_destroyed() {
        let group = world("registry:gone", 1).remove(0);
        let weak = Arc::downgrade(&group);
        // Destroyed by its handle, though a request still holds it.
        group.leave();
        assert_eq!(refusal("registry:gone", None), "group \"registry:gone\" was destroyed");
        drop(group);
        assert!(weak.upgrade().is_none(), "the registry holds the group");
        assert_eq!(refusal("registry:gone", None), "group \"registry:gone\" was destroyed");
        let again = world("registry:gone", 1);
        assert!(Arc::ptr_eq(&find("registry:gone", None).unwrap(), &again[0]), "a name may be used again");
    }

    #[test]
    fn names_of_the_gone_are_forgotten_at_last() {
        for i in 0..REMEMBERED + 10 {
            drop(world(&format!("registry:many:{i}"), 1));
        }
        assert!(refusal("registry:many:0", None).contains("no group named"), "other tests add names, none take any");
        assert!(refusal(&format!("registry:many:{}", REMEMBERED + 9), None).contains("was destroyed"));
        let registry = registry();
        assert!(registry.gone.len() <= REMEMBERED);
    }
}
