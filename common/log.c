#include "common/log.h"

#include "common/json_text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static enum lvp_log_level threshold = LVP_LOG_INFO;
static char prefix[64];
static bool json;

void lvp_log_init(enum lvp_log_level level, const char *who)
{
    threshold = level;
    (void)snprintf(prefix, sizeof prefix, "%s", who);
}

void lvp_log_use_json(void)
{
    json = true;
}

bool lvp_log_is_json(void)
{
    return json;
}

static void write_line(const char *line, size_t length)
{
    // A failed write to stderr has no one left to tell.
    if (write(STDERR_FILENO, line, length) < 0) return;
}

static void write_json(enum lvp_log_level level, const char *members, const char *message)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    struct lvp_json_text line = {0};
    char time[40];
    struct timespec now;
    struct tm utc;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    (void)gmtime_r(&now.tv_sec, &utc);
    size_t n = strftime(time, sizeof time, "%Y-%m-%dT%H:%M:%S", &utc);
    (void)snprintf(time + n, sizeof time - n, ".%03ldZ", now.tv_nsec / 1000000);
    lvp_json_text_puts(&line, "{\"time\":\"");
    lvp_json_text_puts(&line, time);
    lvp_json_text_puts(&line, "\",\"level\":\"");
    lvp_json_text_puts(&line, names[level]);
    lvp_json_text_puts(&line, "\"");
    if (prefix[0] != '\0') {
        lvp_json_text_puts(&line, ",\"who\":");
        lvp_json_text_string(&line, prefix);
    }
    lvp_json_text_puts(&line, ",\"message\":");
    lvp_json_text_string(&line, message);
    if (members[0] != '\0') {
        lvp_json_text_puts(&line, ",");
        lvp_json_text_puts(&line, members);
    }
    lvp_json_text_puts(&line, "}\n");
    if (!line.failed) write_line(line.data, line.length);
    lvp_json_text_free(&line);
}

static void write_text(enum lvp_log_level level, const char *message)
{
    static const char *const labels[] = {"error: ", "warning: ", "", ""};
    char line[1300];
    int n = snprintf(line, sizeof line, "lvpipe: %s%s%s%s\n", prefix, prefix[0] != '\0' ? ": " : "", labels[level],
                     message);
    if (n > 0) write_line(line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
}

static void log_message(enum lvp_log_level level, const char *members, const char *format, va_list args)
{
    char message[1100];
    if (level > threshold) return;
    if (vsnprintf(message, sizeof message, format, args) < 0) return;
    if (json)
        write_json(level, members, message);
    else
        write_text(level, message);
}

void lvp_log(enum lvp_log_level level, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    log_message(level, "", format, args);
    va_end(args);
}

void lvp_log_event(enum lvp_log_level level, const char *members, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    log_message(level, members, format, args);
    va_end(args);
}
