//! Arithmetic of elements for the simulated ranks and the oracle: slow, and plain to see.

use half::{bf16, f16};
use tutti::dtype::{DType, Op};
use tutti::transfer::{Item, Placement};

use crate::random::Random;

/// Random elements: any bytes for integers; small integers for floats, so that sums of some of them are exact.
pub(crate) fn random(dtype: DType, elements: usize, random: &mut Random) -> Vec<u8> {
    if !is_float(dtype) {
        return (0..elements * dtype.size()).map(|_| random.next() as u8).collect();
    }
    (0..elements).flat_map(|_| encode(dtype, random.below(33) as f64 - 16.0)).collect()
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::Float16 | DType::Float32 | DType::Float64 | DType::Bfloat16)
}

fn decode(dtype: DType, bytes: &[u8]) -> f64 {
    match dtype {
        DType::Float16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        DType::Bfloat16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        DType::Float32 => f32::from_le_bytes(bytes.try_into().unwrap()).into(),
        DType::Float64 => f64::from_le_bytes(bytes.try_into().unwrap()),
        other => panic!("{} is no float of these tests", other.name()),
    }
}

fn encode(dtype: DType, value: f64) -> Vec<u8> {
    match dtype {
        DType::Float16 => f16::from_f64(value).to_le_bytes().to_vec(),
        DType::Bfloat16 => bf16::from_f64(value).to_le_bytes().to_vec(),
        DType::Float32 => (value as f32).to_le_bytes().to_vec(),
        DType::Float64 => value.to_le_bytes().to_vec(),
        other => panic!("{} is no float of these tests", other.name()),
    }
}

/// Elements of one type as elements of another.
pub(crate) fn cast(from: DType, to: DType, data: &[u8]) -> Vec<u8> {
    if from == to {
        return data.to_vec();
    }
    data.chunks(from.size()).flat_map(|element| encode(to, decode(from, element))).collect()
}

/// The operation and the divisor that a source layout asks for.
pub(crate) fn reduction(item: &Item) -> Option<(Op, u32)> {
    let mut found = None;
    for (placement, parts) in item.source.placements.iter().zip(item.source.mesh.dims()) {
        if let Placement::Partial(op) = placement {
            let (_, divisor) = found.unwrap_or((*op, 1));
            found = Some(if *op == Op::Avg { (Op::Sum, divisor * parts) } else { (*op, divisor) });
        }
    }
    found
}

/// Element by element over all contributions, in their order; 16-bit floats in fp32, rounded once.
pub(crate) fn reduce(dtype: DType, op: Op, divisor: u32, parts: &[&[u8]]) -> Vec<u8> {
    let size = dtype.size();
    let element = |at: usize| -> Vec<u8> {
        let contributions = parts.iter().map(|part| &part[at * size..(at + 1) * size]);
        if is_float(dtype) {
            let values = contributions.map(|bytes| decode(dtype, bytes));
            let total = if dtype == DType::Float64 {
                values.reduce(|left, right| float(op, left, right)).unwrap() / f64::from(divisor)
            } else {
                let single = values.reduce(|left, right| f64::from(float(op, left, right) as f32)).unwrap();
                (single as f32 / divisor as f32).into()
            };
            return encode(dtype, total);
        }
        let signed = matches!(dtype, DType::Int8 | DType::Int32 | DType::Int64);
        let values = contributions.map(|bytes| integer(bytes, signed));
        let wrap = |value: i128| integer(&value.to_le_bytes()[..size], signed);
        let total = values.reduce(|left, right| wrap(whole(op, left, right))).unwrap();
        (total / i128::from(divisor)).to_le_bytes()[..size].to_vec()
    };
    (0..parts[0].len() / size).flat_map(element).collect()
}

fn float(op: Op, left: f64, right: f64) -> f64 {
    match op {
        Op::Sum | Op::Avg => left + right,
        Op::Prod => left * right,
        Op::Max => left.max(right),
        Op::Min => left.min(right),
    }
}

fn whole(op: Op, left: i128, right: i128) -> i128 {
    match op {
        Op::Sum | Op::Avg => left + right,
        Op::Prod => left.wrapping_mul(right),
        Op::Max => left.max(right),
        Op::Min => left.min(right),
    }
}

fn integer(bytes: &[u8], signed: bool) -> i128 {
    let fill = if signed && bytes[bytes.len() - 1] >= 0x80 { 0xff } else { 0 };
    let mut wide = [fill; 16];
    wide[..bytes.len()].copy_from_slice(bytes);
    i128::from_le_bytes(wide)
}
