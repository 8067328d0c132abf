"""The accuracy page: shares of equal cost are equal, and its tables say what the runs said."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.accuracy import by_family, counts_of, equal_shares, percent, summary, vision_rows

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"


def test_paper_counts() -> None:
    assert counts_of("0.5", [1, 8, 16], 576) == [576, 288, 173, 58]
    assert vision_rows([1, 8, 16], [576, 288, 173, 58], 32) == [576] * 1 + [288] * 7 + [173] * 8 + [58] * 16


@pytest.mark.parametrize("keep", ["0.6", "0.5", "0.45"])
def test_one_prune_point_of_equal_cost_reads_as_many_rows(keep: str) -> None:
    cost, final = equal_shares(DEMO)[keep]
    modules = vision_rows([1, 2, 4], counts_of(keep, [1, 2, 4], 144), 8)
    alone = vision_rows([2], counts_of(cost, [2], 144), 8)
    assert abs(sum(alone) - sum(modules)) <= 8 - 2  # one token over six layers
    assert counts_of(final, [2], 144)[-1] == counts_of(keep, [1, 2, 4], 144)[-1]


def test_tables_hold_the_figures() -> None:
    def setting(name: str, better: int, worse: int) -> dict:
        interval = {"value": 0.5, "low": 0.25, "high": 0.75}
        family = {"n": 10, "score": interval, "change": interval, "better": better, "worse": worse, "nll": 0.2, "tokens": 30, "f1_of_yes": 0.9}
        return {"setting": name, "vision_rows_share": 0.4, "flops_per_question": 2.5e9, "relative_loss": interval, "families": {"text": family, "existence": family}}

    assert percent({"value": 0.5, "low": None, "high": None}) == "50.00"  # too few images for an interval
    settings = [setting("none", 0, 0), setting("lvpruning-0.5", 3, 4)]
    assert summary(settings, {"lvpruning-0.5": "why"})[-1] == "| lvpruning-0.5 | why | 40.0 % | 2.500 | 50.00 (25.00 to 75.00) | 6 / 8 | 0.2000 | 90.00 |"
    assert by_family(settings)[3] == "| text | lvpruning-0.5 | 10 | 50.00 (25.00 to 75.00) | +50.00 (+25.00 to +75.00) | 3 / 4 | 0.2000 |"
