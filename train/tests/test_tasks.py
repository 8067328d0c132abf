"""The nine families tell the truth about their scenes, and questions.jsonl is what lvpipe eval reads."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from train.tasks import families, make, scenes
from train.tasks.families import FAMILIES, UNSURE, ask

ROOT = Path(__file__).resolve().parents[2]


def drawn(seed: int, test: bool = False) -> tuple[scenes.Scene, random.Random]:
    rng = random.Random(seed)
    return scenes.make_scene(rng, test=test), rng


def test_a_scene_follows_from_its_seed() -> None:
    def picture(seed: int) -> bytes:
        scene, rng = drawn(seed)
        return scenes.render(scene, rng, 168).tobytes()

    assert picture(5) == picture(5)
    assert picture(5) != picture(6)


def test_splits_share_no_held_out_pair() -> None:
    def pairs(scene: scenes.Scene) -> list[tuple[str, str]]:
        names = sorted({t.name for t in scene.things} - {"sign"})
        return [(a, b) for i, a in enumerate(names) for b in names[i + 1:] if scenes.held_out(a, b)]

    for seed in range(300):
        assert not pairs(drawn(seed)[0])
        assert pairs(drawn(seed, test=True)[0])


def test_things_stay_in_their_cells() -> None:
    for seed in range(300):
        scene, _ = drawn(seed, test=seed % 2 == 0)
        assert 1 <= len(scene.things) <= 6
        cells = [t.cell for t in scene.things]
        assert cells == sorted(set(cells))
        for t in scene.things:
            reach = (scenes.PLATE[0] / 2, scenes.PLATE[1] / 2) if t.name == "sign" else (t.edge * (scenes.DISC if t.colour else 0.5),) * 2
            assert t.column * scenes.CELL <= t.x - reach[0] and t.x + reach[0] <= (t.column + 1) * scenes.CELL
            assert t.row * scenes.CELL <= t.y - reach[1] and t.y + reach[1] <= (t.row + 1) * scenes.CELL


def test_answers_are_true() -> None:
    asked: Counter[str] = Counter()
    for seed in range(600):
        scene, rng = drawn(seed, test=True)
        things = {t.name: t for t in scene.things}
        counts = Counter(t.name for t in scene.things)
        for family in FAMILIES:
            for q in ask(scene, rng, family):
                asked[f"{family}/{q.kind}"] += 1
                words = q.text.replace("?", "").replace(".", "").split()
                if family == "existence":
                    assert q.answer == ("yes" if words[3] in counts else "no")
                elif family == "text":
                    assert q.answer == things["sign"].text
                elif family in ("choice", "circular"):
                    options = dict(zip("ABCD", [o.strip() for o in split_options(q.text)]))
                    assert len(set(options.values())) == 4
                    if family == "choice" and q.kind == "theme":
                        assert [o for o in options.values() if o in counts] == [options[q.answer]]
                    else:
                        assert options[q.answer] == told(scene, q.text[: q.text.index("?")].split())
                elif family == "attribute":
                    assert q.answer == told(scene, words)
                elif family == "unanswerable" and (scene.blurred or q.answer == UNSURE):
                    assert q.answer == UNSURE and (scene.blurred or not any(name in words for name in counts))
                elif family == "unanswerable":
                    assert q.answer == told(scene, q.text.removesuffix(families.UNSURE_HINT).removesuffix("?").split())
                elif family == "caption" and not scene.blurred:
                    said = q.answer.removeprefix("The image shows ").removesuffix(".").replace(" and ", ", ").split(", ")
                    assert all(all(fact in phrase for fact in make.facts(t)) for t, phrase in zip(scene.things, said, strict=True))
                elif q.kind == "side":
                    one, two = things[words[2]], things[words[-1]]
                    assert (q.answer == "left") == ("left" in words and one.column < two.column)
                    assert (q.answer == "above") == ("above" in words and one.row < two.row)
                elif q.kind == "neighbor":
                    thing = things[words[-1]]
                    row, column = {"right": (0, 1), "left": (0, -1), "below": (1, 0), "above": (-1, 0)}[words[3]]
                    assert q.answer in [t.name for t in scene.things if (t.row, t.column) == (thing.row + row, thing.column + column)]
                elif family == "mixed":
                    one, two = q.text.removesuffix("?").split(" and ", 1)
                    assert q.answer == f"{told(scene, one.split())} and {told(scene, two.split())}"
    missing = [f for f in FAMILIES if not any(key.startswith(f"{f}/") for key in asked)]
    assert not missing
    assert 0.45 < asked["unanswerable/absent"] / sum(n for k, n in asked.items() if k.startswith("unanswerable/") and "blurred" not in k) < 0.55


def told(scene: scenes.Scene, words: list[str]) -> str:
    """The answer to one skill's question, from the scene."""
    first, counts = " ".join(words[:2]).lower(), Counter(t.name for t in scene.things)
    if first == "how many":
        name = next((n for n in scenes.CLASS_NAMES if scenes.plural(n) == words[2]), "")
        return families.NUMBERS[counts[name] if words[2] != "objects" else sum(counts.values()) - counts["sign"]]
    if first == "what is":
        return next(t.name for t in scene.things if t.place == " ".join(words[4:]))
    thing = next(t for t in scene.things if t.name in words)
    assert counts[thing.name] == 1
    if first == "where is":
        return thing.place
    if first == "is the":
        return "small" if thing.small else "large"
    return thing.text if first == "what does" else thing.colour


def split_options(text: str) -> list[str]:
    rest = text[text.index(" A. ") + 4:].removesuffix(families.LETTER_HINT)
    found = []
    for letter in "BCD":
        option, rest = rest.split(f" {letter}. ", 1)
        found.append(option)
    return [*found, rest]


def test_patches_show_their_things() -> None:
    for seed in range(200):
        scene, _ = drawn(seed)
        labels = scenes.patch_labels(scene)
        assert labels.shape == (scenes.GRID**2, len(scenes.LABELS))
        assert all(labels[:, i].max() < n for i, n in enumerate(scenes.LABELS.values()))
        if scene.blurred:
            assert not labels.any()
            continue
        assert labels[:, 4].sum() == len(scene.things)
        kinds = {int(k) - 1 for k in labels[:, 0] if k}
        assert kinds == {len(scenes.CLASSES) if t.name == "sign" else scenes.CLASS_NAMES.index(t.name) for t in scene.things}
        for t in scene.things:
            letters = [scenes.CHARACTERS[v - 1] for v in labels[labels[:, 3] == 1 + t.cell, 5] if v]
            assert sorted(letters) == sorted(t.text)


def test_glyphs_are_all_there() -> None:
    sheet = np.asarray(scenes.sheet())
    cells = sheet.reshape(scenes.GLYPH, -1, scenes.GLYPH, 4)
    assert cells.shape[1] == len(scenes.CLASSES) + len(scenes.CHARACTERS)
    assert (cells[..., 3].max(axis=(0, 2)) > 200).all()


def test_questions_file(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "train.tasks.make", "--output", str(tmp_path), "--images", "20"], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").open()]
    assert len({r["id"] for r in rows}) == len(rows)
    assert {r["family"] for r in rows} == set(FAMILIES)
    assert {r["metric"] for r in rows} == {"soft", "exact", "facts", "parts"}
    assert all((tmp_path / r["image"]).exists() and r["answers"] and r["answer"] for r in rows)
    groups = Counter(r["group"] for r in rows if "group" in r)
    assert set(groups.values()) == {4}
    for r in rows:
        if r["metric"] == "facts":
            assert all(isinstance(f, list) and all(isinstance(v, str) for v in f) for f in r["answers"])
