from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import physnode.data as data
from physnode.errors import DataError, InputError


def table(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_one_table_is_one_trajectory(tmp_path: Path) -> None:
    path = table(tmp_path, "a.csv", "# a comment\ntime,x,x_err\n0,1.5,0.1\n\n1,,\n2.5,-3e2,0.2\n")
    found = data.read_csv(path, units={"x": "m"}, time_unit="s", sigma={"x": "x_err"})
    assert found[0].t.tolist() == [0, 1, 2.5]
    assert found[0].y[:, 0].tolist() == [1.5, 0, -300]
    assert found[0].observed[:, 0].tolist() == [True, False, True]
    assert found[0].sigma is not None
    assert found[0].sigma[:, 0].tolist() == [0.1, 1, 0.2]
    assert data.validate(data.write(tmp_path / "a.h5", found)).ok


@pytest.mark.parametrize("mark", [",", ";", "\t", "  "])
def test_delimiters_are_found(tmp_path: Path, mark: str) -> None:
    path = table(tmp_path, "a.csv", mark.join(["time", "x"]) + "\n" + mark.join(["0", "1"]) + "\n")
    assert data.read_csv(path, units={"x": "1"}, time_unit="s")[0].y.tolist() == [[1]]


def test_a_column_tells_trajectories_apart_and_vectors_are_gathered(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "a.csv",
        "run,time,px,py,force,mass\n4,0,1,2,9,5\n8,0,3,4,9,6\n4,1,5,6,9,5\n8,2,7,8,9,6\n",
    )
    found = data.read_csv(
        path,
        trajectory="run",
        columns={"position": ["px", "py"], "force": "force", "m": "mass"},
        inputs=["force"],
        parameters=["m"],
        units={"position": "m", "force": "N", "m": "kg"},
        time_unit="s",
    )
    assert found.ids == (4, 8)
    assert found.names == ("position[px]", "position[py]")
    assert [item.y.tolist() for item in found] == [[[1, 2], [5, 6]], [[3, 4], [7, 8]]]
    assert [item.parameters["m"].item() for item in found] == [5, 6]
    assert found[1].t.tolist() == [0, 2]
    assert found[0].inputs["force"].tolist() == [9, 9]


def test_files_are_joined_by_time(tmp_path: Path) -> None:
    one = table(tmp_path, "pos.csv", "time,x,y\n0,1,2\n2,3,4\n")
    two = table(tmp_path, "vel.csv", "time,v\n2,7\n1,6\n")
    found = data.read_csv([one, two], units={"x": "m", "y": "m", "v": "m s-1"}, time_unit="s", join=True)
    assert len(found) == 1
    assert found[0].t.tolist() == [0, 1, 2]
    assert found[0].y.tolist() == [[1, 2, 0], [0, 0, 6], [3, 4, 7]]
    assert found[0].observed.tolist() == [[True, True, False], [False, False, True], [True, True, True]]


def test_two_instruments_at_one_time_need_names(tmp_path: Path) -> None:
    one = table(tmp_path, "a.csv", "time,v,e\n0,1,.1\n1,2,.1\n")
    two = table(tmp_path, "b.csv", "time,v,e\n1,2.5,.3\n3,4,.3\n")
    with pytest.raises(DataError, match=r"two values at time 1\b.*instruments"):
        data.read_csv([one, two], units={"v": "m"}, time_unit="s", sigma={"v": "e"}, join=True)
    found = data.read_csv(
        [one, two],
        units={"v": "m"},
        time_unit="s",
        sigma={"v": "e"},
        join=True,
        instrument=["A", "B"],
        observations=["v"],
    )
    seen = found[0].observations["v"]
    assert found[0].t.tolist() == [0, 1, 1, 3]
    assert seen.values.tolist() == [1, 2, 2.5, 4]
    assert seen.instruments == ("A", "B")
    assert seen.instrument is not None
    assert seen.instrument.tolist() == [0, 0, 1, 1]
    assert seen.sigma is not None
    assert seen.sigma.tolist() == [0.1, 0.1, 0.3, 0.3]
    assert data.validate(data.write(tmp_path / "x.h5", found)).ok


def test_units_are_never_guessed_but_converted(tmp_path: Path) -> None:
    path = table(tmp_path, "a.csv", "t,x,e\n2000.5,3,1\n2001.5,4,1\n")
    with pytest.raises(InputError, match="'time'"):
        data.read_csv(path, time="t", units={"x": "m", "e": "m"})
    with pytest.raises(InputError, match="never guessed: give the unit of 'x'"):
        data.read_csv(path, time="t", time_unit="d", sigma={"x": "e"})
    found = data.read_csv(path, time="t", time_unit="365.25 d", time_zero=2000, units={"x": "1e-3 mas"}, sigma={"x": "e"})
    assert found[0].t.tolist() == [182.625, 547.875]
    assert found[0].units == {"time": "d", "x": "marcsec"}
    assert found[0].y[:, 0].tolist() == [0.003, 0.004]
    assert found[0].sigma is not None
    assert found[0].sigma[:, 0].tolist() == [0.001, 0.001]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no table"),
        ("time,x\n", "no rows"),
        ("time,x\n0,1\n1\n", "line 3: 1 values"),
        ("time,x\n0,1\n1,two\n", "line 3: column 'x' holds 'two'"),
        ("time,x\n0,1\n,2\n", "line 3: column 'time' holds no time"),
        ("time,time\n0,1\n", "used twice"),
        ("0,1\n1,2\n", "names="),
        ("when,x\n0,1\n", "no column 'time'"),
        ("time,x\n1,1\n0,2\n", "decreases"),
        ("time,x\n0,inf\n", "infinite"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.read_csv(table(tmp_path, "a.csv", text), units={"x": "1"}, time_unit="s")


def test_files_that_are_no_tables(tmp_path: Path, sample_file: Path) -> None:
    for path, message in ((tmp_path / "no.csv", "no such file"), (tmp_path, "regular file"), (sample_file, "not text")):
        with pytest.raises(DataError, match=message):
            data.read_csv(path, units={"x": "1"}, time_unit="s")


@pytest.mark.parametrize(
    "arguments",
    [
        {"columns": {"x": "nothing"}},
        {"sigma": {"q": "x"}},
        {"observations": ["q"]},
        {"observations": "x"},
        {"units": {"x": "1", "q": "1"}},
        {"instrument": ["A", "B"]},
        {"parameters": ["x"]},
    ],
)
def test_arguments_that_name_nothing(tmp_path: Path, arguments: dict) -> None:
    path = table(tmp_path, "a.csv", "time,x\n0,1\n1,2\n")
    with pytest.raises((InputError, DataError)):
        data.read_csv(path, **{"units": {"x": "1"}, "time_unit": "s", **arguments})


def test_names_and_lines_to_skip(tmp_path: Path) -> None:
    path = table(tmp_path, "a.txt", "%o v\r\n 0 5.0 1.5\r\n 0 6.0 2.5\r\n")
    found = data.read_csv(
        path, names=["trial", "time", "angle"], skip=1, trajectory="trial", units={"angle": "rad"}, time_unit="s"
    )
    assert np.array_equal(found[0].y[:, 0].numpy(), [1.5, 2.5])
    assert found.ids == (0,)
