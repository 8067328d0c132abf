"""Generates tests/golden/models: small random LLaVA folders and what the reference computes from them.

    python3 -m train.golden                  writes all cases
    python3 -m train.golden CASE...          writes some
    python3 -m train.golden --check [CASE...]  regenerates into a temporary folder and compares; status 1 on a difference

The files are described in tests/golden/README.md. They are never edited by hand.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from train.checkpoint import load_model
from train.golden_cases import CASES, Case
from train.golden_folder import BOS, EOS, SECOND_EOS, random_normal, write_folder
from train.pruner import Pruner, keep_ratios
from train.reference import Generation, Output, Prompt, Reference
from train.safetensors_writer import save_safetensors
from train.training_free import AdaptPrune, Chooser, LastAttention, Modules, Random, default_points

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "models"
NEW_TOKENS = 8
MIN_SCORE_GAP = 1e-3  # at the k-th place; f32 scores are off by up to 1e-4, so a smaller gap could turn on rounding
MIN_LOGIT_GAP = 1e-3  # between the two best tokens
MIN_SHARE_GAP = 1e-4  # between attentions, relative to the larger one
RANDOM_KEY = 0x123456789ABCDEF  # of every sequence
MAX_NMSE = 1e-9  # masked against removed forward
CHECK_TOLERANCE = 1e-4  # absolute and relative, for computed values on another machine
MAX_DRAWS = 100
IMAGE = "image"

# What stands in the prompt, after bos: a number of text tokens, or an image.
LAYOUT_ONE = (3, IMAGE, 5)
LAYOUT_TWO = (2, IMAGE, 3, IMAGE, 6)
LAYOUT_THREE = (IMAGE, IMAGE, 2, IMAGE, 4)


@dataclass(frozen=True)
class Scenario:
    layout: tuple[int | str, ...]  # of the prompt
    keep: str | tuple[str, ...] | None  # None: dense
    pruner: str = "lvpruning"


def scenarios(case: Case) -> dict[str, Scenario]:
    keep_one, keep_two = case.pruning.keep_one, case.pruning.keep_two
    result = {
        "dense_one": Scenario(LAYOUT_ONE, None),
        "dense_two": Scenario(LAYOUT_TWO, None),
        "pruned_one": Scenario(LAYOUT_ONE, keep_one),
        "pruned_two": Scenario(LAYOUT_TWO, keep_two),
    }
    if case.three_images:
        result["pruned_three"] = Scenario(LAYOUT_THREE, keep_two)
    if case.training_free:
        result["attention_two"] = Scenario(LAYOUT_TWO, "0.4", "last-attention")
        result["adapt_one"] = Scenario(LAYOUT_ONE, "0.25", "adaptprune")
        result["adapt_two"] = Scenario(LAYOUT_TWO, "0.4", "adaptprune")
        result["random_two"] = Scenario(LAYOUT_TWO, "0.6", "random")
    return result


def chooser(name: str, case: Case, modules: Pruner) -> Chooser:
    points = default_points(name, case.text.layers)
    if name == "random":
        return Random(points, RANDOM_KEY)
    if name == "last-attention":
        return LastAttention(points)
    return AdaptPrune(points, (case.vision.image // case.vision.patch) ** 2) if name == "adaptprune" else Modules(modules)


def draw_prompt(case: Case, reference: Reference, layout: tuple[int | str, ...], seed: str) -> tuple[list[int], Prompt]:
    """Random text ids and pixels: the prompt with one image token per image, and the expanded one."""
    n_text = sum(part for part in layout if isinstance(part, int))
    allowed = [i for i in range(3, case.text.vocab) if i != case.image_token]
    uniform = np.random.Generator(np.random.PCG64(int.from_bytes(seed.encode(), "big"))).integers(0, len(allowed), n_text)
    text = iter(allowed[i] for i in uniform)
    ids = [BOS]
    for part in layout:
        ids += [next(text) for _ in range(part)] if isinstance(part, int) else [case.image_token]
    size = case.vision.image
    pixels = random_normal(seed, (layout.count(IMAGE), 3, size, size))
    return ids, reference.prompt(ids, pixels)


def is_robust(case: Case, scenario: Scenario, output: Output, generation: Generation) -> bool:
    """No decision hangs on rounding, and generation meets no token that an engine treats in a special way."""
    special = {EOS, SECOND_EOS, case.image_token}
    score_gap = min((decision.gap for decision in output.decisions), default=float("inf"))
    return (
        score_gap >= (MIN_SCORE_GAP if scenario.pruner == "lvpruning" else MIN_SHARE_GAP)
        and min(generation.gaps) >= MIN_LOGIT_GAP
        and not special & set(generation.tokens)
    )


def nmse(a: Tensor, b: Tensor) -> float:
    """Squared error over the energy of b."""
    return float((a - b).double().pow(2).sum() / b.double().pow(2).sum())


def scenario_tensors(reference: Reference, ids: list[int], prompt: Prompt, ratios: Sequence[Decimal] | None,
                     output: Output, generation: Generation) -> dict[str, Tensor]:  # fmt: skip
    """Names without the scenario's prefix; see tests/golden/README.md. Indices are stored as f32."""
    text = prompt.image_of_row[output.rows] < 0
    counts = [[reference.vision_tokens] * prompt.n_images] + [[len(k) for k in d.kept] for d in output.decisions]
    tensors = {
        "prompt_ids": torch.tensor(ids),
        "input_ids": prompt.input_ids,
        "image_of_row": prompt.image_of_row,
        "pixel_values": prompt.pixel_values,
        "features": reference.features(prompt.pixel_values),
        "counts": torch.tensor(counts).T,
        "rows": output.rows,
        "hidden": output.hidden,
        "text_rows": output.rows[text],
        "logits": output.logits[text],
        "tokens": torch.tensor(generation.tokens),
        "logprobs": torch.tensor(generation.logprobs),
    }
    if ratios is not None:
        tensors["keep"] = torch.tensor([float(r) for r in ratios])
    for s, decision in enumerate(output.decisions):
        for i in range(prompt.n_images):
            first = int((prompt.image_of_row == i).nonzero()[0])
            tensors[f"point{s}.image{i}.scores"] = decision.scores[i]
            tensors[f"point{s}.image{i}.kept"] = decision.kept[i] - first
    return {name: tensor.float() for name, tensor in tensors.items() if tensor.numel()}


def write_case(case: Case, folder: Path) -> str:
    """Writes the whole folder; returns a line about it."""
    if folder.exists():
        shutil.rmtree(folder)
    write_folder(case, folder)
    model, modules = load_model(folder), Pruner.load(folder / "lvpruning.safetensors")
    tensors: dict[str, Tensor] = {}
    metadata = {"scenarios": ",".join(scenarios(case))}
    n_draws, largest_nmse, logits = 0, 0.0, []
    for name, scenario in scenarios(case).items():
        pruned = Reference(model, chooser(scenario.pruner, case, modules))
        ratios = None if scenario.keep is None else keep_ratios(scenario.keep, len(pruned.pruner.after_layers))
        for draw in range(MAX_DRAWS):
            ids, prompt = draw_prompt(case, pruned, scenario.layout, f"{case.name}/{name}/{draw}")
            output = pruned.forward_removed(prompt, ratios)
            generation = pruned.generate(prompt, ratios, NEW_TOKENS)
            if is_robust(case, scenario, output, generation):
                break
        else:
            raise RuntimeError(f"{case.name}/{name}: no draw of {MAX_DRAWS} has clear decisions")
        n_draws += draw + 1
        masked = pruned.forward_masked(prompt, ratios)
        largest_nmse = max(largest_nmse, nmse(output.logits, masked.logits[output.rows]))
        if largest_nmse > MAX_NMSE:
            raise RuntimeError(f"{case.name}/{name}: masked and removed forward differ, NMSE {largest_nmse:.2e}")
        logits.append(output.logits.std())
        for key, tensor in scenario_tensors(pruned, ids, prompt, ratios, output, generation).items():
            tensors[f"{name}.{key}"] = tensor
        if ratios is not None:
            metadata[f"{name}.keep"] = ",".join(map(str, ratios))
            metadata[f"{name}.pruner"] = scenario.pruner
    save_safetensors(folder / "golden.safetensors", tensors, metadata)
    size = sum(file.stat().st_size for file in folder.iterdir())
    spread = torch.stack(logits)
    return (
        f"{case.name:32} {size / 1024:6.0f} KB  {n_draws} draws  NMSE {largest_nmse:.1e}  "
        f"logit std {spread.min():.2f}..{spread.max():.2f}"
    )


def differences(expected: Path, actual: Path) -> list[str]:
    """What differs between two folders of a case: weights and JSON bit for bit, computed values within a tolerance."""
    names = {file.name for file in expected.iterdir()} | {file.name for file in actual.iterdir()}
    found: list[str] = []
    for name in sorted(names):
        a, b = expected / name, actual / name
        if not (a.exists() and b.exists()):
            found.append(f"{name}: only in {'the repository' if a.exists() else 'the regenerated folder'}")
        elif name != "golden.safetensors":
            if a.read_bytes() != b.read_bytes():
                found.append(f"{name}: bytes differ")
        else:
            x, y = load_file(a), load_file(b)
            for key in sorted(x.keys() ^ y.keys()):
                found.append(f"{key}: only in one")
            for key in sorted(x.keys() & y.keys()):
                if x[key].shape != y[key].shape or not torch.allclose(x[key], y[key], rtol=CHECK_TOLERANCE, atol=CHECK_TOLERANCE):
                    found.append(f"{key}: values differ")
    return found


def check_case(case: Case, root: Path = GOLDEN) -> list[str]:
    """Regenerates a case elsewhere and compares."""
    if not (root / case.name).is_dir():
        return ["missing"]
    with tempfile.TemporaryDirectory() as temporary:
        write_case(case, Path(temporary) / case.name)
        return differences(root / case.name, Path(temporary) / case.name)


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate the model goldens, or check them.")
    parser.add_argument("--check", action="store_true", help="regenerate into a temporary folder and compare")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names; all by default")
    options = parser.parse_args()
    by_name = {case.name: case for case in CASES}
    unknown = set(options.cases) - by_name.keys()
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(by_name)}")
    torch.set_num_threads(1)  # one order of additions
    failed = False
    for case in [by_name[name] for name in options.cases] or CASES:
        if not options.check:
            print(write_case(case, GOLDEN / case.name), flush=True)
            continue
        found = check_case(case)
        failed = failed or bool(found)
        print(f"{case.name}: {'; '.join(found) or 'ok'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
