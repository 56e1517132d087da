from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import physnode.data as data
from physnode.data import writing
from physnode.errors import DataError, InputError


def assert_same(one: data.Trajectories, two: data.Trajectories, *, initial: bool = True) -> None:
    assert one.names == two.names
    assert one.units == two.units
    assert one.ids == two.ids
    assert one.splits == two.splits
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.t, b.t)
        assert torch.equal(a.y, b.y)
        assert a.y.dtype == b.y.dtype
        assert torch.equal(a.observed, b.observed)
        assert (a.sigma is None) == (b.sigma is None)
        if a.sigma is not None and b.sigma is not None:
            assert torch.allclose(a.sigma, b.sigma, rtol=0, atol=0, equal_nan=True)
        pairs = [(a.inputs, b.inputs), (a.parameters, b.parameters)]
        for left, right in [*pairs, (a.initial, b.initial)] if initial else pairs:
            assert list(left) == list(right)
            assert all(torch.equal(left[name], right[name]) for name in left)
        assert a.observations.keys() == b.observations.keys()
        for name, found in a.observations.items():
            other = b.observations[name]
            assert torch.equal(found.values, other.values)
            assert torch.equal(found.observed, other.observed)
            assert (found.unit, found.instruments, found.period) == (other.unit, other.instruments, other.period)
        assert (a.group, a.time_origin) == (b.group, b.time_origin)


def test_round_trip_is_exact_and_the_file_is_valid(sample: data.Trajectories, sample_file: Path) -> None:
    assert_same(sample, data.open(sample_file))
    report = data.validate(sample_file)
    assert report.findings == ()
    assert str(report).endswith("valid (0 errors, 0 warnings)")


def test_views_are_written_as_they_are_seen(sample: data.Trajectories, tmp_path: Path) -> None:
    for name, view in {
        "rows": sample.select(every=2, t0=0.2),
        "variables": sample.select(variables=["angle"]),
        "observation": sample.select(variables=["rate"]),
        "windows": sample.segments(4, 3),
    }.items():
        found = data.open(data.write(tmp_path / f"{name}.h5", view))
        assert_same(view, found, initial=False)  # a view that starts later has lost its initial values


_reals = st.one_of(st.floats(allow_infinity=False, width=64), st.just(float("nan")))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_finite_or_missing_value_survives(tmp_path: Path, draw: st.DataObject) -> None:
    counts = draw.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    event = tuple(draw.draw(st.lists(st.integers(1, 3), max_size=2)))
    times, values = [], []
    for count in counts:
        steps = draw.draw(st.lists(st.floats(1e-3, 1e6), min_size=count, max_size=count))
        times.append(np.cumsum(steps))
        size = count * int(np.prod(event))
        flat = draw.draw(st.lists(_reals, min_size=size, max_size=size))
        values.append(np.array(flat).reshape(count, *event))
    made = data.from_arrays(times, {"x": values})
    path = data.write(tmp_path / "any.h5", made, overwrite=True)
    assert_same(made, data.open(path))
    raw = np.concatenate(values)
    with h5py.File(path) as file:
        assert np.array_equal(file["x"][...], raw, equal_nan=True)


def test_the_hash_depends_on_values_only(sample: data.Trajectories, tmp_path: Path) -> None:
    one = data.info(data.write(tmp_path / "one.h5", sample))
    two = data.info(data.write(tmp_path / "two.h5", sample, title="another title"))
    assert one["content_sha256"] == two["content_sha256"]
    changed = data.write(tmp_path / "three.h5", sample.select(every=2))
    assert data.info(changed)["content_sha256"] != one["content_sha256"]


def test_the_hash_is_that_of_the_specification(tmp_path: Path) -> None:
    import hashlib

    made = data.from_arrays([0.0, 1.0], {"x": [[1.0], [2.0]]}, labels={"x": {"body": ["é"]}})
    path = data.write(tmp_path / "tiny.h5", made)
    parts = [
        b"body\0str\0" + b"1\0" + "é".encode() + b"\0",
        b"rowsize\0<i8\0" + b"1\0" + np.array([2], "<i8").tobytes(),
        b"time\0<f8\0" + b"2\0" + np.array([0.0, 1.0]).tobytes(),
        b"trajectory\0<i8\0" + b"1\0" + np.array([0], "<i8").tobytes(),
        b"x\0<f8\0" + b"2,1\0" + np.array([1.0, 2.0]).tobytes(),
    ]
    assert data.info(path)["content_sha256"] == hashlib.sha256(b"".join(parts)).hexdigest()


def test_history_grows_and_metadata_is_kept(sample: data.Trajectories, tmp_path: Path) -> None:
    first = data.write(tmp_path / "one.h5", sample, history="first", attributes={"license": "CC0", "generator_seed": 3})
    second = data.write(tmp_path / "two.h5", data.open(first), history="second")
    found = data.info(second)["attributes"]
    assert [line.split(" ", 1)[1] for line in found["history"].split("\n")] == ["first", "second"]
    assert found["license"] == "CC0"
    assert found["generator_seed"] == 3
    with h5py.File(second) as file:
        assert file.attrs["generator_seed"].dtype == np.int64


def test_info_tells_sizes_without_values(sample_file: Path) -> None:
    found = data.info(sample_file)
    assert (found["trajectories"], found["rows"]) == (3, 312)
    assert found["length"] == {"min": 5, "median": 7.0, "max": 300}
    assert found["variables"]["position"]["axes"] == {"body": 3, "space": 2}
    assert found["variables"]["rate"]["instrument"]
    assert found["parameters"]["mass"] == {"unit": "kg", "min": 1.0, "max": 9.0}
    assert found["splits"] == {"train": 1, "valid": 1, "test": 1}
    assert found["time"]["step"]["min"] > 0


def test_chunks_follow_the_rule(tmp_path: Path) -> None:
    rows = 3000
    wide = data.from_arrays(np.arange(float(rows)), {"x": np.ones((rows, 3, 6)), "v": np.ones(rows)})
    with h5py.File(data.write(tmp_path / "wide.h5", wide)) as file:
        assert file["x"].chunks == (512, 3, 6)
        assert file["v"].chunks == (512,)
        assert file["x"].fletcher32
        assert file["x"].maxshape[0] is None
        assert file["x"].compression is None


def test_an_existing_file_is_kept_unless_told(sample: data.Trajectories, sample_file: Path) -> None:
    before = sample_file.read_bytes()
    with pytest.raises(DataError, match="already exists"):
        data.write(sample_file, sample)
    assert sample_file.read_bytes() == before
    data.write(sample_file, sample.select(every=2), overwrite=True)
    assert len(data.open(sample_file)[2]) == 150


@pytest.mark.parametrize("attributes", [{"generator_config": "{"}, {"note": {"a": 1}}, {"schema": "mine"}, {"title": 3}])
def test_attributes_that_break_the_schema_are_refused(
    sample: data.Trajectories, tmp_path: Path, attributes: dict[str, object]
) -> None:
    with pytest.raises(DataError):
        data.write(tmp_path / "x.h5", sample, attributes=attributes)
    assert list(tmp_path.iterdir()) == []


def test_targets_that_cannot_be_written_are_named(sample: data.Trajectories, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a directory"):
        data.write(tmp_path, sample, overwrite=True)
    with pytest.raises(DataError, match="folder does not exist"):
        data.write(tmp_path / "no" / "x.h5", sample)
    with pytest.raises(InputError, match="no trajectories"):
        data.write(tmp_path / "x.h5", sample[:0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="POSIX file modes")
def test_the_mode_follows_the_umask(sample: data.Trajectories, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        path = data.write(tmp_path / "x.h5", sample)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_failure_in_the_middle_leaves_the_old_file_and_no_rubbish(
    sample: data.Trajectories, sample_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sample_file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_flush", full)
    with pytest.raises(DataError, match="No space left on device"):
        data.write(sample_file, sample, overwrite=True)
    assert sample_file.read_bytes() == before
    assert [path.name for path in sample_file.parent.iterdir()] == [sample_file.name]


_KILLED = """
import os, signal, sys, numpy as np, h5py
import physnode.data as data
from physnode.data import writing
made = data.from_arrays(np.arange(2000.0), {"x": np.random.default_rng(0).normal(size=(2000, 9))})
real = writing._stored
def dies(key, value, owner):
    if key == "long_name":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(key, value, owner)
writing._stored = dies
data.write(sys.argv[1], made, overwrite=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("existed", [True, False])
def test_a_kill_in_the_middle_leaves_the_old_file_or_none(tmp_path: Path, existed: bool, sample: data.Trajectories) -> None:
    target = tmp_path / "data.h5"
    if existed:
        data.write(target, sample)
    before = target.read_bytes() if existed else None
    done = subprocess.run([sys.executable, "-c", _KILLED, str(target)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (target.read_bytes() if target.exists() else None) == before
    assert any(path.suffix == ".part" for path in tmp_path.iterdir())
    data.write(target, sample, overwrite=True)
    assert data.validate(target).ok


def test_a_reader_keeps_the_old_values_through_a_replacement(sample: data.Trajectories, sample_file: Path) -> None:
    with h5py.File(sample_file) as file:
        old = file["position"][...]
        data.write(sample_file, sample.select(every=3), overwrite=True)
        assert np.array_equal(file["position"][...], old, equal_nan=True)


def test_a_file_of_schema_1_0_stays_readable() -> None:
    """golden_1_0.h5 was written when schema 1.0 was released and must never be written again."""
    golden = Path(__file__).with_name("golden_1_0.h5")
    assert golden.stat().st_size < 50_000
    assert data.validate(golden).findings == ()
    found = data.open(golden)
    assert found.ids == (7, 3)
    assert found.splits == ("train", "test")
    first, second = found
    assert first.names == ("position[a,x]", "position[a,y]", "position[b,x]", "position[b,y]", "angle")
    assert first.t.tolist() == [0.0, 0.5, 2.0]
    assert first.y[0].tolist() == [0.0, 1.0, 2.0, 3.0, 0.25]
    assert first.observed.tolist() == [[True] * 5, [True, True, False, False, True], [True] * 5]
    assert first.sigma is not None
    assert first.sigma[0].tolist() == [0.5, 0.5, 0.5, 0.5, 0.125]
    assert second.parameters["mass"].tolist() == [3.0, 4.0]
    assert second.observations["rate"].instruments == ("VLT", "Keck")
    assert second.inputs["torque"].tolist() == [1.0, 2.0]
    assert (second.time_origin, second.group, second.initial["angle"].item()) == (2451545.0, 1, 0.375)
