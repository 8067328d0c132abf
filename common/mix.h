// splitmix64 (Steele, Lea, Flood 2014): one well-mixed word per counter.
#ifndef LVP_COMMON_MIX_H
#define LVP_COMMON_MIX_H

#include <stdint.h>

#define LVP_MIX_STEP UINT64_C(0x9e3779b97f4a7c15) // between the counters of a sequence

static inline uint64_t lvp_mix(uint64_t z)
{
    z += LVP_MIX_STEP;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

#endif
