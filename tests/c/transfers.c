/* Transfers carried out: one thread that drives all ranks, threads that wait, and what is refused or goes wrong. */
#include <sched.h>

#include "check.h"

#define RANKS 4
#define ROWS 37
#define COLUMNS 10

/* A matrix that lies by rows on ranks 0 and 1, and shall lie by columns, as bfloat16 turned into float32, on all. */
static tutti_transfer_plan_t *plan_of(int size) {
    static const size_t shape[2] = {ROWS, COLUMNS};
    static const int32_t ranks[RANKS] = {0, 1, 2, 3};
    const size_t two[1] = {2}, all[1] = {RANKS};
    tutti_mesh_t from = TUTTI_MESH_INIT, to = TUTTI_MESH_INIT;
    tutti_placement_t rows = TUTTI_PLACEMENT_INIT, columns = TUTTI_PLACEMENT_INIT;
    tutti_tensor_layout_t source = TUTTI_TENSOR_LAYOUT_INIT, target = TUTTI_TENSOR_LAYOUT_INIT;
    tutti_transfer_item_t item = TUTTI_TRANSFER_ITEM_INIT;
    tutti_transfer_options_t options = TUTTI_TRANSFER_OPTIONS_INIT;
    tutti_transfer_plan_t *plan = NULL;
    from.dims = two;
    to.dims = all;
    from.dim_count = to.dim_count = 1;
    from.ranks = to.ranks = ranks;
    from.rank_count = 2;
    to.rank_count = RANKS;
    rows.kind = columns.kind = TUTTI_SHARD;
    columns.dim = 1;
    columns.split = TUTTI_SPLIT_BALANCED;
    source.dtype = TUTTI_BFLOAT16;
    target.dtype = TUTTI_FLOAT32;
    source.mesh = &from;
    source.placements = &rows;
    target.mesh = &to;
    target.placements = &columns;
    source.placement_count = target.placement_count = 1;
    item.name = "matrix";
    item.shape = shape;
    item.dim_count = 2;
    item.source = &source;
    item.target = &target;
    options.bucket_bytes = 128; /* many buckets */
    OK(tutti_transfer_plan_create(&item, 1, size, &options, &plan));
    return plan;
}

static double element(uint64_t row, uint64_t column) {
    return (double)((row * COLUMNS + column) % 97 + 1);
}

/* What a rank brings and gets. */
typedef struct part {
    uint64_t start[2], extent[2], count;
    void *memory;
} part_t;

static part_t part_of(const tutti_transfer_plan_t *plan, int32_t side, int rank) {
    const dtype_t *dtype = dtype_of(side == TUTTI_SOURCE ? TUTTI_BFLOAT16 : TUTTI_FLOAT32);
    part_t part;
    OK(tutti_transfer_plan_region(plan, 0, side, rank, part.start, part.extent, &part.count));
    part.memory = part.count > 0 ? buffer_new(dtype, part.count) : NULL;
    for (uint64_t i = 0; side == TUTTI_SOURCE && i < part.count; i++) {
        put(part.memory, dtype, i, element(part.start[0] + i / part.extent[1], part.start[1] + i % part.extent[1]));
    }
    return part;
}

static void check_target(const part_t *part) {
    for (uint64_t i = 0; i < part->count; i++) {
        double expected = element(part->start[0] + i / part->extent[1], part->start[1] + i % part->extent[1]);
        CHECK(((const float *)part->memory)[i] == (float)expected);
    }
}

static void part_free(part_t *part, int32_t dtype) {
    if (part->memory != NULL) buffer_free(part->memory, dtype_of(dtype), part->count);
}

static void one_thread_drives_all_ranks(void) {
    tutti_group_t *ranks[RANKS];
    tutti_transfer_plan_t *plan = plan_of(RANKS);
    tutti_transfer_t *transfers[RANKS];
    part_t sources[RANKS], targets[RANKS];
    local_world(RANKS, ranks);
    for (int rank = 0; rank < RANKS; rank++) {
        sources[rank] = part_of(plan, TUTTI_SOURCE, rank);
        targets[rank] = part_of(plan, TUTTI_TARGET, rank);
        OK(tutti_transfer_create(plan, ranks[rank], &transfers[rank]));
        OK(tutti_transfer_bind(transfers[rank], 0, sources[rank].memory, NULL, targets[rank].memory, NULL));
    }
    OK(tutti_transfer_plan_destroy(plan)); /* the transfers keep it */
    for (int turn = 0; turn < 3; turn++) {
        int left = RANKS;
        for (int rank = 0; rank < RANKS; rank++) {
            memset(targets[rank].memory, 0, targets[rank].count * 4);
            OK(tutti_transfer_start(transfers[rank], NULL));
            FAILS(TUTTI_INVALID_USAGE, tutti_transfer_start(transfers[rank], NULL));
            FAILS(TUTTI_INVALID_USAGE, tutti_transfer_bind(transfers[rank], 0, NULL, NULL, targets[rank].memory, NULL));
        }
        while (left > 0) {
            left = 0;
            for (int rank = 0; rank < RANKS; rank++) {
                tutti_transfer_progress_t progress = TUTTI_TRANSFER_PROGRESS_INIT;
                tutti_status_t status = tutti_transfer_poll(transfers[rank], &progress);
                if (status == TUTTI_SUCCESS) {
                    CHECK(progress.phase == TUTTI_TRANSFER_DONE && progress.bytes_done == progress.bytes);
                    CHECK(progress.buckets_done == progress.buckets && progress.buckets > 1);
                } else {
                    CHECK(status == TUTTI_IN_PROGRESS && progress.phase != TUTTI_TRANSFER_FAILED);
                    left++;
                }
                CHECK(progress.failed_rank == -1);
            }
        }
        for (int rank = 0; rank < RANKS; rank++) {
            uint64_t written = 0, bytes = 0;
            check_target(&targets[rank]);
            OK(tutti_transfer_written(transfers[rank], 0, &written, &bytes));
            CHECK(written == bytes && bytes == targets[rank].count * 4);
        }
    }
    for (int rank = 0; rank < RANKS; rank++) {
        OK(tutti_transfer_destroy(transfers[rank]));
        OK(tutti_transfer_destroy(transfers[rank])); /* twice is fine */
        part_free(&sources[rank], TUTTI_BFLOAT16);
        part_free(&targets[rank], TUTTI_FLOAT32);
    }
    destroy_all(RANKS, ranks);
}

static void waiting_body(tutti_group_t *world, int rank, int size) {
    tutti_transfer_plan_t *plan = plan_of(size);
    tutti_transfer_t *transfer = NULL;
    part_t source = part_of(plan, TUTTI_SOURCE, rank), target = part_of(plan, TUTTI_TARGET, rank);
    OK(tutti_transfer_create(plan, world, &transfer));
    if (source.memory != NULL) FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_start(transfer, NULL)); /* nothing bound */
    OK(tutti_transfer_bind(transfer, 0, source.memory, NULL, NULL, NULL));
    OK(tutti_transfer_bind(transfer, 0, NULL, NULL, target.memory, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_start(transfer, &plan)); /* no stream on the CPU */
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_bind(transfer, 1, NULL, NULL, target.memory, NULL));
    if (source.memory == NULL) {
        FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_bind(transfer, 0, target.memory, NULL, NULL, NULL));
    }
    FAILS(TUTTI_INVALID_USAGE, tutti_transfer_poll(transfer, NULL));
    OK(tutti_transfer_start(transfer, NULL));
    OK(tutti_transfer_wait(transfer, TIMEOUT_MS));
    OK(tutti_transfer_wait(transfer, TUTTI_TIMEOUT_NEVER)); /* repeatable */
    check_target(&target);
    OK(tutti_transfer_destroy(transfer));
    OK(tutti_transfer_plan_destroy(plan));
    part_free(&source, TUTTI_BFLOAT16);
    part_free(&target, TUTTI_FLOAT32);
    OK(tutti_barrier(world, NULL));
}

static void threads_wait_for_their_ranks(void) {
    on_threads(RANKS, waiting_body);
}

static int started; /* ranks that have begun the transfer that is aborted */

/* Everybody but rank 3 starts; then rank 0 gives up, and all who wait hear of it. */
static void abort_body(tutti_group_t *world, int rank, int size) {
    tutti_transfer_plan_t *plan = plan_of(size);
    tutti_transfer_t *transfer = NULL;
    part_t source = part_of(plan, TUTTI_SOURCE, rank), target = part_of(plan, TUTTI_TARGET, rank);
    OK(tutti_transfer_create(plan, world, &transfer));
    OK(tutti_transfer_bind(transfer, 0, source.memory, NULL, target.memory, NULL));
    OK(tutti_transfer_abort(transfer)); /* does not go on: nothing happens */
    if (rank != 3) {
        tutti_transfer_progress_t progress = TUTTI_TRANSFER_PROGRESS_INIT;
        uint64_t written = 1;
        OK(tutti_transfer_start(transfer, NULL));
        __atomic_fetch_add(&started, 1, __ATOMIC_RELAXED);
        if (rank == 0) {
            while (__atomic_load_n(&started, __ATOMIC_RELAXED) < size - 1) sched_yield(); /* nobody may start what was aborted */
            FAILS(TUTTI_IN_PROGRESS, tutti_transfer_wait(transfer, 5));
            OK(tutti_transfer_abort(transfer));
        }
        FAILS(TUTTI_ABORTED, tutti_transfer_wait(transfer, TUTTI_TIMEOUT_NEVER));
        FAILS(TUTTI_ABORTED, tutti_transfer_poll(transfer, &progress));
        CHECK(progress.phase == TUTTI_TRANSFER_FAILED && progress.failed_rank == 0 && progress.buckets_done == 0);
        OK(tutti_transfer_written(transfer, 0, &written, NULL));
        CHECK(written == 0);
    } else {
        while (tutti_group_check(world) == TUTTI_SUCCESS) sched_yield(); /* one that left would be named first */
    }
    OK(tutti_transfer_destroy(transfer));
    OK(tutti_transfer_plan_destroy(plan));
    part_free(&source, TUTTI_BFLOAT16);
    part_free(&target, TUTTI_FLOAT32);
}

static void an_abort_ends_the_transfer_on_all_ranks(void) {
    on_threads(RANKS, abort_body);
}

static void handles_that_are_none_are_refused(void) {
    tutti_group_t *ranks[RANKS];
    tutti_transfer_plan_t *plan = plan_of(RANKS), *other = plan_of(RANKS + 1);
    tutti_transfer_t *transfer = (tutti_transfer_t *)(uintptr_t)1;
    local_world(RANKS, ranks);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_create(other, ranks[0], &transfer)); /* another size */
    CHECK(transfer == NULL);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_create(NULL, ranks[0], &transfer));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_create(plan, NULL, &transfer));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_create(plan, (tutti_group_t *)(void *)plan, &transfer));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_create(plan, ranks[0], NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_start(NULL, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_poll((tutti_transfer_t *)(void *)plan, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_wait(NULL, 0));
    OK(tutti_transfer_destroy(NULL));
    OK(tutti_transfer_plan_destroy(plan));
    OK(tutti_transfer_plan_destroy(other));
    destroy_all(RANKS, ranks);
}

static const test_t TESTS[] = {
    {"one_thread_drives_all_ranks", one_thread_drives_all_ranks},
    {"threads_wait_for_their_ranks", threads_wait_for_their_ranks},
    {"an_abort_ends_the_transfer_on_all_ranks", an_abort_ends_the_transfer_on_all_ranks},
    {"handles_that_are_none_are_refused", handles_that_are_none_are_refused},
};

int main(int argc, char **argv) {
    return run_tests(TESTS, sizeof TESTS / sizeof TESTS[0], argc, argv);
}
