#include "collective.h"

static double twice_to_others(double ranks) { return 2 * (ranks - 1) / ranks; }
static double to_others(double ranks) { return (ranks - 1) / ranks; }
static double once(double ranks) { return ranks / ranks; }

const perf_collective_t PERF_COLLECTIVES[] = {
    {"all_reduce", PERF_ALL_REDUCE, PERF_IN_WHOLE, PERF_OUT_REDUCED, PERF_SAME, 1, 0, 0, 0, twice_to_others, 1},
    {"all_gather", PERF_ALL_GATHER, PERF_IN_WHOLE, PERF_OUT_GATHERED, PERF_INPUT_INSIDE, 0, 0, 0, 1, to_others, 1},
    {"reduce_scatter", PERF_REDUCE_SCATTER, PERF_IN_SPLIT, PERF_OUT_REDUCED_PART, PERF_OUTPUT_INSIDE, 1, 0, 0, 1, to_others, 1},
    {"broadcast", PERF_BROADCAST, PERF_IN_WHOLE, PERF_OUT_ROOTS, PERF_SAME, 0, 1, 0, 0, once, 1},
    {"reduce", PERF_REDUCE, PERF_IN_WHOLE, PERF_OUT_REDUCED, PERF_SAME, 1, 0, 1, 0, once, 1},
    {"gather", PERF_GATHER, PERF_IN_WHOLE, PERF_OUT_GATHERED, PERF_INPUT_INSIDE, 0, 0, 1, 1, to_others, 1},
    {"scatter", PERF_SCATTER, PERF_IN_PARTS, PERF_OUT_ROOTS_PART, PERF_OUTPUT_INSIDE, 0, 1, 0, 1, to_others, 1},
    {"all_to_all", PERF_ALL_TO_ALL, PERF_IN_PARTS, PERF_OUT_EXCHANGED, PERF_APART, 0, 0, 0, 1, to_others, 1},
    {"sendrecv", PERF_SENDRECV, PERF_IN_WHOLE, PERF_OUT_PREVIOUS, PERF_APART, 0, 0, 0, 0, once, 1},
    {"pingpong", PERF_PINGPONG, PERF_IN_WHOLE, PERF_OUT_OTHERS, PERF_APART, 0, 0, 0, 0, once, 2},
    {"dict", PERF_DICT, PERF_IN_WHOLE, PERF_OUT_OTHERS, PERF_APART, 0, 0, 0, 0, once, 2},
    {"barrier", PERF_BARRIER, PERF_IN_NONE, PERF_OUT_NONE, PERF_APART, 0, 0, 0, 0, once, 1},
};
const size_t PERF_COLLECTIVE_COUNT = sizeof PERF_COLLECTIVES / sizeof PERF_COLLECTIVES[0];
