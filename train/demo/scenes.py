"""Synthetic scenes for the demo model: pictures, captions, questions, patch labels.

A scene holds 1 to 6 flat objects on a textured background. Every object has a
kind, a colour and a size; no two objects of a scene share kind and colour, and
no two share a horizontal place, so that "from left to right" is one order.
Everything follows from a `random.Random`, nothing is stored: training renders
on the fly and never meets a scene twice.

Coordinates are in units of the model's input, 168 x 168 pixels; `render` draws
at any size. `load` is the preprocessing an engine does for a published LLaVA
folder: shortest edge to 168 (Pillow, bicubic), CLIP mean and deviation.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE = 168
PATCH = 14
GRID = SIDE // PATCH
CENTRE_BINS = 24  # an object's centre, in steps of 7 pixels

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "green": (40, 160, 60),
    "blue": (40, 70, 215),
    "yellow": (240, 222, 50),
    "orange": (245, 138, 25),
    "purple": (140, 50, 175),
    "white": (246, 246, 246),
    "black": (18, 18, 18),
}
KINDS = ["circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart"]
SIZES = {"small": (9.5, 12.5), "large": (17.0, 21.0)}  # radius
COLOUR_NAMES = list(COLOURS)
SIZE_NAMES = list(SIZES)
NUMBERS = ["Zero", "One", "Two", "Three", "Four", "Five", "Six"]

CAPTION_PROMPTS = [
    "Describe the image.",
    "Describe the picture.",
    "Describe this image.",
    "What is in the image?",
    "What do you see?",
    "Which objects are in the image?",
]

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


@dataclass(frozen=True)
class Thing:
    """One object; centre and radius in input pixels, angle in radians."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"

    @property
    def phrase(self) -> str:
        return f"{'an' if self.size[0] in 'aeiou' else 'a'} {self.size} {self.name}"

    @property
    def place(self) -> str:
        column = ["left", "", "right"][min(2, int(self.x * 3 / SIDE))]
        row = ["top", "", "bottom"][min(2, int(self.y * 3 / SIDE))]
        return f"{row} {column}".strip() or "center"


@dataclass(frozen=True)
class Question:
    family: str
    text: str
    answer: str


def make_scene(rng: random.Random, low: int = 1, high: int = 6) -> list[Thing]:
    """`low` to `high` objects, sorted by x, apart from each other."""
    wanted = rng.randint(low, high)
    pairs = [(k, c) for k in KINDS for c in COLOURS]
    # Half of the scenes repeat a few kinds and colours: counting and
    # comparing need repeats, and "is there" needs near misses.
    if rng.random() < 0.5:
        kinds, colours = rng.sample(KINDS, 3), rng.sample(COLOUR_NAMES, 3)
        pairs = [(k, c) for k in kinds for c in colours]
    things: list[Thing] = []
    for kind, colour in rng.sample(pairs, wanted):
        size = rng.choice(SIZE_NAMES)
        for _ in range(60):
            radius = rng.uniform(*SIZES[size])
            margin = radius + 3
            x, y = rng.uniform(margin, SIDE - margin), rng.uniform(margin, SIDE - margin)
            if all(
                abs(x - o.x) >= 13 and math.hypot(x - o.x, y - o.y) >= radius + o.radius + 4
                for o in things
            ):
                things.append(Thing(kind, colour, size, x, y, radius, rng.uniform(-0.2, 0.2)))
                break
    return sorted(things, key=lambda t: t.x)


def _outline(thing: Thing) -> list[tuple[float, float]]:
    """The polygon of an object around (0, 0) with radius 1."""
    if thing.kind == "square":
        return [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]
    if thing.kind == "triangle":
        return [(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)]
    if thing.kind == "diamond":
        return [(0.0, -1.05), (0.72, 0.0), (0.0, 1.05), (-0.72, 0.0)]
    if thing.kind == "cross":
        a, b = 0.33, 1.0
        return [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a),
                (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    if thing.kind == "star":
        points = []
        for i in range(10):
            r = 1.08 if i % 2 == 0 else 0.45
            points.append((r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)))
        return points
    if thing.kind == "heart":
        points = []
        for i in range(24):
            t = i * math.pi / 12
            x = 16 * math.sin(t) ** 3
            y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            points.append((x / 16.5, -(y + 2.5) / 15))
        return points
    raise ValueError(thing.kind)


def _draw(draw: ImageDraw.ImageDraw, thing: Thing, scale: float, fill: object) -> None:
    x, y, r = thing.x * scale, thing.y * scale, thing.radius * scale
    if thing.kind == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif thing.kind == "ring":
        width = max(1, round(0.36 * r))
        draw.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=width)
    else:
        c, s = math.cos(thing.angle) * r, math.sin(thing.angle) * r
        draw.polygon([(x + c * a - s * b, y + s * a + c * b) for a, b in _outline(thing)], fill=fill)


def _background(rng: random.Random, size: int) -> Image.Image:
    """A muted colour with blobs, tiles, a gradient or stripes."""
    base = rng.uniform(85, 185)
    tint = [base + rng.uniform(-22, 22) for _ in range(3)]
    cells = rng.choice([1, 2, 2, 3, 5, 8, 13, 24])
    spread = rng.uniform(3, 22)
    noise = np.array([rng.gauss(0, 1) for _ in range(cells * cells)]).reshape(cells, cells, 1)
    pixels = np.clip(np.array(tint) + spread * noise, 55, 215).astype(np.uint8)
    method = rng.choice([Image.Resampling.BILINEAR, Image.Resampling.NEAREST])
    image = Image.fromarray(pixels).resize((size, size), method)
    if rng.random() < 0.3:
        draw = ImageDraw.Draw(image)
        shade = rng.choice([-18, -12, 12, 18])
        colour = tuple(int(min(215, max(55, t + shade))) for t in tint)
        step, slope = rng.uniform(0.06, 0.25) * size, rng.uniform(-1, 1)
        start = -size
        while start < 2 * size:
            draw.line((start, 0, start + slope * size, size), fill=colour, width=max(1, size // 60))
            start += step
    return image


def render(things: list[Thing], rng: random.Random, size: int = 336) -> Image.Image:
    """The scene as an RGB picture, size x size."""
    image = _background(rng, size)
    draw = ImageDraw.Draw(image)
    for thing in things:
        shade = rng.randint(-10, 10)
        fill = tuple(
            max(0, min(255, v + shade + rng.randint(-9, 9))) for v in COLOURS[thing.colour]
        )
        _draw(draw, thing, size / SIDE, fill)
    return image


def load(image: Image.Image) -> np.ndarray:
    """CLIP's preprocessing: float32 [3, SIDE, SIDE]; square pictures only."""
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float32) * np.float32(1 / 255)
    return ((pixels - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)


# Patch labels: column, number of classes. Class 0 is background everywhere.
LABELS = {
    "colour": len(COLOURS) + 1,
    "kind": len(KINDS) + 1,
    "size": len(SIZES) + 1,
    "anchor": 2,  # 1 on the one patch that shows most of its object
    "centre_x": CENTRE_BINS + 1,
    "centre_y": CENTRE_BINS + 1,
}


def patch_labels(things: list[Thing]) -> np.ndarray:
    """int64 [GRID * GRID, len(LABELS)]: what each patch shows."""
    sub = 7
    canvas = Image.new("L", (GRID * sub, GRID * sub), 0)
    draw = ImageDraw.Draw(canvas)
    for i, thing in enumerate(things):
        _draw(draw, thing, GRID * sub / SIDE, i + 1)
    cells = np.asarray(canvas).reshape(GRID, sub, GRID, sub).transpose(0, 2, 1, 3)
    cells = cells.reshape(GRID * GRID, sub * sub)
    cover = (cells[:, :, None] == np.arange(1, len(things) + 1)).sum(1)  # [patches, objects]
    labels = np.zeros((GRID * GRID, len(LABELS)), dtype=np.int64)
    best = cover.argmax(1)
    shown = cover.max(1) >= 5
    for i, thing in enumerate(things):
        mine = shown & (best == i)
        labels[mine] = (
            1 + COLOUR_NAMES.index(thing.colour),
            1 + KINDS.index(thing.kind),
            1 + SIZE_NAMES.index(thing.size),
            0,
            1 + min(CENTRE_BINS - 1, int(thing.x * CENTRE_BINS / SIDE)),
            1 + min(CENTRE_BINS - 1, int(thing.y * CENTRE_BINS / SIDE)),
        )
        if mine.any():
            labels[np.where(mine, cover[:, i], -1).argmax(), 3] = 1
    return labels


def caption(things: list[Thing]) -> str:
    """One sentence that lists the objects from left to right."""
    phrases = [t.phrase for t in things]
    listed = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
    return f"The image shows {listed}."


def caption_question(things: list[Thing], rng: random.Random) -> Question:
    text = CAPTION_PROMPTS[0] if rng.random() < 0.6 else rng.choice(CAPTION_PROMPTS)
    return Question("caption", text, caption(things))


def _yes(flag: bool) -> str:
    return "Yes." if flag else "No."


def _existence(things: list[Thing], rng: random.Random) -> Question:
    names = {t.name for t in things}
    if rng.random() < 0.5:
        name = rng.choice(sorted(names))
    else:
        for _ in range(20):
            colour = rng.choice(things).colour if rng.random() < 0.6 else rng.choice(COLOUR_NAMES)
            kind = rng.choice(things).kind if rng.random() < 0.6 else rng.choice(KINDS)
            name = f"{colour} {kind}"
            if name not in names:
                break
    article = "an" if name[0] in "aeiou" else "a"
    return Question("existence", f"Is there {article} {name}?", _yes(name in names))


def _count(things: list[Thing], rng: random.Random) -> Question:
    way = rng.choice(["kind", "colour", "size", "all"])
    if way == "all":
        return Question("count", "How many objects are there?", NUMBERS[len(things)] + ".")
    if way == "kind":
        kind = rng.choice(things).kind if rng.random() < 0.8 else rng.choice(KINDS)
        number, what = sum(t.kind == kind for t in things), f"{kind}{'es' if kind == 'cross' else 's'}"
    elif way == "colour":
        colour = rng.choice(things).colour if rng.random() < 0.8 else rng.choice(COLOUR_NAMES)
        number, what = sum(t.colour == colour for t in things), f"{colour} objects"
    else:
        size = rng.choice(SIZE_NAMES)
        number, what = sum(t.size == size for t in things), f"{size} objects"
    return Question("count", f"How many {what} are there?", NUMBERS[number] + ".")


def _unique(things: list[Thing], field: str) -> list[Thing]:
    values = [getattr(t, field) for t in things]
    return [t for t in things if values.count(getattr(t, field)) == 1]


def _colour(things: list[Thing], rng: random.Random) -> Question | None:
    single = _unique(things, "kind")
    if not single:
        return None
    thing = rng.choice(single)
    return Question("color", f"What color is the {thing.kind}?", thing.colour.capitalize() + ".")


def _kind(things: list[Thing], rng: random.Random) -> Question | None:
    single = _unique(things, "colour")
    if not single:
        return None
    thing = rng.choice(single)
    return Question("shape", f"What shape is the {thing.colour} object?", thing.kind.capitalize() + ".")


def _size(things: list[Thing], rng: random.Random) -> Question:
    thing = rng.choice(things)
    return Question("size", f"Is the {thing.name} small or large?", thing.size.capitalize() + ".")


def _place(things: list[Thing], rng: random.Random) -> Question:
    thing = rng.choice(things)
    return Question("place", f"Where is the {thing.name}?", thing.place.capitalize() + ".")


def _comparison(things: list[Thing], rng: random.Random) -> Question | None:
    values = {v: sum(t.kind == v for t in things) for v in KINDS}
    present = [v for v in KINDS if values[v]]
    first = rng.choice(present)
    second = rng.choice([v for v in (present if len(present) > 1 else KINDS) if v != first])
    if rng.random() < 0.5:
        first, second = second, first
    plural = {v: v + ("es" if v == "cross" else "s") for v in (first, second)}
    return Question(
        "comparison",
        f"Are there more {plural[first]} than {plural[second]}?",
        _yes(values[first] > values[second]),
    )


FAMILIES = {
    "existence": _existence,
    "color": _colour,
    "shape": _kind,
    "count": _count,
    "size": _size,
    "comparison": _comparison,
    "place": _place,
}


def ask(things: list[Thing], rng: random.Random, family: str) -> Question | None:
    """A question of that family, or None where the scene has no clear answer."""
    return FAMILIES[family](things, rng)


def questions(things: list[Thing], rng: random.Random, number: int) -> list[Question]:
    """`number` questions of different families, where the scene allows them."""
    found = []
    for family in rng.sample(list(FAMILIES), len(FAMILIES)):
        if len(found) == number:
            break
        question = ask(things, rng, family)
        if question is not None:
            found.append(question)
    return found


def training_size(rng: random.Random) -> int:
    """Edge of the rendered picture: inputs come larger than the model's own size."""
    return rng.choice([168, 224, 252, 336, 336, 336, 448])
