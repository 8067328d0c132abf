// Philox4x32-10, a counter-based random generator: the numbers are a pure function of key and counter, so that a
// token's draw does not depend on what else ran before it. Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As
// Easy as 1, 2, 3", SC 2011, section 3.3; known answers in its Random123 distribution.
#ifndef LVP_WORKER_PHILOX_H
#define LVP_WORKER_PHILOX_H

#include <stdint.h>

struct lvp_philox {
    uint32_t word[4];
};

static inline struct lvp_philox lvp_philox(uint64_t key, struct lvp_philox counter)
{
    uint32_t key_0 = (uint32_t)key, key_1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t product_0 = (uint64_t)0xD2511F53U * counter.word[0];
        uint64_t product_1 = (uint64_t)0xCD9E8D57U * counter.word[2];
        counter = (struct lvp_philox){{(uint32_t)(product_1 >> 32) ^ counter.word[1] ^ key_0, (uint32_t)product_1,
                                       (uint32_t)(product_0 >> 32) ^ counter.word[3] ^ key_1, (uint32_t)product_0}};
        key_0 += 0x9E3779B9U; // Weyl sequences: golden ratio, sqrt(3) - 1
        key_1 += 0xBB67AE85U;
    }
    return counter;
}

// The one number that a token's choice may use: uniform in (0, 1), a multiple of 2^-33.
static inline double lvp_token_uniform(uint64_t key, uint32_t token_index)
{
    struct lvp_philox block = lvp_philox(key, (struct lvp_philox){{token_index, 0, 0, 0}});
    return ((double)block.word[0] + 0.5) * 0x1p-32;
}

#endif
