/* What can be asked: versions, texts, plans, logs. */
#include "check.h"

static void the_library_is_the_one_of_the_header(void) {
    CHECK(tutti_version() == TUTTI_VERSION);
    CHECK(TUTTI_VERSION == 10000 * TUTTI_VERSION_MAJOR + 100 * TUTTI_VERSION_MINOR + TUTTI_VERSION_PATCH);
}

static void every_status_has_a_text(void) {
    for (tutti_status_t status = TUTTI_SUCCESS; status <= TUTTI_IN_PROGRESS; status++) {
        CHECK(tutti_status_string(status)[0] != '\0');
        for (tutti_status_t other = TUTTI_SUCCESS; other < status; other++) {
            CHECK(strcmp(tutti_status_string(status), tutti_status_string(other)) != 0);
        }
    }
    CHECK(tutti_status_string(-1)[0] != '\0');
    CHECK(tutti_status_string(12345)[0] != '\0');
}

static void *fresh_thread(void *unused) {
    (void)unused;
    CHECK(strcmp(tutti_last_error(), "") == 0);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_rank(NULL, NULL));
    return NULL;
}

static void errors_belong_to_the_thread_that_made_them(void) {
    pthread_t thread;
    int32_t rank = 0;
    char mine[512];
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce(NULL, NULL, NULL, 1, TUTTI_INT8, TUTTI_SUM, NULL));
    snprintf(mine, sizeof mine, "%s", tutti_last_error());
    CHECK(pthread_create(&thread, NULL, fresh_thread, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(strncmp(mine, tutti_last_error(), sizeof mine - 1) == 0);
    (void)rank;
}

/* The balance of brackets outside of strings: enough to see that no half document is handed out. */
static int is_balanced_json(const char *text) {
    int depth = 0, quoted = 0;
    if (text[0] != '{') return 0;
    for (; *text != '\0'; text++) {
        if (quoted && *text == '\\' && text[1] != '\0') {
            text++;
        } else if (*text == '"') {
            quoted = !quoted;
        } else if (!quoted && (*text == '{' || *text == '[')) {
            depth++;
        } else if (!quoted && (*text == '}' || *text == ']')) {
            depth--;
        }
    }
    return depth == 0 && !quoted;
}

static void explain_body(tutti_group_t *world, int rank, int size) {
    (void)rank, (void)size;
    for (int32_t format = TUTTI_FORMAT_TEXT; format <= TUTTI_FORMAT_JSON; format++) {
        for (int32_t collective = TUTTI_ALL_REDUCE; collective <= TUTTI_BARRIER; collective++) {
            const size_t count = collective == TUTTI_BARRIER ? 0 : 4096;
            size_t needed = 0, again = 0;
            OK(tutti_explain(world, collective, count, TUTTI_BFLOAT16, TUTTI_SUM, 0, format, NULL, 0, &needed));
            CHECK(needed > 0);
            char *text = (char *)malloc(needed + 1), start[16];
            CHECK(text != NULL);
            OK(tutti_explain(world, collective, count, TUTTI_BFLOAT16, TUTTI_SUM, 0, format, text, needed + 1, &again));
            CHECK(again == needed && strlen(text) == needed);
            if (format == TUTTI_FORMAT_JSON) CHECK(is_balanced_json(text));
            /* Too little room cuts the text, and says how much there is. */
            OK(tutti_explain(world, collective, count, TUTTI_BFLOAT16, TUTTI_SUM, 0, format, start, sizeof start, &again));
            CHECK(again == needed && strlen(start) == sizeof start - 1 && strncmp(start, text, sizeof start - 1) == 0);
            if (format == TUTTI_FORMAT_TEXT && collective == TUTTI_ALL_REDUCE) {
                CHECK(strstr(text, "all_reduce") != NULL);
                CHECK(strstr(text, size == 1 ? "" : "shm") != NULL);
            }
            free(text);
        }
    }
}

static void explain_tells_text_and_json(void) {
    on_threads(1, explain_body);
    on_threads(3, explain_body);
}

static void mode_body(tutti_group_t *world, int rank, int size) {
    (void)rank, (void)size;
    int32_t mode = -1;
    OK(tutti_all_reduce_mode(world, 4096, TUTTI_FLOAT32, TUTTI_SUM, 0, &mode));
    CHECK(mode == TUTTI_MODE_INPLACE || mode == TUTTI_MODE_OUTPLACE || mode == TUTTI_MODE_BOTH);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce_mode(world, 4096, TUTTI_BYTES, TUTTI_SUM, 0, &mode)); /* no sums */
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_all_reduce_mode(world, 4096, TUTTI_FLOAT32, TUTTI_SUM, 0, NULL));
}

static void mode_says_what_is_native(void) {
    on_threads(2, mode_body);
}

static int lines;

static void count_lines(void *user, int32_t level, const char *target, const char *message) {
    CHECK(user == (void *)&lines);
    CHECK(level >= 1 && level <= 5);
    CHECK(target != NULL && message != NULL && message[0] != '\0');
    __atomic_fetch_add(&lines, 1, __ATOMIC_RELAXED);
}

static void logs_go_to_the_callback_while_there_is_one(void) {
    tutti_group_t *world[2];
    OK(tutti_set_log_callback(count_lines, &lines));
    local_world(2, world);
    destroy_all(2, world);
    CHECK(__atomic_load_n(&lines, __ATOMIC_RELAXED) > 0);
    OK(tutti_set_log_callback(NULL, NULL));
    int before = __atomic_load_n(&lines, __ATOMIC_RELAXED);
    local_world(2, world);
    destroy_all(2, world);
    CHECK(__atomic_load_n(&lines, __ATOMIC_RELAXED) == before);
}

static void name_body(tutti_group_t *world, int rank, int size) {
    tutti_group_options_t options = TUTTI_GROUP_OPTIONS_INIT;
    tutti_group_t *named = NULL;
    char name[64], start[3];
    size_t needed = 0;
    (void)size;
    options.name = "tensor";
    OK(tutti_group_split(world, 0, rank, &options, &named));
    OK(tutti_group_name(named, name, sizeof name, &needed));
    CHECK(strncmp(name, "tensor", 6) == 0 && strlen(name) == needed);
    OK(tutti_group_name(named, start, sizeof start, NULL));
    CHECK(strcmp(start, "te") == 0);
    OK(tutti_group_destroy(named));
}

static void a_group_has_the_name_it_was_given(void) {
    on_threads(2, name_body);
}

static void switched_off_body(tutti_group_t *world, int rank, int size) {
    char before[8192], after[8192];
    int32_t value = 1;
    (void)rank;
    OK(tutti_explain(world, TUTTI_ALL_REDUCE, 1, TUTTI_INT32, TUTTI_SUM, 0, TUTTI_FORMAT_TEXT, before, sizeof before, NULL));
    OK(tutti_group_set_enabled(world, "shm", 0));
    OK(tutti_explain(world, TUTTI_ALL_REDUCE, 1, TUTTI_INT32, TUTTI_SUM, 0, TUTTI_FORMAT_TEXT, after, sizeof after, NULL));
    CHECK(strcmp(before, after) != 0);
    OK(tutti_all_reduce(world, &value, &value, 1, TUTTI_INT32, TUTTI_SUM, NULL));
    CHECK(value == size);

    int32_t mode = -1;
    OK(tutti_group_set_enabled(world, "sockets", 0)); /* now nothing is left */
    OK(tutti_all_reduce_mode(world, 1, TUTTI_INT32, TUTTI_SUM, 0, &mode));
    CHECK(mode == TUTTI_MODE_NONE);
    FAILS(TUTTI_UNSUPPORTED, tutti_all_reduce(world, &value, &value, 1, TUTTI_INT32, TUTTI_SUM, NULL));
    OK(tutti_group_set_enabled(world, "sockets", 1));
    OK(tutti_group_set_enabled(world, "shm", 1));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_set_enabled(world, "no_such_way", 1));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_group_set_enabled(world, "shm", 2));
    OK(tutti_all_reduce(world, &value, &value, 1, TUTTI_INT32, TUTTI_SUM, NULL));
    CHECK(value == size * size);
}

static void a_communicator_can_be_switched_off_by_all_ranks(void) {
    on_threads(3, switched_off_body);
}

static const test_t TESTS[] = {
    {"the_library_is_the_one_of_the_header", the_library_is_the_one_of_the_header},
    {"every_status_has_a_text", every_status_has_a_text},
    {"errors_belong_to_the_thread_that_made_them", errors_belong_to_the_thread_that_made_them},
    {"explain_tells_text_and_json", explain_tells_text_and_json},
    {"mode_says_what_is_native", mode_says_what_is_native},
    {"logs_go_to_the_callback_while_there_is_one", logs_go_to_the_callback_while_there_is_one},
    {"a_group_has_the_name_it_was_given", a_group_has_the_name_it_was_given},
    {"a_communicator_can_be_switched_off_by_all_ranks", a_communicator_can_be_switched_off_by_all_ranks},
};

int main(int argc, char **argv) {
    return run_tests(TESTS, sizeof TESTS / sizeof TESTS[0], argc, argv);
}
