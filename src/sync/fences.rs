//! Two full fences that face each other, where one side passes often and the other seldom.
//!
//! A rank that publishes must not miss a rank that falls asleep, nor the other way round (see
//! [`crate::bootstrap::bell`]): both write, pass a fence, and read what the other wrote. The publisher does so in
//! every call, and a full fence makes it wait until its store has reached the cache it must be taken from, which takes as
//! long as the whole hand-over. So where the kernel can, the sleeper pays for both: `membarrier` makes every thread that
//! runs in a registered process pass a full fence, and a thread that does not run passed one when it was stopped. To the
//! publisher that fence lies somewhere: before its store, and then the sleeper, whose look comes after `membarrier`, sees
//! what was stored... or between store and load or after both; then the load sees, or the store was seen. Which is all
//! that two full fences promise. What remains of the publisher's is that the compiler keeps the order.

use std::sync::{
    OnceLock,
    atomic::{Ordering, compiler_fence},
};

use rustix::thread::{MembarrierCommand, membarrier, membarrier_query};

use super::fence;

/// How the fences of a group are divided; the same on all its ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fences {
    /// Both sides pass a full one.
    Even,
    /// The sleeper passes the publisher's as well.
    Lopsided,
}

impl Fences {
    /// Registers this process, if the kernel lets it, and says whether it did. A group can have
    /// [`Fences::Lopsided`] if all its processes did.
    pub fn can_be_lopsided() -> bool {
        static REGISTERED: OnceLock<bool> = OnceLock::new();
        *REGISTERED.get_or_init(|| {
            cfg!(not(loom))
                && membarrier_query().contains_command(MembarrierCommand::GlobalExpedited)
                && membarrier(MembarrierCommand::RegisterGlobalExpedited).is_ok()
                && membarrier(MembarrierCommand::GlobalExpedited).is_ok()
        })
    }

    /// The publisher's side.
    #[inline(always)]
    pub fn often(self) {
        match self {
            Fences::Even => fence(Ordering::SeqCst),
            Fences::Lopsided => compiler_fence(Ordering::SeqCst),
        }
    }

    /// The sleeper's side.
    pub fn seldom(self) {
        fence(Ordering::SeqCst);
        if self == Fences::Lopsided {
            // It succeeded when this process registered; the kernel promises that it then always does.
            let _ = membarrier(MembarrierCommand::GlobalExpedited);
        }
    }
}
