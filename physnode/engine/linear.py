"""Linear systems of many trajectories at once: the one place where the engine factors and solves them.

Every implicit family goes through these two calls, so that another elimination (one that compiles, or one for a device) can
take the place of LAPACK's without a family knowing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Factors", "factorize"]


class Factors(NamedTuple):
    """Square matrices ``(B, n, n)`` as P L U, one a trajectory."""

    lu: Tensor
    pivots: Tensor

    def solve(self, right: Tensor, *, transposed: bool = False) -> Tensor:
        """M⁻¹ ``right``, or M⁻ᵀ ``right``, for ``right`` ``(B, n)`` or ``(B, n, P)``; differentiable in ``right``.

        Where a matrix is singular or not finite its solution is not finite; the other trajectories are untouched.
        """
        columns = right if right.ndim == 3 else right.unsqueeze(-1)
        found: Tensor = torch.linalg.lu_solve(self.lu, self.pivots, columns, adjoint=transposed)
        return found if right.ndim == 3 else found.squeeze(-1)


def factorize(matrix: Tensor) -> Factors:
    """The factors of ``matrix`` ``(B, n, n)`` by elimination with partial pivoting; a singular one raises nothing."""
    lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)
    return Factors(lu, pivots)
