from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest
from typer.testing import CliRunner, Result

import physnode.data as data
from physnode.cli.data import app


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_info_as_table_and_json(sample_file: Path) -> None:
    shown = run("info", sample_file)
    assert shown.exit_code == 0
    for part in ("sample", "position", "body (3) x space (2)", "kg"):
        assert part in shown.stdout
    found = json.loads(run("info", sample_file, "--json").stdout)
    assert found["files"][0]["rows"] == 312


def test_validate_counts_and_lists(sample_file: Path) -> None:
    assert run("validate", sample_file).exit_code == 0
    with h5py.File(sample_file, "r+") as file:
        del file["angle"].attrs["long_name"]
    assert run("validate", sample_file).exit_code == 0
    assert run("validate", sample_file, "--strict").exit_code == 1
    with h5py.File(sample_file, "r+") as file:
        file["angle"].attrs["units"] = "[red]deg[/red]"
    found = run("validate", sample_file)
    assert found.exit_code == 1
    assert "M06" in found.stdout
    answer = json.loads(run("validate", sample_file, "--json").stdout)
    assert answer["ok"] is False
    assert answer["files"][0]["findings"][0]["rule"] == "M06"
    assert "[red]deg[/red]" in answer["files"][0]["findings"][0]["message"]


@pytest.mark.parametrize("verb", ["info", "validate"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "is empty"), (b"\x89HDF\r\n\x1a\n\0\0", "cut off"), (b"hello\n", "is text")],
)
def test_a_mistake_is_one_line_on_stderr(tmp_path: Path, verb: str, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.h5"
    if content is not None:
        path.write_bytes(content)
    found = run(verb, path)
    assert found.exit_code == 1
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert message in found.stderr
    assert "Traceback" not in found.stderr


def test_the_good_files_are_shown_beside_a_bad_one(sample_file: Path, tmp_path: Path) -> None:
    found = run("info", tmp_path, sample_file)
    assert found.exit_code == 1
    assert "position" in found.stdout
    assert "is a directory" in found.stderr


def test_import_writes_a_valid_file_and_its_history(tmp_path: Path) -> None:
    (tmp_path / "pos.csv").write_text("t,x,x_err\n2000,1,.1\n2001,2,.1\n")
    (tmp_path / "vel.csv").write_text("t,vz,vz_err\n2000.5,9,1\n")
    target = tmp_path / "star.h5"
    words = ["import", tmp_path / "pos.csv", tmp_path / "vel.csv", "-o", target, "--join", "--time", "t"]
    words += ["--time-unit", "365.25 d", "--time-zero", "2000", "--unit", "x=mas", "--unit", "vz=km s-1"]
    words += ["--sigma", "x=x_err", "--sigma", "vz=vz_err", "--observation", "x", "--observation", "vz"]
    words += ["--instrument", "A", "--instrument", "B"]
    first = run(*words)
    assert first.exit_code == 0, first.output
    assert data.validate(target).findings == ()
    star = data.open(target)[0]
    assert star.t.tolist() == [0, 182.625, 365.25]
    assert star.observations["x"].unit == "marcsec"
    assert star.observations["vz"].instruments == ("B",)
    history = data.info(target)["attributes"]["history"]
    assert "physnode data import pos.csv vel.csv -o star.h5" in history
    assert "--time-unit '365.25 d'" in history
    assert str(tmp_path) not in history
    again = run(*words)
    assert again.exit_code == 1
    assert "--force" in again.stderr
    forced = run(*words, "--force", "--json")
    assert json.loads(forced.stdout)["rows"] == 3


def test_import_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("time,x\n0,1\n1,2\n")
    for words, message, status in (
        (["--time-unit", "s"], "unit of 'x'", 2),
        (["--time-unit", "year", "--unit", "x=m"], "365.25 d", 2),
        (["--time-unit", "s", "--unit", "x"], "NAME=VALUE", 2),
        (["--time-unit", "s", "--unit", "x=m", "--map", "x=z"], "column 'z'", 1),
        (["--time-unit", "s", "--unit", "x=m", "--instrument", "A", "--instrument", "B"], "once for each", 2),
    ):
        found = run("import", path, "-o", tmp_path / "a.h5", *words)
        assert found.exit_code == status, found.output
        assert message in found.stderr
        assert found.stderr.count("\n") == 1
    assert run("import", path, "-o", tmp_path / "a.h5").exit_code == 2
    assert not (tmp_path / "a.h5").exists()


def test_help_names_the_commands() -> None:
    shown = run("--help").stdout
    assert all(verb in shown for verb in ("info", "validate", "import"))
    assert "never guessed" in " ".join(run("import", "--help").stdout.split())
