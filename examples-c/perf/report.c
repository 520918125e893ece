#define _GNU_SOURCE
#include "report.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static double gbps(const perf_row_t *row, const perf_figure_t *figure) {
    return figure->us > 0 ? (double)row->bytes / figure->us / 1e3 : 0;
}

static double bus_factor(const perf_row_t *row) { return row->collective->bus((double)row->ranks); }

/* ---- The table ------------------------------------------------------------------------------------------------ */

static void clear_progress(perf_report_t *report) {
    if (report->progress_shown) fprintf(stderr, "\r\033[K");
    report->progress_shown = 0;
}

static void say(perf_report_t *report, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(perf_report_t *report, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    clear_progress(report);
    vfprintf(report->table ? stdout : stderr, format, arguments);
    fflush(stdout);
    va_end(arguments);
}

void perf_report_begin(perf_report_t *report, const perf_options_t *options, int speaks) {
    memset(report, 0, sizeof *report);
    report->options = options;
    report->speaks = speaks;
    report->table = options->json == NULL || strcmp(options->json, "-") != 0;
}

void perf_report_note(perf_report_t *report, const char *run, const char *note) {
    if (report->speaks) say(report, "# %s: %s\n", run, note);
}

void perf_report_progress(perf_report_t *report, const char *what, size_t done, size_t all) {
    if (!report->speaks || !isatty(2) || all < 2) return;
    fprintf(stderr, "\r\033[K%zu of %zu: %s", done + 1, all, what);
    report->progress_shown = 1;
}

static void heading(perf_report_t *report, const perf_library_t *library, const perf_row_t *row) {
    const perf_options_t *options = report->options;
    if (report->count == 1) {
        printf("# %s, %d ranks, %ld CPUs%s%s\n", library->name, row->ranks, sysconf(_SC_NPROCESSORS_ONLN),
               options->pin ? ", rank r on the r-th of its CPUs" : "", options->registered ? ", registered buffers" : "");
        printf("# time: median over batches of calls, of the slowest rank; algbw = size / time; %s\n",
               options->check ? "wrong: elements that are not bit by bit right" : "results not checked");
        if (options->touch_from == 0) printf("# touch: every input written before and every result read after its call\n");
        else if (options->touch_from != PERF_NEVER) printf("# touch, from %zu B on: every input written before and every result read after its call\n", options->touch_from);
    }
    printf("#\n# %s: %s\n", row->run, row->collective->name);
    printf("#%12s %12s %10s %5s %5s |%34s |%34s |\n", "size", "count", "type", "op", "root", "out of place", "in place");
    printf("#%12s %12s %10s %5s %5s |", "(B)", "(elements)", "", "", "");
    for (int i = 0; i < 2; i++) printf("%11s %7s %7s %6s |", "time (us)", "algbw", "busbw", "wrong");
    printf(" served by (bandwidths in GB/s)\n");
}

static void print_figure(const perf_options_t *options, const perf_row_t *row, const perf_figure_t *figure) {
    if (figure->state != PERF_MEASURED) {
        printf("%11s %7s %7s %6s |", "-", "-", "-", "-");
        return;
    }
    printf("%11.2f %7.2f %7.2f ", figure->us, gbps(row, figure), gbps(row, figure) * bus_factor(row));
    if (options->check) printf("%6.0f |", figure->wrong);
    else printf("%6s |", "n/a");
}

static void print_row(const perf_options_t *options, const perf_row_t *row) {
    char root[16];
    snprintf(root, sizeof root, "%d", row->root);
    printf(" %12zu %12zu %10s %5s %5s |", row->bytes, row->count, row->collective->input == PERF_IN_NONE ? "-" : row->type->name, row->op,
           perf_rooted(row->collective) ? row->root == PERF_ROTATE ? "all" : root : "-");
    if (row->note[0] != '\0') {
        printf(" %s\n", row->note);
        return;
    }
    print_figure(options, row, &row->out);
    print_figure(options, row, &row->in);
    printf(" %s\n", row->served_by);
}

void perf_report_row(perf_report_t *report, const perf_library_t *library, const perf_row_t *row) {
    char title[sizeof report->title];
    if (!report->speaks) return;
    if (report->count == report->capacity) {
        report->capacity = report->capacity == 0 ? 64 : 2 * report->capacity;
        report->rows = realloc(report->rows, report->capacity * sizeof *report->rows);
        if (report->rows == NULL) exit(1);
    }
    report->rows[report->count++] = *row;
    report->wrong += row->out.wrong + row->in.wrong;
    report->checked += row->out.checked + row->in.checked;
    clear_progress(report);
    if (!report->table) return;
    snprintf(title, sizeof title, "%.24s/%.20s", row->run, row->collective->name);
    if (strcmp(title, report->title) != 0) heading(report, library, row);
    memcpy(report->title, title, sizeof title);
    print_row(report->options, row);
    fflush(stdout);
}

/* ---- JSON ----------------------------------------------------------------------------------------------------- */

static void json_text(FILE *to, const char *text) {
    fputc('"', to);
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\') fprintf(to, "\\%c", *text);
        else if ((unsigned char)*text < 0x20) fprintf(to, "\\u%04x", *text);
        else fputc(*text, to);
    }
    fputc('"', to);
}

static void json_figure(FILE *to, const char *name, const perf_row_t *row, const perf_figure_t *figure) {
    fprintf(to, ", \"%s\": ", name);
    if (figure->state != PERF_MEASURED) {
        fprintf(to, "null");
        return;
    }
    fprintf(to, "{\"us\": %.6g, \"best_us\": %.6g, \"algbw_gbps\": %.6g, \"busbw_gbps\": %.6g, ", figure->us, figure->best_us,
            gbps(row, figure), gbps(row, figure) * bus_factor(row));
    fprintf(to, "\"touched\": %s, \"touch_us\": %.6g, \"wrong\": %.0f, \"checked\": %.0f, \"batches\": %d, \"calls\": %.0f}",
            figure->touched ? "true" : "false", figure->touch_us, figure->wrong, figure->checked, figure->batches, figure->calls);
}

static int write_json(const perf_report_t *report, const perf_library_t *library) {
    const perf_options_t *options = report->options;
    const int to_stdout = strcmp(options->json, "-") == 0;
    FILE *to = to_stdout ? stdout : fopen(options->json, "w");
    if (to == NULL) return -1;
    fprintf(to, "{\"library\": ");
    json_text(to, library->name);
    fprintf(to, ", \"command\": ");
    json_text(to, options->command);
    fprintf(to, ", \"ranks\": %d, \"cpus\": %ld, \"pinned\": %s, \"registered\": %s, \"check\": %s, \"rows\": [", library->size,
            sysconf(_SC_NPROCESSORS_ONLN), options->pin ? "true" : "false", options->registered ? "true" : "false",
            options->check ? "true" : "false");
    for (size_t i = 0; i < report->count; i++) {
        const perf_row_t *row = &report->rows[i];
        fprintf(to, "%s\n  {\"run\": ", i > 0 ? "," : "");
        json_text(to, row->run);
        fprintf(to, ", \"collective\": \"%s\", \"dtype\": \"%s\", \"op\": \"%s\", \"root\": %d, \"bytes\": %zu, \"count\": %zu", row->collective->name,
                row->type->name, row->op, row->root, row->bytes, row->count);
        json_figure(to, "out_of_place", row, &row->out);
        json_figure(to, "in_place", row, &row->in);
        fprintf(to, ", \"served_by\": ");
        json_text(to, row->served_by);
        fprintf(to, ", \"note\": ");
        json_text(to, row->note);
        fprintf(to, "}");
    }
    fprintf(to, "\n]}\n");
    const int failed = ferror(to) != 0;
    return (to_stdout ? fflush(to) : fclose(to)) != 0 || failed ? -1 : 0;
}

int perf_report_end(perf_report_t *report, const perf_library_t *library) {
    const perf_options_t *options = report->options;
    int status = report->wrong > 0;
    if (!report->speaks) return 0;
    if (options->check) say(report, "#\n# %.0f results compared, %.0f elements wrong\n", report->checked, report->wrong);
    if (options->json != NULL && write_json(report, library) != 0) {
        fprintf(stderr, "cannot write %s: %s\n", options->json, strerror(errno));
        status = 1;
    }
    if (options->plot != NULL && perf_plot(options->plot, library, options, report->rows, report->count) != 0) {
        fprintf(stderr, "cannot write %s: %s\n", options->plot, strerror(errno));
        status = 1;
    }
    free(report->rows);
    report->rows = NULL;
    return status;
}
