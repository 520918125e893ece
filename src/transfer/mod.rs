//! Mesh-to-mesh transfer: tensors that lie on some ranks in one layout get to other ranks in another.
//!
//! * [`layout`] — what a caller says: meshes, placements, tensors; refused here if it does not add up;
//! * `region` — boxes of elements, and how they are cut;
//! * `cells` — what every source part and every target part share, and who has and wants it;
//! * `assign` — who sends what to whom, by what; `flow` balances the senders, `owners` the reducers; `pack` fills buckets;
//! * `order` — in which order they move, so that nobody waits in vain;
//! * [`plan`] — the result: chunks in buckets in a row of operations per rank, as plain data;
//! * [`inspect`], [`report`] — what a plan costs beside what it could not cost less, as numbers, text, JSON or a picture;
//! * [`view`] — a rank's strided memory, as runs of bytes; [`cursor`] — the way through a box of it;
//! * [`execute`] — carrying a plan out over a group.
//!
//! A plan is computed without any communication and moves nothing. Whoever executes it walks each rank's operations and
//! knows nothing of meshes.

pub mod cursor;
pub mod execute;
pub mod inspect;
pub mod layout;
pub mod plan;
pub mod report;
pub mod view;

mod assign;
mod cells;
mod flow;
mod order;
mod owners;
mod pack;
mod picture;
mod region;

pub use cursor::Cursor;
pub use execute::{Phase, Standing, Transfer};
pub use inspect::{Load, Totals};
pub use layout::{Item, Layout, Mesh, Placement, Reduction, Side, Split};
pub use plan::{Bucket, Chunk, Options, Plan, Round, Transport};
pub use region::Region;
pub use report::Format;
pub use view::View;
