"""Write unseen scenes and their manifest, for the caption F1 or as examples.

    python make_eval.py --output DIR [--number 200] [--seed 1000] [--size 336] [--jpeg-every N]

DIR gets images and manifest.jsonl: {"id", "image", "objects": ["red circle", ...], "answer": the caption}.
Needs Pillow and numpy. Training draws from other seeds. Then, for instance:

    lvpipe caption --model models/demo --input DIR/manifest.jsonl --output OUT
    python score_captions.py OUT/captions.jsonl DIR/manifest.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import scenes


def eval_scene(seed: int, index: int) -> tuple[list[scenes.Thing], random.Random]:
    """The scene of that index, and the generator its picture continues with."""
    rng = random.Random(f"eval-{seed}-{index}")
    return scenes.make_scene(rng), rng


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--size", type=int, default=336, help="edge in pixels")
    parser.add_argument("--jpeg-every", type=int, default=0, metavar="N",
                        help="every Nth picture as JPEG (quality 92), the others as PNG")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    with (args.output / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        for i in range(args.number):
            things, rng = eval_scene(args.seed, i)
            image = scenes.render(things, rng, args.size)
            name = f"scene-{i:04d}"
            if args.jpeg_every and i % args.jpeg_every == args.jpeg_every - 1:
                file = f"{name}.jpg"
                image.save(args.output / file, quality=92)
            else:
                file = f"{name}.png"
                image.save(args.output / file, optimize=True)
            row = {"id": name, "image": file, "objects": [t.name for t in things], "answer": scenes.caption(things)}
            manifest.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
