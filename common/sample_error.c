#include "common/sample_error.h"

#include <stdarg.h>
#include <stdio.h>

static const char *const names[LVP_SAMPLE_ERROR_COUNT] = {
    [LVP_SAMPLE_OK] = "ok",
    [LVP_SAMPLE_FILE_MISSING] = "file_missing",
    [LVP_SAMPLE_NOT_AN_IMAGE] = "not_an_image",
    [LVP_SAMPLE_IMAGE_TRUNCATED] = "image_truncated",
    [LVP_SAMPLE_IMAGE_TOO_LARGE] = "image_too_large",
    [LVP_SAMPLE_BAD_MANIFEST_LINE] = "bad_manifest_line",
    [LVP_SAMPLE_PROMPT_FIELD_MISSING] = "prompt_field_missing",
    [LVP_SAMPLE_IMAGE_TOKEN_IN_PROMPT] = "image_token_in_prompt",
    [LVP_SAMPLE_IMAGE_COUNT_MISMATCH] = "image_count_mismatch",
    [LVP_SAMPLE_PROMPT_TOO_LONG] = "prompt_too_long",
    [LVP_SAMPLE_KV_TOO_SMALL] = "kv_too_small",
    [LVP_SAMPLE_CRASHED] = "crashed",
    [LVP_SAMPLE_SHARD_DAMAGED] = "shard_damaged",
};

const char *lvp_sample_error_name(enum lvp_sample_error_code code)
{
    return code >= 0 && code < LVP_SAMPLE_ERROR_COUNT ? names[code] : "unknown";
}

void lvp_sample_error_set(struct lvp_sample_error *error, enum lvp_sample_error_code code, const char *format, ...)
{
    error->code = code;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(error->message, sizeof error->message, format, args);
    va_end(args);
}
