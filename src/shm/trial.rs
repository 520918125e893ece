//! The trial: when a group is made, two of its ranks find out how bytes are best handed over between them.
//!
//! Whether streaming stores pay depends on how far apart the cores are, which no name of a processor tells: on one
//! machine they halved the time of large calls between cores that hand a line over in 280 ns, and cost large messages 10 to
//! 20 % between two that do so in 66 ns. So the first rank and the last hand a few chunks of each class of length to each other, in both
//! ways and in turn, and what the first one measured is what all ranks go by.
//!
//! *The protocol.* Round by round, each of the two writes the round's chunk to its staging slot and stores the number of
//! the round in its `tried` counter (release); it waits until it loads that number from the other's (acquire), and then
//! reads the other's chunk. Rounds use the staging slots in turn: whoever writes round n+2 has seen the other in
//! round n+1, and so done with round n. Nothing else looks at `tried`; and nobody looks at what is left in the
//! staging slots once all have told their outcome, which is before the first call.
//!
//! *A rank that is late*, since the machine is busy or since one thread makes several ranks, ends the trial: in no round
//! does anybody wait longer than [`PATIENCE`], and without an outcome all ranks go by the processor's name.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    hand_over::{CLASSES, Class, Store},
    segment::Segment,
};
use crate::{
    bootstrap::{Members, session::Session},
    error::Result,
    sync::spin_until,
};

/// Rounds of each class and way, of which the median counts.
const ROUNDS: usize = 5;
/// How long one of the two waits for the other: it comes from hearing the same message.
const PATIENCE: Duration = Duration::from_micros(500);

/// What the trial came to: nanoseconds of a round, stored plainly and streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outcome {
    rounds: [[u32; 2]; CLASSES.len()],
}

impl Outcome {
    /// Whether chunks of a class are better streamed.
    pub(super) fn streams(&self, class: usize) -> bool {
        let [plain, streamed] = self.rounds[class];
        streamed < plain
    }
}

/// Holds the trial, if all ranks have a segment. `None` on all ranks where it came to nothing.
pub(super) async fn hold(
    members: &Arc<Members>,
    segment: Option<&mut Segment>,
    deadline: Option<Instant>,
) -> Result<Option<Outcome>> {
    if members.size() == 1 {
        return Ok(None);
    }
    let mut session = members.session(deadline, format!("trial of group {:?}", members.name()));
    match hold_in(&mut session, members, segment).await {
        Ok(outcome) => session.finish().await.map(|()| outcome),
        Err(error) => {
            session.give_up(&error);
            Err(error)
        }
    }
}

async fn hold_in(session: &mut Session, members: &Members, segment: Option<&mut Segment>) -> Result<Option<Outcome>> {
    // Where ranks share cores, one would only see how long the other did not run.
    let ready = segment.filter(|_| !members.is_crowded());
    let said = session.all_gather(&[u8::from(ready.is_some())], None).await?;
    if said.iter().any(|message| message.body != [1]) {
        return Ok(None);
    }
    let last = members.size() - 1;
    let outcome = match (members.rank(), ready) {
        (0, Some(segment)) => measure(segment, last),
        (rank, Some(segment)) if rank == last => measure(segment, 0),
        _ => None,
    };
    let mine = postcard::to_allocvec(&outcome).unwrap_or_default();
    let said = session.all_gather(&mine, None).await?;
    let outcome = said.first().and_then(|first| postcard::from_bytes(&first.body).ok()).flatten();
    log::debug!(target: "tutti::shm", "{}: {outcome:?}", session.subject());
    Ok(outcome)
}

/// This rank's part of the trial with `peer`.
fn measure(segment: &mut Segment, peer: u32) -> Option<Outcome> {
    let longest = CLASSES.iter().map(|class| class.tried).max().unwrap_or_default();
    let (mine, mut theirs) = (vec![1_u8; longest], vec![0_u8; longest]);
    let mut round = 0;
    let mut outcome = Outcome { rounds: [[0; 2]; CLASSES.len()] };
    for (Class { tried, .. }, medians) in CLASSES.iter().zip(&mut outcome.rounds) {
        let mut times = [[0_u32; ROUNDS]; 2];
        for turn in 0..ROUNDS {
            for (store, times) in [Store::PLAIN, Store::STREAMING].iter().zip(&mut times) {
                let begin = Instant::now();
                segment.try_out(round, store, &mine[..*tried]);
                if !spin_until(PATIENCE, || segment.has_tried_out(peer, round)) {
                    return None;
                }
                segment.read_tried(peer, round, &mut theirs[..*tried]);
                times[turn] = begin.elapsed().as_nanos().try_into().unwrap_or(u32::MAX);
                round += 1;
            }
        }
        *medians = times.map(|mut times| {
            times.sort_unstable();
            times[ROUNDS / 2]
        });
    }
    std::hint::black_box(&theirs);
    Some(outcome)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_faster_way_is_taken_class_by_class() {
        let outcome = Outcome { rounds: [[2400, 2500], [30_000, 15_000]] };
        let store = Store::tried(&outcome);
        assert_eq!([1024, 8192, 65536].map(|length| store.streams(length)), [false, false, true]);
    }
}
