#include "coordinator/output/rows.h"

// How every row starts, in either file; resume.c finds the id there.
static void start_row(const char *id, struct lvp_json_text *row)
{
    lvp_json_text_puts(row, "{\"id\":");
    lvp_json_text_string(row, id);
    lvp_json_text_puts(row, ",");
}

static void append_image(const struct lvp_sample *sample, struct lvp_json_text *row)
{
    lvp_json_text_puts(row, "\"image\":");
    if (!sample->image_list) {
        lvp_json_text_string(row, sample->n_images > 0 ? sample->images[0] : NULL);
        return;
    }
    for (int i = 0; i < sample->n_images; i++) {
        lvp_json_text_puts(row, i == 0 ? "[" : ",");
        lvp_json_text_string(row, sample->images[i]);
    }
    lvp_json_text_puts(row, "]");
}

static void append_ints(const char *name, const int32_t *values, int n, struct lvp_json_text *row)
{
    lvp_json_text_puts(row, name);
    lvp_json_text_puts(row, "[");
    for (int i = 0; i < n; i++) {
        if (i > 0) lvp_json_text_puts(row, ",");
        lvp_json_text_int(row, values[i]);
    }
    lvp_json_text_puts(row, "]");
}

void lvp_caption_row(const struct lvp_request *request, const struct lvp_caption *caption, struct lvp_json_text *row)
{
    start_row(request->id, row);
    append_image(&request->sample, row);
    lvp_json_text_puts(row, ",\"prompt\":");
    lvp_json_text_string(row, request->prompt);
    lvp_json_text_puts(row, ",\"caption\":");
    lvp_json_text_bytes(row, caption->caption, caption->caption_bytes);
    lvp_json_text_puts(row, caption->stopped ? ",\"finish_reason\":\"stop\"" : ",\"finish_reason\":\"length\"");
    append_ints(",\"token_ids\":", caption->token_ids, caption->n_tokens, row);
    lvp_json_text_puts(row, ",\"prompt_tokens\":");
    lvp_json_text_int(row, caption->prompt_tokens);
    lvp_json_text_puts(row, ",\"vision_tokens\":[");
    for (int i = 0; i < caption->n_images; i++)
        append_ints(i > 0 ? "," : "", caption->vision_tokens + (ptrdiff_t)i * caption->n_counts, caption->n_counts,
                    row);
    lvp_json_text_puts(row, "]");
    if (caption->logprobs != NULL) {
        lvp_json_text_puts(row, ",\"logprobs\":[");
        for (int i = 0; i < caption->n_tokens; i++) {
            if (i > 0) lvp_json_text_puts(row, ",");
            lvp_json_text_float(row, caption->logprobs[i]);
        }
        lvp_json_text_puts(row, "]");
    }
    if (caption->scored) {
        lvp_json_text_puts(row, ",\"greedy_tokens\":");
        lvp_json_text_int(row, caption->n_greedy);
    }
    lvp_json_text_puts(row, "}\n");
}

void lvp_error_row(const struct lvp_request *request, const struct lvp_sample_error *error, int attempts,
                   struct lvp_json_text *row)
{
    start_row(request->id, row);
    append_image(&request->sample, row);
    lvp_json_text_puts(row, ",\"error\":");
    lvp_json_text_string(row, lvp_sample_error_name(error->code));
    lvp_json_text_puts(row, ",\"message\":");
    lvp_json_text_string(row, error->message);
    lvp_json_text_puts(row, ",\"attempts\":");
    lvp_json_text_int(row, attempts);
    lvp_json_text_puts(row, "}\n");
}
