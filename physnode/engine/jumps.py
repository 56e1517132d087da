"""Times at which the field jumps: steps end there, and begin again on the other side.

A one-step method keeps its order only where the field is smooth within each step. The jumps are those a user names and those
of the input signals. A signal's jump or kink that is smaller, beside the signal's range, than the relative tolerance is left to
the error control: a finely sampled, slowly varying input then costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import torch
from torch import Tensor

from physnode.engine.controllers import Span
from physnode.engine.field_function import FieldFunction

__all__ = ["Jumps", "signal_jumps"]


@dataclass(frozen=True)
class Jumps:
    """The jump times of each trajectory, ``(B, K)`` or ``(1, K)`` in float64: ascending, padded with infinity."""

    times: Tensor

    @classmethod
    def of(cls, parts: list[Tensor], rows: int) -> Jumps | None:
        """All jumps of ``parts``, each ``(B or 1, K)``; None if there is none."""
        if len({len(part) for part in parts}) > 1:
            parts = [part.expand(rows, -1) for part in parts]
        if not parts:
            return None
        times = torch.cat(parts, dim=-1).sort(dim=-1).values
        count = int(torch.isfinite(times).sum(-1).max()) if times.numel() else 0
        return cls(times[:, :count].contiguous()) if count else None

    def stop(self, span: Span, t: Tensor, proposed: Tensor) -> Tensor:
        """``proposed``, or the first jump strictly between ``t`` and it, ``(B,)``."""
        forward = span.direction > 0
        ahead = self._pick(self._position(t, right=True), torch.inf)
        behind = self._pick(self._position(t, right=False) - 1, -torch.inf)
        return torch.where(forward, torch.minimum(proposed, ahead), torch.maximum(proposed, behind))

    def on(self, t: Tensor) -> Tensor:
        """Which of ``t`` ``(B,)`` are jumps."""
        return self._pick(self._position(t, right=False), torch.inf) == t

    def _position(self, t: Tensor, *, right: bool) -> Tensor:
        if len(self.times) == 1:
            return torch.searchsorted(self.times[0], t.contiguous(), right=right)
        return torch.searchsorted(self.times, t.unsqueeze(-1).contiguous(), right=right).squeeze(-1)

    def _pick(self, position: Tensor, beyond: float) -> Tensor:
        count = self.times.shape[-1]
        inside = (position >= 0) & (position < count)
        index = position.clamp(0, count - 1)
        found = self.times[0][index] if len(self.times) == 1 else self.times.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        return torch.where(inside, found, beyond)


def signal_jumps(f: FieldFunction, rtol: float | None) -> list[Tensor]:
    """The times of the signals' jumps and kinks that a solve must step onto, each ``(B or 1, K)``.

    A jump of the n-th derivative moves the signal by about its size times gap^n / (n + 1)!, with the gap to the nearer
    neighbour. Where that is below ``rtol`` of the signal's range, it is left to the error control; without step-size control
    (None), and where gradients with respect to the samples are wanted, nothing is.
    """
    parts: list[Tensor] = []
    for signal in f.args.signals.values() if f.args is not None else ():
        times, size = signal.breaks()
        if not times.numel():
            continue
        ascending = times.argsort(dim=-1)
        times, size = times.gather(-1, ascending), size.gather(-1, ascending)
        n = signal.smoothness
        effect = size * _gaps(times) ** n / factorial(n + 1)
        counts = effect > (0.0 if rtol is None or signal.differentiable else rtol)
        parts.append(torch.where(counts | (signal.differentiable & torch.isfinite(times)), times, torch.inf))
    return parts


def _gaps(times: Tensor) -> Tensor:
    """The distance of each jump to its nearer neighbour; infinite where it has none."""
    edge = torch.full_like(times[:, :1], torch.inf)
    steps = torch.nan_to_num(times.diff(dim=-1), nan=torch.inf)
    return torch.minimum(torch.cat((edge, steps), dim=-1), torch.cat((steps, edge), dim=-1))
