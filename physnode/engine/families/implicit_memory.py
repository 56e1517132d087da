"""What one implicit step leaves to the next: its polynomial, from which the iteration of the next one starts.

The loop moves one tensor a trajectory, so everything is packed into rows: K_1 .. K_s, h, η, and the derivative at the step's
end where an error estimate reads it. A length h of zero says that there was no step before.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from physnode.engine.coefficients.implicit_tableau import ImplicitTableau
from physnode.engine.families.newton import StageEquations

__all__ = ["Memory", "pack", "predict", "unpack"]


class Memory(NamedTuple):
    """The parts of a carry."""

    k: Tensor
    """Stage derivatives of the step before, ``(s, B, D)``."""
    h: Tensor
    """Its length, ``(B, 1)``."""
    eta: Tensor
    """How its iteration contracted, ``(B,)``."""
    slope: Tensor
    """The derivative at its end, ``(B, D)``; ``(B, 0)`` where none is kept."""


def pack(k: Tensor, h: Tensor, eta: Tensor, slope: Tensor | None) -> Tensor:
    """The carry, ``(B, m)``."""
    parts = [k.transpose(0, 1).flatten(1), h, eta.to(k.dtype).unsqueeze(-1)]
    return torch.cat(parts if slope is None else [*parts, slope], dim=-1)


def unpack(carry: Tensor, stages: int, dim: int) -> Memory:
    """The parts of a carry of a method with this many stages."""
    count = stages * dim
    k = carry[:, :count].view(-1, stages, dim).transpose(0, 1)
    return Memory(k, carry[:, count : count + 1], carry[:, count + 1], carry[:, count + 2 :])


def predict(tableau: ImplicitTableau, equations: StageEquations, carry: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where the iteration starts, ``(s, B, D)``, and the η by which its first change is judged, ``(B,)`` float64.

    The polynomial of the step before, x + h Σ b_i(θ) K_i, goes on beyond its end: K_j is its slope Σ b_i'(θ) K_i at the new
    stage's time. Zero without such a polynomial. The old η, to the power 0.8, forgets itself (Hairer, Wanner II, IV.8).
    """
    stages, batch, dim = tableau.stages, *equations.y.shape
    if carry is None:
        zero = equations.y.new_zeros(stages, batch, dim)
        return zero, torch.ones(batch, dtype=torch.float64, device=zero.device)
    before, h, eta, _ = unpack(carry, stages, dim)
    eta = eta.to(torch.float64).clamp(min=torch.finfo(torch.float64).eps) ** 0.8
    if tableau.extension is None:
        return torch.zeros_like(before), eta
    known = h != 0
    ratio = equations.h / torch.where(known, h, 1.0)
    predicted = []
    for c in tableau.c:
        theta = 1 + c * ratio
        slopes = []
        for row in tableau.extension.weights:
            slope = torch.zeros_like(theta)
            for power in reversed(range(len(row))):
                slope = slope * theta + (power + 1) * row[power]
            slopes.append(slope)
        predicted.append((torch.stack(slopes) * before).sum(0))
    k = torch.stack(predicted)
    return torch.where(known & torch.isfinite(k), k, 0.0), eta
