#include "common/dtype.h"

void lvp_narrow(const float *from, size_t n, enum lvp_dtype dtype, void *to)
{
    if (dtype == LVP_F32) {
        memcpy(to, from, n * sizeof *from);
        return;
    }
    uint16_t *halves = to;
    for (size_t i = 0; i < n; i++) halves[i] = lvp_to_half(from[i], dtype);
}

void lvp_widen(const void *from, size_t n, enum lvp_dtype dtype, float *to)
{
    if (dtype == LVP_F32) {
        memcpy(to, from, n * sizeof *to);
        return;
    }
    const uint16_t *halves = from;
    for (size_t i = 0; i < n; i++) to[i] = lvp_from_half(halves[i], dtype);
}
