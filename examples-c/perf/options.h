/* options.h: the command line, in the manner of nccl-tests, for tutti-perf and for every program it is compared with. */
#ifndef PERF_OPTIONS_H
#define PERF_OPTIONS_H

#include "collective.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PERF_MAX_SIZES 256
#define PERF_MAX_CHOICES 16
#define PERF_NEVER SIZE_MAX /* touch_from: no size is touched */
#define PERF_ROTATE (-1)    /* root: call k has root k % ranks */

typedef struct perf_options {
    size_t sizes[PERF_MAX_SIZES];  /* bytes, rising */
    size_t size_count;
    const perf_collective_t *collectives[PERF_MAX_CHOICES];
    size_t collective_count;
    const perf_type_t *types[PERF_MAX_CHOICES];
    size_t type_count;
    const perf_op_t *ops[PERF_MAX_CHOICES];
    size_t op_count;
    int root;
    int in_place, out_of_place;    /* which are measured */
    int check;
    int warm_up;                   /* calls */
    int iterations;                /* calls per size; 0: as many as fit into budget_ms */
    double budget_ms;              /* for each size, in place and out of place */
    size_t touch_from;             /* bytes from which buffers are touched */
    int registered;
    int pin;
    int ranks;                     /* 0: not given */
    double timeout_s;
    const char *communicators;     /* comma-separated; NULL: the library's choice */
    const char *json, *plot;       /* where to write; NULL: nowhere, "-": stdout */
    char command[512];             /* as it was given, for the record */
} perf_options_t;

/* Returns -1 to go on, or the status to exit with. */
int perf_parse(perf_options_t *options, const char *program, int argc, char **argv);

#ifdef __cplusplus
}
#endif
#endif
