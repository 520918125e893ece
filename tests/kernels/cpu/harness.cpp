// Runs the kernels on the processor and checks what they promise; see the names of the tests. One line for each test
// and one exit code for all: 0 if every promise was kept.
//
//   harness threads|fibers <seed> [text that the names of the wanted tests contain]

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>

#include "machine.h"
#include "params.h"
#include "reference.h"

using namespace tutti;
using reference::Type;

#define REDUCING(type)                                               \
    extern "C" void all_reduce_push_one_shot_##type(const Params&); \
    extern "C" void all_reduce_push_two_shot_##type(const Params&); \
    extern "C" void all_reduce_pull_one_shot_##type(const Params&); \
    extern "C" void all_reduce_pull_two_shot_##type(const Params&); \
    extern "C" void reduce_scatter_push_##type(const Params&);      \
    extern "C" void reduce_scatter_pull_##type(const Params&);
REDUCING(float32)
#if !defined(TUTTI_FEW_TYPES)
REDUCING(float16)
REDUCING(bfloat16)
REDUCING(int8)
REDUCING(int32)
REDUCING(int64)
#endif
extern "C" void all_gather_push(const Params&);
extern "C" void all_gather_pull(const Params&);
extern "C" void broadcast_push(const Params&);
extern "C" void broadcast_pull(const Params&);

namespace {

/// A test that takes longer hangs.
constexpr unsigned kWatchdogSeconds = 280;
constexpr u64 kLongNs = 3'600'000'000'000;

enum Collective { kAllReduce, kReduceScatter, kAllGather, kBroadcast };
enum Way { kPushOneShot, kPushTwoShot, kPullOneShot, kPullTwoShot };

struct Kernel {
    const char* name;
    void (*function)(const Params&);
    Collective collective;
    Way way;
    Type type;
};

/// `entry`: the type in the kernel's name, as signed and unsigned integers share theirs.
#define REDUCING_ROWS(name, entry, type)                                                                    \
    {"all_reduce_push_one_shot_" #name, all_reduce_push_one_shot_##entry, kAllReduce, kPushOneShot, type}, \
    {"all_reduce_push_two_shot_" #name, all_reduce_push_two_shot_##entry, kAllReduce, kPushTwoShot, type}, \
    {"all_reduce_pull_one_shot_" #name, all_reduce_pull_one_shot_##entry, kAllReduce, kPullOneShot, type}, \
    {"all_reduce_pull_two_shot_" #name, all_reduce_pull_two_shot_##entry, kAllReduce, kPullTwoShot, type}, \
    {"reduce_scatter_push_" #name, reduce_scatter_push_##entry, kReduceScatter, kPushOneShot, type},       \
    {"reduce_scatter_pull_" #name, reduce_scatter_pull_##entry, kReduceScatter, kPullOneShot, type},

const Kernel kKernels[] = {
    REDUCING_ROWS(float32, float32, reference::kFloat32)
#if !defined(TUTTI_FEW_TYPES)
    REDUCING_ROWS(float16, float16, reference::kFloat16)
    REDUCING_ROWS(bfloat16, bfloat16, reference::kBfloat16)
    REDUCING_ROWS(int8, int8, reference::kInt8)
    REDUCING_ROWS(uint8, int8, reference::kUint8)
    REDUCING_ROWS(int32, int32, reference::kInt32)
    REDUCING_ROWS(uint32, int32, reference::kUint32)
    REDUCING_ROWS(int64, int64, reference::kInt64)
    REDUCING_ROWS(uint64, int64, reference::kUint64)
#endif
    {"all_gather_push", all_gather_push, kAllGather, kPushOneShot, reference::kUint8},
    {"all_gather_pull", all_gather_pull, kAllGather, kPullOneShot, reference::kUint8},
    {"broadcast_push", broadcast_push, kBroadcast, kPushOneShot, reference::kUint8},
    {"broadcast_pull", broadcast_pull, kBroadcast, kPullOneShot, reference::kUint8},
};

const Kernel& kernel(const std::string& name) {
    for (const Kernel& one : kKernels) {
        if (name == one.name) return one;
    }
    abort();
}

machine::Lanes lanes;
u64 seed;
const char* test_name = "";
std::atomic<u32> mistakes{0};

template <class... Values>
void mistake(const char* format, Values... values) {
    if (mistakes.fetch_add(1) >= 5) return;
    printf("  %s: ", test_name);
    printf(format, values...);
    printf("\n");
    fflush(stdout);
}

/// A number that looks random and depends on nothing but the arguments.
u64 mix(u64 a, u64 b = 0, u64 c = 0, u64 d = 0) {
    u64 z = a * 0x9e3779b97f4a7c15 + b * 0xbf58476d1ce4e5b9 + c * 0x94d049bb133111eb + d * 0xd6e8feb86659fd93;
    for (int i = 0; i < 2; i++) {
        z = (z ^ z >> 32) * 0xd6e8feb86659fd93;
        z ^= z >> 29;
    }
    return z;
}

/// Memory as the host gives it to the kernels: zeroed, aligned to 256 bytes, exactly as long as asked for.
class Memory {
   public:
    explicit Memory(u64 bytes) : bytes_(static_cast<u8*>(aligned_alloc(256, (bytes + 255) / 256 * 256))) {
        std::memset(bytes_, 0, (bytes + 255) / 256 * 256);
    }
    ~Memory() { free(bytes_); }
    Memory(const Memory&) = delete;
    u64 at() const { return reinterpret_cast<u64>(bytes_); }
    template <class T>
    T* as() const { return reinterpret_cast<T*>(bytes_); }

   private:
    u8* bytes_;
};

/// A group of ranks: what the host would allocate and map.
struct Group {
    u32 world, blocks, threads, push_vectors, stage_vectors, slots;
    u64 push_at, stage_at, timeout_ns = kLongNs;
    std::deque<Memory> arenas, states, reports, tables;

    Group(u32 world, u32 blocks, u32 threads, u32 push_vectors, u32 stage_vectors, u32 slots = 512)
        : world(world), blocks(blocks), threads(threads), push_vectors(push_vectors), stage_vectors(stage_vectors),
          slots(slots) {
        push_at = sizeof(Arena) + u64(blocks) * 2 * sizeof(Board);
        stage_at = push_at + u64(blocks) * 2 * world * 2 * push_vectors * sizeof(Line);
        for (u32 rank = 0; rank < world; rank++) {
            arenas.emplace_back(stage_at + u64(blocks) * 2 * stage_vectors * kVectorBytes);
            states.emplace_back(sizeof(State) + blocks * sizeof(Turn));
            reports.emplace_back(sizeof(Report));
            tables.emplace_back(u64(slots) * kMaxWorld * sizeof(u64));
        }
    }

    Params params(u32 rank) const {
        Params params{};
        for (u32 peer = 0; peer < world; peer++) params.arena[peer] = arenas[peer].at();
        params.state = states[rank].at();
        params.report = reports[rank].at();
        params.table = tables[rank].at();
        params.timeout_ns = timeout_ns;
        params.push_at = push_at;
        params.stage_at = stage_at;
        params.rank = rank;
        params.world = world;
        params.group = 77;
        params.push_vectors = push_vectors;
        params.stage_vectors = stage_vectors;
        params.blocks = blocks;
        return params;
    }
    Report* report(u32 rank) const { return reports[rank].as<Report>(); }
    Turn* turns(u32 rank) const { return reinterpret_cast<Turn*>(states[rank].at() + sizeof(State)); }

    /// The buffer `slot` of `owner`, known to all ranks.
    void enter_in_tables(u32 slot, u32 owner, u64 base) {
        for (u32 rank = 0; rank < world; rank++) tables[rank].as<u64>()[u64(slot) * kMaxWorld + owner] = base;
    }
    bool nobody_failed() const {
        for (u32 rank = 0; rank < world; rank++) {
            if (report(rank)->written != 0) return false;
        }
        return true;
    }
};

/// What is called, alike on all ranks.
struct Shape {
    const Kernel* kernel;
    u32 op = kSum;
    u64 count = 0;  // elements, in the unit of the collective
    u32 grid = 1;
    u32 root = 0;
};

/// One call with its buffers on all ranks; as in a graph, it may run many times. Inputs differ each time.
class Call {
   public:
    /// `slot`: 0, or the first of 2 * world slots where buffers are registered on some ranks; `kind` decides which
    /// ranks work in place, misaligned or registered.
    Call(Group& group, const Shape& shape, u64 kind, u32 slot) : group_(group), shape_(shape), kind_(kind) {
        const u64 bytes = shape.count * reference::size_of(shape.kernel->type);
        const bool many_in = shape.kernel->collective == kReduceScatter;
        const bool many_out = shape.kernel->collective == kAllGather;
        send_bytes_ = many_in ? bytes * group.world : bytes;
        recv_bytes_ = many_out ? bytes * group.world : bytes;
        // A broadcast or a reduction in place is in place on every rank or on any of them: it is each rank's own matter.
        for (u32 rank = 0; rank < group.world; rank++) {
            Rank one;
            one.in_place = mix(kind, rank, 1) % 3 == 0;
            one.shift = mix(kind, rank, 2) % 3 == 0 ? mix(kind, rank, 3) % 16 : 0;
            one.recv_shift = mix(kind, rank, 4) % 3 == 0 ? mix(kind, rank, 5) % 16 : 0;
            if (mix(kind, rank, 6) % 2 == 0) {  // more often in whole elements, as frameworks do
                one.shift -= one.shift % reference::size_of(shape.kernel->type);
                one.recv_shift -= one.recv_shift % reference::size_of(shape.kernel->type);
            }
            const u64 room = std::max(send_bytes_, recv_bytes_) + 16 + kGuard;
            one.send_memory = std::make_unique<Memory>(room);
            one.recv_memory = std::make_unique<Memory>(room);
            one.recv = one.recv_memory->at() + one.recv_shift;
            one.send = one.in_place ? one.recv : one.send_memory->at() + one.shift;
            if (one.in_place && many_in) one.recv = one.send + rank * bytes;
            if (one.in_place && many_out) one.send = one.recv + rank * bytes;
            if (slot != 0) {
                const u64 send_base = one.in_place ? one.recv_memory->at() : one.send_memory->at();
                if (mix(kind, rank, 7) % 2 == 0) {
                    one.send_at = u64(slot + rank) << kLocationSlotShift | (one.send - send_base);
                    registrations_.push_back({slot + rank, rank, send_base});
                }
                if (mix(kind, rank, 8) % 2 == 0) {
                    const u32 other = slot + group.world + rank;
                    one.recv_at = u64(other) << kLocationSlotShift | (one.recv - one.recv_memory->at());
                    registrations_.push_back({other, rank, one.recv_memory->at()});
                }
            }
            ranks_.push_back(std::move(one));
        }
    }

    /// Makes the registered buffers known; before that, the same launches use the stage.
    void register_buffers() {
        for (const Registration& one : registrations_) group_.enter_in_tables(one.slot, one.owner, one.base);
    }

    /// One launch on `rank`; `turn` tells the runs of this call apart.
    machine::Launch launch(u32 rank, u64 turn) {
        machine::Launch launch;
        Params params = group_.params(rank);
        params.send = ranks_[rank].send;
        params.recv = ranks_[rank].recv;
        params.bytes = params.stride = shape_.count * reference::size_of(shape_.kernel->type);
        params.send_at = ranks_[rank].send_at;
        params.recv_at = ranks_[rank].recv_at;
        const bool is_unsigned = !reference::is_float(shape_.kernel->type) && !reference::is_signed(shape_.kernel->type);
        params.op = shape_.op | (is_unsigned ? kUnsigned : 0);
        params.root = shape_.root;
        launch.kernel = [function = shape_.kernel->function, params] { function(params); };
        launch.blocks = shape_.grid;
        launch.before = [this, rank, turn] { fill(rank, turn); };
        launch.after = [this, rank, turn] { check(rank, turn); };
        return launch;
    }

    /// What `launch` does before the kernel, for launches that do more.
    void fill_now(u32 rank, u64 turn) { fill(rank, turn); }

    /// Whether the result of `rank` is still what `fill` left there.
    bool untouched(u32 rank) const {
        const Rank& one = ranks_[rank];
        if (one.in_place) return true;
        for (u64 i = 0; i < recv_bytes_; i++) {
            if (*reinterpret_cast<u8*>(one.recv + i) != kCanary) return false;
        }
        return true;
    }

   private:
    static constexpr u64 kGuard = 32;
    static constexpr u8 kCanary = 0xa5;

    struct Rank {
        std::unique_ptr<Memory> send_memory, recv_memory;
        u64 send, recv, shift, recv_shift;
        Location send_at = 0, recv_at = 0;
        bool in_place;
    };
    struct Registration {
        u32 slot, owner;
        u64 base;
    };

    u64 input(u32 rank, u64 turn, u64 index) const {
        return reference::element(shape_.kernel->type, mix(kind_ ^ turn << 32, rank, index, seed));
    }
    static void put(u64 at, u64 value, u32 size) { std::memcpy(reinterpret_cast<void*>(at), &value, size); }
    static u64 get(u64 at, u32 size) {
        u64 value = 0;
        std::memcpy(&value, reinterpret_cast<void*>(at), size);
        return value;
    }

    void fill(u32 rank, u64 turn) {
        Rank& one = ranks_[rank];
        const u32 size = reference::size_of(shape_.kernel->type);
        std::memset(one.recv_memory->as<u8>(), kCanary, one.recv_shift + std::max(send_bytes_, recv_bytes_) + kGuard);
        for (u64 i = 0; i < send_bytes_ / size; i++) put(one.send + i * size, input(rank, turn, i), size);
    }

    void check(u32 rank, u64 turn) {
        const Rank& one = ranks_[rank];
        const Type type = shape_.kernel->type;
        const u32 size = reference::size_of(type);
        if (group_.report(rank)->written != 0) {
            return mistake("%s of %llu in run %llu: rank %u reports failure %u, missing %x", shape_.kernel->name,
                           (unsigned long long)shape_.count, (unsigned long long)turn, rank, group_.report(rank)->kind,
                           group_.report(rank)->missing);
        }
        for (u64 i = 0; i < recv_bytes_ / size; i++) {
            const u64 want = expected(rank, turn, i), got = get(one.recv + i * size, size);
            if (reference::same(type, want, got)) continue;
            return mistake("%s op %u of %llu x world %u in run %llu, grid %u: rank %u has %llx at %llu, not %llx",
                           shape_.kernel->name, shape_.op, (unsigned long long)shape_.count, group_.world,
                           (unsigned long long)turn, shape_.grid, rank, (unsigned long long)got,
                           (unsigned long long)i, (unsigned long long)want);
        }
        // Nothing behind the result, and nothing in front of it.
        const u64 begin = one.recv_memory->at();
        const u64 low = one.in_place && shape_.kernel->collective == kReduceScatter ? one.send : one.recv;
        const u64 high = low + (one.in_place ? std::max(send_bytes_, recv_bytes_) : recv_bytes_);
        for (u64 at = begin; at < begin + one.recv_shift + std::max(send_bytes_, recv_bytes_) + kGuard; at++) {
            if ((at < low || at >= high) && *reinterpret_cast<u8*>(at) != kCanary) {
                return mistake("%s of %llu: rank %u wrote outside of its result", shape_.kernel->name,
                               (unsigned long long)shape_.count, rank);
            }
        }
        if (one.in_place) return;
        for (u64 i = 0; i < send_bytes_ / size; i++) {
            if (get(one.send + i * size, size) == input(rank, turn, i)) continue;
            return mistake("%s: rank %u changed its input", shape_.kernel->name, rank);
        }
    }

    u64 expected(u32 rank, u64 turn, u64 i) const {
        if (shape_.kernel->collective == kAllGather) {
            return shape_.count == 0 ? 0 : input(u32(i / shape_.count), turn, i % shape_.count);
        }
        if (shape_.kernel->collective == kBroadcast) return input(shape_.root, turn, i);
        const u64 index = shape_.kernel->collective == kReduceScatter ? rank * shape_.count + i : i;
        std::vector<u64> values;
        for (u32 peer = 0; peer < group_.world; peer++) values.push_back(input(peer, turn, index));
        return reference::reduce(shape_.kernel->type, shape_.op, values);
    }

    Group& group_;
    const Shape shape_;
    const u64 kind_;
    u64 send_bytes_, recv_bytes_;
    std::vector<Rank> ranks_;
    std::vector<Registration> registrations_;
};

/// Elements of a call that a group of this size can stage and push in so many blocks.
u64 largest(const Group& group, const Kernel& kernel, u32 grid) {
    u64 vectors = kernel.way == kPullOneShot || kernel.way == kPullTwoShot ? group.stage_vectors : group.push_vectors;
    if (kernel.collective == kReduceScatter && kernel.way == kPullOneShot) vectors /= group.world;
    if (kernel.way == kPushTwoShot) vectors = vectors / 2 * group.world;
    if (kernel.way == kPullTwoShot) vectors = vectors / group.world * group.world;
    return vectors * grid * kVectorBytes / reference::size_of(kernel.type);
}

Shape random_shape(const Group& group, const Kernel& kernel, u64 random) {
    Shape shape;
    const u32 ops[] = {kSum, kMax, kMin, kAvg};
    shape.kernel = &kernel;
    shape.op = ops[mix(random, 1) % 4];
    shape.grid = 1 + u32(mix(random, 2) % group.blocks);
    shape.root = u32(mix(random, 3) % group.world);
    const u64 most = largest(group, kernel, shape.grid);
    // Few elements, up to a few vectors for each thread, and as many as fit.
    const u64 some = mix(random, 4) % 4 == 0 ? most : most / (1 + mix(random, 5) % 16);
    shape.count = mix(random, 6) % 5 == 0 ? mix(random, 7) % 9 : some - mix(random, 8) % std::min<u64>(some, 5);
    return shape;
}

/// Runs the calls in `order` on every rank, each rank at its own pace.
///
/// No rank may end a call before all others have begun it: that is what the protocol promises, and with it, that what a
/// rank read in the call before is not needed any more. The machine adds that a launch begins when the one before it on
/// its stream is complete. Both are made known to ThreadSanitizer here, call by call and not more, because words that
/// carry payload are relaxed and order nothing by themselves.
void play(Group& group, std::deque<Call>& calls, const std::vector<u32>& order, u64 first_turn = 0) {
    std::vector<std::atomic<bool>> began(order.size() * group.world);
    std::vector<machine::Stream> streams(group.world);
    for (u32 rank = 0; rank < group.world; rank++) {
        streams[rank].threads = group.threads;
        for (size_t i = 0; i < order.size(); i++) {
            machine::Launch launch = calls[order[i]].launch(rank, first_turn + i);
            std::atomic<bool>* all = &began[i * group.world];
            launch.before = [before = launch.before, all, rank] {
                before();
                all[rank].store(true, std::memory_order_release);
            };
            launch.after = [after = launch.after, all, rank, world = group.world, i] {
                for (u32 peer = 0; peer < world; peer++) {
                    if (all[peer].load(std::memory_order_acquire)) continue;
                    mistake("rank %u ended run %zu before rank %u began it", rank, i, peer);
                }
                after();
            };
            streams[rank].launches.push_back(std::move(launch));
        }
    }
    machine::run(streams, lanes, mix(seed, first_turn));
}

Group group_of(u32 world) { return Group(world, world > 8 ? 1 : 2, world > 4 ? world : 4, 64, 16 * world); }

void every_kernel_gives_the_right_bits(u32 world) {
    for (const Kernel& one : kKernels) {
        Group group = group_of(world);
        std::deque<Call> calls;
        std::vector<u32> order;
        const u32 variants = one.collective == kAllReduce ? 4 : 3;
        for (u32 i = 0; i < variants; i++) {
            Shape shape = random_shape(group, one, mix(seed, u64(&one - kKernels), world, i));
            const u32 ops[] = {kSum, kMax, kMin, kAvg};
            shape.op = ops[(i + u64(&one - kKernels)) % 4];
            calls.emplace_back(group, shape, mix(seed, world, u64(&one - kKernels), 100 + i), 1 + i * 2 * world);
            if (i % 2 == 0) calls.back().register_buffers();
            order.push_back(i);
        }
        play(group, calls, order);
    }
}

void calls_of_all_kinds_and_sizes_may_follow_each_other(u32 world) {
    Group group = group_of(world);
    std::deque<Call> calls;
    std::vector<u32> order;
    const u32 kinds = 12, length = 36;
    for (u32 i = 0; i < kinds; i++) {
        const Kernel& one = kKernels[mix(seed, world, i, 9) % std::size(kKernels)];
        calls.emplace_back(group, random_shape(group, one, mix(seed, world, i, 10)), mix(seed, world, i, 11),
                           mix(seed, i) % 2 == 0 ? 1 + i * 2 * world : 0);
        calls.back().register_buffers();
    }
    for (u32 i = 0; i < length; i++) order.push_back(u32(mix(seed, world, i, 12) % kinds));
    play(group, calls, order);
}

/// Two "graphs", one of small and one of large calls, replayed in turns with eager calls in between.
void two_graphs_of_different_sizes_may_alternate(u32 world) {
    Group group = group_of(world);
    std::deque<Call> calls;
    std::vector<u32> graphs[2];
    for (u32 graph = 0; graph < 2; graph++) {
        for (u32 i = 0; i < 4; i++) {
            const Kernel& one = kKernels[(i + graph) % 4];
            Shape shape;
            shape.kernel = &one;
            shape.grid = graph == 0 ? 1 : group.blocks;
            shape.count = graph == 0 ? 3 + i : largest(group, one, shape.grid) - i;
            graphs[graph].push_back(u32(calls.size()));
            calls.emplace_back(group, shape, mix(seed, world, graph, i + 20), 0);
        }
    }
    std::vector<u32> order;
    for (const u32 graph : {0, 1, 0, 0, 1, 1, 0, 1}) {
        order.insert(order.end(), graphs[graph].begin(), graphs[graph].end());
        if (graph == 1) order.push_back(graphs[0][1]);
    }
    play(group, calls, order);
}

/// The counter wraps while the memory holds words that the same epochs left there 2^32 calls ago. Until the wrap the
/// calls are small and leave most of those alone; after it, all are looked at.
void the_epoch_may_wrap(u32 world) {
    Group group = group_of(world);
    std::deque<Call> calls;
    for (u32 rank = 0; rank < world; rank++) {
        for (u32 block = 0; block < group.blocks; block++) {
            group.turns(rank)[block].word = 0xfffffffbu;
            for (u32 parity = 0; parity < 2; parity++) {
                const u64 stale = u64(2 + parity) << 32;  // the first epoch of this parity after the wrap
                Board* board = reinterpret_cast<Board*>(group.arenas[rank].at() + sizeof(Arena)) + 2 * block + parity;
                for (auto& phase : board->where) {
                    for (Line& line : phase) line = Line{stale, stale};
                }
                for (u32& done : board->done) done = u32(stale >> 32);
                const u64 lines = u64(world) * 2 * group.push_vectors;
                Line* slots = reinterpret_cast<Line*>(group.arenas[rank].at() + group.push_at) +
                              (2 * block + parity) * lines;
                for (u64 i = 0; i < lines; i++) slots[i] = Line{stale | 0xbad1, stale | 0xbad2};
            }
        }
    }
    // Small and large calls of the four kernels; the wrap is between the fourth and the fifth.
    for (const bool large : {false, true}) {
        for (u32 i = 0; i < 4; i++) {
            Shape shape;
            shape.kernel = &kKernels[i];
            shape.grid = group.blocks;
            shape.count = large ? largest(group, *shape.kernel, shape.grid) : 9;
            calls.emplace_back(group, shape, mix(seed, world, i, 30 + large), large ? 1 + i * 2 * world : 0);
            calls.back().register_buffers();
        }
    }
    std::vector<u32> order = {0, 1, 0, 1};
    for (u32 i = 0; i < 8; i++) order.push_back(4 + (i + u32(seed)) % 4);
    play(group, calls, order);
    for (u32 rank = 0; rank < world; rank++) {
        const u64 word = group.turns(rank)[0].word;
        if (word != 9) mistake("the epoch of rank %u is %llx", rank, (unsigned long long)word);
    }
}

void buffers_may_be_registered_between_two_replays(u32 world) {
    Group group = group_of(world);
    std::deque<Call> calls;
    const char* names[] = {"all_reduce_pull_one_shot_float32", "all_reduce_pull_two_shot_float32",
                           "reduce_scatter_pull_float32", "all_gather_pull", "broadcast_pull"};
    std::vector<u32> order;
    for (u32 i = 0; i < std::size(names); i++) {
        calls.emplace_back(group, random_shape(group, kernel(names[i]), mix(seed, world, i, 40)),
                           mix(seed, world, i, 41), 1 + i * 2 * world);
        order.push_back(i);
    }
    play(group, calls, order);
    for (Call& call : calls) call.register_buffers();
    order.insert(order.end(), order.begin(), order.end());
    play(group, calls, order, 1000);
}

/// Everybody who is there is told, in bounded time, who is not; so is a rank that comes later, at its first look.
void a_rank_that_never_arrives_is_named(u32 world) {
    for (const Kernel& one : kKernels) {
        if (one.type != reference::kFloat32 && one.type != reference::kUint8) continue;
        Group group = group_of(world);
        group.timeout_ns = lanes == machine::Lanes::kFibers ? 2'000'000 : 1'000'000'000;
        const u32 missing = u32(mix(seed, world, u64(&one - kKernels)) % world);
        Shape shape;
        shape.kernel = &one;
        shape.count = largest(group, one, 1) / 2;
        shape.root = missing;
        std::deque<Call> calls;
        for (u32 i = 0; i < 3; i++) calls.emplace_back(group, shape, mix(seed, world, i, 50), 0);
        const auto stream = [&](u32 rank, u32 first) {
            machine::Stream stream{{}, group.threads};
            for (u32 i = first; i < 3; i++) {
                stream.launches.push_back(calls[i].launch(rank, i));
                stream.launches.back().after = nullptr;
            }
            return stream;
        };
        // The first call goes well for all; the second is the one that fails.
        std::vector<machine::Stream> streams;
        for (u32 rank = 0; rank < world; rank++) {
            streams.push_back(stream(rank, 0));
            if (rank == missing) streams.back().launches.resize(1);
        }
        machine::run(streams, lanes, seed);
        for (u32 rank = 0; rank < world; rank++) {
            const Report& report = *group.report(rank);
            if (rank == missing) continue;
            if (report.written == 0 || report.kind != kTimeout || report.group != 77 || report.sequence != 2 ||
                (report.missing >> missing & 1) == 0) {
                mistake("%s: rank %u reports kind %u, group %u, sequence %u, missing %x; it was rank %u", one.name, rank,
                        report.kind, report.group, report.sequence, report.missing, missing);
            }
            if (!calls[2].untouched(rank)) mistake("%s: rank %u went on after the failure", one.name, rank);
        }
        group.timeout_ns = kLongNs;
        streams.clear();
        for (u32 rank = 0; rank < world; rank++) streams.push_back(stream(rank, rank == missing ? 1 : 2));
        machine::run(streams, lanes, seed);
        if (group.report(missing)->kind != kTimeout || (group.report(missing)->missing >> missing & 1) == 0) {
            mistake("%s: the late rank was not told", one.name);
        }
        if (!calls[1].untouched(missing)) mistake("%s: the late rank went on", one.name);
    }
}

void an_abort_ends_every_wait(u32 world) {
    for (const char* name : {"all_reduce_push_one_shot_float32", "all_reduce_pull_two_shot_float32", "broadcast_pull"}) {
        Group group = group_of(world);
        Shape shape;
        shape.kernel = &kernel(name);
        shape.count = 9;
        std::deque<Call> calls;
        calls.emplace_back(group, shape, mix(seed, world, 60), 0);
        std::vector<machine::Stream> streams;
        for (u32 rank = 0; rank + 1 < world; rank++) {  // the last one never comes
            streams.push_back({{calls[0].launch(rank, 0)}, group.threads});
            streams.back().launches[0].after = nullptr;
        }
        __atomic_store_n(&group.report(0)->orders, kStop, __ATOMIC_RELAXED);
        machine::run(streams, lanes, seed);
        for (u32 rank = 0; rank + 1 < world; rank++) {
            if (group.report(rank)->kind != kAborted || group.report(rank)->reporter != 0) {
                mistake("%s: rank %u reports kind %u from rank %u", name, rank, group.report(rank)->kind,
                        group.report(rank)->reporter);
            }
        }
    }
}

/// What a rank sent before it went is used, however long the others have known that it is gone; the first call for
/// which it sends nothing names it, long before the deadline.
void a_rank_that_is_gone_is_named_once_it_is_missed(u32 world) {
    for (const Kernel& one : kKernels) {
        if (one.type != reference::kFloat32 && one.type != reference::kUint8) continue;
        Group group = group_of(world);
        const u32 gone = u32(mix(seed, world, u64(&one - kKernels), 80) % world);
        Shape shape;
        shape.kernel = &one;
        shape.count = largest(group, one, 1) / 2;
        shape.root = gone;
        std::deque<Call> calls;
        for (u32 i = 0; i < 2; i++) calls.emplace_back(group, shape, mix(seed, world, i, 81), 0);
        // The first call goes well, although one rank is slow and not the one that is gone.
        std::vector<machine::Stream> streams;
        const u32 slow = (gone + 1) % world;
        const auto tell_the_others = [&, gone] {
            for (u32 other = 0; other < world; other++) {
                if (other != gone) __atomic_store_n(&group.report(other)->orders, u64(1) << gone, __ATOMIC_RELAXED);
            }
        };
        const auto pass_time = [] {
            const u64 end = machine::clock_ns() + 2'500'000;
            while (machine::clock_ns() < end) machine::let_others_run();
        };
        for (u32 rank = 0; rank < world; rank++) {
            streams.push_back({{calls[0].launch(rank, 0)}, group.threads});
            if (rank == slow && world > 2) streams.back().launches[0].before = [&, rank] {
                // The others hear of it while they wait for the slow one. By then the one that goes has sent what it can:
                // sure on fibers, whose clock goes as fast as they do; threads hear of it below.
                pass_time();
                if (lanes == machine::Lanes::kFibers) tell_the_others();
                pass_time();
                calls[0].fill_now(rank, 0);
            };
            if (rank == gone) {
                auto done = streams.back().launches[0].after;
                streams.back().launches[0].after = [&, done] {
                    if (done) done();
                    tell_the_others();
                };
                continue;
            }
            streams.back().launches.push_back(calls[1].launch(rank, 1));
            streams.back().launches[1].after = nullptr;
        }
        machine::run(streams, lanes, seed);
        for (u32 rank = 0; rank < world; rank++) {
            const Report& report = *group.report(rank);
            if (rank == gone || (report.written != 0 && report.kind == kGone && report.missing == 1u << gone &&
                                 report.sequence == 2)) {
                continue;
            }
            mistake("%s: rank %u reports kind %u, missing %x in call %u; rank %u is gone", one.name, rank, report.kind,
                    report.missing, report.sequence, gone);
        }
    }
}

/// What was queued behind a call that failed returns at its first look: eighty calls together within 10 ms.
void queued_calls_of_a_failed_group_end_at_once(u32 world) {
    const Kernel& one = kernel("all_reduce_push_two_shot_float32");
    Group group = group_of(world);
    Shape shape;
    shape.kernel = &one;
    shape.grid = group.blocks;
    shape.count = largest(group, one, shape.grid);
    Call call(group, shape, mix(seed, world, 90), 0);
    machine::Stream stream{{}, group.threads};
    __atomic_store_n(&group.report(0)->orders, kStop, __ATOMIC_RELAXED);
    u64 failed = 0, ended = 0;
    for (u32 i = 0; i < 81; i++) {
        stream.launches.push_back(call.launch(0, i));
        stream.launches.back().after = nullptr;
    }
    stream.launches[0].after = [&] { failed = machine::clock_ns(); };
    stream.launches[80].after = [&] { ended = machine::clock_ns(); };
    std::vector<machine::Stream> streams{stream};
    machine::run(streams, lanes, seed);
    if (group.report(0)->kind != kAborted) mistake("kind %u is reported", group.report(0)->kind);
    // Threads of a busy machine are not timed; the scheduler's own clock is, at 50 ns for each step of a lane.
    if (lanes == machine::Lanes::kFibers && ended - failed > 10'000'000) {
        mistake("80 queued calls took %llu ns", (unsigned long long)(ended - failed));
    }
}

/// Two kernels of one group at once on one rank, which waits for its peers in both.
void overlapping_kernels_of_a_group_are_caught(u32 world) {
    for (const Kernel& one : kKernels) {
        if (one.type != reference::kFloat32 && one.type != reference::kUint8) continue;
        Group group = group_of(world);
        Shape shape;
        shape.kernel = &one;
        shape.count = 40;
        std::deque<Call> calls;
        calls.emplace_back(group, shape, 0, 0);
        calls.emplace_back(group, shape, 1, 0);
        std::vector<machine::Stream> streams;
        for (u32 i = 0; i < 2; i++) {
            streams.push_back({{calls[i].launch(0, 0)}, group.threads});
            streams.back().launches[0].after = nullptr;
        }
        machine::run(streams, lanes, seed);
        const Report& report = *group.report(0);
        if (report.kind != kOverlap || report.missing != 1 || report.reporter != 0) {
            mistake("%s: the report says kind %u, rank mask %x", one.name, report.kind, report.missing);
        }
    }
}

void a_call_that_does_not_fit_is_refused(u32 world) {
    for (const Kernel& one : kKernels) {
        Group group = group_of(world);
        Shape shape;
        shape.kernel = &one;
        if (mix(seed, u64(&one - kKernels)) % 2 == 0) {
            shape.count = largest(group, one, 1) + 1;
        } else {
            shape.grid = group.blocks + 1;  // more blocks than the arena has room for
            shape.count = 9;
        }
        std::deque<Call> calls;
        calls.emplace_back(group, shape, mix(seed, world, 70), 0);
        std::vector<machine::Stream> streams;
        for (u32 rank = 0; rank < world; rank++) {
            streams.push_back({{calls[0].launch(rank, 0)}, group.threads});
            streams.back().launches[0].after = nullptr;
        }
        machine::run(streams, lanes, seed);
        for (u32 rank = 0; rank < world; rank++) {
            if (group.report(rank)->kind != kBadCall) mistake("%s: rank %u did not refuse", one.name, rank);
            if (!calls[0].untouched(rank)) mistake("%s: rank %u wrote something", one.name, rank);
        }
    }
}

struct Test {
    const char* name;
    void (*function)(u32 world);
    std::vector<u32> worlds;
};

const Test kTests[] = {
    {"every_kernel_gives_the_right_bits", every_kernel_gives_the_right_bits, {2, 3, 4, 5, 6, 7, 8, 11, 16}},
    {"calls_of_all_kinds_and_sizes_may_follow_each_other",
     calls_of_all_kinds_and_sizes_may_follow_each_other,
     {2, 3, 4, 5, 6, 7, 8, 16}},
    {"two_graphs_of_different_sizes_may_alternate", two_graphs_of_different_sizes_may_alternate, {2, 3, 8}},
    {"the_epoch_may_wrap", the_epoch_may_wrap, {2, 3, 8}},
    {"buffers_may_be_registered_between_two_replays", buffers_may_be_registered_between_two_replays, {2, 5, 8}},
    {"a_rank_that_never_arrives_is_named", a_rank_that_never_arrives_is_named, {3, 9}},
    {"an_abort_ends_every_wait", an_abort_ends_every_wait, {2, 4}},
    {"a_rank_that_is_gone_is_named_once_it_is_missed", a_rank_that_is_gone_is_named_once_it_is_missed, {2, 3, 8}},
    {"queued_calls_of_a_failed_group_end_at_once", queued_calls_of_a_failed_group_end_at_once, {2, 8}},
    {"overlapping_kernels_of_a_group_are_caught", overlapping_kernels_of_a_group_are_caught, {2, 8}},
    {"a_call_that_does_not_fit_is_refused", a_call_that_does_not_fit_is_refused, {2, 5}},
};

void bark(int) {
    const char text[] = "  the watchdog ended a test that hangs\n";
    if (write(1, text, sizeof text - 1) < 0) _exit(5);
    _exit(4);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    lanes = std::string(argv[1]) == "fibers" ? machine::Lanes::kFibers : machine::Lanes::kThreads;
    seed = strtoull(argv[2], nullptr, 0);
    const std::string wanted = argc > 3 ? argv[3] : "";
    signal(SIGALRM, bark);
    u32 failed = 0;
    for (const Test& test : kTests) {
        if (std::string(test.name).find(wanted) == std::string::npos) continue;
        test_name = test.name;
        mistakes = 0;
        alarm(kWatchdogSeconds);
        const time_t start = time(nullptr);
        for (const u32 world : test.worlds) test.function(world);
        printf("%s %s on %s, seed %llu (%ld s)\n", mistakes == 0 ? "ok    " : "FAILED", test.name, argv[1],
               (unsigned long long)seed, long(time(nullptr) - start));
        fflush(stdout);
        failed += mistakes != 0;
    }
    return failed == 0 ? 0 : 1;
}
