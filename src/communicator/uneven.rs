//! Calls whose parts differ in size from rank to rank: the v-forms, over the lanes of the [`Exchange`].
//!
//! What a rank contributes is one line of bytes, the parts for all ranks one after the other, wherever they lie in its
//! memory; and everybody knows where in everybody's line its own part, its *window*, begins. Then it goes as in the
//! exchange: the lines are cut into chunks, step `i` is about chunk `i` of everybody's, a rank publishes ahead and takes
//! step by step what of the chunks lies in its windows.
//!
//! In all_gather_v and reduce_scatter_v all ranks name the same counts, of which the meeting compares a digest. In
//! all_to_all_v each rank knows only what it sends and what it expects; so the ranks first gather each other's
//! counts, compare what one sends with what the other expects, and write nothing where these differ.

use std::{ops::Range, sync::Arc};

use super::{
    Call, Descriptor, Meeting, Pattern, Progress, Ranks, copy,
    exchange::{Exchange, Lanes},
    reduce,
};
use crate::{
    bootstrap::Members,
    dtype::{Collective, DType, Op},
    error::{Error, Failure, Result, Status},
    sync::reads,
};

/// Where one rank's part lies in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Bytes before it.
    pub start: usize,
    /// Its bytes.
    pub bytes: usize,
}

/// One rank's v-form: the descriptor and this rank's buffers, checked.
///
/// Whoever makes one promises, until the call is done, that the parts of `send` are readable and those of `recv` writable,
/// that nobody else touches them, that the parts of `recv` do not overlap, and that the two are either the in-place form of
/// the collective or apart. Both lists have a part for every rank of the group.
#[derive(Clone, Debug)]
pub struct Uneven {
    /// What all ranks call alike. The count is the sum of the counts and the root a digest of them, see
    /// [`Uneven::descriptor`]; both are 0 for all_to_all_v.
    pub descriptor: Descriptor,
    /// This rank's contribution.
    pub send: *const u8,
    /// Its parts. For all_gather_v all of them are the same bytes: those that every rank gets.
    pub send_parts: Vec<Part>,
    /// This rank's result.
    pub recv: *mut u8,
    /// Its parts. For reduce_scatter_v all of them are the same bytes: those that every rank's window is reduced to.
    pub recv_parts: Vec<Part>,
}

// SAFETY: the pointers belong to the caller, who promises exclusive use until the call is done, from any thread.
unsafe impl Send for Uneven {}

impl Uneven {
    /// What all ranks must call alike: the sum of `counts` (in elements), and a digest of each.
    pub fn descriptor(collective: Collective, dtype: DType, op: Op, flags: u32, counts: &[u64]) -> Descriptor {
        // FNV-1a over the numbers' bytes, folded: the same on every machine.
        let digest = counts
            .iter()
            .flat_map(|count| count.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let root = (digest ^ digest >> 32) as u32;
        Descriptor { collective, dtype, op, root, flags, count: counts.iter().sum() }
    }
}

/// One rank's side of the current v-form. What it needs for one is kept for the next.
pub struct Parts {
    members: Arc<Members>,
    call: Uneven,
    sequence: u64,
    stage: Stage,
    /// What this rank sends to each, then what it expects of each, for all_to_all_v.
    mine: Vec<u64>,
    /// Everybody's `mine`, one after the other.
    all: Vec<u64>,
    /// Of each rank's line, one after the other, where the ranks' windows begin, and the end. Known once they move.
    lines: Vec<usize>,
    /// The count at which this call's steps begin.
    base: u64,
    steps: u64,
    published: u64,
    consumed: u64,
    /// A chunk put together from several parts.
    packed: Vec<u8>,
    sources: Vec<*const u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// All show what they call.
    Meeting,
    /// All gather what everybody sends and expects.
    Counts,
    /// The parts move.
    Moving,
}

// SAFETY: the sources are the call's memory or that of the lanes, which may be used from any thread.
unsafe impl Send for Parts {}

/// Steps consumed before the waiting loop gets to look at failures and deadlines.
const TURN: u64 = 16;
/// Steps published ahead of the last one consumed, as in the exchange.
const AHEAD: u64 = 2;

impl Parts {
    /// Between `members`, with no call begun.
    pub fn new(members: Arc<Members>) -> Self {
        let nothing = Uneven {
            descriptor: Uneven::descriptor(Collective::AllToAllV, DType::Bytes, Op::Sum, 0, &[]),
            send: std::ptr::null(),
            send_parts: Vec::new(),
            recv: std::ptr::null_mut(),
            recv_parts: Vec::new(),
        };
        Parts {
            members,
            call: nothing,
            sequence: 0,
            stage: Stage::Meeting,
            mine: Vec::new(),
            all: Vec::new(),
            lines: Vec::new(),
            base: 0,
            steps: 0,
            published: 0,
            consumed: 0,
            packed: Vec::new(),
            sources: Vec::new(),
        }
    }

    /// Begins the group's `sequence`-th call, whose meeting has begun.
    pub fn begin(&mut self, call: Uneven, sequence: u64) {
        self.call = call;
        self.sequence = sequence;
        self.stage = Stage::Meeting;
        (self.base, self.steps, self.published, self.consumed) = (0, 0, 0, 0);
    }

    /// Goes on as far as possible. `exchange` is the communicator's, with no call of its own going on.
    pub fn poll<L: Lanes>(&mut self, exchange: &mut Exchange<L>, meeting: &mut Meeting) -> Result<Progress> {
        if self.stage == Stage::Meeting {
            if meeting.poll()? != Progress::Done {
                return Ok(Progress::Pending);
            }
            match self.call.descriptor.collective {
                Collective::AllToAllV => self.gather_counts(exchange),
                _ => self.move_parts(exchange),
            }
        }
        if self.stage == Stage::Counts {
            match exchange.poll(meeting)? {
                Progress::Done => {
                    self.compare()?;
                    self.move_parts(exchange);
                }
                progress => return Ok(progress),
            }
        }
        self.go_on(&mut exchange.lanes)
    }

    /// Whether the call cannot go on before `rank` does something; the meeting is asked apart.
    pub fn awaits<L: Lanes>(&mut self, exchange: &mut Exchange<L>, rank: u32) -> bool {
        let me = self.members.rank();
        match self.stage {
            _ if rank == me => false,
            Stage::Meeting => false,
            Stage::Counts => exchange.awaits(rank),
            Stage::Moving => {
                let lanes = &mut exchange.lanes;
                let (step, most) = (self.consumed, lanes.chunk());
                let length = self.chunk(most, rank, step).len();
                let for_data = self.consumed < self.steps
                    && self.takes(most, rank, me, step)
                    && !matches!(lanes.published(rank, self.base + step, length), Ok(Some(_)));
                let needed = self.published < self.steps && self.takes(most, me, rank, self.published);
                let for_room =
                    self.published < self.steps && lanes.denies_room(rank, self.base + self.published, needed);
                for_data || for_room || !lanes.is_settled(rank)
            }
        }
    }

    fn size(&self) -> u32 {
        self.members.size()
    }

    /// Begins the gathering of the counts, through the exchange.
    fn gather_counts<L: Lanes>(&mut self, exchange: &mut Exchange<L>) {
        let parts = self.call.send_parts.iter().chain(&self.call.recv_parts);
        self.mine.clear();
        self.mine.extend(parts.map(|part| part.bytes as u64));
        self.all.resize(self.mine.len() * self.members.size() as usize, 0);
        let descriptor = Descriptor {
            collective: Collective::AllGather,
            dtype: DType::Uint64,
            op: Op::Sum,
            root: 0,
            flags: 0,
            count: self.mine.len() as u64,
        };
        let call = Call::new(descriptor, self.mine.as_ptr().cast(), self.all.as_mut_ptr().cast());
        if let Some(pattern) = Pattern::new(&descriptor, self.members.rank(), self.size()) {
            exchange.begin(&call, pattern);
        }
        // Nothing changes the vectors before the exchange is over.
        self.stage = Stage::Counts;
    }

    /// Compares what each rank sends with what the other expects.
    fn compare(&self) -> Result<()> {
        let size = self.size() as usize;
        for from in 0..size {
            for to in 0..size {
                let (sent, expected) = (self.row(from)[to], self.row(to)[size + from]);
                if sent != expected {
                    return Err(self.mismatch(from, to, sent, expected));
                }
            }
        }
        Ok(())
    }

    /// What a rank sends to each, then what it expects of each.
    fn row(&self, rank: usize) -> &[u64] {
        let both = 2 * self.size() as usize;
        &self.all[both * rank..both * (rank + 1)]
    }

    #[cold]
    fn mismatch(&self, from: usize, to: usize, sent: u64, expected: u64) -> Error {
        let Descriptor { collective, dtype, .. } = self.call.descriptor;
        let (name, sequence, bytes) = (self.members.name(), self.sequence, dtype.size() as u64);
        let (sent, expected, dtype) = (sent / bytes, expected / bytes, dtype.name());
        Error::from(Failure {
            status: Status::Mismatch,
            rank: Some(from as u32),
            collective: Some(collective),
            sequence,
            text: format!(
                "ranks of group {name:?} differ: rank {from} sends {sent} x {dtype} to rank {to}, which expects {expected} \
                 ({} #{sequence}); nothing was written",
                collective.name()
            ),
        })
    }

    /// Where the windows begin in everybody's line.
    fn lay_out(&mut self) {
        let size = self.size() as usize;
        let mut lines = std::mem::take(&mut self.lines);
        lines.clear();
        for rank in 0..size {
            let mut end = 0;
            lines.push(end);
            for of in 0..size {
                match self.call.descriptor.collective {
                    // Everybody's window is all of the line, which is as long as the part it becomes.
                    Collective::AllGatherV => end = self.call.recv_parts[rank].bytes,
                    Collective::ReduceScatterV => end += self.call.send_parts[of].bytes,
                    _ => end += self.row(rank)[of] as usize,
                }
                lines.push(end);
            }
        }
        self.lines = lines;
    }

    /// A rank's line: where the windows begin, and the end.
    fn line(&self, rank: u32) -> &[usize] {
        let marks = self.size() as usize + 1;
        &self.lines[marks * rank as usize..marks * (rank as usize + 1)]
    }

    /// Begins to move the parts, whose sizes all ranks know.
    fn move_parts<L: Lanes>(&mut self, exchange: &mut Exchange<L>) {
        self.lay_out();
        self.stage = Stage::Moving;
        let longest = (0..self.size()).filter_map(|rank| self.line(rank).last()).max().copied().unwrap_or(0);
        self.steps = longest.div_ceil(exchange.lanes.chunk()) as u64;
        self.base = exchange.reserve(self.steps);
        if self.call.descriptor.collective != Collective::ReduceScatterV {
            self.keep_own();
        }
    }

    /// Copies what this rank gives itself.
    fn keep_own(&mut self) {
        let me = self.members.rank() as usize;
        let (from, to) = (self.call.send_parts[me], self.call.recv_parts[me]);
        // SAFETY: both parts are as the call's maker promised, of one size (which was compared), and the same or apart.
        unsafe {
            let (from, to) = (self.call.send.add(from.start), self.call.recv.add(to.start));
            if !std::ptr::eq(from, to) {
                copy::copy(from, to, self.call.recv_parts[me].bytes);
            }
        }
    }

    fn go_on<L: Lanes>(&mut self, lanes: &mut L) -> Result<Progress> {
        let begun = (self.published, self.consumed);
        let turn = self.consumed + TURN;
        loop {
            let before = (self.published, self.consumed);
            while self.published < self.steps && self.published < self.consumed + AHEAD && self.publish(lanes) {}
            // A chunk of this rank's own is published before the result may overwrite it in place.
            if self.consumed < self.published {
                self.consume(lanes)?;
            }
            let now = (self.published, self.consumed);
            if now == (self.steps, self.steps) {
                let me = self.members.rank();
                let settled = (0..self.size()).all(|rank| rank == me || lanes.is_settled(rank));
                return Ok(if settled { Progress::Done } else { Progress::Pending });
            }
            if before == now || self.consumed >= turn {
                return Ok(if begun == now { Progress::Pending } else { Progress::Moved });
            }
        }
    }

    /// Rank `of`'s window in the line of rank `from`.
    fn window(&self, from: u32, of: u32) -> Range<usize> {
        let line = self.line(from);
        match self.call.descriptor.collective {
            Collective::AllGatherV => 0..line[1],
            _ => line[of as usize]..line[of as usize + 1],
        }
    }

    /// The bytes of `rank`'s line that a step is about, in chunks of `most` bytes.
    fn chunk(&self, most: usize, rank: u32, step: u64) -> Range<usize> {
        let end = self.line(rank).last().copied().unwrap_or(0);
        let start = step as usize * most;
        start.min(end)..(start + most).min(end)
    }

    /// What rank `of` takes of `from`'s chunk in a step, as a range of the line.
    fn taken(&self, most: usize, from: u32, of: u32, step: u64) -> Range<usize> {
        let (chunk, window) = (self.chunk(most, from, step), self.window(from, of));
        chunk.start.max(window.start)..chunk.end.min(window.end)
    }

    fn takes(&self, most: usize, from: u32, of: u32, step: u64) -> bool {
        from != of && !self.taken(most, from, of, step).is_empty()
    }

    /// Publishes the next step if there is room, and says whether there was. What nobody takes is passed over.
    fn publish<L: Lanes>(&mut self, lanes: &mut L) -> bool {
        let (me, step, most) = (self.members.rank(), self.published, lanes.chunk());
        if (0..self.size()).any(|rank| self.takes(most, me, rank, step)) {
            if !lanes.has_room(self.base + step, |rank| self.takes(most, me, rank, step)) {
                return false;
            }
            let chunk = self.chunk(most, me, step);
            let bytes = self.gather(&chunk);
            // SAFETY: the bytes are readable for the chunk, and there is room.
            unsafe { lanes.publish(self.base + step, bytes, chunk.len(), |rank| self.takes(most, me, rank, step)) };
        }
        self.published += 1;
        true
    }

    /// Where these bytes of this rank's line lie in one piece, which may have to be made.
    fn gather(&mut self, range: &Range<usize>) -> *const u8 {
        let me = self.members.rank() as usize;
        if self.call.descriptor.collective == Collective::AllGatherV {
            // SAFETY: inside the part of `send`, by the promise of the call's maker.
            return unsafe { self.call.send.add(self.call.send_parts[me].start + range.start) };
        }
        let mut packed = std::mem::take(&mut self.packed);
        packed.clear();
        let mut whole = None;
        for (part, window) in self.call.send_parts.iter().zip(self.line(me as u32).windows(2)) {
            let taken = range.start.max(window[0])..range.end.min(window[1]);
            if taken.is_empty() {
                continue;
            }
            // SAFETY: as above.
            let piece = unsafe { self.call.send.add(part.start + taken.start - window[0]) };
            if taken == *range {
                whole = Some(piece);
                break;
            }
            // SAFETY: as above, for the bytes of the part that are taken.
            packed.extend_from_slice(unsafe { std::slice::from_raw_parts(piece, taken.len()) });
        }
        self.packed = packed;
        whole.unwrap_or(self.packed.as_ptr())
    }

    /// Consumes the next step if all that this rank takes of it is there.
    fn consume<L: Lanes>(&mut self, lanes: &mut L) -> Result<()> {
        let (me, step, most) = (self.members.rank(), self.consumed, lanes.chunk());
        let reduces = self.call.descriptor.collective == Collective::ReduceScatterV;
        self.sources.clear();
        let mut took = Ranks::None;
        for from in 0..self.size() {
            let taken = self.taken(most, from, me, step);
            if taken.is_empty() || from == me && !reduces {
                continue;
            }
            let chunk = self.chunk(most, from, step);
            let source = match from == me {
                true => {
                    let offset = self.call.send_parts[me as usize].start + taken.start - self.window(me, me).start;
                    // SAFETY: inside this rank's part of `send`. In place, it has not been overwritten yet.
                    Some(unsafe { self.call.send.add(offset) })
                }
                // SAFETY: what is taken lies inside the chunk.
                false => lanes
                    .published(from, self.base + step, chunk.len())?
                    .map(|at| unsafe { at.add(taken.start - chunk.start) }),
            };
            let Some(source) = source else { return Ok(()) };
            self.sources.push(source);
            if from != me {
                took = Ranks::All;
            }
        }
        self.sources.iter().for_each(|source| reads(*source));
        if reduces {
            self.reduce(most, step);
        } else {
            self.place(most, step);
        }
        self.consumed += 1;
        lanes.finish(self.base + step + 1, took);
        Ok(())
    }

    fn reduce(&mut self, most: usize, step: u64) {
        let me = self.members.rank();
        let taken = self.taken(most, me, me, step);
        if taken.is_empty() {
            return;
        }
        let Descriptor { dtype, op, .. } = self.call.descriptor;
        let at = self.call.recv_parts[me as usize].start + taken.start - self.window(me, me).start;
        // SAFETY: every source is readable for what is taken, which is alike in all lines; the result has room for this
        // rank's window. Chunks are multiples of 8 bytes and windows of an element, so whole elements are taken.
        unsafe { reduce::reduce(dtype, op, &self.sources, self.call.recv.add(at), taken.len() / dtype.size()) };
    }

    fn place(&mut self, most: usize, step: u64) {
        let me = self.members.rank();
        let mut sources = self.sources.iter();
        for from in (0..self.size()).filter(|from| *from != me) {
            let taken = self.taken(most, from, me, step);
            if taken.is_empty() {
                continue;
            }
            let Some(source) = sources.next() else { return };
            let at = self.call.recv_parts[from as usize].start + taken.start - self.window(from, me).start;
            // SAFETY: the source is readable for what is taken; the part that `from` fills has room for the whole window,
            // since the counts were compared.
            unsafe { copy::copy(*source, self.call.recv.add(at), taken.len()) };
        }
    }
}
