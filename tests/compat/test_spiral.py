"""The way most programs use the interface: a network fitted to a spiral by ``odeint_adjoint`` with an optimizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from physnode.compat.torchdiffeq import odeint, odeint_adjoint


class Cubic(nn.Module):
    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y**3 @ self.matrix


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        self.calls = 0
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.1)
                nn.init.zeros_(layer.bias)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.net(y**3)


def test_a_network_learns_the_spiral() -> None:
    start = torch.tensor([[2.0, 0.0]])
    times = torch.linspace(0.0, 5.0, 100)
    with torch.no_grad():
        truth = odeint(Cubic(torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])), start, times, method="dopri5")
    assert truth.shape == (100, 1, 2)
    func = Network()
    optimizer = torch.optim.RMSprop(func.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        first = torch.randint(0, 90, (12,))
        batch = torch.stack([truth[first + i] for i in range(10)])
        optimizer.zero_grad()
        predicted = odeint_adjoint(func, truth[first], times[:10])
        assert predicted.shape == batch.shape == (10, 12, 1, 2)
        loss = (predicted - batch).abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert func.calls > 0
