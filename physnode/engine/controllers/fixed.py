"""Steps of one length."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from physnode.engine.controllers.base import Controller, Span, Verdict
from physnode.engine.families.base import Method, Step
from physnode.engine.field_function import FieldFunction
from physnode.errors import InputError

__all__ = ["Fixed"]


class Fixed(Controller):
    """Steps of length ``dt`` from each trajectory's start; the last one is cut to end on the final time.

    The n-th step starts at ``t0 + n dt``, so the grid does not drift by rounding.
    """

    def __init__(self, dt: float) -> None:
        if not (dt > 0 and dt < float("inf")):
            raise InputError(f"Fixed(dt) needs a positive, finite step; found {dt!r} (backward solves use the same sign)")
        self.dt = float(dt)

    def __repr__(self) -> str:
        return f"Fixed({self.dt!r})"

    def check(self, method: Method, dtype: torch.dtype) -> None:
        """Any method takes fixed steps."""

    def numbers(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The step."""
        return {"dt": torch.tensor(self.dt, dtype=torch.float64)}

    def with_numbers(self, numbers: Mapping[str, Tensor]) -> Fixed:
        """The same with another step."""
        other = copy.copy(self)
        other.__dict__.update(numbers)
        return other

    @property
    def structure(self) -> Hashable:
        """Nothing but the step tells two of them apart."""
        return "fixed" if type(self) is Fixed else None

    def start(self, method: Method, f: FieldFunction, span: Span, y: Tensor, derivative: Tensor) -> tuple[Tensor, Tensor, int]:
        """The step itself; nothing is remembered."""
        return torch.zeros_like(span.t0) + self.dt, span.t0.new_zeros(len(span.t0), 0), 0

    def propose(self, span: Span, t: Tensor, dt: Tensor) -> Tensor:
        """The next point of the grid, or the end if that is nearer than 1e-9 of a step."""
        slack = 1e-9 + 4 * torch.finfo(torch.float64).eps * (t.abs() + span.t0.abs()) / self.dt
        length = (torch.floor((t - span.t0).abs() / self.dt + slack) + 1) * self.dt
        beyond = length >= (span.t1 - span.t0).abs() - 1e-9 * self.dt
        return torch.where(beyond, span.t1, span.t0 + span.direction * length)

    def judge(
        self,
        method: Method,
        running: Tensor,
        t: Tensor,
        t_end: Tensor,
        dt: Tensor,
        y: Tensor,
        step: Step,
        memory: Tensor,
    ) -> Verdict:
        """Every step that was solved and is finite is accepted."""
        good = torch.isfinite(step.y.sum(-1))
        if step.unsolved is not None:
            good = good & ~step.unsolved
        return Verdict(good, dt, memory, ~good)
