"""Fields keep their structure when they are added, and Hamilton's equations are what they should be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from physnode.errors import InputError
from physnode.fields import (
    Domain,
    FunctionField,
    Hamiltonian,
    SecondOrder,
    SeparableHamiltonian,
    Sum,
    VectorField,
    as_field,
    split_state,
)

TIME = torch.zeros(1, dtype=torch.float64)


class Spring(SeparableHamiltonian):
    """H = p^2/(2 m) + k q^2/2."""

    def __init__(self, mass: float = 2.0, stiffness: float = 3.0) -> None:
        super().__init__()
        self.mass = nn.Parameter(torch.tensor(mass, dtype=torch.float64))
        self.stiffness = nn.Parameter(torch.tensor(stiffness, dtype=torch.float64))

    def kinetic(self, p: Tensor) -> Tensor:
        return (p * p).sum(-1) / (2 * self.mass)

    def potential(self, q: Tensor) -> Tensor:
        return self.stiffness * (q * q).sum(-1) / 2


class Coupled(Hamiltonian):
    """H = t q0 p1 + q1^2 p0^2/2: nothing separates."""

    def energy(self, t: Tensor, y: Tensor) -> Tensor:
        return t[..., 0] * y[..., 0] * y[..., 3] + y[..., 1] ** 2 * y[..., 2] ** 2 / 2


class Fall(SecondOrder):
    velocity_dependent = False

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return torch.full_like(q, -9.8)


class Drag(SecondOrder):
    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -0.5 * v


class Switch(SecondOrder):
    """Drag that can be turned on after it was added."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False

    @property
    def velocity_dependent(self) -> bool:  # type: ignore[override]
        return self.on

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -v if self.on else torch.zeros_like(q)


def rotate(t: Tensor, y: Tensor) -> Tensor:
    return y.roll(1, -1) * torch.cos(t)


def states(n: int = 5, dim: int = 4) -> Tensor:
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_hamiltons_equations_are_the_analytic_ones() -> None:
    y = states()
    q0, q1, p0, p1 = y.unbind(-1)
    t = torch.full((5, 1), 0.7, dtype=torch.float64)
    expected = torch.stack((q1**2 * p0, 0.7 * q0, -0.7 * p1, -q1 * p0**2), dim=-1)
    torch.testing.assert_close(Coupled()(t, y), expected)
    torch.testing.assert_close(Coupled().velocity(t, y), expected[:, :2])
    torch.testing.assert_close(Coupled().invariants(t, y)["energy"], 0.7 * q0 * p1 + q1**2 * p0**2 / 2)


def test_halves_of_a_separable_hamiltonian() -> None:
    spring, y = Spring(), states()
    q, p = split_state(y)
    torch.testing.assert_close(spring.drift(TIME, p), p / 2)
    torch.testing.assert_close(spring.kick(TIME, q), -3 * q)
    torch.testing.assert_close(spring(TIME, y), torch.cat((p / 2, -3 * q), dim=-1))
    torch.testing.assert_close(spring.energy(TIME, y), spring.kinetic(p) + spring.potential(q))


@pytest.mark.parametrize("field", [Spring(), Coupled(), Spring() + Spring(1.0, 0.5), Fall() + Drag()])
def test_derivatives_of_fields(field: VectorField) -> None:
    y = states(2).requires_grad_()
    t = torch.full((2, 1), 0.4, dtype=torch.float64)

    def rate(y: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(field, dict(zip(names, values, strict=True)), (t, y))

    names = [name for name, _ in field.named_parameters()]
    values = [value.detach().clone().requires_grad_() for value in field.parameters()]
    assert torch.autograd.gradcheck(rate, (y, *values))
    assert torch.autograd.gradgradcheck(rate, (y, *values))


@pytest.mark.parametrize("field", [Spring(), Coupled(), Fall(), Spring() + Coupled(), Fall() + rotate])
def test_a_batch_equals_its_rows(field: VectorField) -> None:
    y, t = states(6), torch.linspace(0, 1, 6, dtype=torch.float64).unsqueeze(-1)
    rows = torch.stack([field(t[i], y[i]) for i in range(6)])
    torch.testing.assert_close(field(t, y), rows)
    torch.testing.assert_close(field(t.view(2, 3, 1), y.view(2, 3, 4)).flatten(0, 1), rows)


@pytest.mark.parametrize(
    ("left", "right", "structure"),
    [
        (Spring(), Spring(), SeparableHamiltonian),
        (Spring(), Coupled(), Hamiltonian),
        (Fall(), Drag(), SecondOrder),
    ],
)
def test_sums_keep_what_all_terms_share(left: VectorField, right: VectorField, structure: type[VectorField]) -> None:
    y = states()
    for total in (left + right, right + left):
        assert isinstance(total, structure)
        assert isinstance(total, Sum)
    total = left + right
    if structure is SecondOrder:  # velocities do not add
        q, v = split_state(y)
        expected = torch.cat((v, left.acceleration(TIME, q, v) + right.acceleration(TIME, q, v)), dim=-1)
        torch.testing.assert_close(total(TIME, y), expected)
    else:
        torch.testing.assert_close(total(TIME, y), left(TIME, y) + right(TIME, y))
        torch.testing.assert_close(total.energy(TIME, y), left.energy(TIME, y) + right.energy(TIME, y))
        torch.testing.assert_close(total.invariants(TIME, y)["energy"], total.energy(TIME, y))


def test_a_separable_sum_drifts_and_kicks_together() -> None:
    total, y = Spring() + Spring(1.0, 0.5), states()
    q, p = split_state(y)
    assert isinstance(total, SeparableHamiltonian)
    torch.testing.assert_close(total.drift(TIME, p), p * 1.5)
    torch.testing.assert_close(total.kick(TIME, q), -3.5 * q)


@pytest.mark.parametrize("field", [Spring(), Coupled(), Fall(), Fall() + Drag(), Spring() + Spring()])
def test_a_plain_function_leaves_no_structure(field: VectorField) -> None:
    y = states()
    for total in (field + rotate, rotate + field, field + _Twice()):
        assert type(total) is Sum
        assert total.invariants(TIME, y) == {}
    torch.testing.assert_close((field + rotate)(TIME, y), field(TIME, y) + rotate(TIME, y))
    torch.testing.assert_close((rotate + field)(TIME, y), field(TIME, y) + rotate(TIME, y))


def test_velocity_is_counted_once_however_the_sum_was_written() -> None:
    y = states()
    expected = (Fall() + Drag())(TIME, y) + rotate(TIME, y)
    for total in ((Fall() + rotate) + Drag(), Fall() + (rotate + Drag()), (rotate + Fall()) + (Drag() + _Nothing())):
        torch.testing.assert_close(total(TIME, y), expected)


def test_structures_of_different_kinds_do_not_mix() -> None:
    assert type(Spring() + Fall()) is Sum
    assert type(Coupled() + Fall()) is Sum


def test_sums_are_flat_and_own_their_terms() -> None:
    spring = Spring()
    total = (spring + Spring()) + (Coupled() + rotate)
    assert isinstance(total, Sum)
    assert len(total.terms) == 4
    assert total.terms[0] is spring
    assert len(list(total.parameters())) == 4


def test_velocity_dependence_of_a_sum_is_that_of_any_term() -> None:
    assert not (Fall() + Fall()).velocity_dependent  # type: ignore[attr-defined]
    assert (Fall() + Drag()).velocity_dependent  # type: ignore[attr-defined]
    switch = Switch()
    total = Fall() + switch
    assert not total.velocity_dependent  # type: ignore[attr-defined]
    switch.on = True
    assert total.velocity_dependent  # type: ignore[attr-defined]


def test_second_order_halves() -> None:
    y = states()
    q, v = split_state(y)
    assert torch.equal(Fall().drift(TIME, v), v)
    assert torch.equal(Fall().kick(TIME, q), torch.full_like(q, -9.8))
    assert torch.equal(Fall()(TIME, y), torch.cat((v, torch.full_like(q, -9.8)), dim=-1))


def test_functions_and_modules_are_fields() -> None:
    field = as_field(rotate)
    assert isinstance(field, FunctionField)
    y = states()
    assert torch.equal(field(TIME, y), rotate(TIME, y))
    assert as_field(field) is field
    assert len(list(as_field(_Twice()).parameters())) == 1
    assert as_field(field).invariants(TIME, y) == {}


@pytest.mark.parametrize("thing", [3, "pendulum", None, [1.0]])
def test_things_that_are_no_fields_are_refused(thing: object) -> None:
    with pytest.raises(InputError, match=type(thing).__name__):
        as_field(thing)
    with pytest.raises(InputError):
        Spring() + thing


def test_an_odd_state_has_no_halves() -> None:
    with pytest.raises(InputError, match="3"):
        split_state(torch.zeros(3))
    with pytest.raises(InputError):
        Spring()(TIME, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("domain", "value", "inside"),
    [
        (Domain(), [-1e300, 0.0, 1e300], True),
        (Domain(), float("inf"), False),
        (Domain(), float("nan"), False),
        (Domain(lower=0.0), 0.0, True),
        (Domain(lower=0.0), [1.0, -1e-300], False),
        (Domain(0.0, 1.0), [0.0, 1.0], True),
        (Domain(0.0, 1.0), 1.0 + 1e-15, False),
    ],
)
def test_domains_are_closed_and_finite(domain: Domain, value: object, inside: bool) -> None:
    assert domain.contains(torch.as_tensor(value, dtype=torch.float64)) is inside


def test_a_domain_prints_its_ends() -> None:
    assert str(Domain(0.0, 2.5)) == "[0, 2.5]"


class _Nothing(VectorField):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(y)


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.factor * y
