#include "common/status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char error_text[1024];

enum lvp_status lvp_fail(enum lvp_status status, const char *format, ...)
{
    if (error_text[0] == '\0') {
        va_list args;
        va_start(args, format);
        (void)vsnprintf(error_text, sizeof error_text, format, args);
        va_end(args);
    }
    return status;
}

const char *lvp_error_text(void)
{
    return error_text;
}

void lvp_error_clear(void)
{
    error_text[0] = '\0';
}

const char *lvp_status_name(enum lvp_status status)
{
    switch (status) {
    case LVP_OK:
        return "ok";
    case LVP_ERR_USAGE:
        return "usage";
    case LVP_ERR_MODEL:
        return "model";
    case LVP_ERR_LOST:
        return "lost rank";
    case LVP_ERR_TOO_MANY:
        return "too many errors";
    case LVP_ERR_IO:
        return "i/o";
    case LVP_ERR_MEMORY:
        return "out of memory";
    case LVP_ERR_FORMAT:
        return "malformed data";
    case LVP_ERR_INTERNAL:
        return "internal";
    case LVP_DRAINED:
        return "drained";
    case LVP_STOPPED:
        return "stopped";
    }
    return "unknown";
}

int lvp_exit_status(enum lvp_status status)
{
    switch (status) {
    case LVP_OK:
        return 0;
    case LVP_ERR_USAGE:
        return 2;
    case LVP_ERR_MODEL:
        return 3;
    case LVP_ERR_LOST:
        return 4;
    case LVP_ERR_TOO_MANY:
        return 5;
    case LVP_ERR_IO:
        return 6;
    case LVP_ERR_MEMORY:
    case LVP_ERR_FORMAT:
    case LVP_ERR_INTERNAL:
    case LVP_STOPPED:
        return 1;
    case LVP_DRAINED:
        return 75; // EX_TEMPFAIL
    }
    return 1;
}
