"""The field as the engine calls it: ``f(t, y)`` with one row a trajectory, whatever the user's batch shape.

Its ``args`` are bound to it: the field sees per-trajectory constants as they are and signals as their value at ``t``. A step
that may end on a jump of the field calls it through ``on_step``, which keeps every evaluation on the step's own side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor

from physnode.calling import with_args
from physnode.engine.arguments import Arguments
from physnode.fields import SecondOrder, SeparableHamiltonian, VectorField

__all__ = ["FieldFunction", "inner_sides"]


class Calls:
    """A count of calls."""

    def __init__(self) -> None:
        self.number = 0


class FieldFunction:
    """``f(t, y)`` for times ``(B,)`` in float64 and states ``(B, dim)``.

    The field itself sees ``(*batch, 1)`` and ``(*batch, dim)``.
    """

    def __init__(self, field: VectorField, batch: Sequence[int], dtype: torch.dtype, args: Arguments | None = None) -> None:
        self.field = field
        self.batch = tuple(batch)
        self.dtype = dtype
        self.args = args
        self.jumps = False
        """Whether the field jumps somewhere in time, so that the two sides of a time differ."""
        self.differentiates = False
        """Whether the field calls ``torch.autograd.grad`` itself, and so needs a graph even where none is kept."""
        self.calls = Calls()
        """How often the field was called, by this function and those made from it."""
        self._sides: tuple[Tensor, Tensor] | None = None

    def on_step(self, t: Tensor, t_end: Tensor) -> FieldFunction:
        """The field as a step from ``t`` to ``t_end`` ``(B,)`` sees it: times on its ends are moved inside by one unit in the
        last place, so that a jump there is seen from the step's own side."""
        return self.between(*inner_sides(t, t_end)) if self.jumps else self

    def between(self, low: Tensor, high: Tensor) -> FieldFunction:
        """The field with its times kept within [``low``, ``high``]."""
        other = copy(self)
        other._sides = (low, high)
        return other

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt, shape ``(B, dim)``."""
        return self._call(self.field, t, y)

    def drift(self, t: Tensor, p: Tensor) -> Tensor:
        """dq/dt of a field that splits, shape ``(B, dim / 2)``."""
        return self._call(self.field.drift, t, p)  # type: ignore[arg-type]

    def kick(self, t: Tensor, q: Tensor) -> Tensor:
        """dp/dt of a field that splits, shape ``(B, dim / 2)``."""
        return self._call(self.field.kick, t, q)  # type: ignore[arg-type]

    @property
    def splits(self) -> bool:
        """Whether the field declares q' = drift(p), p' = kick(q)."""
        if isinstance(self.field, SecondOrder):
            return not self.field.velocity_dependent
        return isinstance(self.field, SeparableHamiltonian)

    @property
    def drift_is_identity(self) -> bool:
        """Whether q' = p itself, so that a drift costs nothing."""
        return isinstance(self.field, SecondOrder)

    def evaluate(self, function: Callable[..., Tensor], t: Tensor, y: Tensor) -> Tensor:
        """Any ``function(t, y)`` or ``function(t, y, args)`` as the field is called, in the shape it returns."""
        if self._sides is not None:
            t = _moved_inside(t, *self._sides)
        time, state = self._seen(t), self._shaped(y)
        given = None if self.args is None else self.args.at(t)
        if self.differentiates and not torch.is_grad_enabled():
            with torch.enable_grad():
                return with_args(function, given, time, state).detach()
        return with_args(function, given, time, state)

    def _call(self, function: Callable[..., Tensor], t: Tensor, y: Tensor) -> Tensor:
        self.calls.number += 1
        value = self.evaluate(function, t, y)
        return value if value.shape == y.shape else value.reshape(y.shape)

    def _seen(self, t: Tensor) -> Tensor:
        """The time as the field sees it, ``(*batch, 1)``; a coarser dtype is kept on the step's side too."""
        time = t.to(self.dtype)
        if self._sides is not None and self.dtype != torch.float64:
            low, high = (side.to(self.dtype) for side in self._sides)
            low, high = torch.nextafter(low, high), torch.nextafter(high, low)
            time = torch.where(low <= high, _moved_inside(time, low, high), time)
        return self._shaped(time.unsqueeze(-1))

    def _shaped(self, rows: Tensor) -> Tensor:
        """``rows`` ``(B, ·)`` in the shape of the user's batch."""
        return rows if len(self.batch) == 1 else rows.view(*self.batch, rows.shape[-1])


def _moved_inside(t: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``t`` kept within [low, high]: a change of its value by rounding, not of what depends on it."""
    return t + (torch.minimum(torch.maximum(t, low), high) - t).detach()


def inner_sides(t: Tensor, t_end: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and highest time strictly inside each step, in float64; the time itself for a step of no length."""
    first, last = torch.nextafter(t, t_end), torch.nextafter(t_end, t)
    return torch.minimum(first, last), torch.maximum(first, last)
