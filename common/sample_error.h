// What can be wrong with one sample: an errors.jsonl record, never the end of a run. The codes are stable.
#ifndef LVP_COMMON_SAMPLE_ERROR_H
#define LVP_COMMON_SAMPLE_ERROR_H

#include "common/status.h"

enum lvp_sample_error_code {
    LVP_SAMPLE_OK = 0,
    LVP_SAMPLE_FILE_MISSING,
    LVP_SAMPLE_NOT_AN_IMAGE,
    LVP_SAMPLE_IMAGE_TRUNCATED,
    LVP_SAMPLE_IMAGE_TOO_LARGE,
    LVP_SAMPLE_BAD_MANIFEST_LINE,
    LVP_SAMPLE_PROMPT_FIELD_MISSING,
    LVP_SAMPLE_IMAGE_TOKEN_IN_PROMPT,
    LVP_SAMPLE_IMAGE_COUNT_MISMATCH,
    LVP_SAMPLE_PROMPT_TOO_LONG,
    LVP_SAMPLE_KV_TOO_SMALL,
    LVP_SAMPLE_CRASHED,
    LVP_SAMPLE_SHARD_DAMAGED,
    LVP_SAMPLE_ERROR_COUNT
};

struct lvp_sample_error {
    enum lvp_sample_error_code code;
    char message[256];
};

// "file_missing", ...
const char *lvp_sample_error_name(enum lvp_sample_error_code code);

void lvp_sample_error_set(struct lvp_sample_error *error, enum lvp_sample_error_code code, const char *format, ...)
    LVP_PRINTF(3, 4);

#endif
