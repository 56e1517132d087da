"""Decreasing and two-point times with a bound method as the field, as latent-ODE encoders use them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from physnode.compat.torchdiffeq import odeint


class Latent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dynamics = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
        self.update = nn.GRUCell(1, 3)

    def slope(self, t: Tensor, h: Tensor) -> Tensor:
        return self.dynamics(h)

    def encode(self, values: Tensor, times: Tensor) -> Tensor:
        """From the last observation to the first: two-point, decreasing solves between updates."""
        h = torch.zeros(values.shape[1], 3)
        for i in reversed(range(len(times))):
            h = self.update(values[i], h)
            if i:
                h = odeint(self.slope, h, torch.stack((times[i], times[i - 1])), method="euler")[-1]
        return h

    def forward(self, values: Tensor, times: Tensor) -> Tensor:
        paths: Tensor = odeint(self.slope, self.encode(values, times), times, rtol=1e-4, atol=1e-5, method="dopri5")
        return paths


def test_encode_and_decode() -> None:
    torch.manual_seed(0)
    model, times = Latent(), torch.linspace(0, 1, 6)
    values = torch.randn(6, 4, 1)
    paths = model(values, times)
    assert paths.shape == (6, 4, 3)
    paths.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in model.parameters())
    with torch.no_grad():  # one Euler step over each interval is what two points without a step size mean
        h = torch.randn(4, 3)
        found = odeint(model.slope, h, torch.tensor([1.0, 0.4]), method="euler")[-1]
        torch.testing.assert_close(found, h - 0.6 * model.slope(times[0], h), rtol=1e-5, atol=1e-6)


def test_there_and_back() -> None:
    torch.manual_seed(0)
    model = Latent().double()
    h, times = torch.randn(4, 3, dtype=torch.float64), torch.linspace(0, 1, 6, dtype=torch.float64)
    with torch.no_grad():
        there = odeint(model.slope, h, times, rtol=1e-9, atol=1e-11)
        back = odeint(model.slope, there[-1], times.flip(0), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(back.flip(0), there, rtol=0, atol=1e-7)
