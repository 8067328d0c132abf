// Signs of life between rank 0 and the workers.
#ifndef LVP_COMMON_PULSE_H
#define LVP_COMMON_PULSE_H

#include "common/patience.h"

enum { LVP_PULSE_SECONDS = 2 };

// Seconds without a word after which a rank counts as lost: 30, or what LVPIPE_SILENCE_SECONDS says (at least 4).
double lvp_silence_seconds(void);

#endif
