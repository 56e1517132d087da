from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import physnode as pn

Call = Callable[..., Any]
DATA = Path(__file__).resolve().parents[2] / "data"
PENDULUM = DATA / "pendulum" / "pendulum.h5"
PLANETS = DATA / "solar_system" / "solar_system.h5"


def test_predict_shows_a_band_that_holds_the_model(call: Call, run_folder: Path) -> None:
    found = call("predict", run_folder, "--times", "0:30:7", "--trajectory", 3, "--band", 0.95, "--json").json
    y, lower, upper = (torch.tensor(found[name]) for name in ("y", "lower", "upper"))
    assert found["t"] == [0, 5, 10, 15, 20, 25, 30]
    assert found["names"] == ["angle", "angular_velocity"]
    assert ((lower < y) & (y < upper)).all()
    narrow = call("predict", run_folder, "--times", "0:30:7", "--trajectory", 3, "--band", 0.5, "--json").json
    assert (torch.tensor(narrow["upper"]) < upper).all()
    expected = pn.load(run_folder).predict(found["t"], band=0.95, trajectory=1)
    assert torch.allclose(y, expected.y.to(y.dtype), atol=1e-6)
    shown = call("predict", run_folder)
    assert "68% band" in shown.out
    assert "12 of 201 times" in shown.out


def test_predict_writes_tables_files_and_figures(call: Call, run_folder: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "h5", "png"):
        out = tmp_path / f"ahead.{suffix}"
        found = call("predict", run_folder, "--t1", 25, "--rows", 11, "--out", out)
        assert found.status == 0, found.err
        again = call("predict", run_folder, "--out", out)
        assert (again.status, again.err.count("\n")) == (1, 1)
        assert call("predict", run_folder, "--t1", 25, "--rows", 11, "--out", out, "--force").status == 0
    table = (tmp_path / "ahead.csv").read_text().splitlines()
    assert table[0].split(",")[:3] == ["time", "angle", "angular_velocity"]
    assert len(table) == 12
    assert pn.data.validate(tmp_path / "ahead.h5").errors == ()
    item = pn.data.open(tmp_path / "ahead.h5")[0]
    assert item.units["angle"] == "rad"
    assert item.sigma is not None
    assert float(table[3].split(",")[1]) == pytest.approx(float(item.y[2, 0]), rel=1e-12)
    assert (tmp_path / "ahead.png").read_bytes().startswith(b"\x89PNG")


def test_diagnose_a_run(call: Call, run_folder: Path, tmp_path: Path) -> None:
    found = call("diagnose", run_folder, "--times-longer", 4, "--plot", tmp_path / "drift.png", "--json")
    assert found.status == 0, found.err
    told = found.json
    energy = told["invariants"]["energy"]
    assert energy["conserved"] is False
    assert max(energy["end"]) < 0.1 * max(energy["start"])  # friction took it
    assert told["horizon"]["times_longer"] == 4
    assert told["horizon"]["failed"] == []
    channel = told["residuals"]["channels"]["angle"]
    assert channel["rms_over_sigma"] == pytest.approx(1, abs=0.1)
    assert channel["durbin_watson"] == pytest.approx(2, abs=0.25)
    assert channel["correlated"] is False
    assert set(told["residuals"]["mean_square_by_trajectory"]) == {"0", "3", "6", "8", "9", "10"}
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
    page = call("diagnose", run_folder).out
    for part in (
        "along the fitted orbits",
        "not conserved by the whole model",
        "10 times as long",
        "Durbin-Watson",
        "worst first",
    ):
        assert part in page


def test_diagnose_measurements_by_a_law(call: Call, tmp_path: Path) -> None:
    found = call("diagnose", PLANETS, "--system", "n-body", "--set", "gm=@file", "--json").json
    energy = found["trajectories"]["0"]["energy"]
    assert abs(energy["change"] / energy["mean"]) < 1e-7
    assert energy["reduced_chi2"] is None  # no sigma in the file
    swings = call("diagnose", PENDULUM, "--system", "pendulum", "--set", "frequency=2", "--plot", tmp_path / "e.png")
    assert swings.status == 0
    assert "reduced chi-square" in swings.out
    assert (tmp_path / "e.png").exists()
    still = tmp_path / "still.h5"
    simulated = call("simulate", "pendulum", "--out", still, "--noise", "angle=0.01", "--noise", "angular_velocity=0.01")
    assert simulated.status == 0
    kept = call("diagnose", still, "--system", "pendulum", "--json").json["trajectories"]["0"]["energy"]
    assert kept["reduced_chi2"] == pytest.approx(1, abs=0.3)
    lost = call("diagnose", PENDULUM, "--system", "pendulum", "--set", "frequency=2", "--json").json["trajectories"]["11"][
        "energy"
    ]
    assert lost["reduced_chi2"] > 100
    assert lost["change"] < 0
