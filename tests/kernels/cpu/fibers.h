// Fibers of one thread under a seeded scheduler. ThreadSanitizer is told that a switch orders nothing, so it judges
// fibers as it would judge threads; this file's own state is compiled without it, as only one fiber runs at a time.
#pragma once

#include <cstdint>

namespace fibers {

/// Makes room for `count` fibers; `seed` decides who runs when.
void begin(uint32_t count, uint64_t seed);
/// A fiber that will call body(argument); `local` is what `*current_local` is while it runs.
void add(void (*body)(void*), void* argument, void* local);
/// Where the local value of the running fiber is put.
void set_local(void** current_local);
/// Runs all fibers to their end. False: those left wait for each other, or the run takes too long.
bool run();

/// Whether a run is under way.
bool running();
/// Lets another fiber run.
void yield();
/// Sometimes lets another fiber run.
void maybe_yield();
/// Sleeps until somebody wakes those who sleep `at`.
void sleep(const void* at);
void wake(const void* at);
/// Nanoseconds, as the scheduler counts them.
uint64_t clock_ns();

}  // namespace fibers
