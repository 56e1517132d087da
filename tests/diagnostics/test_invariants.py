from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import physnode as pn
from physnode.diagnostics import audit, energy_drift, invariants, plot_energy, plot_invariants
from physnode.errors import InputError

TIGHT = pn.Adaptive(1e-11, 1e-13)


def pushed() -> pn.nn.Residual:
    """A learned acceleration that is not zero: it drives a pendulum forward."""
    term = pn.nn.Residual(2, 4, 1)
    with torch.no_grad():
        term.network.layers[-1].bias.fill_(0.1)
    return term


def test_leapfrog_keeps_the_energy_bounded_and_euler_does_not() -> None:
    swing, y0 = pn.systems.Pendulum(), torch.tensor([1.0, 0.0], dtype=torch.float64)
    ts = torch.linspace(0, 400, 801, dtype=torch.float64)

    def drift(method: str) -> Tensor:
        return energy_drift(swing, pn.solve(swing, y0, ts, method=method, controller=pn.Fixed(0.05))).relative.abs()

    leapfrog, euler = drift("leapfrog"), drift("euler")
    assert leapfrog[400:].max() < 1.1 * leapfrog[:400].max()
    assert 1e-5 < leapfrog.max() < 1e-3
    assert euler[400:].max() > 1.5 * euler[:400].max()
    assert euler.max() > 1


def test_leapfrog_energy_error_is_of_second_order() -> None:
    swing, y0 = pn.systems.Pendulum(), torch.tensor([1.0, 0.0], dtype=torch.float64)
    ts = torch.linspace(0, 20, 401, dtype=torch.float64)
    sizes = [
        float(energy_drift(swing, pn.solve(swing, y0, ts, method="leapfrog", controller=pn.Fixed(dt))).largest)
        for dt in (0.05, 0.025)
    ]
    assert math.log2(sizes[0] / sizes[1]) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize(
    "system",
    [pn.systems.Kepler(), pn.systems.Kepler(dimensions=3), pn.systems.NBody([1.0, 0.01, 0.02]), pn.systems.LotkaVolterra()],
)
def test_the_exact_motion_keeps_every_invariant(system: pn.systems.System) -> None:
    y0 = system.initial_states(3, seed=1)
    solution = pn.solve(system, y0, torch.linspace(0, 10, 50, dtype=torch.float64), method="dop853", controller=TIGHT)
    found = invariants(system, solution)
    assert set(found) == set(system.invariants(y0[:, :1] * 0, y0))
    for name, item in found.items():
        assert item.value.shape == (3, 50)
        assert item.largest.max() < 1e-8, name
        assert item.drift[..., 0].eq(0).all()


def test_damping_shows_as_the_work_it_does() -> None:
    swing = pn.systems.Pendulum(2.0, 0.3)
    ts = torch.linspace(0, 5, 2001, dtype=torch.float64)
    solution = pn.solve(swing, torch.tensor([2.0, 0.0], dtype=torch.float64), ts, method="dop853", controller=TIGHT)
    found = energy_drift(swing, solution)
    lost = torch.trapezoid(0.3 * solution.ys[:, 1] ** 2, ts)
    assert float(found.drift[-1]) == pytest.approx(-float(lost), rel=1e-5)
    assert (found.drift.diff() < 1e-9).all()
    assert list(audit(swing, solution)) == ["energy"]
    with pytest.raises(InputError, match="declares no invariants"):
        invariants(swing, solution)


def test_a_sum_is_judged_by_its_known_physics() -> None:
    swing = pn.systems.Pendulum()
    y0, ts = torch.tensor([0.5, 0.0], dtype=torch.float64), torch.linspace(0, 5, 20, dtype=torch.float64)
    silent = swing + pn.nn.Residual(2, 4, 1)
    pushing = swing + pushed()
    assert energy_drift(silent, pn.solve(silent, y0, ts, controller=TIGHT)).largest < 1e-9
    solution = pn.solve(pushing, y0, ts, controller=TIGHT)
    work = 0.1 * (solution.ys[-1, 0] - solution.ys[0, 0]).detach()  # a constant push does force times way
    drift = energy_drift(pushing, solution)
    assert float(drift.drift[-1]) == pytest.approx(float(work), abs=1e-8)
    assert torch.equal(drift.value, swing.energy(solution.ts.unsqueeze(-1), solution.ys.detach()))
    assert torch.equal(audit(pushing, solution)["energy"].value, drift.value)
    with pytest.raises(InputError, match="declares no invariants"):
        invariants(pushing, solution)
    assert "energy" in invariants(swing, solution)


def test_what_has_no_energy_is_refused() -> None:
    system = pn.systems.VanDerPol()
    solution = pn.solve(system, torch.tensor([1.0, 0.0]), [0.0, 1.0])
    with pytest.raises(InputError, match="no terms with an energy"):
        energy_drift(system, solution)
    with pytest.raises(InputError, match="no energy and no invariant"):
        audit(system, solution)
    with pytest.raises(InputError, match="2 terms"):
        audit(pn.systems.Pendulum() + pn.systems.HarmonicOscillator(), solution)


def test_a_trajectory_that_failed_leaves_the_others_alone() -> None:
    kepler = pn.systems.Kepler()
    y0 = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 1.0]], dtype=torch.float64)  # one falls into the centre at t = 1.11
    ts = torch.linspace(0, 3, 31, dtype=torch.float64)
    solution = pn.solve(kepler, y0, ts, controller=pn.Adaptive(1e-9, 1e-12), on_failure="report")
    assert solution.ok.tolist() == [False, True]
    found = audit(kepler, solution)
    assert float(found["energy"].largest[1]) < 1e-7
    assert torch.isfinite(found["energy"].largest).all()
    assert found["energy"].value[0, -1].isnan()
    assert torch.equal(found["energy"].value[1], energy_drift(kepler, solution).value[1])


def test_a_drift_from_zero_is_given_as_it_is() -> None:
    item = pn.diagnostics.InvariantDrift("x", torch.tensor([0.0, 1.0]), torch.tensor([[0.0, 0.5], [-2.0, -1.0]]))
    assert item.relative.tolist() == [[0.0, 0.5], [0.0, 0.5]]
    assert item.largest.tolist() == [0.5, 1.0]
    broken = pn.diagnostics.InvariantDrift("x", torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.25, math.nan]))
    assert broken.largest.item() == 0.25


def test_figures_are_made_and_not_shown() -> None:
    kepler = pn.systems.Kepler()
    solution = pn.solve(kepler, kepler.initial_states(2), torch.linspace(0, 3, 10, dtype=torch.float64))
    found = invariants(kepler, solution)
    figure = plot_invariants(found, time_unit="d")
    assert len(figure.axes) == len(found)
    assert figure.axes[-1].get_xlabel() == "t [d]"
    assert [len(axis.lines) for axis in figure.axes] == [2] * len(found)
    assert len(plot_energy(energy_drift(kepler, solution)).axes) == 1
