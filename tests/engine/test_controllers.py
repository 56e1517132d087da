"""Step sizes: a fixed grid is the grid that was asked for, and adaptive steps obey every word of their options."""

from __future__ import annotations

from math import pi

import pytest
import torch
from torch import Tensor

from physnode import methods
from physnode.engine.controllers import Adaptive, Fixed, Verdict
from physnode.engine.families.base import Step
from physnode.errors import InputError
from physnode.solve import solve


def times_of_euler(ts: list[float], dt: float, **options: object) -> list[float]:
    """Where Euler's method calls the field, which is where its steps start."""
    seen: list[float] = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        seen.append(float(t))
        return -y

    sol = solve(field, [1.0], ts, method="euler", controller=Fixed(dt), **options)
    assert sol.stats.accepted == len(seen) - 1
    return seen[1:]  # the first call only looks at the field


class TestFixed:
    @pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (3.0, 4.0), (1e6, 1e6 + 1), (1.0, 0.0)])
    @pytest.mark.parametrize("dt", [0.1, 1 / 3, 0.25, 0.07])
    def test_the_grid_is_t0_plus_n_dt(self, t0: float, t1: float, dt: float) -> None:
        found = times_of_euler([t0, t1], dt)
        count = -int(-(1 - 1e-9) // dt)
        sign = 1 if t1 > t0 else -1
        assert found == [t0 + sign * (n * dt) for n in range(count)]

    def test_many_steps_do_not_drift(self) -> None:
        found = times_of_euler([0.0, 1000.0], 0.1)
        assert len(found) == 10_000
        assert found[9_999] == 9_999 * 0.1

    def test_four_stages_ten_steps_forty_evaluations(self) -> None:
        sol = solve(lambda t, y: -y, [1.0], [0.0, 1.0], method="rk4", controller=Fixed(0.1))
        assert sol.stats.accepted == 10
        assert sol.stats.evaluations == 40 + 1  # one look at the field

    def test_outputs_do_not_move_the_grid(self) -> None:
        assert times_of_euler([0.0, 0.123, 0.55, 1.0], 0.1) == times_of_euler([0.0, 1.0], 0.1)

    def test_the_last_step_ends_on_the_end(self) -> None:
        """y' = 1 is exact for every method, so that y tells the time of the end."""
        sol = solve(lambda t, y: torch.ones_like(y), [0.0], [0.0, 1.0], method="euler", controller=Fixed(0.3))
        assert sol.stats.accepted == 4
        assert sol.ys[-1].item() == pytest.approx(1, abs=1e-15)

    def test_a_step_longer_than_the_span_is_the_span(self) -> None:
        assert solve(lambda t, y: -y, [1.0], [0.0, 1.0], method="euler", controller=Fixed(7.0)).ys[-1] == 0.0

    def test_rows_of_unequal_length(self) -> None:
        ts = torch.tensor([[0.0, 1.0], [0.0, 0.35], [5.0, 5.1]], dtype=torch.float64)
        sol = solve(lambda t, y: -y, torch.ones(3, 1, dtype=torch.float64), ts, method="rk4", controller=Fixed(0.1))
        assert sol.stats.accepted.tolist() == [10, 4, 1]

    @pytest.mark.parametrize("dt", [0.0, -0.1, float("nan"), float("inf")])
    def test_refuses_a_step_that_is_none(self, dt: float) -> None:
        with pytest.raises(InputError, match="positive"):
            Fixed(dt)

    def test_methods_without_an_estimate_ask_for_a_step(self) -> None:
        with pytest.raises(InputError, match=r"pn\.Fixed\(dt\)"):
            solve(lambda t, y: -y, [1.0], [0.0, 1.0], method="rk4")


def swing(t: Tensor, y: Tensor) -> Tensor:
    return torch.cat((y[..., 1:], -torch.sin(y[..., :1])), -1)


def counts(controller: Adaptive, field=swing, y0=((1.0, 0.0),), t1: float = 10.0, **options: object) -> list[int]:
    return solve(
        field, torch.tensor(y0, dtype=torch.float64), [0.0, t1], controller=controller, **options
    ).stats.accepted.tolist()


class TestAdaptive:
    def test_each_tolerance_counts(self) -> None:
        (base,) = counts(Adaptive(1e-6, 1e-6))
        assert counts(Adaptive(1e-8, 1e-6))[0] > base
        assert counts(Adaptive(1e-6, 1e-8))[0] > base
        assert counts(Adaptive(1e-3, 1e-8))[0] < counts(Adaptive(1e-8, 1e-8))[0]
        assert counts(Adaptive(0.0, 1e-6))[0] > 0

    def test_the_error_follows_the_tolerance(self) -> None:
        exact = solve(swing, [1.0, 0.0], [0.0, 10.0], method="dop853", controller=Adaptive(1e-13, 1e-14)).ys[-1]
        errors = [
            float((solve(swing, [1.0, 0.0], [0.0, 10.0], controller=Adaptive(tol, tol)).ys[-1] - exact).abs().max())
            for tol in (1e-4, 1e-6, 1e-8, 1e-10)
        ]
        for error, tol in zip(errors, (1e-4, 1e-6, 1e-8, 1e-10), strict=True):
            assert error < 100 * tol
        assert errors[0] > 30 * errors[1] > 900 * errors[2]

    def test_one_atol_for_each_component(self) -> None:
        """A small fast component is followed only if its own tolerance asks for it."""

        def field(t: Tensor, y: Tensor) -> Tensor:
            slow, fast = y[..., :2], y[..., 2:]
            return torch.cat((slow.flip(-1), 20 * fast.flip(-1)), -1) * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=y.dtype)

        y0 = ((1.0, 0.0, 1e-6, 0.0),)
        (loose,) = counts(Adaptive(0.0, [1e-6, 1e-6, 1e-3, 1e-3]), field, y0)
        (tight,) = counts(Adaptive(0.0, [1e-6, 1e-6, 1e-12, 1e-12]), field, y0)
        assert tight > 3 * loose
        assert counts(Adaptive(0.0, torch.tensor([1e-6, 1e-6, 1e-12, 1e-12])), field, y0) == [tight]

    def test_zero_atol_and_a_component_at_zero(self) -> None:
        sol = solve(lambda t, y: torch.zeros_like(y), [[1.0, 0.0]], [0.0, 1.0], controller=Adaptive(1e-6, 0.0))
        assert sol.ys[0, -1].tolist() == [1.0, 0.0]

    @pytest.mark.parametrize("options", [{"icoeff": 0.3, "pcoeff": 0.4}, {"icoeff": 1 / 18, "pcoeff": 1 / 9, "dcoeff": 1 / 18}])
    def test_other_controllers(self, options: dict[str, float]) -> None:
        """They meet the tolerance, by another sequence of steps, and with fewer refusals than the plain one."""
        plain = solve(swing, [3.1, 0.0], [0.0, 40.0], controller=Adaptive(1e-6))
        other = solve(swing, [3.1, 0.0], [0.0, 40.0], controller=Adaptive(1e-6, **options))
        assert torch.allclose(plain.ys, other.ys, atol=1e-2)
        assert other.stats.accepted != plain.stats.accepted
        assert other.stats.rejected < plain.stats.rejected

    def test_memory_is_of_accepted_trials_only(self) -> None:
        """What a refused trial's error was, or a resting trajectory's, is forgotten."""
        controller = Adaptive(0.0, 1.0, icoeff=0.3, pcoeff=0.4)
        one = torch.ones(2, dtype=torch.float64)
        memory = torch.tensor([[1.0, 1.0, 0.0, 1.0]] * 2, dtype=torch.float64)
        y = torch.zeros(2, 1, dtype=torch.float64)
        running = torch.tensor([True, False])

        def judge(errors: list[float]) -> Verdict:
            after, verdict = memory, None
            for error in errors:
                step = Step(y, (torch.full_like(y, error),), None, ())
                verdict = controller.judge(methods.tsit5, running, 0 * one, one, one, y, step, after)
                after = verdict.memory
            assert verdict is not None
            return verdict

        assert judge([0.5, 3.0, 0.2]).dt[0] == judge([0.5, 300.0, 0.2]).dt[0]
        assert judge([0.5, 3.0, 0.2, 0.1]).dt[0] != judge([0.5, 3.0, 0.4, 0.1]).dt[0]
        assert torch.equal(judge([0.5, 3.0, 0.2]).memory[1], memory[1])
        assert judge([0.5]).dt[1] == 1

    def test_a_default_atol_follows_small_states(self) -> None:
        """In units that make the state tiny, the default is as accurate as in units that make it one."""
        field = lambda t, y: torch.stack((y[..., 1], -y[..., 0]), -1)  # noqa: E731
        ts = [0.0, 6.283185307179586]
        y0 = torch.tensor([[1.0, 0.0], [1e-9, 0.0], [1e-15, 0.0]], dtype=torch.float64)
        sol = solve(field, y0, ts)
        assert len(set(sol.stats.accepted.tolist())) == 1
        relative = (sol.ys[:, -1] - y0).norm(dim=-1) / y0[:, 0]
        assert bool((relative < 1e-4).all())

    def test_longest_step(self) -> None:
        assert counts(Adaptive(1e-2, 1e-2, max_step=0.25, first_step=0.25), lambda t, y: 0 * y) == [40]
        assert counts(Adaptive(max_step=0.25, first_step=3.0), lambda t, y: 0 * y) == [40]

    def test_shortest_step(self) -> None:
        """The starting step is raised to it, and only the last one is shorter."""
        seen: list[float] = []

        def field(t: Tensor, y: Tensor) -> Tensor:
            seen.append(float(t))
            return -1e-3 * y

        sol = solve(field, [1.0], [0.0, 1.0], method="bosh3", controller=Adaptive(1e-3, 1e-3, min_step=0.3, max_step=0.3))
        assert sol.stats.accepted == 4
        assert {round(t, 10) for t in seen} >= {0.3, 0.6, 0.9, 1.0}

    def test_first_step(self) -> None:
        seen: list[float] = []

        def field(t: Tensor, y: Tensor) -> Tensor:
            seen.append(float(t))
            return -y

        solve(field, [1.0], [0.0, 1.0], controller=Adaptive(first_step=0.01))
        assert seen[0] == 0.0  # the look at the field
        assert max(seen[:7]) == pytest.approx(0.01)  # one trial of tsit5; no search for a starting step

    def test_found_first_step_carries_no_gradient(self) -> None:
        """The same step given explicitly: equal steps, equal gradients, to the last bit."""
        found = []
        y0 = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
        sol = solve(swing, y0, [0.0, 3.0], dense=True)
        first = float(sol.pieces[0].replay.records.t_end[0])
        for controller in (Adaptive(), Adaptive(first_step=first)):
            sol = solve(swing, y0, [0.0, 3.0], controller=controller)
            found.append(torch.autograd.grad(sol.ys[-1].sum(), y0)[0])
        assert torch.equal(*found)

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"rtol": -1.0}, "rtol"),
            ({"rtol": float("nan")}, "rtol"),
            ({"atol": -1e-9}, "atol"),
            ({"atol": [1e-9, float("nan")]}, "atol"),
            ({"rtol": 0.0, "atol": 0.0}, "both zero"),
            ({"first_step": 0.0}, "first_step"),
            ({"min_step": 2.0, "max_step": 1.0}, "min_step"),
            ({"safety": 1.5}, "safety"),
            ({"min_factor": 2.0}, "min_factor"),
        ],
    )
    def test_refuses_options_that_make_no_sense(self, options: dict[str, object], word: str) -> None:
        with pytest.raises(InputError, match=word):
            Adaptive(**options)

    def test_refuses_tolerances_below_the_resolution(self) -> None:
        with pytest.raises(InputError, match="float64"):
            solve(swing, [1.0, 0.0], [0.0, 1.0], controller=Adaptive(1e-16))
        with pytest.raises(InputError, match=r"float32.*use float64"):
            solve(swing, torch.tensor([1.0, 0.0]), [0.0, 1.0], controller=Adaptive(1e-7))
        with pytest.raises(InputError, match="bfloat16"):
            solve(lambda t, y: -y, torch.ones(1, dtype=torch.bfloat16), [0.0, 1.0])

    def test_refuses_atol_of_another_length(self) -> None:
        with pytest.raises(InputError, match="3 entries for a state of 2"):
            solve(swing, [1.0, 0.0], [0.0, 1.0], controller=Adaptive(atol=[1e-6] * 3))

    def test_a_norm_of_ones_own(self) -> None:
        """The largest component decides: ten idle components no longer thin out the error of one that moves."""
        y0 = [1.0, *[0.0] * 10]
        alone = solve(lambda t, y: -y, y0[:1], [0.0, 5.0]).stats.accepted
        root_mean_square = solve(lambda t, y: -y, y0, [0.0, 5.0]).stats.accepted
        largest = solve(lambda t, y: -y, y0, [0.0, 5.0], controller=Adaptive(norm=lambda e: e.abs().amax(-1))).stats.accepted
        assert root_mean_square < alone == largest
        with pytest.raises(InputError, match=r"norm must map errors of shape \(1, 11\) to \(1,\).*found \(\)"):
            solve(lambda t, y: -y, y0, [0.0, 5.0], controller=Adaptive(norm=lambda e: e.abs().amax()))

    def test_refuses_a_symplectic_method(self) -> None:
        with pytest.raises(InputError, match="symplectic"):
            solve(swing, [1.0, 0.0], [0.0, 1.0], method="leapfrog", controller=Adaptive())

    def test_defaults_follow_the_precision(self) -> None:
        assert Adaptive().tolerances(torch.float64)[0] == 1e-6
        assert Adaptive().tolerances(torch.float32)[0] == 1e-4


class TestOneStepForEachTrajectory:
    def field(self, t: Tensor, y: Tensor) -> Tensor:
        q, p, w = y[..., :1], y[..., 1:2], y[..., 2:]
        return torch.cat((w * p, -w * q, torch.zeros_like(w)), -1)

    def test_a_slow_one_is_not_slowed_by_a_fast_neighbour(self) -> None:
        slow, fast = (1.0, 0.0, 1.0), (1.0, 0.0, 50.0)
        (alone,) = counts(Adaptive(), self.field, (slow,))
        beside, hurried = counts(Adaptive(), self.field, (slow, fast))
        assert beside == alone
        assert hurried > 20 * alone

    def test_shared_steps_are_those_of_the_fastest(self) -> None:
        beside, hurried = counts(Adaptive(per_trajectory=False), self.field, ((1.0, 0.0, 1.0), (1.0, 0.0, 50.0)), t1=1.0)
        assert beside == hurried
        assert hurried == pytest.approx(counts(Adaptive(), self.field, ((1.0, 0.0, 50.0),), t1=1.0)[0], rel=0.05)

    def test_shared_steps_go_on_when_a_neighbour_has_ended(self) -> None:
        y0 = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
        ts = torch.tensor([[0.0, 0.5], [0.0, 20.0], [-1.0, 0.0]], dtype=torch.float64)
        (alone,) = counts(Adaptive(per_trajectory=False), t1=20.0)
        sol = solve(swing, y0, ts, t0=0.0, controller=Adaptive(per_trajectory=False))
        assert sol.stats.accepted[1] <= alone + 10

    def test_a_short_last_step_of_one_does_not_shorten_those_of_others(self) -> None:
        ts = torch.tensor([[0.0, 1.0001], [0.0, 3.0]], dtype=torch.float64)
        controller = Adaptive(first_step=0.25, max_step=0.25, per_trajectory=False)
        sol = solve(lambda t, y: 0 * y, torch.ones(2, 1, dtype=torch.float64), ts, controller=controller)
        assert sol.stats.accepted.tolist() == [5, 12]

    def test_outputs_do_not_cost_steps(self) -> None:
        for name in ("tsit5", "dopri5", "bosh3"):
            found = []
            for outputs in (2, 10, 1000):
                ts = torch.linspace(0, 4 * pi, outputs, dtype=torch.float64)
                found.append(solve(swing, [1.0, 0.0], ts, method=name).stats.evaluations)
            assert found[0] == found[1] == found[2]
