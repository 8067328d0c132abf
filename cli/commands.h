// The commands of lvpipe. Each takes the whole command line (argv[1] is its name). A failure is returned with its text; a
// command that ended on purpose with another status than 0 says so in *exit_status.
#ifndef LVP_CLI_COMMANDS_H
#define LVP_CLI_COMMANDS_H

#include "common/status.h"

struct lvp_command {
    const char *name, *summary;
    enum lvp_status (*run)(int argc, char **argv, int *exit_status);
};

enum lvp_status lvp_cmd_caption(int argc, char **argv, int *exit_status) LVP_MUST_CHECK;
enum lvp_status lvp_cmd_plan(int argc, char **argv, int *exit_status) LVP_MUST_CHECK;
enum lvp_status lvp_cmd_inspect(int argc, char **argv, int *exit_status) LVP_MUST_CHECK;
enum lvp_status lvp_print_version(void) LVP_MUST_CHECK;

#endif
