"""Write questions of the nine families about rendered scenes, for lvpipe eval.

    python3 -m train.tasks.make --output DIR [--images 2500] [--seed 1] [--split test] [--size 224] [--families ...]

DIR gets images/*.png and questions.jsonl (docs/eval.md). Scenes follow from split, seed and index alone; those of the test split hold
classes together that training never does. 2,500 images give about 28,000 questions in a minute. Needs Pillow and NumPy.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from train.tasks import families, scenes
from train.tasks.families import FAMILIES, Question
from train.tasks.scenes import Scene, Thing

PEOPLE = 10  # VQA's annotators; here they agree
METRICS = {"attribute": "soft", "unanswerable": "soft", "text": "soft", "caption": "facts", "mixed": "parts"}


def facts(thing: Thing) -> list[str]:
    """What a caption should say of a thing: its name first, which ties the rest to it."""
    small = ["small"] if thing.small and thing.name != "sign" else []
    return [v for v in (thing.name, *small, thing.colour, thing.text, thing.place) if v]


def answers(scene: Scene, question: Question) -> list:
    if question.family == "caption":
        return [["blurred"]] if scene.blurred else [facts(t) for t in scene.things]
    if question.family == "mixed":
        return question.answer.split(" and ")
    return [question.answer] * (PEOPLE if METRICS.get(question.family) == "soft" else 1)


def rows(index: int, scene: Scene, rng: random.Random, wanted: list[str]) -> Iterator[dict]:
    for family in wanted:
        asked = families.ask(scene, rng, family)
        for k, question in enumerate(asked):
            row = {
                "id": f"{index:05d}-{family}" + (f"-{k}" if len(asked) > 1 else ""),
                "image": f"images/{index:05d}.png",
                "prompt": question.text,
                "answer": question.answer,
                "answers": answers(scene, question),
                "family": family,
                "metric": METRICS.get(family, "exact"),
                "kind": question.kind,
            }
            if family == "circular":
                row["group"] = f"{index:05d}"
            yield row


def draw(split: str, seed: int, index: int, size: int):  # noqa: ANN201
    """Scene, picture and the generator its questions continue with."""
    rng = random.Random(f"{split}-{seed}-{index}")
    scene = scenes.make_scene(rng, test=split == "test")
    return scene, scenes.render(scene, rng, size), rng


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="questions.jsonl and images/ there are made anew")
    parser.add_argument("--images", type=int, default=2500, help="one scene each (2500)")
    parser.add_argument("--seed", type=int, default=1, help="another one makes other scenes (1)")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--size", type=int, default=224, help="edge in pixels")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    args = parser.parse_args()
    (args.output / "images").mkdir(parents=True, exist_ok=True)
    for picture in (args.output / "images").glob("[0-9]" * 5 + ".png"):  # of an earlier call
        if int(picture.stem) >= args.images:
            picture.unlink()
    n = 0
    part = args.output / "questions.jsonl.part"  # a reader finds all questions or none
    with part.open("w", encoding="utf-8") as file:
        for index in range(args.images):
            scene, picture, rng = draw(args.split, args.seed, index, args.size)
            picture.save(args.output / "images" / f"{index:05d}.png", compress_level=1)
            for row in rows(index, scene, rng, args.families):
                file.write(json.dumps(row) + "\n")
                n += 1
    part.rename(args.output / "questions.jsonl")
    print(f"{n} questions about {args.images} images in {args.output}")


if __name__ == "__main__":
    main()
