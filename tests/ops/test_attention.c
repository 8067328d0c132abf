// Attention of every kernel set: close to the reference; and the same bits for a row computed alone as a decode step,
// in a prefill, in any batch and with any number of threads.
#include "tests/ops/fixture.h"

enum { MAX_LEN = 3072, MAX_PAGES = (MAX_LEN + LVP_KV_PAGE - 1) / LVP_KV_PAGE };

// A paged cache of some sequences whose pages lie scattered, with NaN in every slot that is not filled.
struct scene {
    struct lvp_paged_attention attention;
    int32_t row_start[16], kv_len[16];
    int32_t *block_table;
    float *qkv, *out;
};

static void put(struct lvp_backend *backend, void *data, size_t i, float value)
{
    if (backend->dtype == LVP_F32)
        ((float *)data)[i] = value;
    else
        ((uint16_t *)data)[i] = lvp_to_half(value, backend->dtype);
}

// n_seqs sequences with kv_len[s] slots, of which the last rows[s] are this step's.
static struct scene make_scene(struct lvp_backend *backend, struct lvp_qkv_shape shape, int n_seqs, const int *rows,
                               const int *kv_len)
{
    struct scene scene = {.block_table = make((size_t)n_seqs * MAX_PAGES, 4)};
    size_t head_dim = (size_t)shape.head_dim, kv_heads = (size_t)shape.kv_heads;
    int n_pages = 1, largest = 0, most_rows = 0;
    for (int s = 0; s < n_seqs; s++) {
        scene.row_start[s + 1] = scene.row_start[s] + rows[s];
        scene.kv_len[s] = kv_len[s];
        largest = kv_len[s] > largest ? kv_len[s] : largest;
        most_rows = rows[s] > most_rows ? rows[s] : most_rows;
        n_pages += (kv_len[s] + LVP_KV_PAGE - 1) / LVP_KV_PAGE;
    }
    size_t n_rows = (size_t)scene.row_start[n_seqs], tile = kv_heads * head_dim * LVP_KV_PAGE;
    void *k = make((size_t)n_pages * tile, 4), *v = make((size_t)n_pages * tile, 4);
    for (size_t i = 0; i < (size_t)n_pages * tile; i++) put(backend, k, i, NAN), put(backend, v, i, NAN);
    int32_t next = n_pages; // pages handed out from the last to the first; page 0 belongs to nobody
    for (int s = 0; s < n_seqs; s++) {
        for (int slot = 0; slot < kv_len[s]; slot++) {
            if (slot % LVP_KV_PAGE == 0) scene.block_table[s * MAX_PAGES + slot / LVP_KV_PAGE] = --next;
            for (size_t h = 0; h < kv_heads; h++) {
                size_t at = (size_t)next * tile + h * head_dim * LVP_KV_PAGE, place = (size_t)(slot % LVP_KV_PAGE);
                for (size_t i = 0; i < head_dim; i++) {
                    put(backend, k, at + i * LVP_KV_PAGE + place, 2 * random_float());
                    put(backend, v, at + place * head_dim + i, random_float());
                }
            }
        }
    }
    scene.qkv = random_floats(n_rows * ((size_t)shape.heads + 2 * kv_heads) * head_dim);
    scene.out = make(n_rows * (size_t)shape.heads * head_dim, 4);
    scene.attention = (struct lvp_paged_attention){.n_seqs = n_seqs,
                                                   .n_rows = (int)n_rows,
                                                   .max_pages = MAX_PAGES,
                                                   .max_kv_len = largest,
                                                   .max_rows = most_rows,
                                                   .shape = shape,
                                                   .cache = {k, v}};
    return scene;
}

static void free_scene(struct scene *scene)
{
    free(scene->attention.cache.k), free(scene->attention.cache.v), free(scene->block_table);
    free(scene->qkv), free(scene->out);
}

static void attend(struct lvp_backend *backend, struct scene *scene, float *out)
{
    scene->attention.row_start = scene->row_start; // scenes are copied about, so pointers into them are set last
    scene->attention.kv_len = scene->kv_len;
    scene->attention.block_table = scene->block_table;
    scene->attention.qkv = scene->qkv;
    scene->attention.out = out;
    backend->ops->paged_attention(backend, &scene->attention);
}

static size_t out_elements(const struct scene *scene)
{
    return (size_t)scene->attention.n_rows * (size_t)(scene->attention.shape.heads * scene->attention.shape.head_dim);
}

static const struct lvp_qkv_shape shapes[] = {{1, 1, 1},  {2, 2, 5},  {2, 2, 8},  {4, 2, 20},  {3, 1, 16},
                                              {2, 2, 36}, {4, 4, 64}, {8, 2, 66}, {70, 1, 16}, {2, 1, 128}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

// Softmax weights are within some ulp (exp: 2, sums of lanes: few) and values below 1 in size: an absolute 2e-6.
// A GPU multiplies in 16 bits where the model has them: queries, weights and, of dense rows, keys and values are off by
// half a step each; the sums of 16-bit steps stay below some of them.
static double attention_tolerance(const struct lvp_backend *backend)
{
    return is_gpu(backend) ? 2e-6 + 2 * rounding_step(backend, true) : 2e-6;
}

static void paged_close(struct lvp_backend *fast, struct lvp_backend *ref)
{
    for (int i = 0; i < N_SHAPES; i++) {
        struct scene scene =
            make_scene(ref, shapes[i], 7, (int[]){1, 33, 1, 0, 70, 1, 2}, (int[]){1, 33, 17, 5, 130, 64, 200});
        float *want = make(out_elements(&scene), 4);
        attend(fast, &scene, scene.out);
        attend(ref, &scene, want);
        check_close("paged attention", scene.out, want, out_elements(&scene), attention_tolerance(fast));
        scene.attention.n_seqs = 0;
        attend(fast, &scene, scene.out);
        free(want);
        free_scene(&scene);
    }
}

// Prompts of five crops of an image: 2,880 vision rows; the last rows of one, and a decode row.
static void paged_long(struct lvp_backend *fast, struct lvp_backend *ref)
{
    struct lvp_qkv_shape shape = {1, 1, 20};
    struct scene scene = make_scene(ref, shape, 2, (int[]){5, 1}, (int[]){2910, 2911});
    float *want = make(out_elements(&scene), 4);
    attend(fast, &scene, scene.out);
    attend(ref, &scene, want);
    check_close("attention over 2,910 slots", scene.out, want, out_elements(&scene), attention_tolerance(fast));
    free(want);
    free_scene(&scene);
}

// Row `row` of sequence 0 as a decode step: one row, and a cache that ends with its own slot.
static void attend_alone(struct lvp_backend *backend, const struct scene *scene, int seq, int row, float *out)
{
    const struct lvp_qkv_shape shape = scene->attention.shape;
    size_t width = (size_t)(shape.heads + 2 * shape.kv_heads) * (size_t)shape.head_dim;
    int rows = scene->row_start[seq + 1] - scene->row_start[seq];
    struct lvp_paged_attention alone = scene->attention;
    alone.n_seqs = alone.n_rows = alone.max_rows = 1;
    alone.row_start = (int32_t[]){0, 1};
    alone.kv_len = (int32_t[]){scene->kv_len[seq] - rows + row + 1};
    alone.max_kv_len = alone.kv_len[0];
    alone.block_table = scene->block_table + seq * MAX_PAGES;
    alone.qkv = scene->qkv + (size_t)(scene->row_start[seq] + row) * width;
    alone.out = out;
    backend->ops->paged_attention(backend, &alone);
}

// A batch of prefills and decodes against each of its rows alone. When alone, the later rows' slots count as unfilled;
// when together, they must not be looked at even where they hold NaN.
static void paged_alone(struct lvp_backend *fast, struct lvp_backend *ref)
{
    for (int i = 0; i < N_SHAPES; i += 1) {
        struct scene scene = make_scene(ref, shapes[i], 5, (int[]){97, 1, 30, 1, 64}, (int[]){97, 300, 75, 16, 64});
        size_t row_elements = (size_t)(shapes[i].heads * shapes[i].head_dim);
        float *alone = make(row_elements, 4);
        size_t last = ((size_t)scene.block_table[96 / LVP_KV_PAGE] * (size_t)shapes[i].kv_heads) *
                      (size_t)shapes[i].head_dim * LVP_KV_PAGE;
        put(ref, scene.attention.cache.v, last, NAN); // slot 96 of sequence 0: only row 96 sees it
        put(ref, scene.attention.cache.k, last, NAN);
        attend(fast, &scene, scene.out);
        for (int s = 0; s < 5; s++) {
            for (int row = 0; row < scene.row_start[s + 1] - scene.row_start[s]; row++) {
                attend_alone(fast, &scene, s, row, alone);
                check_bits("a row alone", scene.out + (size_t)(scene.row_start[s] + row) * row_elements, alone,
                           row_elements);
                assert_true(isnan(alone[0]) == (s == 0 && row == 96));
            }
        }
        free(alone);
        free_scene(&scene);
    }
}

// The last rows of one long sequence, in one piece and row by row; lengths dense around page and chunk edges.
static void paged_lengths(struct lvp_backend *fast, struct lvp_backend *ref)
{
    static const int around[] = {16, 32, 48, 64, 128, 192, 256, 512, 576, 1024, 1536, 2032, 2046};
    const struct lvp_qkv_shape shape = {2, 1, 20};
    for (size_t i = 0; i < sizeof around / sizeof *around; i++) {
        for (int len = around[i] - 2; len <= around[i] + 2; len++) {
            int rows = len < 9 ? len : 9;
            struct scene scene = make_scene(ref, shape, 1, &rows, &len);
            float *alone = make((size_t)shape.heads * (size_t)shape.head_dim, 4), *want = make(out_elements(&scene), 4);
            attend(fast, &scene, scene.out);
            attend(ref, &scene, want);
            check_close("lengths", scene.out, want, out_elements(&scene), attention_tolerance(fast));
            for (int row = 0; row < rows; row++) {
                attend_alone(fast, &scene, 0, row, alone);
                check_bits("lengths", scene.out + row * 40, alone, 40);
            }
            free(alone), free(want);
            free_scene(&scene);
        }
    }
}

static void paged_threads(struct lvp_backend *one, struct lvp_backend *many)
{
    for (int i = 1; i < N_SHAPES; i += 3) {
        struct scene scene =
            make_scene(one, shapes[i], 6, (int[]){1, 200, 1, 65, 1, 1}, (int[]){40, 200, 333, 90, 1, 16});
        float *want = make(out_elements(&scene), 4);
        attend(one, &scene, want);
        attend(many, &scene, scene.out);
        check_bits("paged attention by threads", scene.out, want, out_elements(&scene));
        free(want);
        free_scene(&scene);
    }
}

// Dense segments whose q, k and v are parts of wider rows, as in a fused projection.
static struct lvp_dense_attention dense_case(int heads, int head_dim, int n_segments, const int32_t *q_start,
                                             const int32_t *kv_start, const float *qkv, float *out)
{
    int width = heads * head_dim;
    return (struct lvp_dense_attention){.n_segments = n_segments,
                                        .n_queries = q_start[n_segments],
                                        .heads = heads,
                                        .head_dim = head_dim,
                                        .q_start = q_start,
                                        .kv_start = kv_start,
                                        .q = qkv,
                                        .k = qkv + width,
                                        .v = qkv + 2 * width,
                                        .q_stride = 3 * width,
                                        .kv_stride = 3 * width,
                                        .scale = 0.3f,
                                        .out = out};
}

static const int dense_shapes[][2] = {{1, 1}, {2, 5}, {3, 8}, {2, 20}, {2, 36}, {4, 64}, {1, 100}};
enum { N_DENSE_SHAPES = sizeof dense_shapes / sizeof *dense_shapes };

static void dense_close(struct lvp_backend *fast, struct lvp_backend *ref)
{
    // Segment 2 has queries and no keys, segment 3 keys and no queries.
    const int32_t q_start[] = {0, 1, 100, 103, 103, 230}, kv_start[] = {0, 17, 116, 116, 120, 249};
    for (int i = 0; i < N_DENSE_SHAPES; i++) {
        size_t width = (size_t)(dense_shapes[i][0] * dense_shapes[i][1]);
        float *qkv = random_floats(249 * 3 * width), *got = make(230 * width, 4), *want = make(230 * width, 4);
        for (size_t j = 0; j < 230 * width; j++) got[j] = 9;
        struct lvp_dense_attention attention =
            dense_case(dense_shapes[i][0], dense_shapes[i][1], 5, q_start, kv_start, qkv, got);
        fast->ops->dense_attention(fast, &attention);
        attention.out = want;
        ref->ops->dense_attention(ref, &attention);
        check_close("dense attention", got, want, 230 * width, attention_tolerance(fast));
        for (size_t j = 100 * width; j < 103 * width; j++) assert_true(got[j] == 0.0f);
        attention.n_segments = 0;
        fast->ops->dense_attention(fast, &attention);
        free(qkv), free(got), free(want);
    }
}

// 2,880 vision rows look at 30 rows of text, as the pruning modules do.
static void dense_long(struct lvp_backend *fast, struct lvp_backend *ref)
{
    enum { ROWS = 2880, TEXT = 30, HEADS = 1, SIZE = 5, WIDTH = HEADS * SIZE };
    const int32_t q_start[] = {0, ROWS}, kv_start[] = {0, TEXT};
    float *qkv = random_floats((size_t)ROWS * 3 * WIDTH), *got = make((size_t)ROWS * WIDTH, 4);
    float *want = make((size_t)ROWS * WIDTH, 4);
    struct lvp_dense_attention attention = dense_case(HEADS, SIZE, 1, q_start, kv_start, qkv, got);
    fast->ops->dense_attention(fast, &attention);
    attention.out = want;
    ref->ops->dense_attention(ref, &attention);
    check_close("attention of 2,880 rows", got, want, (size_t)ROWS * WIDTH, attention_tolerance(fast));
    free(qkv), free(got), free(want);
}

// One query of a segment at a time, and the segment in a batch with others, against all at once.
static void dense_alone(struct lvp_backend *fast, struct lvp_backend *ref)
{
    (void)ref;
    const int32_t q_start[] = {0, 130, 207}, kv_start[] = {0, 130, 207};
    for (int i = 0; i < N_DENSE_SHAPES; i++) {
        size_t width = (size_t)(dense_shapes[i][0] * dense_shapes[i][1]);
        float *qkv = random_floats(207 * 3 * width), *all = make(207 * width, 4), *alone = make(207 * width, 4);
        struct lvp_dense_attention attention =
            dense_case(dense_shapes[i][0], dense_shapes[i][1], 2, q_start, kv_start, qkv, all);
        fast->ops->dense_attention(fast, &attention);
        attention.n_segments = 1;
        attention.out = alone;
        for (int row = 0; row < 207; row++) {
            attention.q_start = (int32_t[]){row, row + 1};
            attention.n_queries = row + 1;
            attention.kv_start = row < 130 ? kv_start : kv_start + 1;
            fast->ops->dense_attention(fast, &attention);
        }
        check_bits("dense row alone", alone, all, 207 * width);
        free(qkv), free(all), free(alone);
    }
}

static void dense_threads(struct lvp_backend *one, struct lvp_backend *many)
{
    const int32_t starts[] = {0, 99, 300, 301};
    float *qkv = random_floats(301 * 3 * 40), *got = make(301 * 40, 4), *want = make(301 * 40, 4);
    struct lvp_dense_attention attention = dense_case(2, 20, 3, starts, starts, qkv, want);
    one->ops->dense_attention(one, &attention);
    attention.out = got;
    many->ops->dense_attention(many, &attention);
    check_bits("dense attention by threads", got, want, 301 * 40);
    free(qkv), free(got), free(want);
}

static void all_paged_close(void **state)
{
    (void)state, for_each_device(paged_close);
}
static void all_paged_long(void **state)
{
    (void)state, for_each_device(paged_long);
}
static void all_dense_long(void **state)
{
    (void)state, for_each_device(dense_long);
}
static void all_paged_alone(void **state)
{
    (void)state, for_each_backend(paged_alone);
}
static void all_paged_lengths(void **state)
{
    (void)state, for_each_backend(paged_lengths);
}
static void all_paged_threads(void **state)
{
    (void)state, for_each_thread_count(paged_threads);
}
static void all_dense_close(void **state)
{
    (void)state, for_each_device(dense_close);
}
static void all_dense_alone(void **state)
{
    (void)state, for_each_backend(dense_alone);
}
static void all_dense_threads(void **state)
{
    (void)state, for_each_thread_count(dense_threads);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_paged_close), cmocka_unit_test(all_paged_long),    cmocka_unit_test(all_dense_long),
        cmocka_unit_test(all_paged_alone), cmocka_unit_test(all_paged_lengths), cmocka_unit_test(all_paged_threads),
        cmocka_unit_test(all_dense_close), cmocka_unit_test(all_dense_alone),   cmocka_unit_test(all_dense_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
