#include "common/record.h"

#include "common/job.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char magic[8] = "lvprec2";

enum {
    COMPUTE = LVP_RECORD_IMAGES,
    NOBODY = -1,
    WORD_BYTES = 24,
    HOST_BYTES = 128,
    ERROR_BYTES = 512,
    PATH_BYTES = 4096
};

// The record, as it is in the file. Threads write and copy it without a lock: only 8 bytes at a time, atomically.
struct page {
    char magic[8];
    int64_t rank, n_ranks, replica, stage, n_stages;
    int64_t pid, started_ms, heartbeat_ms;
    int64_t phase, fault, blamed, end_signal, exit_status;
    uint64_t step, ticks;
    uint64_t alone; // sample + 1; 0: none
    char host[HOST_BYTES], error[ERROR_BYTES];
    char image_word[WORD_BYTES], compute_word[WORD_BYTES];
    int64_t n_samples;
    uint64_t samples[LVP_RECORD_WORK];  // of the compute thread
    uint64_t images[LVP_RECORD_IMAGES]; // sample + 1 of each image thread; 0: none
};

enum { N_WORDS = sizeof(struct page) / 8 };
static union {
    struct page page;
    _Atomic uint64_t words[N_WORDS];
} record;
_Static_assert(sizeof record == sizeof(struct page), "the page is whole words");

#define WORD_OF(field) (&record.words[offsetof(struct page, field) / 8])

static atomic_int record_file = -1;
static _Thread_local int my_work = NOBODY;
static _Thread_local char signal_stack[32768]; // a stack that has overflown cannot run the handler

// --- Writing -------------------------------------------------------------------------------------------------------

static int64_t wall_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void set(_Atomic uint64_t *word, int64_t value)
{
    atomic_store_explicit(word, (uint64_t)value, memory_order_relaxed);
}

static void set_text(_Atomic uint64_t *words, size_t size, const char *text)
{
    char padded[ERROR_BYTES] = "";
    uint64_t word;
    (void)snprintf(padded, size, "%s", text);
    for (size_t i = 0; i < size / 8; i++) {
        memcpy(&word, padded + 8 * i, sizeof word);
        atomic_store_explicit(&words[i], word, memory_order_relaxed);
    }
}

void lvp_record_write(void)
{
    uint64_t copy[N_WORDS];
    int file = atomic_load(&record_file);
    if (file < 0) return;
    for (size_t i = 0; i < N_WORDS; i++) copy[i] = atomic_load_explicit(&record.words[i], memory_order_relaxed);
    if (pwrite(file, copy, sizeof copy, 0) < 0) return; // nobody is left to tell
}

// Notes the signal and who had what in hand, and dies of it.
static void note_fault(int signal)
{
    set(WORD_OF(fault), signal);
    set(WORD_OF(blamed), my_work);
    lvp_record_write();
    (void)raise(signal); // SA_RESETHAND: the default now
}

// A sanitizer has given the thread one already, and takes that back.
static void use_signal_stack(void)
{
    stack_t before;
    if (sigaltstack(NULL, &before) != 0 || (before.ss_flags & SS_DISABLE) == 0) return;
    const stack_t stack = {.ss_sp = signal_stack, .ss_size = sizeof signal_stack};
    (void)sigaltstack(&stack, NULL);
}

void lvp_record_start(void)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
    struct sigaction action = {.sa_handler = note_fault, .sa_flags = (int)SA_RESETHAND | SA_ONSTACK};
    char host[HOST_BYTES];
    lvp_host_name(host, sizeof host);
    set_text(WORD_OF(magic), sizeof magic, magic);
    set_text(WORD_OF(host), HOST_BYTES, host);
    set(WORD_OF(pid), getpid());
    set(WORD_OF(blamed), NOBODY);
    use_signal_stack();
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) (void)sigaction(faults[i], &action, NULL);
}

static void path_of(const char *dir, int rank, char *path, size_t size)
{
    (void)snprintf(path, size, "%s/.lvpipe/rank-%d", dir, rank);
}

bool lvp_record_open(const char *dir, struct lvp_record_place place)
{
    char path[PATH_BYTES];
    path_of(dir, place.rank, path, sizeof path);
    set(WORD_OF(rank), place.rank);
    set(WORD_OF(n_ranks), place.n_ranks);
    set(WORD_OF(replica), place.replica);
    set(WORD_OF(stage), place.stage);
    set(WORD_OF(n_stages), place.n_stages);
    set(WORD_OF(started_ms), wall_ms());
    lvp_record_beat();
    (void)unlink(path); // one that another process still writes to is not ours
    atomic_store(&record_file, open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
    lvp_record_write();
    return atomic_load(&record_file) >= 0;
}

void lvp_record_phase(enum lvp_phase phase)
{
    set(WORD_OF(phase), (int64_t)phase);
}

void lvp_record_step(uint64_t number)
{
    set(WORD_OF(step), (int64_t)number);
}

void lvp_record_tick(void)
{
    (void)atomic_fetch_add_explicit(WORD_OF(ticks), 1, memory_order_relaxed);
}

uint64_t lvp_record_ticks(void)
{
    return atomic_load_explicit(WORD_OF(ticks), memory_order_relaxed);
}

void lvp_record_alone(bool alone, uint64_t sample)
{
    set(WORD_OF(alone), alone ? (int64_t)sample + 1 : 0);
}

void lvp_record_compute_thread(void)
{
    my_work = COMPUTE;
    use_signal_stack();
}

void lvp_record_image_thread(int number)
{
    my_work = number >= 0 && number < LVP_RECORD_IMAGES ? number : NOBODY;
    use_signal_stack();
}

void lvp_record_work(const char *what, const uint64_t *samples, int n)
{
    if (my_work == NOBODY) return;
    if (my_work != COMPUTE) {
        if (n > 0) set_text(WORD_OF(image_word), WORD_BYTES, what);
        set(WORD_OF(images) + my_work, n > 0 ? (int64_t)samples[0] + 1 : 0);
        return;
    }
    if (n > LVP_RECORD_WORK) n = LVP_RECORD_WORK;
    set(WORD_OF(n_samples), 0);
    if (n > 0) set_text(WORD_OF(compute_word), WORD_BYTES, what);
    for (int i = 0; i < n; i++) set(WORD_OF(samples) + i, (int64_t)samples[i]);
    set(WORD_OF(n_samples), n);
}

void lvp_record_end(int exit_status, int signal)
{
    set(WORD_OF(exit_status), exit_status);
    set(WORD_OF(end_signal), signal);
    set(WORD_OF(phase), LVP_PHASE_ENDED);
}

void lvp_record_error(const char *text)
{
    set_text(WORD_OF(error), ERROR_BYTES, text);
}

void lvp_record_beat(void)
{
    set(WORD_OF(heartbeat_ms), wall_ms());
}

// --- Reading -------------------------------------------------------------------------------------------------------

static void add_blame(struct lvp_record_view *view, uint64_t sample)
{
    for (int i = 0; i < view->n_samples; i++)
        if (view->samples[i] == sample) return; // several prompts or images of one
    view->samples[view->n_samples++] = sample;
}

static void view_blame(const struct page *from, struct lvp_record_view *view)
{
    if (view->fault == 0 || from->blamed < 0 || from->blamed > COMPUTE) return;
    bool compute = from->blamed == COMPUTE;
    int64_t n = compute ? from->n_samples : from->images[from->blamed] > 0;
    if (n < 1 || n > LVP_RECORD_WORK) return;
    (void)snprintf(view->work, sizeof view->work, "%.*s", WORD_BYTES, compute ? from->compute_word : from->image_word);
    for (int64_t i = 0; i < n; i++) add_blame(view, compute ? from->samples[i] : from->images[from->blamed] - 1);
}

bool lvp_record_read(const char *dir, int rank, struct lvp_record_view *view)
{
    char path[PATH_BYTES];
    struct page from;
    path_of(dir, rank, path, sizeof path);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    ssize_t n = pread(file, &from, sizeof from, 0);
    (void)close(file);
    if (n != (ssize_t)sizeof from || memcmp(from.magic, magic, sizeof magic) != 0 || from.rank != rank) return false;
    *view = (struct lvp_record_view){.place = {.rank = rank,
                                               .n_ranks = (int)from.n_ranks,
                                               .replica = (int)from.replica,
                                               .stage = (int)from.stage,
                                               .n_stages = (int)from.n_stages},
                                     .pid = from.pid,
                                     .phase = (enum lvp_phase)from.phase,
                                     .started_ms = from.started_ms,
                                     .heartbeat_ms = from.heartbeat_ms,
                                     .step = from.step,
                                     .fault = (int)from.fault,
                                     .end_signal = (int)from.end_signal,
                                     .exit_status = (int)from.exit_status,
                                     .has_alone = from.alone > 0,
                                     .alone = from.alone > 0 ? from.alone - 1 : 0};
    (void)snprintf(view->host, sizeof view->host, "%.*s", HOST_BYTES, from.host);
    (void)snprintf(view->error, sizeof view->error, "%.*s", ERROR_BYTES, from.error);
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
    char path[PATH_BYTES];
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
    char path[PATH_BYTES];
    if (folder == NULL) return;
    for (int rank; (rank = next_rank(folder)) >= 0;) {
        path_of(dir, rank, path, sizeof path);
        (void)unlink(path);
    }
    (void)closedir(folder);
}

struct search {
    int64_t since_ms;
    struct lvp_record_view *lost;
    int found;
};

static void compare_lost(void *context, const struct lvp_record_view *view)
{
    struct search *search = context;
    const struct lvp_record_view *best = search->lost;
    bool spoke = view->phase == LVP_PHASE_ENDED && view->fault == 0;
    if (spoke || view->started_ms < search->since_ms) return;
    bool same_kind = search->found >= 0 && (view->fault != 0) == (best->fault != 0);
    bool worse = search->found < 0 || (same_kind ? view->heartbeat_ms < best->heartbeat_ms : view->fault != 0);
    if (!worse) return;
    *search->lost = *view;
    search->found = view->place.rank;
}

int lvp_record_find_lost(const char *dir, int64_t since_ms, struct lvp_record_view *lost)
{
    struct search search = {.since_ms = since_ms, .lost = lost, .found = -1};
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
