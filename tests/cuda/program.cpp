// A C++ program with two ranks on one device, over tutti.hpp and the driver alone: eager calls, a capture session, and
// replays with other inputs. Where there is no device it says so. tests/cuda/programs builds and runs it.
#include <tutti.hpp>

#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr int kRanks = 2;
constexpr int kLayers = 4;
constexpr int kReplays = 64;
constexpr std::size_t kCount = 5000;
constexpr unsigned kSkipped = 77;

[[noreturn]] void skip(const char *why) {
    std::printf("skipped: %s\n", why);
    std::exit(kSkipped);
}

void *driver() {
    static void *library = [] {
        const char *path = std::getenv("TUTTI_CUDA_LIBRARY");
        void *found = dlopen(path != nullptr ? path : "libcuda.so.1", RTLD_NOW);
        if (found == nullptr) skip(dlerror());
        return found;
    }();
    return library;
}

/// Calls a function of the driver, and ends the program if it fails.
template <class... Arguments>
void cu(const char *name, Arguments... arguments) {
    void *function = dlsym(driver(), name);
    const int code = function == nullptr ? -1 : reinterpret_cast<int (*)(Arguments...)>(function)(arguments...);
    if (code == 0) return;
    std::printf("not ok %s returned %d\n", name, code);
    std::exit(1);
}

void check(bool holds, const char *what) {
    if (holds) return;
    std::printf("not ok %s\n", what);
    std::exit(1);
}

/// What a rank has on the device.
struct Rank {
    void *stream = nullptr;
    std::uint64_t memory = 0;
    void *graph = nullptr;

    float *buffer() const { return reinterpret_cast<float *>(memory); }
    void wait() const { cu("cuStreamSynchronize", stream); }
    void put(float value) const {
        const std::vector<float> values(kCount, value);
        cu("cuMemcpyAsync", memory, reinterpret_cast<std::uint64_t>(values.data()), kCount * sizeof(float), stream);
        wait();
    }
    bool holds(float value) const {
        std::vector<float> values(kCount);
        cu("cuMemcpyAsync", reinterpret_cast<std::uint64_t>(values.data()), memory, kCount * sizeof(float), stream);
        wait();
        return values == std::vector<float>(kCount, value);
    }
};

void run() {
    void *context = nullptr;
    int device = 0;
    cu("cuDeviceGet", &device, 0);
    cu("cuDevicePrimaryCtxRetain", &context, device);
    cu("cuCtxPushCurrent_v2", context);
    const std::vector<tutti::Group> groups = tutti::local_world(kRanks, std::vector<std::int32_t>(kRanks, 0));
    std::vector<Rank> ranks(kRanks);
    for (Rank &rank : ranks) {
        cu("cuStreamCreate", &rank.stream, 1u);
        cu("cuMemAlloc_v2", &rank.memory, kCount * sizeof(float));
    }

    for (int rank = 0; rank < kRanks; rank++) ranks[rank].put(float(rank + 1));
    for (int rank = 0; rank < kRanks; rank++) {
        groups[rank].all_reduce(ranks[rank].buffer(), kCount, tutti::Op::sum, ranks[rank].stream);
    }
    for (const Rank &rank : ranks) check(rank.holds(3), "an eager call");
    std::printf("ok eager calls\n");

    std::vector<tutti::Capture> sessions;
    for (int rank = 0; rank < kRanks; rank++) {
        sessions.emplace_back(std::vector<tutti::GroupRef>{groups[rank]});
        void *captured = nullptr;
        cu("cuStreamBeginCapture_v2", ranks[rank].stream, 1);
        for (int layer = 0; layer < kLayers; layer++) {
            groups[rank].all_reduce(ranks[rank].buffer(), kCount, tutti::Op::avg, ranks[rank].stream);
        }
        cu("cuStreamEndCapture", ranks[rank].stream, &captured);
        cu("cuGraphInstantiateWithFlags", &ranks[rank].graph, captured, 0ull);
    }
    std::vector<std::thread> commits;
    for (tutti::Capture &session : sessions) commits.emplace_back([&session] { session.commit(); });
    for (std::thread &commit : commits) commit.join();
    for (int replay = 0; replay < kReplays; replay++) {
        for (int rank = 0; rank < kRanks; rank++) ranks[rank].put(float(replay + 2 * rank));
        for (const Rank &rank : ranks) cu("cuGraphLaunch", rank.graph, rank.stream);
        for (const Rank &rank : ranks) check(rank.holds(float(replay + 1)), "a replay");
    }
    for (const tutti::Group &group : groups) check(group.check() == tutti::Status::success, "the groups live");
    std::printf("ok replays of a graph with %d calls\n", kLayers);
}

}  // namespace

int main() {
    const auto init = reinterpret_cast<int (*)(unsigned)>(dlsym(driver(), "cuInit"));
    if (init == nullptr || init(0) != 0) skip("the driver sees no device");
    alarm(120);
    try {
        run();
    } catch (const std::exception &error) {
        std::printf("not ok %s\n", error.what());
        return 1;
    }
    return 0;
}
