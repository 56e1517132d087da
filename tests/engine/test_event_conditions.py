"""Events at their limits: conditions of every kind, motions far faster than steps, and jumps of the field on the way."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import physnode as pn
from physnode.errors import InputError

G = 9.81


def height(t: Tensor, y: Tensor) -> Tensor:
    return y[..., 0]


def fall(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack((y[..., 1], torch.full_like(y[..., 1], -G)), -1)


class TestConditionsOfEveryKind:
    @pytest.mark.parametrize(("method", "controller"), [("tsit5", None), ("rk4", pn.Fixed(0.05)), ("dop853", None)])
    @pytest.mark.parametrize("restitution", [0.1, 0.6])
    def test_a_ball_that_comes_to_rest_is_told_so(self, method: str, controller: Any, restitution: float) -> None:
        """Its bounces accumulate; it does not fall through the floor."""
        hit = pn.Event(
            height, direction=-1, terminal=False, jump=lambda t, y: torch.stack((0 * y[..., 0], -restitution * y[..., 1]), -1)
        )
        options = {"method": method, "controller": controller, "events": hit, "on_failure": "report"}
        sol = pn.solve(fall, [[1.0, 0.0], [300.0, 0.0]], [0.0, 4.0], **options)
        rest = math.sqrt(2 / G) * (1 + 2 * restitution / (1 - restitution))
        assert sol.status.tolist() == [pn.Status.CROWDED, pn.Status.OK]
        assert "accumulate" in sol.failures
        assert float(sol.reached[0]) == pytest.approx(rest, rel=1e-10)

    def test_a_condition_that_is_not_finite_fails_its_trajectory(self) -> None:
        event = pn.Event(lambda t, y: torch.sqrt(y[..., 0] - 0.5) + 1)
        sol = pn.solve(lambda t, y: -y, [[2.0], [400.0]], [0.0, 3.0], events=event, on_failure="report")
        assert sol.status.tolist() == [pn.Status.NON_FINITE, pn.Status.OK]
        assert sol.events.count.tolist() == [0, 0]

    def test_steps_of_a_condition_are_crossings(self) -> None:
        for condition in (lambda t, y: torch.sign(y[..., 0] - 0.3), lambda t, y: torch.where(y[..., 0] > 0.3, 1.0, -1.0)):
            sol = pn.solve(lambda t, y: 0 * y - 1, torch.ones(1, dtype=torch.float64), [0.0, 2.0], events=pn.Event(condition))
            assert float(sol.events.t[0]) == pytest.approx(0.7, abs=1e-12)

    def test_reaching_zero_without_crossing_is_no_event(self) -> None:
        event = pn.Event(lambda t, y: (y[..., 0] - 0.3).clamp(min=0))
        assert int(pn.solve(lambda t, y: 0 * y - 1, [1.0], [0.0, 2.0], events=event).events.count) == 0

    def test_truth_values_are_refused(self) -> None:
        with pytest.raises(InputError, match="real numbers"):
            pn.solve(lambda t, y: -y, [1.0], [0.0, 1.0], events=pn.Event(lambda t, y: y[..., 0] > 0.3))

    @pytest.mark.parametrize("rtol", [1e-4, 1e-8])
    def test_stiff_steps_far_longer_than_the_motion(self, rtol: float) -> None:
        """y = cos t drawn to by 1e6: three crossings, and outputs as good as steps."""

        def field(t: Tensor, y: Tensor) -> Tensor:
            return -1e6 * (y - torch.cos(t)) - torch.sin(t)

        options = {"method": "radau5", "controller": pn.Adaptive(rtol, rtol * 1e-3)}
        event = pn.Event(lambda t, y: y[..., 0], terminal=False)
        found = pn.solve(field, [1.0], [0.0, 10.0], events=event, **options).events.t
        assert found.tolist() == pytest.approx([math.pi * (k + 0.5) for k in range(3)], abs=100 * rtol)
        sol = pn.solve(field, [1.0], torch.linspace(0, 10, 41, dtype=torch.float64), **options)
        assert float((sol.ys[:, 0] - torch.cos(sol.ts)).abs().max()) < 100 * rtol


class TestWithJumpsOfTheField:
    """Times of events, and all that depends on time, where steps end on jumps."""

    def crossing(self, a: Tensor, gradient: str, **options: Any) -> Tensor:
        event = pn.Event(lambda t, y: (y - 1 - 0.1 * t)[..., 0])
        options = {"controller": pn.Adaptive(1e-11, 1e-13), "events": event, "gradient": gradient, **options}
        return pn.solve(lambda t, y: -y + a * t**2, [0.0], [0.0, 3.0], **options).events.t.sum()

    @pytest.mark.parametrize("gradient", ["direct", "aca", "symplectic"])
    def test_with_jump_times(self, gradient: str) -> None:
        a = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        plain = torch.autograd.grad(self.crossing(a, gradient), a)[0]
        found = torch.autograd.grad(self.crossing(a, gradient, jump_times=[0.33, 0.9]), a)[0]
        assert float(found) == pytest.approx(float(plain), rel=1e-9)

    @pytest.mark.parametrize("hold", ["previous", "linear", "cubic"])
    @pytest.mark.parametrize("gradient", ["direct", "aca", "symplectic"])
    def test_with_signals(self, hold: str, gradient: str) -> None:
        times = torch.linspace(0, 3, 7, dtype=torch.float64)
        values = torch.tensor([0.9, 0.4, 0.7, 0.2, 0.5, 0.3, 0.6], dtype=torch.float64)

        def when(shift: Tensor) -> Tensor:
            sol = pn.solve(
                lambda t, y, args: shift * args["u"] + 0 * y,
                [0.0],
                [0.0, 3.0],
                args={"u": pn.Signal(times, values, hold)},
                events=pn.Event(lambda t, y, args: (y - args["u"])[..., 0]),
                controller=pn.Adaptive(1e-11, 1e-13),
                gradient=gradient,
            )
            return sol.events.t.sum()

        shift = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(when(shift), shift)
        with torch.no_grad():
            ends = [float(when(shift.detach() + step)) for step in (1e-6, -1e-6)]
        assert float(found) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-9)

    def test_a_crossing_made_by_the_jump_itself_does_not_move(self) -> None:
        y0 = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
        u = torch.tensor([2.0, 0.0], dtype=torch.float64, requires_grad=True)
        event = pn.Event(lambda t, y, args: (y - args["u"])[..., 0])
        sol = pn.solve(
            lambda t, y, args: 0.1 + 0 * y + 0 * args["u"], y0, [0.0, 2.0], args={"u": pn.Signal([0.0, 1.0], u)}, events=event
        )
        assert sol.events.t.tolist() == [1.0]
        assert torch.autograd.grad(sol.events.t.sum(), y0)[0].tolist() == [0.0]
