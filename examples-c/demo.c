/* demo: several processes on this machine sum tensors through libtutti, check every element, and show how fast it went
 * and who did the work.
 *
 * The process you start starts this program again once for every rank. How they meet is in common.h, what they do in
 * measure; nothing but the public header is used. For measuring in earnest there is tutti-perf.c. */
#define _GNU_SOURCE
#include "common.h"

#define TIMEOUT_MS 60000       /* of every call: a demo that waits longer has failed */
#define BUDGET_BYTES (32 << 20) /* moved per row, so that large sizes repeat less often */
#define MIN_REPEATS 5
#define MAX_REPEATS 200

typedef struct plan {
    int ranks;
    size_t max_bytes;
} plan_t;

/* ---- Data ----------------------------------------------------------------------------------------------------- */

typedef struct element {
    int32_t dtype;
    const char *name;
    size_t bytes;
} element_t;

static const element_t ELEMENTS[] = {
    {TUTTI_FLOAT32, "float32", 4},
    {TUTTI_BFLOAT16, "bfloat16", 2},
    {TUTTI_INT32, "int32", 4},
};
#define PERIOD 4 /* values repeat: element i of rank r is 1 + (r + i) % PERIOD */

static void put(const element_t *element, int value, void *at) {
    const float as_float = (float)value;
    const int32_t as_int = value;
    uint32_t bits;
    uint16_t upper;
    memcpy(&bits, &as_float, sizeof bits);
    upper = (uint16_t)(bits >> 16); /* bfloat16 is the upper half of a float */
    if (element->dtype == TUTTI_FLOAT32) memcpy(at, &as_float, sizeof as_float);
    if (element->dtype == TUTTI_BFLOAT16) memcpy(at, &upper, sizeof upper);
    if (element->dtype == TUTTI_INT32) memcpy(at, &as_int, sizeof as_int);
}

/* Fills `count` elements with what `ranks` ranks, from `first` on, add up to. */
static void fill(const element_t *element, unsigned char *buffer, size_t count, int first, int ranks) {
    unsigned char pattern[PERIOD * 8];
    for (int i = 0; i < PERIOD; i++) {
        int sum = 0;
        for (int rank = first; rank < first + ranks; rank++) sum += 1 + (rank + i) % PERIOD;
        put(element, sum, pattern + (size_t)i * element->bytes);
    }
    for (size_t i = 0; i < count; i++) {
        memcpy(buffer + i * element->bytes, pattern + i % PERIOD * element->bytes, element->bytes);
    }
}

/* ---- Measuring ------------------------------------------------------------------------------------------------ */

static double now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median time, in microseconds, of the slowest rank of each of several calls, every result of which is checked. */
static double measure(tutti_group_t *world, const element_t *element, size_t count, int ranks) {
    const size_t bytes = count * element->bytes;
    size_t repeats = BUDGET_BYTES / bytes;
    double times[MAX_REPEATS];
    unsigned char *send = malloc(bytes), *recv = malloc(bytes), *expected = malloc(bytes);
    if (send == NULL || recv == NULL || expected == NULL) {
        fprintf(stderr, "rank %d: no memory for 3 x %zu bytes\n", my_rank, bytes);
        exit(1);
    }
    if (repeats < MIN_REPEATS) repeats = MIN_REPEATS;
    if (repeats > MAX_REPEATS) repeats = MAX_REPEATS;
    fill(element, send, count, my_rank, 1);
    fill(element, expected, count, 0, ranks);
    for (size_t repeat = 0; repeat < repeats; repeat++) {
        memset(recv, 0xff, bytes);
        TRY(tutti_barrier(world, NULL));
        const double start = now_us();
        TRY(tutti_all_reduce(world, send, recv, count, element->dtype, TUTTI_SUM, NULL));
        times[repeat] = now_us() - start;
        if (memcmp(recv, expected, bytes) != 0) {
            fprintf(stderr, "rank %d: wrong sum of %zu x %s\n", my_rank, count, element->name);
            exit(1);
        }
    }
    TRY(tutti_all_reduce(world, times, times, repeats, TUTTI_FLOAT64, TUTTI_MAX, NULL));
    qsort(times, repeats, sizeof times[0], by_value);
    free(send);
    free(recv);
    free(expected);
    return times[repeats / 2];
}

/* ---- The table ------------------------------------------------------------------------------------------------- */

static void size_text(size_t bytes, char *text, size_t capacity) {
    if (bytes >= 1 << 20) {
        snprintf(text, capacity, "%zu MiB", bytes >> 20);
    } else if (bytes >= 1 << 10) {
        snprintf(text, capacity, "%zu KiB", bytes >> 10);
    } else {
        snprintf(text, capacity, "%zu B", bytes);
    }
}

static void time_text(double us, char *text, size_t capacity) {
    if (us >= 1e4) {
        snprintf(text, capacity, "%.2f ms", us / 1e3);
    } else {
        snprintf(text, capacity, "%.2f us", us);
    }
}

static void run(tutti_group_t *world, const plan_t *plan) {
    const int speaks = my_rank == 0;
    const uint32_t version = tutti_version();
    if (speaks) {
        printf("libtutti %" PRIu32 ".%" PRIu32 ".%" PRIu32 ": all_reduce (sum, out of place) between %d processes on %ld CPUs\n",
               version / 10000, version / 100 % 100, version % 100, plan->ranks, sysconf(_SC_NPROCESSORS_ONLN));
        printf("median of the slowest rank; algbw = bytes / time; every element of every result is checked\n\n");
        printf("%9s  %-8s  %9s  %11s  %11s  %s\n", "size", "dtype", "elements", "median", "algbw", "served by");
    }
    for (size_t e = 0; e < sizeof ELEMENTS / sizeof ELEMENTS[0]; e++) {
        const element_t *element = &ELEMENTS[e];
        for (size_t bytes = 8; bytes <= plan->max_bytes; bytes *= 8) {
            const size_t count = bytes / element->bytes;
            const double us = measure(world, element, count, plan->ranks);
            char size[32], time[32], by[160];
            if (!speaks) continue;
            size_text(bytes, size, sizeof size);
            time_text(us, time, sizeof time);
            served_by(world, TUTTI_ALL_REDUCE, count, element->dtype, TUTTI_SUM, 0, by, sizeof by);
            printf("%9s  %-8s  %9zu  %11s  %6.3f GB/s  %s\n", size, element->name, count, time, (double)bytes / us / 1e3, by);
            fflush(stdout);
        }
    }
    if (speaks) {
        char *text = explain(world, TUTTI_ALL_REDUCE, 1 << 19, TUTTI_BFLOAT16, TUTTI_SUM, 0, TUTTI_FORMAT_TEXT);
        printf("\nWhy, for 1 MiB of bfloat16 (tutti_explain):\n\n%s\n", text);
        free(text);
    }
    TRY(tutti_barrier(world, NULL));
}

/* ---- The command line ----------------------------------------------------------------------------------------- */

static int usage(FILE *to, const char *problem) {
    if (problem != NULL) fprintf(to, "demo: %s\n\n", problem);
    fprintf(to,
            "usage: demo [--ranks N] [--max BYTES]\n\n"
            "Starts N processes on this machine (2 to %d; 4 if not given), sums tensors of 8 bytes up to BYTES\n"
            "(16777216 if not given) over all of them, checks every element, and prints how long it took and which\n"
            "communicator and algorithm did it.\n\n"
            "  --ranks N     how many processes\n"
            "  --max BYTES   the largest tensor; K and M are understood\n"
            "  --help        this text\n",
            MAX_RANKS);
    return problem != NULL ? 2 : 0;
}

static int parse(int argc, char **argv, plan_t *plan) {
    for (int i = 1; i < argc; i++) {
        char *end = NULL;
        if (strcmp(argv[i], "--help") == 0) return usage(stdout, NULL);
        if (i + 1 >= argc || (strcmp(argv[i], "--ranks") != 0 && strcmp(argv[i], "--max") != 0)) {
            return usage(stderr, "what is meant? The options are --ranks N, --max BYTES and --help");
        }
        const unsigned long long value = strtoull(argv[i + 1], &end, 10);
        if (strcmp(argv[i], "--ranks") == 0) {
            if (*end != '\0' || value < 2 || value > MAX_RANKS) return usage(stderr, "--ranks takes a number from 2 to 64");
            plan->ranks = (int)value;
        } else {
            const unsigned shift = *end == 'K' ? 10 : *end == 'M' ? 20 : 0;
            if (end[shift != 0] != '\0' || value == 0 || value > 1ull << 32 || value << shift > 1ull << 32 || value << shift < 8) {
                return usage(stderr, "--max takes 8 bytes to 4096M");
            }
            plan->max_bytes = (size_t)(value << shift);
        }
        i++;
    }
    return -1;
}

int main(int argc, char **argv) {
    plan_t plan = {4, 16 << 20};
    const int done = parse(argc, argv, &plan);
    if (done >= 0) return done;
    if (!is_started_rank()) return start_ranks(plan.ranks, argv);
    tutti_group_t *world = join_started_world(plan.ranks, TIMEOUT_MS);
    run(world, &plan);
    TRY(tutti_group_destroy(world));
    return 0;
}
