#include "fibers.h"

#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#if defined(TUTTI_TSAN)
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
}
#else
static void* __tsan_get_current_fiber() { return nullptr; }
static void* __tsan_create_fiber(unsigned) { return nullptr; }
static void __tsan_destroy_fiber(void*) {}
static void __tsan_switch_to_fiber(void*, unsigned) {}
#endif

namespace fibers {
namespace {

constexpr uint32_t kStackBytes = 256 << 10;
/// What one switch counts for on the clock.
constexpr uint64_t kSwitchNs = 50;
/// Of so many chances to come in between, one is taken.
constexpr uint64_t kYieldOneIn = 6;
/// A run that needs more switches than this is stuck; TUTTI_MOST_SWITCHES may say less.
constexpr uint64_t kMostSwitches = 30'000'000;
constexpr unsigned kOrdersNothing = 1;

struct Fiber {
    ucontext_t context;
    char* stack;
    void* sanitizer;
    void (*body)(void*);
    void* argument;
    void* local;
    const void* sleeps_at;
    uint32_t place;  // among the runnable
};

Fiber* all = nullptr;
Fiber** runnable = nullptr;
uint32_t count = 0, runnable_count = 0;
Fiber* current = nullptr;
Fiber home;
void** local = nullptr;
uint64_t random_state = 0, switches = 0, most_switches = kMostSwitches;
bool gave_up = false;

/// SplitMix64, from its authors' description.
uint64_t random_number() {
    uint64_t z = random_state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

void make_runnable(Fiber* fiber) {
    fiber->place = runnable_count;
    runnable[runnable_count++] = fiber;
}

void make_idle(Fiber* fiber) {
    Fiber* last = runnable[--runnable_count];
    last->place = fiber->place;
    runnable[fiber->place] = last;
}

void go_to(Fiber* next) {
    Fiber* before = current;
    if (next == before) return;
    current = next;
    *local = next->local;
    __tsan_switch_to_fiber(next->sanitizer, kOrdersNothing);
    swapcontext(&before->context, &next->context);
}

void go_on() {
    gave_up = gave_up || ++switches > most_switches;
    go_to(gave_up || runnable_count == 0 ? &home : runnable[random_number() % runnable_count]);
}

void fiber_main() {
    current->body(current->argument);
    make_idle(current);
    go_on();
}

}  // namespace

void begin(uint32_t fibers, uint64_t seed) {
    all = static_cast<Fiber*>(calloc(fibers, sizeof(Fiber)));
    runnable = static_cast<Fiber**>(calloc(fibers, sizeof(Fiber*)));
    count = runnable_count = 0;
    random_state = seed;
    switches = 0;
    gave_up = false;
    const char* most = getenv("TUTTI_MOST_SWITCHES");
    most_switches = most == nullptr ? kMostSwitches : strtoull(most, nullptr, 10);
    current = &home;
    home.sanitizer = __tsan_get_current_fiber();
}

void set_local(void** current_local) { local = current_local; }

void add(void (*body)(void*), void* argument, void* fiber_local) {
    Fiber* fiber = &all[count++];
    fiber->stack = static_cast<char*>(malloc(kStackBytes));
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber->context, fiber_main, 0);
    fiber->sanitizer = __tsan_create_fiber(0);
    fiber->body = body;
    fiber->argument = argument;
    fiber->local = fiber_local;
    make_runnable(fiber);
}

bool run() {
    if (runnable_count != 0) go_on();
    bool all_ended = !gave_up;
    for (uint32_t i = 0; i < count; i++) {
        all_ended = all_ended && all[i].sleeps_at == nullptr;
        __tsan_destroy_fiber(all[i].sanitizer);
        free(all[i].stack);
    }
    free(all);
    free(runnable);
    all = nullptr;
    return all_ended;
}

bool running() { return all != nullptr; }
void yield() { go_on(); }
void maybe_yield() {
    if (running() && random_number() % kYieldOneIn == 0) go_on();
}
void sleep(const void* at) {
    current->sleeps_at = at;
    make_idle(current);
    go_on();
}
void wake(const void* at) {
    for (uint32_t i = 0; i < count; i++) {
        if (all[i].sleeps_at != at) continue;
        all[i].sleeps_at = nullptr;
        make_runnable(&all[i]);
    }
}
uint64_t clock_ns() { return 1 + switches * kSwitchNs; }

}  // namespace fibers
