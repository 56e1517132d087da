from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import physnode as pn
from physnode.cli import main

Call = Callable[..., Any]
QUICK = ("--gradient", "aca", "--directions", 1, "--repeats", 1)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two swings to fit and one apart. Read it only."""
    path = tmp_path_factory.mktemp("cli") / "short.h5"
    words = ["-n", "3", "--t1", "2", "--rows", "15", "--set", "frequency=2", "--set", "damping=0.15", "--split", "0.67,0.33"]
    noise = ["--noise", "angle=0.02", "--noise", "angular_velocity=0.04"]
    assert main(["simulate", "pendulum", "--out", str(path), *words, *noise]) == 0
    return path


@pytest.fixture(scope="module")
def run(short: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fit of the short file, two of its trajectories. Read it only."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    words = ["--set", "frequency=1.95", "--free", "frequency", "--free", "damping", "--out", str(folder), "--json"]
    assert main(["fit", "pendulum", str(short), *words]) == 0
    return folder


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planet seen so sharply that a usual tolerance is too coarse."""
    path = tmp_path_factory.mktemp("cli") / "orbit.h5"
    noise = ["--noise", "position=1e-7", "--noise", "velocity=1e-7"]
    assert main(["simulate", "kepler", "--out", str(path), "-n", "1", "--t1", "5", "--rows", "15", *noise]) == 0
    return path


def test_gradients_of_a_run_are_right_and_its_steps_are_fine(call: Call, run: Path) -> None:
    found = call("diagnose", "gradient", run, "--gradient", "symplectic", *QUICK, "--json")
    assert found.status == 0, found.err
    told = found.json
    gradient, chi2 = told["gradient"], told["chi2"]
    fitted = pn.load(run)
    assert told["method"] == "dop853"
    assert gradient["ok"] is True
    assert gradient["trajectory"] == fitted.measured.ids[0]
    assert gradient["variables"] == ["frequency", "damping", "y0"]
    assert [row["name"] for row in gradient["rows"]] == ["symplectic", "aca"]
    assert all(row["error"] < 1e-11 and row["from_differences"] < 1e-8 for row in gradient["rows"])
    assert chi2["value"] == pytest.approx(fitted.chi2)
    assert chi2["measurements"] == fitted.measured.rows_used
    assert chi2["trajectories"] == list(fitted.measured.ids)
    assert 0 < abs(chi2["estimated_error"]) <= chi2["size_of_error"] < 1e-3
    assert chi2["fine_enough"] is True
    assert chi2["rtol_for_limit"] > 100 * chi2["rtol"]


def test_one_trajectory_on_a_page(call: Call, run: Path) -> None:
    fitted = pn.load(run)
    number = fitted.measured.ids[1]
    own = (fitted.residuals[1] / fitted.sigma[1])[fitted.measured.observed[1]]
    page = call("diagnose", "gradient", run, "--trajectory", number, "--gradient", "aca", "--directions", 0, "--repeats", 1)
    assert (page.status, page.err) == (0, "")
    for part in (
        f"along trajectory {number}, {len(own)} measurements",
        "\naca ",
        "\nok\n",
        f"chi-square     {float(own.square().sum()):.6g} over {len(own)} measurements",
        "rtol 1e-08 is fine enough for these data",
    ):
        assert part in page.out


def test_a_file_that_was_not_fitted(call: Call, run: Path, short: Path) -> None:
    """The starts of its trajectories are estimated, and chi-square is what validate says."""
    found = call("diagnose", "gradient", run, "--data", short, *QUICK[:2], "--directions", 0, *QUICK[4:], "--json")
    assert found.status == 0, found.err
    told = found.json
    assert told["data"] == str(short)
    assert told["gradient"]["ok"] is True
    assert told["chi2"]["trajectories"] == [0, 1, 2]
    assert told["chi2"]["value"] == pytest.approx(pn.load(run).validate(pn.data.open(short)).chi2)


def test_sharp_data_ask_for_a_tolerance_that_then_serves(call: Call, sharp: Path, tmp_path: Path) -> None:
    """One trajectory at its minimum: the gradient of chi-square vanishes, and the check must not take rounding for an error."""
    fit = ("fit", "kepler", sharp, "--free", "gm", "--set", "gm=1.001", "--json")
    assert call(*fit, "--out", tmp_path / "coarse", "--rtol", "1e-7").status == 0
    found = call("diagnose", "gradient", tmp_path / "coarse", *QUICK, "--json")
    assert found.status == 0, found.err
    assert found.json["gradient"]["rows"][0]["from_differences"] < 1e-8
    chi2 = found.json["chi2"]
    assert chi2["fine_enough"] is False
    assert chi2["rtol_for_limit"] < 1e-8
    assert call(*fit, "--out", tmp_path / "fine", "--rtol", chi2["rtol_for_limit"]).status == 0
    again = call("diagnose", "gradient", tmp_path / "fine", *QUICK[:2], "--directions", 0, *QUICK[4:], "--json").json["chi2"]
    assert again["size_of_error"] < 3 * chi2["limit"]
    assert again["size_of_error"] < 1e-2 * chi2["size_of_error"]


def test_fixed_steps_are_told_their_length(call: Call, short: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("--set", "damping=0.15", "--free", "frequency", "--integrator", "rk4", "--dt", "0.1")
    assert call("fit", "pendulum", short, *words, "--set", "frequency=2", "--out", run, "--json").status == 0
    found = call("diagnose", "gradient", run, *QUICK)
    assert found.status == 0, found.err
    assert "by rk4, fixed steps" in found.out
    assert "times as long" in found.out


def test_a_wrong_derivative_of_the_users_field_is_found(call: Call, short: Path, model_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    named = f"{model_file}:build"
    assert call("fit", named, short, "--free", "square", "--set", "square=4", "--out", run, "--json").status == 0
    right = call("diagnose", "gradient", run, "--model", named, *QUICK, "--json")
    assert (right.status, right.json["gradient"]["variables"]) == (0, ["square", "y0"])
    model_file.write_text(model_file.read_text().replace("torch.sin(q) -", "torch.sin(q.detach()) -"))
    found = call("diagnose", "gradient", run, "--model", named, *QUICK)
    assert found.status == 1
    assert "from finite differences" in found.out
    assert found.err.startswith("error: aca: off by")
    assert found.err.count("\n") == 1
    assert "detach" in found.err
    model_file.write_text(model_file.read_text().replace("torch.sin(q.detach())", "torch.cot(q)"))
    broken = call("diagnose", "gradient", run, "--model", named, *QUICK)
    assert (broken.status, broken.out, broken.err.count("\n")) == (2, "", 1)
    assert "AttributeError" in broken.err
