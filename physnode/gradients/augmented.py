"""The augmented system of the continuous adjoint, as one state of the engine.

    y' = f(t, y),    λ' = -(∂f/∂y)ᵀ λ,    g' = -(∂f/∂θ)ᵀ λ

All trajectories and all parameters make one row (y, λ, g), with one step size. Each trajectory may have times of its own, so
that row has a clock: while it runs from 0 to ``length``, every trajectory runs evenly from its own start to its own end.
Source: Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, NeurIPS 2018, appendix B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from physnode.engine.controllers import Adaptive, Controller, Span
from physnode.engine.field_function import FieldFunction
from physnode.engine.jumps import Jumps
from physnode.gradients.variables import refuse_unknown

__all__ = ["AugmentedField", "Clock", "Layout", "controlled"]

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Clock:
    """One time for the whole batch, in the unit of the trajectory with the longest way."""

    start: Tensor
    """``(B,)`` float64."""
    end: Tensor
    """``(B,)`` float64; a trajectory whose end is its start rests."""
    length: Tensor
    """``(1,)``: where the clock ends."""
    jumps: Jumps | None
    """The jumps of each trajectory's field, in its own time."""
    stops: Jumps | None
    """The same on the clock: strictly inside, of all trajectories together."""

    @classmethod
    def between(cls, start: Tensor, end: Tensor, jumps: Jumps | None) -> Clock:
        """The clock of ways from ``start`` to ``end`` ``(B,)``, of which one at least has a length."""
        way = end - start
        length = way.abs().amax().unsqueeze(0)
        if jumps is None:
            return cls(start, end, length, None, None)
        fraction = (jumps.times - start.unsqueeze(-1)) / torch.where(way == 0, torch.inf, way).unsqueeze(-1)
        stops = (fraction[(fraction > 0) & (fraction < 1)] * length).sort().values
        # jumps that only rounding tells apart are one
        apart = stops.diff(prepend=torch.zeros_like(length)) > 8 * _EPS * length
        return cls(start, end, length, jumps, Jumps.of([stops[apart].unsqueeze(0)], 1))

    @property
    def rate(self) -> Tensor:
        """How fast each trajectory's time runs, ``(B,)``, between -1 and 1."""
        return (self.end - self.start) / self.length

    def time(self, clock: Tensor) -> Tensor:
        """Each trajectory's time ``(B,)`` when the clock shows ``clock`` ``(1,)``."""
        return torch.lerp(self.start, self.end, clock / self.length)

    def ends(self, clock: Tensor) -> Tensor:
        """The same, to the last bit where that is a jump: the end of a step has to lie on it, not beside it."""
        time = self.time(clock)
        if self.jumps is None:
            return time
        near = 8 * _EPS * torch.maximum(self.start.abs(), self.end.abs())
        upward = Span(time, time, torch.ones_like(time))
        found = self.jumps.stop(upward, time - near, time + near)
        return torch.where(found < time + near, found, time)


class Layout:
    """Where y ``(B, dim)``, λ ``(B, dim)`` and the gradient g of each parameter lie in a row ``(1, D)``.

    The dtype of the row is the widest of states and parameters. Complex parameters are pairs of real numbers.
    """

    def __init__(self, y: Tensor, theta: Sequence[Tensor]) -> None:
        self.shape, self.like = tuple(y.shape), tuple(theta)
        self.dtype = y.dtype
        for tensor in theta:
            self.dtype = torch.promote_types(self.dtype, tensor.real.dtype)
        self.sizes = [y.numel(), y.numel(), *(tensor.numel() * (2 if tensor.is_complex() else 1) for tensor in theta)]

    def join(self, y: Tensor, owed: Tensor, grads: Sequence[Tensor | None]) -> Tensor:
        """The row; a gradient of None is zero."""
        parts = [y.reshape(-1).to(self.dtype), owed.reshape(-1).to(self.dtype)]
        for grad, size in zip(grads, self.sizes[2:], strict=True):
            if grad is None:
                parts.append(y.new_zeros(size, dtype=self.dtype))
            else:
                parts.append((_pairs(grad) if grad.is_complex() else grad).reshape(-1).to(self.dtype))
        return torch.cat(parts).unsqueeze(0)

    def split(self, row: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """(y, λ, g), in the dtype of the row; each g is flat."""
        y, owed, *grads = torch.split(row[0], self.sizes)
        return y.view(self.shape), owed.view(self.shape), tuple(grads)

    def shaped(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Each g in the shape and dtype of its parameter."""
        found = []
        for grad, like in zip(grads, self.like, strict=True):
            value = torch.view_as_complex(grad.reshape(*like.shape, 2)) if like.is_complex() else grad.reshape(like.shape)
            found.append(value.to(like.dtype))
        return found


class AugmentedField(FieldFunction):
    """d(y, λ, g)/d(clock): one evaluation of the field and one vector-Jacobian product for the whole batch."""

    def __init__(self, f: FieldFunction, clock: Clock, layout: Layout, theta: Sequence[Tensor]) -> None:
        super().__init__(f.field, (1,), layout.dtype)
        self.each, self.clock, self.layout, self.theta = f, clock, layout, tuple(theta)

    def on_step(self, t: Tensor, t_end: Tensor) -> FieldFunction:
        """Each trajectory sees its field from its own step."""
        if not self.each.jumps:
            return self
        other = copy(self)
        other.each = self.each.on_step(self.clock.ends(t), self.clock.ends(t_end))
        return other

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative of the row ``y`` ``(1, D)`` when the clock shows ``t`` ``(1,)``.

        Raises:
            GradientError: the field depends on a tensor that its first call did not read.
        """
        f, theta = self.each, self.theta
        state, owed, _ = self.layout.split(y)
        rate = self.clock.rate.to(f.dtype).unsqueeze(-1)
        back: Sequence[Tensor | None] = (None,) * (1 + len(theta))
        with torch.enable_grad():
            point = state.detach().to(f.dtype).requires_grad_()
            value = f(self.clock.time(t), point)
            if value.requires_grad:
                refuse_unknown({id(tensor) for tensor in (point, *theta)}, value)
                back = torch.autograd.grad(value, (point, *theta), -rate * owed.to(f.dtype), allow_unused=True)
        to_state = torch.zeros_like(owed) if back[0] is None else back[0]
        return self.layout.join(rate * value.detach(), to_state, back[1:])


def controlled(controller: Controller, layout: Layout, y0: Tensor, *, seminorm: bool) -> Controller:
    """The controller of an augmented row, whose λ is of the size of 1 or below.

    The error ratio is the largest of the root mean squares of y, of λ and, without ``seminorm``, of each parameter's gradient.
    The tolerances of y are those of the forward solve from ``y0`` ``(B, dim)``; λ and the gradients have its ``rtol`` and the
    smallest entry a of its ``atol``, or rtol / 1000 where that is zero. A parameter in a small unit, and so of large numbers,
    has small gradients: where its largest entry is above that of y0, a is less by their ratio. Other controllers than
    ``Adaptive`` stay as they are.
    """
    if not isinstance(controller, Adaptive):
        return controller
    rtol, atol = controller.tolerances(y0.dtype)
    atol = atol.to(y0.device)
    of_y = atol.expand(layout.shape)
    if controller.atol is None:  # measured by the largest entry of each trajectory's start, where that is below 1
        size = y0.abs().amax(-1, keepdim=True).to(torch.float64)
        of_y = of_y * torch.where((size > 0) & (size < 1), size, 1.0)
    smallest = atol.amin()
    parts = [of_y.reshape(-1), torch.where(smallest > 0, smallest, 1e-3 * rtol).expand(layout.sizes[1])]
    for tensor, entries in zip(layout.like, layout.sizes[2:], strict=True):
        ratio = y0.abs().amax() / tensor.detach().abs().amax() if entries else torch.ones_like(smallest)
        parts.append((parts[1][:1] * ratio.nan_to_num(1.0).clamp(0.0, 1.0)).expand(entries))
    own = copy(controller)
    own.rtol, own.atol = rtol, torch.cat(parts)
    own.norm = _largest_part(layout, controller.norm, with_parameters=not seminorm)
    return own


def _largest_part(layout: Layout, norm: Callable[[Tensor], Tensor], *, with_parameters: bool) -> Callable[[Tensor], Tensor]:
    """The largest part of a row ``(1, D)``: ``norm`` gives one number a trajectory, of which the mean square is taken."""

    def largest(row: Tensor) -> Tensor:
        y, owed, grads = layout.split(row)
        sizes = [norm(part).square().mean().sqrt() for part in (y, owed)]
        if with_parameters:
            sizes += [grad.square().mean().sqrt() for grad in grads if grad.numel()]
        return torch.stack(sizes).amax(0, keepdim=True)

    return largest


def _pairs(value: Tensor) -> Tensor:
    return torch.view_as_real(value.resolve_conj())
