/* floor: what the machine allows two ranks on two cores, whatever the library, measured here and now.
 *
 * How long one cache line takes from core to core, how fast lines that the other core has just written can be read, and
 * how fast two cores together read and write memory. Every byte of a result must cross at least once, so
 *     floor(bytes) = one hand-off + bytes / best pull rate at that size
 * for all-reduce between two ranks: whatever the algorithm, each needs `bytes` bytes from the other. At sizes of main
 * memory: each rank reads half of both buffers and writes half of both, at the rate measured for exactly that.
 * Prints one JSON object. Two threads stand for two ranks: the lines do not know. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#define LINE 64
#define SAMPLES 25
#define HANDOFFS 20000
#define LONGEST (64u << 20)

typedef struct line {
    _Alignas(LINE) atomic_uint value;
} line_t;

static line_t flags[2];      /* flags[r] is written by rank r only */
static unsigned char *buffers[2];
static int cpus[2];
static double results[2][SAMPLES];

typedef struct task {
    int rank;
    void (*work)(int rank);
} task_t;

static double now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median of the slower rank's samples. */
static double median(void) {
    double slower = 0;
    for (int rank = 0; rank < 2; rank++) {
        qsort(results[rank], SAMPLES, sizeof results[rank][0], by_value);
        if (results[rank][SAMPLES / 2] > slower) slower = results[rank][SAMPLES / 2];
    }
    return slower;
}

static void *started(void *argument) {
    const task_t *task = argument;
    task->work(task->rank);
    return NULL;
}

/* Each thread is on its CPU before it runs: one that had to move first could wait for ever for one that spins. */
static void on_both(void (*work)(int rank)) {
    pthread_t threads[2];
    task_t tasks[2] = {{0, work}, {1, work}};
    atomic_store(&flags[0].value, 0);
    atomic_store(&flags[1].value, 0);
    for (int rank = 0; rank < 2; rank++) {
        pthread_attr_t attributes;
        cpu_set_t only;
        CPU_ZERO(&only);
        CPU_SET(cpus[rank], &only);
        pthread_attr_init(&attributes);
        pthread_attr_setaffinity_np(&attributes, sizeof only, &only);
        if (pthread_create(&threads[rank], &attributes, started, &tasks[rank]) != 0) exit(1);
        pthread_attr_destroy(&attributes);
    }
    for (int rank = 0; rank < 2; rank++) pthread_join(threads[rank], NULL);
}

static void await(int rank, unsigned value) {
    while (atomic_load_explicit(&flags[rank].value, memory_order_acquire) != value) {}
}

static void publish(int rank, unsigned value) { atomic_store_explicit(&flags[rank].value, value, memory_order_release); }

/* Both write their own line and read the other's. */
static void meet(int rank, unsigned *turn) {
    publish(rank, ++*turn);
    while (atomic_load_explicit(&flags[1 - rank].value, memory_order_acquire) < *turn) {}
}

static void pingpong(int rank) {
    unsigned turn = 0;
    for (int sample = 0; sample < SAMPLES; sample++) {
        const double start = now_ns();
        for (int i = 0; i < HANDOFFS / SAMPLES; i++) {
            turn++;
            if (rank == 0) publish(0, turn);
            await(1 - rank, turn);
            if (rank == 1) publish(1, turn);
        }
        results[rank][sample] = (now_ns() - start) / (HANDOFFS / SAMPLES) / 2;
    }
}

static void barrier(int rank) {
    unsigned turn = 0;
    for (int sample = 0; sample < SAMPLES; sample++) {
        const double start = now_ns();
        for (int i = 0; i < HANDOFFS / SAMPLES; i++) meet(rank, &turn);
        results[rank][sample] = (now_ns() - start) / (HANDOFFS / SAMPLES);
    }
}

typedef uint64_t words_t __attribute__((vector_size(32), aligned(32), may_alias));
static size_t span;
static int around_caches; /* how the writer stores */
static volatile uint64_t sink;

static void store(unsigned char *to, size_t bytes, unsigned value) {
#if defined(__x86_64__)
    if (around_caches) {
        const __m128i word = _mm_set1_epi32((int)value);
        for (size_t i = 0; i < bytes; i += sizeof word) _mm_stream_si128((__m128i *)(to + i), word);
        _mm_sfence();
        return;
    }
#endif
    const words_t word = {value, value, value, value};
    for (size_t i = 0; i < bytes; i += sizeof word) {
        *(words_t *)(to + i) = word;
        __asm__ volatile("" ::: "memory");
    }
}

static uint64_t load(const unsigned char *from, size_t bytes) {
    words_t a = {0, 0, 0, 0}, b = a;
    for (size_t i = 0; i < bytes; i += 2 * sizeof a) {
        a += *(const words_t *)(from + i);
        b += *(const words_t *)(from + i + sizeof a);
    }
    a += b;
    return a[0] + a[1] + a[2] + a[3];
}

/* Each rank writes its buffer, then both read the other's at once: as ranks do that reduce. */
static void pull(int rank) {
    unsigned turn = 0;
    for (int sample = 0; sample < SAMPLES; sample++) {
        store(buffers[rank], span, turn);
        meet(rank, &turn);
        const double start = now_ns();
        sink = load(buffers[1 - rank], span);
        results[rank][sample] = now_ns() - start;
        meet(rank, &turn);
    }
}

/* Each rank reads its half of both buffers and writes the sum to both. */
static void reduce_in_memory(int rank) {
    unsigned turn = 0;
    const size_t half = span / 2, from = rank == 0 ? 0 : half;
    float *restrict a = (float *)(void *)(buffers[0] + from), *restrict b = (float *)(void *)(buffers[1] + from);
    for (int sample = 0; sample < SAMPLES; sample++) {
        meet(rank, &turn);
        const double start = now_ns();
        for (size_t i = 0; i < half / sizeof(float); i++) a[i] = b[i] = a[i] + b[i];
        meet(rank, &turn);
        results[rank][sample] = now_ns() - start;
    }
}

int main(void) {
    static const size_t PULLED[] = {1u << 10, 8u << 10, 64u << 10, 256u << 10, 1u << 20};
    static const size_t REDUCED[] = {16u << 20, 64u << 20};
    cpu_set_t may;
    int found = 0;
    if (sched_getaffinity(0, sizeof may, &may) != 0 || CPU_COUNT(&may) < 2) {
        fprintf(stderr, "floor: needs two CPUs\n");
        return 1;
    }
    for (int cpu = 0; cpu < CPU_SETSIZE && found < 2; cpu++) {
        if (CPU_ISSET(cpu, &may)) cpus[found++] = cpu;
    }
    for (int rank = 0; rank < 2; rank++) {
        buffers[rank] = aligned_alloc(4096, LONGEST);
        if (buffers[rank] == NULL) return 1;
        memset(buffers[rank], 0, LONGEST);
    }
    on_both(pingpong);
    printf("{\"handoff_ns\": %.1f", median());
    on_both(barrier);
    printf(", \"barrier_ns\": %.1f, \"pull_ns\": {", median());
    for (size_t i = 0; i < sizeof PULLED / sizeof PULLED[0]; i++) {
        double best = 0;
        span = PULLED[i];
        for (around_caches = 0; around_caches < 2; around_caches++) {
            on_both(pull);
            const double ns = median();
            if (around_caches == 0 || ns < best) best = ns;
        }
        printf("%s\"%zu\": %.0f", i > 0 ? ", " : "", span, best);
    }
    printf("}, \"reduce_ns\": {");
    for (size_t i = 0; i < sizeof REDUCED / sizeof REDUCED[0]; i++) {
        span = REDUCED[i];
        on_both(reduce_in_memory);
        printf("%s\"%zu\": %.0f", i > 0 ? ", " : "", span, median());
    }
    printf("}}\n");
    return 0;
}
