//! Every path against an oracle that is written from the definition: values are exact in fp64, rounding is a search
//! for the nearest, and nothing is shared with the code under test.

use half::{bf16, f16};
use proptest::prelude::*;

use super::{
    codec::{Bf16, Codec, E4m3, E5m2, F16},
    modes, path, reduce,
};
use crate::dtype::{DType, OPS, Op, REDUCIBLE};

/// A float format by its definition.
struct Format {
    exponent: u32,
    mantissa: u32,
    /// Greatest finite code.
    finite: u64,
    /// Code of infinity; `None` where the format has none.
    infinity: Option<u64>,
    nan: u64,
    saturates: bool,
}

const HALF: Format =
    Format { exponent: 5, mantissa: 10, finite: 0x7bff, infinity: Some(0x7c00), nan: 0x7e00, saturates: false };
const BRAIN: Format =
    Format { exponent: 8, mantissa: 7, finite: 0x7f7f, infinity: Some(0x7f80), nan: 0x7fc0, saturates: false };
const E4M3: Format = Format { exponent: 4, mantissa: 3, finite: 0x7e, infinity: None, nan: 0x7f, saturates: true };
const E5M2: Format =
    Format { exponent: 5, mantissa: 2, finite: 0x7b, infinity: Some(0x7c), nan: 0x7e, saturates: true };

impl Format {
    fn of(dtype: DType) -> Option<Self> {
        Some(match dtype {
            DType::Float16 => HALF,
            DType::Bfloat16 => BRAIN,
            DType::Float8E4M3 => E4M3,
            DType::Float8E5M2 => E5M2,
            _ => return None,
        })
    }

    fn sign(&self) -> u64 {
        1 << (self.exponent + self.mantissa)
    }

    /// What a code without sign stands for, as if all exponents were those of numbers.
    fn magnitude(&self, code: u64) -> f64 {
        let bias = (1 << (self.exponent - 1)) - 1;
        let fraction = (code % (1 << self.mantissa)) as f64 / f64::from(1 << self.mantissa);
        match (code >> self.mantissa) as i32 {
            0 => fraction * 2_f64.powi(1 - bias),
            exponent => (1.0 + fraction) * 2_f64.powi(exponent - bias),
        }
    }

    fn decode(&self, code: u64) -> f64 {
        let magnitude = code & (self.sign() - 1);
        let value = if magnitude <= self.finite {
            self.magnitude(magnitude)
        } else if Some(magnitude) == self.infinity {
            f64::INFINITY
        } else {
            return f64::NAN;
        };
        if code & self.sign() == 0 { value } else { -value }
    }

    fn encode(&self, value: f64) -> u64 {
        if value.is_nan() {
            return self.nan;
        }
        let sign = if value.is_sign_negative() { self.sign() } else { 0 };
        let value = value.abs();
        // The greatest code whose value is no more, among the finite ones.
        let (mut below, mut above) = (0, self.finite + 1);
        while above - below > 1 {
            let middle = (below + above) / 2;
            if self.magnitude(middle) <= value { below = middle } else { above = middle }
        }
        let middle = (self.magnitude(below) + self.magnitude(above)) / 2.0;
        let up = value > middle || value == middle && below % 2 == 1;
        let nearest = if up { above } else { below };
        sign | if nearest <= self.finite || !self.saturates { nearest } else { self.finite }
    }
}

/// The reduction of one element of each rank, by the book. Elements are bit patterns.
fn oracle(dtype: DType, op: Op, elements: &[u64]) -> u64 {
    match dtype {
        DType::Int8 | DType::Int32 | DType::Int64 => {
            let bits = 8 * dtype.size() as u32;
            let wrap = |value: i128| (value << (128 - bits)) >> (128 - bits);
            let values = elements.iter().map(|element| wrap(*element as i128));
            let result = integer(op, values, wrap, elements.len());
            result as u64 & u64::MAX >> (64 - bits)
        }
        DType::Uint8 | DType::Uint32 | DType::Uint64 => {
            let mask = (u64::MAX >> (64 - 8 * dtype.size())) as i128;
            integer(op, elements.iter().map(|element| *element as i128), |value| value & mask, elements.len()) as u64
        }
        DType::Float32 if matches!(op, Op::Max | Op::Min) => {
            let winner = extreme(op, elements, |bits| f64::from(f32::from_bits(bits as u32)));
            winner.unwrap_or(0x7fc0_0000)
        }
        DType::Float64 if matches!(op, Op::Max | Op::Min) => {
            extreme(op, elements, f64::from_bits).unwrap_or(0x7ff8_0000_0000_0000)
        }
        DType::Float32 => {
            let result = arithmetic_f32(op, elements.iter().map(|bits| f32::from_bits(*bits as u32)), elements.len());
            if result.is_nan() { 0x7fc0_0000 } else { result.to_bits().into() }
        }
        DType::Float64 => {
            let values: Vec<f64> = elements.iter().map(|bits| f64::from_bits(*bits)).collect();
            let mut result = values[0];
            for value in &values[1..] {
                result = if op == Op::Prod { result * value } else { result + value };
            }
            let result = if op == Op::Avg { result / elements.len() as f64 } else { result };
            if result.is_nan() { 0x7ff8_0000_0000_0000 } else { result.to_bits() }
        }
        _ => {
            let format = Format::of(dtype).expect("all others are small floats");
            if matches!(op, Op::Max | Op::Min) {
                return extreme(op, elements, |bits| format.decode(bits)).unwrap_or(format.nan);
            }
            let values = elements.iter().map(|bits| format.decode(*bits) as f32);
            format.encode(arithmetic_f32(op, values, elements.len()).into())
        }
    }
}

fn integer(op: Op, values: impl Iterator<Item = i128>, wrap: impl Fn(i128) -> i128, ranks: usize) -> i128 {
    let result = values
        .reduce(|a, b| match op {
            Op::Sum | Op::Avg => wrap(a + b),
            Op::Prod => wrap(a.wrapping_mul(b)),
            Op::Max => a.max(b),
            Op::Min => a.min(b),
        })
        .expect("at least one rank");
    if op == Op::Avg { result / ranks as i128 } else { result }
}

fn arithmetic_f32(op: Op, mut values: impl Iterator<Item = f32>, ranks: usize) -> f32 {
    let mut result = values.next().expect("at least one rank");
    for value in values {
        result = if op == Op::Prod { result * value } else { result + value };
    }
    if op == Op::Avg { result / ranks as f32 } else { result }
}

/// The bits of the winner; `None` where one element is NaN.
fn extreme(op: Op, elements: &[u64], decode: impl Fn(u64) -> f64) -> Option<u64> {
    if elements.iter().any(|bits| decode(*bits).is_nan()) {
        return None;
    }
    // `total_cmp` is the order that is wanted once NaN is out of the way.
    let order = |a: &&u64, b: &&u64| decode(**a).total_cmp(&decode(**b));
    if op == Op::Max { elements.iter().max_by(order) } else { elements.iter().min_by(order) }.copied()
}

/// Elements of one rank in memory, `offset` bytes away from alignment.
fn memory(dtype: DType, elements: impl Iterator<Item = u64>, offset: usize) -> Vec<u8> {
    let mut bytes = vec![0xa5; offset];
    for element in elements {
        bytes.extend_from_slice(&element.to_le_bytes()[..dtype.size()]);
    }
    bytes
}

fn element(dtype: DType, bytes: &[u8], index: usize) -> u64 {
    let mut element = [0; 8];
    element[..dtype.size()].copy_from_slice(&bytes[index * dtype.size()..][..dtype.size()]);
    u64::from_le_bytes(element)
}

/// Checks all paths on these elements, `ranks[r][i]`, out of place.
fn check(dtype: DType, op: Op, ranks: &[Vec<u64>]) {
    let count = ranks[0].len();
    let sources: Vec<Vec<u8>> = ranks.iter().map(|rank| memory(dtype, rank.iter().copied(), 0)).collect();
    let pointers: Vec<*const u8> = sources.iter().map(|source| source.as_ptr()).collect();
    let expected: Vec<u64> =
        (0..count).map(|i| oracle(dtype, op, &ranks.iter().map(|rank| rank[i]).collect::<Vec<_>>())).collect();
    for (name, table) in path::all() {
        let mut dst = vec![0; count * dtype.size()];
        // SAFETY: all buffers hold `count` elements, and the path is one of those that run here.
        unsafe { table[dtype as usize][op as usize](&pointers, dst.as_mut_ptr(), count, ranks.len()) };
        for (i, expected) in expected.iter().enumerate() {
            let found = element(dtype, &dst, i);
            let elements = || ranks.iter().map(|rank| rank[i]).collect::<Vec<_>>();
            assert!(
                found == *expected,
                "{name}: {} {} of {:#x?} at {i} is {found:#x}, not {expected:#x}",
                dtype.name(),
                op.name(),
                elements()
            );
        }
    }
}

/// The bit patterns at which formats go wrong.
fn special(dtype: DType) -> Vec<u64> {
    let bits = 8 * dtype.size() as u32;
    let sign = 1_u64 << (bits - 1);
    let float = |infinity: u64, mantissa: u32| {
        let one = 1_u64 << mantissa;
        let bias = infinity / one / 2 * one;
        [
            0,
            1,
            2,
            one - 1,
            one,
            one + 1,
            bias - one,
            bias - 1,
            bias,
            bias + 1,
            bias + one,
            bias + one * 3 / 2,
            bias + one * u64::from(mantissa),
            infinity - one,
            infinity - 1,
            infinity,
            infinity + 1,
            infinity + one / 2,
            sign - 1,
        ]
        .into_iter()
        .flat_map(|code| [code, code | sign])
        .collect()
    };
    match dtype {
        DType::Float16 => float(0x7c00, 10),
        DType::Bfloat16 => float(0x7f80, 7),
        DType::Float32 => float(0x7f80_0000, 23),
        DType::Float64 => float(0x7ff0 << 48, 52),
        DType::Float8E4M3 | DType::Float8E5M2 => (0..256).collect(),
        _ => {
            let mask = u64::MAX >> (64 - bits);
            [0, 1, 2, 3, 7, sign - 2, sign - 1, sign, sign + 1, mask - 2, mask - 1, mask, 0x5555_5555_5555_5555 & mask]
                .into()
        }
    }
}

#[test]
fn every_pair_of_special_values_is_reduced_by_the_book() {
    for dtype in REDUCIBLE {
        let values = special(dtype);
        let pairs = || values.iter().flat_map(|a| values.iter().map(move |b| (*a, *b)));
        let ranks = [pairs().map(|(a, _)| a).collect(), pairs().map(|(_, b)| b).collect()];
        for op in OPS {
            check(dtype, op, &ranks);
        }
    }
}

#[test]
fn every_three_special_values_are_reduced_by_the_book() {
    for dtype in REDUCIBLE {
        let mut values = special(dtype);
        if values.len() > 40 {
            values.retain(|code| [0, 1, 7, 8, 0x38, 0x3c, 0x77, 0x7b, 0x7c, 0x7e, 0x7f].contains(&(code & 0x7f)));
        }
        let n = values.len();
        let rank = |divisor: usize| (0..n * n * n).map(|i| values[i / divisor % n]).collect();
        let ranks = [rank(1), rank(n), rank(n * n)];
        for op in OPS {
            check(dtype, op, &ranks);
        }
    }
}

#[test]
fn every_16_bit_float_meets_every_special_one() {
    for dtype in [DType::Float16, DType::Bfloat16] {
        let all: Vec<u64> = (0..=0xffff).collect();
        for other in special(dtype).into_iter().step_by(3) {
            for op in OPS {
                check(dtype, op, &[all.clone(), vec![other; all.len()]]);
            }
        }
    }
}

/// All fp32 values at which rounding to a format may turn: its values, the midpoints between them, and their neighbours.
fn turning_points(format: &Format) -> Vec<f32> {
    let mut points =
        vec![0.0, f32::from_bits(1), f32::MIN_POSITIVE, f32::MAX, f32::INFINITY, f32::NAN, f32::from_bits(0x7f80_0001)];
    for code in 0..=format.finite {
        let value = format.magnitude(code);
        for point in [value, (value + format.magnitude(code + 1)) / 2.0] {
            let bits = (point as f32).to_bits();
            points.extend([bits.saturating_sub(1), bits, bits + 1].map(f32::from_bits));
        }
    }
    points.iter().flat_map(|point| [*point, -*point]).collect()
}

fn converts<C: Codec<Acc = f32>>(format: &Format, raw: impl Fn(u64) -> C::Raw, code: impl Fn(C::Raw) -> u64) {
    for bits in 0..2 * format.sign() {
        let (found, expected) = (C::decode(raw(bits)), format.decode(bits) as f32);
        assert!(
            found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
            "{bits:#x} is read as {found}"
        );
    }
    for point in turning_points(format) {
        let (found, expected) = (code(C::encode(point)), format.encode(point.into()));
        assert!(found == expected, "{point:e} is written as {found:#x}, not {expected:#x}");
    }
}

#[test]
fn small_floats_are_read_exactly_and_written_to_the_nearest() {
    converts::<F16>(&HALF, |bits| bits as u16, u64::from);
    converts::<Bf16>(&BRAIN, |bits| bits as u16, u64::from);
    converts::<E4m3>(&E4M3, |bits| bits as u8, u64::from);
    converts::<E5m2>(&E5M2, |bits| bits as u8, u64::from);
}

#[test]
fn the_half_crate_reads_and_writes_the_same() {
    for bits in 0..=u16::MAX {
        let (ours, theirs) = (F16::decode(bits), f16::from_bits(bits).to_f32());
        assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#x}");
        let (ours, theirs) = (Bf16::decode(bits), bf16::from_bits(bits).to_f32());
        assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#x}");
    }
    for point in turning_points(&HALF).into_iter().filter(|point| !point.is_nan()) {
        assert_eq!(F16::encode(point), f16::from_f32(point).to_bits(), "{point:e}");
    }
    for point in turning_points(&BRAIN).into_iter().filter(|point| !point.is_nan()) {
        assert_eq!(Bf16::encode(point), bf16::from_f32(point).to_bits(), "{point:e}");
    }
}

#[test]
fn known_values_come_out() {
    let reduce = |dtype, op, elements: &[u64]| {
        let ranks: Vec<Vec<u64>> = elements.iter().map(|element| vec![*element]).collect();
        check(dtype, op, &ranks);
        oracle(dtype, op, elements)
    };
    assert_eq!(reduce(DType::Float8E4M3, Op::Sum, &[0x7e, 0x7e]), 0x7e, "448 + 448 is 448");
    assert_eq!(reduce(DType::Float8E4M3, Op::Sum, &[0xfe, 0xfe]), 0xfe, "-448 - 448 is -448");
    assert_eq!(reduce(DType::Float8E4M3, Op::Max, &[0x00, 0x80]), 0x00, "0 is above -0");
    assert_eq!(reduce(DType::Float8E5M2, Op::Sum, &[0x7c, 0x3c]), 0x7b, "infinity + 1 is 57344");
    assert_eq!(reduce(DType::Float8E5M2, Op::Max, &[0x7c, 0x3c]), 0x7c, "infinity is the greatest");
    assert_eq!(reduce(DType::Float16, Op::Sum, &[0x7bff, 0x7bff]), 0x7c00, "65504 + 65504 overflows");
    assert_eq!(reduce(DType::Float16, Op::Avg, &[0x7bff, 0x7bff]), 0x7bff, "but is averaged in fp32");
    assert_eq!(reduce(DType::Int8, Op::Avg, &[0x80, 0x01]), 0xc1, "-127 / 2 is -63");
    assert_eq!(reduce(DType::Int8, Op::Avg, &[0x7f, 0x7f]), 0xff, "127 + 127 wraps to -2, and half of it is -1");
    assert_eq!(reduce(DType::Int8, Op::Sum, &[0x7f, 0x01]), 0x80, "127 + 1 is -128");
    assert_eq!(reduce(DType::Bfloat16, Op::Sum, &[0x3f80, 0x3b80]), 0x3f80, "1 + 2^-8 is a tie, and 1 is even");
    assert_eq!(reduce(DType::Bfloat16, Op::Sum, &[0x3f81, 0x3b80]), 0x3f82, "1 + 2^-7 + 2^-8 is a tie that goes up");
    assert_eq!(reduce(DType::Bfloat16, Op::Sum, &[0x3f80, 0x3b80, 0x3b80]), 0x3f81, "one rounding, at the end");
}

#[test]
fn more_ranks_than_an_element_can_count_are_averaged() {
    for (dtype, element, expected) in [
        (DType::Int8, 0x7f, 0),
        (DType::Uint8, 0xff, 0),
        (DType::Float8E4M3, 0x38, 0x38),
        (DType::Bfloat16, 0x3f80, 0x3f80),
    ] {
        let ranks = vec![vec![element; 37]; 300];
        check(dtype, Op::Avg, &ranks);
        let elements = vec![element; 300];
        assert_eq!(oracle(dtype, Op::Avg, &elements), expected, "{}", dtype.name());
    }
}

#[test]
fn integers_are_divided_as_integers() {
    for dtype in [DType::Int8, DType::Uint8, DType::Int32, DType::Uint32, DType::Int64, DType::Uint64] {
        for ranks in (2..=17).chain([100, 127, 128, 129, 255, 256, 257, 1000]) {
            // The neighbours of small and of the greatest multiples, of both signs; the other ranks add nothing.
            let mask = u64::MAX >> (64 - 8 * dtype.size());
            let multiples = (0..9)
                .chain((mask / 2 / ranks).saturating_sub(9)..=mask / 2 / ranks + 9)
                .chain((mask / ranks).saturating_sub(9)..=mask / ranks);
            let sums: Vec<u64> = multiples
                .flat_map(|multiple| [-1, 0, 1].map(|step| multiple.wrapping_mul(ranks).wrapping_add_signed(step)))
                .flat_map(|sum| [sum & mask, sum.wrapping_neg() & mask])
                .collect();
            let mut all = vec![vec![0; sums.len()]; ranks as usize];
            all[ranks as usize / 2] = sums;
            check(dtype, Op::Avg, &all);
        }
    }
}

#[test]
fn one_source_is_copied_bit_for_bit() {
    for dtype in REDUCIBLE {
        let values = special(dtype);
        let source = memory(dtype, values.iter().copied(), 0);
        for op in OPS {
            let mut dst = vec![0; source.len()];
            // SAFETY: both hold as many elements as there are values.
            unsafe { reduce(dtype, op, &[source.as_ptr()], dst.as_mut_ptr(), values.len()) };
            assert_eq!(dst, source, "{} {}", dtype.name(), op.name());
            let place = dst.as_mut_ptr();
            // SAFETY: as above, in place.
            unsafe { reduce(dtype, op, &[place], place, values.len()) };
            assert_eq!(dst, source, "{} {} in place", dtype.name(), op.name());
        }
    }
}

/// Modes of the processor that would change results: subnormals flushed; rounding down, up and to zero; all together.
#[cfg(target_arch = "x86_64")]
const MODES: [u32; 5] = [0x8040, 0x2000, 0x4000, 0x6000, 0xe040];
#[cfg(target_arch = "aarch64")]
const MODES: [u64; 5] = [1 << 24, 1 << 22, 2 << 22, 3 << 22, 7 << 22];

#[test]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn the_modes_of_the_thread_change_nothing_and_stay() {
    let bytes = |values: [f32; 3]| values.into_iter().cycle().take(99).flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    // Subnormals, and sums that are halfway between two neighbours.
    let tie = f32::EPSILON / 2.0;
    let a = bytes([f32::from_bits(3), 1.0, -1.0]);
    let b = bytes([f32::from_bits(5), tie, -tie]);
    let expected = bytes([f32::from_bits(8), 1.0, -1.0]);
    for modes in MODES {
        let mut dst = vec![0; expected.len()];
        let found = modes::read();
        modes::write(found | modes);
        // SAFETY: all buffers hold 99 elements.
        unsafe { reduce(DType::Float32, Op::Sum, &[a.as_ptr(), b.as_ptr()], dst.as_mut_ptr(), 99) };
        let left = modes::read();
        modes::write(found);
        assert_eq!(dst, expected, "with modes {modes:#x}");
        assert_eq!(left & modes::MODES, found & modes::MODES | modes, "modes {modes:#x} are given back");
    }
}

/// Counts around every step of the loops.
const COUNTS: [usize; 16] = [0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 41, 64, 67, 127, 131, 521];

/// A rank's elements: anything, but special values often.
fn elements(dtype: DType, count: usize) -> impl Strategy<Value = Vec<u64>> {
    let mask = u64::MAX >> (64 - 8 * dtype.size());
    prop::collection::vec(
        prop_oneof![prop::sample::select(special(dtype)), any::<u64>().prop_map(move |bits| bits & mask)],
        count,
    )
}

#[derive(Debug)]
struct Case {
    dtype: DType,
    op: Op,
    ranks: Vec<Vec<u64>>,
    /// Bytes by which each source, and at last the destination, is off alignment.
    offsets: Vec<usize>,
    /// The sources that are the destination.
    in_place: u8,
}

fn case() -> impl Strategy<Value = Case> {
    let what = (
        prop::sample::select(&REDUCIBLE[..]),
        prop::sample::select(&OPS[..]),
        1..=8_usize,
        prop::sample::select(&COUNTS[..]),
    );
    what.prop_flat_map(|(dtype, op, ranks, count)| {
        let ranks = prop::collection::vec(elements(dtype, count), ranks);
        let offsets = prop::collection::vec(0..8_usize, 9);
        (ranks, offsets, prop_oneof![Just(0_u8), (0..8_u8).prop_map(|source| 1 << source), any::<u8>()])
            .prop_map(move |(ranks, offsets, in_place)| Case { dtype, op, ranks, offsets, in_place })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn any_count_alignment_and_place_gives_the_same_bits(case in case()) {
        let Case { dtype, op, mut ranks, offsets, in_place } = case;
        let count = ranks[0].len();
        let is_in_place = |rank: usize| in_place >> rank & 1 == 1;
        // Sources that are one place hold the same elements.
        if let Some(first) = (0..ranks.len()).find(|rank| is_in_place(*rank)) {
            for rank in first + 1..ranks.len() {
                if is_in_place(rank) {
                    ranks[rank] = ranks[first].clone();
                }
            }
        }
        let expected: Vec<u64> = (0..count)
            .map(|i| oracle(dtype, op, &ranks.iter().map(|rank| rank[i]).collect::<Vec<_>>()))
            .collect();
        let sources: Vec<Vec<u8>> =
            ranks.iter().zip(&offsets).map(|(rank, offset)| memory(dtype, rank.iter().copied(), *offset)).collect();
        let offset = offsets[8];
        for (name, table) in path::all() {
            let here = (0..ranks.len()).find(|rank| is_in_place(*rank)).map_or(&ranks[0], |rank| &ranks[rank]);
            let mut dst = memory(dtype, here.iter().copied(), offset);
            dst.extend([0xa5; 8]);
            // SAFETY: `offset` bytes stand before the elements.
            let place = unsafe { dst.as_mut_ptr().add(offset) };
            let pointers: Vec<*const u8> = (0..ranks.len())
                .map(|rank| if is_in_place(rank) { place.cast_const() } else { sources[rank][offsets[rank]..].as_ptr() })
                .collect();
            if ranks.len() == 1 {
                // SAFETY: all buffers hold `count` elements.
                unsafe { reduce(dtype, op, &pointers, place, count) };
            } else {
                // SAFETY: as above, and the path is one of those that run here.
                unsafe { table[dtype as usize][op as usize](&pointers, place, count, pointers.len()) };
            }
            let expected = if ranks.len() == 1 { &ranks[0] } else { &expected };
            for (i, expected) in expected.iter().enumerate() {
                prop_assert_eq!(element(dtype, &dst[offset..], i), *expected, "{}: element {}", name, i);
            }
            let after = offset + count * dtype.size();
            prop_assert!(dst[..offset].iter().chain(&dst[after..]).all(|byte| *byte == 0xa5), "{} wrote beside", name);
            // The others are untouched.
            for (rank, source) in sources.iter().enumerate() {
                prop_assert_eq!(source, &memory(dtype, ranks[rank].iter().copied(), offsets[rank]));
            }
        }
    }
}
