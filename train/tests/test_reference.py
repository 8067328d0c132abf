"""Removing rows equals masking them, and without removal the reference is transformers' own forward."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from train.checkpoint import LAYOUTS, canonical_name, load_model, to_layout
from train.golden import MAX_NMSE, nmse
from train.golden_cases import CASES, Case
from train.golden_folder import random_normal, write_folder
from train.pruner import Pruner, keep_ratios
from train.reference import Prompt, Reference

BY_NAME = {case.name: case for case in CASES}
PRUNED = ("plain-f32", "gqa-sharded-bf16", "mqa-wide-heads", "deep-narrow", "last-layer-point", "feature-list-full-embeddings")


def build(case: Case, folder: Path) -> Reference:
    write_folder(case, folder)
    return Reference(load_model(folder), Pruner.load(folder / "lvpruning.safetensors"))


def prompt_of(case: Case, reference: Reference, parts: Sequence[int]) -> Prompt:
    """`parts`: text token ids; 0 stands for an image."""
    ids = [case.image_token if part == 0 else part for part in parts]
    size = case.vision.image
    return reference.prompt(ids, random_normal("pixels", (list(parts).count(0), 3, size, size)))


PROMPTS = {
    "one": (1, 7, 8, 0, 9, 10),
    "two": (1, 0, 20, 21, 0, 22, 23, 24),
    "adjacent": (1, 5, 0, 0, 6),
    "none": (1, 5, 6, 7),
}


@pytest.mark.parametrize("name", PRUNED)
@pytest.mark.parametrize("parts", PROMPTS)
@pytest.mark.parametrize("keep", ["0.5", "0.8", "1", "0"])
def test_removed_equals_masked(name: str, parts: str, keep: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    reference = build(case, tmp_path)
    prompt = prompt_of(case, reference, PROMPTS[parts])
    ratios = keep_ratios(keep, len(case.pruning.after_layers))
    removed, masked = reference.forward_removed(prompt, ratios), reference.forward_masked(prompt, ratios)
    assert torch.equal(removed.alive, masked.alive)
    assert torch.equal(removed.rows, removed.alive.nonzero()[:, 0])
    assert nmse(removed.hidden, masked.hidden[removed.rows]) <= MAX_NMSE
    assert nmse(removed.logits, masked.logits[removed.rows]) <= MAX_NMSE
    for a, b in zip(removed.decisions, masked.decisions, strict=True):
        for x, y in zip(a.kept, b.kept, strict=True):
            assert torch.equal(x, y)


def test_generation_over_short_caches_equals_masked_recomputation(tmp_path: Path) -> None:
    case = BY_NAME["plain-f32"]
    reference = build(case, tmp_path)
    prompt = prompt_of(case, reference, PROMPTS["two"])
    ratios = keep_ratios("0.5", 3)
    generation = reference.generate(prompt, ratios, 6)
    masked = reference.forward_masked(prompt, ratios, answer=generation.tokens[:-1])
    steps = masked.logits[len(prompt.input_ids) - 1 :]  # [6, vocab]
    assert steps.argmax(-1).tolist() == generation.tokens
    expected = steps.log_softmax(-1).max(-1).values
    assert torch.allclose(expected, torch.tensor(generation.logprobs), atol=1e-4)


def test_cache_lengths_differ_by_layer_group(tmp_path: Path) -> None:
    case = BY_NAME["plain-f32"]  # points after layers 1, 2, 3 of 4; 16 tokens: 8, 5, 2 stay
    reference = build(case, tmp_path)
    output = reference.forward_removed(prompt_of(case, reference, PROMPTS["two"]), keep_ratios("0.5", 3))
    assert [output.cache.get_seq_length(i) for i in range(4)] == [6 + 32, 6 + 16, 6 + 10, 6 + 4]


def test_images_have_their_own_budget(tmp_path: Path) -> None:
    case = BY_NAME["plain-f32"]
    reference = build(case, tmp_path)
    output = reference.forward_removed(prompt_of(case, reference, PROMPTS["two"]), keep_ratios("0.5", 3))
    assert [[len(k) for k in d.kept] for d in output.decisions] == [[8, 8], [5, 5], [2, 2]]


def test_modules_see_text_rows_only(tmp_path: Path) -> None:
    """At a point before which nothing mixed the rows of two images, an image's scores ignore the other image."""
    case = BY_NAME["plain-f32"]
    reference = build(case, tmp_path)
    prompt = prompt_of(case, reference, PROMPTS["one"])
    x = reference.embed(prompt)
    rows = torch.arange(len(x))
    both = Prompt(
        torch.cat([prompt.input_ids, prompt.input_ids[3:19]]),
        torch.cat([prompt.pixel_values, -prompt.pixel_values]),
        torch.cat([prompt.image_of_row, torch.ones(16, dtype=torch.int64)]),
    )
    wide = torch.cat([x, random_normal("other", (16, case.text.hidden))])
    with torch.no_grad():
        alone = reference._decide(0, reference._view(0, x, x, rows, prompt), prompt, Decimal("0.5"))
        view = reference._view(0, wide, wide, torch.arange(len(wide)), both)
        beside = reference._decide(0, view, both, Decimal("0.5"))
    assert torch.allclose(alone.scores[0], beside.scores[0], atol=1e-5)


def test_point_after_the_last_layer_leaves_text_logits_alone(tmp_path: Path) -> None:
    case = BY_NAME["last-layer-point"]
    reference = build(case, tmp_path)
    prompt = prompt_of(case, reference, PROMPTS["one"])
    outputs = [reference.forward_removed(prompt, (Decimal("0.5"), Decimal(last))) for last in ("0.5", "0")]
    text = [output.logits[prompt.image_of_row[output.rows] < 0] for output in outputs]
    assert torch.equal(text[0], text[1])
    assert len(outputs[0].rows) > len(outputs[1].rows) == 5


@pytest.mark.parametrize("name", BY_NAME)
def test_dense_is_transformers_own_forward(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    reference = build(case, tmp_path)
    prompt = prompt_of(case, reference, PROMPTS["two"])
    with torch.no_grad():
        expected = reference.model(input_ids=prompt.input_ids[None], pixel_values=prompt.pixel_values).logits[0]
    assert nmse(reference.forward_removed(prompt).logits, expected) <= MAX_NMSE
    assert nmse(reference.forward_masked(prompt).logits, expected) <= MAX_NMSE


@pytest.mark.parametrize("name", ["plain-f32", "gqa-sharded-bf16", "tied-rope-linear", "feature-last-full", "feature-list-full-embeddings"])
def test_loader_agrees_with_from_pretrained(name: str, tmp_path: Path) -> None:
    """For the folders that transformers 4.57 itself reads."""
    case = replace(BY_NAME[name], config="old")
    reference = build(case, tmp_path)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    prompt = prompt_of(case, reference, PROMPTS["one"])
    with torch.no_grad():
        expected = model(input_ids=prompt.input_ids[None], pixel_values=prompt.pixel_values).logits[0]
    assert nmse(reference.forward_removed(prompt).logits, expected) <= MAX_NMSE


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spelling", ["old", "new", "sparse"])
def test_layout_and_spelling_change_nothing(layout: str, spelling: str, tmp_path: Path) -> None:
    base = replace(BY_NAME["plain-f32"], text=replace(BY_NAME["plain-f32"].text, rope_factor=2.0))
    plain = build(base, tmp_path / "plain")
    other = build(replace(base, layout=layout, config=spelling, shards=2, ignored_tensors=True), tmp_path / "other")
    prompt = prompt_of(base, plain, PROMPTS["one"])
    assert torch.equal(plain.forward_removed(prompt).logits, other.forward_removed(prompt).logits)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_round_trip(layout: str, golden_models: Path) -> None:
    names = load_file(golden_models / "larger-image" / "model-00001-of-00002.safetensors").keys()
    canonical = {canonical_name(name) for name in names}
    assert {canonical_name(to_layout(name, layout)) for name in canonical} == canonical


def test_lm_head_in_the_file_wins(tmp_path: Path) -> None:
    case = BY_NAME["deep-narrow"]
    reference = build(case, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["tie_word_embeddings"]
    assert not torch.equal(reference.model.lm_head.weight, reference.decoder.embed_tokens.weight)
