"""Writes docs/accuracy.md: what pruning costs on the nine families, by pruner and share, at equal cost and at equal final count.

    python3 -m train.accuracy --work DIR [--model models/demo] [--images 2300] [--output docs/accuracy.md]

Questions are drawn from committed code and glyphs (train/tasks); lvpipe eval asks them. Runs are resumed: the same command again goes on,
and writes the page anew from what is there. 2,300 images are 27,000 questions, 20,600 pairs of scores. Recipes and weights are chosen on
other scenes (train/modules.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from train.pruner import Pruner, keep_count, keep_ratios

KEEPS = ("0.6", "0.5", "0.45")  # the paper's
FREE = ("adaptprune", "last-attention")
FREE_POINT = 2  # the layer after which they prune
SEED = "3"  # of scenes by which nothing was chosen
# What train.tasks.blind scores.
CHANCE = {"attribute": 0.24, "relation": 0.32, "unanswerable": 0.52, "choice": 0.35, "text": 0.01, "existence": 0.55, "circular": 0.28, "mixed": 0.03}


def vision_rows(points: list[int], counts: list[int], layers: int) -> list[int]:
    """Vision rows that each decoder layer reads; counts[0] is the image's."""
    return [counts[sum(layer >= point for point in points)] for layer in range(layers)]


def counts_of(keep: str, points: list[int], tokens: int) -> list[int]:
    counts = [tokens]
    for ratio in keep_ratios(keep, len(points)):
        counts.append(keep_count(ratio, tokens, counts[-1]))
    return counts


def equal_shares(model: Path) -> dict[str, tuple[str, str]]:
    """keep of lvpruning -> the shares with which one prune point costs as much, and leaves as many tokens at the end."""
    points = list(Pruner.load(model / "lvpruning.safetensors").config.after_layers)
    config = json.loads((model / "config.json").read_text())
    layers, vision = config["text_config"]["num_hidden_layers"], config["vision_config"]
    tokens = (vision["image_size"] // vision["patch_size"]) ** 2
    shares = {}
    for keep in KEEPS:
        counts = counts_of(keep, points, tokens)
        left = sum(vision_rows(points, counts, layers)) - FREE_POINT * tokens
        shares[keep] = (f"{max(left, 0) / (layers - FREE_POINT) / tokens:.4f}", f"{counts[-1] / tokens:.4f}")
    return shares


def one_thread_each() -> list[str]:
    """A model as small as the demo is faster as a pipeline per core (118 and 70 questions/s on two); its answers are the same."""
    return ["--replicas", str(len(os.sched_getaffinity(0))), "--threads", "1"]


def evaluate(args: argparse.Namespace, pruners: str, keeps: list[str]) -> dict:
    command = [args.lvpipe, "eval", "--model", str(args.model), "--tasks", str(args.work / "tasks"), "--output", str(args.work / "scores"),
               "--pruner", pruners, "--keep", ",".join(keeps), "--json", "-q", *one_thread_each()]  # fmt: skip
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def percent(interval: dict[str, float], sign: bool = False) -> str:
    form = "+.2f" if sign else ".2f"
    if interval["low"] is None:  # too few images for ends
        return f"{100 * interval['value']:{form}}"
    return f"{100 * interval['value']:{form}} ({100 * interval['low']:{form}} to {100 * interval['high']:{form}})"


def nll(setting: dict) -> float:
    tokens = sum(f["tokens"] for f in setting["families"].values())
    return sum(f["nll"] * f["tokens"] for f in setting["families"].values()) / tokens


def summary(settings: list[dict], what: dict[str, str]) -> list[str]:
    dense = settings[0]
    lines = ["| setting | | vision rows | GFLOPs | mean relative loss, % | better / worse | NLL per token | F1 of yes, % |", "|---|---|---|---|---|---|---|---|"]
    for s in settings:
        better, worse = (sum(f[k] for f in s["families"].values()) for k in ("better", "worse"))
        loss = "" if s is dense else percent(s["relative_loss"])
        lines.append(f"| {s['setting']} | {what.get(s['setting'], '')} | {100 * s['vision_rows_share']:.1f} % | {s['flops_per_question'] / 1e9:.3f} | {loss} | "
                     f"{'' if s is dense else f'{better} / {worse}'} | {nll(s):.4f} | {100 * s['families']['existence']['f1_of_yes']:.2f} |")  # fmt: skip
    return lines


def guesses(settings: list[dict]) -> list[str]:
    """What to say of families that even the unpruned model guesses: their relative loss is noise."""
    dense = settings[0]["families"]
    guessed = [f for f, chance in CHANCE.items() if f in dense and (dense[f]["score"]["low"] or 0) <= chance]
    if not guessed:
        return []
    able = [f for f in dense if f not in guessed]

    def loss(s: dict) -> float:
        return sum(1 - s["families"][f]["score"]["value"] / dense[f]["score"]["value"] for f in able) / len(able)

    means = "; ".join(f"{s['setting']} {100 * loss(s):.2f}" for s in settings[1:])
    return ["", f"Unpruned, the model only guesses {', '.join(guessed)}: what is lost there is noise. Mean relative loss without them, %: {means}."]


def by_family(settings: list[dict]) -> list[str]:
    lines = ["| family | setting | n | score, % | change, points | better / worse | NLL per token |", "|---|---|---|---|---|---|---|"]
    for family in settings[0]["families"]:
        for s in settings:
            f = s["families"][family]
            lines.append(f"| {family} | {s['setting']} | {f['n']} | {percent(f['score'])} | {percent(f['change'], True)} | "
                         f"{f['better']} / {f['worse']} | {f['nll']:.4f} |")  # fmt: skip
    return lines


def read_rows(path: Path) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def by_kind(settings: list[dict], work: Path) -> list[str]:
    """Of the existence family as POPE reports it: accuracy and F1 of yes, each kind of absent object apart."""
    asked = [q for q in read_rows(work / "tasks" / "questions.jsonl") if q["family"] == "existence"]
    kinds = ("random", "popular", "adversarial")
    lines = [f"| setting | {' | '.join(kinds)} |", "|---|---|---|---|"]
    for s in settings:
        rows = read_rows(work / "scores" / s["setting"] / "captions.jsonl")
        yes = {row["id"] for row in rows if row["caption"].strip(" .").lower() == "yes"}
        cells = []
        for kind in kinds:
            pairs = [(q["answers"][0].lower() == "yes", q["id"] in yes) for q in asked if q["kind"] == kind]
            right, said, true = sum(a and b for a, b in pairs), sum(b for _, b in pairs), sum(a for a, _ in pairs)
            f1 = f" / {200 * right / (said + true):.2f}" if said + true else ""
            cells.append(f"{100 * sum(a == b for a, b in pairs) / len(pairs):.2f}{f1}" if pairs else "")
        lines.append(f"| {s['setting']} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="tasks and scores go here")
    parser.add_argument("--model", type=Path, default=Path("models/demo"))
    parser.add_argument("--images", type=int, default=2300)
    parser.add_argument("--output", type=Path, default=Path("docs/accuracy.md"))
    parser.add_argument("--lvpipe", default="build/release/lvpipe")
    args = parser.parse_args()
    args.work /= f"{args.images}-images"  # another number makes another table
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "tasks" / "questions.jsonl").exists():
        make = [sys.executable, "-m", "train.tasks.make", "--seed", SEED, "--images", str(args.images), "--output", str(args.work / "tasks")]
        subprocess.run(make, check=True)
    shares = equal_shares(args.model)
    first = evaluate(args, "lvpruning,random", list(KEEPS))
    cost = evaluate(args, ",".join(FREE), [shares[keep][0] for keep in KEEPS])
    final = evaluate(args, ",".join(FREE), [shares["0.5"][1]])
    settings = [*first["settings"], *cost["settings"][1:], *final["settings"][1:]]
    what = {f"{p}-{shares[k][0]}": f"as many vision rows as lvpruning-{k}" for p in FREE for k in KEEPS}
    what |= {f"{p}-{shares['0.5'][1]}": "as many at the end as lvpruning-0.5" for p in FREE}
    page = ["# What pruning costs", "",
            f"{first['questions']:,} questions of nine families, {first['units']:,} scored pairs (a circular question is asked four times and right if",
            f"all are), about {first['images']:,} scenes of the test split ([train/tasks](../train/tasks/README.md)),",
            f"`models/{args.model.resolve().name}`, by `lvpipe eval`. Made by", "",
            f"    python3 -m train.accuracy --work DIR --images {args.images}", "",
            "Vision rows: what a decoder layer reads on the mean, as a share of the unpruned run's. GFLOPs: of a question with its image, vision encoder",
            "and modules included. Relative loss: mean over the families of the share of the unpruned score that is lost. Intervals are of 95 %, by a",
            "bootstrap over images. Better and worse: questions whose score changed. NLL: of the right answers, per token. F1 of yes: existence, as POPE",
            "has it.", "", *summary(settings, what), *guesses(settings), "", "## Existence by kind: accuracy / F1 of yes, %", "",
            *by_kind(settings, args.work), "", "## By family", "", *by_family(settings)]  # fmt: skip
    args.output.write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
