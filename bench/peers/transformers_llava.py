#!/usr/bin/env python3
"""Captions a batch of made-up images with transformers on the CPU: tiny-llava with random weights, greedy.

    transformers_llava.py IMAGES NEW_TOKENS [DTYPE[:BATCH]...]        float32:8 bfloat16:8

Prints images per second for each dtype and batch size, of the language part and with the vision encoder. Needs torch and transformers (train/requirements.txt).
"""

import sys
import time

import torch
import transformers

TEXT_TOKENS, VISION_TOKENS, IMAGE_TOKEN = 30, 576, 32000


def make_model(dtype: torch.dtype) -> transformers.LlavaForConditionalGeneration:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14),
        text_config=transformers.LlamaConfig(
            hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
            vocab_size=32064, max_position_embeddings=2048),
        image_token_index=IMAGE_TOKEN)
    torch.set_default_dtype(dtype)
    with torch.no_grad():
        return transformers.LlavaForConditionalGeneration(config).eval()


def measure(model: transformers.LlavaForConditionalGeneration, images: int, new_tokens: int, batch: int) -> dict[str, float]:
    ids = torch.randint(3, 30000, (batch, TEXT_TOKENS + VISION_TOKENS))
    ids[:, 1:1 + VISION_TOKENS] = IMAGE_TOKEN
    pixels = torch.randn(batch, 3, 336, 336)
    seconds = {"encode": 0.0, "prefill": 0.0, "decode": 0.0}

    def timed(what: str, call):
        start = time.perf_counter()
        result = call()
        seconds[what] += time.perf_counter() - start
        return result

    for _ in range(images // batch):
        # What forward does with pixels, apart, so that the encoder's share is known.
        features = timed("encode", lambda: model.get_image_features(pixel_values=pixels, vision_feature_layer=-2,
                                                                    vision_feature_select_strategy="default"))
        features = torch.cat(list(features)) if isinstance(features, (list, tuple)) else features.reshape(-1, 2048)
        embeds = model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter((ids == IMAGE_TOKEN).unsqueeze(-1), features.to(embeds.dtype))
        out = timed("prefill", lambda: model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1))
        for _ in range(new_tokens - 1):
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            out = timed("decode", lambda: model(input_ids=token, past_key_values=out.past_key_values, use_cache=True))
    return seconds


def main() -> None:
    images, new_tokens = int(sys.argv[1]), int(sys.argv[2])
    print(f"{'':<26} {'language, img/s':>16} {'with CLIP, img/s':>16}")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    for setting in sys.argv[3:] or ["float32:8", "bfloat16:8"]:
        name, _, batch = setting.partition(":")
        batch_size = min(int(batch or 8), images)
        if images % batch_size:
            sys.exit(f"{images} images do not divide into batches of {batch_size}")
        model = make_model(getattr(torch, name))
        with torch.inference_mode():
            measure(model, 1, 2, 1)  # warms up
            s = measure(model, images, new_tokens, batch_size)
        print(f"{'transformers ' + setting:<26} {images / (s['prefill'] + s['decode']):16.4f} {images / sum(s.values()):16.4f}",
              flush=True)
        del model


if __name__ == "__main__":
    main()
