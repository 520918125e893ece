// The reducing kernels for fp32.
#include "entries.cuh"

TUTTI_REDUCING_KERNELS(float32, tutti::Float32)
