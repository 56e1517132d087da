"""Real measurements, read as a user would; skipped where the folder of measurements is not beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import physnode.data as data

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
S2 = SHARED / "s2_star_vlt"
PENDULUM = SHARED / "real_pendulum" / "real_pend_h_1.txt"
FILES = ["astrometry_SHARP", "astrometry_NACO", "velocity_NACO", "velocity_OSIRIS", "velocity_SINFONI"]


@pytest.mark.skipif(not S2.is_dir(), reason="the measurements of S2 are not beside this checkout")
def test_astrometry_and_radial_velocities_of_a_star_become_one_trajectory(tmp_path: Path) -> None:
    found = data.read_csv(
        [S2 / f"{name}.csv" for name in FILES],
        join=True,
        time="t",
        time_unit="365.25 d",
        time_zero=2000.0,
        columns={"x": "x", "y": "y", "vz": "vz"},
        sigma={"x": "x_err", "y": "y_err", "vz": "vz_err"},
        observations=["x", "y", "vz"],
        units={"x": "arcsec", "y": "arcsec", "vz": "km s-1"},
        instrument=[name.split("_")[1] for name in FILES],
        title="S2 around Sgr A*",
        source="observed: VLT and NTT",
    )
    path = data.write(tmp_path / "s2.h5", found)
    assert data.validate(path).findings == ()
    star = data.open(path)[0]
    x, vz = star.observations["x"], star.observations["vz"]
    assert int(x.observed.sum()) == 145
    assert int(vz.observed.sum()) == 44
    assert not (x.observed & vz.observed).all()
    assert x.instruments == ("SHARP", "NACO")
    assert vz.instrument is not None
    counts = torch.bincount(vz.instrument[vz.observed]).tolist()
    assert dict(zip(vz.instruments, counts, strict=True)) == {"NACO": 2, "OSIRIS": 3, "SINFONI": 39}
    assert star.t[0].item() == pytest.approx((1992.2241 - 2000) * 365.25, abs=1e-9)
    assert x.values[0] == 0.009935
    assert x.sigma is not None
    assert x.sigma[0] == 0.003241
    assert star.y.shape == (len(star), 0)


@pytest.mark.skipif(not PENDULUM.is_file(), reason="the pendulum's measurements are not beside this checkout")
def test_a_pendulum_with_gaps(tmp_path: Path) -> None:
    found = data.read_csv(
        PENDULUM,
        names=["trial", "time", "angle", "rate"],
        skip=1,
        trajectory="trial",
        units={"angle": "rad", "rate": "rad s-1"},
        time_unit="s",
    )
    swing = data.open(data.write(tmp_path / "pendulum.h5", found))[0]
    assert swing.y.shape == (556, 2)
    assert (swing.t[0].item(), swing.t[-1].item()) == (5.0, 99.5)
    steps = (swing.t.diff() * 6).round()
    assert [int((steps == k).sum()) for k in (1, 2, 3)] == [545, 8, 2]
    assert swing.observed.all()
