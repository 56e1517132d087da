"""Fixed steps on a given grid of times."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from torch import Tensor

from physnode.compat.torchdiffeq.errors import ArgumentError
from physnode.engine.controllers import Controller, Fixed, Span, Verdict
from physnode.engine.families.base import Method, Step
from physnode.engine.field_function import FieldFunction
from physnode.errors import InputError

__all__ = ["Grid", "grid_of"]


class Grid(Controller):
    """Steps that end on the points of a strictly monotone grid ``(N,)``, whatever the output times are."""

    def __init__(self, times: Tensor) -> None:
        self.times = times
        self._fixed = Fixed(1.0)  # judges a step as any controller of fixed steps does

    def check(self, method: Method, dtype: torch.dtype) -> None:
        """Any method takes fixed steps."""

    def start(self, method: Method, f: FieldFunction, span: Span, y: Tensor, derivative: Tensor) -> tuple[Tensor, Tensor, int]:
        """Nothing is searched for, and nothing remembered."""
        return torch.ones_like(span.t0), span.t0.new_zeros(len(span.t0), 0), 0

    def propose(self, span: Span, t: Tensor, dt: Tensor, *_: Tensor) -> Tensor:
        """The first point of the grid beyond ``t``, or the end if that is no farther."""
        sign = span.direction[0]
        points = (sign * self.times).contiguous()
        following = torch.searchsorted(points, (sign * t).contiguous(), right=True).clamp(max=len(points) - 1)
        return sign * torch.minimum(points[following], sign * span.t1)

    def judge(
        self, method: Method, running: Tensor, t: Tensor, t_end: Tensor, dt: Tensor, y: Tensor, step: Step, memory: Tensor
    ) -> Verdict:
        """Every step that was solved and is finite is accepted."""
        return self._fixed.judge(method, running, t, t_end, dt, y, step, memory)


def grid_of(
    t: Tensor, step_size: float | None, grid_constructor: Callable[[Any, Any, Tensor], Tensor] | None, func: Any, y0: Any
) -> Tensor:
    """The times ``(N,)`` in float64 at which steps begin and end: ``t`` itself, equal steps, or what the caller makes.

    Equal steps start at ``t[0]``; the last is cut to end on ``t[-1]``.

    Raises:
        InputError: both ways are given, or a step that is not positive.
        ArgumentError: the caller's grid does not run from ``t[0]`` to ``t[-1]`` without turning.
    """
    times = t.detach().to(torch.float64)
    if step_size is not None:
        if grid_constructor is not None:
            raise InputError("step_size and grid_constructor exclude each other; give one of them")
        if not (step_size > 0 and step_size < float("inf")):
            raise InputError(f"step_size must be positive and finite, for decreasing times too; found {step_size!r}")
        length = float((times[-1] - times[0]).abs())
        count = max(1, ceil(length / step_size - 1e-9))
        sign = 1.0 if times[-1] >= times[0] else -1.0
        grid = times[0] + sign * step_size * torch.arange(count + 1, dtype=torch.float64, device=times.device)
        return torch.cat((grid[:-1], times[-1:]))
    if grid_constructor is None:
        return times
    made = grid_constructor(func, y0, t)
    grid = torch.as_tensor(made).detach().to(times)
    steps = grid.diff()
    if grid.ndim != 1 or len(grid) < 2 or not bool((grid[0] == times[0]) & (grid[-1] == times[-1])):
        raise ArgumentError(f"grid_constructor must return times from t[0] to t[-1]; found {made!r}")
    if not bool(((steps > 0).all()) | ((steps < 0).all())):
        raise ArgumentError("grid_constructor must return strictly monotone times")
    return grid
