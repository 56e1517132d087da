"""What all tests share: one thread (small tensors crawl on a busy second core), no display, a fixed seed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
# what one worker compiles, the others load
os.environ.setdefault("PHYSNODE_CACHE", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "physnode"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(20240229)
