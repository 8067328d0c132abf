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
    pthread_t thread, scribe;
    bool started;
    char who[64];
    atomic_bool stop;
    atomic_bool writing, write_now; // the scribe is in the file system; it is wanted there
    atomic_ulong rounds;
    _Atomic(const char *) what;
    _Atomic double allowed;
    _Atomic double end_seconds; // 0: not asked for
    atomic_int end_status;
    pthread_mutex_t beat_lock; // guards the next two
    void (*beat)(void *context);
    void *beat_context;
} guard = {.beat_lock = PTHREAD_MUTEX_INITIALIZER};

static void sleep_ms(long ms)
{
    const struct timespec rest = {ms / 1000, ms % 1000 * 1000000};
    (void)nanosleep(&rest, NULL);
}

static void call_beat(void)
{
    pthread_mutex_lock(&guard.beat_lock);
    if (guard.beat != NULL) guard.beat(guard.beat_context);
    pthread_mutex_unlock(&guard.beat_lock);
}

// A file system may block this thread; that is why it does nothing else.
static void *write_record(void *argument)
{
    (void)argument;
    for (int round = 0; !atomic_load(&guard.stop); round++) {
        sleep_ms(50);
        bool second = round % 20 == 0;
        if (!second && !atomic_exchange(&guard.write_now, false)) continue;
        atomic_store(&guard.writing, true);
        if (second) call_beat();
        lvp_record_write();
        atomic_store(&guard.writing, false);
    }
    return NULL;
}

// Ends the process. The scribe gets a moment for the last words, unless it hangs itself.
static void end_process(int exit_status)
{
    lvp_record_end(exit_status, 0);
    atomic_store(&guard.write_now, true);
    sleep_ms(300);
    _exit(exit_status);
}

static void *keep(void *argument)
{
    (void)argument;
    struct lvp_patience main_thread = {0}, end = {0};
    unsigned long seen = 0;
    while (!atomic_load(&guard.stop)) {
        sleep_ms(100);
        lvp_record_beat();
        unsigned long rounds = atomic_load(&guard.rounds);
        if (rounds != seen) lvp_patience_reset(&main_thread);
        seen = rounds;
        double waited = lvp_patience_ask(&main_thread), allowed = atomic_load(&guard.allowed);
        double end_seconds = atomic_load(&guard.end_seconds);
        if (end_seconds > 0 && lvp_patience_ask(&end) > end_seconds) end_process(atomic_load(&guard.end_status));
        if (end_seconds > 0 || allowed <= 0 || waited <= allowed) continue;
        char text[256];
        (void)snprintf(text, sizeof text, "%s hangs while %s: nothing has moved for %.0f s", guard.who,
                       atomic_load(&guard.what), allowed);
        lvp_log(LVP_LOG_ERROR, "%s", text);
        lvp_record_error(text);
        end_process(lvp_exit_status(LVP_ERR_LOST));
    }
    return NULL;
}

enum lvp_status lvp_guard_start(const char *who)
{
    (void)snprintf(guard.who, sizeof guard.who, "%s", who);
    if (pthread_create(&guard.thread, NULL, keep, NULL) != 0)
        return lvp_fail(LVP_ERR_MEMORY, "the guard's thread could not be started");
    guard.started = pthread_create(&guard.scribe, NULL, write_record, NULL) == 0;
    if (guard.started) return LVP_OK;
    atomic_store(&guard.stop, true);
    pthread_join(guard.thread, NULL);
    return lvp_fail(LVP_ERR_MEMORY, "the guard's thread could not be started");
}

// Whether the scribe comes out of the file system within a second.
static bool scribe_answers(void)
{
    for (int i = 0; i < 100 && atomic_load(&guard.writing); i++) sleep_ms(10);
    return !atomic_load(&guard.writing);
}

void lvp_guard_stop(void)
{
    if (!guard.started) return;
    atomic_store(&guard.stop, true);
    pthread_join(guard.thread, NULL);
    if (scribe_answers()) {
        pthread_join(guard.scribe, NULL);
        lvp_record_write();
    } else {
        pthread_detach(guard.scribe);
    }
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

bool lvp_guard_every_second(void (*beat)(void *context), void *context)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 2;
    if (pthread_mutex_timedlock(&guard.beat_lock, &until) != 0) return false;
    guard.beat = beat;
    guard.beat_context = context;
    pthread_mutex_unlock(&guard.beat_lock);
    return true;
}
