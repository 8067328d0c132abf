#include "common/guard.h"

#include "common/log.h"
#include "common/patience.h"
#include "common/record.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static struct {
    pthread_t thread, syncer;
    bool started;
    _Atomic bool syncing;
    char who[64];
    _Atomic bool stop;
    _Atomic unsigned long rounds;
    _Atomic(const char *) what;
    _Atomic double allowed;
    _Atomic double end_seconds; // 0: not asked for
    _Atomic int end_status;
} guard;

static void sleep_ms(long ms)
{
    const struct timespec rest = {ms / 1000, ms % 1000 * 1000000};
    (void)nanosleep(&rest, NULL);
}

// A file system may block this thread; that is why it does nothing else.
static void *sync_record(void *argument)
{
    (void)argument;
    lvp_record_blameless_thread();
    for (int round = 0; !atomic_load(&guard.stop); round++) {
        sleep_ms(100);
        if (round % 10 != 0) continue;
        atomic_store(&guard.syncing, true);
        lvp_record_sync();
        atomic_store(&guard.syncing, false);
    }
    return NULL;
}

static void *keep(void *argument)
{
    (void)argument;
    struct lvp_patience main_thread = {0}, end = {0};
    unsigned long seen = 0;
    lvp_record_blameless_thread();
    while (!atomic_load(&guard.stop)) {
        sleep_ms(100);
        lvp_record_beat();
        unsigned long rounds = atomic_load(&guard.rounds);
        if (rounds != seen) lvp_patience_reset(&main_thread);
        seen = rounds;
        double waited = lvp_patience_ask(&main_thread), allowed = atomic_load(&guard.allowed);
        double end_seconds = atomic_load(&guard.end_seconds);
        if (end_seconds > 0 && lvp_patience_ask(&end) > end_seconds) {
            lvp_record_end(atomic_load(&guard.end_status), 0);
            _exit(atomic_load(&guard.end_status));
        }
        if (end_seconds > 0 || allowed <= 0 || waited <= allowed) continue;
        char text[256];
        (void)snprintf(text, sizeof text, "%s hangs while %s: nothing has moved for %.0f s", guard.who,
                       atomic_load(&guard.what), allowed);
        lvp_log(LVP_LOG_ERROR, "%s", text);
        lvp_record_error(text);
        lvp_record_end(lvp_exit_status(LVP_ERR_LOST), 0);
        _exit(lvp_exit_status(LVP_ERR_LOST));
    }
    return NULL;
}

enum lvp_status lvp_guard_start(const char *who)
{
    (void)snprintf(guard.who, sizeof guard.who, "%s", who);
    if (pthread_create(&guard.thread, NULL, keep, NULL) != 0)
        return lvp_fail(LVP_ERR_MEMORY, "the guard's thread could not be started");
    guard.started = true;
    if (pthread_create(&guard.syncer, NULL, sync_record, NULL) == 0) return LVP_OK;
    atomic_store(&guard.stop, true);
    pthread_join(guard.thread, NULL);
    guard.started = false;
    return lvp_fail(LVP_ERR_MEMORY, "the guard's thread could not be started");
}

void lvp_guard_stop(void)
{
    if (!guard.started) return;
    atomic_store(&guard.stop, true);
    pthread_join(guard.thread, NULL);
    if (atomic_load(&guard.syncing)) sleep_ms(200);
    if (atomic_load(&guard.syncing))
        pthread_detach(guard.syncer);
    else
        pthread_join(guard.syncer, NULL);
    guard.started = false;
}

void lvp_guard_tick(void)
{
    atomic_fetch_add_explicit(&guard.rounds, 1, memory_order_relaxed);
}

void lvp_guard_allow(double seconds, const char *what)
{
    atomic_store(&guard.what, what);
    atomic_store(&guard.allowed, seconds);
    lvp_guard_tick();
}

void lvp_guard_end_within(double seconds, int exit_status)
{
    atomic_store(&guard.end_status, exit_status);
    atomic_store(&guard.end_seconds, seconds);
}
