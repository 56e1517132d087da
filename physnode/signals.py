"""``Signal``: a sampled input, such as a driving torque or a control, that a field reads at its own times.

Between samples it is held, joined by straight lines, or by a cubic spline. A held signal jumps at its samples, a joined one
has kinks there: a solve steps onto those that matter, so that no step reaches across one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from scipy.linalg import solve_banded
from torch import Tensor

from physnode.errors import InputError, name_hint
from physnode.torch_internals import is_mapped

__all__ = ["Hold", "Signal"]

Hold: TypeAlias = Literal["previous", "linear", "cubic"]
ArrayLike: TypeAlias = Tensor | np.ndarray[Any, Any] | Sequence[Any]


class Signal:
    """Samples of an input, given to a field through ``solve(..., args={"name": Signal(...)})``.

    The field finds its value at ``t`` in ``args["name"]``: shape ``(*batch, 1)`` for a scalar signal, the shape of ``t``, and
    ``(*batch, m)`` for one of m components. Gradients flow to ``values``; where they are asked for, steps end on every sample,
    so that each sample's share is integrated as well as the motion.

    Args:
        times: sample times, ``(K,)`` for all trajectories or ``(*batch, K)``, strictly increasing; the rows of ragged signals
            are padded by repeating their last time (and its value).
        values: ``(K,)``, ``(K, m)``, ``(*batch, K)`` or ``(*batch, K, m)``.
        hold: ``"previous"``: u(t) = u_k for t_k <= t < t_{k+1}, and the last value for good; ``"linear"``: straight lines;
            ``"cubic"``: the twice differentiable cubic spline with not-a-knot ends (de Boor, A Practical Guide to Splines,
            IV), four samples or more. Only a held signal is known after its last sample, and none before its first.

    Raises:
        InputError: times that are not strictly increasing or not finite, values that do not fit them or are not finite, too
            few samples, an unknown hold.
    """

    def __init__(self, times: ArrayLike, values: ArrayLike, hold: Hold = "previous") -> None:
        if hold not in get_args(Hold):
            raise InputError(f"unknown hold {hold!r}.{name_hint(hold, get_args(Hold))} Known: {', '.join(get_args(Hold))}")
        self.hold: Hold = hold
        self.times = _tensor(times, "times").detach().to(torch.float64)
        self.values = _tensor(values, "values")
        if self.values.is_complex():
            raise InputError("the values of a signal are real; give real and imaginary parts as two components, (K, 2)")
        if not self.values.dtype.is_floating_point:
            self.values = self.values.to(torch.float64)
        needed = {"previous": 1, "linear": 2, "cubic": 4}[hold]
        count = self.times.shape[-1] if self.times.ndim else 0
        if count < needed:
            raise InputError(f'hold="{hold}" needs at least {needed} samples; found times of shape {_shape(self.times)}')
        mapped = is_mapped(self.values)  # under vmap, whose values cannot be looked at
        if not bool(torch.isfinite(self.times).all()) or not (mapped or bool(torch.isfinite(self.values).all())):
            raise InputError("a signal holds times or values that are not finite; remove or fill those samples")
        steps = self.times.diff(dim=-1)
        padding = steps.abs().flip(-1).cumsum(-1).flip(-1) == 0
        if bool(((steps <= 0) & ~(padding & (self.times.ndim > 1))).any()):
            raise InputError("the times of a signal must be strictly increasing; sort the samples and drop repeated times")
        if hold == "cubic" and bool(padding.any()):
            raise InputError('hold="cubic" does not take padded times; give each trajectory the same number of samples')
        if count not in self.values.shape[-2:]:
            raise InputError(f"values of shape {_shape(self.values)} do not fit {count} sample times: give (K,), (K, m), ...")

    def __repr__(self) -> str:
        return f"Signal({self.times.shape[-1]} samples, values {_shape(self.values)}, hold={self.hold!r})"

    def arranged(self, batch: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Times ``(B or 1, K)`` and values ``(B or 1, K, m)`` for trajectories of shape ``batch``.

        Raises:
            InputError: shapes that do not fit the batch, or fit it in two ways.
        """
        count, rows = self.times.shape[-1], int(np.prod(batch, dtype=int))
        if self.times.ndim > 1 and tuple(self.times.shape[:-1]) != tuple(batch):
            raise InputError(
                f"the times of a signal have shape {_shape(self.times)} for the batch {tuple(batch)}; give (K,) or (*batch, K)"
            )
        shape = tuple(self.values.shape)
        fits = []
        if shape == (count,):
            fits.append((1, count, 1))
        if len(shape) == 2 and shape[0] == count:
            fits.append((1, count, shape[1]))
        if batch and shape == (*batch, count):
            fits.append((rows, count, 1))
        if batch and len(shape) == len(batch) + 2 and shape[:-1] == (*batch, count):
            fits.append((rows, count, shape[-1]))
        if len(fits) != 1:
            why = "fit in two ways" if fits else "do not fit"
            raise InputError(
                f"values of shape {shape} {why} for {count} samples and the batch {tuple(batch)}; give (*batch, K, m), "
                "with m = 1 for a scalar signal"
            )
        times = self.times.reshape(-1, count)
        return times, self.values.reshape(fits[0])


def spline_slopes(times: Tensor, values: Tensor) -> Tensor:
    """Slopes ``(R, K, m)`` at the knots of the not-a-knot cubic spline through ``values``; differentiable in them.

    The slopes solve a tridiagonal system, whose right-hand side is linear in the values.
    """
    rows = values.shape[0]
    x = times.expand(rows, -1)
    dx = x.diff(dim=-1)
    secant = values.diff(dim=-2) / dx.unsqueeze(-1).to(values.dtype)
    d = dx.to(values.dtype).unsqueeze(-1)
    inner = 3 * (d[:, 1:] * secant[:, :-1] + d[:, :-1] * secant[:, 1:])
    first, last = d[:, 0] + d[:, 1], d[:, -1] + d[:, -2]
    start = ((d[:, 0] + 2 * first) * d[:, 1] * secant[:, 0] + d[:, 0] ** 2 * secant[:, 1]) / first
    end = (d[:, -1] ** 2 * secant[:, -2] + (2 * last + d[:, -1]) * d[:, -2] * secant[:, -1]) / last
    right = torch.cat((start.unsqueeze(1), inner, end.unsqueeze(1)), dim=1)
    bands = torch.zeros(rows, 3, x.shape[-1], dtype=torch.float64, device=x.device)
    bands[:, 1, 0], bands[:, 0, 1] = dx[:, 1], dx[:, 0] + dx[:, 1]
    bands[:, 1, 1:-1] = 2 * (dx[:, :-1] + dx[:, 1:])
    bands[:, 0, 2:], bands[:, 2, :-2] = dx[:, :-1], dx[:, 1:]
    bands[:, 1, -1], bands[:, 2, -2] = dx[:, -2], dx[:, -1] + dx[:, -2]
    solved: Tensor = _Banded.apply(bands, right)  # type: ignore[no-untyped-call]
    return solved


class _Banded(torch.autograd.Function):
    """Solve one tridiagonal system a row; its derivative is the solution of the transposed one."""

    @staticmethod
    def forward(ctx: Any, bands: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(bands)
        systems = zip(bands.cpu().numpy(), right.detach().cpu().double().numpy(), strict=True)
        found = np.stack([solve_banded((1, 1), band, side) for band, side in systems])
        return torch.as_tensor(found).to(right)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (bands,) = ctx.saved_tensors
        flipped = torch.zeros_like(bands)
        flipped[:, 1] = bands[:, 1]
        flipped[:, 0, 1:], flipped[:, 2, :-1] = bands[:, 2, :-1], bands[:, 0, 1:]
        return None, _Banded.apply(flipped, grads[0])  # type: ignore[no-untyped-call]


def _tensor(value: ArrayLike, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError):
        raise InputError(f"the {name} of a signal must be an array of real numbers; found {type(value).__name__}") from None


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
