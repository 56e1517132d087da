"""A field, its events and its inputs over the mapped axes and the batch, for a solver that sees plain tensors only.

The field of one mapped slice is called inside the transforms, with the slice as ``vmap`` shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physnode.calling import Args, with_args
from physnode.engine.events import Event
from physnode.fields import SecondOrder, SeparableHamiltonian, VectorField
from physnode.gradients.transforms import Axes, bottom
from physnode.signals import Signal

__all__ = ["MappedCall", "MappedField", "mapped_event", "mapped_field", "spread_signal", "spread_times"]


class MappedCall:
    """Calls a function of one mapped slice for all of them."""

    def __init__(self, axes: Axes, signals: frozenset[str]) -> None:
        self.axes, self.signals = axes, signals

    def __call__(self, function: Callable[..., Tensor], args: Args | None, *given: Tensor) -> Tensor:
        """``function`` of tensors ``(*sizes, *batch, ...)``."""
        inside = self.axes.inside
        slices = [inside(tensor) for tensor in given]
        if args is not None:
            args = {name: inside(value) if name in self.signals else value for name, value in args.items()}
        with self.axes.transforms():
            value = with_args(function, args, *slices)
        if not isinstance(value, Tensor):
            return value  # refused by who called
        plain = self.axes.plain(value)
        return plain if torch.is_grad_enabled() else plain.detach()


class MappedField(VectorField):
    """A field over the mapped axes and the batch; the field of one slice is called inside the transforms."""

    def __init__(self, call: MappedCall, own: VectorField) -> None:
        super().__init__()
        self.call = call
        self._own = (own,)  # hidden from parameters(): these are the transforms' tensors

    @property
    def own(self) -> Any:
        """The field of one slice."""
        return self._own[0]

    @property
    def reads_args(self) -> bool:
        """Whether the field of one slice does."""
        return bool(self.own.reads_args)

    def forward(self, t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
        """dy/dt."""
        return self.call(self.own, args, t, y)


class _MappedSecondOrder(MappedField, SecondOrder):
    @property
    def velocity_dependent(self) -> bool:  # type: ignore[override]  # that of the field of one slice
        return bool(self.own.velocity_dependent)

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor, args: Args | None = None) -> Tensor:
        return self.call(self.own.acceleration, args, t, q, v)

    def kick(self, t: Tensor, q: Tensor, args: Args | None = None) -> Tensor:
        return self.call(self.own.kick, args, t, q)


class _MappedSeparable(MappedField, SeparableHamiltonian):
    def kinetic(self, p: Tensor, args: Args | None = None) -> Tensor:
        return self.call(self.own.kinetic, args, p)

    def potential(self, q: Tensor, args: Args | None = None) -> Tensor:
        return self.call(self.own.potential, args, q)

    def drift(self, t: Tensor, p: Tensor, args: Args | None = None) -> Tensor:
        return self.call(self.own.drift, args, t, p)

    def kick(self, t: Tensor, q: Tensor, args: Args | None = None) -> Tensor:
        return self.call(self.own.kick, args, t, q)


def mapped_field(call: MappedCall, own: VectorField) -> MappedField:
    """``own`` over the mapped axes, with the structure that methods rely on."""
    if isinstance(own, SecondOrder):
        return _MappedSecondOrder(call, own)
    return _MappedSeparable(call, own) if isinstance(own, SeparableHamiltonian) else MappedField(call, own)


def mapped_event(call: MappedCall, event: Event) -> Event:
    """``event`` over the mapped axes."""

    def over(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def whole(t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
            return call(function, args, t, y)

        return whole

    return replace(event, condition=over(event.condition), jump=None if event.jump is None else over(event.jump))


def spread_times(axes: Axes, value: Any, batch: tuple[int, ...], own: int) -> Any:
    """Times over the mapped axes; ``own`` axes are theirs, further ones those of the batch. Times that all share stay so."""
    if not isinstance(value, Tensor):
        value = None if value is None else np.asarray(value, dtype=np.float64)
        if value is None or value.ndim <= own:
            return value
        value = torch.as_tensor(value)
    shared = value.ndim <= own
    if shared and not axes.maps(value):
        return bottom(value).detach()
    plain = axes.plain(value).detach()
    if not shared:
        return plain
    sizes, tail = axes.sizes, plain.shape[len(axes.sizes) :]
    return plain.reshape(*sizes, *[1] * len(batch), *tail).expand(*sizes, *batch, *tail)


def spread_signal(axes: Axes, signal: Signal, batch: tuple[int, ...], y: Tensor) -> Signal:
    """A signal with one input for each trajectory of each slice, where there are slices."""
    if not axes.levels:
        return Signal(bottom(signal.times).detach(), bottom(signal.values).detach(), signal.hold)
    with axes.transforms():
        times, values = signal.arranged(batch)
    plain, rows = axes.plain(values).detach(), y.numel() // y.shape[-1]
    count, components = plain.shape[-2:]
    plain = plain.expand(*axes.sizes, rows, count, components).reshape(*axes.sizes, *batch, count, components)
    knots = axes.plain(times).detach().expand(*axes.sizes, rows, count).reshape(*axes.sizes, *batch, count)
    return Signal(knots, plain, signal.hold)
