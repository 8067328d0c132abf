// Arithmetic on sizes that come from files or other ranks: false on overflow, the result untouched then.
#ifndef LVP_COMMON_CHECKED_H
#define LVP_COMMON_CHECKED_H

#include <stdbool.h>
#include <stddef.h>

static inline bool lvp_checked_mul(size_t a, size_t b, size_t *result)
{
    return !__builtin_mul_overflow(a, b, result);
}
static inline bool lvp_checked_add(size_t a, size_t b, size_t *result)
{
    return !__builtin_add_overflow(a, b, result);
}

#endif
