/* One thread that drives every rank of a world: calls are started, not made, and waited for in any order. */
#include "check.h"

#define RANKS 4

static void started_operations_may_be_waited_for_in_reverse(void) {
    static const size_t counts[] = {0, 1, 777, 70001};
    tutti_group_t *ranks[RANKS];
    local_world(RANKS, ranks);
    for (size_t d = 0; d < DTYPE_COUNT; d++) {
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
            const dtype_t *dtype = &DTYPES[d];
            void *send[RANKS], *recv[RANKS];
            tutti_request_t *requests[RANKS];
            for (int rank = 0; rank < RANKS; rank++) {
                send[rank] = buffer_new(dtype, counts[c]);
                recv[rank] = buffer_new(dtype, counts[c]);
                fill(send[rank], dtype, counts[c], rank);
                tutti_call_t call = TUTTI_CALL_INIT;
                call.collective = TUTTI_ALL_REDUCE;
                call.dtype = dtype->code;
                call.op = TUTTI_SUM;
                call.send = send[rank];
                call.recv = recv[rank];
                call.send_count = counts[c];
                call.recv_count = counts[c];
                requests[rank] = NULL;
                OK(tutti_start(ranks[rank], &call, &requests[rank]));
                CHECK(requests[rank] != NULL);
            }
            for (int rank = RANKS - 1; rank >= 0; rank--) {
                OK(tutti_request_wait(requests[rank], TIMEOUT_MS));
                OK(tutti_request_wait(requests[rank], TIMEOUT_MS)); /* repeatable */
                OK(tutti_request_test(requests[rank]));
                CHECK(holds_reduced(recv[rank], dtype, 0, counts[c], TUTTI_SUM, RANKS));
            }
            for (int rank = 0; rank < RANKS; rank++) {
                OK(tutti_request_free(requests[rank]));
                buffer_free(send[rank], dtype, counts[c]);
                buffer_free(recv[rank], dtype, counts[c]);
            }
        }
    }
    destroy_all(RANKS, ranks);
}

/* Three operations per rank are under way before anybody waits; they finish in the order they were started in. */
static void started_operations_of_one_group_queue_in_order(void) {
    enum { COUNT = 3000, DEPTH = 3 };
    tutti_group_t *ranks[RANKS];
    tutti_request_t *requests[RANKS][DEPTH];
    const dtype_t *dtype = dtype_of(TUTTI_FLOAT32);
    void *buffers[RANKS];
    local_world(RANKS, ranks);
    for (int rank = 0; rank < RANKS; rank++) {
        buffers[rank] = buffer_new(dtype, COUNT);
        fill(buffers[rank], dtype, COUNT, rank);
        for (int step = 0; step < DEPTH; step++) {
            tutti_call_t call = TUTTI_CALL_INIT;
            call.collective = TUTTI_ALL_REDUCE;
            call.dtype = dtype->code;
            call.op = step == 1 ? TUTTI_MAX : TUTTI_SUM;
            call.send = buffers[rank];
            call.recv = buffers[rank];
            call.send_count = COUNT;
            call.recv_count = COUNT;
            OK(tutti_start(ranks[rank], &call, &requests[rank][step]));
        }
    }
    for (int rank = 0; rank < RANKS; rank++) {
        for (int step = DEPTH - 1; step >= 0; step--) OK(tutti_request_wait(requests[rank][step], TIMEOUT_MS));
        /* The sum of all ranks; the maximum of equal values; the sum of equal values. */
        for (size_t i = 0; i < COUNT; i++) CHECK(is(buffers[rank], dtype, i, RANKS * reduced(TUTTI_SUM, RANKS, i)));
        for (int step = 0; step < DEPTH; step++) OK(tutti_request_free(requests[rank][step]));
        buffer_free(buffers[rank], dtype, COUNT);
    }
    destroy_all(RANKS, ranks);
}

static void an_operation_is_in_progress_until_the_last_rank_started_it(void) {
    tutti_group_t *ranks[2];
    tutti_request_t *requests[2];
    int32_t values[2] = {20, 22};
    local_world(2, ranks);
    for (int rank = 0; rank < 2; rank++) {
        tutti_call_t call = TUTTI_CALL_INIT;
        call.collective = TUTTI_ALL_REDUCE;
        call.dtype = TUTTI_INT32;
        call.op = TUTTI_SUM;
        call.send = &values[rank];
        call.recv = &values[rank];
        call.send_count = 1;
        call.recv_count = 1;
        OK(tutti_start(ranks[rank], &call, &requests[rank]));
        if (rank == 0) {
            for (int i = 0; i < 100; i++) FAILS(TUTTI_IN_PROGRESS, tutti_request_test(requests[0]));
            FAILS(TUTTI_IN_PROGRESS, tutti_request_wait(requests[0], 10)); /* the wait's own timeout fails nothing */
        }
    }
    while (tutti_request_test(requests[0]) == TUTTI_IN_PROGRESS || tutti_request_test(requests[1]) == TUTTI_IN_PROGRESS) {}
    for (int rank = 0; rank < 2; rank++) {
        OK(tutti_request_test(requests[rank]));
        CHECK(values[rank] == 42);
        OK(tutti_request_free(requests[rank]));
    }
    destroy_all(2, ranks);
}

static void a_batch_makes_the_calls_of_all_ranks_at_once(void) {
    enum { COUNT = 5000 };
    static const size_t sizes[] = {1, COUNT};
    tutti_group_t *ranks[RANKS];
    const dtype_t *dtype = dtype_of(TUTTI_BFLOAT16);
    local_world(RANKS, ranks);
    for (size_t s = 0; s < 2; s++) {
        void *send[RANKS], *sums[RANKS], *all[RANKS];
        size_t count = sizes[s];
        for (int rank = 0; rank < RANKS; rank++) {
            send[rank] = buffer_new(dtype, count);
            sums[rank] = buffer_new(dtype, count);
            all[rank] = buffer_new(dtype, count * RANKS);
            fill(send[rank], dtype, count, rank);
        }
        OK(tutti_batch_begin());
        for (int rank = 0; rank < RANKS; rank++) {
            OK(tutti_all_reduce(ranks[rank], send[rank], sums[rank], count, dtype->code, TUTTI_SUM, NULL));
            OK(tutti_all_gather(ranks[rank], send[rank], all[rank], count, dtype->code, NULL));
        }
        OK(tutti_batch_end());
        for (int rank = 0; rank < RANKS; rank++) {
            CHECK(holds_reduced(sums[rank], dtype, 0, count, TUTTI_SUM, RANKS));
            for (int from = 0; from < RANKS; from++) {
                const unsigned char *part = (const unsigned char *)all[rank] + (size_t)from * count * dtype->bytes;
                CHECK(holds_contribution(part, dtype, count, from));
            }
            buffer_free(send[rank], dtype, count);
            buffer_free(sums[rank], dtype, count);
            buffer_free(all[rank], dtype, count * RANKS);
        }
    }
    destroy_all(RANKS, ranks);
}

static void one_bad_call_cancels_its_batch_and_nothing_else(void) {
    tutti_group_t *ranks[2];
    int32_t values[2] = {1, 2};
    local_world(2, ranks);
    OK(tutti_batch_begin());
    OK(tutti_all_reduce(ranks[0], &values[0], &values[0], 1, TUTTI_INT32, TUTTI_SUM, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce(ranks[1], &values[1], &values[1], 1, 77, TUTTI_SUM, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_batch_end());
    CHECK(values[0] == 1 && values[1] == 2);

    OK(tutti_batch_begin());
    for (int rank = 0; rank < 2; rank++) {
        OK(tutti_all_reduce(ranks[rank], &values[rank], &values[rank], 1, TUTTI_INT32, TUTTI_SUM, NULL));
    }
    OK(tutti_batch_end());
    CHECK(values[0] == 3 && values[1] == 3);
    FAILS(TUTTI_INVALID_USAGE, tutti_batch_end()); /* there is none */
    destroy_all(2, ranks);
}

static const test_t TESTS[] = {
    {"started_operations_may_be_waited_for_in_reverse", started_operations_may_be_waited_for_in_reverse},
    {"started_operations_of_one_group_queue_in_order", started_operations_of_one_group_queue_in_order},
    {"an_operation_is_in_progress_until_the_last_rank_started_it", an_operation_is_in_progress_until_the_last_rank_started_it},
    {"a_batch_makes_the_calls_of_all_ranks_at_once", a_batch_makes_the_calls_of_all_ranks_at_once},
    {"one_bad_call_cancels_its_batch_and_nothing_else", one_bad_call_cancels_its_batch_and_nothing_else},
};

int main(int argc, char **argv) {
    return run_tests(TESTS, sizeof TESTS / sizeof TESTS[0], argc, argv);
}
