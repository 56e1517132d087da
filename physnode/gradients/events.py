"""How the time of an event, and what follows it, depends on where the step before it started.

The time of an event is a root: G(τ) = g(τ, Φ(τ - t; y)) = 0, with Φ the step that ends on it. By the implicit function theorem
dτ = -(∂G/∂y dy + ∂G/∂t dt + ∂G/∂θ dθ) / (dG/dτ). Here τ is written as two chord steps of Newton's method from the root itself,
τ - G(τ)/D with D = dG/dτ held constant: their value is the root, their first and second derivatives are the root's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from physnode.engine.events import Watch
from physnode.engine.families.base import Method
from physnode.engine.field_function import FieldFunction
from physnode.engine.records import Records
from physnode.errors import GradientError

__all__ = ["EventPlan", "Made", "Outputs", "moved_end"]


class Outputs(NamedTuple):
    """All that a solve gives and that carries a gradient."""

    ys: Tensor
    """``(B, T, dim)``."""
    event_times: Tensor
    """``(B, E)`` float64; NaN beyond a trajectory's number of events."""
    event_states: Tensor
    """``(B, E, dim)``: on arrival, before any jump."""

    @classmethod
    def without_events(cls, ys: Tensor) -> Outputs:
        """The outputs of a solve that had no events."""
        return cls(ys, ys.new_zeros(len(ys), 0, dtype=torch.float64), ys.new_zeros(len(ys), 0, ys.shape[-1]))


class Made(NamedTuple):
    """What one slot gives: outputs inside it, the state that goes on, the state on arrival, and where the steps end."""

    values: Tensor
    y: Tensor
    arrival: Tensor
    t_end: Tensor


@dataclass(frozen=True)
class EventPlan:
    """Which slots hold events, and where these stand in the table of events."""

    watch: Watch
    rows: tuple[Tensor, ...]
    """For each slot, the rows with an event, ``(M,)``."""
    places: tuple[Tensor, ...]
    """For each of them, its column in the table, ``(M,)``."""
    columns: int

    @classmethod
    def of(cls, watch: Watch, records: Records, columns: int | None = None) -> EventPlan:
        """Number the events of each row in order."""
        assert records.event is not None
        met = records.event >= 0
        order = met.cumsum(0) - 1
        rows = tuple(slot.nonzero().flatten() for slot in met)
        places = tuple(order[slot, which] for slot, which in enumerate(rows))
        found = int(met.sum(0).max()) if met.numel() else 0
        return cls(watch, rows, places, found if columns is None else columns)

    def tables(self, times: Sequence[Tensor], states: Sequence[Tensor], t0: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, E)`` times and ``(B, E, dim)`` states from those of each slot."""
        table_t = t0.new_full((len(t0), self.columns), torch.nan)
        table_y = y0.new_full((len(t0), self.columns, y0.shape[-1]), torch.nan)
        if not times or not self.columns:
            return table_t, table_y
        where = (torch.cat(self.rows), torch.cat(self.places))
        return table_t.index_put(where, torch.cat(list(times))), table_y.index_put(where, torch.cat(list(states)))


def moved_end(f: FieldFunction, method: Method, watch: Watch, event: Tensor, t: Tensor, t_end: Tensor, y: Tensor) -> Tensor:
    """The recorded ends ``t_end`` ``(B,)`` of steps from ``t``, ``y``, as differentiable functions where they are events.

    Raises:
        GradientError: a trajectory only touches its condition there, so that the time of the event has no derivative.
    """

    def miss(end: Tensor, start: Tensor, state: Tensor) -> Tensor:
        inside = f.on_step(start.detach(), t_end)
        reached = method.step(inside, start, end, state).y
        return watch.chosen(inside, event, end, reached).to(torch.float64)

    met = event >= 0
    slope = _slope(f, lambda end: miss(end, t.detach(), y.detach()).sum(), t_end)
    flat = met & ~((slope.abs() > 0) & torch.isfinite(slope))
    if bool(flat.any()):
        row = int(flat.nonzero()[0])
        raise GradientError(
            f"the condition of event {int(event[row])} has the rate {float(slope[row]):.3g} along trajectory {row} at "
            f"t = {float(t_end[row]):.6g}, so the time of the event has no derivative there: the trajectory touches the "
            "condition without crossing it, or the field or the condition has no finite derivative"
        )
    slope = torch.where(met, slope, 1.0)
    end = t_end
    for _ in range(2):
        end = torch.where(met, end - miss(end, t, y) / slope, t_end)
    return t_end + (end - end.detach())


def _slope(f: FieldFunction, total: object, end: Tensor) -> Tensor:
    """The derivative of a sum over trajectories with respect to each one's own time."""
    if f.differentiates:
        with torch.enable_grad():
            moving = end.detach().requires_grad_()
            (found,) = torch.autograd.grad(total(moving), moving)  # type: ignore[operator]
            return found.detach()
    slope: Tensor = torch.func.grad(total)(end.detach())  # type: ignore[arg-type]
    return slope.detach()
