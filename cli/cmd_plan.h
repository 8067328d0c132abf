// `lvpipe plan`: how a model would be cut into stages, and what each stage computes, holds and sends, dense and pruned.
#ifndef LVP_CLI_CMD_PLAN_H
#define LVP_CLI_CMD_PLAN_H

#include "common/status.h"

// argv[0] is the command's name. Prints to stdout; needs no MPI and reads no weights.
enum lvp_status lvp_cmd_plan(int argc, char **argv) LVP_MUST_CHECK;

#endif
