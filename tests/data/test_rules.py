"""Each rule of the validator, broken once behind the library's back, must be found by its name, and open must refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import physnode.data as data
from physnode.errors import DataError

Edit = Callable[[Callable[[h5py.File], object]], Path]


def redo(file: h5py.File, name: str, values: Any, **options: Any) -> None:
    """Store a variable again with other values, on the same dimensions and with the same attributes."""
    old = file[name]
    dims = [old.dims[axis][0].name if len(old.dims[axis]) else None for axis in range(old.ndim)]
    kept = {key: old.attrs[key] for key in old.attrs if key not in ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME")}
    del file[name]
    new = file.create_dataset(name, data=values, **options)
    for axis, dim in enumerate(dims):
        if dim is not None and dim != f"/{name}":
            new.dims[axis].attach_scale(file[dim])
    for key, value in kept.items():
        new.attrs[key] = value
    if name == "trajectory":
        new.make_scale(name)


def put(name: str, place: Any, value: Any) -> Callable[[h5py.File], None]:
    def action(file: h5py.File) -> None:
        file[name][place] = value

    return action


def attribute(owner: str, name: str, value: Any) -> Callable[[h5py.File], None]:
    def action(file: h5py.File) -> None:
        target = file[owner] if owner else file
        if value is None:
            del target.attrs[name]
        else:
            target.attrs[name] = value

    return action


def retype(name: str, kind: Any) -> Callable[[h5py.File], None]:
    return lambda file: redo(file, name, file[name][...].astype(kind))


def detach(file: h5py.File) -> None:
    file["position"].dims[1].detach_scale(file["body"])


def shorter(file: h5py.File) -> None:
    file["angle"].resize(300, axis=0)


def fixed_labels(file: h5py.File) -> None:
    del file["space"]
    file.create_dataset("space", data=np.array([b"x", b"y"])).make_scale("space")


def skipped_checksum(file: h5py.File) -> None:
    file["torque"].id.write_direct_chunk((0,), bytes(512 * 8), filter_mask=1)


def missing_chunk(file: h5py.File) -> None:
    for item in file.values():
        if item.shape[:1] == (312,):
            item.resize(1024, axis=0)


def never_written(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    space = h5py.h5s.create_simple((3,))
    h5py.h5d.create(file.id, b"empty", h5py.h5t.IEEE_F64LE, space, dcpl=plist)
    file["empty"].dims[0].attach_scale(file["trajectory"])


def double_sigma(file: h5py.File) -> None:
    file.copy("angle_sigma", "other_sigma")


ERRORS: list[tuple[str, str, Callable[[h5py.File], object]]] = [
    ("M01", "title", attribute("", "title", None)),
    ("M01", "schema", attribute("", "schema", "other")),
    ("M01", "schema_version", attribute("", "schema_version", "2.0")),
    ("M01", "schema_version", attribute("", "schema_version", "first")),
    ("M01", "required_features", attribute("", "required_features", "covariance")),
    ("M01", "Conventions", attribute("", "Conventions", "CF-1.6")),
    ("M01", "rowsize", attribute("rowsize", "sample_dimension", None)),
    ("M01", "torque:interpolation", attribute("torque", "interpolation", "spline")),
    ("M02", "position", detach),
    ("M02", "angle", shorter),
    ("M02", "rowsize", lambda file: file.__delitem__("rowsize")),
    ("M03", "angle", retype("angle", np.float16)),
    ("M03", "angle", retype("angle", np.complex128)),
    ("M03", "angle", retype("angle", np.int32)),
    ("M03", "g", retype("g", np.float32)),
    ("M03", "split", retype("split", np.int64)),
    ("M04", "space", fixed_labels),
    ("M05", "angle:scale_factor", attribute("angle", "scale_factor", 2.0)),
    ("M05", "angle:_FillValue", attribute("angle", "_FillValue", np.array([-999], np.float32))),
    ("M06", "angle", attribute("angle", "units", None)),
    ("M06", "angle", attribute("angle", "units", "deg")),
    ("M06", "angle_sigma", attribute("angle_sigma", "units", "degree")),
    ("M07", "time", attribute("time", "units", "seconds")),
    ("M07", "time:standard_name", attribute("time", "standard_name", "time")),
    ("M08", "time", retype("time", np.float32)),
    ("M09", "angle_sigma:sigma_of", attribute("angle_sigma", "sigma_of", "angel")),
    ("M09", "angle", attribute("angle", "role", "stat")),
    ("M09", "state_variables", attribute("", "state_variables", "position speed angle")),
    ("M09", "angle", attribute("", "state_variables", "position")),
    ("M09", "angle:ancillary_variables", attribute("angle", "ancillary_variables", "nothing")),
    ("M09", "other_sigma", double_sigma),
    ("M10", "generator_config", attribute("", "generator_config", '{"a": NaN}')),
    ("M10", "generator_config", attribute("", "generator_config", '{"a": 1, "a": 2}')),
    ("M10", "generator_config", attribute("", "generator_config", "[" * 60000)),
    ("M10", "generator_config", attribute("", "generator_config", '"' + "x" * 70000 + '"')),
    ("M10", "angle:units", attribute("angle", "units", np.bytes_(b"\xff"))),
    ("D01", "rowsize", put("rowsize", 0, 6)),
    ("D01", "rowsize", put("rowsize", 0, -5)),
    ("D01", "rowsize", put("rowsize", slice(None), [2**62, 2**62, 2**63 - 1])),
    ("D02", "trajectory", put("trajectory", 0, 3)),
    ("D02", "split", put("split", 0, 5)),
    ("D02", "group_id", put("group_id", 1, 0)),
    ("D03", "time", put("time", 6, -1.0)),
    ("D03", "time", put("time", 6, np.nan)),
    ("D03", "time", lambda file: file["time"].__setitem__(7, file["time"][8])),
    ("D04", "angle", put("angle", 3, np.inf)),
    ("D04", "g", put("g", 0, np.nan)),
    ("D04", "angle_initial", put("angle_initial", 0, np.nan)),
    ("D05", "position_observed", put("position_observed", (0, 0), 0)),
    ("D05", "position_observed", put("position_observed", (2, 1), 1)),
    ("D05", "position_observed", put("position_observed", (0, 0), 7)),
    ("D05", "rate_sigma", put("rate_sigma", 0, -1.0)),
    ("D05", "rate_sigma", put("rate_sigma", 0, np.nan)),
    ("D06", "torque", missing_chunk),
    ("D06", "empty", never_written),
    ("D07", "torque", skipped_checksum),
    ("D08", "content_sha256", put("angle", 0, 0.125)),
]


@pytest.mark.parametrize(("rule", "place", "action"), ERRORS, ids=[f"{rule}-{i}" for i, (rule, _, _) in enumerate(ERRORS)])
def test_a_broken_rule_is_found_and_refused(edit: Edit, rule: str, place: str, action: Callable[[h5py.File], object]) -> None:
    path = edit(action)
    report = data.validate(path)
    assert (rule, place) in {(item.rule, item.object) for item in report.errors}, str(report)
    with pytest.raises(DataError) as caught:
        data.open(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_findings_say_which_trajectory_and_row(edit: Edit) -> None:
    found = data.validate(edit(put("angle", 14, np.inf))).errors[0]
    assert (found.object, found.trajectory, found.row, found.value) == ("angle", 11, 2, "inf")
    assert "trajectory 11, row 2" in str(found)


def test_all_findings_are_reported(edit: Edit) -> None:
    def several(file: h5py.File) -> None:
        file["angle"].attrs["units"] = "deg"
        del file.attrs["title"]
        file["torque"].attrs["scale_factor"] = 2.0

    assert {"M01", "M05", "M06"} <= {item.rule for item in data.validate(edit(several)).errors}


def test_a_flipped_bit_is_located(sample_file: Path) -> None:
    with h5py.File(sample_file) as file:
        offset = file["position"].id.get_chunk_info(0).byte_offset
    content = bytearray(sample_file.read_bytes())
    content[offset + 100] ^= 1
    sample_file.write_bytes(content)
    found = data.validate(sample_file).errors[0]
    assert (found.rule, found.object, found.trajectory) == ("D08", "position", 7)
    assert "rows 0-311" in found.message
    with pytest.raises(DataError, match="checksum failed in rows 0-311"):
        data.open(sample_file)
    assert data.validate(sample_file, quick=True).ok


def test_quick_reads_no_values(edit: Edit) -> None:
    path = edit(put("angle", 3, np.inf))
    assert data.validate(path, quick=True).ok
    assert not data.validate(path).ok


def test_a_newer_minor_version_opens_with_one_warning(edit: Edit) -> None:
    path = edit(attribute("", "schema_version", "1.7"))
    with pytest.warns(UserWarning, match=r"newer schema 1\.7") as caught:
        data.open(path)
    assert len(caught) == 1


def test_unknown_variables_are_ignored_with_a_warning_and_kept(edit: Edit, tmp_path: Path) -> None:
    def add(file: h5py.File) -> None:
        file.attrs["note"] = "mine"
        del file.attrs["content_sha256"]
        file["extra"] = np.arange(3.0)
        file["extra"].attrs["units"] = "1"
        file["extra"].dims[0].attach_scale(file["trajectory"])

    with pytest.warns(UserWarning, match="extra"):
        found = data.open(edit(add))
    copy = data.write(tmp_path / "copy.h5", found[1:])
    with h5py.File(copy) as file:
        assert file["extra"][...].tolist() == [1.0, 2.0]
        assert file.attrs["note"] == "mine"


def test_a_bool_mask_of_h5py_is_read(edit: Edit) -> None:
    path = edit(lambda file: redo(file, "position_observed", file["position_observed"][...].astype(bool)))
    assert data.validate(path).ok
    assert not data.open(path)[0].observed[2, 2]


def test_mixed_units_by_component(edit: Edit) -> None:
    def mixed(file: h5py.File) -> None:
        del file.attrs["content_sha256"]
        file.create_dataset("component_units", data=["m", "km"], dtype=h5py.string_dtype())
        file["component_units"].dims[0].attach_scale(file["space"])
        del file["position"].attrs["units"]
        del file["position_sigma"]
        file["position"].attrs["ancillary_variables"] = "position_observed"

    assert data.open(edit(mixed)).units["position"] == "m, km"


@pytest.mark.parametrize(
    ("message", "action"),
    [
        ("recommended", attribute("", "content_sha256", None)),
        ("long_name", lambda f: (attribute("", "content_sha256", None)(f), attribute("angle", "long_name", None)(f))),
        ("seed", lambda f: (attribute("", "content_sha256", None)(f), put("seed", 1, 5)(f))),
    ],
)
def test_lesser_faults_are_warnings(edit: Edit, message: str, action: Callable[[h5py.File], object]) -> None:
    report = data.validate(edit(action))
    assert report.ok
    assert any(message in item.message or message == item.object for item in report.warnings)
    assert {item.rule for item in report.warnings} == {"D09"}


def test_empty_duplicate_and_constant_trajectories_are_warned_of(tmp_path: Path) -> None:
    t = np.arange(4.0)
    made = data.from_arrays([t, t, t, t[:0]], {"x": [t, t, 0 * t, t[:0]]})
    messages = [item.message for item in data.validate(data.write(tmp_path / "x.h5", made)).warnings]
    assert messages == ["trajectory without rows", "constant trajectory", "same values as trajectory 0"]
    gap = data.from_arrays(t, {"x": [0.0, np.nan, 2.0, 3.0]})
    assert "row without any value" in str(data.validate(data.write(tmp_path / "y.h5", gap)))
