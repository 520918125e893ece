// ccl_perf: oneCCL measured exactly as tutti-perf measures libtutti. MPI only starts its ranks, hands round its address
// and agrees on figures; Intel's mpiexec starts it.
#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <oneapi/ccl.hpp>
#include <string>
#include <vector>

#include "../../examples-c/perf/run.h"

namespace {

struct Context {
    ccl::communicator communicator;
    std::string why;
};

bool type_of(const perf_type_t *type, ccl::datatype &found) {
    switch (type->code) {
    case PERF_INT8: found = ccl::datatype::int8; return true;
    case PERF_UINT8: found = ccl::datatype::uint8; return true;
    case PERF_INT32: found = ccl::datatype::int32; return true;
    case PERF_UINT32: found = ccl::datatype::uint32; return true;
    case PERF_INT64: found = ccl::datatype::int64; return true;
    case PERF_UINT64: found = ccl::datatype::uint64; return true;
    case PERF_FLOAT16: found = ccl::datatype::float16; return true;
    case PERF_FLOAT32: found = ccl::datatype::float32; return true;
    case PERF_FLOAT64: found = ccl::datatype::float64; return true;
    case PERF_BFLOAT16: found = ccl::datatype::bfloat16; return true;
    default: return false;
    }
}

bool op_of(int op, ccl::reduction &found) {
    switch (op) {
    case PERF_SUM: found = ccl::reduction::sum; return true;
    case PERF_PROD: found = ccl::reduction::prod; return true;
    case PERF_MAX: found = ccl::reduction::max; return true;
    case PERF_MIN: found = ccl::reduction::min; return true;
    default: return false;
    }
}

int call(void *context, const perf_call_t *call) {
    auto &it = *static_cast<Context *>(context);
    ccl::datatype type = ccl::datatype::float32;
    ccl::reduction op = ccl::reduction::sum;
    if (!type_of(call->type, type) || (call->collective->reduces && !op_of(call->op, op))) return PERF_UNSUPPORTED;
    void *send = const_cast<void *>(call->send);
    const std::vector<size_t> counts(call->collective->code == PERF_ALL_GATHER ? static_cast<size_t>(it.communicator.size()) : 0, call->count);
    switch (call->collective->code) {
    case PERF_ALL_REDUCE: ccl::allreduce(send, call->recv, call->count, type, op, it.communicator).wait(); break;
    case PERF_ALL_GATHER: ccl::allgatherv(send, call->count, call->recv, counts, type, it.communicator).wait(); break;
    case PERF_REDUCE_SCATTER: ccl::reduce_scatter(send, call->recv, call->count, type, op, it.communicator).wait(); break;
    case PERF_ALL_TO_ALL: ccl::alltoall(send, call->recv, call->count, type, it.communicator).wait(); break;
    case PERF_BROADCAST:
        if (it.communicator.rank() == call->root && send != call->recv) __builtin_memcpy(call->recv, send, call->count * call->type->bytes);
        ccl::broadcast(call->recv, call->count, type, call->root, it.communicator).wait();
        break;
    case PERF_BARRIER: ccl::barrier(it.communicator).wait(); break;
    default: return PERF_UNSUPPORTED;
    }
    return PERF_DONE;
}

void barrier(void *) { MPI_Barrier(MPI_COMM_WORLD); }
void max(void *, double *values, int count) { MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD); }
void *allocate(void *, size_t) { return nullptr; }
void release(void *, void *) {}
void served_by(void *, const perf_call_t *, char *text, size_t capacity) { std::snprintf(text, capacity, "oneCCL"); }
const char *why(void *) { return "oneCCL has no such collective, type or operation here"; }

int run(const perf_options_t &options) {
    int rank = 0, size = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    ccl::init();
    ccl::shared_ptr_class<ccl::kvs> store;
    ccl::kvs::address_type address;
    if (rank == 0) {
        store = ccl::create_main_kvs();
        address = store->get_address();
    }
    MPI_Bcast(address.data(), static_cast<int>(address.size()), MPI_BYTE, 0, MPI_COMM_WORLD);
    if (rank != 0) store = ccl::create_kvs(address);
    Context context{ccl::create_communicator(size, rank, store), ""};
    const auto version = ccl::get_library_version();
    const std::string name = "oneCCL " + std::to_string(version.major) + "." + std::to_string(version.minor) + "." + std::to_string(version.update);
    const perf_library_t library = {name.c_str(), "ccl", rank, size, &context, call, barrier, max, allocate, release, served_by, why};
    perf_report_t report;
    if (options.pin) perf_pin(rank);
    perf_report_begin(&report, &options, rank == 0);
    perf_run(&options, &library, &report);
    double failed = perf_report_end(&report, &library);
    max(nullptr, &failed, 1);
    return failed > 0;
}

} // namespace

int main(int argc, char **argv) {
    perf_options_t options;
    const int done = perf_parse(&options, "ccl_perf", argc, argv);
    if (done >= 0) return done;
    MPI_Init(&argc, &argv);
    int status = 1;
    try {
        status = run(options);
    } catch (const std::exception &problem) {
        std::fprintf(stderr, "ccl_perf: %s\n", problem.what());
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    MPI_Finalize();
    return status;
}
