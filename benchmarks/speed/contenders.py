"""Who is compared, behind one call: a problem and a setting in, something to run and time out."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.speed.problems import Array, Problem

__all__ = ["PACKAGES", "Contender", "Run", "Setting", "arrays", "installed", "missing", "versions"]

PACKAGES = ("torchdiffeq", "torchode", "diffrax", "gradsolve", "scipy", "rebound")


@dataclass(frozen=True)
class Setting:
    """A method by the name it has in the contender's library, tolerances, and whether a gradient is wanted."""

    method: str
    rtol: float
    atol: float
    gradient: bool


Run = Callable[[], tuple[Any, Sequence[Any]]]
"""Solves once; states at the output times ``(B, T, dim)`` and, where wanted, the gradients of the mean of their squares."""


@dataclass(frozen=True)
class Contender:
    """One way to solve a problem."""

    name: str
    package: str
    method: str
    """The method with which it takes part at equal tolerance: dopri5 if it has it."""
    prepare: Callable[[Problem, Setting], Run]
    best: tuple[str, ...] = ()
    """Methods that it tries at equal error."""
    modes: tuple[str, ...] = ("forward", "gradient")
    one_by_one: bool = False
    """Trajectories are solved in a loop, so that the time of a larger batch is known."""
    cases: tuple[str, ...] | None = None
    """The physics that it takes; None: all."""

    def takes(self, problem_physics: str, network: bool, mode: str) -> bool:
        """Whether it can solve this at all."""
        return mode in self.modes and (self.cases is None or (problem_physics in self.cases and not network))


def installed(package: str) -> bool:
    """Whether it can be imported."""
    return importlib.util.find_spec(package) is not None


def missing() -> list[str]:
    """The peers that are not installed."""
    return [package for package in PACKAGES if not installed(package)]


def versions() -> str:
    """Versions of the peers that are."""
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES if installed(package))


def arrays(values: Sequence[Any]) -> list[Array]:
    """Tensors or arrays of any library as float64 NumPy arrays."""
    plain = [value.detach().cpu() if hasattr(value, "detach") else value for value in values]
    return [np.asarray(value, dtype=np.float64) for value in plain]
