#include "common/weight_pool.h"

#include "common/mix.h"

#include <stdlib.h>
#include <string.h>

enum { STARTS = 1 << 16, STRIDE = 4099 }; // tensors start at different multiples of a prime

struct lvp_weight_pool {
    size_t n_cut;
    uint16_t *random, *ones, *zeros; // bf16; [largest + STARTS] and twice [VECTOR]
};

enum { VECTOR = 1 << 20 }; // elements of a norm's weight or a bias at most

// n is a multiple of 4.
static void fill_random(uint16_t *values, size_t n)
{
    static const float half_width = 0.02f * 1.7320508f; // of a uniform distribution with that deviation
    uint64_t counter = 1;
    for (size_t i = 0; i < n; i += 4, counter += LVP_MIX_STEP) {
        uint64_t word = lvp_mix(counter);
        for (size_t j = 0; j < 4; j++) {
            int16_t level = (int16_t)(word >> (16 * j));
            values[i + j] = lvp_f32_to_bf16((float)level * (half_width / 32768.0f));
        }
    }
}

enum lvp_status lvp_weight_pool_create(size_t largest, struct lvp_weight_pool **result)
{
    struct lvp_weight_pool *pool = calloc(1, sizeof *pool);
    size_t n = (largest + STARTS + 3) / 4 * 4; // filled by fours
    *result = pool;
    if (pool != NULL) {
        pool->random = malloc(n * sizeof *pool->random);
        pool->ones = malloc(VECTOR * sizeof *pool->ones);
        pool->zeros = calloc(VECTOR, sizeof *pool->zeros);
    }
    if (pool == NULL || pool->random == NULL || pool->ones == NULL || pool->zeros == NULL) {
        lvp_weight_pool_free(pool);
        *result = NULL;
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for synthetic weights");
    }
    fill_random(pool->random, n);
    for (size_t i = 0; i < VECTOR; i++) pool->ones[i] = 0x3f80; // 1.0
    return LVP_OK;
}

void lvp_weight_pool_free(struct lvp_weight_pool *pool)
{
    if (pool == NULL) return;
    free(pool->random);
    free(pool->ones);
    free(pool->zeros);
    free(pool);
}

struct lvp_tensor_view lvp_weight_pool_cut(struct lvp_weight_pool *pool, const char *name, const int *sizes)
{
    struct lvp_tensor_view view = {.name = name, .dtype = LVP_BF16, .dtype_name = "BF16", .n_bytes = sizeof(uint16_t)};
    for (; view.n_dims < 4 && sizes[view.n_dims] > 0; view.n_dims++) {
        view.shape[view.n_dims] = sizes[view.n_dims];
        view.n_bytes *= (size_t)sizes[view.n_dims];
    }
    const char *dot = strrchr(name, '.'), *last = dot != NULL ? dot + 1 : name;
    if (strcmp(last, "bias") == 0)
        view.data = pool->zeros;
    else if (view.n_dims == 1 && strcmp(last, "weight") == 0)
        view.data = pool->ones;
    else
        view.data = pool->random + pool->n_cut++ * STRIDE % STARTS;
    return view;
}
