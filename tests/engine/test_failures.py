"""A trajectory that fails changes nothing for its neighbours, and says where, when, why, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from physnode.engine.controllers import Adaptive, Controller, Fixed
from physnode.engine.status import Status
from physnode.errors import InputError, SolveError
from physnode.fields import SecondOrder, VectorField
from physnode.solution import Solution
from physnode.solve import solve

Harm = Callable[[Tensor, Tensor, Tensor], Tensor]
TS = torch.linspace(0, 2, 9, dtype=torch.float64)


class Trap(VectorField):
    """y = (x, m): x' = -rate sin(x) + cos(t); what goes wrong, and when, is up to ``harm`` and to a marker m < 0."""

    def __init__(self, harm: Harm) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
        self.harm = harm

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x, marker = y[..., :1], y[..., 1:]
        speed = -self.rate * torch.sin(x) + torch.cos(t)
        gate = self.rate * marker.clamp(min=0)
        speed = torch.where(marker < 0, self.harm(t, self.rate * x, gate), speed)
        return torch.cat((speed, torch.zeros_like(marker)), -1)


def nan_later(t: Tensor, x: Tensor, gate: Tensor | None = None) -> Tensor:
    return torch.where(t > 0.7, torch.nan, -x)


def nan_at_once(t: Tensor, x: Tensor, gate: Tensor | None = None) -> Tensor:
    return torch.full_like(x, torch.nan)


def infinite_later(t: Tensor, x: Tensor, gate: Tensor | None = None) -> Tensor:
    return torch.where(t > 0.7, torch.inf, -x)


def blow_up(t: Tensor, x: Tensor, gate: Tensor | None = None) -> Tensor:
    return 3 * x**2


def overflow(t: Tensor, x: Tensor, gate: Tensor | None = None) -> Tensor:
    return torch.exp(torch.exp(3 * x.clamp(max=1e4)))


def no_derivative(t: Tensor, x: Tensor, gate: Tensor | None = None) -> Tensor:
    """Finite, with a derivative that is not: 0 · ∞ would poison the parameter that all share."""
    return torch.sqrt(gate) + nan_later(t, x)


HARMS = [nan_later, nan_at_once, infinite_later, blow_up, overflow, no_derivative]
WAYS = [("tsit5", Adaptive()), ("dop853", Adaptive(1e-8)), ("rk4", Fixed(0.03))]


def run(harm: Harm, marker: float, method: str, controller: Controller, **options: object):
    """Rows 0, 2, 3 are sound; row 1 is harmed if its marker is negative."""
    field = Trap(harm)
    y0 = torch.tensor([[1.0, 1.0], [0.8, marker], [-2.0, 1.0], [0.1, 1.0]], dtype=torch.float64, requires_grad=True)
    sol = solve(field, y0, TS, method=method, controller=controller, on_failure="report", **options)
    return field, y0, sol


SOUND = [0, 2, 3]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize(("method", "controller"), WAYS, ids=[name for name, _ in WAYS])
class TestNeighbours:
    def test_same_to_the_last_bit(self, harm: Harm, method: str, controller: Controller) -> None:
        _, _, good = run(harm, 1.0, method, controller)
        _, _, bad = run(harm, -1.0, method, controller)
        assert good.ok.all()
        assert bad.ok.tolist() == [True, False, True, True]
        assert torch.equal(good.ys[SOUND], bad.ys[SOUND])
        for name in ("accepted", "rejected", "evaluations"):
            assert torch.equal(getattr(good.stats, name)[SOUND], getattr(bad.stats, name)[SOUND])

    def test_nan_from_the_failure_on(self, harm: Harm, method: str, controller: Controller) -> None:
        _, _, bad = run(harm, -1.0, method, controller)
        late = bad.reached[1] < TS
        assert late.any()
        assert torch.isnan(bad.ys[1, late]).all()
        assert torch.isfinite(bad.ys[1, ~late]).all()
        assert torch.isfinite(bad.ys[SOUND]).all()
        assert bad.status[1] in (Status.NON_FINITE, Status.STEP_UNDERFLOW, Status.DIVERGED)


@pytest.mark.parametrize("harm", [nan_later, nan_at_once, blow_up, no_derivative])
@pytest.mark.parametrize(("method", "controller"), WAYS[::2], ids=["tsit5", "rk4"])
@pytest.mark.parametrize("gradient", ["direct", "aca", "symplectic"])
def test_gradients_do_not_notice(harm: Harm, method: str, controller: Controller, gradient: str) -> None:
    found = []
    for marker in (1.0, -1.0):
        field, y0, sol = run(harm, marker, method, controller, gradient=gradient)
        # on every output that is a number, the failed row's too: those carry no gradient
        loss = torch.nansum(sol.ys[SOUND] ** 2) + (0.0 if marker > 0 else torch.nansum(sol.ys[1]))
        found.append(torch.autograd.grad(loss, (y0, field.rate)))
    (to_y0, to_rate), (again_y0, again_rate) = found
    assert torch.equal(again_y0[1], torch.zeros(2, dtype=torch.float64))
    assert torch.allclose(again_y0[SOUND], to_y0[SOUND], rtol=1e-14, atol=0)
    assert torch.allclose(again_rate, to_rate, rtol=1e-13, atol=0)


def test_a_plain_sum_over_the_outputs_keeps_the_gradient_finite() -> None:
    for gradient in ("direct", "aca", "symplectic"):
        field, y0, sol = run(nan_later, -1.0, "tsit5", Adaptive(), gradient=gradient)
        sol.ys.sum().backward()
        assert torch.isfinite(y0.grad).all()
        assert torch.isfinite(field.rate.grad)


def test_second_derivatives_do_not_notice() -> None:
    found = []
    for marker in (1.0, -1.0):
        field, y0, sol = run(no_derivative, marker, "tsit5", Adaptive())
        (first,) = torch.autograd.grad((sol.ys[SOUND] ** 2).sum(), y0, create_graph=True)
        found.append(torch.autograd.grad((first[SOUND] ** 2).sum(), field.rate)[0])
    assert torch.allclose(*found, rtol=1e-12, atol=0)


def test_all_fail() -> None:
    for gradient in ("aca", "symplectic"):
        field = Trap(nan_later)
        y0 = torch.tensor([[1.0, -1.0], [2.0, -1.0]], dtype=torch.float64, requires_grad=True)
        sol = solve(field, y0, TS, gradient=gradient, on_failure="report")
        assert not sol.ok.any()
        torch.nansum(sol.ys).backward()
        assert not y0.grad.any()
        assert not field.rate.grad.any()
    everything = torch.full((2, 1), torch.nan, dtype=torch.float64)
    sol = solve(lambda t, y: -y, everything, [0.0, 1.0], on_failure="report")
    assert (sol.status == Status.NON_FINITE).all()


def test_failing_in_one_direction_only() -> None:
    """From t0 = 0 the solve ends at t = 0.7 ahead, and is sound behind."""
    sol = solve(nan_later, [[1.0], [2.0]], [-1.0, 0.0, 0.5, 1.0], t0=0.0, on_failure="report")
    assert (sol.status == Status.NON_FINITE).all()
    assert torch.isfinite(sol.ys[:, :3]).all()
    assert torch.isnan(sol.ys[:, 3]).all()
    assert torch.allclose(sol.reached, torch.full((2,), 0.7, dtype=torch.float64), atol=1e-6)


def test_splitting_method() -> None:
    class Wall(SecondOrder):
        velocity_dependent = False

        def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
            return -q + torch.log(1.5 - q)

    y0 = torch.tensor([[0.1, 0.0], [1.0, 4.0], [0.2, 0.1], [1.6, 0.0]], dtype=torch.float64)
    bad = solve(Wall(), y0, TS, method="leapfrog", controller=Fixed(0.01), on_failure="report")
    y0[1], y0[3] = 0.0, 0.0
    good = solve(Wall(), y0, TS, method="leapfrog", controller=Fixed(0.01))
    assert bad.ok.tolist() == [True, False, True, False]
    assert torch.equal(bad.ys[[0, 2]], good.ys[[0, 2]])


class TestStatus:
    def solve(self, field: Callable[[Tensor, Tensor], Tensor], **options: object) -> Solution:
        return solve(field, [[1.0]], [0.0, 2.0], on_failure="report", **options)

    def test_singular_solution(self) -> None:
        """y' = y² from 1 has a pole at t = 1."""
        sol = self.solve(lambda t, y: y**2)
        assert sol.status == Status.DIVERGED
        assert sol.reached.item() == pytest.approx(1, abs=1e-4)

    def test_field_not_finite(self) -> None:
        sol = self.solve(nan_later)
        assert sol.status == Status.NON_FINITE
        assert sol.reached.item() == pytest.approx(0.7, abs=1e-9)

    def test_fixed_steps_notice_too(self) -> None:
        sol = self.solve(lambda t, y: torch.exp(y**2), method="rk4", controller=Fixed(0.05))
        assert sol.status == Status.NON_FINITE

    def test_too_many_steps(self) -> None:
        sol = self.solve(lambda t, y: -y, max_steps=7, controller=Adaptive(max_step=0.1))
        assert sol.status == Status.TOO_MANY_STEPS
        assert sol.stats.accepted + sol.stats.rejected == 7

    def test_the_limit_counts_the_solve_not_the_intervals(self) -> None:
        needed = int(solve(lambda t, y: -y, [[1.0]], [0.0, 2.0]).stats.accepted)
        for outputs in (2, 51):
            ts = torch.linspace(0, 2, outputs, dtype=torch.float64)
            assert solve(lambda t, y: -y, [[1.0]], ts, max_steps=needed).ok.all()
            sol = solve(lambda t, y: -y, [[1.0]], ts, max_steps=needed - 1, on_failure="report")
            assert sol.status == Status.TOO_MANY_STEPS

    @pytest.mark.parametrize("start", [0.0, 0.3, 1e5])
    def test_smallest_step(self, start: float) -> None:
        """An error test that fails at min_step is a failure, however start + min_step rounds."""
        controller = Adaptive(min_step=0.2, first_step=0.4)
        sol = solve(lambda t, y: -100 * y, [[1.0]], [start, start + 3], controller=controller, on_failure="report")
        assert sol.status == Status.STIFF
        assert sol.stats.rejected <= 2

    def test_a_collision(self) -> None:
        """y' = -1 / y from 1 falls to zero at t = 1/2 with infinite speed."""
        sol = self.solve(lambda t, y: -1 / y)
        assert sol.status == Status.STEP_UNDERFLOW
        assert sol.reached.item() == pytest.approx(0.5, abs=1e-4)

    @pytest.mark.parametrize("method", ["tsit5", "dop853"])
    def test_stiffness_is_told_from_a_long_way(self, method: str) -> None:
        """Both run out of steps: one since stability limits them, one since there is so much to follow."""
        options = {"method": method, "max_steps": 300, "on_failure": "report"}
        stiff = solve(lambda t, y: -1e5 * (y - torch.cos(t)), [[1.0]], [0.0, 2.0], **options)
        long = solve(lambda t, y: torch.stack((y[..., 1], -y[..., 0]), -1), [[1.0, 0.0]], [0.0, 1e4], **options)
        assert stiff.status == Status.STIFF
        assert "radau5" in stiff.failures
        assert long.status == Status.TOO_MANY_STEPS

    def test_blow_up_with_fixed_steps(self) -> None:
        sol = self.solve(lambda t, y: -1e3 * y, method="rk4", controller=Fixed(0.01))
        assert sol.status == Status.DIVERGED

    def test_a_failure_takes_few_trials(self) -> None:
        for start in (0.0, 0.3, 100.0):
            sol = solve(lambda t, y, s=start: nan_later(t - s, y), [[1.0]], [start, start + 2], on_failure="report")
            assert sol.status == Status.NON_FINITE
            assert sol.stats.rejected < 80


class TestMessage:
    def test_names_trajectory_time_reason_and_remedy(self) -> None:
        y0 = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[1.0, -1.0], [1.0, 1.0]]], dtype=torch.float64)
        with pytest.raises(SolveError, match=r"trajectory \(1, 0\) at t = 0\.7.*not finite.*check the field") as caught:
            solve(Trap(nan_later), y0, TS)
        assert "report" in str(caught.value)

    def test_each_kind_has_its_line(self) -> None:
        y0 = torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.0, 1.0], [2.0, 1.0]], dtype=torch.float64)

        def field(t: Tensor, y: Tensor) -> Tensor:
            x, marker = y[..., :1], y[..., 1:]
            return torch.cat((torch.where(marker < 0, nan_later(t, x), x**2), torch.zeros_like(x)), -1)

        with pytest.raises(SolveError) as caught:
            solve(field, y0, TS)
        first, second, *_ = str(caught.value).splitlines()
        assert re.search(r"trajectories 0 at t = 1 \(step .*\), 3 at t = 0\.5.*diverged", first)
        assert "trajectory 1 at t = 0.7" in second

    def test_many_are_counted(self) -> None:
        with pytest.raises(SolveError, match="and 15 more"):
            solve(nan_later, torch.ones(20, 1, dtype=torch.float64), TS)

    def test_single_trajectory(self) -> None:
        with pytest.raises(SolveError, match=r"\(the only one\) at t = 0\.7"):
            solve(nan_later, [1.0], TS)

    def test_report_says_the_same(self) -> None:
        sol = solve(nan_later, [[1.0]], TS, on_failure="report")
        assert "trajectory 0 at t = 0.7" in sol.failures
        assert solve(lambda t, y: -y, [[1.0]], TS).failures == ""

    def test_other_words_are_refused(self) -> None:
        with pytest.raises(InputError, match="on_failure"):
            solve(nan_later, [[1.0]], TS, on_failure="ignore")


def test_shared_steps_survive_a_failure() -> None:
    """With one step for all, neighbours do not keep their steps, but they keep their results."""
    _, _, bad = run(nan_later, -1.0, "tsit5", Adaptive(per_trajectory=False))
    _, _, good = run(nan_later, 1.0, "tsit5", Adaptive(per_trajectory=False))
    assert bad.ok.tolist() == [True, False, True, True]
    assert torch.allclose(bad.ys[SOUND], good.ys[SOUND], rtol=1e-5)
    assert bad.stats.accepted.max() < 100


@pytest.mark.parametrize("gradient", ["direct", "aca", "symplectic"])
def test_a_refused_trial_that_was_not_finite_leaves_no_trace(gradient: str) -> None:
    """The first trials of row 0 overshoot into NaN and are tried again; row 1 needs more steps than row 0."""
    rate = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    overshot = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        x, marker = y[..., :1], y[..., 1:]
        slowing = torch.sqrt(1 - rate * x)
        overshot.append(bool(torch.isnan(slowing[0]).any()))
        speed = torch.where(marker > 0, slowing, rate * torch.cos(40 * t) - x)
        return torch.cat((speed, torch.zeros_like(x)), -1)

    y0 = torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    sol = solve(field, y0, [0.0, 1.9], controller=Adaptive(1e-4, 1e-4, first_step=1.5), gradient=gradient)
    assert any(overshot)
    assert sol.ok.all()
    assert sol.stats.accepted[1] > sol.stats.accepted[0] + 2
    to_y0, to_rate = torch.autograd.grad(sol.ys[:, -1].sum(), (y0, rate))
    assert torch.isfinite(to_y0).all()
    assert torch.isfinite(to_rate)
