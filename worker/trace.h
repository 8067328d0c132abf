// What a worker did when, for people who look at timelines: spans of computing, sending and image work, kept in memory
// until the coordinator asks for the statistics. Off unless the setup asks for it. Thread: any; the owner's lock.
#ifndef LVP_WORKER_TRACE_H
#define LVP_WORKER_TRACE_H

#include "common/measure.h"
#include "lvpipe.pb-c.h"

#include <stdbool.h>

enum { LVP_MAX_TRACE = 20000 }; // spans between two questions; what comes after is left out

// Zeroed: off.
struct lvp_trace {
    Lvp__Statistics__Span *spans; // [LVP_MAX_TRACE]; NULL: off
    Lvp__Statistics__Span **pointers;
    size_t n;
    bool cut; // spans were left out since the last question
};

void lvp_trace_start(struct lvp_trace *trace); // stays off where memory is short
void lvp_trace_free(struct lvp_trace *trace);

// A span from `start`, of lvp_wall_seconds(), to now; `number` of the step or job, or the image slot.
void lvp_trace_add(struct lvp_trace *trace, enum lvp_trace_kind kind, uint64_t number, double start);

#endif
