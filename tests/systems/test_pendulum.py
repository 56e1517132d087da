from __future__ import annotations

from math import cos, pi

import numpy as np
import pytest
import torch
from scipy.special import ellipj, ellipk, ellipkinc, ellipkm1

from physnode.errors import InputError
from physnode.systems import Pendulum
from physnode.systems.elliptic import amplitude, incomplete_integral

FREQUENCY = 1.3
STARTS = {
    "swing": (0.5, 0.0),
    "swing from below, backwards": (-0.5, -0.9),
    "far swing": (3.0, 0.1),
    "rest near the top": (3.1415, 0.0),
    "swing, many turns off": (20.0, 0.3),
    "turning over": (1.0, 3.0),
    "turning over backwards": (10.0, -4.0),
    "just under the separatrix": (0.0, 2 * FREQUENCY * (1 - 1e-9)),
    "just over the separatrix": (0.0, -2 * FREQUENCY * (1 + 1e-9)),
    "on the separatrix": (0.0, 2 * FREQUENCY),
    "on the separatrix, half way": (-2.0, 2 * FREQUENCY * cos(1.0)),
    "rest": (0.0, 0.0),
}


@pytest.mark.parametrize("name", ["pendulum_theta0_0p5", "pendulum_theta0_pi_2", "pendulum_theta0_3"])
def test_reference_swings(name: str, case, integrate) -> None:
    entry = case(name)
    y0 = torch.tensor([float(x) for x in entry["initial_conditions"]["state"]], dtype=torch.float64)
    ts = [0.0, *(float(row["t"]) for row in entry["reference"])]
    truth = torch.tensor([[float(x) for x in row["state"]] for row in entry["reference"]], dtype=torch.float64)
    tolerance = float(entry["suggested_tolerance"])
    assert (integrate(Pendulum(), y0, ts)[1:] - truth).abs().max() < 10 * tolerance
    assert (Pendulum().exact(ts, y0)[1:] - truth).abs().max() < tolerance
    period = float(entry["period"])
    assert (Pendulum().exact([0.0, period], y0)[1] - y0).abs().max() < tolerance
    energy = float(next(iter(entry["invariants"].values())))
    assert abs(float(Pendulum().energy(torch.zeros(1), y0)) - energy) < 1e-15


def test_reference_damped(case, integrate) -> None:
    entry = case("damped_pendulum_aphynity")
    pendulum = Pendulum(2 * pi / 6, 0.2)
    ys = integrate(pendulum, torch.tensor([1.5, 0.0], dtype=torch.float64), [0.0, 10.0, 20.0])
    truth = torch.tensor([[float(x) for x in row["state"]] for row in entry["reference"]], dtype=torch.float64)
    assert (ys[1:] - truth).abs().max() < 1e-11


@pytest.mark.parametrize("start", list(STARTS))
def test_exact_is_the_motion(start: str, integrate) -> None:
    pendulum = Pendulum(FREQUENCY)
    ts = torch.linspace(0, 6, 13, dtype=torch.float64)
    y0 = torch.tensor(STARTS[start], dtype=torch.float64)
    exact = pendulum.exact(ts, y0)
    assert (exact[0] - y0).abs().max() < 1e-14
    # the separatrix multiplies rounding by e^(frequency t) = 2400
    assert (exact - integrate(pendulum, y0, ts)).abs().max() < 1e-10
    energy = pendulum.energy(ts, exact)
    assert (energy - energy[0]).abs().max() < 1e-14


def test_exact_stays_on_the_separatrix_for_ever() -> None:
    ys = Pendulum().exact([0.0, 50.0, 2000.0], [0.0, 2.0])
    torch.testing.assert_close(ys[1:, 0], torch.full((2,), pi, dtype=torch.float64))
    assert 0 <= ys[2, 1] <= ys[1, 1] < 1e-20


def test_exact_rests_where_the_pendulum_hangs() -> None:
    assert torch.equal(Pendulum().exact([0.0, 5.0], [0.0, 0.0]), torch.zeros(2, 2, dtype=torch.float64))


def test_exact_takes_batches_and_an_epoch() -> None:
    pendulum = Pendulum(FREQUENCY)
    y0 = pendulum.initial_states(4)
    ts = torch.linspace(1.0, 3.0, 5, dtype=torch.float64)
    ys = pendulum.exact(ts, y0)
    assert ys.shape == (4, 5, 2)
    own = pendulum.exact(ts.expand(4, 5) + torch.arange(4).unsqueeze(-1), y0)
    torch.testing.assert_close(own, ys)
    back = pendulum.exact(ts, ys[:, 2], t0=2.0)
    torch.testing.assert_close(back, ys, rtol=1e-12, atol=1e-12)
    back = pendulum.exact(ts, ys[:, 2], t0=torch.full((4,), 2.0))
    torch.testing.assert_close(back, ys, rtol=1e-12, atol=1e-12)


def test_exact_refuses_friction_and_wrong_shapes() -> None:
    with pytest.raises(InputError, match="damping"):
        Pendulum(damping=0.1).exact([0.0, 1.0], [1.0, 0.0])
    with pytest.raises(InputError, match="2 entries"):
        Pendulum().exact([0.0, 1.0], [1.0, 0.0, 0.0])
    with pytest.raises(InputError, match="time"):
        Pendulum().exact(1.0, [1.0, 0.0])


def test_energy_of_a_small_swing_does_not_cancel() -> None:
    y = torch.tensor([1e-9, 0.0], dtype=torch.float64)
    assert float(Pendulum().energy(torch.zeros(1), y)) == pytest.approx(5e-19, rel=1e-14)


def test_elliptic_functions_agree_with_scipy_away_from_one() -> None:
    m = np.array([0.0, 0.2, 0.7, 0.95])[:, None]
    u = np.linspace(-12, 12, 41)
    np.testing.assert_allclose(amplitude(u, 1 - m), ellipj(u, m)[3], rtol=0, atol=3e-14)
    phi = np.linspace(-pi / 2, pi / 2, 21)
    np.testing.assert_allclose(incomplete_integral(phi, 1 - m), ellipkinc(phi, m), rtol=0, atol=1e-14)
    np.testing.assert_allclose(incomplete_integral(np.array(pi / 2), 1 - m), ellipk(m), rtol=1e-14)


@pytest.mark.parametrize("m1", [1e-6, 1e-14, 1e-24])
def test_amplitude_inverts_the_integral_next_to_one(m1: float) -> None:
    phi = np.concatenate((np.linspace(-1.5, 1.5, 31), pi / 2 - np.logspace(-1, -12, 45)))
    np.testing.assert_allclose(amplitude(incomplete_integral(phi, np.array(m1)), np.array(m1)), phi, rtol=0, atol=1e-14)
    quarters = np.array([1, 2, 3, 8])
    turned = amplitude(quarters * ellipkm1(m1), np.array(m1))
    np.testing.assert_allclose(turned, quarters * pi / 2, rtol=2e-14)


def test_velocity_dependence_follows_the_damping() -> None:
    assert not Pendulum().velocity_dependent
    assert Pendulum(damping=0.1).velocity_dependent
    pendulum = Pendulum()
    pendulum.set_free(("damping",))
    assert pendulum.velocity_dependent
    pendulum.set_free(("frequency",))
    assert not pendulum.velocity_dependent
    pendulum.load_state_dict({"frequency": torch.tensor(1.0), "damping": torch.tensor(0.3)})
    assert pendulum.velocity_dependent
