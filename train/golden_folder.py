"""Writes a golden case's model folder: config.json and its companions, random weights, decision modules."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from train.checkpoint import read_config, to_layout
from train.golden_cases import Case
from train.pruner import Pruner, PrunerConfig
from train.safetensors_writer import save_safetensors

TORCH_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
BOS, EOS = 1, 2
SECOND_EOS = 5  # the "new" folders list two


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _config(case: Case) -> dict[str, Any]:
    """config.json in the spelling that the case asks for."""
    new = case.config == "new"
    dtype = {"dtype" if new else "torch_dtype": str(TORCH_DTYPES[case.dtype]).removeprefix("torch.")}
    t, v = case.text, case.vision
    text: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": t.hidden,
        "num_hidden_layers": t.layers,
        "num_attention_heads": t.heads,
        "num_key_value_heads": t.kv_heads,
        "intermediate_size": t.mlp,
        "vocab_size": t.vocab,
        "hidden_act": t.act,
        "rms_norm_eps": t.norm_eps,
        "attention_bias": t.attention_bias,
        "mlp_bias": t.mlp_bias,
        "max_position_embeddings": 512,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        **dtype,
    }
    if new or t.head_dim * t.heads != t.hidden:
        text["head_dim"] = t.head_dim
    if t.lm_head != "absent":
        text["tie_word_embeddings"] = t.lm_head in ("tied", "own_despite_tied")
    linear = t.rope_factor != 1.0
    if new:
        kind = {"rope_type": "linear", "factor": t.rope_factor} if linear else {"rope_type": "default"}
        text["rope_parameters"] = {"rope_theta": t.rope_theta, **kind}
    else:
        text["rope_theta"] = t.rope_theta
        text["rope_scaling"] = {"type": "linear", "factor": t.rope_factor} if linear else None
    vision: dict[str, Any] = {
        "model_type": "clip_vision_model",
        "hidden_size": v.hidden,
        "num_hidden_layers": v.layers,
        "num_attention_heads": v.heads,
        "intermediate_size": v.mlp,
        "image_size": v.image,
        "patch_size": v.patch,
        "hidden_act": v.act,
        "layer_norm_eps": v.norm_eps,
        "projection_dim": 16,
    }
    layers = case.feature_layer
    config: dict[str, Any] = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_id" if new else "image_token_index": case.image_token,
        "projector_hidden_act": case.projector_act,
        "multimodal_projector_bias": case.projector_bias,
        "vision_feature_layer": layers if isinstance(layers, int) else list(layers),
        "vision_feature_select_strategy": case.select,
        "image_seq_length": (v.image // v.patch) ** 2 + (case.select == "full"),
        **dtype,
    }
    if case.config == "sparse":
        text.pop("max_position_embeddings")
        text, vision = _without_defaults(text, LlamaConfig()), _without_defaults(vision, CLIPVisionConfig())
        text.pop("num_key_value_heads") if t.kv_heads == t.heads else None
        config = {"model_type": "llava", **_without_defaults(config, LlavaConfig())}
        config.pop("architectures")
    return {**config, "text_config": text, "vision_config": vision}


def _without_defaults(fields: dict[str, Any], defaults: Any) -> dict[str, Any]:
    """Only the fields that differ from transformers' defaults."""
    missing = object()
    return {name: value for name, value in fields.items() if getattr(defaults, name, missing) != value}


def _image_settings(case: Case) -> dict[str, Any]:
    size = case.vision.image
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True, "size": {"shortest_edge": size}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": size, "width": size},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_convert_rgb": True,
    }  # fmt: skip


def _write_settings(case: Case, folder: Path) -> None:
    """The JSON files beside the weights; no tokenizer: tests feed ids."""
    _json(folder / "config.json", _config(case))
    if case.config == "new":
        _json(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": [EOS, SECOND_EOS]})
        _json(folder / "processor_config.json", {
            "processor_class": "LlavaProcessor", "patch_size": case.vision.patch, "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": case.select, "image_processor": _image_settings(case),
        })  # fmt: skip
    else:
        _json(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": 0})
        _json(folder / "preprocessor_config.json", _image_settings(case))


def random_normal(seed: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal f32, a function of the seed text alone: numpy's generator gives the same bits on every machine."""
    values = np.random.Generator(np.random.PCG64(zlib.crc32(seed.encode()))).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32))


def random_weight(seed: str, name: str, shape: tuple[int, ...]) -> Tensor:
    """A weight drawn so that rows keep a size of about 1 through the layers and logits come out at a few units."""
    noise = random_normal(f"{seed}/{name}", shape)
    if name.endswith(".bias"):
        return 0.1 * noise
    if "norm" in name.rsplit(".", 2)[-2]:  # pre_layrnorm is CLIP's own spelling
        return 1.0 + 0.1 * noise
    if "embed_tokens" in name:
        return 0.6 * noise
    if "class_embedding" in name or "position_embedding" in name:
        return 0.5 * noise
    fan_in = math.prod(shape[1:])
    gain = 1.0
    if "q_proj" in name or "k_proj" in name:
        gain = 1.4
    elif "lm_head" in name:
        gain = 3.0
    return gain / math.sqrt(fan_in) * noise


def _base_weights(case: Case, folder: Path) -> dict[str, Tensor]:
    """The model's weights under the names that the case's layout gives them."""
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in LlavaForConditionalGeneration(read_config(folder)).state_dict().items()}
    if case.text.lm_head in ("tied", "absent"):
        shapes.pop("lm_head.weight")
    if not case.ignored_tensors and case.config == "sparse" or case.layout == "flat_nested":
        shapes = {name: shape for name, shape in shapes.items() if ".post_layernorm." not in name}
    dtype = TORCH_DTYPES[case.dtype]
    tensors = {to_layout(name, case.layout): random_weight(case.name, name, shape).to(dtype) for name, shape in shapes.items()}
    if case.ignored_tensors:
        positions = (case.vision.image // case.vision.patch) ** 2 + 1
        ids = to_layout("model.vision_tower.vision_model.embeddings.position_ids", case.layout)
        tensors[ids] = torch.arange(positions)[None]
        inv_freq = to_layout("model.language_model.layers.0.self_attn.rotary_emb.inv_freq", case.layout)
        half = case.text.head_dim // 2
        tensors[inv_freq] = case.text.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    return tensors


def _write_weights(tensors: dict[str, Tensor], n_shards: int, folder: Path) -> None:
    """One file, or shards of about equal size with their index."""
    if n_shards == 1:
        save_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
        return
    total = sum(t.nbytes for t in tensors.values())
    shards: list[dict[str, Tensor]] = [{} for _ in range(n_shards)]
    done = 0
    for name in sorted(tensors):
        shards[min(done * n_shards // total, n_shards - 1)][name] = tensors[name]
        done += tensors[name].nbytes
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        save_safetensors(folder / file, shard, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    _json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_folder(case: Case, folder: Path) -> None:
    """Everything of the case but golden.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_settings(case, folder)
    _write_weights(_base_weights(case, folder), case.shards, folder)
    pruning = case.pruning
    pruner = Pruner(PrunerConfig(pruning.after_layers, case.text.hidden, pruning.inner_width, pruning.heads))
    state = {n: random_weight(f"{case.name}/pruner", n, tuple(t.shape)) for n, t in pruner.state_dict().items()}
    pruner.load_state_dict(state)
    pruner.save(folder / "lvpruning.safetensors", TORCH_DTYPES[pruning.dtype])
