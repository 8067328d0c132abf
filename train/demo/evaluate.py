"""Caption F1, accuracy and NLL by family: dense, with the modules, with random keep.

    python evaluate.py [--model DIR] [--images 200] [--keep 0.5] [--seed 1000]

Reads the exported folder (bf16 weights, computed in float32) and removes rows for
real. Scenes are those of make_eval.py with the same seed.
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

import data
import pruning
import scenes
from export import load_model, load_pruner
from make_eval import eval_scene
from model import DemoLlava, Pruner
from score_captions import Score
from tokenizer import EOS_ID, Tokens
from train_pruner import single_batch

KINDS = ("none", "lvpruning", "random")


def drawn(seed: int, number: int, size: int = 336) -> tuple[list[list[scenes.Thing]], torch.Tensor]:
    batch, pictures = [], []
    for i in range(number):
        things, rng = eval_scene(seed, i)
        batch.append(things)
        pictures.append(scenes.load(scenes.render(things, rng, size)))
    return batch, torch.from_numpy(np.stack(pictures))


@torch.no_grad()
def project(model: DemoLlava, pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat([model.vision(p) for p in pixels.split(50)])


def captions(model: DemoLlava, pruner: Pruner, tokens: Tokens, batch: list[list[scenes.Thing]],
             vision: torch.Tensor, keep: list[float], kind: str,
             show: int = 0) -> Score:
    score, generator = Score(), torch.Generator().manual_seed(0)
    head = torch.tensor(tokens.head)
    tail = torch.tensor(tokens.tail(scenes.CAPTION_PROMPTS[0]))
    for start in range(0, len(batch), 50):
        ids = pruning.generate(model, pruner, vision[start:start + 50], head, tail, keep, kind,
                               EOS_ID, generator=generator)
        for things, answer in zip(batch[start:start + 50], ids):
            text = tokens.decode(answer)
            score.add(text, [t.name for t in things])
            if score.captions <= show:
                print(f"  {text}\n  = {scenes.caption(things)}")
    return score


def answers(model: DemoLlava, pruner: Pruner, tokens: Tokens, batch: list[list[scenes.Thing]],
            vision: torch.Tensor, keep: list[float], kind: str) -> dict[str, tuple[float, float, int]]:
    """family -> (share of answers exactly right under greedy choice, NLL per token, number)"""
    rng, generator = random.Random(1), torch.Generator().manual_seed(0)
    asked: list[tuple[int, scenes.Question]] = []
    for i, things in enumerate(batch):
        asked.append((i, scenes.caption_question(things, rng)))
        for family in scenes.FAMILIES:
            question = scenes.ask(things, rng, family)
            if question is not None:
                asked.append((i, question))
    asked.sort(key=lambda a: len(a[1].answer))
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for start in range(0, len(asked), 64):
        part = asked[start:start + 64]
        text, target, tail_length = single_batch(tokens, [q for _, q in part])
        rows = pruning.embed_rows(model, vision[[i for i, _ in part]], torch.tensor(tokens.head),
                                  text, tail_length)
        hidden, _ = pruning.removed_forward(model, pruner, rows, keep, kind, generator)
        logits = model.language_model.lm_head(hidden[:, -text.shape[1]:]).detach()
        nll = F.cross_entropy(logits.transpose(1, 2), target.clamp(min=0), reduction="none")
        learn = target >= 0
        right = ((logits.argmax(-1) == target) | ~learn).all(1)
        for j, (_, q) in enumerate(part):
            row = sums[q.family]
            row[0] += float(right[j])
            row[1] += 1
            row[2] += float(nll[j][learn[j]].sum())
            row[3] += float(learn[j].sum())
    return {f: (r[0] / r[1], r[2] / r[3], int(r[1])) for f, r in sorted(sums.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=data.MODEL_FOLDER)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--show", type=int, default=0, help="captions to print")
    parser.add_argument("--captions-only", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, pruner, tokens = load_model(args.model), load_pruner(args.model), Tokens(args.model)
    batch, pixels = drawn(args.seed, args.images)
    vision, keep = project(model, pixels), pruning.ladder(args.keep)
    print(f"{args.images} scenes, kept vision tokens {pruning.budgets(keep)} of 144")
    figures: dict[str, dict] = {}
    for kind in args.kinds:
        score = captions(model, pruner, tokens, batch, vision, keep, kind, args.show)
        print(f"{kind:10} captions  {score}", flush=True)
        figures[kind] = {"f1": score.f1, "perfect": score.perfect / max(1, score.captions)}
        if args.captions_only:
            continue
        for family, (share, nll, number) in answers(
            model, pruner, tokens, batch, vision, keep, kind
        ).items():
            print(f"{kind:10} {family:11} accuracy {share:.3f}  NLL {nll:.4f}  n {number}", flush=True)
            figures[kind][family] = {"accuracy": share, "nll": nll, "n": number}
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
