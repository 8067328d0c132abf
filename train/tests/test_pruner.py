"""The decision modules against their formulas written out with loops, and the counting of what stays."""

from __future__ import annotations

import json
import struct
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from train.pruner import DecisionModule, Pruner, PrunerConfig, keep_count, keep_ratios, select_best


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def module_by_hand(w: dict[str, np.ndarray], vision: np.ndarray, text: np.ndarray, heads: int) -> np.ndarray:
    """gamma [n_v, 2] in f64, one head and one row at a time."""
    x = vision
    for b in range(2):
        p = {name.removeprefix(f"blocks.{b}."): value for name, value in w.items() if name.startswith(f"blocks.{b}.")}
        q, k, v = x @ p["q_proj.weight"].T, text @ p["k_proj.weight"].T, text @ p["v_proj.weight"].T
        width = q.shape[1] // heads
        out = np.zeros_like(q)
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            for row in range(len(q)):
                logits = k[:, part] @ q[row, part] / np.sqrt(width)
                weights = np.exp(logits - logits.max())
                out[row, part] = weights @ v[:, part] / weights.sum()
        o = out @ p["o_proj.weight"].T + q
        inner = layer_norm(o, p["norm1.weight"], p["norm1.bias"]) @ p["fc1.weight"].T + p["fc1.bias"]
        inner = inner / (1 + np.exp(-inner)) @ p["fc2.weight"].T + p["fc2.bias"]
        x = o + layer_norm(inner, p["norm2.weight"], p["norm2.bias"])
    return x @ w["gate.weight"].T


@pytest.mark.parametrize("inner_width, heads", [(24, 8), (10, 5), (6, 1)])
def test_module_is_its_formula(inner_width: int, heads: int) -> None:
    torch.manual_seed(1)
    module = DecisionModule(PrunerConfig((1,), 24, inner_width, heads)).double()
    for parameter in module.parameters():  # also norms and biases, which start at 1 and 0
        torch.nn.init.normal_(parameter, std=0.4)
    vision, text = torch.randn(9, 24).double(), torch.randn(7, 24).double()
    weights = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    expected = module_by_hand(weights, vision.numpy(), text.numpy(), heads)
    with torch.no_grad():
        assert np.allclose(module(vision, text).numpy(), expected, rtol=1e-10, atol=1e-12)
        assert np.allclose(module.score(vision, text).numpy(), expected[:, 0] - expected[:, 1], rtol=1e-10, atol=1e-12)
        assert module(vision[:0], text).shape == (0, 2)


def test_full_width_costs_what_the_paper_says() -> None:
    """805 M parameters for LLaVA-1.5-7B, three points at d = C = 4096."""
    with torch.device("meta"):
        pruner = Pruner(PrunerConfig((1, 8, 16), 4096, 4096, 8))
    assert round(sum(p.numel() for p in pruner.parameters()) / 1e6) in (805, 806)


def test_file_round_trip(tmp_path: Path) -> None:
    config = PrunerConfig((1, 3), 16, 12, 3)
    pruner = Pruner(config)
    path = tmp_path / "lvpruning.safetensors"
    pruner.save(path)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {
            "format": "pt", "lvpruning.after_layers": "1,3", "lvpruning.heads": "3",
            "lvpruning.inner_width": "12", "lvpruning.version": "1",
        }  # fmt: skip
        assert file.get_slice("modules.1.blocks.0.q_proj.weight").get_shape() == [12, 16]
        assert file.get_slice("modules.1.blocks.1.q_proj.weight").get_shape() == [12, 12]
        assert file.get_slice("modules.1.blocks.1.k_proj.weight").get_shape() == [12, 16]
        assert file.get_slice("modules.0.gate.weight").get_shape() == [2, 12]
    loaded = Pruner.load(path)
    assert loaded.config == config
    assert all(torch.equal(a, b) for a, b in zip(pruner.state_dict().values(), loaded.state_dict().values()))
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first
    (size,) = struct.unpack("<Q", first[:8])
    assert (8 + size) % 8 == 0 and json.loads(first[8 : 8 + size])


def test_one_block_is_two_of_which_one_passes(tmp_path: Path) -> None:
    torch.manual_seed(5)
    pruner = Pruner(PrunerConfig((1, 3), 16, 12, 3, blocks=1))
    pruner.save(tmp_path / "lvpruning.safetensors")
    loaded = Pruner.load(tmp_path / "lvpruning.safetensors")
    vision, text = torch.randn(9, 16), torch.randn(7, 16)
    with torch.no_grad():
        for one, two in zip(pruner.points, loaded.points):
            assert len(one.blocks) == 1 and len(two.blocks) == 2
            assert torch.equal(one(vision, text), two(vision, text))


def test_shared_projections_stay_one_while_trained_and_are_written_twice(tmp_path: Path) -> None:
    torch.manual_seed(5)
    config = PrunerConfig((1, 3), 16, 12, 3, shared=True)
    pruner = Pruner(config)
    apart = sum(p.numel() for p in Pruner(PrunerConfig((1, 3), 16, 12, 3)).parameters())
    assert sum(p.numel() for p in pruner.parameters()) == apart - 2 * 2 * 12 * 16
    vision, text = torch.randn(9, 16), torch.randn(7, 16)
    optimizer = torch.optim.AdamW(pruner.parameters(), 0.1)
    sum(point(vision, text).sum() for point in pruner.points).backward()
    optimizer.step()
    pruner.save(tmp_path / "lvpruning.safetensors")
    loaded = Pruner.load(tmp_path / "lvpruning.safetensors")
    with torch.no_grad():
        for one, two in zip(pruner.points, loaded.points):
            assert torch.equal(two.blocks[0].k_proj.weight, two.blocks[1].k_proj.weight)
            assert torch.equal(two.blocks[0].v_proj.weight, two.blocks[1].v_proj.weight)
            assert torch.equal(one(vision, text), two(vision, text))


@pytest.mark.parametrize("points, width, heads", [((2, 2), 8, 2), ((0, 1), 8, 2), ((3, 1), 8, 2), ((1,), 8, 3)])
def test_bad_configs(points: tuple[int, ...], width: int, heads: int) -> None:
    with pytest.raises(ValueError):
        PrunerConfig(points, 16, width, heads)


@pytest.mark.parametrize(
    "ratio, n, left, expected",
    [
        ("0.5", 576, 576, 288), ("0.3", 576, 288, 173), ("0.1", 576, 173, 58),  # the paper's
        ("0.3", 25, 25, 8), ("0.1", 25, 8, 3), ("0.7", 45, 45, 32),  # halves go up; 0.7 * 45 is 31.499.. in binary
        ("0", 576, 576, 0), ("-0.1", 576, 576, 0), ("1", 9, 9, 9), ("1.5", 9, 9, 9),
        ("0.9", 10, 4, 4),  # never more than survive
        ("0.03125", 16, 16, 1), ("0.031", 16, 16, 0),
    ],
)  # fmt: skip
def test_keep_count(ratio: str, n: int, left: int, expected: int) -> None:
    assert keep_count(Decimal(ratio), n, left) == expected


def test_keep_ratios() -> None:
    assert keep_ratios("0.5", 3) == (Decimal("0.5"), Decimal("0.3"), Decimal("0.1"))
    assert keep_ratios("0.3", 3)[2] == Decimal("-0.1")
    assert keep_ratios(("0.2", "0.9"), 2) == (Decimal("0.2"), Decimal("0.9"))
    with pytest.raises(ValueError):
        keep_ratios(("0.2",), 2)


def test_select_best_keeps_order_and_breaks_ties_low() -> None:
    scores = torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0])
    assert select_best(scores, 3).tolist() == [0, 1, 3]
    assert select_best(scores, 0).tolist() == []
    assert select_best(scores, 5).tolist() == [0, 1, 2, 3, 4]
    assert select_best(torch.zeros(400), 7).tolist() == list(range(7))
