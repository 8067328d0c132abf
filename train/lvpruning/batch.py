"""Samples side by side: the tensors of a micro-batch.

Shapes: B samples of n rows, N images of m vision tokens in all samples together, S prune points.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

IGNORE = -100  # no token to predict at this row


@dataclass(frozen=True)
class Example:
    """One sample: an expanded prompt and its answer."""

    ids: list[int]  # [rows + 1]: each image's token m times; the last answer token is predicted, never read
    n_prompt: int  # rows before the first answer token
    pixels: Tensor  # [images, 3, side, side] f32
    noise: Tensor  # [images, S, m, 2] f32 Gumbel
    replaced: int = 0  # unusable samples that this one stands in for

    @property
    def n_answer(self) -> int:
        return len(self.ids) - self.n_prompt


@dataclass(frozen=True)
class Batch:
    """Rows of several samples. `vision` and `text` number rows of the flattened [B * n]."""

    ids: Tensor  # [B, n] int64
    real: Tensor  # [B, n] bool: not padding
    target: Tensor  # [B, n] int64: the token after this row where that is an answer token, else IGNORE
    vision: Tensor  # [N, m] int64
    text: list[Tensor]  # N of [n_t] int64: text rows of the prompt that the image belongs to
    pixels: Tensor  # [N, 3, side, side] f32
    noise: Tensor  # [N, S, m, 2] f32

    def to(self, device: torch.device) -> Batch:
        def move(value: Any) -> Any:
            return [move(v) for v in value] if isinstance(value, list) else value.to(device, non_blocking=True)

        return Batch(**{field.name: move(getattr(self, field.name)) for field in fields(self)})


def collate(examples: list[Example], image_token: int) -> Batch:
    """Padded on the right."""
    n = max(len(e.ids) - 1 for e in examples)
    ids = torch.zeros(len(examples), n, dtype=torch.int64)
    real = torch.zeros(len(examples), n, dtype=torch.bool)
    target = torch.full((len(examples), n), IGNORE)
    vision: list[Tensor] = []
    text: list[Tensor] = []
    for b, example in enumerate(examples):
        rows = len(example.ids) - 1
        known = torch.tensor(example.ids)
        ids[b, :rows] = known[:-1]
        real[b, :rows] = True
        target[b, example.n_prompt - 1 : rows] = known[example.n_prompt :]
        is_image = known[: example.n_prompt] == image_token
        images = example.pixels.shape[0]
        vision += (is_image.nonzero()[:, 0] + b * n).chunk(images)
        text += [(~is_image).nonzero()[:, 0] + b * n] * images
    pixels, noise = (torch.cat([getattr(e, name) for e in examples]) for name in ("pixels", "noise"))
    return Batch(ids, real, target, torch.stack(vision), text, pixels, noise)
