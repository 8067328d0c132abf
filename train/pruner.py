"""LVPruning's decision modules (arXiv 2501.13652, section 3): which vision tokens of a prompt stay.

A prune point after decoder layer L reads the residual stream that layer L wrote. Its module lets each vision row look at
the prompt's text rows in two cross-attention blocks and gives every vision row two logits: keep and remove.

Shapes: C width of the language model, d inner width of the modules (d = C is the paper's), n_v vision rows of one image
that are still there, n_t text rows of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from train.safetensors_writer import save_safetensors

BLOCKS = 2  # cross-attention blocks in a module of the file
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class PrunerConfig:
    """What `lvpruning.safetensors` says about itself."""

    after_layers: tuple[int, ...]  # strictly increasing, 1..L; L prunes before the final norm
    hidden: int  # C
    inner_width: int  # d
    heads: int  # divides d
    blocks: int = BLOCKS  # 1: the file's second block passes its input on
    shared: bool = False  # a module's blocks have one K and one V projection, which the file holds twice

    def __post_init__(self) -> None:
        if any(b <= a for a, b in zip((0, *self.after_layers), self.after_layers)):
            raise ValueError(f"prune points must be strictly increasing and at least 1: {self.after_layers}")
        if self.inner_width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the inner width {self.inner_width}")


class DecisionBlock(nn.Module):
    """Vision rows attend to text rows, then a feed-forward block. x [n_v, width_in] -> [n_v, d]."""

    def __init__(self, width_in: int, hidden: int, inner_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width_in, inner_width, bias=False)
        self.k_proj = nn.Linear(hidden, inner_width, bias=False)
        self.v_proj = nn.Linear(hidden, inner_width, bias=False)
        self.o_proj = nn.Linear(inner_width, inner_width, bias=False)
        self.norm1 = nn.LayerNorm(inner_width, eps=LAYER_NORM_EPS)
        self.fc1 = nn.Linear(inner_width, 2 * inner_width)
        self.fc2 = nn.Linear(2 * inner_width, inner_width)
        self.norm2 = nn.LayerNorm(inner_width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, text: Tensor, there: Tensor | None = None) -> Tensor:
        """x [..., n_v, width_in], text [..., n_t, C] -> [..., n_v, d]; `there` [..., n_t] bool: text rows that are not padding."""
        q, k, v = self.q_proj(x), self.k_proj(text), self.v_proj(text)  # [..., n_v, d], [..., n_t, d] twice

        def per_head(rows: Tensor) -> Tensor:  # [..., n, d] -> [..., heads, n, d / heads]
            return rows.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

        logits = per_head(q) @ per_head(k).transpose(-2, -1) / math.sqrt(q.shape[-1] / self.heads)  # [..., heads, n_v, n_t]
        if there is not None:
            logits = logits.masked_fill(~there[..., None, None, :], -math.inf)
        attended = (logits.softmax(-1) @ per_head(v)).transpose(-3, -2).flatten(-2)  # [..., n_v, d]
        o = self.o_proj(attended) + q  # the residual adds the projected Q
        return o + self.norm2(self.fc2(nn.functional.silu(self.fc1(self.norm1(o)))))


def passing_block(config: PrunerConfig) -> dict[str, Tensor]:
    """A block's weights with which x [n_v, d] comes out as it went in: Q is x, what is added to it is 0."""
    block = DecisionBlock(config.inner_width, config.hidden, config.inner_width, config.heads)
    weights = {name: torch.zeros_like(t) for name, t in block.state_dict().items()}
    return weights | {"q_proj.weight": torch.eye(config.inner_width)}


class DecisionModule(nn.Module):
    """One prune point: keep and remove logits of each vision row."""

    def __init__(self, config: PrunerConfig) -> None:
        super().__init__()
        widths = [config.hidden] + [config.inner_width] * (config.blocks - 1)
        self.blocks = nn.ModuleList(
            DecisionBlock(width, config.hidden, config.inner_width, config.heads) for width in widths
        )
        if config.shared:
            for block in self.blocks[1:]:
                block.k_proj, block.v_proj = self.blocks[0].k_proj, self.blocks[0].v_proj
        self.gate = nn.Linear(config.inner_width, 2, bias=False)

    def forward(self, vision: Tensor, text: Tensor, there: Tensor | None = None) -> Tensor:
        """vision [..., n_v, C], text [..., n_t, C], there [..., n_t] bool -> gamma [..., n_v, 2]: column 0 keep, column 1 remove."""
        x = vision
        for block in self.blocks:
            x = block(x, text, there)
        return self.gate(x)

    def score(self, vision: Tensor, text: Tensor) -> Tensor:
        """[n_v], monotone in the keep probability softmax(gamma)[:, 0]."""
        gamma = self(vision, text)
        return gamma[:, 0] - gamma[:, 1]


class Pruner(nn.Module):
    """The modules of all prune points; `points[s]` belongs after decoder layer `config.after_layers[s]`."""

    def __init__(self, config: PrunerConfig) -> None:
        super().__init__()
        self.config = config
        self.points = nn.ModuleList(DecisionModule(config) for _ in config.after_layers)

    # The file calls the list `modules`, which nn.Module keeps for itself.
    def save(self, path: Path, dtype: torch.dtype = torch.float32) -> None:
        """Writes lvpruning.safetensors."""
        state = self.state_dict()
        for point in range(len(self.points)):
            for block in range(self.config.blocks, BLOCKS):
                state |= {f"points.{point}.blocks.{block}.{name}": t for name, t in passing_block(self.config).items()}
        tensors = {"modules." + name.removeprefix("points."): t.detach().cpu().to(dtype) for name, t in state.items()}
        metadata = {
            "format": "pt",
            "lvpruning.after_layers": ",".join(map(str, self.config.after_layers)),
            "lvpruning.heads": str(self.config.heads),
            "lvpruning.inner_width": str(self.config.inner_width),
            "lvpruning.version": "1",
        }
        save_safetensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path) -> Pruner:
        """Reads lvpruning.safetensors; weights are widened to f32."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            state = {"points." + name.removeprefix("modules."): file.get_tensor(name).float() for name in file.keys()}
        config = PrunerConfig(
            after_layers=tuple(map(int, metadata["lvpruning.after_layers"].split(","))),
            hidden=state["points.0.blocks.0.k_proj.weight"].shape[1],
            inner_width=int(metadata["lvpruning.inner_width"]),
            heads=int(metadata["lvpruning.heads"]),
        )
        pruner = cls(config)
        pruner.load_state_dict(state)
        return pruner.eval()


def keep_ratios(keep: str | Sequence[str], n_points: int) -> tuple[Decimal, ...]:
    """One number R means R - 0.2 s at point s; a list has one number per point. Decimal: 0.5 - 0.4 is 0.1 exactly."""
    if isinstance(keep, str):
        return tuple(Decimal(keep) - Decimal("0.2") * s for s in range(n_points))
    if len(keep) != n_points:
        raise ValueError(f"{len(keep)} keep ratios for {n_points} prune points")
    return tuple(map(Decimal, keep))


def keep_count(ratio: Decimal, n_original: int, n_surviving: int) -> int:
    """Tokens of one image that stay: floor(ratio * n_original + 0.5), never more than are still there."""
    clamped = min(max(ratio, Decimal(0)), Decimal(1))
    return min(int(clamped * n_original + Decimal("0.5") + Decimal("1e-9")), n_surviving)


def select_best(scores: Tensor, k: int) -> Tensor:
    """Indices [k] of the k highest of scores [n], ascending; ties go to the lower index."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:k].sort().values
