#include "worker/trace.h"

#include "common/clock.h"

#include <stdlib.h>

void lvp_trace_start(struct lvp_trace *trace)
{
    trace->spans = calloc(LVP_MAX_TRACE, sizeof *trace->spans);
    trace->pointers = calloc(LVP_MAX_TRACE, sizeof(Lvp__Statistics__Span *));
    if (trace->spans == NULL || trace->pointers == NULL) lvp_trace_free(trace);
}

void lvp_trace_free(struct lvp_trace *trace)
{
    free(trace->spans);
    free(trace->pointers);
    *trace = (struct lvp_trace){0};
}

void lvp_trace_add(struct lvp_trace *trace, enum lvp_trace_kind kind, uint64_t number, double start)
{
    if (trace->spans == NULL) return;
    if (trace->n == LVP_MAX_TRACE) {
        trace->cut = true;
        return;
    }
    Lvp__Statistics__Span *span = &trace->spans[trace->n];
    lvp__statistics__span__init(span);
    span->kind = (int32_t)kind;
    span->number = number;
    span->start = start;
    span->end = lvp_wall_seconds();
    trace->pointers[trace->n++] = span;
}
