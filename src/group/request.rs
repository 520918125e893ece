//! Requests: calls that were started and are tested or waited for later.

use std::sync::Arc;

use super::{
    Group, batch,
    core::{Ticket, Work},
    wait,
};
use crate::{
    communicator::Progress,
    config::Timeout,
    error::{Error, Failure, Result, Status},
};

/// A started call. May be tested and waited for from any thread, any number of times; dropping it changes nothing.
pub struct Request {
    group: Arc<Group>,
    ticket: Arc<Ticket>,
    is_receive: bool,
}

impl Request {
    pub(super) fn start(group: &Arc<Group>, work: Work) -> Result<Arc<Self>> {
        if batch::is_open() {
            return Err(Error::usage(
                "a request cannot be started in a batch, whose calls begin and end together: start it without, or \
                 give no request",
            ));
        }
        match &work {
            Work::Call(call, _) => group.refuse_unserved(&call.descriptor)?,
            Work::Uneven(call, _) => group.refuse_uneven(call)?,
            Work::Letter(letter, _) => group.refuse_letter(letter)?,
            Work::Task(_) => {}
        }
        let is_receive = matches!(&work, Work::Letter(letter, _) if !letter.is_send());
        let ticket = group.enter()?.enqueue(work);
        if ticket.outcome().is_none() {
            wait::started(group);
        }
        Ok(Arc::new(Request { group: group.clone(), ticket, is_receive }))
    }

    /// Whether the call is over: executed, not merely begun. Also goes on with it.
    pub fn test(&self) -> Result<Progress> {
        if self.ticket.outcome().is_none() {
            if let Some(mut core) = self.group.core.poll() {
                core.advance(true);
            }
            wait::advance_started(false);
        }
        self.ticket.outcome().map_or(Ok(Progress::Pending), |outcome| outcome.map(|()| Progress::Done))
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
        match wait::for_tickets(&tickets, timeout.or(self.group.options.timeout)) {
            Some(outcome) => outcome.map(|()| Progress::Done),
            None => Ok(Progress::Pending),
        }
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
