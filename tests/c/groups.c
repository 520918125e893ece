/* Groups within groups: by list, by colour, and as an engine makes them for tensor and pipeline parallelism. */
#include "check.h"

/* The sum over the group of (rank within its world + 1), as a quick proof of who is in it. */
static int32_t sum_of(tutti_group_t *group, int world_rank) {
    int32_t value = world_rank + 1;
    OK(tutti_all_reduce(group, &value, &value, 1, TUTTI_INT32, TUTTI_SUM, NULL));
    return value;
}

static void expect_place(const tutti_group_t *group, int32_t rank, int32_t size) {
    int32_t actual_rank = -1, actual_size = -1;
    OK(tutti_group_rank(group, &actual_rank));
    OK(tutti_group_size(group, &actual_size));
    CHECK(actual_rank == rank && actual_size == size);
}

static void list_body(tutti_group_t *world, int rank, int size) {
    static const int32_t members[] = {3, 0, 2}; /* the order of the list is the order of the group */
    static const int32_t places[] = {1, -1, 2, 0};
    tutti_group_t *group = world;
    OK(tutti_group_create(world, members, 3, NULL, &group));
    CHECK((group == NULL) == (places[rank] < 0));
    if (group != NULL) {
        tutti_group_options_t options = TUTTI_GROUP_OPTIONS_INIT;
        tutti_group_t *alone = NULL;
        int32_t self = places[rank];
        expect_place(group, self, 3);
        CHECK(sum_of(group, rank) == 4 + 1 + 3);
        options.name = "alone";
        options.timeout_ms = TIMEOUT_MS;
        OK(tutti_group_split(group, self, 0, &options, &alone));
        expect_place(alone, 0, 1);
        CHECK(sum_of(alone, rank) == rank + 1);
        OK(tutti_group_destroy(alone));
        OK(tutti_group_destroy(group));
    }
    CHECK(sum_of(world, rank) == size * (size + 1) / 2);
}

static void a_list_of_ranks_makes_a_group_in_that_order(void) {
    on_threads(4, list_body);
}

static void split_body(tutti_group_t *world, int rank, int size) {
    tutti_group_t *half = NULL, *none = world;
    /* Even and odd ranks; the key turns the order round. */
    OK(tutti_group_split(world, rank % 2, -rank, NULL, &half));
    int32_t members = rank % 2 == 0 ? (size + 1) / 2 : size / 2;
    expect_place(half, members - 1 - rank / 2, members);
    int32_t expected = 0;
    for (int other = rank % 2; other < size; other += 2) expected += other + 1;
    CHECK(sum_of(half, rank) == expected);

    /* A negative colour is no group; the others make theirs. */
    OK(tutti_group_split(world, rank == 1 ? -1 : 5, 0, NULL, &none));
    CHECK((none == NULL) == (rank == 1));
    if (none != NULL) {
        CHECK(sum_of(none, rank) == size * (size + 1) / 2 - 2);
        OK(tutti_group_destroy(none));
    }
    OK(tutti_group_destroy(half));
}

static void split_makes_one_group_per_colour_ordered_by_key(void) {
    on_threads(4, split_body);
    on_threads(7, split_body);
}

/* Two by two ranks: 0 1 | 2 3 are the tensor-parallel groups, 0 2 | 1 3 the pipelines. */
static void one_thread_makes_the_groups_of_an_engine_in_batches(void) {
    enum { TP = 2, PP = 2, WORLD = TP * PP };
    tutti_group_t *world[WORLD], *tp[WORLD], *pp[WORLD];
    local_world(WORLD, world);

    OK(tutti_batch_begin());
    for (int rank = 0; rank < WORLD; rank++) {
        int32_t first = (int32_t)(rank - rank % TP), members[TP] = {first, first + 1};
        OK(tutti_group_create(world[rank], members, TP, NULL, &tp[rank]));
    }
    OK(tutti_batch_end());
    OK(tutti_batch_begin());
    for (int rank = 0; rank < WORLD; rank++) OK(tutti_group_split(world[rank], rank % TP, rank, NULL, &pp[rank]));
    OK(tutti_batch_end());

    int32_t tp_sum[WORLD], pp_sum[WORLD];
    for (int rank = 0; rank < WORLD; rank++) {
        expect_place(tp[rank], rank % TP, TP);
        expect_place(pp[rank], rank / TP, PP);
        tp_sum[rank] = rank + 1;
        pp_sum[rank] = rank + 1;
    }
    OK(tutti_batch_begin());
    for (int rank = 0; rank < WORLD; rank++) {
        OK(tutti_all_reduce(tp[rank], &tp_sum[rank], &tp_sum[rank], 1, TUTTI_INT32, TUTTI_SUM, NULL));
        OK(tutti_all_reduce(pp[rank], &pp_sum[rank], &pp_sum[rank], 1, TUTTI_INT32, TUTTI_SUM, NULL));
    }
    OK(tutti_batch_end());
    CHECK(tp_sum[0] == 3 && tp_sum[1] == 3 && tp_sum[2] == 7 && tp_sum[3] == 7);
    CHECK(pp_sum[0] == 4 && pp_sum[1] == 6 && pp_sum[2] == 4 && pp_sum[3] == 6);
    destroy_all(WORLD, pp);
    destroy_all(WORLD, tp);
    destroy_all(WORLD, world);
}

static void outlives_body(tutti_group_t *world, int rank, int size) {
    tutti_group_t *pair = NULL;
    OK(tutti_group_split(world, rank / 2, rank, NULL, &pair));
    OK(tutti_group_destroy(world)); /* destroying twice, here and in the harness, succeeds */
    CHECK(sum_of(pair, rank) == 2 * (rank / 2 * 2) + 3);
    OK(tutti_group_destroy(pair));
    (void)size;
}

static void a_group_outlives_its_parent(void) {
    on_threads(4, outlives_body);
}

static void cpu_sibling_body(tutti_group_t *world, int rank, int size) {
    tutti_group_t *cpu = NULL;
    OK(tutti_group_cpu(world, &cpu));
    expect_place(cpu, rank, size);
    CHECK(sum_of(cpu, rank) == size * (size + 1) / 2);
}

static void every_group_has_a_cpu_sibling(void) {
    on_threads(3, cpu_sibling_body);
}

static const test_t TESTS[] = {
    {"a_list_of_ranks_makes_a_group_in_that_order", a_list_of_ranks_makes_a_group_in_that_order},
    {"split_makes_one_group_per_colour_ordered_by_key", split_makes_one_group_per_colour_ordered_by_key},
    {"one_thread_makes_the_groups_of_an_engine_in_batches", one_thread_makes_the_groups_of_an_engine_in_batches},
    {"a_group_outlives_its_parent", a_group_outlives_its_parent},
    {"every_group_has_a_cpu_sibling", every_group_has_a_cpu_sibling},
};

int main(int argc, char **argv) {
    return run_tests(TESTS, sizeof TESTS / sizeof TESTS[0], argc, argv);
}
