"""Train the demo model's dense weights, in stages, on one or two CPU cores.

    python3 -m train.demo.train vision    --minutes 19                A: tower on patch labels
    python3 -m train.demo.train language  --minutes 19                B: LLaMA on the labels themselves (beside A)
    python3 -m train.demo.train projector --steps 1500                C: projector imitates B's label embedding
    python3 -m train.demo.train joint     --minutes 90 --workers 2    D: everything on pixels

Each stage reads its predecessors' state from --state and resumes its own. The rate follows the time spent (--minutes) or, for the same
result anywhere, --steps. build.sh runs all of them, and trains the decision modules on the result.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from train.demo import data
from train.demo.export import load_model
from train.demo.model import VISION_TOKENS, DemoLlava, Oracle, PatchHeads, gather_rows
from train.demo.optim import Clock, Optimizers
from train.demo.tokenizer import Tokens
from train.pruner import keep_count, keep_ratios
from train.tasks import scenes


class Run:
    """A stage: its modules, optimizer, clock and state file."""

    def __init__(self, args: argparse.Namespace, name: str, saved: dict[str, nn.Module],
                 rates: list[tuple[nn.Module, float]]) -> None:
        self.name, self.saved, self.args = name, saved, args
        self.opt = Optimizers(rates)
        self.clock = Clock(args.minutes, args.steps)
        self.path = Path(args.state) / f"{name}.pt"
        self.sums: dict[str, list[float]] = {}
        self.last_save = self.last_print = time.monotonic()
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            for key, module in saved.items():
                module.load_state_dict(state["modules"][key])
            self.opt.load_state_dict(state["opt"])
            self.clock.done_steps, self.clock.spent = state["steps"], state["spent"]
            print(f"{name}: resumed at step {self.clock.done_steps}", flush=True)
        # A resumed run draws other scenes than those it has seen.
        seed = args.seed * 1_000_003 + self.clock.done_steps * 17 + args.rank * 7919
        self.rng = random.Random(f"{name}-{seed}")
        self.generator = torch.Generator().manual_seed(seed)

    def precision(self) -> torch.autocast:
        """Around the forward pass: matrix products in bf16 where --bf16 asks for it."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16)

    def step(self, loss: Tensor, **shown: float) -> None:
        loss.backward()
        if self.args.workers > 1:
            share_gradients(self.opt.params, self.args.workers)
        with self.precision():
            norm = self.opt.step(self.clock.factor(self.args.warm))
        self.clock.tick()
        for key, value in {"loss": loss.item(), "norm": norm, **shown}.items():
            self.sums.setdefault(key, []).append(float(value))
        now = time.monotonic()
        if now - self.last_print > 20 and self.args.rank == 0:
            means = " ".join(f"{k} {sum(v) / len(v):.3f}" for k, v in self.sums.items() if v)
            print(f"{self.name} {self.clock.progress:6.1%} step {self.clock.done_steps} "
                  f"{self.clock.spent / self.clock.done_steps:.2f} s/step {means}", flush=True)
            self.sums, self.last_print = {}, now
        if now - self.last_save > 120:
            self.save()

    def save(self) -> None:
        self.last_save = time.monotonic()
        if self.args.rank:
            return
        torch.save({"modules": {k: m.state_dict() for k, m in self.saved.items()},
                    "opt": self.opt.state_dict(), "steps": self.clock.done_steps,
                    "spent": self.clock.spent}, f"{self.path}.tmp")
        os.replace(f"{self.path}.tmp", self.path)

    def drawn(self, name: str) -> float:
        """From 0 to 1, in this step the same of all workers, so that none waits."""
        return random.Random(f"{name}-{self.args.seed}-{self.clock.done_steps}").random()

    def shown_rows(self, rank: Tensor) -> Tensor | None:
        """The best half of the patches in a share --short of the steps; else None for all."""
        return data.best_rows(rank, VISION_TOKENS // 2) if self.drawn("short") < self.args.short else None

    def left_counts(self) -> tuple[int, ...]:
        """Vision rows after each prune point in a share --fewer of the steps: as many as LVPruning keeps, at 0.46 to 0.6; else ()."""
        if self.drawn("fewer") >= self.args.fewer:
            return ()
        ratios = keep_ratios(str(0.46 + 0.14 * self.drawn("keep")), len(data.PRUNE_AFTER))
        return tuple(keep_count(ratio, VISION_TOKENS, VISION_TOKENS) for ratio in ratios)

    @property
    def going(self) -> bool:
        if self.args.workers > 1:  # by one clock: the same rate for all, and the same last step
            spent = torch.tensor([self.clock.spent], dtype=torch.float64)
            dist.broadcast(spent, 0)
            self.clock.spent = spent.item()
        return self.clock.progress < 1.0


def share_gradients(params: list[nn.Parameter], workers: int) -> None:
    used = [p for p in params if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in used])
    dist.all_reduce(flat)
    flat /= workers
    for p, g in zip(used, flat.split([p.numel() for p in used])):
        p.grad = g.view_as(p)


def load_state(args: argparse.Namespace, stage: str, key: str, module: nn.Module) -> None:
    state = torch.load(Path(args.state) / f"{stage}.pt", weights_only=True)
    module.load_state_dict(state["modules"][key])


def answer_loss(model: DemoLlava, packed: data.Packed, vision: Tensor, vision_positions: Tensor, rank: Tensor | None = None,
                counts: tuple[int, ...] = ()) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """Weighted mean NLL of the answers, and each family's, per token; rank and counts as for data.text_rows."""
    rows = data.text_rows(model, packed, vision, vision_positions, rank, counts)
    learn = packed.target >= 0
    logits = model.language_model.lm_head(rows[learn]).float()
    nll = F.cross_entropy(logits, packed.target[learn], reduction="none")
    weight = packed.weight[learn]
    family, shown = packed.family[learn], nll.detach()
    by_family = {data.FAMILY_NAMES[f]: shown[family == f].mean().item() for f in family.unique().tolist()}
    return (nll * weight).sum() / weight.sum(), by_family


def most_things(run: Run) -> int:
    """In this step's scenes. Where there are one or two, matching a word with a thing is learned in minutes; with six never."""
    simple = run.clock.progress < run.args.simple and run.rng.random() < 0.8
    return 2 if simple else 6


def name_labels(oracle: Oracle, embed: nn.Embedding, tokens: Tokens) -> None:
    """Classes and colours begin as the words for them: a question then finds what it names, in B and, through C, in D."""
    with torch.no_grad():
        for label, words in (("class", scenes.CLASS_NAMES), ("colour", scenes.COLOUR_NAMES)):
            table = oracle.tables[data.LABEL_NAMES.index(label)]
            for i, word in enumerate(words):
                table.weight[i + 1] = embed.weight[tokens.answer(word)[0]]


def stage_vision(args: argparse.Namespace) -> None:
    model, heads = DemoLlava(), PatchHeads()
    tower = model.vision_tower
    run = Run(args, "vision", {"tower": tower, "heads": heads},
              [(tower, args.rate or 2e-3), (heads, args.rate or 2e-3)])
    while run.going:
        batch = data.draw_scenes(run.rng, args.batch)
        want = data.labels(batch)
        rows = run.shown_rows(data.rank_rows(want, run.generator))
        pixels = data.pixels(batch, run.rng)
        with run.precision():
            logits = heads(tower.vision_model(pixels, rows))
        want = (want if rows is None else gather_rows(want, rows)).flatten(0, 1)
        # Background patches outnumber the others by far: they count a fifth.
        weight = torch.where(want[:, 0] > 0, 1.0, 0.2)
        loss, right = torch.zeros(()), {}
        for i, name in enumerate(scenes.LABELS):
            flat = logits[i].flatten(0, 1).float()
            # Letters are rare: where there is one, it counts eightfold.
            letters = name == "letter"
            each = torch.where(want[:, i] > 0, 8.0, weight) if letters else weight
            loss = loss + (F.cross_entropy(flat, want[:, i], reduction="none") * each).sum() / each.sum()
            seen = want[:, i if letters else 0] > 0
            right[name] = (flat[seen].argmax(1) == want[seen, i]).float().mean().item()
        run.step(loss, **right)
    run.save()


def stage_language(args: argparse.Namespace) -> None:
    model, oracle, tokens = DemoLlava(), Oracle(), Tokens(data.MODEL_FOLDER)
    llm = model.language_model
    name_labels(oracle, llm.model.embed_tokens, tokens)
    run = Run(args, "language", {"llm": llm, "oracle": oracle},
              [(llm, args.rate or 3e-3), (oracle, args.rate or 3e-3)])
    while run.going:
        batch = data.draw_scenes(run.rng, args.batch, most_things(run))
        packed = data.pack(tokens, data.draw_blocks(run.rng, batch, args.questions))
        labels = data.labels(batch)
        rows = data.best_rows(data.rank_rows(labels, run.generator), 48)
        with run.precision():
            vision = gather_rows(oracle(labels), rows)
            loss, by_family = answer_loss(model, packed, vision, rows)
        run.step(loss, **by_family)
    run.save()


def stage_projector(args: argparse.Namespace) -> None:
    """Features are computed once and regressed on many times: scenes are the cost here."""
    model, oracle = DemoLlava(), Oracle()
    load_state(args, "vision", "tower", model.vision_tower)
    load_state(args, "language", "oracle", oracle)
    projector = model.multi_modal_projector
    run = Run(args, "projector", {"projector": projector}, [(projector, args.rate or 2e-3)])
    found = []
    with torch.no_grad():
        for _ in range(args.scenes // args.batch):
            batch = data.draw_scenes(run.rng, args.batch)
            labels = data.labels(batch)
            features = model.vision_tower.vision_model(data.pixels(batch, run.rng))
            shown = (labels[..., 0] > 0) | (torch.rand(labels.shape[:2]) < 0.15)
            found.append((features[shown], oracle(labels)[shown]))
        features, want = torch.cat([f for f, _ in found]), torch.cat([w for _, w in found])
        if not run.clock.done_steps:  # the first layer starts on standardised features
            first = projector.linear_1
            first.weight /= features.std(0)
            first.bias.copy_(-first.weight @ features.mean(0))
    while run.going:
        part = torch.randint(len(features), (1024,), generator=run.generator)
        run.step((projector(features[part]) - want[part]).square().mean())
    run.save()


def stage_joint(args: argparse.Namespace) -> None:
    model, tokens = DemoLlava(), Tokens(data.MODEL_FOLDER)
    resumes = (Path(args.state) / "joint.pt").exists()
    if args.begin and resumes:
        sys.exit(f"--begin: {args.state}/joint.pt is there; leave --begin out to go on from it, or give another --state")
    if args.begin:
        model.load_state_dict(load_model(args.begin).state_dict())
    elif not resumes:
        load_state(args, "vision", "tower", model.vision_tower)
        load_state(args, "language", "llm", model.language_model)
        load_state(args, "projector", "projector", model.multi_modal_projector)
    # The tower is trained already: a full rate would destroy it.
    rate = args.rate or 2e-3
    run = Run(args, "joint", {"model": model},
              [(model.vision_tower, rate * 0.1), (model.multi_modal_projector, rate * 0.5),
               (model.language_model, rate)])
    while run.going:
        batch = data.draw_scenes(run.rng, args.batch, most_things(run))
        packed = data.pack(tokens, data.draw_blocks(run.rng, batch, args.questions))
        rank = data.rank_rows(data.labels(batch), run.generator)
        rows = run.shown_rows(rank)
        pixels = data.pixels(batch, run.rng)
        positions = torch.arange(VISION_TOKENS).expand(len(batch), -1) if rows is None else rows
        with run.precision():
            vision = model.vision(pixels, rows)
            loss, by_family = answer_loss(model, packed, vision, positions, rank.gather(1, positions), run.left_counts())
        run.step(loss, **by_family)
    run.save()


STAGES = {"vision": stage_vision, "language": stage_language,
          "projector": stage_projector, "joint": stage_joint}


def work(rank: int, args: argparse.Namespace) -> None:
    args.rank = rank
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    if args.workers > 1:
        store = f"file://{Path(args.state).resolve()}/rendezvous-{args.stage}-{args.token}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=args.workers)
    STAGES[args.stage](args)
    if args.workers > 1:
        dist.destroy_process_group()  # else its threads may outlive it, which aborts the process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--state", default="/var/tmp/lvp-demo", help="folder for resuming")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=32, help="scenes per worker and step")
    parser.add_argument("--questions", type=int, default=3, help="beside the caption")
    parser.add_argument("--simple", type=float, default=0.4,
                        help="language, joint: share of the time in which four steps of five show one or two things")
    parser.add_argument("--scenes", type=int, default=1024, help="projector: scenes in memory")
    parser.add_argument("--short", type=float, default=0.7, help="share of steps that show 72 patches")
    parser.add_argument("--fewer", type=float, default=0.6, help="joint: share of steps in which few of them reach the last layers")
    parser.add_argument("--begin", type=Path, help="joint: a folder whose weights to begin with, instead of A to C")
    parser.add_argument("--rate", type=float, help="Muon's peak rate")
    parser.add_argument("--warm", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--bf16", action="store_true", help="products in bf16: a sixth to a fifth faster with AMX or on AMD with avx512_bf16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    Path(args.state).mkdir(parents=True, exist_ok=True)
    args.token = time.time_ns()
    if args.workers > 1:
        # A terminated parent takes its workers along.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        torch.multiprocessing.spawn(work, (args,), nprocs=args.workers, daemon=True)
    else:
        work(0, args)


if __name__ == "__main__":
    main()
