/* collective.h: one row for every collective: what each rank sends and gets, how sizes are counted, how fast a link
 * must be for it. Everything else here works from these rows; a new collective is a new row, and a case in what
 * calls the library. Knows of no library. */
#ifndef PERF_COLLECTIVE_H
#define PERF_COLLECTIVE_H

#include "data.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum perf_input {
    PERF_IN_NONE,
    PERF_IN_WHOLE,  /* `count` elements of this rank's part 0 */
    PERF_IN_SPLIT,  /* size * count elements of its part 0, as one run */
    PERF_IN_PARTS,  /* `count` elements for every rank: part r for rank r */
} perf_input_t;

typedef enum perf_output {
    PERF_OUT_NONE,
    PERF_OUT_REDUCED,       /* `count` elements */
    PERF_OUT_REDUCED_PART,  /* the `count` elements of it that begin at rank * count */
    PERF_OUT_GATHERED,      /* every rank's input, in rank order */
    PERF_OUT_EXCHANGED,     /* from every rank the part for this one */
    PERF_OUT_ROOTS,         /* the root's input */
    PERF_OUT_ROOTS_PART,    /* the root's part for this rank */
    PERF_OUT_PREVIOUS,      /* the input of rank - 1 */
    PERF_OUT_OTHERS,        /* between ranks 0 and 1: the input of the other */
} perf_output_t;

typedef enum perf_overlap { /* how the in-place form lies in memory */
    PERF_APART,             /* there is none */
    PERF_SAME,              /* input and output are one */
    PERF_INPUT_INSIDE,      /* the input is this rank's (or the root's) part of the output */
    PERF_OUTPUT_INSIDE,     /* and the other way round */
} perf_overlap_t;

typedef struct perf_collective {
    const char *name;
    int code;                    /* libtutti's number, or PERF_PAIRWISE and up */
    perf_input_t input;
    perf_output_t output;
    perf_overlap_t overlap;
    int reduces;
    int only_root_sends;
    int only_root_receives;
    int size_is_of_all;          /* sizes are those of all ranks' parts together, as in nccl-tests */
    double (*bus)(double ranks); /* bus bandwidth = algorithm bandwidth times this, as in nccl-tests */
    double calls;                /* calls of the library's in one, for a time per call: 2 where one goes there and back */
} perf_collective_t;

enum { PERF_ALL_REDUCE = 0, PERF_ALL_GATHER, PERF_REDUCE_SCATTER, PERF_BROADCAST, PERF_REDUCE, PERF_GATHER, PERF_SCATTER,
       PERF_ALL_TO_ALL, PERF_SEND, PERF_RECV, PERF_BARRIER, PERF_SENDRECV = 1000, PERF_PINGPONG, PERF_DICT };

#define PERF_TENSORS 32 /* of a dict, which divide its elements evenly */

extern const perf_collective_t PERF_COLLECTIVES[];
extern const size_t PERF_COLLECTIVE_COUNT;

/* The first element of a dict's tensor; that of tensor PERF_TENSORS is the end. */
static inline size_t perf_tensor_at(size_t count, size_t tensor) {
    const size_t rest = count % PERF_TENSORS;
    return count / PERF_TENSORS * tensor + (tensor < rest ? tensor : rest);
}

static inline int perf_rooted(const perf_collective_t *it) { return it->only_root_sends || it->only_root_receives; }

#ifdef __cplusplus
}
#endif
#endif
