// The reducing kernels for integers; signed and unsigned ones of a size share theirs.
#include "entries.cuh"

TUTTI_REDUCING_KERNELS(int8, tutti::Int8)
TUTTI_REDUCING_KERNELS(int32, tutti::Int32)
TUTTI_REDUCING_KERNELS(int64, tutti::Int64)
