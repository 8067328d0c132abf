// Called often during long work, so that the caller can keep in touch with others. An error ends the work.
#ifndef LVP_COMMON_TICK_H
#define LVP_COMMON_TICK_H

#include "common/status.h"

#include <stddef.h>

struct lvp_tick {
    enum lvp_status (*call)(void *context); // NULL: nobody waits
    void *context;
};

static inline LVP_MUST_CHECK enum lvp_status lvp_tick_call(const struct lvp_tick *tick)
{
    return tick->call != NULL ? tick->call(tick->context) : LVP_OK;
}

#endif
