from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import physnode as pn

Call = Callable[..., Any]
DATA = Path(__file__).resolve().parents[2] / "data"
PENDULUM = DATA / "pendulum" / "pendulum.h5"


def test_a_fit_finds_the_truth_within_its_errors(call: Call, run_folder: Path) -> None:
    result = pn.load(run_folder)
    for name, truth in (("frequency", 2.0), ("damping", 0.15)):
        assert abs(result.parameters[name] - truth) < 4 * result.errors[name]
    assert (run_folder / "fit.png").stat().st_size > 10_000
    assert result.measured.ids == (0, 3, 6, 8, 9, 10)  # the training split


def test_the_page_and_the_json_say_the_same(call: Call, small: Path, tmp_path: Path) -> None:
    words = [
        "fit",
        "pendulum",
        small,
        "--set",
        "frequency=2",
        "--free",
        "frequency,damping",
        "--out",
        tmp_path / "run",
        "-q",
    ]
    page = call(*words)
    assert page.status == 0, page.err
    assert page.err == ""
    for part in ("reduced chi-square", "formal error", "robust error", "valid: reduced chi-square", "test: reduced", "fit.png"):
        assert part in page.out
    found = call(*words, "--resume", "--json").json
    assert set(found["parameters"]) == {"frequency", "damping"}
    assert f"{found['parameters']['damping']:.10g}" in page.out
    assert set(found["validation"]) == {"valid", "test"}
    assert found["validation"]["test"]["reduced_chi2"] == pytest.approx(1.0, abs=0.5)
    assert found["errors"]["damping"] > 0
    assert found["robust_errors"]["damping"] > 0


def test_options_reach_the_fit(call: Call, small: Path) -> None:
    words = [
        "fit",
        "pendulum",
        small,
        "--set",
        "frequency=@file",
        "--set",
        "damping=0.12",
        "--free",
        "damping",
        "--split",
        "test",
    ]
    words += [
        "--bounds",
        "damping=0.1:0.14",
        "--prior",
        "damping=0.12:0.1",
        "--sigma",
        "angle=0.02",
        "--sigma",
        "angular_velocity=0.04",
    ]
    words += ["--rtol", "1e-6", "--integrator", "tsit5", "--max-iterations", 12, "--shooting", "single", "--json"]
    found = call(*words)
    assert found.status == 0, found.err
    assert found.json["fixed"] == {"frequency": 2.0}
    assert found.json["parameters"]["damping"] == pytest.approx(0.14, abs=1e-6)
    assert any("at a bound" in line for line in found.json["warnings"])
    assert set(found.json["validation"]) == {"valid"}


def test_constants_are_taken_from_the_file_only_where_that_is_said(call: Call, small: Path) -> None:
    found = call("fit", "pendulum", small, "--split", "valid", "--free", "damping", "--max-iterations", 3, "--json")
    assert found.json["fixed"] == {"frequency": 1.0}  # the system's own default, not the file's 2.0


def test_a_learned_term_is_named_by_depth_and_width(call: Call, small: Path, tmp_path: Path) -> None:
    words = [
        "fit",
        "pendulum",
        small,
        "--split",
        "valid",
        "--set",
        "frequency=2",
        "--learned",
        "mlp:1x3",
        "--learned-inputs",
        "v",
    ]
    found = call(*words, "--adam-steps", 3, "--max-iterations", 2, "--out", tmp_path / "run", "--json")
    assert found.status == 0, found.err
    assert found.json["learned_weights"] == 10
    told = call("diagnose", tmp_path / "run", "--json")
    assert told.status == 0
    assert told.json["invariants"]["energy"]["conserved"] is False


def test_a_model_of_the_users_own(call: Call, small: Path, model_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "own"
    named = f"{model_file}:build"
    words = ["fit", named, small, "--set", "square=3.9", "--free", "square", "--free", "damping", "--split", "valid"]
    found = call(*words, "--out", run, "--json")
    assert found.status == 0, found.err
    assert found.json["parameters"]["square"] == pytest.approx(4.0, abs=0.3)
    refused = call("predict", run)
    assert refused.status == 1
    assert f"--model {named}" in refused.err
    assert call("predict", run, "--model", named, "--times", "0,1").status == 0
    assert call("diagnose", run, "--model", named).status == 0


def test_a_learned_term_on_a_model_of_the_users_own_comes_back(
    call: Call, small: Path, model_file: Path, tmp_path: Path
) -> None:
    run, named = tmp_path / "own", f"{model_file}:build"
    words = ["fit", named, small, "--set", "square=4", "--fixed", "damping", "--split", "valid", "--learned", "mlp:1x2"]
    assert call(*words, "--adam-steps", 2, "--max-iterations", 1, "--out", run, "--json").status == 0
    found = call("predict", run, "--model", named, "--times", "0,1", "--json")
    assert found.status == 0, found.err
    assert len(found.json["y"]) == 2


def test_an_interrupted_run_is_named_and_goes_on(
    call: Call, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    words = ["fit", "pendulum", PENDULUM, "--set", "frequency=1.9", "--free", "frequency", "--free", "damping", "--json"]
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    (copy / "result.json").unlink()  # as if it had been killed after its last stage
    unfinished = call("predict", copy)
    assert unfinished.status == 1
    assert "resume" in unfinished.err
    with monkeypatch.context() as patch:
        patch.setattr("physnode.cli.fit.fit", stop)
        found = call(*words, "--out", copy, "--resume")
    assert found.status == 130
    assert "--resume" in found.err
    assert found.err.count("\n") == 1
    resumed = call(*words, "--out", copy, "--resume")
    assert resumed.status == 0, resumed.err
    assert resumed.json["parameters"] == json.loads((run_folder / "result.json").read_text())["parameters"]


def test_a_file_without_splits_is_fitted_as_a_whole(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    noise = ("--noise", "angle=0.01", "--noise", "angular_velocity=0.01")
    assert call("simulate", "pendulum", "--out", out, "--rows", 40, *noise).status == 0
    found = call("fit", "pendulum", out, "--free", "frequency", "--json")
    assert found.status == 0, found.err
    assert found.json["validation"] == {}
    assert found.json["sigma"] == "given"


def test_a_sigma_of_one_variable_alone_is_not_thrown_away(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    assert call("simulate", "pendulum", "--out", out, "--rows", 40, "--noise", "angle=0.01").status == 0
    refused = call("fit", "pendulum", out, "--free", "frequency")
    assert refused.status == 2
    assert "others none (angular_velocity)" in refused.err


def test_a_far_start_is_shot_again_until_it_reaches_the_noise(call: Call) -> None:
    """From half the true frequency, the first round of windows leaves one trajectory on a wrong branch."""
    data = Path(__file__).resolve().parents[2] / "data" / "pendulum" / "pendulum.h5"
    found = call("fit", "pendulum", data, "--free", "frequency", "--free", "damping", "--json")
    assert found.status == 0, found.err
    assert 0.8 < found.json["reduced_chi2"] < 1.2
    assert abs(found.json["parameters"]["damping"] - 0.15) < 0.002
