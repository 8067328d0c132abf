// Messages for a person on stderr, or for a program as one JSON object a line. One line per call, written with one
// write so that ranks do not mix within a line. Any thread may call. Level and format are set at start.
#ifndef LVP_COMMON_LOG_H
#define LVP_COMMON_LOG_H

#include "common/status.h"

#include <stdbool.h>

enum lvp_log_level { LVP_LOG_ERROR, LVP_LOG_WARNING, LVP_LOG_INFO, LVP_LOG_DEBUG };

// `who` is put before each line ("rank 2"), "" for none; copied.
void lvp_log_init(enum lvp_log_level level, const char *who);
void lvp_log_use_json(void); // {"time":"2026-11-24T21:00:00.123Z","level":"info","who":"rank 2","message":"..."}
bool lvp_log_is_json(void);

void lvp_log(enum lvp_log_level level, const char *format, ...) LVP_PRINTF(2, 3);

// The same with members for a program, like "\"done\":5,\"total\":10" or ""; text leaves them out.
void lvp_log_event(enum lvp_log_level level, const char *members, const char *format, ...) LVP_PRINTF(3, 4);

#define lvp_warn(...)  lvp_log(LVP_LOG_WARNING, __VA_ARGS__)
#define lvp_info(...)  lvp_log(LVP_LOG_INFO, __VA_ARGS__)
#define lvp_debug(...) lvp_log(LVP_LOG_DEBUG, __VA_ARGS__)

#endif
