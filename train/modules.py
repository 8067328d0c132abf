"""Writes docs/modules.md: decision modules of other widths and recipes, trained alike on the demo model, and what each loses.

    python3 -m train.modules --work DIR [--steps 240] [--images 400] [--only NAME ...]

Each variant is trained by train.lvpruning on the same questions of the validation split and asked the same questions about other scenes of it by
`lvpipe eval` at keep 0.5. What is done in DIR stays: the same command goes on, and writes the page from the variants that are there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from train.accuracy import counts_of, nll, one_thread_each, percent
from train.pruner import BLOCKS, Pruner, PrunerConfig

KEEP = "0.5"
TEXT_TOKENS = 30
COMMON = {"points": "1,2,4", "seed": "1"}  # the rest is the trainer's recipe
ANSWERS = {"begin": "0", "noise": "1", "lr": "1e-3"}  # nothing but the answers' gradient, as in the paper
ALONE = ANSWERS | {"select": "alone", "ratio-weight": "8"}
# name: what differs from the trainer's recipe, and what that is
VARIANTS = {
    "width-160": ({"inner-width": "160", "heads": "2", "lr": "5e-4"}, "as wide as the model (C), as in the paper; the default's heads and rate"),
    "width-80": ({"inner-width": "80"}, "C / 2"),
    "width-40": ({}, "C / 4, the default"),
    "width-20": ({"inner-width": "20"}, "C / 8"),
    "width-10": ({"inner-width": "10"}, "C / 16"),
    "one-block": ({"blocks": "1"}, "C / 4, one block trained: the second hands its input on, and is counted"),
    "shared": ({"share-projections": None}, "C / 4, both blocks look at the text through one K and one V projection, which the file holds twice"),
    "heads-1": ({"heads": "1"}, "C / 4, one head"),
    "heads-8": ({"heads": "8"}, "C / 4, eight heads of five channels"),
    "not-begun": (ANSWERS, "C / 4, not begun where the unpruned model's answers look"),
    "paper": ({"recipe": "paper", "lr": "1e-3", "warmup": "0.1"}, "C, the paper's recipe but for the rate: its own is for 10,000 steps"),
    "alone": (ALONE, "C / 4, each token by its own Gumbel-Softmax"),
    "tokens": ({"weigh": "tokens"}, "C / 4, a caption counts by its length"),
    "alike": ({"weigh": "alike"}, "C / 4, a caption counts as much as a yes"),
    "answers": ({"distill": "0"}, "C / 4, the answers alone"),
    "distilled": ({"causal-weight": "0"}, "C / 4, the unpruned model's answers alone"),
    "one-ratio": ({"ratios": "0.5,0.5"}, "C / 4, the same share in each step"),
    "ratios": ({"ratios": "0.35,0.65"}, "C / 4, shares from a wider range"),
    "points": ({"points": "1,3,5"}, "C / 4, pruned later"),
}


def scoring_flops(config: PrunerConfig, tokens: int, texts: int) -> float:
    """Of one image's prompt: at each point the tokens that are there look at the text rows."""
    c, d, total = config.hidden, config.inner_width, 0
    for n in counts_of(KEEP, list(config.after_layers), tokens)[:-1]:
        for block in range(BLOCKS):
            width = c if block == 0 else d
            total += 2 * n * width * d + 4 * texts * c * d + 4 * n * texts * d + 2 * n * d * d + 8 * n * d * d
        total += 4 * n * d
    return float(total)


def train(args: argparse.Namespace, name: str) -> None:
    options = COMMON | VARIANTS[name][0]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "train.lvpruning.train",
               "--model", str(args.model), "--data", str(args.work / "questions" / "questions.jsonl"), "--output", str(args.work / name),
               "--dtype", "f32", "--save-dtype", "bf16", "--batch", "48", "--micro-batch", "24", "--no-recompute", "--steps", str(args.steps),
               "--save-every", "60", *(word for key, value in options.items() for word in (f"--{key}", value) if word is not None)]  # fmt: skip
    subprocess.run(command, check=True)


def trained(args: argparse.Namespace, name: str) -> bool:
    """Modules are there as soon as training proper begins; its state says whether it is done."""
    path = args.work / name / "state.pt"
    return path.exists() and torch.load(path, map_location="cpu", weights_only=True)["step"] == args.steps


def asked(args: argparse.Namespace) -> str:
    return f"tasks-{args.images}"


def evaluate(args: argparse.Namespace, name: str) -> dict:
    """The unpruned run is the same for all: it is made once."""
    unpruned, scores = args.work / f"{asked(args)}-unpruned", args.work / name / asked(args)
    for run in ("none", "none.nll"):
        if (unpruned / run).exists() and not (scores / run).exists():
            shutil.copytree(unpruned / run, scores / run)
    command = [args.lvpipe, "eval", "--model", str(args.model), "--pruner-weights", str(args.work / name / "lvpruning.safetensors"), "--tasks",
               str(args.work / asked(args)), "--output", str(scores), "--keep", KEEP, "--pruner", "lvpruning", "--json", "-q", *one_thread_each()]  # fmt: skip
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    for run in ("none", "none.nll"):
        if not (unpruned / run).exists():
            shutil.copytree(scores / run, unpruned / run)
    return found


def prefill_flops(args: argparse.Namespace, points: str) -> float:
    """Of the pruned prompt without its scoring: a random choice of as many."""
    command = [args.lvpipe, "plan", "--model", str(args.model), "--pruner", "random", "--prune-after", points, "--keep", KEEP,
               "--text-tokens", str(TEXT_TOKENS), "--json"]  # fmt: skip
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found["total"]["prefill_tflops"] * 1e12


def line(args: argparse.Namespace, name: str, found: dict) -> str:
    pruner = Pruner.load(args.work / name / "lvpruning.safetensors")
    vision = json.loads((args.model / "config.json").read_text())["vision_config"]
    points = ",".join(map(str, pruner.config.after_layers))
    scoring = scoring_flops(pruner.config, (vision["image_size"] // vision["patch_size"]) ** 2, TEXT_TOKENS)
    rest = prefill_flops(args, points)
    pruned = found["settings"][1]
    better, worse = (sum(f[k] for f in pruned["families"].values()) for k in ("better", "worse"))
    return (f"| {name} | {VARIANTS[name][1]} | {sum(p.numel() for p in pruner.parameters()):,} | {100 * scoring / (scoring + rest):.1f} % | {100 * pruned['vision_rows_share']:.1f} % | "
            f"{percent(pruned['relative_loss'])} | {better} / {worse} | {nll(pruned):.4f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="questions, modules and scores go here")
    parser.add_argument("--model", type=Path, default=Path("models/demo"))
    parser.add_argument("--steps", type=int, default=240, help="of 48 questions")
    parser.add_argument("--images", type=int, default=400, help="of the validation split, other ones than those trained on")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--output", type=Path, default=Path("docs/modules.md"))
    parser.add_argument("--lvpipe", default="build/release/lvpipe")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for folder, more in (("questions", ["--split", "validation", "--images", "1200"]), (asked(args), ["--split", "validation", "--seed", "2", "--images", str(args.images)])):
        if not (args.work / folder / "questions.jsonl").exists():
            subprocess.run([sys.executable, "-m", "train.tasks.make", "--output", str(args.work / folder), *more], check=True)
    rows, dense = [], None
    for name in VARIANTS:
        if name in args.only:
            train(args, name)
        if trained(args, name):
            dense = evaluate(args, name)
            rows.append(line(args, name, dense))
    if dense is None:
        raise SystemExit("no variant is trained")
    unpruned = dense["settings"][0]
    page = ["# Decision modules: widths and recipes", "",
            f"Trained by train/lvpruning's recipe on {args.steps * 48:,} questions each (not-begun, paper and alone without its beginning)",
            f"and asked {dense['questions']:,} questions about {dense['images']:,} other scenes of the validation split at keep {KEEP}. The unpruned",
            f"model's NLL is {nll(unpruned):.4f}. Scoring: its share of the FLOPs of a pruned prompt with {TEXT_TOKENS} text tokens. Parameters: of the file,",
            "which holds two blocks with their own projections in any case. Made by", "",
            f"    python3 -m train.modules --work DIR --steps {args.steps} --images {args.images}", "",
            "| variant | | parameters | scoring | vision rows | mean relative loss, % | better / worse | NLL per token |",
            "|---|---|---|---|---|---|---|---|", *rows]  # fmt: skip
    args.output.write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
