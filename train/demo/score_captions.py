"""F1 of the objects named in captions against an evaluation manifest.

    python score_captions.py captions.jsonl manifest.jsonl [--least 0.75]

An object is a kind with its colour ("red circle"); sizes are not scored. Counts are
summed over all captions (micro F1). A sample without a caption names nothing. With
--least the exit status is 1 where F1 stays below it. Needs no packages.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

COLOURS = "red green blue yellow orange purple white black".split()
KINDS = "circle square triangle star cross ring diamond heart".split()
NAME = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(KINDS)})\b")


@dataclass
class Score:
    """Objects named rightly, named in all, there in all; captions fully right, captions."""

    right: int = 0
    named: int = 0
    there: int = 0
    perfect: int = 0
    captions: int = 0

    def add(self, text: str, objects: list[str]) -> None:
        named = Counter(" ".join(m) for m in NAME.findall(text.lower()))
        there = Counter(objects)
        self.right += (named & there).total()
        self.named += named.total()
        self.there += there.total()
        self.perfect += named == there
        self.captions += 1

    @property
    def f1(self) -> float:
        return 2 * self.right / max(1, self.named + self.there)

    def __str__(self) -> str:
        return (f"F1 {self.f1:.4f}  precision {self.right / max(1, self.named):.4f}  "
                f"recall {self.right / max(1, self.there):.4f}  "
                f"all objects right {self.perfect}/{self.captions}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--least", type=float)
    args = parser.parse_args()
    truth = {r["id"]: r["objects"] for r in map(json.loads, args.manifest.open(encoding="utf-8"))}
    texts = {r["id"]: r["caption"] for r in map(json.loads, args.captions.open(encoding="utf-8"))}
    score = Score()
    for key, objects in truth.items():
        score.add(texts.get(key, ""), objects)
    print(score, f" without a caption {len(truth.keys() - texts.keys())}")
    if args.least is not None and score.f1 < args.least:
        sys.exit(1)


if __name__ == "__main__":
    main()
