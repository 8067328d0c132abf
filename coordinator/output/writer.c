#include "coordinator/output/writer.h"

#include "common/clock.h"
#include "common/json_text.h"
#include "common/log.h"
#include "coordinator/output/output_folder.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { WRITE_BYTES = 1 << 18 };         // so much is written at once
static const double sync_seconds = 1.0; // and so long may a row wait

struct file {
    int fd;
    const char *name;
    struct lvp_json_text pending; // appended and not taken by the thread
};

struct post {
    char *path, *text; // owned; NULL: nothing is posted
};

struct lvp_writer {
    struct lvp_lock *folder_lock;
    pthread_t thread;
    pthread_mutex_t lock; // guards what follows
    pthread_cond_t wake, done;
    struct file files[LVP_WRITER_FILES];
    struct post posts[LVP_WRITER_POSTS];
    double waiting_since; // of the oldest pending byte; negative: none
    double busy_since;    // the thread is in the file system; negative: it is not
    size_t writing;       // bytes the thread has taken and not brought to the disk
    bool hurry, stop;
    enum lvp_status status;
    char error[1024];
    // the thread's own
    struct lvp_json_text taken[LVP_WRITER_FILES];
    bool warned;
};

static bool anything_pending(const struct lvp_writer *w)
{
    for (int f = 0; f < LVP_WRITER_FILES; f++)
        if (w->files[f].pending.length > 0) return true;
    for (int p = 0; p < LVP_WRITER_POSTS; p++)
        if (w->posts[p].path != NULL) return true;
    return false;
}

// --- The thread ----------------------------------------------------------------------------------------------------

static enum lvp_status write_rows(struct lvp_writer *w, const int *fds, const char *const *names)
{
    for (int f = 0; f < LVP_WRITER_FILES; f++) {
        if (w->taken[f].length == 0) continue;
        LVP_TRY(lvp_write_all(fds[f], names[f], w->taken[f].data, w->taken[f].length));
        w->taken[f].length = 0;
        if (fdatasync(fds[f]) != 0) return lvp_fail(LVP_ERR_IO, "writing %s: %s", names[f], strerror(errno));
    }
    return LVP_OK;
}

static void replace_file(struct lvp_writer *w, const struct post *post)
{
    if (post->path == NULL) return;
    enum lvp_status status = lvp_replace_file(post->path, post->text, false);
    if (status != LVP_OK && !w->warned) lvp_warn("%s", lvp_error_text());
    w->warned = w->warned || status != LVP_OK;
    lvp_error_clear();
    free(post->path);
    free(post->text);
}

// One round in the file system, without the mutex. The folder must still be ours when rows are written.
static enum lvp_status touch_folder(struct lvp_writer *w, const int *fds, const char *const *names, struct post *posts)
{
    enum lvp_status status = LVP_OK;
    if (lvp_now() - lvp_lock_last_beat(w->folder_lock) >= LVP_LOCK_BEAT_SECONDS) status = lvp_lock_beat(w->folder_lock);
    if (status == LVP_OK) status = write_rows(w, fds, names);
    for (int p = 0; p < LVP_WRITER_POSTS; p++) replace_file(w, &posts[p]);
    return status;
}

// With the mutex held: takes what is pending, works without it, and notes how it went.
static void work(struct lvp_writer *w)
{
    int fds[LVP_WRITER_FILES];
    const char *names[LVP_WRITER_FILES];
    struct post posts[LVP_WRITER_POSTS];
    for (int f = 0; f < LVP_WRITER_FILES; f++) {
        struct lvp_json_text empty = w->taken[f];
        w->taken[f] = w->files[f].pending;
        w->files[f].pending = empty;
        w->writing += w->taken[f].length;
        fds[f] = w->files[f].fd;
        names[f] = w->files[f].name;
    }
    for (int p = 0; p < LVP_WRITER_POSTS; p++) {
        posts[p] = w->posts[p];
        w->posts[p] = (struct post){0};
    }
    w->waiting_since = -1;
    w->busy_since = lvp_now();
    pthread_mutex_unlock(&w->lock);
    enum lvp_status status = touch_folder(w, fds, names, posts);
    pthread_mutex_lock(&w->lock);
    w->busy_since = -1;
    if (status == LVP_OK) {
        w->writing = 0;
    } else {
        w->status = status;
        (void)snprintf(w->error, sizeof w->error, "%s", lvp_error_text());
    }
    pthread_cond_broadcast(&w->done);
}

// Whether there is a reason to go into the file system now; else *rest says for how long there will be none.
static bool is_due(const struct lvp_writer *w, double *rest)
{
    double now = lvp_now(), beat = lvp_lock_last_beat(w->folder_lock) + LVP_LOCK_BEAT_SECONDS - now;
    double sync = w->waiting_since >= 0 ? w->waiting_since + sync_seconds - now : beat;
    *rest = beat < sync ? beat : sync;
    if (*rest <= 0 || ((w->hurry || w->stop) && anything_pending(w))) return true;
    for (int f = 0; f < LVP_WRITER_FILES; f++)
        if (w->files[f].pending.length >= WRITE_BYTES) return true;
    return false;
}

static void *run(void *argument)
{
    struct lvp_writer *w = argument;
    pthread_mutex_lock(&w->lock);
    while (w->status == LVP_OK) {
        double rest = 0;
        if (is_due(w, &rest)) {
            work(w);
            continue;
        }
        if (w->stop) break;
        struct timespec until;
        (void)clock_gettime(CLOCK_MONOTONIC, &until);
        long long nanoseconds = until.tv_nsec + (long long)(rest * 1e9);
        until.tv_sec += (time_t)(nanoseconds / 1000000000);
        until.tv_nsec = (long)(nanoseconds % 1000000000);
        (void)pthread_cond_timedwait(&w->wake, &w->lock, &until);
    }
    pthread_cond_broadcast(&w->done);
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

// --- The coordinator's side ----------------------------------------------------------------------------------------

static enum lvp_status failure(const struct lvp_writer *w)
{
    if (w->status != LVP_OK) return lvp_fail(w->status, "%s", w->error);
    if (w->busy_since >= 0 && lvp_now() - w->busy_since > LVP_WRITER_HANG_SECONDS)
        return lvp_fail(LVP_ERR_IO, "the output's file system has not answered for %d s", LVP_WRITER_HANG_SECONDS);
    return LVP_OK;
}

enum lvp_status lvp_writer_open(struct lvp_lock *lock, struct lvp_writer **result)
{
    struct lvp_writer *w = calloc(1, sizeof *w);
    if (w == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the writer");
    w->folder_lock = lock;
    w->waiting_since = w->busy_since = -1;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->wake, &monotonic);
    pthread_cond_init(&w->done, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (pthread_create(&w->thread, NULL, run, w) != 0) {
        free(w);
        return lvp_fail(LVP_ERR_MEMORY, "the writer's thread could not be started");
    }
    *result = w;
    return LVP_OK;
}

enum lvp_status lvp_writer_append(struct lvp_writer *w, int f, int fd, const char *name, const char *bytes,
                                  size_t n_bytes)
{
    pthread_mutex_lock(&w->lock);
    enum lvp_status status = failure(w);
    struct file *file = &w->files[f];
    file->fd = fd;
    file->name = name;
    lvp_json_text_append(&file->pending, bytes, n_bytes);
    if (file->pending.failed) status = lvp_fail(LVP_ERR_MEMORY, "%s: out of memory", name);
    if (w->waiting_since < 0 || file->pending.length >= WRITE_BYTES) pthread_cond_signal(&w->wake);
    if (w->waiting_since < 0) w->waiting_since = lvp_now();
    pthread_mutex_unlock(&w->lock);
    return status;
}

enum lvp_status lvp_writer_post(struct lvp_writer *w, int p, const char *path, const char *text)
{
    struct post post = {strdup(path), strdup(text)}, old;
    if (post.path == NULL || post.text == NULL) {
        free(post.path);
        free(post.text);
        return lvp_fail(LVP_ERR_MEMORY, "%s: out of memory", path);
    }
    pthread_mutex_lock(&w->lock);
    old = w->posts[p];
    w->posts[p] = post;
    if (w->waiting_since < 0) {
        w->waiting_since = lvp_now();
        pthread_cond_signal(&w->wake);
    }
    pthread_mutex_unlock(&w->lock);
    free(old.path);
    free(old.text);
    return LVP_OK;
}

enum lvp_status lvp_writer_status(struct lvp_writer *w)
{
    pthread_mutex_lock(&w->lock);
    enum lvp_status status = failure(w);
    pthread_mutex_unlock(&w->lock);
    return status;
}

size_t lvp_writer_pending(struct lvp_writer *w)
{
    pthread_mutex_lock(&w->lock);
    size_t n = w->writing;
    for (int f = 0; f < LVP_WRITER_FILES; f++) n += w->files[f].pending.length;
    pthread_mutex_unlock(&w->lock);
    return n;
}

// With the mutex held.
static enum lvp_status wait_until_written(struct lvp_writer *w)
{
    w->hurry = true;
    pthread_cond_signal(&w->wake);
    while (failure(w) == LVP_OK && (anything_pending(w) || w->busy_since >= 0)) {
        struct timespec until;
        (void)clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += 1;
        (void)pthread_cond_timedwait(&w->done, &w->lock, &until);
    }
    w->hurry = false;
    return failure(w);
}

enum lvp_status lvp_writer_flush(struct lvp_writer *w)
{
    pthread_mutex_lock(&w->lock);
    enum lvp_status status = wait_until_written(w);
    pthread_mutex_unlock(&w->lock);
    return status;
}

enum lvp_status lvp_writer_close(struct lvp_writer *w)
{
    if (w == NULL) return LVP_OK;
    pthread_mutex_lock(&w->lock);
    enum lvp_status status = wait_until_written(w);
    bool hangs = w->busy_since >= 0;
    w->stop = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
    if (hangs) { // it may still wake up and look at its memory
        pthread_detach(w->thread);
        return status;
    }
    pthread_join(w->thread, NULL);
    for (int f = 0; f < LVP_WRITER_FILES; f++) {
        lvp_json_text_free(&w->files[f].pending);
        lvp_json_text_free(&w->taken[f]);
    }
    for (int p = 0; p < LVP_WRITER_POSTS; p++) {
        free(w->posts[p].path);
        free(w->posts[p].text);
    }
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->wake);
    pthread_cond_destroy(&w->done);
    free(w);
    return status;
}
