// `lvpipe inspect`: what a checkpoint is and whether it can run, or the ids of a text.
#ifndef LVP_CLI_CMD_INSPECT_H
#define LVP_CLI_CMD_INSPECT_H

#include "common/status.h"

// argv[0] is the command's name. Prints to stdout; needs no MPI.
enum lvp_status lvp_cmd_inspect(int argc, char **argv) LVP_MUST_CHECK;

#endif
