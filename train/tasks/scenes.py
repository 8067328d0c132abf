"""Rendered scenes: up to six glyphs and signs on a three by three grid, with clutter, and what each patch of them shows.

A scene is a list of things, each in its own cell: an object of one of 48 classes, bare or on a coloured disc, small or large;
or a sign with a word. Everything follows from a `random.Random`; nothing is stored. Lengths are in pixels of the demo model's
input, 168 x 168 (12 x 12 patches of 14); `render` draws at any size.

Splits: training scenes never show two classes of `held_out` together; every test scene does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE, PATCH, CELLS = 168, 14, 3
GRID = SIDE // PATCH
CELL = SIDE // CELLS
GLYPH = 64
SHEET = Path(__file__).with_name("glyphs.png")

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


@dataclass(frozen=True)
class Class:
    name: str
    sign: str
    theme: str


THEMES = {
    "animal": "dog 🐶 cat 🐱 cow 🐮 pig 🐷 frog 🐸 panda 🐼",
    "sea animal": "fish 🐟 crab 🦀 octopus 🐙 turtle 🐢 duck 🦆 whale 🐳",
    "fruit": "apple 🍎 banana 🍌 lemon 🍋 strawberry 🍓 pear 🍐 melon 🍉",
    "snack": "pizza 🍕 burger 🍔 donut 🍩 cookie 🍪 cake 🎂 egg 🥚",
    "vehicle": "car 🚗 bus 🚌 bicycle 🚲 plane 🛩 rocket 🚀 boat ⛵",
    "tool": "key 🔑 hammer 🔨 camera 📷 lamp 💡 clock ⏰ phone 📞",
    "toy": "ball ⚽ guitar 🎸 trumpet 🎺 drum 🥁 balloon 🎈 kite 🪁",
    "plant": "tree 🌲 cactus 🌵 sunflower 🌻 mushroom 🍄 rose 🌹 clover 🍀",
}
CLASSES = [
    Class(name, sign, theme)
    for theme, text in THEMES.items()
    for name, sign in zip(text.split()[::2], text.split()[1::2])
]
CLASS_NAMES = [c.name for c in CLASSES]
THEME_OF = {c.name: c.theme for c in CLASSES}
# The first two of each theme are met three times as often: "popular" in the sense of POPE.
POPULAR = [c.name for i, c in enumerate(CLASSES) if i % 6 < 2]
WEIGHTS = [3 if c.name in POPULAR else 1 for c in CLASSES]
PLURALS = {"fish": "fish", "bus": "buses", "strawberry": "strawberries", "octopus": "octopuses", "cactus": "cactuses"}

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
COLOUR_NAMES = list(COLOURS)
PLACES = ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"]
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
WORDS = (
    "ACE ADD AGE AIR ALE ANT ARM ART ASK BAD BAG BAR BAY BED BEE BIG BIT BOW BOX BUY COD COW CUP CUT DAY DEN DIG DRY DUE EAR "
    "EAT EEL END ERA EVE EYE FAN FAR FIG FIT FIX FLY FOG FOR FOX FUN GAS GEM GET GUM GYM HAM HAT HAY HEN HIT HOT HUG HUT ICE "
    "INK INN JAM JAR JAW JET JOB JOY KID KIT LAB LAW LEG LID LOG LOW MAP MIX MUD MUG NET NEW NUT OAK OIL OLD ONE OUT OWL PAN "
    "PAY PEN PIE PIN POT RAM RAW RED RIB ROW RUG RUN SAD SEA SIX SKY SUN TAX TEA TEN TOP TOY TWO URN USE VAN VET WAX WAY WEB "
    "WET WIN WOK YAK YES ZIP ZOO"
).split()

SMALL, LARGE = (16.0, 20.0), (28.0, 33.0)  # a glyph's edge
DISC = 0.64  # a disc's radius in edges of its glyph
LETTER = 14.0  # a sign's letters stand this far apart
PLATE = (3 * LETTER + 5, 20.0)


@dataclass(frozen=True)
class Thing:
    """An object or (name "sign") a sign; centre and edge in input pixels; colour of its disc or plate, "" for none."""

    name: str
    colour: str
    small: bool
    cell: int
    x: float
    y: float
    edge: float
    text: str = ""

    @property
    def place(self) -> str:
        return PLACES[self.cell]

    @property
    def row(self) -> int:
        return self.cell // CELLS

    @property
    def column(self) -> int:
        return self.cell % CELLS


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]  # in reading order of their cells
    blurred: bool = False


def plural(name: str) -> str:
    return PLURALS.get(name, name + "s")


def held_out(a: str, b: str) -> bool:
    """A twentieth of all pairs of classes: training never sees them in one scene."""
    i, j = sorted((CLASS_NAMES.index(a), CLASS_NAMES.index(b)))
    return i != j and (i * 31 + j * 17) % 20 == 0


HELD_OUT = [(a, b) for i, a in enumerate(CLASS_NAMES) for b in CLASS_NAMES[i + 1:] if held_out(a, b)]
# As often as their classes are met in training: else a name alone would tell whether it is there.
HELD_OUT_WEIGHTS = [WEIGHTS[CLASS_NAMES.index(a)] * WEIGHTS[CLASS_NAMES.index(b)] for a, b in HELD_OUT]
ALLOWED = {a: frozenset(b for b in CLASS_NAMES if not held_out(a, b)) for a in CLASS_NAMES}


def draw_names(rng: random.Random, number: int, test: bool) -> list[str]:
    """Class names, repeats among them; half of a scene's share a theme."""
    names = list(rng.choices(HELD_OUT, HELD_OUT_WEIGHTS)[0]) if test else []
    theme = rng.choice(list(THEMES))
    while len(names) < number:
        if names and rng.random() < 0.22:
            names.append(rng.choice(names))
            continue
        name = rng.choices(CLASS_NAMES, WEIGHTS)[0]
        if rng.random() < 0.5 and THEME_OF[name] != theme:
            continue
        if test or all(name in ALLOWED[n] for n in names):
            names.append(name)
    return names[:number]


def place_thing(rng: random.Random, name: str, cell: int) -> Thing:
    small = rng.random() < 0.55
    if name == "sign":
        colour, edge, half = rng.choice(COLOUR_NAMES), PLATE[1], (PLATE[0] / 2, PLATE[1] / 2)
        text = rng.choice(WORDS) if rng.random() < 0.7 else str(rng.randint(100, 999))
    else:
        colour = rng.choice(COLOUR_NAMES) if rng.random() < 0.65 else ""
        edge, text = rng.uniform(*(SMALL if small else LARGE)), ""
        half = (edge * (DISC if colour else 0.5),) * 2
    # A thing stays in its cell, and a pixel from the cell's edge.
    x, y = (
        (index + 0.5) * CELL + rng.uniform(-1, 1) * max(0.0, CELL / 2 - 1 - extent)
        for index, extent in zip((cell % CELLS, cell // CELLS), half)
    )
    return Thing(name, colour, small, cell, x, y, edge, text)


def make_scene(rng: random.Random, low: int = 2, high: int = 6, test: bool = False) -> Scene:
    number = rng.randint(low, high)
    sign = rng.random() < 0.5
    names = draw_names(rng, max(2 if test else 1, number - sign), test)
    names += ["sign"] * sign
    cells = rng.sample(range(CELLS * CELLS), len(names))
    things = sorted((place_thing(rng, n, c) for n, c in zip(names, cells)), key=lambda t: t.cell)
    return Scene(tuple(things), blurred=rng.random() < 0.04)


# ---- pictures


@lru_cache(maxsize=1)
def sheet() -> Image.Image:
    return Image.open(SHEET).convert("RGBA")


@lru_cache(maxsize=20_000)
def glyph(index: int, edge: int) -> Image.Image:
    cell = sheet().crop((index * GLYPH, 0, (index + 1) * GLYPH, GLYPH))
    return cell.resize((edge, edge), Image.Resampling.BICUBIC) if edge != GLYPH else cell


def background(rng: random.Random, size: int) -> Image.Image:
    """A muted colour with blobs, tiles or a gradient, and clutter: faint discs, bars and lines."""
    noise = np.random.default_rng(rng.getrandbits(32))
    tint = rng.uniform(85, 185) + noise.uniform(-22, 22, 3)
    cells = rng.choice([1, 2, 2, 3, 5, 8, 13, 24])
    pixels = tint + rng.uniform(3, 20) * noise.standard_normal((cells, cells, 1))
    method = rng.choice([Image.Resampling.BILINEAR, Image.Resampling.NEAREST])
    image = Image.fromarray(np.clip(pixels, 55, 215).astype(np.uint8)).resize((size, size), method)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 12)):
        colour = tuple(int(np.clip(v + rng.uniform(-40, 40), 40, 225)) for v in tint)
        x, y, r = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(0.01, 0.06) * size
        kind = rng.randrange(3)
        if kind == 0:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif kind == 1:
            draw.rectangle((x - r, y - r / 2, x + r, y + r / 2), fill=colour)
        else:
            end = (x + rng.uniform(-6, 6) * r, y + rng.uniform(-6, 6) * r)
            draw.line((x, y, *end), fill=colour, width=max(1, size // 90))
    return image


def shade(rng: random.Random, colour: str) -> tuple[int, ...]:
    light = rng.randint(-10, 10)
    return tuple(max(0, min(255, v + light + rng.randint(-8, 8))) for v in COLOURS[colour])


def paste(image: Image.Image, index: int, edge: float, x: float, y: float, ink: tuple[int, ...] | None = None) -> None:
    side = max(1, round(edge))
    cell = glyph(index, side)
    at = (round(x - side / 2), round(y - side / 2))
    image.paste(ink if ink else cell, (*at, at[0] + side, at[1] + side), cell)


def letter_centres(sign: Thing) -> list[tuple[float, float]]:
    return [(sign.x + (i - (len(sign.text) - 1) / 2) * LETTER, sign.y) for i in range(len(sign.text))]


def draw_thing(image: Image.Image, draw: ImageDraw.ImageDraw, thing: Thing, scale: float, rng: random.Random) -> None:
    x, y = thing.x * scale, thing.y * scale
    if thing.name == "sign":
        fill = shade(rng, thing.colour)
        w, h = PLATE[0] * scale / 2, PLATE[1] * scale / 2
        draw.rounded_rectangle((x - w, y - h, x + w, y + h), radius=3 * scale, fill=fill)
        ink = (10, 10, 10) if sum(fill) > 330 else (250, 250, 250)
        for sign, (cx, cy) in zip(thing.text, letter_centres(thing)):
            paste(image, len(CLASSES) + CHARACTERS.index(sign), 15 * scale, cx * scale, cy * scale, ink)
        return
    if thing.colour:
        r = thing.edge * DISC * scale
        draw.ellipse((x - r, y - r, x + r, y + r), fill=shade(rng, thing.colour))
    paste(image, CLASS_NAMES.index(thing.name), thing.edge * scale, x, y)


def render(scene: Scene, rng: random.Random, size: int = 336) -> Image.Image:
    """The scene as an RGB picture of size x size."""
    image = background(rng, size)
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        draw_thing(image, draw, thing, size / SIDE, rng)
    if scene.blurred:
        image = image.filter(ImageFilter.GaussianBlur(size / 12))
    return image


def load(image: Image.Image) -> np.ndarray:
    """CLIP's preprocessing of a square picture: float32 [3, SIDE, SIDE]."""
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float32) * np.float32(1 / 255)
    return ((pixels - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)


# ---- what each patch shows

# Column -> number of classes; 0 is "none" everywhere.
LABELS = {
    "class": len(CLASSES) + 2,  # the last one is a sign
    "colour": len(COLOURS) + 1,
    "size": 3,
    "place": CELLS * CELLS + 1,
    "anchor": 2,  # 1 on the one patch that shows most of its thing
    "letter": len(CHARACTERS) + 1,  # of the letter whose centre lies in the patch
}
# Where an object's or sign's patches are alike but for these, the whole scene is told by anchors and letters.


def patch_labels(scene: Scene) -> np.ndarray:
    """int64 [GRID * GRID, len(LABELS)]; a blurred scene shows nothing."""
    labels = np.zeros((GRID * GRID, len(LABELS)), dtype=np.int64)
    if scene.blurred:
        return labels
    sub = 7
    canvas = Image.new("L", (GRID * sub, GRID * sub), 0)
    draw = ImageDraw.Draw(canvas)
    scale = GRID * sub / SIDE
    for i, thing in enumerate(scene.things):
        x, y = thing.x * scale, thing.y * scale
        if thing.name == "sign":
            w, h = PLATE[0] * scale / 2, PLATE[1] * scale / 2
            draw.rectangle((x - w, y - h, x + w, y + h), fill=i + 1)
        else:
            r = thing.edge * (DISC if thing.colour else 0.5) * scale
            draw.ellipse((x - r, y - r, x + r, y + r), fill=i + 1)
    cells = np.asarray(canvas).reshape(GRID, sub, GRID, sub).transpose(0, 2, 1, 3).reshape(GRID * GRID, sub * sub)
    cover = (cells[:, :, None] == np.arange(1, len(scene.things) + 1)).sum(1)  # [patches, things]
    best, shown = cover.argmax(1), cover.max(1) >= 5
    for i, thing in enumerate(scene.things):
        mine = shown & (best == i)
        kind = len(CLASSES) if thing.name == "sign" else CLASS_NAMES.index(thing.name)
        colour = 1 + COLOUR_NAMES.index(thing.colour) if thing.colour else 0
        size = 0 if thing.name == "sign" else 1 + (not thing.small)
        labels[mine] = (1 + kind, colour, size, 1 + thing.cell, 0, 0)
        if mine.any():
            labels[np.where(mine, cover[:, i], -1).argmax(), 4] = 1
        for sign, (cx, cy) in zip(thing.text, letter_centres(thing)):
            patch = int(cy // PATCH) * GRID + int(cx // PATCH)
            labels[patch, :4] = (1 + kind, colour, size, 1 + thing.cell)
            labels[patch, 5] = 1 + CHARACTERS.index(sign)
    return labels
