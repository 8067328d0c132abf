// Any bytes as tokenizer.json: an error or a tokenizer, never a crash.
#include "common/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(const struct lvp_tokenizer *tokenizer)
{
    static const char text[] = "USER: <image>\nWhat is\xF0\x9F\x98\x80 this? </s>  ASSISTANT:";
    int32_t *ids;
    size_t n_ids, n_bytes;
    char *back;
    if (lvp_tokenizer_encode(tokenizer, text, sizeof text - 1, true, &ids, &n_ids) != LVP_OK) return;
    if (lvp_tokenizer_decode(tokenizer, ids, n_ids, &back, &n_bytes) == LVP_OK) free(back);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char dir[] = "/tmp/lvp-fuzz-XXXXXX", path[64];
    struct lvp_tokenizer *tokenizer;
    if (path[0] == '\0') {
        if (mkdtemp(dir) == NULL) abort();
        (void)snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    }
    FILE *file = fopen(path, "w");
    if (file == NULL || fwrite(data, 1, size, file) != size || fclose(file) != 0) abort();
    lvp_error_clear();
    if (lvp_tokenizer_open(dir, &tokenizer) != LVP_OK) return 0;
    use(tokenizer);
    lvp_tokenizer_close(tokenizer);
    return 0;
}
