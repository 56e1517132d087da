"""``create_graph=True`` gives true second derivatives: held against ``Direct`` and against differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from physnode import methods
from physnode.engine.controllers import Adaptive, Fixed
from physnode.fields import SecondOrder, VectorField
from physnode.solve import solve


class Field(VectorField):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.3, -0.9], [0.8, 0.2]], dtype=torch.float64))
        self.rate = nn.Parameter(torch.tensor(1.2, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.weight) * self.rate + torch.cos(self.rate * t)


class Oscillator(SecondOrder):
    velocity_dependent = False

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.2, dtype=torch.float64))

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -self.rate * torch.sin(q) + torch.cos(self.rate * t)


Y0 = torch.tensor([[0.5, -0.2], [1.5, 0.7]], dtype=torch.float64)
TS = torch.tensor([[0.0, 0.33, 1.0], [0.0, 0.5, 2.5]], dtype=torch.float64)


def hessian_product(name: str, gradient: str, read_out: str = "auto") -> list[Tensor]:
    method = methods.get(name)
    field = Oscillator() if method.extension_order is None else Field()
    y0 = Y0.clone().requires_grad_()
    variables = (y0, *field.parameters())
    controller = Adaptive(1e-4, 1e-5) if method.error_order else Fixed(0.2)
    ys = solve(field, y0, TS, t0=0.1, method=name, controller=controller, gradient=gradient, read_out=read_out).ys
    first = torch.autograd.grad((ys**3).sum(), variables, create_graph=True)
    return [*first, *torch.autograd.grad(sum((g * torch.cos(g)).sum() for g in first), variables)]


@pytest.mark.parametrize("gradient", ["aca", "symplectic"])
@pytest.mark.parametrize("name", ["heun", "rk4", "tsit5", "dop853", "leapfrog", "yoshida4"])
def test_hessian_products_equal_direct(name: str, gradient: str) -> None:
    for found, wanted in zip(hessian_product(name, gradient), hessian_product(name, "direct"), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-11, atol=1e-13)


def test_with_a_step_for_each_output() -> None:
    found, wanted = hessian_product("tsit5", "aca", "restep"), hessian_product("tsit5", "direct", "restep")
    for one, two in zip(found, wanted, strict=True):
        assert torch.allclose(one, two, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("gradient", ["direct", "aca", "symplectic"])
def test_equals_differences_of_the_first(gradient: str) -> None:
    def first(rate: float, *, create_graph: bool) -> tuple[Tensor, Tensor]:
        field = Field()
        with torch.no_grad():
            field.rate.fill_(rate)
        ys = solve(field, Y0, TS, method="rk4", controller=Fixed(0.1), gradient=gradient).ys
        return torch.autograd.grad((ys**2).sum(), field.rate, create_graph=create_graph)[0], field.rate

    slope, rate = first(1.2, create_graph=True)
    (second,) = torch.autograd.grad(slope, rate)
    ahead, behind = (first(1.2 + eps, create_graph=False)[0] for eps in (1e-5, -1e-5))
    assert second.item() == pytest.approx((ahead - behind).item() / 2e-5, rel=1e-7)


def test_gradgradcheck() -> None:
    y0 = Y0.clone().requires_grad_()
    k = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def outputs(y0: Tensor, k: Tensor) -> Tensor:
        return solve(lambda t, y: -k * torch.sin(y), y0, TS, method="rk4", controller=Fixed(0.5)).ys

    assert torch.autograd.gradcheck(outputs, (y0, k))
    assert torch.autograd.gradgradcheck(outputs, (y0, k))
