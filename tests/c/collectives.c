/* Ranks that are threads and meet through a unique id: every collective, element type and reduction, in place and out
 * of place, at sizes that different algorithms serve. */
#include "check.h"

/* Empty, one, odd, within one slot, and several pipeline chunks of shared memory. */
static const size_t COUNTS[] = {0, 1, 5, 1000, 70001};
#define COUNT_COUNT (sizeof COUNTS / sizeof COUNTS[0])
/* Enough for the longest of them and for what is only tested at one size. */
#define MEDIUM 1531

static void reduces(tutti_group_t *world, int rank, int size, const dtype_t *dtype, int32_t op, size_t count) {
    void *send = buffer_new(dtype, count), *recv = buffer_new(dtype, count);
    fill(send, dtype, count, rank);
    OK(tutti_all_reduce(world, send, recv, count, dtype->code, op, NULL));
    CHECK(holds_reduced(recv, dtype, 0, count, op, size));
    CHECK(holds_contribution(send, dtype, count, rank));
    OK(tutti_all_reduce(world, send, send, count, dtype->code, op, NULL));
    CHECK(memcmp(send, recv, count * dtype->bytes) == 0);
    buffer_free(send, dtype, count);
    buffer_free(recv, dtype, count);
}

static void all_reduce_body(tutti_group_t *world, int rank, int size) {
    for (size_t d = 0; d < DTYPE_COUNT; d++) {
        for (size_t c = 0; c < COUNT_COUNT; c++) reduces(world, rank, size, &DTYPES[d], TUTTI_SUM, COUNTS[c]);
        reduces(world, rank, size, &DTYPES[d], TUTTI_PROD, MEDIUM);
        reduces(world, rank, size, &DTYPES[d], TUTTI_MAX, MEDIUM);
        reduces(world, rank, size, &DTYPES[d], TUTTI_MIN, MEDIUM);
        if (size != 3 && size != 7) reduces(world, rank, size, &DTYPES[d], TUTTI_AVG, MEDIUM);
    }
}

static void all_reduce_gives_every_rank_the_exact_result(void) {
    static const int sizes[] = {1, 2, 3, 4, 7};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) on_threads(sizes[i], all_reduce_body);
}

static void all_gather_body(tutti_group_t *world, int rank, int size) {
    for (size_t d = 0; d < DTYPE_COUNT; d++) {
        for (size_t c = 0; c < COUNT_COUNT; c++) {
            const dtype_t *dtype = &DTYPES[d];
            size_t count = COUNTS[c], all = count * (size_t)size;
            void *send = buffer_new(dtype, count), *recv = buffer_new(dtype, all);
            fill_marks(send, dtype, count, rank);
            OK(tutti_all_gather(world, send, recv, count, dtype->code, NULL));
            for (int from = 0; from < size; from++) CHECK(holds_marks(recv, (size_t)from * count, dtype, 0, count, from));

            /* In place: a rank's part stands where the result will have it. */
            unsigned char *mine = (unsigned char *)recv + (size_t)rank * count * dtype->bytes;
            memset(recv, 0, all * dtype->bytes);
            fill_marks(mine, dtype, count, rank);
            OK(tutti_all_gather(world, mine, recv, count, dtype->code, NULL));
            for (int from = 0; from < size; from++) CHECK(holds_marks(recv, (size_t)from * count, dtype, 0, count, from));
            buffer_free(send, dtype, count);
            buffer_free(recv, dtype, all);
        }
    }
}

static void all_gather_puts_every_rank_in_its_place(void) {
    on_threads(1, all_gather_body);
    on_threads(4, all_gather_body);
    on_threads(7, all_gather_body);
}

static void reduce_scatter_body(tutti_group_t *world, int rank, int size) {
    for (size_t d = 0; d < DTYPE_COUNT; d++) {
        for (size_t c = 0; c < COUNT_COUNT; c++) {
            const dtype_t *dtype = &DTYPES[d];
            size_t count = COUNTS[c], all = count * (size_t)size;
            void *send = buffer_new(dtype, all), *recv = buffer_new(dtype, count);
            fill(send, dtype, all, rank);
            OK(tutti_reduce_scatter(world, send, recv, count, dtype->code, TUTTI_SUM, NULL));
            CHECK(holds_reduced(recv, dtype, (size_t)rank * count, count, TUTTI_SUM, size));
            CHECK(holds_contribution(send, dtype, all, rank));

            unsigned char *mine = (unsigned char *)send + (size_t)rank * count * dtype->bytes;
            OK(tutti_reduce_scatter(world, send, mine, count, dtype->code, TUTTI_SUM, NULL));
            CHECK(holds_reduced(mine, dtype, (size_t)rank * count, count, TUTTI_SUM, size));
            buffer_free(send, dtype, all);
            buffer_free(recv, dtype, count);
        }
    }
}

static void reduce_scatter_gives_every_rank_its_part(void) {
    on_threads(1, reduce_scatter_body);
    on_threads(3, reduce_scatter_body);
    on_threads(4, reduce_scatter_body);
}

static void broadcast_body(tutti_group_t *world, int rank, int size) {
    for (int root = 0; root < size; root++) {
        for (size_t c = 0; c < COUNT_COUNT; c++) {
            const dtype_t *dtype = &DTYPES[(size_t)root % DTYPE_COUNT];
            size_t count = COUNTS[c];
            void *send = buffer_new(dtype, count), *recv = buffer_new(dtype, count);
            fill_marks(send, dtype, count, rank);
            OK(tutti_broadcast(world, send, recv, count, dtype->code, root, NULL));
            CHECK(holds_marks(recv, 0, dtype, 0, count, root));
            CHECK(holds_marks(send, 0, dtype, 0, count, rank));
            OK(tutti_broadcast(world, send, send, count, dtype->code, root, NULL));
            CHECK(holds_marks(send, 0, dtype, 0, count, root));
            buffer_free(send, dtype, count);
            buffer_free(recv, dtype, count);
        }
    }
}

static void broadcast_works_from_every_root(void) {
    on_threads(1, broadcast_body);
    on_threads(4, broadcast_body);
    on_threads(7, broadcast_body);
}

/* Movement-only types have no arithmetic, but travel. */
static void moved_types_body(tutti_group_t *world, int rank, int size) {
    static const int32_t moved[] = {TUTTI_BOOL, TUTTI_INT16, TUTTI_BYTES};
    static const size_t bytes[] = {1, 2, 1};
    for (size_t d = 0; d < 3; d++) {
        unsigned char send[2 * 33], recv[MAX_RANKS * 2 * 33];
        memset(send, rank + 1, sizeof send);
        OK(tutti_all_gather(world, send, recv, 33, moved[d], NULL));
        for (int from = 0; from < size; from++) {
            for (size_t i = 0; i < 33 * bytes[d]; i++) CHECK(recv[(size_t)from * 33 * bytes[d] + i] == from + 1);
        }
    }
}

static void types_without_arithmetic_are_moved(void) {
    on_threads(3, moved_types_body);
}

static int entered[MAX_RANKS];

static void barrier_body(tutti_group_t *world, int rank, int size) {
    for (int round = 1; round <= 200; round++) {
        __atomic_store_n(&entered[rank], round, __ATOMIC_RELAXED);
        if (round % 2 == 0) {
            OK(tutti_barrier(world, NULL));
        } else {
            OK(tutti_group_sync(world, TIMEOUT_MS));
        }
        for (int other = 0; other < size; other++) CHECK(__atomic_load_n(&entered[other], __ATOMIC_RELAXED) >= round);
    }
}

static void nobody_leaves_a_barrier_before_the_last_rank_entered(void) {
    on_threads(4, barrier_body);
}

/* The collectives with a root, and the one where everybody sends to everybody. */
static void rooted_body(tutti_group_t *world, int rank, int size) {
    for (int root = 0; root < size; root++) {
        for (size_t c = 0; c < COUNT_COUNT; c++) {
            const dtype_t *dtype = &DTYPES[(c + (size_t)root) % DTYPE_COUNT];
            size_t count = COUNTS[c], all = count * (size_t)size;
            void *one = buffer_new(dtype, count), *many = buffer_new(dtype, all);

            fill(one, dtype, count, rank);
            OK(tutti_reduce(world, one, rank == root ? one : NULL, count, dtype->code, TUTTI_SUM, root, NULL));
            if (rank == root) CHECK(holds_reduced(one, dtype, 0, count, TUTTI_SUM, size));
            if (rank != root) CHECK(holds_contribution(one, dtype, count, rank));

            fill_marks(one, dtype, count, rank);
            OK(tutti_gather(world, one, rank == root ? many : NULL, count, dtype->code, root, NULL));
            for (int from = 0; rank == root && from < size; from++) {
                CHECK(holds_marks(many, (size_t)from * count, dtype, 0, count, from));
            }

            fill_marks(many, dtype, all, rank);
            memset(one, 0, count * dtype->bytes);
            OK(tutti_scatter(world, rank == root ? many : NULL, one, count, dtype->code, root, NULL));
            CHECK(holds_marks(one, 0, dtype, (size_t)rank * count, count, root));
            buffer_free(one, dtype, count);
            buffer_free(many, dtype, all);
        }
    }
}

static void rooted_collectives_work_from_every_root(void) {
    on_threads(1, rooted_body);
    on_threads(3, rooted_body);
    on_threads(4, rooted_body);
}

static void all_to_all_body(tutti_group_t *world, int rank, int size) {
    for (size_t c = 0; c < COUNT_COUNT; c++) {
        const dtype_t *dtype = &DTYPES[c % DTYPE_COUNT];
        size_t count = COUNTS[c], all = count * (size_t)size;
        void *send = buffer_new(dtype, all), *recv = buffer_new(dtype, all);
        fill_marks(send, dtype, all, rank);
        OK(tutti_all_to_all(world, send, recv, count, dtype->code, NULL));
        for (int from = 0; from < size; from++) {
            CHECK(holds_marks(recv, (size_t)from * count, dtype, (size_t)rank * count, count, from));
        }
        buffer_free(send, dtype, all);
        buffer_free(recv, dtype, all);
    }
}

static void all_to_all_exchanges_the_parts(void) {
    on_threads(1, all_to_all_body);
    on_threads(4, all_to_all_body);
    on_threads(7, all_to_all_body);
}

/* The library says where the result is: in `buffer`, or in `scratch` with `buffer` untouched. */
static void auto_body(tutti_group_t *world, int rank, int size) {
    const dtype_t *dtype = dtype_of(TUTTI_FLOAT32);
    for (size_t c = 0; c < COUNT_COUNT; c++) {
        size_t count = COUNTS[c];
        void *buffer = buffer_new(dtype, count), *scratch = buffer_new(dtype, count), *result = NULL;
        fill(buffer, dtype, count, rank);
        OK(tutti_all_reduce_auto(world, buffer, scratch, count, dtype->code, TUTTI_SUM, NULL, &result));
        CHECK(result == buffer || result == scratch);
        CHECK(holds_reduced(result, dtype, 0, count, TUTTI_SUM, size));
        if (result == scratch) CHECK(holds_contribution(buffer, dtype, count, rank));
        buffer_free(buffer, dtype, count);
        buffer_free(scratch, dtype, count);
    }
}

static void all_reduce_auto_says_where_the_result_is(void) {
    on_threads(1, auto_body);
    on_threads(4, auto_body);
}

/* Rounding depends on the order of additions; all ranks, and all runs, must see one order. */
static float first_run[4096];

static void same_bits_body(tutti_group_t *world, int rank, int size) {
    float *values = (float *)malloc(sizeof first_run), *all = (float *)malloc(sizeof first_run * (size_t)size);
    CHECK(values != NULL && all != NULL);
    for (size_t i = 0; i < 4096; i++) values[i] = 1.0f / (float)(i * 7 + (size_t)rank * 13 + 3);
    OK(tutti_all_reduce(world, values, values, 4096, TUTTI_FLOAT32, TUTTI_SUM, NULL));
    OK(tutti_all_gather(world, values, all, 4096, TUTTI_FLOAT32, NULL));
    for (int other = 0; other < size; other++) CHECK(memcmp(values, all + 4096 * other, sizeof first_run) == 0);
    if (rank == 0 && first_run[0] == 0) memcpy(first_run, values, sizeof first_run);
    OK(tutti_barrier(world, NULL));
    CHECK(memcmp(values, first_run, sizeof first_run) == 0);
    free(values);
    free(all);
}

static void every_rank_and_every_run_gets_the_same_bits(void) {
    for (int run = 0; run < 5; run++) on_threads(4, same_bits_body);
}

static const test_t TESTS[] = {
    {"all_reduce_gives_every_rank_the_exact_result", all_reduce_gives_every_rank_the_exact_result},
    {"all_gather_puts_every_rank_in_its_place", all_gather_puts_every_rank_in_its_place},
    {"reduce_scatter_gives_every_rank_its_part", reduce_scatter_gives_every_rank_its_part},
    {"broadcast_works_from_every_root", broadcast_works_from_every_root},
    {"types_without_arithmetic_are_moved", types_without_arithmetic_are_moved},
    {"nobody_leaves_a_barrier_before_the_last_rank_entered", nobody_leaves_a_barrier_before_the_last_rank_entered},
    {"rooted_collectives_work_from_every_root", rooted_collectives_work_from_every_root},
    {"all_to_all_exchanges_the_parts", all_to_all_exchanges_the_parts},
    {"all_reduce_auto_says_where_the_result_is", all_reduce_auto_says_where_the_result_is},
    {"every_rank_and_every_run_gets_the_same_bits", every_rank_and_every_run_gets_the_same_bits},
};

int main(int argc, char **argv) {
    return run_tests(TESTS, sizeof TESTS / sizeof TESTS[0], argc, argv);
}
