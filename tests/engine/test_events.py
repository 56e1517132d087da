"""Events: found where the analytic motion says, by every kind of method, each trajectory by itself; and differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.errors import GradientError, InputError

G, E = 9.81, 0.7
STARTS = [[1.0, 0.3], [2.0, -0.5], [0.5, 0.0]]
TS = torch.linspace(0, 1.2, 7, dtype=torch.float64)
METHODS: list[tuple[str, pn.Adaptive | pn.Fixed]] = [
    ("tsit5", pn.Adaptive(1e-8, 1e-10)),
    ("dop853", pn.Adaptive(1e-10, 1e-12)),
    ("bosh3", pn.Adaptive(1e-6, 1e-8)),
    ("rk4", pn.Fixed(0.05)),
    ("leapfrog", pn.Fixed(0.05)),
    ("kahan_li8", pn.Fixed(0.1)),
    ("gauss4", pn.Fixed(0.1)),
    ("radau5", pn.Adaptive(1e-8, 1e-10)),
]
IDS = [name for name, _ in METHODS]


class Fall(pn.SecondOrder):
    velocity_dependent = False

    def __init__(self) -> None:
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(G, dtype=torch.float64))

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -self.gravity.expand_as(q)


def height(t: Tensor, y: Tensor) -> Tensor:
    return y[..., 0]


def bounce(restitution: Tensor | float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda t, y: torch.stack((torch.zeros_like(y[..., 0]), -restitution * y[..., 1]), -1)


def impacts(h: Tensor, v: Tensor, g: Tensor | float, e: Tensor | float) -> tuple[Tensor, Tensor]:
    """Times of the first two impacts of a ball thrown from height h with speed v."""
    speed = torch.sqrt(v * v + 2 * g * h)
    first = (v + speed) / g
    return first, first + 2 * e * speed / g


@pytest.mark.parametrize(("method", "controller"), METHODS, ids=IDS)
class TestBouncingBall:
    def test_times_and_states(self, method: str, controller: pn.Adaptive | pn.Fixed) -> None:
        y0 = torch.tensor(STARTS, dtype=torch.float64)
        hit = pn.Event(height, direction=-1, terminal=False, jump=bounce(E))
        sol = pn.solve(Fall(), y0, TS, method=method, controller=controller, events=hit)
        first, second = impacts(y0[:, 0], y0[:, 1], G, E)
        torch.testing.assert_close(sol.events.t[:, 0], first, rtol=1e-13, atol=0)
        met = second < TS[-1]
        torch.testing.assert_close(sol.events.t[met, 1], second[met], rtol=1e-12, atol=0)
        torch.testing.assert_close(sol.events.y[:, 0, 1], -torch.sqrt(y0[:, 1] ** 2 + 2 * G * y0[:, 0]), rtol=1e-12, atol=0)
        assert float(sol.events.y[:, 0, 0].detach().abs().max()) < 5e-14
        assert float(sol.ys[..., 0].detach().min()) > -1e-12
        assert sol.ok.all()

    def test_gradients_of_the_second_impact(self, method: str, controller: pn.Adaptive | pn.Fixed) -> None:
        results = []
        for gradient in (None, "direct", "aca", "symplectic"):
            field, e = Fall(), torch.tensor(E, dtype=torch.float64, requires_grad=True)
            y0 = torch.tensor(STARTS[-1:], dtype=torch.float64, requires_grad=True)
            if gradient is None:
                time = impacts(y0[:, 0], y0[:, 1], field.gravity, e)[1]
            else:
                hit = pn.Event(height, direction=-1, terminal=False, jump=bounce(e))
                sol = pn.solve(field, y0, TS, method=method, controller=controller, events=hit, gradient=gradient)
                time = sol.events.t[:, 1]
            results.append(torch.autograd.grad(time.sum(), (y0, e, field.gravity)))
        for found in results[1:]:
            for one, wanted in zip(found, results[0], strict=True):
                torch.testing.assert_close(one, wanted, rtol=1e-11, atol=1e-12)


class TestGradients:
    def loss(self, y0: Tensor, k: Tensor, level: Tensor, gradient: str, controller: pn.Adaptive) -> Tensor:
        """A pendulum in a medium that kicks it each time it passes a level: everything that can move does."""

        def field(t: Tensor, y: Tensor) -> Tensor:
            return torch.cat((y[..., 1:], -k * torch.sin(y[..., :1]) + 0.3 * torch.cos(2 * t)), -1)

        kick = pn.Event(
            lambda t, y: y[..., :1] - level * torch.cos(t),
            terminal=False,
            jump=lambda t, y: torch.cat((y[..., :1], y[..., 1:] * (1 + 0.1 * k) + 0.05 * t), -1),
        )
        ts = torch.linspace(0, 5, 12, dtype=torch.float64)
        sol = pn.solve(field, y0, ts, method="dop853", events=kick, gradient=gradient, controller=controller)
        assert int(sol.events.count.min()) >= 2
        return (sol.ys**2).sum() + (torch.nan_to_num(sol.events.t) ** 2).sum() + torch.nan_to_num(sol.events.y[..., 1]).sum()

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        y0 = torch.tensor([[0.9, 0.0], [-0.4, 1.1], [1.4, -0.2]], dtype=torch.float64, requires_grad=True)
        k, level = torch.tensor([1.7, 0.15], dtype=torch.float64, requires_grad=True).unbind()
        return y0, k.detach().requires_grad_(), level.detach().requires_grad_()

    def test_methods_agree_and_equal_differences(self) -> None:
        fine = pn.Adaptive(1e-11, 1e-12)
        grads = {}
        for gradient in ("direct", "aca", "symplectic"):
            inputs = self.inputs()
            grads[gradient] = torch.autograd.grad(self.loss(*inputs, gradient, fine), inputs)
        for gradient in ("aca", "symplectic"):
            for one, wanted in zip(grads[gradient], grads["direct"], strict=True):
                torch.testing.assert_close(one, wanted, rtol=1e-11, atol=1e-12)
        step = 1e-5
        with torch.no_grad():
            for position, wanted in enumerate(grads["direct"]):
                flat = wanted.reshape(-1)
                for entry in range(len(flat)):
                    ends = []
                    for sign in (1, -1):
                        moved = [tensor.detach().clone() for tensor in self.inputs()]
                        moved[position].reshape(-1)[entry] += sign * step
                        ends.append(float(self.loss(*moved, "aca", fine)))
                    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(flat[entry]), rel=1e-6, abs=1e-6)

    def test_second_derivatives(self) -> None:
        """Of the time of flight T = 2 v / g: d²T/dv dg = -2 / g², d²T/dg² = 4 v / g³."""
        for gradient in ("direct", "aca", "symplectic"):
            field = Fall()
            v = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
            y0 = torch.stack((torch.zeros_like(v), v))
            sol = pn.solve(field, y0, [0.0, 1.0], events=pn.Event(height), gradient=gradient)
            assert float(sol.events.t[0].detach()) == pytest.approx(6 / G, rel=1e-14)
            (slope,) = torch.autograd.grad(sol.events.t[0], field.gravity, create_graph=True)
            found = torch.autograd.grad(slope, (v, field.gravity))
            assert float(found[0].detach()) == pytest.approx(-2 / G**2, rel=1e-12)
            assert float(found[1].detach()) == pytest.approx(4 * 3 / G**3, rel=1e-12)

    def test_a_parameter_of_the_condition_alone(self) -> None:
        """y = e^t meets y = c at t = log c."""
        c = nn.Parameter(torch.tensor(2.5, dtype=torch.float64))
        sol = pn.solve(lambda t, y: y, [1.0], [0.0, 3.0], events=pn.Event(lambda t, y: y[..., 0] - c), controller=tight())
        sol.events.t.sum().backward()
        assert c.grad is not None
        assert float(c.grad) == pytest.approx(1 / 2.5, rel=1e-9)

    def test_a_flat_root_is_found(self) -> None:
        touch = pn.Event(lambda t, y: (y[..., 0] - 0.5) ** 3)
        y0 = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
        sol = pn.solve(lambda t, y: torch.ones_like(y), y0, [0.0, 1.0], events=touch)
        assert float(sol.events.t.detach()) == pytest.approx(0.5, abs=1e-4)

    def test_forward_mode_refuses(self) -> None:
        from physnode.gradients.forward import tangents

        sol = pn.solve(Fall(), [1.0, 0.0], [0.0, 1.0], events=pn.Event(height), dense=True)
        replay = sol.pieces[0].replay
        with pytest.raises(GradientError, match="events"):
            tangents(replay, sol.pieces[0].y0, torch.eye(2, dtype=torch.float64).unsqueeze(1), {}, {})

    def test_float32(self) -> None:
        y0 = torch.tensor([[1.0, 0.0]], requires_grad=True)
        field = Fall().float()
        sol = pn.solve(field, y0, [0.0, 1.0], events=pn.Event(height))
        assert sol.events.t.dtype == torch.float64
        assert float(sol.events.t.detach()) == pytest.approx(math.sqrt(2 / G), rel=1e-6)
        (slope,) = torch.autograd.grad(sol.events.t.sum(), y0)
        assert float(slope[0, 0]) == pytest.approx(1 / math.sqrt(2 * G), rel=1e-5)


def tight() -> pn.Adaptive:
    return pn.Adaptive(1e-11, 1e-12)


def turn(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack((y[..., 1], -y[..., 0]), -1)


class TestFinding:
    """On x = cos t, y = -sin t, whose crossings are known."""

    def solve(self, events: Any, end: float = 10.0, y0: Any = (1.0, 0.0), **options: Any) -> pn.Solution:
        return pn.solve(turn, list(y0), [0.0, end], events=events, controller=tight(), **options)

    def test_all_crossings_in_order(self) -> None:
        sol = self.solve(pn.Event(lambda t, y: y[..., 0], terminal=False))
        torch.testing.assert_close(
            sol.events.t, torch.tensor([math.pi / 2 + k * math.pi for k in range(3)], dtype=torch.float64), rtol=1e-10, atol=0
        )

    @pytest.mark.parametrize(("direction", "first"), [(-1, math.pi / 2), (1, 3 * math.pi / 2), (0, math.pi / 2)])
    def test_direction(self, direction: int, first: float) -> None:
        sol = self.solve(pn.Event(lambda t, y: y[..., 0], direction=direction))
        assert float(sol.events.t[0]) == pytest.approx(first, rel=1e-10)
        assert int(sol.events.count) == 1

    def test_direction_is_along_the_solve(self) -> None:
        sol = self.solve(pn.Event(lambda t, y: y[..., 0], direction=-1), end=-10.0)
        assert float(sol.events.t[0]) == pytest.approx(-math.pi / 2, rel=1e-10)

    def test_two_crossings_within_one_step(self) -> None:
        """x passes 0.2 and 0.1 so fast that one step sees both ends on the same side."""
        event = pn.Event(lambda t, y: (y[..., 0] - 0.5) * (y[..., 0] - 0.4), terminal=False)
        sol = pn.solve(turn, [1.0, 0.0], [0.0, 2.0], events=event, method="dop853", controller=pn.Adaptive(1e-6, 1e-8))
        assert int(sol.stats.accepted) < 8
        torch.testing.assert_close(
            sol.events.t, torch.tensor([math.acos(0.5), math.acos(0.4)], dtype=torch.float64), rtol=1e-6, atol=0
        )

    def test_several_events_and_their_order(self) -> None:
        events = [
            pn.Event(lambda t, y: y[..., 0] + 0.5, terminal=False),
            pn.Event(lambda t, y: y[..., 0], terminal=False),
            pn.Event(lambda t, y: t - 2.5),
        ]
        sol = self.solve(events)
        assert sol.events.index.tolist() == [1, 0, 2]
        assert float(sol.reached) == pytest.approx(2.5, rel=1e-15)

    def test_simultaneous_events_are_both_met(self) -> None:
        events = [pn.Event(lambda t, y: y[..., 0], terminal=False), pn.Event(lambda t, y: 3 * y[..., 0], terminal=False)]
        sol = self.solve(events, end=3.0)
        assert sorted(sol.events.index.tolist()) == [0, 1]
        torch.testing.assert_close(sol.events.t, torch.full((2,), math.pi / 2, dtype=torch.float64), rtol=1e-10, atol=0)

    def test_none_is_a_normal_result(self) -> None:
        sol = self.solve(pn.Event(lambda t, y: y[..., 0] - 2))
        assert sol.ok
        assert int(sol.events.count) == 0
        assert sol.events.t.shape == (0,)
        assert torch.isfinite(sol.ys).all()

    def test_a_start_on_the_surface_is_not_an_event(self) -> None:
        sol = self.solve(pn.Event(lambda t, y: y[..., 1], terminal=False), end=7.0)
        torch.testing.assert_close(sol.events.t, torch.tensor([math.pi, 2 * math.pi], dtype=torch.float64), rtol=1e-10, atol=0)

    def test_outputs_after_a_terminal_event_are_nan(self) -> None:
        sol = pn.solve(turn, [1.0, 0.0], [0.0, 1.0, 2.0, 3.0], events=pn.Event(lambda t, y: y[..., 0]))
        assert torch.isfinite(sol.ys[:2]).all()
        assert torch.isnan(sol.ys[2:]).all()

    def test_dense_output_ends_there_too(self) -> None:
        sol = pn.solve(turn, [1.0, 0.0], [0.0, 3.0], events=pn.Event(lambda t, y: y[..., 0]), dense=True, controller=tight())
        found = sol.at([0.5, 1.5, 2.5])
        assert float(found[1, 0]) == pytest.approx(math.cos(1.5), rel=1e-8)
        assert torch.isnan(found[2]).all()

    def test_both_ways_from_an_interior_epoch(self) -> None:
        event = pn.Event(lambda t, y: y[..., 0], terminal=False)
        sol = pn.solve(turn, [1.0, 0.0], [-3.0, 3.0], t0=0.0, events=event, controller=tight())
        torch.testing.assert_close(
            sol.events.t, torch.tensor([-math.pi / 2, math.pi / 2], dtype=torch.float64), rtol=1e-10, atol=0
        )

    def test_a_poincare_section_with_args(self) -> None:
        """The condition sees the arguments of the solve."""
        sol = pn.solve(
            lambda t, y, args: turn(t, y) * args["rate"],
            torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64),
            [0.0, 4.0],
            args={"rate": torch.tensor([[1.0], [2.0]], dtype=torch.float64)},
            events=pn.Event(lambda t, y, args: y[..., :1] * args["rate"]),
            controller=tight(),
        )
        torch.testing.assert_close(
            sol.events.t[:, 0], torch.tensor([math.pi / 2, math.pi / 4], dtype=torch.float64), rtol=1e-10, atol=0
        )

    def test_structured_states(self) -> None:
        event = pn.Event(lambda t, s: s["q"][..., 0], terminal=False, jump=lambda t, s: {"q": 0 * s["q"], "v": -s["v"]})
        start = {"q": torch.tensor([1.0], dtype=torch.float64), "v": torch.tensor([0.0], dtype=torch.float64)}
        sol = pn.solve(lambda t, s: {"q": s["v"], "v": -s["q"]}, start, [0.0, 2.0], events=event, controller=tight())
        assert float(sol.events.t[0]) == pytest.approx(math.pi / 2, rel=1e-10)
        assert float(sol.events.y["v"][0, 0]) == pytest.approx(-1, rel=1e-9)
        assert float(sol.ys["q"][-1, 0]) == pytest.approx(math.cos(math.pi - 2), abs=1e-8) or float(sol.ys["q"][-1, 0]) > 0


class TestBatch:
    def test_an_event_of_one_does_not_stop_or_change_the_others(self) -> None:
        y0 = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.2, 0.0]], dtype=torch.float64)
        ts = torch.linspace(0, 6, 9, dtype=torch.float64)
        event = pn.Event(lambda t, y: y[..., 0] + 0.5 * torch.sign(y[..., 0].detach()) * 0 + 0.5)
        sol = pn.solve(turn, y0, ts, events=event)
        assert sol.events.count.tolist() == [1, 1, 0]
        plain = pn.solve(turn, y0, ts)
        assert torch.equal(sol.ys[2], plain.ys[2])
        assert torch.equal(sol.stats.accepted[2], plain.stats.accepted[2])
        before = sol.ys.isfinite().all(-1)
        torch.testing.assert_close(sol.ys[before], plain.ys[before], rtol=1e-5, atol=1e-6)

    def test_alone_and_in_a_batch(self) -> None:
        y0 = torch.tensor(STARTS, dtype=torch.float64)
        hit = pn.Event(height, direction=-1, terminal=False, jump=bounce(E))
        together = pn.solve(Fall(), y0, TS, events=hit)
        for row in range(len(y0)):
            alone = pn.solve(Fall(), y0[row], TS, events=hit)
            count = int(alone.events.count)
            assert int(together.events.count[row]) == count
            assert int(together.stats.accepted[row]) == int(alone.stats.accepted)
            assert int(together.stats.evaluations[row]) == int(alone.stats.evaluations)
            torch.testing.assert_close(together.events.t[row, :count], alone.events.t, rtol=1e-14, atol=0)

    def test_a_failure_elsewhere_leaves_events_and_gradients_alone(self) -> None:
        def field(t: Tensor, y: Tensor) -> Tensor:
            return torch.where((y[..., 2:] > 0) & (t > 0.3), torch.nan, 1.0) * torch.cat((turn(t, y), 0 * y[..., 2:]), -1)

        grads = []
        for last in (1.0, -1.0):
            y0 = torch.tensor([[1.0, 0.0, -1.0], [1.0, 0.0, last]], dtype=torch.float64, requires_grad=True)
            sol = pn.solve(field, y0, [0.0, 3.0], events=pn.Event(lambda t, y: y[..., 0]), on_failure="report")
            assert bool(sol.ok[1]) == (last < 0)
            grads.append(torch.autograd.grad(sol.events.t[0].sum(), y0)[0][0])
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-14, atol=1e-15)


class TestBadInput:
    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: pn.Event(3), "condition"),  # type: ignore[arg-type]
            (lambda: pn.Event(height, direction=2), "direction"),
            (lambda: pn.Event(height, jump=bounce(1.0)), "terminal=False"),
            (lambda: pn.Event(height, resolution=0), "resolution"),
        ],
    )
    def test_refused_when_made(self, make: Callable[[], pn.Event], words: str) -> None:
        with pytest.raises(InputError, match=words):
            make()

    @pytest.mark.parametrize(
        ("events", "words"),
        [
            ([height], "pn.Event"),
            (pn.Event(lambda t, y: y), "one number a trajectory"),
            (pn.Event(lambda t, y: 1.0), "one number a trajectory"),  # type: ignore[arg-type,return-value]
            (pn.Event(height, terminal=False, jump=lambda t, y: y[..., :1]), "jump of event 0"),
        ],
    )
    def test_refused_by_the_solve(self, events: Any, words: str) -> None:
        with pytest.raises(InputError, match=words):
            pn.solve(turn, torch.ones(3, 2, dtype=torch.float64), [0.0, 1.0], events=events)
