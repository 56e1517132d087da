"""Properties of any solve, on problems drawn at random: it can be turned round, cut in two, and batched."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from physnode.engine.controllers import Adaptive, Fixed
from physnode.fields import SecondOrder
from physnode.solve import solve

FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None)
number = st.floats(-2, 2, allow_nan=False)
rate = st.floats(0.1, 3)
methods = st.sampled_from(["bosh3", "dopri5", "tsit5", "dop853"])
TIGHT = Adaptive(1e-9, 1e-10)


class Swing(SecondOrder):
    velocity_dependent = False

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -self.rate * torch.sin(q) + torch.cos(self.rate * t) * q / 4


def tensor(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@FEW
@given(state=st.lists(number, min_size=2, max_size=2), rate=rate, name=methods, start=number, length=st.floats(0.01, 3))
def test_back_to_the_start(state: list[float], rate: float, name: str, start: float, length: float) -> None:
    controller = Adaptive(1e-6, 1e-7) if name == "bosh3" else TIGHT
    there = solve(Swing(rate), state, [start, start + length], method=name, controller=controller)
    back = solve(Swing(rate), there.ys[-1], [start + length, start], method=name, controller=controller)
    assert torch.allclose(back.ys[-1], tensor([state])[0], atol=1e-3 if name == "bosh3" else 1e-6)


@FEW
@given(state=st.lists(number, min_size=2, max_size=2), rate=rate, name=st.sampled_from(["leapfrog", "yoshida4", "kahan_li8"]))
def test_symmetric_methods_go_back_to_rounding(state: list[float], rate: float, name: str) -> None:
    there = solve(Swing(rate), state, [0.0, 2.0], method=name, controller=Fixed(0.125))
    back = solve(Swing(rate), there.ys[-1], [2.0, 0.0], method=name, controller=Fixed(0.125))
    assert torch.allclose(back.ys[-1], tensor([state])[0], atol=1e-11)


@FEW
@given(state=st.lists(number, min_size=2, max_size=2), rate=rate, name=methods, cut=st.floats(0.05, 0.95))
def test_two_halves_are_the_whole(state: list[float], rate: float, name: str, cut: float) -> None:
    controller = Adaptive(1e-6, 1e-7) if name == "bosh3" else TIGHT
    whole = solve(Swing(rate), state, [0.0, 2 * cut, 2.0], method=name, controller=controller).ys
    first = solve(Swing(rate), state, [0.0, 2 * cut], method=name, controller=controller).ys[-1]
    second = solve(Swing(rate), first, [2 * cut, 2.0], method=name, controller=controller).ys[-1]
    atol = 1e-4 if name == "bosh3" else 1e-7
    assert torch.allclose(whole[1], first, atol=atol)
    assert torch.allclose(whole[2], second, atol=atol)


@FEW
@given(
    states=st.lists(st.lists(number, min_size=2, max_size=2), min_size=2, max_size=9),
    rate=rate,
    name=st.sampled_from(["tsit5", "dop853", "rk4", "leapfrog"]),
    outputs=st.integers(1, 6),
    read_out=st.sampled_from(["auto", "restep"]),
)
def test_a_batch_is_its_trajectories(states: list[list[float]], rate: float, name: str, outputs: int, read_out: str) -> None:
    """Up to how a processor rounds a vector and a number: neighbours share arithmetic, not results."""
    options = {"method": name, "read_out": read_out, "controller": Adaptive() if name in ("tsit5", "dop853") else Fixed(0.2)}
    ts = torch.linspace(0.3, 2.0, outputs, dtype=torch.float64)
    together = solve(Swing(rate), tensor(states), ts, t0=0.0, **options)
    for row, state in enumerate(states):
        alone = solve(Swing(rate), state, ts, t0=0.0, **options)
        assert torch.allclose(together.ys[row], alone.ys, rtol=1e-13, atol=1e-14)
        assert together.stats.accepted[row] == alone.stats.accepted


@FEW
@given(shift=st.floats(-100, 100), rate=rate)
def test_only_differences_of_time_matter_to_a_field_without_time(shift: float, rate: float) -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return -rate * torch.sin(y)

    ts = torch.linspace(0, 2, 5, dtype=torch.float64)
    assert torch.allclose(solve(field, [1.0], ts + shift).ys, solve(field, [1.0], ts).ys, atol=1e-9)


@pytest.mark.parametrize("method", ["euler", "leapfrog"])
def test_sums_of_states_are_compensated(method: str) -> None:
    """3000 additions of a number that is not representable lose less than one unit in the last place."""

    class Drift(SecondOrder):
        velocity_dependent = False

        def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
            return torch.zeros_like(q)

    sol = solve(Drift(), [7.0, 0.1], [0.0, 3.0], method=method, controller=Fixed(1e-3))
    assert abs(float(sol.ys[-1, 0]) - 7.3) <= 1e-15
