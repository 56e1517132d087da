"""Gradients with respect to the times of a solve.

A solve takes its times as constants. A solution moves with an output time like y(t + δ), and with the start like a start moved
along the solution the other way; both are one step of length δ = t - t.detach() = 0 outside the solve, which changes no value
and has the right derivative f(t, y). The step is the midpoint rule's, so that second derivatives are right too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from physnode.compat.torchdiffeq.problem import Problem

__all__ = ["moved", "moved_outputs", "moved_start"]


def moved(problem: Problem, time: Tensor, y: Tensor, delta: Tensor) -> Tensor:
    """``y`` ``(dim,)`` at ``time``, carried along the solution by ``delta`` (0-dim, of value zero)."""
    time, delta = time.to(y.dtype).reshape(1), delta.to(y.dtype)
    half = y + 0.5 * delta * problem.field(time, y)
    return y + delta * problem.field(time + 0.5 * delta, half)


def moved_start(problem: Problem) -> Tensor:
    """y0 as a function of ``t[0]`` too: a later start of the same y0 is an earlier state of the same solution, taken back."""
    if not (problem.t.requires_grad and torch.is_grad_enabled()):
        return problem.y0
    t0 = problem.t[0]
    return moved(problem, t0, problem.y0, t0.detach() - t0)


def moved_outputs(problem: Problem, ys: Tensor) -> Tensor:
    """The outputs ``(T, dim)`` as functions of their times too."""
    if not (problem.t.requires_grad and torch.is_grad_enabled()):
        return ys
    rows = [problem.y0]
    rows += [moved(problem, time.detach(), y, time - time.detach()) for time, y in zip(problem.t[1:], ys[1:], strict=True)]
    return torch.stack(rows)
