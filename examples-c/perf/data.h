/* data.h: element types, and the numbers that ranks send each other.
 *
 * Every rank's data is a pattern of small integers that differs by rank, by part and by position and repeats every
 * PERIOD elements. PERIOD is prime, so blocks that change places are noticed, whatever their size; the integers are
 * so small that every result is exact in its type, so results are compared bit by bit. Knows of no library. */
#ifndef PERF_DATA_H
#define PERF_DATA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { /* NCCL's numbers, and libtutti's */
    PERF_INT8 = 0, PERF_UINT8, PERF_INT32, PERF_UINT32, PERF_INT64, PERF_UINT64, PERF_FLOAT16, PERF_FLOAT32,
    PERF_FLOAT64, PERF_BFLOAT16, PERF_FLOAT8E4M3, PERF_FLOAT8E5M2, PERF_BOOL = 100, PERF_INT16, PERF_BYTES
};
enum { PERF_SUM = 0, PERF_PROD, PERF_MAX, PERF_MIN, PERF_AVG };

typedef struct perf_type {
    int code;
    const char *name;
    size_t bytes;
    int reduces;         /* 0: moved only */
    unsigned exact;      /* integers from 0 to this one are exact */
    int exponent_bits;   /* of a float; 0 for integers */
    int mantissa_bits;
} perf_type_t;

typedef struct perf_op {
    int code;
    const char *name;
} perf_op_t;

extern const perf_type_t PERF_TYPES[];
extern const size_t PERF_TYPE_COUNT;
extern const perf_op_t PERF_OPS[];
extern const size_t PERF_OP_COUNT;

#define PERF_PERIOD 1021
#define PERF_MOVED (-1) /* in place of an op: data that is not reduced */

typedef struct perf_pattern {
    size_t element;                        /* bytes */
    unsigned char bytes[PERF_PERIOD * 8];
} perf_pattern_t;

/* What `rank` of `size` puts into `part` of its buffer for a call with `op`. */
void perf_pattern_of(perf_pattern_t *pattern, const perf_type_t *type, int op, int rank, int size, int part);
/* What the ranks' patterns (of part 0) come to under `op`. */
void perf_pattern_reduced(perf_pattern_t *pattern, const perf_type_t *type, int op, int size);
/* The same number everywhere, such that reducing it with `op`, again and again, does not change it. */
void perf_pattern_neutral(perf_pattern_t *pattern, const perf_type_t *type, int op);

/* Element i becomes element first + i of the pattern. Plain stores only: a small copy is what an engine's own kernel
 * would leave in the caches. */
void perf_fill(void *buffer, size_t count, const perf_pattern_t *pattern, size_t first);
/* How many elements differ from what perf_fill would write; *where gets the first one. */
size_t perf_check(const void *buffer, size_t count, const perf_pattern_t *pattern, size_t first, size_t *where);
/* Reads everything, and returns a sum over it. */
uint64_t perf_read(const void *buffer, size_t bytes);
/* One element in words, for messages. */
double perf_value(const perf_type_t *type, const void *element);

#ifdef __cplusplus
}
#endif
#endif
