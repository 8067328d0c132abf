"""Trains LVPruning's decision modules (arXiv 2501.13652) for a Hugging Face LLaVA folder; the model itself stays as it is.

Loss = causal-weight * NLL of the answer tokens + ratio-weight * mean_s (rho_s - mean D_s)^2 [+ distill * KL to the unpruned
model's answer]. D_s are hard Gumbel-Softmax masks, applied as attention masks; the ratio term is taken for each image by itself.
With --select best the masks hold the best scores under the same noise, as many as inference will keep, and the ratio term has nothing
to do; --begin then fits the scores to the unpruned model's attention first. --recipe chooses the defaults (train/lvpruning/recipe.py).
An --output folder that holds a state.pt is gone on with.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import signal
import sys
import time
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from train.checkpoint import read_config
from train.lvpruning import state
from train.lvpruning.base import FlatGradients, World, load_base, weights_fingerprint
from train.lvpruning.batch import IGNORE, Batch, collate
from train.lvpruning.begin import begin
from train.lvpruning.data import Encoder, Loader, fingerprint, read_samples
from train.lvpruning.masked_forward import ATTENTION, embed, gumbel_keep, masked_forward, top_keep
from train.lvpruning.recipe import RECIPES, fill
from train.lvpruning.schedule import between, first_and_last, rate
from train.pruner import Pruner, PrunerConfig, keep_count

DRAINED = 75  # exit status: stopped by a signal, goes on with the same command
WEIGHTS = {"tokens": 1.0, "roots": 0.5, "alike": 0.0}  # an answer of n tokens counts as n to this power
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
EXAMPLES = """examples:
  python3 -m train.lvpruning.train --model models/demo --data photos.jsonl --output run --points 1,2,4 --batch 48 --dtype f32
  torchrun --nproc-per-node 8 -m train.lvpruning.train --model llava-1.5-7b-hf --data llava_v1_5_mix665k.json \\
      --images /data/llava --output run            # --recipe paper: as published
  lvpipe caption --model llava-1.5-7b-hf --pruner-weights run/lvpruning.safetensors --input photos --output out
"""


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="a Hugging Face LLaVA folder")
    add("--data", type=Path, nargs="+", required=True, help="LLaVA instruction lists (.json), manifests (.jsonl)")
    add("--images", type=Path, help="where the images of .json lists are (default: beside the list)")
    add("--turns", choices=["first", "each"], default="first", help="questions of a conversation that become samples (first)")
    add("--system", help="text before every prompt, as lvpipe's --system will be: modules read it too")
    add("--output", type=Path, required=True, help="state.pt, log.jsonl and lvpruning.safetensors go here")
    add("--recipe", choices=RECIPES, default="ours", help="defaults of what is marked *: what lost least, or the paper's (ours)")
    add("--points", default="1,8,16", help="decoder layers after which to prune (1,8,16)")
    add("--inner-width", type=int, help="* of the modules (a quarter of the model's width; paper: all of it)")
    add("--heads", type=int, help="* of the modules (half as wide as the model's; paper: 8)")
    add("--blocks", type=int, choices=(1, 2), default=2, help="cross-attention blocks of a module (2)")
    add("--share-projections", action="store_true", help="one K and one V projection of the text for both blocks of a module")
    add("--init", type=Path, help="lvpruning.safetensors to begin with; it says points, width and heads, and all of it is trained")
    add("--begin", type=int, metavar="SAMPLES",
        help="* first fit the modules to where the unpruned model's answers look in so many samples, which takes host memory (README.md); "
             "with --select best (12000, all if there are fewer; paper: 0)")  # fmt: skip
    add("--begin-steps", type=int, default=3000, help="of that fit, --batch images each (3000)")
    add("--begin-lr", type=float, help="of that fit (0.04 / inner width: 1e-3 at 40, where it was tried)")
    add("--rho", type=float, default=0.5, help="share kept at the first point, 0.2 less at each later one (0.5)")
    add("--ratios", metavar="LOW,HIGH", type=first_and_last, help="* draw rho anew for each step (rho - 0.08,rho + 0.03; paper: rho)")
    add("--causal-weight", type=float, default=1.0, help="(1)")
    add("--ratio-weight", type=float, help="* (0 with --select best, else 2)")
    add("--distill", type=float, help="* weight of the KL divergence; alone with --causal-weight 0 (1; paper: 0)")
    add("--select", choices=("alone", "best"), help="* each token by its own Gumbel-Softmax, or exactly rho_s of them: the best (best; paper: alone)")
    add("--weigh", choices=WEIGHTS, help="* an answer by its tokens, their root, or each alike (roots; paper: tokens)")
    add("--noise", metavar="FIRST[,LAST]", type=first_and_last,
        help="* share of the Gumbel noise in the first step and, changing evenly, in the last (0.3,0; paper: 1)")  # fmt: skip
    add("--temperature", type=float, default=1.0, help="of the Gumbel-Softmax (1)")
    add("--lr", type=float, help="* (0.02 / inner width; paper: 2e-6)")
    add("--warmup", type=float, help="* share of the steps (0.1; paper: 0.03); a cosine to 0 follows")
    add("--batch", type=int, default=64, help="samples of a step, over all ranks (64)")
    add("--micro-batch", type=int, default=4, help="samples that a rank computes at once (4)")
    add("--weight-decay", type=float, default=0.0, help="(0)")
    add("--clip", type=float, default=1.0, help="largest norm of the gradient (1)")
    add("--epochs", type=float, default=1.0, help="(1)")
    add("--steps", type=int, help="instead of --epochs")
    add("--max-rows", type=int, default=2048, help="longer answers are cut, longer prompts left out (2048)")
    add("--seed", type=int, default=0, help="(0)")
    add("--dtype", choices=DTYPES, default="bf16", help="of the frozen model; modules are f32 (bf16)")
    add("--save-dtype", choices=DTYPES, default="f32", help="of lvpruning.safetensors (f32)")
    add("--attention", choices=ATTENTION, default="sdpa", help="sdpa: fused forward, backward by the formula (sdpa)")
    add("--no-recompute", action="store_true", help="keep all activations: faster, more memory")
    add("--fsdp", action="store_true", help="shard the frozen decoder layers over the ranks")
    add("--save-every", type=int, default=200, help="steps between two states (200)")
    add("--progress", type=float, default=10.0, help="seconds between two lines (10)")
    add("--loaders", type=int, default=4, help="threads that read images (4)")
    return parser


def ratios_of(args: argparse.Namespace, step: int, points: int) -> list[float]:
    """rho_s of a step; the same on every rank."""
    rho = args.rho
    if args.ratios:
        rho = np.random.default_rng([args.seed, 2, step]).uniform(*args.ratios)
    return [max(0.0, rho - 0.2 * s) for s in range(points)]


def losses(model: LlavaForConditionalGeneration, pruner: Pruner, batch: Batch, ratios: list[float], noise: float,
           args: argparse.Namespace) -> Tensor:  # fmt: skip
    """Sums over the micro-batch [3 + S]: NLL and KL over answer tokens, weighed, ratio term and each point's mean(D_s) over images."""
    x = embed(model, batch)
    asked = batch.target != IGNORE

    def decide(point: int, gamma: Tensor, alive: Tensor) -> Tensor:
        noisy = gamma + noise * batch.noise[:, point]
        if args.select == "alone":
            return gumbel_keep(noisy, args.temperature)
        m = alive.shape[1]
        return top_keep(noisy, alive, keep_count(Decimal(ratios[point]), m, m), args.temperature)

    hidden, masks = masked_forward(model, pruner, x, batch, decide, recompute=not args.no_recompute)
    logits = model.lm_head(hidden[asked]).float()
    weight = asked.sum(1, keepdim=True).expand_as(asked)[asked] ** (WEIGHTS[args.weigh] - 1)  # of each token
    nll = (F.cross_entropy(logits, batch.target[asked], reduction="none") * weight).sum()
    kl = torch.zeros_like(nll)
    if args.distill:
        with torch.no_grad():
            dense = model.lm_head(masked_forward(model, None, x, batch)[0][asked]).float()
        kl = (F.kl_div(logits.log_softmax(-1), dense.log_softmax(-1), reduction="none", log_target=True).sum(-1) * weight).sum()
    shares = torch.stack([d.mean(1) for d in masks])  # [S, N]
    ratio = (shares - torch.tensor(ratios, device=x.device)[:, None]).square().mean(0).sum()
    return torch.cat([torch.stack([nll, kl, ratio]), shares.detach().sum(1)])


class Trainer:
    def __init__(self, args: argparse.Namespace, world: World) -> None:
        self.args, self.world = args, world
        if args.batch % world.size:
            raise SystemExit(f"--batch {args.batch} is not divisible by {world.size} ranks")
        for path in (args.model / "config.json", *args.data):
            if not path.is_file():
                raise SystemExit(f"{path}: no such file")
        samples, skipped = read_samples(args.data, args.images, args.turns)
        if world.rank == 0:
            left_out = ", ".join(f"{n} {why}" for why, n in sorted(skipped.items())) or "none"
            print(f"{len(samples)} samples; left out: {left_out}", file=sys.stderr)
        if not samples:
            raise SystemExit("no samples: check --data and --images")
        text = read_config(args.model).text_config
        given = self.modules_of(args.init, text.hidden_size, text.num_hidden_layers) if args.init else None
        if given is not None:
            args.inner_width, args.heads = given.config.inner_width, given.config.heads
        for option, value in (("--inner-width", args.inner_width), ("--heads", args.heads)):
            if value is not None and value < 1:
                raise SystemExit(f"{option} {value}: at least 1")
        fill(args, text.hidden_size, getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads, len(samples))
        if args.begin and args.select != "best":
            raise SystemExit("--begin orders the tokens of an image and says nothing of how many stay: it needs --select best")
        self.steps: int = args.steps or max(1, int(args.epochs * len(samples)) // args.batch)
        self.pruner = (given or self.new_pruner(text.hidden_size, text.num_hidden_layers)).to(world.device)
        self.model = load_base(args.model, DTYPES[args.dtype], args.attention, world, args.fsdp)
        points = len(self.pruner.config.after_layers)
        self.encoder = Encoder(args.model, args.max_rows, args.system)
        self.loader = Loader(samples, self.encoder, points, args.seed, args.batch, world.rank, world.size)
        self.gradients = FlatGradients(self.pruner, world.device)
        self.optimizer = torch.optim.AdamW(self.pruner.parameters(), args.lr, weight_decay=args.weight_decay)
        names = ("rho", "ratios", "causal_weight", "ratio_weight", "distill", "noise", "select", "weigh", "temperature", "lr", "warmup", "batch",
                 "weight_decay", "clip", "max_rows", "system", "seed", "dtype")  # fmt: skip
        self.recipe: dict[str, Any] = {name: getattr(args, name) for name in names}
        self.recipe["begin"] = [args.begin, args.begin_steps, args.begin_lr] if args.begin else None
        self.recipe |= {"steps": self.steps, "data": fingerprint(samples), "model": weights_fingerprint(args.model),
                        "init": hashlib.sha256(args.init.read_bytes()).hexdigest()[:16] if args.init else None, **asdict(self.pruner.config)}  # fmt: skip
        self.asked_to_stop = False  # by a signal to this rank
        self.stop = False  # at the end of this step, as all ranks do

    def new_pruner(self, hidden: int, layers: int) -> Pruner:
        """The same on every rank."""
        args = self.args
        torch.manual_seed(args.seed)
        try:
            after = tuple(map(int, args.points.split(",")))
            pruner = Pruner(PrunerConfig(after, hidden, args.inner_width, args.heads, args.blocks, args.share_projections))
        except ValueError as error:
            raise SystemExit(f"--points {args.points}, --inner-width {args.inner_width}, --heads {args.heads}: {error}") from error
        if after[-1] > layers:
            raise SystemExit(f"--points {args.points}: the model has {layers} decoder layers")
        return pruner

    @staticmethod
    def modules_of(path: Path, hidden: int, layers: int) -> Pruner:
        """Of --init."""
        try:
            pruner = Pruner.load(path).train()
        except (ValueError, KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
            raise SystemExit(f"{path}: no pruning modules: {error}") from error
        config = pruner.config
        if config.hidden != hidden or config.after_layers[-1] > layers:
            raise SystemExit(f"{path}: modules for a model of width {config.hidden} with at least {config.after_layers[-1]} layers, not {hidden} and {layers}")
        return pruner

    def save(self, step: int) -> None:
        if self.world.rank == 0:
            state.save(self.args.output, step, self.recipe, self.pruner, self.optimizer, DTYPES[self.args.save_dtype])

    def step(self, step: int, share: list[Any]) -> dict[str, float]:
        """One update from this rank's share of the batch. What is summed over ranks is divided by the whole batch's
        numbers, so neither micro-batches nor ranks change the loss."""
        args, device = self.args, self.world.device
        began = time.monotonic()
        power = WEIGHTS[args.weigh]
        counts = torch.tensor([[e.n_answer**power, len(e.pixels), e.replaced, 0] for e in share], dtype=torch.float64).sum(0)
        counts[3] = float(self.asked_to_stop)
        answers, images, replaced, stopping = self.world.sum(counts.to(device)).tolist()
        ratios = ratios_of(args, step, len(self.pruner.points))
        noise = between(args.noise, step, self.steps)
        self.gradients.buffer.zero_()
        sums = torch.zeros(3 + len(ratios), device=device)
        for first in range(0, len(share), args.micro_batch):
            batch = collate(share[first : first + args.micro_batch], self.encoder.image_token).to(device)
            part = losses(self.model, self.pruner, batch, ratios, noise, args)
            answer = (args.causal_weight * part[0] + args.distill * part[1]) / answers
            (answer + args.ratio_weight * part[2] / images).backward()
            sums += part.detach()
        self.world.sum(self.gradients.buffer)
        norm = self.gradients.clip(args.clip)
        if not math.isfinite(norm):
            raise SystemExit(f"step {step + 1}: the gradient is not finite; the state before it is kept")
        for group in self.optimizer.param_groups:
            group["lr"] = args.lr * rate(step, self.steps, args.warmup)
        self.optimizer.step()
        nll, kl, ratio, *kept = self.world.sum(sums).tolist()
        self.stop = stopping > 0
        loss = (args.causal_weight * nll + args.distill * kl) / answers + args.ratio_weight * ratio / images
        values = {"step": step + 1, "loss": loss, "nll": nll / answers, "kl": kl / answers, "ratio": ratio / images}
        values |= {f"keep_{s}": value / images for s, value in enumerate(kept)}
        values |= {"rho": ratios[0], "lr": self.optimizer.param_groups[0]["lr"], "grad_norm": norm, "replaced": replaced}
        return values | {"seconds": time.monotonic() - began}

    def run(self) -> int:
        """Exit status."""
        self.args.output.mkdir(parents=True, exist_ok=True)
        done = state.load(self.args.output, self.recipe, self.pruner, self.optimizer)
        first = torch.tensor([-1 if done is None else done], device=self.world.device)
        self.world.from_first(first)
        if first.item() != (-1 if done is None else done):
            raise SystemExit(f"{self.args.output}/state.pt on rank {self.world.rank} is not rank 0's: all nodes must see one --output folder")
        if done is None:
            done = 0
            if self.args.begin:
                if not begin(self.model, self.pruner, self.loader, self.gradients, self.world, self.args, lambda: self.asked_to_stop):
                    return DRAINED
                self.save(done)
        log = state.Log(self.args.output, done, self.steps, self.args.progress) if self.world.rank == 0 else None
        for share in self.loader.steps(done, self.steps, self.args.loaders):
            values = self.step(done, share)
            done += 1
            if log is not None:
                log.step(values)
            if self.stop or done == self.steps or done % self.args.save_every == 0:
                self.save(done)
            if self.stop:
                break
        if log is not None:
            log.close()
        if self.world.rank == 0:
            said = "done" if done == self.steps else "stopped: the same command goes on"
            print(f"{done} of {self.steps} steps {said}; modules so far: {self.args.output}/lvpruning.safetensors", file=sys.stderr)
        # A rank that ends with a status other than 0 has the others killed: all wait for the one that writes.
        self.world.sum(torch.zeros(1, device=self.world.device)).item()
        return DRAINED if self.stop and done < self.steps else 0

    def ask_to_stop(self, *_: Any) -> None:
        self.asked_to_stop = True


def main(argv: list[str] | None = None) -> int:
    args = options().parse_args(argv)
    torch.set_float32_matmul_precision("high")  # modules in TF32 where there is such a thing
    world = World.join()
    trainer = Trainer(args, world)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, trainer.ask_to_stop)
    status = trainer.run()
    world.leave()
    return status


if __name__ == "__main__":
    sys.exit(main())
