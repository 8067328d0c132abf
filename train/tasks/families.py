"""Nine families of questions about a scene, each after one of the benchmarks LVPruning's paper reports.

| family | mirrors | asks | metric |
|---|---|---|---|
| attribute | VQAv2 | colour, size, number, place of an object | soft accuracy (of ten who agree) |
| relation | GQA | what is beside an object; left, right, above, below | exact |
| unanswerable | VizWiz | the same of blurred scenes or absent objects, half of the time | soft accuracy |
| choice | ScienceQA | one of four letters, theme knowledge or place | exact |
| text | TextVQA | the word or number on a sign | soft accuracy |
| existence | POPE | is there; absent ones random, popular or adversarial | accuracy and F1 |
| circular | MMBench | one of four letters, the options in all four rotations | all four right |
| caption | LLaVA-W | describe the image | F1 of objects, attributes, places |
| mixed | MM-Vet | two skills in one answer | share of parts |

Answers are lower case words, signs' words upper case. A generator returns None where a scene has no clear answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from train.tasks.scenes import (
    CLASS_NAMES,
    COLOUR_NAMES,
    PLACES,
    POPULAR,
    THEME_OF,
    WEIGHTS,
    Scene,
    Thing,
    plural,
)

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six"]
LETTERS = "ABCD"
UNSURE = "unanswerable"
UNSURE_HINT = " Say unanswerable if it cannot be known."
LETTER_HINT = " Answer with the letter."
# How often each is the right answer, so that wrong options can be drawn alike and none is a better guess than another.
NAME_WEIGHTS = dict(zip(CLASS_NAMES, WEIGHTS)) | {"sign": 13}
NUMBER_WEIGHTS = dict(zip(NUMBERS, [25, 28, 28, 8, 4.6, 4.6, 2]))
CAPTION_PROMPTS = ["Describe the image.", "Describe this picture.", "What do you see?"]


@dataclass(frozen=True)
class Question:
    family: str
    text: str
    answer: str
    kind: str = ""  # the sub-task: "color", "popular", ...


def a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def singles(scene: Scene, objects: bool = False) -> list[Thing]:
    """Things that are the only ones of their name."""
    names = [t.name for t in scene.things]
    return [t for t in scene.things if names.count(t.name) == 1 and not (objects and t.name == "sign")]


def absent(scene: Scene, rng: random.Random, among: list[str] | None = None) -> str | None:
    """Drawn as often as it would be there."""
    names = {t.name for t in scene.things}
    left = [n for n in among or CLASS_NAMES if n not in names]
    return rng.choices(left, [NAME_WEIGHTS[n] for n in left])[0] if left else None


def draw_wrong(rng: random.Random, weights: dict[str, float], right: str, number: int) -> list[str]:
    """Options that differ from the right one and from each other."""
    wrong: list[str] = []
    while len(wrong) < number:
        option = rng.choices(list(weights), list(weights.values()))[0]
        if option != right and option not in wrong:
            wrong.append(option)
    return wrong


def colour_question(name: str) -> str:
    return "What color is the sign?" if name == "sign" else f"What color is behind the {name}?"


# ---- single skills, shared by families: (question, answer, kind) or None


def ask_colour(scene: Scene, rng: random.Random) -> tuple[str, str, str] | None:
    able = [t for t in singles(scene) if t.colour]
    if not able:
        return None
    thing = rng.choice(able)
    return colour_question(thing.name), thing.colour, "color"


def ask_size(scene: Scene, rng: random.Random) -> tuple[str, str, str] | None:
    able = singles(scene, objects=True)
    if not able:
        return None
    thing = rng.choice(able)
    return f"Is the {thing.name} small or large?", "small" if thing.small else "large", "size"


def ask_number(scene: Scene, rng: random.Random) -> tuple[str, str, str] | None:
    names = [t.name for t in scene.things if t.name != "sign"]
    if rng.random() < 0.2:
        return "How many objects are there besides signs?", NUMBERS[len(names)], "count"
    repeated = [n for n in names if names.count(n) > 1]
    # Most objects are alone: left to chance, "one" would be right more often than not.
    if repeated and rng.random() < 0.65:
        name = rng.choice(repeated)
    else:
        name = rng.choice(names) if rng.random() < 0.55 else absent(scene, rng)
    return f"How many {plural(name)} are there?", NUMBERS[names.count(name)], "count"


def ask_place(scene: Scene, rng: random.Random) -> tuple[str, str, str] | None:
    able = singles(scene)
    if not able:
        return None
    thing = rng.choice(able)
    return f"Where is the {thing.name}?", thing.place, "place"


def ask_at(scene: Scene, rng: random.Random) -> tuple[str, str, str] | None:
    thing = rng.choice(scene.things)
    return f"What is at the {thing.place}?", thing.name, "at"


def ask_text(scene: Scene, rng: random.Random) -> tuple[str, str, str] | None:
    signs = [t for t in scene.things if t.name == "sign"]
    return ("What does the sign say?", signs[0].text, "text") if signs else None


SKILLS = [ask_colour, ask_size, ask_number, ask_place, ask_at]

# ---- families


def attribute(scene: Scene, rng: random.Random) -> list[Question] | None:
    found = rng.choice(SKILLS)(scene, rng)
    return [Question("attribute", *found)] if found else None


def relation(scene: Scene, rng: random.Random) -> list[Question] | None:
    able = singles(scene)
    if len(able) < 2:
        return None
    if rng.random() < 0.5:
        pairs = [
            (t, o) for t in able for o in scene.things
            if o is not t and abs(o.row - t.row) + abs(o.column - t.column) == 1
        ]
        if pairs:
            thing, other = rng.choice(pairs)
            way = {(0, 1): "right of", (0, -1): "left of", (1, 0): "below", (-1, 0): "above"}[
                other.row - thing.row, other.column - thing.column
            ]
            return [Question("relation", f"What is just {way} the {thing.name}?", other.name, "neighbor")]
    one, two = rng.sample(able, 2)
    ways = []
    if one.column != two.column:
        ways.append(("left or right of", "left" if one.column < two.column else "right"))
    if one.row != two.row:
        ways.append(("above or below", "above" if one.row < two.row else "below"))
    way, answer = rng.choice(ways)
    return [Question("relation", f"Is the {one.name} {way} the {two.name}?", answer, "side")]


def unanswerable(scene: Scene, rng: random.Random) -> list[Question] | None:
    skill = rng.choice([ask_colour, ask_size, ask_place])
    found = skill(scene, rng)
    if not found:
        return None
    text, answer, kind = found
    if scene.blurred:
        answer, kind = UNSURE, "blurred"
    elif rng.random() < 0.5:
        thing = rng.choice(singles(scene))
        name = absent(scene, rng, [n for n in CLASS_NAMES if rng.random() < 0.5 or THEME_OF[n] == THEME_OF.get(thing.name)])
        if name is None:
            return None
        text = {
            ask_colour: colour_question(name),
            ask_size: f"Is the {name} small or large?",
            ask_place: f"Where is the {name}?",
        }[skill]
        answer, kind = UNSURE, "absent"
    return [Question("unanswerable", text + UNSURE_HINT, answer, kind)]


def with_options(family: str, text: str, options: list[str], right: str, kind: str) -> Question:
    listed = " ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options))
    return Question(family, f"{text} {listed}{LETTER_HINT}", LETTERS[options.index(right)], kind)


def choice(scene: Scene, rng: random.Random) -> list[Question] | None:
    """Which animal (fruit, ...) is there, or what is at a place; the wrong options are absent."""
    objects = [t for t in scene.things if t.name != "sign"]
    if not objects:
        return None
    thing = rng.choice(objects)
    names = {t.name for t in scene.things}
    peers = [n for n in CLASS_NAMES if THEME_OF[n] == THEME_OF[thing.name] and n not in names]
    if rng.random() < 0.6 and len(peers) >= 3:
        wrong = draw_wrong(rng, {n: NAME_WEIGHTS[n] for n in peers}, thing.name, 3)
        text, kind = f"Which {THEME_OF[thing.name]} is here?", "theme"
    else:
        others = sorted(names - {thing.name, "sign"})
        away = draw_wrong(rng, {n: NAME_WEIGHTS[n] for n in CLASS_NAMES if n not in names}, thing.name, 3)
        text, wrong, kind = f"What is at the {thing.place}?", rng.sample(others + away, 3), "at"
    options = [thing.name, *wrong]
    rng.shuffle(options)
    return [with_options("choice", text, options, thing.name, kind)]


def text(scene: Scene, rng: random.Random) -> list[Question] | None:
    found = ask_text(scene, rng)
    return [Question("text", *found)] if found else None


def existence(scene: Scene, rng: random.Random) -> list[Question] | None:
    """One present and one absent object, alike in how often they are met: as many yes as no, as in POPE."""
    names = sorted({t.name for t in scene.things} - {"sign"})
    if not names:
        return None
    kind = rng.choice(["random", "popular", "adversarial"])
    if kind == "random":
        name = absent(scene, rng)
    elif kind == "popular":
        name = absent(scene, rng, POPULAR)
    else:
        themes = {THEME_OF[n] for n in names}
        name = absent(scene, rng, [n for n in CLASS_NAMES if THEME_OF[n] in themes])
    there = rng.choice([n for n in names if n in POPULAR] or names) if kind == "popular" else rng.choice(names)
    if name is None:
        return None
    return [
        Question("existence", f"Is there {a(there)} in the image?", "yes", kind),
        Question("existence", f"Is there {a(name)} in the image?", "no", kind),
    ]


def circular(scene: Scene, rng: random.Random) -> list[Question] | None:
    """One question, its four options in all rotations."""
    found = rng.choice([ask_colour, ask_place, ask_at, ask_number])(scene, rng)
    if not found:
        return None
    asked, right, kind = found
    weights = {"color": dict.fromkeys(COLOUR_NAMES, 1.0), "place": dict.fromkeys(PLACES, 1.0),
               "at": NAME_WEIGHTS, "count": NUMBER_WEIGHTS}[kind]  # fmt: skip
    options = [right, *draw_wrong(rng, weights, right, 3)]
    rng.shuffle(options)
    turned = [options[i:] + options[:i] for i in range(4)]
    return [with_options("circular", asked, o, right, kind) for o in turned]


def phrase(thing: Thing) -> str:
    if thing.name == "sign":
        return f"a {thing.colour} sign {thing.text} at {thing.place}"
    on = f" on {thing.colour}" if thing.colour else ""
    return f"{a('small ' + thing.name if thing.small else thing.name)}{on} at {thing.place}"


def caption_text(scene: Scene) -> str:
    if scene.blurred:
        return "The image is blurred."
    phrases = [phrase(t) for t in scene.things]
    listed = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
    return f"The image shows {listed}."


def caption(scene: Scene, rng: random.Random) -> list[Question]:
    prompt = CAPTION_PROMPTS[0] if rng.random() < 0.7 else rng.choice(CAPTION_PROMPTS)
    return [Question("caption", prompt, caption_text(scene))]


def mixed(scene: Scene, rng: random.Random) -> list[Question] | None:
    """Two different skills in one question; the sign is one of them where there is one."""
    skills = rng.sample([ask_colour, ask_number, ask_place, ask_size], 2)
    if rng.random() < 0.6 and ask_text(scene, rng):
        skills[0] = ask_text
    parts = [skill(scene, rng) for skill in skills]
    if None in parts:
        return None
    (one, answer, kind), (two, other, more) = parts
    joined = f"{one[:-1]} and {two[0].lower()}{two[1:]}"
    return [Question("mixed", joined, f"{answer} and {other}", f"{kind}+{more}")]


FAMILIES: dict[str, Callable[[Scene, random.Random], list[Question] | None]] = {
    "attribute": attribute,
    "relation": relation,
    "unanswerable": unanswerable,
    "choice": choice,
    "text": text,
    "existence": existence,
    "circular": circular,
    "caption": caption,
    "mixed": mixed,
}
OF_SHARP_SCENES = [f for f in FAMILIES if f not in ("unanswerable", "caption")]


def ask(scene: Scene, rng: random.Random, family: str) -> list[Question]:
    """The family's questions about the scene, [] where it has none; only two families ask of blurred scenes."""
    if scene.blurred and family in OF_SHARP_SCENES:
        return []
    return FAMILIES[family](scene, rng) or []
