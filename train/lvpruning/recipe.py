"""What --recipe stands for: the options that are not given. "ours" is what lost least on the demo model (docs/modules.md), sized by the
model that is trained for; "paper" is LVPruning's own (arXiv 2501.13652, section 4.1)."""

from __future__ import annotations

import argparse
from typing import Any

RECIPES = ("ours", "paper")
BEGIN_SAMPLES = 12000


def paper(hidden: int) -> dict[str, Any]:
    return {"inner_width": hidden, "heads": 8, "begin": 0, "select": "alone", "weigh": "tokens", "ratio_weight": 2.0, "distill": 0.0,
            "noise": (1.0, 1.0), "lr": 2e-6, "warmup": 0.03}  # fmt: skip


def ours(args: argparse.Namespace, hidden: int, head_dim: int, samples: int) -> dict[str, Any]:
    """Heads are about half as wide as those of the model, whose weights they begin with: 20 channels of 32 on the demo model, where widths
    of 40 were tried. Rates are as there, and inverse to the width."""
    width = args.inner_width or max(1, hidden // 4)
    heads = max(1, 2 * width // head_dim)
    while width % heads:
        heads -= 1
    best = args.select in (None, "best")
    return {"inner_width": width, "heads": heads, "begin": min(BEGIN_SAMPLES, samples) if best and not args.init else 0,
            "select": "best", "weigh": "roots", "ratio_weight": 0.0 if best else 2.0, "distill": 1.0,
            "ratios": (round(args.rho - 0.08, 6), round(args.rho + 0.03, 6)), "noise": (0.3, 0.0), "lr": 0.02 / width, "warmup": 0.1}  # fmt: skip


def fill(args: argparse.Namespace, hidden: int, head_dim: int, samples: int) -> None:
    """Sets what was not given, for a language model of width `hidden` and so many samples."""
    chosen = paper(hidden) if args.recipe == "paper" else ours(args, hidden, head_dim, samples)
    for name, value in chosen.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.begin_lr is None:
        args.begin_lr = 0.04 / args.inner_width
