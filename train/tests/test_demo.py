"""The demo model's scenes tell the truth about themselves, and its own model code computes what the reference computes."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor

from train.checkpoint import load_model
from train.golden import nmse
from train.pruner import Pruner, keep_ratios
from train.reference import Reference

DEMO = Path(__file__).resolve().parents[1] / "demo"
pytestmark = pytest.mark.skipif(not DEMO.is_dir(), reason="no train/demo")
sys.path.insert(0, str(DEMO))  # its scripts import each other by bare names


@pytest.fixture(scope="module")
def scenes() -> ModuleType:
    return pytest.importorskip("scenes")


def test_a_scene_follows_from_its_seed(scenes: ModuleType) -> None:
    def draw(seed: int) -> tuple[bytes, str, list[str]]:
        rng = random.Random(seed)
        things = scenes.make_scene(rng)
        return scenes.render(things, rng).tobytes(), scenes.caption(things), [q.text for q in scenes.questions(things, rng, 4)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_scenes_are_within_bounds_and_answers_are_true(scenes: ModuleType) -> None:
    families = set()
    for seed in range(300):
        rng = random.Random(seed)
        things = scenes.make_scene(rng)
        assert 1 <= len(things) <= 6
        assert len({t.name for t in things}) == len(things)
        assert [t.x for t in things] == sorted(t.x for t in things)
        assert all(t.radius <= t.x <= scenes.SIDE - t.radius and t.radius <= t.y <= scenes.SIDE - t.radius for t in things)
        caption = scenes.caption(things)
        assert [caption.index(t.phrase) for t in things] == sorted(caption.index(t.phrase) for t in things)
        for question in scenes.questions(things, rng, 7):
            families.add(question.family)
            if question.family == "existence":
                name = question.text.removesuffix("?").split(" ", 3)[-1]
                assert question.answer == ("Yes." if name in {t.name for t in things} else "No.")
            elif question.text == "How many objects are there?":
                assert question.answer == scenes.NUMBERS[len(things)] + "."
            elif question.family in ("color", "shape"):
                word = question.answer.removesuffix(".").lower()
                given = question.text.removesuffix(" object?").removesuffix("?").split()[-1]
                field, other = ("colour", "kind") if question.family == "color" else ("kind", "colour")
                assert [getattr(t, field) for t in things if getattr(t, other) == given] == [word]
    assert {"existence", "color", "shape", "count"} <= families


def test_objects_are_where_the_labels_say(scenes: ModuleType) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        things = scenes.make_scene(rng)
        labels = scenes.patch_labels(things)
        assert labels.shape == (scenes.GRID**2, len(scenes.LABELS))
        assert (labels >= 0).all() and (labels < np.array(list(scenes.LABELS.values()))).all()
        anchors = labels[labels[:, list(scenes.LABELS).index("anchor")] == 1]
        assert len(anchors) == len(things)


def test_preprocessing_is_clips(scenes: ModuleType) -> None:
    rng = random.Random(2)
    image = scenes.render(scenes.make_scene(rng), rng)
    processor = CLIPImageProcessor(
        size={"shortest_edge": scenes.SIDE}, crop_size=scenes.SIDE,
        image_mean=scenes.CLIP_MEAN.tolist(), image_std=scenes.CLIP_STD.tolist(),
    )  # fmt: skip
    expected = processor(image, return_tensors="np")["pixel_values"][0]
    assert np.abs(scenes.load(image) - expected).max() < 1e-5


@pytest.mark.parametrize("rho", ["0.5", "0.3", None])
def test_demo_model_is_the_reference(rho: str | None, tmp_path: Path) -> None:
    """The trainer's own forward with removal, from the folder it exports with random weights."""
    export, model, pruning = (pytest.importorskip(name) for name in ("export", "model", "pruning"))
    torch.manual_seed(3)
    export.write_json(tmp_path / "config.json", export.config())
    export.write_model(tmp_path, model.DemoLlava())
    export.write_pruner(tmp_path, model.Pruner())
    demo, demo_pruner = export.load_model(tmp_path), export.load_pruner(tmp_path)
    reference = Reference(load_model(tmp_path), Pruner.load(tmp_path / "lvpruning.safetensors"))

    head, tail = [1, 20, 21], [30, 31, 32, 33, 34]
    pixels = torch.randn(1, 3, reference.model.config.vision_config.image_size, reference.model.config.vision_config.image_size)
    prompt = reference.prompt([*head, reference.model.config.image_token_index, *tail], pixels)
    ratios = None if rho is None else keep_ratios(rho, len(model.AFTER_LAYERS))
    expected = reference.forward_removed(prompt, ratios)
    with torch.no_grad():
        rows = pruning.embed_rows(demo, demo.vision(pixels), torch.tensor(head), torch.tensor([tail]), torch.tensor([len(tail)]))
        keep = pruning.ladder(float(rho)) if rho else [1.0] * len(model.AFTER_LAYERS)
        hidden, kept = pruning.removed_forward(demo, demo_pruner, rows, keep, "lvpruning" if rho else "none")
        logits = demo.language_model.lm_head(hidden)[0]
    for decision, indices in zip(expected.decisions, kept, strict=True):
        assert torch.equal(decision.kept[0] - len(head), indices[0])
    assert nmse(logits, expected.logits) <= 1e-9


def test_committed_demo_folder_loads() -> None:
    """Where the trained weights are there: removal equals masking on them too."""
    folder = DEMO.parents[1] / "models" / "demo"
    if not ((folder / "model.safetensors").exists() and (folder / "lvpruning.safetensors").exists()):
        pytest.skip("no trained weights")
    reference = Reference(load_model(folder), Pruner.load(folder / "lvpruning.safetensors"))
    config = reference.model.config
    size = config.vision_config.image_size
    torch.manual_seed(4)
    prompt = reference.prompt([1, 30, config.image_token_index, 31, 32, 33], torch.randn(1, 3, size, size))
    ratios = keep_ratios("0.5", len(reference.pruner.after_layers))
    removed, masked = reference.forward_removed(prompt, ratios), reference.forward_masked(prompt, ratios)
    assert nmse(removed.logits, masked.logits[removed.rows]) <= 1e-9
