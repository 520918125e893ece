//! What an operation does with two elements, and with the last result.
//!
//! An operation meets an element type in a [`Fold`]; the loops know nothing else.

use std::marker::PhantomData;

use super::codec::{Codec, Ordered};

/// One operation on one element type.
pub(super) trait Fold {
    /// The element in memory.
    type Raw: Copy + Default;
    /// What is carried from rank to rank.
    type Acc: Copy;

    /// Takes up elements of one rank.
    fn load<const N: usize>(raw: [Self::Raw; N]) -> [Self::Acc; N];
    /// Adds an element of the next rank.
    fn fold(acc: Self::Acc, next: Self::Acc) -> Self::Acc;
    /// Turns the last results into elements.
    fn store<const N: usize>(acc: [Self::Acc; N], divisor: usize) -> [Self::Raw; N];
}

/// What is accumulated.
pub(super) trait Arithmetic: Copy + Default {
    fn add(self, other: Self) -> Self;
    fn multiply(self, other: Self) -> Self;
    fn divide(self, ranks: usize) -> Self;
}

macro_rules! arithmetic {
    (integer $($int:ty, |$acc:ident, $ranks:ident| $quotient:expr;)*) => { $(
        impl Arithmetic for $int {
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            #[inline(always)]
            fn multiply(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }

            #[inline(always)]
            fn divide(self, $ranks: usize) -> Self {
                let $acc = self;
                $quotient
            }
        }
    )* };
    (float $($float:ty)*) => { $(
        impl Arithmetic for $float {
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self + other
            }

            #[inline(always)]
            fn multiply(self, other: Self) -> Self {
                self * other
            }

            #[inline(always)]
            fn divide(self, ranks: usize) -> Self {
                self / ranks as Self
            }
        }
    )* };
}

macro_rules! truncate {
    ($quotient:expr, $int:ty) => {
        // SAFETY: a sum of this type was divided by one or more, so the quotient is a number within the type.
        unsafe { ($quotient).to_int_unchecked::<$int>() }
    };
}

// No processor divides several integers at a time. A quotient that is no integer is at least 1/ranks away from the
// next one, and the float's error is less: below |sum|/ranks * 2^-24, or * 2^-53, where |sum| < 2^8, or 2^32.
arithmetic! { integer
    i8, |sum, ranks| truncate!(f32::from(sum) / ranks as f32, i32) as i8;
    u8, |sum, ranks| truncate!(f32::from(sum) / ranks as f32, i32) as u8;
    i32, |sum, ranks| truncate!(f64::from(sum) / ranks as f64, i32);
    u32, |sum, ranks| truncate!(f64::from(sum) / ranks as f64, u32);
    i64, |sum, ranks| sum / ranks as i64;
    u64, |sum, ranks| sum / ranks as u64;
}
arithmetic! { float f32 f64 }

/// How a result is accumulated.
pub(super) trait Operation {
    fn fold<A: Arithmetic>(acc: A, next: A) -> A;

    /// What is done with the last result.
    #[inline(always)]
    fn finish<A: Arithmetic>(acc: A, _divisor: usize) -> A {
        acc
    }
}

pub(super) struct Sum;

impl Operation for Sum {
    #[inline(always)]
    fn fold<A: Arithmetic>(acc: A, next: A) -> A {
        acc.add(next)
    }
}

pub(super) struct Prod;

impl Operation for Prod {
    #[inline(always)]
    fn fold<A: Arithmetic>(acc: A, next: A) -> A {
        acc.multiply(next)
    }
}

/// The sum, divided once: by the number of ranks, or what the caller says.
pub(super) struct Avg;

impl Operation for Avg {
    #[inline(always)]
    fn fold<A: Arithmetic>(acc: A, next: A) -> A {
        acc.add(next)
    }

    #[inline(always)]
    fn finish<A: Arithmetic>(acc: A, divisor: usize) -> A {
        acc.divide(divisor)
    }
}

/// An operation whose result is made of all elements.
pub(super) struct Accumulate<C, O>(PhantomData<(C, O)>);

impl<C: Codec, O: Operation> Fold for Accumulate<C, O> {
    type Raw = C::Raw;
    type Acc = C::Acc;

    #[inline(always)]
    fn load<const N: usize>(raw: [C::Raw; N]) -> [C::Acc; N] {
        C::decode_all(raw)
    }

    #[inline(always)]
    fn fold(acc: C::Acc, next: C::Acc) -> C::Acc {
        O::fold(acc, next)
    }

    #[inline(always)]
    fn store<const N: usize>(mut all: [C::Acc; N], divisor: usize) -> [C::Raw; N] {
        for acc in &mut all {
            *acc = O::finish(*acc, divisor);
        }
        C::encode_all(all)
    }
}

/// The greatest or the least element.
pub(super) struct Extreme<C, const GREATEST: bool>(PhantomData<C>);

impl<C: Ordered, const GREATEST: bool> Fold for Extreme<C, GREATEST> {
    type Raw = C::Raw;
    type Acc = C::Key;

    #[inline(always)]
    fn load<const N: usize>(raw: [C::Raw; N]) -> [C::Key; N] {
        let mut keys = [C::Key::default(); N];
        for i in 0..N {
            keys[i] = C::key::<GREATEST>(raw[i]);
        }
        keys
    }

    #[inline(always)]
    fn fold(acc: C::Key, next: C::Key) -> C::Key {
        C::choose::<GREATEST>(acc, next)
    }

    #[inline(always)]
    fn store<const N: usize>(keys: [C::Key; N], _divisor: usize) -> [C::Raw; N] {
        let mut all = [C::Raw::default(); N];
        for i in 0..N {
            all[i] = C::element::<GREATEST>(keys[i]);
        }
        all
    }
}
