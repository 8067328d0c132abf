// A folder that a test fills and that is gone afterwards.
#ifndef LVP_TESTS_TEMP_FOLDER_H
#define LVP_TESTS_TEMP_FOLDER_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static char temp_folder[64];

static inline int temp_folder_make(void **state)
{
    (void)state;
    (void)strcpy(temp_folder, "/tmp/lvp_test_XXXXXX");
    return mkdtemp(temp_folder) == NULL;
}

static inline int temp_folder_remove(void **state)
{
    (void)state;
    char command[128];
    (void)snprintf(command, sizeof command, "rm -rf %s", temp_folder);
    return system(command);
}

// Path of NAME inside; valid until the fourth call after it.
static inline const char *temp_path(const char *name)
{
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    (void)snprintf(path, sizeof paths[0], "%s/%s", temp_folder, name);
    return path;
}

static inline void temp_write_bytes(const char *name, const void *bytes, size_t n_bytes)
{
    FILE *file = fopen(temp_path(name), "wb");
    if (file == NULL || fwrite(bytes, 1, n_bytes, file) != n_bytes || fclose(file) != 0) abort();
}

static inline void temp_write(const char *name, const char *text)
{
    temp_write_bytes(name, text, strlen(text));
}

// The file's bytes with a NUL behind them, malloc'ed; NULL when there is none. *n_bytes may be NULL.
static inline char *temp_read(const char *name, size_t *n_bytes)
{
    FILE *file = fopen(temp_path(name), "rb");
    if (n_bytes != NULL) *n_bytes = 0;
    if (file == NULL) return NULL;
    char *bytes = calloc(1, 1 << 20);
    size_t n = bytes != NULL ? fread(bytes, 1, (1 << 20) - 1, file) : 0;
    (void)fclose(file);
    if (n_bytes != NULL) *n_bytes = n;
    return bytes;
}

#endif
