/* Layouts: planned, asked, drawn, made into groups, and the groups found by name. */
#include "check.h"

enum { WORLD = 16 };

/* The vendor's supernodes: two hosts of eight, whose lanes 0-3 and 4-7 are joined across hosts. */
static tutti_layout_t *vendor(void) {
    int32_t hosts[WORLD], domains[WORLD], lanes[WORLD];
    tutti_layout_options_t options = TUTTI_LAYOUT_OPTIONS_INIT;
    tutti_layout_t *layout = NULL;
    for (int32_t rank = 0; rank < WORLD; rank++) {
        hosts[rank] = rank / 8;
        domains[rank] = rank / 4 % 2;
        lanes[rank] = rank % 4;
    }
    options.world = WORLD;
    options.tensor = 8;
    options.pipeline = 2;
    options.decode_context = 4;
    options.hosts = hosts;
    options.domains = domains;
    options.lanes = lanes;
    OK(tutti_layout_create(&options, &layout));
    CHECK(layout != NULL);
    return layout;
}

static void the_vendors_tables_come_out(void) {
    static const int32_t tp[WORLD] = {0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15};
    static const int32_t pp[WORLD] = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15};
    tutti_layout_t *layout = vendor(), *same = NULL;
    int32_t ranks[WORLD + 1], size = 0, count = 0, index = 0, position = 0, hosts[8], domains[8];
    uint64_t digest = 0, other = 0;

    ranks[WORLD] = 77;
    OK(tutti_layout_ranks(layout, TUTTI_LAYOUT_TP, ranks, WORLD + 1));
    CHECK(memcmp(ranks, tp, sizeof tp) == 0 && ranks[WORLD] == 77);
    OK(tutti_layout_ranks(layout, TUTTI_LAYOUT_EP, ranks, WORLD));
    CHECK(memcmp(ranks, tp, sizeof tp) == 0);
    OK(tutti_layout_ranks(layout, TUTTI_LAYOUT_PP, ranks, WORLD));
    CHECK(memcmp(ranks, pp, sizeof pp) == 0);
    OK(tutti_layout_ranks(layout, TUTTI_LAYOUT_DP, ranks, WORLD));
    for (int32_t rank = 0; rank < WORLD; rank++) CHECK(ranks[rank] == rank);
    OK(tutti_layout_size(layout, TUTTI_LAYOUT_DCP, &size, &count));
    CHECK(size == 4 && count == 4);
    OK(tutti_layout_size(layout, TUTTI_LAYOUT_PP, NULL, &count));
    CHECK(count == 8);

    OK(tutti_layout_of(layout, TUTTI_LAYOUT_TP, 12, &index, &position));
    CHECK(index == 1 && position == 4);
    OK(tutti_layout_of(layout, TUTTI_LAYOUT_DCP, 9, &index, NULL)); /* within its TP group, unlike the vendor's */
    OK(tutti_layout_ranks(layout, TUTTI_LAYOUT_DCP, ranks, WORLD));
    CHECK(ranks[4 * index] == 8 && ranks[4 * index + 3] == 11);

    OK(tutti_layout_reach(layout, TUTTI_LAYOUT_TP, hosts, domains, 8));
    CHECK(hosts[0] == 2 && domains[0] == 1 && hosts[1] == 2 && domains[1] == 1);
    OK(tutti_layout_reach(layout, TUTTI_LAYOUT_PP, hosts, domains, 8));
    for (int group = 0; group < 8; group++) CHECK(hosts[group] == 1 && domains[group] == 2);

    same = vendor();
    OK(tutti_layout_digest(layout, &digest));
    OK(tutti_layout_digest(same, &other));
    CHECK(digest == other && digest != 0);
    OK(tutti_layout_destroy(same));
    OK(tutti_layout_destroy(layout));
    OK(tutti_layout_destroy(layout)); /* twice is fine */
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_layout_digest(layout, &digest));
}

static void a_layout_is_drawn_as_text_json_and_svg(void) {
    static const char *const begins[] = {"layout of 16 ranks: ", "{\"world\":16,\"digest\":\"", "<svg "};
    static const char *const contains[] = {"tp:1", "{\"name\":\"tp:1\",\"ranks\":[4,5,6,7,12,13,14,15],\"hosts\":2,\"domains\":1}",
                                           ">15</text>"};
    tutti_layout_t *layout = vendor();
    for (int32_t format = TUTTI_FORMAT_TEXT; format <= TUTTI_FORMAT_SVG; format++) {
        size_t needed = 0, again = 0;
        OK(tutti_layout_draw(layout, format, NULL, 0, &needed));
        char *text = (char *)malloc(needed + 1);
        CHECK(text != NULL);
        OK(tutti_layout_draw(layout, format, text, needed + 1, &again));
        CHECK(again == needed && strlen(text) == needed);
        CHECK(strncmp(text, begins[format], strlen(begins[format])) == 0 && strstr(text, contains[format]) != NULL);
        free(text);
    }
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_layout_draw(layout, 3, NULL, 0, NULL));
    OK(tutti_layout_destroy(layout));
}

static void orders_of_axes_and_ranks_are_the_callers(void) {
    /* TP runs slowest, PP fastest; places are taken backwards. */
    static const int32_t order[4] = {3, 2, 1, 0}, tp[4] = {2, 0, 3, 1}, pp[4] = {1, 0, 3, 2};
    tutti_layout_options_t options = TUTTI_LAYOUT_OPTIONS_INIT;
    tutti_layout_t *layout = NULL;
    int32_t ranks[4], hosts[4];
    options.world = 4;
    options.tensor = 2;
    options.pipeline = 2;
    options.order = order;
    options.axes[0] = TUTTI_LAYOUT_TP;
    options.axes[1] = TUTTI_LAYOUT_EXTERNAL_DP;
    options.axes[2] = TUTTI_LAYOUT_DP;
    options.axes[3] = TUTTI_LAYOUT_PCP;
    options.axes[4] = TUTTI_LAYOUT_PP;
    OK(tutti_layout_create(&options, &layout));
    OK(tutti_layout_ranks(layout, TUTTI_LAYOUT_TP, ranks, 4));
    CHECK(memcmp(ranks, tp, sizeof tp) == 0);
    OK(tutti_layout_ranks(layout, TUTTI_LAYOUT_PP, ranks, 4));
    CHECK(memcmp(ranks, pp, sizeof pp) == 0);
    FAILS(TUTTI_UNSUPPORTED, tutti_layout_reach(layout, TUTTI_LAYOUT_PP, hosts, NULL, 4)); /* no labels */
    OK(tutti_layout_destroy(layout));
}

static tutti_layout_options_t plain(int32_t world, int32_t tensor) {
    tutti_layout_options_t options = TUTTI_LAYOUT_OPTIONS_INIT;
    options.world = world;
    options.tensor = tensor;
    return options;
}

static void refused(const tutti_layout_options_t *options, const char *sentence) {
    tutti_layout_t *layout = (tutti_layout_t *)&layout;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_layout_create(options, &layout));
    CHECK(layout == NULL);
    if (strstr(tutti_last_error(), sentence) == NULL) fail(__FILE__, __LINE__, "%s", tutti_last_error());
}

static void what_cannot_be_is_refused_with_a_sentence(void) {
    static const int32_t twice[4] = {0, 1, 1, 3}, negative[4] = {0, -1, 0, 0}, uneven[4] = {0, 0, 0, 1}, same[4] = {0, 0, 0, 0};
    tutti_layout_options_t options = plain(4, 3);
    refused(&options, "must be the world's size");
    options = plain(4, -4);
    refused(&options, "tensor is -4");
    options = plain(0, 1);
    refused(&options, "not for 0");
    options = plain(INT32_MAX, 1);
    options.order = twice; /* not read */
    refused(&options, "1048576");
    options = plain(4, 4);
    options.decode_context = 3;
    refused(&options, "DCP 3 does not divide");
    options = plain(4, 4);
    options.order = twice;
    refused(&options, "names rank 1 twice");
    options = plain(4, 4);
    options.domains = uneven;
    refused(&options, "domains differ in size");
    options = plain(4, 4);
    options.hosts = negative;
    refused(&options, "hosts[1] is -1");
    options = plain(4, 4);
    options.lanes = same;
    refused(&options, "labels must tell all ranks apart");
    options = plain(4, 4);
    options.axes[0] = TUTTI_LAYOUT_EP;
    refused(&options, "no axis of its own");
    options.axes[0] = TUTTI_LAYOUT_PP;
    refused(&options, "lacks");
    options = plain(4, 4);
    options.struct_size = 8;
    refused(&options, "struct_size");
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_layout_create(NULL, NULL));

    tutti_layout_t *layout = vendor();
    int32_t number = 0;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_layout_size(layout, 7, &number, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_layout_ranks(layout, TUTTI_LAYOUT_TP, &number, 1));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_layout_ranks(layout, TUTTI_LAYOUT_TP, NULL, WORLD));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_layout_of(layout, TUTTI_LAYOUT_TP, 16, &number, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_layout_of(NULL, TUTTI_LAYOUT_TP, 0, &number, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_layout_size((tutti_layout_t *)&number, 0, &number, NULL));
    OK(tutti_layout_destroy(layout));
}

static void a_large_world_is_planned_at_once(void) {
    tutti_layout_options_t options = plain(65536, 8);
    tutti_layout_t *layout = NULL;
    int32_t count = 0;
    options.pipeline = 16;
    options.data = 512;
    double start = now_ms();
    OK(tutti_layout_create(&options, &layout));
    CHECK(now_ms() - start < 1000);
    OK(tutti_layout_size(layout, TUTTI_LAYOUT_TP, NULL, &count));
    CHECK(count == 8192);
    OK(tutti_layout_destroy(layout));
}

/* ---- Groups --------------------------------------------------------------------------------------------------- */

static void groups_body(tutti_group_t *world, int rank, int size) {
    tutti_layout_options_t options = plain(4, 2);
    tutti_group_options_t names = TUTTI_GROUP_OPTIONS_INIT;
    tutti_layout_t *layout = NULL;
    tutti_group_t *groups[TUTTI_LAYOUT_KINDS], *found = world, *narrow[TUTTI_LAYOUT_KINDS];
    char text[64], expected[64];
    int32_t sum = rank + 1, place = -1;
    (void)size;
    options.pipeline = 2;
    OK(tutti_layout_create(&options, &layout));
    OK(tutti_layout_groups(world, layout, 0, NULL, groups));
    OK(tutti_all_reduce(groups[TUTTI_LAYOUT_TP], &sum, &sum, 1, TUTTI_INT32, TUTTI_SUM, NULL));
    CHECK(sum == (rank < 2 ? 3 : 7));
    sum = rank + 1;
    OK(tutti_all_reduce(groups[TUTTI_LAYOUT_PP], &sum, &sum, 1, TUTTI_INT32, TUTTI_SUM, NULL));
    CHECK(sum == (rank % 2 == 0 ? 4 : 6));
    OK(tutti_group_size(groups[TUTTI_LAYOUT_DP], &place));
    CHECK(place == 1);

    /* Found by name; the other ranks of the group are in this process, too. */
    OK(tutti_group_name(groups[TUTTI_LAYOUT_TP], text, sizeof text, NULL));
    snprintf(expected, sizeof expected, "tp:%d", rank / 2);
    CHECK(strcmp(text, expected) == 0);
    OK(tutti_group_find(text, rank % 2, &found));
    CHECK(found == groups[TUTTI_LAYOUT_TP]);
    OK(tutti_barrier(found, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_find("no such group", -1, &found));
    CHECK(found == NULL && strstr(tutti_last_error(), "no group named") != NULL);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_find(NULL, -1, &found));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_find(text, -2, &found));

    /* Only some kinds, under a name of their own. */
    names.name = "draft";
    OK(tutti_layout_groups(world, layout, 1u << TUTTI_LAYOUT_EP | 1u << TUTTI_LAYOUT_DP, &names, narrow));
    for (int kind = 0; kind < (int)TUTTI_LAYOUT_KINDS; kind++) {
        CHECK((narrow[kind] != NULL) == (kind == TUTTI_LAYOUT_EP || kind == TUTTI_LAYOUT_DP));
        OK(tutti_group_destroy(narrow[kind]));
    }
    snprintf(expected, sizeof expected, "draft/dp:%d", rank);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_find(expected, -1, &found));
    CHECK(strstr(tutti_last_error(), "was destroyed") != NULL);

    FAILS(TUTTI_INVALID_ARGUMENT, tutti_layout_groups(world, layout, 1u << 7, NULL, narrow));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_layout_groups(groups[TUTTI_LAYOUT_TP], layout, 0, NULL, narrow));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_layout_groups(world, NULL, 0, NULL, narrow));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_layout_groups(world, layout, 0, NULL, NULL));
    for (int kind = 0; kind < (int)TUTTI_LAYOUT_KINDS; kind++) CHECK(narrow[kind] == NULL);
    OK(tutti_layout_destroy(layout)); /* the groups live on */
    sum = 1;
    OK(tutti_all_reduce(groups[TUTTI_LAYOUT_EP], &sum, &sum, 1, TUTTI_INT32, TUTTI_SUM, NULL));
    CHECK(sum == 2);
    OK(tutti_barrier(world, NULL));
    for (int kind = 0; kind < (int)TUTTI_LAYOUT_KINDS; kind++) OK(tutti_group_destroy(groups[kind]));
}

static void a_layout_makes_the_groups_of_every_rank(void) {
    on_threads(4, groups_body);
}

static void different_body(tutti_group_t *world, int rank, int size) {
    tutti_layout_options_t options = plain(4, rank == 2 ? 4 : 2);
    tutti_layout_t *layout = NULL;
    tutti_group_t *groups[TUTTI_LAYOUT_KINDS];
    int32_t one = 1;
    (void)size;
    options.data = rank == 2 ? 1 : 2;
    OK(tutti_layout_create(&options, &layout));
    FAILS(TUTTI_MISMATCH, tutti_layout_groups(world, layout, 0, NULL, groups));
    CHECK(strstr(tutti_last_error(), "others on rank 2;") != NULL);
    for (int kind = 0; kind < (int)TUTTI_LAYOUT_KINDS; kind++) CHECK(groups[kind] == NULL);
    OK(tutti_layout_destroy(layout));
    OK(tutti_all_reduce(world, &one, &one, 1, TUTTI_INT32, TUTTI_SUM, NULL)); /* the parent lives */
    CHECK(one == 4);
}

static void ranks_whose_layouts_differ_are_named_and_make_no_group(void) {
    on_threads(4, different_body);
}

static void one_thread_makes_the_groups_of_all_ranks_in_a_batch(void) {
    tutti_layout_options_t options = plain(4, 2);
    tutti_layout_t *layout = NULL;
    tutti_group_t *world[4], *groups[4][TUTTI_LAYOUT_KINDS];
    int32_t sums[4];
    options.pipeline = 2;
    OK(tutti_layout_create(&options, &layout));
    local_world(4, world);
    OK(tutti_batch_begin());
    for (int rank = 0; rank < 4; rank++) OK(tutti_layout_groups(world[rank], layout, 0, NULL, groups[rank]));
    OK(tutti_batch_end());
    OK(tutti_batch_begin());
    for (int rank = 0; rank < 4; rank++) {
        sums[rank] = rank + 1;
        OK(tutti_all_reduce(groups[rank][TUTTI_LAYOUT_PP], &sums[rank], &sums[rank], 1, TUTTI_INT32, TUTTI_SUM, NULL));
    }
    OK(tutti_batch_end());
    CHECK(sums[0] == 4 && sums[1] == 6 && sums[2] == 4 && sums[3] == 6);
    for (int rank = 0; rank < 4; rank++) destroy_all((int)TUTTI_LAYOUT_KINDS, groups[rank]);
    destroy_all(4, world);
    OK(tutti_layout_destroy(layout));
}

static const test_t TESTS[] = {
    {"the_vendors_tables_come_out", the_vendors_tables_come_out},
    {"a_layout_is_drawn_as_text_json_and_svg", a_layout_is_drawn_as_text_json_and_svg},
    {"orders_of_axes_and_ranks_are_the_callers", orders_of_axes_and_ranks_are_the_callers},
    {"what_cannot_be_is_refused_with_a_sentence", what_cannot_be_is_refused_with_a_sentence},
    {"a_large_world_is_planned_at_once", a_large_world_is_planned_at_once},
    {"a_layout_makes_the_groups_of_every_rank", a_layout_makes_the_groups_of_every_rank},
    {"ranks_whose_layouts_differ_are_named_and_make_no_group", ranks_whose_layouts_differ_are_named_and_make_no_group},
    {"one_thread_makes_the_groups_of_all_ranks_in_a_batch", one_thread_makes_the_groups_of_all_ranks_in_a_batch},
};

int main(int argc, char **argv) {
    return run_tests(TESTS, sizeof TESTS / sizeof TESTS[0], argc, argv);
}
