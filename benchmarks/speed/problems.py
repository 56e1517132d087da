"""The problems that everyone solves: known physics, with and without a network beside it, and their start states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import physnode as pn
from benchmarks.accuracy.reference_orbits import KNOWN, OUTER_G, OUTER_MASSES

__all__ = ["CASES", "DAMPING", "Array", "Case", "Problem", "build", "gradient_error", "scaled_error", "tolerances"]

Array = NDArray[Any]
OUTPUTS = 21
DAMPING = 0.1
"""Of the pendulum; not free."""


@dataclass(frozen=True)
class Case:
    """What is solved from t = 0 to ``end``; ``width`` is that of a tanh network with two hidden layers, 0 for none."""

    title: str
    physics: str
    end: float
    width: int = 0


CASES = {
    "three-bodies": Case("Three bodies", "bodies", 2.0),
    "three-bodies-network": Case("Three bodies with a network", "bodies", 2.0, width=64),
    "pendulum-network": Case("Pendulum with a network", "pendulum", 10.0, width=32),
    "solar-system": Case("Outer solar system", "planets", 433_259.0),  # days: a hundred revolutions of Jupiter
}


def tolerances(dtype: torch.dtype) -> tuple[float, float]:
    """(rtol, atol) of the comparison at the same tolerance."""
    return (1e-6, 1e-9) if dtype == torch.float64 else (1e-4, 1e-6)


@dataclass(frozen=True, eq=False)
class Problem:
    """One case at one batch size: a field, where trajectories start, and when they are seen."""

    case: Case
    known: Any
    """The physics alone."""
    residual: nn.Module | None
    """The learned acceleration, if there is one."""
    y0: Tensor
    """``(B, dim)``."""
    ts: Tensor
    """``(T,)`` in float64."""

    @cached_property
    def field(self) -> nn.Module:
        """The sum of both."""
        found: nn.Module = self.known if self.residual is None else self.known + self.residual
        return found

    @property
    def batch(self) -> int:
        """How many trajectories there are."""
        return int(self.y0.shape[0])

    @property
    def layers(self) -> list[nn.Linear]:
        """Those of the network, none where there is none."""
        modules = () if self.residual is None else self.residual.modules()
        return [module for module in modules if isinstance(module, nn.Linear)]

    @property
    def parameters(self) -> list[Tensor]:
        """What the gradient is taken of, in one order for all libraries: constants, then weight and bias of each layer."""
        constants = [value for value in self.known.parameters() if value.requires_grad]
        return constants + [value for layer in self.layers for value in (layer.weight, layer.bias)]

    @property
    def theta(self) -> list[Array]:
        """The same as arrays."""
        return [value.detach().cpu().numpy() for value in self.parameters]

    @property
    def array(self) -> Array:
        """The start states as an array."""
        found: Array = self.y0.cpu().numpy()
        return found


def build(
    name: str,
    batch: int,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    *,
    width: int | None = None,
    horizon: float = 1.0,
) -> Problem:
    """The case of that name; ``width`` and ``horizon`` (a factor) change its network and its end."""
    case = CASES[name]
    known, start, spread = _physics(case.physics)
    units = case.width if width is None else width
    residual = _tame(len(start), units) if units else None
    # blocks of 64 of their own seeds: small batches are the first rows of large ones, at any batch size
    blocks = [torch.randn(64, len(start), generator=torch.Generator().manual_seed(k)).double() for k in range(-(-batch // 64))]
    y0 = start + spread * torch.cat(blocks)[:batch]
    for module in (known, residual):
        if module is not None:
            module.to(device=device, dtype=dtype)
    ts = torch.linspace(0.0, case.end * horizon, OUTPUTS, dtype=torch.float64)
    return Problem(case, known, residual, y0.to(device=device, dtype=dtype), ts)


def _physics(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The field, a start, and by how much starts differ, ``(dim,)``."""
    if name == "pendulum":
        pendulum = pn.systems.Pendulum(1.5, DAMPING, free=("frequency",))
        return pendulum, torch.tensor([1.0, 0.0]).double(), torch.tensor([0.3, 0.3]).double()
    if name == "planets":
        planets = pn.systems.NBody([OUTER_G * mass for mass in OUTER_MASSES], free=("gm",))
        start = torch.tensor(KNOWN["outer planets"].start, dtype=torch.float64)
        return planets, start, _sizes(start, (3, 12, 3, 12)) * torch.tensor(1e-3, dtype=torch.float64)
    bodies = pn.systems.ThreeBody(dimensions=3, free=("masses",))
    _, start = pn.systems.ThreeBody.figure_eight(dimensions=3)
    return bodies, start, torch.full_like(start, 0.02)


def _sizes(start: Tensor, groups: Sequence[int]) -> Tensor:
    """The mean size of each group of components, repeated over it."""
    return torch.cat([part.abs().mean().expand_as(part) for part in torch.split(start, list(groups))])


def _tame(dim: int, width: int) -> pn.nn.Residual:
    """A network whose output is small against the physics, and not zero."""
    generator = torch.Generator().manual_seed(3)
    residual = pn.nn.Residual(dim, width, 2, generator=generator)
    last = residual.network.layers[-1]
    with torch.no_grad():
        for value in last.parameters():
            value.copy_(0.1 * width**-0.5 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return residual


def scaled_error(found: Array, wanted: Array) -> float:
    """Root mean square over all outputs of the error, each component over its root mean square."""
    scale = np.sqrt(np.mean(wanted**2, axis=(0, 1)))
    return float(np.sqrt(np.mean(((found - wanted) / scale) ** 2)))


def gradient_error(found: Sequence[Array], wanted: Sequence[Array]) -> float:
    """The largest error of a parameter's gradient over the largest entry of that parameter's gradient."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, wanted, strict=True))
