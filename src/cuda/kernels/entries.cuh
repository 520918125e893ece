// The names under which the host finds the kernels: collective, algorithm and, where elements matter, their type.
#pragma once

#include "all_gather.cuh"
#include "all_reduce.cuh"
#include "broadcast.cuh"
#include "reduce_scatter.cuh"

// At least so many blocks of each fit on a multiprocessor: those that push hold the lines of eight ranks in registers.
#define TUTTI_PUSH(name, function) \
    TUTTI_KERNEL(name, 1) { function(params); }
#define TUTTI_PULL(name, function) \
    TUTTI_KERNEL(name, 2) { function(params); }

#define TUTTI_MOVING_KERNELS                            \
    TUTTI_PUSH(all_gather_push, tutti::all_gather_push) \
    TUTTI_PULL(all_gather_pull, tutti::all_gather_pull) \
    TUTTI_PUSH(broadcast_push, tutti::broadcast_push)   \
    TUTTI_PULL(broadcast_pull, tutti::broadcast_pull)

#define TUTTI_REDUCING_KERNELS(type, Element)                                             \
    TUTTI_PUSH(all_reduce_push_one_shot_##type, tutti::all_reduce_push_one_shot<Element>) \
    TUTTI_PUSH(all_reduce_push_two_shot_##type, tutti::all_reduce_push_two_shot<Element>) \
    TUTTI_PULL(all_reduce_pull_one_shot_##type, tutti::all_reduce_pull_one_shot<Element>) \
    TUTTI_PULL(all_reduce_pull_two_shot_##type, tutti::all_reduce_pull_two_shot<Element>) \
    TUTTI_PUSH(reduce_scatter_push_##type, tutti::reduce_scatter_push<Element>)           \
    TUTTI_PULL(reduce_scatter_pull_##type, tutti::reduce_scatter_pull<Element>)
