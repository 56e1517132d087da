"""Every system of known physics: native code and the eager driver find the same states, gradients and counts.

Regular motions choose their own steps. Chaotic ones, and those with close approaches, are held against each other on a common
mesh: there a rounding error in a step's length grows like the motion itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import physnode as pn
from physnode.systems import (
    Duffing,
    HarmonicOscillator,
    HenonHeiles,
    Kepler,
    LotkaVolterra,
    NBody,
    Pendulum,
    System,
    ThreeBody,
    VanDerPol,
    registry,
)

OWN_STEPS: dict[str, Callable[[], System]] = {
    "pendulum": lambda: Pendulum(1.3, 0.2),
    "harmonic-oscillator": lambda: HarmonicOscillator(0.7, 0.3),
    "van-der-pol": lambda: VanDerPol(1.5),
    "lotka-volterra": LotkaVolterra,
    "kepler": lambda: Kepler(1.4),
    "three-body": lambda: ThreeBody((1.0, 0.4, 0.3), 1.7),
}
MESH: dict[str, Callable[[], System]] = {
    "pendulum": lambda: Pendulum(1.3),
    "harmonic-oscillator": lambda: HarmonicOscillator(0.7),
    "duffing": lambda: Duffing(-1.0, 1.0, 0.3, 0.5, 1.2),
    "henon-heiles": HenonHeiles,
    "kepler": lambda: Kepler(1.4, dimensions=3),
    "n-body": lambda: NBody([2.0, 0.1, 0.3, 0.1, 0.05]),
    "three-body": ThreeBody,
}


def free(make: Callable[[], System]) -> tuple[System, list[torch.Tensor]]:
    system = make()
    system.set_free(list(system.domains))
    return system, [value for value in system.parameters() if value.requires_grad]


def test_every_system_is_here() -> None:
    assert set(OWN_STEPS) | set(MESH) == set(registry())


@pytest.mark.parametrize("name", list(MESH))
def test_on_one_mesh(name: str, help: Any) -> None:
    system, constants = free(MESH[name])
    ts = torch.tensor([0.0, 0.13, 0.5, 0.77, 1.0], dtype=torch.float64)
    found = help.agree(system, system.initial_states(11), ts, constants, method="rk4", controller=pn.Fixed(0.05))
    assert found.sol.stats.accepted.unique().tolist() == [20]


@pytest.mark.parametrize("name", list(OWN_STEPS))
def test_with_steps_of_their_own(name: str, help: Any) -> None:
    """A step's length follows the error, a small difference of large numbers: rounding of 1e-16 in it comes back as about
    1e-10 in the next length, and in the state as that times the error of a step, 1e-6 of the motion, at most."""
    system, constants = free(OWN_STEPS[name])
    ts = torch.linspace(0, 3, 7, dtype=torch.float64)
    help.agree(system, system.initial_states(11), ts, constants, tolerance=1e-12)
