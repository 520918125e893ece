//! The loops: one body, compiled once for each instruction set that this processor may have.
//!
//! A chunk of elements is read from every rank before it is written, so the destination may be one of the sources;
//! what is accumulated stays in registers. All paths run the same operations in the same order and give the same
//! bits; only the number of elements in flight differs.

use std::{ops::Range, sync::OnceLock};

use super::{
    codec::{Bf16, Codec, E4m3, E5m2, F16, Integer, Native, Ordered},
    convert::{self, Converter, Number},
    fold::{Accumulate, Avg, Extreme, Fold, Prod, Sum},
};
use crate::dtype::{DType, OPS, Op, REDUCIBLE};

/// One operation on one element type, for one instruction set.
///
/// # Safety
///
/// As for [`super::reduce`]; the instruction set must be there, and `sources` not empty.
pub(super) type Reducer = unsafe fn(sources: &[*const u8], dst: *mut u8, count: usize, divisor: usize);

/// The fastest reducer here; `None` for an element type that cannot be reduced.
#[inline]
pub(super) fn best(dtype: DType, op: Op) -> Option<Reducer> {
    static TABLE: OnceLock<Table> = OnceLock::new();
    let table = TABLE.get_or_init(|| all().next().map_or_else(table::<Portable>, |(_, table)| table));
    Some(table.get(dtype as usize)?[op as usize])
}

/// The reducers of one path, by the numbers of dtype and op.
pub(super) type Table = [[Reducer; OPS.len()]; REDUCIBLE.len()];

/// The paths of this target.
pub(super) const PATHS: usize = if cfg!(target_arch = "x86_64") { 3 } else { 1 };

/// Every path that this processor can run, the fastest first.
pub(super) fn all() -> impl Iterator<Item = (&'static str, Table)> {
    every(&[
        #[cfg(target_arch = "x86_64")]
        table::<Avx512>,
        #[cfg(target_arch = "x86_64")]
        table::<Avx2>,
        table::<Portable>,
    ])
}

/// Of what there is for every path, the fastest first, what this processor can run.
pub(super) fn every<T>(tables: &[fn() -> T; PATHS]) -> impl Iterator<Item = (&'static str, T)> {
    #[cfg(target_arch = "x86_64")]
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
    #[cfg(target_arch = "x86_64")]
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    let paths: [(_, _); PATHS] = [
        #[cfg(target_arch = "x86_64")]
        ("avx512", avx512),
        #[cfg(target_arch = "x86_64")]
        ("avx2", avx2),
        ("portable", true),
    ];
    paths.into_iter().zip(*tables).filter(|((_, is_here), _)| *is_here).map(|((name, _), table)| (name, table()))
}

/// The fastest converter here from one float type to another; `None` for two types of which one is no float, or that
/// are the same.
pub(super) fn converter(from: DType, to: DType) -> Option<Converter> {
    static TABLE: OnceLock<convert::Table> = OnceLock::new();
    let table = TABLE.get_or_init(|| convert::all().next().map_or_else(convert::table::<Portable>, |(_, table)| table));
    let index = |dtype| convert::FLOATS.iter().position(|float| *float == dtype);
    table[index(from)?][index(to)?].filter(|_| from != to)
}

fn table<P: Path>() -> Table {
    REDUCIBLE.map(|dtype| {
        OPS.map(|op| match dtype {
            DType::Int8 => pick::<P, Integer<i8>, Integer<i8>>(op),
            DType::Uint8 => pick::<P, Integer<u8>, Integer<u8>>(op),
            DType::Int32 => pick::<P, Integer<i32>, Integer<i32>>(op),
            DType::Uint32 => pick::<P, Integer<u32>, Integer<u32>>(op),
            DType::Int64 => pick::<P, Integer<i64>, Integer<i64>>(op),
            DType::Uint64 => pick::<P, Integer<u64>, Integer<u64>>(op),
            DType::Float16 => pick::<P, P::F16, F16>(op),
            DType::Float32 => pick::<P, Native<f32>, Native<f32>>(op),
            DType::Float64 => pick::<P, Native<f64>, Native<f64>>(op),
            DType::Bfloat16 => pick::<P, Bf16, Bf16>(op),
            DType::Float8E4M3 => pick::<P, E4m3, E4m3>(op),
            DType::Float8E5M2 => pick::<P, E5m2, E5m2>(op),
            DType::Bool | DType::Int16 | DType::Bytes => unreachable!("not among the reducible"),
        })
    })
}

fn pick<P: Path, C: Codec, O: Ordered>(op: Op) -> Reducer {
    match op {
        Op::Sum => P::reducer::<Accumulate<C, Sum>>(),
        Op::Prod => P::reducer::<Accumulate<C, Prod>>(),
        Op::Max => P::reducer::<Extreme<O, true>>(),
        Op::Min => P::reducer::<Extreme<O, false>>(),
        Op::Avg => P::reducer::<Accumulate<C, Avg>>(),
    }
}

/// An instruction set.
pub(super) trait Path {
    /// How binary16 is best read and written.
    type F16: Codec<Raw = u16, Acc = f32>;

    fn reducer<F: Fold>() -> Reducer;

    fn converter<A: Number, B: Number>() -> Converter;
}

/// What the target always has: SSE2 on x86-64, NEON on AArch64.
pub(super) struct Portable;

impl Path for Portable {
    type F16 = F16;

    fn reducer<F: Fold>() -> Reducer {
        /// # Safety
        /// As for [`Reducer`].
        unsafe fn run<F: Fold>(sources: &[*const u8], dst: *mut u8, count: usize, divisor: usize) {
            // SAFETY: the promises are passed on.
            unsafe { body::<F>(sources, dst, count, divisor) }
        }
        run::<F>
    }

    fn converter<A: Number, B: Number>() -> Converter {
        /// # Safety
        /// As for [`Converter`].
        unsafe fn run<A: Number, B: Number>(src: *const u8, dst: *mut u8, count: usize) {
            // SAFETY: the promises are passed on.
            unsafe { convert::body::<A, B>(src, dst, count) }
        }
        run::<A, B>
    }
}

/// AVX2 with F16C: nearly all x86-64 since 2013.
#[cfg(target_arch = "x86_64")]
pub(super) struct Avx2;

#[cfg(target_arch = "x86_64")]
impl Path for Avx2 {
    type F16 = super::f16c::F16c<false>;

    fn reducer<F: Fold>() -> Reducer {
        /// # Safety
        /// As for [`Reducer`].
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn run<F: Fold>(sources: &[*const u8], dst: *mut u8, count: usize, divisor: usize) {
            // SAFETY: the promises are passed on.
            unsafe { body::<F>(sources, dst, count, divisor) }
        }
        run::<F>
    }

    fn converter<A: Number, B: Number>() -> Converter {
        /// # Safety
        /// As for [`Converter`].
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn run<A: Number, B: Number>(src: *const u8, dst: *mut u8, count: usize) {
            // SAFETY: the promises are passed on.
            unsafe { convert::body::<A, B>(src, dst, count) }
        }
        run::<A, B>
    }
}

/// AVX-512 as in Skylake's servers and Zen 4, and all after.
#[cfg(target_arch = "x86_64")]
pub(super) struct Avx512;

#[cfg(target_arch = "x86_64")]
impl Path for Avx512 {
    type F16 = super::f16c::F16c<true>;

    fn reducer<F: Fold>() -> Reducer {
        /// # Safety
        /// As for [`Reducer`].
        #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
        unsafe fn run<F: Fold>(sources: &[*const u8], dst: *mut u8, count: usize, divisor: usize) {
            // SAFETY: the promises are passed on.
            unsafe { body::<F>(sources, dst, count, divisor) }
        }
        run::<F>
    }

    fn converter<A: Number, B: Number>() -> Converter {
        /// # Safety
        /// As for [`Converter`].
        #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
        unsafe fn run<A: Number, B: Number>(src: *const u8, dst: *mut u8, count: usize) {
            // SAFETY: the promises are passed on.
            unsafe { convert::body::<A, B>(src, dst, count) }
        }
        run::<A, B>
    }
}

/// Elements of the second step: what is left by the first, and short messages.
const NARROW: usize = 8;

/// # Safety
///
/// As for [`super::reduce`], with at least one source.
#[inline(always)]
unsafe fn body<F: Fold>(sources: &[*const u8], dst: *mut u8, count: usize, divisor: usize) {
    // SAFETY: the promises are passed on; the calls share the elements out among them.
    unsafe {
        let done = if let &[first, second] = sources {
            wide::<F>(&[first, second], dst, count, divisor)
        } else {
            wide::<F>(sources, dst, count, divisor)
        };
        let done = chunks::<F, NARROW>(sources, dst, done..count, divisor);
        chunks::<F, 1>(sources, dst, done..count, divisor);
    }
}

/// The first step: 128 bytes of accumulators, which fill two of the widest registers, or four or eight of others.
///
/// # Safety
///
/// As for [`body`].
#[inline(always)]
unsafe fn wide<F: Fold>(sources: &[*const u8], dst: *mut u8, count: usize, divisor: usize) -> usize {
    // SAFETY: the promises are passed on.
    unsafe {
        match size_of::<F::Acc>() {
            1 => chunks::<F, 128>(sources, dst, 0..count, divisor),
            2 => chunks::<F, 64>(sources, dst, 0..count, divisor),
            4 => chunks::<F, 32>(sources, dst, 0..count, divisor),
            _ => chunks::<F, 16>(sources, dst, 0..count, divisor),
        }
    }
}

/// Reduces a range of elements as far as chunks of `N` reach, and returns how far that is.
///
/// # Safety
///
/// As for [`body`].
#[inline(always)]
unsafe fn chunks<F: Fold, const N: usize>(
    sources: &[*const u8],
    dst: *mut u8,
    Range { start: mut done, end: count }: Range<usize>,
    divisor: usize,
) -> usize {
    while count - done >= N {
        // SAFETY: the caller promised `count` elements in each, and `done + N` is no more.
        let read =
            |source: *const u8| unsafe { source.cast::<F::Raw>().add(done).cast::<[F::Raw; N]>().read_unaligned() };
        let mut acc = F::load(read(sources[0]));
        for source in &sources[1..] {
            let next = F::load(read(*source));
            for i in 0..N {
                acc[i] = F::fold(acc[i], next[i]);
            }
        }
        let chunk = F::store(acc, divisor);
        // SAFETY: as above; the sources' chunk has been read.
        unsafe { dst.cast::<F::Raw>().add(done).cast::<[F::Raw; N]>().write_unaligned(chunk) };
        done = opaque(done + N);
    }
    done
}

/// Hides where a number comes from, at no cost: the chunks are as wide as the processor likes them, and a compiler
/// that tried to work on several at a time would only gather and scatter.
#[inline(always)]
pub(super) fn opaque(mut number: usize) -> usize {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: there is no instruction.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) number, options(pure, nomem, nostack, preserves_flags))
    };
    number
}
