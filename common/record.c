#include "common/record.h"

#include "common/job.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const char magic[8] = "lvprec1";

enum { COMPUTE = LVP_RECORD_IMAGES, N_WORKERS = LVP_RECORD_IMAGES + 1, NOBODY = -1, WORD_BYTES = 24 };

// The page, as it is in the file. Written by many threads without a lock: each field is one store.
struct page {
    char magic[8];
    int32_t rank, n_ranks, replica, stage, n_stages;
    _Atomic int32_t phase, fault, blamed, end_signal, exit_status;
    int64_t pid, started_ms;
    char host[128];
    _Atomic int64_t heartbeat_ms;
    _Atomic uint64_t step, ticks;
    char error[512];
    char word[2][WORD_BYTES]; // of image threads; of the compute thread
    _Atomic int32_t n_samples;
    _Atomic uint64_t samples[LVP_RECORD_WORK];  // of the compute thread
    _Atomic uint64_t images[LVP_RECORD_IMAGES]; // sample + 1 of each image thread; 0: none
};

static struct page in_memory;
static struct page *page = &in_memory;
static char path_of_page[4096];
static _Thread_local int my_work = COMPUTE; // a thread of no special kind computes

// --- Writing -------------------------------------------------------------------------------------------------------

static int64_t wall_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

// Notes the signal and who had what in hand, and dies of it.
static void note_fault(int signal)
{
    atomic_store(&page->fault, signal);
    atomic_store(&page->blamed, my_work);
    (void)raise(signal); // SA_RESETHAND: the default now
}

void lvp_record_start(void)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
    struct sigaction action = {.sa_handler = note_fault, .sa_flags = (int)SA_RESETHAND};
    memcpy(in_memory.magic, magic, sizeof magic);
    in_memory.pid = getpid();
    lvp_host_name(in_memory.host, sizeof in_memory.host);
    atomic_store(&in_memory.blamed, NOBODY);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) (void)sigaction(faults[i], &action, NULL);
}

static void path_of(const char *dir, int rank, char *path, size_t size)
{
    (void)snprintf(path, size, "%s/.lvpipe/rank-%d", dir, rank);
}

bool lvp_record_open(const char *dir, struct lvp_record_place place)
{
    char path[sizeof path_of_page];
    path_of(dir, place.rank, path, sizeof path);
    in_memory.rank = place.rank;
    in_memory.n_ranks = place.n_ranks;
    in_memory.replica = place.replica;
    in_memory.stage = place.stage;
    in_memory.n_stages = place.n_stages;
    in_memory.started_ms = wall_ms();
    atomic_store(&in_memory.heartbeat_ms, in_memory.started_ms);
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0) return false;
    // Written, not only made longer: a full disk shows here, not as SIGBUS on the first store.
    bool written = write(file, &in_memory, sizeof in_memory) == (ssize_t)sizeof in_memory && fsync(file) == 0;
    void *mapped = written ? mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
    (void)close(file);
    if (mapped == MAP_FAILED) return false;
    memcpy(path_of_page, path, sizeof path);
    page = mapped;
    return true;
}

void lvp_record_phase(enum lvp_phase phase)
{
    atomic_store(&page->phase, (int32_t)phase);
}

void lvp_record_step(uint64_t number)
{
    atomic_store_explicit(&page->step, number, memory_order_relaxed);
}

void lvp_record_tick(void)
{
    atomic_fetch_add_explicit(&page->ticks, 1, memory_order_relaxed);
}

uint64_t lvp_record_ticks(void)
{
    return atomic_load_explicit(&page->ticks, memory_order_relaxed);
}

void lvp_record_work(int image_thread, const char *what, const uint64_t *samples, int n)
{
    if (image_thread >= 0) {
        if (image_thread >= LVP_RECORD_IMAGES) return;
        my_work = image_thread;
        if (n > 0) (void)snprintf(page->word[0], WORD_BYTES, "%s", what);
        atomic_store(&page->images[image_thread], n > 0 ? samples[0] + 1 : 0);
        return;
    }
    if (n > LVP_RECORD_WORK) n = LVP_RECORD_WORK;
    atomic_store(&page->n_samples, 0);
    if (n > 0) (void)snprintf(page->word[1], WORD_BYTES, "%s", what);
    for (int i = 0; i < n; i++) atomic_store_explicit(&page->samples[i], samples[i], memory_order_relaxed);
    atomic_store(&page->n_samples, n);
}

void lvp_record_blameless_thread(void)
{
    my_work = NOBODY;
}

void lvp_record_end(int exit_status, int signal)
{
    atomic_store(&page->exit_status, exit_status);
    atomic_store(&page->end_signal, signal);
    atomic_store(&page->phase, LVP_PHASE_ENDED);
}

void lvp_record_error(const char *text)
{
    (void)snprintf(page->error, sizeof page->error, "%s", text);
}

void lvp_record_beat(void)
{
    atomic_store_explicit(&page->heartbeat_ms, wall_ms(), memory_order_relaxed);
}

void lvp_record_sync(void)
{
    if (page != &in_memory) (void)msync(page, sizeof *page, MS_SYNC);
}

// --- Reading -------------------------------------------------------------------------------------------------------

static void view_blame(const struct page *from, struct lvp_record_view *view)
{
    int blamed = atomic_load(&from->blamed);
    if (view->fault == 0 || blamed < 0 || blamed >= N_WORKERS) return;
    bool compute = blamed == COMPUTE;
    int n = compute ? atomic_load(&from->n_samples) : atomic_load(&from->images[blamed]) > 0;
    if (n < 1 || n > LVP_RECORD_WORK) return;
    (void)snprintf(view->work, sizeof view->work, "%.*s", WORD_BYTES, from->word[compute ? 1 : 0]);
    for (int i = 0; i < n; i++)
        view->samples[i] = compute ? atomic_load(&from->samples[i]) : atomic_load(&from->images[blamed]) - 1;
    view->n_samples = n;
}

bool lvp_record_read(const char *dir, int rank, struct lvp_record_view *view)
{
    char path[sizeof path_of_page];
    struct page from;
    path_of(dir, rank, path, sizeof path);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    ssize_t n = pread(file, &from, sizeof from, 0);
    (void)close(file);
    if (n != (ssize_t)sizeof from || memcmp(from.magic, magic, sizeof magic) != 0 || from.rank != rank) return false;
    *view = (struct lvp_record_view){.place = {.rank = from.rank,
                                               .n_ranks = from.n_ranks,
                                               .replica = from.replica,
                                               .stage = from.stage,
                                               .n_stages = from.n_stages},
                                     .pid = from.pid,
                                     .phase = (enum lvp_phase)atomic_load(&from.phase),
                                     .started = (double)from.started_ms / 1000,
                                     .heartbeat = (double)atomic_load(&from.heartbeat_ms) / 1000,
                                     .step = atomic_load(&from.step),
                                     .fault = atomic_load(&from.fault),
                                     .end_signal = atomic_load(&from.end_signal),
                                     .exit_status = atomic_load(&from.exit_status)};
    (void)snprintf(view->host, sizeof view->host, "%.*s", (int)sizeof from.host, from.host);
    (void)snprintf(view->error, sizeof view->error, "%.*s", (int)sizeof from.error, from.error);
    view_blame(&from, view);
    return true;
}

// The rank of the next record in the folder; -1 after the last.
static int next_rank(DIR *folder)
{
    for (const struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        int rank = -1, end = 0;
        if (sscanf(entry->d_name, "rank-%9d%n", &rank, &end) == 1 && entry->d_name[end] == '\0' && rank >= 0)
            return rank;
    }
    return -1;
}

static DIR *open_folder(const char *dir)
{
    char path[sizeof path_of_page];
    (void)snprintf(path, sizeof path, "%s/.lvpipe", dir);
    return opendir(path);
}

void lvp_record_each(const char *dir, void (*visit)(void *context, const struct lvp_record_view *view), void *context)
{
    DIR *folder = open_folder(dir);
    struct lvp_record_view view;
    if (folder == NULL) return;
    for (int rank; (rank = next_rank(folder)) >= 0;)
        if (lvp_record_read(dir, rank, &view)) visit(context, &view);
    (void)closedir(folder);
}

void lvp_record_remove_all(const char *dir)
{
    DIR *folder = open_folder(dir);
    char path[sizeof path_of_page];
    if (folder == NULL) return;
    for (int rank; (rank = next_rank(folder)) >= 0;) {
        path_of(dir, rank, path, sizeof path);
        (void)unlink(path);
    }
    (void)closedir(folder);
}

struct search {
    double since;
    struct lvp_record_view *lost;
    int found;
};

static void compare_lost(void *context, const struct lvp_record_view *view)
{
    struct search *search = context;
    const struct lvp_record_view *best = search->lost;
    bool spoke = view->phase == LVP_PHASE_ENDED && view->fault == 0;
    if (spoke || view->started < search->since) return;
    bool same_kind = search->found >= 0 && (view->fault != 0) == (best->fault != 0);
    bool worse = search->found < 0 || (same_kind ? view->heartbeat < best->heartbeat : view->fault != 0);
    if (!worse) return;
    *search->lost = *view;
    search->found = view->place.rank;
}

int lvp_record_find_lost(const char *dir, double since, struct lvp_record_view *lost)
{
    struct search search = {.since = since, .lost = lost, .found = -1};
    lvp_record_each(dir, compare_lost, &search);
    return search.found;
}

void lvp_record_describe(const struct lvp_record_view *view, char *text, size_t size)
{
    char what[200], where[80];
    if (view->place.stage < 0)
        (void)snprintf(where, sizeof where, "coordinator");
    else if (view->place.replica > 0)
        (void)snprintf(where, sizeof where, "stage %d of replica %d", view->place.stage, view->place.replica);
    else
        (void)snprintf(where, sizeof where, "stage %d of %d", view->place.stage, view->place.n_stages);
    if (view->fault != 0)
        (void)snprintf(what, sizeof what, "crashed (%s)%s%s", strsignal(view->fault),
                       view->work[0] != '\0' ? " while " : "", view->work);
    else
        (void)snprintf(what, sizeof what, "lost%s", view->phase == LVP_PHASE_LOADING ? " while loading" : "");
    (void)snprintf(text, size, "rank %d (%s, %s): %s; its last step was %llu", view->place.rank, view->host, where,
                   what, (unsigned long long)view->step);
}
