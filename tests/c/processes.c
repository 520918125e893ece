/* Ranks that are processes. The program starts itself again for every rank, with the environment torchrun would set
 * or with a unique id, so that each rank is a fresh process and not a fork of this one. */
#include "check.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

#define RANKS 4

typedef void (*role_t)(int rank);

/* ---- Starting ranks ------------------------------------------------------------------------------------------- */

static const char *const PASSED_ON[] = {"PATH=", "HOME=", "TMPDIR=", "LD_", "ASAN_", "UBSAN_", "TUTTI_LOG="};

/* The host a rank pretends to be on; ranks that differ in it share no memory and no Unix socket. */
static const char *host_of(int rank) {
    return rank < RANKS / 2 ? "left" : "right";
}

static pid_t start_rank(const char *role, int rank, int size, const char *run, const char *id) {
    char settings[11][512], *environment[256];
    size_t count = 0;
    for (char **entry = environ; *entry != NULL && count < 200; entry++) {
        for (size_t i = 0; i < sizeof PASSED_ON / sizeof PASSED_ON[0]; i++) {
            if (strncmp(*entry, PASSED_ON[i], strlen(PASSED_ON[i])) == 0) environment[count++] = *entry;
        }
    }
    snprintf(settings[0], sizeof settings[0], "CHECK_ROLE=%s", role);
    snprintf(settings[1], sizeof settings[1], "CHECK_RANK=%d", rank);
    snprintf(settings[2], sizeof settings[2], "CHECK_ID=%s", id);
    snprintf(settings[3], sizeof settings[3], "RANK=%d", rank);
    snprintf(settings[4], sizeof settings[4], "WORLD_SIZE=%d", size);
    snprintf(settings[5], sizeof settings[5], "LOCAL_RANK=%d", rank);
    snprintf(settings[6], sizeof settings[6], "LOCAL_WORLD_SIZE=%d", size);
    snprintf(settings[7], sizeof settings[7], "MASTER_ADDR=127.0.0.1");
    snprintf(settings[8], sizeof settings[8], "MASTER_PORT=29500");
    snprintf(settings[9], sizeof settings[9], "TORCHELASTIC_RUN_ID=%s", run);
    snprintf(settings[10], sizeof settings[10], "TUTTI_HOST_ID=%s", host_of(rank));
    for (size_t i = 0; i < (getenv("TUTTI_HOST_ID") != NULL ? 11 : 10); i++) environment[count++] = settings[i];
    environment[count] = NULL;

    char program[] = "/proc/self/exe";
    char *arguments[] = {program, NULL};
    pid_t child = -1;
    CHECK(posix_spawn(&child, program, NULL, NULL, arguments, environment) == 0);
    return child;
}

/* A name for this launch that no other launch on this machine has at the same time. */
static void new_run(char *name, size_t capacity) {
    static int launches;
    snprintf(name, capacity, "check-%ld-%d", (long)getpid(), ++launches);
}

static int exit_code(pid_t child) {
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void all_ranks_succeed(const char *role) {
    char run[64];
    pid_t children[RANKS];
    new_run(run, sizeof run);
    for (int rank = 0; rank < RANKS; rank++) children[rank] = start_rank(role, rank, RANKS, run, "");
    for (int rank = 0; rank < RANKS; rank++) CHECK(exit_code(children[rank]) == 0);
}

/* ---- What the ranks do ---------------------------------------------------------------------------------------- */

static void sums_up(tutti_group_t *group, int size, size_t count) {
    const dtype_t *dtype = dtype_of(TUTTI_FLOAT16);
    int32_t rank = -1;
    OK(tutti_group_rank(group, &rank));
    void *buffer = buffer_new(dtype, count);
    fill(buffer, dtype, count, rank);
    OK(tutti_all_reduce(group, buffer, buffer, count, dtype->code, TUTTI_SUM, NULL));
    CHECK(holds_reduced(buffer, dtype, 0, count, TUTTI_SUM, size));
    buffer_free(buffer, dtype, count);
}

static void environment_role(int rank) {
    for (int world_number = 0; world_number < 2; world_number++) { /* one after the other */
        tutti_group_t *world = NULL, *pair = NULL;
        int32_t group_rank = -1, size = 0;
        OK(tutti_world_create(NULL, &world));
        OK(tutti_group_rank(world, &group_rank));
        OK(tutti_group_size(world, &size));
        CHECK(group_rank == rank && size == RANKS);
        sums_up(world, RANKS, 1);
        sums_up(world, RANKS, 50001);
        OK(tutti_group_split(world, rank % 2, 0, NULL, &pair));
        sums_up(pair, RANKS / 2, 999);
        OK(tutti_group_destroy(pair));
        OK(tutti_group_destroy(world));
    }
}

static void leaves_role(int rank) {
    tutti_group_t *world = NULL;
    (void)rank;
    OK(tutti_world_create(NULL, &world));
    sums_up(world, RANKS, 1000);
    exit(0); /* nothing is destroyed */
}

/* The last rank dies without a word while the others wait for it. */
static void dies_role(int rank) {
    tutti_group_t *world = NULL;
    int32_t value = 1;
    OK(tutti_world_create(NULL, &world));
    sums_up(world, RANKS, 10);
    if (rank == RANKS - 1) raise(SIGKILL);
    double start = now_ms();
    FAILS(TUTTI_PEER_LOST, tutti_all_reduce(world, &value, &value, 1, TUTTI_INT32, TUTTI_SUM, NULL));
    CHECK(now_ms() - start < 10000); /* the promise is 1 s; the machine may be busy */

    tutti_failure_t failure = TUTTI_FAILURE_INIT;
    OK(tutti_group_failure(world, &failure));
    CHECK(failure.status == TUTTI_PEER_LOST && failure.rank == RANKS - 1);
    FAILS(TUTTI_PEER_LOST, tutti_group_check(world));
    FAILS(TUTTI_PEER_LOST, tutti_barrier(world, NULL)); /* a failed group stays failed */
    uint8_t alive[RANKS] = {9, 9, 9, 9};
    OK(tutti_group_alive(world, alive, RANKS));
    CHECK(alive[rank] == 1 && alive[RANKS - 1] == 0);
    OK(tutti_group_destroy(world));
}

static void id_role(int rank) {
    const char *text = getenv("CHECK_ID");
    unsigned char id[TUTTI_UNIQUE_ID_BYTES];
    size_t bytes = strlen(text) / 2;
    CHECK(bytes == sizeof id);
    for (size_t i = 0; i < bytes; i++) {
        const char digits[3] = {text[2 * i], text[2 * i + 1], '\0'};
        id[i] = (unsigned char)strtoul(digits, NULL, 16);
    }
    tutti_world_options_t options = TUTTI_WORLD_OPTIONS_INIT;
    tutti_group_t *world = NULL;
    options.size = RANKS;
    options.rank = rank;
    options.unique_id = id;
    options.unique_id_size = bytes;
    OK(tutti_world_create(&options, &world));
    sums_up(world, RANKS, 12345);
    char plan[8192];
    OK(tutti_explain(world, TUTTI_ALL_REDUCE, 1, TUTTI_INT8, TUTTI_SUM, 0, TUTTI_FORMAT_JSON, plan, sizeof plan, NULL));
    CHECK((strstr(plan, "\"one_host\":true") != NULL) == (getenv("TUTTI_HOST_ID") == NULL));
    OK(tutti_group_destroy(world));
}

/* ---- The promises --------------------------------------------------------------------------------------------- */

static void processes_meet_through_the_environment(void) {
    all_ranks_succeed("environment");
}

static void processes_may_exit_without_destroying_anything(void) {
    all_ranks_succeed("leaves");
}

static void a_killed_rank_is_named_by_all_others(void) {
    char run[64];
    pid_t children[RANKS];
    new_run(run, sizeof run);
    for (int rank = 0; rank < RANKS; rank++) children[rank] = start_rank("dies", rank, RANKS, run, "");
    for (int rank = 0; rank < RANKS - 1; rank++) CHECK(exit_code(children[rank]) == 0);
    CHECK(exit_code(children[RANKS - 1]) == 128 + SIGKILL);
}

/* The process that makes the id is rank 0. */
static void all_meet_through_an_id(void) {
    unsigned char id[TUTTI_UNIQUE_ID_BYTES];
    char text[2 * TUTTI_UNIQUE_ID_BYTES + 1];
    size_t bytes = 0;
    pid_t children[RANKS];
    OK(tutti_unique_id_create(id, sizeof id, &bytes));
    for (size_t i = 0; i < bytes; i++) snprintf(text + 2 * i, 3, "%02x", id[i]);
    for (int rank = 1; rank < RANKS; rank++) children[rank] = start_rank("id", rank, RANKS, "unused", text);
    setenv("CHECK_ID", text, 1);
    id_role(0);
    for (int rank = 1; rank < RANKS; rank++) CHECK(exit_code(children[rank]) == 0);
}

static void processes_meet_through_a_unique_id(void) {
    all_meet_through_an_id();
}

/* Two hosts on one: what separates them is their name. The id carries the address and the secret. */
static void processes_on_two_hosts_meet_through_a_unique_id(void) {
    setenv("TUTTI_ADDR", "127.0.0.1:0", 1);
    setenv("TUTTI_HOST_ID", host_of(0), 1);
    all_meet_through_an_id();
    unsetenv("TUTTI_ADDR");
    unsetenv("TUTTI_HOST_ID");
}

static void a_forked_child_gets_an_error_and_the_parent_lives_on(void) {
    tutti_group_t *world[1], *late[1];
    int32_t value = 7;
    local_world(1, world);
    OK(tutti_all_reduce(world[0], &value, &value, 1, TUTTI_INT32, TUTTI_SUM, NULL));
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        arm_watchdog();
        CHECK(tutti_all_reduce(world[0], &value, &value, 1, TUTTI_INT32, TUTTI_SUM, NULL) != TUTTI_SUCCESS);
        CHECK(strstr(tutti_last_error(), "fork") != NULL);
        CHECK(tutti_world_create_local(1, NULL, NULL, late) != TUTTI_SUCCESS || late[0] != NULL);
        _exit(0);
    }
    CHECK(exit_code(child) == 0);
    OK(tutti_all_reduce(world[0], &value, &value, 1, TUTTI_INT32, TUTTI_SUM, NULL));
    OK(tutti_group_destroy(world[0]));
}

static const struct {
    const char *name;
    role_t run;
} ROLES[] = {{"environment", environment_role}, {"leaves", leaves_role}, {"dies", dies_role}, {"id", id_role}};

static const test_t TESTS[] = {
    {"processes_meet_through_the_environment", processes_meet_through_the_environment},
    {"processes_meet_through_a_unique_id", processes_meet_through_a_unique_id},
    {"processes_on_two_hosts_meet_through_a_unique_id", processes_on_two_hosts_meet_through_a_unique_id},
    {"processes_may_exit_without_destroying_anything", processes_may_exit_without_destroying_anything},
    {"a_killed_rank_is_named_by_all_others", a_killed_rank_is_named_by_all_others},
    {"a_forked_child_gets_an_error_and_the_parent_lives_on", a_forked_child_gets_an_error_and_the_parent_lives_on},
};

int main(int argc, char **argv) {
    const char *role = getenv("CHECK_ROLE");
    if (role == NULL) return run_tests(TESTS, sizeof TESTS / sizeof TESTS[0], argc, argv);
    running_test = role;
    arm_watchdog();
    for (size_t i = 0; i < sizeof ROLES / sizeof ROLES[0]; i++) {
        if (strcmp(ROLES[i].name, role) == 0) {
            ROLES[i].run(atoi(getenv("CHECK_RANK")));
            return 0;
        }
    }
    return 4;
}
