"""What the loop leaves behind: the accepted steps of each trajectory, packed at its own count.

A record is where a step started, at which time, and where it ended in time. That is all a gradient needs, since the step
can be made again from it bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from physnode.engine.controllers import Span
from physnode.engine.families.base import Step
from physnode.engine.kept_states import KeptStates

__all__ = ["Met", "OutputPlan", "Records", "Trial", "pack", "plan_outputs"]

_PIECE = 2**14
"""Outputs that are located together: what is in between takes a multiple of their own size."""


class Trial(NamedTuple):
    """One trial of the whole batch, as an observer sees it."""

    t: Tensor
    t_end: Tensor
    y: Tensor
    carry: Tensor | None
    step: Step
    accept: Tensor
    event: Tensor | None = None
    """Which event the step ended on, ``(B,)``; -1 for none."""


class Met(NamedTuple):
    """The events of a solve in the order in which each trajectory met them, padded to the largest number of one."""

    which: Tensor
    """Which event, ``(B, E)``; -1 beyond a trajectory's own number."""
    t: Tensor
    """``(B, E)`` float64; NaN beyond."""
    y: Tensor
    """States on arrival, ``(B, E, dim)``; NaN beyond."""

    @classmethod
    def of(cls, marked: Sequence[Trial], t0: Tensor, y0: Tensor) -> Met:
        """Those on which the ``marked`` trials ended; each holds one at least."""
        count = torch.zeros_like(t0, dtype=torch.int64)
        places = []
        for trial in marked:
            assert trial.event is not None
            rows = (trial.event >= 0).nonzero().flatten()
            places.append((rows, count[rows]))
            count = count.index_add(0, rows, torch.ones_like(rows))
        most = int(count.max()) if len(count) else 0
        which = torch.full((len(t0), most), -1, dtype=torch.int64, device=t0.device)
        t, y = t0.new_full((len(t0), most), torch.nan), y0.new_full((len(t0), most, y0.shape[-1]), torch.nan)
        for trial, (rows, columns) in zip(marked, places, strict=True):
            assert trial.event is not None
            which[rows, columns], t[rows, columns] = trial.event[rows], trial.t_end[rows]
            y[rows, columns] = trial.step.y[rows]
        return cls(which, t, y)


@dataclass(frozen=True)
class Records:
    """Accepted steps. Slot n of row b is that trajectory's own n-th step; beyond its count it has zero length."""

    t: Tensor
    """``(N, B)`` float64: where steps start."""
    t_end: Tensor
    """``(N, B)`` float64: where they end."""
    y: KeptStates
    """``y[n]`` ``(B, dim)``: the states they start from, as many as are kept; a safe state beyond a row's count."""
    count: Tensor
    """``(B,)``: steps of each row."""
    event: Tensor | None = None
    """``(N, B)``: which event a step ended on, -1 for none; None where a solve has no events."""

    @property
    def slots(self) -> int:
        """The largest count."""
        return self.t.shape[0]

    @property
    def reached(self) -> Tensor:
        """Where each row's last step ended, ``(B,)``; NaN for a row without steps."""
        if not self.slots:
            return self.t.new_full((self.t.shape[1],), torch.nan)
        last = self.t_end.gather(0, (self.count - 1).clamp(min=0).unsqueeze(0)).squeeze(0)
        return torch.where(self.count > 0, last, torch.nan)

    @property
    def time_bytes(self) -> int:
        """What the times take."""
        storages = (self.t.untyped_storage(), self.t_end.untyped_storage())
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    @cached_property
    def fewest(self) -> int:
        """The smallest count: in every slot before it, every row makes a step."""
        return int(self.count.min()) if len(self.count) else 0

    def active(self, slot: int) -> Tensor:
        """Rows that made a step in this slot, ``(B,)``."""
        return slot < self.count


def pack(accept: Tensor, count: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Move each row's accepted trials ``(K, B)``, ``count`` ``(B,)`` of them, to the front, in order; cut to the largest count.

    Returns the permutation ``(N, B)`` of trial indices, then each of ``values`` ``(K, B, ...)`` packed.
    """
    fewest, slots = torch.stack((count.amin(), count.amax())).tolist()
    if fewest == len(accept):
        trials = torch.arange(accept.shape[0], device=accept.device).unsqueeze(-1).expand(accept.shape)
        return trials, *values
    order = (~accept).to(torch.int8).argsort(dim=0, stable=True)[:slots]
    packed = []
    for value in values:
        index = order.reshape(*order.shape, *[1] * (value.ndim - 2)).expand(slots, *value.shape[1:])
        packed.append(value.gather(0, index))
    return order, *packed


@dataclass(frozen=True)
class OutputPlan:
    """Where each requested output lies: in which slot of its row, and at which fraction of the step.

    Entries are sorted by slot. Outputs at the start of the span have no entry: they are y0 itself. ``fraction`` 1 means the
    step's own end, to the last bit.
    """

    rows: Tensor
    columns: Tensor
    slots: Tensor
    fractions: Tensor
    offsets: list[int]

    def within(self, slot: int) -> slice:
        """The entries of one slot."""
        return slice(self.offsets[slot], self.offsets[slot + 1])


def plan_outputs(t: Tensor, t_end: Tensor, count: Tensor, span: Span, times: Tensor, wanted: Tensor) -> OutputPlan:
    """Locate the ``wanted`` entries ``(B, T)`` of ``times`` among packed steps ``t``, ``t_end`` ``(N, B)``.

    A time within four units in the last place of a step's end is that end.
    """
    ends = t_end.new_empty(t_end.shape[1], len(t))  # in place, since there may be very many steps
    torch.mul(t_end.T, span.direction.unsqueeze(-1), out=ends)
    if bool((count < len(t)).any()):
        ends.masked_fill_(torch.arange(len(t), device=t.device) >= count.unsqueeze(-1), torch.inf)
    size = max(1, _PIECE // max(1, len(times)))
    found = [
        _located(t, t_end, ends, count, span, times[:, first : first + size], wanted[:, first : first + size], first)
        for first in range(0, max(1, times.shape[1]), size)
    ]
    rows, columns, slots, fractions = (torch.cat(parts) if len(found) > 1 else parts[0] for parts in zip(*found, strict=True))
    order = slots.argsort(stable=True)
    slots = slots[order]
    offsets = torch.searchsorted(slots, torch.arange(len(t) + 1, device=t.device)).tolist()
    return OutputPlan(rows[order], columns[order], slots, fractions[order], offsets)


def _located(
    t: Tensor, t_end: Tensor, ends: Tensor, count: Tensor, span: Span, times: Tensor, wanted: Tensor, first: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, columns (from ``first`` on), slots and fractions of some columns, ``(M,)`` each."""
    rows, columns = wanted.nonzero(as_tuple=True)
    near = 4 * torch.finfo(torch.float64).eps * times.abs()
    slots = torch.searchsorted(ends, (span.direction.unsqueeze(-1) * times - near).contiguous())[rows, columns]
    slots = torch.minimum(slots, (count[rows] - 1).clamp(min=0))
    start, end, time = t[slots, rows], t_end[slots, rows], times[rows, columns]
    length = torch.where(end == start, 1.0, end - start)
    at_end = (time - end).abs() <= 4 * torch.finfo(torch.float64).eps * torch.maximum(time.abs(), end.abs())
    return rows, columns + first, slots, torch.where(at_end, 1.0, (time - start) / length)
