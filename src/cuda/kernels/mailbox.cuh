// Push: payload that carries its own readiness. A rank writes straight into the slot that the receiver keeps for it,
// and each 8-byte word holds 4 bytes of payload beside the 4 bytes of the epoch. Whoever finds the epoch in a word has
// its payload: no flag to wait for, no fence, one trip over the wire. README.md says why words with an epoch and not a
// marker value in the payload, and why a slot may be written again two epochs later.
#pragma once

#include "session.cuh"

namespace tutti {

/// The slots of one block in one epoch.
class Mailbox {
   public:
    TUTTI_DEVICE explicit Mailbox(Session& session) : session_(session) {
        const Params& params = session.params;
        slot_ = 2 * params.push_vectors * sizeof(Line);
        first_ = params.push_at + u64(session.line()) * params.world * slot_;
    }

    /// Puts vector `index` into this rank's slot at `peer`.
    TUTTI_DEVICE void send(u32 peer, u32 index, const Vector& v) const {
        const u64 at = place(peer, session_.params.rank, index);
        const u64 epoch = u64(session_.epoch) << 32;
        ptx::store_line_relaxed_sys(at, Line{epoch | v.word[0], epoch | v.word[1]});
        ptx::store_line_relaxed_sys(at + kHigh, Line{epoch | v.word[2], epoch | v.word[3]});
    }

    /// The same vector to every peer.
    TUTTI_DEVICE void send_to_all(u32 index, const Vector& v) const {
#pragma unroll 1
        for (u32 turn = 0; turn + 1 < session_.params.world; turn++) send(session_.peer(turn), index, v);
    }

    /// The same vectors to every peer.
    TUTTI_DEVICE void send_to_all(const Batch& batch) const {
#pragma unroll 1
        for (u32 turn = 0; turn + 1 < session_.params.world; turn++) {
            const u32 peer = session_.peer(turn);
            batch.each([&](u32, u32 index, const Vector& v) { send(peer, index, v); });
        }
    }

    /// To every peer the block's `count` vectors at `place_of(peer, index)`.
    template <class PlaceOf>
    TUTTI_DEVICE void send_each(u32 count, PlaceOf place_of) const {
        const u32 peers = session_.params.world - 1;
#pragma unroll 1
        for (u32 first = 0; first < peers; first += kAtOnce) {
            const u32 turns = ((1u << peers) - 1) >> first & kAllAtOnce;
            in_batches(count, Fan(peers - first), turns,
                       [&](u32 turn, u32 i) { return place_of(session_.peer(first + turn), i); },
                       [&](const Batch& batch) {
                           batch.each([&](u32 turn, u32 i, const Vector& v) { send(session_.peer(first + turn), i, v); });
                       });
        }
    }

    /// Waits for vector `index` of the ranks first + i whose bit i is set in `wanted`; the other `v[i]` mean nothing.
    TUTTI_DEVICE bool take(u32 first, u32 wanted, u32 index, Vector (&v)[kAtOnce]) const {
        u64 at = place(session_.params.rank, first, index);
        while (true) {
            ptx::compute_anew(at);
            Line low[kAtOnce], high[kAtOnce];
#pragma unroll
            for (u32 i = 0; i < kAtOnce; i++) {
                const bool want = (wanted >> i & 1) != 0;
                low[i] = ptx::load_line_relaxed_sys_if<0>(want, at + i * slot_);
                high[i] = ptx::load_line_relaxed_sys_if<kHigh>(want, at + i * slot_);
            }
            u32 missing = 0;
#pragma unroll
            for (u32 i = 0; i < kAtOnce; i++) missing |= u32(is_late(low[i], high[i])) << i;
            missing &= wanted;
            if (missing == 0) {
#pragma unroll
                for (u32 i = 0; i < kAtOnce; i++) {
                    v[i] = Vector{{u32(low[i].low), u32(low[i].high), u32(high[i].low), u32(high[i].high)}};
                }
                return true;
            }
            if (!session_.watch.again(missing << first)) return false;
        }
    }

    /// Waits for vector `index` of the peers among first .. first + kAtOnce - 1; `own` is this rank's.
    TUTTI_DEVICE bool take_all(u32 first, u32 index, const Vector& own, Vector (&v)[kAtOnce]) const {
        if (!take(first, session_.peers_from(first), index, v)) return false;
#pragma unroll
        for (u32 i = 0; i < kAtOnce; i++) {
            if (first + i == session_.params.rank) v[i] = own;
        }
        return true;
    }

    /// Waits for vector `index` of the peers in `ranks` (one bit each), and stores each at `place_of(rank)`.
    template <class PlaceOf>
    TUTTI_DEVICE bool deliver(u32 ranks, u32 index, PlaceOf place_of) const {
#pragma unroll 1
        for (u32 first = 0; first < session_.params.world; first += kAtOnce) {
            const u32 wanted = ranks >> first & kAllAtOnce;
            Vector v[kAtOnce];
            if (!take(first, wanted, index, v)) return false;
            store_each(first, wanted, v, place_of);
        }
        return true;
    }

   private:
    /// Whether a word of either line is not of this epoch.
    TUTTI_DEVICE bool is_late(const Line& a, const Line& b) const {
        const u32 epoch = session_.epoch;
        return ((u32(a.low >> 32) ^ epoch) | (u32(a.high >> 32) ^ epoch) | (u32(b.low >> 32) ^ epoch) |
                (u32(b.high >> 32) ^ epoch)) != 0;
    }
    /// The lower line of a vector. Lines stand in groups, the lower lines of 32 vectors before their upper lines, so
    /// that a warp writes and reads without gaps.
    TUTTI_DEVICE u64 place(u32 owner, u32 sender, u32 index) const {
        const u32 line = index / kGroup * (2 * kGroup) + index % kGroup;
        return session_.params.arena[owner] + first_ + sender * slot_ + line * u32(sizeof(Line));
    }

    static constexpr u32 kGroup = 32;
    static constexpr u32 kHigh = kGroup * sizeof(Line);

    Session& session_;
    /// Bytes from the start of an arena to the first slot of this block in this epoch.
    u64 first_;
    /// Bytes of one slot.
    u32 slot_;
};

}  // namespace tutti
