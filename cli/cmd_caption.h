// `lvpipe caption`: the main job. Bare, it starts its own ranks; under mpirun or srun it is one of them.
#ifndef LVP_CLI_CMD_CAPTION_H
#define LVP_CLI_CMD_CAPTION_H

#include "common/status.h"

// argv[0] is the command's name. *exit_status is that of the ranks it started, when it did.
enum lvp_status lvp_cmd_caption(int argc, char **argv, int *exit_status) LVP_MUST_CHECK;

#endif
