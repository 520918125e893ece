//! How the members of a group on one host make memory that all of them map.

use std::{os::fd::OwnedFd, sync::Arc, time::Instant};

use super::{mapping::Mapping, members::Members, members::first_trouble, session::Session};
use crate::error::{Error, Result, Status};

/// Makes a mapping of one part of `bytes` for each member together: the first makes the memfd, every rank maps it and
/// commits its own part, so that the part's pages come from the memory next to the rank.
///
/// An outer error ends whatever all members are about to do; the inner one is this rank's alone, and whether others
/// have one is for the caller to ask.
pub async fn share(
    members: &Arc<Members>,
    label: &str,
    bytes: usize,
    deadline: Option<Instant>,
) -> Result<Result<Arc<Mapping>>> {
    let shared = share_some(members, label, bytes, bytes, deadline).await?;
    Ok(shared.map(|(mapping, _)| mapping))
}

/// [`share`], but of its part each rank commits only the beginning now, `committed` bytes of it; the rest it has to commit
/// through the descriptor before it writes there.
pub async fn share_some(
    members: &Arc<Members>,
    label: &str,
    bytes: usize,
    committed: usize,
    deadline: Option<Instant>,
) -> Result<Result<(Arc<Mapping>, OwnedFd)>> {
    let mut session = members.session(deadline, format!("{label} of group {:?}", members.name()));
    match share_in(&mut session, members, label, bytes, committed).await {
        Ok(mapped) => session.finish().await.map(|()| mapped),
        Err(error) => {
            session.give_up(&error);
            Err(error)
        }
    }
}

async fn share_in(
    session: &mut Session,
    members: &Members,
    label: &str,
    bytes: usize,
    committed: usize,
) -> Result<Result<(Arc<Mapping>, OwnedFd)>> {
    let whole = bytes.checked_mul(members.size() as usize).filter(|whole| *whole <= isize::MAX as usize);
    let made: Result<Option<OwnedFd>> = match (members.rank(), whole) {
        (_, None) => Err(Error::OutOfMemory(format!("{bytes} bytes for each of {} ranks", members.size()))),
        (0, Some(whole)) => Mapping::create(label, whole).map(Some),
        _ => Ok(None),
    };
    // What every rank says: how much it wants, and its trouble.
    let mut mine = bytes.to_le_bytes().to_vec();
    mine.extend(made.as_ref().err().map(Error::to_string).unwrap_or_default().as_bytes());
    let descriptor = made.as_ref().ok().and_then(Option::as_ref);
    let mut said = session.all_gather(&mine, descriptor).await?;
    for (rank, message) in said.iter_mut().enumerate() {
        let (wanted, trouble) = message.body.split_at_checked(size_of::<usize>()).unwrap_or_default();
        if wanted != bytes.to_le_bytes() {
            let theirs = wanted.try_into().map_or(0, usize::from_le_bytes);
            return Err(Error::failed(
                Status::Mismatch,
                Some(rank as u32),
                format_args!(
                    "{label} of group {:?}: rank {rank} asks for {theirs} bytes, rank {} for {bytes}",
                    members.name(),
                    members.rank()
                ),
            ));
        }
        message.body = trouble.to_vec();
    }
    if let Some(trouble) = first_trouble(members.world_ranks(), &said) {
        return Ok(Err(Error::Unsupported(trouble)));
    }
    let passed = descriptor.or_else(|| said.first().and_then(|message| message.descriptors.first()));
    Ok(passed.ok_or_else(|| Error::Internal("no descriptor came".into())).and_then(|fd| {
        if committed > 0 {
            Mapping::commit(fd, members.rank() as usize * bytes, committed)?;
        }
        let kept = fd.try_clone().map_err(|error| Error::Unsupported(format!("cannot keep shared memory: {error}")))?;
        Ok((Mapping::open(fd, bytes * members.size() as usize)?, kept))
    }))
}
