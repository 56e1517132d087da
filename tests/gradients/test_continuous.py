"""The continuous adjoint finds, to its own tolerances, the gradient that the exact methods find, and keeps only the outputs."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.errors import GradientError, InputError
from physnode.gradients import ContinuousAdjoint, Gradient, Replay
from physnode.live_bytes import LiveBytes
from physnode.solution import outputs_of

D = torch.float64
TIGHT = pn.Adaptive(1e-9, 1e-11)
RAGGED = [[0.0, 0.5, 1.0, 2.0, 2.0], [0.0, 0.3, 0.9, 1.2, 3.0], [0.1, 0.2, 0.35, 0.35, 0.35]]


class Network(pn.VectorField):
    """A driven rotation with a learned term, one parameter that is read twice, one that is not read, and one closed over."""

    def __init__(self, dtype: torch.dtype = D) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
        self.speed = nn.Parameter(torch.tensor(1.3, dtype=dtype))
        self.unused = nn.Parameter(torch.ones(3, dtype=dtype))
        gain = torch.tensor([0.4, -0.7], dtype=dtype, requires_grad=True)
        self.gain = lambda: gain

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        turned = torch.cat((y[..., 1:], -y[..., :1]), -1) * self.speed
        return turned + self.gain() * torch.cos(self.speed * t) + self.net(y)

    def wanted(self) -> tuple[Tensor, ...]:
        return (*self.net.parameters(), self.speed, self.gain())


class Oscillator(pn.SecondOrder):
    velocity_dependent = False

    def __init__(self) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(2.0, dtype=D))

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -self.stiffness * q


def states(rows: int = 3, dtype: torch.dtype = D) -> Tensor:
    return torch.randn(rows, 2, dtype=dtype, requires_grad=True)


def gradients(field: Any, y0: Tensor, ts: Any, by: tuple[Tensor, ...], gradient: Any, **options: Any) -> tuple[Tensor, ...]:
    """Of a loss that weighs all outputs differently."""
    ys = pn.solve(field, y0, ts, gradient=gradient, **{"controller": TIGHT, **options}).ys
    weights = torch.cos(torch.arange(ys.numel(), dtype=ys.dtype)).reshape(ys.shape)
    return torch.autograd.grad((weights * ys.square()).sum(), by)


def difference(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    """The largest, each relative to the largest entry of its gradient."""
    for other in wanted:
        assert other.abs().max() > 0
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in zip(found, wanted, strict=True))


def off(field: Any, y0: Tensor, ts: Any, by: tuple[Tensor, ...], gradient: Any = "continuous", **options: Any) -> float:
    """How far the continuous adjoint is from ACA."""
    wanted = gradients(field, y0, ts, by, "aca", **options)
    return difference(gradients(field, y0, ts, by, gradient, **options), wanted)


class TestAgreement:
    @pytest.mark.parametrize("t0", [None, 0.0, 0.6, 4.0])
    def test_with_aca_for_ragged_times_and_both_ways(self, t0: float | None) -> None:
        field, y0 = Network(), states()
        assert off(field, y0, torch.tensor(RAGGED), (y0, *field.wanted()), t0=t0) < 1e-7

    def test_with_epochs_of_each_trajectory(self) -> None:
        field, y0 = Network(), states()
        assert off(field, y0, torch.tensor(RAGGED), (y0, *field.wanted()), t0=torch.tensor([0.5, 3.0, 0.0])) < 1e-7

    def test_for_decreasing_times(self) -> None:
        field, y0 = Network(), states()
        assert off(field, y0, [1.0, 0.3, 0.0, -0.8], (y0, *field.wanted()), t0=0.2) < 1e-7

    @pytest.mark.parametrize("seminorm", [False, True])
    def test_with_the_formula_of_an_oscillator(self, seminorm: bool) -> None:
        """q = cos(ωt), L = q(T)²: dL/dω² = -(T / 2ω) sin(2ωT), dL/dq0 = 2 cos²(ωT)."""
        field, y0 = Oscillator(), torch.tensor([1.0, 0.0], dtype=D, requires_grad=True)
        q = pn.solve(field, y0, [0.0, 1.0, 3.0], gradient=ContinuousAdjoint(seminorm=seminorm), controller=TIGHT).ys[-1, 0]
        to_stiffness, to_y0 = torch.autograd.grad(q**2, (field.stiffness, y0))
        omega = torch.tensor(2.0, dtype=D).sqrt()
        assert torch.allclose(to_stiffness, -3 / (2 * omega) * torch.sin(6 * omega), rtol=1e-7)
        assert torch.allclose(to_y0[0], 2 * torch.cos(3 * omega) ** 2, rtol=1e-7)

    def test_in_float32(self) -> None:
        field, y0 = Network(torch.float32), states(dtype=torch.float32)
        found = gradients(field, y0, torch.tensor(RAGGED), (y0, *field.wanted()), "continuous", controller=pn.Adaptive(1e-5))
        wanted = gradients(field, y0, torch.tensor(RAGGED), (y0, *field.wanted()), "aca", controller=pn.Adaptive(1e-5))
        assert all(one.dtype == torch.float32 for one in found)
        assert difference(found, wanted) < 1e-3

    def test_of_a_float64_parameter_under_float32_states(self) -> None:
        """Its gradient is accumulated in float64: a sum of 200 terms of about 0.7 keeps more digits than float32 has."""
        k = torch.tensor(0.0, dtype=D, requires_grad=True)
        ts = torch.linspace(0, 1, 201, dtype=D)
        ys = pn.solve(lambda t, y: k.float() * y, torch.full((1,), 0.7), ts, gradient="continuous").ys
        (found,) = torch.autograd.grad(ys.sum(), k)
        assert found.dtype == D
        value = float(torch.tensor(0.7, dtype=torch.float32))
        assert abs(float(found) / (value * float(ts.sum())) - 1) < 1e-8

    def test_for_a_forward_method_of_another_family(self) -> None:
        field, y0 = Oscillator(), states()
        wanted = gradients(field, y0, [0.0, 0.7, 2.0], (y0, field.stiffness), "aca")
        for method, controller in (("radau5", pn.Adaptive(1e-8)), ("dprkn6", TIGHT), ("kahan_li8", pn.Fixed(0.05))):
            options = {"method": method, "controller": controller}
            assert (
                difference(gradients(field, y0, [0.0, 0.7, 2.0], (y0, field.stiffness), "continuous", **options), wanted) < 1e-6
            )

    def test_for_complex_states_and_parameters(self) -> None:
        k = torch.tensor([0.1 + 1j, 0.7j], dtype=torch.complex128, requires_grad=True)
        y0 = torch.tensor([[1.0 + 0.5j, 0.3]], dtype=torch.complex128, requires_grad=True)
        found, wanted = (
            torch.autograd.grad(
                (pn.solve(lambda t, y: k * y, y0, [0.0, 0.5, 1.5], gradient=how, controller=TIGHT).ys ** 2).real.sum(), (k, y0)
            )
            for how in ("continuous", "aca")
        )
        assert difference(found, wanted) < 1e-7

    def test_with_torchdiffeq(self) -> None:
        torchdiffeq = pytest.importorskip("torchdiffeq")
        field, y0, ts = Network(), states(), torch.tensor([0.0, 0.5, 2.0], dtype=D)
        by = (y0, *field.wanted())
        ys = torchdiffeq.odeint_adjoint(lambda t, y: field(t, y), y0, ts, rtol=1e-9, atol=1e-11, adjoint_params=by[1:])
        wanted = torch.autograd.grad(ys.square().sum(), by)
        ys = pn.solve(field, y0, ts, gradient="continuous", controller=TIGHT).ys
        assert difference(torch.autograd.grad(ys.square().sum(), by), wanted) < 1e-6


class TestAccuracy:
    def test_falls_with_the_tolerance(self) -> None:
        field, y0 = Network(), states()
        by = (y0, *field.wanted())
        wanted = gradients(field, y0, torch.tensor(RAGGED), by, "aca", controller=pn.Adaptive(1e-12, 1e-14))
        errors = [
            difference(
                gradients(field, y0, torch.tensor(RAGGED), by, ContinuousAdjoint(controller=pn.Adaptive(rtol, rtol))), wanted
            )
            for rtol in (1e-3, 1e-5, 1e-7, 1e-9)
        ]
        for rtol, error in zip((1e-3, 1e-5, 1e-7, 1e-9), errors, strict=True):
            assert error < 20 * rtol
        assert errors[0] > 100 * errors[2] > 1e4 * errors[3] / 10

    def test_has_a_method_and_a_controller_of_its_own(self) -> None:
        field, y0 = Network(), states()
        by = (y0, *field.wanted())
        wanted = gradients(field, y0, [0.0, 1.0], by, "aca")
        errors = [
            difference(gradients(field, y0, [0.0, 1.0], by, ContinuousAdjoint("rk4", pn.Fixed(dt))), wanted)
            for dt in (0.05, 0.025)
        ]
        assert 12 < errors[0] / errors[1] < 20

    def test_is_of_the_order_of_fixed_steps_where_times_are_ragged(self) -> None:
        """No trajectory takes a step longer than ``dt``: the error is no larger than that of each one alone."""
        field, y0 = Network(), states()
        how = ContinuousAdjoint("rk4", pn.Fixed(0.05))
        together = gradients(field, y0, torch.tensor(RAGGED), (y0,), how)[0]
        exact = gradients(field, y0, torch.tensor(RAGGED), (y0,), "aca")[0]
        assert 0 < (together - exact).abs().max() < 1e-4 * exact.abs().max()

    def test_does_not_depend_on_the_scale_of_the_loss(self) -> None:
        field, y0 = Network(), states()
        ys = pn.solve(field, y0, [0.0, 1.0, 2.0], gradient="continuous").ys
        one = torch.autograd.grad(ys.square().sum(), (y0, field.speed), retain_graph=True)
        small = torch.autograd.grad(2.0**-60 * ys.square().sum(), (y0, field.speed))
        assert torch.equal(one[0] * 2.0**-60, small[0])
        assert torch.equal(one[1] * 2.0**-60, small[1])

    @pytest.mark.parametrize("unit", [1e-7, 1.0, 1e7])
    def test_does_not_depend_on_the_unit_of_the_state(self, unit: float) -> None:
        y0 = torch.tensor([[2 * unit, unit]], dtype=D, requires_grad=True)
        k = torch.tensor(0.5 / unit, dtype=D, requires_grad=True)
        field = lambda t, y: torch.cat((y[..., 1:], -torch.sin(k * y[..., :1]) / k), -1)  # noqa: E731
        assert off(field, y0, [0.0, 1.0, 4.0], (y0, k), controller=pn.Adaptive(1e-7)) < 2e-5

    @staticmethod
    def error(how: Gradient, unit: float) -> float:
        """Of the gradient by a parameter that enters through a fast drive: y hardly moves, but that gradient does."""
        k = torch.tensor(1e-3 / unit, dtype=D, requires_grad=True)
        y0 = torch.ones(1, dtype=D)
        ys = pn.solve(lambda t, y: unit * k * torch.cos(40 * t) + 0 * y, y0, [0.0, 1.3], gradient=how).ys
        (found,) = torch.autograd.grad(ys[-1].sum(), k)
        return float((found / (unit * torch.sin(torch.tensor(52.0, dtype=D)) / 40) - 1).abs())

    @pytest.mark.parametrize("unit", [1.0, 1e-9])
    def test_of_parameters_is_controlled_unless_told_otherwise(self, unit: float) -> None:
        assert self.error(ContinuousAdjoint(), unit) < 1e-5
        assert self.error(ContinuousAdjoint(seminorm=True), unit) > 1e-4

    def test_starts_anew_from_each_output(self) -> None:
        """A motion that is damped by e^50 can be followed backward from one output to the one before, not as a whole."""
        k = torch.tensor(1.0, dtype=D, requires_grad=True)
        field = lambda t, y: 10 * (k * torch.cos(t) - y**3)  # noqa: E731
        y0, ts = torch.tensor([0.9], dtype=D, requires_grad=True), torch.linspace(0.0, 2.0, 21, dtype=D)
        assert off(field, y0, ts, (y0, k)) < 1e-5


class TestFields:
    def test_gives_zeros_to_a_parameter_that_is_not_read(self) -> None:
        field, y0 = Network(), states()
        pn.solve(field, y0, [0.0, 1.0], gradient="continuous").ys.sum().backward()
        assert torch.equal(field.unused.grad, torch.zeros(3, dtype=D))
        assert field.speed.grad.abs() > 0

    def test_finds_args_and_signals(self) -> None:
        y0, drag = states(), torch.tensor([[0.1], [0.5], [0.2]], dtype=D, requires_grad=True)
        held, joined = (torch.randn(3, 5, dtype=D, requires_grad=True) for _ in range(2))
        times = torch.tensor([0.0, 0.4, 0.7, 1.1, 3.0], dtype=D)
        args = {"drag": drag, "push": pn.Signal(times, held), "pull": pn.Signal(times, joined, "linear")}

        def field(t: Tensor, y: Tensor, args: Any) -> Tensor:
            return torch.cat((y[..., 1:], -torch.sin(y[..., :1]) + args["push"]), -1) - args["drag"] * y + args["pull"]

        by = (y0, drag, held, joined)
        assert off(field, y0, torch.tensor(RAGGED)[:, 1:], by, t0=0.05, args=args, controller=pn.Adaptive(1e-7, 1e-9)) < 1e-5

    @pytest.mark.parametrize("dtype", [torch.float32, D])
    def test_is_seen_from_the_own_side_of_its_jumps(self, dtype: torch.dtype) -> None:
        """y' = a before t = 1 and b y after: with y(0) = 1, y(t) = (1 + a) e^{b (t - 1)}, with outputs on the jump too."""
        a, b = (torch.tensor(value, dtype=dtype, requires_grad=True) for value in (0.5, -0.3))
        y0 = torch.ones(2, 1, dtype=dtype, requires_grad=True)
        field = lambda t, y: torch.where(t < 1.0, a + 0 * y, b * y)  # noqa: E731
        ts = torch.tensor([[0.3, 1.0, 3.0], [0.1, 0.2, 2.0]], dtype=D)
        how = ContinuousAdjoint("rk4", pn.Fixed(0.7))
        ys = pn.solve(field, y0, ts, t0=0.0, jump_times=[1.0], gradient=how, controller=pn.Fixed(0.01), method="rk4").ys
        to_a, to_b, to_y0 = torch.autograd.grad(ys[:, -1].sum(), (a, b, y0))
        growth = torch.exp(-0.3 * torch.tensor([2.0, 1.0], dtype=D))
        assert float(to_a) == pytest.approx(float(growth.sum()), rel=3e-4)  # steps of 0.7; across the jump it would be 10 %
        assert float(to_b) == pytest.approx(float((1.5 * growth * torch.tensor([2.0, 1.0])).sum()), rel=3e-4)
        assert torch.allclose(to_y0[:, 0].double(), growth, rtol=3e-4)

    def test_steps_end_on_the_jump_of_each_trajectory(self) -> None:
        """y' = a before a time of each row's own, 0 after: a step of rk4 that saw the other side would be off by 5 %."""
        rows = 40
        switch = 0.3 + torch.rand(rows, 1, dtype=D)
        t0, ts = 0.2 * torch.rand(rows, dtype=D), 1.4 + torch.rand(rows, 1, dtype=D)
        a = torch.full((rows, 1), 0.5, dtype=D, requires_grad=True)
        options = {"args": {"a": a, "switch": switch}, "jump_times": switch, "method": "rk4", "controller": pn.Fixed(5.0)}
        field = lambda t, y, args: torch.where(t < args["switch"], args["a"] + 0 * y, 0 * y)  # noqa: E731
        ys = pn.solve(field, torch.zeros(rows, 1, dtype=D), ts, t0=t0, gradient="continuous", **options).ys
        (found,) = torch.autograd.grad(ys.sum(), a)
        assert torch.allclose(found, switch - t0.unsqueeze(-1), rtol=1e-12)

    def test_computed_beforehand_from_another(self) -> None:
        log_mass = torch.tensor(-0.3, dtype=D, requires_grad=True)
        mass, y0 = log_mass.exp(), states()
        ys = {
            how: pn.solve(lambda t, y: mass * torch.sin(y) + log_mass, y0, [0.0, 1.0], gradient=how, controller=TIGHT).ys
            for how in ("aca", "continuous")
        }
        wanted, found = (torch.autograd.grad(value.sum(), log_mass, retain_graph=True) for value in ys.values())
        assert difference(found, wanted) < 1e-7

    def test_that_read_a_tensor_later_are_refused(self) -> None:
        late = torch.tensor(0.5, dtype=D, requires_grad=True)

        def field(t: Tensor, y: Tensor) -> Tensor:
            return y * late if float(t.max()) > 0.5 else y

        y0 = states(1)
        ys = pn.solve(field, y0, [0.0, 1.0], gradient="continuous").ys
        with pytest.raises(GradientError, match="first call did not read"):
            ys.sum().backward()


class TestFailures:
    def test_leave_the_gradients_of_others_alone(self) -> None:
        """One row's derivative is not a number at its start, one row's field is so from t = 0.5 on, whatever the state."""
        k = torch.tensor(0.8, dtype=D, requires_grad=True)
        ends = torch.tensor([[9.0], [0.5], [9.0], [9.0]], dtype=D)
        field = lambda t, y, args: k * torch.sqrt(y) * torch.sqrt(args["ends"] - t)  # noqa: E731
        y0 = torch.tensor([[-1.0], [2.8], [0.5], [0.7]], dtype=D, requires_grad=True)
        ts = [0.0, 1.0, 2.0]
        options = {"controller": TIGHT, "on_failure": "report"}
        sol = pn.solve(field, y0, ts, gradient="continuous", args={"ends": ends}, **options)
        assert sol.ok.tolist() == [False, False, True, True]
        to_k, to_y0 = torch.autograd.grad(torch.nan_to_num(sol.ys).square().sum(), (k, y0))
        well = pn.solve(field, y0[2:], ts, gradient="aca", args={"ends": ends[2:]}, **options).ys
        want_k, want_y0 = torch.autograd.grad(well.square().sum(), (k, y0))
        assert torch.allclose(to_k, want_k, rtol=1e-7)
        assert torch.allclose(to_y0, want_y0, rtol=1e-7)
        assert want_y0[2:].abs().min() > 0

    def test_of_all_trajectories_give_zeros(self) -> None:
        k = torch.tensor(1.0, dtype=D, requires_grad=True)
        sol = pn.solve(lambda t, y: k * y**2, [[1.0]], [0.0, 2.0], gradient="continuous", on_failure="report")
        assert not bool(sol.ok)
        assert float(torch.autograd.grad(torch.nan_to_num(sol.ys).sum(), k)[0]) == 0

    def test_of_the_loss_stay_visible(self) -> None:
        y0 = states(1)
        ys = pn.solve(lambda t, y: -y, y0, [0.0, 1.0], gradient="continuous").ys
        assert bool(torch.isnan(torch.autograd.grad((ys * torch.nan).sum(), y0)[0]).all())

    def test_of_the_backward_solve_are_told(self) -> None:
        y0 = states(1)
        ys = pn.solve(lambda t, y: torch.sin(30 * t) * y, y0, [0.0, 9.0], gradient=ContinuousAdjoint(max_steps=20)).ys
        with pytest.raises(GradientError, match=r"from the output at t = 9 to t = 0, failed: .*max_steps"):
            ys.sum().backward()

    def test_where_the_motion_is_unstable_backward(self) -> None:
        y0 = states(1)
        ys = pn.solve(lambda t, y: -50 * (y - torch.cos(t)) ** 3, y0, [0.0, 30.0], gradient="continuous", method="radau5").ys
        with pytest.raises(GradientError, match='gradient="aca"'):
            ys.sum().backward()


class TestRefusals:
    def test_of_events(self) -> None:
        event = pn.Event(lambda t, y: y[..., :1])
        with pytest.raises(GradientError, match='"aca", "symplectic" or "direct"'):
            pn.solve(lambda t, y: -y, states(), [0.0, 1.0], events=event, gradient="continuous")

    def test_of_a_second_derivative(self) -> None:
        y0 = states()
        ys = pn.solve(lambda t, y: torch.sin(y), y0, [0.0, 1.0], gradient="continuous").ys
        with pytest.raises(GradientError, match=r'create_graph=True.*"aca", "symplectic"'):
            torch.autograd.grad(ys.sum(), y0, create_graph=True)

    def test_of_a_parameter_edited_since_the_solve(self) -> None:
        field = Network()
        ys = pn.solve(field, states(), [0.0, 1.0], gradient="continuous").ys
        with torch.no_grad():
            field.speed.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            ys.sum().backward()

    def test_of_methods_and_controllers(self) -> None:
        for method in ("radau5", "leapfrog", "dprkn6", "gauss_radau15"):
            with pytest.raises(InputError, match=f"explicit Runge-Kutta method; found {method}"):
                ContinuousAdjoint(method)
        with pytest.raises(InputError, match="no error estimate"):
            pn.solve(lambda t, y: -y, states(), [0.0, 1.0], gradient=ContinuousAdjoint("rk4"))
        with pytest.raises(InputError, match="controller must be"):
            ContinuousAdjoint(controller=0.1)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="max_steps"):
            ContinuousAdjoint(max_steps=0)


class TestStorage:
    @staticmethod
    def peak(steps: int) -> int:
        k, y0 = torch.tensor(0.5, dtype=D, requires_grad=True), states(16)
        options = {"method": "midpoint", "controller": pn.Fixed(1 / steps)}
        ys = pn.solve(lambda t, y: k * torch.sin(y), y0, [0.0, 0.1, 1.0], gradient="continuous", **options).ys
        loss = ys.square().sum()
        with LiveBytes() as live:
            loss.backward()
        return live.peak

    def test_does_not_grow_with_the_steps(self) -> None:
        few, many = self.peak(50), self.peak(500)
        assert few > 16 * 2 * 8
        assert many <= 1.02 * few

    def test_of_parameters_is_a_few_times_their_size(self) -> None:
        matrix = (0.01 * torch.randn(200, 200, dtype=D)).requires_grad_()
        ys = pn.solve(lambda t, y: y @ matrix, torch.ones(1, 200, dtype=D), [0.0, 0.3, 2.0], gradient="continuous").ys
        with LiveBytes() as live:
            ys.square().sum().backward()
        assert live.peak < 28 * 8 * matrix.numel()

    def test_ys_may_be_edited_by_their_owner(self) -> None:
        field, y0 = Network(), states()
        wanted = gradients(field, y0, [0.0, 1.0], (y0,), "continuous")[0]
        ys = pn.solve(field, y0, [0.0, 1.0], gradient="continuous", controller=TIGHT).ys
        weights = torch.cos(torch.arange(ys.numel(), dtype=D)).reshape(ys.shape)
        owed = 2 * weights * ys.detach()
        ys.data.zero_()
        assert torch.equal(torch.autograd.grad(ys, y0, owed)[0], wanted)


def replay_of(field: Callable[[Tensor, Tensor], Tensor], y0: Tensor, ts: list[float], t0: float) -> tuple[Replay, Tensor]:
    sol = pn.solve(field, y0, ts, t0=t0, controller=TIGHT, dense=True)
    return copy(sol.pieces[0].replay), sol.ys.detach()


class TestReplays:
    def test_at_other_times_in_any_order(self) -> None:
        field, y0 = Network(), states()
        by, grads = (y0, *field.wanted()), []
        for how in ("aca", "continuous"):
            sol = pn.solve(field, y0, [0.0, 2.0], t0=0.5, gradient=how, dense=True, controller=TIGHT)
            grads.append(torch.autograd.grad(sol.at([1.3, 0.2, 0.5, 1.9, 0.4]).square().sum(), by))
        assert difference(grads[1], grads[0]) < 1e-7

    def test_times_get_gradients(self) -> None:
        """Held against differences of the solve as a function of its start and output times."""
        field = lambda t, y: torch.cat((y[..., 1:], -torch.sin(y[..., :1]) * t), -1)  # noqa: E731
        y0 = states(2)
        ts, t0 = torch.tensor([[0.5, 1.0, 2.0], [0.5, 0.8, 1.5]], dtype=D), torch.tensor([0.2, 0.5], dtype=D)
        sol = pn.solve(field, y0, ts, t0=t0, controller=TIGHT, dense=True)
        weights = torch.randn(2, 3, 2, dtype=D)

        def loss(ts: Tensor, t0: Tensor) -> Tensor:
            return (weights * pn.solve(field, y0.detach(), ts, t0=t0, controller=pn.Adaptive(1e-12, 1e-14)).ys).sum()

        replay, moving = copy(sol.pieces[0].replay), SimpleNamespace(t0=t0.clone(), times=ts.clone())
        moving.t0.requires_grad_()
        moving.times.requires_grad_()
        object.__setattr__(replay, "moving", moving)
        ys = ContinuousAdjoint().attach(replay, outputs_of(sol.ys.detach(), None), y0).ys
        to_t0, to_times = torch.autograd.grad((weights * ys).sum(), (moving.t0, moving.times))
        step = 1e-4
        for row in range(2):
            for column in range(3):
                if (row, column) != (1, 0):  # the start itself
                    change = torch.zeros_like(ts)
                    change[row, column] = step
                    slope = (loss(ts + change, t0) - loss(ts - change, t0)) / (2 * step)
                    assert float(to_times[row, column]) == pytest.approx(float(slope), rel=1e-5, abs=1e-7)
        assert float(to_times[1, 0]) == 0
        for row in range(2):  # an output at the start stays there
            change = torch.zeros_like(t0).index_fill(0, torch.tensor(row), step)
            along = torch.where(ts == t0.unsqueeze(-1), change.unsqueeze(-1), 0.0)
            slope = (loss(ts + along, t0 + change) - loss(ts - along, t0 - change)) / (2 * step)
            assert float(to_t0[row]) == pytest.approx(float(slope), rel=1e-5)

    def test_evaluations_are_counted(self) -> None:
        calls = []

        def field(t: Tensor, y: Tensor) -> Tensor:
            calls.append(1)
            return torch.sin(y) * torch.cos(t)

        y0 = states()
        replay, ys = replay_of(field, y0, [0.3, 1.0, 2.0], 0.0)
        counts: list[int] = []
        object.__setattr__(replay, "cost", SimpleNamespace(add=counts.append))
        found = ContinuousAdjoint().attach(replay, outputs_of(ys, None), y0).ys
        calls.clear()
        found.sum().backward()
        assert counts == [len(calls)]
        assert counts[0] > 20
