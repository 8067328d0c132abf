"""Begins decision modules where the unpruned model's answers look, before any answer of a pruned one teaches them.

The gradient of an answer, through three hard masks, says little about any one token. The unpruned model knows more: along which
paths of attention an answer's rows are reached. A module is fitted to that alone, from rows that are computed once and
kept, so a step costs what the modules cost. Every point sees the unpruned model's rows; training proper follows with pruned ones.

Shapes: S prune points, m vision tokens of an image, n_t text rows of its prompt, B samples of n rows, C hidden width.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlavaForConditionalGeneration

from train.lvpruning.base import FlatGradients, World, rate
from train.lvpruning.batch import IGNORE, Batch, collate
from train.lvpruning.data import Loader
from train.lvpruning.masked_forward import embed, masked_forward
from train.pruner import Pruner

FOCUS = 3.0  # paths count to this power: to their first, a thing nobody asks about weighs two thirds of the one that is asked for
HELD = 20  # one image in so many is not fitted, it tells how well the others' fit holds


@dataclass(frozen=True)
class Seen:
    """What one image's modules would read, and what they are to say: bytes 2 S (m + n_t) C."""

    vision: Tensor  # [S, m, C] f16
    text: Tensor  # [S, n_t, C] f16
    wanted: Tensor  # [S, m] f32, sums to 1


def strongest_paths(looks: list[Tensor], answer: Tensor, after: tuple[int, ...]) -> list[Tensor]:
    """looks: of each layer the most that a head lets row i look at row j [B, n, n]; answer [B, n] bool -> for each point, of
    row j [B, n]: the largest product of looks along a path through the layers after it, from a row that predicts an answer's token."""
    reached = answer.float()
    found = {}
    for layer in range(len(looks), -1, -1):
        if layer in after:
            found[layer] = reached
        if layer:
            reached = torch.maximum(reached, (reached[:, :, None] * looks[layer - 1]).amax(1))
    return [found[layer] for layer in after]


@torch.no_grad()
def look(model: LlavaForConditionalGeneration, batch: Batch, after: tuple[int, ...]) -> list[Seen]:
    """One unpruned forward: what is seen of each of the batch's images."""
    rows: list[Tensor] = []
    layers = [model.model.language_model.layers[a - 1] for a in after]
    hooks = [layer.register_forward_hook(lambda _module, _inputs, x: rows.append(x.flatten(0, 1))) for layer in layers]
    looks: list[Tensor] = []
    try:
        masked_forward(model, None, embed(model, batch), batch, looks=looks)
    finally:
        for hook in hooks:
            hook.remove()
    paths = strongest_paths(looks, batch.target != IGNORE, after)
    seen = []
    for vision, text in zip(batch.vision, batch.text):
        reached = torch.stack([p.flatten()[vision] for p in paths]) ** FOCUS + 1e-12  # after the last layer none is: all alike
        both = (torch.stack([x[which] for x in rows]).half().cpu() for which in (vision, text))
        seen.append(Seen(*both, (reached / reached.sum(-1, keepdim=True)).cpu()))
    return seen


def divergence(pruner: Pruner, images: list[Seen], device: torch.device) -> Tensor:
    """KL of the scores' softmax over the tokens to what is wanted, summed over images and points."""
    vision, wanted = (torch.stack(t).to(device) for t in zip(*((s.vision, s.wanted) for s in images)))
    text = pad_sequence([s.text.transpose(0, 1) for s in images], batch_first=True).transpose(1, 2).to(device)  # [N, S, n_t, C]
    there = pad_sequence([torch.ones(s.text.shape[1], dtype=torch.bool) for s in images], batch_first=True).to(device)
    total = torch.zeros((), device=device)
    for point, module in enumerate(pruner.points):
        gamma = module(vision[:, point].float(), text[:, point].float(), there)
        total = total + F.kl_div((gamma[..., 0] - gamma[..., 1]).log_softmax(-1), wanted[:, point], reduction="sum")
    return total


def gather(model: LlavaForConditionalGeneration, loader: Loader, after: tuple[int, ...], world: World, args: argparse.Namespace,
           stopped: Callable[[], bool]) -> Iterator[Seen]:  # fmt: skip
    """This rank's share of --begin samples. Ranks go in step: a sharded model computes nothing alone."""
    steps = math.ceil(args.begin / args.batch)
    began, shown = time.monotonic(), 0.0
    for done, share in enumerate(loader.steps(0, steps, args.loaders)):
        for first in range(0, len(share), args.micro_batch):
            yield from look(model, collate(share[first : first + args.micro_batch], loader.encoder.image_token).to(world.device), after)
        if stopped():
            return
        now = time.monotonic()
        if world.rank == 0 and now - shown > args.progress:
            shown = now
            left = int((now - began) / (done + 1) * (steps - done - 1))
            print(f"begin: looking at samples, {(done + 1) * args.batch}/{steps * args.batch}  {left // 60}:{left % 60:02} left", file=sys.stderr)


def begin(model: LlavaForConditionalGeneration, pruner: Pruner, loader: Loader, gradients: FlatGradients, world: World,
          args: argparse.Namespace, stop: Callable[[], bool]) -> bool:  # fmt: skip
    """Fits `pruner` in place; --output/begin.jsonl gets the curve. False: a rank was asked to stop, nothing is of use."""

    def stopped() -> bool:
        return world.sum(torch.tensor([float(stop())], device=world.device)).item() > 0

    images = list(gather(model, loader, pruner.config.after_layers, world, args, stopped))
    held, fitted = images[::HELD], [s for i, s in enumerate(images) if i % HELD] or images
    each = args.batch // world.size
    numbers = torch.Generator().manual_seed(args.seed * world.size + world.rank)
    optimizer = torch.optim.AdamW(pruner.parameters(), args.begin_lr, weight_decay=args.weight_decay)
    log = open(args.output / "begin.jsonl", "w", buffering=1) if world.rank == 0 else None
    points = len(pruner.points)
    began, shown, since = time.monotonic(), 0.0, []
    for step in range(args.begin_steps):
        if stopped():
            return False
        gradients.buffer.zero_()
        loss = divergence(pruner, [fitted[i] for i in torch.randint(len(fitted), (each,), generator=numbers).tolist()], world.device)
        (loss / (points * args.batch)).backward()
        world.sum(gradients.buffer)
        gradients.clip(args.clip)
        for group in optimizer.param_groups:
            group["lr"] = args.begin_lr * rate(step, args.begin_steps, args.warmup)
        optimizer.step()
        since.append(loss.detach())
        last = step + 1 == args.begin_steps
        if last or (step + 1) % 50 == 0:
            with torch.no_grad():
                parts = [divergence(pruner, held[i : i + each], world.device) for i in range(0, len(held), each)]
            sums = world.sum(torch.stack([torch.stack(since).sum() / (len(since) * each), torch.stack(parts).sum() / len(held)]))
            kl, kl_held = (sums / (points * world.size)).tolist()
            since = []
            now = time.monotonic()
            if log is not None:
                log.write(json.dumps({"step": step + 1, "kl": kl, "held": kl_held, "seconds": now - began}) + "\n")
                if last or now - shown > args.progress:
                    shown = now
                    left = int((now - began) / (step + 1) * (args.begin_steps - step - 1))
                    print(f"begin: step {step + 1}/{args.begin_steps}  KL {kl:.4f}  held out {kl_held:.4f}  {left // 60}:{left % 60:02} left",
                          file=sys.stderr)  # fmt: skip
    if log is not None:
        log.close()
    return True
