//! The board: the few cache lines per rank that a whole group on one host can see.
//!
//! It carries what must work whatever communicator serves a call: the first failure, who has left, the bells, and
//! the header of every call, by which ranks find out that they called different things. A group that shares no
//! memory has a board of its own on each rank; then messages carry the same things (see [`super::Members`]).
//!
//! # Headers
//!
//! A rank's `sequence`-th call is posted in its header `sequence % 2`: first the descriptor's words and up to
//! [`PAYLOAD`] bytes of data, then, with a release store, the flag `sequence | digest << 32`. A peer that reads the
//! flag of that sequence with an acquire load may read the rest.
//!
//! *Why two headers are enough.* Every call waits for the headers of all ranks before it ends. So a rank posts call
//! n+2 only after it saw every peer's header n+1, and a peer posts n+1 only after it ended call n, that is, after
//! its last look at the others' headers n. Nobody reads what is about to be overwritten. The same argument covers
//! any memory of a communicator that is used in turn by `sequence % 2`.
//!
//! *References.* Rust's `&` says that nobody writes what it covers, but for atomics. So there is none to a whole seat,
//! header or failure line, whose other bytes peers do write: only to single atomics, found through raw pointers.
//!
//! *Wrap.* Flags carry 32 bits of the sequence and are compared for equality; two values that can be in one header
//! at a time are 2 apart.

use std::{ptr::NonNull, sync::Arc, time::Duration};

use super::{
    bell::{Bell, Doze},
    mapping::Mapping,
};
use crate::{
    dtype::Collective,
    error::{Failure, Status},
    sync::{AtomicU32, AtomicU64, Fences, Ordering, prefetch_to_write, reads, spin_until, writes},
};

/// Bytes of data that fit beside the flag in a header's cache line.
pub const PAYLOAD: usize = 56;
/// Room for the sentence that tells of a failure.
const TEXT: usize = 1000;
/// How long a reader waits for the sentence of a failure that has just been recorded. Its writer needs microseconds, but
/// on a busy machine it may lose its core in between; one that died there is waited for in vain, which is seldom.
const TEXT_PATIENCE: Duration = Duration::from_millis(100);

/// The first failure of the group.
#[repr(C, align(128))]
struct FailureLine {
    /// 0, or status | collective + 1 | rank + 1 | sequence, in 8, 8, 16 and 32 bits from the top. Set once, by
    /// compare-and-swap, so that all ranks name the same failure. Nothing is handed over by it, so it asks for no order.
    word: AtomicU64,
    /// Bytes of `text`, stored with release by whoever set `word`, after the text; whoever acquires it may read them.
    length: AtomicU32,
    text: [u8; TEXT],
}

/// One call of one rank: the line that is polled, and the line that is read when there is a question.
#[repr(C, align(128))]
struct Header {
    flag: AtomicU64,
    payload: [u8; PAYLOAD],
    words: [AtomicU64; 3],
    _rest: [u64; 5],
}

/// What one rank shows the others. Only the rank itself writes it, but for the bell.
#[repr(C, align(128))]
struct Seat {
    bell: Bell,
    /// 1 once the rank has destroyed its handle.
    left: AtomicU32,
    headers: [Header; 2],
}

/// A group's board. All zero is a fresh one.
pub struct Board {
    mapping: Arc<Mapping>,
    /// Where the seats begin in it.
    seats: NonNull<Seat>,
    shared: bool,
    size: u32,
    fences: Fences,
}

// SAFETY: the seats lie in the mapping, which may be used from any thread, and are made of atomics and of bytes that the
// module comment divides up.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

impl Board {
    /// Bytes of a board for `size` ranks.
    pub fn bytes(size: u32) -> usize {
        size_of::<FailureLine>() + size as usize * size_of::<Seat>()
    }

    /// A board in `mapping`, which all members see if `shared`; then all divide the bells' fences alike.
    ///
    /// # Panics
    /// If the mapping is too small.
    pub fn new(mapping: Arc<Mapping>, shared: bool, size: u32, fences: Fences) -> Self {
        mapping.at(0, Self::bytes(size));
        let seats = mapping.at(size_of::<FailureLine>(), size as usize * size_of::<Seat>()).cast();
        Board { mapping, seats, shared, size, fences }
    }

    /// Whether all members see this very board.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Posts `rank`'s header: the one place where a call becomes visible.
    ///
    /// # Safety
    /// `payload` is readable; only `rank` itself calls this, one call at a time and in sequence, and no sooner than
    /// the module comment allows.
    pub unsafe fn post(&self, rank: u32, sequence: u64, digest: u32, words: [u64; 3], payload: &[u8]) {
        // Mostly the call before last was the same; then the line stays as it is, and need not be taken back from whoever
        // fetched it along with its neighbour.
        for (cell, word) in self.word_cells(rank, sequence).iter().zip(words) {
            if cell.load(Ordering::Relaxed) != word {
                cell.store(word, Ordering::Relaxed);
            }
        }
        let to = self.payload(rank, sequence).cast_mut();
        writes(to);
        // SAFETY: the payload lies in the mapping, and by the caller's promise nobody reads it now.
        unsafe { std::ptr::copy_nonoverlapping(payload.as_ptr(), to, payload.len().min(PAYLOAD)) };
        self.flag(rank, sequence).store(u64::from(sequence as u32) | u64::from(digest) << 32, Ordering::Release);
    }

    /// Has the processor take back the line in which `rank` will post call `sequence`, which peers still have from when they
    /// read the call before last there. Done early, the post need not wait for it.
    #[inline]
    pub fn make_ready(&self, rank: u32, sequence: u64) {
        prefetch_to_write(self.header(rank, sequence).as_ptr().cast_const().cast());
    }

    /// The digest in `rank`'s header, once it has posted call `sequence`.
    #[inline]
    pub fn posted(&self, rank: u32, sequence: u64) -> Option<u32> {
        let flag = self.flag(rank, sequence).load(Ordering::Acquire);
        (flag as u32 == sequence as u32).then_some((flag >> 32) as u32)
    }

    /// The descriptor's words in a header that has been posted.
    pub fn words(&self, rank: u32, sequence: u64) -> [u64; 3] {
        let cells = self.word_cells(rank, sequence);
        std::array::from_fn(|i| cells[i].load(Ordering::Relaxed))
    }

    /// The payload of a header that has been posted: [`PAYLOAD`] readable bytes until this rank's next call.
    pub fn payload(&self, rank: u32, sequence: u64) -> *const u8 {
        // SAFETY: a field of a header inside the mapping.
        unsafe { (&raw const (*self.header(rank, sequence).as_ptr()).payload).cast() }
    }

    /// Says that `rank` has destroyed its handle.
    pub fn leave(&self, rank: u32) {
        self.left(rank).store(1, Ordering::Release);
        self.ring_all();
    }

    /// Whether `rank` has destroyed its handle. What it published before is visible to whoever sees this.
    pub fn has_left(&self, rank: u32) -> bool {
        self.left(rank).load(Ordering::Acquire) != 0
    }

    /// Records the first failure and wakes everybody; a later one changes nothing. Returns whether it was the first.
    pub fn fail(&self, failure: &Failure) -> bool {
        if self.failure_word().compare_exchange(0, pack(failure), Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return false;
        }
        let text = truncated(&failure.text, TEXT);
        let to = self.failure_text().cast_mut();
        writes(to);
        // SAFETY: whoever won the exchange is the only writer of the text, and nobody reads it before `length`.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), to, text.len()) };
        self.failure_length().store(text.len() as u32, Ordering::Release);
        self.ring_all();
        true
    }

    /// Whether the group has failed: one load, for every look at the world.
    #[inline]
    pub fn has_failed(&self) -> bool {
        self.failure_word().load(Ordering::Relaxed) != 0
    }

    /// The first failure.
    pub fn failure(&self) -> Option<Failure> {
        let word = self.failure_word().load(Ordering::Relaxed);
        if word == 0 {
            return None;
        }
        let mut length = 0;
        spin_until(TEXT_PATIENCE, || {
            length = self.failure_length().load(Ordering::Acquire);
            length != 0
        });
        let mut failure = unpack(word);
        reads(self.failure_text());
        // SAFETY: the acquire load of a non-zero length makes the text's bytes visible; they never change again.
        let text = unsafe { std::slice::from_raw_parts(self.failure_text(), (length as usize).min(TEXT)) };
        failure.text = match length {
            // Whoever failed the group died before it could say more.
            0 => generic(&failure),
            _ => String::from_utf8_lossy(text).into_owned(),
        };
        Some(failure)
    }

    /// Wakes every rank that sleeps. Whatever they should see has been published before.
    #[inline]
    pub fn ring_all(&self) {
        Bell::before_ringing(self.fences);
        for rank in 0..self.size {
            self.bell(rank).ring();
        }
    }

    /// Wakes `rank` if it sleeps. Whatever it should see has been published before.
    #[inline]
    pub fn ring(&self, rank: u32) {
        Bell::before_ringing(self.fences);
        self.bell(rank).ring();
    }

    /// See [`Bell::doze`].
    pub fn doze(&self, rank: u32) -> Doze<'_> {
        self.bell(rank).doze(self.fences)
    }

    fn failure_line(&self) -> NonNull<FailureLine> {
        self.mapping.at(0, size_of::<FailureLine>()).cast()
    }

    fn seat_address(&self, rank: u32) -> NonNull<Seat> {
        assert!(rank < self.size, "no such rank");
        // SAFETY: the mapping has room for `size` seats, as `new` made sure.
        unsafe { self.seats.add(rank as usize) }
    }

    fn failure_word(&self) -> &AtomicU64 {
        // SAFETY: an atomic inside the mapping, zero at first.
        unsafe { &(*self.failure_line().as_ptr()).word }
    }

    fn failure_length(&self) -> &AtomicU32 {
        // SAFETY: as in `failure_word`.
        unsafe { &(*self.failure_line().as_ptr()).length }
    }

    fn failure_text(&self) -> *const u8 {
        // SAFETY: a field of the line inside the mapping.
        unsafe { (&raw const (*self.failure_line().as_ptr()).text).cast() }
    }

    fn bell(&self, rank: u32) -> &Bell {
        // SAFETY: as in `failure_word`; a bell is nothing but atomics.
        unsafe { &(*self.seat_address(rank).as_ptr()).bell }
    }

    fn left(&self, rank: u32) -> &AtomicU32 {
        // SAFETY: as in `failure_word`.
        unsafe { &(*self.seat_address(rank).as_ptr()).left }
    }

    #[inline]
    fn flag(&self, rank: u32, sequence: u64) -> &AtomicU64 {
        // SAFETY: as in `failure_word`.
        unsafe { &(*self.header(rank, sequence).as_ptr()).flag }
    }

    fn word_cells(&self, rank: u32, sequence: u64) -> &[AtomicU64; 3] {
        // SAFETY: as in `failure_word`.
        unsafe { &(*self.header(rank, sequence).as_ptr()).words }
    }

    #[inline]
    fn header(&self, rank: u32, sequence: u64) -> NonNull<Header> {
        // SAFETY: a field of a seat inside the mapping.
        unsafe { NonNull::new_unchecked(&raw mut (*self.seat_address(rank).as_ptr()).headers[(sequence % 2) as usize]) }
    }
}

/// What zeroed memory is outside the models, where an atomic is more than its value.
#[cfg(all(test, loom))]
impl Board {
    pub(crate) fn for_model(size: u32) -> Arc<Mapping> {
        let mapping = Mapping::private(Self::bytes(size)).unwrap();
        let board = Board::new(mapping.clone(), true, size, Fences::Even);
        let header =
            || Header { flag: AtomicU64::new(0), payload: [0; PAYLOAD], words: Default::default(), _rest: [0; 5] };
        // SAFETY: both lie in the mapping, and nobody else knows it yet.
        unsafe {
            let line = FailureLine { word: AtomicU64::new(0), length: AtomicU32::new(0), text: [0; TEXT] };
            board.failure_line().write(line);
            crate::sync::model::watch((&raw const board.failure_line().as_ref().text).cast(), TEXT);
            for rank in 0..size {
                let seat = Seat { bell: Bell::default(), left: AtomicU32::new(0), headers: [header(), header()] };
                board.seat_address(rank).write(seat);
                for sequence in 0..2 {
                    crate::sync::model::watch(board.payload(rank, sequence), PAYLOAD);
                }
            }
        }
        mapping
    }
}

fn pack(failure: &Failure) -> u64 {
    let collective = failure.collective.map_or(0, |c| c as u64 + 1);
    let rank = failure.rank.map_or(0, |rank| u64::from(rank.min(0xfffe)) + 1);
    (failure.status as u64) << 56 | collective << 48 | rank << 32 | u64::from(failure.sequence as u32)
}

fn unpack(word: u64) -> Failure {
    let field = |shift: u32, bits: u32| word >> shift & ((1 << bits) - 1);
    Failure {
        status: Status::from_code(field(56, 8) as i32).unwrap_or(Status::InternalError),
        rank: field(32, 16).checked_sub(1).map(|rank| rank as u32),
        collective: field(48, 8).checked_sub(1).and_then(|code| Collective::parse(code as i32).ok()),
        sequence: field(0, 32),
        text: String::new(),
    }
}

/// What can be said of a failure without its sentence.
fn generic(failure: &Failure) -> String {
    let mut text = failure.status.describe().to_owned();
    if let Some(collective) = failure.collective {
        text += &format!(" in {} #{}", collective.name(), failure.sequence);
    }
    if let Some(rank) = failure.rank {
        text += &format!(", rank {rank}");
    }
    text
}

/// The beginning of `text` that fits in `bytes`, whole characters only.
fn truncated(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn board(size: u32) -> Board {
        Board::new(Mapping::private(Board::bytes(size)).unwrap(), true, size, Fences::Even)
    }

    fn failure(rank: u32) -> Failure {
        Failure {
            status: Status::PeerLost,
            rank: Some(rank),
            collective: Some(Collective::AllReduce),
            sequence: 7,
            text: format!("rank {rank} died"),
        }
    }

    #[test]
    fn only_the_first_failure_counts_and_it_survives_the_packing() {
        let board = board(3);
        assert_eq!(board.failure(), None);
        assert!(board.fail(&failure(2)));
        assert!(!board.fail(&failure(1)));
        assert_eq!(board.failure(), Some(failure(2)));
    }

    #[test]
    fn racing_failures_agree_on_one() {
        let board = board(8);
        let told: Vec<_> = std::thread::scope(|scope| {
            let ranks = (0..8).map(|rank| {
                let board = &board;
                scope.spawn(move || {
                    board.fail(&failure(rank));
                    board.failure().unwrap()
                })
            });
            ranks.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(told.iter().all(|failure| *failure == told[0] && failure.text.ends_with("died")));
    }

    #[test]
    fn a_header_is_seen_whole_and_only_at_its_sequence() {
        let board = board(2);
        for sequence in [1_u64, 2, 3, u64::from(u32::MAX), u64::from(u32::MAX) + 1] {
            assert_eq!(board.posted(1, sequence), None);
            // SAFETY: one thread, in order.
            unsafe { board.post(1, sequence, 99, [1, 2, sequence], b"abc") };
            assert_eq!(board.posted(1, sequence), Some(99));
            assert_eq!(board.words(1, sequence), [1, 2, sequence]);
            // SAFETY: the payload is readable.
            assert_eq!(unsafe { std::slice::from_raw_parts(board.payload(1, sequence), 3) }, b"abc");
            assert_eq!(board.posted(1, sequence + 2), None);
        }
    }

    /// One rank posts a payload, which another reads once `is_there` says so.
    ///
    /// Both threads live from before the post until after the read: of a thread that ended before another began, the
    /// thread sanitizer may no longer know what it wrote, nor that the two are not one.
    fn hand_over(is_there: impl Fn(&Board) -> bool + Sync) {
        let board = board(2);
        let both = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                both.wait();
                // SAFETY: the first call of the rank.
                unsafe { board.post(1, 1, 99, [0; 3], &[7; PAYLOAD]) };
                both.wait();
            });
            scope.spawn(|| {
                both.wait();
                while !is_there(&board) {
                    std::thread::yield_now();
                }
                let payload = board.payload(1, 1);
                // Byte by byte, since a comparison of slices is a call that the thread sanitizer does not look into.
                // SAFETY: the payload is readable.
                let intact = (0..PAYLOAD).all(|i| unsafe { payload.add(i).read_volatile() } == 7);
                both.wait();
                assert!(intact);
            });
        });
    }

    #[test]
    fn a_payload_may_be_read_once_its_flag_was_acquired() {
        hand_over(|board| board.posted(1, 1).is_some());
    }

    /// Under the thread sanitizer this has to be reported: `make test` runs it to know that the others are heard.
    #[test]
    #[ignore = "a race, on purpose"]
    fn planted_race_of_a_reader_that_does_not_acquire() {
        hand_over(|board| board.flag(1, 1).load(Ordering::Relaxed) != 0);
    }

    #[test]
    fn a_long_sentence_is_cut_between_characters() {
        let board = board(1);
        let text = "ö".repeat(TEXT);
        board.fail(&Failure { text, ..failure(0) });
        assert_eq!(board.failure().unwrap().text, "ö".repeat(TEXT / 2));
    }
}
