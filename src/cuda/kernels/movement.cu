// The kernels that move bytes, for all types.
#include "entries.cuh"

TUTTI_MOVING_KERNELS
