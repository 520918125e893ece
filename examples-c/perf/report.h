/* report.h: what was measured, as a table, as JSON and as a picture. Only rank 0 reports. */
#ifndef PERF_REPORT_H
#define PERF_REPORT_H

#include "measure.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct perf_row {
    char run[48];
    const perf_collective_t *collective;
    const perf_type_t *type;
    const char *op;              /* "none" where nothing is reduced */
    int root;
    int ranks;
    size_t bytes, count;         /* as in the table */
    perf_figure_t out, in;       /* of place, in place */
    char served_by[96];
    char note[512];              /* why nothing was measured */
} perf_row_t;

typedef struct perf_report {
    const perf_options_t *options;
    int speaks;                  /* rank 0 */
    int table;                   /* whether the table goes to stdout */
    char title[48];              /* what the last heading was for */
    perf_row_t *rows;
    size_t count, capacity;
    double wrong, checked;
    int progress_shown;
} perf_report_t;

void perf_report_begin(perf_report_t *report, const perf_options_t *options, int speaks);
/* A line of the report that is no row. */
void perf_report_note(perf_report_t *report, const char *run, const char *note);
/* What is being measured, for somebody who waits at a terminal. */
void perf_report_progress(perf_report_t *report, const char *what, size_t done, size_t all);
void perf_report_row(perf_report_t *report, const perf_library_t *library, const perf_row_t *row);
/* Writes the files that were asked for. Returns the exit status: 1 if an element was wrong or a file not written. */
int perf_report_end(perf_report_t *report, const perf_library_t *library);

/* Draws time over size. Returns 0, or -1 with errno. */
int perf_plot(const char *path, const perf_library_t *library, const perf_options_t *options, const perf_row_t *rows, size_t count);

#ifdef __cplusplus
}
#endif
#endif
