"""The goldens in the repository are what their script makes, and keep to what their README promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from train.golden import CASES, check_case, differences, write_case
from train.safetensors_writer import save_safetensors

MAX_TOTAL_BYTES = 8 << 20
BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("name", ["sparse-config-f16", "gqa-sharded-bf16"])
def test_check(name: str) -> None:
    assert check_case(BY_NAME[name]) == []


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """In another process too."""
    case = BY_NAME["tied-absent-rope-new"]
    write_case(case, tmp_path / "here")
    code = "import sys, pathlib, torch; torch.set_num_threads(1); from train.golden import *; "
    code += f"write_case(next(c for c in CASES if c.name == {case.name!r}), pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, tmp_path / "there"], check=True, cwd=Path(__file__).resolve().parents[2])
    for file in (tmp_path / "here").iterdir():
        assert file.read_bytes() == (tmp_path / "there" / file.name).read_bytes(), file.name


def test_check_sees_a_change(tmp_path: Path, golden_models: Path) -> None:
    case = BY_NAME["tied-absent-rope-new"]
    write_case(case, tmp_path / case.name)
    golden = tmp_path / case.name / "golden.safetensors"
    assert differences(golden_models / case.name, golden.parent) == []
    with safe_open(golden, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(golden)
    tensors["dense_one.logits"][0, 0] += 0.01
    save_safetensors(golden, tensors, metadata)
    (golden.parent / "config.json").unlink()
    assert len(differences(golden_models / case.name, golden.parent)) == 2


def test_repository_holds_every_case_and_no_other(golden_models: Path) -> None:
    assert {folder.name for folder in golden_models.iterdir()} == BY_NAME.keys()
    assert sum(file.stat().st_size for file in golden_models.rglob("*") if file.is_file()) <= MAX_TOTAL_BYTES


@pytest.mark.parametrize("name", BY_NAME)
def test_shapes_are_those_of_the_readme(name: str, golden_models: Path) -> None:
    case = BY_NAME[name]
    path = golden_models / name / "golden.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    m = (case.vision.image // case.vision.patch) ** 2 + (case.select == "full")
    for scenario in metadata["scenarios"].split(","):
        own = {key.removeprefix(scenario + "."): t for key, t in tensors.items() if key.startswith(scenario + ".")}
        pruned = f"{scenario}.keep" in metadata
        n_points = len(metadata[f"{scenario}.keep"].split(",")) if pruned else 0
        n, n_images = len(own["input_ids"]), len(own["pixel_values"])
        n_text = int((own["image_of_row"] == -1).sum())
        counts = own["counts"].int()
        assert n == n_text + n_images * m == len(own["prompt_ids"]) - n_images + n_images * m
        assert own["features"].shape == (n_images, m, case.text.hidden)
        assert counts.shape == (n_images, 1 + n_points) and (counts[:, 0] == m).all()
        assert len(own["rows"]) == n_text + counts[:, -1].sum()
        assert own["hidden"].shape == (len(own["rows"]), case.text.hidden)
        assert own["logits"].shape == (n_text, case.text.vocab) and len(own["text_rows"]) == n_text
        assert own["logits"][-1].argmax() == own["tokens"][0]
        assert own["tokens"].shape == own["logprobs"].shape == (8,)
        for i in range(n_images):
            left = torch.arange(m).float()
            for s in range(n_points):
                scores, kept = own.get(f"point{s}.image{i}.scores"), own.get(f"point{s}.image{i}.kept")
                assert len(left) == counts[i, s] and (scores is None) == (len(left) == 0)
                k = int(counts[i, s + 1])
                if k and metadata[f"{scenario}.pruner"] != "adaptprune":  # the k best scored, in order
                    assert torch.equal(kept, left[scores.topk(k).indices.sort().values])
                left = kept if k else left[:0]
                assert (kept is None) == (k == 0)
