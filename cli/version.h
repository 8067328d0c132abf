// `lvpipe --version`: version, libraries with their versions, instruction sets compiled in and found, backends.
#ifndef LVP_CLI_VERSION_H
#define LVP_CLI_VERSION_H

#include "common/status.h"

enum lvp_status lvp_print_version(void) LVP_MUST_CHECK;

#endif
