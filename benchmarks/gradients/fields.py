"""The fields whose gradients are costed: a plain network, the energy networks of two waves, and two continuous flows.

Sizes are those of Matsubara, Miyatake, Yaguchi, NeurIPS 2021 (arXiv 2102.09750), whose data sets are replaced by random
numbers of the same shape: what a gradient costs does not depend on them. Fields that hold a derivative take it by
``torch.func``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["EnergyNetwork", "Flow", "cahn_hilliard", "gas", "kdv", "layered", "miniboone"]


class Layered(nn.Module):
    """dy/dt = W_L tanh(... tanh(W_1 y)), with L hidden layers of one width."""

    def __init__(self, dim: int, width: int, layers: int) -> None:
        super().__init__()
        sizes = [dim, *[width] * layers]
        parts: list[nn.Module] = []
        for before, after in pairwise(sizes):
            parts += [nn.Linear(before, after), nn.Tanh()]
        self.network = nn.Sequential(*parts, nn.Linear(sizes[-1], dim))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt."""
        found: Tensor = self.network(y)
        return found


class EnergyNetwork(nn.Module):
    """u_t = S ∇E(u) on a periodic grid, E(u) = Σ_x w · tanh(W_2 tanh(W_1 * u)), S = D or D² by central differences.

    W_1 is a convolution over three points, W_2 acts at each point; orthogonal weights and zero biases. States ``(B, points)``.
    """

    def __init__(self, dx: float, order: int, hidden: int = 200) -> None:
        super().__init__()
        self.dx, self.order = dx, order
        self.network = nn.Sequential(
            nn.Conv1d(1, hidden, 3, padding=1, padding_mode="circular"),
            nn.Tanh(),
            nn.Conv1d(hidden, hidden, 1),
            nn.Tanh(),
            nn.Conv1d(hidden, 1, 1, bias=False),
        )
        for parameter in self.network.parameters():
            nn.init.orthogonal_(parameter) if parameter.ndim > 1 else nn.init.zeros_(parameter)

    def energy(self, u: Tensor) -> Tensor:
        """Σ of the energies of all states."""
        total: Tensor = self.network(u.unsqueeze(-2)).sum()
        return total

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """u_t."""
        slope: Tensor = torch.func.grad(self.energy)(y)
        right, left = slope.roll(-1, -1), slope.roll(1, -1)
        if self.order == 1:
            return (right - left) / (2 * self.dx)
        return (right - 2 * slope + left) / self.dx**2


class Squashed(nn.Module):
    """A layer (W x + b) σ(c t + d) + e t, as in FFJORD (Grathwohl et al., ICLR 2019)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.layer = nn.Linear(before, after)
        self.gate = nn.Linear(1, after)
        self.shift = nn.Linear(1, after, bias=False)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The layer at time ``t`` ``(..., 1)``."""
        found: Tensor = self.layer(x) * torch.sigmoid(self.gate(t)) + self.shift(t)
        return found


class Flow(nn.Module):
    """z' = f(t, z) and (log p)' = -eᵀ (∂f/∂z) e, Hutchinson's estimate with one fixed e a sample; states ``(B, d + 1)``."""

    def __init__(self, dim: int, width: int, layers: int, activation: Callable[[Tensor], Tensor], noise: Tensor) -> None:
        super().__init__()
        sizes = [dim, *[width] * layers, dim]
        self.layers = nn.ModuleList(Squashed(before, after) for before, after in pairwise(sizes))
        self.activation = activation
        self.register_buffer("noise", noise)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt."""
        time, noise = t.expand_as(y[..., :1]).to(y.dtype), self.get_buffer("noise")

        def velocity(z: Tensor) -> Tensor:
            for number, layer in enumerate(self.layers):
                z = layer(time, z if number == 0 else self.activation(z))
            return z

        value, pull = torch.func.vjp(velocity, y[..., :-1])[:2]
        divergence = (pull(noise)[0] * noise).sum(-1, keepdim=True)
        return torch.cat((value, -divergence), dim=-1)


def layered(dim: int, width: int, layers: int, *, seed: int = 0) -> Layered:
    """A network in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Layered(dim, width, layers).double()


def kdv(batch: int, points: int = 50, hidden: int = 200) -> tuple[EnergyNetwork, Tensor]:
    """The Korteweg-de Vries network of width 10, and starts ``(batch, points)`` in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.linspace(0.0, 1.0, points + 1)[:-1]
        middle, sharp = torch.rand(batch, 1), 5 + 5 * torch.rand(batch, 1)
        return EnergyNetwork(10.0 / points, 1, hidden), 2 / torch.cosh(sharp * (x - middle)).square()


def cahn_hilliard(batch: int, points: int = 50, hidden: int = 200) -> tuple[EnergyNetwork, Tensor]:
    """The Cahn-Hilliard network of width 1, and starts ``(batch, points)`` in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EnergyNetwork(1.0 / points, 2, hidden), 0.1 * (torch.rand(batch, points) - 0.5)


def miniboone(batch: int) -> tuple[Flow, Tensor]:
    """43 variables, two hidden layers of 860, softplus."""
    return _flow(batch, 43, 860, 2, nn.functional.softplus)


def gas(batch: int) -> tuple[Flow, Tensor]:
    """8 variables, three hidden layers of 160, tanh."""
    return _flow(batch, 8, 160, 3, torch.tanh)


def _flow(batch: int, dim: int, width: int, layers: int, activation: Callable[[Tensor], Tensor]) -> tuple[Flow, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = Flow(dim, width, layers, activation, torch.randn(batch, dim))
        return field, torch.cat((torch.randn(batch, dim), torch.zeros(batch, 1)), dim=-1)
