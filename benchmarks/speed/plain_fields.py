"""The same fields without this package: for JAX and NumPy by one function of one state, and for PyTorch with a plain network.

Peers get the form in which they are fastest, by measurement: XLA fuses the sum over pairs of a mapped batch, and prefers the
full matrix for one trajectory; PyTorch takes the physics of this package, whose form follows the batch, and a network without
scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.problems import DAMPING, Case, Problem

__all__ = ["PlainField", "derivative"]


def derivative(xp: Any, case: Case, theta: Sequence[Any], y: Any, *, pairs: bool = False) -> Any:
    """dy/dt of one state ``(dim,)``; ``xp`` is jax.numpy or numpy, ``theta`` as in ``Problem.theta``."""
    half = y.shape[0] // 2
    q, v = y[:half], y[half:]
    if case.physics == "pendulum":
        acceleration = -(theta[0] ** 2) * xp.sin(q) - DAMPING * v
    elif pairs:
        acceleration = _over_pairs(xp, theta[0], q)
    else:
        acceleration = _over_matrix(xp, theta[0], q)
    if len(theta) > 1:
        acceleration = acceleration + _network(xp, theta[1:], y)
    return xp.concatenate((v, acceleration))


def _over_matrix(xp: Any, gm: Any, q: Any) -> Any:
    r = q.reshape(-1, 3)
    apart = r[None] - r[:, None]
    squared = (apart * apart).sum(-1) + xp.eye(len(r), dtype=q.dtype)
    return ((gm / (squared * xp.sqrt(squared)))[..., None] * apart).sum(1).reshape(-1)


def _over_pairs(xp: Any, gm: Any, q: Any) -> Any:
    bodies = q.shape[0] // 3
    r = [q[3 * i : 3 * i + 3] for i in range(bodies)]
    found: list[Any] = [0.0] * bodies
    for i in range(bodies):
        for j in range(i + 1, bodies):
            apart = r[j] - r[i]
            squared = apart @ apart
            pull = apart / (squared * xp.sqrt(squared))
            found[i] = found[i] + gm[j] * pull
            found[j] = found[j] - gm[i] * pull
    return xp.concatenate(found)


def _network(xp: Any, layers: Sequence[Any], x: Any) -> Any:
    for k in range(0, len(layers), 2):
        x = layers[k] @ (xp.tanh(x) if k else x) + layers[k + 1]
    return x


class PlainField(nn.Module):
    """For the peers in PyTorch; it shares its parameters with the problem's own field."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.known = problem.known
        parts: list[nn.Module] = []
        for layer in problem.layers:
            parts += [nn.Tanh(), layer] if parts else [layer]
        self.network = nn.Sequential(*parts) if parts else None

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt of states ``(B, dim)``."""
        q, v = y.chunk(2, dim=-1)
        acceleration = self.known.acceleration(t, q, v)
        if self.network is not None:
            acceleration = acceleration + self.network(y)
        return torch.cat((v, acceleration), dim=-1)
