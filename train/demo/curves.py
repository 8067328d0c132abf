"""Draw the learning curves of the stages from what they printed: an SVG for the model card.

    python3 -m train.demo.curves --state FOLDER --output models/demo/curves.svg

Reads vision.log, language.log and joint.log, as build.sh leaves them.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

# panel: title, file, what to draw of it, its scale's upper end
PANELS = (
    ("A: patches told rightly", "vision.log", ("class", "colour", "place", "letter"), 1.0),
    ("B: NLL per token, on labels", "language.log", ("caption", "attribute", "existence", "choice"), 1.0),
    ("D: NLL per token, on pixels", "joint.log", ("caption", "attribute", "existence", "choice"), 0.8),
)
COLOURS = ("#3366cc", "#dd7722", "#229955", "#aa3377")
WIDTH, HEIGHT, LEFT, TOP = 250, 150, 44, 34


def points(path: Path, name: str) -> list[tuple[float, float]]:
    """(share of the stage done, value) of each line that shows `name`."""
    found = re.findall(rf"^\w+ +([\d.]+)% .*\b{name} ([\d.]+)", path.read_text(), re.MULTILINE)
    return [(float(done) / 100, float(value)) for done, value in found]


def panel(x: int, title: str, path: Path, names: tuple[str, ...], high: float) -> list[str]:
    base = TOP + HEIGHT
    out = [f'<text x="{x}" y="{TOP - 14}" font-weight="bold">{title}</text>',
           f'<path d="M{x} {TOP} V{base} H{x + WIDTH}" fill="none" stroke="#888"/>']  # fmt: skip
    for i in range(3):
        out.append(f'<text x="{x - 5}" y="{base - i * HEIGHT / 2 + 4}" text-anchor="end">{high * i / 2:g}</text>')
    for done, word in ((0, "0"), (0.5, "half"), (1, "end")):
        out.append(f'<text x="{x + done * WIDTH}" y="{base + 16}" text-anchor="middle">{word}</text>')
    for name, colour in zip(names, COLOURS):
        line = " ".join(f"{x + done * WIDTH:.1f},{base - min(value / high, 1) * HEIGHT:.1f}" for done, value in points(path, name))
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    for i, (name, colour) in enumerate(zip(names, COLOURS)):
        out.append(f'<text x="{x + 8 + 60 * i}" y="{base + 34}" fill="{colour}">{name}</text>')
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    step = WIDTH + LEFT + 20
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {step * len(PANELS)} {TOP + HEIGHT + 44}" '
             'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>']  # fmt: skip
    for i, (title, file, names, high) in enumerate(PANELS):
        lines += panel(LEFT + i * step, title, args.state / file, names, high)
    args.output.write_text("\n".join([*lines, "</svg>"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
