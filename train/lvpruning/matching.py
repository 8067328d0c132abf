"""Heads of the model that match the prompt's words with what vision tokens show, as the beginning of modules.

A module has to find a thing by its name before anything can teach it which thing is asked for. Later layers of the model
have learned that: some of their heads match by content, whatever the positions. Block 0's queries and keys begin as such a head's keys and queries.

Shapes: N images, m vision tokens, n_t text rows of the prompt, C hidden width, H heads of C / H channels, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from train.pruner import DecisionBlock


@contextmanager
def whole(layer: nn.Module) -> Iterator[nn.Module]:
    """All weights of a layer that may be sharded over ranks; all ranks enter together."""
    if isinstance(layer, FSDPModule):
        layer.unshard()
    try:
        yield layer
    finally:
        if isinstance(layer, FSDPModule):
            layer.reshard()


def weights_of(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Query and key weights [H, C / H, C] of a LLaMA layer with the norm before them folded in, but for the rows' own length."""
    attention = layer.self_attn
    scale = layer.input_layernorm.weight.float()
    query, key = (proj.weight.float().unflatten(0, (-1, attention.head_dim)) * scale for proj in (attention.q_proj, attention.k_proj))
    return query, key.repeat_interleave(attention.num_key_value_groups, 0)


def likeness(query: Tensor, key: Tensor, vision: Tensor, text: Tensor, there: Tensor) -> Tensor:
    """[N, H, m]: how well the best word of the prompt matches each vision token. Rows [N, ., C] of length 1 each."""
    q = torch.einsum("hdc,ntc->nhtd", query, text)
    k = torch.einsum("hdc,nmc->nhmd", key, vision)
    return (k @ q.transpose(-1, -2)).masked_fill(~there[:, None, None, :], -torch.inf).amax(-1)


def told(found: Tensor, wanted: Tensor) -> Tensor:
    """[H]: correlation over an image's tokens of what heads find [N, H, m] with what is wanted [N, m], summed over images."""
    f = found - found.mean(-1, keepdim=True)
    w = (wanted - wanted.mean(-1, keepdim=True))[:, None]
    return ((f * w).sum(-1) / (f.norm(dim=-1) * w.norm(dim=-1)).clamp(min=1e-9)).sum(0)


def by_the_question(query: Tensor, key: Tensor, vision: Tensor, text: Tensor, there: Tensor, wanted: Tensor) -> Tensor:
    """[H]: how much better a head tells what is wanted by an image's own prompt than by that of the other of its pair: what it tells
    whatever the words, that something stands out, is in both. Two prompts about one picture have also taken the same from it by then."""

    def found(text: Tensor, there: Tensor) -> Tensor:
        return told(likeness(query, key, vision, text, there), wanted)

    def other(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)

    return found(text, there) - found(other(text), other(there))


def begin_head(block: DecisionBlock, head: int, query: Tensor, key: Tensor, vision_length: float, text_length: float) -> None:
    """Makes a head of the module match as the model's head does: query, key [C / H, C]; lengths: root mean squares of typical rows. Of the
    product, the module's channels hold as much as they can (SVD)."""
    channels = block.q_proj.weight.shape[0] // block.heads
    # The model: logit = (query t / |t|) . (key v / |v|) / sqrt(C / H); the module: (Wq v) . (Wk t) / sqrt(channels).
    (vision_side, k), (text_side, q) = (torch.linalg.qr(w.T) for w in (key / vision_length, query / text_length))
    u, s, v = torch.linalg.svd(k @ q.T * (channels / len(query)) ** 0.5)
    n = min(channels, len(s))
    rows = slice(head * channels, head * channels + n)
    with torch.no_grad():
        block.q_proj.weight[rows] = (vision_side @ u[:, :n] * s[:n].sqrt()).T
        block.k_proj.weight[rows] = (text_side @ v[:n].T * s[:n].sqrt()).T
        block.k_proj.weight[rows.stop : (head + 1) * channels] = 0.0  # wider than the model's: the rest begins without a say
