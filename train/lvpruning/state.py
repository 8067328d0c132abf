"""What a run leaves in its folder: state.pt to go on from, log.jsonl, lvpruning.safetensors for lvpipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from train.lvpruning.progress import Progress
from train.pruner import Pruner

VERSION = 3


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """A reader finds the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save(folder: Path, step: int, recipe: dict[str, Any], pruner: Pruner, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> None:
    """No random state: noise, order and ratios follow from the seed and the step. The state last: one that says "done" has its modules."""
    state = {"version": VERSION, "step": step, "recipe": recipe, "pruner": pruner.state_dict(), "optimizer": optimizer.state_dict()}
    write_whole(folder / "lvpruning.safetensors", lambda path: pruner.save(path, dtype))
    write_whole(folder / "state.pt", lambda path: torch.save(state, path))


def load(folder: Path, recipe: dict[str, Any], pruner: Pruner, optimizer: torch.optim.Optimizer) -> int | None:
    """The number of steps that are done, None without a state. Refuses to go on with another recipe or other data."""
    if not (folder / "state.pt").exists():
        return None
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    if state["version"] != VERSION:
        raise SystemExit(f"{folder}/state.pt is of version {state['version']}, this trainer writes {VERSION}")
    for name, value in recipe.items():
        was = state["recipe"].get(name)
        if was != value:
            raise SystemExit(f"{folder} was begun with {name} = {was}, now it is {value}: use the same or another --output")
    pruner.load_state_dict(state["pruner"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


class Log:
    """One line a step in log.jsonl, TensorBoard where it is installed, a progress line now and then."""

    def __init__(self, folder: Path, done: int, steps: int, interval: float) -> None:
        self.progress = Progress(steps, interval, done)
        path = folder / "log.jsonl"
        # A run that was killed has logged steps after its last state: they come again.
        lines = path.read_text().splitlines() if path.exists() else []
        write_whole(path, lambda part: part.write_text("".join(line + "\n" for line in lines[:done])))
        self.file = open(path, "a", buffering=1)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.board = None
            print(f"no tensorboard here: the curve is in {path} alone", file=sys.stderr)
        else:
            self.board = SummaryWriter(folder / "tensorboard", purge_step=done)

    def step(self, values: dict[str, float]) -> None:
        """values["step"] counts from 1."""
        self.file.write(json.dumps(values) + "\n")
        done = int(values["step"])
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, done)
        due = self.progress.due(done)
        if due is None:
            return
        each, left = due
        keep = " ".join(f"{v:.2f}" for name, v in values.items() if name.startswith("keep_"))
        print(f"step {done}/{self.progress.steps}  loss {values['loss']:.4f}  answer {values['nll']:.4f}  kept {keep}  "
              f"{each:.2f} s/step  {left}", file=sys.stderr)  # fmt: skip

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()
