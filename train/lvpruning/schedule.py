"""What changes from a run's first step to its last."""

from __future__ import annotations

import argparse
import math


def rate(step: int, steps: int, warmup: float) -> float:
    """Share of the full learning rate at a step, counted from 0: linear warm-up, then a cosine to 0."""
    warm = math.ceil(warmup * steps)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def first_and_last(text: str) -> tuple[float, float]:
    """An option FIRST[,LAST], shares."""
    first, _, last = text.partition(",")
    ends = float(first), float(last or first)
    if not all(0.0 <= end <= 1.0 for end in ends):
        raise argparse.ArgumentTypeError(f"{text}: shares from 0 to 1")
    return ends


def between(ends: tuple[float, float], step: int, steps: int) -> float:
    """Evenly from the first to the last."""
    return ends[0] + (ends[1] - ends[0]) * step / max(1, steps - 1)
