//! CUDA groups where there is no GPU: the whole way of a call, on a driver that is a stub (`stub/driver.cpp`) and with
//! the kernels compiled for the processor. What is shown is what the host does and that both agree on every struct;
//! nothing here says how a GPU would order memory, and nothing is timed.
//!
//! * [`stub`] — builds the stub, and runs each test in a process of its own that has it;
//! * [`machine`] — ranks, buffers and streams;
//! * [`random`], [`simulation`] and [`numbers`] — the tensors of transfers, and what must arrive;
//! * the rest — the promises.

mod absence;
mod calls;
mod captures;
mod dicts;
mod failures;
mod letters;
mod machine;
mod modes;
mod neighbours;
#[path = "../transfer/numbers.rs"]
#[allow(dead_code, reason = "shared with the tests of transfers, which need more of it")]
mod numbers;
#[path = "../transfer/random.rs"]
#[allow(dead_code, reason = "shared with the tests of transfers, which need more of it")]
mod random;
mod registered;
#[path = "../transfer/simulation.rs"]
#[allow(dead_code, reason = "shared with the tests of transfers, which need more of it")]
mod simulation;
mod stub;
mod transfers;
