//! Models of the calls themselves: the meeting over the board's headers, what small calls travel in, the exchange and the
//! two shots over the ring of staging slots, and pulling from registered memory. See [`crate::sync::model`].

use std::{sync::Arc, time::Duration};

use super::{Communication, LINE, LINES, PULL, SLOT, Segment, Store, TWO_SHOT, post, two_shot::TwoShot};
use crate::{
    bootstrap::{
        Members,
        mapping::Mapping,
        model::{LEAVING, members, on_all_ranks, wait},
        regions::{self, Region},
    },
    communicator::{
        Call, Communicator, Descriptor, Meeting, Pattern, Progress, Ranks, Way,
        exchange::{Exchange, Lanes, Piece},
    },
    dtype::{Collective, DType, Op},
    sync::{
        model::{Model, prove, watch},
        reads, spin_until, writes,
    },
};

const ELEMENT: usize = size_of::<u64>();

fn descriptor(collective: Collective, count: u64) -> Descriptor {
    Descriptor { collective, dtype: DType::Uint64, op: Op::Sum, root: 0, flags: 0, count }
}

/// What rank `rank` contributes to element `i` of call `call`: no two alike.
fn element(call: u64, rank: u32, i: u64) -> u64 {
    call * 10_000 + u64::from(rank + 1) * 100 + i
}

#[test]
fn model_two_headers_in_turn_are_enough_for_every_meeting() {
    let test = (module_path!(), "model_two_headers_in_turn_are_enough_for_every_meeting");
    prove(Model { test, preemptions: 3, bugs: &["one header", "a look too late"], spare: &[LEAVING] }, |bug| {
        on_all_ranks(members(2).into_iter().map(|members| (members, bug)).collect(), |rank, (members, bug)| {
            let mut meeting = Meeting::new(members.clone());
            let peer = 1 - rank;
            let look = |sequence| {
                let payload = members.board().payload(peer, sequence);
                reads(payload);
                // SAFETY: the peer's header was seen, and it posts in this one again only after two more meetings.
                assert_eq!(unsafe { payload.cast::<u64>().read_unaligned() }, element(sequence, peer, 0));
                let words = members.board().words(peer, sequence);
                assert_eq!(Descriptor::from_words(words), Some(descriptor(Collective::Barrier, 0)), "torn: {words:?}");
            };
            for call in 1..=4 {
                // Even numbers alone, and all headers are the same one.
                let sequence = if *bug == "one header" { 2 * call } else { call };
                let payload = element(sequence, rank, 0).to_ne_bytes();
                // SAFETY: in sequence; the model is there to show the rest.
                unsafe { meeting.begin(descriptor(Collective::Barrier, 0), sequence, &payload) };
                wait(members, || meeting.poll().unwrap());
                match (*bug, call) {
                    ("a look too late", 1) => {}
                    ("a look too late", _) => look(sequence - 1),
                    _ => look(sequence),
                }
            }
        });
    });
}

/// Calls in a row over one algorithm, each of so many elements; the bug is to use one place for all.
fn small_calls<const SIZE: u32, const ALGORITHM: u8, const COUNT: u64>(test: &'static str, preemptions: usize) {
    let model = Model { test: (module_path!(), test), preemptions, bugs: &["one place"], spare: &[LEAVING] };
    prove(model, |bug| {
        let ranks = communications(SIZE).into_iter().map(|(members, communication)| (members, communication, bug));
        on_all_ranks(ranks.collect(), |rank, (members, communication, bug)| {
            for call in 1..=3 {
                let sequence = if *bug == "one place" { 2 * call } else { call };
                let mut data: Vec<u64> = (0..COUNT).map(|i| element(sequence, rank, i)).collect();
                all_reduce(members, communication, sequence, Way::of(ALGORITHM), data.as_mut_ptr(), COUNT);
            }
        });
    });
}

#[test]
fn model_data_in_the_header_are_read_before_they_are_overwritten() {
    small_calls::<2, LINE, 1>("model_data_in_the_header_are_read_before_they_are_overwritten", 3);
}

#[test]
fn model_lines_say_themselves_that_they_are_there() {
    small_calls::<2, LINES, 8>("model_lines_say_themselves_that_they_are_there", 2);
}

#[test]
fn model_slots_in_turn_are_enough_for_every_call() {
    small_calls::<2, SLOT, 1>("model_slots_in_turn_are_enough_for_every_call", 3);
}

#[test]
fn model_three_ranks_meet_as_two_do() {
    small_calls::<3, SLOT, 1>("model_three_ranks_meet_as_two_do", 1);
}

#[test]
fn model_two_rounds_of_the_trial_are_enough_for_each_other() {
    let test = (module_path!(), "model_two_rounds_of_the_trial_are_enough_for_each_other");
    // Only the trial's own counter hands anything over, and nobody sleeps, so that the bells may be what they will.
    let spare = &[LEAVING, "Fences::Even => fence(", "fence(Ordering::SeqCst);"];
    let model = Model { test, preemptions: 3, bugs: &["one place"], spare };
    prove(model, |bug| {
        let mapping = Segment::for_model(2);
        let one = |members: Arc<Members>| (members.clone(), Segment::new(members, mapping.clone()), bug);
        on_all_ranks(members(2).into_iter().map(one).collect(), |rank, (_, segment, bug)| {
            for round in 0..3 {
                let round = if *bug == "one place" { super::segment::SLOTS * round } else { round };
                segment.try_out(round, &Store::PLAIN, &element(round, rank, 0).to_ne_bytes());
                assert!(spin_until(Duration::ZERO, || segment.has_tried_out(1 - rank, round)));
                let mut theirs = [0; ELEMENT];
                segment.read_tried(1 - rank, round, &mut theirs);
                assert_eq!(u64::from_ne_bytes(theirs), element(round, 1 - rank, 0));
            }
        });
    });
}

fn communications(size: u32) -> Vec<(Arc<Members>, Communication)> {
    let mapping = Segment::for_model(size);
    // These models send no letters, so nothing of it is touched.
    let post = Mapping::private(size as usize * post::part(size)).unwrap();
    let one = |members: Arc<Members>| {
        let wire = post::Memory::new(members.clone(), post.clone(), None, Store::PLAIN);
        let segment = Segment::new(members.clone(), mapping.clone());
        (members.clone(), Communication::new(members, segment, wire))
    };
    members(size).into_iter().map(one).collect()
}

/// An all_reduce of `count` elements at `data`, in place, checked.
fn all_reduce(
    members: &Members,
    communication: &mut Communication,
    sequence: u64,
    way: Way,
    data: *mut u64,
    count: u64,
) {
    let call = Call::new(descriptor(Collective::AllReduce, count), data.cast(), data.cast());
    let mut progress = communication.start(&call, sequence, way).unwrap();
    while progress != Progress::Done {
        communication.rest(Duration::MAX);
        progress = communication.poll().unwrap();
    }
    let sum = |i| (0..members.size()).map(|rank| element(sequence, rank, i)).sum::<u64>();
    // SAFETY: this rank's elements; the call is over.
    assert!((0..count).all(|i| unsafe { *data.add(i as usize) } == sum(i)), "call {sequence}: a wrong sum");
}

#[test]
fn model_two_shots_hand_over_every_slice() {
    let test = (module_path!(), "model_two_shots_hand_over_every_slice");
    // The chunks are handed over by the ring's own counters. All ranks contribute to every block, so each is held back by
    // what it awaits before the ring could be full; that it would be is shown for the exchange.
    let spare = &[
        LEAVING,
        "self.flag(rank, sequence).store(",
        "let flag = ",
        "others.map(|rank| self.counters(rank).finished",
        "self.counters(self.members.rank()).finished",
    ];
    prove(Model { test, preemptions: 1, bugs: &["steps not counted"], spare }, |bug| {
        let mapping = Segment::for_model(2);
        let one = |members: Arc<Members>| {
            let segment = Segment::new(members.clone(), mapping.clone());
            (members.clone(), Meeting::new(members), segment, bug)
        };
        on_all_ranks(members(2).into_iter().map(one).collect(), |rank, (members, meeting, segment, bug)| {
            let mut sources = Vec::new();
            // A slice of a cache line for each rank. Three calls of two steps, so that slots are taken again.
            let count = 2 * 64 / ELEMENT as u64;
            for sequence in 1..=3 {
                let mut data: Vec<u64> = (0..count).map(|i| element(sequence, rank, i)).collect();
                let what = descriptor(Collective::AllReduce, count);
                let call = Call::new(what, data.as_ptr().cast(), data.as_mut_ptr().cast());
                let base = if *bug == "steps not counted" { 0 } else { 2 * (sequence - 1) };
                let mut two_shot = TwoShot::begin(&call, members.clone(), base);
                // SAFETY: in sequence; there is no payload.
                unsafe { meeting.begin(what, sequence, &[]) };
                wait(members, || two_shot.poll(segment, meeting, &mut sources).unwrap());
                let sum = |i| (0..2).map(|rank| element(sequence, rank, i)).sum::<u64>();
                assert!((0..count).zip(&data).all(|(i, got)| *got == sum(i)), "{data:?}");
            }
        });
    });
}

#[test]
fn model_pulled_memory_is_let_go_before_it_is_written_again() {
    let test = (module_path!(), "model_pulled_memory_is_let_go_before_it_is_written_again");
    prove(Model { test, preemptions: 2, bugs: &["writing while others read"], spare: &[LEAVING] }, |bug| {
        const COUNT: usize = 2 * 64 / ELEMENT;
        const PART: usize = 4096;
        let memory = Mapping::private(2 * PART).unwrap();
        for rank in 0..2 {
            // Each rank's slice is handed over by itself.
            (0..2).for_each(|slice| watch(memory.at(rank * PART + slice * 64, 64).as_ptr(), 64));
        }
        let ranks = communications(2).into_iter().enumerate().map(|(rank, (members, communication))| {
            let region = Region::new(1, vec![0, 1], PART, memory.clone(), rank);
            let start = Start(regions::give(region, Some(members.endpoint().regions())));
            (members, communication, start, bug)
        });
        on_all_ranks(ranks.collect(), |rank, (members, communication, start, bug)| {
            let data: *mut u64 = start.0.cast();
            for sequence in 1..=2 {
                for i in 0..COUNT {
                    let at = data.wrapping_add(i);
                    writes(at);
                    // SAFETY: this rank's part of the region, which nobody reads between calls.
                    unsafe { at.write(element(sequence, rank, i as u64)) };
                }
                let way = Way { algorithm: TWO_SHOT, registered: PULL };
                all_reduce(members, communication, sequence, way, data, COUNT as u64);
                if *bug == "writing while others read" && sequence == 1 {
                    // The other rank may still be in the call whose header this one has not posted yet: the next one.
                    let call = Call::new(descriptor(Collective::AllReduce, COUNT as u64), data.cast(), data.cast());
                    let _ = communication.start(&call, 2, way);
                    writes(data);
                    return;
                }
            }
        });
    });
}

/// Where a rank's part of a region begins.
struct Start(*mut u8);

// SAFETY: used by that rank's thread alone.
unsafe impl Send for Start {}

/// The ring with pieces of one element; `early`: how many steps too early a slot is taken to be free.
struct Small {
    segment: Segment,
    early: u64,
}

impl Lanes for Small {
    fn piece(&self, _side_by_side: u32) -> usize {
        ELEMENT
    }

    fn denies_room(&mut self, rank: u32, step: u64, needed: bool) -> bool {
        self.segment.denies_room(rank, step.saturating_sub(self.early), needed)
    }

    fn has_room(&mut self, step: u64, needs: impl Fn(u32) -> bool) -> bool {
        self.segment.has_room(step.saturating_sub(self.early), needs)
    }

    unsafe fn publish(&mut self, step: u64, piece: impl Fn(u32) -> Option<Piece>) {
        // SAFETY: passed on.
        unsafe { self.segment.publish(step, piece) }
    }

    fn published(&mut self, rank: u32, step: u64, at: usize, length: usize) -> crate::error::Result<Option<*const u8>> {
        self.segment.published(rank, step, at, length)
    }

    fn finish(&mut self, steps: u64, contributors: Ranks) {
        self.segment.finish(steps, contributors);
    }

    fn is_settled(&mut self, rank: u32) -> bool {
        self.segment.is_settled(rank)
    }
}

#[test]
fn model_a_staging_slot_is_taken_again_only_when_all_have_read_it() {
    let test = (module_path!(), "model_a_staging_slot_is_taken_again_only_when_all_have_read_it");
    // The chunks are handed over by the ring's own counters; the headers only say that all call the same.
    let spare = &[LEAVING, "self.flag(rank, sequence).store(", "let flag = "];
    prove(Model { test, preemptions: 2, bugs: &["a slot too early"], spare }, |bug| {
        let mapping = Segment::for_model(2);
        let one = |members: Arc<Members>| {
            let segment = Segment::new(members.clone(), mapping.clone());
            let early = u64::from(bug == "a slot too early");
            (members.clone(), Meeting::new(members.clone()), Exchange::new(members, Small { segment, early }))
        };
        on_all_ranks(members(2).into_iter().map(one).collect(), |rank, (members, meeting, exchange)| {
            // Two calls, so that steps are counted across them. Only a broadcast's root runs ahead until there is no room:
            // where all contribute, each is held back by what it awaits from the others.
            for (sequence, collective, count) in [(1, Collective::AllReduce, 1), (2, Collective::Broadcast, 5)] {
                let send: Vec<u64> = (0..count).map(|i| element(sequence, rank, i)).collect();
                let mut recv = vec![0_u64; send.len()];
                let what = descriptor(collective, count);
                let call = Call::new(what, send.as_ptr().cast(), recv.as_mut_ptr().cast());
                // SAFETY: in sequence; there is no payload.
                unsafe { meeting.begin(what, sequence, &[]) };
                exchange.begin(&call, Pattern::new(&what, rank, 2).unwrap());
                wait(members, || exchange.poll(meeting).unwrap());
                let ranks = if collective == Collective::Broadcast { 0..1 } else { 0..2 };
                let expected = |i| ranks.clone().map(|rank| element(sequence, rank, i)).sum::<u64>();
                assert!((0..count).zip(&recv).all(|(i, got)| *got == expected(i)), "{recv:?}");
            }
        });
    });
}
