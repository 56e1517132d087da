"""``args`` of a solve, bound to its batch: constants as they are, signals as functions of each trajectory's own time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physnode.errors import InputError
from physnode.signals import Signal, spline_slopes

__all__ = ["Arguments", "BoundSignal"]


class BoundSignal:
    """A signal over B trajectories."""

    def __init__(self, name: str, signal: Signal, batch: Sequence[int], y: Tensor) -> None:
        """``y`` ``(B, dim)`` gives dtype and device.

        Raises:
            InputError: the signal's shape does not fit the batch, or it lies on another device.
        """
        self.name, self.hold, self.batch = name, signal.hold, tuple(batch)
        try:
            times, values = signal.arranged(batch)
        except InputError as problem:
            raise InputError(f"args[{name!r}]: {problem}") from None
        if values.device != y.device:
            raise InputError(f"args[{name!r}] is on {values.device} but y0 on {y.device}; move one of them")
        rows = max(len(times), len(values))  # one row where all trajectories share the signal
        self.times = times.to(y.device).expand(rows, -1).contiguous()
        self.values = values.to(y.dtype).expand(rows, -1, -1)
        self.slopes = spline_slopes(self.times, self.values) if self.hold == "cubic" else None

    def at(self, t: Tensor) -> Tensor:
        """The value at ``t`` ``(B,)``, ``(*batch, m)``."""
        found = self._evaluate(t)
        return found.reshape(*self.batch, found.shape[-1])

    def known(self) -> tuple[Tensor, Tensor]:
        """The first and last time at which each trajectory's signal is known, ``(B,)`` or ``(1,)``."""
        last = self.times[:, -1]
        return self.times[:, 0], torch.full_like(last, torch.inf) if self.hold == "previous" else last

    @property
    def differentiable(self) -> bool:
        """Whether gradients with respect to the samples are wanted."""
        return self.values.requires_grad and torch.is_grad_enabled()

    @property
    def smoothness(self) -> int:
        """Which derivative jumps at the samples: 0 the value itself, 1 the slope, 3 the third derivative of a spline."""
        return {"previous": 0, "linear": 1, "cubic": 3}[self.hold]

    def breaks(self) -> tuple[Tensor, Tensor]:
        """Sample times ``(B, K)`` or ``(1, K)`` at which a derivative jumps, infinite where none does, and by how much.

        Sizes are relative to the range of the signal, in the component where they are largest. Of a differentiable signal every
        sample counts.
        """
        values = self.values.detach().to(torch.float64)
        span = (values.amax(1, keepdim=True) - values.amin(1, keepdim=True)).clamp(min=torch.finfo(torch.float64).tiny)
        values = values / span
        if self.hold == "previous":
            size, at = values.diff(dim=1).abs().amax(-1), self.times[:, 1:]
            return torch.where((size > 0) | self.differentiable, at, torch.inf), size
        gaps = self.times.diff(dim=-1).unsqueeze(-1)
        padded = gaps <= 0
        gaps = torch.where(padded, 1.0, gaps)
        highest = values.diff(dim=1) / gaps
        if self.slopes is not None:
            slopes = self.slopes.detach().to(torch.float64) / span
            highest = 6 * (slopes[:, :-1] + slopes[:, 1:] - 2 * highest) / gaps**2
        size = torch.where(padded[:, 1:], 0.0, highest.diff(dim=1).abs()).amax(-1)
        jumps = size > 1e-12 * highest.abs().amax((1, 2)).unsqueeze(-1)
        return torch.where(jumps | self.differentiable, self.times[:, 1:-1], torch.inf), size

    def _evaluate(self, t: Tensor) -> Tensor:
        times, values, count = self.times, self.values, self.times.shape[-1]
        index = _last_at_or_before(times, t)
        if self.hold == "previous":
            return _pick(values, index.clamp(0, count - 1))
        index = index.clamp(0, count - 2)
        start = _pick(times.unsqueeze(-1), index).squeeze(-1)
        length = _pick(times.unsqueeze(-1), index + 1).squeeze(-1) - start
        length = torch.where(length > 0, length, 1.0)
        part = ((t - start) / length).to(values.dtype).unsqueeze(-1)
        left, right = _pick(values, index), _pick(values, index + 1)
        rise = right - left
        if self.slopes is None:
            return left + part * rise
        h = length.to(values.dtype).unsqueeze(-1)
        bend_left, bend_right = h * _pick(self.slopes, index) - rise, rise - h * _pick(self.slopes, index + 1)
        return left + part * (rise + (1 - part) * (bend_left * (1 - part) + bend_right * part))


class Arguments:
    """Everything a solve hands to its field by name."""

    def __init__(self, args: Mapping[str, Any], batch: Sequence[int], y: Tensor) -> None:
        """Bind ``args`` to the trajectories ``y`` ``(B, dim)``.

        Raises:
            InputError: args is no mapping by name, or a signal does not fit.
        """
        if not isinstance(args, Mapping):
            found = type(args).__name__
            raise InputError(f'args must be a dictionary by name, such as {{"torque": pn.Signal(...)}}; found {found}')
        self.constants: dict[str, Any] = {}
        self.signals: dict[str, BoundSignal] = {}
        for name, value in args.items():
            if isinstance(value, Signal):
                self.signals[name] = BoundSignal(name, value, batch, y)
            elif isinstance(value, np.ndarray | list | tuple):
                try:
                    self.constants[name] = torch.as_tensor(np.asarray(value), device=y.device)
                except (TypeError, ValueError):
                    self.constants[name] = value
            else:
                self.constants[name] = value

    def at(self, t: Tensor) -> dict[str, Any]:
        """The arguments at each trajectory's own time ``t`` ``(B,)``."""
        return _Given({**self.constants, **{name: signal.at(t) for name, signal in self.signals.items()}})

    def check_span(self, first: Tensor, last: Tensor) -> None:
        """Refuse a solve over ``[first, last]`` ``(B,)`` where a signal is not known.

        Raises:
            InputError: naming the signal, the trajectory and both spans.
        """
        for name, signal in self.signals.items():
            low, high = signal.known()
            outside = (first < low) | (last > high)
            if bool(outside.any()):
                row = int(outside.nonzero()[0])
                known = f"[{float(low.expand_as(first)[row]):.6g}, {float(high.expand_as(first)[row]):.6g}]"
                raise InputError(
                    f"args[{name!r}] is known for t in {known}, but trajectory {row} is solved over "
                    f"[{float(first[row]):.6g}, {float(last[row]):.6g}]; give samples that cover the solve"
                )


class _Given(dict[str, Any]):
    """What a field is given; a name that is not there is refused with those that are."""

    def __missing__(self, name: str) -> Any:
        known = ", ".join(map(repr, self)) or "nothing"
        raise InputError(f"the field reads args[{name!r}], but the solve was given {known}; add it to args=")


def _last_at_or_before(times: Tensor, t: Tensor) -> Tensor:
    """The index of the last of ``times`` ``(R, K)`` that is not after ``t`` ``(B,)``; -1 where there is none."""
    if len(times) == 1:
        return torch.searchsorted(times[0], t.contiguous(), right=True) - 1
    return torch.searchsorted(times, t.unsqueeze(-1).contiguous(), right=True).squeeze(-1) - 1


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """Entry ``index`` ``(B,)`` of each row of ``values`` ``(R, K, m)``."""
    if len(values) == 1:
        return values[0][index]
    where = index.view(-1, 1, 1).expand(-1, 1, values.shape[-1])
    return values.gather(1, where).squeeze(1)
