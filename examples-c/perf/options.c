#include "options.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int usage(FILE *to, const char *program) {
    fprintf(to,
            "usage: %s [COLLECTIVE,...] [OPTION...]\n\n"
            "Measures collectives: their time, and the bandwidth that makes, over a range of sizes, in and out of place.\n\n"
            "  COLLECTIVE        all_reduce (if none is named) ",
            program);
    for (size_t i = 1; i < PERF_COLLECTIVE_COUNT; i++) fprintf(to, "%s%s", PERF_COLLECTIVES[i].name, i == 5 ? "\n                    " : " ");
    fprintf(to,
            "all\n"
            "  -b, --min BYTES   the smallest size (8); K, M and G are understood\n"
            "  -e, --max BYTES   the largest size (16M)\n"
            "  -f, --factor N    every size is N times the one before (4)\n"
            "  -i, --step BYTES  every size is BYTES more than the one before, instead\n"
            "      --sizes LIST  exactly these sizes, instead\n"
            "  -d, --dtype LIST  float32 bfloat16 float16 float64 float8e4m3 float8e5m2 int8 uint8 int32 uint32 int64 uint64\n"
            "                    bool int16 bytes all (float32)\n"
            "  -o, --op LIST     sum prod max min avg all (sum)\n"
            "  -r, --root RANK   the root of rooted collectives (0); -1: another one for every call\n"
            "      --place P     out, in or both (both)\n"
            "  -n, --iters N     calls to measure per size (as many as fit into --budget)\n"
            "  -w, --warmup N    calls before that (5)\n"
            "      --budget MS   how long to measure each size (100)\n"
            "  -c, --check 0|1   compare results, bit by bit (1)\n"
            "      --touch       write the input before and read the result after every call; the time that writing and\n"
            "                    reading take without the call is subtracted. Shows what it costs that the data is in\n"
            "                    another core's cache, which calls in a tight loop hide.\n"
            "      --touch-from BYTES  the same from this size on\n"
            "      --pin         rank r stays on the r-th of the CPUs it may use, counted round\n"
            "      --timeout S   of every call (60)\n"
            "      --json FILE   the result as JSON; - for stdout, in place of the table\n"
            "      --help        this text\n");
    return 0;
}

/* What only the program that measures libtutti has. */
static void own_usage(void) {
    printf("\nOf libtutti:\n\n"
           "      --np N        start N ranks on this machine (2, or those that torchrun, mpirun or srun started)\n"
           "      --communicators LIST  measure each of these alone, one after the other, as shm,sockets; auto is the\n"
           "                    library's own choice\n"
           "      --registered  buffers of tutti_mem_alloc\n"
           "      --plot FILE   an SVG: time over size, one line per communicator\n\n"
           "Sizes are those of one rank's input, or, where ranks have parts of a whole, of the whole, as in nccl-tests;\n"
           "so are the factors from algbw (size / time) to busbw. A time is the median over batches of calls, of the\n"
           "slowest rank. What is compared: the results of the first calls, of the last call of every batch where calls\n"
           "leave their input alone, and, with --touch, a checksum of every result. A wrong element makes the exit\n"
           "status 1.\n");
}

static int refuse(const char *program, const char *option, const char *value, const char *wanted) {
    fprintf(stderr, "%s: %s %s: %s; see --help\n", program, option, value == NULL ? "" : value, wanted);
    return 2;
}

/* "64K" and the like. Returns whether it is a size. */
static int parse_size(const char *text, size_t *bytes) {
    char *end = NULL;
    if (text[0] < '0' || text[0] > '9') return 0;
    const unsigned long long value = strtoull(text, &end, 10);
    const unsigned shift = *end == 'K' || *end == 'k' ? 10 : *end == 'M' || *end == 'm' ? 20 : *end == 'G' || *end == 'g' ? 30 : 0;
    if (end[shift != 0] != '\0' || value > (1ull << 38) >> shift) return 0;
    *bytes = (size_t)(value << shift);
    return 1;
}

/* Takes the next item of a comma-separated list into `item`; returns whether there was one. */
static int next_item(const char **list, char *item, size_t capacity) {
    if (**list == '\0') return 0;
    const size_t length = strcspn(*list, ",");
    snprintf(item, capacity, "%.*s", (int)length, *list);
    *list += length + ((*list)[length] == ',');
    return 1;
}

/* Parses a list of names of one table into pointers to its rows. */
#define PARSE_NAMES(list, table, table_count, chosen, chosen_count, failed)                              \
    do {                                                                                                  \
        char item_[64];                                                                                   \
        const char *list_ = (list);                                                                       \
        (chosen_count) = 0;                                                                               \
        while (next_item(&list_, item_, sizeof item_)) {                                                  \
            int found_ = 0;                                                                               \
            for (size_t i_ = 0; i_ < (table_count); i_++) {                                               \
                if (strcmp(item_, "all") != 0 && strcmp(item_, (table)[i_].name) != 0) continue;          \
                if ((chosen_count) < PERF_MAX_CHOICES) (chosen)[(chosen_count)++] = &(table)[i_];         \
                found_ = 1;                                                                               \
            }                                                                                             \
            if (!found_) (failed) = 1;                                                                    \
        }                                                                                                 \
        if ((chosen_count) == 0) (failed) = 1;                                                            \
    } while (0)

static int add_size(perf_options_t *options, size_t bytes) {
    if (options->size_count == PERF_MAX_SIZES) return 0;
    options->sizes[options->size_count++] = bytes;
    return 1;
}

static int by_size(const void *a, const void *b) {
    const size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return (x > y) - (x < y);
}

int perf_parse(perf_options_t *options, const char *program, int argc, char **argv) {
    static const char *const LONG[][2] = {
        {"--min", "-b"}, {"--max", "-e"}, {"--factor", "-f"}, {"--step", "-i"}, {"--dtype", "-d"}, {"--op", "-o"},
        {"--root", "-r"}, {"--iters", "-n"}, {"--warmup", "-w"}, {"--check", "-c"},
    };
    size_t min = 8, max = 16 << 20, step = 0, explicit_sizes = 0;
    double factor = 4;
    int failed = 0;
    memset(options, 0, sizeof *options);
    options->collectives[0] = &PERF_COLLECTIVES[0];
    options->types[0] = &PERF_TYPES[0];
    options->ops[0] = &PERF_OPS[0];
    options->collective_count = options->type_count = options->op_count = 1;
    options->in_place = options->out_of_place = options->check = 1;
    options->warm_up = 5;
    options->budget_ms = 100;
    options->touch_from = PERF_NEVER;
    options->timeout_s = 60;
    snprintf(options->command, sizeof options->command, "%s", program);
    for (int i = 1; i < argc; i++) {
        const size_t length = strlen(options->command);
        snprintf(options->command + length, sizeof options->command - length, " %s", argv[i]);
    }

    for (int i = 1; i < argc; i++) {
        const char *option = argv[i];
        for (size_t j = 0; j < sizeof LONG / sizeof LONG[0]; j++) {
            if (strcmp(option, LONG[j][0]) == 0) option = LONG[j][1];
        }
        if (strcmp(option, "--help") == 0 || strcmp(option, "-h") == 0) {
            usage(stdout, program);
            if (strcmp(program, "tutti-perf") == 0) own_usage();
            return 0;
        }
        if (strcmp(option, "--touch") == 0) {
            options->touch_from = 0;
            continue;
        }
        if (strcmp(option, "--registered") == 0) {
            options->registered = 1;
            continue;
        }
        if (strcmp(option, "--pin") == 0) {
            options->pin = 1;
            continue;
        }
        if (option[0] != '-') {
            PARSE_NAMES(option, PERF_COLLECTIVES, PERF_COLLECTIVE_COUNT, options->collectives, options->collective_count, failed);
            if (failed) return refuse(program, option, NULL, "is no collective");
            continue;
        }
        const char *value = argv[++i];
        char *end = NULL;
        if (i >= argc) return refuse(program, argv[argc - 1], NULL, "is no option, or lacks its value");
        const double number = strtod(value, &end);
        const int whole = end != value && *end == '\0' && floor(number) == number && fabs(number) <= 1e9;
        if (strcmp(option, "-b") == 0) {
            if (!parse_size(value, &min)) return refuse(program, option, value, "takes a size");
        } else if (strcmp(option, "-e") == 0) {
            if (!parse_size(value, &max)) return refuse(program, option, value, "takes a size");
        } else if (strcmp(option, "-i") == 0) {
            if (!parse_size(value, &step) || step == 0) return refuse(program, option, value, "takes a size");
        } else if (strcmp(option, "-f") == 0) {
            if (*end != '\0' || !(number > 1)) return refuse(program, option, value, "takes a number greater than 1");
            factor = number;
        } else if (strcmp(option, "--sizes") == 0) {
            char item[64];
            const char *list = value;
            options->size_count = 0;
            explicit_sizes = 1;
            while (next_item(&list, item, sizeof item)) {
                size_t bytes = 0;
                if (!parse_size(item, &bytes)) return refuse(program, option, item, "takes sizes");
                if (!add_size(options, bytes)) return refuse(program, option, value, "are too many sizes");
            }
            qsort(options->sizes, options->size_count, sizeof options->sizes[0], by_size);
        } else if (strcmp(option, "--touch-from") == 0) {
            if (!parse_size(value, &options->touch_from)) return refuse(program, option, value, "takes a size");
        } else if (strcmp(option, "-d") == 0) {
            PARSE_NAMES(value, PERF_TYPES, PERF_TYPE_COUNT, options->types, options->type_count, failed);
            if (failed) return refuse(program, option, value, "is no dtype");
        } else if (strcmp(option, "-o") == 0) {
            PARSE_NAMES(value, PERF_OPS, PERF_OP_COUNT, options->ops, options->op_count, failed);
            if (failed) return refuse(program, option, value, "is no op");
        } else if (strcmp(option, "-r") == 0) {
            if (!whole || number < -1) return refuse(program, option, value, "takes a rank, or -1");
            options->root = (int)number;
        } else if (strcmp(option, "-n") == 0) {
            if (!whole || number < 1) return refuse(program, option, value, "takes a number of calls");
            options->iterations = (int)number;
        } else if (strcmp(option, "-w") == 0) {
            if (!whole || number < 0) return refuse(program, option, value, "takes a number of calls");
            options->warm_up = (int)number;
        } else if (strcmp(option, "-c") == 0) {
            if (!whole || (number != 0 && number != 1)) return refuse(program, option, value, "takes 0 or 1");
            options->check = (int)number;
        } else if (strcmp(option, "--budget") == 0) {
            if (*end != '\0' || !(number > 0)) return refuse(program, option, value, "takes milliseconds");
            options->budget_ms = number;
        } else if (strcmp(option, "--timeout") == 0) {
            if (*end != '\0' || !(number > 0 && number < 1e6)) return refuse(program, option, value, "takes seconds");
            options->timeout_s = number;
        } else if (strcmp(option, "--np") == 0) {
            if (!whole || number < 1 || number > 64) return refuse(program, option, value, "takes 1 to 64 ranks");
            options->ranks = (int)number;
        } else if (strcmp(option, "--place") == 0) {
            options->in_place = strcmp(value, "out") != 0;
            options->out_of_place = strcmp(value, "in") != 0;
            if (options->in_place && options->out_of_place && strcmp(value, "both") != 0) {
                return refuse(program, option, value, "takes out, in or both");
            }
        } else if (strcmp(option, "--communicators") == 0) {
            options->communicators = value;
        } else if (strcmp(option, "--json") == 0) {
            options->json = value;
        } else if (strcmp(option, "--plot") == 0) {
            options->plot = value;
        } else {
            return refuse(program, option, NULL, "is no option");
        }
    }
    if (explicit_sizes) return options->size_count > 0 ? -1 : refuse(program, "--sizes", NULL, "takes sizes");
    if (max < min) return refuse(program, "--max", NULL, "is less than --min");
    for (size_t bytes = min; bytes <= max;) {
        if (!add_size(options, bytes)) return refuse(program, "--step", NULL, "makes more than 256 sizes");
        const double next = step > 0 ? (double)(bytes + step) : (double)bytes * factor;
        if (bytes == 0 && step == 0) break;
        bytes = next < (double)bytes + 1 ? bytes + 1 : (size_t)next;
    }
    return -1;
}
