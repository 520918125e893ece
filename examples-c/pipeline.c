/* pipeline: two pipeline stages of two tensor-parallel ranks each, which pass tensor dicts from stage to stage.
 *
 * Under a launcher (torchrun --no-python --nproc-per-node 4 ./pipeline) every process is one rank; started alone, the
 * program makes all four ranks as threads. The layout says who belongs together; the first stage sends each
 * micro-batch's tensors on as one message, and the second receives them into memory of the library.
 *
 * Both ranks of a stage hold the same hidden state, so each sends half of it (options.replicas) and the receivers gather
 * the halves. The residual differs between them, so it is marked TUTTI_TENSOR_WHOLE. */
#define _GNU_SOURCE
#include "common.h"

enum { TP = 2, PP = 2, RANKS = TP * PP, BATCHES = 8, TOKENS = 33, WIDTH = 1001 };

static float hidden_at(int batch, int i) {
    return (float)(batch * 7 + i % 1013);
}

static tutti_tensor_t describe(const char *name, void *data, int32_t dtype, int32_t ndim, const int64_t *shape) {
    tutti_tensor_t tensor = TUTTI_TENSOR_INIT;
    tensor.name = name;
    tensor.data = data;
    tensor.dtype = dtype;
    tensor.ndim = ndim;
    tensor.shape = shape;
    return tensor;
}

/* The first stage: makes the tensors of a micro-batch and sends them on. */
static void first_stage(tutti_group_t *pp, tutti_group_t *tp, int tp_rank) {
    static const int64_t shape[2] = {TOKENS, WIDTH}, tokens[1] = {TOKENS};
    float *hidden = malloc(sizeof(float) * TOKENS * WIDTH), *residual = malloc(sizeof(float) * TOKENS);
    int32_t positions[TOKENS];
    if (hidden == NULL || residual == NULL) exit(1);
    for (int batch = 0; batch < BATCHES; batch++) {
        for (int i = 0; i < TOKENS * WIDTH; i++) hidden[i] = hidden_at(batch, i);
        for (int i = 0; i < TOKENS; i++) {
            residual[i] = (float)(tp_rank * 1000 + i);
            positions[i] = batch * TOKENS + i;
        }
        tutti_tensor_t tensors[3];
        tutti_dict_options_t options = TUTTI_DICT_OPTIONS_INIT;
        tensors[0] = describe("hidden", hidden, TUTTI_FLOAT32, 2, shape);
        tensors[1] = describe("residual", residual, TUTTI_FLOAT32, 1, tokens);
        tensors[1].flags = TUTTI_TENSOR_WHOLE;
        tensors[2] = describe("positions", positions, TUTTI_INT32, 1, tokens);
        options.peer = 1;
        options.replicas = tp;
        TRY(tutti_dict_send(pp, tensors, 3, &options, NULL));
    }
    free(hidden);
    free(residual);
}

/* The second stage: receives each micro-batch, checks it, and adds something up over its tensor-parallel group. */
static void second_stage(tutti_group_t *pp, tutti_group_t *tp, int tp_rank) {
    for (int batch = 0; batch < BATCHES; batch++) {
        tutti_dict_options_t options = TUTTI_DICT_OPTIONS_INIT;
        tutti_tensor_t hidden = TUTTI_TENSOR_INIT, residual = TUTTI_TENSOR_INIT;
        tutti_dict_t *dict = NULL;
        size_t index = 0;
        options.peer = 0;
        options.replicas = tp;
        TRY(tutti_dict_recv(pp, &options, &dict));
        TRY(tutti_dict_wait(dict, NULL, 0, 0));
        TRY(tutti_dict_find(dict, "hidden", &index));
        TRY(tutti_dict_tensor(dict, index, &hidden));
        TRY(tutti_dict_find(dict, "residual", &index));
        TRY(tutti_dict_tensor(dict, index, &residual));
        if (hidden.ndim != 2 || hidden.shape[0] != TOKENS || hidden.shape[1] != WIDTH) exit(1);
        const float *values = (const float *)hidden.data;
        for (int i = 0; i < TOKENS * WIDTH; i++) {
            if (values[i] != hidden_at(batch, i)) {
                fprintf(stderr, "micro-batch %d: element %d is %g\n", batch, i, (double)values[i]);
                exit(1);
            }
        }
        float mine = ((const float *)residual.data)[0], sum = 0;
        if (mine != (float)(tp_rank * 1000)) exit(1);
        TRY(tutti_all_reduce(tp, &mine, &sum, 1, TUTTI_FLOAT32, TUTTI_SUM, NULL));
        TRY(tutti_dict_free(dict));
        if (tp_rank == 0) printf("micro-batch %d: %d x %d elements are right, residuals add up to %g\n", batch, TOKENS, WIDTH, (double)sum);
    }
}

static void run(tutti_group_t *world) {
    tutti_layout_options_t options = TUTTI_LAYOUT_OPTIONS_INIT;
    tutti_layout_t *layout = NULL;
    tutti_group_t *groups[TUTTI_LAYOUT_KINDS];
    int32_t stage = 0, tp_rank = 0;
    options.world = RANKS;
    options.tensor = TP;
    options.pipeline = PP;
    TRY(tutti_layout_create(&options, &layout));
    TRY(tutti_layout_groups(world, layout, 1u << TUTTI_LAYOUT_TP | 1u << TUTTI_LAYOUT_PP, NULL, groups));
    TRY(tutti_layout_destroy(layout));
    TRY(tutti_group_rank(groups[TUTTI_LAYOUT_PP], &stage));
    TRY(tutti_group_rank(groups[TUTTI_LAYOUT_TP], &tp_rank));
    (stage == 0 ? first_stage : second_stage)(groups[TUTTI_LAYOUT_PP], groups[TUTTI_LAYOUT_TP], tp_rank);
    TRY(tutti_barrier(world, NULL)); /* nobody leaves while another still receives */
    for (size_t kind = 0; kind < TUTTI_LAYOUT_KINDS; kind++) TRY(tutti_group_destroy(groups[kind]));
    TRY(tutti_group_destroy(world));
}

int main(void) { return run_ranks(RANKS, run); }
