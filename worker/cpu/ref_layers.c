// Reference of the operations that mix the features of one row: linear layers, norms, gated units.
#include "worker/cpu/int8.h"
#include "worker/cpu/ref_ops.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>

// struct lvp_linear is opaque, and every backend packs its own; this is what the pointer means here.
struct ref_linear {
    int out, in;
    bool int8;
    float *weight; // [out, in], rounded to the model's dtype, or integers
    float *scale;  // [out] of int8 weights
    float *bias;   // [out], rounded to the model's dtype; zeros where a part has none
};

// Elements behind the first dimension; false where the tensor has no rows of features or is too large.
static bool row_width(const struct lvp_tensor_view *weight, int64_t *width)
{
    *width = 1;
    if (weight->n_dims < 2) return false;
    for (int i = 1; i < weight->n_dims; i++) {
        if (__builtin_mul_overflow(*width, weight->shape[i], width)) return false;
    }
    return *width > 0 && *width <= INT_MAX && weight->shape[0] > 0 && weight->shape[0] <= INT_MAX;
}

static enum lvp_status check_parts(const struct lvp_linear_part *parts, int n_parts, int *out, int *in)
{
    int64_t total = 0, width = 0, first_width = 0;
    if (n_parts < 1) return lvp_fail(LVP_ERR_INTERNAL, "a linear layer without weights");
    for (int p = 0; p < n_parts; p++) {
        const struct lvp_tensor_view *weight = parts[p].weight, *bias = parts[p].bias;
        if (!row_width(weight, &width)) return lvp_fail(LVP_ERR_MODEL, "%s is not a matrix", weight->name);
        if (weight->dtype == LVP_DTYPE_OTHER || (bias != NULL && bias->dtype == LVP_DTYPE_OTHER)) {
            return lvp_fail(LVP_ERR_MODEL, "%s is not of a float type", weight->name);
        }
        if (p == 0) first_width = width;
        if (width != first_width) {
            return lvp_fail(LVP_ERR_MODEL, "%s reads %lld features, %s reads %lld", weight->name, (long long)width,
                            parts[0].weight->name, (long long)first_width);
        }
        if (bias != NULL && (bias->n_dims != 1 || bias->shape[0] != weight->shape[0])) {
            return lvp_fail(LVP_ERR_MODEL, "%s does not fit %s", bias->name, weight->name);
        }
        total += weight->shape[0];
    }
    if (total > INT_MAX) return lvp_fail(LVP_ERR_MODEL, "%s and its companions are too large", parts[0].weight->name);
    *out = (int)total;
    *in = (int)width;
    return LVP_OK;
}

static float largest_magnitude(const float *x, size_t n)
{
    float largest = 0;
    for (size_t i = 0; i < n; i++) largest = lvp_int8_larger(largest, x[i]);
    return largest;
}

// Row `from` of the tensor becomes output `o`: rounded to the model's dtype, or integers of what the file has.
static void pack_row(const struct lvp_backend *backend, struct ref_linear *packed, const struct lvp_tensor_view *weight,
                     size_t from, size_t o)
{
    size_t in = (size_t)packed->in;
    float *to = packed->weight + o * in;
    for (size_t i = 0; i < in; i++) to[i] = lvp_load_f32(weight->data, weight->dtype, from * in + i);
    if (!packed->int8) {
        for (size_t i = 0; i < in; i++) to[i] = lvp_ref_round(backend, to[i]);
        return;
    }
    struct lvp_int8_scale scale = lvp_int8_scale(largest_magnitude(to, in), LVP_INT8_LARGEST);
    for (size_t i = 0; i < in; i++) to[i] = rintf(to[i] * scale.to);
    packed->scale[o] = scale.back;
}

enum lvp_status lvp_ref_linear_create(struct lvp_backend *backend, const struct lvp_linear_part *parts, int n_parts,
                                      enum lvp_dtype weights, struct lvp_linear **linear)
{
    int out = 0, in = 0;
    *linear = NULL;
    LVP_TRY(check_parts(parts, n_parts, &out, &in));
    struct ref_linear *packed = calloc(1, sizeof *packed);
    if (packed != NULL) {
        *packed = (struct ref_linear){.out = out, .in = in, .int8 = weights == LVP_INT8};
        packed->bias = calloc((size_t)out, sizeof(float));
        packed->scale = calloc((size_t)out, sizeof(float));
        packed->weight = calloc((size_t)out, (size_t)in * sizeof(float));
    }
    if (packed == NULL || packed->weight == NULL || packed->scale == NULL || packed->bias == NULL) {
        lvp_ref_linear_destroy(backend, (struct lvp_linear *)packed);
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for %s", parts[0].weight->name);
    }
    size_t row = 0;
    for (int p = 0; p < n_parts; p++) {
        const struct lvp_tensor_view *weight = parts[p].weight, *bias = parts[p].bias;
        size_t n = (size_t)weight->shape[0];
        for (size_t o = 0; o < n; o++) pack_row(backend, packed, weight, o, row + o);
        for (size_t i = 0; bias != NULL && i < n; i++) {
            packed->bias[row + i] = lvp_ref_round(backend, lvp_load_f32(bias->data, bias->dtype, i));
        }
        row += n;
    }
    *linear = (struct lvp_linear *)packed;
    return LVP_OK;
}

void lvp_ref_linear_destroy(struct lvp_backend *backend, struct lvp_linear *linear)
{
    (void)backend;
    struct ref_linear *packed = (struct ref_linear *)linear;
    if (packed == NULL) return;
    free(packed->weight);
    free(packed->scale);
    free(packed->bias);
    free(packed);
}

// Hendrycks, Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415: the erf form, its tanh and its sigmoid
// approximation.
static double activate(enum lvp_activation activation, double x)
{
    switch (activation) {
    case LVP_ACT_NONE:
        return x;
    case LVP_ACT_GELU:
        return 0.5 * x * (1.0 + erf(x * 0.70710678118654752440));
    case LVP_ACT_GELU_TANH:
        return 0.5 * x * (1.0 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
    case LVP_ACT_QUICK_GELU:
        return x / (1.0 + exp(-1.702 * x));
    case LVP_ACT_SILU:
        return x / (1.0 + exp(-x));
    case LVP_ACT_RELU:
        return x < 0.0 ? 0.0 : x; // written so that NaN stays NaN
    }
    return x;
}

void lvp_ref_linear(struct lvp_backend *backend, const struct lvp_linear *linear, const float *x, int n_rows,
                    struct lvp_epilogue epilogue, float *y)
{
    const struct ref_linear *packed = (const struct ref_linear *)linear;
    size_t in = (size_t)packed->in, out = (size_t)packed->out;
    for (size_t row = 0; row < (size_t)n_rows; row++) {
        struct lvp_int8_scale scale = {0};
        if (packed->int8) scale = lvp_int8_scale(largest_magnitude(x + row * in, in), lvp_int8_x_limit(packed->in));
        for (size_t o = 0; o < out; o++) {
            double sum = 0.0;
            for (size_t i = 0; i < in; i++) {
                float value = x[row * in + i];
                if (packed->int8) value = rintf(value * scale.to);
                sum += (double)value * (double)packed->weight[o * in + i];
            }
            if (packed->int8) sum *= (double)packed->scale[o] * (double)scale.back;
            double value = activate(epilogue.activation, sum + (double)packed->bias[o]);
            if (epilogue.add != NULL) value += (double)epilogue.add[row * out + o];
            y[row * out + o] = epilogue.round ? lvp_ref_round(backend, (float)value) : (float)value;
        }
    }
}

void lvp_ref_layer_norm(struct lvp_backend *backend, const float *x, int n_rows, int width, const float *weight,
                        const float *bias, float eps, const float *add, bool round, float *y)
{
    for (int row = 0; row < n_rows; row++) {
        size_t at = (size_t)row * (size_t)width;
        double mean = 0.0, variance = 0.0;
        for (int i = 0; i < width; i++) mean += (double)x[at + (size_t)i];
        mean /= width;
        for (int i = 0; i < width; i++)
            variance += ((double)x[at + (size_t)i] - mean) * ((double)x[at + (size_t)i] - mean);
        variance /= width;
        double scale = 1.0 / sqrt(variance + (double)eps);
        for (int i = 0; i < width; i++) {
            double value = ((double)x[at + (size_t)i] - mean) * scale * (double)weight[i] + (double)bias[i];
            if (add != NULL) value += (double)add[at + (size_t)i];
            y[at + (size_t)i] = round ? lvp_ref_round(backend, (float)value) : (float)value;
        }
    }
}

void lvp_ref_rms_norm(struct lvp_backend *backend, const float *x, int n_rows, int width, const float *weight,
                      float eps, float *y)
{
    (void)backend;
    for (int row = 0; row < n_rows; row++) {
        size_t at = (size_t)row * (size_t)width;
        double squares = 0.0;
        for (int i = 0; i < width; i++) squares += (double)x[at + (size_t)i] * (double)x[at + (size_t)i];
        double scale = 1.0 / sqrt(squares / width + (double)eps);
        for (int i = 0; i < width; i++)
            y[at + (size_t)i] = (float)((double)x[at + (size_t)i] * scale * (double)weight[i]);
    }
}

void lvp_ref_glu(struct lvp_backend *backend, const float *gate_up, int n_rows, int width,
                 enum lvp_activation activation, float *y)
{
    (void)backend;
    for (size_t row = 0; row < (size_t)n_rows; row++) {
        const float *gate = gate_up + row * 2 * (size_t)width, *up = gate + width;
        for (int i = 0; i < width; i++) {
            y[row * (size_t)width + (size_t)i] = (float)(activate(activation, (double)gate[i]) * (double)up[i]);
        }
    }
}
