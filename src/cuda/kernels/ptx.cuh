// The thin layer between the kernels and the machine: everything the kernels need that is not C++, one function for
// one instruction. No kernel contains assembly. With TUTTI_ON_CPU the same functions come from a model that runs on
// the processor, so that the very same kernels can be run under the sanitizers.
//
// Words that another rank reads or writes go only through the `_sys` functions.
#pragma once

#include "params.h"

namespace tutti {
/// Sixteen bytes of payload.
struct alignas(16) Vector {
    u32 word[4];
};
}  // namespace tutti

#if defined(TUTTI_ON_CPU)
#include "ptx_cpu.h"
#else

#define TUTTI_DEVICE __device__ __forceinline__
#define TUTTI_KERNEL(name, fitting) \
    extern "C" __global__ void __launch_bounds__(::tutti::kMaxThreads, fitting) name(const __grid_constant__ ::tutti::Params params)

namespace tutti::ptx {

TUTTI_DEVICE u32 thread() { return threadIdx.x; }
TUTTI_DEVICE u32 threads() { return blockDim.x; }
TUTTI_DEVICE u32 block() { return blockIdx.x; }
TUTTI_DEVICE u32 blocks() { return gridDim.x; }

/// Waits for all threads of the block; what they did before is seen by all after.
TUTTI_DEVICE void block_sync() { __syncthreads(); }
/// As block_sync; whether any thread said so.
TUTTI_DEVICE bool block_any(bool mine) { return __syncthreads_or(mine); }
/// The memory that the threads of a block share. One type per kernel.
template <class T>
TUTTI_DEVICE T& block_shared() {
    __shared__ T shared;
    return shared;
}
/// Waits until the kernels this one was launched behind are complete and their writes are visible.
TUTTI_DEVICE void wait_for_prerequisites() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// Lets the next kernel of the stream start its launch, once all blocks have said so.
TUTTI_DEVICE void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Nanoseconds of a clock that only grows.
TUTTI_DEVICE u64 clock_ns() {
    u64 now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}
/// Makes the compiler derive everything from `value` again, instead of keeping it in registers.
TUTTI_DEVICE void compute_anew(u64& value) { asm volatile("" : "+l"(value)); }
TUTTI_DEVICE void compute_anew(u32& value) { asm volatile("" : "+r"(value)); }
/// Between two polls of one word.
TUTTI_DEVICE void between_polls() {}
/// Between two polls, once the wait is no longer short.
TUTTI_DEVICE void nap() { asm volatile("nanosleep.u32 64;"); }

// ---- payload: this rank's own memory, or a peer's that was acquired before ----

TUTTI_DEVICE Vector load_vector(u64 at) {
    Vector v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "l"(at)
                 : "memory");
    return v;
}
/// Without a branch, so that many are in flight; without `wanted` nothing is read, and the vector is zero. Were it left
/// undefined, or loaded in a branch, the assembler would let the next load wait for this one.
TUTTI_DEVICE Vector load_vector_if(bool wanted, u64 at) {
    Vector v{};
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "+r"(v.word[0]), "+r"(v.word[1]), "+r"(v.word[2]), "+r"(v.word[3])
                 : "l"(at), "r"(u32(wanted))
                 : "memory");
    return v;
}
TUTTI_DEVICE void store_vector(u64 at, const Vector& v) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]),
                 "r"(v.word[3])
                 : "memory");
}
template <u32 kBytes>
TUTTI_DEVICE u32 load_piece(u64 at) {
    u32 piece;
    if constexpr (kBytes == 4) asm volatile("ld.global.u32 %0, [%1];" : "=r"(piece) : "l"(at) : "memory");
    if constexpr (kBytes == 2) asm volatile("ld.global.u16 %0, [%1];" : "=r"(piece) : "l"(at) : "memory");
    if constexpr (kBytes == 1) asm volatile("ld.global.u8 %0, [%1];" : "=r"(piece) : "l"(at) : "memory");
    return piece;
}
template <u32 kBytes>
TUTTI_DEVICE void store_piece(u64 at, u32 piece) {
    if constexpr (kBytes == 4) asm volatile("st.global.u32 [%0], %1;" ::"l"(at), "r"(piece) : "memory");
    if constexpr (kBytes == 2) asm volatile("st.global.u16 [%0], %1;" ::"l"(at), "r"(piece) : "memory");
    if constexpr (kBytes == 1) asm volatile("st.global.u8 [%0], %1;" ::"l"(at), "r"(piece) : "memory");
}
/// A word of this rank that the host writes only between two kernels.
TUTTI_DEVICE u64 load_u64(const u64* at) {
    u64 word;
    asm volatile("ld.global.u64 %0, [%1];" : "=l"(word) : "l"(at) : "memory");
    return word;
}

// ---- words that other ranks, or the host, read or write: system scope ----

/// As load_vector_if.
template <u32 kOffset>
TUTTI_DEVICE Line load_line_relaxed_sys_if(bool wanted, u64 at) {
    Line line{0, 0};
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %3, 0; @p ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2+%4]; }"
                 : "+l"(line.low), "+l"(line.high)
                 : "l"(at), "r"(u32(wanted)), "n"(kOffset)
                 : "memory");
    return line;
}
TUTTI_DEVICE void store_line_relaxed_sys(u64 at, const Line& line) {
    asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(at), "l"(line.low), "l"(line.high) : "memory");
}
TUTTI_DEVICE Line load_line_acquire_sys(const Line* at) {
    Line line;
    asm volatile("ld.acquire.sys.global.v2.u64 {%0, %1}, [%2];"
                 : "=l"(line.low), "=l"(line.high)
                 : "l"(at)
                 : "memory");
    return line;
}
TUTTI_DEVICE void store_line_release_sys(Line* at, const Line& line) {
    asm volatile("st.release.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(at), "l"(line.low), "l"(line.high) : "memory");
}
TUTTI_DEVICE u32 load_acquire_sys(const u32* at) {
    u32 word;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(word) : "l"(at) : "memory");
    return word;
}
TUTTI_DEVICE void store_release_sys(u32* at, u32 word) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(at), "r"(word) : "memory");
}
TUTTI_DEVICE u32 load_relaxed_sys(const u32* at) {
    u32 word;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(word) : "l"(at) : "memory");
    return word;
}
TUTTI_DEVICE u64 load_relaxed_sys(const u64* at) {
    u64 word;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(word) : "l"(at) : "memory");
    return word;
}
TUTTI_DEVICE void store_relaxed_sys(u32* at, u32 word) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(at), "r"(word) : "memory");
}
TUTTI_DEVICE void store_relaxed_sys(u64* at, u64 word) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(at), "l"(word) : "memory");
}
/// Sets a word that was `expected`; returns what it was.
TUTTI_DEVICE u64 compare_and_swap_sys(u64* at, u64 expected, u64 desired) {
    u64 before;
    asm volatile("atom.relaxed.sys.global.cas.b64 %0, [%1], %2, %3;"
                 : "=l"(before)
                 : "l"(at), "l"(expected), "l"(desired)
                 : "memory");
    return before;
}
TUTTI_DEVICE void fence_sys() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

// ---- words of this rank's own kernels: device scope ----

TUTTI_DEVICE u64 load_relaxed_gpu(const u64* at) {
    u64 word;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(at) : "memory");
    return word;
}
TUTTI_DEVICE void store_relaxed_gpu(u64* at, u64 word) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(at), "l"(word) : "memory");
}
TUTTI_DEVICE u64 or_gpu(u64* at, u64 bits) {
    u64 before;
    asm volatile("atom.relaxed.gpu.global.or.b64 %0, [%1], %2;" : "=l"(before) : "l"(at), "l"(bits) : "memory");
    return before;
}
TUTTI_DEVICE u32 exchange_gpu(u32* at, u32 word) {
    u32 before;
    asm volatile("atom.relaxed.gpu.global.exch.b32 %0, [%1], %2;" : "=r"(before) : "l"(at), "r"(word) : "memory");
    return before;
}

// ---- numbers ----

TUTTI_DEVICE float bits_to_float(u32 bits) { return __uint_as_float(bits); }
TUTTI_DEVICE u32 float_to_bits(float value) { return __float_as_uint(value); }
/// NaN if either is; -0 is below +0.
TUTTI_DEVICE float max_nan(float a, float b) {
    float r;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
TUTTI_DEVICE float min_nan(float a, float b) {
    float r;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
TUTTI_DEVICE float add(float a, float b) {
    float r;
    asm("add.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
TUTTI_DEVICE float divide(float a, float b) {
    float r;
    asm("div.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
/// Two halves of a word as fp32, the lower first; exact.
TUTTI_DEVICE void half2_to_floats(u32 word, float& low, float& high) {
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }"
        : "=f"(low), "=f"(high)
        : "r"(word));
}
/// Rounds to nearest even.
TUTTI_DEVICE u32 floats_to_half2(float low, float high) {
    u32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
/// Rounds to nearest even.
TUTTI_DEVICE u32 floats_to_bfloat2(float low, float high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

}  // namespace tutti::ptx

#endif
