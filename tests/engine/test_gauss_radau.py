"""The 15th-order Gauss-Radau integrator: its tables, its accuracy on orbits, its derivatives."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from physnode import methods
from physnode.engine.coefficients.gauss_radau import NODES, check_nodes, tables
from physnode.engine.controllers import Adaptive, Fixed
from physnode.engine.families.gauss_radau_sweeps import RadauPath, weigh
from physnode.engine.field_function import FieldFunction
from physnode.errors import InputError, SolveError
from physnode.fields import SecondOrder
from physnode.solve import solve
from physnode.systems import HarmonicOscillator, Kepler, Pendulum, ThreeBody

METHOD = methods.gauss_radau15
TABLE = tables(torch.float64, torch.device("cpu"))


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Driven(SecondOrder):
    """Damped and driven, so that time, position and velocity all matter."""

    def __init__(self) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(tensor(1.7))

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -self.stiffness * torch.sin(q) - 0.2 * v * v.cos().flip(-1) + 0.4 * torch.cos(2 * t) * q.flip(-1)


STATES = tensor([[0.5, 0.3, 0.1, -0.2], [-0.4, 0.2, 1.3, 0.6], [0.9, 0.0, -0.1, 0.2]])


class TestTables:
    def test_quadrature_has_order_15(self) -> None:
        for power in range(1, 15):
            nodes = tensor(NODES[1:]) ** power
            assert abs(float(TABLE.velocity_end @ nodes) - 1 / (power + 1)) < 1e-16
            if power < 14:
                assert abs(float(TABLE.position_end @ nodes) - 1 / ((power + 1) * (power + 2))) < 1e-16

    def test_rounded_weights_take_no_energy(self) -> None:
        """The first moment of the weights is exact far beyond the last place: it is what makes energy drift."""
        nodes = [Fraction(node) for node in NODES]
        moment = sum(Fraction(float(w)) * c for w, c in zip(TABLE.velocity_end, nodes[1:], strict=True))
        exact = Fraction(0)
        for j in range(1, 8):  # of the quadrature through these very nodes
            others = [c for i, c in enumerate(nodes) if i != j]
            polynomial = [Fraction(1)]
            for c in others:
                polynomial = [a - c * b for a, b in zip([Fraction(0), *polynomial], [*polynomial, Fraction(0)], strict=True)]
            scale = sum(value * nodes[j] ** power for power, value in enumerate(polynomial))
            exact += nodes[j] * sum(value / (power + 1) for power, value in enumerate(polynomial)) / scale
        assert abs(float(moment - exact)) < 3e-19

    def test_accelerations_and_series_are_one(self) -> None:
        """Nodes and end by A, Ā, w, w̄ in accelerations, and by Everhart's series of powers."""
        d = torch.randn(7, 3, 2, dtype=torch.float64) * tensor(NODES[1:]).view(7, 1, 1)
        # rounding in the series, whose coefficients are large and cancel
        series = torch.tensordot(TABLE.series, d, 1)
        for c, velocity, position in [
            *zip(NODES[1:], TABLE.velocity, TABLE.position, strict=True),
            (1.0, TABLE.velocity_end, TABLE.position_end),
        ]:
            powers = tensor([c ** (k + 2) / (k + 2) for k in range(7)])
            assert (weigh(velocity, d) - weigh(powers, series)).abs().max() < 1e-14 * float(series.abs().max())
            powers = tensor([c ** (k + 3) / ((k + 2) * (k + 3)) for k in range(7)])
            assert (weigh(position, d) - weigh(powers, series)).abs().max() < 1e-14 * float(series.abs().max())

    @pytest.mark.parametrize("wrong", [3, 7])
    def test_wrong_nodes_are_refused(self, wrong: int) -> None:
        nodes = [node + 1e-13 * (i == wrong) for i, node in enumerate(NODES)]
        with pytest.raises(InputError, match="from a root"):
            check_nodes(nodes)
        with pytest.raises(InputError, match="eight that increase"):
            check_nodes(NODES[:7])


class TestOrbits:
    """Against reference integration in quadruple precision, or Kepler's equation in 40 digits."""

    PERIOD = 6.3259139829262116775890003339671
    EIGHT = tensor(
        [-1, 0, 1, 0, 0, 0] + [0.3471168881189269, 0.5327249453880302] * 2 + [-0.6942337762378539, -1.0654498907760605]
    )

    def test_figure_eight(self) -> None:
        """Five periods here; over 100, in half a minute, the error is 1e-12."""
        with torch.no_grad():
            sol = solve(
                ThreeBody((1, 1, 1)), self.EIGHT, [0.0, 5 * self.PERIOD], method=METHOD, controller=Adaptive(1e-7, 1e-10)
            )
        assert (sol.ys[-1] - self.EIGHT)[:6].abs().max() < 1e-12

    def test_pythagorean_problem(self) -> None:
        y0 = tensor([1, 3, -2, -1, 1, -1] + [0] * 6)
        end = [3.004292636696399, 0.5119252350246859, -1.3886265375108954, -0.47047605025272217]
        end += [-0.6916743520091232, 0.06922569918736622]
        with torch.no_grad():
            sol = solve(ThreeBody((3, 4, 5)), y0, [0.0, 20.0], method=METHOD, controller=Adaptive(1e-6, 1e-9))
        assert (sol.ys[-1, :6] - tensor(end)).abs().max() < 1e-6

    def test_eccentric_kepler(self) -> None:
        y0 = tensor([0.1, 0.0, 0.0, 4.35889894354067355223698198386])
        wanted = [
            [-1.18718846634586338584586020395, 0.417527638739764232330768593774, -0.761142010521491357, -0.0994720478702854736],
            [-1.85385370940557919579331276446, -0.130885404839925551198243071158, 0.161569452558431339, -0.223719276791897089],
        ]
        with torch.no_grad():
            sol = solve(Kepler(1.0), y0, [0.0, 1.0, 10.0], method=METHOD, read_out="restep", controller=Adaptive(1e-8, 1e-11))
        errors = (sol.ys[1:] - tensor(wanted)).abs().amax(-1)
        assert (errors < tensor([1e-13, 1e-13])).all(), errors

    def test_rounding_is_all_that_is_lost(self) -> None:
        """Energy of a planet over ten revolutions, at the tolerance that is documented to mean rounding."""
        field = Kepler(1.0)
        y0 = field.initial_states(3)
        with torch.no_grad():
            sol = solve(field, y0, [0.0, 60.0], method=METHOD, read_out="restep", controller=Adaptive(1e-9, 1e-12))
            energy = field.energy(tensor([0.0]), sol.ys)
        assert ((energy[:, -1] - energy[:, 0]) / energy[:, 0]).abs().max() < 3e-15


class TestSteps:
    def test_a_row_does_not_depend_on_its_batch(self) -> None:
        field = Driven()
        y0 = torch.cat((STATES, 100 * STATES[:1]))  # one that is hard to solve beside those that are not
        with torch.no_grad():
            together = solve(field, y0, [0.0, 3.0], method=METHOD, controller=Adaptive(1e-6, 1e-9))
            for row in range(4):
                alone = solve(field, y0[row : row + 1], [0.0, 3.0], method=METHOD, controller=Adaptive(1e-6, 1e-9))
                assert torch.equal(alone.ys[0], together.ys[row])
                assert int(alone.stats.evaluations[0]) == int(together.stats.evaluations[row])

    def test_a_step_of_no_length_is_harmless(self) -> None:
        f = FieldFunction(Driven(), (3,), torch.float64)
        t = tensor([0.0, 1.0, 2.0])
        with torch.no_grad():
            first = METHOD.step(f, t, t + 0.3, STATES)
            rest = METHOD.step(f, t, t, STATES, first.carry)
        assert torch.equal(rest.y, STATES)
        assert torch.equal(rest.error[0], torch.zeros_like(STATES))
        assert rest.carry is not None
        assert torch.isfinite(rest.carry).all()

    def test_prediction_saves_sweeps(self) -> None:
        f = FieldFunction(Pendulum(1.0), (1,), torch.float64)
        y, t = tensor([[1.0, 0.2]]), tensor([0.0])
        with torch.no_grad():
            carry = METHOD.start(f, t, y, f(t, y))
            spent = []
            for _ in range(4):
                step = METHOD.step(f, t, t + 0.3, y, carry)
                assert step.spent is not None
                spent.append(int(step.spent))
                t, y, carry = t + 0.3, step.y, step.carry
        assert spent[-1] < spent[0]

    def test_the_change_is_not_rounded_to_the_state(self) -> None:
        f = FieldFunction(Pendulum(1.0), (1,), torch.float64)
        y = tensor([[1e-3, 1e8]])
        with torch.no_grad():
            step = METHOD.step(f, tensor([0.0]), tensor([1e-12]), y)
        assert step.change is not None
        assert float(step.change[0, 1]) == pytest.approx(-1e-12 * float(torch.sin(tensor(1e-3 + 0.5e-4))), rel=1e-3)

    def test_a_step_far_too_long_is_unsolved(self) -> None:
        f = FieldFunction(HarmonicOscillator(1.0), (2,), torch.float64)
        t = tensor([0.0, 0.0])
        with torch.no_grad():
            step = METHOD.step(f, t, tensor([0.5, 30.0]), STATES[:2, :2])
        assert step.unsolved is not None
        assert step.unsolved.tolist() == [False, True]
        with pytest.raises(SolveError):
            solve(HarmonicOscillator(1.0), [1.0, 0.0], [0.0, 90.0], method=METHOD, controller=Fixed(30.0))

    def test_fields_of_first_order_are_refused(self) -> None:
        with pytest.raises(InputError, match="needs a SecondOrder field; found FunctionField"):
            solve(lambda t, y: -y, [1.0, 0.0], [0.0, 1.0], method=METHOD)


class TestDerivatives:
    def test_step_is_differentiable_twice_also_in_time(self) -> None:
        field = Driven()
        f = FieldFunction(field, (1,), torch.float64)

        def end(t: Tensor, t_end: Tensor, y: Tensor, stiffness: Tensor) -> Tensor:
            return torch.func.functional_call(_Ends(f), {"field.stiffness": stiffness}, (t, t_end, y))

        inputs = (tensor([0.2]), tensor([0.9]), STATES[1:2].clone(), tensor(1.7))
        inputs = tuple(value.requires_grad_() for value in inputs)
        assert torch.autograd.gradcheck(end, inputs, rtol=1e-7, atol=1e-8)
        assert torch.autograd.gradgradcheck(end, inputs, rtol=1e-6, atol=1e-7, fast_mode=True)

    def test_time_derivative_is_the_field(self) -> None:
        """To rounding: the derivative of the end state by the end time is the path's own slope there."""
        f = FieldFunction(Driven(), (3,), torch.float64)
        t_end = torch.full((3,), 0.4, dtype=torch.float64, requires_grad=True)
        y = METHOD.step(f, torch.zeros(3, dtype=torch.float64), t_end, STATES).y
        slope = torch.stack([torch.autograd.grad(y[:, i].sum(), t_end, retain_graph=True)[0] for i in range(4)], -1)
        assert (slope - f(t_end, y)).abs().max() < 1e-9

    def test_sweeps_solve_their_equations(self) -> None:
        with torch.no_grad():
            path = RadauPath(FieldFunction(Driven(), (3,), torch.float64), tensor([0.0] * 3), tensor([0.5] * 3), STATES)
            found = path.solve(torch.zeros(7, 3, 2, dtype=torch.float64))
            again, moves, _ = path.sweep(found.d)
        assert found.solved.all()
        assert moves.abs().max() < 1e-15
        assert (again - found.d).abs().max() < 1e-15


class _Ends(nn.Module):
    def __init__(self, f: FieldFunction) -> None:
        super().__init__()
        self.f, self.field = f, f.field

    def forward(self, t: Tensor, t_end: Tensor, y: Tensor) -> Tensor:
        return METHOD.step(self.f, t, t_end, y).y
