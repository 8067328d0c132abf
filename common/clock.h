// Time for deadlines, rates and reports.
#ifndef LVP_COMMON_CLOCK_H
#define LVP_COMMON_CLOCK_H

#include <stdio.h>
#include <time.h>

// Seconds of a clock that only goes forward.
static inline double lvp_now(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// Seconds since 1970, as far as this host's clock is right.
static inline double lvp_wall_seconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// "53 s", "41 min", "2.8 h", "11.6 days"; "-" for a negative one. Returns `text`.
static inline const char *lvp_duration_text(double seconds, char *text, size_t size)
{
    if (seconds < 0)
        (void)snprintf(text, size, "-");
    else if (seconds < 90)
        (void)snprintf(text, size, "%.0f s", seconds);
    else if (seconds < 90 * 60)
        (void)snprintf(text, size, "%.0f min", seconds / 60);
    else if (seconds < 48 * 3600)
        (void)snprintf(text, size, "%.1f h", seconds / 3600);
    else
        (void)snprintf(text, size, "%.1f days", seconds / 86400);
    return text;
}

#endif
