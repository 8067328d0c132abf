// Waiting that is fair: counts only time in which this process ran. One that was stopped, or a machine that slept, must
// not blame others for the silence it slept through. To be asked at least once a second.
#ifndef LVP_COMMON_PATIENCE_H
#define LVP_COMMON_PATIENCE_H

#include "common/clock.h"

#include <stdbool.h>

// Zeroed: starts with the first question.
struct lvp_patience {
    double asked;  // lvp_now() of the last question; 0: never
    double waited; // seconds since the last reset
};

static inline void lvp_patience_reset(struct lvp_patience *patience)
{
    patience->waited = 0;
}

// Seconds waited since the last reset.
static inline double lvp_patience_ask(struct lvp_patience *patience)
{
    double now = lvp_now(), step = patience->asked > 0 ? now - patience->asked : 0;
    patience->waited += step < 2 ? step : 2;
    patience->asked = now;
    return patience->waited;
}

#endif
