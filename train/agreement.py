"""Does lvpipe decide what the reference decides? Kept patches and answers of `lvpipe show` against train/reference.py, in f32.

    python3 -m train.agreement --model DIR --tasks DIR [--questions 500] [--pruners lvpruning last-attention adaptprune] [--keep R]

Prints for each pruner how many prune decisions and answers are equal, and every decision that is not, with its gap: how far the
nearest other choice was. Status 1 below 99.9 % of decisions or where an answer differs after equal decisions.
The random pruner is held to the reference by the goldens, which name its key.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import groupby, islice
from pathlib import Path

import torch

from train.checkpoint import load_model
from train.lvpruning.data import Encoder, Sample
from train.pruner import Pruner, keep_ratios
from train.reference import Reference
from train.training_free import AdaptPrune, Chooser, LastAttention, Modules, default_points

KEEPS = {"lvpruning": "0.5", "last-attention": "0.5", "adaptprune": "0.1"}  # lvpipe's own defaults
AT_ONCE = 16  # prompts that lvpipe show takes
LEAST = 0.999


def ask_engine(args: argparse.Namespace, pruner: str, keep: str, image: Path, prompts: list[str]) -> list[dict]:
    with tempfile.NamedTemporaryFile(suffix=".png") as picture:
        command = [args.lvpipe, "show", "--model", str(args.model), "--image", str(image), "--output", picture.name, "--dtype", "f32",
                   "--json", "-q", "--pruner", pruner, "--keep", keep]  # fmt: skip
        for prompt in prompts:
            command += ["--prompt", prompt.replace("{", "{{").replace("}", "}}")]
        return [json.loads(line) for line in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()]


def chooser(args: argparse.Namespace, name: str, layers: int, vision_tokens: int) -> Chooser:
    if name == "lvpruning":
        return Modules(Pruner.load(args.model / "lvpruning.safetensors"))
    points = default_points(name, layers)
    return LastAttention(points) if name == "last-attention" else AdaptPrune(points, vision_tokens)


class Count:
    def __init__(self) -> None:
        self.decisions = self.same_decisions = self.answers = self.same_answers = self.wrong = 0

    def add(self, reference: Reference, encoder: Encoder, image: Path, said: dict, keep: str) -> None:
        sample = Sample((str(image),), said["prompt"], "x")
        encoded = encoder.encode(sample)
        if encoded is None:
            raise SystemExit(f"{said['prompt']!r}: no prompt of this model")
        rows, n = encoded
        ids = [t for i, t in enumerate(rows[:n]) if t != encoder.image_token or rows[i - 1] != encoder.image_token]
        prompt = reference.prompt(ids, encoder.pixels(sample))
        ratios = keep_ratios(keep, len(reference.pruner.after_layers))
        first = int((prompt.image_of_row == 0).nonzero()[0])
        decisions, equal = reference.forward_removed(prompt, ratios).decisions, True
        for decision, point in zip(decisions, said["points"], strict=True):
            self.decisions += 1
            if (decision.kept[0] - first).tolist() == point["kept"]:
                self.same_decisions += 1
                continue
            print(f"  {image.name}, {said['prompt']!r}, after layer {point['after_layer']}: another choice, gap {decision.gap:.2e}")
            equal = False
            break  # what follows is decided about other rows
        tokens = reference.generate(prompt, ratios, len(said["token_ids"])).tokens
        self.answers += 1
        self.same_answers += tokens == said["token_ids"]
        if equal and tokens != said["token_ids"]:
            self.wrong += 1
            print(f"  {image.name}, {said['prompt']!r}: tokens {tokens}, lvpipe {said['token_ids']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True, help="folder with questions.jsonl")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--pruners", nargs="+", choices=list(KEEPS), default=list(KEEPS))
    parser.add_argument("--keep", help="of all of them (default: each pruner's own)")
    parser.add_argument("--lvpipe", default="build/release/lvpipe")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, encoder = load_model(args.model), Encoder(args.model, 1 << 20)
    with open(args.tasks / "questions.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, args.questions)]
    if not rows:
        sys.exit(f"{args.tasks}/questions.jsonl: no questions")
    failed = False
    for name in args.pruners:
        reference = Reference(model, chooser(args, name, model.config.text_config.num_hidden_layers, encoder.vision_tokens))
        keep, count = args.keep or KEEPS[name], Count()
        for image, group in groupby(rows, lambda row: row["image"]):
            prompts = list(dict.fromkeys(row["prompt"] for row in group))
            for start in range(0, len(prompts), AT_ONCE):
                path = args.tasks / image
                for said in ask_engine(args, name, keep, path, prompts[start : start + AT_ONCE]):
                    count.add(reference, encoder, path, said, keep)
        share = count.same_decisions / count.decisions
        print(f"{name} at keep {keep}: {count.same_decisions} of {count.decisions} decisions equal ({100 * share:.3f} %), "
              f"{count.same_answers} of {count.answers} answers", flush=True)  # fmt: skip
        failed |= share < LEAST or count.wrong > 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
