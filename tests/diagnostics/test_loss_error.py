from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import physnode as pn
from benchmarks.loss_error import Problem, problems, rms
from physnode.diagnostics import loss_error
from physnode.errors import GradientError, InputError

TIGHT = pn.Adaptive(1e-13, 1e-15)
SWING = pn.systems.Pendulum()
STARTS = torch.tensor([[1.0, 0.0], [2.0, 0.3], [0.3, 0.0]], dtype=torch.float64)
TIMES = torch.linspace(0, 10, 31, dtype=torch.float64)


def loss(ys: Tensor) -> Tensor:
    return (ys - 0.3).square().mean()


def solved(field: Any, y0: Any, ts: Tensor, **how: Any) -> pn.Solution:
    with torch.no_grad():
        return pn.solve(field, y0, ts, dense=True, **how)


def true_error(field: Any, y0: Any, ts: Tensor, sol: pn.Solution, by: Callable[[Any], Tensor] = loss, **how: Any) -> float:
    exact = solved(field, y0, ts, method="dop853", controller=TIGHT, **how)
    return float(by(sol.ys)) - float(by(exact.ys))


@pytest.fixture(scope="module")
def systems() -> list[Problem]:
    return list(itertools.islice(problems(10), 3))


def test_estimate_and_indicator_meet_the_true_error(systems: list[Problem]) -> None:
    for problem in systems:
        for method in ("tsit5", "dopri5", "dop853", "bosh3"):
            for rtol in (1e-4, 1e-6) if method == "tsit5" else (1e-4,):
                error, true, *_ = problem.found(method, rtol)
                case = f"{problem.name} {method} {rtol}"
                assert error.indicator_parts is not None
                assert 0.5 < rms(error.parts) / rms(true) < 2, case
                assert 0.5 < rms(error.indicator_parts) / rms(true) < 50, case
                if rtol == 1e-6:  # where steps are short, each estimate is right, its sign included
                    assert rms(error.parts - true) < 0.03 * rms(true), case


def test_the_advised_tolerance_brings_the_wanted_error(systems: list[Problem]) -> None:
    for problem in (systems[0], systems[2]):
        ratios = [problem.alone(start).reached("tsit5", 1e-6, 0.1) for start in (1, 4, 8)]
        assert max(ratios) < 3, problem.name
        assert statistics.median(ratios) > 0.1, problem.name


@pytest.mark.parametrize(
    ("method", "how"),
    [
        ("midpoint", {"controller": pn.Fixed(0.05)}),
        ("rk4", {"controller": pn.Fixed(0.1)}),
        ("leapfrog", {"controller": pn.Fixed(0.05)}),
        ("yoshida6", {"controller": pn.Fixed(0.1)}),
        ("kahan_li8", {"controller": pn.Fixed(0.5)}),
        ("gauss4", {"controller": pn.Fixed(0.1)}),
        ("dprkn6", {}),
        ("radau5", {}),
        ("dopri8", {}),
        ("dopri8", {"read_out": "interpolate"}),
        ("dop853", {"read_out": "restep"}),
        ("tsit5", {"read_out": "restep"}),
    ],
)
def test_every_kind_of_method_and_read_out(method: str, how: dict[str, Any]) -> None:
    sol = solved(SWING, STARTS, TIMES, method=method, **({"controller": pn.Adaptive(1e-6, 1e-8)} | how))
    error = loss_error(sol, loss)
    assert error.estimate == pytest.approx(true_error(SWING, STARTS, TIMES, sol), rel=0.1)
    assert (error.indicator is None) == (sol.pieces[0].replay.method.error_order is None)


def test_outputs_between_steps_add_their_own_error() -> None:
    """Steps of order 8 read by a polynomial of low order: nearly all of the error is the polynomial's."""
    how: dict[str, Any] = {"method": "dopri8", "controller": pn.Adaptive(1e-6, 1e-8)}
    coarse = loss_error(solved(SWING, STARTS, TIMES, read_out="interpolate", **how), loss)
    fine = loss_error(solved(SWING, STARTS, TIMES, read_out="restep", **how), loss)
    assert abs(coarse.estimate) > 100 * abs(fine.estimate)


def test_parts_and_steps_add_up_and_lie_in_time() -> None:
    ts = torch.linspace(-3, 10, 40, dtype=torch.float64)
    field = pn.systems.VanDerPol(3.0)
    sol = solved(field, STARTS, ts, t0=1.0, controller=pn.Adaptive(1e-6, 1e-8))
    error = loss_error(sol, loss)
    assert error.estimate == pytest.approx(true_error(field, STARTS, ts, sol, t0=1.0), rel=0.05)
    assert torch.allclose(error.per_step.sum(-1), error.parts)
    assert float(error.parts.sum()) == pytest.approx(error.estimate)
    real = error.t.isfinite()
    assert torch.equal(real.sum(-1), sol.stats.accepted)
    assert len(sol.stats.accepted.unique()) > 1
    assert bool((error.per_step[~real] == 0).all())
    for row in range(3):
        low, high = torch.minimum(error.t, error.t_end)[row, real[row]], torch.maximum(error.t, error.t_end)[row, real[row]]
        assert torch.allclose(low[1:], high[:-1], rtol=0, atol=1e-12)
        assert float(low[0]) == -3.0
        assert float(high[-1]) == 10.0
    biggest = error.largest(4)
    assert [abs(part) for *_, part in biggest] == sorted((abs(part) for *_, part in biggest), reverse=True)
    where, start, end, part = biggest[0]
    assert float(error.per_step[where].abs().max()) == abs(part) == float(error.per_step.abs().max())
    assert "made mostly in" in str(error)
    assert f"{start:.6g} to {end:.6g}" in str(error)


def test_it_says_where_in_time_the_error_is_made() -> None:
    """A step that is far too long, put into an otherwise careful solve, is the one that is blamed."""

    class Careless(pn.Fixed):
        def propose(self, span: Any, t: Tensor, dt: Tensor) -> Tensor:
            following = super().propose(span, t, dt)
            return torch.where((t > 3.99) & (t < 4.01), torch.full_like(t, 5.0), following)

    y0 = STARTS[0]
    error = loss_error(solved(SWING, y0, TIMES, method="rk4", controller=Careless(0.05)), loss)
    (where, start, end, part), following = error.largest(2)
    assert where == ()
    assert (start, end) == (pytest.approx(4), pytest.approx(5))
    assert abs(part) > 100 * abs(following[-1])


def test_failed_trajectories_are_left_out() -> None:
    def explosive(t: Tensor, y: Tensor) -> Tensor:
        return y * y

    y0 = torch.tensor([[0.1], [2.0], [0.2]], dtype=torch.float64)
    ts = torch.linspace(0, 2, 9, dtype=torch.float64)
    how: dict[str, Any] = {"controller": pn.Adaptive(1e-6, 1e-8)}
    sol = solved(explosive, y0, ts, on_failure="report", **how)
    with pytest.raises(InputError, match="ok"):
        loss_error(sol, loss)
    error = loss_error(sol, lambda ys: loss(ys[sol.ok]))
    alone = loss_error(solved(explosive, y0[[0, 2]], ts, **how), loss)
    assert error.estimate == pytest.approx(alone.estimate, rel=1e-9)
    assert float(error.parts[1]) == 0
    assert "1 failed" in str(error)
    assert bool(torch.isfinite(error.parts).all())


def test_args_jumps_and_structured_states() -> None:
    def push(t: Tensor, state: dict[str, Tensor], args: Any) -> dict[str, Tensor]:
        force = torch.where(t < 2.2, 1.0, -1.0) * args["strength"]
        return {"x": state["v"], "v": force - state["x"] ** 3}

    y0 = {"x": STARTS[:, :1], "v": STARTS[:, 1:]}
    more: dict[str, Any] = {"args": {"strength": torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)}, "jump_times": 2.2}
    sol = solved(push, y0, TIMES, controller=pn.Adaptive(1e-6, 1e-8), **more)

    def by(ys: dict[str, Tensor]) -> Tensor:
        return (ys["x"] - 0.3).square().mean() + ys["v"][..., -1, :].sum()

    assert loss_error(sol, by).estimate == pytest.approx(true_error(push, y0, TIMES, sol, by, **more), rel=0.05)


def test_float32_down_to_its_rounding() -> None:
    exact = solved(SWING, STARTS, TIMES, method="dop853", controller=TIGHT)
    for rtol, tolerance in ((1e-4, 0.1), (2e-6, None)):
        sol = solved(SWING, STARTS.float(), TIMES, controller=pn.Adaptive(rtol, rtol / 100))
        error = loss_error(sol, loss)
        true = float(loss(sol.ys.double())) - float(loss(exact.ys))
        slack = 3 * error.rounding + (0 if tolerance is None else tolerance * abs(true))
        assert abs(error.estimate - true) < slack
        assert 1e-8 < error.rounding < 1e-5


def test_nothing_of_the_users_is_changed() -> None:
    field = pn.systems.Pendulum(free=("frequency",))
    sol = pn.solve(field, STARTS, TIMES)
    before = sol.ys.detach().clone()
    loss_error(sol, loss)
    assert all(p.grad is None for p in field.parameters())
    assert torch.equal(before, sol.ys)
    loss(sol.ys).backward()
    first = field.frequency.grad
    assert isinstance(first, Tensor)
    fresh = pn.systems.Pendulum(free=("frequency",))
    loss(pn.solve(fresh, STARTS, TIMES).ys).backward()
    assert torch.equal(first, fresh.frequency.grad)


def test_states_that_were_not_kept_are_made_again() -> None:
    field = pn.systems.Pendulum(free=("frequency",))
    every, few = (pn.solve(field, STARTS, TIMES, gradient=pn.ACA(pn.Storage(checkpoints=c))) for c in (1000, 3))
    assert loss_error(few, loss).estimate == pytest.approx(loss_error(every, loss).estimate, rel=1e-7)
    loss(few.ys).backward()
    assert field.frequency.grad is not None


def test_events_that_were_not_met_do_no_harm() -> None:
    never = pn.Event(lambda t, y: y[..., 0] - 50.0)
    plain, watched = (loss_error(solved(SWING, STARTS, TIMES, events=events), loss) for events in (None, never))
    assert plain.estimate == pytest.approx(watched.estimate)
    met = pn.Event(lambda t, y: y[..., 0], terminal=False)
    with pytest.raises(InputError, match="events"):
        loss_error(solved(SWING, STARTS, TIMES, events=met), loss)


def test_what_cannot_be_estimated_is_refused() -> None:
    with torch.no_grad():
        bare = pn.solve(SWING, STARTS, TIMES)
    with pytest.raises(InputError, match="dense=True"):
        loss_error(bare, loss)
    with pytest.raises(InputError, match="dense=True"):
        loss_error(pn.solve(pn.systems.Pendulum(free=("frequency",)), STARTS, TIMES, gradient="direct"), loss)
    sol = solved(SWING, STARTS, TIMES)
    with pytest.raises(InputError, match="one number"):
        loss_error(sol, lambda ys: ys.sum(-1))
    for constant in (lambda ys: torch.zeros(()), lambda ys: torch.zeros((), requires_grad=True)):
        with pytest.raises(InputError, match="does not depend"):
            loss_error(sol, constant)
    with pytest.raises(InputError, match="derivative"):
        loss_error(sol, lambda ys: (ys[:, 0] - STARTS).abs().sqrt().sum())
    with pytest.raises(InputError, match="positive"):
        loss_error(sol, loss).rtol_for(0.0)
    with pytest.raises(InputError, match="rounding"):
        loss_error(sol, loss).rtol_for(1e-18)
    fixed = loss_error(solved(SWING, STARTS, TIMES, controller=pn.Fixed(0.1)), loss)
    with pytest.raises(InputError, match="times as long"):
        fixed.rtol_for(1e-9)
    changed = pn.systems.Pendulum(free=("frequency",))
    stale = solved(changed, STARTS, TIMES)
    with torch.no_grad():
        changed.frequency += 0.1
    with pytest.raises(GradientError, match="changed in place"):
        loss_error(stale, loss)
