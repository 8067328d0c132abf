#include "worker/cpu/pool.h"

#include "common/record.h"

#include <fenv.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

// About 20..50 us of pause instructions: longer than the gap between two operations of a step, shorter than a time
// slice.
enum { SPINS = 1000 };

struct worker {
    struct lvp_pool *pool;
    pthread_t thread;
    int index;
};

struct lvp_pool {
    int threads;
    int started; // workers that exist; workers[i] is thread i + 1
    struct worker *workers;

    // Written by the caller before `round` moves on, read by the workers after they see it move.
    lvp_pool_fn *fn;
    void *arg;
    bool stop;

    _Atomic uint32_t round; // counts runs
    _Atomic int unfinished; // workers still inside fn
    pthread_mutex_t lock;   // only for sleeping: round moves, and unfinished reaches 0, under it
    pthread_cond_t round_moved, all_finished;
};

static void set_float_environment(void)
{
#if defined(__SSE__)
    _mm_setcsr(0x1f80); // all exceptions masked, round to nearest, FTZ and DAZ off: the ABI's default
#else
    (void)fesetenv(FE_DFL_ENV);
#endif
}

static void pause_briefly(void)
{
#if defined(__SSE__)
    _mm_pause();
#endif
}

static void wait_for_round(struct lvp_pool *pool, uint32_t seen)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&pool->round, memory_order_acquire) != seen) return;
        pause_briefly();
    }
    pthread_mutex_lock(&pool->lock);
    while (atomic_load_explicit(&pool->round, memory_order_acquire) == seen)
        pthread_cond_wait(&pool->round_moved, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}

static void *worker_main(void *arg)
{
    const struct worker *self = arg;
    struct lvp_pool *pool = self->pool;
    set_float_environment();
    lvp_record_compute_thread();
    for (uint32_t seen = 0;; seen++) {
        wait_for_round(pool, seen);
        if (pool->stop) return NULL;
        pool->fn(pool->arg, self->index, pool->threads);
        if (atomic_fetch_sub_explicit(&pool->unfinished, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->all_finished);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

static void start_round(struct lvp_pool *pool)
{
    atomic_store_explicit(&pool->unfinished, pool->started, memory_order_relaxed);
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add_explicit(&pool->round, 1, memory_order_release);
    pthread_cond_broadcast(&pool->round_moved);
    pthread_mutex_unlock(&pool->lock);
}

static void wait_for_workers(struct lvp_pool *pool)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&pool->unfinished, memory_order_acquire) == 0) return;
        pause_briefly();
    }
    pthread_mutex_lock(&pool->lock);
    while (atomic_load_explicit(&pool->unfinished, memory_order_acquire) != 0)
        pthread_cond_wait(&pool->all_finished, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}

enum lvp_status lvp_pool_create(int threads, struct lvp_pool **pool)
{
    *pool = NULL;
    if (threads < 1) return lvp_fail(LVP_ERR_INTERNAL, "a thread pool of %d threads", threads);
    struct lvp_pool *created = calloc(1, sizeof *created);
    if (!created) return lvp_fail(LVP_ERR_MEMORY, "no memory for a thread pool");
    created->threads = threads;
    pthread_mutex_init(&created->lock, NULL);
    pthread_cond_init(&created->round_moved, NULL);
    pthread_cond_init(&created->all_finished, NULL);
    created->workers = calloc((size_t)threads, sizeof *created->workers);
    if (!created->workers) {
        lvp_pool_destroy(created);
        return lvp_fail(LVP_ERR_MEMORY, "no memory for %d compute threads", threads);
    }
    for (int i = 0; i < threads - 1; i++) {
        struct worker *worker = &created->workers[i];
        worker->pool = created;
        worker->index = i + 1;
        int error = pthread_create(&worker->thread, NULL, worker_main, worker);
        if (error != 0) {
            lvp_pool_destroy(created);
            return lvp_fail(LVP_ERR_MEMORY, "cannot start compute thread %d of %d: %s", i + 1, threads,
                            strerror(error));
        }
        created->started++;
    }
    *pool = created;
    return LVP_OK;
}

void lvp_pool_destroy(struct lvp_pool *pool)
{
    if (!pool) return;
    if (pool->started > 0) {
        pool->stop = true;
        start_round(pool);
        for (int i = 0; i < pool->started; i++) (void)pthread_join(pool->workers[i].thread, NULL);
    }
    pthread_cond_destroy(&pool->all_finished);
    pthread_cond_destroy(&pool->round_moved);
    pthread_mutex_destroy(&pool->lock);
    free(pool->workers);
    free(pool);
}

int lvp_pool_threads(const struct lvp_pool *pool)
{
    return pool->threads;
}

void lvp_pool_run(struct lvp_pool *pool, lvp_pool_fn *fn, void *arg)
{
    set_float_environment();
    if (pool->started == 0) {
        fn(arg, 0, 1);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    start_round(pool);
    fn(arg, 0, pool->threads);
    wait_for_workers(pool);
}
