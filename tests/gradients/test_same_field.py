"""A field that is no longer the one that the steps were made of has no gradient to give, however it was changed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.errors import GradientError

F64 = torch.float64
SWEPT = ["aca", "symplectic", "continuous"]


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2).double()
        self.register_buffer("shift", torch.full((2,), 0.1, dtype=F64))
        self.factor = 1.0
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[0.1, -1.0], [1.0, 0.1]]))
            self.linear.bias.zero_()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.factor * self.linear(y) + self.shift
        return out


def in_place(field: Field) -> None:
    field.linear.weight.data.mul_(1.1)


def new_data(field: Field) -> None:
    field.linear.weight.data = 1.1 * field.linear.weight.data


def by_vector(field: Field) -> None:
    nn.utils.vector_to_parameters(1.1 * nn.utils.parameters_to_vector(field.parameters()), field.parameters())


def by_assignment(field: Field) -> None:
    field.load_state_dict({name: 1.1 * value for name, value in field.state_dict().items()}, assign=True)


def buffer_in_place(field: Field) -> None:
    assert isinstance(field.shift, Tensor)
    field.shift.add_(0.1)


def another_buffer(field: Field) -> None:
    assert isinstance(field.shift, Tensor)
    field.shift = field.shift + 0.1


def another_constant(field: Field) -> None:
    field.factor = 1.1


EDITS = [in_place, new_data, by_vector, by_assignment, buffer_in_place, another_buffer, another_constant]


@pytest.mark.parametrize("gradient", SWEPT)
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("edit", EDITS)
def test_every_way_of_editing_is_seen(edit: Callable[[Field], None], gradient: str, create_graph: bool) -> None:
    if gradient == "continuous" and create_graph:
        pytest.skip("it has no second derivative")
    field, y0 = Field(), torch.tensor([[1.0, 0.5], [0.2, -1.0]], dtype=F64, requires_grad=True)
    loss = pn.solve(field, y0, [0.0, 1.0], gradient=gradient).ys.square().sum()
    edit(field)
    with pytest.raises(
        GradientError, match=r"not the one that the steps were made of: at the start of trajectory 0 it gives \("
    ):
        loss.backward(create_graph=create_graph)


@pytest.mark.parametrize("gradient", SWEPT)
def test_the_same_field_is_let_through_in_another_order_of_sums(gradient: str) -> None:
    """Rounding is no change: a field that sums in another order from call to call has its gradient."""
    calls, terms = [0], torch.rand(2000, dtype=F64, generator=torch.Generator().manual_seed(0)) - 0.5

    def field(t: Tensor, y: Tensor) -> Tensor:
        calls[0] += 1
        order = terms if calls[0] % 2 else terms.flip(0)
        return y * order.cumsum(0)[-1] - y

    y0 = torch.ones(1, 2, dtype=F64, requires_grad=True)
    pn.solve(field, y0, [0.0, 1.0], gradient=gradient).ys.sum().backward()
    assert y0.grad is not None


@pytest.mark.parametrize("gradient", SWEPT)
def test_a_trajectory_that_failed_does_not_matter(gradient: str) -> None:
    y0 = torch.tensor([[0.5], [float("nan")]], dtype=F64, requires_grad=True)
    sol = pn.solve(lambda t, y: -y, y0, [0.0, 1.0], gradient=gradient, on_failure="report")
    sol.ys[0].sum().backward()
    assert y0.grad is not None
    assert float(y0.grad[0, 0]) == pytest.approx(1 + float(torch.exp(torch.tensor(-1.0))), rel=1e-6)


@pytest.mark.parametrize("gradient", SWEPT)
def test_noise_that_no_known_generator_draws_is_refused(gradient: str) -> None:
    noise = np.random.default_rng(0)
    y0 = torch.ones(1, 1, dtype=F64, requires_grad=True)
    sol = pn.solve(lambda t, y: -y * (1 + 0.1 * float(noise.random())), y0, [0.0, 1.0], method="rk4", controller=pn.Fixed(0.1),
                   gradient=gradient)  # fmt: skip
    with pytest.raises(GradientError, match="or it draws random numbers"):
        sol.ys.sum().backward()


@pytest.mark.parametrize("gradient", SWEPT[:2])
@pytest.mark.parametrize("derived", [False, True])
def test_a_tensor_read_late_is_refused_with_a_graph_too(gradient: str, derived: bool) -> None:
    """Its share of the gradient would be lost in a second derivative as in a first."""
    rate = torch.tensor(0.5, dtype=F64, requires_grad=True)
    late = rate.exp() if derived else torch.tensor(0.3, dtype=F64, requires_grad=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -rate * y if float(t.max()) < 0.4 else -rate * y * late

    y0 = torch.ones(1, 1, dtype=F64, requires_grad=True)
    loss = pn.solve(field, y0, [0.0, 1.0], gradient=gradient).ys.square().sum()
    with pytest.raises(GradientError, match="first call did not read"):
        torch.autograd.grad(loss, (y0, rate), create_graph=True)


def test_dense_output_moves_with_the_times_it_is_asked_for() -> None:
    """At the epoch too, where the output is y0 itself."""
    rate = torch.tensor(2.0, dtype=F64)
    y0 = torch.tensor([1.0, 0.5], dtype=F64, requires_grad=True)
    sol = pn.solve(lambda t, y: -rate * y * torch.cos(t), y0, [0.0, 2.0], t0=1.0, dense=True, controller=pn.Adaptive(1e-9))
    times = torch.tensor([0.0, 0.4, 1.0, 1.3, 2.0], dtype=F64, requires_grad=True)
    values = sol.at(times)
    found, by_y0 = torch.autograd.grad(values[:, 0].sum(), (times, y0))
    assert torch.allclose(found, (-rate * values[:, 0] * torch.cos(times)).detach(), rtol=1e-6)
    assert torch.allclose(by_y0[:1], values[:, 0].sum().detach(), rtol=1e-9)


def test_dense_output_of_another_field_is_refused() -> None:
    factor = [1.0]
    sol = pn.solve(lambda t, y: -factor[0] * y, torch.ones(1, dtype=F64), [0.0, 1.0], dense=True)
    sol.at(0.37)
    factor[0] = 3.0
    with pytest.raises(GradientError, match="not the one that the steps were made of"):
        sol.at(0.37)


@pytest.mark.parametrize("gradient", SWEPT)
def test_times_that_the_caller_edits_are_not_those_of_the_solve(gradient: str) -> None:
    ts, y0 = np.array([0.0, 1.0]), torch.ones(1, dtype=F64, requires_grad=True)
    sol = pn.solve(lambda t, y: -t * y, y0, ts, gradient=gradient)
    ts += 1.0
    sol.ys[-1].sum().backward()
    assert y0.grad is not None
    assert float(y0.grad) == pytest.approx(float(np.exp(-0.5)), rel=1e-5)
    assert sol.ts.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("gradient", SWEPT)
def test_a_field_under_autocast_is_the_same_outside_of_it(gradient: str) -> None:
    torch.manual_seed(0)
    net, y0 = nn.Linear(2, 2), torch.ones(3, 2, requires_grad=True)
    found = []
    for how in (gradient, "direct"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sol = pn.solve(
                lambda t, y: net(y).float() - y, y0, [0.0, 1.0], method="rk4", controller=pn.Fixed(0.1), gradient=how
            )
        found.append(torch.autograd.grad(sol.ys[-1].sum(), net.weight)[0])
    assert torch.allclose(*found, rtol=0.02)


@pytest.mark.parametrize("gradient", SWEPT[:2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_in_half_precision_lose_nothing_to_their_sums(gradient: str, dtype: torch.dtype) -> None:
    """y' = -p y by Euler: dy_N/dp = -N h (1 - p h)^(N-1) y_0."""
    p = torch.tensor(0.5, dtype=dtype, requires_grad=True)
    y0, steps = torch.full((1, 1), 2.0), 1000
    sol = pn.solve(
        lambda t, y: -p.to(y.dtype) * y, y0, [0.0, 1.0], method="euler", controller=pn.Fixed(1 / steps), gradient=gradient
    )
    (found,) = torch.autograd.grad(sol.ys[-1].sum(), p)
    assert float(found) == pytest.approx(-2.0 * (1 - 0.5 / steps) ** (steps - 1), rel=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("gradient", SWEPT[:2])
def test_a_parameter_that_was_frozen_since_keeps_its_gradient(gradient: str) -> None:
    field, y0 = Field(), torch.ones(1, 2, dtype=F64, requires_grad=True)
    loss = pn.solve(field, y0, [0.0, 1.0], gradient=gradient).ys.sum()
    field.linear.weight.requires_grad_(False)
    loss.backward()
    assert y0.grad is not None
    assert field.linear.bias.grad is not None
