//! Transfer plans, from outside: random transfers, simulated ranks, an oracle, and the defects that others had.

mod invariants;
mod numbers;
mod oracle;
mod random;
mod refusals;
mod regressions;
mod reports;
mod simulation;
