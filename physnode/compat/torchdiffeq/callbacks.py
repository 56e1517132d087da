"""Callbacks that are attributes of the field: called with (t0, y0, dt) about every step that is tried."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from physnode.compat.torchdiffeq.problem import Problem
from physnode.engine.records import Trial

__all__ = ["about_to_step", "observer"]

_STEP, _ACCEPT, _REJECT = "callback_step", "callback_accept_step", "callback_reject_step"


def observer(problem: Problem, method: str, *, adaptive: bool) -> Callable[[Trial], None] | None:
    """What tells the callbacks of ``problem.func`` of each trial; None if it has none.

    ``t0`` is the time at which the trial starts, ``y0`` the state there, ``dt`` its length, positive for decreasing times too.
    """
    found = {name: getattr(problem.func, name) for name in (_STEP, _ACCEPT, _REJECT) if hasattr(problem.func, name)}
    if not adaptive:
        deaf = sorted(set(found) - {_STEP})
        if deaf:
            warnings.warn(f"{method} does not support the callbacks {', '.join(deaf)}: every step is accepted", stacklevel=6)
            found = {name: callback for name, callback in found.items() if name not in deaf}
    if not found:
        return None

    def observe(trial: Trial) -> None:
        dtype = trial.y.dtype
        state = problem.adapter.unflatten(trial.y[0])
        arguments = trial.t[0].to(dtype), state, (trial.t_end - trial.t)[0].abs().to(dtype)
        for name in (_STEP, _ACCEPT if bool(trial.accept[0]) else _REJECT):
            if name in found:
                found[name](*arguments)

    return observe


def about_to_step(problem: Problem) -> Callable[[float, Tensor, float], None] | None:
    """``callback_step`` of ``problem.func`` for a loop with steps of its own; None if it has none."""
    callback = getattr(problem.func, _STEP, None)
    if callback is None:
        return None

    def tell(t: float, y: Tensor, dt: float) -> None:
        callback(torch.tensor(t).to(y), problem.adapter.unflatten(y), torch.tensor(dt).to(y))

    return tell
