#include "coordinator/profile.h"

#include "common/json.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { FORMAT = 1 };

// No device and no link is slower or faster, and with these no time of a forecast is 0 or infinite.
static const double slowest = 1e3, fastest = 1e21; // a second
static const double longest_latency = 3600;        // seconds

// --- Times ---------------------------------------------------------------------------------------------------------

// FLOP/s at a number of rows: straight lines between what was measured, over the logarithm of the rows.
static double rate_at(const struct lvp_device_rates *rates, double rows)
{
    int last = rates->n_points - 1;
    if (rows <= rates->rows[0]) return rates->row_flops[0] * rows / rates->rows[0];
    if (rows >= rates->rows[last]) return rates->row_flops[last];
    int i = 0;
    while (rows > rates->rows[i + 1]) i++;
    double part = log(rows / rates->rows[i]) / log((double)rates->rows[i + 1] / rates->rows[i]);
    return rates->row_flops[i] + part * (rates->row_flops[i + 1] - rates->row_flops[i]);
}

static double linear_seconds(const struct lvp_device_rates *rates, double flops, double rows)
{
    return rows > 0 ? flops / rate_at(rates, rows) : 0;
}

double lvp_block_step_seconds(const struct lvp_workload *w, const struct lvp_device_rates *rates, int index,
                              const struct lvp_step_load *load)
{
    const struct lvp_text_config *text = &w->config->text;
    struct lvp_block block = lvp_block_at(w->config, index);
    double n_seqs = load->n_prompts + load->n_decodes;
    if (block.kind == LVP_BLOCK_HEAD)
        return linear_seconds(rates, 2.0 * n_seqs * (double)text->vocab * text->hidden, n_seqs);
    if (block.kind != LVP_BLOCK_DEC) return 0; // before `merge`, or rows that are only put in place
    double vision = lvp_vision_rows_at(&w->prune, block.layer, lvp_vision_tokens(w->config));
    double prompt = vision + w->text_tokens, rows = load->n_prompts * prompt + load->n_decodes;
    double slots = load->decode_text + load->n_images * vision;
    double seconds = linear_seconds(rates, lvp_layer_linear_flops(text, rows), rows) +
                     load->n_prompts * lvp_layer_attention_flops(text, prompt) / rates->prefill_attention_flops +
                     slots * lvp_layer_kv_slot_bytes(text, w->dtype) / rates->decode_attention_bytes;
    if (lvp_point_after(&w->prune, block.layer) >= 0 && w->pruner_width > 0)
        seconds += linear_seconds(rates, load->n_prompts * lvp_module_flops(w, vision, w->text_tokens),
                                  load->n_prompts * vision);
    return seconds;
}

double lvp_block_encode_seconds(const struct lvp_workload *w, const struct lvp_device_rates *rates, int index,
                                int n_images)
{
    if (index >= lvp_block_index(w->config, LVP_BLOCK_MERGE, 0)) return 0;
    return n_images * lvp_block_cost(w, index).prefill_flops / rates->encode_flops;
}

struct lvp_device_rates lvp_profile_device(const struct lvp_profile *profile, int threads)
{
    int i = 0;
    while (i + 1 < profile->n_devices && profile->devices[i + 1].threads <= threads) i++;
    struct lvp_device_rates rates = profile->devices[i];
    double factor = (double)threads / rates.threads;
    if (rates.threads == threads || threads < 1) return rates;
    double *scaled[] = {&rates.roof_flops, &rates.roof_read_bytes, &rates.prefill_attention_flops,
                        &rates.decode_attention_bytes, &rates.encode_flops};
    for (size_t s = 0; s < sizeof scaled / sizeof *scaled; s++) *scaled[s] *= factor;
    for (int p = 0; p < rates.n_points; p++) rates.row_flops[p] *= factor;
    rates.threads = threads;
    return rates;
}

// --- The file ------------------------------------------------------------------------------------------------------

static bool read_number(const json_t *object, const char *field, double *value)
{
    *value = json_number_value(json_object_get(object, field));
    return *value >= slowest && *value <= fastest;
}

static bool read_count(const json_t *object, const char *field, int most, int *value)
{
    const json_t *found = json_object_get(object, field);
    json_int_t n = json_integer_value(found);
    *value = n < 1 || n > most ? 1 : (int)n;
    return json_is_integer(found) && n == *value;
}

// The name of the field that is wrong; NULL: none.
static const char *read_device(const json_t *json, struct lvp_device_rates *rates)
{
    const json_t *points = json_object_get(json, "row_flops");
    if (!read_count(json, "threads", 4096, &rates->threads)) return "threads";
    if (!read_number(json, "roof_flops", &rates->roof_flops)) return "roof_flops";
    if (!read_number(json, "roof_read_bytes", &rates->roof_read_bytes)) return "roof_read_bytes";
    if (!read_number(json, "prefill_attention_flops", &rates->prefill_attention_flops))
        return "prefill_attention_flops";
    if (!read_number(json, "decode_attention_bytes", &rates->decode_attention_bytes)) return "decode_attention_bytes";
    if (!read_number(json, "encode_flops", &rates->encode_flops)) return "encode_flops";
    if (json_array_size(points) < 1 || json_array_size(points) > LVP_MAX_RATE_POINTS) return "row_flops";
    for (size_t i = 0; i < json_array_size(points); i++) {
        const json_t *point = json_array_get(points, i);
        if (!read_count(point, "rows", 1 << 24, &rates->rows[i])) return "row_flops";
        if (i > 0 && rates->rows[i] <= rates->rows[i - 1]) return "row_flops";
        if (!read_number(point, "flops", &rates->row_flops[i])) return "row_flops";
    }
    rates->n_points = (int)json_array_size(points);
    return NULL;
}

enum lvp_status lvp_link_read(const char *option, const char *path, const json_t *json, const char *field,
                              struct lvp_link *link)
{
    static const char *const known[] = {"bytes_per_second", "latency_seconds", NULL};
    const json_t *latency = json_object_get(json, "latency_seconds");
    link->seconds = json_number_value(latency);
    LVP_TRY(lvp_json_only(option, path, json, known));
    bool good = read_number(json, "bytes_per_second", &link->bytes) && json_is_number(latency) && link->seconds >= 0 &&
                link->seconds <= longest_latency;
    if (good) return LVP_OK;
    return lvp_fail(LVP_ERR_USAGE, "%s %s: '%s' needs bytes_per_second and latency_seconds, in range", option, path,
                    field);
}

static bool read_dtype(const json_t *json, const char *key, enum lvp_dtype *dtype)
{
    const char *name = json_string_value(json_object_get(json, key));
    for (int i = 0; name != NULL && i < LVP_DTYPE_OTHER; i++) {
        *dtype = (enum lvp_dtype)i;
        if (strcmp(name, lvp_dtype_name(*dtype)) == 0) return true;
    }
    return false;
}

static const char *read_profile(const json_t *json, struct lvp_profile *profile)
{
    const json_t *devices = json_object_get(json, "devices");
    const char *cpu = json_string_value(json_object_get(json, "cpu"));
    const char *kernel_set = json_string_value(json_object_get(json, "kernel_set"));
    if (json_integer_value(json_object_get(json, "lvpipe_profile")) != FORMAT) return "lvpipe_profile";
    *profile = (struct lvp_profile){0};
    if (!read_dtype(json, "dtype", &profile->dtype) || !lvp_dtype_computes((int)profile->dtype)) return "dtype";
    profile->weights = profile->dtype; // of a profile that does not say
    if (json_object_get(json, "weights") != NULL && !read_dtype(json, "weights", &profile->weights)) return "weights";
    if (cpu == NULL) return "cpu";
    if (kernel_set == NULL) return "kernel_set";
    (void)snprintf(profile->cpu, sizeof profile->cpu, "%s", cpu);
    (void)snprintf(profile->kernel_set, sizeof profile->kernel_set, "%s", kernel_set);
    if (json_array_size(devices) < 1 || json_array_size(devices) > LVP_MAX_PROFILED_DEVICES) return "devices";
    for (; profile->n_devices < (int)json_array_size(devices); profile->n_devices++) {
        struct lvp_device_rates *rates = &profile->devices[profile->n_devices];
        const char *wrong = read_device(json_array_get(devices, (size_t)profile->n_devices), rates);
        if (wrong != NULL) return wrong;
        if (profile->n_devices > 0 && rates->threads <= rates[-1].threads) return "threads";
    }
    return NULL;
}

// A misspelt field would be a default.
static enum lvp_status check_fields(const char *path, const json_t *json)
{
    static const char *const fields[] = {"lvpipe_profile", "cpu",     "kernel_set", "dtype",
                                         "weights",        "devices", "link",       NULL};
    static const char *const of_device[] = {"threads",
                                            "roof_flops",
                                            "roof_read_bytes",
                                            "row_flops",
                                            "prefill_attention_flops",
                                            "decode_attention_bytes",
                                            "encode_flops",
                                            NULL};
    const json_t *device = NULL;
    size_t i = 0;
    LVP_TRY(lvp_json_only("--profile", path, json, fields));
    json_array_foreach(json_object_get(json, "devices"), i, device)
        LVP_TRY(lvp_json_only("--profile", path, device, of_device));
    return LVP_OK;
}

enum lvp_status lvp_profile_read(const char *path, struct lvp_profile *profile)
{
    json_t *json = NULL;
    LVP_TRY(lvp_json_load_option("--profile", path, &json));
    enum lvp_status status = LVP_OK;
    const char *wrong = read_profile(json, profile);
    const json_t *link = json_object_get(json, "link");
    if (wrong != NULL)
        status =
            lvp_fail(LVP_ERR_USAGE,
                     "--profile %s: '%s' is missing or out of range; lvpipe bench --calibrate writes one", path, wrong);
    if (status == LVP_OK) status = check_fields(path, json);
    if (status == LVP_OK && link != NULL) status = lvp_link_read("--profile", path, link, "link", &profile->link);
    json_decref(json);
    return status;
}

enum lvp_status lvp_profile_check(const struct lvp_profile *profile, const char *path, enum lvp_dtype dtype,
                                  enum lvp_dtype weights)
{
    if (profile->dtype == dtype && profile->weights == weights) return LVP_OK;
    return lvp_fail(LVP_ERR_USAGE, "--profile %s was measured in %s with %s weights, not in %s with %s", path,
                    lvp_dtype_name(profile->dtype), lvp_dtype_name(profile->weights), lvp_dtype_name(dtype),
                    lvp_dtype_name(weights));
}

enum lvp_status lvp_profile_write(const char *path, const struct lvp_profile *profile)
{
    json_t *devices = json_array();
    bool complete = true;
    for (int d = 0; d < profile->n_devices; d++) {
        const struct lvp_device_rates *rates = &profile->devices[d];
        json_t *points = json_array();
        for (int i = 0; i < rates->n_points; i++)
            complete &= json_array_append_new(
                            points, json_pack("{s:i, s:f}", "rows", rates->rows[i], "flops", rates->row_flops[i])) == 0;
        json_t *device = json_pack("{s:i, s:f, s:f, s:o, s:f, s:f, s:f}", "threads", rates->threads, "roof_flops",
                                   rates->roof_flops, "roof_read_bytes", rates->roof_read_bytes, "row_flops", points,
                                   "prefill_attention_flops", rates->prefill_attention_flops, "decode_attention_bytes",
                                   rates->decode_attention_bytes, "encode_flops", rates->encode_flops);
        complete &= json_array_append_new(devices, device) == 0;
    }
    json_t *json = json_pack("{s:i, s:s, s:s, s:s, s:s, s:o}", "lvpipe_profile", FORMAT, "cpu", profile->cpu,
                             "kernel_set", profile->kernel_set, "dtype", lvp_dtype_name(profile->dtype), "weights",
                             lvp_dtype_name(profile->weights), "devices", devices);
    if (json != NULL && profile->link.bytes > 0)
        complete &= json_object_set_new(json, "link",
                                        json_pack("{s:f, s:f}", "bytes_per_second", profile->link.bytes,
                                                  "latency_seconds", profile->link.seconds)) == 0;
    if (json == NULL || !complete) { // jansson packs no number that is not finite, either
        json_decref(json);
        return lvp_fail(LVP_ERR_MEMORY, "the profile cannot be written: out of memory, or a rate that is no number");
    }
    int failed = json_dump_file(json, path, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    json_decref(json);
    return failed != 0 ? lvp_fail(LVP_ERR_IO, "%s cannot be written: %s", path, strerror(errno)) : LVP_OK;
}
