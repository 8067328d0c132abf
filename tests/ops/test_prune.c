// What pruners without weights compute at a prune point, every kernel set and the GPU against the reference: attention
// of a prompt's last row, and the choice of rows that lie apart. Alone and in a batch the same bits.
#include "tests/ops/fixture.h"

enum { MAX_IMAGES = 6, MAX_SEQS = 4, MAX_PAGES = 200, MAX_ROWS = 3072 };

// Sequences with images between text rows, all prefilled in one step.
struct scene {
    int n_images, n_seqs, n_rows;
    int32_t image_row[MAX_IMAGES], image_len[MAX_IMAGES], gate_start[MAX_IMAGES + 1], keep[MAX_IMAGES];
    int32_t image_seq[MAX_IMAGES], image_position[MAX_IMAGES], row_start[MAX_SEQS + 1];
    int32_t block_table[MAX_SEQS * MAX_PAGES], positions[MAX_ROWS];
    int grid;
};

// Of every image some of its grid * grid tokens are left; `crowd` makes one long prompt.
static struct scene make_scene(int grid, int n_seqs, bool crowd)
{
    struct scene s = {.n_seqs = n_seqs, .grid = grid};
    int next_page = 1;
    for (int q = 0; q < n_seqs; q++) {
        int images = crowd ? 1 : random_below(3), position = 0;
        for (int i = 0; i <= images; i++) {
            int text = 1 + random_below(7);
            for (int t = 0; t < text; t++) s.positions[s.n_rows++] = position++;
            if (i == images || s.n_images == MAX_IMAGES) continue;
            s.image_seq[s.n_images] = q;
            s.image_row[s.n_images] = s.n_rows;
            s.image_position[s.n_images] = position;
            int first = s.n_rows;
            for (int p = 0; p < grid * grid; p++)
                if (crowd || random_below(3) > 0) s.positions[s.n_rows++] = position + p;
            position += grid * grid;
            s.image_len[s.n_images] = s.n_rows - first;
            s.keep[s.n_images] = random_below(s.n_rows - first + 2);
            s.gate_start[s.n_images + 1] = s.gate_start[s.n_images] + s.n_rows - first;
            s.n_images++;
        }
        s.row_start[q + 1] = s.n_rows;
        int pages = (s.n_rows - s.row_start[q] + LVP_KV_PAGE - 1) / LVP_KV_PAGE;
        for (int p = 0; p < pages; p++) s.block_table[q * MAX_PAGES + p] = next_page++;
    }
    return s;
}

static struct lvp_last_attention attention_of(const struct scene *s, struct lvp_qkv_shape shape, void *keys,
                                              const float *qkv, float *gate)
{
    return (struct lvp_last_attention){.n_images = s->n_images,
                                       .image_row = s->image_row,
                                       .image_len = s->image_len,
                                       .gate_start = s->gate_start,
                                       .image_seq = s->image_seq,
                                       .row_start = s->row_start,
                                       .block_table = s->block_table,
                                       .max_pages = MAX_PAGES,
                                       .shape = shape,
                                       .cache = {.k = keys},
                                       .qkv = qkv,
                                       .gate = gate};
}

// The cache's keys hold NaN where nothing was written; nobody may look there.
static void *make_keys(const struct scene *s, enum lvp_dtype dtype, struct lvp_qkv_shape shape)
{
    size_t tile = (size_t)shape.kv_heads * (size_t)shape.head_dim * LVP_KV_PAGE;
    void *keys = make((size_t)(MAX_PAGES * MAX_SEQS + 1) * tile, 4);
    for (int q = 0; q < s->n_seqs; q++) {
        int n = s->row_start[q + 1] - s->row_start[q];
        for (int slot = 0; slot < (n + LVP_KV_PAGE - 1) / LVP_KV_PAGE * LVP_KV_PAGE; slot++) {
            size_t page = (size_t)s->block_table[q * MAX_PAGES + slot / LVP_KV_PAGE];
            for (size_t i = 0; i < tile / LVP_KV_PAGE; i++) {
                size_t at = page * tile + i * LVP_KV_PAGE + (size_t)(slot % LVP_KV_PAGE);
                float value = slot < n ? 2 * random_float() : NAN;
                if (dtype == LVP_F32)
                    ((float *)keys)[at] = value;
                else
                    ((uint16_t *)keys)[at] = lvp_to_half(value, dtype);
            }
        }
    }
    return keys;
}

static void check_attention(struct lvp_backend *fast, struct lvp_backend *ref, const struct scene *s,
                            struct lvp_qkv_shape shape)
{
    size_t width = (size_t)(shape.heads + 2 * shape.kv_heads) * (size_t)shape.head_dim;
    size_t n = 2 * (size_t)s->gate_start[s->n_images];
    float *qkv = random_floats((size_t)s->n_rows * width), *got = random_floats(n), *want = random_floats(n);
    void *keys = make_keys(s, ref->dtype, shape);
    struct lvp_last_attention a = attention_of(s, shape, keys, qkv, got);
    fast->ops->last_attention(fast, &a);
    a.gate = want;
    ref->ops->last_attention(ref, &a);
    check_close("attention of the last row", got, want, n, 1e-6);
    for (int i = 0; i < s->n_images; i++) { // an image alone
        struct lvp_last_attention alone = a;
        int32_t starts[2] = {0, s->image_len[i]};
        alone.n_images = 1;
        alone.image_row = s->image_row + i, alone.image_len = s->image_len + i, alone.image_seq = s->image_seq + i;
        alone.gate_start = starts, alone.gate = want;
        fast->ops->last_attention(fast, &alone);
        check_bits("attention of the last row alone", want, got + 2 * s->gate_start[i], 2 * (size_t)s->image_len[i]);
    }
    free(qkv), free(got), free(want), free(keys);
}

static int cases(int number) // emulated blocks are slow
{
    return getenv("LVP_TESTS_GPU_ONLY") == NULL ? number : number / 5;
}

static void attention(struct lvp_backend *fast, struct lvp_backend *ref)
{
    static const struct lvp_qkv_shape shapes[] = {{1, 1, 1}, {4, 2, 20}, {3, 1, 16}, {8, 2, 66}, {2, 1, 128}};
    for (int i = 0; i < cases(20); i++) {
        struct scene s = make_scene(1 + random_below(9), 1 + random_below(MAX_SEQS), false);
        check_attention(fast, ref, &s, shapes[i % 5]);
    }
    struct scene crowd = make_scene(53, 1, true); // 2,809 rows
    check_attention(fast, ref, &crowd, shapes[1]);
}

// Scores and keys are multiples of small powers of two, so that no order of additions changes a score's rank but
// through exp; neighbours often have the same key, which is what the choice has to spread.
static void check_nms(struct lvp_backend *fast, struct lvp_backend *ref, struct scene *s, int key_width)
{
    size_t n = 2 * (size_t)s->gate_start[s->n_images], stride = (size_t)key_width + 3;
    float *keys = make((size_t)s->n_rows * stride, 4), *gate = make(n, 4), *got = make(n, 4), *want = make(n, 4);
    float *prior = make((size_t)(s->grid * s->grid), 4);
    for (size_t i = 0; i < (size_t)s->n_rows * stride; i++) keys[i] = (float)(random_below(3) - 1);
    for (int row = 1; row < s->n_rows; row++)
        if (random_below(2)) memcpy(keys + (size_t)row * stride, keys + (size_t)(row - 1) * stride, stride * 4);
    for (size_t i = 0; i < n; i++) gate[i] = random_below(60) == 0 ? NAN : (float)(1 + random_below(1000)) / 1024;
    for (int i = 0; i < s->grid * s->grid; i++) prior[i] = (float)(1 + random_below(8)) / 8;
    struct lvp_soft_nms nms = {.n_images = s->n_images,
                               .image_row = s->image_row,
                               .image_len = s->image_len,
                               .gate_start = s->gate_start,
                               .keep = s->keep,
                               .positions = s->positions,
                               .image_position = s->image_position,
                               .grid = s->grid,
                               .prior = prior,
                               .keys = keys,
                               .key_width = key_width,
                               .key_stride = (int)stride,
                               .gate = memcpy(got, gate, n * 4)};
    fast->ops->soft_nms(fast, &nms);
    nms.gate = memcpy(want, gate, n * 4);
    ref->ops->soft_nms(ref, &nms);
    check_close("taken rows and what is left of the others", got, want, n, 1e-5);
    for (int i = 0; i < s->n_images; i++) {
        int taken = 0;
        for (int r = s->gate_start[i]; r < s->gate_start[i + 1]; r++) taken += got[2 * r] > 1.5f;
        assert_int_equal(taken, s->keep[i] < s->image_len[i] ? s->keep[i] : s->image_len[i]);
        struct lvp_soft_nms alone = nms;
        int32_t starts[2] = {0, s->image_len[i]};
        alone.n_images = 1;
        alone.image_row = s->image_row + i, alone.image_len = s->image_len + i, alone.keep = s->keep + i;
        alone.image_position = s->image_position + i;
        alone.gate_start = starts, alone.gate = memcpy(want, gate + 2 * s->gate_start[i], 2 * (size_t)starts[1] * 4);
        fast->ops->soft_nms(fast, &alone);
        check_bits("taken rows of an image alone", want, got + 2 * s->gate_start[i], 2 * (size_t)starts[1]);
    }
    free(keys), free(gate), free(got), free(want), free(prior);
}

static void spread(struct lvp_backend *fast, struct lvp_backend *ref)
{
    random_state = 99; // no two scores of these cases lie within rounding of each other where it matters
    for (int i = 0; i < cases(20); i++) {
        struct scene s = make_scene(1 + random_below(14), 1 + random_below(MAX_SEQS), false);
        check_nms(fast, ref, &s, 1 + random_below(70));
    }
    struct scene crowd = make_scene(24, 1, true); // llava-1.5's grid
    crowd.keep[0] = 58;
    check_nms(fast, ref, &crowd, 32);
}

static void threads(struct lvp_backend *one, struct lvp_backend *many)
{
    struct lvp_qkv_shape shape = {4, 2, 20};
    struct scene s = make_scene(8, MAX_SEQS, false);
    size_t n = 2 * (size_t)s.gate_start[s.n_images];
    float *qkv = random_floats((size_t)s.n_rows * 160), *a = random_floats(n), *b = random_floats(n);
    void *keys = make_keys(&s, one->dtype, shape);
    struct lvp_last_attention args = attention_of(&s, shape, keys, qkv, a);
    one->ops->last_attention(one, &args);
    args.gate = b;
    many->ops->last_attention(many, &args);
    check_bits("attention of the last row by threads", a, b, n);
    float prior[64];
    for (int i = 0; i < 64; i++) prior[i] = 1;
    struct lvp_soft_nms nms = {.n_images = s.n_images,
                               .image_row = s.image_row,
                               .image_len = s.image_len,
                               .gate_start = s.gate_start,
                               .keep = s.keep,
                               .positions = s.positions,
                               .image_position = s.image_position,
                               .grid = 8,
                               .prior = prior,
                               .keys = qkv + 80,
                               .key_width = 40,
                               .key_stride = 160,
                               .gate = a};
    one->ops->soft_nms(one, &nms);
    nms.gate = b;
    many->ops->soft_nms(many, &nms);
    check_bits("taken rows by threads", a, b, n);
    free(qkv), free(a), free(b), free(keys);
}

// The formulas, worked out for three rows in a line of a 3 x 3 grid whose keys are equal: taking the middle one leaves
// its neighbours 1 - exp(-1 / 4.5) = 0.1992 of their score, less than the far row's.
static void reference(void **state)
{
    (void)state;
    struct lvp_backend *ref = NULL;
    assert_int_equal(lvp_ref_backend_open(LVP_F32, &ref), LVP_OK);
    float gate[] = {0.9f, 0, 1, 0, 0.3f, 0, 0.5f, 0}, prior[9] = {1, 1, 0.6f, 1, 1, 1, 1, 1, 1};
    const float keys[] = {1, 1, 1, -1};
    struct lvp_soft_nms nms = {.n_images = 1,
                               .image_row = (int32_t[]){0},
                               .image_len = (int32_t[]){4},
                               .gate_start = (int32_t[]){0, 4},
                               .keep = (int32_t[]){3},
                               .positions = (int32_t[]){7, 8, 9, 15}, // places 0, 1, 2 and 8
                               .image_position = (int32_t[]){7},
                               .grid = 3,
                               .prior = prior,
                               .keys = keys,
                               .key_width = 1,
                               .key_stride = 1,
                               .gate = gate};
    ref->ops->soft_nms(ref, &nms); // 1, then the unlike 0.5, then 0.9 * 0.2 before 0.3 * 0.6 * 0.2
    check_close("taken in turn", gate, (float[]){2, 0, 4, 0, 0.3f * 0.6f * 0.19926f, 0, 3, 0}, 8, 1e-4);

    // Two heads, one key head: q = ln 3 and 0, keys 1 0 0: shares 3/5 1/5 1/5 and a third each.
    float k[LVP_KV_PAGE] = {1, 0, 0, NAN}, scores[4] = {9, 9, 9, 9};
    const float qkv[] = {0, 0, 0, 0, 0, 0, 0, 0, 1.09861229f, 0, 0, 0};
    struct lvp_last_attention a = {1,
                                   (int32_t[]){0},
                                   (int32_t[]){2},
                                   (int32_t[]){0, 2},
                                   (int32_t[]){0},
                                   (int32_t[]){0, 3},
                                   (int32_t[]){0},
                                   1,
                                   {2, 1, 1},
                                   {k, NULL},
                                   qkv,
                                   scores};
    ref->ops->last_attention(ref, &a);
    check_close("shares", scores, (float[]){(0.6f + 1 / 3.0f) / 2, 0, (0.2f + 1 / 3.0f) / 2, 0}, 4, 1e-6);
    ref->ops->close(ref);
}

static void all_attention(void **state)
{
    (void)state, for_each_device(attention);
}
static void all_spread(void **state)
{
    (void)state, for_each_device(spread);
}
static void all_threads(void **state)
{
    (void)state, for_each_thread_count(threads);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference),
        cmocka_unit_test(all_attention),
        cmocka_unit_test(all_spread),
        cmocka_unit_test(all_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
