//! Elements of one float type as elements of another, by way of fp32.
//!
//! fp32 holds every element of the smaller types, so reading them is exact and writing rounds once. An fp64 that goes
//! to a smaller type than fp32 would be rounded twice; it is rounded to odd on the way, which keeps what the second
//! rounding must know.

use super::{
    codec::{Bf16, Codec, E4m3, E5m2, Native},
    path::{self, Path, Portable, opaque},
};
use crate::dtype::DType;

/// Converts elements of one type into those of another, for one instruction set.
///
/// # Safety
///
/// As for [`super::convert`]; the instruction set must be there.
pub(super) type Converter = unsafe fn(src: *const u8, dst: *mut u8, count: usize);

/// The types that convert into each other, in the order of [`Table`].
pub(super) const FLOATS: [DType; 6] =
    [DType::Float16, DType::Bfloat16, DType::Float32, DType::Float64, DType::Float8E4M3, DType::Float8E5M2];

/// Converters by the places of both types in [`FLOATS`].
pub(super) type Table = [[Option<Converter>; FLOATS.len()]; FLOATS.len()];

/// Every path that this processor can run, the fastest first.
pub(super) fn all() -> impl Iterator<Item = (&'static str, Table)> {
    path::every(&[
        #[cfg(target_arch = "x86_64")]
        table::<path::Avx512>,
        #[cfg(target_arch = "x86_64")]
        table::<path::Avx2>,
        table::<Portable>,
    ])
}

pub(super) fn table<P: Path>() -> Table {
    FLOATS.map(|from| match from {
        DType::Float16 => row::<P, Small<P::F16>>(),
        DType::Bfloat16 => row::<P, InOrder<Bf16>>(),
        DType::Float32 => row::<P, Small<Native<f32>>>(),
        DType::Float8E4M3 => row::<P, Small<E4m3>>(),
        DType::Float8E5M2 => row::<P, Small<E5m2>>(),
        _ => FLOATS.map(|to| match to {
            DType::Float32 => Some(P::converter::<Double<false>, Small<Native<f32>>>()),
            DType::Float16 => Some(P::converter::<Double<true>, Small<P::F16>>()),
            DType::Bfloat16 => Some(P::converter::<Double<true>, InOrder<Bf16>>()),
            DType::Float8E4M3 => Some(P::converter::<Double<true>, Small<E4m3>>()),
            DType::Float8E5M2 => Some(P::converter::<Double<true>, Small<E5m2>>()),
            _ => None,
        }),
    })
}

/// From one type that fp32 holds to all others.
fn row<P: Path, A: Number>() -> [Option<Converter>; FLOATS.len()] {
    FLOATS.map(|to| match to {
        DType::Float16 => Some(P::converter::<A, Small<P::F16>>()),
        DType::Bfloat16 => Some(P::converter::<A, InOrder<Bf16>>()),
        DType::Float32 => Some(P::converter::<A, Small<Native<f32>>>()),
        DType::Float64 => Some(P::converter::<A, Double<false>>()),
        DType::Float8E4M3 => Some(P::converter::<A, Small<E4m3>>()),
        DType::Float8E5M2 => Some(P::converter::<A, Small<E5m2>>()),
        _ => None,
    })
}

/// An element type as conversion sees it.
pub(super) trait Number {
    /// The element in memory.
    type Raw: Copy + Default;

    fn read<const N: usize>(raw: [Self::Raw; N]) -> [f32; N];
    fn write<const N: usize>(values: [f32; N]) -> [Self::Raw; N];
}

/// A type with a codec that keeps the order of several elements.
pub(super) struct Small<C>(C);

impl<C: Codec<Acc = f32>> Number for Small<C> {
    type Raw = C::Raw;

    #[inline(always)]
    fn read<const N: usize>(raw: [C::Raw; N]) -> [f32; N] {
        C::decode_all(raw)
    }

    #[inline(always)]
    fn write<const N: usize>(values: [f32; N]) -> [C::Raw; N] {
        C::encode_all(values)
    }
}

/// A type whose codec takes several elements in another order: one by one, then.
pub(super) struct InOrder<C>(C);

impl<C: Codec<Acc = f32>> Number for InOrder<C> {
    type Raw = C::Raw;

    #[inline(always)]
    fn read<const N: usize>(raw: [C::Raw; N]) -> [f32; N] {
        let mut values = [0.0; N];
        for i in 0..N {
            values[i] = C::decode(raw[i]);
        }
        values
    }

    #[inline(always)]
    fn write<const N: usize>(values: [f32; N]) -> [C::Raw; N] {
        let mut raw = [C::Raw::default(); N];
        for i in 0..N {
            raw[i] = C::encode(values[i]);
        }
        raw
    }
}

/// fp64; read with rounding to odd if `ODD`, for a type that has at least two bits less than fp32.
pub(super) struct Double<const ODD: bool>;

impl<const ODD: bool> Number for Double<ODD> {
    type Raw = f64;

    #[inline(always)]
    fn read<const N: usize>(raw: [f64; N]) -> [f32; N] {
        let mut values = [0.0; N];
        for i in 0..N {
            values[i] = if ODD { round_to_odd(raw[i]) } else { raw[i] as f32 };
        }
        values
    }

    #[inline(always)]
    fn write<const N: usize>(values: [f32; N]) -> [f64; N] {
        let mut raw = [0.0; N];
        for i in 0..N {
            raw[i] = Native::<f64>::encode(f64::from(values[i]));
        }
        raw
    }
}

/// The fp32 itself if there is one; otherwise the neighbour, towards zero or away from it, whose last bit is set.
#[inline(always)]
fn round_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    let bits = nearest.to_bits();
    // Bits of a float count up with its magnitude. An infinity that came of a finite number counts down too.
    let towards_zero = bits - u32::from(back.abs() > value.abs());
    let odd = towards_zero | u32::from(back != value);
    if value.is_nan() { f32::NAN } else { f32::from_bits(odd) }
}

/// Elements of one step: two of the widest registers of fp32.
const WIDE: usize = 32;

/// # Safety
///
/// As for [`super::convert`].
#[inline(always)]
pub(super) unsafe fn body<A: Number, B: Number>(src: *const u8, dst: *mut u8, count: usize) {
    // SAFETY: the promises are passed on; the calls share the elements out among them.
    unsafe {
        let done = chunks::<A, B, WIDE>(src, dst, 0, count);
        let done = chunks::<A, B, 8>(src, dst, done, count);
        chunks::<A, B, 1>(src, dst, done, count);
    }
}

/// Converts elements `done..count` as far as chunks of `N` reach, and returns how far that is.
///
/// # Safety
///
/// As for [`body`].
#[inline(always)]
unsafe fn chunks<A: Number, B: Number, const N: usize>(
    src: *const u8,
    dst: *mut u8,
    mut done: usize,
    count: usize,
) -> usize {
    while count - done >= N {
        // SAFETY: the caller promised `count` elements in each, and `done + N` is no more.
        unsafe {
            let raw = src.cast::<A::Raw>().add(done).cast::<[A::Raw; N]>().read_unaligned();
            dst.cast::<B::Raw>().add(done).cast::<[B::Raw; N]>().write_unaligned(B::write(A::read(raw)));
        }
        done = opaque(done + N);
    }
    done
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// The elements of a type in memory, from numbers, by means other than this crate's.
    fn encode(dtype: DType, values: &[f64]) -> Vec<u8> {
        let one = |value: &f64| match dtype {
            DType::Float16 => {
                nearest(*value, 0x7c00, 65536.0, |code| f16::from_bits(code).to_f64()).to_le_bytes().to_vec()
            }
            DType::Bfloat16 => {
                nearest(*value, 0x7f80, 2f64.powi(128), |code| bf16::from_bits(code).to_f64()).to_le_bytes().to_vec()
            }
            DType::Float32 => (*value as f32).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        };
        values.iter().flat_map(one).collect()
    }

    /// The code whose number is nearest, the even one of two; by looking for it, since the half crate rounds fp64 twice or
    /// forgets its last bits. `beyond` is what the infinite code would be were it a number.
    fn nearest(value: f64, infinite: u16, beyond: f64, decode: impl Fn(u16) -> f64) -> u16 {
        let number = |code: u16| if code == infinite { beyond } else { decode(code) };
        let (mut low, mut high) = (0, infinite + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if number(middle) <= value.abs() { low = middle } else { high = middle }
        }
        let code = match low == infinite {
            true => infinite,
            false => {
                let half_way = (number(low) + number(low + 1)) / 2.0;
                low + u16::from(value.abs() > half_way || value.abs() == half_way && low % 2 == 1)
            }
        };
        code | u16::from(value.is_sign_negative()) << 15
    }

    fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
        let one = |bytes: &[u8]| match dtype {
            DType::Float16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
            DType::Bfloat16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
            DType::Float32 => f32::from_le_bytes(bytes.try_into().unwrap()).into(),
            _ => f64::from_le_bytes(bytes.try_into().unwrap()),
        };
        bytes.chunks(dtype.size()).map(one).collect()
    }

    fn run(converter: Converter, from: DType, to: DType, bytes: &[u8], offset: usize) -> Vec<u8> {
        let count = bytes.len() / from.size();
        let mut src = vec![0; offset];
        src.extend_from_slice(bytes);
        let mut dst = vec![0xa5; offset + count * to.size() + 1];
        // SAFETY: both hold `count` elements from `offset` on.
        unsafe { converter(src[offset..].as_ptr(), dst[offset..].as_mut_ptr(), count) };
        assert_eq!(dst.pop(), Some(0xa5), "written beyond the end");
        dst.split_off(offset)
    }

    /// Numbers that are halfway between two of some type, a little beside that, or beyond all.
    fn tricky() -> Vec<f64> {
        let mut values = vec![0.0, -0.0, 1.0, 65504.0, 65519.9, 65520.0, 1e39, -1e300, f64::INFINITY, 5e-324, 6e-8];
        for exponent in -30..20 {
            for mantissa in 0..16 {
                let base = 2f64.powi(exponent) * (1.0 + f64::from(mantissa) / 16.0);
                for step in [1.0 / 2048.0, 1.0 / 256.0, 1.0 / 512.0] {
                    values.extend([base, base * (1.0 + step), base * (1.0 + step + 2f64.powi(-40))]);
                    values.push(-base * (1.0 + step - 2f64.powi(-40)));
                }
            }
        }
        values
    }

    #[test]
    fn every_path_rounds_once_to_the_nearest() {
        use DType::*;
        for (name, table) in all() {
            for (i, from) in [Float16, Bfloat16, Float32, Float64].into_iter().enumerate() {
                // What the source type holds exactly.
                let values = decode(from, &encode(from, &tricky()));
                let bytes = encode(from, &values);
                for (j, to) in [Float16, Bfloat16, Float32, Float64].into_iter().enumerate() {
                    let Some(converter) = table[i][j].filter(|_| i != j) else { continue };
                    let found = run(converter, from, to, &bytes, 3);
                    assert_eq!(found, encode(to, &values), "{name}: {} to {}", from.name(), to.name());
                }
            }
        }
    }

    #[test]
    fn eight_bit_floats_come_back_as_they_went_and_saturate() {
        use DType::*;
        for (name, table) in all() {
            for (at, top) in [(4, 448.0), (5, 57344.0f32)] {
                let codes: Vec<u8> = (0..=255).collect();
                for wide in [0, 1, 2, 3] {
                    let (narrow, wide_type) = (FLOATS[at], FLOATS[wide]);
                    let up = run(table[at][wide].unwrap(), narrow, wide_type, &codes, 1);
                    let down = run(table[wide][at].unwrap(), wide_type, narrow, &up, 0);
                    for (code, back) in codes.iter().zip(down) {
                        let (magnitude, nan) = (code & 0x7f, if at == 4 { 0x7f } else { 0x7d });
                        let special = if at == 4 { magnitude == 0x7f } else { magnitude > 0x7c };
                        let infinite = at == 5 && magnitude == 0x7c;
                        let expected = match (special, infinite) {
                            (true, _) => back | 0x80,
                            (_, true) => code - 1,
                            _ => *code,
                        };
                        let back = if special { back | 0x80 } else { back };
                        assert_eq!(back, expected, "{name}: {code:#x} of {}, nan {nan:#x}", narrow.name());
                    }
                }
                let large: Vec<u8> =
                    [1e9f32, f32::INFINITY, -1e9].iter().flat_map(|value| value.to_le_bytes()).collect();
                let saturated = run(table[2][at].unwrap(), Float32, FLOATS[at], &large, 0);
                let values = run(table[at][2].unwrap(), FLOATS[at], Float32, &saturated, 0);
                assert_eq!(decode(Float32, &values), [top, top, -top].map(f64::from), "{name}");
            }
        }
    }

    #[test]
    fn any_count_is_converted_and_nothing_behind_it() {
        for (_, table) in all() {
            for count in 0..100 {
                let values: Vec<f64> = (0..count).map(f64::from).collect();
                let bytes = encode(DType::Float32, &values);
                let found = run(table[2][1].unwrap(), DType::Float32, DType::Bfloat16, &bytes, 5);
                assert_eq!(found, encode(DType::Bfloat16, &values));
            }
        }
    }
}
