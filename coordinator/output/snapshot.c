#include "coordinator/output/snapshot.h"

#include "common/job.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

uint64_t lvp_snapshot_done(const struct lvp_snapshot *snapshot)
{
    return snapshot->counts.captions + snapshot->counts.failed;
}

struct lvp_rates lvp_rates_of(const struct lvp_snapshot *snapshot)
{
    uint64_t done = lvp_snapshot_done(snapshot), before = snapshot->counts.resumed;
    struct lvp_rates rates = {.seconds_left = -1};
    if (snapshot->seconds <= 0 || done <= before) return rates; // earlier lives' work is no speed
    rates.images = (double)snapshot->gauges.images / snapshot->seconds;
    rates.tokens = (double)snapshot->gauges.generated_tokens / snapshot->seconds;
    rates.seconds_left = snapshot->seconds * (double)(snapshot->counts.total - done) / (double)(done - before);
    return rates;
}

static void append(struct lvp_json_text *text, const char *format, ...) LVP_PRINTF(2, 3);

static void append(struct lvp_json_text *text, const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (n > 0) lvp_json_text_append(text, line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
}

void lvp_snapshot_members(const struct lvp_snapshot *snapshot, struct lvp_json_text *text)
{
    const struct lvp_captions_counts *counts = &snapshot->counts;
    struct lvp_rates rates = lvp_rates_of(snapshot);
    append(text, "\"total\":%llu,\"done\":%llu,\"failed\":%llu,\"resumed\":%llu", (unsigned long long)counts->total,
           (unsigned long long)(counts->captions + counts->failed), (unsigned long long)counts->failed,
           (unsigned long long)counts->resumed);
    append(text, ",\"preparing\":%d,\"prepared\":%d,\"in_flight\":%d", snapshot->gauges.preparing,
           snapshot->gauges.waiting, snapshot->gauges.running);
    append(text, ",\"images_per_second\":%.4g,\"tokens_per_second\":%.4g", rates.images, rates.tokens);
    if (rates.seconds_left >= 0)
        append(text, ",\"seconds_left\":%.0f", rates.seconds_left);
    else
        lvp_json_text_puts(text, ",\"seconds_left\":null");
}

void lvp_snapshot_status(const struct lvp_snapshot *snapshot, const char *state, const char *error,
                         struct lvp_json_text *text)
{
    char host[128], job[96];
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    lvp_host_name(host, sizeof host);
    lvp_job_name(job, sizeof job);
    append(text, "{\"state\":\"%s\",", state);
    lvp_snapshot_members(snapshot, text);
    append(text, ",\"seconds\":%.1f,\"heartbeat\":%lld.%03ld,\"ranks\":%d,\"restarts\":%d", snapshot->seconds,
           (long long)now.tv_sec, now.tv_nsec / 1000000, snapshot->n_ranks, snapshot->restarts);
    lvp_json_text_puts(text, ",\"job\":");
    lvp_json_text_string(text, job);
    lvp_json_text_puts(text, ",\"host\":");
    lvp_json_text_string(text, host);
    lvp_json_text_puts(text, ",\"error\":");
    lvp_json_text_string(text, error[0] != '\0' ? error : NULL);
    lvp_json_text_append(text, "}\n", 3); // with its NUL
}

static void metric(struct lvp_json_text *text, const char *name, const char *type, const char *help, double value)
{
    append(text, "# HELP lvpipe_%s %s\n# TYPE lvpipe_%s %s\nlvpipe_%s %.17g\n", name, help, name, type, name, value);
}

void lvp_snapshot_metrics(const struct lvp_snapshot *snapshot, struct lvp_json_text *text)
{
    const struct lvp_captions_counts *counts = &snapshot->counts;
    struct lvp_rates rates = lvp_rates_of(snapshot);
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    metric(text, "requests", "gauge", "Requests of the run.", (double)counts->total);
    metric(text, "captions_total", "counter", "Requests captioned, earlier lives of the run included.",
           (double)counts->captions);
    metric(text, "failed_total", "counter", "Requests that became error records.", (double)counts->failed);
    metric(text, "images_preparing", "gauge", "Images being read and decoded.", snapshot->gauges.preparing);
    metric(text, "requests_prepared", "gauge", "Requests whose images are ready or being encoded.",
           snapshot->gauges.waiting);
    metric(text, "requests_in_flight", "gauge", "Requests being computed.", snapshot->gauges.running);
    metric(text, "generated_tokens_total", "counter", "Tokens of captions finished by this process.",
           (double)snapshot->gauges.generated_tokens);
    metric(text, "images_per_second", "gauge", "Images encoded per second since the process began.", rates.images);
    metric(text, "tokens_per_second", "gauge", "Tokens generated per second since the process began.", rates.tokens);
    metric(text, "heartbeat_seconds", "gauge", "When this was written, seconds since 1970.", (double)now.tv_sec);
    lvp_json_text_append(text, "", 1);
}
