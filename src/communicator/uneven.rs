//! Calls whose parts differ in size from rank to rank: the v-forms, over the lanes of the [`Exchange`].
//!
//! Everybody knows how much everybody takes of everybody, its *window*; then it goes as in the exchange: the windows are
//! cut into pieces of one size, step `i` is about piece `i` of each that is so long, a rank publishes ahead and takes step
//! by step what it finds for itself.
//!
//! In all_gather_v and reduce_scatter_v all ranks name the same counts, of which the meeting compares a digest. In
//! all_to_all_v each rank knows only what it sends and what it expects; so the ranks first gather each other's
//! counts, compare what one sends with what the other expects, and write nothing where these differ.

use std::{ffi::c_void, ops::Range, sync::Arc};

use super::{
    Call, Descriptor, Meeting, Pattern, Progress, Ranks, copy,
    exchange::{Cut, Exchange, Lanes, Piece, STREAMED},
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
    /// The stream of a call on a CUDA group.
    pub stream: *mut c_void,
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
    /// How the windows are cut, once they move.
    cut: Option<Cut>,
    /// Whether the result is placed past the caches.
    streams: bool,
    /// The count at which this call's steps begin.
    base: u64,
    steps: u64,
    published: u64,
    consumed: u64,
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
            stream: std::ptr::null_mut(),
        };
        Parts {
            members,
            call: nothing,
            sequence: 0,
            stage: Stage::Meeting,
            mine: Vec::new(),
            all: Vec::new(),
            cut: None,
            streams: false,
            base: 0,
            steps: 0,
            published: 0,
            consumed: 0,
            sources: Vec::new(),
        }
    }

    /// Begins the group's `sequence`-th call, whose meeting has begun.
    pub fn begin(&mut self, call: Uneven, sequence: u64) {
        self.call = call;
        self.sequence = sequence;
        self.stage = Stage::Meeting;
        self.cut = None;
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
                let taken = self.taken(rank, me, self.consumed);
                let for_data = self.consumed < self.steps
                    && !taken.is_empty()
                    && !matches!(
                        lanes.published(rank, self.base + self.consumed, self.at(rank, me), taken.len()),
                        Ok(Some(_))
                    );
                let needed = !self.taken(me, rank, self.published).is_empty();
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

    /// Begins to move the parts, whose sizes all ranks know.
    fn move_parts<L: Lanes>(&mut self, exchange: &mut Exchange<L>) {
        self.stage = Stage::Moving;
        let cut = Cut::new(&exchange.lanes, self.size(), self.call.descriptor.collective != Collective::AllGatherV);
        self.cut = Some(cut);
        let ranks = 0..self.size();
        let pairs = ranks.clone().flat_map(|from| ranks.clone().map(move |of| (from, of)));
        let moved = pairs.filter(|(from, of)| self.moves(*from, *of));
        let longest = moved.map(|(from, of)| self.window(from, of)).max().unwrap_or(0);
        self.steps = cut.steps(longest);
        self.base = exchange.reserve(self.steps);
        self.streams = self.call.recv_parts.iter().map(|part| part.bytes).sum::<usize>() >= STREAMED;
        if !self.reduces() {
            self.keep_own();
        }
    }

    fn reduces(&self) -> bool {
        self.call.descriptor.collective == Collective::ReduceScatterV
    }

    /// Copies what this rank gives itself.
    fn keep_own(&mut self) {
        let me = self.members.rank() as usize;
        let (from, to) = (self.call.send_parts[me], self.call.recv_parts[me]);
        // SAFETY: both parts are as the call's maker promised, of one size (which was compared), and the same or apart.
        unsafe {
            let (from, to) = (self.call.send.add(from.start), self.call.recv.add(to.start));
            if !std::ptr::eq(from, to) {
                copy::copy_by(self.streams, from, to, self.call.recv_parts[me].bytes);
            }
        }
    }

    fn go_on<L: Lanes>(&mut self, lanes: &mut L) -> Result<Progress> {
        let begun = (self.published, self.consumed);
        let turn = self.consumed + TURN;
        loop {
            let before = (self.published, self.consumed);
            while self.published < self.steps && self.published < self.consumed + AHEAD && self.publish(lanes) {}
            // A piece of this rank's own is published before the result may overwrite it in place.
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

    /// Bytes of `from`'s contribution that rank `of` takes.
    fn window(&self, from: u32, of: u32) -> usize {
        let (from, of) = (from as usize, of as usize);
        match self.call.descriptor.collective {
            // Everybody's window is the part that it becomes.
            Collective::AllGatherV => self.call.recv_parts[from].bytes,
            Collective::ReduceScatterV => self.call.send_parts[of].bytes,
            _ => self.row(from)[of] as usize,
        }
    }

    /// Whether that goes step by step: what a rank keeps is copied at once.
    fn moves(&self, from: u32, of: u32) -> bool {
        from != of || self.reduces()
    }

    /// What rank `of` takes in a step of its window in `from`'s contribution.
    fn taken(&self, from: u32, of: u32, step: u64) -> Range<usize> {
        match self.cut {
            Some(cut) if self.moves(from, of) => cut.range(self.window(from, of), step),
            _ => 0..0,
        }
    }

    /// Where that lies in `from`'s chunk.
    fn at(&self, from: u32, of: u32) -> usize {
        self.cut.map_or(0, |cut| cut.at(from, of))
    }

    /// What this rank shows another in a step.
    fn piece(&self, to: u32, step: u64) -> Option<Piece> {
        let me = self.members.rank();
        let taken = self.taken(me, to, step);
        let start = self.call.send_parts[to as usize].start + taken.start;
        let piece = || Piece { bytes: self.call.send.wrapping_add(start), length: taken.len(), at: self.at(me, to) };
        (to != me && !taken.is_empty()).then(piece)
    }

    /// Publishes the next step if there is room, and says whether there was. What nobody takes is passed over.
    fn publish<L: Lanes>(&mut self, lanes: &mut L) -> bool {
        let step = self.published;
        let piece = |rank| self.piece(rank, step);
        if (0..self.size()).any(|rank| piece(rank).is_some()) {
            if !lanes.has_room(self.base + step, |rank| piece(rank).is_some()) {
                return false;
            }
            // SAFETY: the pieces lie in the parts of `send`, by the promise of the call's maker, and there is room.
            unsafe { lanes.publish(self.base + step, piece) };
        }
        self.published += 1;
        true
    }

    /// Consumes the next step if all that this rank takes of it is there.
    fn consume<L: Lanes>(&mut self, lanes: &mut L) -> Result<()> {
        let (me, step) = (self.members.rank(), self.consumed);
        self.sources.clear();
        let mut took = Ranks::None;
        for from in 0..self.size() {
            let taken = self.taken(from, me, step);
            if taken.is_empty() {
                continue;
            }
            let source = match from == me {
                // In place, it has not been overwritten yet.
                true => Some(self.call.send.wrapping_add(self.call.send_parts[me as usize].start + taken.start)),
                false => lanes.published(from, self.base + step, self.at(from, me), taken.len())?,
            };
            let Some(source) = source else { return Ok(()) };
            self.sources.push(source);
            if from != me {
                took = Ranks::All;
            }
        }
        self.sources.iter().for_each(|source| reads(*source));
        if self.reduces() {
            self.reduce(step);
        } else {
            self.place(step);
        }
        self.consumed += 1;
        lanes.finish(self.base + step + 1, took);
        Ok(())
    }

    fn reduce(&mut self, step: u64) {
        let me = self.members.rank();
        let taken = self.taken(me, me, step);
        if taken.is_empty() {
            return;
        }
        let Descriptor { dtype, op, .. } = self.call.descriptor;
        let at = self.call.recv_parts[me as usize].start + taken.start;
        // SAFETY: every source is readable for what is taken, which is alike in all contributions; the result has room for
        // this rank's window. Pieces are multiples of 8 bytes and windows of an element, so whole elements are taken.
        unsafe { reduce::reduce(dtype, op, &self.sources, self.call.recv.add(at), taken.len() / dtype.size()) };
    }

    fn place(&mut self, step: u64) {
        let me = self.members.rank();
        let mut sources = self.sources.iter();
        for from in 0..self.size() {
            let taken = self.taken(from, me, step);
            if taken.is_empty() {
                continue;
            }
            let Some(source) = sources.next() else { return };
            let at = self.call.recv_parts[from as usize].start + taken.start;
            // SAFETY: the source is readable for what is taken; the part that `from` fills has room for the whole window,
            // since the counts were compared.
            unsafe { copy::copy_by(self.streams, *source, self.call.recv.add(at), taken.len()) };
        }
    }
}
