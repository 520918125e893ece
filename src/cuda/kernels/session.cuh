// A block's part in one call: its epoch, its deadline, and the word that keeps two kernels apart.
//
// The epoch lives in device memory and is advanced by the destructor alone, so a kernel cannot forget it, a replayed
// graph finds it where the last call left it, and a failed call leaves it as it was. Everything a peer could get wrong
// ends in `Watch::fail`, which is bounded, says who is missing, and makes every later kernel of the group return.
#pragma once

#include "memory.cuh"

namespace tutti {

/// Polls between two looks at the clock and at the failure word: a poll takes about a microsecond at most.
constexpr u32 kPollsPerLook = 128;
/// Nanoseconds between two looks at the host's orders, which lie behind PCIe.
constexpr u64 kHostLookNs = 1000000;

/// The epoch after `epoch`. 0 and 1 are never used: memory that the host zeroed, or that `Session` cleared at the
/// wrap, then holds no valid epoch; and skipping both keeps odd and even taking turns across the wrap.
TUTTI_DEVICE u32 next_epoch(u32 epoch) {
    const u32 next = epoch + 1;
    return next < 2 ? 2 : next;
}

/// One rank's payload, as this block reads it.
struct Source {
    /// This block's first vector of part 0.
    u64 at;
    /// Bytes from there to its first vector of part 1.
    u64 stride;
};

// Places of ranks are worked out by the group of kAtOnce, also of ranks that there are not.
static_assert(kMaxWorld % kAtOnce == 0, "every rank of a group has a source");

/// What the threads of a block share.
struct Shared {
    u32 epoch;
    u32 stop;
    /// Where each rank's payload lies; see exchange.cuh.
    Source source[kMaxWorld];
};

TUTTI_DEVICE Arena* arena_of(const Params& params, u32 rank) { return reinterpret_cast<Arena*>(params.arena[rank]); }
TUTTI_DEVICE State* state_of(const Params& params) { return reinterpret_cast<State*>(params.state); }
TUTTI_DEVICE Report* report_of(const Params& params) { return reinterpret_cast<Report*>(params.report); }
TUTTI_DEVICE Turn* turn_of(const Params& params) {
    return reinterpret_cast<Turn*>(params.state + sizeof(State)) + ptx::block();
}

/// Bounds every wait of one thread.
class Watch {
   public:
    TUTTI_DEVICE explicit Watch(const Params& params) : params_(params) {}

    /// Asked after each fruitless poll, with one bit for each rank still missing; false: give up.
    TUTTI_DEVICE bool again(u32 missing) {
        if (failed_) return false;
        if (++polls_ % kPollsPerLook == 0) look(missing);
        if (started_ == 0) {
            ptx::between_polls();
        } else {
            ptx::nap();
        }
        return !failed_;
    }

    /// Gives up; every thread of the group on this rank sees it at its next look. The first failure stays.
    TUTTI_DEVICE void fail(Failure kind, u32 missing) {
        const u32 sequence = u32(ptx::load_relaxed_gpu(&state_of(params_)->sequence));
        const u64 cause = u64(kind) << 56 | u64(params_.rank) << 48 | u64(missing & kRankMask) << 32 | sequence;
        ptx::compare_and_swap_sys(&arena_of(params_, params_.rank)->failed, 0, cause);
        failed_ = true;
    }

    /// Gives up because of a failure that is recorded already.
    TUTTI_DEVICE void give_up() { failed_ = true; }

    /// After this thread gave up: tells the host and the peers, once for all threads.
    TUTTI_DEVICE void settle() const {
        if (ptx::exchange_gpu(&state_of(params_)->claimed, 1) != 0) return;
        const u64 cause = ptx::load_relaxed_sys(&arena_of(params_, params_.rank)->failed);
        Report* report = report_of(params_);
        ptx::store_relaxed_sys(&report->kind, u32(cause >> 56));
        ptx::store_relaxed_sys(&report->reporter, u32(cause >> 48) & 0xff);
        ptx::store_relaxed_sys(&report->missing, u32(cause >> 32) & kRankMask);
        ptx::store_relaxed_sys(&report->sequence, u32(cause));
        ptx::store_relaxed_sys(&report->group, params_.group);
        ptx::store_release_sys(&report->written, 1);
#pragma unroll 1
        for (u32 peer = 0; peer < params_.world; peer++) {
            if (peer != params_.rank) ptx::store_relaxed_sys(&arena_of(params_, peer)->failed, cause);
        }
    }

    TUTTI_DEVICE bool failed() const { return failed_; }

   private:
    TUTTI_DEVICE void look(u32 missing) {
        if (ptx::load_relaxed_sys(&arena_of(params_, params_.rank)->failed) != 0) return give_up();
        const u64 now = ptx::clock_ns();
        if (started_ == 0) started_ = looked_ = now;
        if (now - started_ >= params_.timeout_ns) return fail(kTimeout, missing);
        if (now - looked_ < kHostLookNs) return;
        looked_ = now;
        const u64 orders = ptx::load_relaxed_sys(&report_of(params_)->orders);
        if ((orders & kStop) != 0) return fail(kAborted, missing);
        // What a rank sent before it went is there by now; so only who was gone at the last look is given up.
        if ((gone_ & missing) != 0) return fail(kGone, gone_ & missing);
        gone_ = u32(orders) & kRankMask;
    }

    const Params& params_;
    u64 started_ = 0;
    u64 looked_ = 0;
    u32 polls_ = 0;
    u32 gone_ = 0;
    bool failed_ = false;
};

/// One block in one call. All threads of the block construct it and leave through its destructor; see `in_session`.
/// Between the two, every thread reaches the same barriers whether or not it failed.
class Session {
   public:
    TUTTI_DEVICE Session(const Params& params, u32 vectors)
        : params(params), span(vectors), watch(params), shared_(ptx::block_shared<Shared>()) {
        if (!launch_fits()) {
            if (ptx::block() == 0 && ptx::thread() == 0) watch.fail(kBadCall, 1u << params.rank);
            return;
        }
        if (span.count == 0) return;
        ptx::wait_for_prerequisites();
        if (ptx::thread() == 0) enter();
        ptx::block_sync();
        epoch = shared_.epoch;
        open_ = shared_.stop == 0;
    }

    /// Ends the epoch, unless a thread of this block failed. From here on the output is complete, as far as this
    /// block is concerned, and the next kernel may be launched.
    TUTTI_DEVICE ~Session() {
        if (watch.failed()) watch.settle();
        if (!open_) return;
        if (ptx::block_any(watch.failed())) return;
        if (epoch >= 0xfffffffeu) forget_last_cycle();
        if (ptx::thread() == 0) ptx::store_relaxed_gpu(&turn_of(params)->word, epoch);
        ptx::launch_dependents();
    }

    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    /// Whether there is something to do for this block. If not, nothing was touched.
    TUTTI_DEVICE bool open() const { return open_; }

    /// For facts that all threads see alike: a call that is larger than the arena fails here.
    TUTTI_DEVICE bool fits(u32 vectors, u32 capacity) {
        if (vectors <= capacity) return true;
        if (ptx::thread() == 0) watch.fail(kBadCall, 1u << params.rank);
        return false;
    }

    /// Whether no thread of the block has failed; all threads must ask.
    TUTTI_DEVICE bool alive() const { return !ptx::block_any(watch.failed()); }

    /// The board of this block in a rank's arena, for this epoch.
    TUTTI_DEVICE Board* board(u32 rank) const {
        return reinterpret_cast<Board*>(params.arena[rank] + sizeof(Arena)) + line();
    }
    /// Which of the two copies of everything that is written for this block in this epoch.
    TUTTI_DEVICE u32 line() const { return 2 * ptx::block() + epoch % 2; }

    /// One bit for each of the ranks first .. first + kAtOnce - 1 that is a peer.
    TUTTI_DEVICE u32 peers_from(u32 first) const { return peers() >> first & kAllAtOnce; }
    /// One bit for each of the ranks first .. first + kAtOnce - 1 that there is.
    TUTTI_DEVICE u32 ranks_from(u32 first) const { return ((1u << params.world) - 1) >> first & kAllAtOnce; }
    /// One bit for each peer.
    TUTTI_DEVICE u32 peers() const { return ((1u << params.world) - 1) & ~(1u << params.rank); }

    /// The peers in the order in which this rank writes to them, 0 .. world - 2: each rank begins with the one after its
    /// own, so that not all write to the same one.
    TUTTI_DEVICE u32 peer(u32 turn) const {
        const u32 rank = params.rank + 1 + turn;
        return rank < params.world ? rank : rank - params.world;
    }

    TUTTI_DEVICE Shared& shared() { return shared_; }

    const Params& params;
    const Span span;
    Watch watch;
    u32 epoch = 0;

   private:
    TUTTI_DEVICE bool launch_fits() const {
        return ptx::blocks() <= params.blocks && ptx::threads() >= params.world && params.bytes <= kMostBytes;
    }

    TUTTI_DEVICE void enter() {
        State* state = state_of(params);
        const u64 turn = ptx::or_gpu(&turn_of(params)->word, kBusy);
        const u64 failed = ptx::load_relaxed_sys(&arena_of(params, params.rank)->failed);
        if (failed != 0) {
            watch.give_up();
        } else if ((turn & kBusy) != 0) {
            watch.fail(kOverlap, 1u << params.rank);
        } else if (ptx::block() == 0) {
            ptx::store_relaxed_gpu(&state->sequence, ptx::load_relaxed_gpu(&state->sequence) + 1);
        }
        shared_.stop = watch.failed();
        shared_.epoch = next_epoch(u32(turn));
    }

    /// At the last even and the last odd epoch before the wrap: clears what this block was sent, so that no word of
    /// this cycle can be taken for one of the next. No peer writes here before it has heard this block's next epoch.
    TUTTI_DEVICE void forget_last_cycle() const {
        const u64 mine = params.arena[params.rank];
        const u64 slots = u64(2) * params.world * params.push_vectors;
        clear(reinterpret_cast<u64>(board(params.rank)), sizeof(Board) / sizeof(Line));
        clear(mine + params.push_at + line() * slots * sizeof(Line), slots);
        ptx::fence_sys();
        ptx::block_sync();
    }
    TUTTI_DEVICE static void clear(u64 at, u64 lines) {
#pragma unroll 1
        for (u64 i = ptx::thread(); i < lines; i += ptx::threads()) {
            ptx::store_line_relaxed_sys(at + i * sizeof(Line), Line{0, 0});
        }
    }

    Shared& shared_;
    bool open_ = false;
};

/// Runs `body(session)` as one call; `vectors` is what all blocks of this rank exchange with one peer. However the body
/// returns, all threads meet again in the one place where the session ends.
template <class Body>
TUTTI_DEVICE void in_session(const Params& params, u32 vectors, Body body) {
    Session session(params, vectors);
    if (session.open()) body(session);
}

}  // namespace tutti
