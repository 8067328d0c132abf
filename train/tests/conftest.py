"""Shared by the tests: the repository root on the path, one thread, small models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_models() -> Path:
    from train.golden import GOLDEN

    return GOLDEN
