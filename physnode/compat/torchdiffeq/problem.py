"""What is to be solved, checked once: the state as one flat trajectory, the field, the times."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from physnode.calling import Args
from physnode.compat.torchdiffeq.errors import ArgumentError, NotFloatingError
from physnode.states import StateAdapter, StructuredField

__all__ = ["Field", "Problem", "check_times"]


class Field(StructuredField):
    """The caller's function of (t, y) as a field of the flat state."""

    marks_time: bool = False
    """Whether the function asks for a gradient with respect to the time it is given, as some with a divergence in them do."""

    def forward(self, t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
        """The derivative ``(dim,)`` at the time ``(1,)``."""
        time = self.adapter.time(t)
        value = self.field(time, self.adapter.unflatten(y))
        self.marks_time |= time.requires_grad and not t.requires_grad
        return self.adapter.derivative(value, y.shape[:-1])

    @property
    def reads_args(self) -> bool:
        """Never: whatever else the function could take, it is called with a time and a state."""
        return False


@dataclass(frozen=True)
class Problem:
    """y' = func(t, y) from ``y0`` at ``t[0]``, for a state of any shape or a tuple of them."""

    func: Callable[..., Any]
    state: Any
    """y0 as a tensor or a tuple of tensors of one dtype."""
    t: Tensor
    """Times ``(T,)`` as they were given, on the device of the state."""
    adapter: StateAdapter
    field: Field
    y0: Tensor
    """y0 flattened, ``(dim,)``."""

    @classmethod
    def of(cls, func: Callable[..., Any], y0: Any, t: Tensor) -> Problem:
        """Check and wrap the arguments of ``odeint``.

        Raises:
            ArgumentError: y0 is neither a tensor nor a tuple of tensors, or times that are not strictly monotone.
            NotFloatingError: whole numbers, as a state or as times.
            InputError: parts of the state on different devices.
        """
        if not callable(func):
            raise ArgumentError(f"func must be a function or an nn.Module of (t, y); found {type(func).__name__}")
        state = _state(y0)
        check_times("t", t)
        adapter = StateAdapter.whole(state)
        flat = adapter.flatten(state)
        if t.device != flat.device:
            warnings.warn(f"t is on {t.device} but y0 on {flat.device}; t is moved there", stacklevel=4)
            t = t.to(flat.device)
        return cls(func, state, t, adapter, Field(adapter, func), flat)

    @property
    def ts(self) -> Tensor:
        """The times in float64, without a graph."""
        return self.t.detach().to(torch.float64)

    @property
    def direction(self) -> float:
        """+1, or -1 for decreasing times."""
        return -1.0 if len(self.t) > 1 and bool(self.t[-1] < self.t[0]) else 1.0

    @property
    def is_tuple(self) -> bool:
        """Whether the state is a tuple of tensors."""
        return not isinstance(self.state, Tensor)

    def at_start(self) -> Any:
        """The solution for a single time: y0 with a leading axis of one."""
        return self.adapter.unflatten(self.y0.unsqueeze(0))


def check_times(name: str, t: Any) -> None:
    """Refuse anything but a strictly monotone floating-point tensor ``(T,)``.

    Raises:
        ArgumentError, NotFloatingError: with what was found.
    """
    if not isinstance(t, Tensor):
        raise ArgumentError(f"{name} must be a torch.Tensor of shape (T,); found {type(t).__name__}")
    if not t.is_floating_point():
        raise NotFloatingError(f"{name} must be a floating point tensor; found {t.dtype}. Convert it with {name}.double()")
    if t.ndim != 1 or not len(t):
        raise ArgumentError(f"{name} must be one dimensional with at least one time; found the shape {tuple(t.shape)}")
    steps = t.detach().diff()
    if not bool(torch.isfinite(t.detach()).all()) or not bool((steps > 0).all() | (steps < 0).all()):
        raise ArgumentError(f"{name} must be finite and strictly increasing or decreasing; found {t.detach().tolist()[:10]}")


def _state(y0: Any) -> Tensor | tuple[Tensor, ...]:
    parts = [y0] if isinstance(y0, Tensor) else y0
    if not isinstance(parts, tuple | list) or not parts or not all(isinstance(part, Tensor) for part in parts):
        raise ArgumentError(f"y0 must be a torch.Tensor or a tuple of them; found {_kind(y0)}")
    for part in parts:
        if not (part.is_floating_point() or part.is_complex()):
            raise NotFloatingError(
                f"y0 must hold floating point or complex numbers; found {part.dtype}. Convert it with .double()"
            )
    if isinstance(y0, Tensor):
        return y0
    dtype = reduce(torch.promote_types, (part.dtype for part in parts))
    return tuple(part.to(dtype) for part in parts)


def _kind(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return type(value).__name__
