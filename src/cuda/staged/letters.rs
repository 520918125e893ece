//! Letters of a CUDA group: a message is copied out behind what is on its sender's stream, carried as letters of CPU groups
//! are, and copied in on its receiver's stream.
//!
//! A send is over when its message has left the device and the inner letter is over; a receive, when the copy home is
//! enqueued. Messages to one peer with one tag are handed to the inner post in the order in which they were posted, also
//! if a later one, on another stream, has left the device first. Others do not wait for each other: what a stream waits
//! for may be one of them.

use std::{collections::VecDeque, sync::Arc};

use super::{
    super::lane::{Lane, Mark},
    super::pinned::Pinned,
    refuse_capture, transfer,
};
use crate::{
    communicator::{
        Letter, Progress,
        post::{Accepted, Delivery, Post},
    },
    error::{Error, Result},
};

/// One rank's letters under way.
pub(super) struct Letters {
    lane: Arc<Lane>,
    /// Counts the letters, for their keys.
    count: u32,
    /// Sends whose message is on its way from the device, in the order in which they were posted.
    leaving: Vec<Leaving>,
    /// Letters that the inner post carries.
    carried: Vec<Carried>,
    over: VecDeque<(u32, Delivery)>,
}

struct Leaving {
    key: u32,
    letter: Letter,
    message: Pinned,
    /// Behind the copy; `None` for a message of nothing.
    mark: Option<Arc<Mark>>,
}

struct Carried {
    key: u32,
    /// What the inner post calls it.
    inner: u32,
    letter: Letter,
    message: Pinned,
}

impl Letters {
    pub(super) fn new(lane: Arc<Lane>) -> Self {
        Letters { lane, count: 0, leaving: Vec::new(), carried: Vec::new(), over: VecDeque::new() }
    }

    /// See [`Post::accept`].
    pub(super) fn accept(&mut self, letter: &Letter, post: &mut dyn Post) -> Result<Accepted> {
        self.count = self.count.wrapping_add(1);
        let (key, bytes) = (self.count, letter.bytes() as usize);
        let mut message = Pinned::with(self.lane.device, bytes)?;
        if letter.is_send() {
            let mark = match bytes {
                0 => None,
                _ => {
                    let mut admitted = self.lane.resume()?;
                    let (to, from) = (message.start() as u64, letter.memory() as u64);
                    message.keep();
                    transfer(&self.lane, &mut admitted, to, from, bytes, letter.stream())?;
                    let mark = Arc::new(self.lane.mark(letter.stream())?);
                    message.keep_until(&mark);
                    Some(mark)
                }
            };
            self.leaving.push(Leaving { key, letter: *letter, message, mark });
            self.hand_over(post)?;
        } else {
            self.carry(key, *letter, message, post)?;
        }
        // Most often it is under way; what is over already was put last.
        Ok(match self.over.pop_back() {
            Some((over, delivery)) if over == key => Accepted::Over(delivery),
            other => {
                self.over.extend(other);
                Accepted::Underway(key)
            }
        })
    }

    /// See [`Post::poll`].
    pub(super) fn poll(&mut self, post: &mut dyn Post) -> Result<Progress> {
        self.hand_over(post)?;
        let mut progress = post.poll()?;
        while let Some((inner, delivery)) = post.collect() {
            let at = self.carried.iter().position(|one| one.inner == inner);
            let at = at.ok_or_else(|| Error::Internal(format!("letter {inner} ended, and nobody posted it")))?;
            let one = self.carried.swap_remove(at);
            self.end(one.key, &one.letter, one.message, delivery)?;
            progress = Progress::Moved;
        }
        Ok(if self.over.is_empty() { progress } else { Progress::Moved })
    }

    /// See [`Post::collect`].
    pub(super) fn collect(&mut self) -> Option<(u32, Delivery)> {
        self.over.pop_front()
    }

    /// Forgets all. What the device still copies, it copies to memory that stays until then.
    pub(super) fn let_go(&mut self) {
        self.leaving.clear();
        self.carried.clear();
        self.over.clear();
    }

    /// Whether a message is on its way from the device, which rings no bell when it is there.
    pub(super) fn wait_for_the_device(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Whether this letter's message is.
    pub(super) fn is_leaving(&self, key: u32) -> bool {
        self.leaving.iter().any(|one| one.key == key)
    }

    /// Hands over what has left the device, but nothing before what was posted to the same peer and tag earlier.
    fn hand_over(&mut self, post: &mut dyn Post) -> Result<()> {
        let mut at = 0;
        let mut held: Vec<(u32, i64)> = Vec::new();
        while at < self.leaving.len() {
            let one = &self.leaving[at];
            let place = (one.letter.peer(), one.letter.tag());
            if held.contains(&place) || !one.mark.as_ref().map_or(Ok(true), |mark| mark.is_passed())? {
                held.push(place);
                at += 1;
                continue;
            }
            let Leaving { key, letter, message, .. } = self.leaving.remove(at);
            self.carry(key, letter, message, post)?;
        }
        Ok(())
    }

    /// Gives a letter whose bytes are, or are to be, in `message` to the inner post.
    fn carry(&mut self, key: u32, letter: Letter, message: Pinned, post: &mut dyn Post) -> Result<()> {
        // SAFETY: the memory is ours, large enough, and kept until the inner letter is over or let go.
        let inside = unsafe { letter.in_memory(message.start()) };
        match post.accept(&inside, false)? {
            Accepted::Over(delivery) => self.end(key, &letter, message, delivery),
            Accepted::Underway(inner) => {
                self.carried.push(Carried { key, inner, letter, message });
                Ok(())
            }
        }
    }

    /// Ends a letter; what was received is copied home.
    fn end(&mut self, key: u32, letter: &Letter, mut message: Pinned, delivery: Delivery) -> Result<()> {
        let came = match &delivery {
            Ok(count) if !letter.is_send() => *count as usize * letter.dtype().size(),
            _ => 0,
        };
        if came > 0 {
            refuse_capture(&self.lane, letter.stream())?;
            let mut admitted = self.lane.resume()?;
            let (to, from) = (letter.memory() as u64, message.start() as u64);
            message.keep();
            transfer(&self.lane, &mut admitted, to, from, came, letter.stream())?;
            message.keep_until(&Arc::new(self.lane.mark(letter.stream())?));
        }
        self.over.push_back((key, delivery));
        Ok(())
    }
}
