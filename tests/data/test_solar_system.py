from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import physnode.data as data

FILE = Path(__file__).resolve().parents[2] / "data" / "solar_system" / "solar_system.h5"
BODIES = ("sun", "mercury", "venus", "earthmoon", "mars", "jupiter", "saturn", "uranus", "neptune")


@pytest.fixture(scope="module")
def planets() -> data.Trajectory:
    return data.open(FILE)[0]


def split(planets: data.Trajectory) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    position, velocity = planets.y.reshape(len(planets), 2, 9, 3).unbind(1)
    return position, velocity, planets.parameters["gm"]


def test_the_file_is_small_valid_and_what_its_card_says() -> None:
    assert FILE.stat().st_size < 1_000_000
    assert data.validate(FILE).findings == ()
    facts = data.info(FILE)
    assert facts["content_sha256"] in FILE.with_name("README.md").read_text()
    assert tuple(facts["axes"]["body"]) == BODIES


def test_dates_and_names(planets: data.Trajectory) -> None:
    assert len(planets) == 1827
    assert planets.time_origin == 2433282.5
    assert planets.t.diff().eq(10).all()
    assert planets.names[0] == "position[sun,x]"
    assert planets.names[-1] == "velocity[neptune,z]"


def test_masses_in_si(planets: data.Trajectory) -> None:
    gm = planets.parameters["gm"] / 86400**2
    assert gm[0].item() == pytest.approx(1.32712440040944e11, rel=1e-12)
    assert gm[0].item() / gm[5].item() == pytest.approx(1047.3486, rel=1e-6)
    assert planets.parameters["speed_of_light"].item() == pytest.approx(299792.458 * 86400, rel=1e-15)


def test_distances_lie_between_perihelion_and_aphelion(planets: data.Trajectory) -> None:
    position, _, _ = split(planets)
    distance = (position[:, 1:] - position[:, :1]).norm(dim=-1) / planets.parameters["au"]
    low = torch.tensor([0.307, 0.718, 0.983, 1.381, 4.94, 8.99, 18.28, 29.8])
    high = torch.tensor([0.467, 0.729, 1.017, 1.667, 5.46, 10.12, 20.1, 30.4])
    assert (distance.amin(0) > low).all()
    assert (distance.amax(0) < high).all()


def test_the_centre_of_mass_rests_near_the_origin(planets: data.Trajectory) -> None:
    position, velocity, gm = split(planets)
    centre = (gm[:, None] * position).sum(1) / gm.sum()
    assert centre.norm(dim=-1).max() < 100  # km; Pluto and the asteroids are left out
    drift = (gm[:, None] * velocity).sum(1) / gm.sum()
    assert drift.norm(dim=-1).max() < 0.02  # km d-1


def test_velocity_is_the_derivative_of_position(planets: data.Trajectory) -> None:
    position, velocity, _ = split(planets)
    centred = (position[2:, 5] - position[:-2, 5]) / 20
    assert ((centred - velocity[1:-1, 5]).norm(dim=-1) / velocity[1:-1, 5].norm(dim=-1)).max() < 1e-4


@pytest.mark.skipif(not importlib.util.find_spec("de421"), reason="needs the package de421")
def test_it_can_be_made_again() -> None:
    spec = importlib.util.spec_from_file_location("generate", FILE.with_name("generate.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    again, shipped = module.build()[0], data.open(FILE)[0]
    assert torch.allclose(again.y, shipped.y, rtol=1e-14, atol=1e-6)
    assert torch.allclose(again.parameters["gm"], shipped.parameters["gm"], rtol=1e-14)
