// The block tables of the paged KV cache: every slot is somebody's or nobody's, and a reservation is all or nothing.
#include "worker/kv_cache.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
// cmocka.h needs those above.
#include <cmocka.h>

enum { MAX_SEQS = 6, PAGES = 64, MAX_KV = 200 };

static const struct lvp_prune_counts prune = {.n_points = 2, .after = {1, 3}, .rows = {64, 32, 8}};
static struct lvp_backend *backend;

static int set_up(void **state)
{
    (void)state;
    return lvp_ref_backend_open(LVP_F32, &backend) == LVP_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    backend->ops->close(backend);
    return 0;
}

static struct lvp_kv_cache *create(int first_layer, int end_layer, const int pages[3])
{
    struct lvp_kv_cache *cache = NULL;
    struct lvp_kv_cache_config config = {.first_layer = first_layer,
                                         .end_layer = end_layer,
                                         .max_seqs = MAX_SEQS,
                                         .max_kv_len = MAX_KV,
                                         .kv_heads = 2,
                                         .head_dim = 8};
    memcpy(config.n_pages, pages, 3 * sizeof *pages);
    assert_int_equal(lvp_kv_cache_create(backend, &prune, &config, &cache), LVP_OK);
    return cache;
}

static struct lvp_step_seq prefill(int slot, int n_text, int n_images, int max_new)
{
    return (struct lvp_step_seq){
        .slot = slot, .prefill = true, .n_ids = n_text + n_images, .n_images = n_images, .max_new = max_new};
}

static void test_pages_are_exclusive(void **state)
{
    (void)state;
    struct lvp_kv_cache *cache = create(0, 5, (int[]){PAGES, PAGES, PAGES});
    uint32_t random = 3;
    int length[MAX_SEQS] = {0}, limit[MAX_SEQS] = {0};
    int owner[PAGES * LVP_KV_PAGE]; // of each cache slot at depth 1
    memset(owner, -1, sizeof owner);
    for (int round = 0; round < 5000; round++) {
        random = random * 1664525U + 1013904223U;
        int slot = (int)(random >> 8) % MAX_SEQS, n = 1 + (int)(random >> 20) % 40;
        if (limit[slot] == 0) {
            struct lvp_step_seq seq = prefill(slot, n, 1, 17);
            assert_int_equal(lvp_kv_cache_reserve(cache, &seq), LVP_OK);
            limit[slot] = lvp_kv_pages(lvp_seq_kv_slots(&prune, &seq, 1)) * LVP_KV_PAGE;
            length[slot] = 0;
        } else if (length[slot] + n <= limit[slot]) {
            int32_t slots[40];
            assert_int_equal(lvp_kv_cache_append(cache, slot, 1, n, slots), LVP_OK);
            for (int i = 0; i < n; i++) {
                int at = length[slot] + i;
                assert_in_range(slots[i], 0, PAGES * LVP_KV_PAGE - 1);
                assert_int_equal(owner[slots[i]], -1);
                owner[slots[i]] = slot;
                assert_int_equal(slots[i],
                                 lvp_kv_cache_pages(cache, slot, 1)[at / LVP_KV_PAGE] * LVP_KV_PAGE + at % LVP_KV_PAGE);
            }
            length[slot] += n;
            assert_int_equal(lvp_kv_cache_length(cache, slot, 1), length[slot]);
        } else {
            lvp_kv_cache_release(cache, slot);
            limit[slot] = 0;
            for (int i = 0; i < PAGES * LVP_KV_PAGE; i++)
                if (owner[i] == slot) owner[i] = -1;
        }
    }
    lvp_kv_cache_destroy(cache);
}

// What the coordinator's admission counts is what the stage takes: exactly that many fit, and a refusal takes nothing.
static void test_reservation_is_all_or_nothing(void **state)
{
    (void)state;
    struct lvp_step_seq a = prefill(0, 20, 1, 12), b = prefill(1, 20, 1, 12);
    int pages[3];
    for (int short_depth = 0; short_depth < 3; short_depth++) {
        for (int d = 0; d < 3; d++) pages[d] = 2 * lvp_kv_pages(lvp_seq_kv_slots(&prune, &a, d)) - (d == short_depth);
        struct lvp_kv_cache *cache = create(0, 5, pages);
        for (int round = 0; round < 3; round++) {
            assert_int_equal(lvp_kv_cache_reserve(cache, &a), LVP_OK);
            lvp_error_clear();
            assert_int_equal(lvp_kv_cache_reserve(cache, &b), LVP_ERR_INTERNAL);
            lvp_kv_cache_release(cache, 0);
            assert_int_equal(lvp_kv_cache_reserve(cache, &b), LVP_OK);
            lvp_kv_cache_release(cache, 1);
        }
        lvp_kv_cache_destroy(cache);
    }
}

static void test_misuse_is_refused(void **state)
{
    (void)state;
    struct lvp_kv_cache *cache = create(0, 5, (int[]){PAGES, PAGES, PAGES});
    int32_t slots[MAX_KV];
    struct lvp_step_seq seq = prefill(2, 20, 0, 12); // 32 slots: two whole pages
    assert_int_equal(lvp_kv_cache_append(cache, 2, 0, 1, slots), LVP_ERR_FORMAT);
    assert_int_equal(lvp_kv_cache_append(cache, -1, 0, 1, slots), LVP_ERR_FORMAT);
    assert_int_equal(lvp_kv_cache_append(cache, MAX_SEQS, 0, 1, slots), LVP_ERR_FORMAT);
    assert_int_equal(lvp_kv_cache_reserve(cache, &seq), LVP_OK);
    assert_int_equal(lvp_kv_cache_reserve(cache, &seq), LVP_ERR_INTERNAL);
    assert_int_equal(lvp_kv_cache_append(cache, 2, 0, 32, slots), LVP_OK);
    assert_int_equal(lvp_kv_cache_append(cache, 2, 0, 1, slots), LVP_ERR_INTERNAL);
    assert_int_equal(lvp_kv_cache_append(cache, 2, 1, 1, slots), LVP_OK); // depths have lengths of their own
    seq = prefill(MAX_SEQS, 1, 0, 1);
    assert_int_equal(lvp_kv_cache_reserve(cache, &seq), LVP_ERR_FORMAT);
    seq = prefill(3, MAX_KV + 8, 0, 8); // longer than any sequence may be, though the pool has the pages
    assert_int_equal(lvp_kv_cache_reserve(cache, &seq), LVP_ERR_INTERNAL);
    lvp_kv_cache_release(cache, 2);
    lvp_kv_cache_release(cache, 2);
    lvp_kv_cache_release(cache, -1);
    lvp_kv_cache_release(cache, MAX_SEQS);
    lvp_error_clear();
    lvp_kv_cache_destroy(cache);
    lvp_kv_cache_destroy(NULL);
}

// A stage keeps only the groups of its own layers, and layers of one group share their pages but not their memory.
static void test_groups_follow_layers(void **state)
{
    (void)state;
    struct lvp_kv_cache *cache = create(1, 4, (int[]){1, PAGES, PAGES}); // layers 1, 2: depth 1; layer 3: depth 2
    assert_false(lvp_kv_cache_has(cache, 0));
    assert_true(lvp_kv_cache_has(cache, 1));
    assert_true(lvp_kv_cache_has(cache, 2));
    struct lvp_step_seq seq = prefill(0, 100, 1, 10); // would not fit depth 0's one page, which is another stage's
    assert_int_equal(lvp_kv_cache_reserve(cache, &seq), LVP_OK);
    struct lvp_kv_layer one = lvp_kv_cache_layer(cache, 1), two = lvp_kv_cache_layer(cache, 2);
    assert_non_null(one.k);
    assert_ptr_not_equal(one.k, two.k);
    assert_ptr_not_equal(one.k, one.v);
    lvp_kv_cache_destroy(cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages_are_exclusive),
        cmocka_unit_test(test_reservation_is_all_or_nothing),
        cmocka_unit_test(test_misuse_is_refused),
        cmocka_unit_test(test_groups_follow_layers),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
