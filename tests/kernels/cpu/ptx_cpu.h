// The thin layer of the kernels on a processor: the same functions as in ptx.cuh, made of C++ atomics, so that the
// sanitizers see every access. What cannot be seen here: reordering that x86 does not do (ThreadSanitizer judges by
// happens-before instead), scopes (the text of the PTX is checked for them), and warps that run in lock-step.
//
// A 16-byte store is two 8-byte atomics with a chance for others to run in between, as the memory model allows it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "machine.h"

#define TUTTI_DEVICE inline
#define TUTTI_KERNEL(name, fitting) extern "C" void name(const ::tutti::Params& params)

namespace tutti::ptx {

TUTTI_DEVICE u32 thread() { return machine::lane->thread; }
TUTTI_DEVICE u32 threads() { return machine::lane->threads; }
TUTTI_DEVICE u32 block() { return machine::lane->block; }
TUTTI_DEVICE u32 blocks() { return machine::lane->blocks; }

TUTTI_DEVICE void block_sync() { machine::lane->home->meet(false); }
TUTTI_DEVICE bool block_any(bool mine) { return machine::lane->home->meet(mine); }
template <class T>
TUTTI_DEVICE T& block_shared() {
    static_assert(sizeof(T) <= sizeof(machine::Block::shared), "shared memory of a block");
    return *reinterpret_cast<T*>(machine::lane->home->shared);
}
TUTTI_DEVICE void wait_for_prerequisites() {}
TUTTI_DEVICE void launch_dependents() {}
TUTTI_DEVICE u64 clock_ns() { return machine::clock_ns(); }
TUTTI_DEVICE void compute_anew(u64&) {}
TUTTI_DEVICE void compute_anew(u32&) {}
TUTTI_DEVICE void between_polls() { machine::let_others_run(); }
TUTTI_DEVICE void nap() { machine::let_others_run(); }

TUTTI_DEVICE Vector load_vector(u64 at) {
    Vector v;
    std::memcpy(&v, reinterpret_cast<const void*>(at), sizeof v);
    return v;
}
TUTTI_DEVICE Vector load_vector_if(bool wanted, u64 at) { return wanted ? load_vector(at) : Vector{}; }
TUTTI_DEVICE void store_vector(u64 at, const Vector& v) { std::memcpy(reinterpret_cast<void*>(at), &v, sizeof v); }
template <u32 kBytes>
TUTTI_DEVICE u32 load_piece(u64 at) {
    u32 piece = 0;
    std::memcpy(&piece, reinterpret_cast<const void*>(at), kBytes);
    return piece;
}
template <u32 kBytes>
TUTTI_DEVICE void store_piece(u64 at, u32 piece) {
    std::memcpy(reinterpret_cast<void*>(at), &piece, kBytes);
}
TUTTI_DEVICE u64 load_u64(const u64* at) { return *at; }

namespace detail {
template <int kOrder>
TUTTI_DEVICE Line load_line(const Line* at) {
    Line line;
    machine::maybe_switch();
    line.low = __atomic_load_n(&at->low, kOrder);
    machine::maybe_switch();
    line.high = __atomic_load_n(&at->high, kOrder);
    return line;
}
template <int kOrder>
TUTTI_DEVICE void store_line(Line* at, const Line& line) {
    machine::maybe_switch();
    __atomic_store_n(&at->high, line.high, kOrder);
    machine::maybe_switch();
    __atomic_store_n(&at->low, line.low, kOrder);
}
template <int kOrder, class T>
TUTTI_DEVICE T load(const T* at) {
    machine::maybe_switch();
    return __atomic_load_n(at, kOrder);
}
template <int kOrder, class T>
TUTTI_DEVICE void store(T* at, T word) {
    machine::maybe_switch();
    __atomic_store_n(at, word, kOrder);
}
}  // namespace detail

template <u32 kOffset>
TUTTI_DEVICE Line load_line_relaxed_sys_if(bool wanted, u64 at) {
    if (!wanted) return Line{0, 0};
    return detail::load_line<__ATOMIC_RELAXED>(reinterpret_cast<const Line*>(at + kOffset));
}
TUTTI_DEVICE void store_line_relaxed_sys(u64 at, const Line& line) {
    detail::store_line<__ATOMIC_RELAXED>(reinterpret_cast<Line*>(at), line);
}
TUTTI_DEVICE Line load_line_acquire_sys(const Line* at) { return detail::load_line<__ATOMIC_ACQUIRE>(at); }
TUTTI_DEVICE void store_line_release_sys(Line* at, const Line& line) {
    detail::store_line<__ATOMIC_RELEASE>(at, line);
}
TUTTI_DEVICE u32 load_acquire_sys(const u32* at) { return detail::load<__ATOMIC_ACQUIRE>(at); }
TUTTI_DEVICE void store_release_sys(u32* at, u32 word) { detail::store<__ATOMIC_RELEASE>(at, word); }
TUTTI_DEVICE u32 load_relaxed_sys(const u32* at) { return detail::load<__ATOMIC_RELAXED>(at); }
TUTTI_DEVICE u64 load_relaxed_sys(const u64* at) { return detail::load<__ATOMIC_RELAXED>(at); }
TUTTI_DEVICE void store_relaxed_sys(u32* at, u32 word) { detail::store<__ATOMIC_RELAXED>(at, word); }
TUTTI_DEVICE void store_relaxed_sys(u64* at, u64 word) { detail::store<__ATOMIC_RELAXED>(at, word); }
TUTTI_DEVICE u64 compare_and_swap_sys(u64* at, u64 expected, u64 desired) {
    __atomic_compare_exchange_n(at, &expected, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
TUTTI_DEVICE void fence_sys() {}  // ThreadSanitizer knows no fences; nothing here may depend on one

TUTTI_DEVICE u64 load_relaxed_gpu(const u64* at) { return detail::load<__ATOMIC_RELAXED>(at); }
TUTTI_DEVICE void store_relaxed_gpu(u64* at, u64 word) { detail::store<__ATOMIC_RELAXED>(at, word); }
TUTTI_DEVICE u64 or_gpu(u64* at, u64 bits) { return __atomic_fetch_or(at, bits, __ATOMIC_RELAXED); }
TUTTI_DEVICE u32 exchange_gpu(u32* at, u32 word) { return __atomic_exchange_n(at, word, __ATOMIC_RELAXED); }

TUTTI_DEVICE float bits_to_float(u32 bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
TUTTI_DEVICE u32 float_to_bits(float value) {
    u32 bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
TUTTI_DEVICE float max_nan(float a, float b) {
    if (std::isnan(a) || std::isnan(b)) return bits_to_float(0x7fffffff);
    if (a == b) return std::signbit(a) ? b : a;
    return a < b ? b : a;
}
TUTTI_DEVICE float min_nan(float a, float b) {
    if (std::isnan(a) || std::isnan(b)) return bits_to_float(0x7fffffff);
    if (a == b) return std::signbit(a) ? a : b;
    return a < b ? a : b;
}
TUTTI_DEVICE float add(float a, float b) { return a + b; }
TUTTI_DEVICE float divide(float a, float b) { return a / b; }
TUTTI_DEVICE float half_to_float(u32 bits) {
    const u16 half = u16(bits);
    _Float16 value;
    std::memcpy(&value, &half, 2);
    return float(value);
}
TUTTI_DEVICE u32 float_to_half(float value) {
    const _Float16 half = _Float16(value);
    u16 bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}
TUTTI_DEVICE void half2_to_floats(u32 word, float& low, float& high) {
    low = half_to_float(word);
    high = half_to_float(word >> 16);
}
TUTTI_DEVICE u32 floats_to_half2(float low, float high) { return float_to_half(high) << 16 | float_to_half(low); }
TUTTI_DEVICE u32 float_to_bfloat(float value) {
    const u32 bits = float_to_bits(value);
    if (std::isnan(value)) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
TUTTI_DEVICE u32 floats_to_bfloat2(float low, float high) {
    return float_to_bfloat(high) << 16 | float_to_bfloat(low);
}

}  // namespace tutti::ptx
