"""Why a trajectory failed, found from where it stood when it did: a blow-up and stiffness look like something else at first.

Costs nothing where all goes well. A trajectory that ran out of steps, or whose steps became too short, has *diverged* if its
state is larger by many orders than the motion from its start explains; it is *stiff* if its steps are as long as stability
lets an explicit method go, while the motion itself is far slower: the Jacobian then has an eigenvalue λ with Re λ < 0 and
|h Re λ| beyond one.
Source: Hairer, Wanner, Solving ODEs II, IV.2 (stiffness as h|λ| at the border of the stability domain).
"""

from __future__ import annotations

import torch
from torch import Tensor

from physnode.engine.controllers import Span
from physnode.engine.field_function import FieldFunction
from physnode.engine.jacobian import jacobian
from physnode.engine.status import Status

__all__ = ["diagnose"]

_GROWTH = 1e6
_LARGEST = 400
"""Components beyond which no Jacobian is made."""


def diagnose(
    f: FieldFunction,
    span: Span,
    status: Tensor,
    t: Tensor,
    y: Tensor,
    dt: Tensor,
    y0: Tensor,
    derivative: Tensor,
    *,
    explicit: bool,
) -> Tensor:
    """``status`` ``(B,)`` with failures told apart, from the last time, state and step of each trajectory.

    Args:
        f: the field.
        span: where trajectories start and end.
        status: how each ended.
        t: the last time, ``(B,)``; ``y`` ``(B, dim)`` the state there; ``dt`` ``(B,)`` the length of the last trial.
        y: see ``t``.
        dt: see ``t``.
        y0: where each started, with ``derivative`` the field there.
        derivative: see ``y0``.
        explicit: whether the method is one that stiffness limits.
    """
    if int(status.amax()) <= Status.OK:
        return status
    failed = status > 0
    reach = y0.abs().amax(-1) + derivative.abs().amax(-1) * (span.t1 - span.t0).abs().to(y.dtype)
    size = y.abs().amax(-1)
    diverged = failed & (status < Status.UNSOLVED) & torch.isfinite(reach) & (size > _GROWTH * reach)
    status = torch.where(diverged, int(Status.DIVERGED), status)
    limited = (status == Status.TOO_MANY_STEPS) | (status == Status.STEP_UNDERFLOW)
    if not (explicit and bool(limited.any()) and y.shape[-1] <= _LARGEST):
        return status
    rate = _fastest_decay(f, span, t, torch.where(limited.unsqueeze(-1), y, y0))
    left = (span.t1 - t).abs() + dt
    stiff = limited & (rate * dt > 1) & (rate * left > 100)
    return torch.where(stiff, int(Status.STIFF), status)


def _fastest_decay(f: FieldFunction, span: Span, t: Tensor, y: Tensor) -> Tensor:
    """The largest -Re λ of the Jacobian in the direction of the solve, ``(B,)``; zero where it cannot be had."""
    try:
        matrix = jacobian(f, t, y)
    except RuntimeError:  # a field that cannot be differentiated has no such diagnosis
        return torch.zeros_like(t)
    good = torch.isfinite(matrix).all(-1).all(-1)
    matrix = torch.where(good.view(-1, 1, 1), matrix, 0.0).to(torch.float64)
    values = torch.linalg.eigvals(matrix).real * span.direction.unsqueeze(-1)
    return torch.where(good, (-values).amax(-1), 0.0)
