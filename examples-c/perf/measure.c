#define _GNU_SOURCE
#include "measure.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAGE 4096
#define MAX_BATCHES 41
#define FEW_BATCHES 7       /* of calls that take long; */
#define SLOW_MS 300.0       /* and of those that take longer than this: */
#define FEWEST_BATCHES 3
#define VERIFIED 3          /* calls whose result is compared before anything is measured */
#define CALIBRATE_US 500.0  /* a batch of this length is enough to guess from */
#define MAX_CALLS 4000000.0 /* in a batch */

/* One collective at one size: its calls, one for every root, and what goes in and out. */
typedef struct point {
    const perf_library_t *library;
    const perf_collective_t *collective;
    const perf_type_t *type;
    int op, size, rank, roots, registered;
    size_t count;
    unsigned char *input, *output;                 /* allocations */
    perf_call_t calls[PERF_MAX_RANKS];             /* call k of a batch is calls[k % roots] */
    perf_pattern_t *patterns;
    const perf_pattern_t *mine[PERF_MAX_RANKS];    /* what this rank sends, by part */
    const perf_pattern_t *theirs[PERF_MAX_RANKS];  /* what it gets: by part, or by root */
    uint64_t sums[PERF_MAX_RANKS];                 /* of the right result, by root */
    int sums_known;
    int last;                                      /* the call of the batch that came last */
    double wrong, checked;
} point_t;

/* ---- Buffers -------------------------------------------------------------------------------------------------- */

static size_t input_elements(const point_t *it) {
    if (it->collective->input == PERF_IN_NONE) return 0;
    return it->collective->input == PERF_IN_WHOLE ? it->count : it->count * (size_t)it->size;
}

static size_t output_elements(const point_t *it) {
    const perf_output_t output = it->collective->output;
    if (output == PERF_OUT_NONE) return 0;
    return output == PERF_OUT_GATHERED || output == PERF_OUT_EXCHANGED ? it->count * (size_t)it->size : it->count;
}

static int sends(const point_t *it, int root) {
    if (it->collective->output == PERF_OUT_OTHERS && it->rank > 1) return 0;
    return it->collective->input != PERF_IN_NONE && (!it->collective->only_root_sends || root == it->rank);
}

static int receives(const point_t *it, int root) {
    if (it->collective->output == PERF_OUT_OTHERS && it->rank > 1) return 0;
    return it->collective->output != PERF_OUT_NONE && (!it->collective->only_root_receives || root == it->rank);
}

/* Ordinary private memory in pages of 4 KiB, as an engine's would be, or what the library registers. */
static unsigned char *allocate(const point_t *it, size_t bytes) {
    void *memory = NULL;
    if (bytes < 64) bytes = 64;
    if (it->registered) return it->library->allocate(it->library->context, bytes);
    if (posix_memalign(&memory, PAGE, bytes) != 0) {
        fprintf(stderr, "rank %d: no memory for %zu bytes\n", it->rank, bytes);
        exit(1);
    }
    return memory;
}

static void release(const point_t *it, unsigned char *memory) {
    if (!it->registered) free(memory);
    else if (memory != NULL) it->library->release(it->library->context, memory);
}

static void lay_out(point_t *it, int in_place) {
    for (int index = 0; index < it->roots; index++) {
        perf_call_t *call = &it->calls[index];
        const int root = call->root;
        const size_t own = (size_t)(perf_rooted(it->collective) ? root : it->rank) * it->count * it->type->bytes;
        const int both = sends(it, root) && receives(it, root);
        call->send = sends(it, root) ? it->input : NULL;
        call->recv = receives(it, root) ? it->output : NULL;
        if (!in_place) continue;
        if (it->collective->overlap == PERF_SAME && it->collective->only_root_sends) call->send = it->output;
        if (it->collective->overlap == PERF_SAME && both) call->send = it->output;
        if (it->collective->overlap == PERF_INPUT_INSIDE && both) call->send = it->output + own;
        if (it->collective->overlap == PERF_OUTPUT_INSIDE && both) call->recv = it->input + own;
    }
}

/* ---- Data ----------------------------------------------------------------------------------------------------- */

static void make_patterns(point_t *it) {
    const perf_output_t output = it->collective->output;
    const int kind = it->collective->reduces ? it->op : PERF_MOVED;
    const int size = it->size;
    it->patterns = malloc(2 * (size_t)size * sizeof *it->patterns);
    if (it->patterns == NULL) exit(1);
    for (int part = 0; part < size; part++) {
        const int parts = it->collective->input == PERF_IN_PARTS;
        perf_pattern_t *mine = &it->patterns[part], *theirs = &it->patterns[size + part];
        perf_pattern_of(mine, it->type, kind, it->rank, size, parts ? part : 0);
        if (output == PERF_OUT_REDUCED || output == PERF_OUT_REDUCED_PART) {
            if (part == 0) perf_pattern_reduced(theirs, it->type, kind, size);
            else *theirs = it->patterns[size];
        } else {
            const int from = output == PERF_OUT_PREVIOUS ? (it->rank + size - 1) % size : output == PERF_OUT_OTHERS ? 1 - it->rank : part;
            perf_pattern_of(theirs, it->type, kind, from, size, parts ? it->rank : 0);
        }
        it->mine[part] = mine;
        it->theirs[part] = theirs;
    }
}

/* Calls in place work on their own results: data must be such that nothing grows. */
static void make_neutral(point_t *it) {
    perf_pattern_neutral(&it->patterns[0], it->type, it->op);
    for (int part = 0; part < it->size; part++) it->mine[part] = it->theirs[part] = &it->patterns[0];
}

static void write_input(const point_t *it, const perf_call_t *call) {
    const size_t bytes = it->count * it->type->bytes;
    if (call->send == NULL || !sends(it, call->root)) return;
    unsigned char *to = (unsigned char *)(uintptr_t)call->send; /* our own memory, which only the library may not write */
    switch (it->collective->input) {
    case PERF_IN_NONE: break;
    case PERF_IN_WHOLE: perf_fill(to, it->count, it->mine[0], 0); break;
    case PERF_IN_SPLIT: perf_fill(to, it->count * (size_t)it->size, it->mine[0], 0); break;
    case PERF_IN_PARTS:
        for (int part = 0; part < it->size; part++) perf_fill(to + (size_t)part * bytes, it->count, it->mine[part], 0);
        break;
    }
}

static void complain(const point_t *it, const perf_call_t *call, const unsigned char *at, size_t part, size_t where,
                     const perf_pattern_t *expected, size_t first) {
    fprintf(stderr, "rank %d: %s %s x %zu%s: element %zu is %.9g and should be %.9g\n", it->rank, it->collective->name, it->type->name,
            it->count, call->send == call->recv ? " in place" : "", part * it->count + where,
            perf_value(it->type, at + where * it->type->bytes),
            perf_value(it->type, expected->bytes + (first + where) % PERF_PERIOD * it->type->bytes));
}

/* Compares the whole result of a call. */
static void check_output(point_t *it, const perf_call_t *call) {
    const perf_output_t output = it->collective->output;
    const size_t parts = output_elements(it) / (it->count > 0 ? it->count : 1);
    if (call->recv == NULL) return;
    for (size_t part = 0; part < parts; part++) {
        const unsigned char *at = (const unsigned char *)call->recv + part * it->count * it->type->bytes;
        const size_t first = output == PERF_OUT_REDUCED_PART ? (size_t)it->rank * it->count : 0;
        const int by_root = output == PERF_OUT_ROOTS || output == PERF_OUT_ROOTS_PART;
        const perf_pattern_t *expected = it->theirs[by_root ? (size_t)call->root : part];
        size_t where = 0;
        const size_t wrong = perf_check(at, it->count, expected, first, &where);
        if (wrong > 0 && it->wrong == 0) complain(it, call, at, part, where, expected, first);
        it->wrong += (double)wrong;
    }
    it->checked++;
}

static uint64_t read_output(const point_t *it, const perf_call_t *call) {
    return call->recv == NULL ? 0 : perf_read(call->recv, output_elements(it) * it->type->bytes);
}

/* ---- Calls ---------------------------------------------------------------------------------------------------- */

/* Makes calls whose results are compared, and notes the sums of the right ones. Returns whether the call is served. */
static int verify(point_t *it, int check) {
    const int calls = it->roots > VERIFIED ? it->roots : VERIFIED;
    for (int k = 0; k < calls; k++) {
        const perf_call_t *call = &it->calls[k % it->roots];
        const double wrong_before = it->wrong;
        if (call->recv != NULL) memset(call->recv, 0xff, output_elements(it) * it->type->bytes);
        write_input(it, call);
        double refused = it->library->call(it->library->context, call);
        if (k == 0) it->library->max(it->library->context, &refused, 1);
        if (refused != 0) return 0;
        if (!check) continue;
        check_output(it, call);
        if (it->wrong == wrong_before) it->sums[k % it->roots] = read_output(it, call);
    }
    it->sums_known = check && it->wrong == 0;
    return 1;
}

static double now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

/* A batch of nothing but calls. Returns microseconds per call. */
static double batch(point_t *it, size_t calls) {
    const perf_library_t *library = it->library;
    int next = 0;
    library->barrier(library->context);
    const double start = now_us();
    for (size_t k = 0; k < calls; k++) {
        it->last = next;
        library->call(library->context, &it->calls[next]);
        if (++next == it->roots) next = 0;
    }
    return (now_us() - start) / (double)calls;
}

/* A batch in which every input is written before, and every result read after, its call. */
static double touched_batch(point_t *it, size_t calls, int with_call) {
    const perf_library_t *library = it->library;
    int next = 0;
    size_t different = 0;
    volatile uint64_t sink = 0;
    library->barrier(library->context);
    const double start = now_us();
    for (size_t k = 0; k < calls; k++) {
        const perf_call_t *call = &it->calls[next];
        it->last = next;
        write_input(it, call);
        if (with_call) library->call(library->context, call);
        sink = read_output(it, call);
        different += with_call && it->sums_known && sink != it->sums[next];
        if (++next == it->roots) next = 0;
    }
    const double us = (now_us() - start) / (double)calls;
    if (different > 0 && it->wrong == 0) {
        fprintf(stderr, "rank %d: %s %s x %zu: %zu of %zu results differ from the first one\n", it->rank, it->collective->name,
                it->type->name, it->count, different, calls);
    }
    it->wrong += (double)different;
    if (with_call && it->sums_known) it->checked += (double)calls;
    return us;
}

/* The greatest of the ranks' values: what all ranks must decide by. */
static double agreed(const point_t *it, double value) {
    it->library->max(it->library->context, &value, 1);
    return value;
}

/* Microseconds per call, on the slowest rank, roughly: the best of some batches, since one may meet an interruption. */
static double calibrate(point_t *it, int touch) {
    double best = 0, calls = it->roots;
    for (int long_enough = 0; long_enough < 3;) {
        const double us = agreed(it, touch ? touched_batch(it, (size_t)calls, 1) : batch(it, (size_t)calls));
        if (long_enough == 0 || us < best) best = us;
        if (us * calls >= SLOW_MS * 1e3) break;
        if (us * calls >= CALIBRATE_US || calls >= MAX_CALLS) long_enough++;
        else calls *= 4;
    }
    return best > 0.001 ? best : 0.001;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, by_value);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

/* How many batches of how many calls: as fits into the budget, or as was asked for. */
static void divide(const perf_options_t *options, const point_t *it, double us, int *batches, size_t *calls) {
    const double budget_us = options->budget_ms * 1e3;
    double total = options->iterations > 0 ? (double)options->iterations : budget_us / us;
    const double fewest = options->iterations > 0 ? 1 : us > SLOW_MS * 1e3 ? FEWEST_BATCHES : FEW_BATCHES;
    if (total < fewest * it->roots) total = fewest * it->roots;
    *batches = total / it->roots < MAX_BATCHES ? (int)(total / it->roots) : MAX_BATCHES;
    if (*batches < 1) *batches = 1;
    double each = total / *batches / it->roots; /* every root equally often */
    if (each > MAX_CALLS) each = MAX_CALLS;
    *calls = (size_t)(each < 1 ? 1 : each) * (size_t)it->roots;
}

static void time_calls(point_t *it, const perf_options_t *options, int in_place, int touch, perf_figure_t *figure) {
    double with[MAX_BATCHES], without[MAX_BATCHES], figures[4];
    size_t calls = 1;
    /* Results of calls in place are the next call's input: reduce_scatter may leave anything there, others what they read. */
    const int repeats = in_place && !touch && (it->collective->reduces || it->collective->overlap == PERF_SAME);
    const int stays = !repeats || it->collective->overlap == PERF_SAME;
    if (repeats) make_neutral(it);
    for (int root = 0; root < it->roots; root++) write_input(it, &it->calls[root]);
    if (repeats && it->collective->only_root_sends) perf_fill(it->output, it->count, it->mine[0], 0);

    for (int k = 0; k < options->warm_up; k++) {
        if (touch) touched_batch(it, (size_t)it->roots, 1);
        else it->library->call(it->library->context, &it->calls[k % it->roots]);
    }
    divide(options, it, options->iterations > 0 ? 1 : calibrate(it, touch), &figure->batches, &calls);
    for (int b = 0; b < figure->batches; b++) {
        with[b] = touch ? touched_batch(it, calls, 1) : batch(it, calls);
        if (options->check && stays) check_output(it, &it->calls[it->last]);
        without[b] = touch ? touched_batch(it, calls, 0) : 0;
    }
    figures[2] = median(without, figure->batches);
    figures[0] = median(with, figure->batches) - figures[2];
    figures[1] = with[0] - figures[2];
    figures[3] = it->wrong;
    it->library->max(it->library->context, figures, 4);
    figure->state = PERF_MEASURED;
    figure->us = figures[0] / it->collective->calls;
    figure->best_us = figures[1] / it->collective->calls;
    figure->touch_us = figures[2];
    figure->touched = touch;
    figure->wrong = figures[3];
    figure->checked = it->checked;
    figure->calls = (double)calls * figure->batches;
}

void perf_measure(const perf_library_t *library, const perf_options_t *options, const perf_collective_t *collective,
                  const perf_type_t *type, int op, size_t count, int in_place, perf_figure_t *figure) {
    point_t *it = calloc(1, sizeof *it);
    memset(figure, 0, sizeof *figure);
    if (it == NULL) exit(1);
    if (in_place && collective->overlap == PERF_APART && collective->input != PERF_IN_NONE) {
        free(it);
        return; /* there is no such form */
    }
    it->library = library;
    it->collective = collective;
    it->type = type;
    it->op = op;
    it->count = count;
    it->rank = library->rank;
    it->size = library->size;
    it->registered = options->registered;
    it->roots = perf_rooted(collective) && options->root == PERF_ROTATE ? library->size : 1;
    for (int index = 0; index < it->roots; index++) {
        const perf_call_t call = {collective, type, op, count, NULL, NULL, options->root == PERF_ROTATE ? index : options->root, it->registered};
        it->calls[index] = call;
    }
    it->input = allocate(it, input_elements(it) * type->bytes);
    it->output = it->input == NULL ? NULL : allocate(it, output_elements(it) * type->bytes);
    if (it->output != NULL) {
        const size_t bytes = count * type->bytes * (collective->size_is_of_all ? (size_t)library->size : 1);
        lay_out(it, in_place);
        make_patterns(it);
        memset(it->input, 0, input_elements(it) * type->bytes); /* first touch by this rank */
        memset(it->output, 0, output_elements(it) * type->bytes);
        const int touch = collective->input != PERF_IN_NONE && bytes >= options->touch_from;
        figure->state = PERF_REFUSED;
        if (verify(it, options->check)) time_calls(it, options, in_place, touch, figure);
    } else {
        figure->state = PERF_REFUSED;
    }
    free(it->patterns);
    release(it, it->input);
    release(it, it->output);
    free(it);
}
