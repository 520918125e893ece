#define _GNU_SOURCE
#include "run.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>

void perf_pin(int rank) {
    cpu_set_t may, only;
    if (sched_getaffinity(0, sizeof may, &may) != 0 || CPU_COUNT(&may) == 0) return;
    int left = rank % CPU_COUNT(&may);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &may) || left-- > 0) continue;
        CPU_ZERO(&only);
        CPU_SET(cpu, &only);
        sched_setaffinity(0, sizeof only, &only);
        return;
    }
}

/* One row: the same call out of place and in place. */
static void measure_row(const perf_options_t *options, const perf_library_t *library, perf_row_t *row, int op) {
    const perf_collective_t *collective = row->collective;
    if (options->out_of_place || collective->input == PERF_IN_NONE) {
        perf_measure(library, options, collective, row->type, op, row->count, 0, &row->out);
    }
    const int refused = row->out.state == PERF_REFUSED;
    if (options->in_place && !refused && collective->input != PERF_IN_NONE) {
        perf_measure(library, options, collective, row->type, op, row->count, 1, &row->in);
    }
    if (refused || row->in.state == PERF_REFUSED) snprintf(row->note, sizeof row->note, "unsupported: %s", library->why(library->context));
    const perf_call_t call = {collective, row->type, op, row->count, NULL, NULL, options->root < 0 ? 0 : options->root, options->registered};
    library->served_by(library->context, &call, row->served_by, sizeof row->served_by);
}

static void run_sizes(const perf_options_t *options, const perf_library_t *library, perf_report_t *report,
                      const perf_collective_t *collective, const perf_type_t *type, const perf_op_t *op, size_t *done, size_t all) {
    size_t last = 0;
    for (size_t i = 0; i < options->size_count; i++) {
        perf_row_t row;
        char what[128];
        const size_t parts = collective->size_is_of_all ? (size_t)library->size : 1;
        memset(&row, 0, sizeof row);
        row.collective = collective;
        row.type = type;
        row.op = collective->reduces ? op->name : "none";
        row.root = options->root;
        row.ranks = library->size;
        row.count = options->sizes[i] / parts / type->bytes;
        if (row.count == 0 && options->sizes[i] > 0) row.count = 1; /* the smallest that there is */
        if (collective->input == PERF_IN_NONE) row.count = 0;
        row.bytes = row.count * parts * type->bytes;
        snprintf(row.run, sizeof row.run, "%s", library->run);
        snprintf(what, sizeof what, "%s: %s of %zu B, %s %s", library->run, collective->name, row.bytes, type->name, row.op);
        perf_report_progress(report, what, (*done)++, all);
        if (i > 0 && row.bytes == last) continue;
        last = row.bytes;
        measure_row(options, library, &row, collective->reduces ? op->code : PERF_SUM);
        perf_report_row(report, library, &row);
        if (row.note[0] != '\0') {
            *done += options->size_count - 1 - i;
            return; /* and the larger sizes likewise */
        }
    }
}

void perf_run(const perf_options_t *options, const perf_library_t *library, perf_report_t *report) {
    const size_t all = options->collective_count * options->type_count * options->op_count * options->size_count;
    size_t done = 0;
    for (size_t c = 0; c < options->collective_count; c++) {
        const perf_collective_t *collective = options->collectives[c];
        if (collective->output == PERF_OUT_OTHERS && library->size < 2) {
            perf_report_note(report, collective->name, "needs two ranks");
            continue;
        }
        if (perf_rooted(collective) && options->root >= library->size) {
            perf_report_note(report, collective->name, "there is no such root");
            continue;
        }
        for (size_t t = 0; t < options->type_count; t++) {
            const perf_type_t *type = options->types[t];
            if (collective->reduces && !type->reduces) continue; /* "all" has types that are only moved */
            if (collective->input == PERF_IN_NONE && t > 0) break;
            for (size_t o = 0; o < (collective->reduces ? options->op_count : 1); o++) {
                run_sizes(options, library, report, collective, type, options->ops[o], &done, all);
            }
        }
    }
}
