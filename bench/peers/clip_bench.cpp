// Seconds that llama.cpp's own CLIP code takes for an image, one after the other as its command line does.
//
// usage: clip_bench MMPROJ.gguf THREADS IMAGES
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "clip-impl.h"
#include "clip.h"

int main(int argc, char ** argv)
{
    if (argc != 4) return 2;
    clip_context_params params{};
    params.flash_attn_type = CLIP_FLASH_ATTN_TYPE_AUTO;
    clip_ctx * context = clip_init(argv[1], params).ctx_v;
    if (context == nullptr) return 1;
    clip_image_f32 image;
    image.set_size({336, 336}, false, false);
    std::vector<float> pixels(3 * 336 * 336), rows;
    for (size_t i = 0; i < pixels.size(); i++) pixels[i] = static_cast<float>(i % 255) / 128.0f - 1.0f;
    image.cpy_buf(pixels);
    const int threads = std::atoi(argv[2]), images = std::atoi(argv[3]);
    if (!clip_image_encode(context, threads, &image, rows)) return 1; // warms up
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < images; i++)
        if (!clip_image_encode(context, threads, &image, rows)) return 1;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::printf("%.4f\n", seconds.count() / images);
    clip_free(context);
}
