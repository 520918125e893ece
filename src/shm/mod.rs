//! The shared-memory communicator: ranks of one host, through memory they all map.
//!
//! * [`segment`] — where everything lies, and the counters by which staging slots are handed over;
//! * [`small`] — calls whose data travel with the header;
//! * [`two_shot`] — large all_reduces of many ranks; [`pull`] — calls on registered memory;
//! * [`hand_over`] — how bytes are put where another core reads them; [`trial`] — which way is best between these cores;
//! * [`ring`] — messages from one rank to all others, for queues;
//! * [`post`] — messages from rank to rank;
//! * this page — the table of algorithms, and how the communicator is made.
//!
//! | algorithm | contribution | how |
//! |-----------|--------------|-----|
//! | line      | to 56 B      | in the cache line of the call's header |
//! | lines     | to 224 B     | in cache lines that carry a flag each |
//! | slot      | to 16 KiB    | in a slot that the header publishes |
//! | pipelined | any          | the plain [`Exchange`] over a ring of staging slots |
//! | two_shot  | any, all_reduce only | each rank reduces a slice for all, over the same ring |
//! | pull      | any, from registered memory | each rank reads where the others' buffers lie |

mod hand_over;
#[cfg(all(test, loom))]
mod model;
mod post;
mod pull;
pub(crate) mod ring;
mod segment;
mod small;
mod trial;
mod two_shot;

use std::{sync::Arc, time::Duration};

use hand_over::Store;
use pull::{Claim, Pull, Room};
use segment::Segment;
use small::{Carrier, LINE_BYTES, LINES_BYTES, SLOT_BYTES, Scratch, Small};
use two_shot::TwoShot;

use crate::{
    bootstrap::{
        Members,
        sharing::{share, share_some},
    },
    communicator::{
        Algorithm, Call, Capabilities, Carries, Communicator, Descriptor, Meeting, Parts, Pattern, Placement, Progress,
        Provider, Ranks, Row, Task, Uneven, Way,
        exchange::{Exchange, Lanes, Piece},
        post::Post,
    },
    dtype::{COLLECTIVES, Collective, OPS, REDUCIBLE},
    error::{Error, Result},
};

/// The entry in the dispatcher's list.
pub struct Shm;

const ALGORITHMS: [Algorithm; 8] = [
    Algorithm::new("line", LINE_BYTES as u64),
    Algorithm::new("lines", LINES_BYTES as u64),
    Algorithm::new("slot", SLOT_BYTES as u64),
    Algorithm::new("pipelined", u64::MAX),
    Algorithm { only: Some(Collective::AllReduce), ..Algorithm::new("two_shot", u64::MAX) },
    Algorithm { registered: true, ..Algorithm::new("pull", u64::MAX) },
    Algorithm { carries: Carries::Parts, ..Algorithm::new("parts", u64::MAX) },
    Algorithm { carries: Carries::Letters, ..Algorithm::new("post", u64::MAX) },
];
/// Their numbers.
const LINE: u8 = 0;
const LINES: u8 = 1;
const SLOT: u8 = 2;
const PIPELINED: u8 = 3;
const TWO_SHOT: u8 = 4;
const PULL: u8 = 5;
const PARTS: u8 = 6;
const POST: u8 = 7;

/// Up to this contribution, four lines, lines are better than a slot: a reader that looks for the next line takes it from the
/// writer half written. (Measured between cores 280 ns apart: lines take 0.55 us for 64 B, 0.75 for 256 B and 1.2 for
/// 512 B, a slot 0.65, 0.71 and 0.78.)
const LINES_UP_TO: u64 = 224;
/// From this contribution on three and more ranks reduce in two shots, and registered memory is pulled from.
const TWO_SHOT_FROM: u64 = 32 * 1024;
const PULL_FROM: u64 = 64 * 1024;

impl Provider for Shm {
    fn name(&self) -> &'static str {
        "shm"
    }

    fn algorithms(&self) -> &'static [Algorithm] {
        &ALGORITHMS
    }

    fn rows(&self, members: &Members, collective: Collective) -> Vec<Row> {
        match Carries::of(collective) {
            Carries::Calls => {}
            Carries::Parts => return vec![Row { up_to: u64::MAX, way: Way::of(PARTS) }],
            Carries::Letters => return vec![Row { up_to: u64::MAX, way: Way::of(POST) }],
        }
        let large = match collective {
            // Two hand-overs instead of one cost more than the work they spare where each is a change of threads
            // (measured: 4 ranks on 2 cores, 15 to 30 % from 32 KiB to 1 MiB).
            Collective::AllReduce if members.size() > if members.is_crowded() { 4 } else { 2 } => TWO_SHOT,
            _ => PIPELINED,
        };
        let row = |up_to, algorithm, registered| Row { up_to, way: Way { algorithm, registered } };
        vec![
            row(LINE_BYTES as u64, LINE, LINE),
            row(LINES_UP_TO, LINES, LINES),
            row(SLOT_BYTES as u64, SLOT, SLOT),
            row(TWO_SHOT_FROM - 1, PIPELINED, PIPELINED),
            row(PULL_FROM - 1, large, large),
            row(u64::MAX, large, PULL),
        ]
    }

    fn probe(&self, members: &Members) -> Result<Capabilities, String> {
        if !members.on_one_host() {
            return Err("the ranks are on several hosts".into());
        }
        if let Some(why) = members.unshared() {
            return Err(format!("no memory could be shared: {why}"));
        }
        if members.size() > segment::MOST_RANKS {
            return Err(format!("the ranks are more than {}", segment::MOST_RANKS));
        }
        let mut capabilities = Capabilities::new(&COLLECTIVES, &REDUCIBLE, &OPS);
        capabilities.placement = Placement::Both;
        capabilities.rank_order = true;
        capabilities.detects_mismatch = true;
        // A sleeping rank is woken by the failure itself.
        capabilities.cancellable_within_ms = Some(10);
        Ok(capabilities)
    }

    fn create(&self, members: Arc<Members>, deadline: Option<std::time::Instant>) -> Task<Box<dyn Communicator>> {
        Box::pin(async move {
            // Whether all ranks managed to map it is the dispatcher's next question.
            let segment = share(&members, "tutti-shm", Segment::PART, deadline).await?;
            let size = members.size();
            let post = share_some(&members, "tutti-post", post::part(size), post::committed(size), deadline).await?;
            let mut segment = segment.map(|mapping| Segment::new(members.clone(), mapping));
            let outcome = trial::hold(&members, segment.as_mut().ok(), deadline).await?;
            let ((post, fd), mut segment) = (post?, segment?);
            let store = outcome.map_or_else(Store::detect, |outcome| Store::tried(&outcome));
            segment.set_store(store);
            let wire = post::Memory::new(members.clone(), post, Some(fd), store);
            Ok(Box::new(Communication::new(members, segment, wire)) as Box<dyn Communicator>)
        })
    }
}

/// One rank's communicator.
struct Communication {
    members: Arc<Members>,
    meeting: Meeting,
    exchange: Exchange<Segment>,
    letters: post::Letters,
    parts: Parts,
    going: Going,
    /// The last call that was no v-form, and what it means for this rank: most calls are like the one before.
    last: (Descriptor, Pattern),
    scratch: Scratch,
    room: Room,
    /// What came out while this rank was about to sleep.
    outcome: Option<Result<Progress>>,
}

/// The call that is going on.
enum Going {
    Small(Small, Call),
    Exchange,
    Parts,
    TwoShot(TwoShot),
    /// How it goes on is decided when all headers were seen: this rank's buffers are registered.
    Undecided(Undecided),
    Pull(Pull),
}

struct Undecided {
    call: Call,
    sequence: u64,
    way: Way,
}

impl Communication {
    fn new(members: Arc<Members>, segment: Segment, wire: post::Memory) -> Self {
        Communication {
            meeting: Meeting::new(members.clone()),
            exchange: Exchange::new(members.clone(), segment),
            letters: post::Letters::new(members.clone(), wire),
            parts: Parts::new(members.clone()),
            going: Going::Exchange,
            last: (Descriptor::BARRIER, Pattern::BARRIER),
            scratch: Scratch::new(members.size()),
            room: Room::new(members.size()),
            outcome: None,
            members,
        }
    }

    #[inline]
    fn advance(&mut self) -> Result<Progress> {
        loop {
            match &mut self.going {
                Going::Small(small, call) => {
                    let (lanes, scratch) = (&self.exchange.lanes, &mut self.scratch);
                    return small.poll((call, &self.last.1), &self.members, lanes, &mut self.meeting, scratch);
                }
                Going::Exchange => return self.exchange.poll(&mut self.meeting),
                Going::Parts => return self.parts.poll(&mut self.exchange, &mut self.meeting),
                Going::TwoShot(two_shot) => {
                    return two_shot.poll(&mut self.exchange.lanes, &mut self.meeting, &mut self.scratch.sources);
                }
                Going::Pull(pull) => return Ok(pull.poll(&self.exchange.lanes, &mut self.room)),
                Going::Undecided(_) if self.meeting.poll()? != Progress::Done => return Ok(Progress::Pending),
                Going::Undecided(_) => self.decide(),
            }
        }
    }

    /// Begins a call that is too large to travel with its header.
    fn begin_large(&mut self, call: &Call, algorithm: u8) {
        let pattern = &self.last.1;
        if algorithm == TWO_SHOT {
            let base = self.exchange.reserve(TwoShot::steps(pattern.length));
            self.going = Going::TwoShot(TwoShot::begin(call, self.members.clone(), base));
        } else {
            self.exchange.begin(call, pattern.clone());
            self.going = Going::Exchange;
        }
    }

    /// Goes on with a call of registered buffers, now that all headers were seen.
    #[cold]
    fn decide(&mut self) {
        let Going::Undecided(undecided) = std::mem::replace(&mut self.going, Going::Exchange) else { return };
        let Undecided { call, sequence, way } = undecided;
        let step = self.exchange.reserve(Pull::STEPS);
        match Pull::decide(&call, &self.last.1, &self.members, (sequence, step), &mut self.room) {
            Some(pull) => self.going = Going::Pull(pull),
            None => {
                // Those who knew at once that nothing is pulled have taken no step for it.
                self.exchange.give_back();
                self.begin_large(&call, way.algorithm);
            }
        }
    }
}

impl Communicator for Communication {
    fn start(&mut self, call: &Call, sequence: u64, way: Way) -> Result<Progress> {
        if self.last.0 != call.descriptor {
            let pattern = Pattern::new(&call.descriptor, self.members.rank(), self.members.size());
            let pattern = pattern.ok_or_else(|| Error::Internal(format!("{} is no exchange", call.descriptor)))?;
            self.last = (call.descriptor, pattern);
        }
        let pattern = &self.last.1;
        self.outcome = None;
        let carrier = match way.algorithm {
            LINE => Some(Carrier::Line),
            LINES => Some(Carrier::Lines),
            SLOT => Some(Carrier::Slot),
            _ => None,
        };
        if let Some(carrier) = carrier {
            // SAFETY: the group calls this once per sequence, in order, with contributions that the plan says fit.
            let mut small =
                unsafe { Small::begin(call, pattern, sequence, carrier, (&mut self.meeting, &self.exchange.lanes)) };
            let (lanes, scratch) = (&self.exchange.lanes, &mut self.scratch);
            let progress = small.poll((call, pattern), &self.members, lanes, &mut self.meeting, scratch)?;
            if progress != Progress::Done {
                self.going = Going::Small(small, *call);
            }
            return Ok(progress);
        }
        let claim = match way.registered {
            PULL => Claim::of(call, pattern, &self.members),
            _ => Claim::default(),
        };
        // SAFETY: as above.
        unsafe { self.meeting.begin(call.descriptor, sequence, &claim.to_bytes()) };
        if claim.is_made() {
            self.going = Going::Undecided(Undecided { call: *call, sequence, way });
        } else {
            self.begin_large(call, way.algorithm);
        }
        self.advance()
    }

    fn start_uneven(&mut self, call: Uneven, sequence: u64) -> Result<Progress> {
        self.outcome = None;
        // SAFETY: as above; there is no payload.
        unsafe { self.meeting.begin(call.descriptor, sequence, &[]) };
        self.parts.begin(call, sequence);
        self.going = Going::Parts;
        self.advance()
    }

    fn poll(&mut self) -> Result<Progress> {
        match self.outcome.take() {
            Some(outcome) => outcome,
            None => self.advance(),
        }
    }

    fn rest(&mut self, at_most: Duration) {
        let members = self.members.clone();
        let doze = members.doze();
        // The look between "I am about to sleep" and sleeping, which makes a lost wake-up impossible.
        match self.advance() {
            Ok(Progress::Pending) if self.letters.is_still() && members.check().is_ok() => doze.sleep(at_most),
            outcome => self.outcome = Some(outcome),
        }
    }

    fn awaits(&mut self, rank: u32) -> bool {
        self.meeting.awaits(rank)
            || match &mut self.going {
                Going::Small(small, _) => small.awaits(&self.last.1, &self.exchange.lanes, rank),
                Going::Exchange => self.exchange.awaits(rank),
                Going::Parts => self.parts.awaits(&mut self.exchange, rank),
                Going::TwoShot(two_shot) => two_shot.awaits(&self.exchange.lanes, rank),
                Going::Pull(pull) => pull.awaits(&self.exchange.lanes, rank),
                Going::Undecided(_) => false,
            }
    }

    fn post(&mut self) -> Option<&mut dyn Post> {
        Some(&mut self.letters)
    }
}

impl Lanes for Segment {
    fn piece(&self, side_by_side: u32) -> usize {
        piece(side_by_side)
    }

    fn denies_room(&mut self, rank: u32, step: u64, _needed: bool) -> bool {
        self.ring_denies(rank, step)
    }

    fn has_room(&mut self, step: u64, _needs: impl Fn(u32) -> bool) -> bool {
        self.ring_has_room(step)
    }

    unsafe fn publish(&mut self, step: u64, piece: impl Fn(u32) -> Option<Piece>) {
        let mut last = None;
        for piece in (0..self.size()).filter_map(piece) {
            // What all take is written once.
            if last.replace(piece) != Some(piece) {
                // SAFETY: passed on; what `Lanes::piece` allows fits.
                unsafe { self.ring_write(step, piece) };
            }
        }
        self.counter_publish(step + 1);
    }

    fn published(&mut self, rank: u32, step: u64, at: usize, _length: usize) -> Result<Option<*const u8>> {
        Ok(self.ring_published(rank, step).map(|chunk| chunk.wrapping_add(at)))
    }

    fn finish(&mut self, steps: u64, _contributors: Ranks) {
        self.ring_finish(steps);
    }

    fn is_settled(&mut self, _rank: u32) -> bool {
        true
    }
}

/// The largest piece where a staging slot holds so many side by side.
fn piece(side_by_side: u32) -> usize {
    let most = segment::CHUNK / side_by_side.max(1) as usize;
    // Each begins at a cache line of its own where so many fit.
    if most >= 64 { most / 64 * 64 } else { (most / 8 * 8).max(8) }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn as_many_pieces_as_there_are_other_ranks_fit_a_staging_slot() {
        for others in 1..segment::MOST_RANKS {
            let piece = piece(others);
            assert!(piece >= 8 && piece.is_multiple_of(if piece < 64 { 8 } else { 64 }));
            assert!(others as usize * piece <= segment::CHUNK);
        }
    }
}
