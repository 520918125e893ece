//! What stands behind an opaque pointer: a token into a table of slots that are never freed.
//!
//! A token is no address. It holds the kind of the handle, the number of a slot, and the slot's generation when the
//! handle was made; so a destroyed, foreign or made-up handle is found out by comparing numbers and never by
//! touching memory that may be gone. Nothing here knows what a handle is for.
//!
//! # The protocol of a slot
//!
//! One 64-bit word per slot decides everything: `generation | CLOSING | LIVE | pins`.
//!
//! | state            | word                   | who may touch the value                         |
//! |------------------|------------------------|-------------------------------------------------|
//! | vacant, reserved | generation             | whoever took the slot from the free list        |
//! | live             | generation, LIVE, pins | readers, who are counted as pins                |
//! | closing          | generation, CLOSING, pins | the pins left, one of which is the destroyer's |
//!
//! * *fill* writes the value, then stores the live word with release.
//! * *pin* adds one to a live word of its own generation with a compare-and-swap that acquires, so it sees the value;
//!   a word that is not live, or of another generation, refuses it. Nobody can pin a closing slot.
//! * *destroy* exchanges LIVE for CLOSING and adds its own pin, in one compare-and-swap, so that exactly one destroyer
//!   wins. It tells the value to end what is running, waits until its own pin is the only one, and lets go.
//! * *letting go* subtracts one with release and acquire. Whoever takes the last pin off a closing word is alone with
//!   the value, has acquired what all others did with it, moves it out, stores the next generation with release, and
//!   puts the slot on the free list. So a destroyer that waits no longer loses nothing: the straggler cleans up.
//!
//! A generation is used once; a slot whose generations are used up is never taken again. So a token never comes back.

use std::{
    cell::UnsafeCell,
    mem::MaybeUninit,
    ops::Deref,
    ptr::{self, NonNull},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicPtr, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::error::{Error, Result};

/// What a table can hold.
pub(super) trait Entry: Send + Sync + Sized + 'static {
    /// What the C caller takes the token for.
    type Handle;
    /// The first byte of the tokens, different for every kind of handle and never 0.
    const KIND: u8;
    /// What texts call the handle.
    const NAME: &'static str;

    /// Ends what other threads are doing with the value, without waiting for them.
    fn retire(&self);
}

/// How long a destroyer waits for calls that it has ended, before it leaves the rest to them.
pub(super) const DRAIN: Duration = Duration::from_secs(10);

/// The handles of one kind. Lives as long as the process.
pub(super) struct Table<T> {
    /// NULL until the first slot of the chunk is taken; from then on an array that is never freed.
    chunks: [AtomicPtr<Slot<T>>; CHUNKS],
    free: Mutex<Free>,
}

impl<T> Table<T> {
    /// A table without handles.
    pub(super) const fn new() -> Self {
        Table {
            chunks: [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS],
            free: Mutex::new(Free { vacant: Vec::new(), untouched: 0 }),
        }
    }
}

impl<T: Entry> Table<T> {
    /// Makes a handle.
    pub(super) fn insert(&'static self, value: T) -> Result<*mut T::Handle> {
        Ok(self.reserve()?.fill(value))
    }

    /// Takes a slot now, so that filling it later cannot fail.
    pub(super) fn reserve(&'static self) -> Result<Reservation<T>> {
        let mut free = self.free();
        if let Some(index) = free.vacant.pop() {
            return Ok(Reservation { table: self, index });
        }
        let index = free.untouched;
        if index == SLOTS {
            return Err(Error::OutOfMemory(format!("{SLOTS} {} handles are in use, destroy some", T::NAME)));
        }
        let (chunk, offset) = locate(index);
        if offset == 0 {
            let slots: Box<[Slot<T>]> = (0..FIRST_CHUNK << chunk).map(|_| Slot::new()).collect();
            self.chunks[chunk].store(Box::leak(slots).as_mut_ptr(), Ordering::Release);
        }
        free.untouched += 1;
        Ok(Reservation { table: self, index })
    }

    /// The value behind a handle, held until the pin is dropped.
    #[inline(always)]
    pub(super) fn pin(&'static self, handle: *const T::Handle) -> Result<Pin<T>> {
        let token = Token::parse::<T>(handle)?;
        let slot = self.slot(token.index).ok_or_else(unknown::<T>)?;
        let mut word = slot.word.load(Ordering::Relaxed);
        loop {
            if word & !PINS != token.live() {
                return Err(if token.was_issued(word) { destroyed::<T>() } else { unknown::<T>() });
            }
            match slot.word.compare_exchange_weak(word, word + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(Pin { table: self, slot, index: token.index }),
                Err(now) => word = now,
            }
        }
    }

    /// Destroys a handle: ends the calls that use it and waits for them, but not longer than `patience`.
    /// NULL and what is destroyed already are fine.
    pub(super) fn destroy(&'static self, handle: *const T::Handle, patience: Duration) -> Result<Destroyed> {
        if handle.is_null() {
            return Ok(Destroyed::Before);
        }
        let token = Token::parse::<T>(handle)?;
        let slot = self.slot(token.index).ok_or_else(unknown::<T>)?;
        let mut word = slot.word.load(Ordering::Relaxed);
        let pin = loop {
            if word & !PINS != token.live() {
                return if token.was_issued(word) { Ok(Destroyed::Before) } else { Err(unknown::<T>()) };
            }
            let closing = token.closing() | ((word & PINS) + 1);
            match slot.word.compare_exchange_weak(word, closing, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => break Pin { table: self, slot, index: token.index },
                Err(now) => word = now,
            }
        };
        pin.retire();
        Ok(if pin.is_alone_within(patience) { Destroyed::Now } else { Destroyed::StillUsed })
    }

    /// The slots in use or reserved.
    #[cfg(test)]
    fn used(&self) -> u32 {
        let free = self.free();
        free.untouched - free.vacant.len() as u32
    }

    #[inline]
    fn slot(&'static self, index: u32) -> Option<&'static Slot<T>> {
        let (chunk, offset) = locate(index);
        let slots = NonNull::new(self.chunks.get(chunk)?.load(Ordering::Acquire))?;
        // SAFETY: `reserve` stored an array of as many slots as `locate` puts into this chunk, and leaked it.
        Some(unsafe { slots.add(offset).as_ref() })
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Empties a slot whose last pin is gone.
    fn reclaim(&'static self, slot: &'static Slot<T>, index: u32) {
        // SAFETY: the word is closing and without pins, and the caller took the last one off, so it is alone with the
        // value, which `fill` wrote and nobody else moves out.
        let value = unsafe { (*slot.value.get()).assume_init_read() };
        let generation = slot.word.load(Ordering::Relaxed) >> GENERATION_SHIFT;
        let next = generation + 1;
        slot.word.store(next << GENERATION_SHIFT, Ordering::Release);
        if next < EXHAUSTED {
            self.free().vacant.push(index);
        }
        drop(value);
    }
}

/// Destroys what a C caller has a handle of.
pub(super) fn destroy<T: Entry>(table: &'static Table<T>, handle: *const T::Handle) -> Result<()> {
    if table.destroy(handle, DRAIN)? == Destroyed::StillUsed {
        log::warn!(
            target: "tutti::capi",
            "a {} was destroyed while a call of it goes on after {} s; what it holds is freed when the call returns",
            T::NAME,
            DRAIN.as_secs()
        );
    }
    Ok(())
}

/// What destroying came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destroyed {
    /// It is gone.
    Now,
    /// It was gone, or is being destroyed by another thread.
    Before,
    /// The handle is gone, but a call still uses what was behind it and will free it.
    StillUsed,
}

/// A slot taken but not filled; dropped, it goes back.
pub(super) struct Reservation<T: Entry> {
    table: &'static Table<T>,
    index: u32,
}

impl<T: Entry> Reservation<T> {
    /// Puts the value in and returns its handle.
    pub(super) fn fill(self, value: T) -> *mut T::Handle {
        let index = self.index;
        let Some(slot) = self.table.slot(index) else { unreachable!("reserve() made the slot") };
        let generation = slot.word.load(Ordering::Acquire) >> GENERATION_SHIFT;
        // SAFETY: the slot is off the free list and not live, so this reservation is alone with it; the load acquired
        // what `reclaim` did with the value before.
        unsafe { (*slot.value.get()).write(value) };
        let token = Token { generation, index };
        slot.word.store(token.live(), Ordering::Release);
        std::mem::forget(self);
        token.to_handle::<T>()
    }
}

impl<T: Entry> Drop for Reservation<T> {
    fn drop(&mut self) {
        self.table.free().vacant.push(self.index);
    }
}

/// A value that stays where it is while this exists.
pub(super) struct Pin<T: Entry> {
    table: &'static Table<T>,
    slot: &'static Slot<T>,
    index: u32,
}

impl<T: Entry> Pin<T> {
    /// Waits until no other pin is left, in steps of at most a millisecond: nobody is told when a pin goes, because
    /// telling would cost every call.
    fn is_alone_within(&self, patience: Duration) -> bool {
        let begin = Instant::now();
        let mut pause = Duration::from_micros(10);
        while self.slot.word.load(Ordering::Relaxed) & PINS > 1 {
            if begin.elapsed() >= patience {
                return false;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
        true
    }
}

impl<T: Entry> Deref for Pin<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the pin was counted while the word was live, after `fill` wrote the value, and nobody moves the value
        // out before the pin is gone.
        unsafe { (*self.slot.value.get()).assume_init_ref() }
    }
}

impl<T: Entry> Drop for Pin<T> {
    #[inline(always)]
    fn drop(&mut self) {
        let before = self.slot.word.fetch_sub(1, Ordering::AcqRel);
        if before & (CLOSING | PINS) == CLOSING | 1 {
            self.table.reclaim(self.slot, self.index);
        }
    }
}

/// Slots of the first chunk; every further chunk has twice as many, so that slots never move.
const FIRST_CHUNK: usize = 64;
const CHUNKS: usize = 15;
/// Slots of all chunks, about two million.
const SLOTS: u32 = (FIRST_CHUNK as u32) * ((1 << CHUNKS) - 1);

/// The chunk of a slot, and where in it.
#[inline]
fn locate(index: u32) -> (usize, usize) {
    let shifted = index as usize + FIRST_CHUNK;
    let chunk = (shifted.ilog2() - FIRST_CHUNK.ilog2()) as usize;
    (chunk, shifted - (FIRST_CHUNK << chunk))
}

/// A place for one value, on two cache lines of its own: neighbours are pinned by other threads in every call.
#[repr(align(128))]
struct Slot<T> {
    word: AtomicU64,
    value: UnsafeCell<MaybeUninit<T>>,
}

impl<T> Slot<T> {
    fn new() -> Self {
        Slot { word: AtomicU64::new(1 << GENERATION_SHIFT), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }
}

// SAFETY: the word decides who may touch the value, as told at the top of the file: one thread alone, or many that
// only read it.
unsafe impl<T: Send + Sync> Sync for Slot<T> {}

struct Free {
    vacant: Vec<u32>,
    /// The slots from here on were never taken.
    untouched: u32,
}

const GENERATION_SHIFT: u32 = 32;
const CLOSING: u64 = 1 << 31;
const LIVE: u64 = 1 << 30;
const PINS: u64 = LIVE - 1;
/// The generation that no token has.
const EXHAUSTED: u64 = u32::MAX as u64;

/// A handle taken apart. As a pointer: kind in bits 56..64, generation in 24..56, slot in 3..24, and 0 below, so
/// that it looks aligned; the kind makes it an address that no process has.
#[derive(Clone, Copy)]
struct Token {
    generation: u64,
    index: u32,
}

const INDEX_BITS: u32 = 21;
const INDEX_SHIFT: u32 = 3;
const _: () = assert!(SLOTS < 1 << INDEX_BITS && INDEX_SHIFT + INDEX_BITS == 24);

impl Token {
    #[inline]
    fn parse<T: Entry>(handle: *const T::Handle) -> Result<Self> {
        let bits = handle.addr() as u64;
        if bits == 0 {
            return Err(Error::invalid(format_args!("the {} is NULL", T::NAME)));
        }
        if (bits >> 56) as u8 != T::KIND || bits & ((1 << INDEX_SHIFT) - 1) != 0 {
            return Err(unknown::<T>());
        }
        let index = (bits >> INDEX_SHIFT) as u32 & ((1 << INDEX_BITS) - 1);
        Ok(Token { generation: bits >> 24 & 0xffff_ffff, index })
    }

    fn to_handle<T: Entry>(self) -> *mut T::Handle {
        let bits = u64::from(T::KIND) << 56 | self.generation << 24 | u64::from(self.index) << INDEX_SHIFT;
        ptr::without_provenance_mut(bits as usize)
    }

    /// The word of a slot that holds this token's value, without pins.
    fn live(self) -> u64 {
        self.generation << GENERATION_SHIFT | LIVE
    }

    fn closing(self) -> u64 {
        self.generation << GENERATION_SHIFT | CLOSING
    }

    /// Whether a slot with this word ever gave out this token.
    fn was_issued(self, word: u64) -> bool {
        let now = word >> GENERATION_SHIFT;
        self.generation != 0 && (self.generation < now || self.generation == now && word & (LIVE | CLOSING) != 0)
    }
}

#[cold]
fn unknown<T: Entry>() -> Error {
    Error::invalid(format_args!("the pointer passed as {} is no {} handle of this library", T::NAME, T::NAME))
}

#[cold]
fn destroyed<T: Entry>() -> Error {
    Error::invalid(format_args!("the {} was destroyed", T::NAME))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        sync::{
            Arc, Barrier, OnceLock,
            atomic::{AtomicBool, AtomicUsize},
            mpsc,
        },
    };

    use proptest::prelude::*;

    use super::*;
    use crate::{capi::watchdog, error::Status};

    /// A value that knows whether it is whole, and counts its end.
    struct Probe {
        number: u64,
        complement: u64,
        retired: AtomicBool,
        drops: Arc<AtomicUsize>,
    }

    impl Probe {
        fn new(number: u64, drops: &Arc<AtomicUsize>) -> Self {
            Probe { number, complement: !number, retired: AtomicBool::new(false), drops: drops.clone() }
        }

        fn check(&self) -> u64 {
            assert_eq!(self.number, !self.complement, "a value was used after its end");
            self.number
        }
    }

    impl Entry for Probe {
        type Handle = Probe;
        const KIND: u8 = b'P';
        const NAME: &'static str = "probe";

        fn retire(&self) {
            self.retired.store(true, Ordering::Release);
        }
    }

    impl Drop for Probe {
        fn drop(&mut self) {
            self.check();
            self.complement = self.number;
            self.drops.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn table() -> &'static Table<Probe> {
        kept(Table::new())
    }

    /// Keeps a value as long as the process, where the leak detector sees that it is kept.
    fn kept<T>(value: T) -> &'static T {
        static KEPT: Mutex<Vec<usize>> = Mutex::new(Vec::new());
        let value: &'static T = Box::leak(Box::new(value));
        KEPT.lock().unwrap().push(ptr::from_ref(value).addr());
        value
    }

    fn error(result: Result<impl Sized>) -> String {
        let Err(error) = result.map(|_| ()) else { panic!("accepted") };
        assert_eq!(error.status(), Status::InvalidArgument);
        error.to_string()
    }

    #[test]
    fn a_handle_leads_to_its_value_until_it_is_destroyed() {
        let (table, drops) = (table(), Arc::default());
        let handle = table.insert(Probe::new(7, &drops)).unwrap();
        assert_eq!(table.pin(handle).unwrap().check(), 7);
        assert_eq!(table.destroy(handle, DRAIN).unwrap(), Destroyed::Now);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
        assert_eq!(error(table.pin(handle)), "the probe was destroyed");
        assert_eq!(table.destroy(handle, DRAIN).unwrap(), Destroyed::Before);
        assert_eq!(table.destroy(ptr::null(), DRAIN).unwrap(), Destroyed::Before);
    }

    #[test]
    fn null_foreign_and_made_up_handles_are_refused() {
        struct Other;
        impl Entry for Other {
            type Handle = Probe;
            const KIND: u8 = b'O';
            const NAME: &'static str = "other";
            fn retire(&self) {}
        }
        let (table, drops) = (table(), Arc::default());
        let others: &'static Table<Other> = kept(Table::new());
        let live = table.insert(Probe::new(1, &drops)).unwrap();
        let foreign = others.insert(Other).unwrap();
        let local = 0u64;
        assert_eq!(error(table.pin(ptr::null())), "the probe is NULL");
        for pointer in
            [foreign.cast_const(), ptr::from_ref(&local).cast(), live.wrapping_byte_add(1), live.wrapping_byte_add(8)]
        {
            assert_eq!(error(table.pin(pointer)), "the pointer passed as probe is no probe handle of this library");
            assert!(table.destroy(pointer, DRAIN).is_err());
        }
        // A later generation of a used slot, and a slot never used, were never given out either.
        assert!(error(table.pin(live.wrapping_byte_add(1 << 24))).contains("no probe handle"));
        assert_eq!(table.pin(live).unwrap().check(), 1);
    }

    proptest! {
        #[test]
        fn no_number_but_the_token_passes_for_the_handle(bits: u64, low: u32) {
            static TABLE: Table<Probe> = Table::new();
            static LIVE: OnceLock<usize> = OnceLock::new();
            let live = *LIVE.get_or_init(|| TABLE.insert(Probe::new(3, &Arc::default())).unwrap().addr());
            for bits in [bits as usize, live ^ low as usize, live ^ (low as usize) << 24] {
                let pointer: *const Probe = ptr::without_provenance(bits);
                prop_assert_eq!(TABLE.pin(pointer).is_ok(), bits == live);
            }
        }
    }

    #[test]
    fn slots_are_reused_and_no_token_comes_twice() {
        let (table, drops) = (table(), Arc::<AtomicUsize>::default());
        let mut tokens = HashSet::new();
        for cycle in 0..10_000 {
            let handle = table.insert(Probe::new(cycle, &drops)).unwrap();
            assert!(tokens.insert(handle.addr()), "token {handle:p} came twice");
            assert_eq!(table.used(), 1);
            table.destroy(handle, DRAIN).unwrap();
        }
        assert_eq!((table.used(), table.free().untouched), (0, 1), "one slot is enough for one handle at a time");
        assert_eq!(drops.load(Ordering::Relaxed), 10_000);
    }

    #[test]
    fn many_handles_live_at_once_in_slots_that_never_move() {
        let (table, drops) = (table(), Arc::default());
        let first = table.insert(Probe::new(0, &drops)).unwrap();
        let pin = table.pin(first).unwrap();
        let address = ptr::from_ref::<Probe>(&pin);
        let handles: Vec<_> = (1..5_000).map(|number| table.insert(Probe::new(number, &drops)).unwrap()).collect();
        for (number, handle) in handles.iter().enumerate() {
            assert_eq!(table.pin(*handle).unwrap().check(), number as u64 + 1);
        }
        assert_eq!(address, ptr::from_ref(&*table.pin(first).unwrap()));
    }

    #[test]
    fn chunks_follow_each_other_without_a_gap() {
        let mut expected = (0, 0);
        for index in 0..SLOTS {
            assert_eq!(locate(index), expected);
            expected.1 += 1;
            if expected.1 == FIRST_CHUNK << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
        assert_eq!(expected, (CHUNKS, 0));
    }

    #[test]
    fn a_reservation_that_is_not_used_goes_back() {
        let (table, drops) = (table(), Arc::default());
        let reservation = table.reserve().unwrap();
        assert_eq!(table.used(), 1);
        drop(reservation);
        assert_eq!(table.used(), 0);
        let handle = table.insert(Probe::new(1, &drops)).unwrap();
        assert_eq!((table.free().untouched, table.pin(handle).unwrap().check()), (1, 1));
    }

    #[test]
    fn a_slot_whose_generations_are_used_up_is_never_taken_again() {
        let (table, drops) = (table(), Arc::default());
        drop(table.reserve().unwrap());
        table.slot(0).unwrap().word.store((EXHAUSTED - 1) << GENERATION_SHIFT, Ordering::Relaxed);
        let last = table.insert(Probe::new(1, &drops)).unwrap();
        assert_eq!(table.pin(last).unwrap().index, 0);
        table.destroy(last, DRAIN).unwrap();
        assert_eq!(error(table.pin(last)), "the probe was destroyed");
        let next = table.insert(Probe::new(2, &drops)).unwrap();
        assert_eq!(table.pin(next).unwrap().index, 1);
    }

    #[test]
    fn destroying_ends_a_call_in_another_thread_and_waits_for_it() {
        let _watchdog = watchdog();
        let (table, drops) = (table(), Arc::<AtomicUsize>::default());
        let handle = table.insert(Probe::new(1, &drops)).unwrap().addr();
        let (entered, inside) = mpsc::channel();
        let returned = Arc::new(AtomicBool::new(false));
        let call = std::thread::spawn({
            let returned = returned.clone();
            move || {
                let pin = table.pin(ptr::without_provenance(handle)).unwrap();
                entered.send(()).unwrap();
                while !pin.retired.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                pin.check();
                returned.store(true, Ordering::Relaxed);
            }
        });
        inside.recv().unwrap();
        assert_eq!(table.destroy(ptr::without_provenance(handle), DRAIN).unwrap(), Destroyed::Now);
        assert!(returned.load(Ordering::Relaxed), "destroy returned before the call did");
        assert_eq!((drops.load(Ordering::Relaxed), table.used()), (1, 0));
        call.join().unwrap();
    }

    #[test]
    fn a_call_that_does_not_end_keeps_its_value_and_frees_it_at_last() {
        let (table, drops) = (table(), Arc::<AtomicUsize>::default());
        let handle = table.insert(Probe::new(1, &drops)).unwrap();
        let straggler = table.pin(handle).unwrap();
        assert_eq!(table.destroy(handle, Duration::from_millis(1)).unwrap(), Destroyed::StillUsed);
        assert_eq!(error(table.pin(handle)), "the probe was destroyed");
        assert_eq!(table.destroy(handle, DRAIN).unwrap(), Destroyed::Before);
        assert_eq!((straggler.check(), drops.load(Ordering::Relaxed), table.used()), (1, 0, 1));
        drop(straggler);
        assert_eq!((drops.load(Ordering::Relaxed), table.used()), (1, 0));
    }

    #[test]
    fn of_many_destroyers_exactly_one_wins() {
        let _watchdog = watchdog();
        let (table, drops) = (table(), Arc::<AtomicUsize>::default());
        for round in 0..200 {
            let handle = table.insert(Probe::new(round, &drops)).unwrap().addr();
            let start = Barrier::new(4);
            let winners: usize = std::thread::scope(|scope| {
                let destroyers = [0; 4].map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        table.destroy(ptr::without_provenance(handle), DRAIN).unwrap() == Destroyed::Now
                    })
                });
                destroyers.into_iter().map(|destroyer| usize::from(destroyer.join().unwrap())).sum()
            });
            assert_eq!(winners, 1);
            assert_eq!(drops.load(Ordering::Relaxed), round as usize + 1);
        }
    }

    /// Threads make, use and destroy handles that all of them know, as fast as they can. A value used after its end
    /// shows as a broken probe (or to the sanitizers); a lost or doubled end shows in the count.
    #[test]
    fn threads_may_make_use_and_destroy_the_same_handles_at_once() {
        const THREADS: u64 = 4;
        const TURNS: u64 = if cfg!(debug_assertions) { 20_000 } else { 200_000 };
        let _watchdog = watchdog();
        let (table, drops) = (table(), Arc::<AtomicUsize>::default());
        let known: [AtomicPtr<Probe>; 8] = Default::default();
        let made = AtomicUsize::new(0);
        let used = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (known, drops, made, used) = (&known, &drops, &made, &used);
                scope.spawn(move || {
                    let mut random = thread + 1;
                    for turn in 0..TURNS {
                        // xorshift64, by Marsaglia
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        let place = &known[(random >> 8) as usize % known.len()];
                        match random % 8 {
                            0 => {
                                let new = table.insert(Probe::new(thread << 32 | turn, drops)).unwrap();
                                made.fetch_add(1, Ordering::Relaxed);
                                let old = place.swap(new, Ordering::Relaxed);
                                table.destroy(old, DRAIN).unwrap();
                            }
                            1 => {
                                table.destroy(place.load(Ordering::Relaxed), DRAIN).unwrap();
                            }
                            _ => {
                                if let Ok(pin) = table.pin(place.load(Ordering::Relaxed)) {
                                    pin.check();
                                    used.fetch_add(1, Ordering::Relaxed);
                                }
                            }
                        }
                    }
                });
            }
        });
        for place in &known {
            table.destroy(place.load(Ordering::Relaxed), DRAIN).unwrap();
        }
        assert_eq!(drops.load(Ordering::Relaxed), made.load(Ordering::Relaxed));
        assert_eq!(table.used(), 0);
        assert!(used.load(Ordering::Relaxed) > 1_000, "the threads hardly met: {used:?}");
        assert!(table.free().untouched <= known.len() as u32 + 2 * THREADS as u32, "slots were lost");
    }
}
