//! Requests: calls that were started and are tested or waited for later.

use std::{
    ffi::c_void,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use super::{
    Group, batch,
    core::{Ticket, Work},
    wait,
};
use crate::{
    communicator::Progress,
    config::Timeout,
    cuda::lane::{GLANCE, Lane, Mark},
    error::{Error, Failure, Result, Status},
};

/// A started call. May be tested and waited for from any thread, any number of times; dropping it changes nothing.
pub struct Request {
    group: Arc<Group>,
    ticket: Arc<Ticket>,
    is_receive: bool,
    /// Where a call on a CUDA group is enqueued: it is over when the stream has come past it.
    enqueued: Option<Enqueued>,
}

struct Enqueued {
    lane: Arc<Lane>,
    /// The caller's stream, as a number.
    stream: usize,
    mark: OnceLock<Result<Mark>>,
}

impl Enqueued {
    /// For a call of a CUDA group; `None` on CPU groups.
    fn of(group: &Group, stream: *mut c_void) -> Result<Option<Self>> {
        let Some(lane) = Lane::existing(&group.members) else { return Ok(None) };
        if lane.device.is_capturing(stream)? {
            return Err(Error::usage("a call that is captured is done at replay and has no request: give no request"));
        }
        Ok(Some(Enqueued { lane, stream: stream as usize, mark: OnceLock::new() }))
    }
}

impl Request {
    pub(super) fn start(group: &Arc<Group>, work: Work) -> Result<Arc<Self>> {
        if batch::is_open() {
            return Err(Error::usage(
                "a request cannot be started in a batch, whose calls begin and end together: start it without, or \
                 give no request",
            ));
        }
        let mut enqueued = None;
        match &work {
            Work::Call(call, _) => {
                group.refuse_call(call)?;
                enqueued = Enqueued::of(group, call.stream)?;
            }
            Work::Uneven(call, _) => {
                group.refuse_uneven(call)?;
                enqueued = Enqueued::of(group, call.stream)?;
            }
            Work::Letter(letter, _) => {
                group.refuse_letter(letter)?;
                enqueued = Enqueued::of(group, letter.stream())?;
            }
            Work::Task(_) => {}
        }
        let is_receive = matches!(&work, Work::Letter(letter, _) if !letter.is_send());
        let ticket = group.enter()?.enqueue(work);
        if ticket.outcome().is_none() {
            wait::started(group);
        }
        let request = Arc::new(Request { group: group.clone(), ticket, is_receive, enqueued });
        if let Some(Ok(())) = request.ticket.outcome() {
            // The mark is to be behind this call, and not behind later ones.
            request.is_executed()?;
        }
        Ok(request)
    }

    /// Whether the call is over: executed, not merely begun. Also goes on with it.
    pub fn test(&self) -> Result<Progress> {
        if self.ticket.outcome().is_none() {
            if let Some(mut core) = self.group.core.poll() {
                core.advance(true);
            }
            wait::advance_started(false);
        }
        match self.ticket.outcome() {
            None => Ok(Progress::Pending),
            Some(outcome) => outcome.and_then(|()| self.is_executed()),
        }
    }

    /// Whether this is a receive, which gets a number of elements.
    pub fn is_receive(&self) -> bool {
        self.is_receive
    }

    /// Elements that came, if this is a receive that is over and did not fail.
    pub fn received(&self) -> Option<u64> {
        self.ticket.received()
    }

    /// Waits for the call, but no longer than `timeout` (the default: the group's); then it is still `Pending`.
    pub fn wait(&self, timeout: Timeout) -> Result<Progress> {
        let tickets = [(self.group.clone(), self.ticket.clone())];
        let timeout = timeout.or(self.group.options.timeout);
        let deadline = timeout.deadline();
        match wait::for_tickets(&tickets, timeout) {
            Some(outcome) => outcome?,
            None => return Ok(Progress::Pending),
        }
        while self.is_executed()? == Progress::Pending {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(Progress::Pending);
            }
            std::thread::sleep(GLANCE);
        }
        Ok(Progress::Done)
    }

    /// Waits until one of these is over, but no longer than `at_most`, and goes on with all. For letters and calls of CPU
    /// groups; how they ended, [`Request::test`] says.
    pub(crate) fn wait_for_any(requests: &[&Request], at_most: Duration) {
        let tickets: Vec<_> = requests.iter().map(|request| (request.group.clone(), request.ticket.clone())).collect();
        wait::for_any(&tickets, Timeout::After(at_most));
    }

    /// Whether a call that is enqueued has been executed; always so on CPU groups.
    fn is_executed(&self) -> Result<Progress> {
        let Some(enqueued) = &self.enqueued else { return Ok(Progress::Done) };
        let mark = enqueued.mark.get_or_init(|| enqueued.lane.mark(enqueued.stream as *mut c_void));
        if !mark.as_ref().map_err(Clone::clone)?.is_passed()? {
            return Ok(Progress::Pending);
        }
        // Past the call does not mean well: its kernel may have given up.
        self.group.members.hear();
        self.group.members.check().map(|()| Progress::Done)
    }

    /// Gives the request up. One that is not over aborts its group first, since its buffers may go.
    pub fn release(&self) {
        // It may be over but for being looked at.
        if !matches!(self.test(), Ok(Progress::Pending)) {
            return;
        }
        let rank = self.group.members.rank();
        self.group.members.fail(Failure {
            status: Status::Aborted,
            rank: Some(rank),
            collective: None,
            sequence: 0,
            text: format!("rank {rank} of group {:?} freed a request that was not over", self.group.name()),
        });
        // Nothing touches the buffers any more once the core has let go of the call.
        let _ = self.wait(Timeout::After(super::LETTING_GO));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{communicator::Letter, config::WorldOptions, dtype::DType};

    #[test]
    fn whoever_waits_for_any_of_several_is_woken_by_the_first() {
        let world = Group::world_local(2, None, WorldOptions::default()).unwrap();
        let mut rooms = [0u8; 2];
        let requests: Vec<_> = rooms
            .iter_mut()
            .zip([1, 2])
            .map(|(room, tag)| {
                // SAFETY: the room stays until the letter is over or released.
                let letter = unsafe { Letter::receive(1, tag, DType::Bytes, room, 1) };
                world[0].post(letter, Timeout::Default).unwrap()
            })
            .collect();
        std::thread::scope(|scope| {
            scope.spawn(|| world[1].send_bytes(&[7], 0, 2, Timeout::Default).unwrap());
            // Nobody sends what the first one waits for.
            Request::wait_for_any(&[&requests[0], &requests[1]], Duration::from_secs(600));
        });
        assert_eq!(requests[1].test().unwrap(), Progress::Done);
        assert_eq!(requests[0].test().unwrap(), Progress::Pending);
        requests[0].release();
        assert_eq!(rooms, [0, 7]);
    }
}
