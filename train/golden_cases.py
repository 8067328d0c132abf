"""The small random models that the goldens are made of. Each case covers a few features; together they cover the list in
tests/golden/README.md. A field that is left at its default is what llava-1.5 has, in small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["f32", "f16", "bf16"]
Config = Literal["old", "new", "sparse"]


@dataclass(frozen=True)
class Text:
    hidden: int = 32
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 8
    mlp: int = 56
    vocab: int = 300
    act: str = "silu"
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_factor: float = 1.0  # linear scaling
    attention_bias: bool = False
    mlp_bias: bool = False
    # own: an lm_head in the file; tied: none, the config says tied; absent: none, the config does not say;
    # own_despite_tied: the file's lm_head differs from the embedding though the config says tied
    lm_head: Literal["own", "tied", "absent", "own_despite_tied"] = "own"


@dataclass(frozen=True)
class Vision:
    hidden: int = 24
    layers: int = 3
    heads: int = 2
    mlp: int = 40
    image: int = 28
    patch: int = 7
    act: str = "quick_gelu"
    norm_eps: float = 1e-5


@dataclass(frozen=True)
class Pruning:
    after_layers: tuple[int, ...]
    inner_width: int
    heads: int
    dtype: Dtype = "f32"
    keep_one: str | tuple[str, ...] = "0.5"  # scenario pruned_one
    keep_two: str | tuple[str, ...] = "0.5"  # scenarios with several images


@dataclass(frozen=True)
class Case:
    name: str
    pruning: Pruning
    text: Text = Text()
    vision: Vision = Vision()
    feature_layer: int | tuple[int, ...] = -2
    select: Literal["default", "full"] = "default"
    projector_act: str = "gelu"
    projector_bias: bool = True
    image_token: int = 299
    dtype: Dtype = "f32"
    shards: int = 1
    layout: str = "llava"
    # spelling of config.json: as transformers 4 and 5 write it, or (sparse) leaving out every field that has its default
    config: Config = "old"
    ignored_tensors: bool = False  # position_ids (int64), inv_freq and post_layernorm lie in the file; nobody loads them
    training_free: bool = False  # scenarios of the pruners without modules
    three_images: bool = False  # one more scenario: three images, two of them adjacent, the first at row 1


CASES = (
    Case("plain-f32", Pruning((1, 2, 3), 32, 8), three_images=True, training_free=True),
    Case(
        "sparse-config-f16",
        Pruning((1, 3), 32, 4, dtype="f16", keep_one="0.6", keep_two=("0.25", "0.125")),
        text=Text(norm_eps=1e-6),
        dtype="f16",
        config="sparse",
        ignored_tensors=True,
    ),
    Case(
        "gqa-sharded-bf16",
        Pruning((1, 2, 3), 16, 8, dtype="bf16"),
        text=Text(heads=6, kv_heads=2, hidden=36, head_dim=6, mlp=50, vocab=311),
        dtype="bf16",
        shards=3,
        layout="nested",
        config="new",
        image_token=310,
        training_free=True,
    ),
    Case(
        "mqa-wide-heads",
        Pruning((2, 4), 20, 5, keep_one="0.9", keep_two=("0.5", "0")),
        text=Text(heads=3, kv_heads=1, hidden=40, head_dim=20, mlp=60, layers=5),
        vision=Vision(heads=3, hidden=27, mlp=33, image=42, patch=14),
        layout="flat_llava",
        config="new",
        dtype="bf16",
    ),
    Case(
        "tied-rope-linear",
        Pruning((1, 4), 32, 8, dtype="f16", keep_one=("0", "0"), keep_two=("0.5", "0.3")),
        text=Text(lm_head="tied", rope_factor=2.0, rope_theta=5000.0),
        dtype="f16",
        image_token=32,
    ),
    Case(
        "tied-absent-rope-new",
        Pruning((2,), 8, 2, dtype="f32", keep_one="0.0625", keep_two="0.03125"),
        text=Text(lm_head="absent", rope_factor=4.0, rope_theta=100000.0, kv_heads=2),
        layout="flat_nested",
        config="new",
        dtype="bf16",
        image_token=200,
    ),
    Case(
        "feature-last-full",
        Pruning((1, 2, 3), 12, 3, keep_two=("1", "0.5", "0.3")),
        text=Text(hidden=24, heads=3, kv_heads=3, mlp=44),
        vision=Vision(act="gelu", image=35, patch=7),
        feature_layer=-1,
        select="full",
        layout="nested",
        shards=2,
    ),
    Case(
        "feature-list",
        Pruning((1, 3), 32, 8, dtype="bf16"),
        vision=Vision(layers=4, act="gelu_pytorch_tanh"),
        feature_layer=(-2, 1, -4),
        dtype="bf16",
        config="new",
        layout="flat_llava",
        shards=2,
    ),
    Case(
        "feature-list-full-embeddings",
        Pruning((1, 2), 16, 4, keep_one=("0.3", "0.5"), keep_two="0.4"),
        text=Text(layers=3),
        vision=Vision(layers=2, heads=3),
        feature_layer=(0, -1),
        select="full",
        dtype="f16",
    ),
    Case(
        "biases",
        Pruning((1, 2, 4), 32, 8, dtype="f16", keep_two="0.7"),
        text=Text(attention_bias=True, mlp_bias=True, kv_heads=2),
        dtype="f16",
        layout="nested",
        config="new",
    ),
    Case(
        "activations-no-projector-bias",
        Pruning((1, 2), 24, 6),
        text=Text(act="gelu", layers=2, hidden=24, mlp=70, head_dim=10, vocab=257),
        vision=Vision(act="relu", norm_eps=1e-6),
        projector_act="gelu_pytorch_tanh",
        projector_bias=False,
        image_token=256,
    ),
    Case(
        "deep-narrow",
        Pruning((1, 2, 3, 5), 4, 1, keep_one=("0.8", "0.6", "0.4", "0.2"), keep_two=("0.9", "0.5", "0.5", "0.1")),
        text=Text(layers=6, hidden=24, heads=5, kv_heads=5, head_dim=4, mlp=31, lm_head="own_despite_tied"),
        projector_act="relu",
        dtype="bf16",
        three_images=True,
    ),
    Case(
        "last-layer-point",
        Pruning((2, 3), 40, 8, dtype="bf16", keep_one="0.4", keep_two="0.3"),
        text=Text(layers=3, hidden=40, heads=4, kv_heads=4, head_dim=10, mlp=52),
        vision=Vision(hidden=20, heads=5, layers=2),
        layout="flat_nested",
        config="new",
        dtype="f16",
    ),
    Case(
        "larger-image",
        Pruning((1, 2), 64, 8, dtype="bf16"),
        text=Text(layers=3, hidden=64, heads=4, kv_heads=2, head_dim=16, mlp=80),
        vision=Vision(hidden=32, heads=4, image=56, patch=7),
        dtype="bf16",
        shards=2,
        training_free=True,
    ),
)
