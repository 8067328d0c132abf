#include "worker/cpu/roof.h"

#include "common/clock.h"
#include "worker/cpu/linear.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { TRIES = 3, ROUNDS = 20000, CHUNKS = 512, CHUNK = 1 << 18 }; // floats: half a gigabyte, more than caches hold

// Seconds of a try: several time slices, so that ranks which share cores all get their part of them meanwhile.
static const double burst = 0.2;

struct measurement {
    const struct lvp_kernels *kernels;
    bool dot, side_by_side;
    double until;
    float *memory;        // [CHUNKS, CHUNK]
    _Atomic double done;  // FLOPs or bytes of a try
    _Atomic float result; // so that nothing is left out
};

static void add(_Atomic double *sum, double value)
{
    double before = atomic_load(sum);
    while (!atomic_compare_exchange_weak(sum, &before, before + value)) {
    }
}

static void compute(void *argument, int thread, int threads)
{
    struct measurement *m = argument;
    (void)thread;
    (void)threads;
    float result = 0;
    double flops = 0;
    do {
        flops += (m->dot ? m->kernels->dot_loop : m->kernels->fma_loop)(ROUNDS, &result);
    } while (lvp_now() < m->until);
    add(&m->done, flops);
    atomic_store(&m->result, result);
}

static void touch(void *argument, int thread, int threads)
{
    const struct measurement *m = argument;
    int first = 0, end = 0;
    lvp_pool_share(CHUNKS, thread, threads, &first, &end);
    if (first < end) memset(m->memory + (size_t)first * CHUNK, 0, (size_t)(end - first) * CHUNK * sizeof *m->memory);
}

static void read_share(void *argument, int thread, int threads)
{
    struct measurement *m = argument;
    int first = 0, end = 0;
    double bytes = 0;
    lvp_pool_share(CHUNKS, thread, threads, &first, &end);
    for (int c = first; first < end && lvp_now() < m->until; c = c + 1 < end ? c + 1 : first) {
        atomic_store(&m->result, m->kernels->read_loop(m->memory + (size_t)c * CHUNK, CHUNK, m->side_by_side));
        bytes += (double)CHUNK * sizeof *m->memory;
    }
    add(&m->done, bytes);
}

static int compare_rates(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// What the threads do in a second: the median try, since another rank may use the machine in one and rest in the next.
static double measure(struct lvp_pool *pool, lvp_pool_fn *fn, struct measurement *m)
{
    double rates[TRIES];
    for (int i = 0; i < TRIES; i++) {
        double start = lvp_now();
        atomic_store(&m->done, 0);
        m->until = start + burst;
        lvp_pool_run(pool, fn, m);
        rates[i] = atomic_load(&m->done) / (lvp_now() - start);
    }
    qsort(rates, TRIES, sizeof *rates, compare_rates);
    return rates[TRIES / 2];
}

enum lvp_status lvp_cpu_roof(struct lvp_pool *pool, const struct lvp_kernels *kernels, enum lvp_dtype dtype,
                             struct lvp_roof *roof)
{
    struct measurement m = {.kernels = kernels, .dot = dtype == LVP_BF16};
    m.memory = lvp_weights_alloc((size_t)CHUNKS * CHUNK * sizeof *m.memory);
    if (m.memory == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for measuring the memory");
    roof->flops = measure(pool, compute, &m);
    lvp_pool_run(pool, touch, &m);
    double in_order = measure(pool, read_share, &m);
    m.side_by_side = true;
    roof->read_bytes = fmax(in_order, measure(pool, read_share, &m));
    free(m.memory);
    return LVP_OK;
}
