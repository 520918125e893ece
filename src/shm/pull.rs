//! Zero-copy: where every rank's buffers are memory of `tutti_mem_alloc`, the others read them where they lie.
//!
//! # How ranks find out
//!
//! Whether a buffer is registered is something that only its rank knows, so it says so in the header of the call
//! ([`Claim`]): the region and the offset of what it contributes, and of its result. Whoever has seen all headers decides by
//! them alone, so all decide alike: if all named one region, which then all have, the call is pulled; else it goes as a
//! call of any buffers. A rank whose buffers are registered shows nothing before; one whose are not need not wait, since it
//! knows that nothing will be pulled.
//!
//! # Steps
//!
//! A call takes one step of the counters told at [`super::segment`]. Its parts:
//!
//! 1. *Read.* The header (a release store) hands over the contribution; whoever has seen it (acquire) reads it.
//!    A rank that takes its whole window from everybody then has its result.
//!    For an all_reduce with registered results each rank reduces one slice for all, over its part of the result, raises
//!    `published` (release), and, when all have (acquire), copies the others' slices out of their results.
//! 2. *Let go.* A rank that has read raises `finished` (release). A rank whose buffers were read returns when all others
//!    have (acquire): its caller may then write them again.
//!
//! Slices make the call work in place too: a rank writes its own slice alone, of which only itself reads the
//! contributions, and the rest after all have reduced theirs.

use std::{ops::Range, sync::Arc};

use super::segment::Segment;
use crate::{
    bootstrap::{Members, board, regions::Region},
    communicator::{Call, Descriptor, Pattern, Progress, copy, exchange, reduce},
    dtype::Collective,
    sync::{reads, writes},
};

/// Bytes read before the waiting loop gets to look at failures and deadlines.
const TURN: usize = 1 << 20;
/// Slices begin at multiples of this many bytes, so that no two ranks write one cache line.
const LINE: usize = 64;

/// What a rank says of its buffers: four words of the header's payload. All zero: they are not registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    /// The region of what is contributed (of the result, where the rank contributes nothing), and how far into it.
    region: u64,
    offset: u64,
    /// The same of the result, where it is registered.
    result_region: u64,
    result_offset: u64,
}

impl Claim {
    /// What can be said of this call's buffers.
    pub(super) fn of(call: &Call, pattern: &Pattern, members: &Members) -> Self {
        let regions = members.endpoint().regions();
        let find = |start: *const u8, length: usize| {
            if length == 0 {
                return (0, 0);
            }
            regions.find(start, length).map_or((0, 0), |(region, offset)| (region.id(), offset as u64))
        };
        let (send, recv) = (pattern.send_bytes(members.rank()), pattern.recv_bytes(members.size()));
        let (result_region, result_offset) = find(call.recv, recv);
        let (region, offset) = if send > 0 { find(call.send, send) } else { (result_region, result_offset) };
        Claim { region, offset, result_region, result_offset }
    }

    /// Whether the contribution is registered.
    pub(super) fn is_made(&self) -> bool {
        self.region != 0
    }

    /// In the bytes that go into a header.
    pub(super) fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let words = [self.region, self.offset, self.result_region, self.result_offset];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// Reads what a rank has put into its header.
    ///
    /// # Safety
    /// `payload` is readable for [`board::PAYLOAD`] bytes.
    unsafe fn read(payload: *const u8) -> Self {
        const { assert!(board::PAYLOAD >= 32) };
        reads(payload);
        // SAFETY: promised by the caller.
        let [region, offset, result_region, result_offset] = unsafe { payload.cast::<[u64; 4]>().read_unaligned() };
        Claim { region, offset, result_region, result_offset }
    }
}

/// How a call is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shots {
    /// Everybody takes all it wants from everybody.
    One,
    /// Everybody reduces a slice, then takes the others'.
    Two,
}

/// One rank's side of a pulled call.
pub(super) struct Pull {
    call: Call,
    pattern: Pattern,
    members: Arc<Members>,
    shots: Shots,
    /// The call's step.
    step: u64,
    /// Bytes of the window or slice that have been taken.
    taken: usize,
    stage: Stage,
}

/// What pulled calls need for as long as they go on, kept so that they allocate nothing.
pub(super) struct Room {
    claims: Vec<Claim>,
    /// Where each contributor's contribution lies, and each rank's result.
    contributions: Vec<*const u8>,
    results: Vec<*const u8>,
    sources: Vec<*const u8>,
    /// The memory that is read: it stays mapped.
    regions: [Option<Arc<Region>>; 2],
}

// SAFETY: the pointers are those of the call that goes on, or of the last one, and then used by nothing.
unsafe impl Send for Room {}

impl Room {
    /// For calls of `size` ranks.
    pub(super) fn new(size: u32) -> Self {
        let pointers = || Vec::with_capacity(size as usize);
        Room {
            claims: Vec::with_capacity(size as usize),
            contributions: pointers(),
            results: pointers(),
            sources: pointers(),
            regions: [None, None],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Reading,
    Gathering,
    LettingGo,
}

impl Pull {
    /// Steps of a call.
    pub(super) const STEPS: u64 = 1;

    /// Whether the call of that sequence, whose headers have all been seen, is pulled: then what is needed to do so.
    pub(super) fn decide(
        call: &Call,
        pattern: &Pattern,
        members: &Arc<Members>,
        (sequence, step): (u64, u64),
        room: &mut Room,
    ) -> Option<Self> {
        let (me, size) = (members.rank(), members.size());
        room.claims.clear();
        room.claims.extend((0..size).map(|rank| match rank == me {
            true => Claim::of(call, pattern, members),
            // SAFETY: the header was seen, and stays until this rank posts its next call but one.
            false => unsafe { Claim::read(members.board().payload(rank, sequence)) },
        }));
        let shots = shots(&call.descriptor, &room.claims)?;
        let regions = members.endpoint().regions();
        // What this rank has claimed it has: its own buffers lie there.
        let (region, _) = match pattern.send_bytes(me) {
            0 => regions.find(call.recv, pattern.recv_bytes(size))?,
            bytes => regions.find(call.send, bytes)?,
        };
        let at = |region: &Region, rank: u32, offset: u64| {
            let at = region.at(members.world_rank(rank), offset as usize, pattern.length);
            at.map(|at| at.cast_const())
        };
        room.contributions.clear();
        for rank in (0..size).filter(|rank| pattern.contributors.contains(*rank)) {
            room.contributions.push(match rank == me {
                true => call.send,
                false => at(&region, rank, room.claims[rank as usize].offset)?,
            });
        }
        room.regions[0] = Some(region);
        room.results.clear();
        if shots == Shots::Two {
            let (region, _) = regions.find(call.recv, pattern.length)?;
            for rank in 0..size {
                room.results.push(at(&region, rank, room.claims[rank as usize].result_offset)?);
            }
            room.regions[1] = Some(region);
        }
        let (call, pattern, members) = (*call, pattern.clone(), members.clone());
        Some(Pull { call, pattern, members, shots, step, taken: 0, stage: Stage::Reading })
    }

    /// Goes on as far as possible; the meeting is over.
    pub(super) fn poll(&mut self, segment: &Segment, room: &mut Room) -> Progress {
        let me = self.members.rank();
        let mut others = (0..self.members.size()).filter(|rank| *rank != me);
        match self.stage {
            Stage::Reading => {
                if self.read(room) {
                    match self.shots {
                        Shots::One => self.let_go(segment),
                        Shots::Two => {
                            segment.counter_publish(self.step + 1);
                            (self.stage, self.taken) = (Stage::Gathering, 0);
                        }
                    }
                }
                Progress::Moved
            }
            Stage::Gathering => {
                if others.any(|rank| segment.ring_published(rank, self.step).is_none()) {
                    return Progress::Pending;
                }
                self.gather(room);
                self.let_go(segment);
                Progress::Moved
            }
            // Only who was read from has to wait.
            Stage::LettingGo => {
                let was_read = self.pattern.contributors.contains(me);
                if was_read && !others.all(|rank| segment.has_finished(rank, self.step)) {
                    return Progress::Pending;
                }
                room.regions = [None, None];
                Progress::Done
            }
        }
    }

    /// Whether the call cannot go on before `rank` does something.
    pub(super) fn awaits(&self, segment: &Segment, rank: u32) -> bool {
        match self.stage {
            _ if rank == self.members.rank() => false,
            Stage::Reading => false,
            Stage::Gathering => segment.ring_published(rank, self.step).is_none(),
            Stage::LettingGo => {
                self.pattern.contributors.contains(self.members.rank()) && !segment.has_finished(rank, self.step)
            }
        }
    }

    fn let_go(&mut self, segment: &Segment) {
        segment.ring_finish(self.step + 1);
        self.stage = Stage::LettingGo;
    }

    /// Takes the next stretch of this rank's window, or of its slice; says whether that was the last.
    fn read(&mut self, room: &mut Room) -> bool {
        let whole = match self.shots {
            Shots::One => 0..self.pattern.window.len(),
            Shots::Two => self.slice(self.members.rank()),
        };
        let start = whole.start + self.taken;
        let range = start..(start + TURN).min(whole.end);
        // A slice is one of the only window that there is.
        let at = self.pattern.window.start + range.start;
        room.sources.clear();
        // SAFETY: each contribution is `pattern.length` bytes long; its header was seen, and its rank returns only after
        // this one has let go.
        room.sources.extend(room.contributions.iter().map(|start| unsafe { start.add(at) }));
        // SAFETY: as above; `recv` is writable for what the pattern says. Two shots write this rank's slice alone, whose
        // contributions nobody else reads.
        unsafe {
            match self.shots {
                Shots::One => exchange::apply(&self.call, &self.pattern, &range, &room.sources),
                Shots::Two => {
                    let Descriptor { dtype, op, .. } = self.call.descriptor;
                    room.sources.iter().for_each(|source| reads(*source));
                    writes(self.call.recv.add(range.start));
                    reduce::reduce(
                        dtype,
                        op,
                        &room.sources,
                        self.call.recv.add(range.start),
                        range.len() / dtype.size(),
                    );
                }
            }
        }
        self.taken += range.len();
        range.end == whole.end
    }

    /// Copies the others' slices out of their results.
    fn gather(&self, room: &Room) {
        for rank in (0..self.members.size()).filter(|rank| *rank != self.members.rank()) {
            let slice = self.slice(rank);
            let Some(result) = room.results.get(rank as usize) else { continue };
            // SAFETY: `rank` has published its slice, and returns only after this rank has let go. Nobody reads this
            // rank's result there.
            unsafe {
                let to = self.call.recv.add(slice.start);
                reads(result.add(slice.start));
                writes(to);
                copy::copy(result.add(slice.start), to, slice.len());
            }
        }
    }

    /// The bytes that `rank` reduces.
    fn slice(&self, rank: u32) -> Range<usize> {
        let length = self.pattern.length;
        let part = length.div_ceil(self.members.size() as usize).next_multiple_of(LINE);
        let start = (rank as usize * part).min(length);
        start..(start + part).min(length)
    }
}

/// How a call is pulled of which the ranks claim this; `None` if it cannot be.
fn shots(descriptor: &Descriptor, claims: &[Claim]) -> Option<Shots> {
    let first = claims.first()?;
    if claims.iter().any(|claim| !claim.is_made() || claim.region != first.region) {
        return None;
    }
    if descriptor.collective != Collective::AllReduce {
        return Some(Shots::One);
    }
    if first.result_region != 0 && claims.iter().all(|claim| claim.result_region == first.result_region) {
        return Some(Shots::Two);
    }
    let in_place = |claim: &Claim| (claim.region, claim.offset) == (claim.result_region, claim.result_offset);
    // One shot in place would overwrite what others still read.
    (!claims.iter().any(in_place)).then_some(Shots::One)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::dtype::{DType, Op};

    #[test]
    fn a_call_is_pulled_only_where_all_claims_allow_it() {
        let descriptor =
            |collective| Descriptor { collective, dtype: DType::Int8, op: Op::Sum, root: 0, flags: 0, count: 1 };
        let claim =
            |region, offset, result_region, result_offset| Claim { region, offset, result_region, result_offset };
        let (reduce, gather) = (descriptor(Collective::AllReduce), descriptor(Collective::AllGather));
        for (call, claims, expected) in [
            (&reduce, [claim(1, 0, 1, 0), claim(1, 8, 1, 8)], Some(Shots::Two)),
            (&reduce, [claim(1, 0, 2, 0), claim(1, 8, 2, 0)], Some(Shots::Two)),
            (&reduce, [claim(1, 0, 0, 0), claim(1, 8, 2, 0)], Some(Shots::One)),
            (&reduce, [claim(1, 0, 0, 0), claim(1, 8, 1, 8)], None),
            (&reduce, [claim(1, 0, 1, 0), claim(0, 0, 1, 0)], None),
            (&gather, [claim(1, 0, 1, 0), claim(1, 8, 0, 0)], Some(Shots::One)),
            (&gather, [claim(1, 0, 1, 0), claim(2, 8, 0, 0)], None),
        ] {
            assert_eq!(shots(call, &claims), expected, "{claims:?}");
        }
    }
}
