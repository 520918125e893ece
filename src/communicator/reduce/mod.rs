//! The arithmetic of all communicators on the CPU: what sum, prod, max, min and avg mean for each element type.
//!
//! Elements are reduced one by one in rank order, so the result depends on nothing but the values: not on the
//! processor, the alignment, the count, the place of an element or the floating-point modes of the calling thread.
//! Nothing here allocates, waits, fails or knows what a rank is; who calls promises that the memory is there.
//!
//! * [`codec`] — what is read, accumulated and written for each element type;
//! * [`fold`] — what an operation does with two elements and with the last sum;
//! * [`convert`] — elements of one float type as elements of another;
//! * [`path`] — the loops, once for each instruction set that this processor may have.

mod codec;
mod convert;
#[cfg(target_arch = "x86_64")]
mod f16c;
mod fold;
mod modes;
mod path;
#[cfg(test)]
mod tests;

use crate::dtype::{DType, Op};

/// Sets `dst[i]` to `op` over `sources[0][i]`, `sources[1][i]`, … in this order.
///
/// * 16- and 8-bit floats are accumulated in fp32 and rounded once at the end, to nearest even; `f32` and `f64` are
///   accumulated as they are; integers wrap. `Avg` divides the accumulated sum once, before that rounding; integers
///   truncate towards zero.
/// * `Max` and `Min` return one of the elements, bit for bit, and order -0 below +0; a NaN among them makes NaN.
/// * 8-bit floats saturate to their largest finite value, infinite sums too; `Max` and `Min` leave infinities alone.
/// * Every NaN that is made or passed on is the quiet, positive one without payload.
/// * One source is copied, bit for bit.
///
/// An element type that cannot be reduced, and an empty list of sources, are errors of the caller; they leave `dst`
/// alone.
///
/// # Safety
///
/// Every source must be readable and `dst` writable for `count` elements, at any alignment, and nobody may write what
/// is read or touch what is written during the call. `dst` may be identical to any of the sources but may not overlap
/// one partially.
pub unsafe fn reduce(dtype: DType, op: Op, sources: &[*const u8], dst: *mut u8, count: usize) {
    // SAFETY: the caller's promises.
    unsafe { reduce_by(dtype, op, sources.len(), sources, dst, count) }
}

/// As [`reduce`], but `Avg` divides by `divisor`, at least 1, which need not be the number of sources.
///
/// # Safety
///
/// As for [`reduce`].
pub unsafe fn reduce_by(dtype: DType, op: Op, divisor: usize, sources: &[*const u8], dst: *mut u8, count: usize) {
    debug_assert!(dtype.is_reducible() && !sources.is_empty() && divisor > 0);
    let [first, rest @ ..] = sources else { return };
    if !dtype.is_reducible() || count == 0 {
        return;
    }
    if rest.is_empty() {
        // SAFETY: the caller promised that both are `count` elements long; `copy` allows identical places.
        return unsafe { first.copy_to(dst, count * dtype.size()) };
    }
    let Some(reducer) = path::best(dtype, op) else { return };
    modes::with_default(|| {
        // SAFETY: the promises are passed on, and `best` names what this processor can run.
        unsafe { reducer(sources, dst, count, divisor) }
    });
}

/// Whether [`convert`] can turn elements of one type into elements of another.
pub fn converts(from: DType, to: DType) -> bool {
    from == to || path::converter(from, to).is_some()
}

/// Sets `dst[i]` to `src[i]`, an element of `from`, as an element of `to`.
///
/// * Every value is rounded once, to nearest even. What is too large becomes infinite, or, in an 8-bit float, the
///   largest finite value. NaN stays NaN, without its sign and payload.
/// * Elements of one type are copied, bit for bit.
///
/// Two types between which [`converts`] says no are an error of the caller; `dst` is left alone.
///
/// # Safety
///
/// `src` must be readable and `dst` writable for `count` elements, at any alignment; they may not overlap, and nobody
/// may write what is read or touch what is written during the call.
pub unsafe fn convert(from: DType, to: DType, src: *const u8, dst: *mut u8, count: usize) {
    if from == to {
        // SAFETY: the caller promised that both are `count` elements long.
        return unsafe { src.copy_to_nonoverlapping(dst, count * from.size()) };
    }
    let Some(converter) = path::converter(from, to) else {
        debug_assert!(false, "{} does not become {}", from.name(), to.name());
        return;
    };
    modes::with_default(|| {
        // SAFETY: the promises are passed on, and `converter` names what this processor can run.
        unsafe { converter(src, dst, count) }
    });
}
