// Time for deadlines, rates and reports.
#ifndef LVP_COMMON_CLOCK_H
#define LVP_COMMON_CLOCK_H

#include <time.h>

// Seconds of a clock that only goes forward.
static inline double lvp_now(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#endif
