//! Waiting for many sockets on one thread: tasks are futures, and [`block_on`] sleeps in `poll` for what they await.
//!
//! A rendezvous talks to every rank at once and to strangers besides, none of whom may hold up the others; as
//! futures those conversations read from top to bottom. There are no wakers: whenever anything happens every pending
//! task looks again, which is cheap for the few hundred sockets a world is made of. Nothing outlives `block_on`.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fd::OwnedFd,
};

thread_local! {
    /// What the tasks of this thread wait for, noted afresh each time they are polled.
    static AWAITED: RefCell<Awaited> = RefCell::default();
}

thread_local! {
    /// See [`meanwhile`].
    static MEANWHILE: Cell<Option<fn() -> bool>> = const { Cell::new(None) };
}

/// How long a thread sleeps at most that has something else to do: nothing wakes it for that.
const SHORT_NAP: Duration = Duration::from_micros(200);

/// Runs `body`, in which whatever waits with [`block_on`] also goes on with `work`, which says whether anything is
/// left of it.
pub(super) fn meanwhile<T>(work: fn() -> bool, body: impl FnOnce() -> T) -> T {
    struct Outer(Option<fn() -> bool>);
    impl Drop for Outer {
        fn drop(&mut self) {
            MEANWHILE.set(self.0);
        }
    }
    let _outer = Outer(MEANWHILE.replace(Some(work)));
    body()
}

/// A task on the heap. The tasks of a rendezvous hold tens of kilobytes, nested as they are, and threads with small
/// stacks make worlds too; whoever makes such a task is not inlined, since even the making takes its size of stack.
pub(super) type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

#[derive(Default)]
struct Awaited {
    /// Held, not borrowed, so that a descriptor cannot be closed and reused before `poll` looks at it.
    sockets: Vec<(Arc<OwnedFd>, PollFlags)>,
    wake_at: Option<Instant>,
}

/// Runs `task` to its end on this thread, sleeping while it waits.
pub(super) fn block_on<T>(task: impl Future<Output = T>) -> T {
    let mut task = pin!(task);
    let mut context = Context::from_waker(Waker::noop());
    // A log callback may make another world on this thread while a task of ours is polled.
    let outer = AWAITED.take();
    loop {
        let outcome = task.as_mut().poll(&mut context);
        let awaited = AWAITED.take();
        if let Poll::Ready(value) = outcome {
            AWAITED.set(outer);
            return value;
        }
        let busy = MEANWHILE.get().is_some_and(|work| work());
        sleep_for(&awaited, if busy { SHORT_NAP } else { Duration::MAX });
    }
}

fn sleep_for(awaited: &Awaited, at_most: Duration) {
    let timeout = awaited.wake_at.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
    let timeout = Some(timeout.min(at_most)).filter(|timeout| *timeout < Duration::MAX);
    // A failure (no memory, a signal) only means that the tasks look earlier than they need to.
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    let mut sockets: Vec<_> = awaited.sockets.iter().map(|(socket, flags)| PollFd::new(&**socket, *flags)).collect();
    let _ = rustix::event::poll(&mut sockets, timeout.as_ref());
}

/// Waits until `socket` may be read, written or has failed. It can also return for no reason.
pub(super) async fn ready(socket: &Arc<OwnedFd>, flags: PollFlags) {
    let mut looked = false;
    poll_fn(|_| {
        if looked {
            return Poll::Ready(());
        }
        looked = true;
        AWAITED.with_borrow_mut(|awaited| awaited.sockets.push((socket.clone(), flags)));
        Poll::Pending
    })
    .await;
}

/// Sleeps until `at`; for ever without one.
pub(super) async fn sleep_until(at: Option<Instant>) {
    poll_fn(|_| match at {
        Some(at) if Instant::now() >= at => Poll::Ready(()),
        Some(at) => {
            wake_at(at);
            Poll::Pending
        }
        None => Poll::Pending,
    })
    .await;
}

/// Sleeps for `duration`.
pub(super) async fn sleep(duration: Duration) {
    sleep_until(Instant::now().checked_add(duration)).await;
}

/// Lets every other task have a look, deadlines included, before this one goes on.
pub(super) async fn give_way() {
    let mut given = false;
    poll_fn(|_| {
        if given {
            return Poll::Ready(());
        }
        given = true;
        wake_at(Instant::now());
        Poll::Pending
    })
    .await;
}

fn wake_at(at: Instant) {
    AWAITED.with_borrow_mut(|awaited| awaited.wake_at = Some(awaited.wake_at.map_or(at, |earlier| earlier.min(at))));
}

/// What `task` returns, or `None` if it has not by `deadline`; it is dropped then.
pub(super) async fn until<T>(deadline: Option<Instant>, task: impl Future<Output = T>) -> Option<T> {
    match race(task, sleep_until(deadline)).await {
        First::Left(value) => Some(value),
        First::Right(()) => None,
    }
}

/// Which of two tasks ended first.
pub(super) enum First<A, B> {
    /// The first one, with its result; it wins where both are ready.
    Left(A),
    /// The second one.
    Right(B),
}

/// Runs two tasks until one ends and drops the other.
pub(super) async fn race<A, B>(left: impl Future<Output = A>, right: impl Future<Output = B>) -> First<A, B> {
    let (mut left, mut right) = (pin!(left), pin!(right));
    poll_fn(|context| {
        if let Poll::Ready(value) = left.as_mut().poll(context) {
            return Poll::Ready(First::Left(value));
        }
        right.as_mut().poll(context).map(First::Right)
    })
    .await
}

/// Runs two tasks until both have succeeded or one has failed.
pub(super) async fn both<A, B, E>(
    left: impl Future<Output = Result<A, E>>,
    right: impl Future<Output = Result<B, E>>,
) -> Result<(A, B), E> {
    let (mut left, mut right) = (pin!(left), pin!(right));
    let (mut first, mut second) = (None, None);
    poll_fn(|context| {
        if first.is_none()
            && let Poll::Ready(result) = left.as_mut().poll(context)
        {
            match result {
                Ok(value) => first = Some(value),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if second.is_none()
            && let Poll::Ready(result) = right.as_mut().poll(context)
        {
            match result {
                Ok(value) => second = Some(value),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        match (first.take(), second.take()) {
            (Some(one), Some(other)) => Poll::Ready(Ok((one, other))),
            (one, other) => {
                (first, second) = (one, other);
                Poll::Pending
            }
        }
    })
    .await
}

/// Tasks of one kind that run side by side; dropped tasks end where they wait.
pub(super) struct Crowd<'a, T> {
    tasks: VecDeque<Pin<Box<dyn Future<Output = T> + 'a>>>,
}

impl<'a, T> Crowd<'a, T> {
    pub(super) fn new() -> Self {
        Crowd { tasks: VecDeque::new() }
    }

    pub(super) fn push(&mut self, task: impl Future<Output = T> + 'a) {
        self.tasks.push_back(Box::pin(task));
    }

    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Ends the task that has been here longest.
    pub(super) fn drop_oldest(&mut self) {
        self.tasks.pop_front();
    }

    /// The result of the next task that ends; waits for ever while there is none. Dropping this loses nothing.
    pub(super) async fn next(&mut self) -> T {
        poll_fn(|context| {
            for at in 0..self.tasks.len() {
                if let Some(task) = self.tasks.get_mut(at)
                    && let Poll::Ready(value) = task.as_mut().poll(context)
                {
                    self.tasks.remove(at);
                    return Poll::Ready(value);
                }
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_ends_what_never_ends() {
        let start = Instant::now();
        let outcome = block_on(until(start.checked_add(Duration::from_millis(20)), std::future::pending::<()>()));
        assert!(outcome.is_none() && start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn a_thread_that_waits_goes_on_with_its_other_work() {
        thread_local!(static TURNS: Cell<u32> = const { Cell::new(0) });
        let work = || {
            TURNS.set(TURNS.get() + 1);
            true
        };
        let forever = until(
            Instant::now().checked_add(Duration::from_secs(30)),
            poll_fn(|_| match TURNS.get() {
                0..3 => Poll::Pending,
                _ => Poll::Ready(()),
            }),
        );
        assert_eq!(meanwhile(work, || block_on(forever)), Some(()));
        let turns = TURNS.get();
        block_on(sleep(Duration::from_millis(1)));
        assert_eq!(TURNS.get(), turns, "only while the body runs");
    }

    #[test]
    fn a_task_that_gives_way_cannot_starve_a_deadline() {
        let busy = async {
            loop {
                give_way().await;
            }
        };
        assert!(block_on(until(Instant::now().checked_add(Duration::from_millis(5)), busy)).is_none());
    }

    #[test]
    fn a_crowd_returns_its_tasks_as_they_end() {
        block_on(async {
            let mut crowd = Crowd::new();
            for delay in [30, 10, 20] {
                crowd.push(async move {
                    sleep(Duration::from_millis(delay)).await;
                    delay
                });
            }
            assert_eq!((crowd.next().await, crowd.next().await, crowd.next().await), (10, 20, 30));
        });
    }

    #[test]
    fn the_first_failure_of_two_tasks_is_the_failure_of_both() {
        let outcome = block_on(both(std::future::pending::<Result<(), u8>>(), async { Err::<(), u8>(7) }));
        assert_eq!(outcome, Err(7));
    }
}
