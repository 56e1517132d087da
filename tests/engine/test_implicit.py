"""Implicit Runge-Kutta methods: their tables, their iteration, their physics, and what they cost on stiff problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from physnode import methods
from physnode.engine.coefficients.butcher_tableau import ContinuousExtension
from physnode.engine.coefficients.collocation import GAUSS2, GAUSS4, GAUSS6, RADAU5
from physnode.engine.coefficients.implicit_tableau import ImplicitTableau
from physnode.engine.controllers import Adaptive, Fixed
from physnode.engine.families.implicit_memory import predict
from physnode.engine.families.implicit_rk import ImplicitRungeKutta
from physnode.engine.field_function import FieldFunction
from physnode.engine.jacobian import jacobian
from physnode.engine.linear import factorize
from physnode.engine.status import Status
from physnode.errors import InputError
from physnode.fields import as_field
from physnode.solve import solve

Field = Callable[[Tensor, Tensor], Tensor]
GAUSS = [methods.gauss2, methods.gauss4, methods.gauss6]
ALL = [*GAUSS, methods.radau5]
F64 = torch.float64


def function(field: Field, batch: int) -> FieldFunction:
    return FieldFunction(as_field(field), (batch,), F64)


def times(batch: int, value: float) -> Tensor:
    return torch.full((batch,), value, dtype=F64)


def van_der_pol(mu: Tensor) -> Field:
    return lambda t, y: torch.cat((y[..., 1:], mu * (1 - y[..., :1] ** 2) * y[..., 1:] - y[..., :1]), -1)


def robertson(rates: Tensor) -> Field:
    def field(t: Tensor, y: Tensor) -> Tensor:
        slow, fast, back = (
            rates[..., :1] * y[..., :1],
            rates[..., 1:2] * y[..., 1:2] ** 2,
            rates[..., 2:] * y[..., 1:2] * y[..., 2:],
        )
        return torch.cat((back - slow, slow - back - fast, fast), -1)

    return field


class TestTables:
    @pytest.mark.parametrize("table", [GAUSS2, GAUSS4, GAUSS6])
    def test_gauss_is_gauss_legendre_quadrature(self, table: ImplicitTableau) -> None:
        nodes, weights = np.polynomial.legendre.leggauss(table.stages)
        assert np.abs(np.array(table.c) - (1 + nodes) / 2).max() < 2e-16
        assert np.abs(np.array(table.b) - weights / 2).max() < 2e-16
        b, a = np.array(table.b), np.array(table.a)
        assert np.abs(b[:, None] * a + b * a.T - b[:, None] * b).max() < 5e-17  # symplectic

    def test_radau_is_as_published(self) -> None:
        """Hairer & Wanner II, table 5.6 and equations (8.16) to (8.18)."""
        r = sqrt(6)
        a = [
            [(88 - 7 * r) / 360, (296 - 169 * r) / 1800, (-2 + 3 * r) / 225],
            [(296 + 169 * r) / 1800, (88 + 7 * r) / 360, (-2 - 3 * r) / 225],
            [(16 - r) / 36, (16 + r) / 36, 1 / 9],
        ]
        assert np.abs(np.array(RADAU5.a) - a).max() < 2e-16
        assert RADAU5.ends_on_stage
        eigenvalues = np.linalg.eigvals(np.array(RADAU5.a))
        assert RADAU5.error_filter == pytest.approx(float(eigenvalues[abs(eigenvalues.imag) < 1e-12].real[0]), abs=1e-15)
        displacements = np.linalg.solve(np.array(RADAU5.a).T, RADAU5.error) / RADAU5.error_filter
        assert np.abs(displacements - np.array([-13 - 7 * r, -13 + 7 * r, -1]) / 3).max() < 1e-13

    @pytest.mark.parametrize(
        ("change", "found"),
        [
            ({"b": (0.4, 0.5, 0.1)}, "misses the condition"),
            ({"a": ((0.1, 0.0, 0.0), *RADAU5.a[1:])}, "sums to"),
            ({"a": RADAU5.a[:2]}, "rows of a"),
            ({"order": 6}, "condition of order 6"),
            ({"error_order": 4}, "estimate of order 3"),
            ({"error": (0.1, 0.2)}, "2 error weights"),
            ({"error": ()}, "without weights"),
            ({"extension": replace(RADAU5.extension, order=1, weights=((1.0,),) * 3)}, "do not end on b"),
            ({"extension": replace(RADAU5.extension, weights=RADAU5.extension.weights[:2])}, "over 2 stages"),
        ],
    )
    def test_wrong_ones_are_refused(self, change: dict[str, object], found: str) -> None:
        with pytest.raises(InputError, match=found):
            replace(RADAU5, **change)

    def test_an_extension_below_its_order_is_refused(self) -> None:
        with pytest.raises(InputError, match="condition of order 2"):
            replace(GAUSS4, extension=ContinuousExtension(order=2, weights=((0.5, 0.0), (0.5, 0.0))))


TRAPEZOID = ImplicitTableau(
    name="trapezoid", order=2, c=(0.0, 1.0), a=((0.0, 0.0), (0.5, 0.5)), b=(0.5, 0.5), reference="Hairer & Wanner II, IV.3"
)
_G = 1 - sqrt(0.5)
SDIRK2 = ImplicitTableau(
    name="sdirk2",
    order=2,
    c=(_G, 1.0),
    a=((_G, 0.0), (1 - _G, _G)),
    b=(1 - _G, _G),
    error=(-_G, _G),  # against implicit Euler's first stage
    error_order=1,
    reference="Alexander, SIAM J. Numer. Anal. 14 (1977) 1006",
)
BACKWARD_EULER = ImplicitTableau(
    name="backward_euler", order=1, c=(1.0,), a=((1.0,),), b=(1.0,), reference="Hairer & Wanner II, IV.3"
)


@pytest.mark.parametrize("table", [TRAPEZOID, SDIRK2, BACKWARD_EULER], ids=lambda table: table.name)
def test_any_full_tableau_is_a_method(table: ImplicitTableau) -> None:
    """A singular matrix, a triangular one, one stage: the order is the table's."""
    method = ImplicitRungeKutta(table)
    mu = torch.tensor([[0.5], [1.5]], dtype=F64)
    y0 = torch.tensor([[1.0, 0.3], [-0.5, 1.0]], dtype=F64)
    exact = solve(van_der_pol(mu), y0, [0.0, 1.0], method="dop853", controller=Adaptive(1e-12, 1e-13)).ys[:, -1]
    errors = []
    for n in (100, 200):
        found = solve(van_der_pol(mu), y0, [0.0, 1.0], method=method, controller=Fixed(1 / n)).ys[:, -1]
        errors.append(float((found - exact).norm()))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(table.order, abs=0.1)
    if table.error:
        adaptive = solve(
            van_der_pol(mu), y0, [0.0, 1.0], method=method.tuned(1e-4, torch.tensor(1e-5)), controller=Adaptive(1e-4, 1e-5)
        )
        assert float((adaptive.ys[:, -1] - exact).norm()) < 1e-2


def saddle(t: Tensor, y: Tensor) -> Tensor:
    """The Hamiltonian (q² + 1)(p² + 1) / 2, which does not separate."""
    q, p = y[..., :1], y[..., 1:]
    return torch.cat((p * (q * q + 1), -q * (p * p + 1)), -1)


class TestGeometry:
    @pytest.mark.parametrize("method", GAUSS, ids=repr)
    def test_the_step_map_is_symplectic(self, method: methods.Method) -> None:
        y = torch.randn(5, 2, dtype=F64)
        f = function(saddle, 5)
        flow = torch.autograd.functional.jacobian(lambda x: method.step(f, times(5, 0.0), times(5, 0.3), x).y.sum(0), y)
        j = flow.transpose(0, 1)
        omega = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
        assert float((j.mT @ omega @ j - omega).abs().max()) < 2e-14

    def test_radau_is_not(self) -> None:
        y = torch.randn(5, 2, dtype=F64)
        f = function(saddle, 5)
        flow = torch.autograd.functional.jacobian(lambda x: methods.radau5.step(f, times(5, 0.0), times(5, 0.3), x).y.sum(0), y)
        assert float((torch.linalg.det(flow.transpose(0, 1)) - 1).abs().max()) > 1e-6

    @pytest.mark.parametrize("method", GAUSS, ids=repr)
    def test_quadratic_invariants_are_kept(self, method: methods.Method) -> None:
        """The free rigid body: energy and angular momentum, over 400 steps."""
        inertia = torch.tensor([1.0, 2.0, 3.5], dtype=F64)

        def euler(t: Tensor, m: Tensor) -> Tensor:
            return torch.linalg.cross(m, m / inertia)

        m0 = torch.nn.functional.normalize(torch.randn(3, 3, dtype=F64), dim=-1)
        ys = solve(euler, m0, torch.linspace(0, 80, 5, dtype=F64), method=method, controller=Fixed(0.2)).ys
        for invariant in ((ys**2).sum(-1), (ys**2 / inertia).sum(-1)):
            assert float((invariant - invariant[:, :1]).abs().max()) < 1e-13

    @pytest.mark.parametrize("method", GAUSS, ids=repr)
    def test_a_step_back_undoes_a_step(self, method: methods.Method) -> None:
        y = torch.randn(5, 2, dtype=F64)
        f = function(lambda t, x: saddle(t, x) + torch.cos(t), 5)
        there = method.step(f, times(5, 0.1), times(5, 0.5), y).y
        assert float((method.step(f, times(5, 0.5), times(5, 0.1), there).y - y).abs().max()) < 5e-15


class TestStiffness:
    def test_radau_follows_the_slow_solution(self) -> None:
        for y0 in (1.0, 0.0, 100.0):
            sol = solve(lambda t, y: -1e6 * (y - torch.cos(t)), [y0], [0.0, 0.1, 2.0], method="radau5", controller=Fixed(0.1))
            error = (sol.ys[1:, 0] - torch.cos(sol.ts[1:]) - 1e-6 * torch.sin(sol.ts[1:])).abs()
            assert float(error[0]) < 4e-5 * max(1.0, y0)  # R(z) is about 3 / |z|
            assert float(error[1]) < 1e-10

    def test_stability_at_infinity(self) -> None:
        """|R(z)| goes to 1 for Gauss and to 0 for Radau."""
        y = torch.ones(1, 1, dtype=F64)
        ends = [m.step(function(lambda t, x: -1e9 * x, 1), times(1, 0.0), times(1, 1.0), y).y for m in ALL]
        assert [abs(round(float(end), 6)) for end in ends] == [1.0, 1.0, 1.0, 0.0]

    def test_adaptive_steps_do_not_feel_the_stiffness(self) -> None:
        method = methods.radau5.tuned(1e-6, torch.tensor(1e-8))
        sol = solve(lambda t, y: -1e6 * (y - torch.cos(t)), [0.0], [0.0, 10.0], method=method, controller=Adaptive(1e-6, 1e-8))
        assert int(sol.stats.accepted) < 100
        assert abs(float(sol.ys[-1, 0]) - np.cos(10.0) - 1e-6 * np.sin(10.0)) < 5e-6


LINEAR = torch.tensor([[-2.0, 1.0, 0.0], [0.3, -50.0, 2.0], [1.0, 0.0, -0.1]], dtype=F64)


class TestIteration:
    @pytest.mark.parametrize("method", ALL, ids=repr)
    def test_a_linear_problem_takes_one_iteration(self, method: methods.Method) -> None:
        """One that solves it and one that sees so; where the step before has shown how fast it goes, the one alone."""
        f, y = function(lambda t, x: x @ LINEAR.T, 4), torch.randn(4, 3, dtype=F64)
        with torch.no_grad():
            carry = method.start(f, times(4, 0.0), y, f(times(4, 0.0), y))
            step = method.step(f, times(4, 0.0), times(4, 0.1), y, carry)
            assert step.spent.tolist() == [2 * method.evaluations] * 4
            tuned = method.tuned(1e-6, torch.tensor(1e-8))
            if tuned is not method:
                first = tuned.step(f, times(4, 0.0), times(4, 0.001), y, carry)
                second = tuned.step(f, times(4, 0.001), times(4, 0.002), first.y, first.carry)
                assert second.spent.tolist() == [method.evaluations] * 4
        z = 0.1 * torch.kron(torch.tensor(method.tableau.a, dtype=F64), LINEAR)
        k = torch.linalg.solve(torch.eye(len(z), dtype=F64) - z, (y @ LINEAR.T).repeat(1, method.evaluations).T)
        exact = y + 0.1 * torch.einsum("s,sdb->bd", torch.tensor(method.tableau.b, dtype=F64), k.view(-1, 3, 4))
        assert torch.allclose(step.y, exact, rtol=1e-13, atol=1e-14)

    @pytest.mark.parametrize("method", [methods.gauss4, methods.radau5.tuned(1e-5, torch.tensor(1e-7))], ids=repr)
    def test_a_row_does_not_feel_its_neighbours(self, method: methods.Method) -> None:
        """Alone and among 64 others its counts are the same; among other 64, its values to the last bit."""
        controller = Adaptive(1e-5, 1e-7) if method.error_order else Fixed(0.05)

        def run(mu: Tensor, y0: Tensor) -> tuple[Tensor, list[int]]:
            sol = solve(van_der_pol(mu), y0, [0.0, 0.7, 3.0], method=method, controller=controller, on_failure="report")
            return sol.ys[0], [int(getattr(sol.stats, name).flatten()[0]) for name in ("accepted", "rejected", "evaluations")]

        mu, y0 = torch.tensor([[20.0]], dtype=F64), torch.tensor([[2.0, 0.0]], dtype=F64)
        alone, counts = run(mu, y0)
        assert counts[0] > 15
        found = [
            run(torch.cat((mu, scale * torch.rand(64, 1, dtype=F64))), torch.cat((y0, torch.randn(64, 2, dtype=F64))))
            for scale in (5.0, 60.0)
        ]
        assert found[0][1] == found[1][1] == counts
        assert torch.equal(found[0][0], found[1][0])
        assert torch.allclose(found[0][0], alone, rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize(
        "method", [methods.gauss2, methods.radau5, methods.radau5.tuned(1e-5, torch.tensor(1e-7))], ids=repr
    )
    def test_equations_without_a_solution(self, method: methods.Method) -> None:
        """x' = x² from 1 has none over a step of 1, and no logarithm is negative; the neighbours are as without them."""

        def field(t: Tensor, y: Tensor) -> Tensor:
            return torch.where(torch.arange(3).view(-1, 1) == 2, torch.log(y - 1), y * y)

        f, sane = function(field, 3), torch.tensor([[0.1], [0.2], [3.0]], dtype=F64)
        bad = torch.tensor([[0.1], [1.0], [0.5]], dtype=F64)
        with torch.no_grad():
            wanted, found = (method.step(f, times(3, 0.0), times(3, 1.0), y) for y in (sane, bad))
        assert wanted.unsolved.tolist() == [False, False, False]
        assert found.unsolved.tolist() == [False, True, True]
        assert torch.equal(found.y[0], wanted.y[0])
        assert found.spent[0] == wanted.spent[0]

    def test_such_a_trajectory_fails_with_fixed_steps_and_shortens_adaptive_ones(self) -> None:
        y0 = torch.tensor([[0.1], [1.0]], dtype=F64)
        sol = solve(lambda t, y: y * y, y0, [0.0, 3.0], method="gauss2", controller=Fixed(3.0), on_failure="report")
        assert sol.ok.tolist() == [True, False]
        controller = Adaptive(1e-6, 1e-8, first_step=3.0)
        y0 = torch.tensor([[0.1], [0.33]], dtype=F64)
        sol = solve(lambda t, y: y * y, y0, [0.0, 3.0], method="radau5", controller=controller)
        assert sol.status.tolist() == [Status.OK, Status.OK]
        assert torch.allclose(sol.ys[:, -1], y0 / (1 - 3 * y0), rtol=1e-4)

    @pytest.mark.parametrize("method", [*ALL, methods.radau5.tuned(1e-5, torch.tensor(1e-7))], ids=repr)
    def test_a_step_of_no_length(self, method: methods.Method) -> None:
        """Changes nothing, and leaves the derivative for the next step."""
        f, y = function(van_der_pol(torch.tensor(30.0, dtype=F64)), 3), torch.randn(3, 2, dtype=F64)
        with torch.no_grad():
            first = method.step(f, times(3, 0.0), times(3, 0.01), y)
            for carry in (None, first.carry):
                step = method.step(f, times(3, 0.01), times(3, 0.01), first.y, carry)
                assert torch.equal(step.y, first.y)
                assert not step.unsolved.any()
                assert torch.isfinite(step.carry).all()
                assert all(torch.equal(error, torch.zeros_like(y)) for error in step.error)
                following = method.step(f, times(3, 0.01), times(3, 0.02), first.y, step.carry)
                again = method.step(f, times(3, 0.01), times(3, 0.02), first.y)
                assert torch.allclose(following.y, again.y, rtol=1e-6, atol=1e-8)

    def test_memory_shortens_the_iteration_and_nothing_else(self) -> None:
        tuned = methods.radau5.tuned(1e-8, torch.tensor(1e-10))
        f, y = function(van_der_pol(torch.tensor(2.0, dtype=F64)), 8), torch.randn(8, 2, dtype=F64)
        with torch.no_grad():
            first = tuned.step(f, times(8, 0.0), times(8, 0.02), y)
            warm = tuned.step(f, times(8, 0.02), times(8, 0.04), first.y, first.carry)
            again = tuned.step(f, times(8, 0.02), times(8, 0.04), first.y, first.carry)
            cold = tuned.step(f, times(8, 0.02), times(8, 0.04), first.y)
        assert torch.equal(warm.y, again.y)
        assert torch.allclose(warm.y, cold.y, rtol=1e-8, atol=1e-10)
        assert torch.allclose(warm.error[0], cold.error[0], rtol=1e-2, atol=1e-10)
        assert int(warm.spent.sum()) < int(cold.spent.sum())

    def test_the_iteration_starts_on_the_polynomial_of_the_step_before(self) -> None:
        """Where the derivative is a quadratic in time, it starts on the solution."""
        method, f, y = methods.radau5, function(lambda t, x: 3 * t**2 + t + 0 * x, 2), torch.zeros(2, 1, dtype=F64)
        with torch.no_grad():
            carry = method.step(f, times(2, 0.2), times(2, 0.5), y).carry
            equations = method._equations(f, times(2, 0.5), times(2, 1.3), y)
            start, _ = predict(method.tableau, equations, carry)
            assert torch.allclose(start, equations.rates(start), rtol=1e-13)

    def test_tuning_makes_another_method_where_there_are_tolerances_to_use(self) -> None:
        assert methods.gauss4.tuned(1e-6, torch.tensor(1e-9)) is methods.gauss4
        tuned = methods.radau5.tuned(1e-6, torch.tensor(1e-9))
        assert tuned is not methods.radau5
        assert tuned.name == "radau5"


class TestJacobian:
    POINT = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(1))

    def wanted(self) -> Tensor:
        return torch.stack(
            [torch.autograd.functional.jacobian(lambda x: self.field(times(1, 0.3), x), row) for row in self.POINT]
        )

    @staticmethod
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(y) * y.roll(1, -1) + t * y.prod(-1, keepdim=True)

    def test_is_the_jacobian(self) -> None:
        f = function(self.field, 4)
        wanted = self.wanted()
        assert torch.allclose(jacobian(f, times(4, 0.3), self.POINT), wanted, rtol=1e-14)
        with torch.inference_mode():
            assert torch.allclose(jacobian(f, times(4, 0.3), self.POINT), wanted, rtol=1e-14)

    def test_where_a_backward_cannot_be_mapped(self) -> None:
        class Doubled(torch.autograd.Function):
            @staticmethod
            def forward(ctx: object, x: Tensor) -> Tensor:
                return 2 * x

            @staticmethod
            def backward(ctx: object, *grads: Tensor) -> Tensor:
                return float(grads[0].sum() != torch.inf) * 2 * grads[0]

        f = function(lambda t, y: self.field(t, Doubled.apply(y) / 2), 4)
        assert torch.allclose(jacobian(f, times(4, 0.3), self.POINT), self.wanted(), rtol=1e-14)

    @pytest.mark.parametrize("keeps", [True, False])
    def test_of_a_field_that_differentiates(self, keeps: bool) -> None:
        """With its graph in reverse mode; by differences where it has cut the graph."""

        def force(t: Tensor, y: Tensor) -> Tensor:
            with torch.enable_grad():
                x = y if keeps and y.requires_grad else y.detach().requires_grad_()
                return -torch.autograd.grad((x**4).sum() / 4 + (x[..., :1] * x[..., 1:]).sum(), x, create_graph=keeps)[0]

        f = function(force, 4)
        f.differentiates = True
        with torch.no_grad():
            found = jacobian(f, times(4, 0.0), self.POINT)
        wanted = -torch.diag_embed(3 * self.POINT**2)
        wanted[:, 0, 1:] -= 1
        wanted[:, 1:, 0] -= 1
        assert torch.allclose(found, wanted, rtol=1e-13 if keeps else 1e-6, atol=1e-13 if keeps else 1e-6)

    def test_a_singular_matrix_spoils_its_own_row_only(self) -> None:
        matrix = torch.randn(3, 4, 4, dtype=F64)
        matrix[1] = 1.0
        right = torch.randn(3, 4, 2, dtype=F64)
        factors = factorize(matrix)
        for transposed, one in ((False, matrix), (True, matrix.mT)):
            found = factors.solve(right, transposed=transposed)
            assert not torch.isfinite(found[1]).all() or float(found[1].abs().max()) > 1e10
            assert torch.allclose(one[[0, 2]] @ found[[0, 2]], right[[0, 2]])


class TestAgainstSciPy:
    """Adaptive Radau on stiff batches: evaluations of each trajectory within twice SciPy's, and errors as small."""

    @staticmethod
    def compare(field: Field, single: list[tuple[object, object]], y0: list[float], end: float, atol: float) -> None:
        rtol = 1e-6
        method = methods.radau5.tuned(rtol, torch.tensor(atol, dtype=F64))
        start = torch.tensor([y0] * len(single), dtype=F64)
        sol = solve(field, start, [0.0, end], method=method, controller=Adaptive(rtol, atol))
        for row, (derivative, slope) in enumerate(single):
            theirs = solve_ivp(derivative, (0, end), y0, "Radau", rtol=rtol, atol=atol, jac=slope)
            tight = solve_ivp(derivative, (0, end), y0, "LSODA", rtol=1e-11, atol=atol * 1e-4, jac=slope).y[:, -1]
            scale = atol + rtol * np.abs(tight)
            ours, reference = (np.sqrt(np.mean(((y - tight) / scale) ** 2)) for y in (sol.ys[row, -1].numpy(), theirs.y[:, -1]))
            assert int(sol.stats.evaluations[row]) <= 1.3 * theirs.nfev
            assert ours < max(0.5, 3 * reference)

    def test_van_der_pol(self) -> None:
        mus = [1000.0, 500.0, 570.0, 640.0, 710.0, 780.0, 850.0, 930.0]

        def of(mu: float) -> tuple[object, object]:
            return (
                lambda t, y: [y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]],
                lambda t, y: [[0, 1], [-2 * mu * y[0] * y[1] - 1, mu * (1 - y[0] ** 2)]],
            )

        self.compare(van_der_pol(torch.tensor(mus, dtype=F64).unsqueeze(-1)), [of(mu) for mu in mus], [2.0, 0.0], 2000.0, 1e-9)

    def test_robertson(self) -> None:
        rates = torch.tensor([0.04, 3e7, 1e4], dtype=F64) * torch.exp(2 * torch.rand(8, 3, dtype=F64) - 1)

        def of(k1: float, k2: float, k3: float) -> tuple[object, object]:
            def derivative(t: float, y: np.ndarray) -> list[float]:
                a, b, c = y
                return [k3 * b * c - k1 * a, k1 * a - k3 * b * c - k2 * b * b, k2 * b * b]

            def slope(t: float, y: np.ndarray) -> list[list[float]]:
                _, b, c = y
                return [[-k1, k3 * c, k3 * b], [k1, -k3 * c - 2 * k2 * b, -k3 * b], [0, 2 * k2 * b, 0]]

            return derivative, slope

        self.compare(robertson(rates), [of(*row) for row in rates.tolist()], [1.0, 0.0, 0.0], 1e4, 1e-10)
