// Where to cut the chain of blocks: the partition whose slowest stage takes the least time per request, each stage
// within its device's memory; among equals, the one that sends the fewest bytes. Exact (dynamic programming over the
// chain).
#ifndef LVP_COORDINATOR_PLANNER_H
#define LVP_COORDINATOR_PLANNER_H

#include "coordinator/profile.h"

// What the device of a stage can do.
struct lvp_device {
    double flops;                         // FLOP/s of large matrix products
    double memory_rate;                   // bytes/s of reading weights and KV
    double link_rate;                     // bytes/s towards the next stage
    int64_t memory;                       // bytes for weights and KV; 0: no limit
    const struct lvp_device_rates *rates; // measured: instead of flops and memory_rate; NULL: those two count
};

// Of `bytes` that so many workers share, what each may use: a tenth is left for buffers. 0, no limit, stays 0, and
// nothing else becomes 0.
static inline int64_t lvp_usable_memory(int64_t bytes, int sharing)
{
    int64_t each = bytes / 10 * 9 / (sharing > 0 ? sharing : 1);
    return bytes <= 0 ? 0 : each > 0 ? each : 1;
}

// Two cores of a present-day server with AVX2 and a 10 Gbit/s network.
#define LVP_TYPICAL_CPU ((struct lvp_device){.flops = 150e9, .memory_rate = 30e9, .link_rate = 1.2e9})

// A present-day data centre GPU, with what 16-bit matrix products reach in practice.
#define LVP_TYPICAL_GPU ((struct lvp_device){.flops = 400e12, .memory_rate = 2e12, .link_rate = 20e9})

// Requests in flight where nothing else is known. A stage that is slow with a prompt holds up the decode rows behind
// it; the others have work meanwhile only if enough other requests are under way (docs/SPEED.md).
enum { LVP_MOST_SEQUENCES = 256 };
static inline int lvp_usual_sequences(int n_stages)
{
    enum { OF_A_STAGE = 32 };
    return n_stages * OF_A_STAGE < LVP_MOST_SEQUENCES ? n_stages * OF_A_STAGE : LVP_MOST_SEQUENCES;
}

struct lvp_planner_input {
    const struct lvp_workload *workload; // borrowed; one request
    int n_stages;
    const struct lvp_device *devices; // [n_stages], borrowed; stage s runs on devices[s]
    int sequences;                    // requests in flight at once: KV is held for each, and decode steps read the
                                      // weights once for an equal share of them; at least 1
};

// LVP_ERR_USAGE when the chain cannot be cut into n_stages, or no partition fits the memory (the text says how much the
// model needs).
enum lvp_status lvp_plan_partition(const struct lvp_planner_input *input,
                                   struct lvp_partition *partition) LVP_MUST_CHECK;

// The same with as many of input->sequences as the memory has room for: halved until a partition fits without making
// the slowest stage more than a little slower than memory without limit would. *input is changed to match.
enum lvp_status lvp_plan_within_memory(struct lvp_planner_input *input, struct lvp_partition *partition) LVP_MUST_CHECK;

// The partition of a choice: the planner's, or as it is asked for. `may_shrink`: *input takes as many sequences as the
// memory has room for, down to one. LVP_ERR_USAGE where even that does not fit, or the partition cannot be.
enum lvp_status lvp_plan_choice(struct lvp_planner_input *input, const struct lvp_partition_choice *choice,
                                bool may_shrink, struct lvp_partition *partition) LVP_MUST_CHECK;

// Seconds that blocks first..end-1 take of the device of `stage` per request: compute, weights and KV read by decode,
// and sending over the cut behind them.
double lvp_stage_seconds(const struct lvp_planner_input *input, int stage, int first, int end);

// Bytes that blocks first..end-1 hold on a device: weights, and KV of every sequence in flight.
int64_t lvp_stage_memory(const struct lvp_planner_input *input, int first, int end);

#endif
