/* Tensor dicts and objects: sent, received, broadcast; described by DLPack; sliced over a replicating group. */
#include "check.h"

#define LARGE 50000

static float hidden[LARGE];

static tutti_tensor_t describe(const char *name, void *data, int32_t dtype, int32_t ndim, const int64_t *shape) {
    tutti_tensor_t tensor = TUTTI_TENSOR_INIT;
    tensor.name = name;
    tensor.data = data;
    tensor.dtype = dtype;
    tensor.ndim = ndim;
    tensor.shape = shape;
    return tensor;
}

static tutti_dict_options_t with(int32_t peer, int32_t tag) {
    tutti_dict_options_t options = TUTTI_DICT_OPTIONS_INIT;
    options.peer = peer;
    options.tag = tag;
    return options;
}

static void fill_hidden(void) {
    for (int i = 0; i < LARGE; i++) hidden[i] = (float)(i % 4093);
}

static void dict_body(tutti_group_t *world, int rank, int size) {
    static const int64_t shape[2] = {100, LARGE / 100}, three[1] = {3}, columns[2] = {2, 3}, turned[2] = {1, 2}, none[1] = {0};
    static int32_t positions[3] = {4, 5, 6};
    static double block[6] = {0, 1, 2, 3, 4, 5};
    tutti_dict_options_t options = with(1 - rank, 3);
    tutti_dict_t *dict = (tutti_dict_t *)world;
    tutti_tensor_t tensors[4];
    (void)size;
    tensors[0] = describe("hidden", hidden, TUTTI_FLOAT32, 2, shape);
    tensors[1] = describe("positions", positions, TUTTI_INT32, 1, three);
    tensors[2] = describe("block", block, TUTTI_FLOAT64, 2, columns);
    tensors[2].strides = turned;
    tensors[3] = describe("nothing", NULL, TUTTI_BOOL, 1, none);
    if (rank == 0) {
        OK(tutti_dict_send(world, tensors, 4, &options, NULL));
        OK(tutti_dict_send(world, tensors, 4, &options, &dict));
        OK(tutti_dict_wait(dict, NULL, 0, 0));
        OK(tutti_dict_test(dict));
        OK(tutti_dict_free(dict));
        OK(tutti_dict_free(dict));
        OK(tutti_barrier(world, NULL));
        return;
    }
    tutti_tensor_t tensor = TUTTI_TENSOR_INIT;
    size_t count = 0, index = 9;
    OK(tutti_dict_recv(world, &options, &dict));
    OK(tutti_dict_wait(dict, NULL, 0, 0));
    OK(tutti_dict_count(dict, &count));
    CHECK(count == 4);
    OK(tutti_dict_find(dict, "block", &index));
    CHECK(index == 2);
    OK(tutti_dict_tensor(dict, 2, &tensor));
    CHECK(strcmp(tensor.name, "block") == 0 && tensor.dtype == TUTTI_FLOAT64 && tensor.ndim == 2);
    CHECK(tensor.device_kind == TUTTI_DEVICE_CPU && tensor.shape[0] == 2 && tensor.shape[1] == 3);
    CHECK(tensor.strides[0] == 1 && tensor.strides[1] == 2 && memcmp(tensor.data, block, sizeof block) == 0);
    OK(tutti_dict_tensor(dict, 0, &tensor));
    CHECK(memcmp(tensor.data, hidden, sizeof hidden) == 0 && (uintptr_t)tensor.data % 64 == 0);
    OK(tutti_dict_tensor(dict, 3, &tensor));
    CHECK(tensor.shape[0] == 0);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_tensor(dict, 4, &tensor));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_find(dict, "head", &index));
    FAILS(TUTTI_INVALID_USAGE, tutti_dict_object(dict, &tensor.data, &count));
    OK(tutti_dict_free(dict));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_count(dict, &count));

    /* Sizes first, then memory of one's own, with gaps. */
    static float rows[100][LARGE / 100 + 3];
    static const int64_t gaps[2] = {LARGE / 100 + 3, 1};
    int32_t own_positions[3];
    double own_block[6];
    OK(tutti_dict_recv(world, &options, &dict));
    OK(tutti_dict_probe(dict, 0));
    OK(tutti_dict_tensor(dict, 0, &tensor));
    CHECK(tensor.data == NULL && tensor.shape[0] == 100);
    tensors[0] = describe(NULL, rows, TUTTI_FLOAT32, 2, shape);
    tensors[0].strides = gaps;
    tensors[1].data = own_positions;
    tensors[2] = describe(NULL, own_block, TUTTI_FLOAT64, 2, columns); /* row by row */
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_wait(dict, tensors, 3, 0));
    OK(tutti_dict_wait(dict, tensors, 4, 0));
    for (int row = 0; row < 100; row++) CHECK(memcmp(rows[row], hidden + row * (LARGE / 100), sizeof(float) * (LARGE / 100)) == 0);
    CHECK(own_positions[2] == 6 && own_block[0] == 0 && own_block[1] == 2 && own_block[2] == 4 && own_block[3] == 1);
    OK(tutti_dict_tensor(dict, 0, &tensor));
    CHECK(tensor.data == rows && tensor.strides[0] == gaps[0]);
    OK(tutti_dict_free(dict));
    OK(tutti_barrier(world, NULL));
}

static void tensors_come_as_they_were_sent(void) {
    fill_hidden();
    on_threads(2, dict_body);
}

static void object_body(tutti_group_t *world, int rank, int size) {
    tutti_dict_options_t options = with(1 - rank, 0), root = with(size - 1, 0);
    tutti_dict_t *dict = NULL;
    void *object = NULL;
    size_t bytes = 0;
    if (rank == 0) OK(tutti_object_send(world, "hello", 5, &options, NULL));
    if (rank == 1) {
        OK(tutti_dict_recv(world, &options, &dict));
        OK(tutti_dict_wait(dict, NULL, 0, 0));
        OK(tutti_dict_object(dict, &object, &bytes));
        CHECK(bytes == 5 && memcmp(object, "hello", 5) == 0);
        OK(tutti_dict_free(dict));
    }
    /* From one to all, an object and tensors. */
    static const int64_t shape[1] = {LARGE};
    tutti_tensor_t tensor = describe("all", hidden, TUTTI_FLOAT32, 1, shape);
    int is_root = rank == size - 1;
    OK(tutti_object_broadcast(world, is_root ? hidden : NULL, is_root ? sizeof hidden : 0, &root, &dict));
    OK(tutti_dict_wait(dict, NULL, 0, 0));
    if (!is_root) {
        OK(tutti_dict_object(dict, &object, &bytes));
        CHECK(bytes == sizeof hidden && memcmp(object, hidden, bytes) == 0);
    }
    OK(tutti_dict_free(dict));
    OK(tutti_dict_broadcast(world, is_root ? &tensor : NULL, is_root ? 1 : 0, &root, &dict));
    OK(tutti_dict_wait(dict, NULL, 0, 0));
    if (!is_root) {
        OK(tutti_dict_tensor(dict, 0, &tensor));
        CHECK(strcmp(tensor.name, "all") == 0 && memcmp(tensor.data, hidden, sizeof hidden) == 0);
    }
    OK(tutti_dict_free(dict));
    OK(tutti_barrier(world, NULL));
}

static void objects_travel_and_broadcasts_reach_all(void) {
    fill_hidden();
    on_threads(2, object_body);
    on_threads(3, object_body);
}

static void sliced_body(tutti_group_t *world, int rank, int size) {
    static const int64_t shape[1] = {LARGE - 1};
    tutti_layout_options_t plan = TUTTI_LAYOUT_OPTIONS_INIT;
    tutti_layout_t *layout = NULL;
    tutti_group_t *groups[TUTTI_LAYOUT_KINDS];
    tutti_tensor_t tensor = describe("hidden", hidden, TUTTI_FLOAT32, 1, shape);
    tutti_dict_options_t options = with(rank < 2 ? 1 : 0, 0);
    plan.world = size;
    plan.tensor = 2;
    plan.pipeline = 2;
    OK(tutti_layout_create(&plan, &layout));
    OK(tutti_layout_groups(world, layout, 0, NULL, groups));
    OK(tutti_layout_destroy(layout));
    options.replicas = groups[TUTTI_LAYOUT_TP];
    if (rank < 2) {
        OK(tutti_dict_send(groups[TUTTI_LAYOUT_PP], &tensor, 1, &options, NULL));
    } else {
        tutti_dict_t *dict = NULL;
        OK(tutti_dict_recv(groups[TUTTI_LAYOUT_PP], &options, &dict));
        OK(tutti_dict_wait(dict, NULL, 0, 0));
        OK(tutti_dict_tensor(dict, 0, &tensor));
        CHECK(memcmp(tensor.data, hidden, sizeof(float) * (LARGE - 1)) == 0);
        OK(tutti_dict_free(dict));
    }
    OK(tutti_barrier(world, NULL));
    destroy_all((int)TUTTI_LAYOUT_KINDS, groups);
}

static void replicas_send_slices_and_gather_them(void) {
    fill_hidden();
    on_threads(4, sliced_body);
}

/* DLTensor, written down here as DLPack has it. */
typedef struct dl_tensor {
    void *data;
    int32_t device_type, device_id, ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} dl_tensor_t;

static void a_tensor_of_dlpack_is_taken(void) {
    int64_t shape[2] = {3, 4}, strides[2] = {1, 3};
    dl_tensor_t theirs = {hidden, 1, 0, 2, 4, 16, 1, shape, strides, 8};
    tutti_tensor_t tensor = TUTTI_TENSOR_INIT;
    OK(tutti_tensor_from_dlpack(&theirs, "theirs", &tensor));
    CHECK(tensor.dtype == TUTTI_BFLOAT16 && tensor.device_kind == TUTTI_DEVICE_CPU && tensor.ndim == 2);
    CHECK(tensor.data == (char *)hidden + 8 && tensor.shape == shape && tensor.strides == strides);
    CHECK(strcmp(tensor.name, "theirs") == 0 && tensor.flags == 0);
    theirs.lanes = 4;
    FAILS(TUTTI_UNSUPPORTED, tutti_tensor_from_dlpack(&theirs, NULL, &tensor));
    theirs.lanes = 1;
    theirs.device_type = 8;
    FAILS(TUTTI_UNSUPPORTED, tutti_tensor_from_dlpack(&theirs, NULL, &tensor));
    theirs.device_type = 1;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_tensor_from_dlpack(NULL, NULL, &tensor));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_tensor_from_dlpack(&theirs, NULL, NULL));
}

static void refusals_body(tutti_group_t *world, int rank, int size) {
    static const int64_t shape[2] = {2, 2}, negative[1] = {-1}, huge[2] = {INT64_MAX, INT64_MAX};
    tutti_dict_options_t options = with(0, 0);
    tutti_tensor_t tensors[2], good = describe("a", hidden, TUTTI_FLOAT32, 2, shape);
    tutti_dict_t *dict = (tutti_dict_t *)world;
    int32_t one = 1;
    (void)rank;
    tensors[0] = good;
    tensors[1] = good;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_send(world, tensors, 2, &options, NULL)); /* one name */
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_send(world, NULL, 2, &options, &dict));
    CHECK(dict == NULL);
    tensors[1].struct_size = 64;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_send(world, tensors, 2, &options, NULL));
    tensors[0] = describe("a", hidden, 77, 2, shape);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_send(world, tensors, 1, &options, NULL));
    tensors[0] = describe("a", hidden, TUTTI_FLOAT32, 1, negative);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_send(world, tensors, 1, &options, NULL));
    tensors[0] = describe("a", hidden, TUTTI_FLOAT32, 2, huge);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_send(world, tensors, 1, &options, NULL));
    tensors[0] = describe("a", NULL, TUTTI_FLOAT32, 2, shape);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_send(world, tensors, 1, &options, NULL));
    tensors[0] = describe("a", hidden, TUTTI_FLOAT32, 17, shape);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_send(world, tensors, 1, &options, NULL));
    tensors[0] = good;
    tensors[0].flags = 3;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_send(world, tensors, 1, &options, NULL));
    tensors[0] = good;
    tensors[0].device_kind = TUTTI_DEVICE_CUDA;
    FAILS(TUTTI_UNSUPPORTED, tutti_dict_send(world, tensors, 1, &options, NULL));
    options.peer = size;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_send(world, &good, 1, &options, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_recv(world, &options, &dict));
    options = with(0, -1);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_recv(world, &options, &dict));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_recv(NULL, NULL, &dict));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_recv(world, NULL, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_object_send(world, NULL, 1, NULL, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_wait(NULL, NULL, 0, 0));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_dict_test((tutti_dict_t *)world));
    OK(tutti_dict_free(NULL));
    OK(tutti_all_reduce(world, &one, &one, 1, TUTTI_INT32, TUTTI_SUM, NULL)); /* nothing of it reached the others */
    CHECK(one == size);
}

static void what_cannot_be_sent_is_refused_and_changes_nothing(void) {
    on_threads(2, refusals_body);
}

static void *waiter(void *dict) {
    FAILS(TUTTI_ABORTED, tutti_dict_wait((tutti_dict_t *)dict, NULL, 0, TUTTI_TIMEOUT_NEVER));
    return NULL;
}

static void a_dict_that_another_thread_waits_for_may_be_tested_and_freed(void) {
    tutti_dict_options_t options = with(0, 0);
    tutti_group_t *world[2];
    tutti_dict_t *dict = NULL;
    pthread_t thread;
    size_t count = 0;
    local_world(2, world);
    OK(tutti_dict_recv(world[1], &options, &dict));
    CHECK(pthread_create(&thread, NULL, waiter, dict) == 0);
    do { /* the other thread enters in a moment, and nothing here waits for it */
        CHECK(tutti_dict_test(dict) == TUTTI_IN_PROGRESS);
        FAILS(TUTTI_INVALID_USAGE, tutti_dict_count(dict, &count));
    } while (strstr(tutti_last_error(), "another thread waits") == NULL);
    CHECK(tutti_dict_test(dict) == TUTTI_IN_PROGRESS);
    OK(tutti_dict_free(dict)); /* long before anybody's deadline */
    CHECK(pthread_join(thread, NULL) == 0);
    FAILS(TUTTI_ABORTED, tutti_group_check(world[0])); /* the sender counts on it */
    destroy_all(2, world);
}

static const test_t TESTS[] = {
    {"tensors_come_as_they_were_sent", tensors_come_as_they_were_sent},
    {"objects_travel_and_broadcasts_reach_all", objects_travel_and_broadcasts_reach_all},
    {"replicas_send_slices_and_gather_them", replicas_send_slices_and_gather_them},
    {"a_tensor_of_dlpack_is_taken", a_tensor_of_dlpack_is_taken},
    {"what_cannot_be_sent_is_refused_and_changes_nothing", what_cannot_be_sent_is_refused_and_changes_nothing},
    {"a_dict_that_another_thread_waits_for_may_be_tested_and_freed",
     a_dict_that_another_thread_waits_for_may_be_tested_and_freed},
};

int main(int argc, char **argv) {
    return run_tests(TESTS, sizeof TESTS / sizeof TESTS[0], argc, argv);
}
