/* What goes wrong must come back as a status and a sentence, and must leave the group as it should be. */
#include "check.h"

#include <stdint.h>

/* ---- Arguments: refused before anything happens, and the group lives on --------------------------------------- */

static float input[64], output[64];

static void bad_arguments_body(tutti_group_t *world, int rank, int size) {
    const int32_t f32 = TUTTI_FLOAT32, sum = TUTTI_SUM;
    int32_t number = -1;
    size_t needed = 0;
    void *result = NULL;
    tutti_failure_t failure = TUTTI_FAILURE_INIT;
    (void)rank, (void)size;

    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce(NULL, input, output, 8, f32, sum, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce(world, NULL, output, 8, f32, sum, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce(world, input, NULL, 8, f32, sum, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce(world, input, output, 8, -1, sum, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce(world, input, output, 8, 12, sum, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce(world, input, output, 8, INT32_MAX, sum, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce(world, input, output, 8, f32, 5, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce(world, input, output, 8, f32, -1, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce(world, input, output, SIZE_MAX, f32, sum, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce(world, input, output, SIZE_MAX / 4 + 2, f32, sum, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_gather(world, input, output, SIZE_MAX / 4, f32, NULL)); /* times the ranks */
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce(world, input, input + 1, 8, f32, sum, NULL)); /* partial overlap */
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce(world, input + 7, input, 8, f32, sum, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_broadcast(world, input, output, 8, f32, -1, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_broadcast(world, input, output, 8, f32, size, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce_auto(world, input, output, 8, f32, sum, NULL, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce_auto(NULL, input, output, 8, f32, sum, NULL, &result));

    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_rank(NULL, &number));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_rank(world, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_size(world, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_failure(world, NULL));
    failure.struct_size = 3;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_failure(world, &failure));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_explain(world, 99, 1, f32, sum, 0, 0, NULL, 0, &needed));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_explain(world, 0, 1, f32, sum, 0, 7, NULL, 0, &needed));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_explain(world, 0, 1, f32, sum, 0, 0, NULL, 10, &needed));

    FAILS(TUTTI_INVALID_ARGUMENT, tutti_start(world, NULL, NULL));
    tutti_call_t call = TUTTI_CALL_INIT;
    call.collective = 14;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_start(world, &call, NULL));
    call.collective = TUTTI_BARRIER;
    call.struct_size = 1;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_start(world, &call, NULL));
    call.struct_size = 1025;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_start(world, &call, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_request_test(NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_request_wait(NULL, 0));

    /* Nothing of it reached the others: the group still works. */
    OK(tutti_group_check(world));
    float one = 1;
    OK(tutti_all_reduce(world, &one, &one, 1, f32, sum, NULL));
    CHECK(one == (float)size);
}

static void bad_arguments_are_refused_and_change_nothing(void) {
    on_threads(1, bad_arguments_body);
    on_threads(2, bad_arguments_body);
}

/* A struct of a later version is taken as long as what this version does not know is zero. */
static void options_of_other_versions_are_read_with_care(void) {
    union {
        tutti_world_options_t known;
        unsigned char bytes[1024];
    } options;
    tutti_group_t *world[1] = {NULL};
    memset(&options, 0, sizeof options);
    options.known.struct_size = sizeof options;
    OK(tutti_world_create_local(1, NULL, &options.known, world));
    OK(tutti_group_destroy(world[0]));
    options.bytes[sizeof(tutti_world_options_t) + 8] = 1;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_world_create_local(1, NULL, &options.known, world));
    CHECK(world[0] == NULL);
    options.bytes[sizeof(tutti_world_options_t) + 8] = 0;
    options.known.struct_size = 4;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_world_create_local(1, NULL, &options.known, world));
    options.known.struct_size = 1025;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_world_create_local(1, NULL, &options.known, world));
}

static void impossible_worlds_are_refused(void) {
    tutti_group_t *world = (tutti_group_t *)&world, *ranks[2];
    tutti_world_options_t options = TUTTI_WORLD_OPTIONS_INIT;
    unsigned char id[4] = {1, 2, 3, 4};
    size_t needed = 0;
    options.size = 2;
    options.rank = -1;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_world_create(&options, &world));
    CHECK(world == NULL); /* handles are NULL on failure */
    options.rank = 2;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_world_create(&options, &world));
    options.rank = 1;
    options.unique_id = id; /* no id of this library */
    options.unique_id_size = sizeof id;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_world_create(&options, &world));
    options.unique_id = NULL;
    options.unique_id_size = 0;
    options.device_kind = 3;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_world_create(&options, &world));
    options.device_kind = 1;
    options.timeout_ms = -2;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_world_create(&options, &world));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_world_create(NULL, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_world_create_local(0, NULL, NULL, ranks));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_world_create_local(-3, NULL, NULL, ranks));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_world_create_local(2, NULL, NULL, NULL));
    tutti_world_options_t unknown = TUTTI_WORLD_OPTIONS_INIT;
    unknown.communicators = "no_such_way";
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_world_create_local(2, NULL, &unknown, ranks));

    FAILS(TUTTI_INVALID_ARGUMENT, tutti_unique_id_create(NULL, 100, &needed));
    OK(tutti_unique_id_create(NULL, 0, &needed)); /* asks for the size */
    CHECK(needed == TUTTI_UNIQUE_ID_BYTES);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_unique_id_create(id, 1, &needed));
}

static void bad_lists_body(tutti_group_t *world, int rank, int size) {
    static const int32_t twice[] = {0, 0}, outside[] = {0, 9}, negative[] = {-1, 0};
    tutti_group_t *group = world;
    (void)rank;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_create(world, twice, 2, NULL, &group));
    CHECK(group == NULL);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_create(world, outside, 2, NULL, &group));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_create(world, negative, 2, NULL, &group));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_create(world, NULL, 2, NULL, &group));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_create(world, twice, 1, NULL, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_create(NULL, twice, 1, NULL, &group));
    int32_t one = 1;
    OK(tutti_all_reduce(world, &one, &one, 1, TUTTI_INT32, TUTTI_SUM, NULL));
    CHECK(one == size);
}

static void impossible_groups_are_refused(void) {
    on_threads(2, bad_lists_body);
}

/* ---- Life and death ------------------------------------------------------------------------------------------- */

static void handles_are_harmless_after_destroy(void) {
    tutti_group_t *world[2], *again[2];
    int32_t value = 1;
    uint8_t alive[2];
    local_world(2, world);
    destroy_all(2, world);
    destroy_all(2, world); /* twice is fine */
    OK(tutti_group_destroy(NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce(world[0], &value, &value, 1, TUTTI_INT32, TUTTI_SUM, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_rank(world[1], &value));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_check(world[0]));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_alive(world[0], alive, 2));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_abort(world[0]));
    /* A new group in the old one's place does not answer to the old handle. */
    local_world(2, again);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_rank(world[0], &value));
    destroy_all(2, again);
}

static void made_up_handles_are_refused(void) {
    int32_t value = 0;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_rank((tutti_group_t *)&value, &value));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_request_test((tutti_request_t *)(uintptr_t)1));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_check((tutti_group_t *)UINTPTR_MAX));
}

static void left_body(tutti_group_t *world, int rank, int size) {
    int32_t value = 1;
    (void)size;
    if (rank == 1) {
        OK(tutti_group_destroy(world));
        return;
    }
    FAILS(TUTTI_PEER_LOST, tutti_all_reduce(world, &value, &value, 1, TUTTI_INT32, TUTTI_SUM, NULL));
    tutti_failure_t failure = TUTTI_FAILURE_INIT;
    OK(tutti_group_failure(world, &failure));
    CHECK(failure.status == TUTTI_PEER_LOST && failure.rank == 1);
}

static void a_rank_that_left_is_named(void) {
    on_threads(2, left_body);
}

/* ---- Abort, timeouts, disagreement ---------------------------------------------------------------------------- */

static tutti_group_t *to_abort;
static int waiting;

static void *aborter(void *unused) {
    (void)unused;
    while (!__atomic_load_n(&waiting, __ATOMIC_ACQUIRE)) {}
    OK(tutti_group_abort(to_abort));
    return NULL;
}

static void another_thread_can_abort_a_waiting_call(void) {
    tutti_group_t *world[2];
    tutti_failure_t failure = TUTTI_FAILURE_INIT;
    pthread_t thread;
    char text[512];
    size_t needed = 0;
    int32_t value = 1;
    local_world(2, world);
    OK(tutti_group_failure(world[0], &failure));
    CHECK(failure.status == TUTTI_SUCCESS);
    to_abort = world[0];
    CHECK(pthread_create(&thread, NULL, aborter, NULL) == 0);
    __atomic_store_n(&waiting, 1, __ATOMIC_RELEASE);
    FAILS(TUTTI_ABORTED, tutti_all_reduce(world[0], &value, &value, 1, TUTTI_INT32, TUTTI_SUM, NULL));
    CHECK(pthread_join(thread, NULL) == 0);
    FAILS(TUTTI_ABORTED, tutti_barrier(world[1], NULL)); /* the other rank learns of it */
    FAILS(TUTTI_ABORTED, tutti_group_check(world[1]));
    OK(tutti_group_failure(world[1], &failure));
    CHECK(failure.status == TUTTI_ABORTED);
    OK(tutti_group_error(world[1], text, sizeof text, &needed));
    CHECK(needed == strlen(text) && needed > 0);
    destroy_all(2, world);
}

static void a_rank_that_does_not_come_is_named_when_time_is_up(void) {
    tutti_group_t *world[3];
    tutti_world_options_t options = TUTTI_WORLD_OPTIONS_INIT;
    tutti_request_t *request = NULL;
    tutti_failure_t failure = TUTTI_FAILURE_INIT;
    int32_t values[2] = {1, 1};
    /* The making of the world has another deadline: on a busy machine it takes longer than the calls may. */
    options.timeout_ms = TIMEOUT_MS;
    OK(tutti_world_create_local(3, NULL, &options, world));
    tutti_call_t call = TUTTI_CALL_INIT;
    call.collective = TUTTI_ALL_REDUCE;
    call.dtype = TUTTI_INT32;
    call.op = TUTTI_SUM;
    call.timeout_ms = 200;
    call.send = &values[1];
    call.recv = &values[1];
    call.send_count = 1;
    call.recv_count = 1;
    OK(tutti_start(world[1], &call, &request));
    call.send = &values[0];
    call.recv = &values[0];
    FAILS(TUTTI_TIMEOUT, tutti_start(world[0], &call, NULL));
    OK(tutti_group_failure(world[0], &failure));
    CHECK(failure.status == TUTTI_TIMEOUT && failure.rank == 2);
    CHECK(failure.collective == TUTTI_ALL_REDUCE && failure.sequence > 0);
    FAILS(TUTTI_TIMEOUT, tutti_request_wait(request, TIMEOUT_MS));
    OK(tutti_request_free(request));
    destroy_all(3, world);
}

static void mismatch_body(tutti_group_t *world, int rank, int size) {
    float values[4] = {1, 2, 3, 4}, before[4];
    (void)size;
    memcpy(before, values, sizeof values);
    FAILS(TUTTI_MISMATCH, tutti_all_reduce(world, values, values, rank == 0 ? 4 : 3, TUTTI_FLOAT32, TUTTI_SUM, NULL));
    CHECK(memcmp(values, before, sizeof values) == 0);
    FAILS(TUTTI_MISMATCH, tutti_barrier(world, NULL));
}

static void ranks_that_disagree_get_mismatch_and_no_output(void) {
    on_threads(2, mismatch_body);
}

static const test_t TESTS[] = {
    {"bad_arguments_are_refused_and_change_nothing", bad_arguments_are_refused_and_change_nothing},
    {"options_of_other_versions_are_read_with_care", options_of_other_versions_are_read_with_care},
    {"impossible_worlds_are_refused", impossible_worlds_are_refused},
    {"impossible_groups_are_refused", impossible_groups_are_refused},
    {"handles_are_harmless_after_destroy", handles_are_harmless_after_destroy},
    {"made_up_handles_are_refused", made_up_handles_are_refused},
    {"a_rank_that_left_is_named", a_rank_that_left_is_named},
    {"another_thread_can_abort_a_waiting_call", another_thread_can_abort_a_waiting_call},
    {"a_rank_that_does_not_come_is_named_when_time_is_up", a_rank_that_does_not_come_is_named_when_time_is_up},
    {"ranks_that_disagree_get_mismatch_and_no_output", ranks_that_disagree_get_mismatch_and_no_output},
};

int main(int argc, char **argv) {
    return run_tests(TESTS, sizeof TESTS / sizeof TESTS[0], argc, argv);
}
