from __future__ import annotations

from math import pi

import pytest
import torch

from physnode.systems import Duffing, HarmonicOscillator, HenonHeiles, LotkaVolterra, VanDerPol

REFERENCES = [
    ("duffing_free", lambda: Duffing(1.0, 1.0), 1e-12),
    ("duffing_forced", lambda: Duffing(-1.0, 1.0, 0.3, 0.5, 1.2), 1e-11),
    ("henon_heiles_e_1_12", HenonHeiles, 1e-10),
    ("lotka_volterra_sciml", lambda: LotkaVolterra(1.5, 1.0, 3.0, 1.0), 1e-11),
    ("lotka_volterra_ude", lambda: LotkaVolterra(1.3, 0.9, 1.8, 0.8), 1e-11),
]


@pytest.mark.parametrize(("name", "build", "tolerance"), REFERENCES)
def test_reference_solutions(name: str, build, tolerance: float, case, integrate) -> None:
    entry, system = case(name), build()
    y0 = torch.tensor([float(x) for x in entry["initial_conditions"]["state"]], dtype=torch.float64)
    ys = integrate(system, y0, [0.0, *(float(row["t"]) for row in entry["reference"])])
    truth = torch.tensor([[float(x) for x in row["state"]] for row in entry["reference"]], dtype=torch.float64)
    assert (ys[1:] - truth).abs().max() < 10 * tolerance
    if "invariants" in entry:
        (value,) = system.invariants(torch.zeros(1), y0).values()
        assert float(value) == pytest.approx(float(next(iter(entry["invariants"].values()))), rel=1e-14)


@pytest.mark.parametrize("damping", [0.0, 0.3, 1.4, 1.4 * (1 + 1e-12), 1.4 * (1 - 1e-12), 1.6, 40.0])
def test_harmonic_exact_is_the_motion(damping: float, integrate) -> None:
    oscillator = HarmonicOscillator(0.7, damping)
    ts = torch.linspace(0, 8, 9, dtype=torch.float64)
    y0 = torch.tensor([0.6, -0.4], dtype=torch.float64)
    assert (oscillator.exact(ts, y0) - integrate(oscillator, y0, ts)).abs().max() < 1e-11


def test_harmonic_exact_at_long_times_and_in_batches() -> None:
    oscillator = HarmonicOscillator(2.0)
    y0 = oscillator.initial_states(3)
    ys = oscillator.exact([0.0, pi, 100 * pi], y0)
    torch.testing.assert_close(ys, y0.unsqueeze(1).expand(3, 3, 2), rtol=0, atol=1e-12)
    overdamped = HarmonicOscillator(1.0, 100.0).exact([0.0, 1e5], [1.0, 0.0])
    assert torch.isfinite(overdamped).all()
    assert 0 <= overdamped[1, 0] < 1e-300
    back = oscillator.exact([0.0, 1.0], oscillator.exact([0.0, 1.0], y0)[:, 1], t0=1.0)
    torch.testing.assert_close(back[:, 0], y0)


def test_van_der_pol_ends_on_one_cycle(integrate) -> None:
    system = VanDerPol(1.0)
    ts = torch.linspace(0, 60, 1201, dtype=torch.float64)
    # amplitude of the limit cycle for a nonlinearity of 1: 2.00862 (Andersen and Geer, SIAM J. Appl. Math. 42, 678 (1982))
    for start in ((0.1, 0.0), (3.0, 0.0)):
        ys = integrate(system, torch.tensor(start, dtype=torch.float64), ts, rtol=1e-9)
        assert float(ys[600:, 0].max()) == pytest.approx(2.00862, abs=2e-3)


def test_van_der_pol_without_its_nonlinearity_is_harmonic() -> None:
    system = VanDerPol(0.0)
    assert not system.velocity_dependent
    y = torch.tensor([0.3, 0.2], dtype=torch.float64)
    torch.testing.assert_close(system(torch.zeros(1), y), HarmonicOscillator()(torch.zeros(1), y))


def test_henon_heiles_starts_are_bound() -> None:
    system = HenonHeiles()
    assert (system.energy(torch.zeros(1), system.initial_states(2000)) < 1 / 6).all()


def test_lotka_volterra_rests_at_its_fixed_point() -> None:
    system = LotkaVolterra(1.5, 0.5, 3.0, 2.0)
    rest = torch.tensor([3.0 / 2.0, 1.5 / 0.5], dtype=torch.float64)
    assert torch.equal(system(torch.zeros(1), rest), torch.zeros(2, dtype=torch.float64))
