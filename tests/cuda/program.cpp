// A C++ program with two ranks on one device, over tutti.hpp and the driver alone: eager calls, a capture session, and
// replays with other inputs, in sizes for each of the four algorithms. Where there is no device it says so.
// tests/cuda/programs builds and runs it.
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
// Under the plans of tests/cuda, plan.txt and shapes.txt, these reach push and pull in one and in two steps.
constexpr std::size_t kCounts[] = {256, 1000, 3000, 5000, 50'000, 200'000, 1'000'000};
// Of every replay these; the larger ones only now and then.
constexpr std::size_t kSmall = 4;
constexpr int kLargeEvery = 16;
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

/// What a rank has on the device for one size.
struct Buffer {
    std::size_t count = 0;
    std::uint64_t memory = 0;

    float *data() const { return reinterpret_cast<float *>(memory); }
};

struct Rank {
    void *stream = nullptr;
    std::vector<Buffer> buffers;
    /// A graph of the small sizes, and one of all.
    void *graphs[2] = {};

    void wait() const { cu("cuStreamSynchronize", stream); }
    void put(const Buffer &buffer, float value) const {
        const std::vector<float> values(buffer.count, value);
        copy(buffer.memory, reinterpret_cast<std::uint64_t>(values.data()), buffer);
    }
    bool holds(const Buffer &buffer, float value) const {
        std::vector<float> values(buffer.count);
        copy(reinterpret_cast<std::uint64_t>(values.data()), buffer.memory, buffer);
        return values == std::vector<float>(buffer.count, value);
    }

private:
    /// Never behind a kernel: a copy of pageable memory may keep other ranks from launching what that waits for.
    void copy(std::uint64_t to, std::uint64_t from, const Buffer &buffer) const {
        wait();
        cu("cuMemcpyAsync", to, from, buffer.count * sizeof(float), stream);
        wait();
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
        for (const std::size_t count : kCounts) {
            rank.buffers.push_back(Buffer{count});
            cu("cuMemAlloc_v2", &rank.buffers.back().memory, count * sizeof(float));
        }
    }
    const auto put = [&](std::size_t sizes, float base, float step) {
        for (int rank = 0; rank < kRanks; rank++) {
            for (std::size_t i = 0; i < sizes; i++) ranks[rank].put(ranks[rank].buffers[i], base + step * float(rank));
        }
    };
    const auto hold = [&](std::size_t sizes, float value, const char *what) {
        for (const Rank &rank : ranks) {
            for (std::size_t i = 0; i < sizes; i++) check(rank.holds(rank.buffers[i], value), what);
        }
    };
    const std::size_t all = ranks[0].buffers.size();

    put(all, 1, 1);
    for (std::size_t i = 0; i < all; i++) {
        for (int rank = 0; rank < kRanks; rank++) {
            const Buffer &buffer = ranks[rank].buffers[i];
            groups[rank].all_reduce(buffer.data(), buffer.count, tutti::Op::sum, ranks[rank].stream);
        }
    }
    hold(all, 3, "an eager call");
    std::printf("ok eager calls\n");

    std::vector<tutti::Capture> sessions;
    for (int rank = 0; rank < kRanks; rank++) {
        sessions.emplace_back(std::vector<tutti::GroupRef>{groups[rank]});
        for (int which = 0; which < 2; which++) {
            void *captured = nullptr;
            cu("cuStreamBeginCapture_v2", ranks[rank].stream, 1);
            for (int layer = 0; layer < kLayers; layer++) {
                for (std::size_t i = 0; i < (which == 0 ? kSmall : all); i++) {
                    const Buffer &buffer = ranks[rank].buffers[i];
                    groups[rank].all_reduce(buffer.data(), buffer.count, tutti::Op::avg, ranks[rank].stream);
                }
            }
            cu("cuStreamEndCapture", ranks[rank].stream, &captured);
            cu("cuGraphInstantiateWithFlags", &ranks[rank].graphs[which], captured, 0ull);
            // Before the first launch of any: an upload could wait for kernels that wait for a peer's.
            cu("cuGraphUpload", ranks[rank].graphs[which], ranks[rank].stream);
        }
        ranks[rank].wait();
    }
    std::vector<std::thread> commits;
    for (tutti::Capture &session : sessions) commits.emplace_back([&session] { session.commit(); });
    for (std::thread &commit : commits) commit.join();
    for (int replay = 0; replay < kReplays; replay++) {
        const bool large = replay % kLargeEvery == 0;
        const std::size_t sizes = large ? all : kSmall;
        put(sizes, float(replay), 2);
        for (const Rank &rank : ranks) cu("cuGraphLaunch", rank.graphs[large ? 1 : 0], rank.stream);
        hold(sizes, float(replay + 1), "a replay");
    }
    for (const tutti::Group &group : groups) check(group.check() == tutti::Status::success, "the groups live");
    std::printf("ok replays of graphs with %d layers of calls\n", kLayers);
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
