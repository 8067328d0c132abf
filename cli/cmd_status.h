// lvpipe status DIR: how far a run is, or an array of runs, one folder per task.
#ifndef LVP_CLI_CMD_STATUS_H
#define LVP_CLI_CMD_STATUS_H

#include "common/status.h"

enum lvp_status lvp_cmd_status(int argc, char **argv) LVP_MUST_CHECK;

#endif
