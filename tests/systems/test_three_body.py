from __future__ import annotations

import pytest
import torch

from physnode.errors import InputError
from physnode.systems import NBody, ThreeBody

TIME = torch.zeros(1, dtype=torch.float64)


def bodies(rows: list[list[str]]) -> torch.Tensor:
    """Rows x, y, vx, vy as all positions, then all velocities."""
    table = torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64)
    return torch.cat((table[:, :2].flatten(), table[:, 2:].flatten()))


def test_figure_eight_comes_back(case, integrate) -> None:
    entry = case("figure_eight_collinear")
    system, y0 = ThreeBody.figure_eight()
    assert torch.equal(y0, bodies(entry["initial_conditions"]["bodies"]))
    assert ThreeBody.figure_eight_period == float(entry["period"])
    values = system.invariants(TIME, y0)
    assert float(values["energy"]) == pytest.approx(float(entry["invariants"]["E"]), rel=1e-15)
    assert abs(float(values["angular_momentum"])) < 1e-15
    back = integrate(system, y0, [0.0, ThreeBody.figure_eight_period])[1]
    assert (back - y0).abs().max() < 1e-11


def test_figure_eight_is_a_choreography(integrate) -> None:
    system, y0 = ThreeBody.figure_eight()
    third = integrate(system, y0, [0.0, ThreeBody.figure_eight_period / 3])[1]
    r = third[:6].view(3, 2)
    assert min(float((r[[1, 2, 0]] - y0[:6].view(3, 2)).norm()), float((r[[2, 0, 1]] - y0[:6].view(3, 2)).norm())) < 1e-11


def test_figure_eight_in_other_axes(case, integrate) -> None:
    entry = case("figure_eight_cm")
    y0 = bodies(entry["initial_conditions"]["bodies"])
    assert (integrate(ThreeBody(), y0, [0.0, float(entry["period"])])[1] - y0).abs().max() < 1e-11


def test_pythagorean_problem(case, integrate) -> None:
    entry = case("burrau_pythagorean")
    system, y0 = ThreeBody.pythagorean()
    assert torch.equal(y0, bodies(entry["initial_conditions"]["bodies"]))
    assert float(system.energy(TIME, y0)) == pytest.approx(-769 / 60, rel=1e-15)
    ys = integrate(system, y0, [0.0, 10.0, 20.0])
    for y, row in zip(ys[1:], entry["reference"], strict=True):
        assert (y - bodies(row["bodies"]))[:6].abs().max() < 1e-6


def test_named_starts_in_space_stay_in_the_plane() -> None:
    system, y0 = ThreeBody.figure_eight(dimensions=3)
    flat, y_flat = ThreeBody.figure_eight()
    rate = system(TIME, y0).view(2, 3, 3)
    assert torch.equal(rate[..., 2], torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(rate[..., :2].flatten(), flat(TIME, y_flat), rtol=1e-14, atol=1e-15)


def test_it_is_n_bodies_with_gm_of_g_times_mass() -> None:
    masses = torch.tensor([1.0, 0.4, 0.3], dtype=torch.float64)
    three, many = ThreeBody(masses, 1.7), NBody(1.7 * masses, 2)
    y = three.initial_states(3)
    torch.testing.assert_close(three(TIME, y), many(TIME, y))
    mechanical, weighted = three.invariants(TIME, y), many.invariants(TIME, y)
    torch.testing.assert_close(1.7 * mechanical["energy"], weighted["energy"])
    torch.testing.assert_close(1.7 * mechanical["angular_momentum"], weighted["angular_momentum"])
    torch.testing.assert_close(mechanical["centre_of_mass_x"], weighted["centre_of_mass_x"])


def test_masses_are_fitted_by_name() -> None:
    system = ThreeBody(free=("masses",))
    assert system.free == ("masses",)
    y = system.initial_states(1)[0]
    system(TIME, y).square().sum().backward()
    assert system.masses.grad is not None
    assert (system.masses.grad != 0).all()
    assert system.gravitational_constant.grad is None


def test_four_masses_are_sent_to_n_body() -> None:
    with pytest.raises(InputError, match="NBody"):
        ThreeBody((1.0, 1.0, 1.0, 1.0))
