"""Nonlinear least squares on trajectories: scipy's trust-region solver with our exact Jacobian.

Source of the method: Branch, Coleman, Li, A subspace, interior, and conjugate gradient method for large-scale bound-constrained
minimization problems, SIAM J. Sci. Comput. 21 (1999), as implemented in scipy.optimize.least_squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import optimize
from threadpoolctl import threadpool_limits
from torch import Tensor

from physnode.fitting.problem import Problem
from physnode.fitting.progress import Reporter
from physnode.solution import Solution

__all__ = ["Minimum", "minimise"]

_SMALL = 5e6
"""Entries of a Jacobian below which one BLAS thread is faster: with more, each decomposition waits for the busiest core."""


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended."""

    x: Tensor
    cost: float
    """Half the sum of squared rows."""
    converged: bool
    reason: str
    history: list[dict[str, Any]]


class _Evaluations:
    """Rows and Jacobian at the last point, so that the Jacobian uses the very steps the rows came from."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.point: np.ndarray[Any, np.dtype[np.float64]] | None = None
        self.solution: Solution | None = None
        self.count = 0

    def rows(self, x: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        with torch.no_grad():
            vector = torch.from_numpy(x.copy())
            self.point, self.solution = x.copy(), self.problem.solve(vector, dense=True)
            self.count += 1
            return self.problem.rows(vector, self.solution).all.numpy()

    def jacobian(self, x: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        if self.point is None or not np.array_equal(x, self.point):
            self.rows(x)
        assert self.solution is not None
        with torch.no_grad():
            return self.problem.jacobian(torch.from_numpy(x.copy()), self.solution).numpy()


def minimise(
    problem: Problem,
    start: Tensor,
    reporter: Reporter,
    *,
    stage: str,
    max_iterations: int = 100,
    tolerance: float = 1e-10,
) -> Minimum:
    """Minimise half the sum of squared rows from ``start``, within the bounds of the shared parameters."""
    low, high = problem.shared.bounds
    free = torch.full((problem.size - problem.shared.size,), torch.inf, dtype=torch.float64)
    lower, upper = torch.cat((low, -free)).numpy(), torch.cat((high, free)).numpy()
    inside = _inside(start.numpy(), lower, upper)
    evaluations = _Evaluations(problem)
    history: list[dict[str, Any]] = []
    reporter.stage(stage, None)
    entries = max(1, int(problem.windows.mask.sum()))

    def note(intermediate_result: Any) -> None:
        loss = float(intermediate_result.cost) / entries
        history.append({"stage": stage, "step": int(intermediate_result.nit), "loss": loss})
        reporter.step(loss, int(intermediate_result.nit))

    with threadpool_limits(1 if problem.size * entries < _SMALL else None, user_api="blas"):
        found = optimize.least_squares(
            evaluations.rows,
            inside,
            jac=evaluations.jacobian,
            bounds=(lower, upper),
            method="trf",
            x_scale="jac",
            ftol=tolerance,
            xtol=tolerance,
            gtol=1e-12,
            max_nfev=max_iterations,
            callback=note,
        )
    if not history:
        history.append({"stage": stage, "step": 0, "loss": float(found.cost) / entries})
    return Minimum(
        torch.from_numpy(np.asarray(found.x, dtype=np.float64).copy()),
        float(found.cost),
        bool(found.success),
        _REASONS.get(int(found.status), str(found.message)),
        history,
    )


_REASONS = {
    0: "the limit of iterations was reached",
    1: "the gradient is zero to rounding",
    2: "the loss no longer falls",
    3: "the parameters no longer move",
    4: "neither loss nor parameters change",
}


def _inside(
    x: np.ndarray[Any, np.dtype[np.float64]],
    lower: np.ndarray[Any, np.dtype[np.float64]],
    upper: np.ndarray[Any, np.dtype[np.float64]],
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The start, moved off its bounds: the solver works in the open interior."""
    span = np.where(np.isfinite(upper - lower), upper - lower, np.maximum(np.abs(x), 1.0))
    margin = 1e-10 * span
    low = np.where(np.isfinite(lower), lower + margin, -np.inf)
    high = np.where(np.isfinite(upper), upper - margin, np.inf)
    return np.asarray(np.clip(x, low, high), dtype=np.float64)
