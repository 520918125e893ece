//! The bell: how a rank that ran out of patience sleeps, and how whoever publishes something wakes it.
//!
//! # The hand-over
//!
//! A sleeper must not miss what is published while it falls asleep, and a publisher must not pay a system call
//! when nobody sleeps. So:
//!
//! | sleeper ([`Bell::doze`])                       | publisher ([`Bell::ring`])                   |
//! |------------------------------------------------|----------------------------------------------|
//! | S1 read the bell's word                        | P1 publish (a release store elsewhere)       |
//! | S2 add itself to `sleepers`                    | P2 full fence                                |
//! | S3 full fence                                  | P3 read `sleepers`; none: done               |
//! | S4 look once more for what it awaits           | P4 change the word                           |
//! | S5 sleep in the kernel unless the word changed | P5 wake all that sleep on the word           |
//! | S6 take itself out of `sleepers`               |                                              |
//!
//! The two fences forbid the one bad outcome: that S4 misses P1 *and* P3 misses S2. So either the sleeper sees the
//! publication, or the publisher sees the sleeper; then P4 comes after S1, and S5 does not sleep or is woken.
//! Where the kernel can, S3 is made to count as P2 too, since publishers pass here in every call ([`Fences`]).
//! A sleeper that is killed leaves `sleepers` too high, which costs its peers a system call and harms nothing.
//! The futex is a shared one: the word lies in memory of several processes.

use std::time::Duration;

use crate::sync::{AtomicU32, Fences, Ordering, futex};

/// A rank's bell, on a cache line of its own. All zero is a bell nobody sleeps at.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Bell {
    word: AtomicU32,
    sleepers: AtomicU32,
}

/// A sleeper between "I am about to sleep" and "I am up again".
#[derive(Debug)]
pub struct Doze<'a> {
    bell: &'a Bell,
    word: u32,
}

impl Bell {
    /// Steps S1 to S3. What the caller awaits must be looked at again before [`Doze::sleep`].
    pub fn doze(&self, fences: Fences) -> Doze<'_> {
        let word = self.word.load(Ordering::Relaxed);
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        fences.seldom();
        Doze { bell: self, word }
    }

    /// Step P2 for any number of bells: to be called once between publishing and the [`Bell::ring`]s.
    #[inline(always)]
    pub fn before_ringing(fences: Fences) {
        fences.often();
    }

    /// Steps P3 to P5.
    #[inline(always)]
    pub fn ring(&self) {
        if self.sleepers.load(Ordering::Relaxed) != 0 {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        self.word.fetch_add(1, Ordering::Relaxed);
        futex::wake(&self.word);
    }
}

#[cfg(all(test, loom))]
impl Bell {
    pub(super) fn is_quiet(&self) -> bool {
        self.sleepers.load(Ordering::Relaxed) == 0
    }
}

impl Doze<'_> {
    /// Step S5: sleeps until the bell is rung, or for `at_most`. May wake without a reason.
    pub fn sleep(self, at_most: Duration) {
        futex::wait(&self.bell.word, self.word, at_most);
    }
}

impl Drop for Doze<'_> {
    fn drop(&mut self) {
        self.bell.sleepers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_sleeper_is_woken_by_what_is_published_after_it_looked() {
        let bell = Bell::default();
        let published = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while bell.sleepers.load(Ordering::Relaxed) == 0 {
                    std::thread::yield_now();
                }
                published.store(true, Ordering::Release);
                Bell::before_ringing(Fences::Even);
                bell.ring();
            });
            while !published.load(Ordering::Acquire) {
                let doze = bell.doze(Fences::Even);
                if !published.load(Ordering::Acquire) {
                    doze.sleep(Duration::from_secs(30));
                }
            }
        });
        assert_eq!(bell.sleepers.load(Ordering::Relaxed), 0);
    }
}
