"""Write pendulum.h5: twelve swings of a damped pendulum, measured at irregular times with gaps, noise and missing values.

Run ``python data/pendulum/generate.py``. Nothing is downloaded; the numbers follow from the seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import physnode.data as data
from physnode.systems import Pendulum

SEED = 20
FREQUENCY, DAMPING = 2.0, 0.15  # rad/s, 1/s


def build() -> data.Trajectories:
    """Twelve trajectories over 20 s with amplitudes spread from 0.5 to 2.6 rad, on either side."""
    generator = np.random.default_rng(SEED)
    amplitude = np.linspace(0.5, 2.6, 12) * np.where(np.arange(12) % 2, -1.0, 1.0)
    push = generator.uniform(-0.3, 0.3, 12)
    start = np.round(np.stack((amplitude, push), axis=1), 3)
    return data.simulate(
        Pendulum(frequency=FREQUENCY, damping=DAMPING),
        y0=start,
        t1=20.0,
        rows=120,
        irregular=True,
        gaps=data.Gaps(count=(2, 3), length=(1.0, 3.0)),
        noise={"angle": 0.02, "angular_velocity": 0.04},
        missing={"angular_velocity": 0.05},
        decimals={"time": 4, "angle": 5, "angular_velocity": 5},
        split=(6 / 12, 2 / 12, 4 / 12),
        seed=SEED,
        title="Damped pendulum, noisy and irregular",
        attributes={"license": "CC0-1.0", "system": "pendulum"},
    )


def main() -> None:
    """Write the file and print the hash of its values."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("pendulum.h5"))
    path = parser.parse_args().output
    data.write(path, build(), overwrite=True, history="python data/pendulum/generate.py")
    print(f"{path}: {path.stat().st_size} bytes, content_sha256 {data.info(path)['content_sha256']}")


if __name__ == "__main__":
    main()
