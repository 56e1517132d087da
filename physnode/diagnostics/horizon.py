"""What a model does long after the data end: a model can fit every row and still run away, or lose energy it should keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from physnode.diagnostics.audit import audit
from physnode.diagnostics.invariants import InvariantDrift
from physnode.engine.controllers import Controller
from physnode.engine.families.base import Method
from physnode.errors import InputError
from physnode.fields import as_field
from physnode.solution import Solution
from physnode.solve import solve

__all__ = ["Horizon", "long_horizon"]

_ROWS = 200


@dataclass(frozen=True)
class Horizon:
    """Trajectories carried ``factor`` times as far as the data reach."""

    factor: float
    solution: Solution
    growth: Tensor
    """``(N, dim)``: largest size of each component after the data end, over its largest size within their span; infinite where
    the trajectory failed."""
    drifts: Mapping[str, InvariantDrift]
    """Energy and invariants of the known physics; empty where nothing is known."""

    @property
    def ok(self) -> Tensor:
        """Which trajectories reached the end, ``(N,)``."""
        return self.solution.ok


def long_horizon(
    field: object,
    y0: Tensor,
    start: Tensor,
    end: Tensor,
    *,
    factor: float = 10.0,
    method: str | Method = "dop853",
    controller: Controller | None = None,
) -> Horizon:
    """Integrate from ``y0 (N, dim)`` at ``start (N,)`` to ``factor`` times the span up to ``end (N,)``.

    A trajectory that fails is reported, not raised.

    Raises:
        InputError: ``factor`` is not above 1, or a span is empty.
    """
    if not 1 < factor < float("inf"):
        raise InputError(f"the factor must be above 1; found {factor:g}")
    if not bool((end > start).all()):
        raise InputError("a trajectory has a single time, so there is no span to extend; leave it out")
    known = as_field(field)
    span = (end - start).unsqueeze(-1)
    share = torch.linspace(0, 1, _ROWS, dtype=torch.float64)
    ts = torch.cat((start.unsqueeze(-1) + span * share, end.unsqueeze(-1) + span * (factor - 1) * share[1:]), dim=-1)
    with torch.no_grad():
        solution = solve(known, y0, ts, method=method, controller=controller, on_failure="report")
    size = solution.ys.abs().nan_to_num(nan=torch.inf)
    inside, beyond = size[:, :_ROWS].amax(1), size[:, _ROWS:].amax(1)
    typical = inside.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    growth = beyond / torch.where(inside > 0, inside, typical)
    growth = torch.where(beyond.isinf(), torch.inf, growth)
    try:
        drifts: Mapping[str, InvariantDrift] = audit(known, solution)
    except InputError:
        drifts = {}
    return Horizon(factor, solution, growth, drifts)
