#include "cli/cmd_status.h"

#include "common/clock.h"
#include "common/job.h"
#include "common/record.h"
#include "coordinator/output/lock.h"

#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SILENT_SECONDS = 60 }; // a run that has not said anything for so long is not running

static const char help_text[] =
    "usage: lvpipe status DIR [--json]\n"
    "\n"
    "How far a run is, from its output folder; where DIR holds the folders of an array's tasks, one line for each and "
    "a\n"
    "total. A run that ended without a word is shown as lost, with the rank that went first.\n"
    "\n"
    "  --json                 one JSON object on stdout\n"
    "\n"
    "examples:\n"
    "  lvpipe status captions\n"
    "  watch -n 10 lvpipe status out        # out/0000, out/0001, ... of an array job\n";

// One run, from its status.json.
struct task {
    char *name;   // of the folder
    json_t *json; // owned
    const char *state;
    double silent; // seconds since the last heartbeat
    char lost[400];
};

static json_int_t count_of(const struct task *task, const char *field)
{
    return json_integer_value(json_object_get(task->json, field));
}

static bool is_active(const char *state)
{
    return strcmp(state, "loading") == 0 || strcmp(state, "running") == 0 || strcmp(state, "draining") == 0;
}

// Whether the coordinator was a process of this host, and is not there any more.
static bool is_dead(const struct lvp_lock_owner *owner)
{
    char host[128];
    lvp_host_name(host, sizeof host);
    return strcmp(owner->host, host) == 0 && kill((pid_t)owner->pid, 0) != 0 && errno == ESRCH;
}

// False where the folder holds no run.
static bool read_task(const char *dir, const char *name, struct task *task)
{
    char path[4096];
    struct lvp_record_view record;
    struct lvp_lock_owner owner;
    *task = (struct task){0};
    int n = snprintf(path, sizeof path, "%s/status.json", dir);
    if (n < 0 || (size_t)n >= sizeof path) return false;
    task->json = json_load_file(path, 0, NULL);
    const char *state = json_string_value(json_object_get(task->json, "state"));
    if (state == NULL) {
        json_decref(task->json);
        return false;
    }
    task->name = strdup(name);
    task->state = state;
    double heartbeat = json_number_value(json_object_get(task->json, "heartbeat"));
    bool locked = lvp_lock_read(dir, &owner);
    if (locked && owner.time > heartbeat) heartbeat = owner.time; // it beats while stages load, too
    task->silent = lvp_wall_seconds() - heartbeat;
    if (!is_active(state) || (task->silent < SILENT_SECONDS && !is_dead(&owner))) return true;
    task->state = "lost";
    if (lvp_record_find_lost(dir, 0, &record) >= 0) lvp_record_describe(&record, task->lost, sizeof task->lost);
    (void)json_object_set_new(task->json, "state", json_string("lost"));
    task->state = json_string_value(json_object_get(task->json, "state"));
    return true;
}

static const char *text_of(const struct task *task, const char *field)
{
    const char *text = json_string_value(json_object_get(task->json, field));
    return text != NULL ? text : "";
}

static double left_of(const struct task *task)
{
    const json_t *left = json_object_get(task->json, "seconds_left");
    return is_active(task->state) && json_is_number(left) ? json_number_value(left) : -1;
}

static double rate_of(const struct task *task)
{
    return json_number_value(json_object_get(task->json, "images_per_second"));
}

static void print_table(const struct task *tasks, size_t n)
{
    int width = 5;
    json_int_t total = 0, done = 0, failed = 0;
    double rate = 0, longest = -1;
    char left[32], silent[32];
    for (size_t t = 0; t < n; t++)
        if ((int)strlen(tasks[t].name) > width) width = (int)strlen(tasks[t].name);
    (void)printf("%-*s  %-8s  %10s  %10s  %8s  %9s  %10s  %10s  %s\n", width, "task", "state", "done", "left", "failed",
                 "images/s", "time left", "heartbeat", "job");
    for (size_t t = 0; t < n; t++) {
        const struct task *task = &tasks[t];
        (void)lvp_duration_text(left_of(task), left, sizeof left);
        (void)lvp_duration_text(task->silent, silent, sizeof silent);
        (void)printf("%-*s  %-8s  %10lld  %10lld  %8lld  %9.2f  %10s  %10s  %s on %s\n", width, task->name, task->state,
                     (long long)count_of(task, "done"), (long long)(count_of(task, "total") - count_of(task, "done")),
                     (long long)count_of(task, "failed"), rate_of(task), left, silent, text_of(task, "job"),
                     text_of(task, "host"));
        total += count_of(task, "total");
        done += count_of(task, "done");
        failed += count_of(task, "failed");
        if (is_active(task->state)) rate += rate_of(task);
        if (left_of(task) > longest) longest = left_of(task);
    }
    (void)lvp_duration_text(longest, left, sizeof left);
    if (n > 1)
        (void)printf("%-*s  %-8s  %10lld  %10lld  %8lld  %9.2f  %10s\n", width, "total", "", (long long)done,
                     (long long)(total - done), (long long)failed, rate, left);
    for (size_t t = 0; t < n; t++) {
        if (tasks[t].lost[0] != '\0') (void)printf("%s: %s\n", tasks[t].name, tasks[t].lost);
        if (text_of(&tasks[t], "error")[0] != '\0')
            (void)printf("%s: %s\n", tasks[t].name, text_of(&tasks[t], "error"));
    }
}

static void print_json(const struct task *tasks, size_t n)
{
    json_t *list = json_array();
    for (size_t t = 0; t < n; t++) {
        json_t *json = json_copy(tasks[t].json);
        (void)json_object_set_new(json, "task", json_string(tasks[t].name)); // a name that is no UTF-8 is left out
        (void)json_object_set_new(json, "silent_seconds", json_real(tasks[t].silent));
        if (tasks[t].lost[0] != '\0') (void)json_object_set_new(json, "lost", json_string(tasks[t].lost));
        (void)json_array_append_new(list, json);
    }
    json_t *all = json_pack("{s:o}", "tasks", list);
    (void)json_dumpf(all, stdout, JSON_INDENT(2));
    (void)putchar('\n');
    json_decref(all);
}

static int is_name(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

// The run in the folder, or those in its subfolders, in order of their names.
static enum lvp_status read_tasks(const char *dir, struct task **tasks, size_t *n)
{
    struct dirent **entries = NULL;
    const char *slash = strrchr(dir, '/');
    struct task own;
    *n = 0;
    bool single = read_task(dir, slash != NULL && slash[1] != '\0' ? slash + 1 : dir, &own);
    int n_entries = single ? 1 : scandir(dir, &entries, is_name, alphasort);
    if (n_entries < 0) return lvp_fail(LVP_ERR_USAGE, "%s: %s", dir, strerror(errno));
    *tasks = calloc((size_t)n_entries + 1, sizeof **tasks);
    if (*tasks == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    if (single) (*tasks)[(*n)++] = own;
    for (int e = 0; !single && e < n_entries; e++) {
        char path[4096];
        int length = snprintf(path, sizeof path, "%s/%s", dir, entries[e]->d_name);
        if (length > 0 && (size_t)length < sizeof path && read_task(path, entries[e]->d_name, &(*tasks)[*n])) (*n)++;
        free(entries[e]);
    }
    free(entries);
    if (*n > 0) return LVP_OK;
    return lvp_fail(LVP_ERR_USAGE, "%s: no run has written a status.json here, nor in a folder below", dir);
}

enum lvp_status lvp_cmd_status(int argc, char **argv)
{
    static const struct option options[] = {
        {"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    bool json = false;
    optind = 0; // glibc: a fresh start
    for (int code; (code = getopt_long(argc, argv, ":h", options, NULL)) != -1;) {
        if (code == 'h') {
            (void)fputs(help_text, stdout);
            return LVP_OK;
        }
        if (code != 'j') return lvp_fail(LVP_ERR_USAGE, "status does not know the option '%s'", argv[optind - 1]);
        json = true;
    }
    if (optind + 1 != argc) return lvp_fail(LVP_ERR_USAGE, "status takes one folder: lvpipe status DIR");
    struct task *tasks = NULL;
    size_t n = 0;
    enum lvp_status status = read_tasks(argv[optind], &tasks, &n);
    if (status == LVP_OK && json) print_json(tasks, n);
    if (status == LVP_OK && !json) print_table(tasks, n);
    for (size_t t = 0; t < n; t++) {
        json_decref(tasks[t].json);
        free(tasks[t].name);
    }
    free(tasks);
    return status;
}
