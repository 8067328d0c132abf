// lvpipe show: which patches of an image are kept at each prune point, as a picture.
#ifndef LVP_CLI_CMD_SHOW_H
#define LVP_CLI_CMD_SHOW_H

#include "common/status.h"

enum lvp_status lvp_cmd_show(int argc, char **argv) LVP_MUST_CHECK;

#endif
