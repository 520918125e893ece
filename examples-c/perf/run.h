/* run.h: everything that was asked for, measured one after the other. */
#ifndef PERF_RUN_H
#define PERF_RUN_H

#include "report.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Keeps this process on the rank-th of the CPUs it may use, counted round. After the library is set up, so that it
 * sees what the user's process would have. */
void perf_pin(int rank);
/* Measures every collective, dtype, op and size of the options. Collective over the library's ranks. */
void perf_run(const perf_options_t *options, const perf_library_t *library, perf_report_t *report);

#ifdef __cplusplus
}
#endif
#endif
