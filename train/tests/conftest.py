"""Shared by the tests: the repository root on the path, one thread in them and in what they start, small models."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # with another number sums are rounded otherwise, on some processors


@pytest.fixture(scope="session")
def golden_models() -> Path:
    from train.golden import GOLDEN

    return GOLDEN
