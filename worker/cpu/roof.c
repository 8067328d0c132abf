#include "worker/cpu/roof.h"

#include "common/clock.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { TRIES = 5 };
static const size_t read_floats = (size_t)128 << 20; // many times any cache

struct measurement {
    const struct lvp_kernels *kernels;
    bool dot;
    long rounds;
    float *memory;
    _Atomic double flops;
    _Atomic float sink; // so that nothing is left out
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
    add(&m->flops, (m->dot ? m->kernels->dot_loop : m->kernels->fma_loop)(m->rounds, &result));
    atomic_store(&m->sink, result);
}

static void share(int thread, int threads, size_t *begin, size_t *n)
{
    *n = read_floats / (size_t)threads;
    *begin = *n * (size_t)thread;
}

static void touch(void *argument, int thread, int threads)
{
    const struct measurement *m = argument;
    size_t begin = 0, n = 0;
    share(thread, threads, &begin, &n);
    memset(m->memory + begin, 0, n * sizeof *m->memory);
}

static void read_share(void *argument, int thread, int threads)
{
    struct measurement *m = argument;
    size_t begin = 0, n = 0;
    share(thread, threads, &begin, &n);
    atomic_store(&m->sink, m->kernels->read_loop(m->memory + begin, n));
}

enum lvp_status lvp_cpu_roof(struct lvp_pool *pool, const struct lvp_kernels *kernels, enum lvp_dtype dtype,
                             struct lvp_roof *roof)
{
    struct measurement m = {.kernels = kernels, .dot = dtype == LVP_BF16, .rounds = 4000000};
    *roof = (struct lvp_roof){0};
    for (int i = 0; i < TRIES; i++) {
        atomic_store(&m.flops, 0);
        double start = lvp_now();
        lvp_pool_run(pool, compute, &m);
        double rate = atomic_load(&m.flops) / (lvp_now() - start);
        if (rate > roof->flops) roof->flops = rate;
    }
    m.memory = malloc(read_floats * sizeof *m.memory);
    if (m.memory == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for measuring the memory");
    lvp_pool_run(pool, touch, &m);
    for (int i = 0; i < TRIES; i++) {
        double start = lvp_now();
        lvp_pool_run(pool, read_share, &m);
        double rate = (double)(read_floats * sizeof *m.memory) / (lvp_now() - start);
        if (rate > roof->read_bytes) roof->read_bytes = rate;
    }
    free(m.memory);
    return LVP_OK;
}
