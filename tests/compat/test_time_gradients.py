"""Gradients with respect to the times of a solve, against finite differences of the exact solution and of the solve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from physnode.compat.torchdiffeq import odeint, odeint_adjoint

D = torch.float64
TIMES = {"increasing": [0.2, 0.5, 1.1, 1.7], "decreasing": [1.7, 1.1, 0.5, 0.2]}
WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "direct": (odeint, {}),
    "adjoint by replay": (odeint_adjoint, {}),
    "adjoint by a backward solve": (odeint_adjoint, {"adjoint_rtol": 1e-10, "adjoint_atol": 1e-12}),
    "fixed steps that miss the outputs": (odeint, {"method": "rk4", "options": {"step_size": 0.02}}),
    "adams": (odeint, {"method": "implicit_adams", "options": {"step_size": 0.01}}),
}


class Field(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.tensor([[-0.3, 1.2], [-0.9, 0.1]], dtype=D))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.matrix) * torch.cos(t) - 0.3 * y * t


FIELD = Field()
Y0 = torch.tensor([[0.7, -0.4], [0.2, 1.1]], dtype=D)
WEIGHTS = torch.linspace(-1, 1.5, 16, dtype=D).reshape(4, 2, 2)


def loss(t: Tensor, solver: Any = odeint, **options: Any) -> Tensor:
    total: Tensor = (solver(FIELD, Y0, t, **{"rtol": 1e-11, "atol": 1e-13, **options}) * WEIGHTS).sum()
    return total


def differences(function: Any, t: Tensor, step: float) -> Tensor:
    return torch.stack([(function(t + e) - function(t - e)) / (2 * step) for e in step * torch.eye(len(t), dtype=D)])


@pytest.mark.parametrize("order", TIMES)
@pytest.mark.parametrize("way", WAYS)
def test_every_time(order: str, way: str) -> None:
    solver, options = WAYS[way]
    t = torch.tensor(TIMES[order], dtype=D)
    with torch.no_grad():
        expected = differences(loss, t, 1e-4)
    variable = t.clone().requires_grad_()
    value = loss(variable, solver, **options)
    (found,) = torch.autograd.grad(value, variable)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-7)
    torch.testing.assert_close(value.detach(), loss(t, solver, **options).detach(), rtol=0, atol=0)


@pytest.mark.parametrize("order", TIMES)
def test_second_derivatives(order: str) -> None:
    t = torch.tensor(TIMES[order], dtype=D)

    def slope(t: Tensor) -> Tensor:
        variable = t.detach().requires_grad_()
        return torch.autograd.grad(loss(variable), variable)[0]

    found = torch.autograd.functional.hessian(loss, t)
    torch.testing.assert_close(found, differences(slope, t, 1e-3), rtol=0, atol=1e-5)
    torch.testing.assert_close(found, found.T, rtol=0, atol=1e-8)


def test_times_in_single_precision_beside_states_in_double() -> None:
    t = torch.tensor([0.0, 1.0], requires_grad=True)
    found = odeint(lambda time, y: -y, torch.ones(1, dtype=D), t)
    found[-1].sum().backward()
    assert t.grad is not None
    assert t.grad.dtype == torch.float32
    e = float(torch.tensor(-1.0, dtype=D).exp())
    assert t.grad.tolist() == pytest.approx([e, -e], rel=1e-6)


def test_tuples() -> None:
    t = torch.tensor([0.0, 0.5, 1.0], dtype=D, requires_grad=True)
    one, two = odeint(
        lambda time, y: (-y[0], time * torch.ones_like(y[1])), (torch.ones((), dtype=D), torch.zeros(2, dtype=D)), t
    )
    (one[1] + two[2].sum()).backward()
    e = float(torch.tensor(-0.5, dtype=D).exp())
    # e^-(t1 - t0) + 2 (t2^2 - t0^2) / 2
    assert t.grad is not None
    torch.testing.assert_close(t.grad, torch.tensor([e, -e, 2.0], dtype=D), rtol=0, atol=1e-7)
