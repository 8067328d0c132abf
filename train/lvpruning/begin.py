"""Begins decision modules where the unpruned model's answers look, before any answer of a pruned one teaches them.

The gradient of an answer, through three hard masks, says little about any one token. The unpruned model knows more: what the
rows look at that predict an answer. A module is fitted to that alone, from rows that are computed once and kept, so
a step costs what the modules cost. Every point sees the unpruned model's rows; training proper follows with pruned ones.

Shapes: S prune points, m vision tokens of an image, n_t text rows of its prompt, B samples of n rows, C hidden width.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from train.lvpruning.base import FlatGradients, World
from train.lvpruning.batch import IGNORE, Batch, collate
from train.lvpruning.data import Loader
from train.lvpruning.masked_forward import embed, masked_forward, side_by_side
from train.lvpruning.matching import begin_head, by_the_question, weights_of, whole
from train.lvpruning.progress import Progress
from train.lvpruning.schedule import rate
from train.pruner import Pruner

FOCUS = 3.0  # looks count to this power: at the first, nearly all that is learned is about tokens that go anyhow (decision 0014)
HELD = 20  # one picture in so many is not fitted: it tells whether the fit holds for others
EVERY = 50  # steps between two lines of the curve
MATCHED = 256  # questions of a rank by which heads are chosen,
GROUP = 32  # so many at once


@dataclass(frozen=True)
class Seen:
    """What one image's modules would read, and what they are to say: 2 S (m + n_t) C bytes."""

    vision: Tensor  # [S, m, C] of 16 bits
    text: Tensor  # [S, n_t, C] of 16 bits
    wanted: Tensor  # [S, m] f32, sums to 1
    picture: int  # the same for all questions about a picture

    @property
    def held(self) -> bool:
        return self.picture % HELD == 0


@torch.no_grad()
def look(model: LlavaForConditionalGeneration, batch: Batch, after: tuple[int, ...]) -> list[Seen]:
    """One unpruned forward: what is seen of each of the batch's images."""
    rows: list[Tensor] = []
    layers = model.model.language_model.layers
    hooks = [layers[a - 1].register_forward_hook(lambda _module, _inputs, x: rows.append(x.flatten(0, 1))) for a in after]
    looks: list[Tensor] = []
    try:
        masked_forward(model, None, embed(model, batch), batch, look=looks.append)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(looks) == len(layers)
    answer = (batch.target != IGNORE)[:, :, None]
    # [B, n] for each point: the most that a head of a layer after it lets a row look that predicts an answer's token.
    most = [torch.stack([(x * answer).amax(1) for x in looks[a:]] or [torch.ones_like(looks[0][:, 0])]).amax(0) for a in after]

    def kept(which: Tensor) -> Tensor:
        found = torch.stack([x[which] for x in rows]).cpu()
        return found if found.element_size() == 2 else found.half()

    seen = []
    for vision, text, pixels in zip(batch.vision, batch.text, batch.pixels):
        looked = torch.stack([x.flatten()[vision] for x in most])
        looked = (looked / looked.amax(-1, keepdim=True).clamp(min=1e-30)) ** FOCUS + 1e-9
        picture = zlib.crc32(pixels.cpu().numpy().tobytes())
        seen.append(Seen(kept(vision), kept(text), (looked / looked.sum(-1, keepdim=True)).cpu(), picture))
    return seen


def together(images: list[Seen], point: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """At a point: vision [N, m, C], text [N, n_t, C], which of it is there [N, n_t], wanted [N, m]."""
    vision, wanted = (torch.stack(rows).to(device) for rows in zip(*((s.vision[point], s.wanted[point]) for s in images)))
    text, there = (t.to(device) for t in side_by_side([s.text[point] for s in images]))
    return vision, text, there, wanted


def pairs(images: list[Seen]) -> list[Seen]:
    """An even number: two questions about one picture side by side, as far as there are any, then others by twos."""
    found: list[Seen] = []
    alone: dict[int, Seen] = {}
    for seen in images:
        other = alone.pop(seen.picture, None)
        if other is None:
            alone[seen.picture] = seen
        else:
            found += [other, seen]
    found += alone.values()
    return found[: len(found) // 2 * 2]


@torch.no_grad()
def begin_heads(model: LlavaForConditionalGeneration, pruner: Pruner, images: list[Seen], world: World) -> None:
    """Gives each head of each point's block 0 a head of a later layer, as far as there are any: those that tell most by the question."""
    matched = pairs(images)[:MATCHED]
    groups = [matched[i : i + GROUP] for i in range(0, len(matched), GROUP)]
    for point, (after, module) in enumerate(zip(pruner.config.after_layers, pruner.points)):
        block = module.blocks[0]
        parts = [together(group, point, world.device) for group in groups]
        lengths = [torch.stack([rows.float().square().mean(-1).sqrt().median() for rows in (v, t[there])]) for v, t, there, _ in parts]
        number = world.sum(torch.tensor([float(len(lengths))], device=world.device)).item()
        if number == 0:
            raise SystemExit(f"--begin: {len(images)} samples of a rank are too few to tell heads apart; --begin 0 leaves this out")
        vision_length, text_length = (world.sum(torch.stack([torch.zeros(2, device=world.device), *lengths]).sum(0)) / number).tolist()
        parts = [(F.normalize(v.float(), dim=-1), F.normalize(t.float(), dim=-1), there, wanted) for v, t, there, wanted in parts]
        best: list[tuple[float, Tensor, Tensor]] = []
        for layer in model.model.language_model.layers[after:]:
            with whole(layer):
                query, key = weights_of(layer)
            told = torch.zeros(len(query), device=world.device)
            for part in parts:
                told += by_the_question(query, key, *part)
            best += zip(world.sum(told).tolist(), query, key)
            best = sorted(best, key=lambda head: head[0], reverse=True)[: block.heads]
            best = [(score, q.clone(), k.clone()) for score, q, k in best]  # not views that keep the whole layer
        for head, (_, query, key) in enumerate(best):
            begin_head(block, head, query, key, vision_length, text_length)
        for weight in (block.q_proj.weight, block.k_proj.weight):
            world.from_first(weight)  # two machines may find other, equally right, singular vectors


def divergence(pruner: Pruner, images: list[Seen], device: torch.device) -> Tensor:
    """KL of the scores' softmax over the tokens to what is wanted, summed over images and points."""
    total = torch.zeros((), device=device)
    for point, module in enumerate(pruner.points):
        vision, text, there, wanted = together(images, point, device)
        gamma = module(vision.float(), text.float(), there)
        total = total + F.kl_div((gamma[..., 0] - gamma[..., 1]).log_softmax(-1), wanted, reduction="sum")
    return total


def gather(model: LlavaForConditionalGeneration, loader: Loader, after: tuple[int, ...], world: World, args: argparse.Namespace,
           stopped: Callable[[], bool]) -> Iterator[Seen]:  # fmt: skip
    """This rank's share of --begin samples. Ranks go in step: a sharded model computes nothing alone."""
    steps = math.ceil(args.begin / args.batch)
    progress, size = Progress(steps, args.progress), 0
    for done, share in enumerate(loader.steps(0, steps, args.loaders), 1):
        for first in range(0, len(share), args.micro_batch):
            for seen in look(model, collate(share[first : first + args.micro_batch], loader.encoder.image_token).to(world.device), after):
                size += seen.vision.nbytes + seen.text.nbytes
                yield seen
        if stopped():
            return
        due = progress.due(done) if world.rank == 0 else None
        if due is not None:
            print(f"begin: looking at samples, {done * args.batch}/{steps * args.batch}  {due[1]}, "
                  f"{size / done * steps / 1e9:.1f} GB of each rank's memory in the end", file=sys.stderr)  # fmt: skip


class Curve:
    """begin.jsonl and a progress line now and then; of rank 0."""

    def __init__(self, folder: Path, steps: int, interval: float) -> None:
        self.path = folder / "begin.jsonl"
        self.path.write_text("")
        self.progress, self.began = Progress(steps, interval), time.monotonic()

    def point(self, step: int, kl: float, held: float | None) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, "kl": kl, "held": held, "seconds": time.monotonic() - self.began}) + "\n")
        due = self.progress.due(step)
        if due is not None:
            others = "" if held is None else f"  held out {held:.4f}"
            print(f"begin: step {step}/{self.progress.steps}  KL {kl:.4f}{others}  {due[1]}", file=sys.stderr)


def begin(model: LlavaForConditionalGeneration, pruner: Pruner, loader: Loader, gradients: FlatGradients, world: World,
          args: argparse.Namespace, stop: Callable[[], bool]) -> bool:  # fmt: skip
    """Fits `pruner` in place. False: a rank was asked to stop, and nothing is of use."""

    def stopped() -> bool:
        return world.sum(torch.tensor([float(stop())], device=world.device)).item() > 0

    images = list(gather(model, loader, pruner.config.after_layers, world, args, stopped))
    if stopped():
        return False
    numbers = torch.Generator().manual_seed(args.seed * world.size + world.rank)
    images = [images[i] for i in torch.randperm(len(images), generator=numbers).tolist()]  # they came sorted by length
    held, fitted = [s for s in images if s.held], [s for s in images if not s.held] or images
    if not args.init:
        begin_heads(model, pruner, fitted, world)
    each = args.batch // world.size
    optimizer = torch.optim.AdamW(pruner.parameters(), args.begin_lr, weight_decay=args.weight_decay)
    curve = Curve(args.output, args.begin_steps, args.progress) if world.rank == 0 else None
    since = torch.zeros(4, device=world.device)  # KL of the steps and of what is held out, and of how many images
    for step in range(args.begin_steps):
        if stopped():
            return False
        gradients.buffer.zero_()
        drawn = [fitted[i] for i in torch.randint(len(fitted), (each,), generator=numbers).tolist()]
        for first in range(0, each, args.micro_batch):
            loss = divergence(pruner, drawn[first : first + args.micro_batch], world.device) / len(pruner.points)
            (loss / args.batch).backward()
            since[0] += loss.detach()
        since[1] += each
        world.sum(gradients.buffer)
        if not math.isfinite(gradients.clip(args.clip)):
            raise SystemExit(f"begin: step {step + 1}: the gradient is not finite; try a lower --begin-lr than {args.begin_lr:g}")
        for group in optimizer.param_groups:
            group["lr"] = args.begin_lr * rate(step, args.begin_steps, args.warmup)
        optimizer.step()
        if step + 1 == args.begin_steps or (step + 1) % EVERY == 0:
            with torch.no_grad():
                for first in range(0, len(held), args.micro_batch):
                    since[2] += divergence(pruner, held[first : first + args.micro_batch], world.device) / len(pruner.points)
            since[3] += len(held)
            kl, drawn_number, kl_held, held_number = world.sum(since).tolist()
            since.zero_()
            if curve is not None:
                curve.point(step + 1, kl / drawn_number, kl_held / held_number if held_number else None)
    return True
