"""Reference of a LLaVA with LVPruning, over transformers' LlavaForConditionalGeneration (f32, eager attention, one prompt).

Two ways to compute the same thing, so that each checks the other:
- `forward_masked` removes nothing: from the layer after a prune point on, a removed vision column is invisible to every
  row but itself. This is how the modules are trained.
- `forward_removed` drops the rows, keeps the survivors' ORIGINAL position ids, and leaves K/V of different lengths in the
  layers between two prune points. This is what lvpipe does.

Shapes: n rows of the expanded prompt, C hidden width, m vision tokens of an image, S prune points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

import torch
from torch import Tensor
from transformers import DynamicCache, LlavaForConditionalGeneration

from train.pruner import Pruner, keep_count
from train.training_free import Chooser, Modules, PointView


@dataclass(frozen=True)
class Prompt:
    """Input of one sequence. Row = position id: the prompt starts at position 0."""

    input_ids: Tensor  # [n] int64, each image's token repeated m times
    pixel_values: Tensor  # [n_images, 3, S, S] f32, preprocessed
    image_of_row: Tensor  # [n] int64: -1 text, else the image the row belongs to

    @property
    def n_images(self) -> int:
        return self.pixel_values.shape[0]


@dataclass
class PointDecision:
    """What one prune point decided, per image."""

    rows: list[Tensor] = field(default_factory=list)  # [n_v] prompt rows that were scored, ascending
    scores: list[Tensor] = field(default_factory=list)  # [n_v] of lvpruning: keep logit - remove logit
    kept: list[Tensor] = field(default_factory=list)  # [k] prompt rows that stay, ascending
    gap: float = float("inf")  # to the nearest other decision (train/training_free.py)


@dataclass
class Output:
    """Result of a prefill."""

    rows: Tensor  # [n_rows] prompt rows that `hidden` and `logits` hold, ascending; all of them in the masked forward
    alive: Tensor  # [n] bool: prompt rows that were never removed
    hidden: Tensor  # [n_rows, C] residual stream after the last decoder layer, before the final norm
    logits: Tensor  # [n_rows, vocab]
    decisions: list[PointDecision]  # S
    cache: DynamicCache | None  # K/V of the removed forward, of different lengths per layer group


@dataclass(frozen=True)
class Generation:
    """Greedy continuation; the end-of-sequence token does not stop it."""

    tokens: list[int]
    logprobs: list[float]  # natural log, of the chosen token
    gaps: list[float]  # logit of the best token minus that of the second best


class Reference:
    """A model with or without a pruner. Without one, or without ratios, nothing is removed."""

    def __init__(self, model: LlavaForConditionalGeneration, pruner: Pruner | Chooser | None = None) -> None:
        self.model = model
        self.pruner = Modules(pruner) if isinstance(pruner, Pruner) else pruner
        self.decoder = model.model.language_model

    @property
    def vision_tokens(self) -> int:
        """m: patches, plus the class token where the model selects all features."""
        config = self.model.config
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        return patches + (config.vision_feature_select_strategy == "full")

    def prompt(self, prompt_ids: Sequence[int], pixel_values: Tensor) -> Prompt:
        """Expands prompt_ids, which name each image by one image token; pixel_values [n_images, 3, S, S]."""
        image_token, m = self.model.config.image_token_index, self.vision_tokens
        ids: list[int] = []
        image_of_row: list[int] = []
        n_images = 0
        for token in prompt_ids:
            is_image = token == image_token
            ids += [token] * (m if is_image else 1)
            image_of_row += [n_images] * m if is_image else [-1]
            n_images += is_image
        if n_images != pixel_values.shape[0]:
            raise ValueError(f"{n_images} image tokens for {pixel_values.shape[0]} images")
        return Prompt(torch.tensor(ids), pixel_values, torch.tensor(image_of_row))

    @torch.no_grad()
    def features(self, pixel_values: Tensor) -> Tensor:
        """[n_images, 3, S, S] -> [n_images, m, C], after the projector."""
        return torch.stack(self.model.get_image_features(pixel_values))

    @torch.no_grad()
    def embed(self, prompt: Prompt) -> Tensor:
        """[n, C]: token embeddings with each image's projected rows in place."""
        x = self.decoder.embed_tokens(prompt.input_ids)
        if prompt.n_images:
            x[prompt.image_of_row >= 0] = self.features(prompt.pixel_values).flatten(0, 1)
        return x

    def _layer(self, index: int, x: Tensor, positions: Tensor, visible: Tensor, cache: DynamicCache | None) -> Tensor:
        """One decoder layer. x [n, C], positions [n], visible [n, n_kv] bool -> [n, C]."""
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        result = self.decoder.layers[index](
            x[None],
            attention_mask=mask[None, None],
            position_ids=positions[None],
            past_key_values=cache,
            use_cache=cache is not None,
            position_embeddings=self.decoder.rotary_emb(x[None], positions[None]),
        )
        return result[0]

    def _logits(self, x: Tensor) -> Tensor:
        """[n, C] -> [n, vocab]."""
        return self.model.lm_head(self.decoder.norm(x))

    def _view(self, index: int, before: Tensor, after: Tensor, rows: Tensor, prompt: Prompt) -> PointView:
        """Behind decoder layer `index`; before, after [n_left, C] of the prompt rows `rows` [n_left]."""
        layer = self.decoder.layers[index]
        return PointView(before, after, rows, prompt.image_of_row[rows], layer, self.decoder.rotary_emb)

    def _decide(self, point: int, view: PointView, prompt: Prompt, ratio: Decimal) -> PointDecision:
        """Scores the vision rows that are left and picks each image's best."""
        assert self.pruner is not None
        decision = PointDecision()
        for i in range(prompt.n_images):
            own = view.rows[view.image_of_row == i]
            choice = self.pruner.choose(point, view, i, keep_count(ratio, self.vision_tokens, len(own)))
            decision.rows.append(own)
            decision.scores.append(choice.scores)
            decision.kept.append(own[choice.kept])
            decision.gap = min(decision.gap, choice.gap)
        return decision

    def _points_after(self, n_layers: int, ratios: Sequence[Decimal] | None) -> list[int]:
        """The prune point (none or one) that comes after `n_layers` decoder layers have run."""
        if self.pruner is None or ratios is None:
            return []
        return [s for s, after in enumerate(self.pruner.after_layers) if after == n_layers]

    @torch.no_grad()
    def forward_masked(self, prompt: Prompt, ratios: Sequence[Decimal] | None = None, answer: Sequence[int] = ()) -> Output:
        """All rows go through all layers. `answer`: tokens after the prompt, which no module sees as text.

        `hidden` and `logits` of removed rows have no counterpart in the removed forward.
        """
        n_prompt = len(prompt.input_ids)
        x = torch.cat([self.embed(prompt), self.decoder.embed_tokens(torch.tensor(list(answer), dtype=torch.int64))])
        n = x.shape[0]
        positions = torch.arange(n)
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        alive = torch.ones(n, dtype=torch.bool)
        decisions: list[PointDecision] = []
        for index in range(len(self.decoder.layers)):
            before = x
            x = self._layer(index, x, positions, causal & (alive[None, :] | torch.eye(n, dtype=torch.bool)), None)
            for point in self._points_after(index + 1, ratios):
                rows = positions[:n_prompt][alive[:n_prompt]]
                decision = self._decide(point, self._view(index, before[rows], x[rows], rows, prompt), prompt, ratios[point])
                alive[rows] = _stays(rows, prompt, decision)
                decisions.append(decision)
        return Output(positions, alive[:n_prompt], x, self._logits(x), decisions, None)

    @torch.no_grad()
    def forward_removed(self, prompt: Prompt, ratios: Sequence[Decimal] | None = None) -> Output:
        """Removed rows are dropped at their prune point; layers up to it keep their K/V."""
        x = self.embed(prompt)
        rows = torch.arange(x.shape[0])  # original positions of the rows of x
        cache = DynamicCache()
        decisions: list[PointDecision] = []
        for index in range(len(self.decoder.layers)):
            causal = torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
            before = x
            x = self._layer(index, x, rows, causal, cache)
            for point in self._points_after(index + 1, ratios):
                decision = self._decide(point, self._view(index, before, x, rows, prompt), prompt, ratios[point])
                stays = _stays(rows, prompt, decision)
                x, rows = x[stays], rows[stays]
                decisions.append(decision)
        alive = torch.zeros(len(prompt.input_ids), dtype=torch.bool)
        alive[rows] = True
        return Output(rows, alive, x, self._logits(x), decisions, cache)

    @torch.no_grad()
    def generate(self, prompt: Prompt, ratios: Sequence[Decimal] | None = None, n_new: int = 8) -> Generation:
        """Greedy decoding over the caches of the removed forward; new tokens continue the ORIGINAL positions."""
        output = self.forward_removed(prompt, ratios)
        assert output.cache is not None
        logits = output.logits[-1]
        result = Generation([], [], [])
        for step in range(n_new):
            best = torch.topk(logits, 2)
            token = int(logits.argmax())
            result.tokens.append(token)
            result.logprobs.append(float(logits.log_softmax(-1)[token]))
            result.gaps.append(float(best.values[0] - best.values[1]))
            if step + 1 == n_new:
                break
            x = self.decoder.embed_tokens(torch.tensor([token]))
            position = torch.tensor([len(prompt.input_ids) + step])
            for index in range(len(self.decoder.layers)):
                n_kv = output.cache.get_seq_length(index) + 1
                x = self._layer(index, x, position, torch.ones(1, n_kv, dtype=torch.bool), output.cache)
            logits = self._logits(x)[0]
        return result


def _stays(rows: Tensor, prompt: Prompt, decision: PointDecision) -> Tensor:
    """[n_left] bool: text rows and the kept vision rows among the prompt rows `rows` [n_left]."""
    kept = torch.cat(decision.kept) if decision.kept else torch.empty(0, dtype=torch.int64)
    return (prompt.image_of_row[rows] < 0) | torch.isin(rows, kept)
