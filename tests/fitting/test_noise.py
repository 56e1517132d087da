"""Standard deviations: as given, as ratios only, or estimated where the data give none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import physnode as pn

Swings = Callable[..., pn.data.Trajectories]


def model() -> pn.systems.Pendulum:
    return pn.systems.Pendulum(1.95, 0.12, free=("frequency", "damping"))


def test_levels_that_are_not_given_are_found(swings: Swings) -> None:
    data = swings(t=np.linspace(0, 8, 120), noise=(0.05, 0.01), given=False)
    result = pn.fit(model(), data, progress=False)
    assert result.sigma_source == "estimated"
    assert result.group_sigma == {"angle": pytest.approx(0.05, rel=0.15), "angular_velocity": pytest.approx(0.01, rel=0.15)}
    assert result.reduced_chi2 == pytest.approx(1, abs=0.03)
    assert (result.sigma[1][:, 1] == result.group_sigma["angular_velocity"]).all()
    assert "estimated from the residuals: angle 0.0" in result.summary()
    assert "by construction" in result.summary()
    given = pn.fit(model(), swings(t=np.linspace(0, 8, 120), noise=(0.05, 0.01)), progress=False)
    assert result.errors == pytest.approx(given.errors, rel=0.15)
    assert result.parameters["frequency"] == pytest.approx(given.parameters["frequency"], abs=given.errors["frequency"])


def test_estimated_levels_are_lent_to_other_trajectories(swings: Swings) -> None:
    data = swings(t=np.linspace(0, 8, 60), noise=(0.05, 0.01), given=False)
    result = pn.fit(model(), data, progress=False)
    other = swings([(0.8, 0.3)], np.linspace(0, 8, 60), noise=(0.05, 0.01), seed=9, given=False)
    assert 0.6 < result.validate(other).reduced_chi2 < 1.5
    assert result.validate(other, sigma={"angle": 0.5, "angular_velocity": 0.1}).reduced_chi2 < 0.05


def test_every_body_has_a_level_of_its_own() -> None:
    """x and y of one body share a level; two bodies do not."""
    truth = pn.systems.NBody([39.5, 0.04], dimensions=2)
    y0 = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, -0.006, 0.0, 6.2], dtype=torch.float64)
    t = torch.linspace(0, 1, 60, dtype=torch.float64)
    with torch.no_grad():
        ys = pn.solve(truth, y0, t, method="dop853").ys.reshape(60, 2, 2, 2).numpy()
    rng = np.random.default_rng(4)
    noise = np.array([1e-4, 1e-2]).reshape(1, 1, 2, 1)
    axes = {"body": ["star", "planet"], "space": ["x", "y"]}
    noisy = ys + noise * rng.normal(size=(60, 2, 2, 2))
    data = pn.data.from_arrays(
        t.numpy(), {"position": noisy[:, 0], "velocity": noisy[:, 1]}, labels={"position": axes, "velocity": axes}
    )
    start = pn.systems.NBody([39.0, 0.04], dimensions=2, free=("gm",))
    result = pn.fit(start, data, fixed=["gm[1]"], shooting="single", controller=pn.Adaptive(1e-8, 1e-9), progress=False)
    assert set(result.group_sigma) == {"position[star]", "position[planet]", "velocity[star]", "velocity[planet]"}
    assert result.group_sigma["position[planet]"] == pytest.approx(1e-2, rel=0.2)
    assert result.group_sigma["velocity[star]"] == pytest.approx(1e-4, rel=0.2)
    assert abs(result.parameters["gm[0]"] - 39.5) < 4 * result.errors["gm[0]"]


def test_ratios_only(result: pn.FitResult, swings: Swings) -> None:
    """Standard deviations that are all five times too large: relative errors come out the same, absolute ones five times."""
    wrong = {"angle": 0.15, "angular_velocity": 0.15}
    relative = pn.fit(model(), swings(), sigma=wrong, absolute_sigma=False, shooting="single", progress=False)
    scaled = {name: error * result.reduced_chi2**0.5 for name, error in result.errors.items()}
    assert relative.errors == pytest.approx(scaled, rel=1e-3)
    assert relative.parameters == pytest.approx(result.parameters, rel=1e-5)
    assert relative.robust_errors == pytest.approx(result.robust_errors, rel=1e-3)  # which never believed them
    assert "taken as relative" in relative.summary()
    absolute = pn.fit(model(), swings(), sigma=wrong, shooting="single", progress=False)
    assert absolute.errors == pytest.approx({name: 5 * error for name, error in result.errors.items()}, rel=1e-3)
    assert "standard deviations from 1" in absolute.summary()


def test_given_in_the_call_serves_validation_too(swings: Swings) -> None:
    levels = {"angle": 0.03, "angular_velocity": 0.03}
    result = pn.fit(model(), swings(given=False), sigma=levels, shooting="single", progress=False)
    assert result.sigma_source == "given"
    assert 0.5 < result.validate(swings([(0.7, 0.1)], seed=3, given=False)).reduced_chi2 < 1.6


def test_a_standard_deviation_of_zero_is_refused(swings: Swings) -> None:
    with pytest.raises(pn.errors.InputError, match="not positive"):
        pn.fit(model(), swings(), sigma={"angle": 0.0, "angular_velocity": 0.03}, progress=False)
