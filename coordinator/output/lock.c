#include "coordinator/output/lock.h"

#include "common/clock.h"
#include "common/job.h"
#include "common/log.h"
#include "coordinator/output/output_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    RECORD_BYTES = 512,    // written at once, so that a reader never sees half a record
    WATCH_SECONDS = 10,    // without a beat of LVP_LOCK_BEAT_SECONDS
    LONG_AGO_SECONDS = 300 // a beat older than this needs no watching: clocks do not differ by that much
};

struct lvp_lock {
    char *dir, *path;
    int file; // holds the flock
    struct lvp_lock_owner self;
    double last_beat;
};

static enum lvp_status not_writable(const char *dir, int reason)
{
    return lvp_fail(LVP_ERR_USAGE, "--output %s cannot be written to: %s", dir, strerror(reason));
}

static enum lvp_status make_folders(const char *dir)
{
    char *path = NULL;
    int reason = 0;
    if (asprintf(&path, "%s/" LVP_STATE_FOLDER, dir) < 0) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(path, 0777) != 0 && errno != EEXIST && reason == 0) reason = errno;
        *slash = '/';
    }
    // What matters is whether the last one is there; if not, the first failure says why.
    bool failed = mkdir(path, 0777) != 0 && errno != EEXIST;
    if (failed && reason == 0) reason = errno;
    free(path);
    return failed ? not_writable(dir, reason) : LVP_OK;
}

static bool read_owner(const char *path, struct lvp_lock_owner *owner)
{
    char record[RECORD_BYTES + 1] = "";
    *owner = (struct lvp_lock_owner){0};
    int file = open(path, O_RDONLY | O_CLOEXEC); // opened anew: a network file system then asks its server
    if (file < 0) return false;
    ssize_t n = pread(file, record, RECORD_BYTES, 0);
    (void)close(file);
    return n > 0 && sscanf(record, "%32s %lld %lf %lld %127s %95[^\n]", owner->token, &owner->beat, &owner->time,
                           &owner->pid, owner->host, owner->job) == 6;
}

static enum lvp_status write_self(struct lvp_lock *lock)
{
    char record[RECORD_BYTES];
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    lock->self.time = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    memset(record, ' ', sizeof record);
    int n = snprintf(record, sizeof record, "%s %lld %.3f %lld %s %s\n", lock->self.token, lock->self.beat,
                     lock->self.time, lock->self.pid, lock->self.host, lock->self.job);
    if (n > 0 && n < RECORD_BYTES) record[n] = ' '; // snprintf's end
    record[RECORD_BYTES - 1] = '\n';
    if (pwrite(lock->file, record, sizeof record, 0) != RECORD_BYTES || fdatasync(lock->file) != 0)
        return lvp_fail(LVP_ERR_IO, "writing %s: %s", lock->path, strerror(errno));
    lock->last_beat = lvp_now();
    return LVP_OK;
}

static enum lvp_status held_by(const char *dir, const struct lvp_lock_owner *owner)
{
    return lvp_fail(LVP_ERR_USAGE,
                    "--output %s: another run is writing there (%s on %s, process %lld); wait for it or choose another "
                    "folder",
                    dir, owner->job[0] != '\0' ? owner->job : "unknown", owner->host, owner->pid);
}

// Whether the owner of another host shows a sign of life.
static bool beats(const char *path, const struct lvp_lock_owner *owner)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    if ((double)now.tv_sec - owner->time > LONG_AGO_SECONDS) return false;
    lvp_info("the output folder was locked by %s on %s; watching for %d s whether it lives", owner->job, owner->host,
             WATCH_SECONDS);
    const struct timespec rest = {0, 250000000};
    for (double end = lvp_now() + WATCH_SECONDS; lvp_now() < end;) {
        struct lvp_lock_owner seen;
        (void)nanosleep(&rest, NULL);
        if (!read_owner(path, &seen)) return false; // it has just ended
        if (seen.beat != owner->beat || strcmp(seen.token, owner->token) != 0) return true;
    }
    return false;
}

static void name_self(struct lvp_lock_owner *self)
{
    unsigned char bytes[16];
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)((unsigned long)getpid() >> (i % 4 * 8));
    for (size_t i = 0; i < sizeof bytes; i++) (void)snprintf(self->token + 2 * i, 3, "%02x", bytes[i]);
    lvp_host_name(self->host, sizeof self->host);
    lvp_job_name(self->job, sizeof self->job);
    self->pid = getpid();
}

static enum lvp_status take(struct lvp_lock *lock)
{
    struct lvp_lock_owner owner;
    lock->file = open(lock->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock->file < 0) return not_writable(lock->dir, errno);
    bool shared = true; // flock speaks for every process of this host at least
    if (flock(lock->file, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK) {
            (void)read_owner(lock->path, &owner);
            return held_by(lock->dir, &owner);
        }
        shared = false;
    }
    bool left_behind = read_owner(lock->path, &owner);
    bool dead = shared && strcmp(owner.host, lock->self.host) == 0;
    if (left_behind && !dead && beats(lock->path, &owner)) return held_by(lock->dir, &owner);
    enum lvp_status status = write_self(lock);
    if (status != LVP_OK) {
        int reason = errno;
        lvp_error_clear();
        return not_writable(lock->dir, reason);
    }
    if (shared && (!left_behind || dead)) return LVP_OK;
    // Two runs may have waited for the same dead owner: the last one to write is the one that stays.
    const struct timespec rest = {0, 500000000};
    (void)nanosleep(&rest, NULL);
    if (!read_owner(lock->path, &owner) || strcmp(owner.token, lock->self.token) != 0)
        return held_by(lock->dir, &owner);
    return LVP_OK;
}

static void release(struct lvp_lock *lock)
{
    if (lock->file >= 0) (void)close(lock->file);
    free(lock->dir);
    free(lock->path);
    free(lock);
}

enum lvp_status lvp_lock_take(const char *dir, struct lvp_lock **result)
{
    LVP_TRY(make_folders(dir));
    struct lvp_lock *lock = calloc(1, sizeof *lock);
    if (lock == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    lock->file = -1;
    lock->dir = strdup(dir);
    lock->path = lvp_output_path(dir, LVP_LOCK_FILE);
    name_self(&lock->self);
    enum lvp_status status =
        lock->dir != NULL && lock->path != NULL ? take(lock) : lvp_fail(LVP_ERR_MEMORY, "out of memory");
    if (status != LVP_OK) {
        release(lock);
        return status;
    }
    *result = lock;
    return LVP_OK;
}

enum lvp_status lvp_lock_beat(struct lvp_lock *lock)
{
    struct lvp_lock_owner owner;
    if (!read_owner(lock->path, &owner))
        return lvp_fail(LVP_ERR_IO, "%s is gone or cannot be read: the folder is not ours any more", lock->path);
    if (strcmp(owner.token, lock->self.token) != 0)
        return lvp_fail(LVP_ERR_IO, "%s was taken over by %s on %s: this run stops writing", lock->dir, owner.job,
                        owner.host);
    lock->self.beat++;
    return write_self(lock);
}

double lvp_lock_last_beat(const struct lvp_lock *lock)
{
    return lock->last_beat;
}

void lvp_lock_release(struct lvp_lock *lock)
{
    if (lock == NULL) return;
    struct lvp_lock_owner owner;
    // Empty says: ended in good order. It is ours still only if it names us.
    if (read_owner(lock->path, &owner) && strcmp(owner.token, lock->self.token) == 0)
        if (ftruncate(lock->file, 0) != 0) lvp_debug("%s: %s", lock->path, strerror(errno));
    release(lock);
}

bool lvp_lock_read(const char *dir, struct lvp_lock_owner *owner)
{
    char *path = lvp_output_path(dir, LVP_LOCK_FILE);
    bool held = path != NULL && read_owner(path, owner);
    free(path);
    return held;
}
