#include "coordinator/resume.h"

#include "coordinator/output_folder.h"
#include "coordinator/rows.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

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

void lvp_row_reader_next(struct lvp_row_reader *reader)
{
    reader->length = reader->file != NULL ? getline(&reader->row, &reader->capacity, reader->file) : -1;
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
    lvp_json_text_free(&resume->start);
    free(resume->failed);
    *resume = (struct lvp_resume){0};
}

// Whole, and of this id. After a power cut a file may end in zeros or in the middle of a row.
static bool is_row_of(const struct lvp_row_reader *reader, const struct lvp_json_text *start)
{
    if (reader->length < 2 || (size_t)reader->length <= start->length) return false;
    size_t length = (size_t)reader->length;
    return memcmp(reader->row, start->data, start->length) == 0 && memcmp(reader->row + length - 2, "}\n", 2) == 0 &&
           memchr(reader->row, '\0', length) == NULL;
}

enum lvp_status lvp_resume_step(struct lvp_resume *resume, const char *id)
{
    resume->start.length = 0;
    lvp_row_start(id, &resume->start);
    if (resume->n_done / 8 >= resume->failed_bytes) {
        size_t n_bytes = 2 * resume->failed_bytes + 1024;
        unsigned char *failed = realloc(resume->failed, n_bytes);
        if (failed == NULL || resume->start.failed) {
            resume->failed = failed != NULL ? failed : resume->failed;
            return lvp_fail(LVP_ERR_MEMORY, "resuming: out of memory");
        }
        memset(failed + resume->failed_bytes, 0, n_bytes - resume->failed_bytes);
        resume->failed = failed;
        resume->failed_bytes = n_bytes;
    }
    if (is_row_of(&resume->captions, &resume->start)) {
        resume->captions_bytes += (uint64_t)resume->captions.length;
        lvp_row_reader_next(&resume->captions);
    } else if (is_row_of(&resume->errors, &resume->start)) {
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
