//! The C types of mesh-to-mesh transfers.

use std::ffi::{c_char, c_void};

/// Placement: every coordinate of the mesh dimension holds the same.
pub const TUTTI_REPLICATE: i32 = 0;
/// Placement: the coordinates of the mesh dimension hold consecutive parts of one tensor dimension.
pub const TUTTI_SHARD: i32 = 1;
/// Placement of a source: every coordinate of the mesh dimension holds an addend of the same elements.
pub const TUTTI_PARTIAL: i32 = 2;

/// Split: ceil(length / parts) each until nothing is left, as torch.chunk does; trailing parts may be empty.
pub const TUTTI_SPLIT_CEIL: i32 = 0;
/// Split: the first length % parts get one more than the others.
pub const TUTTI_SPLIT_BALANCED: i32 = 1;
/// Split: the given sizes; 0 is allowed.
pub const TUTTI_SPLIT_EXPLICIT: i32 = 2;

/// Transport: from one rank to one other.
pub const TUTTI_TRANSPORT_P2P: i32 = 0;
/// Transport: from one rank to several others.
pub const TUTTI_TRANSPORT_BROADCAST: i32 = 1;
/// Transport: within a rank.
pub const TUTTI_TRANSPORT_LOCAL: i32 = 2;
/// Transport: to nobody yet; contributions that are added up onto the members of a group.
pub const TUTTI_TRANSPORT_NONE: i32 = 3;

/// Transfer: not started.
pub const TUTTI_TRANSFER_IDLE: i32 = 0;
/// Transfer: the ranks compare their plans; nothing has moved.
pub const TUTTI_TRANSFER_CHECKING: i32 = 1;
/// Transfer: buckets move.
pub const TUTTI_TRANSFER_MOVING: i32 = 2;
/// Transfer: all that this rank sends, receives and copies is over.
pub const TUTTI_TRANSFER_DONE: i32 = 3;
/// Transfer: it failed.
pub const TUTTI_TRANSFER_FAILED: i32 = 4;

/// Side of a tensor: where it is.
pub const TUTTI_SOURCE: i32 = 0;
/// Side of a tensor: where it shall be.
pub const TUTTI_TARGET: i32 = 1;

/// How tensors get from one layout to another: pure data, the same on every rank. May be used from any thread.
pub struct tutti_transfer_plan {
    _opaque: [u8; 0],
}
/// See struct tutti_transfer_plan.
pub type tutti_transfer_plan_t = tutti_transfer_plan;

/// A plan that is carried out over a group, and this rank's memory for it. May be used from any thread.
pub struct tutti_transfer {
    _opaque: [u8; 0],
}
/// See struct tutti_transfer.
pub type tutti_transfer_t = tutti_transfer;

/// Ranks in a grid.
///
/// Initialise with TUTTI_MESH_INIT.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_mesh {
    /// sizeof(tutti_mesh_t) as the caller was compiled.
    pub struct_size: usize,
    /// The grid's dimensions, each at least 1; up to 16.
    pub dims: *const usize,
    /// How many dimensions. 0: one rank.
    pub dim_count: usize,
    /// The ranks, row-major: any ranks of the group in any order, each once.
    pub ranks: *const i32,
    /// The product of dims.
    pub rank_count: usize,
}
/// See struct tutti_mesh.
pub type tutti_mesh_t = tutti_mesh;

/// What one mesh dimension does to a tensor.
///
/// Initialise with TUTTI_PLACEMENT_INIT, every element of an array too.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_placement {
    /// sizeof(tutti_placement_t) as the caller was compiled.
    pub struct_size: usize,
    /// TUTTI_REPLICATE, TUTTI_SHARD or TUTTI_PARTIAL.
    pub kind: i32,
    /// Shard: the tensor dimension.
    pub dim: i32,
    /// Partial: TUTTI_SUM and so on. Sum and avg may meet on one tensor; no other two may.
    pub op: i32,
    /// Shard: TUTTI_SPLIT_CEIL, TUTTI_SPLIT_BALANCED or TUTTI_SPLIT_EXPLICIT.
    pub split: i32,
    /// Shard: where several mesh dimensions split one tensor dimension, the lowest order splits first (outermost);
    /// equal orders split in the order of the mesh.
    pub order: i32,
    /// Explicit split: the sizes. One for every coordinate, or, where other mesh dimensions split the tensor dimension
    /// before, one for every (outer part in order, own coordinate).
    pub sizes: *const usize,
    /// How many sizes.
    pub size_count: usize,
}
/// See struct tutti_placement.
pub type tutti_placement_t = tutti_placement;

/// Where a tensor lies.
///
/// Initialise with TUTTI_TENSOR_LAYOUT_INIT.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_tensor_layout {
    /// sizeof(tutti_tensor_layout_t) as the caller was compiled.
    pub struct_size: usize,
    /// The type of the elements there: TUTTI_FLOAT32 and so on.
    pub dtype: i32,
    /// The ranks. Several layouts may point to one mesh.
    pub mesh: *const tutti_mesh_t,
    /// One for every mesh dimension.
    pub placements: *const tutti_placement_t,
    /// How many: the mesh's dim_count.
    pub placement_count: usize,
}
/// See struct tutti_tensor_layout.
pub type tutti_tensor_layout_t = tutti_tensor_layout;

/// One tensor to move.
///
/// Initialise with TUTTI_TRANSFER_ITEM_INIT, every element of an array too.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_transfer_item {
    /// sizeof(tutti_transfer_item_t) as the caller was compiled.
    pub struct_size: usize,
    /// A name for texts, or NULL.
    pub name: *const c_char,
    /// The whole tensor's shape; up to 16 dimensions, 0 allowed.
    pub shape: *const usize,
    /// How many dimensions. 0: one element.
    pub dim_count: usize,
    /// Where it is.
    pub source: *const tutti_tensor_layout_t,
    /// Where it shall be.
    pub target: *const tutti_tensor_layout_t,
    /// The type that travels: TUTTI_FLOAT16 and so on. 0: the narrower of both types, the source's if they are equally
    /// wide. Elements go from the source's type to this one to the target's, also where they do not leave their rank.
    pub wire_dtype: i32,
}
/// See struct tutti_transfer_item.
pub type tutti_transfer_item_t = tutti_transfer_item;

/// How to plan. All zero but struct_size, or a NULL pointer: the defaults. The same on all ranks.
///
/// Initialise with TUTTI_TRANSFER_OPTIONS_INIT.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_transfer_options {
    /// sizeof(tutti_transfer_options_t) as the caller was compiled.
    pub struct_size: usize,
    /// No bucket holds more bytes. Default 16 MiB; at least 16, and 16 for every contributor to a sum.
    pub bucket_bytes: u64,
    /// No rank stages more bytes at any time. Default twice the bucket bytes for each bucket in flight; at least two
    /// buckets, which become smaller to fit.
    pub staging_bytes: u64,
    /// Pieces of so many bytes or less are not cut just to balance senders. Default 4096.
    pub split_bytes: u64,
    /// The most buckets that a rank has begun and not finished. Default 4.
    pub in_flight: u32,
}
/// See struct tutti_transfer_options.
pub type tutti_transfer_options_t = tutti_transfer_options;

/// What a plan does in all, in bytes of payload, beside what no plan could do with less.
///
/// Initialise with TUTTI_TRANSFER_TOTALS_INIT.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_transfer_totals {
    /// sizeof(tutti_transfer_totals_t) as the caller was compiled.
    pub struct_size: usize,
    /// Tensors.
    pub items: u64,
    /// Ranks that the descriptions name.
    pub ranks: u64,
    /// Chunks.
    pub chunks: u64,
    /// Buckets, of all transports.
    pub buckets: u64,
    /// Buckets of TUTTI_TRANSPORT_P2P.
    pub p2p_buckets: u64,
    /// Buckets of TUTTI_TRANSPORT_BROADCAST.
    pub broadcast_buckets: u64,
    /// Buckets of TUTTI_TRANSPORT_LOCAL.
    pub local_buckets: u64,
    /// Buckets of TUTTI_TRANSPORT_NONE.
    pub reduce_buckets: u64,
    /// Different sets of ranks that broadcast or reduce together.
    pub groups: u64,
    /// Received by targets over the wire.
    pub wire: u64,
    /// What targets lack.
    pub wire_bound: u64,
    /// Sent by sources, a broadcast counted once.
    pub injected: u64,
    /// What must leave its holders at least once.
    pub injection_bound: u64,
    /// Contributions that travel to be reduced.
    pub reduced: u64,
    /// One contribution less than there are, for every element that is reduced.
    pub reduce_bound: u64,
    /// Copied within ranks.
    pub local: u64,
    /// The most that one rank sends.
    pub largest_send: u64,
    /// The least that the busiest sender can send, however replicas share the work.
    pub send_bound: u64,
    /// The most that one rank receives.
    pub largest_receive: u64,
    /// The most that one rank lacks.
    pub receive_bound: u64,
    /// The most that one rank stages.
    pub staging: u64,
    /// What it may stage.
    pub staging_cap: u64,
    /// Buckets in flight on a rank.
    pub in_flight: u32,
}
/// See struct tutti_transfer_totals.
pub type tutti_transfer_totals_t = tutti_transfer_totals;

/// What one rank does, in bytes of payload.
///
/// Initialise with TUTTI_TRANSFER_LOAD_INIT.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_transfer_load {
    /// sizeof(tutti_transfer_load_t) as the caller was compiled.
    pub struct_size: usize,
    /// Buckets in which it takes part.
    pub operations: u64,
    /// Sent to targets; a broadcast counts once.
    pub sent: u64,
    /// Received for its targets.
    pub received: u64,
    /// What its targets need and its sources do not have.
    pub receive_bound: u64,
    /// Copied within the rank.
    pub local: u64,
    /// Contributions it sends to be reduced on others.
    pub reduce_sent: u64,
    /// Contributions it receives to reduce them.
    pub reduce_received: u64,
    /// The most it stages at once.
    pub staging: u64,
}
/// See struct tutti_transfer_load.
pub type tutti_transfer_load_t = tutti_transfer_load;

/// A box of one tensor that moves as part of one bucket. Its arrays belong to the plan, and live as long.
///
/// Initialise with TUTTI_TRANSFER_CHUNK_INIT.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_transfer_chunk {
    /// sizeof(tutti_transfer_chunk_t) as the caller was compiled.
    pub struct_size: usize,
    /// The tensor, as an index into the items.
    pub item: usize,
    /// The bucket it moves in.
    pub bucket: usize,
    /// TUTTI_TRANSPORT_P2P and so on.
    pub transport: i32,
    /// The rank that sends it; with TUTTI_TRANSPORT_NONE, the rank that it is reduced onto.
    pub source: i32,
    /// 1 if the asking rank reads the elements, else 0.
    pub is_source: i32,
    /// 1 if the asking rank writes the elements to its target, else 0.
    pub is_target: i32,
    /// The ranks that write it, ascending; with TUTTI_TRANSPORT_LOCAL the source.
    pub targets: *const i32,
    /// How many.
    pub target_count: usize,
    /// The ranks that contribute, only with TUTTI_TRANSPORT_NONE.
    pub contributors: *const i32,
    /// How many.
    pub contributor_count: usize,
    /// The first index of the box in the whole tensor, for every dimension.
    pub start: *const u64,
    /// The extent of the box.
    pub extent: *const u64,
    /// The tensor's dimensions.
    pub dim_count: usize,
    /// Its bytes in the bucket.
    pub bytes: u64,
    /// Where in the bucket they begin; a multiple of 16.
    pub offset: u64,
    /// The bucket whose sums it reads instead of the source tensor, or -1.
    pub reduced_bucket: i64,
    /// Where in that bucket.
    pub reduced_offset: u64,
    /// The type of its elements in the bucket.
    pub dtype: i32,
}
/// See struct tutti_transfer_chunk.
pub type tutti_transfer_chunk_t = tutti_transfer_chunk;

/// What moves at once. Its arrays belong to the plan, and live as long.
///
/// Initialise with TUTTI_TRANSFER_BUCKET_INIT.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_transfer_bucket {
    /// sizeof(tutti_transfer_bucket_t) as the caller was compiled.
    pub struct_size: usize,
    /// TUTTI_TRANSPORT_P2P and so on.
    pub transport: i32,
    /// The rank that sends; with TUTTI_TRANSPORT_NONE the first contributor.
    pub source: i32,
    /// The ranks that receive, ascending, never the source.
    pub targets: *const i32,
    /// How many.
    pub target_count: usize,
    /// Bytes of its chunks and of the gaps between them.
    pub bytes: u64,
    /// Its first chunk.
    pub first_chunk: usize,
    /// How many chunks it has.
    pub chunk_count: usize,
    /// The bucket whose sums it reads, which its source must have finished; -1: none.
    pub after: i64,
    /// With TUTTI_TRANSPORT_NONE the ranks that contribute, in the order in which contributions are added.
    pub members: *const i32,
    /// How many.
    pub member_count: usize,
    /// Where the block of each member begins in the bucket, and the end: member_count + 1 numbers.
    pub blocks: *const u64,
}
/// See struct tutti_transfer_bucket.
pub type tutti_transfer_bucket_t = tutti_transfer_bucket;

/// How far a transfer has come on this rank.
///
/// Initialise with TUTTI_TRANSFER_PROGRESS_INIT.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_transfer_progress {
    /// sizeof(tutti_transfer_progress_t) as the caller was compiled.
    pub struct_size: usize,
    /// TUTTI_TRANSFER_IDLE and so on.
    pub phase: i32,
    /// After a failure the rank that is missing, lost, aborting or disagreeing; -1: none named.
    pub failed_rank: i32,
    /// This rank's buckets that are over.
    pub buckets_done: u64,
    /// This rank's buckets.
    pub buckets: u64,
    /// Bytes in those that are over.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes of memory for staging now.
    pub staged: u64,
}
/// See struct tutti_transfer_progress.
pub type tutti_transfer_progress_t = tutti_transfer_progress;

// The ABI, held in place: what is asserted here was released and may only grow at the end.
const _: () = {
    use crate::transfer::{Phase, Side, Transport};
    use std::mem::size_of;

    assert!(size_of::<tutti_mesh>() == 40);
    assert!(size_of::<tutti_placement>() == 48);
    assert!(size_of::<tutti_tensor_layout>() == 40);
    assert!(size_of::<tutti_transfer_item>() == 56);
    assert!(size_of::<tutti_transfer_options>() == 40);
    assert!(size_of::<tutti_transfer_totals>() == 192);
    assert!(size_of::<tutti_transfer_load>() == 72);
    assert!(size_of::<tutti_transfer_chunk>() == 136);
    assert!(size_of::<tutti_transfer_bucket>() == 88);
    assert!(size_of::<tutti_transfer_progress>() == 56);
    assert!(size_of::<*const c_void>() == 8);

    assert!(TUTTI_TRANSPORT_P2P == Transport::P2p as i32);
    assert!(TUTTI_TRANSPORT_BROADCAST == Transport::Broadcast as i32);
    assert!(TUTTI_TRANSPORT_LOCAL == Transport::Local as i32);
    assert!(TUTTI_TRANSPORT_NONE == Transport::None as i32);
    assert!(TUTTI_TRANSFER_IDLE == Phase::Idle as i32);
    assert!(TUTTI_TRANSFER_CHECKING == Phase::Checking as i32);
    assert!(TUTTI_TRANSFER_MOVING == Phase::Moving as i32);
    assert!(TUTTI_TRANSFER_DONE == Phase::Done as i32);
    assert!(TUTTI_TRANSFER_FAILED == Phase::Failed as i32);
    assert!(TUTTI_SOURCE == Side::Source as i32 && TUTTI_TARGET == Side::Target as i32);
};
