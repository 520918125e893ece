/* mpi_perf: an MPI measured exactly as tutti-perf measures libtutti: the same options, data, batches and tables. One
 * source for every MPI; mpirun starts its ranks. MPI has no bfloat16: an MPI that brings one of its own is measured with
 * that, any other with a two-byte type and an operation in plain C, and so it says in the column "served by". */
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../examples-c/perf/run.h"

typedef struct own_types { /* what this MPI lacks, made by us */
    MPI_Datatype bfloat16;
    MPI_Op sum;
} own_types_t;

static own_types_t own;

static float widened(uint16_t value) {
    const uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

/* A loop that any compiler vectorises. Rounds to nearest, ties to even; the data here has no NaN. */
static void add_bfloat16(void *in, void *inout, int *count, MPI_Datatype *type) {
    const uint16_t *from = in;
    uint16_t *to = inout;
    (void)type;
    for (int i = 0; i < *count; i++) {
        const float sum = widened(from[i]) + widened(to[i]);
        uint32_t bits;
        memcpy(&bits, &sum, sizeof bits);
        to[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

/* The type, MPI_DATATYPE_NULL if this MPI has none. */
static MPI_Datatype type_of(const perf_call_t *call) {
    switch (call->type->code) {
    case PERF_INT8: return MPI_INT8_T;
    case PERF_UINT8: return MPI_UINT8_T;
    case PERF_INT16: return MPI_INT16_T;
    case PERF_INT32: return MPI_INT32_T;
    case PERF_UINT32: return MPI_UINT32_T;
    case PERF_INT64: return MPI_INT64_T;
    case PERF_UINT64: return MPI_UINT64_T;
    case PERF_FLOAT32: return MPI_FLOAT;
    case PERF_FLOAT64: return MPI_DOUBLE;
    case PERF_BOOL:
    case PERF_BYTES: return MPI_BYTE;
#ifdef MPIX_BFLOAT16
    case PERF_BFLOAT16: return MPIX_BFLOAT16;
#else
    case PERF_BFLOAT16: return own.bfloat16;
#endif
#ifdef MPIX_C_FLOAT16
    case PERF_FLOAT16: return MPIX_C_FLOAT16;
#endif
    default: return call->collective->reduces ? MPI_DATATYPE_NULL : call->type->bytes == 2 ? MPI_INT16_T : MPI_BYTE;
    }
}

static int is_own(const perf_call_t *call) {
#ifdef MPIX_BFLOAT16
    (void)call;
    return 0;
#else
    return call->collective->reduces && call->type->code == PERF_BFLOAT16;
#endif
}

static MPI_Op op_of(const perf_call_t *call) {
    if (is_own(call)) return call->op == PERF_SUM ? own.sum : MPI_OP_NULL;
    switch (call->op) {
    case PERF_SUM: return MPI_SUM;
    case PERF_PROD: return MPI_PROD;
    case PERF_MAX: return MPI_MAX;
    case PERF_MIN: return MPI_MIN;
    default: return MPI_OP_NULL;
    }
}

static int my_rank, ranks;

static int pingpong(const perf_call_t *call, int count, MPI_Datatype type) {
    if (my_rank == 0) {
        MPI_Send(call->send, count, type, 1, 0, MPI_COMM_WORLD);
        MPI_Recv(call->recv, count, type, 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    } else if (my_rank == 1) {
        MPI_Recv(call->recv, count, type, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        MPI_Send(call->send, count, type, 0, 0, MPI_COMM_WORLD);
    }
    return PERF_DONE;
}

/* As pingpong, with a message for each of a dict's tensors, all of them begun at once. */
static int dict(const perf_call_t *call, MPI_Datatype type) {
    MPI_Request requests[PERF_TENSORS];
    for (int step = 0; step < 2 && my_rank < 2; step++) {
        const int sends = step == my_rank;
        for (size_t i = 0; i < PERF_TENSORS; i++) {
            const size_t first = perf_tensor_at(call->count, i), at = first * call->type->bytes;
            const int count = (int)(perf_tensor_at(call->count, i + 1) - first);
            if (sends) MPI_Isend((const char *)call->send + at, count, type, 1 - my_rank, 0, MPI_COMM_WORLD, &requests[i]);
            else MPI_Irecv((char *)call->recv + at, count, type, 1 - my_rank, 0, MPI_COMM_WORLD, &requests[i]);
        }
        MPI_Waitall(PERF_TENSORS, requests, MPI_STATUSES_IGNORE);
    }
    return PERF_DONE;
}

/* Errors end the job: MPI_ERRORS_ARE_FATAL is the default. */
static int call(void *context, const perf_call_t *call) {
    const MPI_Datatype type = type_of(call);
    const MPI_Op op = call->collective->reduces ? op_of(call) : MPI_OP_NULL;
    const int count = (int)call->count, next = (my_rank + 1) % ranks, previous = (my_rank + ranks - 1) % ranks;
    const size_t part = call->count * call->type->bytes;
    const char *send = call->send;
    char *recv = call->recv;
    const int at_root = my_rank == call->root;
    (void)context;
    if (type == MPI_DATATYPE_NULL || (call->collective->reduces && op == MPI_OP_NULL) || call->count > INT32_MAX) return PERF_UNSUPPORTED;
    switch (call->collective->code) {
    case PERF_ALL_REDUCE: MPI_Allreduce(send == recv ? MPI_IN_PLACE : send, recv, count, type, op, MPI_COMM_WORLD); break;
    case PERF_ALL_GATHER:
        MPI_Allgather(send == recv + (size_t)my_rank * part ? MPI_IN_PLACE : send, count, type, recv, count, type, MPI_COMM_WORLD);
        break;
    case PERF_REDUCE_SCATTER: /* MPI's own form in place has its result elsewhere: only out of place compares */
        if (recv == send + (size_t)my_rank * part) return PERF_UNSUPPORTED;
        MPI_Reduce_scatter_block(send, recv, count, type, op, MPI_COMM_WORLD);
        break;
    case PERF_BROADCAST: /* MPI knows it in place only; out of place the root copies, which all libraries do there */
        if (at_root && send != recv) memcpy(recv, send, part);
        MPI_Bcast(recv, count, type, call->root, MPI_COMM_WORLD);
        break;
    case PERF_REDUCE:
        MPI_Reduce(at_root && send == recv ? MPI_IN_PLACE : send, recv, count, type, op, call->root, MPI_COMM_WORLD);
        break;
    case PERF_GATHER:
        MPI_Gather(at_root && send == recv + (size_t)my_rank * part ? MPI_IN_PLACE : send, count, type, recv, count, type, call->root,
                   MPI_COMM_WORLD);
        break;
    case PERF_SCATTER:
        MPI_Scatter(send, count, type, at_root && recv == send + (size_t)my_rank * part ? MPI_IN_PLACE : recv, count, type, call->root,
                    MPI_COMM_WORLD);
        break;
    case PERF_ALL_TO_ALL: MPI_Alltoall(send, count, type, recv, count, type, MPI_COMM_WORLD); break;
    case PERF_SENDRECV:
        MPI_Sendrecv(send, count, type, next, 0, recv, count, type, previous, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        break;
    case PERF_PINGPONG: return pingpong(call, count, type);
    case PERF_DICT: return dict(call, type);
    case PERF_BARRIER: MPI_Barrier(MPI_COMM_WORLD); break;
    default: return PERF_UNSUPPORTED;
    }
    return PERF_DONE;
}

static void barrier(void *context) {
    (void)context;
    MPI_Barrier(MPI_COMM_WORLD);
}

static void max(void *context, double *values, int count) {
    (void)context;
    MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
}

static void *allocate(void *context, size_t bytes) {
    (void)context, (void)bytes;
    return NULL;
}

static void release(void *context, void *memory) { (void)context, (void)memory; }

static void served_by(void *context, const perf_call_t *call, char *text, size_t capacity) {
    (void)context;
    snprintf(text, capacity, "%s", is_own(call) ? "MPI_Op in plain C" : "MPI");
}

static const char *why(void *context) {
    (void)context;
    return "this MPI has no such type, operation or form";
}

/* Cuts what an MPI says of itself to its first sentence, with one blank between words. */
static void first_words(char *name) {
    char *to = name;
    for (const char *from = name; *from != '\0' && *from != '\n' && *from != ','; from++) {
        const int blank = *from == ' ' || *from == '\t';
        if (!blank || (to > name && to[-1] != ' ')) *to++ = blank ? ' ' : *from;
    }
    *to = '\0';
}

int main(int argc, char **argv) {
    char name[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length = 0;
    perf_options_t options;
    perf_report_t report;
    const int done = perf_parse(&options, "mpi_perf", argc, argv);
    if (done >= 0) return done;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &my_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (ranks > PERF_MAX_RANKS) MPI_Abort(MPI_COMM_WORLD, 2);
    MPI_Get_library_version(name, &length);
    first_words(name);
    MPI_Type_contiguous(2, MPI_BYTE, &own.bfloat16);
    MPI_Type_commit(&own.bfloat16);
    MPI_Op_create(add_bfloat16, 1, &own.sum);

    const perf_library_t library = {name, "mpi", my_rank, ranks, NULL, call, barrier, max, allocate, release, served_by, why};
    if (options.pin) perf_pin(my_rank);
    perf_report_begin(&report, &options, my_rank == 0);
    perf_run(&options, &library, &report);
    double failed = perf_report_end(&report, &library);
    max(NULL, &failed, 1);
    MPI_Op_free(&own.sum);
    MPI_Type_free(&own.bfloat16);
    MPI_Finalize();
    return failed > 0;
}
