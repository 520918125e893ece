//! CUDA groups where there is no GPU: the whole way of a call, on a driver that is a stub (`stub/driver.cpp`) and with
//! the kernels compiled for the processor. What is shown is what the host does and that both agree on every struct;
//! nothing here says how a GPU would order memory, and nothing is timed.
//!
//! * [`stub`] — builds the stub, and runs each test in a process of its own that has it;
//! * [`machine`] — ranks, buffers and streams;
//! * the rest — the promises.

mod absence;
mod calls;
mod captures;
mod failures;
mod machine;
mod neighbours;
mod stub;
