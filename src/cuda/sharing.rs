//! How the ranks of a CUDA group come to device memory that all of them have mapped.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    device::Device,
    memory::{Memory, Ticket, Underway, Way},
    verdict,
};
use crate::{
    bootstrap::{Members, session::Session},
    error::{Error, Result},
};

/// What holds for all memory of a group, alike on all its ranks but for who is in whose process.
#[derive(Clone, Debug)]
pub(super) struct Sharing {
    way: Way,
    rank: u32,
    /// Which ranks are in this process.
    here: Vec<bool>,
}

impl Sharing {
    /// Between these members, on devices that all can export memory, or not.
    fn of(members: &Members, all_export: bool) -> Self {
        let process = |rank: u32| members.facts(rank).process;
        let rank = members.rank();
        // Whoever finds out whether devices reach each other does it as processes do, as far as that can be done in one.
        let apart = all_export && verdict::is_trying();
        let here = (0..members.size()).map(|peer| !apart && process(peer) == process(rank));
        let here: Vec<bool> = here.collect();
        Sharing { way: Way::of(all_export, here.iter().all(|here| *here)), rank, here }
    }

    /// [`Sharing::share`] in the first way that works. Some containers pass descriptors on, but the driver in them does
    /// not take them.
    pub(super) async fn establish(
        members: &Members,
        session: &mut Session,
        device: &'static Device,
        all_export: bool,
        bytes: u64,
    ) -> Result<Result<(Self, Vec<Arc<Memory>>)>> {
        let mut sharing = Sharing::of(members, all_export);
        let first = match sharing.share(session, device, bytes).await? {
            Ok(all) => return Ok(Ok((sharing, all))),
            Err(error) if sharing.way != Way::Descriptors => return Ok(Err(error)),
            Err(error) => error,
        };
        log::info!(target: "tutti::cuda", "group {:?} shares memory by handles, as descriptors do not do: {first}", members.name());
        sharing.way = Way::Handles;
        let second = sharing.share(session, device, bytes).await?;
        Ok(second
            .map(|all| (sharing, all))
            .map_err(|error| Error::Unsupported(format!("{first}; by handles: {error}"))))
    }

    /// Makes cleared memory of `bytes` on every rank, and maps everybody's for `device`; by rank. The outer error is the
    /// session's; the inner one, on all ranks alike, that one of them has no memory or does not reach another's.
    pub(super) async fn share(
        &self,
        session: &mut Session,
        device: &'static Device,
        bytes: u64,
    ) -> Result<Result<Vec<Arc<Memory>>>> {
        let (mut own, mut all) = (Underway::default(), Underway::default());
        let made = Memory::make(device, bytes, self.way).map(|(memory, ticket, descriptor)| {
            own.push(memory.clone());
            (memory, ticket, descriptor)
        });
        let ticket = made.as_ref().map(|(_, ticket, _)| ticket.clone()).map_err(Error::to_string);
        let body = postcard::to_allocvec(&ticket).map_err(|error| Error::Internal(format!("ticket: {error}")))?;
        let descriptor = made.as_ref().ok().and_then(|(_, _, descriptor)| descriptor.as_ref());
        let said = session.all_gather(&body, descriptor).await?;
        let mut tickets = Vec::with_capacity(said.len());
        for (peer, message) in said.iter().enumerate() {
            let ticket: Result<Ticket, String> = postcard::from_bytes(&message.body)
                .map_err(|_| Error::Internal(format!("rank {peer} sent no ticket")))?;
            match ticket {
                Ok(ticket) => tickets.push((ticket, message.descriptors.first())),
                Err(why) => return Ok(Err(Error::Unsupported(format!("rank {peer}: {why}")))),
            }
        }
        let mut trouble = None;
        for (peer, (ticket, descriptor)) in tickets.iter().enumerate() {
            let reached = match &made {
                Ok((own, _, _)) if peer == self.rank as usize => Ok(own.clone()),
                _ => Memory::reach(device, ticket, *descriptor, self.way, self.here[peer]),
            };
            match reached {
                Ok(memory) => all.push(memory),
                Err(error) => trouble = trouble.or(Some(error.to_string())),
            }
        }
        let troubles: Vec<Option<String>> = say(session, &trouble).await?;
        let mut troubles = troubles.into_iter().enumerate();
        if let Some((peer, why)) = troubles.find_map(|(peer, trouble)| Some((peer, trouble?))) {
            return Ok(Err(Error::Unsupported(format!("rank {peer}: {why}"))));
        }
        own.take();
        Ok(Ok(all.take()))
    }
}

/// Tells all ranks something, and hears what each of them says; by rank.
pub(super) async fn say<T: Serialize + for<'a> Deserialize<'a>>(session: &mut Session, mine: &T) -> Result<Vec<T>> {
    let body = postcard::to_allocvec(mine).map_err(|error| Error::Internal(format!("what is said to all: {error}")))?;
    let said = session.all_gather(&body, None).await?;
    said.iter()
        .enumerate()
        .map(|(rank, message)| {
            postcard::from_bytes(&message.body)
                .map_err(|_| Error::Internal(format!("rank {rank} speaks in another way")))
        })
        .collect()
}
