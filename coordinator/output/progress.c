#include "coordinator/output/progress.h"

#include "common/clock.h"
#include "common/json_text.h"
#include "common/log.h"
#include "coordinator/output/output_folder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static const double bar_seconds = 0.1, line_seconds = 30, status_seconds = 2, metrics_seconds = 15;

// "1.52 images/s, 80 tokens/s, 53 min left", "" where nothing is known.
static void rates_text(const struct lvp_snapshot *snapshot, char *text, size_t size)
{
    struct lvp_rates rates = lvp_rates_of(snapshot);
    char left[32];
    text[0] = '\0';
    if (rates.seconds_left < 0) return;
    int n = snprintf(text, size, "%.3g images/s", rates.images);
    if (rates.tokens > 0 && n > 0 && (size_t)n < size)
        n += snprintf(text + n, size - (size_t)n, ", %.3g tokens/s", rates.tokens);
    if (lvp_snapshot_done(snapshot) < snapshot->counts.total && n > 0 && (size_t)n < size)
        (void)snprintf(text + n, size - (size_t)n, ", %s left",
                       lvp_duration_text(rates.seconds_left, left, sizeof left));
}

static double share_of(const struct lvp_snapshot *snapshot)
{
    uint64_t total = snapshot->counts.total;
    return total > 0 ? (double)lvp_snapshot_done(snapshot) / (double)total : 1;
}

const char *lvp_progress_text(const struct lvp_snapshot *snapshot, char *text, size_t size)
{
    char rates[128];
    // Rounded down: 100 % means all.
    int n = snprintf(text, size, "%llu/%llu (%d %%)", (unsigned long long)lvp_snapshot_done(snapshot),
                     (unsigned long long)snapshot->counts.total, (int)(100 * share_of(snapshot)));
    if (snapshot->counts.failed > 0 && n > 0 && (size_t)n < size)
        n += snprintf(text + n, size - (size_t)n, ", %llu failed", (unsigned long long)snapshot->counts.failed);
    rates_text(snapshot, rates, sizeof rates);
    if (rates[0] != '\0' && n > 0 && (size_t)n < size) (void)snprintf(text + n, size - (size_t)n, ", %s", rates);
    return text;
}

// "[#####.....]" of `width` columns; "" where there is no room for a bar.
static const char *bar_text(double share, int width, char *text)
{
    int inner = width - 2, full = (int)(share * inner);
    if (full > inner) full = inner;
    text[0] = '\0';
    if (inner < 4) return text;
    text[0] = '[';
    memset(text + 1, '#', (size_t)full);
    memset(text + 1 + full, '.', (size_t)(inner - full));
    text[inner + 1] = ']';
    text[inner + 2] = '\0';
    return text;
}

void lvp_progress_bar(const struct lvp_snapshot *snapshot, int width, char lines[LVP_BAR_LINES][LVP_BAR_WIDTH])
{
    const struct lvp_captions_counts *counts = &snapshot->counts;
    const struct lvp_run_gauges *gauges = &snapshot->gauges;
    char done[LVP_BAR_WIDTH], waiting[16], running[16], rates[128];
    if (width > LVP_BAR_WIDTH - 1) width = LVP_BAR_WIDTH - 1;
    int room = width - 34 < 60 ? width - 34 : 60;
    int under_way = gauges->waiting + gauges->running;
    double part = under_way > 0 ? 1.0 / under_way : 0;
    (void)snprintf(lines[0], LVP_BAR_WIDTH, "done %s %llu/%llu (%d %%)", bar_text(share_of(snapshot), room, done),
                   (unsigned long long)lvp_snapshot_done(snapshot), (unsigned long long)counts->total,
                   (int)(100 * share_of(snapshot)));
    (void)snprintf(lines[1], LVP_BAR_WIDTH, "prepared %s %d   in flight %s %d   failed %llu",
                   bar_text(gauges->waiting * part, 12, waiting), gauges->waiting,
                   bar_text(gauges->running * part, 12, running), gauges->running, (unsigned long long)counts->failed);
    rates_text(snapshot, rates, sizeof rates);
    (void)snprintf(lines[2], LVP_BAR_WIDTH, "%s", rates);
    for (int l = 0; l < LVP_BAR_LINES; l++) lines[l][width > 0 ? width : 0] = '\0';
}

static int terminal_width(void)
{
    struct winsize size = {0};
    const char *columns = getenv("COLUMNS");
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    int width = columns != NULL ? atoi(columns) : 0;
    return width > 0 ? width : 80;
}

static void write_stderr(const char *text, size_t n)
{
    // A failed write to stderr has no one left to tell.
    if (write(STDERR_FILENO, text, n) < 0) return;
}

static void draw_bar(struct lvp_progress *progress, const struct lvp_snapshot *snapshot)
{
    char lines[LVP_BAR_LINES][LVP_BAR_WIDTH], text[LVP_BAR_LINES * (LVP_BAR_WIDTH + 8) + 16];
    int n = 0;
    lvp_progress_bar(snapshot, terminal_width() - 1, lines);
    if (progress->drawn_lines > 0) n += snprintf(text, sizeof text, "\x1b[%dA", progress->drawn_lines); // cursor up
    for (int l = 0; l < LVP_BAR_LINES; l++) // each line erases what was there
        n += snprintf(text + n, sizeof text - (size_t)n, "\r%s\x1b[K\n", lines[l]);
    write_stderr(text, (size_t)n);
    progress->drawn_lines = LVP_BAR_LINES;
}

void lvp_progress_clear(struct lvp_progress *progress)
{
    char text[32];
    if (progress->drawn_lines == 0) return;
    int n = snprintf(text, sizeof text, "\x1b[%dA\r\x1b[J", progress->drawn_lines); // up, and erase to the end
    write_stderr(text, (size_t)n);
    progress->drawn_lines = 0;
    progress->drawn = -1;
}

static void write_line(const struct lvp_snapshot *snapshot)
{
    char text[200];
    struct lvp_json_text members = {0};
    lvp_snapshot_members(snapshot, &members);
    lvp_json_text_append(&members, "", 1);
    lvp_log_event(LVP_LOG_INFO, members.failed ? "" : members.data, "%s",
                  lvp_progress_text(snapshot, text, sizeof text));
    lvp_json_text_free(&members);
}

void lvp_progress_start(struct lvp_progress *progress, const struct lvp_progress_options *options,
                        struct lvp_writer *writer)
{
    *progress = (struct lvp_progress){
        .options = *options, .writer = writer, .started = lvp_now(), .posted = -1, .measured = -1};
    progress->last.n_ranks = options->n_ranks;
    progress->last.restarts = options->restarts;
    if (lvp_log_is_json()) progress->options.terminal = false;
    // The first line of a log comes after 30 s; a bar comes at once.
    progress->drawn = progress->options.terminal ? -1 : progress->started;
}

static bool is_due(double *last, double now, double interval)
{
    if (*last >= 0 && now - *last < interval) return false;
    *last = now;
    return true;
}

// Posts status or metrics to the writer.
static enum lvp_status post(struct lvp_progress *progress, int p, const char *path, const struct lvp_json_text *text)
{
    if (text->failed || path == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the status");
    return lvp_writer_post(progress->writer, p, path, text->data);
}

static enum lvp_status post_status(struct lvp_progress *progress, const char *state)
{
    struct lvp_json_text text = {0};
    char *path = lvp_output_path(progress->options.output, LVP_STATUS_FILE);
    lvp_snapshot_status(&progress->last, state, "", &text);
    enum lvp_status status = post(progress, 0, path, &text);
    free(path);
    lvp_json_text_free(&text);
    return status;
}

static enum lvp_status post_metrics(struct lvp_progress *progress)
{
    struct lvp_json_text text = {0};
    lvp_snapshot_metrics(&progress->last, &text);
    enum lvp_status status = post(progress, 1, progress->options.metrics, &text);
    lvp_json_text_free(&text);
    return status;
}

enum lvp_status lvp_progress_update(struct lvp_progress *progress, const struct lvp_captions_counts *counts,
                                    const struct lvp_run_gauges *gauges, bool draining)
{
    double now = lvp_now(), interval = progress->options.terminal ? bar_seconds : line_seconds;
    bool draw = !progress->options.quiet && is_due(&progress->drawn, now, interval);
    bool tell = progress->writer != NULL && is_due(&progress->posted, now, status_seconds);
    bool measure = progress->writer != NULL && progress->options.metrics != NULL &&
                   is_due(&progress->measured, now, metrics_seconds);
    progress->last.counts = *counts;
    progress->last.gauges = *gauges;
    progress->last.seconds = now - progress->started;
    if (draw && progress->options.terminal)
        draw_bar(progress, &progress->last);
    else if (draw)
        write_line(&progress->last);
    if (tell) LVP_TRY(post_status(progress, draining ? "draining" : "running"));
    return measure ? post_metrics(progress) : LVP_OK;
}

// A failure here hides nothing: the run's own result has been told.
static void replace(const char *path, const struct lvp_json_text *text)
{
    if (path == NULL || text->failed) return;
    if (lvp_replace_file(path, text->data, false) != LVP_OK) lvp_debug("%s could not be written", path);
}

void lvp_progress_tell(struct lvp_progress *progress, const char *state, const char *error)
{
    struct lvp_json_text status = {0}, metrics = {0};
    char *path = lvp_output_path(progress->options.output, LVP_STATUS_FILE);
    lvp_snapshot_status(&progress->last, state, error, &status);
    replace(path, &status);
    lvp_snapshot_metrics(&progress->last, &metrics);
    replace(progress->options.metrics, &metrics);
    free(path);
    lvp_json_text_free(&status);
    lvp_json_text_free(&metrics);
}
