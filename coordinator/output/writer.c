#include "coordinator/output/writer.h"

#include "common/clock.h"
#include "common/guard.h"
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
    // the thread's own
    struct lvp_json_text taken;
    uint64_t offset; // where the next byte goes
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
    enum lvp_status (*act)(void *context); // NULL: nothing to be done
    void *act_context;
    double waiting_since; // of the oldest pending byte; negative: none
    double busy_since;    // the thread is in the file system; negative: it is not
    size_t writing;       // bytes the thread has taken and not brought to the disk
    bool hurry, stop;
    enum lvp_status status;
    char error[1024];
    bool warned; // the thread's own
};

static bool anything_pending(const struct lvp_writer *w)
{
    for (int f = 0; f < LVP_WRITER_FILES; f++)
        if (w->files[f].pending.length > 0) return true;
    for (int p = 0; p < LVP_WRITER_POSTS; p++)
        if (w->posts[p].path != NULL) return true;
    return w->act != NULL;
}

// --- The thread ----------------------------------------------------------------------------------------------------

static enum lvp_status write_at(struct file *file)
{
    const char *from = file->taken.data;
    for (size_t left = file->taken.length; left > 0;) {
        ssize_t n = pwrite(file->fd, from, left, (off_t)file->offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return lvp_fail(LVP_ERR_IO, "writing %s: %s; make room and give the same command again", file->name,
                            n < 0 ? strerror(errno) : "nothing was taken");
        from += n;
        left -= (size_t)n;
        file->offset += (uint64_t)n;
    }
    file->taken.length = 0;
    if (fdatasync(file->fd) != 0) return lvp_fail(LVP_ERR_IO, "writing %s: %s", file->name, strerror(errno));
    return LVP_OK;
}

// Nothing is written, not even the status, once the folder is somebody else's.
static enum lvp_status write_rows(struct lvp_writer *w)
{
    LVP_TRY(lvp_lock_check(w->folder_lock));
    for (int f = 0; f < LVP_WRITER_FILES; f++)
        if (w->files[f].taken.length > 0) LVP_TRY(write_at(&w->files[f]));
    return LVP_OK;
}

// A status that cannot be written is no reason to stop.
static void replace_file(struct lvp_writer *w, const struct post *post)
{
    if (post->path == NULL) return;
    enum lvp_status status = lvp_replace_file(post->path, post->text, false);
    if (status != LVP_OK && !w->warned) lvp_warn("%s", lvp_error_text());
    w->warned = w->warned || status != LVP_OK;
    lvp_error_clear();
}

static void drop(struct post *post)
{
    free(post->path);
    free(post->text);
    *post = (struct post){0};
}

// With the mutex held: takes what is pending, works without it, and notes how it went.
static void work(struct lvp_writer *w)
{
    struct post posts[LVP_WRITER_POSTS];
    enum lvp_status (*act)(void *context) = w->act;
    void *context = w->act_context;
    for (int f = 0; f < LVP_WRITER_FILES; f++) {
        struct lvp_json_text empty = w->files[f].taken;
        w->files[f].taken = w->files[f].pending;
        w->files[f].pending = empty;
        w->writing += w->files[f].taken.length;
    }
    for (int p = 0; p < LVP_WRITER_POSTS; p++) {
        posts[p] = w->posts[p];
        w->posts[p] = (struct post){0};
    }
    w->waiting_since = -1;
    w->busy_since = lvp_now();
    pthread_mutex_unlock(&w->lock);
    enum lvp_status status = write_rows(w);
    if (status == LVP_OK && act != NULL) status = act(context);
    for (int p = 0; p < LVP_WRITER_POSTS; p++) {
        if (status == LVP_OK) replace_file(w, &posts[p]);
        drop(&posts[p]);
    }
    pthread_mutex_lock(&w->lock);
    w->busy_since = -1;
    if (act != NULL) w->act = NULL;
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
    static const double long_rest = 60;
    *rest = w->waiting_since >= 0 ? w->waiting_since + sync_seconds - lvp_now() : long_rest;
    if (*rest <= 0 || w->act != NULL || ((w->hurry || w->stop) && anything_pending(w))) return true;
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
    (void)lvp_guard_every_second(lvp_lock_beat, lock);
    *result = w;
    return LVP_OK;
}

void lvp_writer_set_file(struct lvp_writer *w, int f, int fd, const char *name, uint64_t offset)
{
    pthread_mutex_lock(&w->lock);
    w->files[f].fd = fd;
    w->files[f].name = name;
    w->files[f].offset = offset;
    pthread_mutex_unlock(&w->lock);
}

enum lvp_status lvp_writer_append(struct lvp_writer *w, int f, const char *bytes, size_t n_bytes)
{
    pthread_mutex_lock(&w->lock);
    enum lvp_status status = failure(w);
    struct file *file = &w->files[f];
    lvp_json_text_append(&file->pending, bytes, n_bytes);
    if (file->pending.failed) status = lvp_fail(LVP_ERR_MEMORY, "%s: out of memory", file->name);
    if (w->waiting_since < 0 || file->pending.length >= WRITE_BYTES) pthread_cond_signal(&w->wake);
    if (w->waiting_since < 0) w->waiting_since = lvp_now();
    pthread_mutex_unlock(&w->lock);
    return status;
}

enum lvp_status lvp_writer_act(struct lvp_writer *w, enum lvp_status (*act)(void *context), void *context)
{
    pthread_mutex_lock(&w->lock);
    enum lvp_status status = w->act == NULL ? failure(w) : lvp_fail(LVP_ERR_INTERNAL, "two acts of the writer at once");
    if (status == LVP_OK) {
        w->act = act;
        w->act_context = context;
        pthread_cond_signal(&w->wake);
    }
    pthread_mutex_unlock(&w->lock);
    return status;
}

bool lvp_writer_acting(struct lvp_writer *w)
{
    pthread_mutex_lock(&w->lock);
    bool acting = w->act != NULL;
    pthread_mutex_unlock(&w->lock);
    return acting;
}

enum lvp_status lvp_writer_post(struct lvp_writer *w, int p, const char *path, const char *text)
{
    struct post post = {strdup(path), strdup(text)}, old;
    if (post.path == NULL || post.text == NULL) {
        drop(&post);
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
    drop(&old);
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
        lvp_guard_tick();
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

enum lvp_status lvp_writer_close(struct lvp_writer *w, bool *left_behind)
{
    *left_behind = false;
    if (w == NULL) return LVP_OK;
    pthread_mutex_lock(&w->lock);
    enum lvp_status status = wait_until_written(w);
    *left_behind = w->busy_since >= 0;
    w->stop = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
    bool beating = !lvp_guard_every_second(NULL, NULL); // a beat hangs
    if (*left_behind || beating) {                      // either may still wake up and look at its memory
        pthread_detach(w->thread);
        *left_behind = true;
        return status != LVP_OK ? status : lvp_fail(LVP_ERR_IO, "the output's file system does not answer");
    }
    pthread_join(w->thread, NULL);
    for (int f = 0; f < LVP_WRITER_FILES; f++) {
        lvp_json_text_free(&w->files[f].pending);
        lvp_json_text_free(&w->files[f].taken);
    }
    for (int p = 0; p < LVP_WRITER_POSTS; p++) drop(&w->posts[p]);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->wake);
    pthread_cond_destroy(&w->done);
    free(w);
    return status;
}
