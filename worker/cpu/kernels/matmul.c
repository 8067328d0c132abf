// The matmul kernels' driver, one source for every instruction set: rows of x to panels, tiles over a block, epilogue.
//
// Each output is one accumulator lane that walks k = 0, 1, ... whatever the number of rows, the panels walked at once
// or the block sizes: between K blocks the sums are stored and loaded again, which changes nothing. That is why the
// bits of a row never depend on its batch.
#include "worker/cpu/kernels/matmul.h"

#include "worker/cpu/int8.h"
#include "worker/cpu/kernels/act.h"
#include "worker/cpu/kernels/tile.h"

enum { PACK_CHUNK = 256 };

_Static_assert((int)PANEL <= (int)LVP_MATMUL_MAX_PANEL, "the scratch holds a panel");
_Static_assert((int)LVP_MATMUL_BLOCK_COLUMNS % ((int)PANEL * (int)LVP_MATMUL_GROUP) == 0,
               "a task is whole groups of panels");

#define STRING_(x) #x
#define STRING(x)  STRING_(x)

static int row_start(const struct lvp_matmul *m, int panel)
{
    return lvp_matmul_start(m->n_rows, m->row_panels, panel);
}

// Words of packed x that n values along K take.
static int x_words(const struct lvp_matmul *m, int n)
{
    return m->weights_dtype == LVP_INT8 || (HAVE_DOT && m->weights_dtype == LVP_BF16) ? n / 2 : n;
}

static int count_steps(const struct lvp_matmul *m, int n)
{
    return m->weights_dtype == LVP_F32 ? n : n / 2;
}

// Of one panel of weights.
static size_t step_bytes(const struct lvp_matmul *m)
{
    return m->weights_dtype == LVP_INT8 ? 2 * PANEL : 4 * PANEL;
}

// Magnitudes compare as their bits do, and what is not finite is above everything else.
static float largest_magnitude(const float *x, int n)
{
    vi largest = vi_set1(0);
    for (int i = 0; i < n; i += VF_LANES) {
        vi bits = (vi)vf_load_n(x + i, n - i) & vi_set1(INT32_MAX);
        largest = (vi)vf_select(bits > largest, (vf)bits, (vf)largest);
    }
    int32_t best = 0;
    for (int i = 0; i < VF_LANES; i++) best = largest[i] > best ? largest[i] : best;
    float magnitude;
    memcpy(&magnitude, &best, sizeof magnitude);
    return magnitude;
}

// Nearest integers, ties to even, of |x| below 2^22: there, a float's last place is a half or less, and adding 1.5 *
// 2^23 leaves no room for it.
static vi nearest(vf x)
{
    vf magic = vf_set1(0x1.8p23f);
    return (vi)(x + magic) - (vi)magic;
}

static void set_x_scales(const struct lvp_matmul *m, int first, int last)
{
    float limit = lvp_int8_x_limit(m->in);
    for (int row = first; row < last; row++)
        m->x_scale[row] = lvp_int8_scale(largest_magnitude(m->x + (size_t)row * (size_t)m->in, m->in), limit);
}

// Words of x[row, k .. k + n), zero behind its end; returns how many.
static int row_words(const struct lvp_matmul *m, int row, int k, int n, uint32_t *words)
{
    const float *x = m->x + (size_t)row * (size_t)m->in + k;
    int present = m->in - k < n ? m->in - k : n;
    uint16_t half[PACK_CHUNK] = {0};
    if (m->weights_dtype == LVP_INT8) {
        vf scale = vf_set1(m->x_scale[row].to);
        for (int i = 0; i < present; i += VF_LANES) {
            vh lanes = __builtin_convertvector((vu)nearest(vf_load_n(x + i, present - i) * scale), vh);
            memcpy(half + i, &lanes, present - i < VF_LANES ? (size_t)(present - i) * sizeof *half : sizeof lanes);
        }
        memcpy(words, half, (size_t)n * sizeof *half);
        return n / 2;
    }
    if (HAVE_DOT && m->weights_dtype == LVP_BF16) {
        for (int i = 0; i < present; i += VF_LANES)
            vf_store_half_n(half + i, vf_load_n(x + i, present - i), present - i, LVP_BF16);
        memcpy(words, half, (size_t)n * sizeof *half);
        return n / 2;
    }
    memcpy(words, x, (size_t)present * sizeof *x);
    for (int i = present; i < n; i++) words[i] = 0;
    return n;
}

static void pack_rows(const struct lvp_matmul *m, int first, int last)
{
    if (m->weights_dtype == LVP_INT8) set_x_scales(m, row_start(m, first), row_start(m, last));
    for (int k0 = 0; k0 < m->k; k0 += m->k_block) {
        int n_k = m->k - k0 < m->k_block ? m->k - k0 : m->k_block;
        for (int panel = first; panel < last; panel++) {
            int start = row_start(m, panel), rows = row_start(m, panel + 1) - start;
            uint32_t *block = m->packed_x + (size_t)x_words(m, k0) * (size_t)m->n_rows;
            uint32_t *to = block + (size_t)start * (size_t)x_words(m, n_k);
            for (int k = 0; k < n_k; k += PACK_CHUNK) {
                uint32_t words[PACK_CHUNK];
                int n_words = 0;
                for (int r = 0; r < rows; r++) {
                    n_words = row_words(m, start + r, k0 + k, n_k - k < PACK_CHUNK ? n_k - k : PACK_CHUNK, words);
                    for (int i = 0; i < n_words; i++) to[i * rows + r] = words[i];
                }
                to += n_words * rows;
            }
        }
    }
}

// The product's value of a vector of sums, bias included.
static vf finish_sums(const struct lvp_matmul *m, int row, int column, const float *sums)
{
    vf bias = vf_load(m->bias + column), sum = vf_load(sums);
    if (m->weights_dtype != LVP_INT8) return sum + bias;
    vf scale = vf_load(m->weight_scale + column) * vf_set1(m->x_scale[row].back);
    return __builtin_convertvector((vi)sum, vf) * scale + bias;
}

// y = round(add + act(sum + bias)) for `rows` rows by `columns` columns whose sums lie `stride` apart.
static void finish_tile(const struct lvp_matmul *m, int row, int rows, int column, int columns, const float *sums,
                        int stride)
{
    enum lvp_dtype round_to = m->epilogue.round ? m->dtype : LVP_F32;
    for (int r = 0; r < rows; r++, sums += stride) {
        size_t at = (size_t)(row + r) * (size_t)m->out + (size_t)column;
        for (int c = 0; c < columns; c += VF_LANES) {
            int n = columns - c < VF_LANES ? columns - c : VF_LANES;
            vf value = vf_activate(m->epilogue.activation, finish_sums(m, row + r, column + c, sums + c));
            if (m->epilogue.add) {
                const float *add = m->epilogue.add + at + c;
                value += n == VF_LANES ? vf_load(add) : vf_load_partial(add, n);
            }
            value = vf_round(value, round_to);
            if (n == VF_LANES) {
                vf_store(m->y + at + c, value);
            } else {
                vf_store_partial(m->y + at + c, value, n);
            }
        }
    }
}

static tile_fn *const (*tiles_of(enum lvp_dtype weights_dtype))[2]
{
    if (weights_dtype == LVP_INT8) return LVP_KERNEL(lvp_int8_tiles);
    if (weights_dtype == LVP_BF16) return LVP_KERNEL(lvp_bf16_tiles);
    return weights_dtype == LVP_F16 ? LVP_KERNEL(lvp_f16_tiles) : LVP_KERNEL(lvp_f32_tiles);
}

// The columns of one group (or one panel) for all row panels of a task, over one K block.
static void run_group(const struct lvp_matmul *m, int k0, int n_k, int column_panel, int panels, int first_row_panel,
                      int last_row_panel, float *sums)
{
    tile_fn *const(*tiles)[2] = tiles_of(m->weights_dtype);
    size_t panel_bytes = (size_t)count_steps(m, m->k) * step_bytes(m);
    struct tile tile = {
        .w = (const char *)m->weights + (size_t)column_panel * panel_bytes + (size_t)count_steps(m, k0) * step_bytes(m),
        .w_stride = panel_bytes,
        .steps = count_steps(m, n_k),
        .first = k0 == 0,
    };
    bool last = k0 + n_k == m->k;
    int columns = m->out - column_panel * PANEL < panels * PANEL ? m->out - column_panel * PANEL : panels * PANEL;
    const uint32_t *x = m->packed_x + (size_t)x_words(m, k0) * (size_t)m->n_rows;
    for (int p = first_row_panel; p < last_row_panel; p++) {
        int row = row_start(m, p), rows = row_start(m, p + 1) - row;
        tile.x = x + (size_t)row * (size_t)x_words(m, n_k);
        tile.sums = sums;
        tiles[rows - 1][panels > 1](&tile);
        if (last) finish_tile(m, row, rows, column_panel * PANEL, columns, sums, panels * PANEL);
        sums += rows * panels * PANEL;
    }
}

static void run_block(const struct lvp_matmul *m, int row_block, int column_block, struct lvp_matmul_scratch *scratch)
{
    int first_row_panel = lvp_matmul_start(m->row_panels, m->row_blocks, row_block);
    int last_row_panel = lvp_matmul_start(m->row_panels, m->row_blocks, row_block + 1);
    int rows = row_start(m, last_row_panel) - row_start(m, first_row_panel);
    int groups = (m->column_panels + m->group - 1) / m->group;
    int first = lvp_matmul_start(groups, m->column_blocks, column_block) * m->group;
    int last = lvp_matmul_start(groups, m->column_blocks, column_block + 1) * m->group;
    if (last > m->column_panels) last = m->column_panels;
    for (int k0 = 0; k0 < m->k; k0 += m->k_block) {
        int n_k = m->k - k0 < m->k_block ? m->k - k0 : m->k_block;
        float *sums = scratch->sums;
        for (int panel = first, panels; panel < last; panel += panels) {
            panels = last - panel >= m->group ? m->group : 1;
            run_group(m, k0, n_k, panel, panels, first_row_panel, last_row_panel, sums);
            sums += rows * panels * PANEL;
        }
    }
}

static int group_for(int rows)
{
    return GROUP_FOR(rows);
}

const struct lvp_matmul_kernels LVP_KERNEL(lvp_matmul) = {
    .kernel_set = STRING(LVP_KERNEL_ISA),
    .panel = PANEL,
    .row_tile = ROW_TILE,
    .rounds_x = HAVE_DOT,
    .group_for = group_for,
    .pack_rows = pack_rows,
    .run_block = run_block,
};
