"""Forward mode on the recorded steps: how the outputs of a solve change along many directions at once.

Exact for the solve that was made, like the backward gradients, and the right choice where unknowns are few and outputs are
many: least squares, covariances, prediction bands. Only the field is differentiated by PyTorch (a vectorised jvp); steps and
outputs are linear in what it returns, and are pushed forward by the family of the method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from physnode.engine.readout import interpolate, restep_ranks, short_end
from physnode.gradients.binding import with_tensors
from physnode.gradients.replay import Replay

__all__ = ["tangents"]


def tangents(replay: Replay, y0: Tensor, dy0: Tensor, theta: Mapping[str, Tensor], dtheta: Mapping[str, Tensor]) -> Tensor:
    """Changes of the outputs, ``(P, B, T, dim)``, for P directions.

    Args:
        replay: the recorded solve.
        y0: its start ``(B, dim)``.
        dy0: directions ``(P, B, dim)``.
        theta: parameters of the field by name, with the values of the solve.
        dtheta: directions ``(P, *shape)`` of each.

    Outputs that a failed trajectory did not reach are NaN.
    """
    field = replay.f.field
    names = list(theta)
    values = {name: theta[name].detach() for name in names}
    directions = {name: dtheta[name] for name in names}

    def jvp(function: Callable[[Tensor], Tensor], x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        def pure(tensors: dict[str, Tensor], point: Tensor) -> Tensor:
            return with_tensors(field, tensors, lambda: function(point))

        def along(dtensors: dict[str, Tensor], direction: Tensor) -> tuple[Tensor, Tensor]:
            value, change = torch.func.jvp(pure, (values, x), (dtensors, direction))[:2]
            return value, change

        mapped: Any = torch.func.vmap(along, out_dims=(None, 0))  # type: ignore[arg-type]  # PyTorch's hint forgets None
        value, change = mapped(directions, dx)
        return value, change

    records, method = replay.records, replay.method
    batch, times = replay.times.shape
    out = torch.full((len(dy0), batch, times, y0.shape[-1]), torch.nan, dtype=y0.dtype, device=y0.device)
    out = torch.where(replay.at_start.unsqueeze(-1), dy0.unsqueeze(2), out)
    y, dy = y0.detach(), dy0
    with torch.no_grad():
        for slot in range(records.slots):
            t, t_end, active = records.t[slot], records.t_end[slot], records.active(slot).unsqueeze(-1)
            y_in = torch.where(active, y, records.y[slot])
            here = replay.plan.within(slot)
            rows, columns, fractions = replay.plan.rows[here], replay.plan.columns[here], replay.plan.fractions[here]
            inner = (fractions != 1.0).nonzero().flatten()
            smooth = bool(len(inner)) and replay.read_out == "interpolate"
            end, dend, _, changes = method.push_forward(replay.f, jvp, t, t_end, y_in, dy, outputs=smooth)
            found = dend[:, rows]
            if smooth:
                at = rows[inner]
                weights = [weight.to(y.dtype) for weight in method.output_weights(fractions[inner])]
                h = (t_end - t).to(y.dtype).unsqueeze(-1)[at]
                found[:, inner] = interpolate(weights, h, dy[:, at], [change[:, at] for change in changes])
            elif len(inner):
                for entries, at in restep_ranks(rows[inner]):
                    short = short_end(t, t_end, at, fractions[inner][entries])
                    _, dshort, _, _ = method.push_forward(replay.f, jvp, t, short, y_in, dy)
                    found[:, inner[entries]] = dshort[:, at]
            out[:, rows, columns] = found
            y, dy = torch.where(active, end, y), torch.where(active, dend, dy)
    return out
