"""The trainer's options: what is not given, and what cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from train.checkpoint import read_config
from train.lvpruning.base import World
from train.lvpruning.recipe import fill
from train.lvpruning.train import Trainer, main, options
from train.pruner import Pruner, PrunerConfig

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"


def test_recipes() -> None:
    """What was lost least with is the default, sized by the model; the paper's is one option away; what is given stays."""

    def filled(*given: str, hidden: int = 160, head_dim: int = 32) -> dict[str, object]:
        args = options().parse_args(["--model", "", "--data", "", "--output", "", *given])
        fill(args, hidden, head_dim, 20000)
        return vars(args)

    demo, large = filled(), filled(hidden=4096, head_dim=128)
    assert (demo["inner_width"], demo["heads"], demo["lr"], demo["begin_lr"], demo["ratios"]) == (40, 2, 5e-4, 1e-3, (0.42, 0.53))
    assert (large["inner_width"], large["heads"], large["begin"], large["select"], large["distill"]) == (1024, 16, 12000, "best", 1.0)
    paper = filled("--recipe", "paper", hidden=4096, head_dim=128)
    names = ("inner_width", "heads", "begin", "select", "ratio_weight", "distill", "weigh", "noise", "ratios", "lr", "warmup")
    assert [paper[name] for name in names] == [4096, 8, 0, "alone", 2.0, 0.0, "tokens", (1.0, 1.0), None, 2e-6, 0.03]
    config = read_config(DEMO).text_config
    assert (config.hidden_size, config.head_dim) == (160, 32)  # what the demo's modules were trained with is what build.sh trains with
    assert filled("--inner-width", "100", head_dim=64)["heads"] == 2  # that divide it
    given = filled("--select", "alone", "--inner-width", "16", "--lr", "0.1", "--ratios", "0.5")
    assert (given["begin"], given["ratio_weight"], given["lr"], given["ratios"], given["heads"]) == (0, 2.0, 0.1, (0.5, 0.5), 1)
    assert filled("--init", "modules")["begin"] == 0


@pytest.fixture
def given_data(tmp_path: Path) -> Path:
    shutil.copy(DEMO.parents[1] / "examples" / "images" / "scene-0000.png", tmp_path / "scene.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "scene.png", "answer": "Yes."}\n')
    return tmp_path


def test_rates_are_those_of_the_modules_that_are_given(given_data: Path) -> None:
    torn = ["--model", str(DEMO), "--data", str(given_data / "rows.jsonl"), "--output", str(given_data / "run"), "--dtype", "f32",
            "--init", str(DEMO / "lvpruning.safetensors"), "--recipe"]  # fmt: skip
    for recipe in ("ours", "paper"):
        args = options().parse_args([*torn, recipe])
        trainer = Trainer(args, World.join())
        assert (args.inner_width, args.heads, args.begin_lr) == (40, 2, 1e-3)
        assert args.lr == (5e-4 if recipe == "ours" else 2e-6)
        assert trainer.pruner.config == Pruner.load(DEMO / "lvpruning.safetensors").config


@pytest.mark.parametrize("given, message", [
    (("--points", "3,1"), "strictly increasing"), (("--points", "1,x"), "--points 1,x"), (("--points", "1,99"), "decoder layers"),
    (("--heads", "7"), "do not divide"), (("--heads", "0"), "--heads 0: at least 1"), (("--inner-width", "-1"), "at least 1"),
    (("--init", "rows.jsonl"), "no pruning modules"), (("--init", "narrower.safetensors"), "modules for a model of width 16"),
    (("--data", "no-list.json"), "not a list"), (("--data", "broken.json"), "not JSON"),
])  # fmt: skip
def test_errors_name_what_is_wrong(given_data: Path, given: tuple[str, str], message: str) -> None:
    (given_data / "no-list.json").write_text("{}")
    (given_data / "broken.json").write_text("[{")
    Pruner(PrunerConfig((1, 3), 16, 12, 3)).save(given_data / "narrower.safetensors")
    option, value = given
    if option in ("--init", "--data"):
        value = str(given_data / value)
    with pytest.raises(SystemExit, match=message):
        main(["--model", str(DEMO), "--data", str(given_data / "rows.jsonl"), "--output", str(given_data / "run"), option, value])
