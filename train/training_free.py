"""Pruners without trained weights, as the engine has them (common/pruners.h), for the reference.

last-attention: FastV, arXiv 2403.06764. adaptprune: arXiv 2503.08019. random: a baseline.

Shapes: n_left rows of the prompt that are still there, n_v of them of one image, g tokens along a side of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from train.pruner import Pruner, select_best

NMS_RADIUS, NMS_DISTANCE, NMS_UNLIKE = 5, 1.5, 0.05


@dataclass(frozen=True)
class PointView:
    """What a pruner may look at: the rows that are still there, before and behind the layer that the point follows."""

    before: Tensor  # [n_left, C] residual stream that the layer read
    after: Tensor  # [n_left, C] and wrote
    rows: Tensor  # [n_left] prompt rows = original positions
    image_of_row: Tensor  # [n_left] -1 text, else the image
    layer: nn.Module  # decoder layer
    rotary: nn.Module

    def queries_and_keys(self) -> tuple[Tensor, Tensor]:
        """[n_left, heads, head_dim] and [n_left, kv_heads, head_dim], neither rotated."""
        attention = self.layer.self_attn
        normed = self.layer.input_layernorm(self.before)
        return (attention.q_proj(normed).unflatten(-1, (-1, attention.head_dim)),
                attention.k_proj(normed).unflatten(-1, (-1, attention.head_dim)))  # fmt: skip


@dataclass(frozen=True)
class Choice:
    scores: Tensor  # [n_v]
    kept: Tensor  # [k] indices among the image's rows, ascending
    gap: float  # how far the nearest other choice was: of the scores, relative to them where they have no scale of their own


class Chooser(Protocol):
    after_layers: tuple[int, ...]

    def choose(self, point: int, view: PointView, image: int, k: int) -> Choice: ...


def gap_of(scores: Tensor, k: int) -> float:
    """Between the last kept and the first removed score."""
    ranked = scores.sort(descending=True).values
    return float(ranked[k - 1] - ranked[k]) if 0 < k < len(scores) else math.inf


@dataclass(frozen=True)
class Modules:
    """lvpruning."""

    pruner: Pruner

    @property
    def after_layers(self) -> tuple[int, ...]:
        return self.pruner.config.after_layers

    def choose(self, point: int, view: PointView, image: int, k: int) -> Choice:
        own, text = view.image_of_row == image, view.image_of_row < 0  # prompt rows: no module runs in a decode step
        scores = self.pruner.points[point].score(view.after[own], view.after[text])
        return Choice(scores, select_best(scores, k), gap_of(scores, k))


def last_attention(view: PointView) -> Tensor:
    """[n_left]: what the last row attends to, mean over the heads."""
    q, k = view.queries_and_keys()
    cosines, sines = view.rotary(q[None], view.rows[None])
    q, k = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cosines, sines)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    logits = (q[0, :, -1:] @ k[0].transpose(1, 2))[:, 0] / math.sqrt(q.shape[-1])  # [heads, n_left]
    return logits.softmax(-1).mean(0)


@dataclass(frozen=True)
class LastAttention:
    after_layers: tuple[int, ...]

    def choose(self, point: int, view: PointView, image: int, k: int) -> Choice:
        scores = last_attention(view)[view.image_of_row == image]
        return Choice(scores, select_best(scores, k), gap_of(scores / scores.max(), k) if len(scores) else math.inf)


def gaussian_prior(grid: int) -> Tensor:
    """[grid * grid] around the centre: sigma half the grid, places evenly over [-sigma, sigma], peak 1."""
    sigma = grid / 2
    line = torch.linspace(-sigma, sigma, grid, dtype=torch.float64) if grid > 1 else torch.tensor([-sigma]).double()
    prior = torch.exp(-(line[:, None] ** 2 + line[None, :] ** 2) / (2 * sigma**2))
    return (prior / prior.max()).flatten()


@dataclass(frozen=True)
class AdaptPrune:
    after_layers: tuple[int, ...]
    vision_tokens: int  # of one image, grid * grid

    def choose(self, point: int, view: PointView, image: int, k: int) -> Choice:
        grid = math.isqrt(self.vision_tokens)
        own = view.image_of_row == image
        attention = last_attention(view)[own]
        if len(attention) == 0:
            return Choice(attention, torch.empty(0, dtype=torch.int64), math.inf)
        # The image's first token may be gone; its rows are vision_tokens positions behind what stands before it.
        place = view.rows[own] - self._first_position(view, image)
        keys = view.queries_and_keys()[1][own].flatten(1).double()
        left = attention.double() * gaussian_prior(grid)[place]
        like = nn.functional.cosine_similarity(keys[:, None], keys[None], dim=-1)
        distance = ((place[:, None] % grid - place[None] % grid) ** 2 + (place[:, None] // grid - place[None] // grid) ** 2)
        factor = 1 - torch.exp(-distance / (2 * NMS_DISTANCE**2)) * torch.exp(-((1 - like) ** 2) / (2 * NMS_UNLIKE**2))
        factor[distance > NMS_RADIUS**2] = 1
        kept: list[int] = []
        gap = math.inf
        for _ in range(k):
            left[kept] = -math.inf
            best = int(left.argmax())
            others = left.clone()
            others[best] = -math.inf
            if len(left) - len(kept) > 1:
                gap = min(gap, float((left[best] - others.max()) / left[best]))
            kept.append(best)
            left = left * factor[best]
        return Choice(attention, torch.tensor(sorted(kept), dtype=torch.int64), gap)

    def _first_position(self, view: PointView, image: int) -> int:
        """Positions before the image: its text rows are all there, and every earlier image's tokens count whole."""
        first_row = int((view.image_of_row == image).nonzero()[0])
        text_before = int((view.image_of_row[:first_row] < 0).sum())
        return text_before + image * self.vision_tokens


def mix(x: int) -> int:
    """Finaliser of splitmix64 after its step (common/mix.h)."""
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


@dataclass(frozen=True)
class Random:
    after_layers: tuple[int, ...]
    key: int  # of the sequence

    def choose(self, point: int, view: PointView, image: int, k: int) -> Choice:
        vision = view.image_of_row[view.image_of_row >= 0]
        places: Sequence[int] = (vision == image).nonzero()[:, 0].tolist()
        scores = torch.tensor([(mix(self.key ^ mix(point << 32 | place)) >> 40) / 2**24 for place in places])
        return Choice(scores, select_best(scores, k), math.inf)  # no arithmetic to differ in


def default_points(name: str, n_layers: int) -> tuple[int, ...]:
    """Of those that look at attention: after the second layer, with a layer left behind it. Of random, as of decision
    modules: after L/32, L/4 and L/2 layers."""
    if name != "random":
        return (max(1, min(2, n_layers - 1)),)
    points: list[int] = []
    for divisor in (32, 4, 2):
        points.append(max((2 * n_layers + divisor) // (2 * divisor), points[-1] + 1 if points else 1))
    return tuple(point for point in points if point <= n_layers)
