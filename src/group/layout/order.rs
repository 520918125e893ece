//! The order in which ranks get coordinates: given, found from labels, or as they are numbered.

use super::{Description, Label};
use crate::error::{Error, Result};

/// The rank at each place.
pub(super) fn resolve(description: &Description) -> Result<Vec<u32>> {
    let world = description.world;
    let lengths = [("rank order", description.order.len()), ("list of labels", description.labels.len())];
    for (what, length) in lengths {
        if length != 0 && length != world as usize {
            return Err(Error::invalid(format_args!(
                "the {what} has {length} entries, but the world has {world} ranks; give one for each, or none"
            )));
        }
    }
    if !description.order.is_empty() {
        return given(&description.order);
    }
    if description.labels.is_empty() {
        return Ok((0..world).collect());
    }
    by_domain(&description.labels)
}

fn given(order: &[u32]) -> Result<Vec<u32>> {
    let mut places = vec![None; order.len()];
    for (place, rank) in order.iter().enumerate() {
        let Some(taken) = places.get_mut(*rank as usize) else {
            return Err(Error::invalid(format_args!(
                "the rank order names rank {rank} at place {place}, but the world has {} ranks, from 0",
                order.len()
            )));
        };
        if let Some(before) = taken.replace(place) {
            return Err(Error::invalid(format_args!(
                "the rank order names rank {rank} twice, at places {before} and {place}; it must name each rank once"
            )));
        }
    }
    Ok(order.to_vec())
}

fn by_domain(labels: &[Label]) -> Result<Vec<u32>> {
    let key = |rank: &u32| {
        let label = &labels[*rank as usize];
        (label.domain, label.host, label.lane)
    };
    let mut order: Vec<u32> = (0..labels.len() as u32).collect();
    order.sort_by_key(key);
    if let Some(twins) = order.windows(2).find(|pair| key(&pair[0]) == key(&pair[1])) {
        let (domain, host, lane) = key(&twins[0]);
        return Err(Error::invalid(format_args!(
            "ranks {} and {} both claim host {host}, domain {domain}, lane {lane}; labels must tell all ranks apart",
            twins[0], twins[1]
        )));
    }
    let mut domains = order.chunk_by(|a, b| key(a).0 == key(b).0);
    if let Some(first) = domains.next()
        && let Some(other) = domains.find(|domain| domain.len() != first.len())
    {
        return Err(Error::invalid(format_args!(
            "domains differ in size: domain {} has {}, domain {} has {} (rank {} among them); give domains of one size, or \
             an explicit rank order",
            key(&first[0]).0,
            ranks(first.len()),
            key(&other[0]).0,
            ranks(other.len()),
            other[0],
        )));
    }
    Ok(order)
}

fn ranks(count: usize) -> String {
    if count == 1 { "1 rank".to_owned() } else { format!("{count} ranks") }
}
