"""A user's mistake is one line on standard error and an exit status, whatever the command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]
DATA = Path(__file__).resolve().parents[2] / "data"
PENDULUM = DATA / "pendulum" / "pendulum.h5"
PLANETS = DATA / "solar_system" / "solar_system.h5"

FIT = f"fit pendulum {PENDULUM}"


def one_line(found: Any, status: int, message: str) -> None:
    assert found.status == status, found
    assert found.err.count("\n") == 1, found.err
    assert found.err.startswith("error: ")
    assert "Traceback" not in found.err
    assert message in found.err
    assert found.out == ""


@pytest.mark.parametrize("command", ["fit pendulum {} --free damping", "diagnose {} --system pendulum"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"hello\n", "is text"),
        (b"\x00\x01\x02\x03" * 300, "not an HDF5 file"),
        (PENDULUM.read_bytes()[:20_000], "cut off"),
    ],
)
def test_bad_files(call: Call, tmp_path: Path, command: str, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.h5"
    if content is not None:
        path.write_bytes(content)
    one_line(call(*command.format(path).split()), 1, message)


def test_a_folder_is_no_data_file(call: Call, tmp_path: Path) -> None:
    one_line(call("fit", "pendulum", tmp_path, "--free", "damping"), 1, "is a directory")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("systems pendulm", 2, "Did you mean pendulum?"),
        (f"fit pendulm {PENDULUM}", 2, "Did you mean pendulum?"),
        (f"{FIT} --free dampin", 2, 'Did you mean "damping"?'),
        (f"{FIT} --set mass=1", 2, "no constant 'mass'"),
        (f"{FIT} --set frequency=abc", 2, "'abc' is not a number"),
        (f"{FIT} --set frequency=nan", 2, "not a finite number"),
        (f"{FIT} --set frequency=-1", 2, "must be finite and lie in"),
        (f"{FIT} --set frequency", 2, "NAME=VALUE"),
        (f"{FIT} --set frequency=1 --set frequency=2", 2, "twice"),
        (f"{FIT} --set frequency=1,2", 2, "one number"),
        (f"{FIT} --set frequency=@mass", 2, "write @file"),
        (f"{FIT} --set frequency=@file:mass", 2, "it has frequency, damping"),
        (f"{FIT} --bounds damping=1", 2, "LOWEST:HIGHEST"),
        (f"{FIT} --free damping --bounds damping=1:2", 2, "outside [1, 2]"),
        (f"{FIT} --prior damping=1", 2, "--prior damping"),
        (f"{FIT} --fixed frequency,damping=1", 2, "frequency has none"),
        (f"{FIT} --split exam", 2, "train, valid, test, all"),
        (f"fit pendulum {PLANETS} --split test", 2, "no splits"),
        (f"fit pendulum {PLANETS} --free damping", 2, "54 state components"),
        (f"{FIT} --learned cnn:3", 2, "mlp:DEPTHxWIDTH"),
        (f"{FIT} --learned-inputs v", 2, "needs a learned term"),
        (f"{FIT} --learned mlp:1x2 --learned-inputs z", 2, "'q', 'v' and 't'"),
        (f"{FIT} --free damping --method newton", 2, "unknown fit method"),
        (f"{FIT} --free damping --shooting 0", 2, "at least one window"),
        (f"{FIT} --integrator foo", 2, "unknown method 'foo'"),
        (f"{FIT} --integrator leapfrog", 2, "--dt"),
        (f"{FIT} --integrator rk4 --dt 0.1 --rtol 1e-6", 2, "give one of them"),
        (f"{FIT} --rtol x", 2, "physnode fit --help"),
        (f"{FIT} --max-iterations 0", 2, "physnode fit --help"),
        (f"{FIT} --resume", 2, "--out RUN"),
        (f"{FIT} --out {PENDULUM}", 1, "is a file"),
        ("fit pendulum", 2, "Missing argument 'DATA'"),
        (f"fit none.py:build {PENDULUM}", 1, "none.py: no such file"),
        (f"fit model.py {PENDULUM}", 2, "write model.py:build"),
        (f"diagnose {PENDULUM}", 2, "the file says: pendulum"),
        (f"diagnose {PENDULUM} --system kepler", 2, "but the system has 4"),
        (f"diagnose {PENDULUM} --system van-der-pol", 2, "no energy and no invariant"),
        (f"diagnose {PENDULUM} --system pendulum --plot x.pdf", 2, ".png"),
        ("predict nowhere", 1, "no such run folder"),
        ("diagnose gradient nowhere", 1, "no such run folder"),
        (f"diagnose gradient {PENDULUM}", 1, "is a file"),
        ("diagnose gradient", 2, "physnode diagnose gradient --help"),
        (f"predict {PENDULUM}", 1, "is a file"),
        ("simulate pendulum", 2, "'--out'"),
        ("simulate pendulum --out nodir/a.h5", 1, "the folder does not exist"),
        ("simulate nothing --out a.h5", 2, "there is no system"),
        ("simulate n-body --out a.h5", 2, "--set gm=1,0.001"),
        ("simulate pendulum --out a.h5 -n 0", 2, "at least 1"),
        ("simulate pendulum --out a.h5 --t1 -1", 2, "t1 after t0"),
        ("simulate pendulum --out a.h5 --noise mass=1", 2, "angle, angular_velocity"),
        ("simulate pendulum --out a.h5 --split 0.5,0.6", 2, "add up to 1"),
        ("simulate pendulum --out a.h5 --gaps 2:3", 2, "go together"),
        ("simulate pendulum --out a.h5 --gaps 2:3.5 --gap-length 1:2", 2, "whole numbers"),
        ("simulate pendulum --out a.h5 --y0 1,2 --y0 1", 2, "must agree"),
        ("simulate pendulum --out a.h5 --unit angle=furlong", 2, "furlong"),
        ("simulate kepler --out a.h5 --y0 1,0,0,0", 1, "steps too short"),
        ("simulate kepler --out a.h5 --set dimensions=2.5", 2, "whole number"),
        ("simulate pendulum --out a.h5 --rows 100000000000", 1, "not enough memory"),
        ("fly", 2, "No such command 'fly'"),
        ("--fly", 2, "--fly"),
        ("data info nowhere.h5", 1, "no such file"),
        ("data info", 2, "physnode data info --help"),
    ],
)
def test_mistakes(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, status: int, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    one_line(call(*words.split()), status, message)
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("predict {run} --band 2", 2, "between 0 and 1"),
        ("predict {run} --trajectory 1", 2, "it was made on 0, 3, 6"),
        ("predict {run} --times a", 2, "not a number"),
        ("predict {run} --times 0:1", 2, "first:last:number"),
        ("predict {run} --times 0,1 --t1 3", 2, "give one of them"),
        ("predict {run} --t1 0", 2, "other than the first"),
        ("predict {run} --t1 inf", 2, "--t1"),
        ("predict {run} --out x.txt", 2, ".csv"),
        ("predict {run} --out nodir/x.csv", 1, "folder does not exist"),
        ("predict {run} --out nodir/x.png", 1, "folder does not exist"),
        ("predict {run} --model pendulum", 2, "leave --model out"),
        ("diagnose {run} --system pendulum", 2, "is a run"),
        ("diagnose {run} --times-longer 1", 2, "above 1"),
        ("diagnose gradient {run} --trajectory 1", 2, "it was made on 0, 3, 6"),
        ("diagnose gradient {run} --trajectory 99 --data {data}", 2, "no trajectory with id 99"),
        ("diagnose gradient {run} --data nowhere.h5", 1, "no such file"),
        ("diagnose gradient {run} --data {planets}", 2, "54 state components"),
        ("diagnose gradient {run} --gradient adjont", 2, "Known gradients: direct, aca"),
        ("diagnose gradient {run} --repeats 0", 2, "physnode diagnose gradient --help"),
        ("diagnose gradient {run} --model pendulum", 2, "leave --model out"),
        ("fit pendulum {data} --free damping --out {run}", 2, "already holds a run"),
        ("fit pendulum {data} --free damping --out {run} --resume", 1, "another"),
    ],
)
def test_mistakes_with_a_run(call: Call, run_folder: Path, words: str, status: int, message: str) -> None:
    one_line(call(*words.format(run=run_folder, data=PENDULUM, planets=PLANETS).split()), status, message)


@pytest.mark.parametrize("command", ["predict", "diagnose"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: shutil.rmtree(run) or run.mkdir(), "holds no run"),
        (lambda run: (run / "result.json").unlink(), "has not ended; resume it"),
        (lambda run: (run / "result.json").write_text("{"), "cannot be read"),
        (lambda run: (run / "result.json").write_text('{"format": 1}'), "damaged"),
        (lambda run: (run / "result.json").write_text('{"format": 99}'), "reads format"),
        (lambda run: (run / "config.json").write_text('{"model": null}'), "--model"),
        (lambda run: os.truncate(run / "result.safetensors", 100), "damaged"),
        (lambda run: (run / "model.safetensors").unlink(), "damaged or missing"),
    ],
)
def test_unfinished_and_damaged_runs(
    call: Call, run_folder: Path, tmp_path: Path, command: str, damage: object, message: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    assert callable(damage)
    damage(copy)
    one_line(call(command, copy), 1, message)


@pytest.mark.parametrize(
    ("function", "extra", "message"),
    [
        ("nothing", [], "has no function 'nothing'; it has build"),
        ("number", [], "must return a field"),
        ("broken", [], "line 30: KeyError: 'oops'"),
        ("wrong_shape", ["--free", "x"], 'no parameter "x"'),
        ("wrong_shape", [], "line 34: RuntimeError"),
        ("build", ["--set", "colour=1"], "cannot be called with --set colour"),
    ],
)
def test_mistakes_in_a_users_own_model(call: Call, model_file: Path, function: str, extra: list[str], message: str) -> None:
    one_line(call("fit", f"{model_file}:{function}", PENDULUM, *extra), 2, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def f(:\n", "line 1: invalid syntax"),
        ("import sys\nsys.exit(3)\n", "ends the program"),
        ("x = 1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_a_model_file_that_cannot_be_imported(call: Call, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(content)
    one_line(call("fit", f"{path}:build", PENDULUM), 2, message)


def test_bare_commands_show_their_help(call: Call) -> None:
    for words in ([], ["data"]):
        found = call(*words)
        assert found.status == 2
        assert "Usage: physnode" in found.out + found.err
    for name in ("systems", "simulate", "fit", "predict", "diagnose", "diagnose gradient"):
        shown = call(*name.split(), "--help")
        assert shown.status == 0
        assert "Example" in shown.out
    assert call("--version").out.startswith("physnode ")


def test_as_a_module_and_into_a_closed_pipe(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "physnode", "systems", "nowhere"]
    found = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("error: there is no system 'nowhere'")
    assert found.stderr.count("\n") == 1
    piped = f"'{sys.executable}' -m physnode systems --json | head -c 5"
    cut = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "Traceback" not in cut.stderr
