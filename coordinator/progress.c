#include "coordinator/progress.h"

#include "common/clock.h"
#include "common/log.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static const double bar_seconds = 0.1, line_seconds = 30;

void lvp_progress_start(struct lvp_progress *progress, uint64_t total, uint64_t resumed, bool quiet, bool terminal)
{
    *progress = (struct lvp_progress){
        .total = total, .resumed = resumed, .quiet = quiet, .terminal = terminal, .started = lvp_now()};
    // The first line of a log comes after 30 s; a bar comes at once.
    progress->last_drawn = progress->terminal ? -1 : progress->started;
}

static int append_duration(double seconds, char *text, size_t size)
{
    if (seconds < 90) return snprintf(text, size, ", %.0f s left", seconds);
    if (seconds < 90 * 60) return snprintf(text, size, ", %.0f min left", seconds / 60);
    if (seconds < 48 * 3600) return snprintf(text, size, ", %.1f h left", seconds / 3600);
    return snprintf(text, size, ", %.1f days left", seconds / 86400);
}

const char *lvp_progress_text(const struct lvp_progress *progress, uint64_t done, uint64_t failed, double seconds,
                              char *text, size_t size)
{
    double share = progress->total > 0 ? (double)done / (double)progress->total : 1;
    // Rounded down: 100 % means all.
    int n = snprintf(text, size, "%llu/%llu (%d %%)", (unsigned long long)done, (unsigned long long)progress->total,
                     (int)(100 * share));
    if (failed > 0 && n > 0 && (size_t)n < size)
        n += snprintf(text + n, size - (size_t)n, ", %llu failed", (unsigned long long)failed);
    uint64_t fresh = done > progress->resumed ? done - progress->resumed : 0;
    if (fresh == 0 || seconds <= 0) return text;
    double rate = (double)fresh / seconds;
    if (n > 0 && (size_t)n < size) n += snprintf(text + n, size - (size_t)n, ", %.3g images/s", rate);
    if (done < progress->total && n > 0 && (size_t)n < size)
        (void)append_duration((double)(progress->total - done) / rate, text + n, size - (size_t)n);
    return text;
}

static int terminal_width(void)
{
    struct winsize size = {0};
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

static void write_stderr(const char *text, size_t n)
{
    // A failed write to stderr has no one left to tell.
    if (write(STDERR_FILENO, text, n) < 0) return;
}

static void draw_bar(struct lvp_progress *progress, uint64_t done, const char *text)
{
    enum { MAX_BAR = 30 };
    char line[256];
    int width = terminal_width(), text_width = (int)strlen(text), bar = width - text_width - 4;
    if (bar > MAX_BAR) bar = MAX_BAR;
    int n = 0;
    line[n++] = '\r';
    if (bar >= 5) {
        int full = progress->total > 0 ? (int)((double)done / (double)progress->total * bar) : bar;
        line[n++] = '[';
        for (int i = 0; i < bar; i++) line[n++] = i < full ? '#' : '.';
        line[n++] = ']';
        line[n++] = ' ';
    }
    for (int i = 0; i < text_width && n < width && n < (int)sizeof line - 8; i++) line[n++] = text[i];
    int drawn = n - 1;
    n += snprintf(line + n, sizeof line - (size_t)n, "\x1b[K"); // erase what is left of a longer line
    write_stderr(line, (size_t)n);
    progress->drawn_width = drawn;
}

void lvp_progress_update(struct lvp_progress *progress, uint64_t done, uint64_t failed)
{
    if (progress->quiet) return;
    double now = lvp_now();
    if (progress->last_drawn >= 0 && now - progress->last_drawn < (progress->terminal ? bar_seconds : line_seconds))
        return;
    progress->last_drawn = now;
    char text[128];
    (void)lvp_progress_text(progress, done, failed, now - progress->started, text, sizeof text);
    if (progress->terminal)
        draw_bar(progress, done, text);
    else
        lvp_info("%s", text);
}

void lvp_progress_clear(struct lvp_progress *progress)
{
    if (progress->drawn_width > 0) write_stderr("\r\x1b[K", 4);
    progress->drawn_width = 0;
    if (progress->terminal) progress->last_drawn = -1;
}

void lvp_progress_finish(struct lvp_progress *progress, uint64_t done, uint64_t failed)
{
    lvp_progress_clear(progress);
    if (progress->quiet) return;
    char text[128];
    lvp_info("%s", lvp_progress_text(progress, done, failed, lvp_now() - progress->started, text, sizeof text));
}
