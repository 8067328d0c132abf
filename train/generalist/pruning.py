"""LVPruning on the demo model: the masked forward of training, true removal of inference.

Row layout of a sequence: head | vision [V] | text. Text holds the prompt's tail and,
in training, the answer; the modules read the head and the tail only.
Original position ids stay with their rows; a removed row never returns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from train.generalist.model import AFTER_LAYERS, VISION_TOKENS, DemoLlava, Pruner, rope_tables


@dataclass
class Rows:
    """One question per sample, padded on the right.

    x [B, T, C] embeddings, prompt bool [B, T] (text rows before the answer, never
    vision rows), head: the number of rows before the V vision rows.
    """

    x: Tensor
    prompt: Tensor
    head: int

    @property
    def span(self) -> slice:
        return slice(self.head, self.head + VISION_TOKENS)


def embed_rows(model: DemoLlava, vision: Tensor, head: Tensor, text: Tensor,
               tail_length: Tensor) -> Rows:
    """vision [B, V, C], head [P] ids, text [B, n] ids, tail_length [B] -> Rows"""
    b = vision.shape[0]
    x = torch.cat([model.embed(head).expand(b, -1, -1), vision, model.embed(text)], 1)
    column = torch.arange(x.shape[1])
    start = len(head) + vision.shape[1]
    prompt = (column < len(head)) | ((column >= start) & (column < start + tail_length[:, None]))
    return Rows(x, prompt, len(head))


def causal(n: int) -> Tensor:
    return torch.ones(1, 1, n, n, dtype=torch.bool).tril()


def budgets(keep: list[float]) -> list[int]:
    """Survivors of the image at each prune point, never more than before."""
    counts, left = [], VISION_TOKENS
    for r in keep:
        left = min(left, int(min(1.0, max(0.0, r)) * VISION_TOKENS + 0.5 + 1e-9))
        counts.append(left)
    return counts


def ladder(rho: float) -> list[float]:
    """The paper's ratios: rho, rho - 0.2, rho - 0.4."""
    return [max(0.0, rho - 0.2 * s) for s in range(len(AFTER_LAYERS))]


def gumbel_keep(gamma: Tensor, temperature: float) -> Tensor:
    """gamma [B, V, 2] -> {0, 1} [B, V], straight-through gradient."""
    return F.gumbel_softmax(gamma, tau=temperature, hard=True)[..., 0]


def masked_forward(model: DemoLlava, pruner: Pruner, rows: Rows,
                   temperature: float) -> tuple[Tensor, list[Tensor]]:
    """Training: hidden rows [B, T, C] and each point's running mask D_s [B, V]."""
    b, n, _ = rows.x.shape
    rope, mask = rope_tables(torch.arange(n)[None]), causal(n)
    x, masks = rows.x, []
    keep: Tensor | None = None
    for i, layer in enumerate(model.language_model.model.layers):
        x = layer(x, rope, mask, keep)
        if i + 1 in AFTER_LAYERS:
            module = pruner.modules_[AFTER_LAYERS.index(i + 1)]
            gamma = module(x[:, rows.span], x, rows.prompt)
            chosen = gumbel_keep(gamma, temperature)
            masks.append(chosen if not masks else masks[-1] * chosen)
            keep = torch.cat([x.new_ones(b, rows.head), masks[-1],
                              x.new_ones(b, n - rows.head - VISION_TOKENS)], 1)
    return model.language_model.model.norm(x), masks


def choose(score: Tensor, number: int) -> Tensor:
    """Indices of the best `number` scores in their order [B, number]; ties to the lower."""
    order = score.sort(dim=1, descending=True, stable=True).indices
    return order[:, :number].sort(dim=1).values


@torch.no_grad()
def removed_forward(model: DemoLlava, pruner: Pruner | None, rows: Rows, keep: list[float],
                    kind: str = "lvpruning", generator: torch.Generator | None = None,
                    caches: list[list[Tensor]] | None = None) -> tuple[Tensor, list[Tensor]]:
    """Inference: rows really leave. Hidden rows and the kept indices of each point.

    kind: "none", "lvpruning" or "random". `caches` gets each layer's K and V.
    """
    x, prompt = rows.x, rows.prompt
    b, n, c = x.shape
    positions = torch.arange(n).expand(b, -1)
    alive = torch.arange(VISION_TOKENS).expand(b, -1)
    counts, kept = budgets(keep), []
    for i, layer in enumerate(model.language_model.model.layers):
        past = None if caches is None else caches[i]
        x = layer(x, rope_tables(positions), causal(x.shape[1]), None, past)
        if kind == "none" or i + 1 not in AFTER_LAYERS:
            continue
        point = AFTER_LAYERS.index(i + 1)
        vision = slice(rows.head, rows.head + alive.shape[1])
        if kind == "random":
            score = torch.rand(alive.shape, generator=generator)
        else:
            gamma = pruner.modules_[point](x[:, vision], x, prompt)
            score = gamma[..., 0] - gamma[..., 1]
        best = choose(score, counts[point])
        alive = alive.gather(1, best)
        kept.append(alive)
        rest = torch.arange(rows.head + vision.stop - vision.start, x.shape[1]).expand(b, -1)
        index = torch.cat([torch.arange(rows.head).expand(b, -1), rows.head + best, rest], 1)
        x = x.gather(1, index[..., None].expand(-1, -1, c))
        positions, prompt = positions.gather(1, index), prompt.gather(1, index)
    return model.language_model.model.norm(x), kept


@torch.no_grad()
def generate(model: DemoLlava, pruner: Pruner | None, vision: Tensor, head: Tensor, tail: Tensor,
             keep: list[float], kind: str, eos: int, limit: int = 96,
             generator: torch.Generator | None = None) -> list[list[int]]:
    """Greedy answers to one prompt for B images: prefill with removal, then decode."""
    b = vision.shape[0]
    rows = embed_rows(model, vision, head, tail.expand(b, -1), torch.full((b,), len(tail)))
    layers = model.language_model.model.layers
    caches: list[list[Tensor]] = [[] for _ in layers]
    x, _ = removed_forward(model, pruner, rows, keep, kind, generator, caches)
    position = rows.x.shape[1]
    answers: list[list[int]] = [[] for _ in range(b)]
    open_rows = torch.ones(b, dtype=torch.bool)
    for _ in range(limit):
        token = model.language_model.lm_head(x[:, -1]).argmax(-1)
        for i in open_rows.nonzero().flatten().tolist():
            answers[i].append(int(token[i]))
        open_rows &= token != eos
        if not open_rows.any():
            break
        x = model.embed(token)[:, None]
        rope = rope_tables(torch.full((b, 1), position))
        for layer, past in zip(layers, caches):
            x = layer(x, rope, None, None, past)
        x, position = model.language_model.model.norm(x), position + 1
    return answers
