// Vectors of 16 bytes at any place: which ones a block handles, and how one is read and written where memory is not
// aligned or ends in the middle of it.
#pragma once

#include "ptx.cuh"

namespace tutti {

/// Vectors that hold so many bytes; one even if there are none, so that every call has something to send.
TUTTI_DEVICE u32 vectors_of(u64 bytes) {
    const u64 vectors = (bytes + kVectorBytes - 1) / kVectorBytes;
    return vectors == 0 ? 1 : (vectors > 0xffffffffu ? 0xffffffffu : u32(vectors));
}

/// Vectors of one rank's part, when `vectors` are shared out among all ranks.
TUTTI_DEVICE u32 part_of(u32 vectors, u32 world) { return (vectors - 1) / world + 1; }

/// Vectors that one thread has in flight, from as many ranks or places: what registers allow. A trip to memory takes the
/// better part of a microsecond, so a thread that waited for each vector would leave most of the wire idle.
constexpr u32 kAtOnce = 8;
constexpr u32 kAllAtOnce = (1u << kAtOnce) - 1;

/// The vectors that this block handles: the same ones on every rank, because grid and size are the same.
struct Span {
    u32 first;
    u32 count;
    /// What the first blocks handle; only the last one may have less.
    u32 per_block;

    TUTTI_DEVICE explicit Span(u32 vectors) {
        per_block = (vectors - 1) / ptx::blocks() + 1;
        const u64 begin = u64(per_block) * ptx::block();
        first = u32(begin);
        count = begin >= vectors ? 0 : (vectors - first < per_block ? vectors - first : per_block);
    }
};

/// One vector in memory, of which only the first `valid` bytes exist.
struct Place {
    u64 at;
    u32 valid;

    /// Whether it can be moved at once.
    TUTTI_DEVICE bool whole() const { return valid == kVectorBytes && at % kVectorBytes == 0; }
    /// The bytes that exist, zeros behind them; nothing else is read.
    TUTTI_DEVICE Vector load() const;
    TUTTI_DEVICE void store(const Vector& v) const;
    /// The same, byte by byte if need be.
    TUTTI_DEVICE Vector load_pieces() const;
    TUTTI_DEVICE void store_pieces(const Vector& v) const;
};

/// A run of bytes, seen as vectors of which the last may be cut short.
struct Bytes {
    u64 at;
    u64 size;

    TUTTI_DEVICE u32 valid(u32 index) const {
        const u64 begin = u64(index) * kVectorBytes;
        return begin >= size ? 0 : (size - begin < kVectorBytes ? u32(size - begin) : kVectorBytes);
    }
    TUTTI_DEVICE Place operator[](u32 index) const { return {at + u64(index) * kVectorBytes, valid(index)}; }
};

namespace detail {

template <u32 kPiece>
TUTTI_DEVICE Vector load_pieces(u64 at, u32 valid) {
    Vector v;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        v.word[i] = 0;
#pragma unroll
        for (u32 byte = 0; byte < 4; byte += kPiece) {
            if (4 * i + byte < valid) v.word[i] |= ptx::load_piece<kPiece>(at + 4 * i + byte) << (8 * byte);
        }
    }
    return v;
}

template <u32 kPiece>
TUTTI_DEVICE void store_pieces(u64 at, u32 valid, const Vector& v) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
#pragma unroll
        for (u32 byte = 0; byte < 4; byte += kPiece) {
            if (4 * i + byte < valid) ptx::store_piece<kPiece>(at + 4 * i + byte, v.word[i] >> (8 * byte));
        }
    }
}

/// From the last byte to the first, each of which pushes the others up.
TUTTI_DEVICE Vector load_single_bytes(u64 at, u32 valid) {
    Vector v{};
#pragma unroll 1
    for (u32 byte = valid; byte-- > 0;) {
        v.word[3] = v.word[3] << 8 | v.word[2] >> 24;
        v.word[2] = v.word[2] << 8 | v.word[1] >> 24;
        v.word[1] = v.word[1] << 8 | v.word[0] >> 24;
        v.word[0] = v.word[0] << 8 | ptx::load_piece<1>(at + byte);
    }
    return v;
}

/// From the first byte to the last, each of which pulls the others down.
TUTTI_DEVICE void store_single_bytes(u64 at, u32 valid, Vector v) {
#pragma unroll 1
    for (u32 byte = 0; byte < valid; byte++) {
        ptx::store_piece<1>(at + byte, v.word[0]);
        v.word[0] = v.word[0] >> 8 | v.word[1] << 24;
        v.word[1] = v.word[1] >> 8 | v.word[2] << 24;
        v.word[2] = v.word[2] >> 8 | v.word[3] << 24;
        v.word[3] = v.word[3] >> 8;
    }
}

}  // namespace detail

TUTTI_DEVICE Vector Place::load_pieces() const {
    const u32 low = u32(at) | valid;
    if (low % 4 == 0) return detail::load_pieces<4>(at, valid);
    if (low % 2 == 0) return detail::load_pieces<2>(at, valid);
    return detail::load_single_bytes(at, valid);
}

TUTTI_DEVICE void Place::store_pieces(const Vector& v) const {
    const u32 low = u32(at) | valid;
    if (low % 4 == 0) {
        detail::store_pieces<4>(at, valid, v);
    } else if (low % 2 == 0) {
        detail::store_pieces<2>(at, valid, v);
    } else {
        detail::store_single_bytes(at, valid, v);
    }
}

TUTTI_DEVICE Vector Place::load() const { return whole() ? ptx::load_vector(at) : load_pieces(); }

TUTTI_DEVICE void Place::store(const Vector& v) const {
    if (whole()) {
        ptx::store_vector(at, v);
    } else {
        store_pieces(v);
    }
}

/// Loads v[i] from `place_of(first + i)` where bit i is set in `wanted`; the others are zero. All places are asked for: to say
/// where a vector is must not need that it is there.
template <class PlaceOf>
TUTTI_DEVICE void load_each(u32 first, u32 wanted, Vector (&v)[kAtOnce], PlaceOf place_of) {
    u32 pieces = 0;
#pragma unroll
    for (u32 i = 0; i < kAtOnce; i++) {
        const bool is_wanted = (wanted >> i & 1) != 0;
        const Place from = place_of(first + i);
        v[i] = ptx::load_vector_if(is_wanted && from.whole(), from.at);
        pieces |= u32(is_wanted && !from.whole()) << i;
    }
#pragma unroll 1
    for (u32 rank = 0; pieces >> rank != 0; rank++) {
        if ((pieces >> rank & 1) == 0) continue;
        const Vector one = place_of(first + rank).load_pieces();
#pragma unroll
        for (u32 i = 0; i < kAtOnce; i++) {
            if (i == rank) v[i] = one;
        }
    }
}

/// Stores v[i] at `place_of(first + i)` where bit i is set in `wanted`.
template <class PlaceOf>
TUTTI_DEVICE void store_each(u32 first, u32 wanted, const Vector (&v)[kAtOnce], PlaceOf place_of) {
#pragma unroll
    for (u32 i = 0; i < kAtOnce; i++) {
        if ((wanted >> i & 1) == 0) continue;
        const Place to = place_of(first + i);
        if (!to.whole()) continue;
        ptx::store_vector(to.at, v[i]);
        wanted &= ~(1u << i);
    }
#pragma unroll 1
    for (u32 rank = 0; wanted != 0; rank++, wanted >>= 1) {
        if ((wanted & 1) == 0) continue;
        Vector one = v[0];
#pragma unroll
        for (u32 i = 1; i < kAtOnce; i++) {
            if (i == rank) one = v[i];
        }
        place_of(first + rank).store_pieces(one);
    }
}

/// How a thread shares out the vectors it has in flight: the fewer ranks they come from, the more of each.
class Fan {
   public:
    /// For so many ranks: 2, 4 or 8 places in a row are for one vector of each, the next ones for a vector further on.
    TUTTI_DEVICE explicit Fan(u32 ranks) : shift_(ranks <= 2 ? 1 : (ranks <= 4 ? 2 : 3)) {}
    /// For vectors from one place.
    TUTTI_DEVICE static Fan single() { return Fan(); }

    TUTTI_DEVICE u32 rank(u32 i) const { return i & (ranks() - 1); }
    TUTTI_DEVICE u32 step(u32 i) const { return i >> shift_; }
    TUTTI_DEVICE u32 steps() const { return kAtOnce >> shift_; }
    TUTTI_DEVICE u32 ranks() const { return 1u << shift_; }
    /// Keeps the compiler from having an address for each place in registers all the time.
    TUTTI_DEVICE void compute_anew() { ptx::compute_anew(shift_); }

   private:
    TUTTI_DEVICE Fan() : shift_(0) {}
    u32 shift_;
};

/// Vectors of one block that a thread has in flight: v[i] is that of rank `fan.rank(i)` at `index(i)`, where bit i is set in
/// `wanted`.
struct Batch {
    Fan fan;
    u32 first;
    u32 wanted;
    Vector v[kAtOnce];

    TUTTI_DEVICE explicit Batch(const Fan& fan) : fan(fan) {}

    TUTTI_DEVICE u32 index(u32 i) const { return first + fan.step(i) * ptx::threads(); }
    /// Those of the ranks in `ranks` (one bit each) that a block with `count` vectors has.
    TUTTI_DEVICE void choose(u32 ranks, u32 count) {
        wanted = 0;
#pragma unroll
        for (u32 i = 0; i < kAtOnce; i++) wanted |= (ranks >> fan.rank(i) & u32(index(i) < count)) << i;
    }

    /// Loads each from `place_of(rank, index)`.
    template <class PlaceOf>
    TUTTI_DEVICE void load(PlaceOf place_of) {
        load_each(0, wanted, v, [&](u32 i) { return place_of(fan.rank(i), index(i)); });
    }
    /// Stores each at `place_of(rank, index)`.
    template <class PlaceOf>
    TUTTI_DEVICE void store(PlaceOf place_of) const {
        store_each(0, wanted, v, [&](u32 i) { return place_of(fan.rank(i), index(i)); });
    }
    /// Calls `use(rank, index, vector)` for each.
    template <class Use>
    TUTTI_DEVICE void each(Use use) const {
#pragma unroll
        for (u32 i = 0; i < kAtOnce; i++) {
            if ((wanted >> i & 1) != 0) use(fan.rank(i), index(i), v[i]);
        }
    }
};

/// Loads this thread's vectors of the `count` that a block has, for each rank in `ranks` (one bit each, kAtOnce at most)
/// those at `place_of(rank, index)`, and hands them to `use(batch)`, as many at a time as may be in flight.
template <class PlaceOf, class Use>
TUTTI_DEVICE void in_batches(u32 count, const Fan& fan, u32 ranks, PlaceOf place_of, Use use) {
    Batch batch(fan);
#pragma unroll 1
    for (batch.first = ptx::thread(); batch.first < count; batch.first += fan.steps() * ptx::threads()) {
        batch.fan.compute_anew();
        batch.choose(ranks, count);
        batch.load(place_of);
        use(batch);
    }
}

/// The same for vectors from one place: `place_of(index)`.
template <class PlaceOf, class Use>
TUTTI_DEVICE void in_batches(u32 count, PlaceOf place_of, Use use) {
    Batch batch(Fan::single());
#pragma unroll 1
    for (batch.first = ptx::thread(); batch.first < count; batch.first += kAtOnce * ptx::threads()) {
        batch.choose(1, count);
        batch.load([&](u32, u32 i) { return place_of(i); });
        use(batch);
    }
}

}  // namespace tutti
