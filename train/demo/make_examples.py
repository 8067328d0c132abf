"""Write the pictures of examples/images and their manifest.

    python3 -m train.demo.make_examples --output examples/images

Ten scenes of the test split, the second with several things for `lvpipe show`; the manifest's `objects` names what is there. The same
pictures each time. Needs Pillow and NumPy.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from train.tasks import scenes

SIZE = 448
JPEG = (2, 5, 8)


def draw(index: int) -> tuple[scenes.Scene, random.Random]:
    """The first sharp scene of its seed; the second picture's has four things at least."""
    rng = random.Random(f"examples-{index}")
    while True:
        scene = scenes.make_scene(rng, test=True)
        if not scene.blurred and (index != 1 or len(scene.things) >= 4):
            return scene, rng


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(10):
        scene, rng = draw(index)
        name = f"scene-{index:04d}." + ("jpg" if index in JPEG else "png")
        options = {"quality": 90} if index in JPEG else {"optimize": True}
        scenes.render(scene, rng, SIZE).save(output / name, **options)
        lines.append({"id": Path(name).stem, "image": name, "objects": [thing.name for thing in scene.things]})
    (output / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
