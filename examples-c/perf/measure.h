/* measure.h: how long one call of one collective takes, measured in the same way whoever serves it.
 *
 * Calls are made in batches that begin at a barrier; a batch is long enough for the clock, and a figure is the median
 * over batches, of the slowest rank. What a call needs from the library that is measured is in perf_library_t: an
 * implementation of that is all a program has to bring to be compared. */
#ifndef PERF_MEASURE_H
#define PERF_MEASURE_H

#include "collective.h"
#include "options.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PERF_MAX_RANKS 64

typedef struct perf_call {
    const perf_collective_t *collective;
    const perf_type_t *type;
    int op;              /* PERF_SUM and so on; PERF_SUM where nothing is reduced */
    size_t count;        /* as libtutti counts: elements of one rank, or of one part */
    const void *send;    /* NULL where this rank sends nothing */
    void *recv;          /* NULL where it receives nothing; == send and so on in place */
    int root;
    int registered;
} perf_call_t;

enum { PERF_DONE = 0, PERF_UNSUPPORTED = 1 };

typedef struct perf_library {
    const char *name;    /* with its version */
    const char *run;     /* which of its ways is measured: a communicator, or "auto" */
    int rank, size;
    void *context;       /* handed to the functions below, each of which ends the process if it fails */
    int (*call)(void *context, const perf_call_t *call);               /* PERF_DONE or PERF_UNSUPPORTED */
    void (*barrier)(void *context);
    void (*max)(void *context, double *values, int count);             /* over all ranks */
    void *(*allocate)(void *context, size_t bytes);                    /* registered memory; NULL: unsupported */
    void (*release)(void *context, void *memory);
    void (*served_by)(void *context, const perf_call_t *call, char *text, size_t capacity);
    const char *(*why)(void *context);                                 /* the sentence to the last unsupported call */
} perf_library_t;

enum { PERF_ABSENT = 0, PERF_MEASURED, PERF_REFUSED }; /* of a figure */

typedef struct perf_figure {
    int state;
    double us;           /* one call */
    double best_us;      /* the best batch */
    double touch_us;     /* writing and reading without the call, already subtracted; 0 without touch */
    int touched;
    double wrong;        /* elements, and results by checksum, on the rank that had most */
    double checked;      /* results */
    int batches;
    double calls;
} perf_figure_t;

/* Collective over the library's ranks. `count` as in perf_call_t. */
void perf_measure(const perf_library_t *library, const perf_options_t *options, const perf_collective_t *collective,
                  const perf_type_t *type, int op, size_t count, int in_place, perf_figure_t *figure);

#ifdef __cplusplus
}
#endif
#endif
