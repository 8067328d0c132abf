#include "coordinator/output/lock.h"

#include "common/clock.h"
#include "common/job.h"
#include "common/log.h"
#include "coordinator/output/output_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

enum {
    LINE_BYTES = 512,      // written at once, so that a reader never sees half of it
    WATCH_SECONDS = 30,    // without a beat: a file system may hold one back
    LONG_AGO_SECONDS = 300 // a beat older than this needs no watching: clocks do not differ by that much
};

struct lvp_lock {
    char *dir, *path, *beat_path;
    int file; // holds the flock
    int beat_file;
    struct lvp_lock_owner self;
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

// A line of a file, opened anew: a network file system then asks its server.
static bool read_line(const char *path, char line[LINE_BYTES + 1])
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    ssize_t n = pread(file, line, LINE_BYTES, 0);
    (void)close(file);
    line[n > 0 ? n : 0] = '\0';
    return n > 0;
}

static char *beat_path_of(const char *dir, const char *token)
{
    char *path = NULL;
    return asprintf(&path, "%s/" LVP_STATE_FOLDER "/beat-%s", dir, token) < 0 ? NULL : path;
}

// The owner that the folder's lock names, without its beat. False where it names none.
static bool read_name(const char *dir, struct lvp_lock_owner *owner)
{
    char line[LINE_BYTES + 1];
    *owner = (struct lvp_lock_owner){0};
    char *path = lvp_output_path(dir, LVP_LOCK_FILE);
    bool named =
        path != NULL && read_line(path, line) &&
        sscanf(line, "%32[0-9a-f] %lld %127s %95[^\n]", owner->token, &owner->pid, owner->host, owner->job) == 4;
    free(path);
    if (!named) return false;
    for (size_t n = strlen(owner->job); n > 0 && owner->job[n - 1] == ' '; n--) owner->job[n - 1] = '\0';
    return true;
}

// The same with its last beat.
static bool read_owner(const char *dir, struct lvp_lock_owner *owner)
{
    char line[LINE_BYTES + 1];
    if (!read_name(dir, owner)) return false;
    char *path = beat_path_of(dir, owner->token);
    if (path != NULL && read_line(path, line)) (void)sscanf(line, "%lld %lf", &owner->beat, &owner->time);
    free(path);
    return true;
}

static bool write_line(int file, const char *text)
{
    char line[LINE_BYTES];
    memset(line, ' ', sizeof line);
    memcpy(line, text, strlen(text) < LINE_BYTES - 1 ? strlen(text) : LINE_BYTES - 1);
    line[LINE_BYTES - 1] = '\n';
    return pwrite(file, line, sizeof line, 0) == LINE_BYTES && fdatasync(file) == 0;
}

void lvp_lock_beat(void *context)
{
    struct lvp_lock *lock = context;
    char text[64];
    (void)snprintf(text, sizeof text, "%lld %.3f", ++lock->self.beat, lvp_wall_seconds());
    if (!write_line(lock->beat_file, text)) lvp_debug("%s: %s", lock->beat_path, strerror(errno));
}

static enum lvp_status held_by(const char *dir, const struct lvp_lock_owner *owner)
{
    return lvp_fail(LVP_ERR_USAGE,
                    "--output %s: another run is writing there (%s on %s, process %lld); wait for it or choose another "
                    "folder",
                    dir, owner->job[0] != '\0' ? owner->job : "unknown", owner->host, owner->pid);
}

// Whether the owner of another host shows a sign of life.
static enum lvp_status watch(const char *dir, const struct lvp_lock_owner *owner, const struct lvp_tick *tick,
                             bool *lives)
{
    *lives = false;
    if (lvp_wall_seconds() - owner->time > LONG_AGO_SECONDS) return LVP_OK;
    lvp_info("the output folder was locked by %s on %s; watching for %d s whether it lives", owner->job, owner->host,
             WATCH_SECONDS);
    const struct timespec rest = {0, 50000000};
    for (double end = lvp_now() + WATCH_SECONDS; lvp_now() < end;) {
        struct lvp_lock_owner seen;
        (void)nanosleep(&rest, NULL);
        LVP_TRY(lvp_tick_call(tick));
        if (!read_owner(dir, &seen)) return LVP_OK; // it has just ended
        *lives = seen.beat != owner->beat || strcmp(seen.token, owner->token) != 0;
        if (*lives) return LVP_OK;
    }
    return LVP_OK;
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

// Whether flock on this file system surely speaks for every host that sees it: then nobody else does.
static bool is_local(int file)
{
    static const unsigned long local[] = {EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, TMPFS_MAGIC,
                                          OVERLAYFS_SUPER_MAGIC};
    struct statfs info;
    if (fstatfs(file, &info) != 0) return false;
    for (size_t i = 0; i < sizeof local / sizeof *local; i++)
        if ((unsigned long)info.f_type == local[i]) return true;
    return false;
}

// Names us in the lock. The last one to write is the owner: two that waited for the same dead one look again.
static enum lvp_status name_owner(struct lvp_lock *lock, bool look_again)
{
    char text[400];
    struct lvp_lock_owner owner;
    lock->beat_path = beat_path_of(lock->dir, lock->self.token);
    if (lock->beat_path == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    lock->beat_file = open(lock->beat_path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (lock->beat_file < 0) return not_writable(lock->dir, errno);
    lvp_lock_beat(lock);
    (void)snprintf(text, sizeof text, "%s %lld %s %s", lock->self.token, lock->self.pid, lock->self.host,
                   lock->self.job);
    if (!write_line(lock->file, text)) return not_writable(lock->dir, errno);
    if (!look_again) return LVP_OK;
    const struct timespec rest = {0, 500000000};
    (void)nanosleep(&rest, NULL);
    bool ours = read_owner(lock->dir, &owner) && strcmp(owner.token, lock->self.token) == 0;
    return ours ? LVP_OK : held_by(lock->dir, &owner);
}

static enum lvp_status take(struct lvp_lock *lock, const struct lvp_tick *tick)
{
    struct lvp_lock_owner owner;
    bool lives = false;
    lock->file = open(lock->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock->file < 0) return not_writable(lock->dir, errno);
    bool locked = flock(lock->file, LOCK_EX | LOCK_NB) == 0; // of this host's processes, we are the only one
    if (!locked && errno == EWOULDBLOCK) {
        (void)read_owner(lock->dir, &owner);
        return held_by(lock->dir, &owner);
    }
    bool left_behind = read_owner(lock->dir, &owner);
    bool dead = locked && strcmp(owner.host, lock->self.host) == 0;
    if (left_behind && !dead) LVP_TRY(watch(lock->dir, &owner, tick, &lives));
    if (lives) return held_by(lock->dir, &owner);
    LVP_TRY(name_owner(lock, !locked || !is_local(lock->file)));
    char *old = left_behind ? beat_path_of(lock->dir, owner.token) : NULL;
    if (old != NULL) (void)unlink(old);
    free(old);
    return LVP_OK;
}

static void release(struct lvp_lock *lock)
{
    if (lock->file >= 0) (void)close(lock->file);
    if (lock->beat_file >= 0) (void)close(lock->beat_file);
    free(lock->dir);
    free(lock->path);
    free(lock->beat_path);
    free(lock);
}

enum lvp_status lvp_lock_take(const char *dir, const struct lvp_tick *tick, struct lvp_lock **result)
{
    LVP_TRY(make_folders(dir));
    struct lvp_lock *lock = calloc(1, sizeof *lock);
    if (lock == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    lock->file = lock->beat_file = -1;
    lock->dir = strdup(dir);
    lock->path = lvp_output_path(dir, LVP_LOCK_FILE);
    name_self(&lock->self);
    enum lvp_status status =
        lock->dir != NULL && lock->path != NULL ? take(lock, tick) : lvp_fail(LVP_ERR_MEMORY, "out of memory");
    if (status != LVP_OK) {
        if (lock->beat_path != NULL) (void)unlink(lock->beat_path);
        release(lock);
        return status;
    }
    *result = lock;
    return LVP_OK;
}

enum lvp_status lvp_lock_check(const struct lvp_lock *lock)
{
    struct lvp_lock_owner owner;
    if (!read_name(lock->dir, &owner)) // asked before every write: no beat is needed
        return lvp_fail(LVP_ERR_IO, "%s is gone or cannot be read: this run stops writing", lock->path);
    if (strcmp(owner.token, lock->self.token) != 0)
        return lvp_fail(LVP_ERR_IO, "%s was taken over by %s on %s: this run stops writing", lock->dir, owner.job,
                        owner.host);
    return LVP_OK;
}

void lvp_lock_release(struct lvp_lock *lock)
{
    if (lock == NULL) return;
    struct lvp_lock_owner owner;
    // Empty says: ended in good order. It is ours to empty only if it names us.
    if (read_name(lock->dir, &owner) && strcmp(owner.token, lock->self.token) == 0)
        if (ftruncate(lock->file, 0) != 0) lvp_debug("%s: %s", lock->path, strerror(errno));
    (void)unlink(lock->beat_path);
    release(lock);
}

bool lvp_lock_read(const char *dir, struct lvp_lock_owner *owner)
{
    return read_owner(dir, owner);
}
