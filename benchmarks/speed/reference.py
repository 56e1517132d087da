"""What all contenders should find: outputs and gradients at tight tolerances, kept in a folder for the other processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import physnode as pn
from benchmarks.speed.contenders import arrays
from benchmarks.speed.problems import Array, Problem, build, gradient_error, scaled_error

__all__ = ["ABSURD", "Reference", "reference"]

ROWS = {"bodies": 64, "pendulum": 64, "planets": 16}
"""Of how many trajectories outputs are compared."""
MOST = {"bodies": 1024, "pendulum": 1024, "planets": 1}
"""Up to which batch the gradient is compared; beyond, the reference would take longer than the benchmark."""
ABSURD = 0.5
"""A contender that is further off than this solves another problem, and is not timed."""


@dataclass(frozen=True)
class Reference:
    """Outputs of the first rows ``(R, T, dim)``, and the gradients of the mean square of all, where they are known."""

    ys: Array
    gradients: list[Array] | None

    def error(self, ys: Array) -> float:
        """Of outputs ``(B, T, dim)``, or of the last alone ``(B, 1, dim)``."""
        rows = min(len(ys), len(self.ys))
        return scaled_error(ys[:rows], self.ys[:rows, -ys.shape[1] :])

    def gradient_error(self, found: list[Array]) -> float | None:
        """None where there is nothing to compare."""
        return None if self.gradients is None or not found else gradient_error(found, self.gradients)


def reference(name: str, batch: int, folder: Path, *, gradient: bool, rtol: float = 1e-12) -> Reference:
    """By dop853 in float64, without the compiled driver."""
    problem = build(name, batch)
    gradient = gradient and batch <= MOST[problem.case.physics]
    kept = folder / f"{name}-{batch}-{rtol:g}{'-gradient' * gradient}.npz"
    if not kept.exists():
        ys, gradients = _solve(problem, rtol, gradient)
        np.savez(kept, ys, *gradients)
    with np.load(kept) as found:
        values = [found[key] for key in found.files]
    return Reference(values[0], values[1:] or None)


def _solve(problem: Problem, rtol: float, gradient: bool) -> tuple[Array, list[Array]]:
    rows = ROWS[problem.case.physics]
    starts = problem.y0 if gradient else problem.y0[:rows]
    with torch.set_grad_enabled(gradient):
        ys = pn.solve(problem.field, starts, problem.ts, method="dop853", controller=pn.Adaptive(rtol, rtol * 1e-3)).ys
        found = torch.autograd.grad(ys.square().mean(), problem.parameters) if gradient else ()
    return arrays([ys[:rows]])[0], arrays(found)
