// The reducing kernels for bf16.
#include "entries.cuh"

TUTTI_REDUCING_KERNELS(bfloat16, tutti::Bfloat16)
