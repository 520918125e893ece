#include "data.h"

#include <string.h>

const perf_type_t PERF_TYPES[] = {
    {PERF_FLOAT32, "float32", 4, 1, 1u << 24, 8, 23},
    {PERF_BFLOAT16, "bfloat16", 2, 1, 1u << 8, 8, 7},
    {PERF_FLOAT16, "float16", 2, 1, 1u << 11, 5, 10},
    {PERF_FLOAT64, "float64", 8, 1, 1u << 24, 11, 52},
    {PERF_FLOAT8E4M3, "float8e4m3", 1, 1, 1u << 4, 4, 3},
    {PERF_FLOAT8E5M2, "float8e5m2", 1, 1, 1u << 3, 5, 2},
    {PERF_INT8, "int8", 1, 1, 127, 0, 0},
    {PERF_UINT8, "uint8", 1, 1, 255, 0, 0},
    {PERF_INT32, "int32", 4, 1, 1u << 24, 0, 0},
    {PERF_UINT32, "uint32", 4, 1, 1u << 24, 0, 0},
    {PERF_INT64, "int64", 8, 1, 1u << 24, 0, 0},
    {PERF_UINT64, "uint64", 8, 1, 1u << 24, 0, 0},
    {PERF_BOOL, "bool", 1, 0, 1, 0, 0},
    {PERF_INT16, "int16", 2, 0, 32767, 0, 0},
    {PERF_BYTES, "bytes", 1, 0, 255, 0, 0},
};
const size_t PERF_TYPE_COUNT = sizeof PERF_TYPES / sizeof PERF_TYPES[0];

const perf_op_t PERF_OPS[] = {
    {PERF_SUM, "sum"}, {PERF_PROD, "prod"}, {PERF_MAX, "max"}, {PERF_MIN, "min"}, {PERF_AVG, "avg"},
};
const size_t PERF_OP_COUNT = sizeof PERF_OPS / sizeof PERF_OPS[0];

#define WIDEST 251 /* different values, where the type has room for them */

/* A positive number of at most `mantissa` significant bits below its first, in the range where none is subnormal; a
 * number with more bits is rounded to the nearest, ties to even, as the library does once at the end. */
static unsigned narrow(float value, int exponent, int mantissa) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (bits == 0) return 0;
    const int drop = 23 - mantissa;
    if (drop > 0) bits += (1u << (drop - 1)) - 1 + ((bits >> drop) & 1);
    return (bits >> drop) - ((127u - ((1u << (exponent - 1)) - 1)) << mantissa);
}

static void put(const perf_type_t *type, double value, void *at) {
    const float single = (float)value;
    const int64_t whole = (int64_t)value;
    if (type->code == PERF_FLOAT64) {
        memcpy(at, &value, sizeof value);
    } else if (type->code == PERF_FLOAT32) {
        memcpy(at, &single, sizeof single);
    } else if (type->exponent_bits > 0) {
        const uint16_t half = (uint16_t)narrow(single, type->exponent_bits, type->mantissa_bits);
        const uint8_t quarter = (uint8_t)half;
        if (type->bytes == 2) memcpy(at, &half, sizeof half);
        if (type->bytes == 1) memcpy(at, &quarter, sizeof quarter);
    } else {
        const int32_t word = (int32_t)whole;
        const int16_t half = (int16_t)whole;
        const uint8_t byte = (uint8_t)whole;
        if (type->bytes == 8) memcpy(at, &whole, sizeof whole);
        if (type->bytes == 4) memcpy(at, &word, sizeof word);
        if (type->bytes == 2) memcpy(at, &half, sizeof half);
        if (type->bytes == 1) memcpy(at, &byte, sizeof byte);
    }
}

double perf_value(const perf_type_t *type, const void *element) {
    double wide;
    float single;
    if (type->code == PERF_FLOAT64) {
        memcpy(&wide, element, sizeof wide);
        return wide;
    }
    if (type->code == PERF_FLOAT32) {
        memcpy(&single, element, sizeof single);
        return (double)single;
    }
    uint64_t bits = 0; /* little-endian */
    memcpy(&bits, element, type->bytes);
    if (type->exponent_bits == 0) return (double)bits;
    const unsigned exponent = (unsigned)(bits >> type->mantissa_bits) & ((1u << type->exponent_bits) - 1);
    double value = (double)(bits & ((1u << type->mantissa_bits) - 1)) / (double)(1u << type->mantissa_bits);
    int power = (int)exponent - ((1 << (type->exponent_bits - 1)) - 1);
    if (exponent > 0) value += 1;
    else power += 1;
    for (; power > 0; power--) value *= 2;
    for (; power < 0; power++) value /= 2;
    return bits >> (8 * type->bytes - 1) ? -value : value;
}

static unsigned mixed(int rank, int part, unsigned position) {
    uint32_t x = position * 2654435761u ^ (uint32_t)(rank + 1) * 0x9e3779b9u ^ (uint32_t)part * 0x85ebca6bu;
    x ^= x >> 15;
    x *= 0x2c1b3c6du;
    x ^= x >> 12;
    x *= 0x297a2d39u;
    return x ^ x >> 15;
}

/* Element `position` of a rank's part: exact in every sum, product or average over `size` ranks. */
static unsigned value_of(const perf_type_t *type, int op, int rank, int size, int part, unsigned position) {
    const unsigned turn = (unsigned)rank + position;
    unsigned values = type->exact < WIDEST ? type->exact + 1 : WIDEST;
    if (op == PERF_PROD) return turn % (unsigned)size < position % 4 ? 2 : 1; /* at most three ranks have a 2 */
    if (op == PERF_SUM || op == PERF_AVG) {
        const unsigned each = type->exact / (unsigned)size;
        if (each == 0) return turn % (unsigned)size < type->exact;
        if (each < values) values = each + 1;
    }
    return mixed(rank, part, position) % values;
}

void perf_pattern_of(perf_pattern_t *pattern, const perf_type_t *type, int op, int rank, int size, int part) {
    pattern->element = type->bytes;
    for (unsigned i = 0; i < PERF_PERIOD; i++) {
        put(type, value_of(type, op, rank, size, part, i), pattern->bytes + i * type->bytes);
    }
}

void perf_pattern_reduced(perf_pattern_t *pattern, const perf_type_t *type, int op, int size) {
    pattern->element = type->bytes;
    for (unsigned i = 0; i < PERF_PERIOD; i++) {
        unsigned result = value_of(type, op, 0, size, 0, i);
        for (int rank = 1; rank < size; rank++) {
            const unsigned value = value_of(type, op, rank, size, 0, i);
            if (op == PERF_SUM || op == PERF_AVG) result += value;
            if (op == PERF_PROD) result *= value;
            if (op == PERF_MAX && value > result) result = value;
            if (op == PERF_MIN && value < result) result = value;
        }
        double exact = result;
        if (op == PERF_AVG) exact = type->code == PERF_FLOAT64 ? exact / size : (double)((float)result / (float)size);
        put(type, exact, pattern->bytes + i * type->bytes);
    }
}

void perf_pattern_neutral(perf_pattern_t *pattern, const perf_type_t *type, int op) {
    pattern->element = type->bytes;
    for (unsigned i = 0; i < PERF_PERIOD; i++) put(type, op == PERF_SUM ? 0 : 1, pattern->bytes + i * type->bytes);
}

/* ---- Whole buffers -------------------------------------------------------------------------------------------- */

typedef uint64_t word_t __attribute__((aligned(1), may_alias));
typedef uint64_t words_t __attribute__((vector_size(32), aligned(1), may_alias));

/* Neither a compiler that sees a copy here nor the C library may choose other instructions: theirs could go around the
 * caches, and then "just written" would not mean what it means to an engine. */
static void copy(unsigned char *to, const unsigned char *from, size_t bytes) {
    size_t i = 0;
    for (; i + sizeof(words_t) <= bytes; i += sizeof(words_t)) {
        *(words_t *)(to + i) = *(const words_t *)(from + i);
        __asm__ volatile("" ::: "memory");
    }
    for (; i < bytes; i++) {
        to[i] = from[i];
        __asm__ volatile("" ::: "memory");
    }
}

void perf_fill(void *buffer, size_t count, const perf_pattern_t *pattern, size_t first) {
    unsigned char *to = buffer;
    size_t at = first % PERF_PERIOD;
    while (count > 0) {
        const size_t run = count < PERF_PERIOD - at ? count : PERF_PERIOD - at;
        copy(to, pattern->bytes + at * pattern->element, run * pattern->element);
        to += run * pattern->element;
        count -= run;
        at = 0;
    }
}

size_t perf_check(const void *buffer, size_t count, const perf_pattern_t *pattern, size_t first, size_t *where) {
    const unsigned char *at = buffer;
    const size_t element = pattern->element;
    size_t wrong = 0;
    for (size_t done = 0; done < count;) {
        const size_t phase = (first + done) % PERF_PERIOD;
        const size_t run = count - done < PERF_PERIOD - phase ? count - done : PERF_PERIOD - phase;
        const unsigned char *expected = pattern->bytes + phase * element;
        if (memcmp(at, expected, run * element) != 0) {
            for (size_t i = 0; i < run; i++) {
                if (memcmp(at + i * element, expected + i * element, element) == 0) continue;
                if (wrong++ == 0) *where = done + i;
            }
        }
        at += run * element;
        done += run;
    }
    return wrong;
}

uint64_t perf_read(const void *buffer, size_t bytes) {
    const unsigned char *from = buffer;
    words_t a = {0, 0, 0, 0}, b = a;
    uint64_t sum = 0;
    size_t i = 0;
    for (; i + 2 * sizeof(words_t) <= bytes; i += 2 * sizeof(words_t)) {
        a += *(const words_t *)(from + i);
        b += *(const words_t *)(from + i + sizeof(words_t));
    }
    for (; i + sizeof(word_t) <= bytes; i += sizeof(word_t)) sum += *(const word_t *)(from + i);
    for (; i < bytes; i++) sum += (uint64_t)from[i] << 8 * (i % 8);
    a += b;
    return sum + a[0] + a[1] + a[2] + a[3];
}
