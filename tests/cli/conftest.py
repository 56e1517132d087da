from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from physnode.cli import main

ROOT = Path(__file__).resolve().parents[2]
PENDULUM = ROOT / "data" / "pendulum" / "pendulum.h5"
PLANETS = ROOT / "data" / "solar_system" / "solar_system.h5"

MODEL = """
import torch
from torch import nn

import physnode as pn


class Swing(pn.SecondOrder):
    labels = ("angle", "angular_velocity")
    dim = 2

    def __init__(self, square, damping):
        super().__init__()
        self.square = nn.Parameter(torch.tensor(square, dtype=torch.float64))
        self.damping = nn.Parameter(torch.tensor(damping, dtype=torch.float64))

    def acceleration(self, t, q, v):
        return -self.square * torch.sin(q) - self.damping * v


def build(square=3.6, damping=0.1):
    return Swing(square, damping)


def number():
    return 3


def broken():
    raise KeyError("oops")


def wrong_shape():
    return lambda t, y: y @ torch.zeros(3, 3, dtype=y.dtype)
"""


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Call = Callable[..., Answer]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """Run one command in this process, as the script would."""

    def run(*words: object) -> Answer:
        capfd.readouterr()
        status = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Answer(status, out, err)

    return run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fit of the shipped pendulum. Read it only."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    words = ["--set", "frequency=1.9", "--free", "frequency", "--free", "damping", "--out", str(folder), "--json"]
    assert main(["fit", "pendulum", str(PENDULUM), *words]) == 0
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short file with splits, for what need not be fitted well. Read it only."""
    path = tmp_path_factory.mktemp("cli") / "small.h5"
    words = ["-n", "4", "--t1", "6", "--rows", "30", "--set", "frequency=2", "--set", "damping=0.15"]
    words += ["--split", "0.5,0.25,0.25"]
    noise = ["--noise", "angle=0.02", "--noise", "angular_velocity=0.04"]
    assert main(["simulate", "pendulum", "--out", str(path), *words, *noise]) == 0
    return path


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path
