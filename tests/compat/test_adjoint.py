"""``odeint_adjoint``: the replay, the backward solve, and the rules of the adjoint arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from physnode.compat.torchdiffeq import find_parameters, odeint, odeint_adjoint
from physnode.errors import GradientError

D = torch.float64
T = torch.linspace(0, 1.5, 4, dtype=D)
BACKWARD = {"adjoint_rtol": 1e-9, "adjoint_atol": 1e-11}


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 2, dtype=D)
        self.unused = nn.Parameter(torch.ones(3, dtype=D))
        self.calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(self.layer(y)) * torch.cos(t)


class Pair(Field):
    def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        first = super().forward(t, y[0])
        return first, first.sum() * torch.ones_like(y[1])


def start() -> Tensor:
    return torch.tensor([[0.5, -1.0], [0.3, 0.8]], dtype=D, requires_grad=True)


def gradients(solver: Any, **options: Any) -> list[Tensor]:
    field, y0 = Field(), start()
    found = solver(field, y0, T, rtol=1e-9, atol=1e-11, **options)
    found.square().sum().backward()
    return [y0.grad, field.layer.weight.grad, field.layer.bias.grad]


DIRECT = gradients(odeint)


@pytest.mark.parametrize("method", [None, "dopri8", "bosh3", "tsit5"])
@pytest.mark.parametrize("backward", [{}, BACKWARD], ids=["replay", "backward solve"])
def test_both_ways_agree_with_the_direct_gradient(method: str | None, backward: dict[str, float]) -> None:
    found = gradients(odeint_adjoint, method=method, **backward)
    torch.testing.assert_close(found, DIRECT, rtol=0, atol=1e-6)
    if method is None and not backward:
        torch.testing.assert_close(found, DIRECT, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "backward",
    [
        {"adjoint_method": "dopri8", "adjoint_rtol": 1e-9},
        {"adjoint_method": "rk4", "adjoint_options": {"step_size": 0.01}},
        {
            "adjoint_method": "rk4",
            "adjoint_options": {"grid_constructor": lambda f, y, t: torch.linspace(t[0], t[-1], 50, dtype=D)},
        },
        {"adjoint_options": {"norm": "seminorm"}},
        {"adjoint_options": {"norm": lambda state: max(part.abs().max() for part in state)}},
        {"adjoint_options": {"jump_t": [0.25, 0.7]}},
    ],
)
def test_forms_of_the_backward_solve(backward: dict[str, Any]) -> None:
    torch.testing.assert_close(gradients(odeint_adjoint, **backward), DIRECT, rtol=0, atol=1e-6)


def test_the_seminorm_is_cheaper_and_custom_norms_see_the_parts() -> None:
    calls = {}
    for norm in (None, "seminorm"):
        field = Field()
        odeint_adjoint(field, start(), T, adjoint_options={} if norm is None else {"norm": norm}).square().sum().mul(
            100
        ).backward()
        calls[norm] = field.calls
    assert calls["seminorm"] <= calls[None]
    seen: list[list[tuple[int, ...]]] = []

    def norm_of_parts(state: tuple[Tensor, ...]) -> Tensor:
        seen.append([tuple(part.shape) for part in state])
        return torch.stack([part.abs().max() for part in state]).max()

    pair, y0 = Pair(), (torch.ones(3, 2, dtype=D, requires_grad=True), torch.zeros((), dtype=D))
    odeint_adjoint(pair, y0, T, adjoint_options={"norm": norm_of_parts})[1].sum().backward()
    assert set(map(tuple, seen)) == {((), (3, 2), (), (3, 2), (), (3,), (2, 2), (2,))}
    expected = Pair()
    other = torch.ones(3, 2, dtype=D, requires_grad=True)
    odeint(expected, (other, y0[1]), T)[1].sum().backward()
    torch.testing.assert_close(y0[0].grad, other.grad, rtol=0, atol=1e-5)
    torch.testing.assert_close(pair.layer.weight.grad, expected.layer.weight.grad, rtol=0, atol=1e-5)


def test_complex_states() -> None:
    rate = torch.tensor(0.7 + 0.2j, dtype=torch.complex128)
    found = []
    for backward in ({}, BACKWARD):
        parameter, y0 = nn.Parameter(rate.clone()), torch.ones(2, dtype=torch.complex128, requires_grad=True)
        ys = odeint_adjoint(lambda t, y: parameter * y, y0, T, adjoint_params=(parameter,), rtol=1e-9, atol=1e-11, **backward)  # noqa: B023
        ys[-1].abs().sum().backward()
        found.append((y0.grad, parameter.grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)
    exact, factor = torch.ones(2, dtype=torch.complex128, requires_grad=True), rate.clone().requires_grad_()
    (exact * torch.exp(factor * T[-1])).abs().sum().backward()
    torch.testing.assert_close(found[0], (exact.grad, factor.grad), rtol=0, atol=1e-6)


# Rules of the arguments.


@pytest.mark.parametrize("backward", [{}, BACKWARD], ids=["replay", "backward solve"])
def test_unused_parameters_get_zeros(backward: dict[str, float]) -> None:
    field = Field()
    odeint_adjoint(field, start(), T, **backward).sum().backward()
    torch.testing.assert_close(field.unused.grad, torch.zeros(3, dtype=D))


def test_a_plain_function_needs_adjoint_params() -> None:
    with pytest.raises(ValueError, match="func must be an instance of"):
        odeint_adjoint(lambda t, y: -y, start(), T)
    y0 = start()
    odeint_adjoint(lambda t, y: -y, y0, T, adjoint_params=())[-1].sum().backward()
    torch.testing.assert_close(y0.grad, torch.full((2, 2), float(T[-1].neg().exp()), dtype=D), rtol=1e-6, atol=0)


def test_adjoint_options_cannot_be_guessed() -> None:
    with pytest.raises(ValueError, match="adjoint_options cannot be inferred"):
        odeint_adjoint(Field(), start(), T, method="rk4", adjoint_method="dopri5", options={"step_size": 0.1})


def test_params_may_be_a_generator_and_frozen_ones_are_dropped() -> None:
    field, y0 = Field(), start()
    field.layer.bias.requires_grad_(False)
    odeint_adjoint(field, y0, T, adjoint_params=(p for p in field.parameters()), **BACKWARD).sum().backward()
    assert field.layer.bias.grad is None
    assert field.layer.weight.grad is not None


def test_closed_over_tensors() -> None:
    """By replay they get their gradient; a backward solve that was not told of them refuses."""
    field, scale, y0 = Field(), torch.tensor(1.5, dtype=D, requires_grad=True), start()

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = field

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return scale * self.inner(t, y)

    (mine,) = torch.autograd.grad(odeint_adjoint(Scaled(), y0, T).sum(), scale)
    (direct,) = torch.autograd.grad(odeint(Scaled(), y0, T).sum(), scale)
    torch.testing.assert_close(mine, direct, rtol=1e-12, atol=0)
    with pytest.raises(GradientError, match="depends on a tensor"):
        odeint_adjoint(Scaled(), y0, T, **BACKWARD).sum().backward()
    listed = odeint_adjoint(Scaled(), y0, T, adjoint_params=(scale, *field.parameters()), rtol=1e-9, atol=1e-11, **BACKWARD)
    torch.testing.assert_close(torch.autograd.grad(listed.sum(), scale)[0], direct, rtol=0, atol=1e-5)


def test_second_derivatives_by_replay_and_a_refusal_by_the_backward_solve() -> None:
    field, y0 = Field(), start()

    def curvature(solver: Any, **options: Any) -> Tensor:
        (slope,) = torch.autograd.grad(solver(field, y0, T, **options).square().sum(), y0, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), field.layer.weight)[0]

    torch.testing.assert_close(curvature(odeint_adjoint), curvature(odeint), rtol=1e-10, atol=1e-12)
    with pytest.raises(GradientError, match="no second derivative"):
        torch.autograd.grad(odeint_adjoint(field, y0, T, **BACKWARD).sum(), y0, create_graph=True)


def test_a_field_that_differentiates_by_its_time_and_state() -> None:
    """A divergence inside the field, in each of the ways, and under no_grad."""

    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.layer = nn.Linear(3, 2, dtype=D)

        def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            y = state[0]
            with torch.enable_grad():
                y.requires_grad_(True)
                t.requires_grad_(True)
                dy = torch.tanh(self.layer(torch.cat((y, t.expand(len(y), 1)), -1)))
                trace = sum(torch.autograd.grad(dy[:, i].sum(), y, create_graph=True)[0][:, i] for i in range(2))
            return dy, -trace

    found = []
    state = (torch.tensor([[0.2, -0.5]], dtype=D), torch.zeros(1, dtype=D))
    for solver, options in ((odeint, {}), (odeint_adjoint, {}), (odeint_adjoint, BACKWARD)):
        flow = Flow()
        found.append(
            torch.autograd.grad(sum(part[-1].sum() for part in solver(flow, state, T, **options)), flow.layer.weight)[0]
        )
        with torch.no_grad():
            assert not solver(flow, state, T, **options)[0].requires_grad
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=1e-5)


def test_replicas_show_their_parameters() -> None:
    field = Field()
    replica = field._replicate_for_data_parallel()
    replica.layer = field.layer._replicate_for_data_parallel()
    replica._parameters, replica.layer._parameters = {}, {}
    copies = {"weight": field.layer.weight * 1.0, "bias": field.layer.bias * 1.0}
    for name, value in copies.items():
        object.__setattr__(replica.layer, name, value)
    replica._modules = {"layer": replica.layer}
    assert list(replica.parameters()) == []
    assert {id(p) for p in find_parameters(replica)} >= {id(value) for value in copies.values()}
    odeint_adjoint(replica, start(), T, **BACKWARD).square().sum().backward()
    plain = Field()
    odeint_adjoint(plain, start(), T, **BACKWARD).square().sum().backward()
    torch.testing.assert_close(field.layer.weight.grad, plain.layer.weight.grad, rtol=1e-6, atol=0)
