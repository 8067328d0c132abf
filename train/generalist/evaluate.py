"""Accuracy and NLL by family: dense, with the modules, with random keep; a quick look while training goes on.

    python -m train.generalist.evaluate [--model DIR | --state FOLDER] [--images 200] [--keep 0.5] [--kinds none lvpruning random]

Answers count as right when greedy decoding would give them whole. Scenes are of the test split; rows are really removed.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from train.generalist import data, pruning
from train.generalist.export import load_model, load_pruner
from train.generalist.model import DemoLlava, Pruner
from train.generalist.tokenizer import Tokens
from train.generalist.train_pruner import single_batch
from train.tasks import families, scenes

KINDS = ("none", "lvpruning", "random")


def drawn(seed: int, number: int, size: int = 224) -> tuple[list[scenes.Scene], torch.Tensor]:
    batch, pictures = [], []
    for i in range(number):
        rng = random.Random(f"look-{seed}-{i}")
        scene = scenes.make_scene(rng, test=True)
        batch.append(scene)
        pictures.append(scenes.load(scenes.render(scene, rng, size)))
    return batch, torch.from_numpy(np.stack(pictures))


@torch.no_grad()
def project(model: DemoLlava, pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat([model.vision(p) for p in pixels.split(50)])


@torch.no_grad()
def answers(model: DemoLlava, pruner: Pruner | None, tokens: Tokens, batch: list[scenes.Scene], vision: torch.Tensor,
            keep: list[float], kind: str) -> dict[str, tuple[float, float, int]]:
    """family -> (share of answers right, NLL per token, number); sub-tasks as "family/kind" too."""
    rng, generator = random.Random(1), torch.Generator().manual_seed(0)
    asked = [(i, q) for i, s in enumerate(batch) for f in families.FAMILIES for q in families.ask(s, rng, f)]
    asked.sort(key=lambda a: len(a[1].answer) + len(a[1].text))
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for start in range(0, len(asked), 64):
        part = asked[start:start + 64]
        text, target, tail_length = single_batch(tokens, [q for _, q in part])
        rows = pruning.embed_rows(model, vision[[i for i, _ in part]], torch.tensor(tokens.head), text, tail_length)
        hidden, _ = pruning.removed_forward(model, pruner, rows, keep, kind, generator)
        logits = model.language_model.lm_head(hidden[:, -text.shape[1]:])
        nll = F.cross_entropy(logits.transpose(1, 2), target.clamp(min=0), reduction="none")
        learn = target >= 0
        right = ((logits.argmax(-1) == target) | ~learn).all(1)
        for j, (_, q) in enumerate(part):
            for name in (q.family, f"{q.family}/{q.kind}"):
                row = sums[name]
                row[0] += float(right[j])
                row[1] += 1
                row[2] += float(nll[j][learn[j]].sum())
                row[3] += float(learn[j].sum())
    return {f: (r[0] / r[1], r[2] / r[3], int(r[1])) for f, r in sorted(sums.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=data.MODEL_FOLDER)
    parser.add_argument("--state", type=Path, help="read the trainer's state instead of the exported weights")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--kindwise", action="store_true", help="sub-tasks too")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokens = Tokens(args.model)
    if args.state:
        model, pruner = DemoLlava().eval(), Pruner().eval()
        model.load_state_dict(torch.load(args.state / "joint.pt", weights_only=False)["modules"]["model"])
        if (args.state / "pruner.pt").exists():
            pruner.load_state_dict(torch.load(args.state / "pruner.pt", weights_only=False)["modules"]["pruner"])
    else:
        model, pruner = load_model(args.model), load_pruner(args.model)
    batch, pixels = drawn(args.seed, args.images)
    vision, keep = project(model, pixels), pruning.ladder(args.keep)
    print(f"{args.images} scenes, kept vision tokens {pruning.budgets(keep)} of 144")
    figures: dict[str, dict] = {}
    for kind in args.kinds:
        found = answers(model, pruner, tokens, batch, vision, keep, kind)
        for family, (share, nll, number) in found.items():
            if args.kindwise or "/" not in family:
                print(f"{kind:10} {family:28} accuracy {share:.3f}  NLL {nll:.4f}  n {number}", flush=True)
            figures.setdefault(kind, {})[family] = {"accuracy": share, "nll": nll, "n": number}
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
