"""The Jacobian ∂f/∂y of a field, one small matrix a trajectory: what the Newton iterations of implicit methods are made of.

Trajectories do not see each other, so D derivatives along unit vectors, one for all trajectories at once, give all of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["jacobian"]

_Field = Callable[[Tensor, Tensor], Tensor]


def jacobian(f: _Field, t: Tensor, y: Tensor) -> Tensor:
    """J[b, i, j] = ∂f_i/∂y_j at ``(t, y)``, shape ``(B, D, D)`` for times ``(B,)`` and states ``(B, D)``; without a graph.

    In forward mode, all unit vectors in one vectorised call. Where the field calls ``torch.autograd.grad`` itself
    (``f.differentiates``), or uses an operation that has no forward mode, in reverse mode, one component of f at a time.
    Where the field cuts the graph of its own value, by differences of relative size sqrt(eps), D further evaluations.
    """
    t, y = t.detach(), y.detach()
    if not getattr(f, "differentiates", False):
        try:
            return _forward(f, t, y)
        except RuntimeError:  # an operation that cannot be mapped, or that has no forward derivative
            return _reverse(f, t, y)
    return _reverse(f, t, y)


def _forward(f: _Field, t: Tensor, y: Tensor) -> Tensor:
    dim = y.shape[-1]
    unit = torch.eye(dim, dtype=y.dtype, device=y.device).unsqueeze(1).expand(dim, *y.shape)

    def along(direction: Tensor) -> Tensor:
        change: Tensor = torch.func.jvp(lambda x: f(t, x), (y,), (direction,))[1]
        return change

    columns: Tensor = torch.func.vmap(along)(unit)
    return columns.detach().permute(1, 2, 0)


def _reverse(f: _Field, t: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        x = y.clone().requires_grad_()
        value = f(t, x)
        if not value.requires_grad:
            return _differences(f, t, y)
        rows = [torch.autograd.grad(part.sum(), x, retain_graph=True, allow_unused=True)[0] for part in value.unbind(-1)]
    if all(row is None for row in rows):
        return _differences(f, t, y)
    return torch.stack([torch.zeros_like(y) if row is None else row for row in rows], dim=1)


def _differences(f: _Field, t: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        value = f(t, y)
        size = torch.finfo(y.dtype).eps ** 0.5
        columns = []
        for j in range(y.shape[-1]):
            moved = y.clone()
            moved[:, j] += size * y[:, j].abs().clamp(min=1e-3)
            columns.append((f(t, moved) - value) / (moved - y)[:, j : j + 1])
    return torch.stack(columns, dim=-1)
