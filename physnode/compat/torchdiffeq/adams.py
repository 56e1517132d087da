"""Adams methods on a fixed grid: several past derivatives make one step.

    y(t) = y_n + ∫ P(s) ds from t_n to t,   P interpolates the last derivatives (Bashforth), and the next one too (Moulton)

The weights are those of the actual grid, so that the order holds on unequal steps too, and outputs inside a step are read
from the same integral. The first steps are made by a Runge-Kutta method of at least the same order. Differentiable by autograd
through the loop. Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, III.1 and III.5.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physnode import methods
from physnode.compat.torchdiffeq.callbacks import about_to_step
from physnode.compat.torchdiffeq.errors import IntegrationError
from physnode.compat.torchdiffeq.grid import grid_of
from physnode.compat.torchdiffeq.problem import Problem
from physnode.compat.torchdiffeq.tolerances import per_component
from physnode.engine.field_function import FieldFunction
from physnode.errors import InputError

__all__ = ["DEFAULT_ORDER", "run", "weights"]

DEFAULT_ORDER = {"explicit_adams": 4, "implicit_adams": 6, "fixed_adams": 6}
"""Orders that stay stable at useful step sizes: |h λ| below 0.3 and 1.2. At order 12, torchdiffeq's default, it is 0.0015."""

_LIMIT = 20


def run(problem: Problem, name: str, rtol: Any, atol: Any, options: dict[str, Any]) -> Tensor:
    """The flat solution ``(T, dim)``.

    Raises:
        InputError: an order outside 4 to 20.
        IntegrationError: a state that is not finite.
    """
    order = int(options.get("max_order", DEFAULT_ORDER[name]))
    if not 4 <= order <= _LIMIT:
        raise InputError(f"max_order must lie between 4 and {_LIMIT}; found {order}")
    step = options.get("step_size")
    step = None if step is None else float(step)
    grid = grid_of(problem.t, step, options.get("grid_constructor"), problem.func, problem.state)
    corrector = None
    if name != "explicit_adams":
        tolerances = [
            torch.as_tensor(per_component(value, word, problem)).to(problem.y0)
            for value, word in ((rtol, "rtol"), (atol, "atol"))
        ]
        corrector = _Corrector(tolerances[0], tolerances[1], int(options.get("max_iters", 4)))
    return _Adams(problem, grid, order, corrector).outputs()


def weights(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """∫ l_j(s) ds from ``start`` to ``end`` for the Lagrange polynomials l_j of the ``nodes``; Gauss's rule is exact here."""
    points, gauss = np.polynomial.legendre.leggauss(len(nodes) // 2 + 1)
    scale = end - start
    at = np.asarray(nodes) - start
    s = 0.5 * scale * (points + 1)
    found = []
    for j, node in enumerate(at):
        others = np.delete(at, j)
        values = np.prod((s[:, None] - others) / (node - others), axis=1)
        found.append(float(0.5 * scale * (gauss * values).sum()))
    return found


class _Corrector:
    """Fixed-point iteration of the implicit formula."""

    def __init__(self, rtol: Tensor, atol: Tensor, max_iters: int) -> None:
        self.rtol, self.atol, self.max_iters = rtol, atol, max_iters

    def close(self, old: Tensor, new: Tensor) -> bool:
        """Whether a further iteration would change nothing that matters."""
        allowed = self.atol + self.rtol * torch.maximum(old.abs(), new.abs())
        return bool(((new - old).abs() <= allowed).all())


class _Adams:
    def __init__(self, problem: Problem, grid: Tensor, order: int, corrector: _Corrector | None) -> None:
        self.problem, self.corrector, self.order = problem, corrector, order
        self.grid = grid.tolist()
        self.ts = problem.ts.tolist()
        self.f = FieldFunction(problem.field, (), problem.y0.dtype)
        self.starter = methods.rk4 if order <= 4 else methods.dop853
        self.unconverged = 0

    def outputs(self) -> Tensor:
        sign = self.problem.direction
        y, found = self.problem.y0, [self.problem.y0]
        past: list[tuple[float, Tensor]] = []
        tell = about_to_step(self.problem)
        for t, t_end in zip(self.grid, self.grid[1:], strict=False):
            if tell is not None:
                tell(t, y, abs(t_end - t))
            past = [(t, self.derivative(t, y)), *past][: self.order - (self.corrector is not None)]
            inside = [time for time in self.ts[len(found) :] if sign * time < sign * t_end]
            needed = self.order - (self.corrector is not None)
            if len(past) < needed:
                found += [self.start(t, time, y) for time in inside]
                y = self.start(t, t_end, y)
            else:
                nodes, y_start = past, y
                y = self.integrated(y_start, nodes, t, t_end)
                if self.corrector is not None:
                    y, nodes = self.corrected(self.corrector, y_start, y, past, t, t_end)
                found += [self.integrated(y_start, nodes, t, time) for time in inside]
            if not bool(torch.isfinite(y).all()):
                raise IntegrationError(
                    f"the state is not finite after the step from t = {t:.6g} to {t_end:.6g}; shorten the steps"
                )
            if len(found) < len(self.ts) and self.ts[len(found)] == t_end:
                found.append(y)
        if self.unconverged:
            warnings.warn(
                f"functional iteration did not converge to rtol and atol in {self.unconverged} of {len(self.grid) - 1} steps; "
                "shorten the steps, or raise max_iters or the tolerances",
                stacklevel=7,
            )
        return torch.stack(found)

    def derivative(self, t: float, y: Tensor) -> Tensor:
        return self.f(self.time(t), y.unsqueeze(0)).squeeze(0)

    def start(self, t: float, t_end: float, y: Tensor) -> Tensor:
        return self.starter.step(self.f, self.time(t), self.time(t_end), y.unsqueeze(0)).y.squeeze(0)

    def integrated(self, y: Tensor, nodes: Sequence[tuple[float, Tensor]], t: float, t_end: float) -> Tensor:
        found = weights([node for node, _ in nodes], t, t_end)
        change = found[0] * nodes[0][1]
        for weight, (_, slope) in zip(found[1:], nodes[1:], strict=True):
            change = change + weight * slope
        return y + change

    def corrected(
        self, corrector: _Corrector, y: Tensor, guess: Tensor, past: list[tuple[float, Tensor]], t: float, t_end: float
    ) -> tuple[Tensor, list[tuple[float, Tensor]]]:
        first, *others = weights([t_end, *(node for node, _ in past)], t, t_end)
        known = y
        for weight, (_, slope) in zip(others, past, strict=True):
            known = known + weight * slope
        slope = guess
        for _ in range(corrector.max_iters):
            slope = self.derivative(t_end, guess)
            old, guess = guess, known + first * slope
            if corrector.close(old.detach(), guess.detach()):
                break
        else:
            self.unconverged += 1
        return guess, [(t_end, slope), *past]

    def time(self, t: float) -> Tensor:
        return torch.tensor([t], dtype=torch.float64, device=self.problem.y0.device)
