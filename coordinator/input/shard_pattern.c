#include "coordinator/input/shard_pattern.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANGES = 4, MAX_DIGITS = 9, MAX_NAME = 4096 };

struct range {
    const char *open, *close; // the braces
    long first, last, at;
    int width; // digits, 0: as many as needed
};

static enum lvp_status bad_pattern(const char *pattern)
{
    return lvp_fail(LVP_ERR_USAGE, "--input %s: a range of shards is written {0000..0099}, from the smaller number on",
                    pattern);
}

static bool read_range(const char *open, struct range *range)
{
    char first[MAX_DIGITS + 1], last[MAX_DIGITS + 1];
    int end = 0;
    if (sscanf(open, "{%9[0-9]..%9[0-9]}%n", first, last, &end) != 2 || end == 0) return false;
    size_t n = strlen(first), m = strlen(last);
    bool padded = (first[0] == '0' && n > 1) || (last[0] == '0' && m > 1);
    *range = (struct range){.open = open,
                            .close = open + end - 1,
                            .first = strtol(first, NULL, 10),
                            .last = strtol(last, NULL, 10),
                            .width = padded ? (int)(n > m ? n : m) : 0};
    range->at = range->first;
    return range->first <= range->last;
}

static enum lvp_status add_name(const char *pattern, const struct range *ranges, int n, struct lvp_name_list *names)
{
    char name[MAX_NAME];
    const char *from = pattern;
    int length = 0;
    for (int r = 0; r < n && length < MAX_NAME; r++) {
        length += snprintf(name + length, (size_t)(MAX_NAME - length), "%.*s%0*ld", (int)(ranges[r].open - from), from,
                           ranges[r].width, ranges[r].at);
        from = ranges[r].close + 1;
    }
    if (length < MAX_NAME) length += snprintf(name + length, (size_t)(MAX_NAME - length), "%s", from);
    if (length >= MAX_NAME) return lvp_fail(LVP_ERR_USAGE, "--input %s: a path too long", pattern);
    return lvp_name_list_add(names, name);
}

enum lvp_status lvp_shard_pattern_expand(const char *pattern, struct lvp_name_list *names)
{
    struct range ranges[MAX_RANGES];
    int n = 0;
    for (const char *open = strchr(pattern, '{'); open != NULL; open = strchr(ranges[n++].close, '{'))
        if (n == MAX_RANGES || !read_range(open, &ranges[n])) return bad_pattern(pattern);
    for (;;) {
        if (names->n == LVP_MAX_SHARDS)
            return lvp_fail(LVP_ERR_USAGE, "--input %s: more than %d shards", pattern, LVP_MAX_SHARDS);
        LVP_TRY(add_name(pattern, ranges, n, names));
        int r = n - 1;
        while (r >= 0 && ranges[r].at == ranges[r].last) {
            ranges[r].at = ranges[r].first;
            r--;
        }
        if (r < 0) return LVP_OK;
        ranges[r].at++;
    }
}
