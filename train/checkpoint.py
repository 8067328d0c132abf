"""Reads a Hugging Face LLaVA folder in any key layout and spelling of config.json that is in use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_utils import no_init_weights

# Key layouts as (canonical prefix, prefix in the file); canonical is what transformers 4.52..4.57 has in memory. A rule
# of an earlier line wins. `nested`: transformers >= 4.52 in memory; `llava`: the published llava-1.5 files and what
# transformers 4 saves; `flat_*`: the same as transformers 5 writes them, where CLIP has lost one level.
LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "llava": (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    ),
    "nested": (),
    "flat_llava": (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.vision_model.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    ),
    "flat_nested": (("model.vision_tower.vision_model.", "model.vision_tower."),),
}

_NOT_LOADED = re.compile(r"(embeddings\.position_ids|rotary_emb\.inv_freq)$")


def to_layout(name: str, layout: str) -> str:
    """A canonical tensor name as `layout` spells it."""
    for canonical, spelled in LAYOUTS[layout]:
        if name.startswith(canonical):
            return spelled + name.removeprefix(canonical)
    return name


def canonical_name(name: str) -> str:
    """A tensor name of any layout as transformers 4.57 has it in memory."""
    name = name.removeprefix("model.")
    name = re.sub(r"^language_model\.lm_head\.", "lm_head.", name)
    name = re.sub(r"^language_model\.model\.", "language_model.", name)
    name = re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)
    return name if name.startswith("lm_head.") else "model." + name


def read_config(folder: Path) -> LlavaConfig:
    """config.json with the new spellings (transformers 5) turned into those of 4.57."""
    raw: dict[str, Any] = json.loads((folder / "config.json").read_text())
    if "image_token_id" in raw:
        raw["image_token_index"] = raw.pop("image_token_id")
    for part in (raw, raw.get("text_config", {}), raw.get("vision_config", {})):
        part.pop("dtype", None)
        part.pop("torch_dtype", None)
    text = raw.setdefault("text_config", {})
    rope = text.pop("rope_parameters", None)
    if rope is not None:
        text["rope_theta"] = rope.get("rope_theta", 10000.0)
        if rope.get("rope_type", "default") != "default":
            text["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    raw.pop("architectures", None)
    return LlavaConfig(**raw)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All weights under their canonical names, in the dtype they are stored in."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in load_file(folder / file).items():
            if not _NOT_LOADED.search(name):
                tensors[canonical_name(name)] = tensor
    return tensors


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> LlavaForConditionalGeneration:
    """The folder's model with eager attention. An lm_head in the file wins over `tie_word_embeddings`."""
    config = read_config(folder)
    tensors = {name: tensor.to(dtype) for name, tensor in read_tensors(folder).items()}
    tensors.setdefault("lm_head.weight", tensors["model.language_model.embed_tokens.weight"])
    config.text_config.tie_word_embeddings = config.tie_word_embeddings = False
    # Made in `dtype` and not cast afterwards: a cast would round the rotary frequencies, which are f32 in every model.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.set_attn_implementation("eager")
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    # post_layernorm belongs to CLIP's pooled output, which LLaVA never uses: files may leave it out.
    missing = [name for name in missing if ".post_layernorm." not in name]
    if missing or unexpected:
        raise ValueError(f"{folder}: missing {missing}, unexpected {unexpected}")
    return model.eval()
