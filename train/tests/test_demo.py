"""The demo model's own code computes what the reference computes, its stages train and resume, and the folder in models/demo is sound."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from train.checkpoint import load_model
from train.demo import data, evaluate, export, make_examples, tokenizer
from train.demo.curves import points
from train.demo.model import DemoLlava
from train.demo.tokenizer import IMAGE_ID, Tokens
from train.golden import nmse
from train.pruner import Pruner, keep_ratios
from train.reference import Reference
from train.tasks import families, scenes

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models" / "demo"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As export.py writes it, with random weights."""
    path = tmp_path_factory.mktemp("demo")
    torch.manual_seed(3)
    export.write_json(path / "config.json", export.config())
    export.write_model(path, DemoLlava())
    return path


def asked() -> tuple[list[scenes.Scene], list[list[families.Question]]]:
    rng = random.Random(11)
    batch = data.draw_scenes(rng, 3)
    return batch, data.draw_blocks(rng, batch, 4)


def test_preprocessing_is_clips() -> None:
    rng = random.Random(2)
    image = scenes.render(scenes.make_scene(rng), rng)
    processor = CLIPImageProcessor(
        size={"shortest_edge": scenes.SIDE}, crop_size=scenes.SIDE,
        image_mean=scenes.CLIP_MEAN.tolist(), image_std=scenes.CLIP_STD.tolist(),
    )  # fmt: skip
    expected = processor(image, return_tensors="np")["pixel_values"][0]
    assert np.abs(scenes.load(image) - expected).max() < 1e-5


@pytest.mark.parametrize("bf16, most", [(False, 1e-9), (True, 2e-3)])
def test_packed_questions_are_the_reference(folder: Path, bf16: bool, most: float) -> None:
    """Each block of a packed sequence has the logits of a sequence of its own, computed by transformers' layers; in bf16 nearly."""
    demo, reference, tokens = export.load_model(folder), Reference(load_model(folder), None), Tokens(DEMO)
    batch, questions = asked()
    pixels = torch.from_numpy(np.stack([scenes.load(scenes.render(s, random.Random(1), 224)) for s in batch]))
    packed = data.pack(tokens, questions)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        vision = demo.vision(pixels)
        shared = len(packed.head) + vision.shape[1]
        everywhere = torch.arange(vision.shape[1]).expand(len(batch), -1)
        logits = demo.language_model.lm_head(data.text_rows(demo, packed, vision, everywhere))
    for i, of_scene in enumerate(questions):
        for b, question in enumerate(of_scene):
            ids = [*tokens.head, IMAGE_ID, *tokens.tail(question.text), *tokens.answer(question.answer)[:-1]]
            expected = reference.forward_removed(reference.prompt(ids, pixels[i:i + 1]), None).logits[shared:]
            assert nmse(logits[i][packed.block[i] == b].float(), expected) <= most


def test_the_look_in_between_counts_whole_answers(folder: Path) -> None:
    found = evaluate.answers(export.load_model(folder), Tokens(DEMO), *evaluate.drawn(1, 12))
    assert set(families.FAMILIES) == {name for name in found if "/" not in name}
    assert all(0 <= share <= 1 and nll > 0 and number > 0 for share, nll, number in found.values())


def test_tokenizers_agree() -> None:
    tokenizer.check(DEMO)


def test_stages_train_and_resume(tmp_path: Path) -> None:
    def run(stage: str, steps: int, *more: str) -> str:
        command = [sys.executable, "-m", "train.demo.train", stage, "--state", str(tmp_path), "--batch", "2", "--questions", "2",
                   "--steps", str(steps), *more]  # fmt: skip
        return subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout

    run("vision", 2)
    run("language", 2)
    run("projector", 2, "--scenes", "4")
    run("joint", 2, "--workers", "2")
    assert "joint: resumed at step 2" in run("joint", 4, "--workers", "2")
    state = torch.load(tmp_path / "joint.pt", weights_only=False)
    assert state["steps"] == 4
    DemoLlava().load_state_dict(state["modules"]["model"])


def test_curves_read_what_training_prints(tmp_path: Path) -> None:
    log = tmp_path / "joint.log"
    log.write_text("joint: resumed at step 3\njoint  12.5% step 40 1.20 s/step loss 0.9 norm 1.0 caption 0.250 text 0.500\n")
    assert points(log, "caption") == [(0.125, 0.25)]


def test_example_pictures_are_those_committed(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "train.demo.make_examples", "--output", str(tmp_path)], check=True, cwd=ROOT)
    committed = ROOT / "examples" / "images"
    assert (tmp_path / "manifest.jsonl").read_text() == (committed / "manifest.jsonl").read_text()
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == sorted(p.name for p in committed.iterdir())
    for name in names:
        if name.endswith(".png"):  # pixels, not bytes: zlib differs between versions
            assert np.array_equal(np.asarray(Image.open(tmp_path / name)), np.asarray(Image.open(committed / name))), name
    scene, _ = make_examples.draw(1)
    assert len(scene.things) >= 4


def test_committed_demo_folder() -> None:
    """Its configuration is export.py's, and removal equals masking on its trained weights."""
    assert json.loads((DEMO / "config.json").read_text()) == export.config()
    reference = Reference(load_model(DEMO), Pruner.load(DEMO / "lvpruning.safetensors"))
    size = reference.model.config.vision_config.image_size
    torch.manual_seed(4)
    prompt = reference.prompt([1, 30, IMAGE_ID, 31, 32, 33], torch.randn(1, 3, size, size))
    ratios = keep_ratios("0.5", len(reference.pruner.after_layers))
    removed, masked = reference.forward_removed(prompt, ratios), reference.forward_masked(prompt, ratios)
    assert nmse(removed.logits, masked.logits[removed.rows]) <= 1e-9
