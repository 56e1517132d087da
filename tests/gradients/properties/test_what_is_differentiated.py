"""What a gradient reaches, and what it holds constant: for every family of methods and every exact gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import physnode as pn

F64 = torch.float64
TS = [0.0, 0.4, 0.97, 1.2]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64, requires_grad=True)


def loss_of(ys: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, ys.numel(), dtype=ys.dtype).cos().reshape(ys.shape)
    return (weights * ys + 0.1 * ys**3).sum()


def test_the_first_step_and_the_controller_carry_no_gradient(family: Any, gradient: str, swing: Any, y0: Tensor) -> None:
    """A first step found from y0 and f, and the same number given: equal steps, equal gradients to the last bit."""
    if not isinstance(family.controller, pn.Adaptive):
        pytest.skip("steps of a fixed length are given")
    tried: list[float] = []
    found = []
    for first in (None, 0):
        controller = pn.Adaptive(family.controller.rtol, family.controller.atol, first_step=None if first is None else tried[0])
        start, field = y0[:1].clone().requires_grad_(), swing()
        sol = family.solve(
            field,
            start,
            TS,
            gradient=gradient,
            controller=controller,
            observe=lambda trial: tried.append(float(trial.t_end[0])),
        )
        found.append((sol.ys.detach(), *torch.autograd.grad(loss_of(sol.ys), (start, field.stiffness))))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


class Idle(pn.SecondOrder):
    """q'' = 2 cos(ct), whatever the state; ``spare`` is a parameter that nothing reads."""

    velocity_dependent = False

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.9, dtype=F64))
        self.spare = nn.Parameter(torch.ones(3, dtype=F64))

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return 2 * torch.cos(self.rate * t).expand_as(q)


def test_an_unused_parameter_gets_nothing_a_field_may_ignore_the_state(family: Any, gradient: str, y0: Tensor) -> None:
    """dL/d(spare) is zero or None; for q'' = 2 cos(ct), dq(T)/dq0 = 1, dq(T)/dv0 = T, and, to the accuracy of the method,
    dv(T)/dc = 2 (T cos(cT) - sin(cT)/c)/c. Gradients accumulate from an iterator over the parameters as from a list."""
    field, start = Idle(), y0.clone().requires_grad_()
    ys = family.solve(field, start, TS, gradient=gradient).ys
    parameters = (parameter for parameter in field.parameters())
    torch.autograd.backward(ys[:, -1, 0].sum(), inputs=[start, *parameters], retain_graph=True)
    assert torch.allclose(start.grad, torch.tensor([[1.0, TS[-1]]], dtype=F64).expand(2, 2), rtol=1e-13)
    assert field.spare.grad is None or not field.spare.grad.any()
    (to_rate,) = torch.autograd.grad(ys[0, -1, 1], field.rate)
    c, end = field.rate.detach(), TS[-1]
    wanted = 2 * (end * torch.cos(c * end) - torch.sin(c * end) / c) / c
    assert float(to_rate) == pytest.approx(float(wanted), rel=1e-2)


@pytest.mark.parametrize("create_graph", [False, True])
def test_tensors_captured_by_a_closure_get_their_share(gradient: str, create_graph: bool, y0: Tensor) -> None:
    """A function over an nn.Linear that no module owns, with a scale computed from a leaf, inside a torch.func.grad."""

    def gradients(how: str, graph: bool) -> list[Tensor]:
        linear, exponent, k = nn.Linear(2, 2).double(), scalar(-0.3), scalar(1.1)
        nn.init.constant_(linear.weight, 0.3)
        nn.init.constant_(linear.bias, 0.1)
        scale = exponent.exp()

        def field(t: Tensor, y: Tensor) -> Tensor:
            return scale * torch.tanh(linear(y)) - torch.func.grad(lambda x: (k * torch.cosh(x)).sum())(y)

        ys = pn.solve(field, y0, TS, gradient=how).ys
        return list(torch.autograd.grad(loss_of(ys), (*linear.parameters(), exponent, k), create_graph=graph))

    for one, two in zip(gradients(gradient, create_graph), gradients("direct", False), strict=True):
        assert two.abs().max() > 0
        assert torch.allclose(one.detach(), two, rtol=1e-12)


class Chain(pn.SecondOrder):
    """q'' = -k sin q for a state in parts."""

    velocity_dependent = False

    def __init__(self) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(1.3, dtype=F64))

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -self.stiffness * torch.sin(q)


@pytest.mark.parametrize("name", ["rk4", "tsit5", "dop853", "dopri8", "gauss4", "radau5"])
def test_states_in_parts_complex_states_and_functions_work(name: str, gradient: str, y0: Tensor) -> None:
    """The solve of {q, v}, of (q, v), and of q + iv by a plain function is that of the plain state, gradients included."""
    controller = pn.Adaptive(1e-6, 1e-8) if pn.methods.get(name).error_order else pn.Fixed(0.1)

    def solved(field: Any, state: Any) -> Any:
        return pn.solve(field, state, TS, method=name, controller=controller, gradient=gradient).ys

    def flat(q: Tensor, v: Tensor, k: Tensor) -> Tensor:
        return solved(lambda t, y: torch.cat((y[..., 1:], -k * torch.sin(y[..., :1])), -1), torch.cat((q, v), -1))

    def mapping(q: Tensor, v: Tensor, k: Tensor) -> Tensor:
        ys = solved(lambda t, y: {"q": y["v"], "v": -k * torch.sin(y["q"])}, {"q": q, "v": v})
        return torch.cat((ys["q"], ys["v"]), -1)

    def pair(q: Tensor, v: Tensor, k: Tensor) -> Tensor:
        return torch.cat(solved(lambda t, y: (y[1], -k * torch.sin(y[0])), (q, v)), -1)

    def in_the_plane(q: Tensor, v: Tensor, k: Tensor) -> Tensor:
        ys = solved(lambda t, z: torch.complex(z.imag, -k * torch.sin(z.real)), torch.complex(q, v))
        return torch.cat((ys.real, ys.imag), -1)

    results = []
    for form in (flat, mapping, pair, in_the_plane):
        inputs = (y0[:, :1].clone().requires_grad_(), y0[:, 1:].clone().requires_grad_(), scalar(1.3))
        ys = form(*inputs)
        results.append((ys.detach(), *torch.autograd.grad(loss_of(ys), inputs)))
    for other in results[1:]:
        for found, wanted in zip(other, results[0], strict=True):
            assert torch.allclose(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_exact_to_rounding_against_the_graph_of_the_same_steps(
    family: Any, gradient: str, reverse: bool, swing: Any, y0: Tensor
) -> None:
    """By y0, a parameter and a closed-over tensor, with several outputs and rows of unequal length."""
    if gradient == "direct":
        pytest.skip("it is that graph; differences are its test")
    ts = 0.2 + torch.tensor([[1.0], [2.3]], dtype=F64) * torch.tensor([0.0, 0.1, 0.234, 0.6], dtype=F64)
    ts = ts.flip(-1) if reverse else ts

    def gradients(how: str) -> tuple[Tensor, ...]:
        gain, start = scalar(0.35), y0.clone().requires_grad_()
        field = swing(gain)
        ys = family.solve(field, start, ts, gradient=how).ys
        return torch.autograd.grad(loss_of(ys), (start, field.stiffness, gain))

    for one, two in zip(gradients(gradient), gradients("direct"), strict=True):
        assert two.abs().max() > 0
        assert float((one - two).norm()) <= 1e-13 * float(two.norm())


def test_gradients_are_the_slopes_of_the_loss(family: Any, gradient: str, swing: Any, y0: Tensor) -> None:
    """Central differences of the loss, extrapolated, on steps of equal length, by y0, parameter and closed-over tensor."""
    controller = pn.Fixed(0.3 if family.name in ("kahan_li8", "gauss_radau15") else 0.15)

    def value(shift: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        gain = (0.35 + shift[0]).requires_grad_()
        field, start = swing(gain), (y0 + shift[1:5].view(2, 2)).requires_grad_()
        with torch.no_grad():
            field.stiffness.add_(shift[5])
        ys = family.solve(field, start, TS, gradient=gradient, controller=controller).ys
        return loss_of(ys), (gain, start, field.stiffness)

    loss, inputs = value(torch.zeros(6, dtype=F64))
    slope = torch.cat([part.flatten() for part in torch.autograd.grad(loss, inputs)])
    direction = torch.tensor([0.3, -0.5, 0.7, 0.2, -0.4, 0.6], dtype=F64)
    coarse, fine = ((value(e * direction)[0] - value(-e * direction)[0]).detach() / (2 * e) for e in (4e-3, 2e-3))
    assert float(slope @ direction) == pytest.approx(float((4 * fine - coarse) / 3), rel=1e-9)
