// What `lvpipe bench` prints of the result objects of coordinator/bench.h: a table for people, or an object a line.
#ifndef LVP_CLI_BENCH_REPORT_H
#define LVP_CLI_BENCH_REPORT_H

#include <jansson.h>
#include <stdbool.h>

// A row of the table; `first` puts the header before it. *base: images/s of the table's first row, which the others are
// compared with.
void lvp_bench_report_row(const json_t *result, bool first, double *base);

// Below the rows: where the time of each worker went.
void lvp_bench_report_workers(const json_t *result);

#endif
