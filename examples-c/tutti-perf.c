/* tutti-perf: how fast libtutti's collectives are here, and who serves them.
 *
 * In the manner of nccl-tests: sizes, types, ops and collectives from the command line; a table, JSON, a picture; every
 * result checked. It starts its own ranks on this machine, or is one of those that torchrun, mpirun or srun started.
 * This file is what knows libtutti, through its public header only; how things are measured is in perf/. */
#define _GNU_SOURCE
#include "common.h"
#include "perf/run.h"

typedef struct served {
    tutti_group_t *world;  /* for what is not measured: barriers and figures */
    tutti_group_t *group;  /* for what is */
    char why[512];
} served_t;

_Static_assert(PERF_ALL_REDUCE == TUTTI_ALL_REDUCE && PERF_BARRIER == TUTTI_BARRIER, "perf/ counts collectives as libtutti does");
_Static_assert(PERF_FLOAT8E5M2 == TUTTI_FLOAT8E5M2 && PERF_BYTES == TUTTI_BYTES, "perf/ counts types as libtutti does");
_Static_assert(PERF_AVG == TUTTI_AVG, "perf/ counts ops as libtutti does");

/* ---- Calls ---------------------------------------------------------------------------------------------------- */

/* The rank that started a ping gets it back: one call of this is one there and one back. */
static tutti_status_t pingpong(tutti_group_t *group, const perf_call_t *call) {
    const int32_t dtype = call->type->code;
    if (my_rank == 0) {
        const tutti_status_t status = tutti_send(group, call->send, call->count, dtype, 1, NULL);
        return status != TUTTI_SUCCESS ? status : tutti_recv(group, call->recv, call->count, dtype, 1, NULL);
    }
    if (my_rank > 1) return TUTTI_SUCCESS;
    const tutti_status_t status = tutti_recv(group, call->recv, call->count, dtype, 0, NULL);
    return status != TUTTI_SUCCESS ? status : tutti_send(group, call->send, call->count, dtype, 0, NULL);
}

static tutti_status_t send_dict(tutti_group_t *group, const tutti_tensor_t *tensors, int32_t peer) {
    tutti_dict_options_t options = TUTTI_DICT_OPTIONS_INIT;
    options.peer = peer;
    return tutti_dict_send(group, tensors, PERF_TENSORS, &options, NULL);
}

/* Into memory of the caller's, which an MPI_Recv needs too. */
static tutti_status_t recv_dict(tutti_group_t *group, const tutti_tensor_t *tensors, int32_t peer) {
    tutti_dict_options_t options = TUTTI_DICT_OPTIONS_INIT;
    tutti_dict_t *dict = NULL;
    options.peer = peer;
    const tutti_status_t begun = tutti_dict_recv(group, &options, &dict);
    if (begun != TUTTI_SUCCESS) return begun;
    const tutti_status_t status = tutti_dict_wait(dict, tensors, PERF_TENSORS, 0);
    TRY(tutti_dict_free(dict));
    return status;
}

/* As pingpong, with the elements in the tensors of one dict, with names and shapes. */
static tutti_status_t dict(tutti_group_t *group, const perf_call_t *call) {
    char names[PERF_TENSORS][16];
    int64_t shapes[PERF_TENSORS];
    tutti_tensor_t there[PERF_TENSORS], back[PERF_TENSORS];
    if (my_rank > 1) return TUTTI_SUCCESS;
    for (size_t i = 0; i < PERF_TENSORS; i++) {
        const size_t first = perf_tensor_at(call->count, i);
        tutti_tensor_t tensor = TUTTI_TENSOR_INIT;
        snprintf(names[i], sizeof names[i], "layer.%zu", i);
        shapes[i] = (int64_t)(perf_tensor_at(call->count, i + 1) - first);
        tensor.name = names[i];
        tensor.dtype = call->type->code;
        tensor.ndim = 1;
        tensor.shape = &shapes[i];
        there[i] = back[i] = tensor;
        there[i].data = (char *)(uintptr_t)call->send + first * call->type->bytes; /* which is only read */
        back[i].data = (char *)call->recv + first * call->type->bytes;
    }
    if (my_rank == 0) {
        const tutti_status_t status = send_dict(group, there, 1);
        return status != TUTTI_SUCCESS ? status : recv_dict(group, back, 1);
    }
    const tutti_status_t status = recv_dict(group, back, 0);
    return status != TUTTI_SUCCESS ? status : send_dict(group, there, 0);
}

static tutti_status_t registered(tutti_group_t *group, const perf_call_t *call) {
    tutti_call_t any = TUTTI_CALL_INIT;
    any.collective = call->collective->code;
    any.dtype = call->type->code;
    any.op = call->op;
    any.peer = call->root;
    any.flags = TUTTI_CALL_REGISTERED;
    any.send = call->send;
    any.recv = call->recv;
    any.send_count = any.recv_count = call->count;
    return tutti_start(group, &any, NULL);
}

static tutti_status_t one_call(tutti_group_t *group, const perf_call_t *call) {
    const int32_t dtype = call->type->code;
    int32_t size = 0;
    if (call->registered && call->collective->code < PERF_SENDRECV && call->collective->code != PERF_BARRIER) return registered(group, call);
    switch (call->collective->code) {
    case PERF_ALL_REDUCE: return tutti_all_reduce(group, call->send, call->recv, call->count, dtype, call->op, NULL);
    case PERF_ALL_GATHER: return tutti_all_gather(group, call->send, call->recv, call->count, dtype, NULL);
    case PERF_REDUCE_SCATTER: return tutti_reduce_scatter(group, call->send, call->recv, call->count, dtype, call->op, NULL);
    case PERF_BROADCAST: return tutti_broadcast(group, call->send, call->recv, call->count, dtype, call->root, NULL);
    case PERF_REDUCE: return tutti_reduce(group, call->send, call->recv, call->count, dtype, call->op, call->root, NULL);
    case PERF_GATHER: return tutti_gather(group, call->send, call->recv, call->count, dtype, call->root, NULL);
    case PERF_SCATTER: return tutti_scatter(group, call->send, call->recv, call->count, dtype, call->root, NULL);
    case PERF_ALL_TO_ALL: return tutti_all_to_all(group, call->send, call->recv, call->count, dtype, NULL);
    case PERF_BARRIER: return tutti_barrier(group, NULL);
    case PERF_PINGPONG: return pingpong(group, call);
    case PERF_DICT: return dict(group, call);
    case PERF_SENDRECV:
        TRY(tutti_group_size(group, &size));
        return tutti_sendrecv(group, call->send, call->count, (my_rank + 1) % size, call->recv, call->count, (my_rank + size - 1) % size,
                              dtype, NULL);
    default: return TUTTI_UNSUPPORTED;
    }
}

/* ---- What perf/ asks of a library ----------------------------------------------------------------------------- */

static int refused(served_t *it, tutti_status_t status, const char *what) {
    if (status == TUTTI_UNSUPPORTED) {
        snprintf(it->why, sizeof it->why, "%s", tutti_last_error());
        return PERF_UNSUPPORTED;
    }
    must_succeed(status, what);
    return PERF_DONE;
}

static int call(void *context, const perf_call_t *call) {
    served_t *it = context;
    const tutti_status_t status = one_call(it->group, call);
    return status == TUTTI_SUCCESS ? PERF_DONE : refused(it, status, call->collective->name);
}

static void barrier(void *context) { TRY(tutti_barrier(((served_t *)context)->world, NULL)); }

static void max(void *context, double *values, int count) {
    TRY(tutti_all_reduce(((served_t *)context)->world, values, values, (size_t)count, TUTTI_FLOAT64, TUTTI_MAX, NULL));
}

static void *allocate(void *context, size_t bytes) {
    served_t *it = context;
    void *memory = NULL;
    return refused(it, tutti_mem_alloc(it->group, bytes, &memory), "tutti_mem_alloc") == PERF_DONE ? memory : NULL;
}

static void release(void *context, void *memory) {
    (void)context;
    TRY(tutti_mem_free(memory));
}

static void served(void *context, const perf_call_t *call, char *text, size_t capacity) {
    static const int32_t OTHERS[] = {TUTTI_SEND, TUTTI_SEND, TUTTI_SEND}; /* PERF_SENDRECV, PERF_PINGPONG, PERF_DICT */
    const served_t *it = context;
    const int32_t code = call->collective->code >= PERF_SENDRECV ? OTHERS[call->collective->code - PERF_SENDRECV] : call->collective->code;
    served_by(it->group, code, call->count, call->type->code, call->op, call->registered ? TUTTI_CALL_REGISTERED : 0, text, capacity);
}

static const char *why(void *context) { return ((served_t *)context)->why; }

/* ---- Ranks and communicators ---------------------------------------------------------------------------------- */

/* A group of all ranks that has nothing but this communicator; NULL, with the reason, if it does not work here. */
static tutti_group_t *group_of(served_t *it, const char *communicator, int size, int64_t timeout_ms) {
    char forced[64];
    int32_t ranks[MAX_RANKS];
    tutti_group_options_t options = TUTTI_GROUP_OPTIONS_INIT;
    tutti_group_t *group = NULL;
    snprintf(forced, sizeof forced, "=%s", communicator);
    options.communicators = strcmp(communicator, "auto") == 0 ? NULL : forced;
    options.name = communicator;
    options.timeout_ms = timeout_ms;
    for (int rank = 0; rank < size; rank++) ranks[rank] = rank;
    const tutti_status_t status = tutti_group_create(it->world, ranks, (size_t)size, &options, &group);
    if (status == TUTTI_SUCCESS) return group;
    if (status != TUTTI_INVALID_ARGUMENT && status != TUTTI_UNSUPPORTED) must_succeed(status, "tutti_group_create");
    snprintf(it->why, sizeof it->why, "%s", tutti_last_error());
    return NULL;
}

static int run(tutti_group_t *world, const perf_options_t *options) {
    const uint32_t version = tutti_version();
    const char *list = options->communicators == NULL ? "auto" : options->communicators;
    char name[48], communicator[48];
    int32_t size = 0;
    int measured = 0;
    served_t it = {world, world, ""};
    perf_report_t report;
    TRY(tutti_group_size(world, &size));
    if (size > PERF_MAX_RANKS) {
        if (my_rank == 0) fprintf(stderr, "tutti-perf: %d ranks are more than the %d it can check\n", (int)size, PERF_MAX_RANKS);
        return 2;
    }
    snprintf(name, sizeof name, "libtutti %u.%u.%u", (unsigned)(version / 10000), (unsigned)(version / 100 % 100), (unsigned)(version % 100));
    perf_library_t library = {name, "", my_rank, size, &it, call, barrier, max, allocate, release, served, why};
    perf_report_begin(&report, options, my_rank == 0);
    if (options->pin) perf_pin(my_rank);
    while (*list != '\0') {
        const size_t length = strcspn(list, ",");
        snprintf(communicator, sizeof communicator, "%.*s", (int)length, list);
        list += length + (list[length] == ',');
        library.run = communicator;
        it.group = group_of(&it, communicator, size, (int64_t)(options->timeout_s * 1e3));
        if (it.group == NULL) {
            perf_report_note(&report, communicator, it.why);
            continue;
        }
        measured = 1;
        perf_run(options, &library, &report);
        barrier(&it);
        TRY(tutti_group_destroy(it.group));
    }
    const int status = perf_report_end(&report, &library);
    double failed = status;
    max(&it, &failed, 1);
    barrier(&it);
    return failed > 0 || !measured;
}

int main(int argc, char **argv) {
    perf_options_t options;
    const int done = perf_parse(&options, "tutti-perf", argc, argv);
    if (done >= 0) return done;
    const int64_t timeout_ms = (int64_t)(options.timeout_s * 1e3);
    const int launched = options.ranks == 0 && is_launched();
    const int ranks = options.ranks > 0 ? options.ranks : 2;
    if (!is_started_rank() && !launched) return start_ranks(ranks, argv);
    tutti_group_t *world = is_started_rank() ? join_started_world(ranks, timeout_ms) : join_launched_world(timeout_ms);
    const int status = run(world, &options);
    TRY(tutti_group_destroy(world));
    return status;
}
