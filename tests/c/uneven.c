/* The v-forms: parts that differ in size from rank to rank, with and without gaps, in place, by every entry. */
#include "check.h"

/* Elements of rank r's part: some ranks have none. */
static size_t part(int rank, size_t scale) {
    return rank % 3 == 1 ? 0 : (size_t)(rank + 1) * scale + (size_t)rank;
}

static const size_t SCALES[] = {0, 1, 100, 9000};
#define SCALE_COUNT (sizeof SCALES / sizeof SCALES[0])

/* Fills counts and displs with a gap between parts, and says how many elements that takes. */
static size_t lay_out(int size, size_t scale, size_t gap, size_t *counts, size_t *displs) {
    size_t end = 0;
    for (int rank = 0; rank < size; rank++) {
        counts[rank] = part(rank, scale);
        displs[rank] = end;
        end += counts[rank] + gap;
    }
    return end;
}

static void all_gather_v_body(tutti_group_t *world, int rank, int size) {
    size_t counts[MAX_RANKS], displs[MAX_RANKS];
    for (size_t d = 0; d < DTYPE_COUNT; d++) {
        for (size_t s = 0; s < SCALE_COUNT; s++) {
            for (size_t gap = 0; gap < 2; gap++) {
                const dtype_t *dtype = &DTYPES[d];
                size_t all = lay_out(size, SCALES[s], gap, counts, displs), mine = counts[rank];
                void *send = buffer_new(dtype, mine), *recv = buffer_new(dtype, all);
                fill_marks(send, dtype, mine, rank);
                OK(tutti_all_gather_v(world, send, recv, counts, gap ? displs : NULL, dtype->code, NULL));
                for (int from = 0; from < size; from++) CHECK(holds_marks(recv, displs[from], dtype, 0, counts[from], from));

                unsigned char *own = (unsigned char *)recv + displs[rank] * dtype->bytes;
                memset(recv, 0, all * dtype->bytes);
                fill_marks(own, dtype, mine, rank);
                OK(tutti_all_gather_v(world, own, recv, counts, displs, dtype->code, NULL));
                for (int from = 0; from < size; from++) CHECK(holds_marks(recv, displs[from], dtype, 0, counts[from], from));
                buffer_free(send, dtype, mine);
                buffer_free(recv, dtype, all);
            }
        }
    }
}

static void all_gather_v_puts_every_part_in_its_place(void) {
    on_threads(1, all_gather_v_body);
    on_threads(3, all_gather_v_body);
    on_threads(5, all_gather_v_body);
}

static void reduce_scatter_v_body(tutti_group_t *world, int rank, int size) {
    size_t counts[MAX_RANKS], displs[MAX_RANKS];
    for (size_t d = 0; d < DTYPE_COUNT; d++) {
        for (size_t s = 0; s < SCALE_COUNT; s++) {
            const dtype_t *dtype = &DTYPES[d];
            size_t all = lay_out(size, SCALES[s], 0, counts, displs), mine = counts[rank];
            void *send = buffer_new(dtype, all), *recv = buffer_new(dtype, mine);
            fill(send, dtype, all, rank);
            OK(tutti_reduce_scatter_v(world, send, recv, counts, NULL, dtype->code, TUTTI_SUM, NULL));
            CHECK(holds_reduced(recv, dtype, displs[rank], mine, TUTTI_SUM, size));
            CHECK(holds_contribution(send, dtype, all, rank));

            unsigned char *own = (unsigned char *)send + displs[rank] * dtype->bytes;
            OK(tutti_reduce_scatter_v(world, send, own, counts, displs, dtype->code, TUTTI_SUM, NULL));
            CHECK(holds_reduced(own, dtype, displs[rank], mine, TUTTI_SUM, size));
            buffer_free(send, dtype, all);
            buffer_free(recv, dtype, mine);
        }
    }
}

static void reduce_scatter_v_gives_every_rank_its_part(void) {
    on_threads(1, reduce_scatter_v_body);
    on_threads(3, reduce_scatter_v_body);
    on_threads(5, reduce_scatter_v_body);
}

/* What one rank sends another: nothing, now and then. */
static size_t gift(int from, int to, size_t scale) {
    return (from + 2 * to) % 4 == 1 ? 0 : (size_t)(from * 3 + to + 1) * scale;
}

static void all_to_all_v_body(tutti_group_t *world, int rank, int size) {
    size_t out[MAX_RANKS], in[MAX_RANKS], out_at[MAX_RANKS], in_at[MAX_RANKS];
    for (size_t s = 0; s < SCALE_COUNT; s++) {
        for (int started = 0; started < 2; started++) {
            const dtype_t *dtype = &DTYPES[(s * 2 + (size_t)started) % DTYPE_COUNT];
            size_t sends = 0, receives = 0;
            for (int peer = 0; peer < size; peer++) {
                out[peer] = gift(rank, peer, SCALES[s]);
                in[peer] = gift(peer, rank, SCALES[s]);
                out_at[peer] = sends;
                in_at[peer] = receives;
                sends += out[peer];
                receives += in[peer];
            }
            void *send = buffer_new(dtype, sends), *recv = buffer_new(dtype, receives);
            for (int peer = 0; peer < size; peer++) {
                fill_marks((unsigned char *)send + out_at[peer] * dtype->bytes, dtype, out[peer], rank * size + peer);
            }
            if (started) {
                tutti_call_t call = TUTTI_CALL_INIT;
                tutti_request_t *request = NULL;
                call.collective = TUTTI_ALL_TO_ALL_V;
                call.dtype = dtype->code;
                call.send = send;
                call.recv = recv;
                call.send_counts = out;
                call.recv_counts = in;
                call.recv_displs = in_at;
                OK(tutti_start(world, &call, &request));
                OK(tutti_request_wait(request, TIMEOUT_MS));
                OK(tutti_request_free(request));
            } else {
                OK(tutti_all_to_all_v(world, send, out, out_at, recv, in, NULL, dtype->code, NULL));
            }
            for (int from = 0; from < size; from++) {
                CHECK(holds_marks(recv, in_at[from], dtype, 0, in[from], from * size + rank));
            }
            buffer_free(send, dtype, sends);
            buffer_free(recv, dtype, receives);
        }
    }
}

static void all_to_all_v_exchanges_parts_of_any_size(void) {
    on_threads(1, all_to_all_v_body);
    on_threads(3, all_to_all_v_body);
    on_threads(5, all_to_all_v_body);
}

static void disagreement_body(tutti_group_t *world, int rank, int size) {
    size_t out[2] = {3, 3}, in[2] = {3, 3};
    int32_t send[6] = {1, 1, 1, 1, 1, 1}, recv[6] = {0, 0, 0, 0, 0, 0};
    (void)size;
    if (rank == 0) out[1] = 2;
    FAILS(TUTTI_MISMATCH, tutti_all_to_all_v(world, send, out, NULL, recv, in, NULL, TUTTI_INT32, NULL));
    CHECK(strstr(tutti_last_error(), "rank 0 sends 2 x int32 to rank 1, which expects 3") != NULL);
    for (int i = 0; i < 6; i++) CHECK(recv[i] == 0);
}

static void counts_that_differ_are_named_and_write_nothing(void) {
    on_threads(2, disagreement_body);
}

static void refusals_body(tutti_group_t *world, int rank, int size) {
    size_t ones[2] = {1, 1}, same[2] = {1, 1}, huge[2] = {1, (size_t)-1 / 4}, apart[2] = {0, 1};
    float send[4] = {1, 2, 3, 4}, recv[4] = {0, 0, 0, 0};
    (void)rank, (void)size;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_gather_v(world, send, recv, NULL, NULL, TUTTI_FLOAT32, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_gather_v(world, send, recv, ones, same, TUTTI_FLOAT32, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_gather_v(world, send, recv, huge, NULL, TUTTI_FLOAT32, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_gather_v(world, recv + (rank == 0), recv, ones, NULL, TUTTI_FLOAT32, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_gather_v(world, NULL, recv, ones, NULL, TUTTI_FLOAT32, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_reduce_scatter_v(world, send, send + (rank == 0), ones, NULL, TUTTI_FLOAT32, TUTTI_SUM, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_reduce_scatter_v(world, send, recv, ones, NULL, TUTTI_BYTES, TUTTI_SUM, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_to_all_v(world, send, ones, apart, send, ones, apart, TUTTI_FLOAT32, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_to_all_v(world, send, ones, same, recv, ones, same, TUTTI_FLOAT32, NULL));
    OK(tutti_group_check(world));
    /* What is read only may overlap. */
    OK(tutti_all_to_all_v(world, send, ones, same, recv, ones, apart, TUTTI_FLOAT32, NULL));
    CHECK(recv[0] == 2 && recv[1] == 2);
}

static void what_is_no_v_form_is_refused(void) {
    on_threads(2, refusals_body);
}

static const test_t TESTS[] = {
    {"all_gather_v_puts_every_part_in_its_place", all_gather_v_puts_every_part_in_its_place},
    {"reduce_scatter_v_gives_every_rank_its_part", reduce_scatter_v_gives_every_rank_its_part},
    {"all_to_all_v_exchanges_parts_of_any_size", all_to_all_v_exchanges_parts_of_any_size},
    {"counts_that_differ_are_named_and_write_nothing", counts_that_differ_are_named_and_write_nothing},
    {"what_is_no_v_form_is_refused", what_is_no_v_form_is_refused},
};

int main(int argc, char **argv) {
    return run_tests(TESTS, sizeof TESTS / sizeof TESTS[0], argc, argv);
}
