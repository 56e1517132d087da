"""Memory is as claimed: records and no graph after the solve, the graph of one step or one evaluation on the way back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.live_bytes import LiveBytes

F64 = torch.float64
NAMES = ["rk4", "dop853", "leapfrog", "gauss4", "radau5", "dprkn6", "gauss_radau15"]
STEP = 0.05
STATE = 4 * 2 * 8
"""Bytes of one state of the batch."""


class Wide(pn.SecondOrder):
    """q'' = net(q), ``P`` bytes of parameters of which nearly all are one matrix, far above the bytes of a state."""

    velocity_dependent = False

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        layers = [nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)]
        self.net = nn.Sequential(*layers).double()

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return self.net(q)


@dataclass
class Bytes:
    """Of one solve of N steps and its backward."""

    parameters: int
    after_forward: int
    backward_peak: int
    after_backward: int


@cache
def measured(name: str, gradient: str, steps: int) -> Bytes:
    torch.manual_seed(3)
    field = Wide()
    y0 = torch.randn(4, 2, dtype=F64)
    with LiveBytes() as live:
        ys = pn.solve(field, y0, [0.0, steps * STEP], method=name, controller=pn.Fixed(STEP), gradient=gradient).ys
        loss = ys.square().sum()
        del ys
        after = live.now
        live.peak = after
        loss.backward()
        peak = live.peak - after
        del loss
        left = live.now
    return Bytes(sum(p.numel() * p.element_size() for p in field.parameters()), after, peak, left)


@pytest.mark.parametrize("name", NAMES)
class TestSweeps:
    @pytest.mark.parametrize("swept", ["aca", "symplectic"])
    def test_forward_keeps_records_of_the_steps_and_no_graph(self, name: str, swept: str) -> None:
        """Bytes alive grow by some states and times a step, far less than the width of the field."""
        few, many = (measured(name, swept, steps) for steps in (10, 20))
        per_step = (many.after_forward - few.after_forward) / 10
        stages = pn.methods.get(name).evaluations + 10
        assert STATE <= per_step <= (stages + 4) * STATE

    @pytest.mark.parametrize("swept", ["aca", "symplectic"])
    def test_backward_holds_one_graph_whatever_the_number_of_steps(self, name: str, swept: str) -> None:
        few, many = (measured(name, swept, steps) for steps in (10, 20))
        assert many.backward_peak <= few.backward_peak + 20 * STATE

    def test_parameter_gradients_are_added_up_in_place(self, name: str) -> None:
        """The sum and the share of one evaluation: 2 P at the peak, and half a P for everything else."""
        found = measured(name, "symplectic", 10)
        assert found.backward_peak <= 2.5 * found.parameters


@pytest.mark.parametrize("name", ["rk4", "leapfrog", "gauss4", "radau5", "dprkn6"])
def test_those_of_large_networks_are_added_up_in_place_by_whole_steps_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods whose step has a graph that is small beside P; autograd alone would hold 4 P."""
    monkeypatch.setattr("physnode.gradients.sums._LARGE", 2**16)  # the network here counts as a large one
    found = measured.__wrapped__(name, "aca", 10)
    assert found.backward_peak <= 2.5 * found.parameters


@pytest.mark.parametrize("name", NAMES)
def test_all_is_freed_with_the_loss(name: str, gradient: str) -> None:
    """Nothing but the gradients of the parameters is left."""
    found = measured(name, gradient, 10)
    assert found.after_backward == found.parameters


def test_the_graph_of_every_step_is_the_price_of_direct() -> None:
    """And it is freed as the backward passes: what is above the parameters' gradients is not above what was there before."""
    few, many = (measured("rk4", "direct", steps) for steps in (10, 20))
    assert many.after_forward > 1.8 * few.after_forward
    assert many.backward_peak <= few.backward_peak + 20 * STATE
