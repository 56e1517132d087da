"""``scipy_solver``: ``scipy.integrate.solve_ivp``, without a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from physnode.compat.torchdiffeq.errors import IntegrationError
from physnode.compat.torchdiffeq.problem import Problem
from physnode.compat.torchdiffeq.tolerances import per_component
from physnode.errors import GradientError

__all__ = ["run"]


def run(problem: Problem, rtol: Any, atol: Any, options: dict[str, Any]) -> Tensor:
    """The flat solution ``(T, dim)``; ``options["solver"]`` is the name of SciPy's method, ``"LSODA"`` by default.

    Raises:
        IntegrationError: SciPy gave up; its message follows.
        GradientError: from ``backward``: SciPy's steps carry no gradient.
    """
    relative, absolute = per_component(rtol, "rtol", problem), per_component(atol, "atol", problem)
    y0 = problem.y0.detach()
    solver = options.get("solver", "LSODA")
    more: dict[str, Any] = {}
    if "max_step" in options:
        more["max_step"] = float(options["max_step"])
    if options.get("min_step"):
        if solver != "LSODA":
            raise IntegrationError(f"min_step is an option of LSODA alone; {solver} has none")
        more["min_step"] = float(options["min_step"])

    def derivative(t: float, y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            time = torch.as_tensor(t).to(y0).reshape(1)
            found = problem.field(time, torch.as_tensor(y).to(y0))
        return found.detach().cpu().double().numpy()

    ts = problem.ts.cpu().numpy()
    tolerances = [value if isinstance(value, float) else value.cpu().numpy() for value in (relative, absolute)]
    found = solve_ivp(
        derivative,
        (ts[0], ts[-1]),
        y0.cpu().double().numpy(),
        method=solver,
        t_eval=ts,
        rtol=tolerances[0],
        atol=tolerances[1],
        **more,
    )
    if not found.success or found.y.shape[1] != len(ts):
        raise IntegrationError(f"SciPy's {solver} stopped after {found.y.shape[1]} of {len(ts)} times: {found.message}")
    ys = torch.as_tensor(np.ascontiguousarray(found.y.T)).to(y0)
    read = [problem.y0, problem.t, *problem.field.parameters()]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in read):
        out: Tensor = _NoGradient.apply(ys, *read)  # type: ignore[no-untyped-call]
        return out
    return ys


class _NoGradient(torch.autograd.Function):
    """The identity, with words in place of a silently missing gradient."""

    @staticmethod
    def forward(ctx: Any, ys: Tensor, *read: Tensor) -> Tensor:
        return ys.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise GradientError(
            "scipy_solver has no gradient: SciPy's steps are not recorded. Use another method, dopri5 for example, or put "
            "torch.no_grad() around the solve"
        )
