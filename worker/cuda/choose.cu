// Operations that choose: the rows that survive a prune point, and the next token.
#include "worker/cuda/cuda_backend.h"

namespace
{

enum { THREADS = 256, WARPS = THREADS / LVP_WARP, DIGITS = 256 };

__device__ int thread()
{
    return static_cast<int>(threadIdx.x);
}

// Larger numbers have larger keys; NaN counts as the lowest, and the two zeros are one.
__device__ uint32_t order_key(float x)
{
    if (isnan(x)) x = -INFINITY;
    if (x == 0.0f) x = 0.0f;
    uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000U ? ~bits : bits | 0x80000000U;
}

// Sum over the threads before this one; *all gets the sum over all. `room` [WARPS] is shared.
__device__ int count_before(int x, int *room, int *all)
{
    int lane = thread() % LVP_WARP, warp = thread() / LVP_WARP, sum = x;
    for (int step = 1; step < LVP_WARP; step *= 2) {
        int other = __shfl_up_sync(0xffffffffU, sum, static_cast<unsigned>(step));
        if (lane >= step) sum += other;
    }
    __syncthreads(); // readers of an earlier count are done
    if (lane == LVP_WARP - 1) room[warp] = sum;
    __syncthreads();
    int before = 0, total = 0;
    for (int w = 0; w < WARPS; w++) {
        if (w < warp) before += room[w];
        total += room[w];
    }
    *all = total;
    return before + sum - x;
}

// --- survivors

struct selection {
    int n_rows, n_images;
    const int32_t *image_row, *image_len, *gate_start, *keep;
    const float *gate;
    int32_t *survivors;
};

// The keep-th largest key of an image and how many rows with just that key stay: radix selection, eight bits at a time
// from the top, one pass over the rows each. 1 <= keep < n.
__device__ void find_threshold(const float *gate, int n, int keep, int *counts, int *room, uint32_t *threshold,
                               int *n_equal)
{
    LVP_SHARED(int, chosen, 2); // digit, and how many are still to be found among those that share it
    uint32_t prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (thread() < DIGITS) counts[thread()] = 0;
        __syncthreads();
        for (int i = thread(); i < n; i += THREADS) {
            uint32_t key = order_key(gate[2 * i] - gate[2 * i + 1]);
            bool same = shift == 24 || key >> (shift + 8) == prefix >> (shift + 8);
            if (same) atomicAdd(&counts[key >> shift & (DIGITS - 1)], 1);
        }
        __syncthreads();
        int digit = DIGITS - 1 - thread(), all; // from the largest digit down
        int mine = thread() < DIGITS ? counts[digit] : 0, before = count_before(mine, room, &all);
        if (thread() < DIGITS && before < keep && keep <= before + mine) {
            chosen[0] = digit;
            chosen[1] = keep - before;
        }
        __syncthreads();
        prefix |= static_cast<uint32_t>(chosen[0]) << shift;
        keep = chosen[1];
        __syncthreads();
    }
    *threshold = prefix;
    *n_equal = keep;
}

// Block i writes the survivors of the rows behind image i - 1: text up to image i, then image i; the last block writes
// what is behind the last image. Where they go follows from the counts of the images before, so blocks need no order.
__global__ void __launch_bounds__(THREADS) select_rows_kernel(selection s)
{
    LVP_SHARED(int, counts, DIGITS);
    LVP_SHARED(int, room, WARPS);
    int image = static_cast<int>(blockIdx.x), removed = 0, all;
    for (int i = thread(); i < image; i += THREADS) {
        int len = s.image_len[i], keep = s.keep[i] < len ? s.keep[i] : len;
        removed += len - (keep > 0 ? keep : 0);
    }
    (void)count_before(removed, room, &all);
    removed = all; // by the images before
    int first = image == 0 ? 0 : s.image_row[image - 1] + s.image_len[image - 1];
    int end = image < s.n_images ? s.image_row[image] : s.n_rows;
    for (int row = first + thread(); row < end; row += THREADS) s.survivors[row - removed] = row;
    if (image == s.n_images) return;

    const float *gate = s.gate + 2 * static_cast<size_t>(s.gate_start[image]);
    int n = s.image_len[image], keep = s.keep[image], n_equal = n;
    uint32_t threshold = 0; // all stay
    if (keep <= 0) return;
    if (keep < n) find_threshold(gate, n, keep, counts, room, &threshold, &n_equal);
    int to = end - removed, equal = 0; // survivors and equals so far
    for (int base = 0; base < n; base += THREADS) {
        int i = base + thread(), stays = 0, all_equal;
        uint32_t key = i < n ? order_key(gate[2 * i] - gate[2 * i + 1]) : 0;
        bool is_equal = i < n && keep < n && key == threshold;
        int before = count_before(is_equal, room, &all_equal); // ties go to the lower row
        if (i < n) stays = keep >= n || key > threshold || (is_equal && equal + before < n_equal);
        equal += all_equal;
        int place = count_before(stays, room, &all);
        if (stays) s.survivors[to + place] = end + i;
        to += all;
    }
}

// --- tokens

__device__ float logit_of(const float *logits, int i)
{
    return isnan(logits[i]) ? -INFINITY : logits[i];
}

// Index of the largest logit, the lowest of equals, and its value.
__device__ int find_largest(const float *logits, int vocab, float *values, int *ids, float *largest)
{
    int best = 0;
    float top = -INFINITY;
    bool any = false;
    for (int i = thread(); i < vocab; i += THREADS) {
        float x = logit_of(logits, i);
        if (!any || x > top) {
            top = x;
            best = i;
            any = true;
        }
    }
    if (!any) best = vocab; // loses to any other at the same value
    lvp_block_best(&top, &best, values, ids);
    __syncthreads();
    *largest = top;
    return best;
}

// Sum over the block in an order that depends on the block's shape only. `room` [WARPS] is shared.
__device__ double block_sum(double x, double *room)
{
    for (int step = LVP_WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffU, x, step);
    __syncthreads(); // readers of an earlier sum are done
    if (thread() % LVP_WARP == 0) room[thread() / LVP_WARP] = x;
    __syncthreads();
    x = 0;
    for (int w = 0; w < WARPS; w++) x += room[w];
    return x;
}

// A row's distribution: weights exp((logit - largest) / temperature).
struct row_weights {
    const float *logits;
    int vocab;
    float largest, temperature;
    double *room;

    __device__ float weight(int i) const { return expf((logit_of(logits, i) - largest) / temperature); }
    // Sum of the weights of the tokens whose key is at least `least`.
    __device__ __forceinline__ double mass(uint32_t least) const
    {
        double sum = 0;
        for (int i = thread(); i < vocab; i += THREADS)
            if (order_key(logits[i]) >= least) sum += static_cast<double>(weight(i));
        return block_sum(sum, room);
    }
    // The largest key for which the mass from it upwards reaches `goal`, or is above it where `above`.
    __device__ __forceinline__ uint32_t key_of_mass(double goal, bool above) const
    {
        uint32_t key = 0;
        for (uint32_t bit = 0x80000000U; bit != 0; bit >>= 1) {
            double sum = mass(key | bit);
            if (above ? sum > goal : sum >= goal) key |= bit;
        }
        return key;
    }
};

// Tokens that share a key have one weight and follow each other by id. How many of them it takes from `before` to
// reach `goal`, or to get above it; 1 at least. A quotient in f32 is near, and is put right.
__device__ int equals_for(double goal, double before, float weight, bool above)
{
    if (!(weight > 0.0f)) return 1;
    int n = static_cast<int>(static_cast<float>(goal - before) / weight);
    auto enough = [=](int count) {
        double sum = before + count * static_cast<double>(weight);
        return above ? sum > goal : sum >= goal;
    };
    while (n > 1 && enough(n - 1)) n--;
    while (!enough(n)) n++;
    return n < 1 ? 1 : n;
}

// Id of the n-th token (from 1) that has this key, or of the last one.
__device__ int nth_of_key(const float *logits, int vocab, uint32_t key, int n, int *room)
{
    LVP_SHARED(int, found, 1);
    int seen = 0;
    if (thread() == 0) found[0] = 0;
    for (int base = 0; base < vocab; base += THREADS) {
        int i = base + thread(), all;
        bool has = i < vocab && order_key(logits[i]) == key;
        int before = count_before(has, room, &all);
        if (has && seen + before < n && (seen + before + 1 == n || before + 1 == all))
            found[0] = i; // the last of this stretch as long as the n-th has not come
        seen += all;
        __syncthreads();
        if (seen >= n) break;
    }
    return found[0];
}

// worker/cpu/ref_sample.c says what is drawn; here the sorted order is not made: where in it a sum is reached is found
// bit by bit.
__device__ int draw(const row_weights &row, float top_p, double uniform, int *room)
{
    double total = row.mass(0), prefix = total;
    uint32_t least = 0;
    int least_equals = 0;
    if (top_p < 1.0f) {
        least = row.key_of_mass(static_cast<double>(top_p) * total, false);
        double before = least == 0xffffffffU ? 0 : row.mass(least + 1);
        LVP_SHARED(float, weight, 1);
        int first = nth_of_key(row.logits, row.vocab, least, 1, room);
        if (thread() == 0) weight[0] = row.weight(first);
        __syncthreads();
        least_equals = equals_for(static_cast<double>(top_p) * total, before, weight[0], false);
        prefix = before + least_equals * static_cast<double>(weight[0]);
        __syncthreads();
    }
    double target = uniform * prefix;
    uint32_t key = row.key_of_mass(target, true);
    double before = key == 0xffffffffU ? 0 : row.mass(key + 1);
    int first = nth_of_key(row.logits, row.vocab, key, 1, room);
    int n = equals_for(target, before, row.weight(first), true);
    if (top_p < 1.0f && key == least && n > least_equals) n = least_equals;
    __syncthreads();
    return nth_of_key(row.logits, row.vocab, key, n, room);
}

// A block takes a row. Four blocks a multiprocessor do, so that registers suffice.
__global__ void __launch_bounds__(THREADS, 4)
    sample_kernel(const float *logits, int vocab, const lvp_draw *draws, int32_t *tokens, float *logprobs)
{
    LVP_SHARED(float, values, WARPS);
    LVP_SHARED(int, room, WARPS);
    LVP_SHARED(double, sums, WARPS);
    const float *row = logits + static_cast<size_t>(blockIdx.x) * static_cast<size_t>(vocab);
    lvp_draw how = draws[blockIdx.x];
    float largest;
    int token = find_largest(row, vocab, values, room, &largest);
    double sum = 0;
    for (int i = thread(); i < vocab; i += THREADS) sum += static_cast<double>(expf(logit_of(row, i) - largest));
    sum = block_sum(sum, sums);
    if (how.temperature > 0.0f && isfinite(largest))
        token = draw({row, vocab, largest, how.temperature, sums}, how.top_p, how.uniform, room);
    if (thread() != 0) return;
    tokens[blockIdx.x] = token;
    int scored = how.scored >= 0 ? how.scored : token;
    logprobs[blockIdx.x] = logit_of(row, scored) - largest - logf(static_cast<float>(sum));
}

} // namespace

void lvp_cuda_select_rows(struct lvp_backend *backend, const struct lvp_row_selection *s)
{
    if (s->n_rows == 0) return;
    selection kernel = {s->n_rows,     s->n_images, s->image_row, s->image_len,
                        s->gate_start, s->keep,     s->gate,      s->survivors};
    lvp_launch(select_rows_kernel, dim3(static_cast<unsigned>(s->n_images + 1)), dim3(THREADS), 0,
               lvp_cuda_of(backend)->stream, kernel);
}

void lvp_cuda_sample(struct lvp_backend *backend, const float *logits, int n, int vocab, const struct lvp_draw *draws,
                     int32_t *tokens, float *logprobs)
{
    if (n == 0) return;
    lvp_launch(sample_kernel, dim3(static_cast<unsigned>(n)), dim3(THREADS), 0, lvp_cuda_of(backend)->stream, logits,
               vocab, draws, tokens, logprobs);
}
