"""Inputs of a solve: signals between samples and at them, jumps seen from their own side, gradients, constants, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

import physnode as pn
from physnode.errors import InputError
from physnode.signals import spline_slopes

TIMES = torch.tensor([0.0, 0.3, 0.5, 1.2, 1.9, 2.0], dtype=torch.float64)
VALUES = torch.tensor([0.4, -1.0, 2.0, 0.3, 0.3, -0.7], dtype=torch.float64)
HOLDS = ["previous", "linear", "cubic"]


def integral_of(hold: str) -> Callable[[float], float]:
    """∫ u dt from 0, in closed form."""
    if hold == "cubic":
        spline = CubicSpline(TIMES.numpy(), VALUES.numpy()).antiderivative()
        return lambda t: float(spline(t))
    fine = np.linspace(0, 2, 2_000_001)
    if hold == "previous":
        u = VALUES.numpy()[np.clip(np.searchsorted(TIMES.numpy(), 0.5 * (fine[1:] + fine[:-1]), side="right") - 1, 0, None)]
        total = np.concatenate(([0.0], np.cumsum(u * np.diff(fine))))
    else:
        u = np.interp(fine, TIMES.numpy(), VALUES.numpy())
        total = np.concatenate(([0.0], np.cumsum(0.5 * (u[1:] + u[:-1]) * np.diff(fine))))
    return lambda t: float(np.interp(t, fine, total))


def driven(t: Tensor, y: Tensor, args: Any) -> Tensor:
    """A damped pendulum with torque u."""
    return torch.cat((y[..., 1:], -torch.sin(y[..., :1]) - 0.1 * y[..., 1:] + args["u"]), -1)


def tight() -> pn.Adaptive:
    return pn.Adaptive(1e-10, 1e-12)


@pytest.mark.parametrize("hold", HOLDS)
class TestValues:
    @pytest.mark.parametrize("method", ["tsit5", "rk4", "radau5"])
    def test_the_integral_of_a_signal(self, hold: str, method: str) -> None:
        """y' = u(t): exact for methods of the signal's degree, since no step reaches across a sample."""
        controller = pn.Fixed(0.1) if method == "rk4" else tight()
        ts = [0.0, 0.2, 0.3, 0.9, 1.2, 2.0]
        sol = pn.solve(
            lambda t, y, args: args["u"] + 0 * y,
            [0.0],
            ts,
            args={"u": pn.Signal(TIMES, VALUES, hold)},
            method=method,
            controller=controller,
        )
        wanted = [integral_of(hold)(t) for t in ts]
        assert sol.ys[:, 0].tolist() == pytest.approx(wanted, abs=2e-9)

    @pytest.mark.parametrize("backward", [False, True])
    def test_steps_see_their_own_side(self, hold: str, backward: bool) -> None:
        """The same tolerance as without samples, at about a step a sample."""
        ts = torch.tensor([0.0, 0.7, 1.9, 2.0], dtype=torch.float64)
        ts = ts.flip(0) if backward else ts
        args = {"u": pn.Signal(TIMES, VALUES, hold)}
        sol = pn.solve(driven, [0.5, 0.2], ts, args=args, controller=pn.Adaptive(1e-6, 1e-8))
        reference = pn.solve(driven, [0.5, 0.2], ts, args=args, controller=pn.Fixed(1e-3), method="dop853")
        torch.testing.assert_close(sol.ys, reference.ys, rtol=0, atol=2e-5)
        assert int(sol.stats.rejected) <= 4

    def test_gradients(self, hold: str) -> None:
        """Exact for the solve made (all methods agree), and the derivative by each sample by differences."""
        ts = torch.tensor([0.0, 0.7, 2.0], dtype=torch.float64)

        def loss(values: Tensor, gain: Tensor, y0: Tensor, gradient: str) -> Tensor:
            def field(t: Tensor, y: Tensor, args: Any) -> Tensor:
                return driven(t, y, {"u": args["gain"] * args["u"]})

            args = {"u": pn.Signal(TIMES, values, hold), "gain": gain}
            sol = pn.solve(field, y0, ts, args=args, method="dop853", controller=tight(), gradient=gradient)
            return (sol.ys * torch.tensor([1.0, -0.4], dtype=torch.float64)).sum()

        found = {}
        for gradient in ("direct", "aca", "symplectic"):
            values = VALUES.clone().requires_grad_()
            gain = torch.tensor([[0.7], [1.4]], dtype=torch.float64, requires_grad=True)
            y0 = torch.tensor([[0.5, 0.2], [-1.0, 0.0]], dtype=torch.float64, requires_grad=True)
            found[gradient] = torch.autograd.grad(loss(values, gain, y0, gradient), (values, gain, y0))
        for gradient in ("aca", "symplectic"):
            for one, wanted in zip(found[gradient], found["direct"], strict=True):
                torch.testing.assert_close(one, wanted, rtol=1e-12, atol=1e-13)
        with torch.no_grad():
            for k in range(len(VALUES)):
                ends = []
                for sign in (1, -1):
                    moved = VALUES.clone()
                    moved[k] += sign * 1e-5
                    ends.append(float(loss(moved, gain, y0, "aca")))
                assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(found["direct"][0][k]), rel=1e-5, abs=1e-7)

    def test_per_trajectory(self, hold: str) -> None:
        """Own times and values for each trajectory are what each has alone."""
        times = torch.stack((TIMES, 0.5 * TIMES + torch.tensor([0.0, 0.1, 0.1, 0.2, 0.3, 1.0], dtype=torch.float64)))
        values = torch.stack((VALUES, VALUES.flip(0)))
        y0 = torch.tensor([[0.5, 0.2], [-1.0, 0.0]], dtype=torch.float64)
        ts = torch.tensor([0.0, 0.7, 2.0], dtype=torch.float64)
        both = pn.solve(driven, y0, ts, args={"u": pn.Signal(times, values, hold)})
        for row in range(2):
            alone = pn.solve(driven, y0[row], ts, args={"u": pn.Signal(times[row], values[row], hold)})
            torch.testing.assert_close(both.ys[row], alone.ys, rtol=1e-14, atol=1e-15)
            assert int(both.stats.accepted[row]) == int(alone.stats.accepted)

    def test_float32(self, hold: str) -> None:
        sol = pn.solve(
            driven,
            torch.tensor([0.5, 0.2]),
            [0.0, 1.2, 2.0],
            args={"u": pn.Signal(TIMES, VALUES, hold)},
        )
        reference = pn.solve(driven, [0.5, 0.2], [0.0, 1.2, 2.0], args={"u": pn.Signal(TIMES, VALUES, hold)})
        assert sol.ys.dtype == torch.float32
        torch.testing.assert_close(sol.ys.double(), reference.ys, rtol=2e-4, atol=2e-4)


class TestSpline:
    def test_equals_scipy(self) -> None:
        values = torch.stack((VALUES, VALUES**2), -1)
        slopes = spline_slopes(TIMES.unsqueeze(0), values.unsqueeze(0))[0]
        wanted = CubicSpline(TIMES.numpy(), values.numpy())(TIMES.numpy(), 1)
        assert np.abs(slopes.numpy() - wanted).max() < 1e-12

    def test_derivative(self) -> None:
        values = VALUES.clone().reshape(1, -1, 1).requires_grad_()
        assert torch.autograd.gradcheck(lambda v: spline_slopes(TIMES.unsqueeze(0), v), values)
        assert torch.autograd.gradgradcheck(lambda v: spline_slopes(TIMES.unsqueeze(0), v), values)


class TestRecords:
    """Long sampled records: a step a sample where samples jump, none where the tolerance absorbs them."""

    def test_noise_is_followed_without_refusals(self) -> None:
        times = torch.arange(1001, dtype=torch.float64) * 1e-3
        noise = torch.randn(1001, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        sol = pn.solve(driven, [0.5, 0.0], [0.0, 1.0], args={"u": pn.Signal(times, noise)})
        assert 1000 <= int(sol.stats.accepted) <= 1002
        assert int(sol.stats.rejected) == 0

    def test_what_the_tolerance_absorbs_costs_nothing(self) -> None:
        times = torch.arange(130_001, dtype=torch.float64) * 1e-3
        smooth = 0.2 * torch.sin(0.3 * times)
        args = {"u": pn.Signal(times, smooth)}
        sol = pn.solve(driven, [0.5, 0.0], [0.0, 130.0], args=args, controller=pn.Adaptive(1e-3, 1e-4))
        exact = pn.solve(
            lambda t, y: driven(t, y, {"u": 0.2 * torch.sin(0.3 * t)}),
            [0.5, 0.0],
            [0.0, 130.0],
            controller=pn.Adaptive(1e-3, 1e-4),
        )
        assert int(sol.stats.accepted + sol.stats.rejected) < 2 * int(exact.stats.accepted + exact.stats.rejected)
        torch.testing.assert_close(sol.ys, exact.ys, rtol=0, atol=0.05)

    def test_a_record_that_changes_once_is_stepped_on_once(self) -> None:
        times = torch.arange(5001, dtype=torch.float64) * 1e-3
        step = (times >= 2.5).double()
        sol = pn.solve(driven, [0.0, 0.0], [0.0, 5.0], args={"u": pn.Signal(times, step)}, dense=True)
        assert int(sol.stats.rejected) <= 4
        assert int(sol.stats.accepted) < 60
        assert bool((sol.pieces[0].replay.records.t_end == 2.5).any())


class TestPulses:
    """A short pulse is never stepped over, however little the field answers to it at the start."""

    def test_a_field_that_wakes_up_later(self) -> None:
        u = pn.Signal([0.0, 20.0, 20.02, 40.0], [0.0, 1.0, 0.0, 0.0])
        sol = pn.solve(
            lambda t, y, args: args["u"] * torch.sigmoid(4 * (t - 10)) * 100 + 0 * y, [0.0], [0.0, 40.0], args={"u": u}
        )
        assert float(sol.ys[-1, 0]) == pytest.approx(2.0, rel=1e-6)

    def test_components_whose_answers_cancel(self) -> None:
        values = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
        u = pn.Signal([0.0, 20.0, 20.02, 40.0], torch.tensor(values, dtype=torch.float64))
        sol = pn.solve(
            lambda t, y, args: (args["u"] @ torch.tensor([[100.0], [-100.0]], dtype=torch.float64)) + 0 * y,
            [0.0],
            [0.0, 40.0],
            args={"u": u},
        )
        assert float(sol.ys[-1, 0]) == pytest.approx(2.0, rel=1e-6)

    def test_fixed_steps_keep_their_order_over_kinks(self) -> None:
        times = torch.linspace(0, 2, 14, dtype=torch.float64)
        values = torch.randn(14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        args = {"u": pn.Signal(times, values, "linear")}
        exact = pn.solve(driven, [0.5, 0.0], [0.0, 2.0], args=args, method="dop853", controller=tight()).ys[-1]
        errors = [
            float(
                (
                    pn.solve(driven, [0.5, 0.0], [0.0, 2.0], args=args, method="rk4", controller=pn.Fixed(h)).ys[-1] - exact
                ).norm()
            )
            for h in (0.05, 0.0125)
        ]
        assert np.log(errors[0] / errors[1]) / np.log(4) > 3.7


class TestJumpTimes:
    """Jumps that a user names, in a field of time alone: y' = y (a before, b after t = 1/2)."""

    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rates = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return y * torch.where(t < 0.5, self.rates[0], self.rates[1])

    @pytest.mark.parametrize("gradient", ["direct", "aca", "symplectic"])
    @pytest.mark.parametrize("ts", [[0.0, 1.0], [1.0, 0.0], [0.5, 1.0], [0.5, 0.0]])
    @pytest.mark.parametrize("method", ["rk4", "tsit5", "dop853", "radau5"])
    def test_both_sides_forward_and_backward(self, gradient: str, ts: list[float], method: str) -> None:
        field = self.Switch()
        controller = pn.Fixed(0.01) if method == "rk4" else tight()
        sol = pn.solve(field, [1.0], ts, method=method, controller=controller, gradient=gradient, jump_times=[0.5])
        before = max(0.0, 0.5 - min(ts)) * (1 if ts[1] > ts[0] else -1)
        after = max(0.0, max(ts) - 0.5) * (1 if ts[1] > ts[0] else -1)
        end = np.exp(before - 2 * after)
        tolerance = 1e-8 if method != "radau5" else 1e-6
        assert float(sol.ys[-1, 0].detach()) == pytest.approx(end, rel=tolerance)
        (found,) = torch.autograd.grad(sol.ys[-1, 0], field.rates)
        assert found.tolist() == pytest.approx([before * end, after * end], rel=tolerance, abs=1e-12)

    def test_float32_sees_its_side(self) -> None:
        field = self.Switch().float()
        sol = pn.solve(field, torch.ones(1), [0.0, 1.0], jump_times=[0.5], method="rk4", controller=pn.Fixed(0.05))
        assert float(sol.ys[-1, 0].detach()) == pytest.approx(np.exp(-0.5), rel=1e-5)

    def test_fixed_steps_keep_their_grid(self) -> None:
        sol = pn.solve(lambda t, y: -y, [1.0], [0.0, 1.0], jump_times=[0.25], controller=pn.Fixed(0.1), dense=True)
        ends = sol.pieces[0].replay.records.t_end[:, 0]
        assert ends.tolist() == pytest.approx([0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], abs=1e-15)

    def test_a_step_cut_short_does_not_shorten_the_next(self) -> None:
        plain = pn.solve(lambda t, y: -y, [1.0], [0.0, 1.0], controller=pn.Adaptive(1e-8, 1e-10))
        cut = pn.solve(lambda t, y: -y, [1.0], [0.0, 1.0], controller=pn.Adaptive(1e-8, 1e-10), jump_times=[0.5, 0.5 + 1e-10])
        assert int(cut.stats.accepted) <= int(plain.stats.accepted) + 3

    def test_per_trajectory(self) -> None:
        times = torch.tensor([[0.5, 0.7], [0.3, torch.inf]], dtype=torch.float64)
        sol = pn.solve(lambda t, y: -y, torch.ones(2, 1, dtype=torch.float64), [0.0, 1.0], jump_times=times, dense=True)
        ends = sol.pieces[0].replay.records.t_end
        assert bool((ends[:, 0] == 0.5).any() and (ends[:, 0] == 0.7).any() and (ends[:, 1] == 0.3).any())
        assert not bool((ends[:, 1] == 0.5).any())


class TestArgs:
    def test_constants_reach_every_structure(self) -> None:
        """Second order, Hamiltonian, separable, sums and functions read them."""

        class Spring(pn.SecondOrder):
            velocity_dependent = False

            def acceleration(self, t: Tensor, q: Tensor, v: Tensor, args: Any) -> Tensor:
                return -args["k"] * q

        class Energy(pn.Hamiltonian):
            def energy(self, t: Tensor, y: Tensor, args: Any) -> Tensor:
                return (0.5 * y[..., 1:] ** 2 + 0.5 * args["k"] * y[..., :1] ** 2).sum(-1)

        class Parts(pn.SeparableHamiltonian):
            def kinetic(self, p: Tensor) -> Tensor:
                return 0.5 * (p**2).sum(-1)

            def potential(self, q: Tensor, args: Any) -> Tensor:
                return (0.5 * args["k"] * q**2).sum(-1)

        class Free(pn.SecondOrder):
            velocity_dependent = False

            def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
                return 0 * q

        def plain(t: Tensor, y: Tensor, args: Any) -> Tensor:
            return torch.cat((y[..., 1:], -args["k"] * y[..., :1]), -1)

        k = torch.tensor([[1.0], [4.0]], dtype=torch.float64)
        y0 = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
        wanted = torch.cos(torch.sqrt(k[:, 0]) * 2.0)
        fields: list[Any] = [Spring(), Energy(), Parts(), plain, Spring() + Free(), Free() + Spring()]
        for field in fields:
            sol = pn.solve(field, y0, [0.0, 2.0], args={"k": k}, controller=tight())
            torch.testing.assert_close(sol.ys[:, -1, 0], wanted, rtol=1e-7, atol=1e-8)
        for field in (Spring(), Parts(), Spring() + Free()):
            sol = pn.solve(field, y0, [0.0, 2.0], args={"k": k}, method="kahan_li8", controller=pn.Fixed(0.05))
            torch.testing.assert_close(sol.ys[:, -1, 0], wanted, rtol=1e-9, atol=1e-9)

    def test_a_system_driven_by_a_term(self) -> None:
        """Known physics plus a torque: the term that reads args does, the system does not mind."""
        field = pn.systems.Pendulum() + (lambda t, y, args: torch.cat((0 * args["u"], args["u"]), -1))
        sol = pn.solve(field, [0.0, 0.0], [0.0, 1.0], args={"u": pn.Signal(TIMES, VALUES)})
        assert float(sol.ys[-1].detach().abs().sum()) > 0.1


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: pn.Signal(TIMES, VALUES, "prev"), "Did you mean"),  # type: ignore[arg-type]
            (lambda: pn.Signal(TIMES.flip(0), VALUES), "strictly increasing"),
            (lambda: pn.Signal([0.0, 0.0, 1.0], [1.0, 2.0, 3.0]), "strictly increasing"),
            (lambda: pn.Signal(TIMES, VALUES[:-1]), "do not fit"),
            (lambda: pn.Signal(TIMES, VALUES * torch.nan), "not finite"),
            (lambda: pn.Signal(TIMES[:3], VALUES[:3], "cubic"), "at least 4"),
            (lambda: pn.Signal(["a"], [1.0]), "real numbers"),
            (lambda: pn.Signal(TIMES, VALUES * 1j), "real"),
        ],
    )
    def test_signals(self, make: Callable[[], pn.Signal], words: str) -> None:
        with pytest.raises(InputError, match=words):
            make()

    @pytest.mark.parametrize(
        ("field", "args", "words"),
        [
            (driven, None, "no args"),
            (lambda t, y: y, {"u": 1.0}, r"takes \(t, y\) only"),
            (driven, [1.0], "dictionary"),
            (driven, {"u": pn.Signal(TIMES[1:], VALUES[1:])}, "known for t in"),
            (driven, {"u": pn.Signal(TIMES[:-1], VALUES[:-1], "linear")}, "known for t in"),
            (driven, {"u": pn.Signal(TIMES, torch.ones(3, 6))}, "do not fit"),
            (driven, {"torque": 1.0}, r"reads args\['u'\], but the solve was given 'torque'"),
        ],
    )
    def test_solves(self, field: Any, args: Any, words: str) -> None:
        with pytest.raises(InputError, match=words):
            pn.solve(field, torch.zeros(2, 2, dtype=torch.float64), [0.0, 2.0], args=args)

    def test_two_readings_of_a_shape(self) -> None:
        signal = pn.Signal([0.0, 1.0], torch.ones(2, 2, dtype=torch.float64))
        with pytest.raises(InputError, match="two ways"):
            pn.solve(driven, torch.zeros(2, 2, dtype=torch.float64), [0.0, 1.0], args={"u": signal})

    def test_a_held_signal_lasts(self) -> None:
        sol = pn.solve(lambda t, y, args: args["u"] + 0 * y, [0.0], [0.0, 5.0], args={"u": pn.Signal([0.0, 1.0], [1.0, 2.0])})
        assert float(sol.ys[-1, 0]) == pytest.approx(9.0)
