"""Is pruning guided by the question? Two questions about two objects of one picture: how many of each object's patches are left at the
last prune point when it is asked for, and when the other one is.

    python3 -m train.tasks.guidance --model DIR [--images 200] [--keep 0.5] [--pruner lvpruning] [--picture FILE.png]

Shares are of the asked object's own patches, with 95 % intervals by a bootstrap over pictures, beside what a random choice of as
many tokens leaves. Needs lvpipe, Pillow and NumPy.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from train.tasks import families, scenes
from train.tasks.scenes import GRID, PATCH, SIDE, Thing


def patches_of(thing: Thing) -> set[int]:
    """Patches whose middle the object covers; at least the one its centre is in."""
    half = thing.edge * (scenes.DISC if thing.colour else 0.5)
    middles = [((i % GRID + 0.5) * PATCH, (i // GRID + 0.5) * PATCH) for i in range(GRID * GRID)]
    covered = {i for i, (x, y) in enumerate(middles) if (x - thing.x) ** 2 + (y - thing.y) ** 2 <= half**2}
    return covered | {int(thing.y // PATCH) * GRID + int(thing.x // PATCH)}


def interval(values: np.ndarray) -> str:
    drawn = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.percentile(values[drawn].mean(1), [2.5, 97.5])
    return f"{100 * values.mean():.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--keep", default="0.5")
    parser.add_argument("--pruner", default="lvpruning")
    parser.add_argument("--picture", type=Path, help="lvpipe show's picture of the first scene")
    parser.add_argument("--lvpipe", default="build/release/lvpipe")
    args = parser.parse_args()
    asked, other, chance = [], [], []
    index = 0
    with tempfile.TemporaryDirectory() as folder:
        while len(asked) < args.images:
            rng = random.Random(f"guidance-{index}")
            index += 1
            scene = scenes.make_scene(rng, test=True)
            able = [t for t in families.singles(scene, objects=True) if t.colour]
            if scene.blurred or len(able) < 2:
                continue
            pair = rng.sample(able, 2)
            image, drawn = Path(folder) / "scene.png", Path(folder) / "kept.png"
            scenes.render(scene, rng, SIDE * 2).save(image)
            picture = args.picture if args.picture and not asked else drawn
            command = [args.lvpipe, "show", "--model", str(args.model), "--image", str(image), "--output", str(picture), "--json", "-q",
                       "--pruner", args.pruner, "--keep", args.keep, "--max-new-tokens", "8"]  # fmt: skip
            for thing in pair:
                command += ["--prompt", families.colour_question(thing.name)]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
            kept = [set(json.loads(line)["points"][-1]["kept"]) for line in said]
            own = [patches_of(thing) for thing in pair]
            asked.append(np.mean([len(own[i] & kept[i]) / len(own[i]) for i in (0, 1)]))
            other.append(np.mean([len(own[i] & kept[1 - i]) / len(own[i]) for i in (0, 1)]))
            chance.append(len(kept[0]) / (GRID * GRID))
    found, expected = np.array(asked), float(np.mean(chance))
    print(f"{args.images} pictures, two objects each, {args.pruner} at keep {args.keep}: of the asked object's patches are left")
    print(f"  when it is asked for         {interval(found)}")
    print(f"  when the other one is        {interval(np.array(other))}")
    print(f"  difference, of each picture  {interval(found - np.array(other))}")
    print(f"  by a random choice           {100 * expected:.1f} %")
    print(f"  asked for against random     {found.mean() / expected:.2f} x")


if __name__ == "__main__":
    main()
