/* common.h: what the programs in this directory share: ending with the library's own sentence, starting ranks as
 * processes and answering for them, or as threads, and reading tutti_explain. Nothing but the public header is used. */
#ifndef TUTTI_EXAMPLES_COMMON_H
#define TUTTI_EXAMPLES_COMMON_H

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <tutti.h>

extern char **environ;

#define MAX_RANKS 64 /* sums of values up to 4 stay exact in bfloat16 */

static _Thread_local int my_rank; /* ranks may be threads */

/* Ends this process with the library's own sentence unless `call` succeeded. */
#define TRY(call) must_succeed(call, #call)

static inline void must_succeed(tutti_status_t status, const char *call) {
    if (status == TUTTI_SUCCESS) return;
    fprintf(stderr, "rank %d: %.*s: %s\n", my_rank, (int)strcspn(call, "("), call, tutti_last_error());
    exit(1);
}

/* ---- Starting the ranks as processes --------------------------------------------------------------------------
 *
 * The process that the user starts only starts and watches the ranks. Rank 0 must make the unique id itself, since it
 * listens for the others; it writes the id into a pipe, and the other ranks get it in their environment. */

#define RANK_VARIABLE "TUTTI_EXAMPLE_RANK"
#define ID_VARIABLE "TUTTI_EXAMPLE_ID"
#define STARTER_VARIABLE "TUTTI_EXAMPLE_STARTER"
#define ID_PIPE 3          /* the descriptor into which rank 0 writes the id */
#define GRACE_MS 2000      /* how long the others may take to end by themselves when one has failed */

/* Whether this process is a rank that start_ranks started. */
static inline int is_started_rank(void) { return getenv(RANK_VARIABLE) != NULL; }

static inline pid_t start_rank(int rank, char **arguments, int id_pipe) {
    char number[16];
    pid_t child = -1;
    sigset_t none;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_t files;
    snprintf(number, sizeof number, "%d", rank);
    setenv(RANK_VARIABLE, number, 1);
    sigemptyset(&none);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawn_file_actions_init(&files);
    if (id_pipe >= 0) posix_spawn_file_actions_adddup2(&files, id_pipe, ID_PIPE);
    const int failed = posix_spawn(&child, "/proc/self/exe", &files, &attributes, arguments, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    if (failed != 0) fprintf(stderr, "cannot start rank %d: %s\n", rank, strerror(failed));
    return failed != 0 ? -1 : child;
}

static inline void signal_ranks(const pid_t *children, int ranks, int number) {
    for (int rank = 0; rank < ranks; rank++) {
        if (children[rank] > 0) kill(children[rank], number);
    }
}

/* Collects the ranks that have ended, and says how those did that failed, unless we ended them. Returns how many still
 * run. */
static inline int collect_ranks(pid_t *children, int ranks, int ours, int *failed) {
    int running = 0;
    for (int rank = 0; rank < ranks; rank++) {
        int status = 0;
        if (children[rank] <= 0) continue;
        if (waitpid(children[rank], &status, WNOHANG) != children[rank]) {
            running++;
            continue;
        }
        children[rank] = 0;
        if (status == 0) continue;
        if (!ours && WIFSIGNALED(status)) {
            fprintf(stderr, "rank %d was killed by signal %d (%s)\n", rank, WTERMSIG(status), strsignal(WTERMSIG(status)));
        } else if (!ours && !*failed) {
            fprintf(stderr, "rank %d ended with status %d\n", rank, WEXITSTATUS(status));
        }
        if (!*failed) *failed = WIFSIGNALED(status) ? 1 : WEXITSTATUS(status);
    }
    return running;
}

/* Waits until all ranks have ended. Once one has failed, or the user asks to stop, the others get GRACE_MS to say what
 * they saw, and are then ended. Returns the exit status. */
static inline int watch_ranks(pid_t *children, int ranks, const sigset_t *watched) {
    const int tick_ms = 50;
    const struct timespec tick = {0, tick_ms * 1000000L};
    int failed = 0, asked = 0, left_ms = GRACE_MS;
    while (collect_ranks(children, ranks, asked || left_ms <= 0, &failed) > 0) {
        const int number = sigtimedwait(watched, NULL, &tick);
        if (number > 0 && number != SIGCHLD) {
            if (!asked) fprintf(stderr, "stopped by signal %d (%s)\n", number, strsignal(number));
            asked = 128 + number;
            signal_ranks(children, ranks, SIGTERM);
        }
        if (!failed && !asked) continue;
        if (number < 0) left_ms -= tick_ms;
        if (left_ms <= 0) signal_ranks(children, ranks, SIGKILL);
    }
    return asked ? asked : failed;
}

/* Starts this program again, with the same arguments, as ranks 0 to ranks - 1, and returns the exit status when all
 * have ended: none is left behind. */
static inline int start_ranks(int ranks, char **arguments) {
    pid_t children[MAX_RANKS] = {0};
    char id[2 * TUTTI_UNIQUE_ID_BYTES + 1] = "", number[32];
    int ends[2], started = 1;
    size_t length = 0;
    sigset_t watched;
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    sigaddset(&watched, SIGINT);
    sigaddset(&watched, SIGTERM);
    sigaddset(&watched, SIGHUP);
    sigprocmask(SIG_BLOCK, &watched, NULL);
    snprintf(number, sizeof number, "%ld", (long)getpid());
    setenv(STARTER_VARIABLE, number, 1);

    if (pipe2(ends, O_CLOEXEC) != 0) {
        fprintf(stderr, "cannot make a pipe: %s\n", strerror(errno));
        return 1;
    }
    const int above = fcntl(ends[1], F_DUPFD_CLOEXEC, ID_PIPE + 1); /* spawning may not find it at ID_PIPE already */
    children[0] = start_rank(0, arguments, above);
    close(ends[1]);
    close(above);
    for (ssize_t got = 1; got > 0 && length < sizeof id - 1; length += got > 0 ? (size_t)got : 0) {
        got = read(ends[0], id + length, sizeof id - 1 - length);
    }
    close(ends[0]);
    if (length == sizeof id - 1) { /* else rank 0 has ended and has said why */
        setenv(ID_VARIABLE, id, 1);
        for (int rank = 1; rank < ranks && started; rank++) {
            children[rank] = start_rank(rank, arguments, -1);
            started = children[rank] > 0;
        }
        if (!started) signal_ranks(children, ranks, SIGTERM);
    }
    const int status = watch_ranks(children, ranks, &watched);
    return length == sizeof id - 1 && started ? status : 1;
}

/* Joins, as a rank that start_ranks started, the world of all of them. */
static inline tutti_group_t *join_started_world(int ranks, int64_t timeout_ms) {
    unsigned char id[TUTTI_UNIQUE_ID_BYTES];
    char text[2 * sizeof id + 1];
    const char *starter = getenv(STARTER_VARIABLE), *given = getenv(ID_VARIABLE);
    tutti_world_options_t options = TUTTI_WORLD_OPTIONS_INIT;
    tutti_group_t *world = NULL;
    my_rank = atoi(getenv(RANK_VARIABLE));

    prctl(PR_SET_PDEATHSIG, SIGTERM); /* whatever ends the starter, no rank stays */
    if (starter == NULL || atol(starter) != (long)getppid()) exit(1);
    if (my_rank == 0) {
        TRY(tutti_unique_id_create(id, sizeof id, NULL));
        for (size_t i = 0; i < sizeof id; i++) snprintf(text + 2 * i, 3, "%02x", id[i]);
        for (size_t sent = 0; sent < sizeof text - 1;) {
            const ssize_t went = write(ID_PIPE, text + sent, sizeof text - 1 - sent);
            if (went <= 0) exit(1);
            sent += (size_t)went;
        }
        close(ID_PIPE);
    } else {
        for (size_t i = 0; i < sizeof id; i++) {
            unsigned value = 0;
            if (given == NULL || strlen(given) != sizeof text - 1 || sscanf(given + 2 * i, "%2x", &value) != 1) exit(1);
            id[i] = (unsigned char)value;
        }
    }
    options.size = ranks;
    options.rank = my_rank;
    options.unique_id = id;
    options.unique_id_size = sizeof id;
    options.timeout_ms = timeout_ms;
    TRY(tutti_world_create(&options, &world));
    return world;
}

/* ---- Ranks that a launcher started, or threads ----------------------------------------------------------------- */

/* Whether torchrun, mpirun or srun started this process. */
static inline int is_launched(void) {
    static const char *const VARIABLES[] = {"RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID"};
    for (size_t i = 0; i < sizeof VARIABLES / sizeof VARIABLES[0]; i++) {
        if (getenv(VARIABLES[i]) != NULL) return 1;
    }
    return 0;
}

/* Joins, as a rank that a launcher started, the world that its variables name. */
static inline tutti_group_t *join_launched_world(int64_t timeout_ms) {
    tutti_world_options_t options = TUTTI_WORLD_OPTIONS_INIT;
    tutti_group_t *world = NULL;
    int32_t rank = 0;
    options.timeout_ms = timeout_ms;
    TRY(tutti_world_create(&options, &world));
    TRY(tutti_group_rank(world, &rank));
    my_rank = rank;
    return world;
}

typedef struct thread_rank {
    pthread_t thread;
    int rank, ranks;
    const unsigned char *id;
    void (*run)(tutti_group_t *world);
} thread_rank_t;

static inline void *thread_main(void *argument) {
    const thread_rank_t *self = argument;
    tutti_world_options_t options = TUTTI_WORLD_OPTIONS_INIT;
    tutti_group_t *world = NULL;
    my_rank = self->rank;
    options.size = self->ranks;
    options.rank = self->rank;
    options.unique_id = self->id;
    options.unique_id_size = TUTTI_UNIQUE_ID_BYTES;
    TRY(tutti_world_create(&options, &world));
    self->run(world);
    return NULL;
}

/* Runs `run`, which destroys the world it gets, as each of `ranks` ranks: as the one that a launcher started this process
 * for, or as all of them, which are threads of this process then. Returns the exit status. */
static inline int run_ranks(int ranks, void (*run)(tutti_group_t *world)) {
    unsigned char id[TUTTI_UNIQUE_ID_BYTES];
    thread_rank_t threads[MAX_RANKS];
    if (is_launched()) {
        tutti_group_t *world = join_launched_world(0);
        int32_t size = 0;
        TRY(tutti_group_size(world, &size));
        if (size != ranks) {
            if (my_rank == 0) fprintf(stderr, "%d ranks were started; this program is made for %d\n", (int)size, ranks);
            return 2;
        }
        run(world);
        return 0;
    }
    TRY(tutti_unique_id_create(id, sizeof id, NULL));
    for (int rank = 0; rank < ranks; rank++) {
        thread_rank_t *self = &threads[rank];
        self->rank = rank;
        self->ranks = ranks;
        self->id = id;
        self->run = run;
        if (pthread_create(&self->thread, NULL, thread_main, self) != 0) return 1;
    }
    for (int rank = 0; rank < ranks; rank++) pthread_join(threads[rank].thread, NULL);
    return 0;
}

/* ---- Who serves a call ---------------------------------------------------------------------------------------- */

/* What tutti_explain says of a call; the caller frees it. */
static inline char *explain(const tutti_group_t *group, int32_t collective, size_t count, int32_t dtype, int32_t op,
                            uint32_t flags, int32_t format) {
    size_t needed = 0;
    TRY(tutti_explain(group, collective, count, dtype, op, flags, format, NULL, 0, &needed));
    char *text = malloc(needed + 1);
    if (text == NULL) exit(1);
    TRY(tutti_explain(group, collective, count, dtype, op, flags, format, text, needed + 1, NULL));
    return text;
}

/* Copies the first string named `key` of a JSON text; "?" if there is none. */
static inline void json_string(const char *json, const char *key, char *value, size_t capacity) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    snprintf(value, capacity, "?");
    const char *at = strstr(json, quoted);
    if (at == NULL) return;
    at += strlen(quoted);
    at += strspn(at, " :");
    if (*at != '"') return;
    snprintf(value, capacity, "%.*s", (int)strcspn(at + 1, "\""), at + 1);
}

/* Writes "communicator/algorithm"; with TUTTI_CALL_REGISTERED the algorithm that takes its place for registered buffers. */
static inline void served_by(const tutti_group_t *group, int32_t collective, size_t count, int32_t dtype, int32_t op,
                             uint32_t flags, char *text, size_t capacity) {
    char communicator[64], algorithm[64];
    char *json = explain(group, collective, count, dtype, op, flags, TUTTI_FORMAT_JSON);
    const char *chosen = strstr(json, "\"chosen\"");
    const int nobody = chosen == NULL || strncmp(chosen, "\"chosen\":null", 13) == 0;
    json_string(nobody ? "" : chosen, "communicator", communicator, sizeof communicator);
    json_string(nobody ? "" : chosen, flags & TUTTI_CALL_REGISTERED ? "registered" : "algorithm", algorithm, sizeof algorithm);
    snprintf(text, capacity, nobody ? "-" : "%s/%s", communicator, algorithm);
    free(json);
}

#endif
