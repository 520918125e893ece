//! Waiting: how a thread spends the time until its peers come.
//!
//! First it looks again and again, since peers are usually nanoseconds away; then it gives its core away; then it
//! sleeps until it is woken, looking up now and then at deadlines and lives. With more ranks than cores the first
//! stretch is short: whoever is awaited may need this very core.
//!
//! While it waits, a thread also goes on with every other operation it has started, in any group. That is what lets
//! one thread drive several ranks.

use std::{
    cell::RefCell,
    mem::ManuallyDrop,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{
    Group,
    core::{Core, SHORT_NAP, Ticket},
};
use crate::{
    bootstrap::{Members, control},
    communicator::{Progress, post::Delivery},
    config::Timeout,
    error::Result,
    sync::spin_loop,
};

/// Looks before giving the core away. One costs a pause of about 50 ns on x86-64, so the patient spin for some
/// 50 microseconds and the crowded for one (measured: at 4 ranks on 2 cores a short spin with yields takes 3.3 us
/// for 8 bytes, a long one 15).
const SPINS: u32 = 1000;
const SPINS_CROWDED: u32 = 20;
/// Times the core is given away before sleeping, at about a microsecond each.
const YIELDS: u32 = 50;
/// How long that may take: on a machine where others are busy, a core that was given away comes back after
/// milliseconds, and 50 times that is too long without a look at the peers (half a second, seen at a load of 15).
const YIELDING: Duration = Duration::from_millis(2);
/// Turns of a waiting loop between two looks at the clock while things move.
const DEADLINE_TURNS: u64 = 64;

thread_local! {
    /// Groups in which this thread has started operations that may not be over. The operations' requests keep them.
    /// Without a destructor, so that handlers of `exit` may still wait; what is left of it when its thread ends is
    /// [`Remains`]'.
    static STARTED: RefCell<ManuallyDrop<Vec<Weak<Group>>>> = const { RefCell::new(ManuallyDrop::new(Vec::new())) };
    static REMAINS: Remains = const { Remains };
}

/// Frees what a thread that ends has started and never waited for.
struct Remains;

impl Drop for Remains {
    fn drop(&mut self) {
        // The first thread ends with the process, whose handlers of `exit` come after this.
        if rustix::thread::gettid() != rustix::process::getpid() {
            drop(with_started(std::mem::take));
        }
    }
}

/// What to do before the next look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Spin,
    Yield,
    Rest,
}

/// How much longer to spin, then to yield.
pub(super) struct Patience {
    spins: u32,
    yields: u32,
    /// Since when the core has been given away again and again.
    yielding: Option<Instant>,
    crowded: bool,
}

impl Patience {
    pub(super) fn new(members: &Members) -> Self {
        let crowded = members.is_crowded();
        Patience { spins: if crowded { SPINS_CROWDED } else { SPINS }, yields: YIELDS, yielding: None, crowded }
    }

    fn renew(&mut self) {
        self.spins = if self.crowded { SPINS_CROWDED } else { SPINS };
        self.yields = YIELDS;
        self.yielding = None;
    }

    pub(super) fn step(&mut self) -> Step {
        if self.spins > 0 {
            self.spins -= 1;
            return Step::Spin;
        }
        if self.yields > 0 {
            self.yields -= 1;
            if self.yielding.get_or_insert_with(Instant::now).elapsed() < YIELDING {
                return Step::Yield;
            }
            self.yields = 0;
        }
        Step::Rest
    }
}

/// Waits for the blocking call that was begun in the core of `group`.
pub(super) fn for_call(group: &Arc<Group>, core: &mut Core) -> Result<()> {
    until(group, core, Core::poll_call)
}

/// Waits for the letters of the blocking call in the core of `group`.
pub(super) fn for_letters(group: &Arc<Group>, core: &mut Core) -> Delivery {
    until(group, core, Core::poll_exchange)
}

/// Waits for what `poll` says the outcome of.
#[inline]
fn until<T>(group: &Arc<Group>, core: &mut Core, poll: impl Fn(&mut Core, bool) -> Result<T, Progress>) -> T {
    let mut patience = Patience::new(&group.members);
    let mut look = false;
    loop {
        match poll(core, look) {
            Ok(outcome) => return outcome,
            Err(Progress::Moved) => patience.renew(),
            Err(_) => {}
        }
        let others = advance_others(look, |other| std::ptr::eq(other, &**group));
        look = false;
        match patience.step() {
            Step::Spin => spin_loop(),
            Step::Yield => rustix::thread::sched_yield(),
            Step::Rest => {
                core.rest(if others { SHORT_NAP } else { Duration::MAX });
                look = true;
            }
        }
    }
}

/// Waits for started work, each in its group; `None` if `timeout` ends first.
pub(super) fn for_tickets(tickets: &[(Arc<Group>, Arc<Ticket>)], timeout: Timeout) -> Option<Result<()>> {
    let outcome = for_tickets_until(tickets, tickets.len(), timeout.deadline());
    // What is over in these groups needs no looking after any more.
    advance_started(false);
    outcome
}

/// Waits until one of these is over, or `timeout` ends.
pub(super) fn for_any(tickets: &[(Arc<Group>, Arc<Ticket>)], timeout: Timeout) {
    for_tickets_until(tickets, 1, timeout.deadline());
}

/// Waits until so many are over.
fn for_tickets_until(
    tickets: &[(Arc<Group>, Arc<Ticket>)],
    enough: usize,
    deadline: Option<Instant>,
) -> Option<Result<()>> {
    let Some((first, _)) = tickets.first() else { return Some(Ok(())) };
    // A group whose tickets are over may still have letters under way, which nobody else here looks after.
    let is_ours = |other: &Group| {
        tickets.iter().any(|(group, ticket)| std::ptr::eq(&**group, other) && ticket.outcome().is_none())
    };
    let mut patience = Patience::new(&first.members);
    let mut look = false;
    let mut turn = 0_u64;
    loop {
        turn += 1;
        let mut moved = false;
        let mut outcome = Ok(());
        let mut waiting = None;
        let mut several = false;
        let mut sleeps = false;
        let mut over = 0;
        // The tickets of a batch mostly come in a row of one group, which is polled once.
        let mut polled = std::ptr::null();
        for (group, ticket) in tickets {
            if ticket.outcome().is_none()
                && !std::ptr::eq(std::mem::replace(&mut polled, Arc::as_ptr(group)), Arc::as_ptr(group))
                && let Some(mut core) = group.core.poll()
            {
                moved |= core.advance(look);
                sleeps |= core.is_in_task();
            }
            match ticket.outcome() {
                Some(ended) => {
                    over += 1;
                    outcome = outcome.and(ended);
                }
                None => {
                    several |= waiting.is_some_and(|other| !Arc::ptr_eq(other, group));
                    waiting = Some(group);
                }
            }
        }
        let Some(waiting) = waiting.filter(|_| over < enough) else { return Some(outcome) };
        let others = advance_others(look, is_ours);
        look = false;
        if moved {
            patience.renew();
        }
        let step = if sleeps { Step::Rest } else { patience.step() };
        if (step == Step::Rest || turn.is_multiple_of(DEADLINE_TURNS))
            && deadline.is_some_and(|deadline| Instant::now() >= deadline)
        {
            return None;
        }
        match step {
            Step::Spin => spin_loop(),
            Step::Yield => rustix::thread::sched_yield(),
            Step::Rest => {
                let left =
                    deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
                rest(waiting, left.min(if several || others { SHORT_NAP } else { Duration::MAX }));
                look = true;
            }
        }
    }
}

/// Remembers that this thread has started something in `group`.
pub(super) fn started(group: &Arc<Group>) {
    with_started(|groups| {
        if !groups.iter().any(|known| known.as_ptr() == Arc::as_ptr(group)) {
            groups.push(Arc::downgrade(group));
        }
    });
    // The first use of a value with a destructor is what has it run; a thread at its end needs none.
    let _ = REMAINS.try_with(|_| ());
}

/// Goes on with everything this thread has started; says whether anything is left of it.
pub(super) fn advance_started(look: bool) -> bool {
    advance_others(look, |_| false)
}

/// Goes on with everything this thread has started, but for groups of which `skip` says that they are looked after.
/// Says whether anything is left of the rest.
#[inline]
pub(super) fn advance_others(look: bool, skip: impl Fn(&Group) -> bool) -> bool {
    // Taken out meanwhile: what is finished here may call back and start something new.
    let started = with_started(std::mem::take);
    if started.is_empty() {
        return false;
    }
    let mut left = false;
    for group in started {
        let Some(group) = group.upgrade() else { continue };
        if skip(&group) || has_more(&group, look) {
            left |= !skip(&group);
            self::started(&group);
        }
    }
    left
}

/// Does something with this thread's list.
fn with_started<T>(body: impl FnOnce(&mut Vec<Weak<Group>>) -> T) -> T {
    STARTED.with_borrow_mut(|groups| body(groups))
}

fn has_more(group: &Group, look: bool) -> bool {
    match group.core.poll() {
        Some(mut core) => {
            core.advance(look);
            !core.is_idle()
        }
        // Another thread is inside.
        None => true,
    }
}

fn rest(group: &Arc<Group>, at_most: Duration) {
    match group.core.poll() {
        Some(mut core) => core.rest(at_most),
        None => control::wait_for_any(&[group.members.endpoint()], at_most.min(SHORT_NAP)),
    }
}
