"""Write the demo model as a Hugging Face LLaVA folder.

    python3 -m train.demo.export --output DIR [--state FOLDER]

Takes the joint stage's weights; decision modules are left alone. Settings and weights are written under another name and renamed;
a tokenizer.model that is there is kept.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from train.demo import model as m
from train.demo.tokenizer import BOS_ID, EOS_ID, IMAGE_ID, PAD_ID, VOCAB, write_tokenizer
from train.tasks import scenes
from train.tasks.scenes import CLIP_MEAN, CLIP_STD, PATCH, SIDE


def config() -> dict:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "torch_dtype": "bfloat16",
        "ignore_index": -100,
        "image_token_index": IMAGE_ID,
        "image_seq_length": m.VISION_TOKENS,
        "pad_token_id": PAD_ID,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": False,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "bfloat16",
            "vocab_size": VOCAB,
            "hidden_size": m.CHANNELS,
            "intermediate_size": m.MLP,
            "num_hidden_layers": m.LAYERS,
            "num_attention_heads": m.HEADS,
            "num_key_value_heads": m.HEADS,
            "head_dim": m.CHANNELS // m.HEADS,
            "hidden_act": "silu",
            "rms_norm_eps": m.EPS,
            "rope_theta": m.ROPE_THETA,
            "max_position_embeddings": 1024,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
            "pad_token_id": PAD_ID,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": m.CHANNELS,
            "intermediate_size": m.VISION_MLP,
            "num_hidden_layers": m.VISION_LAYERS + 1,
            "num_attention_heads": m.HEADS,
            "image_size": SIDE,
            "patch_size": PATCH,
            "num_channels": 3,
            "projection_dim": m.CHANNELS,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": m.EPS,
        },
    }


def preprocessor() -> dict:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(float(v), 8) for v in CLIP_MEAN],
        "image_std": [round(float(v), 8) for v in CLIP_STD],
    }


def processor() -> dict:
    return {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": PATCH,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }


def hf_state(net: m.DemoLlava) -> dict[str, Tensor]:
    """The checkpoint, with the tower's unread last layer and norm filled in."""
    state = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in net.state_dict().items()}
    tower = "vision_tower.vision_model."
    last = f"{tower}encoder.layers.{m.VISION_LAYERS - 1}."
    for key in [k for k in state if k.startswith(last)]:
        state[key.replace(last, f"{tower}encoder.layers.{m.VISION_LAYERS}.")] = state[key].clone()
    state[f"{tower}post_layernorm.weight"] = torch.ones(m.CHANNELS, dtype=torch.bfloat16)
    state[f"{tower}post_layernorm.bias"] = torch.zeros(m.CHANNELS, dtype=torch.bfloat16)
    return state


def write_json(path: Path, value: dict) -> None:
    write(path, lambda tmp: tmp.write_text(json.dumps(value, indent=2) + "\n"))


def write(path: Path, save) -> None:  # noqa: ANN001
    tmp = path.with_name(f".{path.name}.tmp")
    save(tmp)
    os.chmod(tmp, 0o644)
    os.replace(tmp, path)


def write_model(folder: Path, net: m.DemoLlava) -> None:
    state = hf_state(net)
    write(folder / "model.safetensors", lambda p: save_file(state, p, metadata={"format": "pt"}))


def write_folder(folder: Path) -> None:
    """Everything but the weights and the card."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    write_json(folder / "config.json", config())
    write_json(folder / "preprocessor_config.json", preprocessor())
    write_json(folder / "processor_config.json", processor())
    write_json(folder / "generation_config.json", {
        "_from_model_config": True, "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID, "pad_token_id": PAD_ID,
    })


def load_model(folder: Path) -> m.DemoLlava:
    """The folder's weights, in float32."""
    net = m.DemoLlava()
    state = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    missing, _ = net.load_state_dict(state, strict=False)
    assert not missing, missing
    return net.eval()


@torch.no_grad()
def check(folder: Path) -> None:
    """transformers reads the folder and computes the same logits."""
    import random

    from transformers import AutoProcessor, LlavaForConditionalGeneration

    rng = random.Random(5)
    image = scenes.render(scenes.make_scene(rng), rng, 336)
    net = load_model(folder)
    other = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = AutoProcessor.from_pretrained(folder, use_fast=False)(
        images=image, text="USER: <image>\nDescribe the image. ASSISTANT:", return_tensors="pt"
    )
    pixels = torch.from_numpy(scenes.load(image))[None]
    pixel_error = (pixels - inputs["pixel_values"]).abs().max().item()
    ids = inputs["input_ids"]
    x, vision = net.embed(ids), net.vision(inputs["pixel_values"])
    x[ids == IMAGE_ID] = vision[0]
    n = ids.shape[1]
    mask = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
    mine = net.language_model.lm_head(net.language_model(x, torch.arange(n)[None], mask))
    error = (mine - other(**inputs).logits).abs().max().item()
    print(f"{folder}: {n} ids; pixels differ by {pixel_error:.1e}, logits by {error:.1e}")
    assert pixel_error < 1e-4 and error < 1e-3 * max(1.0, mine.abs().max().item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=Path("/var/tmp/lvp-demo"))
    args = parser.parse_args()
    write_folder(args.output)
    net = m.DemoLlava()
    net.load_state_dict(torch.load(args.state / "joint.pt", weights_only=True)["modules"]["model"])
    write_model(args.output, net)
    check(args.output)


if __name__ == "__main__":
    main()
