"""Forward mode on the recorded steps: how the outputs of a solve change along many directions at once.

Exact for the solve that was made, like the backward gradients, and the right choice where unknowns are few and outputs are
many: least squares, covariances, prediction bands. Where the steps begin is known, so all of them are linearised together, a
block of them at a time: each gives its end as a linear function of its start and of the parameters. What is left to do step
by step is one product of small matrices.

Only the field is differentiated by PyTorch (a vectorised jvp); steps and outputs are linear in what it returns, and are pushed
forward by the family of the method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from physnode.engine.field_function import FieldFunction, inner_sides
from physnode.engine.readout import interpolate, restep_ranks, short_end
from physnode.errors import GradientError
from physnode.gradients.binding import with_tensors
from physnode.gradients.replay import Replay

__all__ = ["tangents"]

_BLOCK = 2e5
"""Numbers in one block of directions times steps: enough to hide the cost of a call, little enough to stay in the cache."""


def tangents(replay: Replay, y0: Tensor, dy0: Tensor, theta: Mapping[str, Tensor], dtheta: Mapping[str, Tensor]) -> Tensor:
    """Changes of the outputs, ``(P, B, T, dim)``, for P directions.

    Args:
        replay: the recorded solve.
        y0: its start ``(B, dim)``.
        dy0: directions ``(P, B, dim)``.
        theta: parameters of the field by name, with the values of the solve.
        dtheta: directions ``(P, *shape)`` of each.

    Outputs that a failed trajectory did not reach are NaN.

    Raises:
        GradientError: the field calls ``torch.autograd.grad`` itself, which forward mode cannot see through.
    """
    if replay.f.differentiates:
        raise GradientError(
            "the field calls torch.autograd.grad, which forward mode (the Jacobian of a fit, prediction bands) cannot see "
            "through; use torch.func.grad inside the field, as physnode.Hamiltonian does"
        )
    if replay.events is not None and replay.events.columns:
        raise GradientError(
            "forward mode (the Jacobian of a fit, prediction bands) does not see through events, whose times move; use reverse "
            "mode, torch.autograd.grad, for solves with events"
        )
    records = replay.records
    batch, times = replay.times.shape
    out = torch.full((len(dy0), batch, times, y0.shape[-1]), torch.nan, dtype=y0.dtype, device=y0.device)
    out = torch.where(replay.at_start.unsqueeze(-1), dy0.unsqueeze(2), out)
    size = (len(dy0) + y0.shape[-1]) * max(1, y0.numel())
    length = max(1, int(_BLOCK // size))
    with torch.no_grad():
        dy = dy0.detach().transpose(0, 1)
        for first in range(0, records.slots, length):
            block = _Linearised.of(replay, range(first, min(first + length, records.slots)), theta, dtheta)
            starts = []
            for slot in block.slots:
                starts.append(dy)
                moved = torch.baddbmm(block.shift[slot - first], dy, block.matrix[slot - first])
                dy = torch.where(records.active(slot).view(-1, 1, 1), moved, dy)
            here = slice(replay.plan.within(block.slots[0]).start, replay.plan.within(block.slots[-1]).stop)
            rows, columns, slots = replay.plan.rows[here], replay.plan.columns[here], replay.plan.slots[here]
            if len(rows):
                before = torch.stack(starts)[slots - first, rows]
                out[:, rows, columns] = torch.baddbmm(block.output_shift, before, block.output_matrix).transpose(0, 1)
    return out


@dataclass(frozen=True)
class _Linearised:
    """A block of S steps, and the M outputs inside them, as linear functions of each step's start: δ -> δ matrix + shift."""

    slots: range
    matrix: Tensor
    """``(S, B, dim, dim)``; from a change of the start (row) to one of the end (column)."""
    shift: Tensor
    """``(S, B, P, dim)``: what the directions of the parameters add."""
    output_matrix: Tensor
    """``(M, dim, dim)``."""
    output_shift: Tensor
    """``(M, P, dim)``."""

    @classmethod
    def of(cls, replay: Replay, slots: range, theta: Mapping[str, Tensor], dtheta: Mapping[str, Tensor]) -> _Linearised:
        records, method, plan = replay.records, replay.method, replay.plan
        span = slice(slots[0], slots[-1] + 1)
        states = records.y.stacked(span.start, span.stop)
        count, batch, dim = states.shape
        t, t_end, y = records.t[span].reshape(-1), records.t_end[span].reshape(-1), states.reshape(-1, dim)
        here = slice(plan.within(slots[0]).start, plan.within(slots[-1]).stop)
        rows = (plan.slots[here] - slots[0]) * batch + plan.rows[here]
        fractions = plan.fractions[here]
        inner = (fractions != 1.0).nonzero().flatten()
        smooth = bool(len(inner)) and replay.read_out == "interpolate"

        f: Any = _Stacked(replay.f, count, inner_sides(t, t_end) if replay.f.jumps else None)
        jvp = _jvp_of(replay, theta, dtheta, dim)
        directions = next((len(value) for value in dtheta.values()), 0)
        unit = torch.eye(dim, dtype=y.dtype, device=y.device).unsqueeze(1).expand(dim, len(y), dim)
        basis = torch.cat((unit, y.new_zeros(directions, len(y), dim)))
        _, end, _, changes = method.push_forward(f, jvp, t, t_end, y, basis, outputs=smooth)
        found = end[:, rows]
        if smooth:
            at = rows[inner]
            weights = [weight.to(y.dtype) for weight in method.output_weights(fractions[inner])]
            h = (t_end - t).to(y.dtype).unsqueeze(-1)[at]
            found[:, inner] = interpolate(weights, h, basis[:, at], [change[:, at] for change in changes])
        elif len(inner):
            for entries, at in restep_ranks(rows[inner]):
                short = short_end(t, t_end, at, fractions[inner][entries])
                _, short_change, _, _ = method.push_forward(f, jvp, t, short, y, basis)
                found[:, inner[entries]] = short_change[:, at]
        table = end.view(-1, count, batch, dim).permute(1, 2, 0, 3)
        found = found.transpose(0, 1)
        if not directions:
            return cls(slots, table, table.new_zeros(count, batch, 1, dim), found, found.new_zeros(1, 1, dim))
        return cls(slots, table[:, :, :dim], table[:, :, dim:], found[:, :dim], found[:, dim:])


class _Stacked:
    """A field for S steps of the whole batch at once, ``(S B, dim)``; the field itself sees one batch, as ever."""

    def __init__(self, f: FieldFunction, count: int, sides: tuple[Tensor, Tensor] | None) -> None:
        self.f, self.count, self.sides = f, count, sides
        self.drift_is_identity = f.drift_is_identity

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self._each(lambda f: f, t, y)

    def drift(self, t: Tensor, p: Tensor) -> Tensor:
        return self._each(lambda f: f.drift, t, p)

    def kick(self, t: Tensor, q: Tensor) -> Tensor:
        return self._each(lambda f: f.kick, t, q)

    def _each(self, choose: Callable[[FieldFunction], Callable[[Tensor, Tensor], Tensor]], t: Tensor, y: Tensor) -> Tensor:
        low, high = (t, t) if self.sides is None else self.sides

        def one(time: Tensor, state: Tensor, first: Tensor, last: Tensor) -> Tensor:
            return choose(self.f if self.sides is None else self.f.between(first, last))(time, state)

        if self.count == 1:
            return one(t, y, low, high)
        times, states = t.reshape(self.count, -1), y.reshape(self.count, -1, y.shape[-1])
        value: Tensor = torch.func.vmap(one)(times, states, low.reshape(times.shape), high.reshape(times.shape))
        return value.reshape(y.shape)


def _jvp_of(
    replay: Replay, theta: Mapping[str, Tensor], dtheta: Mapping[str, Tensor], dim: int
) -> Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The field's jvp along ``dim`` directions that leave the parameters alone, then those of ``dtheta``."""
    values = {name: tensor.detach() for name, tensor in theta.items() if name in dtheta}
    directions = {name: torch.cat((change.new_zeros(dim, *change.shape[1:]), change)) for name, change in dtheta.items()}

    def jvp(function: Callable[[Tensor], Tensor], x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        def pure(tensors: dict[str, Tensor], point: Tensor) -> Tensor:
            return with_tensors(replay.f.field, tensors, lambda: function(point))

        def along(dtensors: dict[str, Tensor], direction: Tensor) -> tuple[Tensor, Tensor]:
            value, change = torch.func.jvp(pure, (values, x), (dtensors, direction))[:2]
            return value, change

        mapped: Any = torch.func.vmap(along, out_dims=(None, 0))  # type: ignore[arg-type]  # PyTorch's hint forgets None
        value, change = mapped(directions, dx)
        return value, change

    return jvp
