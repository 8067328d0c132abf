// What workers measure and the coordinator reads, as numbered in the control messages.
#ifndef LVP_COMMON_MEASURE_H
#define LVP_COMMON_MEASURE_H

// Experiments of a calibration (worker/calibrate.h).
enum lvp_experiment {
    LVP_EXPERIMENT_ROWS,    // decoder layers on `n` rows that see only themselves: everything but attention
    LVP_EXPERIMENT_PREFILL, // decoder layers on one prompt of `n` rows
    LVP_EXPERIMENT_DECODE,  // decoder layers on `n` decode rows whose caches hold `kv_len` slots
    LVP_EXPERIMENT_ENCODE,  // a ViT layer on `n` images
    LVP_EXPERIMENT_COUNT
};

// Spans of a timeline (worker/trace.h).
enum lvp_trace_kind {
    LVP_TRACE_ENCODE,
    LVP_TRACE_PREFILL,
    LVP_TRACE_DECODE,
    LVP_TRACE_SEND,
    LVP_TRACE_IMAGE,
    LVP_TRACE_COUNT
};

#endif
