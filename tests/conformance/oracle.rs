//! What a reduction is, written from its definition and sharing no code with the library: element by element, in
//! rank order, in the type that the definition names, rounded once.

use std::{cmp::Ordering, sync::OnceLock};

use half::{bf16, f16};
use tutti::dtype::{DType, Op};

/// The reduction of the ranks' contributions.
pub(crate) fn reduce(dtype: DType, op: Op, ranks: &[Vec<u8>]) -> Vec<u8> {
    let size = dtype.size();
    let elements = ranks[0].len() / size;
    (0..elements)
        .flat_map(|i| {
            let column: Vec<&[u8]> = ranks.iter().map(|rank| &rank[i * size..(i + 1) * size]).collect();
            element(dtype, op, &column)
        })
        .collect()
}

/// Whether two results are the same: bit for bit, but any NaN for a NaN.
pub(crate) fn same(dtype: DType, expected: &[u8], got: &[u8]) -> Result<(), String> {
    let size = dtype.size();
    for (i, (expected, got)) in expected.chunks(size).zip(got.chunks(size)).enumerate() {
        if expected != got && !(is_nan(dtype, expected) && is_nan(dtype, got)) {
            return Err(format!("element {i} is {got:02x?}, not {expected:02x?}"));
        }
    }
    if expected.len() == got.len() { Ok(()) } else { Err("the lengths differ".into()) }
}

macro_rules! bytes {
    ($type:ty, $bytes:expr) => {
        <$type>::from_ne_bytes($bytes.try_into().unwrap())
    };
}

fn element(dtype: DType, op: Op, column: &[&[u8]]) -> Vec<u8> {
    // A world of one copies.
    if let [only] = column {
        return only.to_vec();
    }
    macro_rules! integer {
        ($type:ty) => {{
            let values = column.iter().map(|bytes| bytes!($type, *bytes));
            let result: $type = match op {
                Op::Sum => values.fold(0, <$type>::wrapping_add),
                Op::Prod => values.fold(1, <$type>::wrapping_mul),
                Op::Max => values.max().unwrap(),
                Op::Min => values.min().unwrap(),
                Op::Avg => (i128::from(values.fold(0, <$type>::wrapping_add)) / column.len() as i128) as $type,
            };
            result.to_ne_bytes().to_vec()
        }};
    }
    macro_rules! float {
        ($type:ty, $decode:expr, $encode:expr) => {{
            let values: Vec<$type> = column.iter().map(|bytes| $decode(bytes)).collect();
            let result = match op {
                Op::Sum => values[1..].iter().fold(values[0], |a, b| a + b),
                Op::Prod => values[1..].iter().fold(values[0], |a, b| a * b),
                // One of the inputs, as it is.
                Op::Max | Op::Min => {
                    let above = |a: $type, b: $type| a > b || a == b && b.is_sign_negative() && !a.is_sign_negative();
                    let beats = |a: $type, b: $type| if op == Op::Max { above(a, b) } else { above(b, a) };
                    return column[extreme(&values, beats)].to_vec();
                }
                Op::Avg => values[1..].iter().fold(values[0], |a, b| a + b) / column.len() as $type,
            };
            $encode(result)
        }};
    }
    match dtype {
        DType::Int8 => integer!(i8),
        DType::Uint8 => integer!(u8),
        DType::Int32 => integer!(i32),
        DType::Uint32 => integer!(u32),
        DType::Int64 => integer!(i64),
        DType::Uint64 => integer!(u64),
        DType::Float32 => float!(f32, |b: &[u8]| bytes!(f32, b), |x: f32| x.to_ne_bytes().to_vec()),
        DType::Float64 => float!(f64, |b: &[u8]| bytes!(f64, b), |x: f64| x.to_ne_bytes().to_vec()),
        DType::Float16 => {
            float!(f32, |b: &[u8]| bytes!(f16, b).to_f32(), |x: f32| f16::from_f32(x).to_ne_bytes().to_vec())
        }
        DType::Bfloat16 => {
            float!(f32, |b: &[u8]| bytes!(bf16, b).to_f32(), |x: f32| bf16::from_f32(x).to_ne_bytes().to_vec())
        }
        DType::Float8E4M3 | DType::Float8E5M2 => {
            float!(f32, |b: &[u8]| decode_fp8(dtype, b[0]), |x: f32| vec![encode_fp8(dtype, x)])
        }
        DType::Bool | DType::Int16 | DType::Bytes => unreachable!("nothing is reduced in {dtype:?}"),
    }
}

trait MaybeNan: Copy {
    fn nan(self) -> bool;
}

impl MaybeNan for f32 {
    fn nan(self) -> bool {
        self.is_nan()
    }
}

impl MaybeNan for f64 {
    fn nan(self) -> bool {
        self.is_nan()
    }
}

/// Where a NaN is, if there is one, else the value that beats all others.
fn extreme<T: MaybeNan>(values: &[T], beats: impl Fn(T, T) -> bool) -> usize {
    let nan = values.iter().position(|value| value.nan());
    nan.unwrap_or_else(|| (1..values.len()).fold(0, |best, i| if beats(values[i], values[best]) { i } else { best }))
}

fn is_nan(dtype: DType, bytes: &[u8]) -> bool {
    match dtype {
        DType::Float16 => bytes!(f16, bytes).is_nan(),
        DType::Bfloat16 => bytes!(bf16, bytes).is_nan(),
        DType::Float32 => bytes!(f32, bytes).is_nan(),
        DType::Float64 => bytes!(f64, bytes).is_nan(),
        DType::Float8E4M3 | DType::Float8E5M2 => decode_fp8(dtype, bytes[0]).is_nan(),
        _ => false,
    }
}

/// An 8-bit float by the formula of its format (OCP 8-bit floating point, version 1.0).
fn decode_fp8(dtype: DType, code: u8) -> f32 {
    let (mantissa_bits, bias) = if dtype == DType::Float8E4M3 { (3, 7) } else { (2, 15) };
    let sign = if code & 0x80 != 0 { -1.0 } else { 1.0 };
    let exponent = i32::from((code & 0x7f) >> mantissa_bits);
    let mantissa = f32::from(code & ((1 << mantissa_bits) - 1));
    let one = f32::from(1_u8 << mantissa_bits);
    match dtype {
        DType::Float8E4M3 if code & 0x7f == 0x7f => return f32::NAN,
        DType::Float8E5M2 if code & 0x7f > 0x7c => return f32::NAN,
        DType::Float8E5M2 if code & 0x7f == 0x7c => return sign * f32::INFINITY,
        _ => {}
    }
    match exponent {
        0 => sign * mantissa / one * 2_f32.powi(1 - bias),
        _ => sign * (1.0 + mantissa / one) * 2_f32.powi(exponent - bias),
    }
}

/// The nearest finite code, the even one of two equally near; codes of one sign are in the order of their values.
fn encode_fp8(dtype: DType, value: f32) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    let values = finite_fp8(dtype);
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = f64::from(value.abs());
    let above = values.partition_point(|value| *value < magnitude);
    let code = match (above.checked_sub(1), values.get(above)) {
        (None, _) => above,
        (Some(below), None) => below,
        (Some(below), Some(next)) => match (magnitude - values[below]).total_cmp(&(next - magnitude)) {
            Ordering::Less => below,
            Ordering::Greater => above,
            Ordering::Equal => below + (below & 1),
        },
    };
    sign | code as u8
}

/// The values of the finite codes from 0 on.
fn finite_fp8(dtype: DType) -> &'static [f64] {
    static TABLES: [OnceLock<Vec<f64>>; 2] = [const { OnceLock::new() }; 2];
    TABLES[usize::from(dtype == DType::Float8E4M3)].get_or_init(|| {
        (0..=0x7f).map(|code| f64::from(decode_fp8(dtype, code))).filter(|value| value.is_finite()).collect()
    })
}
