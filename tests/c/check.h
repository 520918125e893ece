/* The harness of the C tests. Every test is a promise with a name; the first broken one ends the program, because the
 * other ranks would only wait for it. A test that hangs is ended, and named, by the watchdog.
 *
 * These files are compiled as C and as C++, so they stay within what both languages know. */
#ifndef CHECK_H
#define CHECK_H

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <tutti.h>

/* Far above what any test takes, sanitizers and a busy machine included. */
#define WATCHDOG_SECONDS 120
/* Deadlines of groups in tests: below the watchdog, so that a hang is reported by the library if it can. */
#define TIMEOUT_MS 60000
#define MAX_RANKS 8

typedef struct test {
    const char *name;
    void (*body)(void);
} test_t;

static const char *running_test = "start-up";

static inline void fail(const char *file, int line, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    printf("not ok %s: %s:%d: ", running_test, file, line);
    vprintf(format, arguments);
    printf("\n");
    fflush(stdout);
    va_end(arguments);
    _exit(1);
}

/* Holds, or the test has failed. */
#define CHECK(condition) \
    do { \
        if (!(condition)) fail(__FILE__, __LINE__, "%s", #condition); \
    } while (0)

/* Succeeds, or the test has failed with what the library says. */
#define OK(call) expect_status(__FILE__, __LINE__, #call, TUTTI_SUCCESS, call)

/* Fails with this status and says why. */
#define FAILS(status, call) expect_status(__FILE__, __LINE__, #call, status, call)

static inline void expect_status(const char *file, int line, const char *call, tutti_status_t expected, tutti_status_t actual) {
    if (actual != expected) {
        fail(file, line, "%s: expected \"%s\", got \"%s\": %s", call, tutti_status_string(expected),
             tutti_status_string(actual), tutti_last_error());
    }
    if (actual != TUTTI_SUCCESS && actual != TUTTI_IN_PROGRESS && tutti_last_error()[0] == '\0') {
        fail(file, line, "%s: \"%s\" without a sentence", call, tutti_status_string(actual));
    }
}

static inline double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static inline void watchdog(int signal_number) {
    static const char text[] = "not ok: the test named last is still running; the watchdog ends it\n";
    (void)signal_number;
    if (write(STDOUT_FILENO, text, sizeof text - 1) < 0) _exit(3);
    _exit(2);
}

static inline void arm_watchdog(void) {
    signal(SIGALRM, watchdog);
    alarm(WATCHDOG_SECONDS);
}

/* Runs all tests, or those named on the command line. */
static inline int run_tests(const test_t *tests, size_t count, int argc, char **argv) {
    for (size_t i = 0; i < count; i++) {
        int wanted = argc < 2;
        for (int a = 1; a < argc; a++) wanted = wanted || strcmp(argv[a], tests[i].name) == 0;
        if (!wanted) continue;
        running_test = tests[i].name;
        printf("test %s\n", running_test);
        fflush(stdout);
        arm_watchdog();
        double start = now_ms();
        tests[i].body();
        printf("ok %s (%.0f ms)\n", running_test, now_ms() - start);
        fflush(stdout);
    }
    return 0;
}

/* ---- Worlds --------------------------------------------------------------------------------------------------- */

typedef void (*rank_body_t)(tutti_group_t *world, int rank, int size);

typedef struct rank_thread {
    pthread_t thread;
    rank_body_t body;
    const unsigned char *id;
    size_t id_size;
    int rank, size;
} rank_thread_t;

static inline void *rank_main(void *argument) {
    rank_thread_t *self = (rank_thread_t *)argument;
    tutti_world_options_t options = TUTTI_WORLD_OPTIONS_INIT;
    tutti_group_t *world = NULL;
    options.size = self->size;
    options.rank = self->rank;
    options.device_kind = TUTTI_DEVICE_CPU;
    options.unique_id = self->id;
    options.unique_id_size = self->id_size;
    options.timeout_ms = TIMEOUT_MS;
    OK(tutti_world_create(&options, &world));
    CHECK(world != NULL);
    self->body(world, self->rank, self->size);
    OK(tutti_group_destroy(world));
    return NULL;
}

/* Runs `body` on every rank of a world of threads that meet through a unique id. */
static inline void on_threads(int size, rank_body_t body) {
    unsigned char id[TUTTI_UNIQUE_ID_BYTES];
    size_t id_size = 0;
    rank_thread_t ranks[MAX_RANKS];
    CHECK(size <= MAX_RANKS);
    OK(tutti_unique_id_create(id, sizeof id, &id_size));
    CHECK(id_size == sizeof id);
    for (int rank = 0; rank < size; rank++) {
        ranks[rank].body = body;
        ranks[rank].id = id;
        ranks[rank].id_size = id_size;
        ranks[rank].rank = rank;
        ranks[rank].size = size;
        CHECK(pthread_create(&ranks[rank].thread, NULL, rank_main, &ranks[rank]) == 0);
    }
    for (int rank = 0; rank < size; rank++) CHECK(pthread_join(ranks[rank].thread, NULL) == 0);
}

/* A world whose ranks are all driven by this thread. */
static inline void local_world(int size, tutti_group_t **ranks) {
    tutti_world_options_t options = TUTTI_WORLD_OPTIONS_INIT;
    options.timeout_ms = TIMEOUT_MS;
    OK(tutti_world_create_local(size, NULL, &options, ranks));
    for (int rank = 0; rank < size; rank++) CHECK(ranks[rank] != NULL);
}

static inline void destroy_all(int size, tutti_group_t **ranks) {
    for (int rank = 0; rank < size; rank++) OK(tutti_group_destroy(ranks[rank]));
}

/* ---- Data ----------------------------------------------------------------------------------------------------- */

typedef struct dtype {
    int32_t code;
    const char *name;
    size_t bytes;
    int mantissa, bias; /* of a small float; 0 for what the compiler knows itself */
} dtype_t;

static const dtype_t DTYPES[] = {
    {TUTTI_INT8, "int8", 1, 0, 0},         {TUTTI_UINT8, "uint8", 1, 0, 0},
    {TUTTI_INT32, "int32", 4, 0, 0},       {TUTTI_UINT32, "uint32", 4, 0, 0},
    {TUTTI_INT64, "int64", 8, 0, 0},       {TUTTI_UINT64, "uint64", 8, 0, 0},
    {TUTTI_FLOAT16, "float16", 2, 10, 15}, {TUTTI_FLOAT32, "float32", 4, 0, 0},
    {TUTTI_FLOAT64, "float64", 8, 0, 0},   {TUTTI_BFLOAT16, "bfloat16", 2, 7, 127},
    {TUTTI_FLOAT8E4M3, "float8e4m3", 1, 3, 7}, {TUTTI_FLOAT8E5M2, "float8e5m2", 1, 2, 15},
};
#define DTYPE_COUNT (sizeof DTYPES / sizeof DTYPES[0])

/* Writes element `i`; `value` must be representable (integers: it is truncated). */
static inline void put(void *buffer, const dtype_t *dtype, size_t i, double value) {
    unsigned char *at = (unsigned char *)buffer + i * dtype->bytes;
    if (dtype->mantissa > 0) {
        unsigned bits = 0;
        if (value > 0) {
            int exponent = 0;
            for (; value >= 2; value /= 2) exponent++;
            for (; value < 1; value *= 2) exponent--;
            bits = (unsigned)(exponent + dtype->bias) << dtype->mantissa;
            bits |= (unsigned)((value - 1) * (double)(1u << dtype->mantissa));
        }
        at[0] = (unsigned char)bits;
        if (dtype->bytes == 2) at[1] = (unsigned char)(bits >> 8);
    } else if (dtype->code == TUTTI_FLOAT32) {
        float exact = (float)value;
        memcpy(at, &exact, sizeof exact);
    } else if (dtype->code == TUTTI_FLOAT64) {
        memcpy(at, &value, sizeof value);
    } else {
        uint64_t whole = (uint64_t)value;
        memcpy(at, &whole, dtype->bytes); /* little-endian */
    }
}

static inline const dtype_t *dtype_of(int32_t code) {
    for (size_t i = 0; i < DTYPE_COUNT; i++) {
        if (DTYPES[i].code == code) return &DTYPES[i];
    }
    fail(__FILE__, __LINE__, "no dtype %d", (int)code);
    return NULL;
}

/* Memory with a canary behind it, so that a write past the end is found without a sanitizer too. */
#define CANARY 0xa5

static inline void *buffer_new(const dtype_t *dtype, size_t count) {
    unsigned char *memory = (unsigned char *)malloc(dtype->bytes * count + 64);
    CHECK(memory != NULL);
    memset(memory, 0, dtype->bytes * count);
    memset(memory + dtype->bytes * count, CANARY, 64);
    return memory;
}

static inline void buffer_free(void *buffer, const dtype_t *dtype, size_t count) {
    const unsigned char *canary = (const unsigned char *)buffer + dtype->bytes * count;
    for (int i = 0; i < 64; i++) CHECK(canary[i] == CANARY);
    free(buffer);
}

/* What rank `rank` contributes to a reduction at `i`: over up to 8 ranks every sum and product is exact in every type,
 * averages over 2, 4 and 8 ranks too. */
static inline double contribution(int rank, size_t i) {
    if (rank < 4) return (double)(1 + ((size_t)rank + i) % 2);
    return rank < 6 ? 1 : 0;
}

/* What rank `rank` sends at `i` where nothing is reduced: tells ranks and places apart, and is exact in every type. */
static inline double mark(int rank, size_t i) {
    return (double)(((size_t)rank * 3 + i) % 8);
}

/* What the reduction over `size` ranks must give at `i`. */
static inline double reduced(int32_t op, int size, size_t i) {
    double result = contribution(0, i);
    for (int rank = 1; rank < size; rank++) {
        double next = contribution(rank, i);
        if (op == TUTTI_SUM || op == TUTTI_AVG) result += next;
        if (op == TUTTI_PROD) result *= next;
        if (op == TUTTI_MAX && next > result) result = next;
        if (op == TUTTI_MIN && next < result) result = next;
    }
    return op == TUTTI_AVG ? result / size : result;
}

/* All of these repeat, so a buffer is written and compared by one period of them. */
#define PERIOD 8

typedef struct pattern {
    unsigned char elements[PERIOD][8];
} pattern_t;

static inline void write_pattern(void *buffer, const dtype_t *dtype, size_t count, const pattern_t *pattern) {
    unsigned char *at = (unsigned char *)buffer;
    for (size_t i = 0; i < count; i++) memcpy(at + i * dtype->bytes, pattern->elements[i % PERIOD], dtype->bytes);
}

/* Whether elements [begin, begin + count) are those of the pattern from its element `first` on. */
static inline int matches(const void *buffer, size_t begin, const dtype_t *dtype, size_t first, size_t count,
                          const pattern_t *pattern) {
    const unsigned char *at = (const unsigned char *)buffer + begin * dtype->bytes;
    for (size_t i = 0; i < count; i++) {
        if (memcmp(at + i * dtype->bytes, pattern->elements[(first + i) % PERIOD], dtype->bytes) != 0) return 0;
    }
    return 1;
}

static inline pattern_t contributions(const dtype_t *dtype, int rank) {
    pattern_t pattern;
    for (size_t i = 0; i < PERIOD; i++) put(pattern.elements[i], dtype, 0, contribution(rank, i));
    return pattern;
}

static inline pattern_t marks(const dtype_t *dtype, int rank) {
    pattern_t pattern;
    for (size_t i = 0; i < PERIOD; i++) put(pattern.elements[i], dtype, 0, mark(rank, i));
    return pattern;
}

static inline void fill(void *buffer, const dtype_t *dtype, size_t count, int rank) {
    const pattern_t pattern = contributions(dtype, rank);
    write_pattern(buffer, dtype, count, &pattern);
}

static inline void fill_marks(void *buffer, const dtype_t *dtype, size_t count, int rank) {
    const pattern_t pattern = marks(dtype, rank);
    write_pattern(buffer, dtype, count, &pattern);
}

/* Whether element `i` is exactly `value`. */
static inline int is(const void *buffer, const dtype_t *dtype, size_t i, double value) {
    unsigned char expected[8];
    put(expected, dtype, 0, value);
    return memcmp(expected, (const unsigned char *)buffer + i * dtype->bytes, dtype->bytes) == 0;
}

/* Whether elements [begin, begin + count) are the marks of `rank` from its element `first` on. */
static inline int holds_marks(const void *buffer, size_t begin, const dtype_t *dtype, size_t first, size_t count, int rank) {
    const pattern_t pattern = marks(dtype, rank);
    return matches(buffer, begin, dtype, first, count, &pattern);
}

/* Whether `buffer` holds what a rank contributed, untouched. */
static inline int holds_contribution(const void *buffer, const dtype_t *dtype, size_t count, int rank) {
    const pattern_t pattern = contributions(dtype, rank);
    return matches(buffer, 0, dtype, 0, count, &pattern);
}

/* Whether `buffer` holds elements [first, first + count) of the reduction over `size` ranks. */
static inline int holds_reduced(const void *buffer, const dtype_t *dtype, size_t first, size_t count, int32_t op, int size) {
    pattern_t pattern;
    for (size_t i = 0; i < PERIOD; i++) put(pattern.elements[i], dtype, 0, reduced(op, size, i));
    return matches(buffer, 0, dtype, first, count, &pattern);
}

#endif
