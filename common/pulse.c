#include "common/pulse.h"

#include <stdlib.h>

double lvp_silence_seconds(void)
{
    enum { DEFAULT = 30, LEAST = 2 * LVP_PULSE_SECONDS };
    static double seconds; // asked for in every round
    if (seconds > 0) return seconds;
    const char *text = getenv("LVPIPE_SILENCE_SECONDS");
    seconds = text != NULL ? strtod(text, NULL) : DEFAULT;
    if (!(seconds >= LEAST)) seconds = DEFAULT;
    return seconds;
}
