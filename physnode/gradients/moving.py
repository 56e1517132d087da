"""Times of a solve that a gradient is wanted of: its start, its end, and its outputs.

The grid of steps is scaled with the span: t_n = t0 + φ_n (t1 - t0), with fractions φ_n that are constants, and a step that ends
on a jump of the field stays there. An output between them is read at its own time on that grid, and an output at the end of
the span is the end. These are the derivatives of the solve that was made; they agree with those of the solution, λᵀ f at the
end and -λᵀ f at the start, up to the error of the solve.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from physnode.engine.controllers import Span
from physnode.engine.field_function import FieldFunction
from physnode.engine.jumps import Jumps

__all__ = ["MovingTimes", "moved_start", "shares"]


@dataclass(frozen=True)
class MovingTimes:
    """The times of one way of a solve as the graph knows them, in float64."""

    t0: Tensor
    """``(B,)``."""
    t1: Tensor
    """``(B,)``."""
    times: Tensor
    """Output times, ``(B, T)``."""
    last: Tensor
    """Which output is the end of the span, ``(B, T)`` bool."""

    @classmethod
    def of(cls, t0: Tensor, times: Tensor, farthest: Tensor) -> MovingTimes | None:
        """From the start ``(B,)`` and the outputs, of which ``farthest`` ``(B, 1)`` is the end; None if all are constants."""
        if not (torch.is_grad_enabled() and (t0.requires_grad or times.requires_grad)):
            return None
        last = torch.zeros_like(times, dtype=torch.bool).scatter(-1, farthest, True)
        return cls(t0, times.gather(-1, farthest).squeeze(-1), times, last)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """t0, t1 and the output times."""
        return self.t0, self.t1, self.times

    def moved(self, tensors: tuple[Tensor, ...]) -> MovingTimes:
        """The same with other tensors of the same values."""
        t0, t1, times = tensors
        return MovingTimes(t0, t1, times, self.last)


def shares(span: Span, jumps: Jumps | None, time: Tensor) -> tuple[Tensor, Tensor]:
    """How far the grid time ``time`` ``(B,)`` moves with t0 and with t1: 1 - φ and φ; not at all on a jump of the field."""
    length = span.t1 - span.t0
    share = torch.where(length != 0, (time - span.t0) / torch.where(length != 0, length, 1.0), 0.0)
    free = torch.ones_like(share)
    if jumps is not None:
        free = torch.where(jumps.on(time) & (time != span.t0) & (time != span.t1), 0.0, free)
    return free * (1.0 - share), free * share


def moved_start(f: FieldFunction, epoch: Tensor, times: Tensor, y0: Tensor, ys: Tensor) -> Tensor:
    """``ys`` ``(B, T, dim)``, where an output at the start itself, y0, moves along the solution as its time leaves the epoch.

    One step of the midpoint rule of length zero has the first and second derivatives of the solution.
    """
    if not (torch.is_grad_enabled() and (times.requires_grad or epoch.requires_grad)):
        return ys
    at_start = (times == epoch.unsqueeze(-1)).detach()
    if not bool(at_start.any()):
        return ys
    column = at_start.to(torch.int8).argmax(-1, keepdim=True)
    away = (times.gather(-1, column) - epoch.unsqueeze(-1)).squeeze(-1)
    away = torch.where(at_start.any(-1), away, torch.zeros_like(away))
    delta = away.to(y0.dtype).unsqueeze(-1)
    half = y0 + 0.5 * delta * f(epoch.detach(), y0)
    change = delta * f(epoch.detach() + 0.5 * away, half)
    return ys + torch.where(at_start.unsqueeze(-1), change.unsqueeze(1), 0.0)
