#include "coordinator/input/sample.h"

#include "common/json_text.h"
#include "common/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void lvp_sample_free(struct lvp_sample *sample)
{
    for (int i = 0; i < sample->n_images; i++) {
        if (sample->images != NULL) free(sample->images[i]);
        if (sample->places != NULL) free(sample->places[i].path);
    }
    free(sample->images);
    free(sample->places);
    free(sample->id);
    free(sample->prompt);
    json_decref(sample->columns);
    *sample = (struct lvp_sample){0};
}

enum lvp_status lvp_sample_make_images(struct lvp_sample *sample, int n)
{
    sample->images = calloc((size_t)n, sizeof *sample->images);
    sample->places = calloc((size_t)n, sizeof *sample->places);
    if (sample->images == NULL || sample->places == NULL)
        return lvp_fail(LVP_ERR_MEMORY, "a sample of %d images: out of memory", n);
    sample->n_images = n;
    return LVP_OK;
}

json_t *lvp_parse_row(const char *bytes, size_t n_bytes, json_error_t *error)
{
    json_t *row = json_loadb(bytes, n_bytes, 0, error);
    if (row == NULL && json_error_code(error) == json_error_numeric_overflow)
        row = json_loadb(bytes, n_bytes, JSON_DECODE_INT_AS_REAL, error);
    return row;
}

char *lvp_utf8_name(const char *name)
{
    struct lvp_json_text text = {0};
    size_t n = strlen(name);
    for (size_t i = 0; i < n;) {
        size_t length = lvp_utf8_length(name + i, n - i);
        char escape[8];
        if (length == 0) (void)snprintf(escape, sizeof escape, "\\x%02x", (unsigned char)name[i]);
        lvp_json_text_append(&text, length > 0 ? name + i : escape, length > 0 ? length : 4);
        i += length > 0 ? length : 1;
    }
    lvp_json_text_append(&text, "", 1);
    if (text.failed) lvp_json_text_free(&text);
    return text.data;
}
