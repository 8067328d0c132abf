// Reference of the operations that move or choose rows without arithmetic to speak of.
#include "worker/cpu/ref_ops.h"

#include <math.h>

void lvp_ref_unfold_patches(struct lvp_backend *backend, const float *pixels, int n_images, int size, int patch,
                            float *y)
{
    (void)backend;
    int side =
        size / patch; // patches a side; pixels past the last whole patch are not read, as a strided convolution does
    for (int image = 0; image < n_images; image++) {
        for (int py = 0; py < side; py++) {
            for (int px = 0; px < side; px++) {
                for (int channel = 0; channel < 3; channel++) {
                    for (int dy = 0; dy < patch; dy++) {
                        size_t line = ((size_t)image * 3 + (size_t)channel) * (size_t)size + (size_t)(py * patch + dy);
                        memcpy(y, pixels + line * (size_t)size + px * patch, (size_t)patch * sizeof *y);
                        y += patch;
                    }
                }
            }
        }
    }
}

void lvp_ref_vit_embed(struct lvp_backend *backend, const float *patches, const float *cls, const float *position,
                       int n_images, int n_patches, int width, float *y)
{
    (void)backend;
    for (int image = 0; image < n_images; image++) {
        for (int row = 0; row <= n_patches; row++) {
            for (int i = 0; i < width; i++)
                *y++ = (row == 0 ? cls[i] : *patches++) + position[(size_t)row * (size_t)width + (size_t)i];
        }
    }
}

void lvp_ref_embed(struct lvp_backend *backend, const void *table, const int32_t *ids, int n, int width,
                   const int32_t *to, float *y)
{
    for (int row = 0; row < n; row++) {
        size_t from = (size_t)ids[row] * (size_t)width;
        size_t at = (size_t)(to == NULL ? row : to[row]) * (size_t)width;
        for (size_t i = 0; i < (size_t)width; i++) y[at + i] = lvp_load_f32(table, backend->dtype, from + i);
    }
}

void lvp_ref_copy_rows(struct lvp_backend *backend, const void *x, const int32_t *from, int n, int width, void *y,
                       const int32_t *to)
{
    (void)backend;
    size_t n_bytes = (size_t)width * 4;
    for (int row = 0; row < n; row++) {
        size_t source = (size_t)(from == NULL ? row : from[row]), target = (size_t)(to == NULL ? row : to[row]);
        memcpy((char *)y + target * n_bytes, (const char *)x + source * n_bytes, n_bytes);
    }
}

// Score of gate row i; NaN becomes the lowest there is.
static float row_score(const float *gate, int i)
{
    float score = gate[2 * (size_t)i] - gate[2 * (size_t)i + 1];
    return isnan(score) ? -INFINITY : score;
}

// A row stays when fewer than keep rows of its image beat it.
static bool row_stays(const struct lvp_row_selection *selection, int image, int row)
{
    const float *gate = selection->gate + 2 * (size_t)selection->gate_start[image];
    int place = row - selection->image_row[image], rank = 0;
    float score = row_score(gate, place);
    for (int i = 0; i < selection->image_len[image]; i++) {
        float other = row_score(gate, i);
        rank += other > score || (other == score && i < place);
    }
    return rank < selection->keep[image];
}

void lvp_ref_select_rows(struct lvp_backend *backend, const struct lvp_row_selection *selection)
{
    (void)backend;
    int n_survivors = 0;
    for (int row = 0; row < selection->n_rows; row++) {
        bool stays = true; // rows of no image are text
        for (int image = 0; image < selection->n_images; image++) {
            int place = row - selection->image_row[image];
            if (place >= 0 && place < selection->image_len[image]) stays = row_stays(selection, image, row);
        }
        if (stays) selection->survivors[n_survivors++] = row;
    }
}
