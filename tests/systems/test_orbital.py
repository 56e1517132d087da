from __future__ import annotations

from math import cos, sin, sqrt

import pytest
import torch

from physnode.errors import InputError
from physnode.systems import Kepler

ESCAPE = sqrt(2.0)
STARTS = {
    "circle": (1.0, 0.0, 0.0, 1.0),
    "ellipse": (0.4, 0.0, 0.0, 2.0),
    "ellipse, past pericentre": (1.0, 0.2, 0.4, 0.7),
    "thin ellipse": (0.1, 0.0, 0.0, sqrt(19.0)),
    "almost a parabola, inwards": (1.0, 0.0, -ESCAPE * (1 - 1e-9) * sin(1.0), ESCAPE * cos(1.0)),
    "parabola": (1.0, 0.0, 0.0, ESCAPE),
    "parabola, inwards": (1.0, 0.0, -ESCAPE * sin(1.0), ESCAPE * cos(1.0)),
    "just a hyperbola": (1.0, 0.0, 0.0, ESCAPE * (1 + 1e-9)),
    "hyperbola": (1.0, 0.0, 0.3, 1.7),
    "hyperbola, inwards": (1.0, 0.0, -0.3, 1.7),
    "fast hyperbola": (1.0, 0.0, 0.0, 30.0),
}


@pytest.mark.parametrize("name", ["kepler_e0p2", "kepler_e0p6", "kepler_e0p9", "kepler_mercury_century"])
def test_reference_orbits(name: str, case, integrate) -> None:
    entry = case(name)
    kepler = Kepler(float(entry["parameters"]["mu"]))
    y0 = torch.tensor([float(x) for x in entry["initial_conditions"]["state"]], dtype=torch.float64)
    ts = [0.0, *(float(row["t"]) for row in entry["reference"])]
    truth = torch.tensor([[float(x) for x in row["state"]] for row in entry["reference"]], dtype=torch.float64)
    assert (kepler.exact(ts, y0)[1:] - truth).abs().max() < 2e-12
    if name != "kepler_mercury_century":
        assert (integrate(kepler, y0, ts[:3])[1:] - truth[:2]).abs().max() < 1e-10
        invariants = kepler.invariants(torch.zeros(1), y0)
        assert float(invariants["energy"]) == pytest.approx(float(entry["invariants"]["E"]), rel=1e-14)
        assert float(invariants["angular_momentum"]) == pytest.approx(float(entry["invariants"]["L"]), rel=1e-14)
        assert float(invariants["eccentricity_x"]) == pytest.approx(float(entry["parameters"]["e"]), rel=1e-14)
        assert abs(float(invariants["eccentricity_y"])) < 1e-15


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("start", list(STARTS))
def test_exact_is_the_motion(start: str, past: bool, integrate) -> None:
    kepler = Kepler()
    ts = torch.linspace(0, -8 if past else 8, 9, dtype=torch.float64)
    y0 = torch.tensor(STARTS[start], dtype=torch.float64)
    exact = kepler.exact(ts, y0)
    assert (exact[0] - y0).abs().max() < 1e-15
    assert (exact - integrate(kepler, y0, ts)).abs().max() < 2e-11
    for value in kepler.invariants(ts, exact).values():
        assert (value - value[0]).abs().max() < 1e-12 * y0.abs().max() ** 2


def test_exact_returns_after_whole_revolutions() -> None:
    kepler = Kepler(2.5, dimensions=3)
    y0 = kepler.initial_states(20, seed=4)
    a = -2.5 / (2 * kepler.energy(torch.zeros(1), y0))
    period = 2 * torch.pi * torch.sqrt(a**3 / 2.5)
    ts = torch.stack((torch.zeros(20), period, 7 * period), dim=-1)
    ys = kepler.exact(ts, y0)
    assert (ys - y0.unsqueeze(1)).abs().max() < 1e-12


def test_exact_crosses_the_parabola_without_a_seam() -> None:
    """Ellipse, parabola and hyperbola with the same pericentre differ as little as their eccentricities do."""
    low, middle, high = (Kepler().exact([0.0, 300.0], [1.0, 0.0, 0.0, sqrt(1 + e)])[1] for e in (1 - 1e-6, 1.0, 1 + 1e-6))
    assert (low - middle).abs().max() < 1e-2
    assert (low + high - 2 * middle).abs().max() < 1e-4


def test_fall_along_a_line_until_the_collision(integrate) -> None:
    y0 = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    ts = [0.0, 0.5, 1.0]  # the collision is at pi/(2 sqrt 2) = 1.11
    assert (Kepler().exact(ts, y0) - integrate(Kepler(), y0, ts)).abs().max() < 1e-11


def test_starts_are_ellipses_in_all_directions() -> None:
    for dimensions in (2, 3):
        kepler = Kepler(0.3, dimensions)
        y = kepler.initial_states(4000)
        a = -0.3 / (2 * kepler.energy(torch.zeros(1), y))
        e = kepler.eccentricity_vector(torch.zeros(1), y).norm(dim=-1)
        assert 0.7 < a.min() < 0.71
        assert 1.29 < a.max() < 1.3
        assert 0 <= e.min() < 0.01
        assert 0.69 < e.max() < 0.7
        assert (y[:, :dimensions].mean(0).abs() < 0.1).all()


def test_energy_in_space_does_not_depend_on_orientation() -> None:
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    kepler = Kepler(dimensions=3)
    y = kepler.initial_states(5)
    turned = (y.view(5, 2, 3) @ turn.mT).flatten(1)
    torch.testing.assert_close(kepler(torch.zeros(1), turned), (kepler(torch.zeros(1), y).view(5, 2, 3) @ turn.mT).flatten(1))
    torch.testing.assert_close(
        kepler.eccentricity_vector(torch.zeros(1), turned), kepler.eccentricity_vector(torch.zeros(1), y) @ turn.mT
    )


def test_start_at_the_centre_is_refused() -> None:
    with pytest.raises(InputError, match="same place"):
        Kepler().exact([0.0, 1.0], [0.0, 0.0, 1.0, 0.0])
