"""Times at which the field jumps: steps end there, and begin again on the other side.

A one-step method keeps its order only where the field is smooth within each step. The jumps are those a user names and those
of the input signals. A signal's jump or kink that changes the solution by far less than the tolerance, over the time to its
neighbours, is left to the error control: a finely sampled, slowly varying input then costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import torch
from torch import Tensor

from physnode.calling import with_args
from physnode.engine.controllers import Span
from physnode.engine.field_function import FieldFunction

__all__ = ["Jumps", "signal_jumps"]

_NEGLIGIBLE = 0.1
"""A jump is left alone if its effect is below this part of the tolerance of one step."""


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


def signal_jumps(f: FieldFunction, t: Tensor, y: Tensor, scale: Tensor | None) -> list[Tensor]:
    """The times of the signals' jumps and kinks that a solve from ``y`` ``(B, dim)`` at ``t`` must step onto.

    ``scale`` ``(B, 1)`` is the local error that the step-size control allows; without one (fixed steps) every jump counts
    and kinks do not. The effect of a jump of the n-th derivative is measured as its size times gap^(n+1) / (n+1)!, with the
    gap to the nearer neighbour. How strongly the field answers to a signal is seen from its values at both ends of the
    signal's range, taken at the start; where it does not answer there, every jump counts.
    """
    parts: list[Tensor] = []
    if f.args is None:
        return parts
    for name, signal in f.args.signals.items():
        times, size = signal.breaks()
        if not times.numel() or (scale is None and signal.smoothness > 0):
            continue
        if scale is None:
            parts.append(times)
            continue
        response = _response(f, name, t, y, scale)
        ascending = times.argsort(dim=-1)
        times, size = times.gather(-1, ascending), size.gather(-1, ascending)
        if not bool(torch.isfinite(times).any()):
            continue
        gaps = _gaps(times)
        order = signal.smoothness + 1
        effect = size * gaps**order / factorial(order) * response.unsqueeze(-1)
        # a sample whose derivative is wanted has its own share of the solution, however little the signal changes there
        counts = (effect > _NEGLIGIBLE) | (response == 0).unsqueeze(-1) | signal.differentiable
        if bool((counts == counts[:1]).all()):
            counts = counts[:1]
        parts.append(torch.where(counts, times, torch.inf))
    return parts


def _gaps(times: Tensor) -> Tensor:
    """Half the distance between the neighbours of each jump; infinite at either end."""
    edge = torch.full_like(times[:, :1], torch.inf)
    after = torch.cat((times.diff(dim=-1), edge), dim=-1)
    before = torch.cat((edge, times.diff(dim=-1)), dim=-1)
    return torch.nan_to_num(torch.minimum(before, after), nan=torch.inf)


def _response(f: FieldFunction, name: str, t: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """How much the field changes over the range of a signal, in units of the tolerance, ``(B,)``."""
    assert f.args is not None
    seen = {other: signal.at(t) for other, signal in f.args.signals.items()}
    low, high = f.args.signals[name].extremes()
    time, state = t.to(f.dtype).view(*f.batch, 1), y.view(*f.batch, y.shape[-1])
    with torch.set_grad_enabled(f.differentiates):
        values = [with_args(f.field, f.args.replaced({**seen, name: end}), time, state).detach() for end in (low, high)]
    change = (values[1] - values[0]).reshape(y.shape) / scale
    return torch.nan_to_num(change.square().mean(-1).sqrt().to(torch.float64), nan=0.0, posinf=0.0)
