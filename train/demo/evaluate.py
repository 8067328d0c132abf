"""Accuracy and NLL by family of the unpruned model; a quick look while training goes on.

    python3 -m train.demo.evaluate [--model DIR | --state FOLDER] [--images 200] [--kindwise]

Answers count as right when greedy decoding would give them whole. Scenes are drawn as training's are. `lvpipe eval` has the benchmark's
own metrics, on the test split, and pruning.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from train.demo import data
from train.demo.export import load_model
from train.demo.model import VISION_TOKENS, DemoLlava
from train.demo.tokenizer import Tokens
from train.tasks import families, scenes


def drawn(seed: int, number: int, size: int = 224) -> tuple[list[scenes.Scene], torch.Tensor]:
    batch, pictures = [], []
    for i in range(number):
        rng = random.Random(f"look-{seed}-{i}")
        scene = scenes.make_scene(rng)
        batch.append(scene)
        pictures.append(scenes.load(scenes.render(scene, rng, size)))
    return batch, torch.from_numpy(np.stack(pictures))


@torch.no_grad()
def answers(model: DemoLlava, tokens: Tokens, batch: list[scenes.Scene], pixels: torch.Tensor) -> dict[str, tuple[float, float, int]]:
    """family -> (share of answers right, NLL per token, number); sub-tasks as "family/kind" too."""
    vision = torch.cat([model.vision(p) for p in pixels.split(50)])
    rng = random.Random(1)
    asked = [(i, q) for i, s in enumerate(batch) for f in families.FAMILIES for q in families.ask(s, rng, f)]
    asked.sort(key=lambda a: len(a[1].answer) + len(a[1].text))
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for start in range(0, len(asked), 64):
        part = asked[start:start + 64]
        packed = data.pack(tokens, [[q] for _, q in part])
        everywhere = torch.arange(VISION_TOKENS).expand(len(part), -1)
        logits = model.language_model.lm_head(data.text_rows(model, packed, vision[[i for i, _ in part]], everywhere))
        nll = F.cross_entropy(logits.transpose(1, 2), packed.target.clamp(min=0), reduction="none")
        learn = packed.target >= 0
        right = ((logits.argmax(-1) == packed.target) | ~learn).all(1)
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
    parser.add_argument("--kindwise", action="store_true", help="sub-tasks too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.state:
        model = DemoLlava().eval()
        model.load_state_dict(torch.load(args.state / "joint.pt", weights_only=True)["modules"]["model"])
    else:
        model = load_model(args.model)
    found = answers(model, Tokens(args.model), *drawn(args.seed, args.images))
    for family, (share, nll, number) in found.items():
        if args.kindwise or "/" not in family:
            print(f"{family:28} accuracy {share:.3f}  NLL {nll:.4f}  n {number}")


if __name__ == "__main__":
    main()
