"""One method of every family, one field that all of them take, and the exact gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.engine.controllers import Controller

F64 = torch.float64


class Swing(pn.SecondOrder):
    """q'' = -k sin q + g cos(2t) q: ``k`` a parameter, ``g`` closed over, the time in the field, and no velocity."""

    velocity_dependent = False

    def __init__(self, gain: Tensor | None = None) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(1.3, dtype=F64))
        held = torch.tensor(0.35, dtype=F64) if gain is None else gain
        self.gain = lambda: held  # closed over: no parameter of this module

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -self.stiffness * torch.sin(q) + self.gain() * torch.cos(2 * t) * q


@dataclass(frozen=True)
class Family:
    """A method, and the control of its steps."""

    name: str
    controller: Controller

    def solve(self, field: Any, y0: Any, ts: Any, **options: Any) -> pn.Solution:
        return pn.solve(field, y0, ts, method=self.name, **{"controller": self.controller, **options})


FAMILIES = {
    family.name: family
    for family in (
        Family("rk4", pn.Fixed(0.15)),
        Family("tsit5", pn.Adaptive(1e-5, 1e-6)),
        Family("dop853", pn.Adaptive(1e-7, 1e-8)),
        Family("dopri8", pn.Adaptive(1e-7, 1e-8)),
        Family("leapfrog", pn.Fixed(0.15)),
        Family("kahan_li8", pn.Fixed(0.3)),
        Family("gauss4", pn.Fixed(0.15)),
        Family("radau5", pn.Adaptive(1e-4, 1e-5)),
        Family("dprkn6", pn.Adaptive(1e-6, 1e-7)),
        Family("gauss_radau15", pn.Adaptive(1e-6, 1e-8)),
    )
}


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    """Explicit, splitting, implicit, Nystrom and Gauss-Radau methods."""
    return FAMILIES[request.param]


@pytest.fixture(params=["direct", "aca", "symplectic"])
def gradient(request: pytest.FixtureRequest) -> str:
    """Every gradient that is exact for the steps made."""
    return str(request.param)


@pytest.fixture
def swing() -> Callable[..., Swing]:
    """Makes the field."""
    return Swing


@pytest.fixture
def y0() -> Tensor:
    """Two starts (q, v) that need unequal steps."""
    return torch.tensor([[0.5, 0.3], [2.4, -0.9]], dtype=F64)
