//! Faults, with ranks that are real processes: killed, stopped, late, disagreeing, aborting, forked, refused by the
//! kernel. What one of them suffers, the others hear of in time and by name, and what is not concerned goes on.
//!
//! Each test is two plays in one function: what every rank does, and what the director does to them (see `stage`).

mod abort;
mod death;
mod forks;
mod letters;
mod lifecycle;
mod queues;
mod refusals;
mod sandbox;
mod silence;
mod stage;
mod uneven;
