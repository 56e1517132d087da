"""Pendulums to fit: simulated swings with normal noise, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

import physnode as pn

FREQUENCY, DAMPING = 2.0, 0.15


@pytest.fixture(scope="session")
def swings() -> Callable[..., pn.data.Trajectories]:
    """``swings(starts, t, noise=0.03, seed=0, ...)``: noisy angle and angular velocity of a damped pendulum."""
    return make_swings


def make_swings(
    starts: Sequence[Sequence[float]] = ((1.2, 0.0), (-2.0, 0.5)),
    t: Sequence[np.ndarray] | np.ndarray | None = None,
    *,
    noise: float | tuple[float, float] = 0.03,
    seed: int = 0,
    given: bool = True,
    correlation: float = 0.0,
    variables: Sequence[str] = ("angle", "angular_velocity"),
    **options: object,
) -> pn.data.Trajectories:
    rng = np.random.default_rng(seed)
    times = [np.linspace(0, 8, 40) if t is None else t] * len(starts) if not isinstance(t, list) else t
    both = noise if isinstance(noise, tuple) else (noise, noise)
    system = pn.systems.Pendulum(frequency=FREQUENCY, damping=DAMPING)
    columns: dict[str, list[np.ndarray]] = {"angle": [], "angular_velocity": []}
    for start, when in zip(starts, times, strict=True):
        exact = pn.solve(system, [list(start)], when, method="dop853", controller=pn.Adaptive(1e-10, 1e-10)).ys[0].numpy()
        for i, name in enumerate(columns):
            columns[name].append(exact[:, i] + both[i] * autoregressive(rng, len(when), correlation))
    sigma = {name: both[i] for i, name in enumerate(columns) if name in variables}
    rates = {"angle": "rad", "angular_velocity": "rad s-1"}
    units = {"time": "s", **{name: rates[name] for name in variables}}
    return pn.data.from_arrays(
        times, {name: columns[name] for name in variables}, sigma=sigma if given else None, units=units, **options
    )


def autoregressive(rng: np.random.Generator, n: int, correlation: float) -> np.ndarray:
    """Stationary normal noise of unit variance with this correlation from one row to the next."""
    white = rng.normal(size=n)
    values = np.empty(n)
    values[0] = white[0]
    for i in range(1, n):
        values[i] = correlation * values[i - 1] + np.sqrt(1 - correlation**2) * white[i]
    return values


@pytest.fixture(scope="session")
def start_model() -> Callable[..., pn.systems.Pendulum]:
    """A pendulum whose constants are near the truth, and free."""
    return lambda frequency=1.95, damping=0.12, free=("frequency", "damping"): pn.systems.Pendulum(
        frequency, damping, free=free
    )


@pytest.fixture(scope="session")
def result(swings: Callable[..., pn.data.Trajectories], start_model: Callable[..., pn.systems.Pendulum]) -> pn.FitResult:
    """One fit of physics alone that many tests look at."""
    torch.set_num_threads(1)
    return pn.fit(start_model(), swings(), shooting="single", progress=False)
