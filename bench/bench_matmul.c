// Rates of the linear layers of a 7B model on one core: ours beside oneDNN, the FMA limit and the memory read rate.
// The sides take turns in one process and the best of several rounds counts, because other work may share the machine.
//
// usage: bench_matmul [rounds]     (LVP_ISA picks the kernel set; the best this CPU has by default)
#include "worker/cpu/kernels.h"
#include "worker/cpu/linear.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#if defined(LVP_HAVE_DNNL)
#include <dnnl.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { MAX_ROWS = 640, MAX_WIDTH = 11008, N_ROW_COUNTS = 4, N_SHAPES = 3, N_SIDES = 3 };

// Matrices of one LLaMA 7B decoder layer.
static const struct shape {
    int out, in, times;
    const char *what;
} shapes[N_SHAPES] = {
    {4096, 4096, 4, "q, k, v, o"},
    {11008, 4096, 2, "gate, up"},
    {4096, 11008, 1, "down"},
};
static const int row_counts[N_ROW_COUNTS] = {1, 8, 64, 640};

static const struct lvp_matmul_kernels *choose_kernels(void)
{
    const struct lvp_kernels *chosen;
    if (lvp_kernels_find(NULL, &chosen) == LVP_OK) return lvp_matmul_kernels_find(chosen->name);
    (void)fprintf(stderr, "bench_matmul: %s\n", lvp_error_text());
    exit(2);
}

// CPU seconds of this thread: what others on the machine do with the core in between does not count. Every side
// computes on this thread (oneDNN is held to one).
static double now(void)
{
    struct timespec time;
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void *must_alloc(size_t bytes)
{
    void *memory = aligned_alloc(2 << 20, (bytes + (2 << 20)) >> 21 << 21);
    if (!memory) {
        (void)fputs("bench_matmul: out of memory\n", stderr);
        exit(1);
    }
    (void)madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
}

static void fill_random(float *values, size_t n)
{
    uint32_t state = 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525U + 1013904223U;
        values[i] = (float)(int32_t)state * 0x1p-31F;
    }
}

// Roofs

// GFLOP/s of independent multiply-adds in registers.
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static double fma_roof(void)
{
    enum { CHAINS = 12, STEPS = 2000000 };
    __m256 sum[CHAINS], factor = _mm256_set1_ps(0.9999F);
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm256_set1_ps((float)i);
    double start = now();
    for (int step = 0; step < STEPS; step++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) sum[i] = _mm256_fmadd_ps(sum[i], factor, factor);
        __asm__ volatile("" : "+x"(factor));
    }
    double seconds = now() - start;
    for (int i = 1; i < CHAINS; i++) sum[0] = _mm256_add_ps(sum[0], sum[i]);
    volatile float sink = sum[0][0];
    (void)sink;
    return 2.0 * 8 * CHAINS * STEPS / seconds * 1e-9;
}
#else
static double fma_roof(void)
{
    return 0.0;
}
#endif

// GB/s of one thread that adds up an array much larger than the caches, as `streams` parallel walks that prefetch
// ahead.
static double read_rate(const float *values, size_t bytes, int streams)
{
    typedef uint64_t line __attribute__((vector_size(64)));
    line sum[4] = {{0}};
    size_t stream_lines = bytes / sizeof(line) / (size_t)streams;
    const char *from = (const char *)values;
    double start = now();
    for (size_t i = 0; i < stream_lines; i++) {
        for (int s = 0; s < streams; s++) {
            line words;
            const char *at = from + ((size_t)s * stream_lines + i) * sizeof words;
            __builtin_prefetch(at + 16 * sizeof words);
            memcpy(&words, at, sizeof words);
            sum[s] += words;
        }
    }
    double seconds = now() - start;
    volatile uint64_t sink = sum[0][0] + sum[1][0] + sum[2][0] + sum[3][0];
    (void)sink;
    return (double)(stream_lines * (size_t)streams * sizeof(line)) / seconds * 1e-9;
}

// oneDNN

#if defined(LVP_HAVE_DNNL)
static void check_dnnl(dnnl_status_t status, const char *what)
{
    if (status == dnnl_success) return;
    (void)fprintf(stderr, "bench_matmul: oneDNN: %s: status %d\n", what, (int)status);
    exit(1);
}

static dnnl_memory_desc_t *describe(dnnl_memory_desc_t *desc, int rows, int columns, dnnl_data_type_t type,
                                    dnnl_format_tag_t tag)
{
    dnnl_dims_t dims = {rows, columns};
#if DNNL_VERSION_MAJOR >= 3
    check_dnnl(dnnl_memory_desc_create_with_tag(desc, 2, dims, type, tag), "descriptor");
#else
    check_dnnl(dnnl_memory_desc_init_by_tag(desc, 2, dims, type, tag), "descriptor");
#endif
    return desc;
}

// x W^T with weights in the layout that oneDNN asks for.
struct dnnl_side {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_t primitive;
    dnnl_memory_t x, w, y;
};

static dnnl_primitive_desc_t matmul_desc(struct dnnl_side *side, const dnnl_memory_desc_t *x,
                                         const dnnl_memory_desc_t *w, const dnnl_memory_desc_t *y)
{
    dnnl_primitive_desc_t desc = NULL;
#if DNNL_VERSION_MAJOR >= 3
    dnnl_status_t status = dnnl_matmul_primitive_desc_create(&desc, side->engine, *x, *w, NULL, *y, NULL);
#else
    dnnl_matmul_desc_t matmul;
    check_dnnl(dnnl_matmul_desc_init(&matmul, x, w, NULL, y), "matmul");
    dnnl_status_t status = dnnl_primitive_desc_create(&desc, &matmul, NULL, side->engine, NULL);
#endif
    return status == dnnl_success ? desc : NULL;
}

static dnnl_memory_t create_memory(struct dnnl_side *side, const dnnl_memory_desc_t *desc)
{
    dnnl_memory_t memory = NULL;
#if DNNL_VERSION_MAJOR >= 3
    check_dnnl(dnnl_memory_create(&memory, *desc, side->engine, DNNL_MEMORY_ALLOCATE), "memory");
#else
    check_dnnl(dnnl_memory_create(&memory, desc, side->engine, DNNL_MEMORY_ALLOCATE), "memory");
#endif
    return memory;
}

static dnnl_memory_t memory_for(struct dnnl_side *side, dnnl_primitive_desc_t desc, dnnl_query_t query)
{
#if DNNL_VERSION_MAJOR >= 3
    const_dnnl_memory_desc_t wanted = dnnl_primitive_desc_query_md(desc, query, 0);
    dnnl_memory_t memory = NULL;
    check_dnnl(dnnl_memory_create(&memory, wanted, side->engine, DNNL_MEMORY_ALLOCATE), "memory");
    return memory;
#else
    return create_memory(side, dnnl_primitive_desc_query_md(desc, query, 0));
#endif
}

// Ones everywhere: subnormals or NaN in fresh memory would cost time that the comparison must not see.
static void fill_ones(dnnl_memory_t memory, size_t n, dnnl_data_type_t type)
{
    void *data;
    check_dnnl(dnnl_memory_get_data_handle(memory, &data), "data");
    for (size_t i = 0; i < n; i++) {
        if (type == dnnl_f32)
            ((float *)data)[i] = 1.0F;
        else
            ((uint16_t *)data)[i] = 0x3f80;
    }
}

// False where this CPU or this version has no such primitive.
static bool open_dnnl(struct dnnl_side *side, const struct shape *shape, int rows, dnnl_data_type_t type)
{
    dnnl_memory_desc_t x, w, y;
    *side = (struct dnnl_side){0};
    check_dnnl(dnnl_engine_create(&side->engine, dnnl_cpu, 0), "engine");
    check_dnnl(dnnl_stream_create(&side->stream, side->engine, dnnl_stream_default_flags), "stream");
    dnnl_primitive_desc_t desc = matmul_desc(side, describe(&x, rows, shape->in, type, dnnl_ab),
                                             describe(&w, shape->in, shape->out, type, dnnl_format_tag_any),
                                             describe(&y, rows, shape->out, dnnl_f32, dnnl_ab));
    if (!desc) return false;
    check_dnnl(dnnl_primitive_create(&side->primitive, desc), "primitive");
    side->x = create_memory(side, &x);
    side->w = memory_for(side, desc, dnnl_query_weights_md);
    side->y = create_memory(side, &y);
    fill_ones(side->x, (size_t)rows * (size_t)shape->in, type);
    fill_ones(side->w, (size_t)shape->out * (size_t)shape->in, type);
    check_dnnl(dnnl_primitive_desc_destroy(desc), "destroy");
    return true;
}

static void run_dnnl(struct dnnl_side *side)
{
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, side->x}, {DNNL_ARG_WEIGHTS, side->w}, {DNNL_ARG_DST, side->y}};
    check_dnnl(dnnl_primitive_execute(side->primitive, side->stream, 3, args), "execute");
    check_dnnl(dnnl_stream_wait(side->stream), "wait");
}

static void close_dnnl(struct dnnl_side *side)
{
    if (side->primitive) {
        (void)dnnl_primitive_destroy(side->primitive);
        (void)dnnl_memory_destroy(side->x);
        (void)dnnl_memory_destroy(side->w);
        (void)dnnl_memory_destroy(side->y);
    }
    (void)dnnl_stream_destroy(side->stream);
    (void)dnnl_engine_destroy(side->engine);
}
#endif

// Timing

struct bench {
    struct lvp_pool *pool;
    const struct lvp_matmul_kernels *kernels;
    float *weights, *x, *y;
    void *scratch;
    int rounds;
    double read; // best memory read rate seen, GB/s
};

static struct lvp_linear *pack(const struct bench *bench, const struct shape *shape)
{
    struct lvp_tensor_view view = {.name = "bench.weight",
                                   .dtype = LVP_F32,
                                   .n_dims = 2,
                                   .shape = {shape->out, shape->in},
                                   .data = bench->weights,
                                   .n_bytes = (size_t)shape->out * (size_t)shape->in * sizeof(float)};
    struct lvp_linear_part part = {.weight = &view};
    struct lvp_linear *linear;
    if (lvp_linear_pack(bench->pool, bench->kernels, &part, 1, LVP_BF16, LVP_BF16, &linear) != LVP_OK) {
        (void)fprintf(stderr, "bench_matmul: %s\n", lvp_error_text());
        exit(1);
    }
    return linear;
}

static void keep_best(double *best, double start)
{
    double seconds = now() - start;
    if (*best == 0.0 || seconds < *best) *best = seconds;
}

// Best seconds of ours, oneDNN f32 and oneDNN bf16, in turns; 0 where there is no such side.
static void measure(struct bench *bench, const struct shape *shape, int rows, double best[N_SIDES])
{
    struct lvp_linear *linear = pack(bench, shape);
    int rounds = rows < 64 ? 8 * bench->rounds : bench->rounds;
#if defined(LVP_HAVE_DNNL)
    struct dnnl_side f32, bf16;
    bool has_f32 = open_dnnl(&f32, shape, rows, dnnl_f32), has_bf16 = open_dnnl(&bf16, shape, rows, dnnl_bf16);
#endif
    for (int i = 0; i < N_SIDES; i++) best[i] = 0.0;
    for (int round = 0; round < rounds; round++) {
        double start = now();
        lvp_linear_run(bench->pool, bench->kernels, linear, bench->x, rows, (struct lvp_epilogue){0}, bench->y,
                       bench->scratch);
        keep_best(&best[0], start);
#if defined(LVP_HAVE_DNNL)
        start = now();
        if (has_f32) run_dnnl(&f32), keep_best(&best[1], start);
        start = now();
        if (has_bf16) run_dnnl(&bf16), keep_best(&best[2], start);
#endif
        if (rows == 1) {
            double one = read_rate(bench->weights, (size_t)64 << 20, 1);
            double four = read_rate(bench->weights + ((size_t)16 << 20), (size_t)64 << 20, 4);
            if (one > bench->read) bench->read = one;
            if (four > bench->read) bench->read = four;
        }
    }
#if defined(LVP_HAVE_DNNL)
    close_dnnl(&f32), close_dnnl(&bf16);
#endif
    lvp_linear_free(linear);
}

static void print_rate(double flops, double seconds)
{
    if (seconds > 0.0)
        printf(" %12.1f", flops / seconds * 1e-9);
    else
        printf(" %12s", "-");
}

static double faster(double a, double b)
{
    return a > 0.0 && (b == 0.0 || a < b) ? a : b;
}

// oneDNN's OpenMP reads its number of threads when it is loaded, before main.
static void hold_dnnl_to_one_thread(char **argv)
{
    const char *threads = getenv("OMP_NUM_THREADS");
    if (threads && strcmp(threads, "1") == 0) return;
    (void)setenv("OMP_NUM_THREADS", "1", 1);
    (void)execv("/proc/self/exe", argv);
    perror("bench_matmul: /proc/self/exe");
    exit(1);
}

int main(int argc, char **argv)
{
    hold_dnnl_to_one_thread(argv);
    struct bench bench = {.kernels = choose_kernels(), .rounds = argc > 1 ? atoi(argv[1]) : 5};
    double layer_ours[N_ROW_COUNTS] = {0}, layer_dnnl[N_ROW_COUNTS] = {0}, roof = 0.0;
    cpu_set_t core;
    CPU_ZERO(&core);
    CPU_SET(0, &core);
    (void)sched_setaffinity(0, sizeof core, &core);
    if (!bench.kernels || lvp_pool_create(1, &bench.pool) != LVP_OK) return 1;
    bench.weights = must_alloc((size_t)4096 * MAX_WIDTH * sizeof(float));
    bench.x = must_alloc((size_t)MAX_ROWS * MAX_WIDTH * sizeof(float));
    bench.y = must_alloc((size_t)MAX_ROWS * MAX_WIDTH * sizeof(float));
    bench.scratch = must_alloc(lvp_linear_scratch_bytes(1, MAX_ROWS, MAX_WIDTH));
    fill_random(bench.weights, (size_t)4096 * MAX_WIDTH);
    fill_random(bench.x, (size_t)MAX_ROWS * MAX_WIDTH);
    for (int i = 0; i < 10; i++) {
        double rate = fma_roof();
        if (rate > roof) roof = rate;
    }

    printf("one thread, kernel set %s, bf16 weights; GFLOP/s of its CPU time, best of %d rounds in turns\n",
           bench.kernels->kernel_set, bench.rounds);
    printf("%-12s %5s %5s %5s %12s %12s %12s %12s\n", "matrix", "out", "in", "rows", "ours", "oneDNN f32",
           "oneDNN bf16", "ours GB/s");
    for (int s = 0; s < N_SHAPES; s++) {
        for (int r = 0; r < N_ROW_COUNTS; r++) {
            const struct shape *shape = &shapes[s];
            double best[N_SIDES], weights = (double)shape->out * shape->in;
            measure(&bench, shape, row_counts[r], best);
            printf("%-12s %5d %5d %5d", shape->what, shape->out, shape->in, row_counts[r]);
            for (int i = 0; i < N_SIDES; i++) print_rate(2.0 * weights * row_counts[r], best[i]);
            if (row_counts[r] == 1) printf(" %12.1f", 2.0 * weights / best[0] * 1e-9);
            printf("\n");
            layer_ours[r] += shape->times * best[0];
            layer_dnnl[r] += shape->times * faster(best[1], best[2]);
        }
    }
    double weights = 4.0 * 4096 * 4096 + 3.0 * 4096 * 11008;
    printf("\nroofs: %.1f GFLOP/s of AVX2 f32 FMA in registers, %.1f GB/s read from memory by one thread\n", roof,
           bench.read);
    for (int r = 0; r < N_ROW_COUNTS; r++) {
        printf("decoder layer, %3d rows: ours %8.2f ms, %.1f GFLOP/s", row_counts[r], 1e3 * layer_ours[r],
               2.0 * weights * row_counts[r] / layer_ours[r] * 1e-9);
        if (layer_dnnl[r] > 0.0) printf(", %.2f of oneDNN's best rate", layer_dnnl[r] / layer_ours[r]);
        printf("\n");
    }
    printf("decoder layer, one row: %.1f GB/s of weights, %.2f of the read rate\n",
           2.0 * weights / layer_ours[0] * 1e-9, 2.0 * weights / layer_ours[0] * 1e-9 / bench.read);
    free(bench.weights), free(bench.x), free(bench.y), free(bench.scratch);
    lvp_pool_destroy(bench.pool);
    return 0;
}
