"""Batches: scenes to pixels or patch labels, questions to packed rows.

Dense training packs several questions behind one image. A sequence is

    head | vision rows | block 1 | block 2 | ...

where a block is the prompt's tail, its answer and eos. A block sees the head, the
image and itself; its position ids restart after the image. That equals one
sequence per question and pays for the image once.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train.demo.model import VISION_TOKENS, DemoLlava
from train.demo.tokenizer import PAD_ID, Tokens
from train.tasks import families, scenes
from train.tasks.families import Question
from train.tasks.scenes import Scene

LABEL_NAMES = list(scenes.LABELS)
FAMILY_NAMES = list(families.FAMILIES)
PRUNE_AFTER = (1, 2, 4)  # decoder layers, as the modules will
MODEL_FOLDER = Path(__file__).resolve().parents[2] / "models" / "demo"


@dataclass
class Packed:
    """head [P]; text ids, positions, block (-1: padding), family (of FAMILY_NAMES) and weight, each [B, T]."""

    head: Tensor
    ids: Tensor
    positions: Tensor
    block: Tensor
    family: Tensor
    target: Tensor  # next id, or -1 where nothing is learned
    weight: Tensor


def pack(tokens: Tokens, asked: list[list[Question]]) -> Packed:
    start = len(tokens.head) + VISION_TOKENS
    rows: list[list[tuple[int, int, int, int, int, float]]] = []
    for sample in asked:
        row = []
        for b, q in enumerate(sample):
            tail, answer = tokens.tail(q.text), tokens.answer(q.answer)
            ids = [*tail, *answer]
            # A caption has forty tokens, of which most are easy: alike, they would drown the one that says yes or no.
            weight = 0.1 if q.family == "caption" else 1.0
            family = FAMILY_NAMES.index(q.family)
            for i, token in enumerate(ids[:-1]):
                learn = i >= len(tail) - 1
                row.append((token, start + i, b, family, ids[i + 1] if learn else -1, weight * learn))
        rows.append(row)
    width = max(len(r) for r in rows)
    padded = [r + [(PAD_ID, start, -1, 0, -1, 0.0)] * (width - len(r)) for r in rows]
    table = np.array(padded, dtype=np.float64)
    columns = [torch.from_numpy(table[..., i]).long() for i in range(5)]
    return Packed(torch.tensor(tokens.head), *columns, torch.from_numpy(table[..., 5]).float())


def pack_mask(block: Tensor, shared: int) -> Tensor:
    """bool [B, 1, S + T, S + T] for `shared` head and vision rows before the blocks."""
    b, t = block.shape
    full = torch.ones(shared + t, shared + t, dtype=torch.bool).tril()
    mask = full.expand(b, -1, -1).clone()
    mask[:, shared:, shared:] &= block[:, :, None] == block[:, None, :]
    return mask[:, None]


def text_rows(model: DemoLlava, packed: Packed, vision: Tensor, vision_positions: Tensor, rank: Tensor | None = None,
              counts: tuple[int, ...] = ()) -> Tensor:  # fmt: skip
    """Hidden rows [B, T, C] of the packed text behind vision rows [B, n, C] at these positions [B, n] of the image; by rank [B, n],
    counts[s] of the vision rows are left after layer PRUNE_AFTER[s]."""
    b, head = vision.shape[0], len(packed.head)
    x = torch.cat([model.embed(packed.head).expand(b, -1, -1), vision, model.embed(packed.ids)], 1)
    positions = torch.cat([torch.arange(head).expand(b, -1), head + vision_positions, packed.positions], 1)
    width, texts = vision.shape[1], packed.ids.shape[1]
    mask = pack_mask(packed.block, head + width)
    left = {}
    for layer, count in zip(PRUNE_AFTER, counts):
        rows = best_rows(rank, min(count, width))
        text = torch.arange(head + width, head + width + texts)
        left[layer] = torch.cat([torch.arange(head).expand(b, -1), head + rows, text.expand(b, -1)], 1)
        rank, width = rank.gather(1, rows), rows.shape[1]
    return model.language_model(x, positions, mask, left)[:, head + width :]


def rank_rows(labels: Tensor, generator: torch.Generator) -> Tensor:
    """[B, V]: anchors and letters before things before background, and by chance among those."""
    told = (labels[..., LABEL_NAMES.index("anchor")] > 0) | (labels[..., LABEL_NAMES.index("letter")] > 0)
    return torch.rand(labels.shape[:2], generator=generator) + (labels[..., 0] > 0) * 1.0 + told * 2.0


def best_rows(rank: Tensor, number: int) -> Tensor:
    """Of rank [B, n], sorted, [B, number]."""
    return rank.topk(number, dim=1).indices.sort(dim=1).values


def draw_scenes(rng: random.Random, number: int, high: int = 6) -> list[Scene]:
    return [scenes.make_scene(rng, 1, high) for _ in range(number)]


# How often a question of each family is drawn beside the caption.
SHARES = {"attribute": 5, "relation": 5, "unanswerable": 2, "choice": 5, "text": 6, "existence": 2, "circular": 12, "mixed": 6}


def draw_questions(rng: random.Random, scene: Scene, number: int) -> list[Question]:
    """`number` questions of families by their shares, or one more, where the scene allows them."""
    found: list[Question] = []
    for family in rng.choices(list(SHARES), list(SHARES.values()), k=2 * number):
        asked = families.ask(scene, rng, family)
        if asked and len(found) < number:
            # Yes and no of one image: only what is asked for tells them apart.
            found += asked if family == "existence" else [rng.choice(asked)]
    return found or [families.caption(scene, rng)[0]]


def draw_blocks(rng: random.Random, batch: list[Scene], number: int) -> list[list[Question]]:
    """A caption first, then `number` questions, per scene."""
    return [[*families.caption(s, rng), *draw_questions(rng, s, number)] for s in batch]


def training_size(rng: random.Random) -> int:
    """Edge of the rendered picture: inputs come larger than the model's own size."""
    return rng.choice([168, 168, 168, 224, 252, 336])


def pixels(batch: list[Scene], rng: random.Random) -> Tensor:
    """float [B, 3, SIDE, SIDE] as the engine's preprocessing gives them."""
    arrays = [scenes.load(scenes.render(s, rng, training_size(rng))) for s in batch]
    return torch.from_numpy(np.stack(arrays))


def labels(batch: list[Scene]) -> Tensor:
    """int64 [B, V, len(LABELS)]"""
    return torch.from_numpy(np.stack([scenes.patch_labels(s) for s in batch]))
