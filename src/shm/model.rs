//! Models of the calls themselves: the meeting over the board's headers, the inline slots, and the exchange over the
//! ring of staging slots. See [`crate::sync::model`].

use std::{sync::Arc, time::Duration};

use super::{Communication, Segment, post};
use crate::{
    bootstrap::{
        Members,
        mapping::Mapping,
        model::{LEAVING, members, on_all_ranks, wait},
    },
    communicator::{
        Call, Communicator, Descriptor, Meeting, Pattern, Progress, Ranks, Way,
        exchange::{Exchange, Lanes},
    },
    dtype::{Collective, DType, Op},
    sync::{
        model::{Model, prove},
        reads,
    },
};

/// The algorithm's number in the communicator's list.
const INLINE: u8 = 0;
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

#[test]
fn model_inline_slots_in_turn_are_enough_for_every_call() {
    let test = (module_path!(), "model_inline_slots_in_turn_are_enough_for_every_call");
    prove(Model { test, preemptions: 3, bugs: &["one slot"], spare: &[LEAVING] }, |bug| {
        on_all_ranks(communications(2, bug), |rank, (members, communication, bug)| {
            for call in 1..=3 {
                let sequence = if *bug == "one slot" { 2 * call } else { call };
                all_reduce(members, communication, rank, sequence);
            }
        });
    });
}

#[test]
fn model_three_ranks_meet_as_two_do() {
    let test = (module_path!(), "model_three_ranks_meet_as_two_do");
    prove(Model { test, preemptions: 1, bugs: &["one slot"], spare: &[LEAVING] }, |bug| {
        on_all_ranks(communications(3, bug), |rank, (members, communication, bug)| {
            for call in 1..=3 {
                let sequence = if *bug == "one slot" { 2 * call } else { call };
                all_reduce(members, communication, rank, sequence);
            }
        });
    });
}

fn communications(size: u32, bug: &'static str) -> Vec<(Arc<Members>, Communication, &'static str)> {
    let mapping = Segment::for_model(size);
    // These models send no letters, so nothing of it is touched.
    let post = Mapping::private(size as usize * post::part(size)).unwrap();
    let one = |members: Arc<Members>| {
        let wire = post::Memory::new(members.clone(), post.clone(), None);
        (members.clone(), Communication::new(members, mapping.clone(), wire), bug)
    };
    members(size).into_iter().map(one).collect()
}

/// An all_reduce of one element, in place, checked.
fn all_reduce(members: &Members, communication: &mut Communication, rank: u32, sequence: u64) {
    let count = 1;
    let mut data: Vec<u64> = (0..count).map(|i| element(sequence, rank, i)).collect();
    let address: *mut u8 = data.as_mut_ptr().cast();
    let call = Call { descriptor: descriptor(Collective::AllReduce, count), send: address, recv: address };
    let mut progress = communication.start(&call, sequence, Way::of(INLINE)).unwrap();
    while progress != Progress::Done {
        communication.rest(Duration::MAX);
        progress = communication.poll().unwrap();
    }
    let sum = |i| (0..members.size()).map(|rank| element(sequence, rank, i)).sum::<u64>();
    assert!((0..count).zip(&data).all(|(i, element)| *element == sum(i)), "{data:?}");
}

/// The ring with chunks of one element; `early`: how many steps too early a slot is taken to be free.
struct Small {
    segment: Segment,
    early: u64,
}

impl Lanes for Small {
    fn chunk(&self) -> usize {
        ELEMENT
    }

    fn denies_room(&mut self, rank: u32, step: u64, needed: bool) -> bool {
        self.segment.denies_room(rank, step.saturating_sub(self.early), needed)
    }

    fn has_room(&mut self, step: u64, needs: impl Fn(u32) -> bool) -> bool {
        self.segment.has_room(step.saturating_sub(self.early), needs)
    }

    unsafe fn publish(&mut self, step: u64, bytes: *const u8, length: usize, needs: impl Fn(u32) -> bool) {
        // SAFETY: passed on.
        unsafe { self.segment.publish(step, bytes, length, needs) }
    }

    fn published(&mut self, rank: u32, step: u64, length: usize) -> crate::error::Result<Option<*const u8>> {
        self.segment.published(rank, step, length)
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
    let spare = &[LEAVING, "header.flag.store(", "let flag = "];
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
                let call = Call { descriptor: what, send: send.as_ptr().cast(), recv: recv.as_mut_ptr().cast() };
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
