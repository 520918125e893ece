// The names under which the host finds the kernels: collective, algorithm and, where elements matter, their type.
#pragma once

#include "all_gather.cuh"
#include "all_reduce.cuh"
#include "broadcast.cuh"
#include "reduce_scatter.cuh"

#define TUTTI_ENTRY(name, function) \
    TUTTI_KERNEL(name) { function(params); }

#define TUTTI_MOVING_KERNELS                                   \
    TUTTI_ENTRY(all_gather_push, tutti::all_gather_push)       \
    TUTTI_ENTRY(all_gather_pull, tutti::all_gather_pull)       \
    TUTTI_ENTRY(broadcast_push, tutti::broadcast_push)         \
    TUTTI_ENTRY(broadcast_pull, tutti::broadcast_pull)

#define TUTTI_REDUCING_KERNELS(type, Element)                                              \
    TUTTI_ENTRY(all_reduce_push_one_shot_##type, tutti::all_reduce_push_one_shot<Element>) \
    TUTTI_ENTRY(all_reduce_push_two_shot_##type, tutti::all_reduce_push_two_shot<Element>) \
    TUTTI_ENTRY(all_reduce_pull_one_shot_##type, tutti::all_reduce_pull_one_shot<Element>) \
    TUTTI_ENTRY(all_reduce_pull_two_shot_##type, tutti::all_reduce_pull_two_shot<Element>) \
    TUTTI_ENTRY(reduce_scatter_push_##type, tutti::reduce_scatter_push<Element>)           \
    TUTTI_ENTRY(reduce_scatter_pull_##type, tutti::reduce_scatter_pull<Element>)
