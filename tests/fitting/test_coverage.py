"""An error bar means what it says: over many simulated data sets, 68 % intervals hold the truth about 68 times in a hundred."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import physnode as pn

TRUTH = {"frequency": 2.0, "damping": 0.15}


def fits(
    swings: Callable[..., pn.data.Trajectories], count: int, seed: int, rows: int, **options: float
) -> Iterator[pn.FitResult]:
    for number in range(count):
        yield pn.fit(
            pn.systems.Pendulum(1.97, 0.13, free=("frequency", "damping")),
            swings([(1.5, 0.3)], np.linspace(0, 8, rows), seed=seed + number, **options),
            shooting="single",
            integrator="tsit5",
            controller=pn.Adaptive(1e-5, 1e-7),
            progress=False,
        )


@pytest.mark.xdist_group("coverage, independent")
def test_formal_errors_cover_independent_noise(swings: Callable[..., pn.data.Trajectories]) -> None:
    deviations, robust, chi2 = [], [], []
    for result in fits(swings, 60, seed=0, rows=40):
        for name, truth in TRUTH.items():
            deviations.append((result.parameters[name] - truth) / result.errors[name])
            robust.append((result.parameters[name] - truth) / result.robust_errors[name])
        chi2.append(result.reduced_chi2)
    inside = np.mean(np.abs(deviations) < 1)
    assert 0.58 < inside < 0.78
    assert np.std(deviations) == pytest.approx(1, abs=0.2)
    assert abs(np.mean(deviations)) < 0.3  # no bias
    assert 0.5 < np.mean(np.abs(robust) < 1) < 0.78
    # 80 measurements less 4 unknowns: chi-square over its degrees of freedom scatters by sqrt(2/76) about 1
    assert np.mean(chi2) == pytest.approx(1, abs=4 * np.sqrt(2 / 76 / 60))


@pytest.mark.xdist_group("coverage, correlated")
def test_robust_errors_cover_correlated_noise_better(swings: Callable[..., pn.data.Trajectories]) -> None:
    """Each row's noise follows the one before (0.8): formal errors, which cannot know, are about three times too small."""
    formal, robust = [], []
    for result in fits(swings, 30, seed=1000, rows=160, correlation=0.8):
        for name, truth in TRUTH.items():
            miss = abs(result.parameters[name] - truth)
            formal.append(miss < result.errors[name])
            robust.append(miss < result.robust_errors[name])
    assert np.mean(formal) < 0.4
    assert np.mean(robust) > np.mean(formal) + 0.15
