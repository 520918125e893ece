// What the results must be, written down element by element and with nothing taken from the kernels.
#pragma once

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "params.h"

namespace reference {

using namespace tutti;

enum Type { kFloat32, kFloat16, kBfloat16, kInt8, kUint8, kInt32, kUint32, kInt64, kUint64, kTypes };

inline u32 size_of(Type type) {
    constexpr u32 sizes[kTypes] = {4, 2, 2, 1, 1, 4, 4, 8, 8};
    return sizes[type];
}
inline bool is_float(Type type) { return type <= kBfloat16; }

inline float to_float(Type type, u64 bits) {
    float value;
    if (type == kFloat16) {
        const u16 half = u16(bits);
        _Float16 exact;
        std::memcpy(&exact, &half, 2);
        return exact;
    }
    const u32 word = type == kBfloat16 ? u32(bits) << 16 : u32(bits);
    std::memcpy(&value, &word, 4);
    return value;
}

/// To nearest, ties to even: the two neighbours of a value are compared with it.
inline u64 from_float(Type type, float value) {
    u32 word;
    std::memcpy(&word, &value, 4);
    if (type == kFloat32) return word;
    if (type == kFloat16) {
        const _Float16 half = static_cast<_Float16>(value);
        u16 bits;
        std::memcpy(&bits, &half, 2);
        return bits;
    }
    if (std::isnan(value)) return 0x7fc0;
    const u32 below = word >> 16, rest = word & 0xffff;
    return rest > 0x8000 || (rest == 0x8000 && below % 2 == 1) ? below + 1 : below;
}

inline i64 to_signed(Type type, u64 bits) {
    if (type == kInt8) return i8(bits);
    if (type == kInt32) return i32(bits);
    return i64(bits);
}
inline bool is_signed(Type type) { return type == kInt8 || type == kInt32 || type == kInt64; }
inline u64 cut(Type type, u64 bits) { return size_of(type) == 8 ? bits : bits & ((1ull << 8 * size_of(type)) - 1); }

/// `values`: one element of each rank, in rank order.
inline u64 reduce(Type type, u32 op, const std::vector<u64>& values) {
    if (is_float(type)) {
        float total = to_float(type, values[0]);
        for (size_t rank = 1; rank < values.size(); rank++) {
            const float next = to_float(type, values[rank]);
            if (op == kSum || op == kAvg) {
                total = total + next;
            } else if (std::isnan(total) || std::isnan(next)) {
                total = NAN;
            } else {
                const bool next_is_less = next < total || (next == total && std::signbit(next) && !std::signbit(total));
                const bool next_is_more = next > total || (next == total && !std::signbit(next) && std::signbit(total));
                if (op == kMin ? next_is_less : next_is_more) total = next;
            }
        }
        if (op == kAvg) total = total / static_cast<float>(values.size());
        return from_float(type, total);
    }
    u64 total = values[0];
    for (size_t rank = 1; rank < values.size(); rank++) {
        const u64 next = values[rank];
        const bool less = is_signed(type) ? to_signed(type, next) < to_signed(type, total) : next < total;
        if (op == kSum || op == kAvg) {
            total = cut(type, total + next);
        } else if (next != total && (op == kMin) == less) {
            total = next;
        }
    }
    if (op == kAvg) {
        const u64 ranks = values.size();
        total = cut(type, is_signed(type) ? u64(to_signed(type, total) / i64(ranks)) : total / ranks);
    }
    return total;
}

/// Equal bits, or both NaN.
inline bool same(Type type, u64 a, u64 b) {
    if (a == b) return true;
    return is_float(type) && std::isnan(to_float(type, a)) && std::isnan(to_float(type, b));
}

/// Random elements, with more of those that are hard than chance would give.
inline u64 element(Type type, u64 random) {
    const u64 bits = cut(type, random);
    if (!is_float(type)) {
        const u64 sign = 1ull << (8 * size_of(type) - 1);
        const u64 hard[] = {0, 1, cut(type, ~0ull), sign, sign - 1};
        return random >> 60 == 0 ? hard[(random >> 40) % 5] : bits;
    }
    const u32 exponent = type == kFloat32 ? 0x7f800000 : type == kFloat16 ? 0x7c00 : 0x7f80;
    const u32 sign = type == kFloat32 ? 0x80000000 : 0x8000;
    const u64 one = from_float(type, 1.0f);
    const u64 hard[] = {0,           sign,         exponent, exponent | sign, exponent | 1, exponent | sign | 1,
                        exponent - 1, (exponent - 1) | sign, 1,  sign | 1,        one,          one | sign};
    switch (random >> 61) {
        case 0: return hard[(random >> 40) % 12];
        case 1: return bits;
        default: return from_float(type, static_cast<float>(static_cast<i64>(random << 8) >> 40) / 4096.0f);
    }
}

}  // namespace reference
