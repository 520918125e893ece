// What the elements are and what an operation does with them: fp32 for 16-bit floats, integers as they are, always in
// rank order, rounded or divided once at the end. The same bits as the reductions on the CPU, but for NaN payloads.
//
// An element type says how a vector is unpacked into lanes and packed again, and what happens to one lane. Signed and
// unsigned integers share their kernels: they differ in the sign bit, which `flip` turns before and after comparisons
// where needed, and in the division.
#pragma once

#include "session.cuh"

namespace tutti {

/// One lane of a float type.
struct FloatLane {
    using Value = float;
    TUTTI_DEVICE static u32 flip(u32) { return 0; }
    TUTTI_DEVICE static float add(float a, float b) { return ptx::add(a, b); }
    TUTTI_DEVICE static float greater(float a, float b) { return ptx::max_nan(a, b); }
    TUTTI_DEVICE static float lesser(float a, float b) { return ptx::min_nan(a, b); }
    TUTTI_DEVICE static float divide(float sum, u32 ranks, bool) { return ptx::divide(sum, float(ranks)); }
};

struct Float32 : FloatLane {
    static constexpr u32 kLanes = 4;
    TUTTI_DEVICE static void unpack(const Vector& v, u32, float (&x)[4]) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) x[i] = ptx::bits_to_float(v.word[i]);
    }
    TUTTI_DEVICE static Vector pack(const float (&x)[4], u32) {
        Vector v;
#pragma unroll
        for (u32 i = 0; i < 4; i++) v.word[i] = ptx::float_to_bits(x[i]);
        return v;
    }
};

struct Float16 : FloatLane {
    static constexpr u32 kLanes = 8;
    TUTTI_DEVICE static void unpack(const Vector& v, u32, float (&x)[8]) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) ptx::half2_to_floats(v.word[i], x[2 * i], x[2 * i + 1]);
    }
    TUTTI_DEVICE static Vector pack(const float (&x)[8], u32) {
        Vector v;
#pragma unroll
        for (u32 i = 0; i < 4; i++) v.word[i] = ptx::floats_to_half2(x[2 * i], x[2 * i + 1]);
        return v;
    }
};

struct Bfloat16 : FloatLane {
    static constexpr u32 kLanes = 8;
    TUTTI_DEVICE static void unpack(const Vector& v, u32, float (&x)[8]) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            x[2 * i] = ptx::bits_to_float(v.word[i] << 16);
            x[2 * i + 1] = ptx::bits_to_float(v.word[i] & 0xffff0000u);
        }
    }
    TUTTI_DEVICE static Vector pack(const float (&x)[8], u32) {
        Vector v;
#pragma unroll
        for (u32 i = 0; i < 4; i++) v.word[i] = ptx::floats_to_bfloat2(x[2 * i], x[2 * i + 1]);
        return v;
    }
};

TUTTI_DEVICE bool compares(u32 op) { return (op & kOpMask) == kMax || (op & kOpMask) == kMin; }

/// Four 8-bit integers to a lane. Bytes are added and compared without leaving the word: PTX has instructions for that,
/// but the assembler of CUDA 12.2 dies of them.
struct Int8 {
    using Value = u32;
    static constexpr u32 kLanes = 4;
    static constexpr u32 kSigns = 0x80808080u;

    /// Comparisons are unsigned here; signed bytes have their sign bits turned for them.
    TUTTI_DEVICE static u32 flip(u32 op) { return compares(op) && (op & kUnsigned) == 0 ? kSigns : 0; }
    TUTTI_DEVICE static void unpack(const Vector& v, u32 flip, u32 (&x)[4]) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) x[i] = v.word[i] ^ flip;
    }
    TUTTI_DEVICE static Vector pack(const u32 (&x)[4], u32 flip) {
        return Vector{{x[0] ^ flip, x[1] ^ flip, x[2] ^ flip, x[3] ^ flip}};
    }
    TUTTI_DEVICE static u32 add(u32 a, u32 b) { return ((a & ~kSigns) + (b & ~kSigns)) ^ ((a ^ b) & kSigns); }
    TUTTI_DEVICE static u32 greater(u32 a, u32 b) { return choose(not_below(a, b), a, b); }
    TUTTI_DEVICE static u32 lesser(u32 a, u32 b) { return choose(not_below(a, b), b, a); }
    TUTTI_DEVICE static u32 divide(u32 sum, u32 ranks, bool is_unsigned) {
        u32 quotients = 0;
#pragma unroll
        for (u32 byte = 0; byte < 32; byte += 8) {
            const i32 wide = is_unsigned ? i32(sum >> byte & 0xff) : i32(i8(sum >> byte));
            quotients |= (u32(wide / i32(ranks)) & 0xff) << byte;
        }
        return quotients;
    }

   private:
    /// All bits of each byte in which a >= b. The lower seven bits are compared by a subtraction that cannot borrow.
    TUTTI_DEVICE static u32 not_below(u32 a, u32 b) {
        const u32 lower = (a | kSigns) - (b & ~kSigns);
        const u32 sign = ((a & ~b) | (~(a ^ b) & lower)) & kSigns;
        return (sign >> 7) * 0xff;
    }
    TUTTI_DEVICE static u32 choose(u32 mask, u32 a, u32 b) { return (a & mask) | (b & ~mask); }
};

struct Int32 {
    using Value = i32;
    static constexpr u32 kLanes = 4;
    TUTTI_DEVICE static u32 flip(u32 op) { return compares(op) && (op & kUnsigned) != 0 ? 0x80000000u : 0; }
    TUTTI_DEVICE static void unpack(const Vector& v, u32 flip, i32 (&x)[4]) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) x[i] = i32(v.word[i] ^ flip);
    }
    TUTTI_DEVICE static Vector pack(const i32 (&x)[4], u32 flip) {
        return Vector{{u32(x[0]) ^ flip, u32(x[1]) ^ flip, u32(x[2]) ^ flip, u32(x[3]) ^ flip}};
    }
    TUTTI_DEVICE static i32 add(i32 a, i32 b) { return i32(u32(a) + u32(b)); }
    TUTTI_DEVICE static i32 greater(i32 a, i32 b) { return a < b ? b : a; }
    TUTTI_DEVICE static i32 lesser(i32 a, i32 b) { return b < a ? b : a; }
    TUTTI_DEVICE static i32 divide(i32 sum, u32 ranks, bool is_unsigned) {
        return is_unsigned ? i32(u32(sum) / ranks) : sum / i32(ranks);
    }
};

struct Int64 {
    using Value = i64;
    static constexpr u32 kLanes = 2;
    TUTTI_DEVICE static u32 flip(u32 op) { return compares(op) && (op & kUnsigned) != 0 ? 0x80000000u : 0; }
    TUTTI_DEVICE static void unpack(const Vector& v, u32 flip, i64 (&x)[2]) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) x[i] = i64(u64(v.word[2 * i + 1] ^ flip) << 32 | v.word[2 * i]);
    }
    TUTTI_DEVICE static Vector pack(const i64 (&x)[2], u32 flip) {
        return Vector{{u32(x[0]), u32(u64(x[0]) >> 32) ^ flip, u32(x[1]), u32(u64(x[1]) >> 32) ^ flip}};
    }
    TUTTI_DEVICE static i64 add(i64 a, i64 b) { return i64(u64(a) + u64(b)); }
    TUTTI_DEVICE static i64 greater(i64 a, i64 b) { return a < b ? b : a; }
    TUTTI_DEVICE static i64 lesser(i64 a, i64 b) { return b < a ? b : a; }
    TUTTI_DEVICE static i64 divide(i64 sum, u32 ranks, bool is_unsigned) {
        return is_unsigned ? i64(u64(sum) / ranks) : sum / i64(ranks);
    }
};

/// One vector's worth of elements on their way through the ranks.
template <class T>
class Total {
   public:
    TUTTI_DEVICE explicit Total(u32 op) : op_(op), flip_(T::flip(op)) {}

    /// Adds the vectors of the ranks first .. first + kAtOnce - 1, as many as there are, rank 0 first. Once the last rank is in,
    /// the result is in the last place.
    TUTTI_DEVICE void add(Vector (&v)[kAtOnce], u32 first, u32 world) {
        const Fan all(kAtOnce);
        if ((op_ & kOpMask) == kMax) {
            fold<kMax>(v, all, first, world);
        } else if ((op_ & kOpMask) == kMin) {
            fold<kMin>(v, all, first, world);
        } else {
            fold<kSum>(v, all, first, world);
        }
    }

    /// The same for vectors that `fan` shares out: each result is in the place of its fan's last rank, whether or not there is
    /// such a rank. The operation is asked for with every vector, as code for each would need more registers than there are.
    TUTTI_DEVICE void add(Vector (&v)[kAtOnce], const Fan& fan, u32 first, u32 world) {
        fold<kEach>(v, fan, first, world);
    }

   private:
    static constexpr u32 kEach = kOpMask;

    template <u32 kOp>
    TUTTI_DEVICE void fold(Vector (&v)[kAtOnce], const Fan& fan, u32 first, u32 world) {
#pragma unroll
        for (u32 i = 0; i < kAtOnce; i++) {
            const u32 rank = first + fan.rank(i);
            if (rank == 0) {
                T::unpack(v[i], flip_, lane_);
            } else if (rank < world) {
                step<kOp>(v[i]);
            }
            // A fan of ranks has two at least: no even place is its last.
            if (i % 2 == 1 && fan.rank(i) + 1 == fan.ranks() && world - first <= kAtOnce) v[i] = finish<kOp>(world);
        }
    }

    template <u32 kOp>
    TUTTI_DEVICE Vector finish(u32 world) {
        if ((kOp == kSum || kOp == kEach) && (op_ & kOpMask) == kAvg) {
#pragma unroll
            for (u32 i = 0; i < T::kLanes; i++) lane_[i] = T::divide(lane_[i], world, (op_ & kUnsigned) != 0);
        }
        return T::pack(lane_, flip_);
    }

    template <u32 kOp>
    TUTTI_DEVICE void step(const Vector& v) {
        if constexpr (kOp == kEach) {
            if ((op_ & kOpMask) == kMax) return step<kMax>(v);
            if ((op_ & kOpMask) == kMin) return step<kMin>(v);
            return step<kSum>(v);
        }
        typename T::Value x[T::kLanes];
        T::unpack(v, flip_, x);
#pragma unroll
        for (u32 i = 0; i < T::kLanes; i++) {
            if constexpr (kOp == kMax) lane_[i] = T::greater(lane_[i], x[i]);
            if constexpr (kOp == kMin) lane_[i] = T::lesser(lane_[i], x[i]);
            if constexpr (kOp == kSum) lane_[i] = T::add(lane_[i], x[i]);
        }
    }

    const u32 op_;
    const u32 flip_;
    typename T::Value lane_[T::kLanes];
};

/// Reduces one vector over all ranks. `bring(first, v)` brings those of the ranks first .. first + kAtOnce - 1, as many
/// as there are, this rank's own among them; or false.
template <class T, class Bring>
TUTTI_DEVICE bool reduce(const Session& session, Bring bring, Vector& result) {
    const Params& params = session.params;
    Total<T> total(params.op);
#pragma unroll 1
    for (u32 first = 0; first < params.world; first += kAtOnce) {
        Vector v[kAtOnce];
        if (!bring(first, v)) return false;
        total.add(v, first, params.world);
        result = v[kAtOnce - 1];
    }
    return true;
}

/// Reduces the block's `count` vectors over all ranks, those of a rank at `place_of(rank, index)`, and hands the results to
/// `use(batch)`, whose ranks mean nothing.
template <class T, class PlaceOf, class Use>
TUTTI_DEVICE void reduce_in_batches(const Session& session, u32 count, PlaceOf place_of, Use use) {
    const Params& params = session.params;
    Batch batch{Fan(params.world)};
#pragma unroll 1
    for (batch.first = ptx::thread(); batch.first < count; batch.first += batch.fan.steps() * ptx::threads()) {
        batch.fan.compute_anew();
        Total<T> total(params.op);
#pragma unroll 1
        for (u32 first = 0; first < params.world; first += kAtOnce) {
            batch.choose(session.ranks_from(first), count);
            batch.load([&](u32 rank, u32 i) { return place_of(first + rank, i); });
            total.add(batch.v, batch.fan, first, params.world);
        }
        batch.choose(1u << (batch.fan.ranks() - 1), count);
        use(batch);
    }
}

}  // namespace tutti
