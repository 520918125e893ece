//! Memory that the ranks of a group read in place.
//!
//! Ranks of one host map it from one memfd; those of a CUDA group get memory of their devices (`cuda`). Ranks that cannot
//! share memory get their own: it serves like any other, so a program need not know where it runs.

use std::sync::Arc;

use super::core::Outcome;
use crate::{
    bootstrap::{
        Members,
        mapping::Mapping,
        members::first_trouble,
        regions::{self, Region},
        sharing::share,
    },
    config::Timeout,
    cuda,
    error::{Error, Result},
};

/// Parts are whole pages, so that a page belongs to one rank.
const PAGE: usize = 4096;

/// See [`super::Group::allocate`].
pub(super) async fn allocate(
    members: Arc<Members>,
    bytes: usize,
    timeout: Timeout,
    deliver: Box<dyn FnOnce(*mut u8) + Send>,
) -> Result<Outcome> {
    let deadline = timeout.deadline();
    if members.device().is_some() {
        deliver(cuda::allocate(members, bytes, deadline).await?.hand_out());
        return Ok(Outcome::Nothing);
    }
    let part = bytes.max(1).checked_next_multiple_of(PAGE);
    let part = part.ok_or_else(|| Error::OutOfMemory(format!("{bytes} bytes of registered memory")))?;
    let mut session = members.session(deadline, format!("an allocation of group {:?}", members.name()));
    // The number must be new on all ranks; those that take part count alike, whatever else they have allocated.
    let number = match session.all_gather(&members.endpoint().regions().next().to_le_bytes(), None).await {
        Ok(said) => {
            said.iter().filter_map(|message| message.body.as_slice().try_into().ok()).map(u64::from_le_bytes).max()
        }
        Err(error) => {
            session.give_up(&error);
            return Err(error);
        }
    };
    session.finish().await?;
    let number = number.ok_or_else(|| Error::Internal("nobody numbers the allocation".into()))?;
    let (mapping, known_to) = match members.unshared() {
        None if members.on_one_host() => {
            let mapped = share(&members, "tutti-memory", part, deadline).await?;
            (agreed(&members, mapped, deadline).await?, Some(members.endpoint().regions()))
        }
        _ => (Mapping::private(part)?, None),
    };
    members.endpoint().regions().reach(number);
    let (ranks, mine) = match known_to {
        Some(_) => (members.world_ranks().to_vec(), members.rank() as usize),
        None => (vec![members.endpoint().rank()], 0),
    };
    deliver(regions::give(Region::new(region_id(&members, number), ranks, part, mapping, mine), known_to));
    Ok(Outcome::Nothing)
}

/// Frees what [`super::Group::allocate`] gave. No call may be using it.
pub fn free_memory(memory: *mut u8) -> Result<()> {
    regions::take_back(memory)
}

/// The mapping, if every member has one; else the first one's reason why not, on all.
async fn agreed(
    members: &Arc<Members>,
    mapped: Result<Arc<Mapping>>,
    deadline: Option<std::time::Instant>,
) -> Result<Arc<Mapping>> {
    let mut session = members.session(deadline, format!("an allocation of group {:?}", members.name()));
    let mine = mapped.as_ref().err().map(Error::to_string).unwrap_or_default();
    let said = match session.all_gather(mine.as_bytes(), None).await {
        Ok(said) => said,
        Err(error) => {
            session.give_up(&error);
            return Err(error);
        }
    };
    session.finish().await?;
    match first_trouble(members.world_ranks(), &said) {
        None => mapped,
        Some(trouble) => Err(Error::OutOfMemory(trouble)),
    }
}

/// Unique in the world: groups differ in their numbers, and so do the allocations of one group.
fn region_id(members: &Members, number: u64) -> u64 {
    (members.uid().rotate_left(32) ^ number).max(1)
}
