//! The C types and constants, under their C names.
//!
//! Nothing here does anything. Numbers are part of the ABI: they are never changed and never reused, structs grow
//! only at their end, and the assertions at the bottom hold sizes, offsets and numbers to that.

use std::ffi::{c_char, c_void};

/// What a call came to: TUTTI_SUCCESS, TUTTI_INVALID_ARGUMENT and so on.
pub type tutti_status_t = i32;

/// The call did what it says.
pub const TUTTI_SUCCESS: i32 = 0;
/// An argument is wrong. Nothing was changed.
pub const TUTTI_INVALID_ARGUMENT: i32 = 1;
/// The arguments are right, but the call may not be made now. Nothing was changed.
pub const TUTTI_INVALID_USAGE: i32 = 2;
/// Nothing here can serve the call. Nothing was changed.
pub const TUTTI_UNSUPPORTED: i32 = 3;
/// The machine has no memory left for the call.
pub const TUTTI_OUT_OF_MEMORY: i32 = 4;
/// The operating system refused something.
pub const TUTTI_SYSTEM_ERROR: i32 = 5;
/// The CUDA driver refused something.
pub const TUTTI_CUDA_ERROR: i32 = 6;
/// A communicator failed.
pub const TUTTI_COMMUNICATOR_ERROR: i32 = 7;
/// A rank did not arrive before the deadline.
pub const TUTTI_TIMEOUT: i32 = 8;
/// A rank died or left the group.
pub const TUTTI_PEER_LOST: i32 = 9;
/// A rank aborted the group.
pub const TUTTI_ABORTED: i32 = 10;
/// The ranks called different things.
pub const TUTTI_MISMATCH: i32 = 11;
/// A defect of this library.
pub const TUTTI_INTERNAL_ERROR: i32 = 12;
/// Not finished yet. No failure: only tutti_request_test and tutti_request_wait return it.
pub const TUTTI_IN_PROGRESS: i32 = 13;

/// Signed 8-bit integer. The dtypes 0 to 11 have NCCL's numbers.
pub const TUTTI_INT8: i32 = 0;
/// Unsigned 8-bit integer.
pub const TUTTI_UINT8: i32 = 1;
/// Signed 32-bit integer.
pub const TUTTI_INT32: i32 = 2;
/// Unsigned 32-bit integer.
pub const TUTTI_UINT32: i32 = 3;
/// Signed 64-bit integer.
pub const TUTTI_INT64: i32 = 4;
/// Unsigned 64-bit integer.
pub const TUTTI_UINT64: i32 = 5;
/// IEEE binary16.
pub const TUTTI_FLOAT16: i32 = 6;
/// IEEE binary32.
pub const TUTTI_FLOAT32: i32 = 7;
/// IEEE binary64.
pub const TUTTI_FLOAT64: i32 = 8;
/// The upper half of a binary32.
pub const TUTTI_BFLOAT16: i32 = 9;
/// 8-bit float, 4 exponent and 3 mantissa bits, no infinity (OCP E4M3).
pub const TUTTI_FLOAT8E4M3: i32 = 10;
/// 8-bit float, 5 exponent and 2 mantissa bits (OCP E5M2).
pub const TUTTI_FLOAT8E5M2: i32 = 11;
/// One byte, moved but never reduced.
pub const TUTTI_BOOL: i32 = 100;
/// Two bytes, moved but never reduced.
pub const TUTTI_INT16: i32 = 101;
/// One opaque byte, moved but never reduced.
pub const TUTTI_BYTES: i32 = 102;

/// The sum. Integers wrap.
pub const TUTTI_SUM: i32 = 0;
/// The product. Integers wrap.
pub const TUTTI_PROD: i32 = 1;
/// The largest: NaN if any is NaN; -0 is below +0.
pub const TUTTI_MAX: i32 = 2;
/// The smallest: NaN if any is NaN; -0 is below +0.
pub const TUTTI_MIN: i32 = 3;
/// The sum, divided once by the number of ranks. Integers truncate.
pub const TUTTI_AVG: i32 = 4;

/// tutti_all_reduce
pub const TUTTI_ALL_REDUCE: i32 = 0;
/// tutti_all_gather
pub const TUTTI_ALL_GATHER: i32 = 1;
/// tutti_reduce_scatter
pub const TUTTI_REDUCE_SCATTER: i32 = 2;
/// tutti_broadcast
pub const TUTTI_BROADCAST: i32 = 3;
/// tutti_reduce
pub const TUTTI_REDUCE: i32 = 4;
/// tutti_gather
pub const TUTTI_GATHER: i32 = 5;
/// tutti_scatter
pub const TUTTI_SCATTER: i32 = 6;
/// tutti_all_to_all
pub const TUTTI_ALL_TO_ALL: i32 = 7;
/// tutti_send
pub const TUTTI_SEND: i32 = 8;
/// tutti_recv
pub const TUTTI_RECV: i32 = 9;
/// tutti_barrier
pub const TUTTI_BARRIER: i32 = 10;
/// tutti_all_gather_v
pub const TUTTI_ALL_GATHER_V: i32 = 11;
/// tutti_reduce_scatter_v
pub const TUTTI_REDUCE_SCATTER_V: i32 = 12;
/// tutti_all_to_all_v
pub const TUTTI_ALL_TO_ALL_V: i32 = 13;

/// Device kind: from TUTTI_DEVICE ("cpu"; "cuda", which is the device LOCAL_RANK; "cuda:N"); the CPU where it is unset.
pub const TUTTI_DEVICE_DEFAULT: i32 = 0;
/// Device kind: buffers are host memory.
pub const TUTTI_DEVICE_CPU: i32 = 1;
/// Device kind: buffers are memory of one CUDA device.
pub const TUTTI_DEVICE_CUDA: i32 = 2;

/// Option flag of worlds and groups: exclude communicators that cannot promise the same bits in every run.
pub const TUTTI_FLAG_DETERMINISTIC: u32 = 1;
/// Option flag of worlds: ranks on other hosts may join without a secret. Logged as a warning.
pub const TUTTI_FLAG_ALLOW_UNAUTHENTICATED: u32 = 2;

/// Flag of tutti_all_reduce_mode and tutti_explain: the call is made while its stream is captured.
pub const TUTTI_CALL_CAPTURED: u32 = 1;
/// Call flag: on every rank, send and recv are memory of tutti_mem_alloc. All ranks must say the same. On a CUDA group
/// with "pull" a rank whose buffers are not gets TUTTI_INVALID_ARGUMENT.
pub const TUTTI_CALL_REGISTERED: u32 = 2;

/// Flag of a tensor in a dict: every rank of a replicating group sends all of it, because they hold different values.
pub const TUTTI_TENSOR_WHOLE: u32 = 1;
/// Flag of a tensor in a dict: every rank of a replicating group sends its slice, however small.
pub const TUTTI_TENSOR_SLICED: u32 = 2;

/// No communicator of the group serves the call.
pub const TUTTI_MODE_NONE: i32 = 0;
/// Served without a copy if the result replaces the input.
pub const TUTTI_MODE_INPLACE: i32 = 1;
/// Served without a copy if the result goes beside the input.
pub const TUTTI_MODE_OUTPLACE: i32 = 2;
/// Served without a copy either way.
pub const TUTTI_MODE_BOTH: i32 = 3;

/// tutti_explain, tutti_layout_draw and tutti_transfer_plan_report write a table for people.
pub const TUTTI_FORMAT_TEXT: i32 = 0;
/// tutti_explain, tutti_layout_draw and tutti_transfer_plan_report write one JSON object.
pub const TUTTI_FORMAT_JSON: i32 = 1;
/// tutti_layout_draw draws the layout as an SVG picture, tutti_transfer_plan_report who sends how much to whom.
pub const TUTTI_FORMAT_SVG: i32 = 2;

/// Kind of group: tensor parallel.
pub const TUTTI_LAYOUT_TP: i32 = 0;
/// Kind of group: pipeline parallel.
pub const TUTTI_LAYOUT_PP: i32 = 1;
/// Kind of group: data parallel within a deployment, whose copies of the model step together.
pub const TUTTI_LAYOUT_DP: i32 = 2;
/// Kind of group: data parallel across deployments that know nothing of each other.
pub const TUTTI_LAYOUT_EXTERNAL_DP: i32 = 3;
/// Kind of group: prefill context parallel.
pub const TUTTI_LAYOUT_PCP: i32 = 4;
/// Kind of group: decode context parallel, which reuses the ranks of PCP, then of TP.
pub const TUTTI_LAYOUT_DCP: i32 = 5;
/// Kind of group: expert parallel, which reuses the ranks of TP, then of PCP, then of DP.
pub const TUTTI_LAYOUT_EP: i32 = 6;
/// How many kinds of group there are; a later version may have more.
pub const TUTTI_LAYOUT_KINDS: usize = 7;

/// timeout_ms: for a call, its group's; for a group, its parent's; for a world, ten minutes.
pub const TUTTI_TIMEOUT_DEFAULT: i64 = 0;
/// timeout_ms: wait for ever. Dead, aborting and disagreeing ranks still end the wait.
pub const TUTTI_TIMEOUT_NEVER: i64 = -1;

/// Log level: something failed.
pub const TUTTI_LOG_ERROR: i32 = 1;
/// Log level: something works, but not as well as it could.
pub const TUTTI_LOG_WARN: i32 = 2;
/// Log level: life cycle.
pub const TUTTI_LOG_INFO: i32 = 3;
/// Log level: decisions.
pub const TUTTI_LOG_DEBUG: i32 = 4;
/// Log level: everything.
pub const TUTTI_LOG_TRACE: i32 = 5;

/// Bytes of a unique id.
pub const TUTTI_UNIQUE_ID_BYTES: usize = 128;

/// Ordered ranks that communicate, as one of them sees them.
///
/// A handle may be used from any thread. Two threads may not be inside collective calls of one group at once:
/// the second gets TUTTI_INVALID_USAGE. Queries, tutti_group_check, tutti_group_abort and tutti_group_destroy
/// may be called at any time.
pub struct tutti_group {
    _opaque: [u8; 0],
}
/// See struct tutti_group.
pub type tutti_group_t = tutti_group;

/// A started call. May be used from any thread.
pub struct tutti_request {
    _opaque: [u8; 0],
}
/// See struct tutti_request.
pub type tutti_request_t = tutti_request;

/// A capture session. May be used from any thread.
pub struct tutti_capture {
    _opaque: [u8; 0],
}
/// See struct tutti_capture.
pub type tutti_capture_t = tutti_capture;

/// One rank's end of a queue. May be used from any thread, by one at a time.
pub struct tutti_queue {
    _opaque: [u8; 0],
}
/// See struct tutti_queue.
pub type tutti_queue_t = tutti_queue;

/// A message of tensors, or an object: on its way, or here. May be used from any thread.
pub struct tutti_dict {
    _opaque: [u8; 0],
}
/// See struct tutti_dict.
pub type tutti_dict_t = tutti_dict;

/// How a world splits into groups. May be used from any thread.
pub struct tutti_layout {
    _opaque: [u8; 0],
}
/// See struct tutti_layout.
pub type tutti_layout_t = tutti_layout;

/// How this rank finds its world. All zero but struct_size: everything from the environment.
///
/// Initialise with TUTTI_WORLD_OPTIONS_INIT. Whatever it points to is read before tutti_world_create returns and
/// never after.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_world_options {
    /// sizeof(tutti_world_options_t) as the caller was compiled.
    pub struct_size: usize,
    /// Ranks of the world. Greater than 0: size and rank count; 0: both from the environment.
    pub size: i32,
    /// This rank, 0 to size - 1. Must be 0 where size is 0.
    pub rank: i32,
    /// TUTTI_DEVICE_DEFAULT, TUTTI_DEVICE_CPU or TUTTI_DEVICE_CUDA. Every rank of a world has the same kind.
    pub device_kind: i32,
    /// The device's ordinal with TUTTI_DEVICE_CUDA; must be 0 otherwise.
    pub device: i32,
    /// An id of tutti_unique_id_create that all ranks share, or NULL. Needs size and rank.
    pub unique_id: *const c_void,
    /// TUTTI_UNIQUE_ID_BYTES, or 0 where unique_id is NULL.
    pub unique_id_size: usize,
    /// "host:port" at which rank 0 can be reached from other hosts, or NULL. Not needed on one host, nor with a
    /// unique id that holds it.
    pub address: *const c_char,
    /// The caller's own way to exchange bytes between all ranks, or NULL. Needs size and rank.
    ///
    /// Called in the thread of tutti_world_create, a few times and equally often on every rank. Each call hands in
    /// `bytes` bytes at `mine`, equally many on every rank, and must fill `all` with those of every rank, in rank
    /// order: size * bytes bytes. Returns 0, or any other value if it failed, which fails the creation.
    pub all_gather:
        Option<unsafe extern "C" fn(user: *mut c_void, mine: *const c_void, bytes: usize, all: *mut c_void) -> i32>,
    /// Handed to all_gather.
    pub user: *mut c_void,
    /// The deadline of the creation, and of the world's calls: milliseconds, TUTTI_TIMEOUT_DEFAULT or
    /// TUTTI_TIMEOUT_NEVER. Must be equal on all ranks.
    pub timeout_ms: i64,
    /// TUTTI_FLAG_DETERMINISTIC, TUTTI_FLAG_ALLOW_UNAUTHENTICATED. Must be equal on all ranks.
    pub flags: u32,
    /// Which communicators may be used: NULL or "" for all, "shm,sockets" only these, "^shm" all but these, "=shm"
    /// this one for every call. Must be equal on all ranks.
    pub communicators: *const c_char,
}
/// See struct tutti_world_options.
pub type tutti_world_options_t = tutti_world_options;

/// How a group is made. All zero but struct_size, or a NULL pointer: the defaults.
///
/// Initialise with TUTTI_GROUP_OPTIONS_INIT. Every field must be equal on all members. Whatever it points to is
/// read before the call returns and never after.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_group_options {
    /// sizeof(tutti_group_options_t) as the caller was compiled.
    pub struct_size: usize,
    /// The group's name in texts, up to 255 bytes of UTF-8. NULL or "": made up.
    pub name: *const c_char,
    /// The deadline of the group's calls: milliseconds, TUTTI_TIMEOUT_DEFAULT (the parent's) or TUTTI_TIMEOUT_NEVER.
    pub timeout_ms: i64,
    /// TUTTI_FLAG_DETERMINISTIC.
    pub flags: u32,
    /// As in tutti_world_options.
    pub communicators: *const c_char,
}
/// See struct tutti_group_options.
pub type tutti_group_options_t = tutti_group_options;

/// What a layout is planned from, for tutti_layout_create. All ranks of a world must be given the same.
///
/// Initialise with TUTTI_LAYOUT_OPTIONS_INIT and set at least `world`. Whatever it points to is read before the call
/// returns and never after.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_layout_options {
    /// sizeof(tutti_layout_options_t) as the caller was compiled.
    pub struct_size: usize,
    /// Ranks of the world, up to 1048576. Must be the product of tensor, pipeline, data, external_data and
    /// prefill_context.
    pub world: i32,
    /// Ranks of a TP group; 0: 1.
    pub tensor: i32,
    /// Ranks of a PP group; 0: 1.
    pub pipeline: i32,
    /// Ranks of a DP group; 0: 1.
    pub data: i32,
    /// Ranks of an external DP group; 0: 1.
    pub external_data: i32,
    /// Ranks of a PCP group; 0: 1.
    pub prefill_context: i32,
    /// Ranks of a DCP group; 0: 1.
    pub decode_context: i32,
    /// Ranks of an EP group; 0: all there are, data * prefill_context * tensor.
    pub expert: i32,
    /// The axes from the one whose neighbours are farthest apart to the one whose are adjacent, as the kinds of group
    /// along them. All 0: external DP, DP, PP, PCP, TP.
    pub axes: [i32; 5],
    /// order[i] is the rank that takes place i, `world` of them, each rank once; NULL: by the labels, or without
    /// labels as ranks are numbered. Goes before the labels, which then only serve the reports.
    pub order: *const i32,
    /// hosts[r]: the host of rank r, `world` numbers of the caller's own, 0 or more; NULL: one host.
    pub hosts: *const i32,
    /// domains[r]: the interconnect domain ("supernode") of rank r, which may span hosts; NULL: one domain. Domains
    /// must have equally many ranks.
    pub domains: *const i32,
    /// lanes[r]: the place of rank r within its host and domain; NULL: ranks keep their order.
    pub lanes: *const i32,
}
/// See struct tutti_layout_options.
pub type tutti_layout_options_t = tutti_layout_options;

/// How a queue is made. All zero but struct_size, or a NULL pointer: the defaults.
///
/// Initialise with TUTTI_QUEUE_OPTIONS_INIT. Every field must be equal on all ranks.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_queue_options {
    /// sizeof(tutti_queue_options_t) as the caller was compiled.
    pub struct_size: usize,
    /// The rank of the group that writes.
    pub writer: i32,
    /// Bytes of messages that may wait for the slowest reader, in pieces of 16 KiB, of which each message takes at
    /// least one; 0: 1 MiB. Larger messages stream through.
    pub capacity: usize,
    /// The queue's name in texts, up to 255 bytes of UTF-8. NULL or "": made up.
    pub name: *const c_char,
    /// The deadline of the making, and of reads and writes: milliseconds, TUTTI_TIMEOUT_DEFAULT (the group's) or
    /// TUTTI_TIMEOUT_NEVER.
    pub timeout_ms: i64,
}
/// See struct tutti_queue_options.
pub type tutti_queue_options_t = tutti_queue_options;

/// A tensor: what it is, and where its elements are.
///
/// Initialise with TUTTI_TENSOR_INIT.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_tensor {
    /// sizeof(tutti_tensor_t) as the caller was compiled; in an array the same in all.
    pub struct_size: usize,
    /// Its name among the others of its dict: up to 255 bytes of UTF-8. NULL: "".
    pub name: *const c_char,
    /// The element with all indices 0. May be NULL where there are no elements.
    pub data: *mut c_void,
    /// TUTTI_FLOAT32 and so on.
    pub dtype: i32,
    /// TUTTI_DEVICE_CPU or TUTTI_DEVICE_CUDA; 0: TUTTI_DEVICE_CPU.
    pub device_kind: i32,
    /// Dimensions, 0 to 16.
    pub ndim: i32,
    /// TUTTI_TENSOR_WHOLE, TUTTI_TENSOR_SLICED, or 0.
    pub flags: u32,
    /// `ndim` extents, 0 or more.
    pub shape: *const i64,
    /// `ndim` strides, in elements, or NULL: the elements lie row by row.
    pub strides: *const i64,
}
/// See struct tutti_tensor.
pub type tutti_tensor_t = tutti_tensor;

/// With whom a dict is exchanged, and how. All zero but struct_size, or a NULL pointer: the defaults.
///
/// Initialise with TUTTI_DICT_OPTIONS_INIT.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_dict_options {
    /// sizeof(tutti_dict_options_t) as the caller was compiled.
    pub struct_size: usize,
    /// The other rank of the group; the root of a broadcast.
    pub peer: i32,
    /// Dicts meet by peer and tag, in order: 0 or more. They meet no tutti_send or tutti_recv, whatever its tag.
    pub tag: i32,
    /// The group of the ranks that all hold the same tensors, or that receive their slices; or NULL.
    pub replicas: *mut tutti_group_t,
    /// The deadline of each step: milliseconds, TUTTI_TIMEOUT_DEFAULT (the group's) or TUTTI_TIMEOUT_NEVER.
    pub timeout_ms: i64,
    /// On a CUDA group, the stream (a CUstream) behind which tensors of the device are read and written; NULL: the legacy
    /// default stream.
    pub stream: *mut c_void,
}
/// See struct tutti_dict_options.
pub type tutti_dict_options_t = tutti_dict_options;

/// One call of any collective, for tutti_start.
///
/// Initialise with TUTTI_CALL_INIT. send_count and recv_count both name the count of the collective's short
/// function: give either, or both if they are equal.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_call {
    /// sizeof(tutti_call_t) as the caller was compiled.
    pub struct_size: usize,
    /// TUTTI_ALL_REDUCE and so on.
    pub collective: i32,
    /// TUTTI_FLOAT32 and so on. Ignored by a barrier.
    pub dtype: i32,
    /// TUTTI_SUM and so on. Ignored where nothing is reduced.
    pub op: i32,
    /// The root, or the peer of a send or receive, as a rank of the group. Ignored where there is none.
    pub peer: i32,
    /// Sends and receives match by (peer, direction, tag). 0 for every other collective and on CUDA groups.
    pub tag: i64,
    /// TUTTI_CALL_REGISTERED.
    pub flags: u32,
    /// This rank's input, as in the short function.
    pub send: *const c_void,
    /// This rank's output, as in the short function.
    pub recv: *mut c_void,
    /// Elements.
    pub send_count: usize,
    /// Elements.
    pub recv_count: usize,
    /// all_to_all_v: elements for every rank; otherwise NULL.
    pub send_counts: *const usize,
    /// v-forms: where in send every rank's elements begin, in elements; NULL: one after the other.
    pub send_displs: *const usize,
    /// v-forms: elements from every rank, for reduce_scatter_v those that every rank is left with; otherwise NULL.
    pub recv_counts: *const usize,
    /// v-forms: where in recv every rank's elements begin, in elements; NULL: one after the other.
    pub recv_displs: *const usize,
    /// As in the short function.
    pub stream: *mut c_void,
    /// The deadline of this call: milliseconds, TUTTI_TIMEOUT_DEFAULT or TUTTI_TIMEOUT_NEVER.
    pub timeout_ms: i64,
}
/// See struct tutti_call.
pub type tutti_call_t = tutti_call;

/// A group's first failure.
///
/// Initialise with TUTTI_FAILURE_INIT.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct tutti_failure {
    /// sizeof(tutti_failure_t) as the caller was compiled.
    pub struct_size: usize,
    /// What tutti_group_check returns; TUTTI_SUCCESS while the group lives.
    pub status: i32,
    /// The rank, within the group, that is missing, lost, disagreeing or aborting; -1: none named.
    pub rank: i32,
    /// The call during which the failure was found: TUTTI_ALL_REDUCE and so on; -1: none.
    pub collective: i32,
    /// That call's number in the group, counted from 1; 0: none.
    pub sequence: u64,
}
/// See struct tutti_failure.
pub type tutti_failure_t = tutti_failure;

/// Receives one log record.
///
/// `level` is TUTTI_LOG_ERROR to TUTTI_LOG_TRACE; `target` names the part of the library; both texts are UTF-8,
/// end with NUL, and are gone when the function returns. It is called from any thread, from several at once, and
/// must not throw, unwind, wait for a thread that is inside this library, or call a function of it that takes a group:
/// the record may come from the midst of such a call.
pub type tutti_log_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, level: i32, target: *const c_char, message: *const c_char)>;

// The ABI, held in place: what is asserted here was released and may only grow at the end.
const _: () = {
    use crate::{
        communicator::Placement,
        dtype::{Collective, DType, Op},
        error::Status,
        group::layout::{KINDS, Kind},
    };
    use std::mem::{align_of, offset_of, size_of};

    assert!(size_of::<usize>() == 8, "handles and structs are laid out for 64-bit machines");

    assert!(size_of::<tutti_world_options>() == 88 && align_of::<tutti_world_options>() == 8);
    assert!(offset_of!(tutti_world_options, struct_size) == 0);
    assert!(offset_of!(tutti_world_options, size) == 8);
    assert!(offset_of!(tutti_world_options, rank) == 12);
    assert!(offset_of!(tutti_world_options, device_kind) == 16);
    assert!(offset_of!(tutti_world_options, device) == 20);
    assert!(offset_of!(tutti_world_options, unique_id) == 24);
    assert!(offset_of!(tutti_world_options, unique_id_size) == 32);
    assert!(offset_of!(tutti_world_options, address) == 40);
    assert!(offset_of!(tutti_world_options, all_gather) == 48);
    assert!(offset_of!(tutti_world_options, user) == 56);
    assert!(offset_of!(tutti_world_options, timeout_ms) == 64);
    assert!(offset_of!(tutti_world_options, flags) == 72);
    assert!(offset_of!(tutti_world_options, communicators) == 80);

    assert!(size_of::<tutti_group_options>() == 40 && align_of::<tutti_group_options>() == 8);
    assert!(offset_of!(tutti_group_options, struct_size) == 0);
    assert!(offset_of!(tutti_group_options, name) == 8);
    assert!(offset_of!(tutti_group_options, timeout_ms) == 16);
    assert!(offset_of!(tutti_group_options, flags) == 24);
    assert!(offset_of!(tutti_group_options, communicators) == 32);

    assert!(size_of::<tutti_layout_options>() == 96 && align_of::<tutti_layout_options>() == 8);
    assert!(offset_of!(tutti_layout_options, struct_size) == 0);
    assert!(offset_of!(tutti_layout_options, world) == 8);
    assert!(offset_of!(tutti_layout_options, tensor) == 12);
    assert!(offset_of!(tutti_layout_options, pipeline) == 16);
    assert!(offset_of!(tutti_layout_options, data) == 20);
    assert!(offset_of!(tutti_layout_options, external_data) == 24);
    assert!(offset_of!(tutti_layout_options, prefill_context) == 28);
    assert!(offset_of!(tutti_layout_options, decode_context) == 32);
    assert!(offset_of!(tutti_layout_options, expert) == 36);
    assert!(offset_of!(tutti_layout_options, axes) == 40);
    assert!(offset_of!(tutti_layout_options, order) == 64);
    assert!(offset_of!(tutti_layout_options, hosts) == 72);
    assert!(offset_of!(tutti_layout_options, domains) == 80);
    assert!(offset_of!(tutti_layout_options, lanes) == 88);

    assert!(size_of::<tutti_queue_options>() == 40 && align_of::<tutti_queue_options>() == 8);
    assert!(offset_of!(tutti_queue_options, struct_size) == 0);
    assert!(offset_of!(tutti_queue_options, writer) == 8);
    assert!(offset_of!(tutti_queue_options, capacity) == 16);
    assert!(offset_of!(tutti_queue_options, name) == 24);
    assert!(offset_of!(tutti_queue_options, timeout_ms) == 32);

    assert!(size_of::<tutti_tensor>() == 56 && align_of::<tutti_tensor>() == 8);
    assert!(offset_of!(tutti_tensor, struct_size) == 0);
    assert!(offset_of!(tutti_tensor, name) == 8);
    assert!(offset_of!(tutti_tensor, data) == 16);
    assert!(offset_of!(tutti_tensor, dtype) == 24);
    assert!(offset_of!(tutti_tensor, device_kind) == 28);
    assert!(offset_of!(tutti_tensor, ndim) == 32);
    assert!(offset_of!(tutti_tensor, flags) == 36);
    assert!(offset_of!(tutti_tensor, shape) == 40);
    assert!(offset_of!(tutti_tensor, strides) == 48);

    assert!(size_of::<tutti_dict_options>() == 40 && align_of::<tutti_dict_options>() == 8);
    assert!(offset_of!(tutti_dict_options, struct_size) == 0);
    assert!(offset_of!(tutti_dict_options, peer) == 8);
    assert!(offset_of!(tutti_dict_options, tag) == 12);
    assert!(offset_of!(tutti_dict_options, replicas) == 16);
    assert!(offset_of!(tutti_dict_options, timeout_ms) == 24);
    assert!(offset_of!(tutti_dict_options, stream) == 32);

    assert!(size_of::<tutti_call>() == 120 && align_of::<tutti_call>() == 8);
    assert!(offset_of!(tutti_call, struct_size) == 0);
    assert!(offset_of!(tutti_call, collective) == 8);
    assert!(offset_of!(tutti_call, dtype) == 12);
    assert!(offset_of!(tutti_call, op) == 16);
    assert!(offset_of!(tutti_call, peer) == 20);
    assert!(offset_of!(tutti_call, tag) == 24);
    assert!(offset_of!(tutti_call, flags) == 32);
    assert!(offset_of!(tutti_call, send) == 40);
    assert!(offset_of!(tutti_call, recv) == 48);
    assert!(offset_of!(tutti_call, send_count) == 56);
    assert!(offset_of!(tutti_call, recv_count) == 64);
    assert!(offset_of!(tutti_call, send_counts) == 72);
    assert!(offset_of!(tutti_call, send_displs) == 80);
    assert!(offset_of!(tutti_call, recv_counts) == 88);
    assert!(offset_of!(tutti_call, recv_displs) == 96);
    assert!(offset_of!(tutti_call, stream) == 104);
    assert!(offset_of!(tutti_call, timeout_ms) == 112);

    assert!(size_of::<tutti_failure>() == 32 && align_of::<tutti_failure>() == 8);
    assert!(offset_of!(tutti_failure, struct_size) == 0);
    assert!(offset_of!(tutti_failure, status) == 8);
    assert!(offset_of!(tutti_failure, rank) == 12);
    assert!(offset_of!(tutti_failure, collective) == 16);
    assert!(offset_of!(tutti_failure, sequence) == 24);

    assert!(TUTTI_SUCCESS == Status::Success as i32);
    assert!(TUTTI_INVALID_ARGUMENT == Status::InvalidArgument as i32);
    assert!(TUTTI_INVALID_USAGE == Status::InvalidUsage as i32);
    assert!(TUTTI_UNSUPPORTED == Status::Unsupported as i32);
    assert!(TUTTI_OUT_OF_MEMORY == Status::OutOfMemory as i32);
    assert!(TUTTI_SYSTEM_ERROR == Status::SystemError as i32);
    assert!(TUTTI_CUDA_ERROR == Status::CudaError as i32);
    assert!(TUTTI_COMMUNICATOR_ERROR == Status::CommunicatorError as i32);
    assert!(TUTTI_TIMEOUT == Status::Timeout as i32);
    assert!(TUTTI_PEER_LOST == Status::PeerLost as i32);
    assert!(TUTTI_ABORTED == Status::Aborted as i32);
    assert!(TUTTI_MISMATCH == Status::Mismatch as i32);
    assert!(TUTTI_INTERNAL_ERROR == Status::InternalError as i32);
    assert!(TUTTI_IN_PROGRESS == Status::InProgress as i32);

    assert!(TUTTI_INT8 == DType::Int8 as i32);
    assert!(TUTTI_UINT8 == DType::Uint8 as i32);
    assert!(TUTTI_INT32 == DType::Int32 as i32);
    assert!(TUTTI_UINT32 == DType::Uint32 as i32);
    assert!(TUTTI_INT64 == DType::Int64 as i32);
    assert!(TUTTI_UINT64 == DType::Uint64 as i32);
    assert!(TUTTI_FLOAT16 == DType::Float16 as i32);
    assert!(TUTTI_FLOAT32 == DType::Float32 as i32);
    assert!(TUTTI_FLOAT64 == DType::Float64 as i32);
    assert!(TUTTI_BFLOAT16 == DType::Bfloat16 as i32);
    assert!(TUTTI_FLOAT8E4M3 == DType::Float8E4M3 as i32);
    assert!(TUTTI_FLOAT8E5M2 == DType::Float8E5M2 as i32);
    assert!(TUTTI_BOOL == DType::Bool as i32);
    assert!(TUTTI_INT16 == DType::Int16 as i32);
    assert!(TUTTI_BYTES == DType::Bytes as i32);

    assert!(TUTTI_SUM == Op::Sum as i32);
    assert!(TUTTI_PROD == Op::Prod as i32);
    assert!(TUTTI_MAX == Op::Max as i32);
    assert!(TUTTI_MIN == Op::Min as i32);
    assert!(TUTTI_AVG == Op::Avg as i32);

    assert!(TUTTI_ALL_REDUCE == Collective::AllReduce as i32);
    assert!(TUTTI_ALL_GATHER == Collective::AllGather as i32);
    assert!(TUTTI_REDUCE_SCATTER == Collective::ReduceScatter as i32);
    assert!(TUTTI_BROADCAST == Collective::Broadcast as i32);
    assert!(TUTTI_REDUCE == Collective::Reduce as i32);
    assert!(TUTTI_GATHER == Collective::Gather as i32);
    assert!(TUTTI_SCATTER == Collective::Scatter as i32);
    assert!(TUTTI_ALL_TO_ALL == Collective::AllToAll as i32);
    assert!(TUTTI_SEND == Collective::Send as i32);
    assert!(TUTTI_RECV == Collective::Recv as i32);
    assert!(TUTTI_BARRIER == Collective::Barrier as i32);
    assert!(TUTTI_ALL_GATHER_V == Collective::AllGatherV as i32);
    assert!(TUTTI_REDUCE_SCATTER_V == Collective::ReduceScatterV as i32);
    assert!(TUTTI_ALL_TO_ALL_V == Collective::AllToAllV as i32);

    assert!(TUTTI_LAYOUT_TP == Kind::Tensor as i32);
    assert!(TUTTI_LAYOUT_PP == Kind::Pipeline as i32);
    assert!(TUTTI_LAYOUT_DP == Kind::Data as i32);
    assert!(TUTTI_LAYOUT_EXTERNAL_DP == Kind::ExternalData as i32);
    assert!(TUTTI_LAYOUT_PCP == Kind::PrefillContext as i32);
    assert!(TUTTI_LAYOUT_DCP == Kind::DecodeContext as i32);
    assert!(TUTTI_LAYOUT_EP == Kind::Expert as i32);
    assert!(TUTTI_LAYOUT_KINDS == KINDS.len());

    assert!(TUTTI_FLAG_DETERMINISTIC == crate::config::FLAG_DETERMINISTIC);
    assert!(TUTTI_FLAG_ALLOW_UNAUTHENTICATED == crate::config::FLAG_ALLOW_UNAUTHENTICATED);
    assert!(TUTTI_CALL_REGISTERED == crate::config::FLAG_REGISTERED);

    assert!(TUTTI_MODE_NONE == Placement::None as i32);
    assert!(TUTTI_MODE_INPLACE == Placement::InPlace as i32);
    assert!(TUTTI_MODE_OUTPLACE == Placement::OutOfPlace as i32);
    assert!(TUTTI_MODE_BOTH == Placement::Both as i32);

    assert!(TUTTI_LOG_ERROR == log::Level::Error as i32);
    assert!(TUTTI_LOG_TRACE == log::Level::Trace as i32);
};
