"""Every explicit method, both ways from the epoch: values, gradients and counts as the eager driver finds them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import physnode as pn

RUNGE_KUTTA = {
    "euler": pn.Fixed(0.05),
    "midpoint": pn.Fixed(0.1),
    "heun": pn.Adaptive(3e-3, 3e-4, first_step=1.0),
    "rk4": pn.Fixed(0.1),
    "bosh3": pn.Adaptive(1e-2, 1e-3),
    "dopri5": pn.Adaptive(1e-4, 1e-5, first_step=1.0),
    "tsit5": pn.Adaptive(1e-4, 1e-5),
    "dop853": pn.Adaptive(1e-5, 1e-6),
    "dopri8": pn.Adaptive(1e-5, 1e-6, first_step=2.0),
}
SPLITTING = ("leapfrog", "yoshida4", "yoshida6", "kahan_li8")
# on the epoch, on a step's end, between, close to an end, at the end; rows of unequal length
TS = 0.3 + torch.tensor([0.0, 0.1, 0.234, 0.299, 0.5], dtype=torch.float64) * torch.tensor([[1.0], [2.0], [0.4]]).double()
T0 = TS[:, 2] * torch.tensor([1.0, 1.003, 1.0], dtype=torch.float64)
FOUR = torch.tensor([[0.5, 0.3, 0.1, -0.2], [-0.4, 0.2, 0.3, 0.6], [0.9, 0.0, -0.1, 0.2]], dtype=torch.float64)


class Chain(pn.SecondOrder):
    velocity_dependent = False

    def __init__(self) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -self.stiffness * torch.sin(q) + torch.cos(2 * t) * q.flip(-1)


class Relativistic(pn.SeparableHamiltonian):
    def __init__(self) -> None:
        super().__init__()
        self.mass = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def kinetic(self, p: Tensor) -> Tensor:
        return torch.sqrt(self.mass**2 + p * p).sum(-1)

    def potential(self, q: Tensor) -> Tensor:
        return (self.mass * q**4).sum(-1) - torch.cos(q).prod(-1)


CHAIN, RELATIVISTIC = Chain(), Relativistic()


def test_no_method_is_forgotten() -> None:
    explicit = {name for name, method in pn.methods.available().items() if not method.implicit}
    assert explicit - {"gauss_radau15"} == {*RUNGE_KUTTA, *SPLITTING, "dprkn6"}


@pytest.mark.parametrize("method", list(RUNGE_KUTTA))
def test_runge_kutta(method: str, help: Any) -> None:
    y0 = torch.tensor([[0.5, 0.3, 1.0], [-0.4, 0.2, 12.0], [0.9, 0.0, 3.0]], dtype=torch.float64)
    parameters = list(help.rotor.parameters())
    found = help.agree(help.rotor, y0, TS, parameters, t0=T0, method=method, controller=RUNGE_KUTTA[method])
    assert int(found.sol.stats.accepted.max()) > 1.5 * int(found.sol.stats.accepted.min())
    if RUNGE_KUTTA[method].__class__ is pn.Adaptive:
        assert int(found.sol.stats.rejected.max()) > 0


@pytest.mark.parametrize("method", [*SPLITTING, "dprkn6"])
def test_second_order(method: str, help: Any) -> None:
    controller = pn.Adaptive(1e-5, 1e-6) if method == "dprkn6" else pn.Fixed(0.07)
    help.agree(CHAIN, FOUR, TS, [CHAIN.stiffness], t0=T0, method=method, controller=controller)


@pytest.mark.parametrize("method", ["leapfrog", "yoshida4"])
def test_drift_and_kick_of_a_separable_hamiltonian(method: str, help: Any) -> None:
    help.agree(RELATIVISTIC, FOUR, TS, [RELATIVISTIC.mass], t0=T0, method=method, controller=pn.Fixed(0.07))


@pytest.mark.parametrize("method", ["tsit5", "bosh3"])
def test_outputs_by_steps_of_their_own(method: str, help: Any) -> None:
    y0, parameters = help.unequal(3), list(help.rotor.parameters())
    help.agree(help.rotor, y0, TS, parameters, t0=T0, method=method, read_out="restep", controller=pn.Adaptive(1e-3, 1e-4))


@pytest.mark.parametrize(
    "controller",
    [
        pn.Adaptive(1e-5),
        pn.Adaptive(1e-4, [1e-5, 1e-6, 1e-3], icoeff=0.3, pcoeff=0.4, dcoeff=0.1),
        pn.Adaptive(1e-3, 1e-4, first_step=0.3, min_step=0.01, max_step=0.2, safety=0.8, min_factor=0.3, max_factor=3.0),
        pn.Adaptive(1e-4, 1e-5, norm=lambda scaled: scaled[:, :2].abs().amax(-1)),
    ],
    ids=["atol measured by the start", "PID, one atol a component", "limits", "own norm"],
)
def test_step_size_control(controller: pn.Adaptive, help: Any) -> None:
    y0, parameters = help.unequal(5), list(help.rotor.parameters())
    found = help.agree(help.rotor, y0, torch.linspace(0, 2, 5), parameters, method="bosh3", controller=controller)
    assert int(found.sol.stats.rejected.sum()) > 0
