#include "machine.h"

#include <sched.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "fibers.h"

namespace machine {

thread_local Lane* lane = nullptr;

namespace {

/// A stream and where its lanes meet.
struct Track {
    Stream* stream;
    Meeting boundary;
    std::vector<Block> blocks;
    std::vector<Lane> lanes;
};

struct Task {
    Track* track;
    Lane* lane;
};

/// Orders what the lanes did before whoever looks at the results.
std::atomic<u32> ended{0};

void run_lane(void* argument) {
    const Task& task = *static_cast<Task*>(argument);
    Track& track = *task.track;
    Lane& mine = *task.lane;
    const bool first = mine.block == 0 && mine.thread == 0;
    for (Launch& launch : track.stream->launches) {
        track.boundary.meet(false);
        if (first && launch.before) launch.before();
        track.boundary.meet(false);
        if (mine.block < launch.blocks) {
            mine.blocks = launch.blocks;
            mine.home = &track.blocks[mine.block];
            launch.kernel();
        }
        track.boundary.meet(false);
        if (first && launch.after) launch.after();
    }
    ended.fetch_add(1, std::memory_order_acq_rel);
}

}  // namespace

bool Meeting::meet(bool mine) {
    const u32 round = round_.load(std::memory_order_relaxed);
    if (mine) any_.store(1, std::memory_order_relaxed);
    if (fibers::running()) {
        if (here_.fetch_add(1, std::memory_order_acq_rel) + 1 == lanes_) {
            here_.store(0, std::memory_order_relaxed);
            result_.store(any_.exchange(0, std::memory_order_relaxed), std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            fibers::wake(this);
        } else {
            fibers::sleep(this);
        }
        (void)round_.load(std::memory_order_acquire);
    } else {
        std::unique_lock lock(mutex_);
        if (here_.fetch_add(1) + 1 == lanes_) {
            here_ = 0;
            result_ = any_.exchange(0);
            round_ = round + 1;
            all_here_.notify_all();
        } else {
            all_here_.wait(lock, [&] { return round_ != round; });
        }
    }
    return result_.load(std::memory_order_relaxed) != 0;
}

void let_others_run() {
    if (fibers::running()) {
        fibers::yield();
    } else {
        sched_yield();
    }
}

void maybe_switch() { fibers::maybe_yield(); }

u64 clock_ns() {
    if (fibers::running()) return fibers::clock_ns();
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return u64(now.tv_sec) * 1'000'000'000 + u64(now.tv_nsec);
}

void run(std::vector<Stream>& streams, Lanes lanes, u64 seed) {
    std::vector<Track> tracks(streams.size());
    std::vector<Task> tasks;
    for (size_t s = 0; s < streams.size(); s++) {
        Track& track = tracks[s];
        track.stream = &streams[s];
        u32 blocks = 1;
        for (const Launch& launch : streams[s].launches) blocks = std::max(blocks, launch.blocks);
        const u32 threads = streams[s].threads;
        track.blocks = std::vector<Block>(blocks);
        for (Block& block : track.blocks) block.expect(threads);
        track.boundary.expect(blocks * threads);
        track.lanes.resize(blocks * threads);
        for (u32 i = 0; i < blocks * threads; i++) {
            track.lanes[i] = Lane{i % threads, i / threads, threads, 0, nullptr};
            tasks.push_back({&track, &track.lanes[i]});
        }
    }
    if (lanes == Lanes::kThreads) {
        std::vector<std::thread> threads;
        for (Task& task : tasks) {
            threads.emplace_back([&task] {
                lane = task.lane;
                run_lane(&task);
            });
        }
        for (auto& thread : threads) thread.join();
        return;
    }
    fibers::set_local(reinterpret_cast<void**>(&lane));
    fibers::begin(u32(tasks.size()), seed);
    for (Task& task : tasks) fibers::add(run_lane, &task, task.lane);
    if (!fibers::run()) {
        // What the fibers left half done cannot be put away.
        printf("stuck: lanes wait for each other\n");
        fflush(stdout);
        _Exit(3);
    }
    (void)ended.load(std::memory_order_acquire);
}

}  // namespace machine
