from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import physnode.data as data

xarray = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")
ENGINES = ["h5netcdf", *(["netcdf4"] if importlib.util.find_spec("netCDF4") else [])]


@pytest.mark.parametrize("engine", ENGINES)
def test_xarray_sees_names_labels_masks_and_missing_values(sample: data.Trajectories, sample_file: Path, engine: str) -> None:
    with xarray.open_dataset(sample_file, engine=engine) as found:
        assert found["position"].dims == ("obs", "body", "space")
        assert found["mass"].dims == ("trajectory", "body")
        assert found["body"].values.tolist() == ["a", "b", "c"]
        assert found["position_observed"].dtype == bool
        assert not found["position_observed"].values[2, 1]
        assert np.isnan(found["position"].values[2, 1]).all()
        assert found["time"].dtype == np.float64
        assert "time" in found["position"].coords
        assert found["rowsize"].values.tolist() == [5, 7, 300]
        assert not [dim for dim in found.dims if str(dim).startswith("phony")]
        assert np.array_equal(found["angle"].values[:5], sample[0].y[:, -1].numpy().astype(np.float32))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_xarray_wrote_is_valid_and_has_the_same_hash(
    sample: data.Trajectories, sample_file: Path, tmp_path: Path, engine: str
) -> None:
    copy = tmp_path / "copy.h5"
    with xarray.open_dataset(sample_file, engine=engine) as found:
        found.to_netcdf(copy, engine=engine)
    report = data.validate(copy)
    assert report.ok, str(report)
    assert data.open(copy)[2].names == sample[2].names
    assert np.array_equal(data.open(copy)[2].y.numpy(), sample[2].y.numpy())
