//! Element types, reduction operations and collectives, with NCCL's numbers so that engines can pass theirs through.

use crate::error::{Error, Result};

/// The type of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names say it")]
pub enum DType {
    Int8 = 0,
    Uint8 = 1,
    Int32 = 2,
    Uint32 = 3,
    Int64 = 4,
    Uint64 = 5,
    Float16 = 6,
    Float32 = 7,
    Float64 = 8,
    Bfloat16 = 9,
    Float8E4M3 = 10,
    Float8E5M2 = 11,
    /// One byte, moved but never reduced.
    Bool = 100,
    /// Two bytes, moved but never reduced.
    Int16 = 101,
    /// One opaque byte, moved but never reduced.
    Bytes = 102,
}

/// The element types that can be reduced, in the order of their numbers.
pub const REDUCIBLE: [DType; 12] = [
    DType::Int8,
    DType::Uint8,
    DType::Int32,
    DType::Uint32,
    DType::Int64,
    DType::Uint64,
    DType::Float16,
    DType::Float32,
    DType::Float64,
    DType::Bfloat16,
    DType::Float8E4M3,
    DType::Float8E5M2,
];

impl DType {
    /// Parses the number a caller passed.
    #[inline]
    pub fn parse(code: i32) -> Result<Self> {
        match code {
            0..=11 => Ok(REDUCIBLE[code as usize]),
            100 => Ok(DType::Bool),
            101 => Ok(DType::Int16),
            102 => Ok(DType::Bytes),
            _ => Err(no_dtype(code)),
        }
    }

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        use DType::*;
        match self {
            Int8 | Uint8 | Float8E4M3 | Float8E5M2 | Bool | Bytes => 1,
            Float16 | Bfloat16 | Int16 => 2,
            Int32 | Uint32 | Float32 => 4,
            Int64 | Uint64 | Float64 => 8,
        }
    }

    /// Whether elements can be reduced, or only moved.
    pub const fn is_reducible(self) -> bool {
        !matches!(self, DType::Bool | DType::Int16 | DType::Bytes)
    }

    /// The name used in texts and tables.
    pub const fn name(self) -> &'static str {
        use DType::*;
        match self {
            Int8 => "int8",
            Uint8 => "uint8",
            Int32 => "int32",
            Uint32 => "uint32",
            Int64 => "int64",
            Uint64 => "uint64",
            Float16 => "float16",
            Float32 => "float32",
            Float64 => "float64",
            Bfloat16 => "bfloat16",
            Float8E4M3 => "float8e4m3",
            Float8E5M2 => "float8e5m2",
            Bool => "bool",
            Int16 => "int16",
            Bytes => "bytes",
        }
    }
}

#[cold]
fn no_dtype(code: i32) -> Error {
    Error::invalid(format_args!(
        "{code} is no dtype (0..11 as in NCCL: int8, uint8, int32, uint32, int64, uint64, float16, float32, float64, \
         bfloat16, float8e4m3, float8e5m2; 100 bool, 101 int16, 102 bytes)"
    ))
}

/// How elements are reduced over the ranks.
///
/// Sums and products of 16- and 8-bit floats are taken in fp32 in rank order and rounded once; integer sums wrap;
/// `Avg` divides the accumulated sum once (integers truncate); `Max` and `Min` propagate NaN and order -0 below +0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Op {
    Sum = 0,
    Prod = 1,
    Max = 2,
    Min = 3,
    Avg = 4,
}

/// All operations, in the order of their numbers.
pub const OPS: [Op; 5] = [Op::Sum, Op::Prod, Op::Max, Op::Min, Op::Avg];

impl Op {
    /// Parses the number a caller passed.
    #[inline]
    pub fn parse(code: i32) -> Result<Self> {
        let op = usize::try_from(code).ok().and_then(|index| OPS.get(index));
        op.copied().ok_or_else(|| no_op(code))
    }

    /// The name used in texts and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Op::Sum => "sum",
            Op::Prod => "prod",
            Op::Max => "max",
            Op::Min => "min",
            Op::Avg => "avg",
        }
    }
}

#[cold]
fn no_op(code: i32) -> Error {
    Error::invalid(format_args!("{code} is no reduction (sum 0, prod 1, max 2, min 3, avg 4)"))
}

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Collective {
    AllReduce = 0,
    AllGather = 1,
    ReduceScatter = 2,
    Broadcast = 3,
    Reduce = 4,
    Gather = 5,
    Scatter = 6,
    AllToAll = 7,
    Send = 8,
    Recv = 9,
    Barrier = 10,
    AllGatherV = 11,
    ReduceScatterV = 12,
    AllToAllV = 13,
}

/// All collectives, in the order of their numbers.
pub const COLLECTIVES: [Collective; 14] = {
    use Collective::*;
    [
        AllReduce,
        AllGather,
        ReduceScatter,
        Broadcast,
        Reduce,
        Gather,
        Scatter,
        AllToAll,
        Send,
        Recv,
        Barrier,
        AllGatherV,
        ReduceScatterV,
        AllToAllV,
    ]
};

impl Collective {
    /// Parses the number a caller passed.
    pub fn parse(code: i32) -> Result<Self> {
        COLLECTIVES.into_iter().find(|collective| *collective as i32 == code).ok_or_else(|| {
            Error::invalid(format_args!("{code} is no collective (0 all_reduce .. 13 all_to_all_v, see the header)"))
        })
    }

    /// The name used in texts and tables; `tutti_` in front of it is the C function.
    pub const fn name(self) -> &'static str {
        use Collective::*;
        match self {
            AllReduce => "all_reduce",
            AllGather => "all_gather",
            ReduceScatter => "reduce_scatter",
            Broadcast => "broadcast",
            Reduce => "reduce",
            Gather => "gather",
            Scatter => "scatter",
            AllToAll => "all_to_all",
            Send => "send",
            Recv => "recv",
            Barrier => "barrier",
            AllGatherV => "all_gather_v",
            ReduceScatterV => "reduce_scatter_v",
            AllToAllV => "all_to_all_v",
        }
    }

    /// Whether elements are reduced, so that the call has an [`Op`].
    pub const fn reduces(self) -> bool {
        use Collective::*;
        matches!(self, AllReduce | ReduceScatter | Reduce | ReduceScatterV)
    }

    /// Whether this is one side of a message between two ranks, and no call of all ranks.
    pub const fn is_letter(self) -> bool {
        matches!(self, Collective::Send | Collective::Recv)
    }

    /// Whether this is a v-form, whose parts differ in size from rank to rank.
    pub const fn is_uneven(self) -> bool {
        matches!(self, Collective::AllGatherV | Collective::ReduceScatterV | Collective::AllToAllV)
    }

    /// Whether the call has a root.
    pub const fn has_root(self) -> bool {
        use Collective::*;
        matches!(self, Broadcast | Reduce | Gather | Scatter)
    }
}
