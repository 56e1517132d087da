from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import physnode.data as data


def make_sample(seed: int = 0) -> data.Trajectories:
    """Three ragged trajectories with every kind of variable, some values missing."""
    rng = np.random.default_rng(seed)
    times = [np.sort(rng.random(n)) for n in (5, 7, 300)]
    position = [rng.normal(size=(len(t), 3, 2)) for t in times]
    position[0][2, 1] = np.nan
    seen = [~np.isnan(block[..., 0]) for block in position]
    rate = [np.cos(t) for t in times]
    rate[1][3] = np.nan
    return data.from_arrays(
        times,
        {"position": position, "angle": [np.sin(t).astype(np.float32) for t in times]},
        sigma={
            "position": [np.full((len(t), 3), 0.1) for t in times],
            "angle": 0.2,
            "rate": [0.3 * np.ones(len(t)) for t in times],
        },
        observed={"position": seen},
        observations={"rate": rate},
        inputs={"torque": [np.tanh(t) for t in times]},
        parameters={"mass": np.arange(9.0).reshape(3, 3) + 1, "g": 9.8},
        initial={"angle": [0.0, 0.1, 0.2]},
        instruments={"rate": [np.where(np.isnan(r), "", "VLT") for r in rate]},
        labels={"position": {"body": "abc", "space": "xy"}, "mass": {"body": "abc"}},
        split=["train", "valid", "test"],
        ids=[7, 3, 11],
        groups=[0, 1, 2],
        seeds=[5, 6, 7],
        time_origin=2451545.0,
        periods={"rate": 6.0},
        units={
            "time": "s",
            "position": "m",
            "angle": "rad",
            "rate": "km s-1",
            "torque": "N m",
            "mass": "kg",
            "g": "m s-2",
        },
        title="sample",
        source="observed: nobody",
    )


@pytest.fixture
def sample() -> data.Trajectories:
    return make_sample()


@pytest.fixture
def sample_file(sample: data.Trajectories, tmp_path: Path) -> Path:
    return data.write(tmp_path / "sample.h5", sample)


@pytest.fixture
def edit(sample_file: Path) -> Callable[[Callable[[h5py.File], object]], Path]:
    """Change the sample file behind the library's back and give its path."""

    def change(action: Callable[[h5py.File], object]) -> Path:
        with h5py.File(sample_file, "r+") as file:
            action(file)
        return sample_file

    return change
