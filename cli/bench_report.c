#include "cli/bench_report.h"

#include <stdio.h>
#include <string.h>

static double number(const json_t *object, const char *field)
{
    return json_number_value(json_object_get(object, field));
}

static const char *text(const json_t *object, const char *field)
{
    const char *value = json_string_value(json_object_get(object, field));
    return value != NULL ? value : "";
}

static double median(const json_t *result, const char *field)
{
    return number(json_object_get(result, field), "median");
}

void lvp_bench_report_row(const json_t *result, bool first, double *base)
{
    const json_t *images = json_object_get(result, "images_per_second");
    double rate = median(result, "images_per_second");
    if (first) {
        *base = rate;
        const char *int8 = strcmp(text(result, "weights"), "int8") == 0 ? " with int8 weights" : "";
        (void)printf("%s, %s%s on %s; %.0f images a repeat, %.0f text tokens, %.0f new tokens\n\n"
                     "%-14s %7s %5s %12s %9s %7s %11s %10s %10s %9s %8s %7s\n",
                     text(result, "model"), text(result, "dtype"), int8, text(result, "kernel_set"),
                     number(result, "images"), number(result, "text_tokens"), number(result, "new_tokens"), "keep",
                     "stages", "conc", "images/s", "min-max", "ratio", "prompt r/s", "tokens/s", "first s", "later ms",
                     "GFLOP/s", "of roof");
    }
    char spread[32], stages[24];
    (void)snprintf(spread, sizeof spread, "%+.0f/%+.0f%%", 100 * (number(images, "min") / rate - 1),
                   100 * (number(images, "max") / rate - 1));
    (void)snprintf(stages, sizeof stages, "%.0f x %.0f", number(result, "stages"), number(result, "replicas"));
    (void)printf("%-14s %7s %5.0f %12.4f %9s %7.3f %11.1f %10.2f %10.3f %9.1f %8.1f %6.1f%%\n", text(result, "keep"),
                 stages, number(result, "concurrency"), rate, spread, rate / *base,
                 median(result, "prompt_rows_per_second"), median(result, "tokens_per_second"),
                 number(result, "seconds_to_first_token"), 1e3 * number(result, "seconds_per_later_token"),
                 1e-9 * number(result, "flops_per_second"), 100 * number(result, "of_roof"));
    (void)fflush(stdout);
}

void lvp_bench_report_workers(const json_t *result)
{
    size_t i = 0;
    const json_t *worker = NULL;
    json_array_foreach(json_object_get(result, "workers"), i, worker)
    {
        (void)printf(
            "    rank %.0f %s..%s: busy %.2f s (encode %.2f, prefill %.2f of it selecting %.3f, decode %.2f), "
            "waiting %.2f s; encode %.1f, prefill %.1f of %.1f GFLOP/s; decode reads %.1f of %.1f GB/s; "
            "%.1f MB out\n",
            number(worker, "rank"), text(worker, "first_block"), text(worker, "last_block"),
            number(worker, "busy_seconds"), number(worker, "encode_seconds"), number(worker, "prefill_seconds"),
            number(worker, "select_seconds"), number(worker, "decode_seconds"),
            number(worker, "input_wait_seconds") + number(worker, "send_wait_seconds"),
            1e-9 * number(worker, "encode_flops_per_second"), 1e-9 * number(worker, "prefill_flops_per_second"),
            1e-9 * number(worker, "roof_flops"), 1e-9 * number(worker, "decode_weight_bytes_per_second"),
            1e-9 * number(worker, "roof_read_bytes"), 1e-6 * number(worker, "bytes_out"));
    }
    (void)fflush(stdout);
}
