/* transfer: eight processes on this machine move a small model from the layout it was trained in to the one it is served
 * in, show how far they are, and check every element against the whole tensors.
 *
 * Training: 2 data-parallel replicas of 4 tensor-parallel ranks. Inference: 2 pipeline stages of 2 tensor-parallel ranks,
 * on ranks 0 to 3. So ranks 0 to 3 are both, and ranks 4 to 7 only give:
 *
 *   embedding  by rows over the 4 ranks, unevenly (a vocabulary that does not divide)   -> stage 0, by columns
 *   query      by rows, the same on both replicas                                       -> stage 0, by rows
 *   gradient   by columns; each replica holds an addend, so the sum is wanted           -> stage 1, by rows, as bfloat16
 *   head       by rows, the same on both replicas                                       -> stage 1, on both ranks
 *
 * The process you start is rank 0: it makes a unique id and starts this program again once for every other rank, with
 * the id in the environment. Nothing but the public header is used. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <tutti.h>

extern char **environ;

#define RANKS 8
#define TIMEOUT_MS 60000 /* of every message: an example that waits longer has failed */
#define ITEMS 4
#define REPLICAS 2

static int my_rank;

/* Ends this process with the library's own sentence unless `call` succeeded. */
#define TRY(call) must_succeed(call, #call)

static void must_succeed(tutti_status_t status, const char *call) {
    if (status == TUTTI_SUCCESS) return;
    fprintf(stderr, "rank %d: %.*s: %s\n", my_rank, (int)strcspn(call, "("), call, tutti_last_error());
    exit(1);
}

static void *memory(size_t bytes) {
    void *made = calloc(bytes > 0 ? bytes : 1, 1);
    if (made == NULL) {
        fprintf(stderr, "rank %d: no memory for %zu bytes\n", my_rank, bytes);
        exit(1);
    }
    return made;
}

/* ---- Starting the ranks --------------------------------------------------------------------------------------- */

static void to_hex(const unsigned char *bytes, size_t count, char *text) {
    for (size_t i = 0; i < count; i++) sprintf(text + 2 * i, "%02x", bytes[i]);
}

static void from_hex(const char *text, unsigned char *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        unsigned value = 0;
        if (sscanf(text + 2 * i, "%2x", &value) != 1) exit(2);
        bytes[i] = (unsigned char)value;
    }
}

static pid_t start_rank(int rank, char **arguments) {
    char number[16];
    pid_t child = -1;
    snprintf(number, sizeof number, "%d", rank);
    setenv("TRANSFER_RANK", number, 1);
    if (posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environ) != 0) {
        fprintf(stderr, "transfer: cannot start rank %d\n", rank);
        exit(1);
    }
    return child;
}

static tutti_group_t *join_world(const unsigned char *id, size_t id_bytes) {
    tutti_world_options_t options = TUTTI_WORLD_OPTIONS_INIT;
    tutti_group_t *world = NULL;
    options.size = RANKS;
    options.rank = my_rank;
    options.unique_id = id;
    options.unique_id_size = id_bytes;
    options.timeout_ms = TIMEOUT_MS;
    TRY(tutti_world_create(&options, &world));
    return world;
}

/* ---- The model ------------------------------------------------------------------------------------------------ */

static const char *const NAMES[ITEMS] = {"embedding", "query", "gradient", "head"};
#define GRADIENT 2 /* what is added up over the replicas */

typedef struct model {
    size_t shapes[ITEMS][2];
    size_t vocabulary[4]; /* rows of the embedding on each tensor-parallel rank */
} model_t;

static model_t model_of(size_t hidden) {
    const size_t rows = 8 * hidden + 13;
    const model_t model = {
        {{rows, hidden}, {hidden, hidden}, {hidden, 4 * hidden}, {rows, hidden}},
        {2 * hidden + 4, 2 * hidden + 4, 2 * hidden + 4, 2 * hidden + 1},
    };
    return model;
}

/* Element (row, column) of a whole tensor, as one replica holds it: small integers, exact in bfloat16 after any sum. */
static int element(int item, int replica, size_t row, size_t column) {
    const size_t mixed = row * 31 + column * 7 + (size_t)item * 3 + (item == GRADIENT ? (size_t)replica * 5 : 0);
    return (int)(mixed % 61);
}

/* What the target must hold there. */
static int expected(int item, size_t row, size_t column) {
    int sum = element(item, 0, row, column);
    for (int replica = 1; item == GRADIENT && replica < REPLICAS; replica++) sum += element(item, replica, row, column);
    return sum;
}

static tutti_placement_t shard(int32_t dim) {
    tutti_placement_t placement = TUTTI_PLACEMENT_INIT;
    placement.kind = TUTTI_SHARD;
    placement.dim = dim;
    return placement;
}

static tutti_tensor_layout_t layout(int32_t dtype, const tutti_mesh_t *mesh, const tutti_placement_t *placements) {
    tutti_tensor_layout_t layout = TUTTI_TENSOR_LAYOUT_INIT;
    layout.dtype = dtype;
    layout.mesh = mesh;
    layout.placements = placements;
    layout.placement_count = mesh->dim_count;
    return layout;
}

static tutti_transfer_plan_t *make_plan(const model_t *model) {
    static const size_t training_dims[2] = {REPLICAS, 4}, stage_dims[1] = {2};
    static const int32_t training_ranks[RANKS] = {0, 1, 2, 3, 4, 5, 6, 7}, stage_ranks[2][2] = {{0, 1}, {2, 3}};
    const tutti_placement_t replicate = TUTTI_PLACEMENT_INIT;
    tutti_placement_t partial = TUTTI_PLACEMENT_INIT, uneven = shard(0);
    tutti_mesh_t training = TUTTI_MESH_INIT, stages[2] = {TUTTI_MESH_INIT, TUTTI_MESH_INIT};
    tutti_transfer_plan_t *plan = NULL;

    training.dims = training_dims;
    training.dim_count = 2;
    training.ranks = training_ranks;
    training.rank_count = RANKS;
    for (int stage = 0; stage < 2; stage++) {
        stages[stage].dims = stage_dims;
        stages[stage].dim_count = 1;
        stages[stage].ranks = stage_ranks[stage];
        stages[stage].rank_count = 2;
    }
    partial.kind = TUTTI_PARTIAL;
    partial.op = TUTTI_SUM;
    uneven.split = TUTTI_SPLIT_EXPLICIT;
    uneven.sizes = model->vocabulary;
    uneven.size_count = 4;

    const tutti_placement_t by_vocabulary[2] = {replicate, uneven}, by_rows[2] = {replicate, shard(0)};
    const tutti_placement_t addends[2] = {partial, shard(1)};
    const tutti_placement_t rows = shard(0), columns = shard(1);
    const tutti_tensor_layout_t sources[ITEMS] = {
        layout(TUTTI_FLOAT32, &training, by_vocabulary),
        layout(TUTTI_FLOAT32, &training, by_rows),
        layout(TUTTI_FLOAT32, &training, addends),
        layout(TUTTI_FLOAT32, &training, by_vocabulary),
    };
    const tutti_tensor_layout_t targets[ITEMS] = {
        layout(TUTTI_FLOAT32, &stages[0], &columns),
        layout(TUTTI_FLOAT32, &stages[0], &rows),
        layout(TUTTI_BFLOAT16, &stages[1], &rows),
        layout(TUTTI_FLOAT32, &stages[1], &replicate),
    };
    tutti_transfer_item_t items[ITEMS];
    for (int i = 0; i < ITEMS; i++) {
        const tutti_transfer_item_t item = TUTTI_TRANSFER_ITEM_INIT;
        items[i] = item;
        items[i].name = NAMES[i];
        items[i].shape = model->shapes[i];
        items[i].dim_count = 2;
        items[i].source = &sources[i];
        items[i].target = &targets[i];
    }
    tutti_transfer_options_t options = TUTTI_TRANSFER_OPTIONS_INIT;
    options.bucket_bytes = 1 << 20;
    TRY(tutti_transfer_plan_create(items, ITEMS, RANKS, &options, &plan));
    return plan;
}

/* ---- One rank's part ------------------------------------------------------------------------------------------ */

typedef struct part {
    uint64_t start[2], extent[2], count;
    void *memory;
} part_t;

static part_t part_of(const tutti_transfer_plan_t *plan, int item, int32_t side) {
    part_t part;
    TRY(tutti_transfer_plan_region(plan, (size_t)item, side, my_rank, part.start, part.extent, &part.count));
    part.memory = part.count > 0 ? memory((size_t)part.count * sizeof(float)) : NULL;
    return part;
}

static void fill(const part_t *part, int item) {
    const int replica = my_rank / 4;
    float *at = part->memory;
    for (uint64_t row = 0; part->count > 0 && row < part->extent[0]; row++) {
        for (uint64_t column = 0; column < part->extent[1]; column++) {
            *at++ = (float)element(item, replica, (size_t)(part->start[0] + row), (size_t)(part->start[1] + column));
        }
    }
}

static float value_at(const part_t *part, int item, uint64_t index) {
    float value;
    if (item == GRADIENT) { /* bfloat16 is the upper half of a float */
        const uint32_t bits = (uint32_t)((const uint16_t *)part->memory)[index] << 16;
        memcpy(&value, &bits, sizeof value);
    } else {
        value = ((const float *)part->memory)[index];
    }
    return value;
}

/* How many elements are wrong. */
static int64_t count_wrong(const part_t *part, int item) {
    int64_t wrong = 0;
    for (uint64_t i = 0; i < part->count; i++) {
        const uint64_t row = part->start[0] + i / part->extent[1], column = part->start[1] + i % part->extent[1];
        wrong += value_at(part, item, i) != (float)expected(item, (size_t)row, (size_t)column);
    }
    return wrong;
}

/* ---- Moving it ------------------------------------------------------------------------------------------------ */

static void show_progress(const tutti_transfer_progress_t *progress, int is_last) {
    static int shown = -1;
    const int width = 40;
    const int done = progress->bytes > 0 ? (int)(progress->bytes_done * (uint64_t)width / progress->bytes) : width;
    if (my_rank != 0 || (done == shown && !is_last)) return;
    shown = done;
    printf("\rrank 0 [%.*s%.*s] %" PRIu64 " of %" PRIu64 " buckets, %.1f MiB%s", done,
           "########################################", width - done, "                                        ",
           progress->buckets_done, progress->buckets, (double)progress->bytes_done / (1 << 20), is_last ? "\n\n" : "");
    fflush(stdout);
}

static void print_report(const tutti_transfer_plan_t *plan, int32_t format, FILE *to) {
    size_t needed = 0;
    TRY(tutti_transfer_plan_report(plan, -1, format, NULL, 0, &needed));
    char *text = memory(needed + 1);
    TRY(tutti_transfer_plan_report(plan, -1, format, text, needed + 1, NULL));
    fputs(text, to);
    free(text);
}

static void run(tutti_group_t *world, size_t hidden, const char *picture) {
    const model_t model = model_of(hidden);
    tutti_transfer_plan_t *plan = make_plan(&model);
    tutti_transfer_t *transfer = NULL;
    tutti_transfer_progress_t progress = TUTTI_TRANSFER_PROGRESS_INIT;
    tutti_status_t status;
    part_t sources[ITEMS], targets[ITEMS];
    int64_t wrong = 0;

    if (my_rank == 0) {
        print_report(plan, TUTTI_FORMAT_TEXT, stdout);
        printf("\n");
        if (picture != NULL) {
            FILE *file = fopen(picture, "w");
            if (file == NULL) {
                fprintf(stderr, "transfer: cannot write %s\n", picture);
                exit(1);
            }
            print_report(plan, TUTTI_FORMAT_SVG, file);
            fclose(file);
        }
    }
    TRY(tutti_transfer_create(plan, world, &transfer));
    for (int item = 0; item < ITEMS; item++) {
        sources[item] = part_of(plan, item, TUTTI_SOURCE);
        targets[item] = part_of(plan, item, TUTTI_TARGET);
        fill(&sources[item], item);
        TRY(tutti_transfer_bind(transfer, (size_t)item, sources[item].memory, NULL, targets[item].memory, NULL));
    }
    TRY(tutti_transfer_start(transfer, NULL));
    do {
        status = tutti_transfer_wait(transfer, 10);
        if (status != TUTTI_IN_PROGRESS) TRY(status);
        if (tutti_transfer_poll(transfer, &progress) != TUTTI_IN_PROGRESS) continue;
        show_progress(&progress, 0);
    } while (status == TUTTI_IN_PROGRESS);
    show_progress(&progress, 1);

    for (int item = 0; item < ITEMS; item++) {
        int64_t of_item = count_wrong(&targets[item], item);
        uint64_t elements = targets[item].count;
        TRY(tutti_all_reduce(world, &of_item, &of_item, 1, TUTTI_INT64, TUTTI_SUM, NULL));
        TRY(tutti_all_reduce(world, &elements, &elements, 1, TUTTI_UINT64, TUTTI_SUM, NULL));
        if (my_rank == 0) printf("%-10s %9" PRIu64 " elements arrived, %" PRId64 " wrong\n", NAMES[item], elements, of_item);
        wrong += of_item;
        free(sources[item].memory);
        free(targets[item].memory);
    }
    TRY(tutti_transfer_destroy(transfer));
    TRY(tutti_transfer_plan_destroy(plan));
    TRY(tutti_barrier(world, NULL));
    if (wrong > 0) exit(1);
}

/* ---- The command line ----------------------------------------------------------------------------------------- */

static int usage(FILE *to, const char *problem) {
    if (problem != NULL) fprintf(to, "transfer: %s\n\n", problem);
    fprintf(to,
            "usage: transfer [--hidden N] [--picture FILE]\n\n"
            "Starts 8 processes on this machine and moves four tensors from a training layout (2 replicas of 4\n"
            "tensor-parallel ranks) to an inference layout (2 pipeline stages of 2 tensor-parallel ranks), adding up\n"
            "gradients on the way; prints the plan and the progress, and checks every element.\n\n"
            "  --hidden N      the model's width, 1 to 4096 (512 if not given)\n"
            "  --picture FILE  writes who sends how much to whom, as SVG\n"
            "  --help          this text\n");
    return problem != NULL ? 2 : 0;
}

int main(int argc, char **argv) {
    unsigned char id[TUTTI_UNIQUE_ID_BYTES];
    char hex[2 * TUTTI_UNIQUE_ID_BYTES + 1];
    pid_t children[RANKS] = {0};
    const char *started_as = getenv("TRANSFER_RANK"), *picture = NULL;
    unsigned long hidden = 512;
    for (int i = 1; i < argc; i++) {
        char *end = NULL;
        if (strcmp(argv[i], "--help") == 0) return usage(stdout, NULL);
        if (i + 1 < argc && strcmp(argv[i], "--picture") == 0) {
            picture = argv[++i];
        } else if (i + 1 < argc && strcmp(argv[i], "--hidden") == 0) {
            hidden = strtoul(argv[++i], &end, 10);
            if (*end != '\0' || hidden < 1 || hidden > 4096) return usage(stderr, "--hidden takes a number from 1 to 4096");
        } else {
            return usage(stderr, "what is meant? The options are --hidden N, --picture FILE and --help");
        }
    }
    if (started_as == NULL) {
        TRY(tutti_unique_id_create(id, sizeof id, NULL));
        to_hex(id, sizeof id, hex);
        setenv("TRANSFER_ID", hex, 1);
        for (int rank = 1; rank < RANKS; rank++) children[rank] = start_rank(rank, argv);
    } else {
        const char *text = getenv("TRANSFER_ID");
        my_rank = atoi(started_as);
        if (text == NULL || strlen(text) != 2 * sizeof id) {
            return usage(stderr, "TRANSFER_RANK is set, but TRANSFER_ID is no id");
        }
        from_hex(text, id, sizeof id);
    }
    tutti_group_t *world = join_world(id, sizeof id);
    run(world, hidden, picture);
    TRY(tutti_group_destroy(world));

    int failed = 0;
    for (int rank = 1; started_as == NULL && rank < RANKS; rank++) {
        int status = 0;
        if (waitpid(children[rank], &status, 0) != children[rank] || status != 0) failed = 1;
    }
    if (failed) fprintf(stderr, "transfer: a rank failed\n");
    return failed;
}
