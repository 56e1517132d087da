"""``odeint_event``: the time and the state at which a condition is met."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from physnode.compat.torchdiffeq.errors import ArgumentError
from physnode.compat.torchdiffeq.interface import odeint

__all__ = ["odeint_event"]


def odeint_event(
    func: Callable[..., Any],
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Callable[..., Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **options: Any,
) -> tuple[Tensor, Any]:
    """Solve dy/dt = func(t, y), y(t0) = y0, until ``event_fn(t, y)`` changes its sign.

    Args:
        func, y0: as for :func:`odeint`.
        t0: the time of ``y0``, a tensor of one entry; may require a gradient.
        event_fn: returns a tensor; with several entries, the first to change its sign ends the solve. An entry that is zero at
            the start has the sign that it takes afterwards.
        reverse_time: go towards earlier times.
        odeint_interface: ``odeint`` or ``odeint_adjoint``; ``options`` are its keywords.

    Returns:
        The event's time in the dtype of ``t0``, and the states ``(2, *y0.shape)`` at ``t0`` and at the event (a tuple of such).
        Both are differentiable in y0, in t0 and in every tensor that ``func`` or ``event_fn`` reads.

    Raises:
        IntegrationError: no event within the limit of steps, or before the solution ends; the message says which.
    """
    if not isinstance(t0, Tensor) or t0.numel() != 1:
        raise ArgumentError(f"t0 must be a tensor with one entry; found {t0!r}")
    start = t0.reshape(1)
    t = torch.cat((start, start.detach() + (-1.0 if reverse_time else 1.0)))
    found: tuple[Tensor, Any] = odeint_interface(func, y0, t, event_fn=event_fn, **options)
    return found
