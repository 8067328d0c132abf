// Compute threads of the CPU backend: one function runs on all of them at once, the caller being thread 0.
// Idle threads spin for some microseconds (the next operation of a step comes at once), then sleep at no CPU cost.
// Every compute thread, the caller too, runs with the default floating point environment (round to nearest, subnormals
// kept), so that results do not depend on which thread computed them or on what a library left behind.
#ifndef LVP_WORKER_CPU_POOL_H
#define LVP_WORKER_CPU_POOL_H

#include "common/status.h"

struct lvp_pool;

// Runs on every thread of the pool: thread 0 .. threads - 1.
typedef void lvp_pool_fn(void *arg, int thread, int threads);

// `threads` >= 1 counts the caller: threads - 1 are started. LVP_ERR_MEMORY when they cannot be.
enum lvp_status lvp_pool_create(int threads, struct lvp_pool **pool) LVP_MUST_CHECK;
void lvp_pool_destroy(struct lvp_pool *pool); // NULL is allowed

int lvp_pool_threads(const struct lvp_pool *pool);

// Returns when every thread has returned from fn; what they wrote is visible to the caller. One caller at a time; fn
// does not call it on the same pool. With one thread, a plain call.
void lvp_pool_run(struct lvp_pool *pool, lvp_pool_fn *fn, void *arg);

// Thread `thread`'s part [*begin, *end) of n items in contiguous shares that differ by one item at most.
static inline void lvp_pool_share(int n, int thread, int threads, int *begin, int *end)
{
    *begin = (int)((long long)n * thread / threads);
    *end = (int)((long long)n * (thread + 1) / threads);
}

#endif
