// Tar shards for tests, byte by byte: POSIX ustar.
#ifndef LVP_TESTS_TAR_WRITER_H
#define LVP_TESTS_TAR_WRITER_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TAR_BLOCK = 512, TAR_MAX = 1 << 20 };

struct tar_bytes {
    unsigned char bytes[TAR_MAX];
    size_t n;
};

// `kind`: '0' a file, '1' a hard link, '2' a symbolic link, '5' a folder.
static inline void tar_add(struct tar_bytes *tar, const char *name, char kind, const void *content, size_t n)
{
    unsigned char *header = tar->bytes + tar->n;
    size_t padded = (n + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
    if (tar->n + TAR_BLOCK + padded > TAR_MAX || strlen(name) > 100) abort();
    memset(header, 0, TAR_BLOCK + padded);
    memcpy(header, name, strlen(name));
    memcpy(header + 100, "0000644\0000000000\0000000000\0", 24);
    (void)snprintf((char *)header + 124, 12, "%011o", (unsigned)n);
    memcpy(header + 136, "00000000000", 11);
    memset(header + 148, ' ', 8);
    header[156] = (unsigned char)kind;
    memcpy(header + 257, "ustar\00000", 8);
    unsigned sum = 0;
    for (int i = 0; i < TAR_BLOCK; i++) sum += header[i];
    (void)snprintf((char *)header + 148, 8, "%06o", sum);
    if (n > 0) memcpy(header + TAR_BLOCK, content, n);
    tar->n += TAR_BLOCK + padded;
}

static inline void tar_text(struct tar_bytes *tar, const char *name, const char *content)
{
    tar_add(tar, name, '0', content, strlen(content));
}

static inline void tar_end(struct tar_bytes *tar)
{
    memset(tar->bytes + tar->n, 0, (size_t)2 * TAR_BLOCK);
    tar->n += (size_t)2 * TAR_BLOCK;
}

#endif
