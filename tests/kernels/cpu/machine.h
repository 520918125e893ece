// A machine that runs kernels on the processor: streams of launches, each launch a grid of blocks of lanes. Lanes are
// either threads of the operating system or fibers of one thread under a seeded scheduler, which makes a run
// repeatable. A launch begins when the one before it on the same stream is complete, as on a GPU.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

namespace machine {

using u32 = uint32_t;
using u64 = uint64_t;

/// Where lanes wait for each other.
class Meeting {
   public:
    void expect(u32 lanes) { lanes_ = lanes; }
    /// Waits for all lanes; whether any of them said so.
    bool meet(bool mine);

   private:
    u32 lanes_ = 0;
    std::mutex mutex_;
    std::condition_variable all_here_;
    std::atomic<u32> here_{0};
    std::atomic<u32> any_{0};
    std::atomic<u32> result_{0};
    std::atomic<u32> round_{0};
};

struct Block : Meeting {
    alignas(16) char shared[1024];
};

/// One lane: what a kernel knows about itself.
struct Lane {
    u32 thread, block, threads, blocks;
    Block* home;
};
extern thread_local Lane* lane;

/// One kernel in a stream, with what the host does in stream order before and after it.
struct Launch {
    std::function<void()> kernel;
    u32 blocks;
    std::function<void()> before, after;
};

struct Stream {
    std::vector<Launch> launches;
    u32 threads;  // of a block
};

enum class Lanes { kThreads, kFibers };

/// Runs all streams side by side until all are done. Fibers that get stuck end the process with code 3.
void run(std::vector<Stream>& streams, Lanes lanes, u64 seed);

/// Called by a lane that polls.
void let_others_run();
/// Called where another lane may come in between: sometimes it does, if lanes are fibers.
void maybe_switch();
/// Real time for threads; for fibers a clock that the scheduler moves.
u64 clock_ns();

}  // namespace machine
