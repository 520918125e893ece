//! How each element type is read into what is accumulated, and written back.
//!
//! All formulas are free of branches and of operations that compilers refuse to vectorise; each is exact or rounds
//! once, to nearest even. Nothing here may depend on an instruction that rounds, flushes or names NaN differently on
//! another processor.

use super::fold::Arithmetic;

/// An element type as arithmetic sees it.
pub(super) trait Codec {
    /// The element in memory.
    type Raw: Copy + Default;
    /// What sums and products are accumulated in.
    type Acc: Arithmetic;

    fn decode(raw: Self::Raw) -> Self::Acc;
    fn encode(acc: Self::Acc) -> Self::Raw;

    /// `decode` of several elements; a place for an instruction that does just this.
    #[inline(always)]
    fn decode_all<const N: usize>(raw: [Self::Raw; N]) -> [Self::Acc; N] {
        let mut all = [Self::Acc::default(); N];
        for i in 0..N {
            all[i] = Self::decode(raw[i]);
        }
        all
    }

    /// `encode` of several elements; a place for an instruction that does just this.
    #[inline(always)]
    fn encode_all<const N: usize>(acc: [Self::Acc; N]) -> [Self::Raw; N] {
        let mut all = [Self::Raw::default(); N];
        for i in 0..N {
            all[i] = Self::encode(acc[i]);
        }
        all
    }
}

/// An element type as max (`GREATEST`) and min see it.
pub(super) trait Ordered {
    /// The element in memory.
    type Raw: Copy + Default;
    /// What is compared.
    type Key: Copy + Default;

    fn key<const GREATEST: bool>(raw: Self::Raw) -> Self::Key;
    fn choose<const GREATEST: bool>(a: Self::Key, b: Self::Key) -> Self::Key;
    fn element<const GREATEST: bool>(key: Self::Key) -> Self::Raw;
}

/// Integers are what they are.
pub(super) struct Integer<T>(T);

macro_rules! integers {
    ($($int:ty)*) => { $(
        impl Codec for Integer<$int> {
            type Raw = $int;
            type Acc = $int;

            #[inline(always)]
            fn decode(raw: $int) -> $int {
                raw
            }

            #[inline(always)]
            fn encode(acc: $int) -> $int {
                acc
            }
        }

        impl Ordered for Integer<$int> {
            type Raw = $int;
            type Key = $int;

            #[inline(always)]
            fn key<const GREATEST: bool>(raw: $int) -> $int {
                raw
            }

            #[inline(always)]
            fn choose<const GREATEST: bool>(a: $int, b: $int) -> $int {
                if GREATEST { a.max(b) } else { a.min(b) }
            }

            #[inline(always)]
            fn element<const GREATEST: bool>(key: $int) -> $int {
                key
            }
        }
    )* };
}

integers! { i8 u8 i32 u32 i64 u64 }

/// A 16- or 8-bit float with `E` bits of exponent and `M` of mantissa, accumulated in fp32.
///
/// `FINITE` marks the 8-bit formats: finite sums and infinite ones end at the largest finite value.
pub(super) struct Small<Raw, const E: u32, const M: u32, const FINITE: bool>(Raw);

/// IEEE binary16.
pub(super) type F16 = Small<u16, 5, 10, false>;
/// OCP E4M3FN: no infinities, one NaN per sign, largest value 448.
pub(super) type E4m3 = Small<u8, 4, 3, true>;
/// OCP E5M2: IEEE in all but saturation, largest finite value 57344.
pub(super) type E5m2 = Small<u8, 5, 2, true>;

/// The exponent bias of fp32.
const BIAS: u32 = 127;
/// The bits of fp32's mantissa.
const MANTISSA: u32 = 23;
/// fp32's infinity.
const INFINITY: u32 = 0x7f80_0000;

impl<Raw, const E: u32, const M: u32, const FINITE: bool> Small<Raw, E, M, FINITE> {
    /// The sign bit.
    const SIGN: u32 = 1 << (E + M);
    /// How far the mantissa of fp32 reaches below this one.
    const SHIFT: u32 = MANTISSA - M;
    /// What must be added to an exponent of this format to get fp32's.
    const REBIAS: u32 = BIAS - ((1 << (E - 1)) - 1);
    /// Whether the greatest exponent is kept for infinity and NaN, as in IEEE (E4M3FN gives it to values).
    const IEEE: bool = E > 4;
    /// The quiet NaN.
    const NAN: u32 = if Self::IEEE { ((1 << E) - 1) << M | 1 << (M - 1) } else { Self::SIGN - 1 };
    /// The greatest magnitude that is not NaN.
    const TOP: u32 = if Self::IEEE { ((1 << E) - 1) << M } else { Self::SIGN - 2 };
    /// The magnitude at which rounding ends.
    const LIMIT: u32 = if Self::IEEE && FINITE { Self::TOP - 1 } else { Self::TOP };

    #[inline(always)]
    fn to_f32(raw: u32) -> f32 {
        let magnitude = raw & (Self::SIGN - 1);
        let sign = (raw & Self::SIGN) << (31 - E - M);
        let normal = (magnitude << Self::SHIFT) + (Self::REBIAS << MANTISSA);
        // A subnormal gets the exponent of the least normal number, whose implied one is then taken off again.
        let one = (Self::REBIAS + 1) << MANTISSA;
        let subnormal = (f32::from_bits((magnitude << Self::SHIFT) + one) - f32::from_bits(one)).to_bits();
        let finite = if magnitude < 1 << M { subnormal } else { normal };
        let special = INFINITY | ((magnitude > Self::TOP) as u32) << (MANTISSA - 1);
        let is_special = if Self::IEEE { magnitude >= Self::TOP } else { magnitude > Self::TOP };
        f32::from_bits(sign | if is_special { special } else { finite })
    }

    #[inline(always)]
    fn from_f32(value: f32) -> u32 {
        let bits = value.to_bits();
        let magnitude = bits & !(1 << 31);
        let sign = (bits >> (31 - E - M)) & Self::SIGN;
        // Half a unit is added, less one bit where the unit is even, and the rest cut off.
        let half = (1 << (Self::SHIFT - 1)) - 1;
        let rounded = (magnitude + half + (magnitude >> Self::SHIFT & 1)) >> Self::SHIFT;
        let normal = rounded.wrapping_sub(Self::REBIAS << M);
        // A number whose unit is the least subnormal, so that the adder rounds to it.
        let unit = (Self::REBIAS + 1 + Self::SHIFT) << MANTISSA;
        let subnormal = (f32::from_bits(magnitude) + f32::from_bits(unit)).to_bits().wrapping_sub(unit);
        let least_normal = (Self::REBIAS + 1) << MANTISSA;
        let result = if magnitude < least_normal { subnormal } else { normal };
        let result = if result > Self::LIMIT { Self::LIMIT } else { result };
        if magnitude > INFINITY { Self::NAN } else { sign | result }
    }
}

macro_rules! small {
    ($($format:ty, $raw:ty, $key:ty;)*) => { $(
        impl Codec for $format {
            type Raw = $raw;
            type Acc = f32;

            #[inline(always)]
            fn decode(raw: $raw) -> f32 {
                Self::to_f32(raw as u32)
            }

            #[inline(always)]
            fn encode(acc: f32) -> $raw {
                Self::from_f32(acc) as $raw
            }
        }

        ordered! { $format, $raw, $key, Self::TOP as $key, Self::NAN as $raw }
    )* };
}

/// Small floats are compared as integers: all bits but the sign are turned over in negative ones, and NaN becomes
/// the integer that wins. So -0 is below +0, and the winner is an element bit for bit.
macro_rules! ordered {
    ($format:ty, $raw:ty, $key:ty, $top:expr, $nan:expr) => {
        impl Ordered for $format {
            type Raw = $raw;
            type Key = $key;

            #[inline(always)]
            fn key<const GREATEST: bool>(raw: $raw) -> $key {
                let raw = raw as $key;
                let key = raw ^ (raw >> (<$key>::BITS - 1) & <$key>::MAX);
                let nan = if GREATEST { <$key>::MAX } else { <$key>::MIN };
                if raw & <$key>::MAX > $top { nan } else { key }
            }

            #[inline(always)]
            fn choose<const GREATEST: bool>(a: $key, b: $key) -> $key {
                if GREATEST { a.max(b) } else { a.min(b) }
            }

            #[inline(always)]
            fn element<const GREATEST: bool>(key: $key) -> $raw {
                let raw = key ^ (key >> (<$key>::BITS - 1) & <$key>::MAX);
                let nan = if GREATEST { <$key>::MAX } else { <$key>::MIN };
                if key == nan { $nan } else { raw as $raw }
            }
        }
    };
}

small! {
    F16, u16, i16;
    E4m3, u8, i8;
    E5m2, u8, i8;
}

/// The upper half of fp32.
pub(super) struct Bf16;

/// bf16's quiet NaN.
const BF16_NAN: u16 = 0x7fc0;

impl Codec for Bf16 {
    type Raw = u16;
    type Acc = f32;

    #[inline(always)]
    fn decode(raw: u16) -> f32 {
        f32::from_bits((raw as u32) << 16)
    }

    #[inline(always)]
    fn encode(acc: f32) -> u16 {
        (round_to_bf16(acc) >> 16) as u16
    }

    /// Two elements are taken as 32 bits; the lower ones come first in the accumulators, then the upper ones. So none
    /// has to move from its place in the register.
    #[inline(always)]
    fn decode_all<const N: usize>(raw: [u16; N]) -> [f32; N] {
        if N % 2 == 1 {
            return raw.map(Self::decode);
        }
        let mut all = [0.0; N];
        for i in 0..N / 2 {
            // SAFETY: elements `2 * i` and `2 * i + 1` exist, and any bits are a `u32`.
            let pair = unsafe { raw.as_ptr().cast::<u32>().add(i).read_unaligned() };
            all[i] = f32::from_bits(pair << 16);
            all[N / 2 + i] = f32::from_bits(pair & 0xffff_0000);
        }
        all
    }

    #[inline(always)]
    fn encode_all<const N: usize>(acc: [f32; N]) -> [u16; N] {
        if N % 2 == 1 {
            return acc.map(Self::encode);
        }
        let mut all = [0; N];
        for i in 0..N / 2 {
            let pair = round_to_bf16(acc[i]) >> 16 | round_to_bf16(acc[N / 2 + i]) & 0xffff_0000;
            // SAFETY: as in `decode_all`.
            unsafe { all.as_mut_ptr().cast::<u32>().add(i).write_unaligned(pair) };
        }
        all
    }
}

/// The rounded value in the upper half, something in the lower.
#[inline(always)]
fn round_to_bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    if value.is_nan() { (BF16_NAN as u32) << 16 } else { rounded }
}

ordered! { Bf16, u16, i16, 0x7f80, BF16_NAN }

/// fp32 and fp64 are accumulated and compared as they are.
pub(super) struct Native<T>(T);

macro_rules! native {
    ($($float:ty, $nan:expr;)*) => { $(
        impl Codec for Native<$float> {
            type Raw = $float;
            type Acc = $float;

            #[inline(always)]
            fn decode(raw: $float) -> $float {
                raw
            }

            #[inline(always)]
            fn encode(acc: $float) -> $float {
                // Its sign and payload depend on the processor.
                if acc.is_nan() { <$float>::from_bits($nan) } else { acc }
            }
        }

        impl Ordered for Native<$float> {
            type Raw = $float;
            type Key = $float;

            #[inline(always)]
            fn key<const GREATEST: bool>(raw: $float) -> $float {
                raw
            }

            #[inline(always)]
            fn choose<const GREATEST: bool>(a: $float, b: $float) -> $float {
                let other = if GREATEST { a > b } else { a < b };
                let winner = if other { a } else { b };
                // Equal numbers have equal bits, or are zeros that may differ in the sign.
                let zero = if GREATEST { a.to_bits() & b.to_bits() } else { a.to_bits() | b.to_bits() };
                let winner = if a == b { <$float>::from_bits(zero) } else { winner };
                if a.is_nan() { a } else { winner }
            }

            #[inline(always)]
            fn element<const GREATEST: bool>(key: $float) -> $float {
                Self::encode(key)
            }
        }
    )* };
}

native! {
    f32, 0x7fc0_0000;
    f64, 0x7ff8_0000_0000_0000;
}
