// What the host and the kernels agree on: the argument of every kernel and the memory behind it.
// Plain C layout, fixed-width fields, no padding that is not named; the host writes these structs, byte for byte.
// README.md beside this file says who may touch which word, and when.
#pragma once

#if defined(__CUDACC_RTC__)
namespace tutti {
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i8 = signed char;
using i32 = int;
using i64 = long long;
}  // namespace tutti
#else
#include <stdint.h>
namespace tutti {
using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i8 = int8_t;
using i32 = int32_t;
using i64 = int64_t;
}  // namespace tutti
#endif

namespace tutti {

/// Ranks of a group at most. The world size itself is a run-time value.
constexpr u32 kMaxWorld = 16;
/// Bytes that one thread moves at once.
constexpr u32 kVectorBytes = 16;
/// Threads of a block at most, so that one thread may hold the words of eight ranks in registers. A block has at least
/// as many threads as there are ranks, because one thread speaks to one peer.
constexpr u32 kMaxThreads = 256;

/// Bytes of a call at most, so that vectors can be counted in 32 bits.
constexpr u64 kMostBytes = 1ull << 35;

/// What is done with the elements. The numbers are those of the C interface.
enum Op : u32 { kSum = 0, kMax = 2, kMin = 3, kAvg = 4 };
constexpr u32 kOpMask = 0xff;
/// Beside an `Op`: the integers are unsigned. The kernels for int8, int32 and int64 serve uint8, uint32 and uint64, too.
constexpr u32 kUnsigned = 0x100;

/// Where a rank's memory lies for its peers: 0 is "in my stage", else `slot << 48 | offset in bytes`, where `slot`
/// (1 .. 65535) is the row of `Params::table` in which every rank holds its own mapping of that registered buffer.
///
/// A slot whose row is still 0 on the publishing rank counts as staged. So a call may be captured before its buffers
/// are registered: the host fills the row on all readers first, then on the owner, between two replays.
using Location = u64;
constexpr u32 kLocationSlotShift = 48;

/// The argument of every kernel, by value.
///
/// Everything but `arena[r]` of other ranks, `state`, `report`, `table`, `send` and `recv` must be equal on all ranks,
/// and so must the grid and the block size.
struct Params {
    /// The arena of each rank, as mapped here; `arena[rank]` is this rank's own. See `Arena`.
    u64 arena[kMaxWorld];
    /// This rank's `State`, in its own device memory, never mapped by a peer.
    u64 state;
    /// This rank's `Report`, in pinned host memory.
    u64 report;
    /// `u64 [slots][kMaxWorld]` in device memory: bases of registered buffers, as mapped here; 0: not yet.
    u64 table;
    /// This rank's contribution, at any alignment; equal to `recv` (or, for all_gather and reduce_scatter, this rank's
    /// part of it) when in place. Ignored by broadcast on ranks other than the root.
    u64 send;
    /// This rank's result, at any alignment.
    u64 recv;
    /// Bytes of the whole buffer (all_reduce, broadcast) or of one rank's part (all_gather, reduce_scatter).
    u64 bytes;
    /// Bytes from one rank's part to the next (all_gather, reduce_scatter): more than `bytes` where a large call is
    /// launched in several pieces.
    u64 stride;
    /// Where peers find `send`; the pull kernels use it. Must be 0 for an all_reduce by pull one-shot in place.
    Location send_at;
    /// Where peers find `recv`; used by the pull two-shot kernel.
    Location recv_at;
    /// The deadline, from the first look of a waiting thread. Never 0.
    u64 timeout_ns;
    /// Offset of the push slots in every arena; a multiple of 128.
    u64 push_at;
    /// Offset of the stage in every arena; a multiple of 128.
    u64 stage_at;
    u32 rank;
    u32 world;
    /// An `Op`, with kUnsigned where it applies; ignored by kernels that only move.
    u32 op;
    /// The root of a broadcast.
    u32 root;
    /// The group's number, for the report.
    u32 group;
    /// Vectors that a push slot holds: what one block sends one peer in one call. A multiple of 64; all slots of one
    /// block in one epoch are smaller than 4 GiB.
    u32 push_vectors;
    /// Vectors that one block stages in one call.
    u32 stage_vectors;
    /// Blocks that `State` and the arena have room for; no grid may be larger.
    u32 blocks;
};
static_assert(sizeof(Params) == 16 * 8 + 12 * 8 + 8 * 4, "no hidden padding");

/// Two 8-byte words, each of them (epoch << 32 | 4 bytes of payload). A reader that finds the epoch in both halves has
/// the payload: each half is written at once, the order of the halves does not matter.
struct alignas(16) Line {
    u64 low;
    u64 high;
};

/// What the peers of one block tell it in one epoch. Zeroed by the host once; two of them, for even and odd epochs.
struct alignas(128) Board {
    /// From each rank, in the first and the second phase of a call: "my data is ready", and its `Location`.
    Line where[2][kMaxWorld];
    /// From each rank: the epoch in which it has read everything it wants from this rank's registered memory.
    u32 done[kMaxWorld];
};
static_assert(sizeof(Board) == 640, "the host lays out the arena");

/// The start of each rank's arena: device memory that all peers have mapped. Zeroed by the host before the first call.
///
///     Arena
///     Board        boards[blocks][2]                                    the index is the epoch's last bit
///     at push_at:  Line slots[blocks][2][world][2 * push_vectors]       [block][parity][sender][see Mailbox::place]
///     at stage_at: vector stage[blocks][2][stage_vectors]
struct alignas(128) Arena {
    /// 0, or the first failure, packed: kind, reporting rank, mask of missing ranks, sequence (8, 8, 16, 32 bits from
    /// the top). Written by this rank and by any peer that fails; every kernel of the group returns when it is not 0.
    u64 failed;
};

/// What one block remembers between calls.
struct alignas(32) Turn {
    /// The last finished epoch, and kBusy while a kernel is inside.
    u64 word;
};
constexpr u64 kBusy = 1ull << 32;

/// This rank's own memory between calls; followed by `Turn turns[blocks]`. Zeroed by the host once.
struct alignas(64) State {
    /// Calls started so far: block 0 counts.
    u64 sequence;
    /// Taken by the thread that writes the report.
    u32 claimed;
};

/// What went wrong.
enum Failure : u32 {
    /// Nobody came within the deadline; `missing` says who.
    kTimeout = 1,
    /// The host ordered all kernels to stop.
    kAborted = 2,
    /// Two kernels of one group ran at once on this rank; `missing` is this rank.
    kOverlap = 3,
    /// The call does not fit the arena, or the launch does not fit the group: a mistake of the host; `missing` is this
    /// rank.
    kBadCall = 4,
    /// The host knows that `missing` will not come.
    kGone = 5,
};

/// `Report::orders`, whose lower bits name ranks: nobody waits for those any more.
constexpr u64 kStop = 1ull << 63;
constexpr u32 kRankMask = (1u << kMaxWorld) - 1;

/// What host and kernels tell each other, in pinned host memory; one per rank and group.
struct alignas(64) Report {
    /// Host to kernels: kStop ends every wait, bit r every wait for rank r.
    u64 orders;
    u32 unused_[14];
    /// Kernels to host: not 0 once the fields below are there (released; read it with acquire). Written once.
    u32 written;
    /// A `Failure`.
    u32 kind;
    /// One bit for each missing rank.
    u32 missing;
    /// The rank that noticed first.
    u32 reporter;
    /// Calls of this group started up to and including the one that failed, modulo 2^32.
    u32 sequence;
    /// `Params::group`.
    u32 group;
    u32 unused2_[10];
};
static_assert(sizeof(Report) == 128, "the host maps it");

}  // namespace tutti
