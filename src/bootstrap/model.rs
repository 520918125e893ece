//! Models of the bell, of the first failure and of leaving. See [`crate::sync::model`].

use std::{sync::Arc, time::Duration};

use loom::thread;

use super::{Members, Mesh, Peer, bell::Bell, board::Board, control::Endpoint};
use crate::{
    communicator::Progress,
    dtype::Collective,
    error::{Failure, Status},
    sync::{
        AtomicU32, Fences, Ordering,
        model::{Model, prove, watch},
        reads, writes,
    },
    topology::Facts,
};

/// What happens at the end of a group, for the models that are about something else.
pub(crate) const LEAVING: &str = "self.left(rank).store(";

/// The members of a group of ranks that share a board and can reach each other in no other way.
pub(crate) fn members(size: u32) -> Vec<Arc<Members>> {
    let mapping = Board::for_model(size);
    let facts = Facts {
        pid: 1,
        uid: 0,
        process: 1,
        host: 1,
        host_name: String::new(),
        cpus: vec![0],
        quota_millicores: u32::MAX,
        version: 1,
        lopsided: false,
    };
    let one = |rank| {
        let peers = (0..size).map(|_| Peer { facts: facts.clone(), link: None, pidfd: None }).collect();
        let endpoint = Arc::new(Endpoint::new(Mesh { rank, uid: 1, peers }));
        let board = Board::new(mapping.clone(), true, size, Fences::Even);
        Members::new("model".into(), 8, (0..size).collect(), endpoint, (board, None), None).unwrap()
    };
    (0..size).map(one).collect()
}

/// Runs `body` on a thread per rank, the first on this one. What the ranks were made of is dropped when all are done,
/// so that the models do not explore the end of the group as well.
pub(crate) fn on_all_ranks<R: Send + 'static>(ranks: Vec<R>, body: fn(u32, &mut R)) {
    let mut ranks = (0..).zip(ranks);
    let Some((first, mut own)) = ranks.next() else { return };
    let threads: Vec<_> = ranks
        .map(|(rank, mut state)| {
            thread::spawn(move || {
                body(rank, &mut state);
                state
            })
        })
        .collect();
    body(first, &mut own);
    let _over: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
}

/// Polls until done, asleep in between: how every wait in the crate ends when patience has run out.
pub(crate) fn wait(members: &Members, mut poll: impl FnMut() -> Progress) {
    while poll() != Progress::Done {
        let doze = members.doze();
        if poll() == Progress::Done {
            return;
        }
        doze.sleep(Duration::MAX);
    }
}

#[test]
fn model_a_sleeper_is_woken_by_what_is_published_while_it_falls_asleep() {
    let test = (module_path!(), "model_a_sleeper_is_woken_by_what_is_published_while_it_falls_asleep");
    let bugs = &["no second look", "a ring before publishing"];
    prove(Model { test, preemptions: 2, bugs, spare: &[] }, |bug| {
        let shared = Arc::new((Bell::default(), [AtomicU32::new(0), AtomicU32::new(0)]));
        let publishers: Vec<_> = (0..2)
            .map(|which| {
                let shared = shared.clone();
                thread::spawn(move || {
                    let (bell, published) = &*shared;
                    if bug == "a ring before publishing" {
                        Bell::before_ringing(Fences::Even);
                        bell.ring();
                    }
                    // Relaxed, here and below: the hand-over must not lean on the order of what is published.
                    published[which].store(1, Ordering::Relaxed);
                    if bug != "a ring before publishing" {
                        Bell::before_ringing(Fences::Even);
                        bell.ring();
                    }
                })
            })
            .collect();
        let (bell, published) = &*shared;
        let all = || published.iter().all(|one| one.load(Ordering::Relaxed) == 1);
        while !all() {
            let doze = bell.doze(Fences::Even);
            if bug == "no second look" || !all() {
                doze.sleep(Duration::MAX);
            }
        }
        publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
        assert!(bell.is_quiet());
    });
}

#[test]
fn model_the_first_failure_wins_and_is_told_whole() {
    let test = (module_path!(), "model_the_first_failure_wins_and_is_told_whole");
    prove(Model { test, preemptions: 2, bugs: &[], spare: &[LEAVING] }, |_| {
        on_all_ranks(members(3), |rank, members| {
            if rank > 0 {
                let failure = Failure {
                    status: Status::PeerLost,
                    rank: Some(rank),
                    collective: Some(Collective::Barrier),
                    sequence: 7,
                    text: format!("rank {rank} died"),
                };
                members.board().fail(&failure);
            } else {
                wait(members, || if members.board().has_failed() { Progress::Done } else { Progress::Pending });
            }
            let told = members.failure().unwrap();
            assert!(told.text == format!("rank {} died", told.rank.unwrap()), "{told:?}");
            assert!(members.failure() == Some(told), "another failure took its place");
        });
    });
}

#[test]
fn model_what_a_rank_delivered_before_it_left_is_seen() {
    let test = (module_path!(), "model_what_a_rank_delivered_before_it_left_is_seen");
    prove(Model { test, preemptions: 3, bugs: &["leaving first"], spare: &[] }, |bug| {
        let members = members(2);
        let delivered = Box::leak(Box::new(0_u64)) as *mut u64 as usize;
        watch(delivered as *const u8, 8);
        let (leaver, stayer) = (members[1].clone(), members[0].clone());
        let leaving = thread::spawn(move || {
            let deliver = || writes(delivered as *const u64);
            if bug != "leaving first" {
                deliver();
            }
            leaver.board().leave(1);
            if bug == "leaving first" {
                deliver();
            }
        });
        wait(&stayer, || if stayer.board().has_left(1) { Progress::Done } else { Progress::Pending });
        reads(delivered as *const u64);
        leaving.join().unwrap();
        // SAFETY: the box was leaked above, and nobody looks at it any more.
        drop(unsafe { Box::from_raw(delivered as *mut u64) });
    });
}
