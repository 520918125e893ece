// The reducing kernels for fp16.
#include "entries.cuh"

TUTTI_REDUCING_KERNELS(float16, tutti::Float16)
