// Operations on rows: norms, gated units, embeddings, copies, rotary positions. All are bound by memory: a block takes
// a row, or a piece of one, and neighbouring threads take neighbouring elements. Sums run in an order that depends on
// the row's width only.
#include "worker/cuda/act.h"

namespace
{

enum { MOST_THREADS = 256 };

int threads_for(int width)
{
    int threads = (width + LVP_WARP - 1) / LVP_WARP * LVP_WARP;
    return threads < MOST_THREADS ? threads : MOST_THREADS;
}

// x = rows, y = pieces of a row of `width`.
dim3 row_grid(int n_rows, int width)
{
    return dim3(static_cast<unsigned>(n_rows), static_cast<unsigned>((width + MOST_THREADS - 1) / MOST_THREADS));
}

__device__ int column()
{
    return static_cast<int>(blockIdx.y * MOST_THREADS + threadIdx.x);
}

struct norm_args {
    const float *x;
    int width;
    const float *weight, *bias; // bias: of layer norms only
    float eps;
    const float *add; // or NULL
    float *y;
};

// Layer norm; T is the type that results are rounded to.
template <class T> __global__ void layer_norm_kernel(norm_args n)
{
    LVP_SHARED(float, room, LVP_WARP);
    size_t at = static_cast<size_t>(blockIdx.x) * static_cast<size_t>(n.width);
    const float *x = n.x + at;
    float sum = 0, squares = 0;
    for (int i = static_cast<int>(threadIdx.x); i < n.width; i += static_cast<int>(blockDim.x)) sum += x[i];
    float mean = lvp_block_reduce(sum, lvp_sum(), 0.0f, room) / static_cast<float>(n.width);
    for (int i = static_cast<int>(threadIdx.x); i < n.width; i += static_cast<int>(blockDim.x))
        squares += (x[i] - mean) * (x[i] - mean);
    float variance = lvp_block_reduce(squares, lvp_sum(), 0.0f, room) / static_cast<float>(n.width);
    float scale = 1.0f / sqrtf(variance + n.eps);
    for (int i = static_cast<int>(threadIdx.x); i < n.width; i += static_cast<int>(blockDim.x)) {
        float value = (x[i] - mean) * scale * n.weight[i] + n.bias[i];
        if (n.add != nullptr) value += n.add[at + static_cast<size_t>(i)];
        n.y[at + static_cast<size_t>(i)] = lvp_rounded<T>(value); // y may be x: each thread reads only its own elements
    }
}

__global__ void rms_norm_kernel(norm_args n)
{
    LVP_SHARED(float, room, LVP_WARP);
    size_t at = static_cast<size_t>(blockIdx.x) * static_cast<size_t>(n.width);
    const float *x = n.x + at;
    float squares = 0;
    for (int i = static_cast<int>(threadIdx.x); i < n.width; i += static_cast<int>(blockDim.x)) squares += x[i] * x[i];
    float scale = 1.0f / sqrtf(lvp_block_reduce(squares, lvp_sum(), 0.0f, room) / static_cast<float>(n.width) + n.eps);
    for (int i = static_cast<int>(threadIdx.x); i < n.width; i += static_cast<int>(blockDim.x))
        n.y[at + static_cast<size_t>(i)] = x[i] * scale * n.weight[i];
}

__global__ void glu_kernel(const float *gate_up, int width, enum lvp_activation activation, float *y)
{
    size_t row = blockIdx.x, wide = static_cast<size_t>(width);
    int i = column();
    if (i >= width) return;
    const float *gate = gate_up + row * 2 * wide;
    y[row * wide + static_cast<size_t>(i)] = lvp_activate(activation, gate[i]) * gate[width + i];
}

// A block takes a patch.
__global__ void unfold_kernel(const float *pixels, int size, int patch, float *y)
{
    int side = size / patch, per_patch = 3 * patch * patch;
    int image = static_cast<int>(blockIdx.x) / (side * side), place = static_cast<int>(blockIdx.x) % (side * side);
    int top = place / side * patch, left = place % side * patch;
    const float *from = pixels + static_cast<size_t>(image) * 3 * static_cast<size_t>(size) * static_cast<size_t>(size);
    float *to = y + static_cast<size_t>(blockIdx.x) * static_cast<size_t>(per_patch);
    for (int i = static_cast<int>(threadIdx.x); i < per_patch; i += static_cast<int>(blockDim.x)) {
        int channel = i / (patch * patch), dy = i / patch % patch, dx = i % patch;
        to[i] = from[(static_cast<size_t>(channel) * static_cast<size_t>(size) + static_cast<size_t>(top + dy)) *
                         static_cast<size_t>(size) +
                     static_cast<size_t>(left + dx)];
    }
}

__global__ void vit_embed_kernel(const float *patches, const float *cls, const float *position, int n_patches,
                                 int width, float *y)
{
    int row = static_cast<int>(blockIdx.x) % (n_patches + 1), image = static_cast<int>(blockIdx.x) / (n_patches + 1);
    int i = column();
    if (i >= width) return;
    size_t wide = static_cast<size_t>(width), patch = static_cast<size_t>(image) * static_cast<size_t>(n_patches);
    float value = row == 0 ? cls[i] : patches[(patch + static_cast<size_t>(row - 1)) * wide + static_cast<size_t>(i)];
    y[static_cast<size_t>(blockIdx.x) * wide + static_cast<size_t>(i)] =
        value + position[static_cast<size_t>(row) * wide + static_cast<size_t>(i)];
}

template <class T>
__global__ void embed_kernel(const T *table, const int32_t *ids, int width, const int32_t *to, float *y)
{
    size_t target = to == nullptr ? blockIdx.x : static_cast<size_t>(to[blockIdx.x]), wide = static_cast<size_t>(width);
    int i = column();
    if (i >= width) return;
    y[target * wide + static_cast<size_t>(i)] =
        lvp_float(table[static_cast<size_t>(ids[blockIdx.x]) * wide + static_cast<size_t>(i)]);
}

__global__ void copy_rows_kernel(const uint32_t *x, const int32_t *from, int width, uint32_t *y, const int32_t *to)
{
    size_t source = from == nullptr ? blockIdx.x : static_cast<size_t>(from[blockIdx.x]);
    size_t target = to == nullptr ? blockIdx.x : static_cast<size_t>(to[blockIdx.x]);
    int i = column();
    if (i >= width) return;
    y[target * static_cast<size_t>(width) + static_cast<size_t>(i)] =
        x[source * static_cast<size_t>(width) + static_cast<size_t>(i)];
}

struct rope_args {
    float *qkv;
    struct lvp_qkv_shape shape;
    const int32_t *positions, *slots;
    const float *angles; // [max_positions, head_dim]
};

// A block takes a row. Pair p of a head is the elements p and p + head_dim / 2; an odd head's last one stays as it is.
template <class T> __global__ void rope_kv_write_kernel(rope_args r, T *cache_k, T *cache_v)
{
    int head_dim = r.shape.head_dim, half = head_dim / 2, kv_heads = r.shape.kv_heads;
    int row = static_cast<int>(blockIdx.x), page = r.slots[row] / LVP_KV_PAGE, place = r.slots[row] % LVP_KV_PAGE;
    float *q = r.qkv + static_cast<size_t>(row) * static_cast<size_t>((r.shape.heads + 2 * kv_heads) * head_dim);
    const float *angle = r.angles + static_cast<size_t>(r.positions[row]) * static_cast<size_t>(head_dim);
    const float *k = q + r.shape.heads * head_dim, *v = k + kv_heads * head_dim;
    size_t tiles = static_cast<size_t>(page) * static_cast<size_t>(kv_heads);
    size_t tile = static_cast<size_t>(head_dim) * LVP_KV_PAGE;
    for (int j = static_cast<int>(threadIdx.x); j < (r.shape.heads + kv_heads) * half;
         j += static_cast<int>(blockDim.x)) {
        int h = j / half, i = j % half;
        float *x = q + h * head_dim; // keys follow the queries
        float first = x[i] * angle[i] - x[i + half] * angle[half + i];
        float second = x[i + half] * angle[i] + x[i] * angle[half + i];
        if (h < r.shape.heads) {
            x[i] = first;
            x[i + half] = second;
            continue;
        }
        T *to = cache_k + (tiles + static_cast<size_t>(h - r.shape.heads)) * tile;
        to[i * LVP_KV_PAGE + place] = lvp_cast<T>(first);
        to[(i + half) * LVP_KV_PAGE + place] = lvp_cast<T>(second);
    }
    for (int j = static_cast<int>(threadIdx.x); j < kv_heads * head_dim; j += static_cast<int>(blockDim.x)) {
        int h = j / head_dim, i = j % head_dim;
        cache_v[(tiles + static_cast<size_t>(h)) * tile + static_cast<size_t>(place * head_dim + i)] =
            lvp_cast<T>(v[j]);
        if (i == 2 * half)
            cache_k[(tiles + static_cast<size_t>(h)) * tile + static_cast<size_t>(i * LVP_KV_PAGE + place)] =
                lvp_cast<T>(k[j]);
    }
}

} // namespace

void lvp_cuda_layer_norm(struct lvp_backend *backend, const float *x, int n_rows, int width, const float *weight,
                         const float *bias, float eps, const float *add, bool round, float *y)
{
    if (n_rows == 0) return;
    norm_args n = {x, width, weight, bias, eps, add, y};
    lvp_with_type(round ? backend->dtype : LVP_F32, [&](auto zero) {
        lvp_launch(layer_norm_kernel<decltype(zero)>, dim3(static_cast<unsigned>(n_rows)), dim3(threads_for(width)), 0,
                   lvp_cuda_of(backend)->stream, n);
    });
}

void lvp_cuda_rms_norm(struct lvp_backend *backend, const float *x, int n_rows, int width, const float *weight,
                       float eps, float *y)
{
    if (n_rows == 0) return;
    norm_args n = {x, width, weight, nullptr, eps, nullptr, y};
    lvp_launch(rms_norm_kernel, dim3(static_cast<unsigned>(n_rows)), dim3(threads_for(width)), 0,
               lvp_cuda_of(backend)->stream, n);
}

void lvp_cuda_glu(struct lvp_backend *backend, const float *gate_up, int n_rows, int width,
                  enum lvp_activation activation, float *y)
{
    if (n_rows == 0) return;
    lvp_launch(glu_kernel, row_grid(n_rows, width), dim3(threads_for(width)), 0, lvp_cuda_of(backend)->stream, gate_up,
               width, activation, y);
}

void lvp_cuda_unfold_patches(struct lvp_backend *backend, const float *pixels, int n_images, int size, int patch,
                             float *y)
{
    int side = size / patch; // pixels past the last whole patch are not read, as a strided convolution does
    if (n_images == 0 || side == 0) return;
    lvp_launch(unfold_kernel, dim3(static_cast<unsigned>(n_images * side * side)), dim3(threads_for(3 * patch * patch)),
               0, lvp_cuda_of(backend)->stream, pixels, size, patch, y);
}

void lvp_cuda_vit_embed(struct lvp_backend *backend, const float *patches, const float *cls, const float *position,
                        int n_images, int n_patches, int width, float *y)
{
    if (n_images == 0) return;
    lvp_launch(vit_embed_kernel, row_grid(n_images * (n_patches + 1), width), dim3(threads_for(width)), 0,
               lvp_cuda_of(backend)->stream, patches, cls, position, n_patches, width, y);
}

void lvp_cuda_embed(struct lvp_backend *backend, const void *table, const int32_t *ids, int n, int width,
                    const int32_t *to, float *y)
{
    if (n == 0) return;
    lvp_with_type(backend->dtype, [&](auto zero) {
        using T = decltype(zero);
        lvp_launch(embed_kernel<T>, row_grid(n, width), dim3(threads_for(width)), 0, lvp_cuda_of(backend)->stream,
                   static_cast<const T *>(table), ids, width, to, y);
    });
}

void lvp_cuda_copy_rows(struct lvp_backend *backend, const void *x, const int32_t *from, int n, int width, void *y,
                        const int32_t *to)
{
    if (n == 0) return;
    lvp_launch(copy_rows_kernel, row_grid(n, width), dim3(threads_for(width)), 0, lvp_cuda_of(backend)->stream,
               static_cast<const uint32_t *>(x), from, width, static_cast<uint32_t *>(y), to);
}

void lvp_cuda_rope_kv_write(struct lvp_backend *backend, float *qkv, int n_rows, struct lvp_qkv_shape shape,
                            const int32_t *positions, const float *rope_angles, const int32_t *slots,
                            struct lvp_kv_layer cache)
{
    if (n_rows == 0) return;
    rope_args r = {qkv, shape, positions, slots, rope_angles};
    lvp_with_type(backend->dtype, [&](auto zero) {
        using T = decltype(zero);
        lvp_launch(rope_kv_write_kernel<T>, dim3(static_cast<unsigned>(n_rows)), dim3(MOST_THREADS), 0,
                   lvp_cuda_of(backend)->stream, r, static_cast<T *>(cache.k), static_cast<T *>(cache.v));
    });
}
