"""``odeint_dense``: the solution as a function of time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from physnode.compat.torchdiffeq.integrate import solution
from physnode.compat.torchdiffeq.methods import METHODS, Kind, find
from physnode.compat.torchdiffeq.problem import Problem
from physnode.compat.torchdiffeq.times import moved
from physnode.errors import InputError

__all__ = ["odeint_dense"]


def odeint_dense(
    func: Callable[..., Any],
    y0: Any,
    t0: Tensor | float,
    t1: Tensor | float,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[[Tensor | float], Any]:
    """The solution between ``t0`` and ``t1`` (either may be the later one) as a function of time.

    The function takes a number or a tensor of any shape ``S`` inside the span, in any order, and returns ``(*S, *y0.shape)``,
    or a tuple of such; differentiable in y0, in what ``func`` reads, and in a time that requires a gradient.

    Raises:
        InputError: a method that is none of the engine's; from the function, a time outside the span.
    """
    name, kind, _ = find(method)
    if kind not in (Kind.ADAPTIVE, Kind.FIXED):
        able = ", ".join(known for known, (sort, _) in METHODS.items() if sort in (Kind.ADAPTIVE, Kind.FIXED))
        raise InputError(f"{name} keeps no dense output; use one of {able}")
    dtype = t0.dtype if isinstance(t0, Tensor) and t0.is_floating_point() else torch.float64
    ends = torch.stack([torch.as_tensor(t, dtype=dtype).detach() for t in (t0, t1)])
    problem = Problem.of(func, y0, ends)
    found = solution(problem, rtol, atol, method, options, "aca", dense=True)

    def at(t: Tensor | float) -> Any:
        times = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.float64, device=problem.y0.device)
        ys = found.at(times.detach().to(torch.float64).reshape(-1))
        if times.requires_grad and torch.is_grad_enabled():
            flat = times.reshape(-1)
            rows = [moved(problem, time.detach(), y, time - time.detach()) for time, y in zip(flat, ys, strict=True)]
            ys = torch.stack(rows)
        return problem.adapter.unflatten(ys.reshape(*times.shape, ys.shape[-1]))

    return at
