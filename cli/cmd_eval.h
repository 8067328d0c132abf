// lvpipe eval: accuracy and log-likelihood on a set of questions, unpruned and pruned.
#ifndef LVP_CLI_CMD_EVAL_H
#define LVP_CLI_CMD_EVAL_H

#include "common/status.h"

enum lvp_status lvp_cmd_eval(int argc, char **argv, int *exit_status) LVP_MUST_CHECK;

#endif
