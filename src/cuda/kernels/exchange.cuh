// Pull: a rank says where its payload lies, and its peers fetch it. The payload is in the rank's stage or in memory
// that all ranks have registered; the flag that says "ready" says which, so readers need not know and ranks may differ.
// A stage has two halves that take turns with the epoch. Registered memory has not, so its owner waits until all peers
// have said "done".
#pragma once

#include "session.cuh"

namespace tutti {

/// The flags of one block in one epoch, and the memory they point to.
class Exchange {
   public:
    /// For `deliver`.
    static constexpr u32 kOwnPart = ~0u;

    TUTTI_DEVICE explicit Exchange(Session& session) : session_(session) {
        const Params& params = session.params;
        stage_ = params.stage_at + u64(session.line()) * params.stage_vectors * kVectorBytes;
    }

    /// A location as peers can use it now: 0, "in my stage", as long as the buffer is not registered.
    TUTTI_DEVICE Location resolve(Location location) const {
        return location != 0 && base(location, session_.params.rank) != 0 ? location : 0;
    }

    /// The stage of this block in this epoch: what a rank means by location 0.
    TUTTI_DEVICE u64 stage(u32 rank) const { return session_.params.arena[rank] + stage_; }

    /// Puts a vector on this rank's stage.
    TUTTI_DEVICE void put(u32 index, const Vector& v) const {
        ptx::store_vector(stage(session_.params.rank) + u64(index) * kVectorBytes, v);
    }

    /// Tells every peer where the payload of this phase is. What the block wrote before is visible to who was told.
    TUTTI_DEVICE void tell(u32 phase, Location mine) const {
        ptx::block_sync();
        const u32 peer = ptx::thread();
        if (!is_peer(peer)) return;
        const u64 epoch = u64(session_.epoch) << 32;
        ptx::store_line_release_sys(&session_.board(peer)->where[phase][session_.params.rank],
                                    Line{epoch | u32(mine), epoch | u32(mine >> 32)});
    }

    /// Waits until every rank in `ranks` (one bit each) has told; false, for all threads alike, if one did not.
    ///
    /// In registered memory this block's vectors start `begin` bytes into a part and parts are `part` bytes apart; in a
    /// stage this block's vectors start at once and parts are `staged_part` bytes apart.
    TUTTI_DEVICE bool ask(u32 phase, u32 ranks, u64 begin, u64 part, u64 staged_part) {
        const u32 peer = ptx::thread();
        if (is_peer(peer) && (ranks >> peer & 1) != 0) {
            const Line* told = &session_.board(session_.params.rank)->where[phase][peer];
            Line line;
            do {
                line = ptx::load_line_acquire_sys(told);
            } while (!(u32(line.low >> 32) == session_.epoch && u32(line.high >> 32) == session_.epoch) &&
                     session_.watch.again(1u << peer));
            if (!session_.watch.failed()) {
                const Location at = u64(u32(line.high)) << 32 | u32(line.low);
                owes_done_ = at != 0;
                session_.shared().source[peer] =
                    at == 0 ? Source{stage(peer), staged_part}
                            : Source{base(at, peer) + (at & ((1ull << kLocationSlotShift) - 1)) + begin, part};
            }
        }
        return session_.alive();
    }

    /// Fetches vector `index` of part `part` of the ranks first + i whose bit i is set in `wanted`; `valid` bytes each.
    TUTTI_DEVICE void fetch(u32 first, u32 wanted, u32 part, u32 index, u32 valid, Vector (&v)[kAtOnce]) const {
        u64 from[kAtOnce];
        u64 low = valid;
#pragma unroll
        for (u32 i = 0; i < kAtOnce; i++) {
            if ((wanted >> i & 1) == 0) continue;
            from[i] = address(first + i, part, index);
            low |= from[i];
        }
        if (low % kVectorBytes == 0 && valid != 0) {
#pragma unroll
            for (u32 i = 0; i < kAtOnce; i++) {
                if ((wanted >> i & 1) != 0) v[i] = ptx::load_vector(from[i]);
            }
            return;
        }
#pragma unroll 1
        for (u32 rank = 0; rank < kAtOnce; rank++) {
            if ((wanted >> rank & 1) == 0) continue;
            const Vector one = Place{address(first + rank, part, index), valid}.load_pieces();
#pragma unroll
            for (u32 i = 0; i < kAtOnce; i++) {
                if (i == rank) v[i] = one;
            }
        }
    }

    /// Copies vector `index` of a part of each rank in `ranks` (one bit each) to `place_of(rank)`: of part `part`, or
    /// of the part that is the rank's own.
    template <class PlaceOf>
    TUTTI_DEVICE void deliver(u32 ranks, u32 index, u32 part, PlaceOf place_of) const {
#pragma unroll 1
        for (u32 rank = 0; rank < session_.params.world; rank++) {
            if ((ranks >> rank & 1) == 0) continue;
            const Place to = place_of(rank);
            to.store(Place{address(rank, part == kOwnPart ? rank : part, index), to.valid}.load());
        }
    }

    /// Ends the reading: peers with registered memory hear that this block is done with it, and if this rank's own
    /// was registered (`mine` is its location), waits until all peers are done.
    TUTTI_DEVICE void finish(Location mine) {
        ptx::block_sync();
        const u32 peer = ptx::thread();
        if (!is_peer(peer)) return;
        if (owes_done_) ptx::store_release_sys(&session_.board(peer)->done[session_.params.rank], session_.epoch);
        if (mine == 0) return;
        const u32* done = &session_.board(session_.params.rank)->done[peer];
        while (ptx::load_acquire_sys(done) != session_.epoch && session_.watch.again(1u << peer)) {
        }
    }

   private:
    TUTTI_DEVICE bool is_peer(u32 rank) const {
        return rank < session_.params.world && rank != session_.params.rank;
    }
    TUTTI_DEVICE u64 address(u32 rank, u32 part, u32 index) const {
        const Source& source = session_.shared().source[rank];
        return source.at + part * source.stride + u64(index) * kVectorBytes;
    }
    /// The start of a registered buffer of `rank`, as mapped here; 0: not registered.
    TUTTI_DEVICE u64 base(Location location, u32 rank) const {
        const u64 row = (location >> kLocationSlotShift) * kMaxWorld + rank;
        return ptx::load_u64(reinterpret_cast<const u64*>(session_.params.table) + row);
    }

    Session& session_;
    u64 stage_;
    bool owes_done_ = false;
};

}  // namespace tutti
