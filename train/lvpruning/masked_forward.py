"""The forward of training: no row leaves, a removed vision column is invisible to every row but itself.

It runs transformers' own decoder layers. Only their attention is ours, because a plain additive mask gives a removed
column no gradient: its weight is exactly zero, so nothing could ever tell a module to keep it.

Shapes: B samples of n rows, N images of m vision tokens in all samples together, C hidden width, S prune points, h heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import LlavaForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from train.lvpruning.batch import Batch
from train.pruner import Pruner

# What a module's gamma [N, m, 2] at a point becomes: [N, m] in {0, 1}, given the tokens [N, m] that are still there.
Decide = Callable[[int, Tensor, Tensor], Tensor]


def weigh(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, columns: Tensor, scaling: float) -> Tensor:
    """Attention in which column j counts columns[b, j] in {0, 1}, with a gradient to `columns`.

    query, key, value [B, h, n, d]; visible [B, 1, n, n] bool; columns [B, n] f32 -> [B, h, n, d]. The largest KEPT logit is
    subtracted and a removed column is held at or below it: else one strong removed column makes the gradient explode.
    """
    logits = (query @ key.transpose(-1, -2)).float() * scaling
    diagonal = torch.eye(columns.shape[1], dtype=torch.bool, device=columns.device)
    weights = torch.where(diagonal, 1.0, columns[:, None, None, :])  # [B, 1, n, n]
    top = logits.masked_fill(~visible | (weights < 0.5), -torch.inf).amax(-1, keepdim=True).detach()
    share = (logits - top).clamp(max=0.0).exp().masked_fill(~visible, 0.0) * weights
    return (share / share.sum(-1, keepdim=True)).to(value.dtype) @ value


class FusedForward(torch.autograd.Function):
    """`weigh` with a fused kernel in the forward: with hard masks it is plain attention. The backward computes `weigh`
    again, so that nothing of size n x n waits for it."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, visible: Tensor, columns: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(query, key, value, visible, columns)
        ctx.scaling = scaling
        diagonal = torch.eye(columns.shape[1], dtype=torch.bool, device=columns.device)
        seen = visible & (diagonal | (columns > 0.5)[:, None, None, :])
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, visible, columns = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        given = [t.detach().requires_grad_(w) for t, w in zip((query, key, value), wanted[:3])]
        columns = columns.detach().requires_grad_(wanted[4])
        with torch.enable_grad():
            out = weigh(*given, visible, columns, ctx.scaling)
        inputs = [*given, columns]
        found = iter(torch.autograd.grad(out, [t for t in inputs if t.requires_grad], gradient))
        grads = [next(found) if t.requires_grad else None for t in inputs]
        return *grads[:3], None, grads[3], None


def _repeat(heads: Tensor, groups: int) -> Tensor:
    return heads if groups == 1 else heads.repeat_interleave(groups, 1)


def _attention(fused: bool) -> Callable[..., tuple[Tensor, None]]:
    """An attention function as transformers calls it; `columns` [B, n] and `look` come through the layer's keyword arguments."""

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float,
               columns: Tensor | None = None, look: Callable[[Tensor], None] | None = None, **_: Any) -> tuple[Tensor, None]:  # fmt: skip
        key, value = _repeat(key, module.num_key_value_groups), _repeat(value, module.num_key_value_groups)
        if look is not None:
            logits = (query @ key.transpose(-1, -2)).float() * scaling
            weights = logits.masked_fill(~attention_mask, -torch.inf).softmax(-1)
            look(weights.amax(1))
            out = weights.to(value.dtype) @ value
        elif columns is None:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
        elif fused:
            out = FusedForward.apply(query, key, value, attention_mask, columns, scaling)
        else:
            out = weigh(query, key, value, attention_mask, columns, scaling)
        return out.transpose(1, 2).contiguous(), None

    return attend


ATTENTION = {"sdpa": "lvpruning_sdpa", "eager": "lvpruning_eager"}
for _name, _registered in ATTENTION.items():
    ALL_ATTENTION_FUNCTIONS.register(_registered, _attention(_name == "sdpa"))


def use_masked_attention(model: LlavaForConditionalGeneration, kind: str) -> None:
    """Gives the language model the attention above; `kind` is a key of ATTENTION. The vision tower keeps its own."""
    model.model.language_model.config._attn_implementation = ATTENTION[kind]
    model.model.vision_tower.config._attn_implementation = kind


@torch.no_grad()
def embed(model: LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    """[B, n, C]: token embeddings with each image's projected rows in place."""
    x = model.model.language_model.embed_tokens(batch.ids)
    if len(batch.pixels):
        features = torch.stack(model.get_image_features(batch.pixels.to(x.dtype)))  # [N, m, C]
        x.flatten(0, 1)[batch.vision.flatten()] = features.flatten(0, 1)
    return x


def masked_forward(model: LlavaForConditionalGeneration, pruner: Pruner | None, x: Tensor, batch: Batch,
                   decide: Decide | None = None, recompute: bool = False,
                   look: Callable[[Tensor], None] | None = None) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """x [B, n, C] from `embed` -> rows [B, n, C] after the final norm and each point's running mask D_s [N, m] f32.

    Without a pruner it is the dense model. `recompute`: keep only each layer's input and compute the layer again in the
    backward. `look`: called by each layer with the most that any of its heads lets row i look at row j [B, n, n].
    """
    decoder = model.model.language_model
    after = pruner.config.after_layers if pruner is not None else ()
    b, n, _ = x.shape
    # Original positions, wherever the padding is. Padding rows see themselves, so that no row sees nothing.
    positions = (batch.real.cumsum(1) - 1).clamp(min=0)
    square = torch.ones(n, n, dtype=torch.bool, device=x.device)
    visible = (square.tril() & batch.real[:, None, None, :]) | torch.eye(n, dtype=torch.bool, device=x.device)
    rope = decoder.rotary_emb(x, positions)
    columns: Tensor | None = None
    masks: list[Tensor] = []
    alive = torch.ones(batch.vision.shape, device=x.device)  # [N, m]
    for index, layer in enumerate(decoder.layers):
        options = dict(attention_mask=visible, position_ids=positions, position_embeddings=rope, columns=columns, look=look)
        if recompute and columns is not None:
            x = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False, **options)
        else:
            x = layer(x, **options)
        if index + 1 not in after:
            continue
        point = after.index(index + 1)
        gamma = _score(pruner, point, x, batch)
        alive = alive * decide(point, gamma, alive.detach())
        masks.append(alive)
        columns = torch.ones(b * n, device=x.device).scatter(0, batch.vision.flatten(), alive.flatten()).view(b, n)
    return decoder.norm(x), masks


def _score(pruner: Pruner, point: int, x: Tensor, batch: Batch) -> Tensor:
    """gamma [N, m, 2] of every vision token, removed ones too: no vision row looks at another one inside a module."""
    text, there = side_by_side(batch.text)
    rows = x.flatten(0, 1)
    return pruner.points[point](rows[batch.vision].float(), rows[text].float(), there)


def side_by_side(prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """N of [n_t, ...], one for each prompt -> padded with zeros [N, n_t, ...], and which are there [N, n_t] bool."""
    there = pad_sequence([torch.ones(len(p), dtype=torch.bool, device=p.device) for p in prompts], batch_first=True)
    return pad_sequence(prompts, batch_first=True), there


def gumbel_keep(noisy: Tensor, temperature: float) -> Tensor:
    """Hard Gumbel-Softmax: gamma plus Gumbel noise [N, m, 2] -> exactly 0 or 1 [N, m], with the soft value's gradient."""
    soft = (noisy / temperature).softmax(-1)[..., 0]
    return (soft >= 0.5).float() + (soft - soft.detach())


def top_keep(noisy: Tensor, alive: Tensor, k: int, temperature: float) -> Tensor:
    """As inference chooses, but for the noise: the k best of the tokens that are there, exactly 0 or 1 [N, m]. The soft value is a
    sigmoid around a threshold that begins between the last that stays and the first that goes, and moves with the scores so that k
    stays k: else the gradient's largest part would only raise all scores alike."""
    every = noisy[..., 0] - noisy[..., 1]
    score = every.masked_fill(alive < 0.5, -1e4)
    fixed = score.detach()
    ranked, order = fixed.sort(dim=-1, descending=True, stable=True)
    hard = torch.zeros_like(fixed).scatter(-1, order[:, :k], 1.0)
    ends = F.pad(F.pad(ranked, (1, 0), value=1e4), (0, 1), value=-1e4)  # where all stay or all go, nothing is to be learned
    middle = (ends[:, k] + ends[:, k + 1])[:, None] / 2
    soft = ((fixed - middle) / temperature).sigmoid()
    slope = soft * (1 - soft)
    moved = (slope * (score - fixed)).sum(-1, keepdim=True) / slope.sum(-1, keepdim=True).clamp(min=1e-9)
    soft = ((score - middle - moved) / temperature).sigmoid()
    keep = hard + (soft - soft.detach())
    # One that is gone has no say here, but where it would be kept, the point that removed it learns what it would do from here on.
    return torch.where(alive < 0.5, (every.detach() > middle).float(), keep)
