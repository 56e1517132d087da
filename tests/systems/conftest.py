"""Reference digits, and an integrator that is not ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from physnode.fields import VectorField
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
)

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "reference_solutions.json"

SYSTEMS: dict[str, Callable[[], System]] = {
    "pendulum": lambda: Pendulum(1.3),
    "pendulum damped": lambda: Pendulum(1.3, 0.2),
    "harmonic": lambda: HarmonicOscillator(0.7),
    "harmonic damped": lambda: HarmonicOscillator(0.7, 0.3),
    "van der pol": lambda: VanDerPol(1.5),
    "duffing": lambda: Duffing(0.8, 1.2),
    "duffing driven": lambda: Duffing(-1.0, 1.0, 0.3, 0.5, 1.2),
    "henon-heiles": HenonHeiles,
    "lotka-volterra": LotkaVolterra,
    "kepler 2": lambda: Kepler(1.4),
    "kepler 3": lambda: Kepler(1.4, dimensions=3),
    "n-body 4 in the plane": lambda: NBody([1.0, 0.2, 0.0, 0.1], dimensions=2),
    "n-body 5 in space": lambda: NBody([2.0, 0.1, 0.3, 0.1, 0.05]),
    "three bodies": lambda: ThreeBody((1.0, 0.4, 0.3), 1.7),
}


@pytest.fixture(params=list(SYSTEMS))
def system(request: pytest.FixtureRequest) -> System:
    return SYSTEMS[request.param]()


@pytest.fixture
def case() -> Callable[[str], dict[str, Any]]:
    if not REFERENCE.exists():
        pytest.skip("the folder with reference solutions is not beside this checkout")
    cases = json.loads(REFERENCE.read_text())["cases"]
    return {entry["id"]: entry for entry in cases}.__getitem__


@pytest.fixture
def integrate() -> Callable[..., torch.Tensor]:
    """States ``(T, dim)`` at ``ts`` of a field started at ``y0``, by SciPy's order-8 method at 1e-13."""

    def run(field: VectorField, y0: torch.Tensor, ts: Any, rtol: float = 1e-13) -> torch.Tensor:
        times = np.asarray(ts, dtype=float)

        def rate(t: float, y: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return field(torch.tensor([t], dtype=torch.float64), torch.from_numpy(y)).numpy()

        out = solve_ivp(rate, (times[0], times[-1]), y0.numpy(), method="DOP853", t_eval=times, rtol=rtol, atol=rtol / 10)
        return torch.from_numpy(np.ascontiguousarray(out.y.T))

    return run
