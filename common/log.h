// Messages for a person on stderr. One line per call, written with one write so that ranks do not mix within a line.
// Any thread may call. The level is set once at start.
#ifndef LVP_COMMON_LOG_H
#define LVP_COMMON_LOG_H

#include "common/status.h"

enum lvp_log_level { LVP_LOG_ERROR, LVP_LOG_WARNING, LVP_LOG_INFO, LVP_LOG_DEBUG };

// `who` is put before each line ("rank 2"), "" for none; copied.
void lvp_log_init(enum lvp_log_level level, const char *who);
void lvp_log(enum lvp_log_level level, const char *format, ...) LVP_PRINTF(2, 3);

#define lvp_warn(...)  lvp_log(LVP_LOG_WARNING, __VA_ARGS__)
#define lvp_info(...)  lvp_log(LVP_LOG_INFO, __VA_ARGS__)
#define lvp_debug(...) lvp_log(LVP_LOG_DEBUG, __VA_ARGS__)

#endif
