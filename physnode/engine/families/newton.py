"""The stage equations of implicit Runge-Kutta methods, and their simplified Newton iteration, trajectory by trajectory.

    R_i(K) = K_i - f(t_i, x + Z_i) = 0,    Z_i = h Σ_j a_ij K_j,    M = ∂R/∂K = 1 - h [a_ij J_i]

The unknowns are the stage derivatives, so that a singular matrix a (an explicit first stage) needs no case of its own; the
iterate K, not a new f at it, is what a step goes on with, so that an error of Z is not multiplied by the stiffness.
Every trajectory stops by itself: one that has converged is not moved by the iterations that others still need.
Source: Hairer, Wanner, Solving Ordinary Differential Equations II, IV.8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from physnode.engine.jacobian import jacobian
from physnode.engine.linear import Factors, factorize

__all__ = ["Solved", "StageEquations", "solve_to_rounding", "solve_to_tolerance", "stagewise"]

_TRIES = 7
"""Iterations before a step is given up for a shorter one."""
_TRIES_TO_ROUNDING = 50
_SLOW = 0.05
"""Contraction above which an iteration to rounding takes the Jacobian anew."""


class Solved(NamedTuple):
    """Where the iteration of each trajectory ended."""

    k: Tensor
    """Stage derivatives, ``(s, B, D)``."""
    eta: Tensor
    """The last estimate of (error left) / (last change), ``(B,)`` float64; the next step's first change is judged by it."""
    iterations: Tensor
    """``(B,)``."""
    failed: Tensor
    """Trajectories whose equations were not solved, ``(B,)`` bool."""


@dataclass(frozen=True)
class StageEquations:
    """The equations of one step of every trajectory."""

    f: Callable[[Tensor, Tensor], Tensor]
    times: Sequence[Tensor]
    """The time of each stage, ``(B,)`` each."""
    h: Tensor
    """``(B, 1)``, in the state's dtype."""
    y: Tensor
    """``(B, D)``."""
    a: Tensor
    """``(s, s)``, in the state's dtype."""

    def displacements(self, k: Tensor) -> Tensor:
        """Z, ``(s, B, D)``."""
        return self.h * (self.a[..., None, None] * k).sum(1)

    def rates(self, k: Tensor) -> Tensor:
        """f at every stage, ``(s, B, D)``."""
        points = self.y + self.displacements(k)
        return torch.stack([self.f(time, point) for time, point in zip(self.times, points.unbind(0), strict=True)])

    def jacobians(self, k: Tensor) -> Tensor:
        """J_i at every stage, ``(B, s, D, D)``, without a graph."""
        points = self.y + self.displacements(k)
        found = [jacobian(self.f, time, point) for time, point in zip(self.times, points.unbind(0), strict=True)]
        return torch.stack(found, dim=1)

    def matrix(self, jacobians: Tensor) -> Tensor:
        """M, ``(B, s D, s D)``, from Jacobians ``(B, s, D, D)``, or from one for all stages ``(B, 1, D, D)``."""
        stages, dim = len(self.a), self.y.shape[-1]
        blocks = self.a.view(1, stages, 1, stages, 1) * jacobians.unsqueeze(3)
        unit = torch.eye(stages * dim, dtype=self.y.dtype, device=self.y.device)
        return unit - self.h.unsqueeze(-1) * blocks.reshape(-1, stages * dim, stages * dim)


def stagewise(factors: Factors, right: Tensor, *, transposed: bool = False) -> Tensor:
    """M⁻¹ or M⁻ᵀ times a right side ``(s, B, D)`` or, for P of them, ``(s, P, B, D)``; the same shape comes back."""
    stages, dim = right.shape[0], right.shape[-1]
    if right.ndim == 3:
        flat = right.transpose(0, 1).reshape(-1, stages * dim)
        return factors.solve(flat, transposed=transposed).view(-1, stages, dim).transpose(0, 1).contiguous()
    columns = right.permute(2, 0, 3, 1).reshape(-1, stages * dim, right.shape[1])
    found = factors.solve(columns, transposed=transposed)
    return found.view(-1, stages, dim, right.shape[1]).permute(1, 3, 0, 2).contiguous()


def solve_to_tolerance(
    equations: StageEquations, k: Tensor, start: Tensor, scale: Tensor, target: float, eta: Tensor
) -> Solved:
    """Iterate until what is left of the error of Z, in the root mean square of Z / ``scale``, is below ``target``.

    What is left is estimated as η times the last change, η = Θ / (1 - Θ), Θ the contraction; the first change is judged by
    ``eta``, that of the step before. A trajectory that diverges, or would need too many iterations, has failed.

    Args:
        k: where to start, ``(s, B, D)``.
        start: the Jacobian at the step's start ``(B, D, D)``, used for all stages.
        scale: ``(B, D)``.
        eta: ``(B,)``.
    """
    factors = factorize(equations.matrix(start.unsqueeze(1)))
    running = torch.ones_like(eta, dtype=torch.bool)
    failed = torch.zeros_like(running)
    iterations = torch.zeros_like(eta, dtype=torch.int64)
    previous = torch.zeros_like(eta)
    for number in range(_TRIES):
        change = stagewise(factors, equations.rates(k).detach() - k)
        norm = (equations.displacements(change) / scale).square().mean((0, 2)).sqrt().to(torch.float64)
        iterations = iterations + running
        bad = ~torch.isfinite(norm)
        if number:
            theta = norm / previous
            left = theta ** (_TRIES - 1 - number) / (1 - theta) * norm
            # a change of a rounding error's size says nothing of the contraction
            bad = bad | (((theta >= 1) | (left > target)) & (norm > 1e-3 * target))
            eta = torch.where(running, torch.where(theta < 0.99, theta / (1 - theta), eta.clamp(max=1.0)), eta)
        failed = failed | (running & bad)
        running = running & ~bad
        k = torch.where(running.unsqueeze(-1), k + change, k)
        running = running & ~((eta * norm <= target) | (norm == 0))
        previous = norm
        if not bool(running.any()):
            break
    return Solved(k, eta, iterations, failed | running)


def solve_to_rounding(equations: StageEquations, k: Tensor, start: Tensor) -> Solved:
    """Iterate until rounding errors are all that changes; the Jacobian of each stage is taken anew where contraction is slow.

    Changes are measured in the largest ratio to |x| + |Z|, component by component, but not below a thousandth of the
    trajectory's largest: rounding errors of large components are never seen as changes of one that is nearly zero.
    """
    eps = torch.finfo(equations.y.dtype).eps
    stalled = 0.01 * eps**0.5
    matrix = equations.matrix(start.unsqueeze(1))
    factors = factorize(matrix)
    running = torch.ones(len(equations.y), dtype=torch.bool, device=k.device)
    failed = torch.zeros_like(running)
    iterations = torch.zeros_like(running, dtype=torch.int64)
    eta = torch.ones_like(iterations, dtype=torch.float64)
    previous = torch.full_like(eta, torch.inf)
    for number in range(_TRIES_TO_ROUNDING):
        change = stagewise(factors, equations.rates(k).detach() - k)
        moved = k + change
        size = equations.y.abs() + equations.displacements(moved).abs().amax(0)
        floor = (1e-3 * size.amax(-1, keepdim=True)).clamp(min=torch.finfo(size.dtype).tiny)
        norm = (equations.displacements(change).abs() / torch.maximum(size, floor)).amax((0, 2)).to(torch.float64)
        iterations = iterations + running
        bad = ~torch.isfinite(norm)
        failed = failed | (running & bad)
        running = running & ~bad
        k = torch.where(running.unsqueeze(-1), moved, k)
        theta = norm / previous
        eta = torch.where(running & (theta < 0.5), theta / (1 - theta), torch.where(running, 1.0, eta)) if number else eta
        done = (norm <= 2 * eps) | ((theta >= 0.3) & (norm <= stalled))
        if number:
            done = done | (eta * norm <= 0.5 * eps)
        running = running & ~done
        previous = norm
        if not bool(running.any()):
            break
        slow = running & (theta > _SLOW) if number else torch.zeros_like(running)
        if bool(slow.any()):
            anew = equations.matrix(equations.jacobians(k))
            matrix = torch.where(slow.view(-1, 1, 1), anew, matrix)
            factors = factorize(matrix)
    return Solved(k, eta, iterations, failed | running)
