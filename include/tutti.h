/*
 * tutti.h: the C interface of libtutti, the communicator stack of inference engines.
 * Generated from src/capi by `UPDATE_HEADER=1 cargo test --test header`; do not edit.
 *
 * Statuses. A function that can fail returns a tutti_status_t. TUTTI_INVALID_ARGUMENT, TUTTI_INVALID_USAGE and
 * TUTTI_UNSUPPORTED are found before anything happens and change nothing. Any other failure of a communication call
 * (but for a message that does not fit its receive, see tutti_send) fails its group: later communication calls on it return the first failure again, while queries, abort, destroy and
 * the making of a new group from the survivors still work. tutti_last_error has the sentence to every failure.
 * A function never exits, aborts, prints, throws or unwinds. In a process forked from one that had made a world
 * everything returns TUTTI_INVALID_USAGE: start processes by spawning them.
 *
 * Lost peers. That a rank's process has ended is noticed by whoever waits for it in a call, typically within a
 * millisecond and always within a second, and by whoever asks tutti_group_alive. tutti_group_check looks at the peers
 * itself only while started work is unfinished; else it reports what some rank has found before. A world of CPU ranks on
 * one host runs no thread of the library's own, so while nobody calls, waits or asks, nothing is noticed. A world over
 * several hosts runs one thread per process, which hears what other hosts report.
 *
 * Handles. Groups, requests, dicts, layouts, queues, capture sessions, plans and transfers are opaque; never look behind
 * the pointer. They may be used from any thread. Destroying one twice succeeds; any other use of a destroyed handle,
 * NULL, or a handle of another kind is TUTTI_INVALID_ARGUMENT, never a crash.
 *
 * Results go through out-parameters, which are written only on success; a handle is set to NULL on failure. An
 * out-parameter may be NULL only where its function says so.
 *
 * Structs go by pointer and begin with struct_size: initialise them with TUTTI_..._INIT. In every option zero means
 * the default. A struct that is shorter than the library's has its missing fields zero; a longer one is accepted while
 * the fields the library does not know are zero.
 *
 * Texts. (text, capacity, needed) is like snprintf: at most `capacity` bytes are written, the last of which is always
 * a NUL; *needed gets the length of the whole text without that NUL, so that it fits if *needed < capacity. text may
 * be NULL with capacity 0, and needed may be NULL. A text that was cut short is no failure. All text is UTF-8.
 *
 * Ranks passed to a group or returned by it are ranks within that group. Counts are in elements. Timeouts are in
 * milliseconds.
 *
 * Collective calls. Every rank of the group makes the same call (collective, count, dtype, op, root and flags) in the
 * same order; ranks that differ get TUTTI_MISMATCH. On a CPU group the buffers are host memory, stream must be NULL,
 * and the call returns when this rank's part is done. On a CUDA group the buffers are memory of the group's device,
 * the call is enqueued on `stream` (a CUstream; NULL: the legacy default stream) and returns. Out of place, send is
 * left untouched; buffers that overlap in any way but the in-place form are TUTTI_INVALID_ARGUMENT. A pointer to no
 * bytes may be NULL. Count 0 is a call like any other and moves nothing. In an open batch (tutti_batch_begin) a call is
 * only checked and noted, and happens in tutti_batch_end. Two threads inside collective calls of one group at once:
 * the second gets TUTTI_INVALID_USAGE. The deadline of a call, ten minutes unless an option names another, begins when
 * this rank enters it; the failure then names the missing rank.
 *
 * Streams of CUDA groups. Calls of a group follow each other whatever streams they are on: one on another stream than the
 * last waits there for that one. CU_STREAM_PER_THREAD is another stream in every thread; NULL and CU_STREAM_LEGACY are one.
 * A stream is known by its handle, so one whose calls of a group have not all been executed must not be destroyed and
 * replaced by a new one, which may get the same handle and would be taken for it. Ranks of one process that share a
 * device wait for each other on it, so each needs streams of its own (else TUTTI_INVALID_ARGUMENT), and all of them
 * non-blocking ones (CU_STREAM_NON_BLOCKING): the legacy default stream, and any blocking stream beside it, would
 * let one rank's work wait for another's that waits for it.
 */


#ifndef TUTTI_H
#define TUTTI_H

#include <stddef.h>
#include <stdint.h>

/// The version of this header. Compare with tutti_version(), the library's.
#define TUTTI_VERSION_MAJOR 0
#define TUTTI_VERSION_MINOR 1
#define TUTTI_VERSION_PATCH 0
#define TUTTI_VERSION (10000 * TUTTI_VERSION_MAJOR + 100 * TUTTI_VERSION_MINOR + TUTTI_VERSION_PATCH)

/// Marks what the library exports.
#ifndef TUTTI_API
#if defined(__GNUC__) || defined(__clang__)
#define TUTTI_API __attribute__((visibility("default")))
#else
#define TUTTI_API
#endif
#endif

/// Marks functions whose status must be looked at. Define it as nothing before the #include to switch that off.
#ifndef TUTTI_MUST_USE
#if defined(__GNUC__) || defined(__clang__)
#define TUTTI_MUST_USE __attribute__((warn_unused_result))
#else
#define TUTTI_MUST_USE
#endif
#endif

/// tutti_world_options_t options = TUTTI_WORLD_OPTIONS_INIT; and so on: every field but struct_size is zero.
#define TUTTI_WORLD_OPTIONS_INIT \
    { sizeof(tutti_world_options_t), 0, 0, 0, 0, NULL, 0, NULL, NULL, NULL, 0, 0, NULL }
#define TUTTI_GROUP_OPTIONS_INIT \
    { sizeof(tutti_group_options_t), NULL, 0, 0, NULL }
#define TUTTI_LAYOUT_OPTIONS_INIT \
    { sizeof(tutti_layout_options_t), 0, 0, 0, 0, 0, 0, 0, 0, { 0, 0, 0, 0, 0 }, NULL, NULL, NULL, NULL }
#define TUTTI_QUEUE_OPTIONS_INIT \
    { sizeof(tutti_queue_options_t), 0, 0, NULL, 0 }
#define TUTTI_TENSOR_INIT \
    { sizeof(tutti_tensor_t), NULL, NULL, 0, 0, 0, 0, NULL, NULL }
#define TUTTI_DICT_OPTIONS_INIT \
    { sizeof(tutti_dict_options_t), 0, 0, NULL, 0, NULL }
#define TUTTI_CALL_INIT \
    { sizeof(tutti_call_t), 0, 0, 0, 0, 0, 0, NULL, NULL, 0, 0, NULL, NULL, NULL, NULL, NULL, 0 }
#define TUTTI_FAILURE_INIT \
    { sizeof(tutti_failure_t), 0, 0, 0, 0 }
#define TUTTI_MESH_INIT \
    { sizeof(tutti_mesh_t), NULL, 0, NULL, 0 }
#define TUTTI_PLACEMENT_INIT \
    { sizeof(tutti_placement_t), 0, 0, 0, 0, 0, NULL, 0 }
#define TUTTI_TENSOR_LAYOUT_INIT \
    { sizeof(tutti_tensor_layout_t), 0, NULL, NULL, 0 }
#define TUTTI_TRANSFER_ITEM_INIT \
    { sizeof(tutti_transfer_item_t), NULL, NULL, 0, NULL, NULL, 0 }
#define TUTTI_TRANSFER_OPTIONS_INIT \
    { sizeof(tutti_transfer_options_t), 0, 0, 0, 0 }
#define TUTTI_TRANSFER_TOTALS_INIT \
    { sizeof(tutti_transfer_totals_t), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
#define TUTTI_TRANSFER_LOAD_INIT \
    { sizeof(tutti_transfer_load_t), 0, 0, 0, 0, 0, 0, 0, 0 }
#define TUTTI_TRANSFER_CHUNK_INIT \
    { sizeof(tutti_transfer_chunk_t), 0, 0, 0, 0, 0, 0, NULL, 0, NULL, 0, NULL, NULL, 0, 0, 0, 0, 0, 0 }
#define TUTTI_TRANSFER_BUCKET_INIT \
    { sizeof(tutti_transfer_bucket_t), 0, 0, NULL, 0, 0, 0, 0, 0, NULL, 0, NULL }
#define TUTTI_TRANSFER_PROGRESS_INIT \
    { sizeof(tutti_transfer_progress_t), 0, 0, 0, 0, 0, 0, 0 }


/// The call did what it says.
#define TUTTI_SUCCESS 0

/// An argument is wrong. Nothing was changed.
#define TUTTI_INVALID_ARGUMENT 1

/// The arguments are right, but the call may not be made now. Nothing was changed.
#define TUTTI_INVALID_USAGE 2

/// Nothing here can serve the call. Nothing was changed.
#define TUTTI_UNSUPPORTED 3

/// The machine has no memory left for the call.
#define TUTTI_OUT_OF_MEMORY 4

/// The operating system refused something.
#define TUTTI_SYSTEM_ERROR 5

/// The CUDA driver refused something.
#define TUTTI_CUDA_ERROR 6

/// A communicator failed.
#define TUTTI_COMMUNICATOR_ERROR 7

/// A rank did not arrive before the deadline.
#define TUTTI_TIMEOUT 8

/// A rank died or left the group.
#define TUTTI_PEER_LOST 9

/// A rank aborted the group.
#define TUTTI_ABORTED 10

/// The ranks called different things.
#define TUTTI_MISMATCH 11

/// A defect of this library.
#define TUTTI_INTERNAL_ERROR 12

/// Not finished yet. No failure: only tutti_request_test and tutti_request_wait return it.
#define TUTTI_IN_PROGRESS 13

/// Signed 8-bit integer. The dtypes 0 to 11 have NCCL's numbers.
#define TUTTI_INT8 0

/// Unsigned 8-bit integer.
#define TUTTI_UINT8 1

/// Signed 32-bit integer.
#define TUTTI_INT32 2

/// Unsigned 32-bit integer.
#define TUTTI_UINT32 3

/// Signed 64-bit integer.
#define TUTTI_INT64 4

/// Unsigned 64-bit integer.
#define TUTTI_UINT64 5

/// IEEE binary16.
#define TUTTI_FLOAT16 6

/// IEEE binary32.
#define TUTTI_FLOAT32 7

/// IEEE binary64.
#define TUTTI_FLOAT64 8

/// The upper half of a binary32.
#define TUTTI_BFLOAT16 9

/// 8-bit float, 4 exponent and 3 mantissa bits, no infinity (OCP E4M3).
#define TUTTI_FLOAT8E4M3 10

/// 8-bit float, 5 exponent and 2 mantissa bits (OCP E5M2).
#define TUTTI_FLOAT8E5M2 11

/// One byte, moved but never reduced.
#define TUTTI_BOOL 100

/// Two bytes, moved but never reduced.
#define TUTTI_INT16 101

/// One opaque byte, moved but never reduced.
#define TUTTI_BYTES 102

/// The sum. Integers wrap.
#define TUTTI_SUM 0

/// The product. Integers wrap.
#define TUTTI_PROD 1

/// The largest: NaN if any is NaN; -0 is below +0.
#define TUTTI_MAX 2

/// The smallest: NaN if any is NaN; -0 is below +0.
#define TUTTI_MIN 3

/// The sum, divided once by the number of ranks. Integers truncate.
#define TUTTI_AVG 4

/// tutti_all_reduce
#define TUTTI_ALL_REDUCE 0

/// tutti_all_gather
#define TUTTI_ALL_GATHER 1

/// tutti_reduce_scatter
#define TUTTI_REDUCE_SCATTER 2

/// tutti_broadcast
#define TUTTI_BROADCAST 3

/// tutti_reduce
#define TUTTI_REDUCE 4

/// tutti_gather
#define TUTTI_GATHER 5

/// tutti_scatter
#define TUTTI_SCATTER 6

/// tutti_all_to_all
#define TUTTI_ALL_TO_ALL 7

/// tutti_send
#define TUTTI_SEND 8

/// tutti_recv
#define TUTTI_RECV 9

/// tutti_barrier
#define TUTTI_BARRIER 10

/// tutti_all_gather_v
#define TUTTI_ALL_GATHER_V 11

/// tutti_reduce_scatter_v
#define TUTTI_REDUCE_SCATTER_V 12

/// tutti_all_to_all_v
#define TUTTI_ALL_TO_ALL_V 13

/// Device kind: from TUTTI_DEVICE ("cpu"; "cuda", which is the device LOCAL_RANK; "cuda:N"); the CPU where it is unset.
#define TUTTI_DEVICE_DEFAULT 0

/// Device kind: buffers are host memory.
#define TUTTI_DEVICE_CPU 1

/// Device kind: buffers are memory of one CUDA device.
#define TUTTI_DEVICE_CUDA 2

/// Option flag of worlds and groups: exclude communicators that cannot promise the same bits in every run.
#define TUTTI_FLAG_DETERMINISTIC 1

/// Option flag of worlds: ranks on other hosts may join without a secret. Logged as a warning.
#define TUTTI_FLAG_ALLOW_UNAUTHENTICATED 2

/// Flag of tutti_all_reduce_mode and tutti_explain: the call is made while its stream is captured.
#define TUTTI_CALL_CAPTURED 1

/// Call flag: on every rank, send and recv are memory of tutti_mem_alloc. All ranks must say the same. On a CUDA group
/// with "pull" a rank whose buffers are not gets TUTTI_INVALID_ARGUMENT.
#define TUTTI_CALL_REGISTERED 2

/// Flag of a tensor in a dict: every rank of a replicating group sends all of it, because they hold different values.
#define TUTTI_TENSOR_WHOLE 1

/// Flag of a tensor in a dict: every rank of a replicating group sends its slice, however small.
#define TUTTI_TENSOR_SLICED 2

/// No communicator of the group serves the call.
#define TUTTI_MODE_NONE 0

/// Served without a copy if the result replaces the input.
#define TUTTI_MODE_INPLACE 1

/// Served without a copy if the result goes beside the input.
#define TUTTI_MODE_OUTPLACE 2

/// Served without a copy either way.
#define TUTTI_MODE_BOTH 3

/// tutti_explain, tutti_layout_draw and tutti_transfer_plan_report write a table for people.
#define TUTTI_FORMAT_TEXT 0

/// tutti_explain, tutti_layout_draw and tutti_transfer_plan_report write one JSON object.
#define TUTTI_FORMAT_JSON 1

/// tutti_layout_draw draws the layout as an SVG picture, tutti_transfer_plan_report who sends how much to whom.
#define TUTTI_FORMAT_SVG 2

/// Kind of group: tensor parallel.
#define TUTTI_LAYOUT_TP 0

/// Kind of group: pipeline parallel.
#define TUTTI_LAYOUT_PP 1

/// Kind of group: data parallel within a deployment, whose copies of the model step together.
#define TUTTI_LAYOUT_DP 2

/// Kind of group: data parallel across deployments that know nothing of each other.
#define TUTTI_LAYOUT_EXTERNAL_DP 3

/// Kind of group: prefill context parallel.
#define TUTTI_LAYOUT_PCP 4

/// Kind of group: decode context parallel, which reuses the ranks of PCP, then of TP.
#define TUTTI_LAYOUT_DCP 5

/// Kind of group: expert parallel, which reuses the ranks of TP, then of PCP, then of DP.
#define TUTTI_LAYOUT_EP 6

/// How many kinds of group there are; a later version may have more.
#define TUTTI_LAYOUT_KINDS 7

/// timeout_ms: for a call, its group's; for a group, its parent's; for a world, ten minutes.
#define TUTTI_TIMEOUT_DEFAULT 0

/// timeout_ms: wait for ever. Dead, aborting and disagreeing ranks still end the wait.
#define TUTTI_TIMEOUT_NEVER -1

/// Log level: something failed.
#define TUTTI_LOG_ERROR 1

/// Log level: something works, but not as well as it could.
#define TUTTI_LOG_WARN 2

/// Log level: life cycle.
#define TUTTI_LOG_INFO 3

/// Log level: decisions.
#define TUTTI_LOG_DEBUG 4

/// Log level: everything.
#define TUTTI_LOG_TRACE 5

/// Bytes of a unique id.
#define TUTTI_UNIQUE_ID_BYTES 128

/// Placement: every coordinate of the mesh dimension holds the same.
#define TUTTI_REPLICATE 0

/// Placement: the coordinates of the mesh dimension hold consecutive parts of one tensor dimension.
#define TUTTI_SHARD 1

/// Placement of a source: every coordinate of the mesh dimension holds an addend of the same elements.
#define TUTTI_PARTIAL 2

/// Split: ceil(length / parts) each until nothing is left, as torch.chunk does; trailing parts may be empty.
#define TUTTI_SPLIT_CEIL 0

/// Split: the first length % parts get one more than the others.
#define TUTTI_SPLIT_BALANCED 1

/// Split: the given sizes; 0 is allowed.
#define TUTTI_SPLIT_EXPLICIT 2

/// Transport: from one rank to one other.
#define TUTTI_TRANSPORT_P2P 0

/// Transport: from one rank to several others.
#define TUTTI_TRANSPORT_BROADCAST 1

/// Transport: within a rank.
#define TUTTI_TRANSPORT_LOCAL 2

/// Transport: to nobody yet; contributions that are added up onto the members of a group.
#define TUTTI_TRANSPORT_NONE 3

/// Transfer: not started.
#define TUTTI_TRANSFER_IDLE 0

/// Transfer: the ranks compare their plans; nothing has moved.
#define TUTTI_TRANSFER_CHECKING 1

/// Transfer: buckets move.
#define TUTTI_TRANSFER_MOVING 2

/// Transfer: all that this rank sends, receives and copies is over.
#define TUTTI_TRANSFER_DONE 3

/// Transfer: it failed.
#define TUTTI_TRANSFER_FAILED 4

/// Side of a tensor: where it is.
#define TUTTI_SOURCE 0

/// Side of a tensor: where it shall be.
#define TUTTI_TARGET 1

/// A capture session. May be used from any thread.
struct tutti_capture;

/// A message of tensors, or an object: on its way, or here. May be used from any thread.
struct tutti_dict;

/// Ordered ranks that communicate, as one of them sees them.
///
/// A handle may be used from any thread. Two threads may not be inside collective calls of one group at once:
/// the second gets TUTTI_INVALID_USAGE. Queries, tutti_group_check, tutti_group_abort and tutti_group_destroy
/// may be called at any time.
struct tutti_group;

/// How a world splits into groups. May be used from any thread.
struct tutti_layout;

/// One rank's end of a queue. May be used from any thread, by one at a time.
struct tutti_queue;

/// A started call. May be used from any thread.
struct tutti_request;

/// A plan that is carried out over a group, and this rank's memory for it. May be used from any thread.
struct tutti_transfer;

/// How tensors get from one layout to another: pure data, the same on every rank. May be used from any thread.
struct tutti_transfer_plan;

/// What a call came to: TUTTI_SUCCESS, TUTTI_INVALID_ARGUMENT and so on.
typedef int32_t tutti_status_t;

/// Receives one log record.
///
/// `level` is TUTTI_LOG_ERROR to TUTTI_LOG_TRACE; `target` names the part of the library; both texts are UTF-8,
/// end with NUL, and are gone when the function returns. It is called from any thread, from several at once, and
/// must not throw, unwind, wait for a thread that is inside this library, or call a function of it that takes a group:
/// the record may come from the midst of such a call.
typedef void (*tutti_log_fn)(void *user, int32_t level, const char *target, const char *message);

/// How this rank finds its world. All zero but struct_size: everything from the environment.
///
/// Initialise with TUTTI_WORLD_OPTIONS_INIT. Whatever it points to is read before tutti_world_create returns and
/// never after.
struct tutti_world_options {
    /// sizeof(tutti_world_options_t) as the caller was compiled.
    size_t struct_size;
    /// Ranks of the world. Greater than 0: size and rank count; 0: both from the environment.
    int32_t size;
    /// This rank, 0 to size - 1. Must be 0 where size is 0.
    int32_t rank;
    /// TUTTI_DEVICE_DEFAULT, TUTTI_DEVICE_CPU or TUTTI_DEVICE_CUDA. Every rank of a world has the same kind.
    int32_t device_kind;
    /// The device's ordinal with TUTTI_DEVICE_CUDA; must be 0 otherwise.
    int32_t device;
    /// An id of tutti_unique_id_create that all ranks share, or NULL. Needs size and rank.
    const void *unique_id;
    /// TUTTI_UNIQUE_ID_BYTES, or 0 where unique_id is NULL.
    size_t unique_id_size;
    /// "host:port" at which rank 0 can be reached from other hosts, or NULL. Not needed on one host, nor with a
    /// unique id that holds it.
    const char *address;
    /// The caller's own way to exchange bytes between all ranks, or NULL. Needs size and rank.
    ///
    /// Called in the thread of tutti_world_create, a few times and equally often on every rank. Each call hands in
    /// `bytes` bytes at `mine`, equally many on every rank, and must fill `all` with those of every rank, in rank
    /// order: size * bytes bytes. Returns 0, or any other value if it failed, which fails the creation.
    int32_t (*all_gather)(void *user, const void *mine, size_t bytes, void *all);
    /// Handed to all_gather.
    void *user;
    /// The deadline of the creation, and of the world's calls: milliseconds, TUTTI_TIMEOUT_DEFAULT or
    /// TUTTI_TIMEOUT_NEVER. Must be equal on all ranks.
    int64_t timeout_ms;
    /// TUTTI_FLAG_DETERMINISTIC, TUTTI_FLAG_ALLOW_UNAUTHENTICATED. Must be equal on all ranks.
    uint32_t flags;
    /// Which communicators may be used: NULL or "" for all, "shm,sockets" only these, "^shm" all but these, "=shm"
    /// this one for every call. Must be equal on all ranks.
    const char *communicators;
};

/// See struct tutti_world_options.
typedef struct tutti_world_options tutti_world_options_t;

/// See struct tutti_group.
typedef struct tutti_group tutti_group_t;

/// How a group is made. All zero but struct_size, or a NULL pointer: the defaults.
///
/// Initialise with TUTTI_GROUP_OPTIONS_INIT. Every field must be equal on all members. Whatever it points to is
/// read before the call returns and never after.
struct tutti_group_options {
    /// sizeof(tutti_group_options_t) as the caller was compiled.
    size_t struct_size;
    /// The group's name in texts, up to 255 bytes of UTF-8. NULL or "": made up.
    const char *name;
    /// The deadline of the group's calls: milliseconds, TUTTI_TIMEOUT_DEFAULT (the parent's) or TUTTI_TIMEOUT_NEVER.
    int64_t timeout_ms;
    /// TUTTI_FLAG_DETERMINISTIC.
    uint32_t flags;
    /// As in tutti_world_options.
    const char *communicators;
};

/// See struct tutti_group_options.
typedef struct tutti_group_options tutti_group_options_t;

/// A group's first failure.
///
/// Initialise with TUTTI_FAILURE_INIT.
struct tutti_failure {
    /// sizeof(tutti_failure_t) as the caller was compiled.
    size_t struct_size;
    /// What tutti_group_check returns; TUTTI_SUCCESS while the group lives.
    int32_t status;
    /// The rank, within the group, that is missing, lost, disagreeing or aborting; -1: none named.
    int32_t rank;
    /// The call during which the failure was found: TUTTI_ALL_REDUCE and so on; -1: none.
    int32_t collective;
    /// That call's number in the group, counted from 1; 0: none.
    uint64_t sequence;
};

/// See struct tutti_failure.
typedef struct tutti_failure tutti_failure_t;

/// What a layout is planned from, for tutti_layout_create. All ranks of a world must be given the same.
///
/// Initialise with TUTTI_LAYOUT_OPTIONS_INIT and set at least `world`. Whatever it points to is read before the call
/// returns and never after.
struct tutti_layout_options {
    /// sizeof(tutti_layout_options_t) as the caller was compiled.
    size_t struct_size;
    /// Ranks of the world, up to 1048576. Must be the product of tensor, pipeline, data, external_data and
    /// prefill_context.
    int32_t world;
    /// Ranks of a TP group; 0: 1.
    int32_t tensor;
    /// Ranks of a PP group; 0: 1.
    int32_t pipeline;
    /// Ranks of a DP group; 0: 1.
    int32_t data;
    /// Ranks of an external DP group; 0: 1.
    int32_t external_data;
    /// Ranks of a PCP group; 0: 1.
    int32_t prefill_context;
    /// Ranks of a DCP group; 0: 1.
    int32_t decode_context;
    /// Ranks of an EP group; 0: all there are, data * prefill_context * tensor.
    int32_t expert;
    /// The axes from the one whose neighbours are farthest apart to the one whose are adjacent, as the kinds of group
    /// along them. All 0: external DP, DP, PP, PCP, TP.
    int32_t axes[5];
    /// order[i] is the rank that takes place i, `world` of them, each rank once; NULL: by the labels, or without
    /// labels as ranks are numbered. Goes before the labels, which then only serve the reports.
    const int32_t *order;
    /// hosts[r]: the host of rank r, `world` numbers of the caller's own, 0 or more; NULL: one host.
    const int32_t *hosts;
    /// domains[r]: the interconnect domain ("supernode") of rank r, which may span hosts; NULL: one domain. Domains
    /// must have equally many ranks.
    const int32_t *domains;
    /// lanes[r]: the place of rank r within its host and domain; NULL: ranks keep their order.
    const int32_t *lanes;
};

/// See struct tutti_layout_options.
typedef struct tutti_layout_options tutti_layout_options_t;

/// See struct tutti_layout.
typedef struct tutti_layout tutti_layout_t;

/// One call of any collective, for tutti_start.
///
/// Initialise with TUTTI_CALL_INIT. send_count and recv_count both name the count of the collective's short
/// function: give either, or both if they are equal.
struct tutti_call {
    /// sizeof(tutti_call_t) as the caller was compiled.
    size_t struct_size;
    /// TUTTI_ALL_REDUCE and so on.
    int32_t collective;
    /// TUTTI_FLOAT32 and so on. Ignored by a barrier.
    int32_t dtype;
    /// TUTTI_SUM and so on. Ignored where nothing is reduced.
    int32_t op;
    /// The root, or the peer of a send or receive, as a rank of the group. Ignored where there is none.
    int32_t peer;
    /// Sends and receives match by (peer, direction, tag). 0 for every other collective and on CUDA groups.
    int64_t tag;
    /// TUTTI_CALL_REGISTERED.
    uint32_t flags;
    /// This rank's input, as in the short function.
    const void *send;
    /// This rank's output, as in the short function.
    void *recv;
    /// Elements.
    size_t send_count;
    /// Elements.
    size_t recv_count;
    /// all_to_all_v: elements for every rank; otherwise NULL.
    const size_t *send_counts;
    /// v-forms: where in send every rank's elements begin, in elements; NULL: one after the other.
    const size_t *send_displs;
    /// v-forms: elements from every rank, for reduce_scatter_v those that every rank is left with; otherwise NULL.
    const size_t *recv_counts;
    /// v-forms: where in recv every rank's elements begin, in elements; NULL: one after the other.
    const size_t *recv_displs;
    /// As in the short function.
    void *stream;
    /// The deadline of this call: milliseconds, TUTTI_TIMEOUT_DEFAULT or TUTTI_TIMEOUT_NEVER.
    int64_t timeout_ms;
};

/// See struct tutti_call.
typedef struct tutti_call tutti_call_t;

/// See struct tutti_request.
typedef struct tutti_request tutti_request_t;

/// A tensor: what it is, and where its elements are.
///
/// Initialise with TUTTI_TENSOR_INIT.
struct tutti_tensor {
    /// sizeof(tutti_tensor_t) as the caller was compiled; in an array the same in all.
    size_t struct_size;
    /// Its name among the others of its dict: up to 255 bytes of UTF-8. NULL: "".
    const char *name;
    /// The element with all indices 0. May be NULL where there are no elements.
    void *data;
    /// TUTTI_FLOAT32 and so on.
    int32_t dtype;
    /// TUTTI_DEVICE_CPU or TUTTI_DEVICE_CUDA; 0: TUTTI_DEVICE_CPU.
    int32_t device_kind;
    /// Dimensions, 0 to 16.
    int32_t ndim;
    /// TUTTI_TENSOR_WHOLE, TUTTI_TENSOR_SLICED, or 0.
    uint32_t flags;
    /// `ndim` extents, 0 or more.
    const int64_t *shape;
    /// `ndim` strides, in elements, or NULL: the elements lie row by row.
    const int64_t *strides;
};

/// See struct tutti_tensor.
typedef struct tutti_tensor tutti_tensor_t;

/// With whom a dict is exchanged, and how. All zero but struct_size, or a NULL pointer: the defaults.
///
/// Initialise with TUTTI_DICT_OPTIONS_INIT.
struct tutti_dict_options {
    /// sizeof(tutti_dict_options_t) as the caller was compiled.
    size_t struct_size;
    /// The other rank of the group; the root of a broadcast.
    int32_t peer;
    /// Dicts meet by peer and tag, in order: 0 or more. They meet no tutti_send or tutti_recv, whatever its tag.
    int32_t tag;
    /// The group of the ranks that all hold the same tensors, or that receive their slices; or NULL.
    tutti_group_t *replicas;
    /// The deadline of each step: milliseconds, TUTTI_TIMEOUT_DEFAULT (the group's) or TUTTI_TIMEOUT_NEVER.
    int64_t timeout_ms;
    /// On a CUDA group, the stream (a CUstream) behind which tensors of the device are read and written; NULL: the legacy
    /// default stream.
    void *stream;
};

/// See struct tutti_dict_options.
typedef struct tutti_dict_options tutti_dict_options_t;

/// See struct tutti_dict.
typedef struct tutti_dict tutti_dict_t;

/// How a queue is made. All zero but struct_size, or a NULL pointer: the defaults.
///
/// Initialise with TUTTI_QUEUE_OPTIONS_INIT. Every field must be equal on all ranks.
struct tutti_queue_options {
    /// sizeof(tutti_queue_options_t) as the caller was compiled.
    size_t struct_size;
    /// The rank of the group that writes.
    int32_t writer;
    /// Bytes of messages that may wait for the slowest reader, in pieces of 16 KiB, of which each message takes at
    /// least one; 0: 1 MiB. Larger messages stream through.
    size_t capacity;
    /// The queue's name in texts, up to 255 bytes of UTF-8. NULL or "": made up.
    const char *name;
    /// The deadline of the making, and of reads and writes: milliseconds, TUTTI_TIMEOUT_DEFAULT (the group's) or
    /// TUTTI_TIMEOUT_NEVER.
    int64_t timeout_ms;
};

/// See struct tutti_queue_options.
typedef struct tutti_queue_options tutti_queue_options_t;

/// See struct tutti_queue.
typedef struct tutti_queue tutti_queue_t;

/// See struct tutti_capture.
typedef struct tutti_capture tutti_capture_t;

/// Ranks in a grid.
///
/// Initialise with TUTTI_MESH_INIT.
struct tutti_mesh {
    /// sizeof(tutti_mesh_t) as the caller was compiled.
    size_t struct_size;
    /// The grid's dimensions, each at least 1; up to 16.
    const size_t *dims;
    /// How many dimensions. 0: one rank.
    size_t dim_count;
    /// The ranks, row-major: any ranks of the group in any order, each once.
    const int32_t *ranks;
    /// The product of dims.
    size_t rank_count;
};

/// See struct tutti_mesh.
typedef struct tutti_mesh tutti_mesh_t;

/// What one mesh dimension does to a tensor.
///
/// Initialise with TUTTI_PLACEMENT_INIT, every element of an array too.
struct tutti_placement {
    /// sizeof(tutti_placement_t) as the caller was compiled.
    size_t struct_size;
    /// TUTTI_REPLICATE, TUTTI_SHARD or TUTTI_PARTIAL.
    int32_t kind;
    /// Shard: the tensor dimension.
    int32_t dim;
    /// Partial: TUTTI_SUM and so on. Sum and avg may meet on one tensor; no other two may.
    int32_t op;
    /// Shard: TUTTI_SPLIT_CEIL, TUTTI_SPLIT_BALANCED or TUTTI_SPLIT_EXPLICIT.
    int32_t split;
    /// Shard: where several mesh dimensions split one tensor dimension, the lowest order splits first (outermost);
    /// equal orders split in the order of the mesh.
    int32_t order;
    /// Explicit split: the sizes. One for every coordinate, or, where other mesh dimensions split the tensor dimension
    /// before, one for every (outer part in order, own coordinate).
    const size_t *sizes;
    /// How many sizes.
    size_t size_count;
};

/// See struct tutti_placement.
typedef struct tutti_placement tutti_placement_t;

/// Where a tensor lies.
///
/// Initialise with TUTTI_TENSOR_LAYOUT_INIT.
struct tutti_tensor_layout {
    /// sizeof(tutti_tensor_layout_t) as the caller was compiled.
    size_t struct_size;
    /// The type of the elements there: TUTTI_FLOAT32 and so on.
    int32_t dtype;
    /// The ranks. Several layouts may point to one mesh.
    const tutti_mesh_t *mesh;
    /// One for every mesh dimension.
    const tutti_placement_t *placements;
    /// How many: the mesh's dim_count.
    size_t placement_count;
};

/// See struct tutti_tensor_layout.
typedef struct tutti_tensor_layout tutti_tensor_layout_t;

/// One tensor to move.
///
/// Initialise with TUTTI_TRANSFER_ITEM_INIT, every element of an array too.
struct tutti_transfer_item {
    /// sizeof(tutti_transfer_item_t) as the caller was compiled.
    size_t struct_size;
    /// A name for texts, or NULL.
    const char *name;
    /// The whole tensor's shape; up to 16 dimensions, 0 allowed.
    const size_t *shape;
    /// How many dimensions. 0: one element.
    size_t dim_count;
    /// Where it is.
    const tutti_tensor_layout_t *source;
    /// Where it shall be.
    const tutti_tensor_layout_t *target;
    /// The type that travels: TUTTI_FLOAT16 and so on. 0: the narrower of both types, the source's if they are equally
    /// wide. Elements go from the source's type to this one to the target's, also where they do not leave their rank.
    int32_t wire_dtype;
};

/// See struct tutti_transfer_item.
typedef struct tutti_transfer_item tutti_transfer_item_t;

/// How to plan. All zero but struct_size, or a NULL pointer: the defaults. The same on all ranks.
///
/// Initialise with TUTTI_TRANSFER_OPTIONS_INIT.
struct tutti_transfer_options {
    /// sizeof(tutti_transfer_options_t) as the caller was compiled.
    size_t struct_size;
    /// No bucket holds more bytes. Default 16 MiB; at least 16, and 16 for every contributor to a sum.
    uint64_t bucket_bytes;
    /// No rank stages more bytes at any time. Default twice the bucket bytes for each bucket in flight; at least two
    /// buckets, which become smaller to fit.
    uint64_t staging_bytes;
    /// Pieces of so many bytes or less are not cut just to balance senders. Default 4096.
    uint64_t split_bytes;
    /// The most buckets that a rank has begun and not finished. Default 4.
    uint32_t in_flight;
};

/// See struct tutti_transfer_options.
typedef struct tutti_transfer_options tutti_transfer_options_t;

/// See struct tutti_transfer_plan.
typedef struct tutti_transfer_plan tutti_transfer_plan_t;

/// What a plan does in all, in bytes of payload, beside what no plan could do with less.
///
/// Initialise with TUTTI_TRANSFER_TOTALS_INIT.
struct tutti_transfer_totals {
    /// sizeof(tutti_transfer_totals_t) as the caller was compiled.
    size_t struct_size;
    /// Tensors.
    uint64_t items;
    /// Ranks that the descriptions name.
    uint64_t ranks;
    /// Chunks.
    uint64_t chunks;
    /// Buckets, of all transports.
    uint64_t buckets;
    /// Buckets of TUTTI_TRANSPORT_P2P.
    uint64_t p2p_buckets;
    /// Buckets of TUTTI_TRANSPORT_BROADCAST.
    uint64_t broadcast_buckets;
    /// Buckets of TUTTI_TRANSPORT_LOCAL.
    uint64_t local_buckets;
    /// Buckets of TUTTI_TRANSPORT_NONE.
    uint64_t reduce_buckets;
    /// Different sets of ranks that broadcast or reduce together.
    uint64_t groups;
    /// Received by targets over the wire.
    uint64_t wire;
    /// What targets lack.
    uint64_t wire_bound;
    /// Sent by sources, a broadcast counted once.
    uint64_t injected;
    /// What must leave its holders at least once.
    uint64_t injection_bound;
    /// Contributions that travel to be reduced.
    uint64_t reduced;
    /// One contribution less than there are, for every element that is reduced.
    uint64_t reduce_bound;
    /// Copied within ranks.
    uint64_t local;
    /// The most that one rank sends.
    uint64_t largest_send;
    /// The least that the busiest sender can send, however replicas share the work.
    uint64_t send_bound;
    /// The most that one rank receives.
    uint64_t largest_receive;
    /// The most that one rank lacks.
    uint64_t receive_bound;
    /// The most that one rank stages.
    uint64_t staging;
    /// What it may stage.
    uint64_t staging_cap;
    /// Buckets in flight on a rank.
    uint32_t in_flight;
};

/// See struct tutti_transfer_totals.
typedef struct tutti_transfer_totals tutti_transfer_totals_t;

/// What one rank does, in bytes of payload.
///
/// Initialise with TUTTI_TRANSFER_LOAD_INIT.
struct tutti_transfer_load {
    /// sizeof(tutti_transfer_load_t) as the caller was compiled.
    size_t struct_size;
    /// Buckets in which it takes part.
    uint64_t operations;
    /// Sent to targets; a broadcast counts once.
    uint64_t sent;
    /// Received for its targets.
    uint64_t received;
    /// What its targets need and its sources do not have.
    uint64_t receive_bound;
    /// Copied within the rank.
    uint64_t local;
    /// Contributions it sends to be reduced on others.
    uint64_t reduce_sent;
    /// Contributions it receives to reduce them.
    uint64_t reduce_received;
    /// The most it stages at once.
    uint64_t staging;
};

/// See struct tutti_transfer_load.
typedef struct tutti_transfer_load tutti_transfer_load_t;

/// A box of one tensor that moves as part of one bucket. Its arrays belong to the plan, and live as long.
///
/// Initialise with TUTTI_TRANSFER_CHUNK_INIT.
struct tutti_transfer_chunk {
    /// sizeof(tutti_transfer_chunk_t) as the caller was compiled.
    size_t struct_size;
    /// The tensor, as an index into the items.
    size_t item;
    /// The bucket it moves in.
    size_t bucket;
    /// TUTTI_TRANSPORT_P2P and so on.
    int32_t transport;
    /// The rank that sends it; with TUTTI_TRANSPORT_NONE, the rank that it is reduced onto.
    int32_t source;
    /// 1 if the asking rank reads the elements, else 0.
    int32_t is_source;
    /// 1 if the asking rank writes the elements to its target, else 0.
    int32_t is_target;
    /// The ranks that write it, ascending; with TUTTI_TRANSPORT_LOCAL the source.
    const int32_t *targets;
    /// How many.
    size_t target_count;
    /// The ranks that contribute, only with TUTTI_TRANSPORT_NONE.
    const int32_t *contributors;
    /// How many.
    size_t contributor_count;
    /// The first index of the box in the whole tensor, for every dimension.
    const uint64_t *start;
    /// The extent of the box.
    const uint64_t *extent;
    /// The tensor's dimensions.
    size_t dim_count;
    /// Its bytes in the bucket.
    uint64_t bytes;
    /// Where in the bucket they begin; a multiple of 16.
    uint64_t offset;
    /// The bucket whose sums it reads instead of the source tensor, or -1.
    int64_t reduced_bucket;
    /// Where in that bucket.
    uint64_t reduced_offset;
    /// The type of its elements in the bucket.
    int32_t dtype;
};

/// See struct tutti_transfer_chunk.
typedef struct tutti_transfer_chunk tutti_transfer_chunk_t;

/// What moves at once. Its arrays belong to the plan, and live as long.
///
/// Initialise with TUTTI_TRANSFER_BUCKET_INIT.
struct tutti_transfer_bucket {
    /// sizeof(tutti_transfer_bucket_t) as the caller was compiled.
    size_t struct_size;
    /// TUTTI_TRANSPORT_P2P and so on.
    int32_t transport;
    /// The rank that sends; with TUTTI_TRANSPORT_NONE the first contributor.
    int32_t source;
    /// The ranks that receive, ascending, never the source.
    const int32_t *targets;
    /// How many.
    size_t target_count;
    /// Bytes of its chunks and of the gaps between them.
    uint64_t bytes;
    /// Its first chunk.
    size_t first_chunk;
    /// How many chunks it has.
    size_t chunk_count;
    /// The bucket whose sums it reads, which its source must have finished; -1: none.
    int64_t after;
    /// With TUTTI_TRANSPORT_NONE the ranks that contribute, in the order in which contributions are added.
    const int32_t *members;
    /// How many.
    size_t member_count;
    /// Where the block of each member begins in the bucket, and the end: member_count + 1 numbers.
    const uint64_t *blocks;
};

/// See struct tutti_transfer_bucket.
typedef struct tutti_transfer_bucket tutti_transfer_bucket_t;

/// See struct tutti_transfer.
typedef struct tutti_transfer tutti_transfer_t;

/// How far a transfer has come on this rank.
///
/// Initialise with TUTTI_TRANSFER_PROGRESS_INIT.
struct tutti_transfer_progress {
    /// sizeof(tutti_transfer_progress_t) as the caller was compiled.
    size_t struct_size;
    /// TUTTI_TRANSFER_IDLE and so on.
    int32_t phase;
    /// After a failure the rank that is missing, lost, aborting or disagreeing; -1: none named.
    int32_t failed_rank;
    /// This rank's buckets that are over.
    uint64_t buckets_done;
    /// This rank's buckets.
    uint64_t buckets;
    /// Bytes in those that are over.
    uint64_t bytes_done;
    /// Bytes in all.
    uint64_t bytes;
    /// Bytes of memory for staging now.
    uint64_t staged;
};

/// See struct tutti_transfer_progress.
typedef struct tutti_transfer_progress tutti_transfer_progress_t;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/// The library's version: 10000 * major + 100 * minor + patch. Compare with TUTTI_VERSION, the header's.
///
/// Has no side effect and cannot fail; any thread may call it at any time, before all else and after a fork too.
TUTTI_API uint32_t tutti_version(void);

/// A status in a few words, such as "ranks disagree"; "unknown status" for a number that is none.
///
/// The text is static: never NULL, never freed. Any thread may call it at any time.
TUTTI_API const char *tutti_status_string(tutti_status_t status);

/// What went wrong in the last call of this thread that failed, in full: UTF-8, "" if none did.
///
/// A call that succeeds or returns TUTTI_IN_PROGRESS leaves the text alone. The pointer is never NULL; it belongs
/// to the library and is valid until a call of this thread fails again or the thread ends, so copy what you keep.
/// For what happened to a group, from any thread, use tutti_group_error.
TUTTI_API const char *tutti_last_error(void);

/// Sends the library's log to `callback`, with `user` handed through; NULL: to nobody.
///
/// Without a callback the library is silent, unless the environment variable TUTTI_LOG names a filter ("info",
/// "tutti::group=debug"): then what passes it goes to stderr. The same filter decides what the callback gets; without
/// it, that is everything from TUTTI_LOG_INFO up.
///
/// When it returns the former callback is not running in any thread and will never be called again. Any thread may
/// call it, but not from within the callback. What is logged from within the callback is dropped.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_USAGE (from within the callback; forked process; the program is written in
/// Rust and has a logger of its own); TUTTI_TIMEOUT (the former callback still runs after 10 s: keep its user data);
/// TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
TUTTI_API tutti_status_t tutti_set_log_callback(tutti_log_fn callback, void *user);

/// Joins the world and makes its group: all ranks that start together.
///
/// options: how this rank finds the others; NULL: everything from the environment (the variables of torchrun,
/// Open MPI, MPICH and Slurm). Collective: returns when every rank has called it, or fails on every rank that has.
/// Several threads of one process may each call it, with the rank of each and one unique id in the options. While it
/// waits, it goes on with the requests that this thread has started.
///
/// *world gets a handle that the caller must destroy with tutti_group_destroy; NULL on failure. Thread-safe.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (an option is wrong or missing, or ranks have different ones);
/// TUTTI_INVALID_USAGE (forked process; a batch is open; the environment's world exists already);
/// TUTTI_UNSUPPORTED (no such device, or nothing that works here is allowed); TUTTI_TIMEOUT, TUTTI_PEER_LOST
/// and TUTTI_MISMATCH, naming the rank; TUTTI_SYSTEM_ERROR; TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_world_create(const tutti_world_options_t *options, tutti_group_t **world);

/// Makes a world whose ranks all live in this process, and returns all of them.
///
/// size: how many ranks. devices: one CUDA ordinal for every rank, or NULL: CPU ranks. options: as for
/// tutti_world_create, or NULL; its size must be 0 or `size`, and it names no rank, unique id, address or
/// all_gather. Local: needs no other process and no network.
///
/// ranks[0] to ranks[size - 1] get a handle each, which the caller must destroy with tutti_group_destroy; all are
/// NULL on failure. Each rank's collective calls come from a thread of its own, or all of them from one thread that puts
/// them into batches or starts requests. Thread-safe.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, a batch is open);
/// TUTTI_UNSUPPORTED; TUTTI_SYSTEM_ERROR; TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_world_create_local(int32_t size,
                                        const int32_t *devices,
                                        const tutti_world_options_t *options,
                                        tutti_group_t **ranks);

/// Makes the id of a new world, which one rank makes and hands to all others by any means.
///
/// The process that makes it must hold rank 0: it listens for the others. The id contains a secret: whoever has it
/// may join. An id makes one world. Until that is made, or the process ends, the id keeps one descriptor open, and with
/// TUTTI_ADDR two: make no more of them than worlds.
///
/// id: `capacity` bytes of the caller's, of which TUTTI_UNIQUE_ID_BYTES are written. needed: gets
/// TUTTI_UNIQUE_ID_BYTES, or NULL. With id NULL and capacity 0 only `needed` is written and no id is made.
/// Thread-safe.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (capacity too small); TUTTI_INVALID_USAGE (forked process);
/// TUTTI_SYSTEM_ERROR; TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_unique_id_create(void *id, size_t capacity, size_t *needed);

/// Makes a group of some ranks of `parent`.
///
/// ranks[0] to ranks[count - 1]: the members as ranks of the parent, each once; ranks[i] becomes rank i of the new
/// group. options: NULL for the defaults. Collective over the members, who must name the same ranks in the same
/// order; ranks that share several groups make them in one relative order. Ranks that are no members need not
/// call; one that does gets TUTTI_SUCCESS and NULL.
///
/// *group gets a handle that the caller must destroy with tutti_group_destroy; in an open batch it is NULL until
/// tutti_batch_end, and `group` must stay valid until then. NULL on failure. The new group does not need its
/// parent any more, and a failed creation leaves the parent alive. Works on a failed parent, from its survivors.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, or another thread is inside
/// a call of the parent); TUTTI_UNSUPPORTED (no allowed communicator works for these ranks, with the reasons);
/// TUTTI_MISMATCH, TUTTI_TIMEOUT, TUTTI_PEER_LOST and TUTTI_ABORTED, naming the rank; TUTTI_SYSTEM_ERROR;
/// TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_group_create(tutti_group_t *parent,
                                  const int32_t *ranks,
                                  size_t count,
                                  const tutti_group_options_t *options,
                                  tutti_group_t **group);

/// Splits `parent` into groups: one for every color.
///
/// color: which group this rank joins; below 0: none, which gives TUTTI_SUCCESS and NULL. key: orders the ranks of
/// a group; equal keys keep the parent's order. options: NULL for the defaults. Collective over all ranks of the
/// parent. The handle, batches and failures are as in tutti_group_create.
///
/// Returns what tutti_group_create returns, and the parent's failure where it has failed.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_group_split(tutti_group_t *parent,
                                 int32_t color,
                                 int32_t key,
                                 const tutti_group_options_t *options,
                                 tutti_group_t **group);

/// Writes this rank's number within the group, 0 to size - 1. Local; any thread, failed groups too.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_group_rank(const tutti_group_t *group, int32_t *rank);

/// Writes how many ranks the group has. Local; any thread, failed groups too.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_group_size(const tutti_group_t *group, int32_t *size);

/// Writes the group's name, as it stands in texts. Local; any thread, failed groups too.
///
/// text, capacity, needed: see "Texts" at the top of this header.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_group_name(const tutti_group_t *group,
                                char *text,
                                size_t capacity,
                                size_t *needed);

/// The group's first failure, if it has failed: also of requests nobody waited for, of work queued on a stream,
/// and of what other ranks reported. While no work is unfinished it does not look whether the peers' processes live
/// (tutti_group_alive does). Never waits; any thread may call it at any time, during a call too.
///
/// Returns TUTTI_SUCCESS while the group lives; otherwise the failure, the same on every rank of a host:
/// TUTTI_TIMEOUT, TUTTI_PEER_LOST, TUTTI_ABORTED, TUTTI_MISMATCH, TUTTI_COMMUNICATOR_ERROR, TUTTI_SYSTEM_ERROR,
/// TUTTI_CUDA_ERROR, TUTTI_OUT_OF_MEMORY or TUTTI_INTERNAL_ERROR. TUTTI_INVALID_ARGUMENT (no such group);
/// TUTTI_INVALID_USAGE (forked process).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_group_check(tutti_group_t *group);

/// Writes the group's first failure in one sentence; "" while the group lives. Never waits; any thread.
///
/// text, capacity, needed: see "Texts" at the top of this header.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_group_error(const tutti_group_t *group,
                                 char *text,
                                 size_t capacity,
                                 size_t *needed);

/// Writes the group's first failure in numbers, with status TUTTI_SUCCESS while the group lives. Never waits; any
/// thread. Set failure->struct_size before the call (TUTTI_FAILURE_INIT does).
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_group_failure(const tutti_group_t *group, tutti_failure_t *failure);

/// Writes which ranks are alive: alive[r] gets 1 where rank r of the group is, as far as this rank can tell now,
/// and 0 where its process has ended, its connection has broken, or it has left the group.
///
/// size: bytes at `alive`, at least the group's size; the rest is left alone. Looks for itself and never waits;
/// any thread, failed groups too: it is how survivors find each other before they make a new group.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_group_alive(tutti_group_t *group, uint8_t *alive, size_t size);

/// Writes the group of the same ranks whose buffers are host memory: for a CPU group the group itself, under the
/// same handle. It belongs to the group: do not destroy it; it is gone when the group is. Local; any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_group_cpu(tutti_group_t *group, tutti_group_t **cpu);

/// Waits until every rank of the group has called it: a barrier of the hosts, which touches no stream.
///
/// timeout_ms: milliseconds, TUTTI_TIMEOUT_DEFAULT or TUTTI_TIMEOUT_NEVER. Collective; one thread at a time. In an
/// open batch it happens in tutti_batch_end.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, or another thread is inside a
/// call of the group); or the group's failure, as tutti_group_check.
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_group_sync(tutti_group_t *group, int64_t timeout_ms);

/// Lets a communicator of the group serve calls (enabled 1) or not (enabled 0), on all ranks alike.
///
/// communicator: its name, as tutti_explain prints it. Collective: every rank must ask for the same. The plan
/// changes on every rank between the same two calls, or on none. What no other communicator can serve is then
/// TUTTI_UNSUPPORTED. No send or receive may be under way: its two sides could be carried by different communicators.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (no communicator of that name in this group, enabled is neither 0
/// nor 1); TUTTI_INVALID_USAGE (forked process, a batch is open, or another thread is inside a call of the group);
/// or the group's failure, as tutti_group_check, TUTTI_MISMATCH where ranks asked for different things.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_group_set_enabled(tutti_group_t *group,
                                       const char *communicator,
                                       int32_t enabled);

/// Writes the handle of a live group of this process by its name: for code that can carry a text but no handle.
///
/// rank: whose handle where several ranks of the group are in this process (a rank of the group); -1 where only one is.
/// Names are the callers' own: one that two groups share finds neither. *group gets the handle that the group's maker
/// has; it stays the maker's to destroy, and finding a group keeps nothing alive. NULL on failure. Local; any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (no group of that name, it was destroyed, or several have it: the text
/// says which); TUTTI_INVALID_USAGE (forked process).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_group_find(const char *name, int32_t rank, tutti_group_t **group);

/// Fails the group with TUTTI_ABORTED on every rank, and wakes every rank that waits in it.
///
/// Local: waits for nobody. Any thread may call it at any time, during a call of the group too. A group that has
/// already failed keeps its first failure.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API tutti_status_t tutti_group_abort(tutti_group_t *group);

/// Leaves the group and frees all it made. Local: data already delivered stays readable to the other ranks, whose
/// next call of the group fails with TUTTI_PEER_LOST.
///
/// A call of the group in another thread is aborted and waited for, but not longer than 10 s. Unfinished
/// requests of the group end with its failure and are still to be freed. Destroying NULL or a destroyed group
/// succeeds; any other use of a destroyed group gives TUTTI_INVALID_ARGUMENT. Any thread; at exit too.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a group); TUTTI_INVALID_USAGE (forked process, or the CPU
/// sibling of a CUDA group).
TUTTI_API tutti_status_t tutti_group_destroy(tutti_group_t *group);

/// Plans how a world of options->world ranks splits into groups. Pure: no communication, no group, no environment;
/// the same options give the same layout everywhere.
///
/// Every rank has a place along five axes: external DP, DP, PP, PCP and TP. The groups of a kind are the ranks whose
/// places differ along its axis alone. Two kinds reuse ranks of these: DCP those of PCP, then TP; EP those of TP,
/// then PCP, then DP. The product of the five sizes must be the world's size; DCP and EP must divide what they reuse in
/// whole rows. Each rank is in exactly one group of each kind.
///
/// Ranks take places in their own order; or in options->order; or, where ranks are labelled, sorted by domain, host
/// and lane, so that neighbours are near each other in the interconnect whatever their numbers. All kinds follow.
///
/// *layout gets a handle that the caller must destroy with tutti_layout_destroy; NULL on failure. Memory and time grow
/// with the number of ranks alone. Thread-safe.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (there is no such layout, and why); TUTTI_INVALID_USAGE (forked
/// process); TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_layout_create(const tutti_layout_options_t *options,
                                   tutti_layout_t **layout);

/// Writes a number that is equal for layouts that mean the same, on every machine, and differs otherwise. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_layout_digest(const tutti_layout_t *layout, uint64_t *digest);

/// Writes how many ranks each group of a kind has, and how many such groups there are; either may be NULL.
///
/// kind: TUTTI_LAYOUT_TP and so on. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_layout_size(const tutti_layout_t *layout,
                                 int32_t kind,
                                 int32_t *group_size,
                                 int32_t *group_count);

/// Fills `ranks` with the ranks of every group of a kind, group after group, each in the order of its own ranks; groups
/// are in the order of their first ranks, and group g begins at g times the size of a group.
///
/// capacity: numbers at `ranks`, at least as many as the world has ranks; the rest is left alone. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_layout_ranks(const tutti_layout_t *layout,
                                  int32_t kind,
                                  int32_t *ranks,
                                  size_t capacity);

/// Writes which group of a kind `rank` is in, and its rank within that group; either may be NULL. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_layout_of(const tutti_layout_t *layout,
                               int32_t kind,
                               int32_t rank,
                               int32_t *group_index,
                               int32_t *group_rank);

/// Fills `hosts` and `domains` with how many hosts and how many interconnect domains each group of a kind touches, in
/// the order of the groups; 1 is a group that crosses nothing. Either may be NULL.
///
/// capacity: numbers at each, at least as many as there are groups of the kind. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process); TUTTI_UNSUPPORTED (the layout
/// was made without labels, so nothing is known of where ranks stand).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_layout_reach(const tutti_layout_t *layout,
                                  int32_t kind,
                                  int32_t *hosts,
                                  int32_t *domains,
                                  size_t capacity);

/// Writes the layout for people (TUTTI_FORMAT_TEXT: a line for every group), for tools (TUTTI_FORMAT_JSON: one object)
/// or as a picture (TUTTI_FORMAT_SVG: for every kind a panel with the ranks as cells and the groups as colours).
///
/// text, capacity, needed: see "Texts" at the top of this header. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process); TUTTI_OUT_OF_MEMORY.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_layout_draw(const tutti_layout_t *layout,
                                 int32_t format,
                                 char *text,
                                 size_t capacity,
                                 size_t *needed);

/// Makes the groups that this rank has in a layout of `parent`: one of each kind, with as many ranks as the layout says,
/// one included.
///
/// kinds: 0 for all; else the bits 1 << TUTTI_LAYOUT_TP and so on of those that are wanted. options: NULL for the
/// defaults; the groups are named after kind and number, as "tp:0", or "NAME/tp:0" where options->name is set.
/// Collective over all ranks of the parent, of which the layout must have as many. The ranks first compare what they were
/// given: where layouts or kinds differ, no group is made. Then all groups are made on all ranks, or none.
///
/// groups: TUTTI_LAYOUT_KINDS handles, which get the group of each kind at groups[kind] and NULL for kinds that are not
/// wanted; the caller must destroy each with tutti_group_destroy. In an open batch they are NULL until tutti_batch_end,
/// and `groups` must stay valid until then. All are NULL on failure. The layout itself is not needed any more.
///
/// Returns what tutti_group_split returns; TUTTI_MISMATCH names ranks whose layouts differ.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_layout_groups(tutti_group_t *parent,
                                   const tutti_layout_t *layout,
                                   uint32_t kinds,
                                   const tutti_group_options_t *options,
                                   tutti_group_t **groups);

/// Destroys a layout. Groups made from it live on. Destroying NULL or a destroyed layout succeeds. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a layout); TUTTI_INVALID_USAGE (forked process).
TUTTI_API tutti_status_t tutti_layout_destroy(tutti_layout_t *layout);

/// Reduces `count` elements over all ranks; every rank gets the same bits.
///
/// send: `count` elements. recv: `count` elements. In place: send == recv.
/// Stream, order, batches and threads: see "Collective calls" at the top of this header.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE; TUTTI_UNSUPPORTED; or the group's failure:
/// TUTTI_TIMEOUT, TUTTI_PEER_LOST, TUTTI_ABORTED, TUTTI_MISMATCH, TUTTI_COMMUNICATOR_ERROR, TUTTI_SYSTEM_ERROR,
/// TUTTI_CUDA_ERROR, TUTTI_OUT_OF_MEMORY, TUTTI_INTERNAL_ERROR. All collective calls return these.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_all_reduce(tutti_group_t *group,
                                const void *send,
                                void *recv,
                                size_t count,
                                int32_t dtype,
                                int32_t op,
                                void *stream);

/// Reduces `count` elements over all ranks, and lets the communicator that serves the call choose where the result
/// is: over the input, or beside it, whichever it does without a copy.
///
/// buffer: `count` elements, this rank's input. scratch: `count` elements that do not overlap it. *result gets
/// either `buffer` or `scratch`, when the call returns (in an open batch too: the data is there after
/// tutti_batch_end). If it is scratch, buffer is untouched; if it is buffer, scratch is. Every rank gets the same
/// answer. See tutti_all_reduce_mode for asking beforehand.
///
/// Returns what tutti_all_reduce returns.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_all_reduce_auto(tutti_group_t *group,
                                     void *buffer,
                                     void *scratch,
                                     size_t count,
                                     int32_t dtype,
                                     int32_t op,
                                     void *stream,
                                     void **result);

/// Writes where the communicator that would serve an all_reduce can put its result without a copy: TUTTI_MODE_NONE
/// (none serves it), TUTTI_MODE_INPLACE, TUTTI_MODE_OUTPLACE or TUTTI_MODE_BOTH. tutti_all_reduce always does both.
///
/// flags: TUTTI_CALL_CAPTURED, TUTTI_CALL_REGISTERED. Local, cheap, the same on every rank; any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_all_reduce_mode(const tutti_group_t *group,
                                     size_t count,
                                     int32_t dtype,
                                     int32_t op,
                                     uint32_t flags,
                                     int32_t *mode);

/// Gathers every rank's elements on every rank.
///
/// send: `send_count` elements. recv: size * send_count elements; rank r's begin at r * send_count. In place:
/// send == recv + rank * send_count elements. Stream, order, batches and threads: see "Collective calls".
///
/// Returns what tutti_all_reduce returns.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_all_gather(tutti_group_t *group,
                                const void *send,
                                void *recv,
                                size_t send_count,
                                int32_t dtype,
                                void *stream);

/// Reduces over all ranks and leaves each rank with its part of the result.
///
/// send: size * recv_count elements. recv: `recv_count` elements, those that begin at rank * recv_count. In place:
/// recv == send + rank * recv_count elements; the rest of send is then unspecified. Stream, order, batches and
/// threads: see "Collective calls".
///
/// Returns what tutti_all_reduce returns.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_reduce_scatter(tutti_group_t *group,
                                    const void *send,
                                    void *recv,
                                    size_t recv_count,
                                    int32_t dtype,
                                    int32_t op,
                                    void *stream);

/// Copies the root's elements to every rank.
///
/// send: `count` elements on the root; ignored elsewhere, where it may be NULL. recv: `count` elements on every rank,
/// the root included. root: a rank of the group. In place: send == recv. Stream, order, batches and threads: see
/// "Collective calls".
///
/// Returns what tutti_all_reduce returns.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_broadcast(tutti_group_t *group,
                               const void *send,
                               void *recv,
                               size_t count,
                               int32_t dtype,
                               int32_t root,
                               void *stream);

/// Reduces `count` elements over all ranks to the root.
///
/// send: `count` elements. recv: `count` elements on the root; ignored elsewhere, where it may be NULL. root: a rank
/// of the group. In place on the root: send == recv. Stream, order, batches and threads: see "Collective calls".
///
/// Returns what tutti_all_reduce returns.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_reduce(tutti_group_t *group,
                            const void *send,
                            void *recv,
                            size_t count,
                            int32_t dtype,
                            int32_t op,
                            int32_t root,
                            void *stream);

/// Gathers every rank's elements on the root.
///
/// send: `count` elements. recv: size * count elements on the root, rank r's beginning at r * count; ignored elsewhere,
/// where it may be NULL. root: a rank of the group. In place on the root: send == recv + root * count elements.
/// Stream, order, batches and threads: see "Collective calls".
///
/// Returns what tutti_all_reduce returns.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_gather(tutti_group_t *group,
                            const void *send,
                            void *recv,
                            size_t count,
                            int32_t dtype,
                            int32_t root,
                            void *stream);

/// Hands each rank its part of the root's elements.
///
/// send: size * count elements on the root, rank r's beginning at r * count; ignored elsewhere, where it may be NULL.
/// recv: `count` elements. root: a rank of the group. In place on the root: recv == send + root * count elements.
/// Stream, order, batches and threads: see "Collective calls".
///
/// Returns what tutti_all_reduce returns.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_scatter(tutti_group_t *group,
                             const void *send,
                             void *recv,
                             size_t count,
                             int32_t dtype,
                             int32_t root,
                             void *stream);

/// Sends part r of every rank's elements to rank r.
///
/// send: size * count elements, those for rank r beginning at r * count. recv: size * count elements, those from rank
/// r beginning at r * count. There is no in-place form. Stream, order, batches and threads: see "Collective calls".
///
/// Returns what tutti_all_reduce returns.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_all_to_all(tutti_group_t *group,
                                const void *send,
                                void *recv,
                                size_t count,
                                int32_t dtype,
                                void *stream);

/// Waits (on CUDA groups: makes the stream wait) until every rank has come here.
///
/// Stream, order, batches and threads: see "Collective calls". tutti_group_sync is the barrier of the hosts.
///
/// Returns what tutti_all_reduce returns.
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_barrier(tutti_group_t *group, void *stream);

/// Sends `count` elements at `buffer` to rank `peer` of the group.
///
/// A message meets a receive of the same peer, direction and tag, in the order in which each side posted them; the tag
/// is 0 here, and anything from 0 on in tutti_start. Messages go beside the collectives of the group: they take no turn
/// among them, and an unfinished one holds up none of them.
///
/// The receive must name the same dtype and have room for all elements. If not, it ends with TUTTI_MISMATCH, and so does
/// the send if it still waits; both sentences name both sizes, nothing is written, that message is lost, and the group
/// lives on. The call returns when the buffer may be used again: a small message may be on its way then, a large one has
/// been asked for. peer may be this rank, whose receive must then have been started before, or stand in the same batch.
///
/// On a CUDA group messages go through the host: what is on the stream is waited for, the message is copied out, and the
/// call returns as above; a receive returns when its copy to the device is enqueued. Neither can be captured. Tags are 0
/// there. Messages to one rank keep their order, whatever streams they leave by.
///
/// Stream, batches, threads and deadlines: see "Collective calls". Returns what tutti_all_reduce returns.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_send(tutti_group_t *group,
                          const void *buffer,
                          size_t count,
                          int32_t dtype,
                          int32_t peer,
                          void *stream);

/// Receives up to `count` elements at `buffer` from rank `peer` of the group.
///
/// A shorter message leaves the rest of the buffer as it is; tutti_request_received says how many elements came. What
/// else there is to say is at tutti_send.
///
/// Returns what tutti_all_reduce returns.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_recv(tutti_group_t *group,
                          void *buffer,
                          size_t count,
                          int32_t dtype,
                          int32_t peer,
                          void *stream);

/// Sends `send_count` elements to rank `to` and receives up to `recv_count` elements from rank `from`, both at once, so
/// that ranks in a ring, or two that send each other, never wait for each other's turn. The buffers may not overlap.
///
/// It meets tutti_send and tutti_recv of other ranks like these. Returns what tutti_all_reduce returns.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_sendrecv(tutti_group_t *group,
                              const void *send,
                              size_t send_count,
                              int32_t to,
                              void *recv,
                              size_t recv_count,
                              int32_t from,
                              int32_t dtype,
                              void *stream);

/// Gathers every rank's elements on every rank; ranks may have different counts.
///
/// send: counts[rank] elements. recv: rank r's counts[r] elements begin at displs[r]. counts: one for every rank, equal on
/// all ranks; ranks whose counts differ get TUTTI_MISMATCH. displs: in elements, each rank's own affair; NULL: one rank's
/// elements directly after the other's. Parts of recv may not overlap. In place: send is this rank's part of recv. The
/// arrays are read before the function returns. In tutti_start the two are recv_counts and recv_displs. Stream, order,
/// batches and threads: see "Collective calls".
///
/// Returns what tutti_all_reduce returns.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_all_gather_v(tutti_group_t *group,
                                  const void *send,
                                  void *recv,
                                  const size_t *counts,
                                  const size_t *displs,
                                  int32_t dtype,
                                  void *stream);

/// Reduces over all ranks and leaves each rank with its part of the result; parts may differ in size.
///
/// send: rank r's counts[r] elements begin at displs[r]. recv: counts[rank] elements. counts and displs: as in
/// tutti_all_gather_v. In place: recv is this rank's part of send; the rest of send is then unspecified. In tutti_start
/// the two are recv_counts and send_displs.
///
/// Returns what tutti_all_reduce returns.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_reduce_scatter_v(tutti_group_t *group,
                                      const void *send,
                                      void *recv,
                                      const size_t *counts,
                                      const size_t *displs,
                                      int32_t dtype,
                                      int32_t op,
                                      void *stream);

/// Sends every rank its elements and receives from every rank; any counts.
///
/// send: send_counts[r] elements for rank r begin at send_displs[r]. recv: recv_counts[r] elements from rank r begin at
/// recv_displs[r], as many as r sends here: where a rank sends another number than the receiver expects, all ranks get
/// TUTTI_MISMATCH, which names both, and nothing is written. Displacements are in elements; NULL: one after the other.
/// Parts of recv may not overlap each other or send; there is no in-place form. The arrays are read before the function
/// returns. Stream, order, batches and threads: see "Collective calls".
///
/// Returns what tutti_all_reduce returns.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_all_to_all_v(tutti_group_t *group,
                                  const void *send,
                                  const size_t *send_counts,
                                  const size_t *send_displs,
                                  void *recv,
                                  const size_t *recv_counts,
                                  const size_t *recv_displs,
                                  int32_t dtype,
                                  void *stream);

/// Writes which communicator serves such a call on this group, and why the others do not.
///
/// collective, count, dtype, op: as the call has them; op is ignored where nothing is reduced. flags:
/// TUTTI_CALL_CAPTURED, TUTTI_CALL_REGISTERED. format: TUTTI_FORMAT_TEXT, TUTTI_FORMAT_JSON. text, capacity, needed:
/// see "Texts" at the top of this header. Local; any thread at any time, failed groups too.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_explain(const tutti_group_t *group,
                             int32_t collective,
                             size_t count,
                             int32_t dtype,
                             int32_t op,
                             uint32_t flags,
                             int32_t format,
                             char *text,
                             size_t capacity,
                             size_t *needed);

/// Starts any collective.
///
/// request NULL: does what the short function does (blocks on CPU groups, enqueues on CUDA groups), with the
/// deadline and the flags of the call. Otherwise *request gets a handle, NULL on failure, that the caller must free
/// with tutti_request_free; the buffers belong to the library until the request is done. A start behind an
/// unfinished request of the same group queues in order. `call` itself is read before the function returns.
///
/// Returns what tutti_all_reduce returns. A failure of a started call may also come from the request.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_start(tutti_group_t *group,
                           const tutti_call_t *call,
                           tutti_request_t **request);

/// Writes how many elements a receive that is done has got, which may be fewer than it had room for. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_IN_PROGRESS while the receive is not done; its failure; TUTTI_INVALID_ARGUMENT;
/// TUTTI_INVALID_USAGE (no receive, or a forked process).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_request_received(tutti_request_t *request, size_t *count);

/// Goes on with every unfinished request of this thread as far as possible without waiting, and says how far this
/// one is. Repeatable: a finished request says the same again. Any thread.
///
/// Returns TUTTI_IN_PROGRESS; TUTTI_SUCCESS when the call is done (executed, not merely enqueued); its failure, as
/// tutti_all_reduce; TUTTI_INVALID_ARGUMENT (no such request); TUTTI_INVALID_USAGE (forked process, or a call
/// that is being captured).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_request_test(tutti_request_t *request);

/// Waits until the request is done, and meanwhile goes on with every unfinished request of this thread.
///
/// timeout_ms: how long this wait may take: milliseconds, TUTTI_TIMEOUT_DEFAULT (the group's) or
/// TUTTI_TIMEOUT_NEVER. When it ends first the request is still in progress and nothing has failed; the call's own
/// deadline is another. Any thread.
///
/// Returns TUTTI_SUCCESS when the call is done; TUTTI_IN_PROGRESS when timeout_ms ended first; its failure, as
/// tutti_all_reduce; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, or a call that is being captured).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_request_wait(tutti_request_t *request, int64_t timeout_ms);

/// Frees a request. If it is unfinished its group is aborted first, since other ranks may count on its buffers.
/// Freeing NULL or a freed request succeeds. Any thread; a wait for it in another thread ends with the failure.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a request); TUTTI_INVALID_USAGE (forked process).
TUTTI_API tutti_status_t tutti_request_free(tutti_request_t *request);

/// Opens a batch in this thread: calls of this thread are from now on collected and made together by
/// tutti_batch_end, on any number of groups, so that one thread can drive several ranks and calls that wait for each
/// other can be made one after the other. Every collective call may stand in a batch, and tutti_group_create,
/// tutti_group_split, tutti_mem_alloc, tutti_group_sync and tutti_capture_commit. What they write is written by
/// tutti_batch_end. Batches nest: only the outermost tutti_batch_end makes the calls.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_USAGE (forked process).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_batch_begin(void);

/// Makes the calls of this thread's batch, and closes it whatever happens.
///
/// Blocks until all are done (CPU groups) or enqueued (CUDA groups). If a call was refused when it was put into the
/// batch, nothing of the batch is made and the first such error comes back; a handle that was to be made stays NULL.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_USAGE (forked process, or no batch is open in this thread); otherwise the
/// first failure in the order of the calls, as the call itself returns it.
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_batch_end(void);

/// Sends named tensors to a rank as one message, which tutti_dict_recv receives.
///
/// tensors[0] to tensors[count - 1]: their names are different; any strides, any extents, 0 included. All have
/// the same struct_size. options->peer and options->tag: to whom, and what the message meets its receive by.
///
/// The memory of the tensors is host memory or, on a CUDA group and with device_kind TUTTI_DEVICE_CUDA, memory of the rank's
/// device without gaps between the elements. Such tensors are copied to the host behind what is on options->stream, which
/// is waited for before the function returns, also where it starts a dict. All of a CUDA group's message travels by its CPU
/// sibling (see tutti_group_cpu), and the order among the sibling's calls is what counts.
///
/// options->replicas: where all ranks of that group hold the same tensors, as those of a TP group hold the hidden
/// state, and each of them sends to its own counterpart: each then sends only its slice of the large ones, and the
/// receivers gather them. TUTTI_TENSOR_WHOLE excepts a tensor that differs between the ranks. The message says what was
/// sliced, so the receivers need not know.
///
/// dict NULL: returns when the memory may be used again. Otherwise returns at once, and *dict gets a handle, NULL on
/// failure, that the caller must free with tutti_dict_free; the tensors belong to the library until tutti_dict_wait or
/// tutti_dict_test returns TUTTI_SUCCESS.
///
/// Returns what tutti_send returns; TUTTI_INVALID_ARGUMENT for tensors that cannot be sent, and why; TUTTI_UNSUPPORTED for
/// memory of a device with gaps, on a CPU group, or while the stream is captured.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_dict_send(tutti_group_t *group,
                               const tutti_tensor_t *tensors,
                               size_t count,
                               const tutti_dict_options_t *options,
                               tutti_dict_t **dict);

/// Sends `bytes` bytes as one message, which tutti_dict_recv receives and tutti_dict_object tells. Otherwise like
/// tutti_dict_send; options->replicas must be NULL.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_object_send(tutti_group_t *group,
                                 const void *object,
                                 size_t bytes,
                                 const tutti_dict_options_t *options,
                                 tutti_dict_t **dict);

/// Starts to receive the next message of options->peer with options->tag: tensors or an object. Returns at once. Several
/// may be awaited at once; those of one peer and tag have to be waited for in the order in which they were started, and a
/// wait for a later one is TUTTI_INVALID_USAGE until the earlier ones are here.
///
/// *dict gets a handle, NULL on failure, that the caller must free with tutti_dict_free. tutti_dict_wait brings the
/// message here, into memory of the library or the caller's; tutti_dict_probe waits only until it is known what comes.
/// options->replicas: the group of the ranks that each receive a slice and gather them; needed where the senders gave
/// theirs, with as many ranks, each of which receives from the sender of its own rank; ignored where nothing is sliced.
///
/// Returns what tutti_recv returns.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_dict_recv(tutti_group_t *group,
                               const tutti_dict_options_t *options,
                               tutti_dict_t **dict);

/// Starts to broadcast named tensors from the rank options->peer to all ranks of the group. Collective; returns at once.
///
/// tensors, count: of the root, as in tutti_dict_send; NULL and 0 on all others. *dict gets a handle, NULL on failure, that
/// the caller must free with tutti_dict_free. The data move in tutti_dict_wait, which every rank calls before its next
/// collective call on the group; all others than the root may call tutti_dict_probe before. options->tag is ignored,
/// options->replicas must be NULL.
///
/// Returns what tutti_broadcast returns; TUTTI_INVALID_ARGUMENT for tensors that cannot be sent, and why.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_dict_broadcast(tutti_group_t *group,
                                    const tutti_tensor_t *tensors,
                                    size_t count,
                                    const tutti_dict_options_t *options,
                                    tutti_dict_t **dict);

/// Starts to broadcast `bytes` bytes from the rank options->peer; object NULL and bytes 0 on all others. Otherwise like
/// tutti_dict_broadcast.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_object_broadcast(tutti_group_t *group,
                                      const void *object,
                                      size_t bytes,
                                      const tutti_dict_options_t *options,
                                      tutti_dict_t **dict);

/// Says without waiting whether tutti_dict_wait would wait for a peer to begin: TUTTI_SUCCESS for a send that is done, and
/// for a message of which it is known what comes. Any thread.
///
/// Returns TUTTI_IN_PROGRESS; TUTTI_SUCCESS; its failure; TUTTI_INVALID_ARGUMENT (no such dict); TUTTI_INVALID_USAGE
/// (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_dict_test(tutti_dict_t *dict);

/// Waits until it is known what comes, so that tutti_dict_tensor tells names, dtypes and shapes and memory can be made
/// for them. timeout_ms: how long this wait may take; when it ends first nothing has failed.
///
/// Returns TUTTI_SUCCESS; TUTTI_IN_PROGRESS when timeout_ms ended first; TUTTI_MISMATCH (what came is no message of
/// tensors, and why); its failure; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, a batch is open, or
/// another thread waits for it).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_dict_probe(tutti_dict_t *dict, int64_t timeout_ms);

/// Finishes a dict: one that is sent, until the memory of its tensors may be used again; one that comes, until all of it
/// is here. Slices are gathered here, so all ranks of options->replicas wait for their dicts in one order with their
/// other collective calls on that group.
///
/// tensors NULL and count 0: in memory of the library, which tutti_dict_tensor tells and tutti_dict_free frees. Otherwise
/// one tensor for each that comes, in its order, of its dtype and shape, with any strides; names are ignored. On a CUDA
/// group any of them may be memory of the device (device_kind TUTTI_DEVICE_CUDA, no gaps), wherever the sender has it: it is
/// written on options->stream, so what is put there after the return sees it. For a dict
/// that is sent they must be NULL and 0. timeout_ms: how long it may take until the message begins; when it ends first
/// nothing has failed. The rest has the deadline of the options.
///
/// Returns TUTTI_SUCCESS; TUTTI_IN_PROGRESS when timeout_ms ended first; TUTTI_INVALID_ARGUMENT (tensors that do not fit
/// the message, which is then not lost); TUTTI_MISMATCH (what came is no message of tensors, or was sliced for other
/// ranks); its failure; TUTTI_OUT_OF_MEMORY; TUTTI_INVALID_USAGE (forked process, a batch is open, another thread waits for
/// it, or a message that was started before is to come first).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_dict_wait(tutti_dict_t *dict,
                               const tutti_tensor_t *tensors,
                               size_t count,
                               int64_t timeout_ms);

/// Writes how many tensors a message has. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, it is not known yet,
/// or another thread waits for it).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_dict_count(tutti_dict_t *dict, size_t *count);

/// Writes what a tensor of a message is: all fields of *tensor; its data are NULL until the message is here. Set
/// tensor->struct_size before the call (TUTTI_TENSOR_INIT does). What the fields point to belongs to the dict.
///
/// Strides are those the sender had, where its tensor had no gaps; otherwise elements lie row by row. device_kind is where
/// the data are: in memory of the library always the host; while they are not here yet, where the sender has them. Any
/// thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, it is not known yet,
/// or another thread waits for it).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_dict_tensor(tutti_dict_t *dict,
                                 size_t index,
                                 tutti_tensor_t *tensor);

/// Writes which tensor of a message has this name. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (none has); TUTTI_INVALID_USAGE (forked process, it is not known
/// yet, or another thread waits for it).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_dict_find(tutti_dict_t *dict, const char *name, size_t *index);

/// Writes where the bytes of an object are and how many; *object is NULL until they are here. They belong to the dict, or
/// are where the caller wanted them. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, the message has tensors and is no
/// object, it is not known yet, or another thread waits for it).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_dict_object(tutti_dict_t *dict,
                                 void **object,
                                 size_t *bytes);

/// Frees a dict, and the memory of the library that its tensors are in. One that is not over aborts its group first, since
/// its peer counts on it; so does one that was announced and never waited for. A wait in another thread ends with
/// TUTTI_ABORTED. Freeing NULL or a freed dict succeeds.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a dict); TUTTI_INVALID_USAGE (forked process).
TUTTI_API
tutti_status_t tutti_dict_free(tutti_dict_t *dict);

/// Describes a tensor of DLPack: *tensor gets what `dlpack` says, and the given name.
///
/// dlpack: a DLTensor of DLPack 0.2 or later, such as &managed->dl_tensor. What it points to must live as long as *tensor is
/// used; nothing is copied or owned. name: kept as a pointer. Set tensor->struct_size before the call. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_UNSUPPORTED (an element type or device that this library does not
/// know); TUTTI_INVALID_USAGE (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_tensor_from_dlpack(const void *dlpack,
                                        const char *name,
                                        tutti_tensor_t *tensor);

/// Makes a queue through which one rank of `group` writes messages to all others: for control messages to ranks that
/// mostly sleep. A rank that waits for a message costs no core; one that is written to is woken.
///
/// options: NULL for the defaults: rank 0 writes, and 1 MiB of messages may wait for the slowest reader. Collective over
/// all ranks, which must give the same options. Needs memory that all ranks share, so all of one host.
///
/// *queue gets a handle that the caller must destroy with tutti_queue_destroy; in an open batch it is NULL until
/// tutti_batch_end, and `queue` must stay valid until then. NULL on failure. The queue is a thing of its own: its
/// failures are not the group's, and it outlives the group. One thread at a time reads or writes it; other calls of the
/// group go on beside it. One thread that drives several ranks must not wait for itself in it.
///
/// Returns what tutti_group_split returns; TUTTI_UNSUPPORTED where the ranks share no memory.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_queue_create(tutti_group_t *group,
                                  const tutti_queue_options_t *options,
                                  tutti_queue_t **queue);

/// Writes a message to all readers. Returns when the queue has taken it, read or not; a message of any size streams
/// through, as fast as the slowest reader reads.
///
/// message: `bytes` bytes, which may be 0. Only the rank that writes the queue may call it.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, a batch is open, this rank reads,
/// or another thread is inside a call on the queue); TUTTI_TIMEOUT, naming a reader that made no room within timeout_ms:
/// if nothing of the message was written, as the text says, the queue lives and the call may be repeated;
/// TUTTI_PEER_LOST, naming a reader that died or left; TUTTI_ABORTED (the queue was destroyed meanwhile). A failure of
/// the queue is repeated by all its later calls, on all ranks.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_queue_write(tutti_queue_t *queue,
                                 const void *message,
                                 size_t bytes,
                                 int64_t timeout_ms);

/// Waits for the next message, leaves it in the queue, and writes how many bytes it has.
///
/// Returns what tutti_queue_read returns.
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_queue_next(tutti_queue_t *queue, size_t *bytes, int64_t timeout_ms);

/// Waits for the next message, copies it into `buffer`, and writes how many bytes it has. Every reader gets every
/// message, in the order in which they were written.
///
/// capacity: bytes at buffer. A message that is longer stays in the queue, and is TUTTI_INVALID_ARGUMENT; ask
/// tutti_queue_next. bytes: may be NULL. timeout_ms: milliseconds, TUTTI_TIMEOUT_DEFAULT (the queue's) or
/// TUTTI_TIMEOUT_NEVER, which a writer that dies or leaves ends too.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, a batch is open, this rank writes,
/// or another thread is inside a call on the queue); TUTTI_TIMEOUT: no message came within timeout_ms, and nothing has
/// failed; TUTTI_PEER_LOST: the writer died or left, and all it had written was read; TUTTI_ABORTED (the queue was
/// destroyed meanwhile); or the queue's failure.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_queue_read(tutti_queue_t *queue,
                                void *buffer,
                                size_t capacity,
                                size_t *bytes,
                                int64_t timeout_ms);

/// Leaves the queue and frees this rank's end of it. Local. Messages that were written stay readable to the readers, who
/// then get TUTTI_PEER_LOST. A call in another thread ends with TUTTI_ABORTED. Destroying NULL or a destroyed queue
/// succeeds. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a queue); TUTTI_INVALID_USAGE (forked process).
TUTTI_API
tutti_status_t tutti_queue_destroy(tutti_queue_t *queue);

/// Allocates `bytes` on every rank that the group and its descendants read in place: large calls whose buffers lie in
/// such memory are not copied on their way. Collective, with equal `bytes` on all ranks; may stand in a batch, whose end
/// then writes *memory.
///
/// bytes: any number; 0 gives memory too. *memory gets the address of this rank's part: zeroed, for any offset and any
/// number of buffers; at a page of its own, or on a CUDA group where the driver puts it. It outlives the group until
/// tutti_mem_free. Where ranks cannot share memory (several hosts, devices that do not reach each other) it is ordinary
/// memory. No flag needs to be passed with calls.
///
/// CPU groups: memory of the host; the buffers of all ranks must lie in memory of one such call, which ranks find out in
/// each. CUDA groups: memory of the rank's device, of which the kernels of "pull" read as much as there is, on whichever
/// ranks and in captured calls, too. With TUTTI_CALL_REGISTERED a large call there is one launch (but for all_reduce by
/// "pull/one_shot"); else it is one for every 16 MiB, since other ranks may have to copy theirs. Allocating waits for nothing
/// that is enqueued, but the driver may.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE; TUTTI_MISMATCH (other bytes on another rank);
/// TUTTI_OUT_OF_MEMORY, on all ranks alike; TUTTI_TIMEOUT, TUTTI_PEER_LOST, TUTTI_ABORTED. A failed allocation leaves the
/// group alive; *memory is NULL then.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_mem_alloc(tutti_group_t *group,
                               size_t bytes,
                               void **memory);

/// Frees memory of tutti_mem_alloc. Local; any thread. No call may be using it, on a CUDA group neither one that is enqueued
/// nor one in a graph that will be replayed. Freeing NULL succeeds. Memory of a device stays with the group, since peers
/// may go on with theirs: what all ranks have freed serves the group's later allocations of about that size, and when
/// the process has no CUDA group any more it goes back to the device (what was lent to other processes by an IPC handle,
/// when the process ends).
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not memory of tutti_mem_alloc, or freed already); TUTTI_INVALID_USAGE
/// (forked process).
TUTTI_API
tutti_status_t tutti_mem_free(void *memory);

/// Opens a capture session over some groups: collective calls on capturing streams that need it are noted until
/// tutti_capture_commit. Local. Never begins or ends a stream capture itself: any number of graphs may be captured,
/// on any streams. On CPU groups a session does nothing.
///
/// A session keeps its groups, and all that the graphs captured in it touch, until it is destroyed: a replay after a
/// group was destroyed returns at once and touches nothing. What is captured while no session of the group is open is
/// kept until the process ends, and all device memory of the library with it.
///
/// groups[0] to groups[count - 1]: distinct groups, at least one, in the same relative order on all ranks. *capture
/// gets a handle that the caller must destroy with tutti_capture_destroy after the last replay is over; NULL on failure.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process); TUTTI_OUT_OF_MEMORY;
/// TUTTI_INTERNAL_ERROR.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_capture_begin(tutti_group_t *const *groups,
                                   size_t count,
                                   tutti_capture_t **capture);

/// Makes the captured calls of the session ready to be replayed: once, before the first replay. Collective over each
/// of the session's groups in the order given. What cannot be registered stays staged, which tutti_explain says. After
/// the first group that does not commit, the others are given up: ranks that commit them hear that at once, with the
/// cause, and those groups live.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (no such session); TUTTI_INVALID_USAGE (forked process; the session
/// was committed or aborted before; a peer aborted its session or gave it up, which is named, and the group lives); or a
/// group's failure, as tutti_group_check, TUTTI_MISMATCH where the ranks captured different calls.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_capture_commit(tutti_capture_t *capture);

/// Ends the session without making its graphs ready: they must not be replayed. Local: never waits for a rank.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (no such session); TUTTI_INVALID_USAGE (forked process, or the
/// session was committed or aborted before).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_capture_abort(tutti_capture_t *capture);

/// Destroys a session, after the last replay of its graphs has come to its end on the device: what they touch may be
/// gone from then on. An open session is aborted first. Destroying NULL or a destroyed session succeeds. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a session); TUTTI_INVALID_USAGE (forked process).
TUTTI_API tutti_status_t tutti_capture_destroy(tutti_capture_t *capture);

/// Plans how tensors get from one layout to another. Local and pure: every rank that passes the same gets the same.
///
/// items[0] to items[count - 1]: the tensors; names, layouts, meshes and everything they point to are read before the
/// function returns and never after. size: ranks of the group that will carry the plan out; meshes name its ranks.
/// options: NULL for the defaults. *plan gets a handle that the caller must destroy with tutti_transfer_plan_destroy,
/// NULL on failure. Takes no group, moves nothing; any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (a description that does not add up, naming the tensor);
/// TUTTI_UNSUPPORTED (a target that is Partial, a cast between types that are not both floats, more than 8388608
/// chunks); TUTTI_OUT_OF_MEMORY; TUTTI_INVALID_USAGE (forked process); TUTTI_INTERNAL_ERROR.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_transfer_plan_create(const tutti_transfer_item_t *items,
                                          size_t count,
                                          int32_t size,
                                          const tutti_transfer_options_t *options,
                                          tutti_transfer_plan_t **plan);

/// Frees a plan. Transfers made of it go on; records of it are gone. Destroying NULL or a destroyed plan succeeds.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a plan); TUTTI_INVALID_USAGE (forked process).
TUTTI_API tutti_status_t tutti_transfer_plan_destroy(tutti_transfer_plan_t *plan);

/// Writes the 16 bytes that tell plans apart: equal where layouts, options and everything in the plan are. Names,
/// strides and memory are not part of it. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_transfer_plan_hash(const tutti_transfer_plan_t *plan, uint8_t *hash);

/// Writes what the plan does in all. Any thread. Set totals->struct_size before (TUTTI_TRANSFER_TOTALS_INIT does).
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_transfer_plan_totals(const tutti_transfer_plan_t *plan,
                                          tutti_transfer_totals_t *totals);

/// Writes what one rank does; any rank's, from anywhere. All zero for one that takes no part. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_transfer_plan_load(const tutti_transfer_plan_t *plan,
                                        int32_t rank,
                                        tutti_transfer_load_t *load);

/// Writes one chunk: index 0 to chunks - 1 of tutti_transfer_plan_totals, those of one bucket one after the other.
///
/// rank: whose is_source and is_target are wanted; any rank, from anywhere. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_transfer_plan_chunk(const tutti_transfer_plan_t *plan,
                                         size_t index,
                                         int32_t rank,
                                         tutti_transfer_chunk_t *chunk);

/// Writes one bucket: index 0 to buckets - 1 of tutti_transfer_plan_totals, in the one order in which every rank goes
/// through its own. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_transfer_plan_bucket(const tutti_transfer_plan_t *plan,
                                          size_t index,
                                          tutti_transfer_bucket_t *bucket);

/// Writes which bucket is a rank's operation number `index`, 0 to operations - 1 of tutti_transfer_plan_load. Any
/// rank's, from anywhere; any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_transfer_plan_operation(const tutti_transfer_plan_t *plan,
                                             int32_t rank,
                                             size_t index,
                                             size_t *bucket);

/// Writes which box of a tensor a rank holds (or contributes to): what memory for tutti_transfer_bind is needed.
///
/// side: TUTTI_SOURCE or TUTTI_TARGET. start, extent: room for the tensor's dimensions each, or NULL. *elements gets
/// the elements of the box, 0 also where the rank is not in the mesh; NULL if not wanted. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_transfer_plan_region(const tutti_transfer_plan_t *plan,
                                          size_t item,
                                          int32_t side,
                                          int32_t rank,
                                          uint64_t *start,
                                          uint64_t *extent,
                                          uint64_t *elements);

/// Writes the plan for people and programs: TUTTI_FORMAT_TEXT a table, TUTTI_FORMAT_JSON one object, TUTTI_FORMAT_SVG
/// a picture of who sends how much to whom.
///
/// rank: -1 for the whole plan; a rank with TUTTI_FORMAT_TEXT for its operations. text, capacity, needed: see "Texts"
/// at the top of this header. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_transfer_plan_report(const tutti_transfer_plan_t *plan,
                                          int32_t rank,
                                          int32_t format,
                                          char *text,
                                          size_t capacity,
                                          size_t *needed);

/// Makes a transfer of a group by a plan of its size. Local. The transfer keeps what it needs of both.
///
/// *transfer gets a handle that the caller must destroy with tutti_transfer_destroy, NULL on failure. A transfer may be
/// started again and again, with the same memory or other.
///
/// A CUDA group's transfer is carried out by its CPU sibling (tutti_group_cpu): what lies on a device and goes to another
/// rank, or is reduced or cast, is copied through pinned memory of the host, which the plan's staging cap bounds; what
/// stays on its rank is copied on the device. Elements that are cast take room for both types there, so fewer buckets may
/// be in flight than the plan says, though always one.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a plan or a group, or the group has another size);
/// TUTTI_INVALID_USAGE (forked process); TUTTI_OUT_OF_MEMORY; TUTTI_CUDA_ERROR; TUTTI_INTERNAL_ERROR.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_transfer_create(const tutti_transfer_plan_t *plan,
                                     tutti_group_t *group,
                                     tutti_transfer_t **transfer);

/// Says where this rank's part of a tensor lies.
///
/// source, target: the addresses of the first element of the boxes that tutti_transfer_plan_region names; NULL where the
/// rank has no part, or to leave that side as it is. source_strides, target_strides: the distance of neighbours in
/// elements, for every dimension of the tensor; NULL: contiguous, row-major. A source may have any strides; a target
/// none by which two elements could share an address. The memory must stay until it is bound anew or the transfer is
/// destroyed. Not while the transfer goes on.
///
/// On a CPU group the memory is the host's; on a CUDA group that of the rank's device or the host's, each tensor and side
/// as it comes.
///
/// A target may overlap no other memory of the transfer, with one exception: a tensor whose source and target are the
/// same box of the same type here may stay where it is, with equal addresses and strides. Overlaps are found by
/// tutti_transfer_start.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, or the transfer goes on).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_transfer_bind(tutti_transfer_t *transfer,
                                   size_t item,
                                   const void *source,
                                   const int64_t *source_strides,
                                   void *target,
                                   const int64_t *target_strides);

/// Begins the transfer; go on with tutti_transfer_poll or tutti_transfer_wait.
///
/// stream: NULL on CPU groups. On a CUDA group a stream of the rank's device, NULL for the legacy default one: no tensor is
/// read or written, on the device or the host, before what is on it now is over, for which the group's deadline applies.
/// Nothing is enqueued on it, and it waits for nothing: that the transfer is over here is what tutti_transfer_poll and
/// tutti_transfer_wait say. Then all targets are written, and work on any stream may use them and write the sources. Only
/// calls of these two move anything; while a stream of the process is captured in global mode, make none.
///
/// Every rank of the group must start, also one that moves nothing: at the first start the ranks compare their plans, which
/// takes a turn among the group's calls. Sources may not be written and targets not touched until the transfer is over. One
/// after another, a transfer may be started any number of times; several transfers of a group may go on at once if all
/// ranks first start them in one order.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (a tensor without memory, memory that overlaps, a stream of something
/// else), and nothing has happened; TUTTI_INVALID_USAGE (forked process, an open batch, it goes on already, or another thread is inside a
/// call of the group); TUTTI_UNSUPPORTED (the stream is captured); TUTTI_CUDA_ERROR; or the group's failure.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_transfer_start(tutti_transfer_t *transfer,
                                    void *stream);

/// Goes on with the transfer as far as possible without waiting, and says how far it is.
///
/// progress: written whatever the transfer's state, also when it has failed; NULL if not wanted. Repeatable; any thread.
///
/// Returns TUTTI_IN_PROGRESS; TUTTI_SUCCESS when all that this rank sends, receives and copies is over;
/// TUTTI_MISMATCH if a rank's plan differs, which it names: then nothing has moved anywhere and the group lives on; the
/// group's failure, as tutti_group_check, and TUTTI_CUDA_ERROR or TUTTI_TIMEOUT where a device is at fault, which fails the
/// group, a CUDA group with its sibling: which targets are complete tells tutti_transfer_written; TUTTI_UNSUPPORTED (no
/// communicator of the group serves sends); TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, it was not
/// started, or this thread has a batch open).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_transfer_poll(tutti_transfer_t *transfer,
                                   tutti_transfer_progress_t *progress);

/// Waits until the transfer is over.
///
/// timeout_ms: how long this wait may take, in milliseconds; TUTTI_TIMEOUT_DEFAULT and TUTTI_TIMEOUT_NEVER: until the
/// transfer is over or has failed. When it ends first nothing has failed. The deadline of the group is another: it begins
/// for every message when this rank gets to it. Any thread; tutti_transfer_abort from another ends the wait.
///
/// Returns what tutti_transfer_poll returns, TUTTI_IN_PROGRESS when timeout_ms ended first.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_transfer_wait(tutti_transfer_t *transfer,
                                   int64_t timeout_ms);

/// Writes how many bytes of a tensor's target were written on this rank since the start, and how many will be.
///
/// Elements count when their bucket is over. After a failure a target of which less than all was written holds a
/// mixture of old and new. written, bytes: NULL if not wanted. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_transfer_written(tutti_transfer_t *transfer,
                                      size_t item,
                                      uint64_t *written,
                                      uint64_t *bytes);

/// Ends a transfer that goes on, by aborting its group: every rank gets TUTTI_ABORTED. One that does not go on is left
/// alone. Local; any thread, while another waits too.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
TUTTI_API tutti_status_t tutti_transfer_abort(tutti_transfer_t *transfer);

/// Frees a transfer. One that goes on aborts its group first, because other ranks count on this one. Destroying NULL or
/// a destroyed transfer succeeds. When it returns nothing touches the bound memory any more.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a transfer); TUTTI_INVALID_USAGE (forked process).
TUTTI_API tutti_status_t tutti_transfer_destroy(tutti_transfer_t *transfer);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TUTTI_H */
