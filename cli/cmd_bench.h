// lvpipe bench: throughput on a model folder or a shape with synthetic weights.
#ifndef LVP_CLI_CMD_BENCH_H
#define LVP_CLI_CMD_BENCH_H

#include "common/status.h"

// argv[0] is "bench".
enum lvp_status lvp_cmd_bench(int argc, char **argv, int *exit_status) LVP_MUST_CHECK;

#endif
