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

    /// A place on this rank's own stage.
    TUTTI_DEVICE Place staged(u32 index) const {
        return {stage(session_.params.rank) + u64(index) * kVectorBytes, kVectorBytes};
    }

    /// Stages the block's `count` vectors of the part for each peer, from `place_of(peer, index)`; parts have `staged_part`
    /// vectors.
    template <class PlaceOf>
    TUTTI_DEVICE void stage_each(u32 count, u32 staged_part, PlaceOf place_of) const {
        copy_each(count, place_of, [&](u32 peer, u32 i) { return staged(peer * staged_part + i); });
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
    /// stage this block's vectors start at once and parts are `staged_part` bytes apart. This rank's own source is what it
    /// sends, laid out like registered memory.
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
        } else if (peer == session_.params.rank) {
            session_.shared().source[peer] = Source{session_.params.send + begin, part};
        }
        return session_.alive();
    }

    /// Where this rank or one that has told has vector `index` of a part, of which `valid` bytes exist.
    TUTTI_DEVICE Place place(u32 rank, u32 part, u32 index, u32 valid) const {
        const Source& source = session_.shared().source[rank];
        return {source.at + part * source.stride + u64(index) * kVectorBytes, valid};
    }

    /// Copies the block's `count` vectors of a part of each peer to `place_of(peer, index)`: of part `part`, or of the part
    /// that is the peer's own.
    template <class PlaceOf>
    TUTTI_DEVICE void deliver(u32 count, u32 part, PlaceOf place_of) const {
        const auto theirs = [&](u32 peer, u32 i) {
            return place(peer, part == kOwnPart ? peer : part, i, place_of(peer, i).valid);
        };
        copy_each(count, theirs, place_of);
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
    /// For each peer the block's `count` vectors at `from(peer, index)` to `to(peer, index)`.
    template <class From, class To>
    TUTTI_DEVICE void copy_each(u32 count, From from, To to) const {
#pragma unroll 1
        for (u32 first = 0; first < session_.params.world; first += kAtOnce) {
            in_batches(count, Fan(session_.params.world - first), session_.peers_from(first),
                       [&](u32 rank, u32 i) { return from(first + rank, i); },
                       [&](const Batch& batch) { batch.store([&](u32 rank, u32 i) { return to(first + rank, i); }); });
        }
    }
    TUTTI_DEVICE bool is_peer(u32 rank) const {
        return rank < session_.params.world && rank != session_.params.rank;
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
