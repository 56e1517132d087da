"""Runge-Kutta-Nystrom tables and what they refuse; their orders and gradients are tested beside those of all methods."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from physnode.engine.coefficients.nystrom import DPRKN6
from physnode.engine.coefficients.nystrom_tableau import NystromTableau, nystrom_trees
from physnode.engine.controllers import Adaptive, Fixed
from physnode.engine.families.nystrom import RungeKuttaNystrom
from physnode.errors import InputError
from physnode.fields import SecondOrder, SeparableHamiltonian
from physnode.solve import solve
from physnode.systems import Kepler, Pendulum

NYSTROM = NystromTableau(
    name="nystrom",
    order=4,
    c=(0.0, 1 / 2, 1.0),
    a=((), (1 / 8,), (0.0, 1 / 2)),
    b=(1 / 6, 1 / 3, 0.0),
    velocity_b=(1 / 6, 2 / 3, 1 / 6),
    reference="Hairer, Norsett & Wanner, Solving ODEs I, table II.14.2",
)


def changed(row: tuple[float, ...], index: int, by: float = 1e-12) -> tuple[float, ...]:
    return tuple(value + by * (i == index) for i, value in enumerate(row))


def test_number_of_trees() -> None:
    """Hairer, Norsett & Wanner I, table II.14.1."""
    assert [len(nystrom_trees(nodes)) for nodes in range(1, 8)] == [1, 1, 2, 3, 6, 10, 20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": changed(DPRKN6.b, 2)}, "b misses"),
        ({"velocity_b": changed(DPRKN6.velocity_b, 3)}, "b' misses"),
        ({"a": (*DPRKN6.a[:3], changed(DPRKN6.a[3], 1), *DPRKN6.a[4:])}, "sums to"),
        ({"a": (*DPRKN6.a[:3], changed(changed(DPRKN6.a[3], 1), 2, -1e-12), *DPRKN6.a[4:])}, "misses the condition"),
        ({"order": 7}, "order 7"),
        ({"error_order": 5}, "error rows of order 4"),
        ({"error": changed(DPRKN6.error, 0)}, "error rows of order"),
        ({"error": ()}, "error rows of 0 and 6"),
        ({"extension_order": 6}, "extension"),
        ({"extension": (changed(DPRKN6.extension[0], 2), *DPRKN6.extension[1:])}, "theta = 1"),
        (
            {"extension": (changed(changed(DPRKN6.extension[0], 2, 1e-9), 3, -1e-9), *DPRKN6.extension[1:])},
            "extension",
        ),
        ({"c": DPRKN6.c[:-1]}, "5 nodes"),
    ],
)
def test_mistyped_tables_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(DPRKN6, **change)  # type: ignore[arg-type]


def test_first_is_last_where_the_table_says_so() -> None:
    """Five evaluations a step, and two to start."""
    assert DPRKN6.first_same_as_last
    assert not NYSTROM.first_same_as_last
    with torch.no_grad():
        sol = solve(Pendulum(1.0), [1.0, 0.0], [0.0, 5.0], method="dprkn6", controller=Adaptive(1e-6, 1e-9))
    assert int(sol.stats.evaluations) == 2 + 5 * int(sol.stats.accepted + sol.stats.rejected)


def test_table_without_estimate_extension_or_shared_stage() -> None:
    """Nystrom's own method of order 4: fixed steps, outputs by a step of their own, and the gradient of that."""
    method = RungeKuttaNystrom(NYSTROM)
    assert (method.error_order, method.extension_order, method.evaluations) == (None, None, 3)
    exact = solve(Pendulum(1.0), [1.0, 0.0], [0.0, 1.03], method="gauss_radau15").ys[-1]
    ends = [
        float((solve(Pendulum(1.0), [1.0, 0.0], [0.0, 1.03], method=method, controller=Fixed(dt)).ys[-1] - exact).norm())
        for dt in (0.1, 0.05)
    ]
    assert 12 < ends[0] / ends[1] < 20
    slopes = []
    for gradient in ("direct", "symplectic"):
        y0 = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
        sol = solve(Pendulum(1.0), y0, [0.0, 0.51, 1.0], method=method, controller=Fixed(0.1), gradient=gradient)
        slopes.append(torch.autograd.grad(sol.ys.sum(), y0)[0])
    assert (slopes[0] - slopes[1]).abs().max() < 1e-13


def test_fewer_evaluations_than_a_runge_kutta_method_of_near_order() -> None:
    y0 = torch.tensor([0.4, 0.0, 0.0, 2.0], dtype=torch.float64)
    wanted = torch.tensor([-1.53502359190981369, -0.283668406499780862, 0.227150732077498338, -0.479187758203219266])
    found = {}
    for name, tolerance in (("dprkn6", 1e-8), ("tsit5", 1e-9)):
        with torch.no_grad():
            sol = solve(Kepler(1.0), y0, [0.0, 10.0], method=name, controller=Adaptive(tolerance, tolerance))
        found[name] = int(sol.stats.evaluations), float((sol.ys[-1] - wanted.double()).norm())
    assert found["dprkn6"][0] < found["tsit5"][0]
    assert found["dprkn6"][1] < found["tsit5"][1]


class Relativistic(SeparableHamiltonian):
    def kinetic(self, p: Tensor) -> Tensor:
        return torch.sqrt(1 + p * p).sum(-1)

    def potential(self, q: Tensor) -> Tensor:
        return -torch.cos(q).sum(-1)


class Damped(SecondOrder):
    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -q - 0.1 * v


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (Damped(), "Damped is declared to depend on velocity.*gauss_radau15"),
        (Relativistic(), "Relativistic moves by q' = dT/dp"),
        (lambda t, y: -y, "FunctionField is not a SecondOrder field"),
    ],
)
def test_other_fields_are_refused(field: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        solve(field, [1.0, 0.0], [0.0, 1.0], method="dprkn6")
