"""Muon for hidden matrices, AdamW for the rest, and a schedule over a time budget."""

from __future__ import annotations

import math
import time
from collections import defaultdict

import torch
from torch import Tensor, nn


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration on stacked matrices [n, rows, columns]: UV^T of each."""
    a, b, c = 3.4445, -4.7750, 2.0315
    flip = g.shape[-2] > g.shape[-1]
    x = g.transpose(-1, -2) if flip else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.transpose(-1, -2)
        x = a * x + (b * s + c * (s @ s)) @ x
    return x.transpose(-1, -2) if flip else x


class Muon(torch.optim.Optimizer):
    """Momentum, then an orthogonal step whose size matches AdamW's (RMS 0.2)."""

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["m"] = torch.zeros_like(p)
                state["m"].lerp_(p.grad, 1 - group["momentum"])
                shapes[p.shape].append((p, p.grad.lerp(state["m"], group["momentum"])))
            for shape, items in shapes.items():
                updates = orthogonal(torch.stack([u for _, u in items]))
                scale = group["lr"] * 0.2 * math.sqrt(max(shape))
                for (p, _), u in zip(items, updates):
                    p.add_(u, alpha=-scale)


class Optimizers:
    """One Muon and one AdamW over the trainable parameters, clipped together."""

    def __init__(self, modules: list[tuple[nn.Module, float]], adam_scale: float = 0.5) -> None:
        """modules: (module, learning rate of Muon); AdamW gets adam_scale of it."""
        self.params: list[nn.Parameter] = []
        muon, adam = [], []
        for module, lr in modules:
            matrices, rest = [], []
            for name, p in module.named_parameters():
                hidden = p.ndim == 2 and "embed" not in name and "lm_head" not in name
                hidden = hidden and "tables" not in name and "heads" not in name
                (matrices if hidden else rest).append(p)
            self.params += matrices + rest
            muon.append({"params": matrices, "lr": lr, "peak": lr})
            adam.append({"params": rest, "lr": lr * adam_scale, "peak": lr * adam_scale})
        self.muon = Muon([g for g in muon if g["params"]], lr=0.0)
        self.adam = torch.optim.AdamW(adam, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, factor: float) -> float:
        """Clip to norm 1, set rates to factor * peak, update; returns the norm."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.params, 1.0))
        for opt in (self.muon, self.adam):
            for group in opt.param_groups:
                group["lr"] = group["peak"] * factor
            if math.isfinite(norm):
                opt.step()
            opt.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Moments are restored; the peak rates stay those of this sitting."""
        for opt, saved in ((self.muon, state["muon"]), (self.adam, state["adam"])):
            peaks = [group["peak"] for group in opt.param_groups]
            opt.load_state_dict(saved)
            for group, peak in zip(opt.param_groups, peaks):
                group["peak"] = peak


class Clock:
    """Progress 0..1 by steps, or by minutes of work (over all sittings)."""

    def __init__(self, minutes: float | None, steps: int | None) -> None:
        self.minutes, self.steps = minutes, steps
        self.done_steps, self.spent = 0, 0.0
        self._last = time.monotonic()

    def tick(self) -> None:
        now = time.monotonic()
        self.spent += min(now - self._last, 60)  # a step takes seconds: more is a pause of the process
        self._last = now
        self.done_steps += 1

    @property
    def progress(self) -> float:
        if self.steps:
            return min(1.0, self.done_steps / self.steps)
        return min(1.0, self.spent / (60 * (self.minutes or 1.0)))

    def factor(self, warm_steps: int, floor: float = 0.03) -> float:
        """Linear warm-up, then cosine down to `floor`."""
        cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * self.progress))
        return min(1.0, (self.done_steps + 1) / warm_steps) * cosine
