#include "coordinator/output/resume.h"

#include "coordinator/output/output_folder.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum lvp_status lvp_row_reader_open(const char *dir, const char *name, struct lvp_row_reader *reader)
{
    *reader = (struct lvp_row_reader){.length = -1};
    char *path = lvp_output_path(dir, name);
    if (path == NULL) return lvp_fail(LVP_ERR_MEMORY, "--output %s: out of memory", dir);
    reader->file = fopen(path, "re");
    enum lvp_status status = LVP_OK;
    if (reader->file == NULL && errno != ENOENT)
        status = lvp_fail(LVP_ERR_IO, "%s cannot be read: %s", path, strerror(errno));
    free(path);
    lvp_row_reader_next(reader);
    return status;
}

// Bytes of the JSON string at the start of `text`, quotes included; 0 when it does not end.
static size_t string_length(const char *text, size_t n)
{
    if (n == 0 || text[0] != '"') return 0;
    for (size_t i = 1; i < n; i++) {
        if (text[i] == '\\')
            i++;
        else if (text[i] == '"')
            return i + 1;
    }
    return 0;
}

void lvp_row_reader_next(struct lvp_row_reader *reader)
{
    static const char start[] = "{\"id\":";
    enum { START = sizeof start - 1 };
    reader->length = reader->file != NULL ? getline(&reader->row, &reader->capacity, reader->file) : -1;
    reader->whole = false;
    if (reader->length < START + 2 || memcmp(reader->row, start, START) != 0) return;
    size_t length = (size_t)reader->length, id_length = string_length(reader->row + START, length - START);
    reader->whole =
        id_length > 0 && memcmp(reader->row + length - 2, "}\n", 2) == 0 && memchr(reader->row, '\0', length) == NULL;
    reader->id_text = XXH3_64bits(reader->row + START, id_length);
}

void lvp_row_reader_close(struct lvp_row_reader *reader)
{
    if (reader->file != NULL) (void)fclose(reader->file);
    free(reader->row);
    *reader = (struct lvp_row_reader){.length = -1};
}

enum lvp_status lvp_resume_open(const char *dir, const char *captions_name, const char *errors_name,
                                struct lvp_resume *resume)
{
    *resume = (struct lvp_resume){.captions.length = -1, .errors.length = -1};
    LVP_TRY(lvp_row_reader_open(dir, captions_name, &resume->captions));
    return lvp_row_reader_open(dir, errors_name, &resume->errors);
}

void lvp_resume_close(struct lvp_resume *resume)
{
    lvp_row_reader_close(&resume->captions);
    lvp_row_reader_close(&resume->errors);
    free(resume->failed);
    *resume = (struct lvp_resume){0};
}

enum lvp_status lvp_resume_step(struct lvp_resume *resume, uint64_t id_text)
{
    if (resume->n_done / 8 >= resume->failed_bytes) {
        size_t n_bytes = 2 * resume->failed_bytes + 1024;
        unsigned char *failed = realloc(resume->failed, n_bytes);
        if (failed == NULL) return lvp_fail(LVP_ERR_MEMORY, "resuming: out of memory");
        memset(failed + resume->failed_bytes, 0, n_bytes - resume->failed_bytes);
        resume->failed = failed;
        resume->failed_bytes = n_bytes;
    }
    if (resume->captions.whole && resume->captions.id_text == id_text) {
        resume->captions_bytes += (uint64_t)resume->captions.length;
        lvp_row_reader_next(&resume->captions);
    } else if (resume->errors.whole && resume->errors.id_text == id_text) {
        resume->errors_bytes += (uint64_t)resume->errors.length;
        lvp_row_reader_next(&resume->errors);
        resume->failed[resume->n_done / 8] |= (unsigned char)(1U << (resume->n_done % 8));
        resume->n_failed++;
    } else {
        resume->ended = true;
        return LVP_OK;
    }
    resume->n_done++;
    return LVP_OK;
}
