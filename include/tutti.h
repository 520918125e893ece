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
 * Handles. Groups, requests and capture sessions are opaque; never look behind the pointer. They may be used from any
 * thread. Destroying one twice succeeds; any other use of a destroyed handle, NULL, or a handle of another kind is
 * TUTTI_INVALID_ARGUMENT, never a crash.
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
#define TUTTI_CALL_INIT \
    { sizeof(tutti_call_t), 0, 0, 0, 0, 0, 0, NULL, NULL, 0, 0, NULL, NULL, NULL, NULL, NULL, 0 }
#define TUTTI_FAILURE_INIT \
    { sizeof(tutti_failure_t), 0, 0, 0, 0 }


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

/// Call flag: on every rank, send and recv are memory of tutti_mem_alloc. All ranks must say the same.
#define TUTTI_CALL_REGISTERED 2

/// No communicator of the group serves the call.
#define TUTTI_MODE_NONE 0

/// Served without a copy if the result replaces the input.
#define TUTTI_MODE_INPLACE 1

/// Served without a copy if the result goes beside the input.
#define TUTTI_MODE_OUTPLACE 2

/// Served without a copy either way.
#define TUTTI_MODE_BOTH 3

/// tutti_explain writes a table for people.
#define TUTTI_FORMAT_TEXT 0

/// tutti_explain writes one JSON object.
#define TUTTI_FORMAT_JSON 1

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

/// A capture session. May be used from any thread.
struct tutti_capture;

/// Ordered ranks that communicate, as one of them sees them.
///
/// A handle may be used from any thread. Two threads may not be inside collective calls of one group at once:
/// the second gets TUTTI_INVALID_USAGE. Queries, tutti_group_check, tutti_group_abort and tutti_group_destroy
/// may be called at any time.
struct tutti_group;

/// A started call. May be used from any thread.
struct tutti_request;

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

/// See struct tutti_capture.
typedef struct tutti_capture tutti_capture_t;

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
/// TUTTI_UNSUPPORTED.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (no communicator of that name in this group, enabled is neither 0
/// nor 1); TUTTI_INVALID_USAGE (forked process, a batch is open, or another thread is inside a call of the group);
/// or the group's failure, as tutti_group_check, TUTTI_MISMATCH where ranks asked for different things.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_group_set_enabled(tutti_group_t *group,
                                       const char *communicator,
                                       int32_t enabled);

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

/// Allocates `bytes` on every rank that the group and its descendants read in place: large calls whose buffers all lie
/// in memory of one such call are not copied on their way. Collective, with equal `bytes` on all ranks; may stand in a
/// batch, whose end then writes *memory.
///
/// bytes: any number; 0 gives memory too. *memory gets the address of this rank's part: zeroed, at a page of its own, for
/// any offset and any number of buffers. It outlives the group until tutti_mem_free. Where ranks cannot share memory
/// (several hosts) it is ordinary memory. No flag needs to be passed with calls; ranks find out in each.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE; TUTTI_MISMATCH (other bytes on another rank);
/// TUTTI_OUT_OF_MEMORY, on all ranks alike; TUTTI_TIMEOUT, TUTTI_PEER_LOST, TUTTI_ABORTED. A failed allocation leaves
/// the group alive; *memory is NULL then.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_mem_alloc(tutti_group_t *group,
                               size_t bytes,
                               void **memory);

/// Frees memory of tutti_mem_alloc. Local; any thread; no call may be using it. Freeing NULL succeeds.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not memory of tutti_mem_alloc, or freed already); TUTTI_INVALID_USAGE
/// (forked process).
TUTTI_API tutti_status_t tutti_mem_free(void *memory);

/// Opens a capture session over some groups: collective calls on capturing streams that need it are noted until
/// tutti_capture_commit. Local. Never begins or ends a stream capture itself: any number of graphs may be captured,
/// on any streams. On CPU groups a session does nothing.
///
/// groups[0] to groups[count - 1]: distinct groups, at least one, in the same relative order on all ranks. *capture
/// gets a handle that the caller must destroy with tutti_capture_destroy after the last replay; NULL on failure.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process); TUTTI_OUT_OF_MEMORY;
/// TUTTI_INTERNAL_ERROR.
TUTTI_API
TUTTI_MUST_USE
tutti_status_t tutti_capture_begin(tutti_group_t *const *groups,
                                   size_t count,
                                   tutti_capture_t **capture);

/// Makes the captured calls of the session ready to be replayed: once, before the first replay. Collective over each
/// of the session's groups in the order given. What cannot be registered stays staged, which tutti_explain says.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (no such session); TUTTI_INVALID_USAGE (forked process; the session
/// was committed or aborted before; a peer aborted its session, which is named, and the group lives); or a group's
/// failure, as tutti_group_check, TUTTI_MISMATCH where the ranks captured different calls.
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_capture_commit(tutti_capture_t *capture);

/// Ends the session without making its graphs ready: they must not be replayed. Local: never waits for a rank.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (no such session); TUTTI_INVALID_USAGE (forked process, or the
/// session was committed or aborted before).
TUTTI_API TUTTI_MUST_USE tutti_status_t tutti_capture_abort(tutti_capture_t *capture);

/// Destroys a session, after the last replay of its graphs; an open one is aborted first. Destroying NULL or a
/// destroyed session succeeds. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a session); TUTTI_INVALID_USAGE (forked process).
TUTTI_API tutti_status_t tutti_capture_destroy(tutti_capture_t *capture);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TUTTI_H */
