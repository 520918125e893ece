/* Preloaded into tutti-perf by tests/package/perf: a library that is wrong in a way that must be noticed.
 * SPOIL_OUTPUT=N: the N-th all_reduce and every later one has one wrong bit in the last element.
 * SPOIL_INPUT=N: the same calls destroy their input, which only shows in calls whose input is not written anew. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include <tutti.h>

typedef tutti_status_t (*all_reduce_t)(tutti_group_t *, const void *, void *, size_t, int32_t, int32_t, void *);

static int is_due(const char *variable, int call) {
    const char *text = getenv(variable);
    return text != NULL && call >= atoi(text);
}

tutti_status_t tutti_all_reduce(tutti_group_t *group, const void *send, void *recv, size_t count, int32_t dtype, int32_t op, void *stream) {
    static int calls;
    void *symbol = dlsym(RTLD_NEXT, "tutti_all_reduce");
    all_reduce_t all_reduce;
    memcpy(&all_reduce, &symbol, sizeof all_reduce);
    const tutti_status_t status = all_reduce(group, send, recv, count, dtype, op, stream);
    if (dtype != TUTTI_FLOAT32 || count == 0) return status; /* float64 is how the program itself agrees on figures */
    calls++;
    if (is_due("SPOIL_OUTPUT", calls)) ((unsigned char *)recv)[4 * count - 1] ^= 1;
    if (is_due("SPOIL_INPUT", calls)) memset((void *)(uintptr_t)send, 0, 4 * count);
    return status;
}
