//! Transfers, from outside: random plans, simulated ranks, an oracle, the defects that others had; and real ranks, as
//! threads and as processes.

mod execution;
mod invariants;
mod numbers;
mod oracle;
mod processes;
mod random;
mod refusals;
mod regressions;
mod reports;
#[path = "../faults/sandbox.rs"]
#[allow(dead_code, reason = "shared with the tests of faults, which need more of it")]
mod sandbox;
mod simulation;
#[path = "../faults/stage.rs"]
#[allow(dead_code, reason = "shared with the tests of faults, which need more of it")]
mod stage;
