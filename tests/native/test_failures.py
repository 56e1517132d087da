"""A trajectory that fails does so as under the eager driver, and its neighbours in the same register notice nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.engine.status import Status
from physnode.errors import SolveError

TS = torch.linspace(0, 2, 9, dtype=torch.float64)
FINITE, LATER, AT_ONCE, BLOW_UP, STIFF, NO_SLOPE = range(6)


class Trap(pn.VectorField):
    """y = (x, kind): x' = -rate sin(x) + cos(t), and what goes wrong by ``kind``."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x, kind = y[..., :1], y[..., 1:]
        speed = -self.rate * torch.sin(x) + torch.cos(t)
        for number, harm in (
            (LATER, torch.where(t > 0.7, torch.nan, -x)),
            (AT_ONCE, torch.full_like(x, torch.nan)),
            (BLOW_UP, 3 * self.rate * x**2),
            (STIFF, -1e5 * self.rate * (x - torch.cos(t))),
            (NO_SLOPE, torch.sqrt(self.rate * (kind - NO_SLOPE).abs()) + torch.where(t > 0.7, torch.inf, -x)),
        ):
            speed = torch.where(kind == number, harm, speed)
        return torch.cat((speed, torch.zeros_like(kind)), -1)


TRAP = Trap()
WAYS = {"tsit5": pn.Adaptive(), "rk4": pn.Fixed(0.03)}
HARMS = {"NaN later": LATER, "NaN at once": AT_ONCE, "blow-up": BLOW_UP, "stiff": STIFF, "no derivative": NO_SLOPE}


def starts(*kinds: int) -> Tensor:
    x = torch.tensor([1.0, 0.8, -2.0, 0.1, 1.7, 0.3, 0.4, -0.6, 0.9, 1.1], dtype=torch.float64)
    return torch.stack((x, torch.tensor(kinds, dtype=torch.float64)), -1)


@pytest.mark.parametrize("method", list(WAYS))
@pytest.mark.parametrize("harm", list(HARMS))
def test_status_values_and_gradients_as_eager(harm: str, method: str, help: Any) -> None:
    """A diverging state doubles its rounding errors at every step until it is given up, so that it may be so a step apart."""
    kind = HARMS[harm]
    y0 = starts(0, kind, 0, 0, kind, 0, 0, 0, kind, 0)
    options = {"method": method, "controller": WAYS[method], "on_failure": "report", "max_steps": 3000}
    bad = y0[:, 1] == kind
    found = {}
    for compile in (False, True):
        field_of = [TRAP.rate]
        found[compile] = help.run(TRAP, y0, TS, field_of, compile=compile, **options)
    native, eager = found[True], found[False]
    assert torch.equal(native.sol.status, eager.sol.status)
    assert not native.sol.ok[bad].any()
    assert native.sol.ok[~bad].all()
    if harm != "blow-up":
        torch.testing.assert_close(native.sol.reached, eager.sol.reached, rtol=1e-9, atol=1e-9)
    if harm not in ("blow-up", "NaN at once"):  # where no step was tried, its length is nobody's
        torch.testing.assert_close(native.sol.last_step, eager.sol.last_step, rtol=1e-6, atol=1e-9)
    help.assert_close(native.ys[~bad], eager.ys[~bad], 1e-11)
    assert torch.equal(torch.isnan(native.ys), torch.isnan(eager.ys))
    for name in ("accepted", "rejected", "evaluations"):
        assert torch.equal(getattr(native.sol.stats, name)[~bad], getattr(eager.sol.stats, name)[~bad])
    for mine, other in zip(native.grads, eager.grads, strict=True):
        assert torch.isfinite(mine).all()
        help.assert_close(mine, other, 1e-11)
    assert torch.equal(native.grads[0][bad], torch.zeros_like(y0[bad]))


@pytest.mark.parametrize("method", list(WAYS))
@pytest.mark.parametrize("harm", list(HARMS))
def test_neighbours_are_the_same_to_the_last_bit(harm: str, method: str, help: Any) -> None:
    kind = HARMS[harm]
    options = {"method": method, "controller": WAYS[method], "on_failure": "report", "max_steps": 3000, "compile": True}
    good = help.run(TRAP, starts(*[0] * 10), TS, [TRAP.rate], **options)
    bad = help.run(TRAP, starts(0, kind, 0, 0, kind, 0, 0, 0, kind, 0), TS, [TRAP.rate], **options)
    sound = [0, 2, 3, 5, 6, 7, 9]
    assert torch.equal(good.ys[sound], bad.ys[sound])
    help.assert_close(bad.grads[0][sound], good.grads[0][sound], 1e-14)


def test_each_kind_of_failure_has_its_name() -> None:
    y0 = starts(AT_ONCE, BLOW_UP, LATER, 0, STIFF, 0, 0, 0, 0, 0)
    sol, eager = (pn.solve(TRAP, y0, TS, on_failure="report", max_steps=3000, compile=compile) for compile in (True, False))
    assert sol.status[[0, 1, 3, 4]].tolist() == [Status.NON_FINITE, Status.DIVERGED, Status.OK, Status.STIFF]
    assert torch.equal(sol.status, eager.status)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_start_that_is_not_finite(value: float, help: Any) -> None:
    y0 = starts(*[0] * 10)
    y0[3, 0] = value
    one_way = [pn.solve(TRAP, y0, TS, on_failure="report", compile=compile) for compile in (False, True)]
    assert torch.equal(one_way[0].status, one_way[1].status)
    help.assert_close(one_way[1].ys, one_way[0].ys, 1e-12)
    both_ways = [pn.solve(TRAP, y0, TS, t0=1.1, on_failure="report", compile=compile) for compile in (False, True)]
    assert torch.equal(both_ways[0].status, both_ways[1].status)
    help.assert_close(both_ways[1].ys, both_ways[0].ys, 1e-12)


@pytest.mark.parametrize("limit", [1, 3, 5, 8])
def test_too_many_steps(limit: int, help: Any) -> None:
    y0 = help.unequal(12)
    found = help.agree(
        help.rotor,
        y0,
        [0.0, 0.3, 1.0],
        [help.rotor.mix],
        max_steps=limit,
        on_failure="report",
        controller=pn.Adaptive(1e-4, 1e-5),
        method="tsit5",
    )
    assert not found.sol.ok.all()


def test_the_error_is_the_eager_one() -> None:
    said = []
    for compile in (False, True):
        with pytest.raises(SolveError) as caught:
            pn.solve(TRAP, starts(0, LATER, 0, STIFF, 0, 0, 0, 0, 0, 0), TS, max_steps=3000, compile=compile)
        said.append(str(caught.value))
    assert said[0] == said[1]
