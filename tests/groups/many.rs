//! Sixty-four groups in a process, used from several threads at once, some aborted, ended in any order or never: none
//! of it concerns any other group, waits for anything, or leaves anything behind.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use tutti::{
    config::GroupOptions,
    error::Status,
    group::{Group, batch},
};

use crate::{Random, alone, on_threads, sum, together, world};

const RANKS: usize = 4;
const GROUPS: usize = 64;
/// Threads of each rank; each has every fourth of the rank's groups.
const THREADS: usize = 4;
const CALLS: i64 = 40;

/// What becomes of a group.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Destroyed,
    /// One rank aborts it in the middle.
    Aborted,
    /// Nobody destroys it.
    Forgotten,
}

struct Plan {
    members: Vec<u32>,
    fate: Fate,
}

/// The groups of one rank, by number.
type Groups = Vec<Option<Arc<Group>>>;

fn plans(random: &mut Random, fates: &[Fate]) -> Vec<Plan> {
    (0..GROUPS)
        .map(|_| {
            let mut members: Vec<u32> = (0..RANKS as u32).collect();
            random.shuffle(&mut members);
            members.truncate(2 + random.below(RANKS - 1));
            Plan { members, fate: fates[random.below(fates.len())] }
        })
        .collect()
}

/// All groups: `[rank][group]`, none where the rank is no member.
fn make(ranks: &[Arc<Group>], plans: &[Plan], turn: usize) -> Vec<Groups> {
    let made: Vec<Arc<Mutex<Groups>>> = ranks.iter().map(|_| Arc::new(Mutex::new(vec![None; GROUPS]))).collect();
    batch::begin().unwrap();
    for (index, plan) in plans.iter().enumerate() {
        for rank in &plan.members {
            let place = made[*rank as usize].clone();
            let options = GroupOptions { name: Some(format!("many:{turn}:{index}")), ..GroupOptions::default() };
            let deliver = Box::new(move |group| place.lock().unwrap()[index] = group);
            ranks[*rank as usize].create(&plan.members, options, deliver).unwrap();
        }
    }
    batch::end().unwrap();
    made.into_iter().map(|groups| std::mem::take(&mut *groups.lock().unwrap())).collect()
}

/// One life of all groups; says how many calls succeeded.
fn live(ranks: &[Arc<Group>], turn: usize, fates: &[Fate]) -> usize {
    let mut random = Random(0x9e37_79b9 + turn as u64);
    let plans = plans(&mut random, fates);
    let made = make(ranks, &plans, turn);
    // Every thread has its share of a rank's groups, the same share on all ranks, so that peers meet.
    let mut shares = Vec::new();
    for (rank, groups) in made.into_iter().enumerate() {
        let mut of_rank: Vec<Vec<(usize, Arc<Group>)>> = (0..THREADS).map(|_| Vec::new()).collect();
        for (index, group) in groups.into_iter().enumerate() {
            of_rank[index % THREADS].extend(group.map(|group| (index, group)));
        }
        shares.extend(of_rank.into_iter().map(|share| (rank, share)));
    }
    let succeeded = AtomicUsize::new(0);
    on_threads(shares, |thread, (rank, mut share)| {
        for call in 0..CALLS {
            for (index, group) in &share {
                let plan = &plans[*index];
                // Whoever hears only of its own group can know the answer.
                let number = |rank: u32| (*index as i64 * CALLS + call) * 1000 + i64::from(rank);
                if plan.fate == Fate::Aborted && call == CALLS / 2 && plan.members[0] as usize == rank {
                    group.abort();
                }
                match sum(group, number(rank as u32)) {
                    Ok(sum) => {
                        assert_eq!(sum, plan.members.iter().map(|rank| number(*rank)).sum::<i64>(), "cross-talk");
                        succeeded.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        assert_eq!(error.status(), Status::Aborted, "{error}");
                        assert!(plan.fate == Fate::Aborted, "group {index} failed with another: {error}");
                        assert!(error.to_string().contains(&format!("\"many:{turn}:{index}\"")), "{error}");
                    }
                }
            }
        }
        Random(1 + thread as u64 + turn as u64).shuffle(&mut share);
        for (index, group) in share {
            assert!(Arc::ptr_eq(&Group::find(group.name(), Some(group.rank())).unwrap(), &group));
            if plans[index].fate == Fate::Forgotten {
                std::mem::forget(group);
                continue;
            }
            // Peers may still be in a call: what they were given by then, they keep.
            let (name, rank) = (group.name().to_owned(), group.rank());
            group.leave();
            drop(group);
            let gone = Group::find(&name, Some(rank)).err().expect("it was destroyed").to_string();
            assert!(gone.contains("was destroyed") || gone.contains("is not in this process"), "{gone}");
        }
    });
    succeeded.into_inner()
}

#[test]
fn sixty_four_groups_on_several_threads_live_and_end_without_touching_each_other() {
    let _process = together();
    let ranks = world(RANKS as u32);
    for turn in 0..4 {
        let succeeded = live(&ranks, turn, &[Fate::Destroyed, Fate::Destroyed, Fate::Aborted]);
        assert!(succeeded > GROUPS * CALLS as usize, "hardly a call succeeded: {succeeded}");
        on_threads(ranks.clone(), |_, world| assert_eq!(sum(&world, 1).unwrap(), RANKS as i64));
    }
}

#[test]
fn groups_that_end_leave_no_descriptor_and_no_mapping_behind() {
    let _process = alone();
    let ranks = world(RANKS as u32);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let shared = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.contains("memfd:tutti")).count()
    };
    let before = (descriptors(), shared());
    for turn in 100..103 {
        live(&ranks, turn, &[Fate::Destroyed, Fate::Aborted]);
    }
    assert_eq!((descriptors(), shared()), before);
}

#[test]
fn groups_that_nobody_destroys_stop_nothing() {
    let _process = together();
    let ranks = world(RANKS as u32);
    live(&ranks, 200, &[Fate::Destroyed, Fate::Aborted, Fate::Forgotten]);
    // The world ends, and the process with it, under groups that are still there.
    drop(ranks);
}
