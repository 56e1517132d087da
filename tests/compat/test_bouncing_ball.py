"""A bouncing ball: events found one after another, and the last impact differentiated; then gravity learnt from it."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from physnode.compat.torchdiffeq import odeint, odeint_adjoint, odeint_event

D = torch.float64


class Ball(nn.Module):
    def __init__(self, gravity: float, restitution: float = 0.9) -> None:
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(gravity, dtype=D))
        self.restitution = nn.Parameter(torch.tensor(restitution, dtype=D))

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        _, velocity, radius = state
        return velocity, -self.gravity * torch.ones_like(velocity), torch.zeros_like(radius)

    def impacts(self, height: Tensor, velocity: Tensor, radius: Tensor, count: int, **options: Any) -> list[Tensor]:
        t = torch.zeros(1, dtype=D)
        state = (height, velocity, radius)
        times = []
        for _ in range(count):
            t, solution = odeint_event(self, state, t, event_fn=lambda t, state: state[0] - state[2], **options)
            height, velocity, radius = (part[-1] for part in solution)
            state = (height, -self.restitution * velocity, radius)
            times.append(t)
        return times


@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
@pytest.mark.parametrize(("method", "options"), [("dopri5", None), ("rk4", {"step_size": 0.05})])
def test_impacts_and_the_gradient_of_the_last(interface: Any, method: str, options: Any) -> None:
    ball = Ball(9.81)
    height, velocity, radius = (torch.tensor(x, dtype=D, requires_grad=True) for x in (10.0, 1.0, 0.4))
    times = ball.impacts(height, velocity, radius, 4, odeint_interface=interface, method=method, options=options)
    times[-1].sum().backward()

    g, e, h, v, r = (x.detach().clone().requires_grad_() for x in (ball.gravity, ball.restitution, height, velocity, radius))
    speed = (v**2 + 2 * g * (h - r)).sqrt()
    exact = [(v + speed) / g]
    for n in range(1, 4):
        exact.append(exact[-1] + 2 * e**n * speed / g)
    exact[-1].backward()
    torch.testing.assert_close(torch.stack(times).reshape(-1).detach(), torch.stack(exact).detach(), rtol=0, atol=1e-8)
    found = [ball.gravity.grad, ball.restitution.grad, height.grad, velocity.grad, radius.grad]
    torch.testing.assert_close(found, [g.grad, e.grad, h.grad, v.grad, r.grad], rtol=0, atol=1e-7)


def test_gravity_learnt_from_the_time_of_an_impact() -> None:
    ball = Ball(5.0)
    target = sqrt(2 * 10 / 9.81)
    optimizer = torch.optim.LBFGS([ball.gravity], max_iter=20, line_search_fn="strong_wolfe")
    height, velocity, radius = (torch.tensor(x, dtype=D) for x in (10.0, 0.0, 0.0))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (ball.impacts(height, velocity, radius, 1, odeint_interface=odeint_adjoint)[0] - target).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert float(ball.gravity.detach()) == pytest.approx(9.81, rel=1e-5)
