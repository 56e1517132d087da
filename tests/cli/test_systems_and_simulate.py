from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from physnode import data
from physnode.systems import registry

Call = Callable[..., Any]


def test_every_system_is_listed_with_its_constants(call: Call) -> None:
    shown = call("systems")
    assert shown.status == 0
    assert all(name in shown.out for name in registry())
    found = call("systems", "--json").json["systems"]
    assert [item["name"] for item in found] == list(registry())
    for item in found:
        assert item["equation"]
        assert item["state"]
        assert item["description"]
        assert all(constant["upper"] >= constant["lower"] for constant in item["constants"] if constant["upper"] is not None)


def test_one_system_in_detail(call: Call) -> None:
    shown = call("systems", "pendulum").out
    for part in ("sin q", "angular_velocity", "rad s-1", "frequency", "damping", "[0, inf]", "energy"):
        assert part in shown
    assert "angular_momentum_z" in call("systems", "n-body").out


def test_simulate_writes_a_valid_file_and_checks_its_energy(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "swings.h5"
    words = ["simulate", "pendulum", "--out", out, "-n", 10, "--t1", 20, "--rows", 50, "--set", "frequency=2.0"]
    words += ["--noise", "angle=0.02", "--missing", "angle=0.1", "--irregular", "--gaps", "1:2", "--gap-length", "1:2"]
    words += ["--split", "0.5,0.2,0.3", "--seed", 3]
    shown = call(*words)
    assert shown.status == 0, shown.err
    assert "energy of the motion without noise: largest relative drift" in shown.out
    assert "5 train, 2 valid, 3 test" in shown.out
    assert data.validate(out).findings == ()
    found = data.open(out)
    assert float(found[0].parameters["frequency"]) == 2.0
    assert found.attributes["system"] == "pendulum"
    history = found.attributes["history"]
    assert "physnode simulate pendulum --out swings.h5 -n 10" in history
    assert str(tmp_path) not in history
    again = call(*words)
    assert (again.status, again.err.count("\n")) == (1, 1)
    assert "--force" in again.err
    forced = call(*words, "--force", "--json").json
    assert forced["content_sha256"] == found.attributes["content_sha256"]
    assert forced["drift"]["energy"]["largest"] < 1e-8


def test_friction_is_not_called_drift(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    shown = call("simulate", "pendulum", "--out", out, "--set", "damping=0.5")
    assert "energy of the motion without noise: not conserved here" in shown.out
    free = call("simulate", "van-der-pol", "--out", out, "--force")
    assert free.status == 0
    assert "motion without noise" not in free.out


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (["n-body", "--set", "gm=1,0.001", "--set", "dimensions=2"], ("position", "velocity")),
        (
            ["kepler", "--y0", "1,0,0,1", "--y0", "1,0,0,1.2", "--integrator", "leapfrog", "--dt", "0.01"],
            ("position", "velocity"),
        ),
        (["lotka-volterra", "--unit", "time=d", "--unit", "prey=kg"], ("prey", "predators")),
    ],
)
def test_other_systems(call: Call, tmp_path: Path, words: list[str], variables: tuple[str, ...]) -> None:
    shown = call("simulate", *words, "--out", tmp_path / "a.h5", "--t1", 2, "--rows", 9)
    assert shown.status == 0, shown.err
    found = data.open(tmp_path / "a.h5")
    assert found.variables == variables
    assert len(found) == max(1, words.count("--y0"))
    assert data.validate(tmp_path / "a.h5").errors == ()
