/* Messages from rank to rank: blocking, by requests, in batches, with tags, to oneself, and those that do not fit. */
#include "check.h"

/* Beside the envelope's flag, with the envelope, and in chunks. */
static const size_t COUNTS[] = {0, 1, 5, 1000, 70001};
#define COUNT_COUNT (sizeof COUNTS / sizeof COUNTS[0])

static tutti_call_t message(int32_t collective, void *buffer, size_t count, const dtype_t *dtype, int peer, int64_t tag) {
    tutti_call_t call = TUTTI_CALL_INIT;
    call.collective = collective;
    call.dtype = dtype->code;
    call.peer = peer;
    call.tag = tag;
    if (collective == TUTTI_SEND) {
        call.send = buffer;
        call.send_count = count;
    } else {
        call.recv = buffer;
        call.recv_count = count;
    }
    return call;
}

static tutti_request_t *start(tutti_group_t *world, tutti_call_t call) {
    tutti_request_t *request = NULL;
    OK(tutti_start(world, &call, &request));
    CHECK(request != NULL);
    return request;
}

static void finish(tutti_request_t *request) {
    OK(tutti_request_wait(request, TIMEOUT_MS));
    OK(tutti_request_free(request));
}

static void ring_body(tutti_group_t *world, int rank, int size) {
    int next = (rank + 1) % size, before = (rank + size - 1) % size;
    for (size_t d = 0; d < DTYPE_COUNT; d++) {
        for (size_t c = 0; c < COUNT_COUNT; c++) {
            const dtype_t *dtype = &DTYPES[d];
            size_t count = COUNTS[c];
            void *send = buffer_new(dtype, count), *recv = buffer_new(dtype, count);
            fill_marks(send, dtype, count, rank);
            OK(tutti_sendrecv(world, send, count, next, recv, count, before, dtype->code, NULL));
            CHECK(holds_marks(recv, 0, dtype, 0, count, before));
            CHECK(holds_marks(send, 0, dtype, 0, count, rank));

            /* The same by a blocking send and receive in turn, which one rank has to begin. */
            memset(recv, 0, count * dtype->bytes);
            if (size > 1) {
                if (rank == 0) OK(tutti_send(world, send, count, dtype->code, next, NULL));
                OK(tutti_recv(world, recv, count, dtype->code, before, NULL));
                if (rank != 0) OK(tutti_send(world, send, count, dtype->code, next, NULL));
                CHECK(holds_marks(recv, 0, dtype, 0, count, before));
            }
            buffer_free(send, dtype, count);
            buffer_free(recv, dtype, count);
        }
    }
}

static void messages_go_round_a_ring(void) {
    on_threads(1, ring_body);
    on_threads(2, ring_body);
    on_threads(5, ring_body);
}

/* Tags are matched apart, in the order of each; receives are posted in the other order than the sends. */
static void tags_body(tutti_group_t *world, int rank, int size) {
    enum { TAGS = 3, EACH = 4 };
    const dtype_t *dtype = dtype_of(TUTTI_INT32);
    tutti_request_t *requests[TAGS][EACH];
    void *buffers[TAGS][EACH];
    int peer = 1 - rank;
    (void)size;
    for (int step = 0; step < EACH; step++) {
        for (int tag = 0; tag < TAGS; tag++) {
            int at = rank == 0 ? tag : TAGS - 1 - tag;
            size_t count = COUNTS[step + 1];
            buffers[at][step] = buffer_new(dtype, count);
            if (rank == 0) fill_marks(buffers[at][step], dtype, count, at * EACH + step);
            requests[at][step] =
                start(world, message(rank == 0 ? TUTTI_SEND : TUTTI_RECV, buffers[at][step], count, dtype, peer, at));
        }
    }
    OK(tutti_barrier(world, NULL)); /* goes past them */
    for (int tag = 0; tag < TAGS; tag++) {
        for (int step = EACH - 1; step >= 0; step--) {
            size_t count = COUNTS[step + 1], received = 0;
            OK(tutti_request_wait(requests[tag][step], TIMEOUT_MS));
            if (rank == 1) {
                OK(tutti_request_received(requests[tag][step], &received));
                CHECK(received == count);
                CHECK(holds_marks(buffers[tag][step], 0, dtype, 0, count, tag * EACH + step));
            } else {
                FAILS(TUTTI_INVALID_USAGE, tutti_request_received(requests[tag][step], &received));
            }
            OK(tutti_request_free(requests[tag][step]));
            buffer_free(buffers[tag][step], dtype, count);
        }
    }
}

static void tags_are_matched_in_order_and_apart(void) {
    on_threads(2, tags_body);
}

static void batch_body(tutti_group_t *world, int rank, int size) {
    const dtype_t *dtype = dtype_of(TUTTI_FLOAT64);
    for (size_t c = 0; c < COUNT_COUNT; c++) {
        size_t count = COUNTS[c];
        void *send[MAX_RANKS], *recv[MAX_RANKS];
        OK(tutti_batch_begin());
        for (int peer = 0; peer < size; peer++) {
            send[peer] = buffer_new(dtype, count);
            recv[peer] = buffer_new(dtype, count);
            fill_marks(send[peer], dtype, count, rank * size + peer);
            OK(tutti_send(world, send[peer], count, dtype->code, peer, NULL));
            OK(tutti_recv(world, recv[peer], count, dtype->code, peer, NULL));
        }
        OK(tutti_batch_end());
        for (int peer = 0; peer < size; peer++) {
            CHECK(holds_marks(recv[peer], 0, dtype, 0, count, peer * size + rank));
            buffer_free(send[peer], dtype, count);
            buffer_free(recv[peer], dtype, count);
        }
    }
}

static void a_batch_of_messages_is_an_all_to_all(void) {
    on_threads(1, batch_body);
    on_threads(4, batch_body);
}

static void sizes_body(tutti_group_t *world, int rank, int size) {
    const dtype_t *dtype = dtype_of(TUTTI_INT32);
    (void)size;
    for (size_t c = 2; c < COUNT_COUNT; c++) {
        size_t count = COUNTS[c], received = 0;
        void *buffer = buffer_new(dtype, count);
        if (rank == 0) {
            fill_marks(buffer, dtype, count, 0);
            tutti_status_t status = tutti_send(world, buffer, count, dtype->code, 1, NULL);
            CHECK(status == TUTTI_MISMATCH || (status == TUTTI_SUCCESS && count < 70001));
            OK(tutti_send(world, buffer, count - 1, dtype->code, 1, NULL));
        } else {
            memset(buffer, 0, count * dtype->bytes);
            FAILS(TUTTI_MISMATCH, tutti_recv(world, buffer, count - 1, dtype->code, 0, NULL));
            CHECK(strstr(tutti_last_error(), "the group lives on") != NULL);
            for (size_t i = 0; i < count; i++) CHECK(((int32_t *)buffer)[i] == 0);
            tutti_request_t *request = start(world, message(TUTTI_RECV, buffer, count, dtype, 0, 0));
            OK(tutti_request_wait(request, TIMEOUT_MS));
            OK(tutti_request_received(request, &received));
            CHECK(received == count - 1 && holds_marks(buffer, 0, dtype, 0, count - 1, 0));
            CHECK(((int32_t *)buffer)[count - 1] == 0);
            OK(tutti_request_free(request));
        }
        OK(tutti_group_check(world));
        OK(tutti_barrier(world, NULL));
        buffer_free(buffer, dtype, count);
    }
}

static void a_message_too_long_harms_nothing_and_a_shorter_one_arrives(void) {
    on_threads(2, sizes_body);
}

static void refusals_body(tutti_group_t *world, int rank, int size) {
    const dtype_t *dtype = dtype_of(TUTTI_INT32);
    int32_t values[4] = {1, 2, 3, 4};
    tutti_request_t *request = NULL;
    tutti_call_t call = message(TUTTI_SEND, values, 4, dtype, rank, -1);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_send(world, values, 4, TUTTI_INT32, size, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_recv(world, values, 4, TUTTI_INT32, -1, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_recv(world, NULL, 4, TUTTI_INT32, 0, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_send(world, values, 4, TUTTI_INT32, 0, values));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_start(world, &call, &request));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_sendrecv(world, values, 3, 0, values + 2, 2, 0, TUTTI_INT32, NULL));
    CHECK(request == NULL);
    OK(tutti_group_check(world));
    OK(tutti_sendrecv(world, values, 2, rank, values + 2, 2, rank, TUTTI_INT32, NULL));
    CHECK(values[2] == 1 && values[3] == 2);
}

static void what_is_no_message_is_refused(void) {
    on_threads(1, refusals_body);
    on_threads(2, refusals_body);
}

/* One thread sends for one rank and receives for the other. */
static void one_thread_carries_messages_between_its_ranks(void) {
    const dtype_t *dtype = dtype_of(TUTTI_FLOAT32);
    tutti_group_t *ranks[2];
    local_world(2, ranks);
    for (size_t c = 0; c < COUNT_COUNT; c++) {
        size_t count = COUNTS[c];
        void *send = buffer_new(dtype, count), *recv = buffer_new(dtype, count);
        fill_marks(send, dtype, count, 0);
        tutti_request_t *received = start(ranks[1], message(TUTTI_RECV, recv, count, dtype, 0, 5));
        tutti_request_t *sent = start(ranks[0], message(TUTTI_SEND, send, count, dtype, 1, 5));
        finish(received);
        finish(sent);
        CHECK(holds_marks(recv, 0, dtype, 0, count, 0));
        buffer_free(send, dtype, count);
        buffer_free(recv, dtype, count);
    }
    destroy_all(2, ranks);
}

static const test_t TESTS[] = {
    {"messages_go_round_a_ring", messages_go_round_a_ring},
    {"tags_are_matched_in_order_and_apart", tags_are_matched_in_order_and_apart},
    {"a_batch_of_messages_is_an_all_to_all", a_batch_of_messages_is_an_all_to_all},
    {"a_message_too_long_harms_nothing_and_a_shorter_one_arrives", a_message_too_long_harms_nothing_and_a_shorter_one_arrives},
    {"what_is_no_message_is_refused", what_is_no_message_is_refused},
    {"one_thread_carries_messages_between_its_ranks", one_thread_carries_messages_between_its_ranks},
};

int main(int argc, char **argv) {
    return run_tests(TESTS, sizeof TESTS / sizeof TESTS[0], argc, argv);
}
