from __future__ import annotations

import math

import pytest
import torch

import physnode as pn
from physnode.diagnostics import long_horizon, observed_invariants
from physnode.errors import InputError


def states(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_a_conservative_orbit_stays_where_it_is() -> None:
    swing = pn.systems.Pendulum()
    found = long_horizon(swing, states((1.0, 0.0), (2.0, 0.0)), torch.zeros(2), torch.tensor([7.0, 9.0]), factor=8)
    assert found.ok.all()
    assert found.growth.max() < 1.01
    assert found.solution.ts[:, -1].tolist() == pytest.approx([56, 72])
    assert found.drifts["energy"].relative.abs().max() < 1e-3


def test_growth_is_measured_against_the_span_of_the_data() -> None:
    def grow(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 0.5 * y

    found = long_horizon(
        grow, states((1.0, -3.0)), torch.zeros(1), torch.ones(1), factor=5, controller=pn.Adaptive(1e-10, 1e-12)
    )
    assert found.growth[0].tolist() == pytest.approx([math.exp(2.0)] * 2, rel=1e-8)
    assert found.drifts == {}


def test_a_blow_up_is_reported_and_the_other_trajectory_kept() -> None:
    def square(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y * y

    found = long_horizon(square, states((1.0,), (-1.0,)), torch.zeros(2), torch.full((2,), 0.5), factor=4)
    assert found.ok.tolist() == [False, True]
    assert found.growth[0].isinf().all()
    assert found.growth[1].item() < 1
    assert "trajectory 0" in found.solution.failures


def test_a_horizon_needs_somewhere_to_go() -> None:
    swing, y0 = pn.systems.Pendulum(), states((1.0, 0.0))
    with pytest.raises(InputError, match="above 1"):
        long_horizon(swing, y0, torch.zeros(1), torch.ones(1), factor=1)
    with pytest.raises(InputError, match="single time"):
        long_horizon(swing, y0, torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize(("amplitude", "least"), [(2.0, 0.7), (0.02, 0.05)])
def test_the_energy_of_noisy_measurements_is_constant_within_its_errors(amplitude: float, least: float) -> None:
    """Also near rest, where the energy has its minimum; its errors are then cautious, and not zero as its slope is."""
    sigma = {"angle": 0.02, "angular_velocity": 0.03}
    swing = pn.systems.Pendulum()
    ratios = []
    for seed in range(4):
        item = pn.data.simulate(swing, y0=[amplitude, 0.0], t1=40.0, rows=400, noise=sigma, seed=seed)[0]
        ratios.append(observed_invariants(swing, item.t, item.y, item.observed, item.sigma)["energy"].reduced_chi2)
    assert least < sum(ratios) / 4 < 1.3


def test_a_loss_is_seen_and_rows_with_missing_values_left_out() -> None:
    swing = pn.systems.Pendulum(2.0, 0.2)
    noise = {"angle": 0.02, "angular_velocity": 0.03}
    item = pn.data.simulate(swing, y0=[2.0, 0.0], t1=10.0, rows=200, noise=noise, missing=0.2, seed=1)[0]
    found = observed_invariants(swing, item.t, item.y, item.observed, item.sigma)["energy"]
    assert len(found.value) == int(item.observed.all(-1).sum()) < 200
    assert found.change < -2
    assert found.reduced_chi2 > 50
    assert found.drift.value.shape == found.value.shape


def test_errors_are_those_of_displaced_states() -> None:
    spring, sigma = pn.systems.HarmonicOscillator(), torch.tensor([[0.3, 0.4]] * 2, dtype=torch.float64)
    found = observed_invariants(spring, torch.tensor([0.0, 1.0]), states((0.0, 0.0), (2.0, 0.0)), sigma=sigma)["energy"]
    assert found.error is not None
    # E = (q^2 + v^2) / 2: at rest sigma^2 / 2 each way; at q = 2 the displacement outwards counts
    assert found.error.tolist() == pytest.approx([math.hypot(0.045, 0.08), math.hypot((2.3**2 - 4) / 2, 0.08)])


def test_without_sigma_there_are_no_errors() -> None:
    kepler = pn.systems.Kepler()
    item = pn.data.simulate(kepler, t1=10.0, rows=50)[0]
    found = observed_invariants(kepler, item.t, item.y)
    assert set(found) == {"energy", "angular_momentum", "eccentricity_x", "eccentricity_y"}
    for value in found.values():
        assert value.error is None
        assert math.isnan(value.reduced_chi2)
        assert value.scatter < 1e-8
    assert found["energy"].mean == pytest.approx(float(found["energy"].value[0]))


def test_a_row_must_be_complete() -> None:
    observed = torch.tensor([[True, False]] * 3)
    with pytest.raises(InputError, match="no row"):
        observed_invariants(pn.systems.Pendulum(), torch.arange(3.0), torch.zeros(3, 2), observed)
