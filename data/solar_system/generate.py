"""Write solar_system.h5: the Sun and eight planetary bodies from JPL DE421, 1950 to 2000, every ten days.

Run ``python data/solar_system/generate.py`` with the packages de421 and jplephem installed (``pip install
'physnode[orbital]'``). The constants and the Chebyshev series come from the package de421; nothing is downloaded here.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import de421
import jplephem
import numpy as np

import physnode.data as data

START, STOP, STEP = 2433282.5, 2451544.5, 10.0  # Julian dates, TDB: 1950-01-01 and 2000-01-01, 0 h
SECONDS_PER_DAY = 86400.0
BODIES = {
    "sun": "GMS",
    "mercury": "GM1",
    "venus": "GM2",
    "earthmoon": "GMB",
    "mars": "GM4",
    "jupiter": "GM5",
    "saturn": "GM6",
    "uranus": "GM7",
    "neptune": "GM8",
}
"""Name of each body in DE421 and of its G times mass in the header (the Earth-Moon barycentre has the mass of both)."""


def build() -> data.Trajectories:
    """One trajectory: barycentric ICRF positions (km) and velocities (km d-1) at each date."""
    ephemeris = jplephem.Ephemeris(de421)
    elapsed = np.arange(0.0, STOP - START + 1e-9, STEP)
    states = [ephemeris.position_and_velocity(name, START + elapsed) for name in BODIES]
    position, velocity = (np.stack([state[part].T for state in states], axis=1) for part in (0, 1))
    au = float(ephemeris.AU)
    gm = np.array([float(getattr(ephemeris, name)) for name in BODIES.values()]) * au**3  # header: au3 d-2
    axes = {"body": list(BODIES), "space": ["x", "y", "z"]}
    return data.from_arrays(
        elapsed,
        {"position": position, "velocity": velocity},
        parameters={"gm": gm, "au": au, "speed_of_light": float(ephemeris.CLIGHT) * SECONDS_PER_DAY},
        units={
            "time": "d",
            "position": "km",
            "velocity": "km d-1",
            "gm": "km3 d-2",
            "au": "km",
            "speed_of_light": "km d-1",
        },
        labels={"position": axes, "velocity": axes, "gm": {"body": list(BODIES)}},
        long_names={
            "position": "position relative to the solar-system barycentre, ICRF axes",
            "velocity": "velocity relative to the solar-system barycentre, ICRF axes",
            "gm": "gravitational constant times mass",
            "au": "astronomical unit of DE421",
            "speed_of_light": "speed of light of DE421",
        },
        time_origin=START,
        time_scale="TDB",
        title="Sun and planets from JPL DE421, 1950 to 2000",
        source=f"ephemeris: JPL DE421 (package de421 {version('de421')}, read by jplephem {version('jplephem')})",
        attributes={
            "system": "solar system",
            "license": "MIT (packages de421 and jplephem); the ephemeris is a work of JPL/NASA",
            "references": "Folkner, Williams and Boggs 2009, The Planetary and Lunar Ephemeris DE 421, IPN PR 42-178",
            "generator_name": "data/solar_system/generate.py",
            "generator_config": json.dumps({"start": START, "stop": STOP, "step": STEP}),
        },
    )


def main() -> None:
    """Write the file and print the hash of its values."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("solar_system.h5"))
    path = parser.parse_args().output
    data.write(path, build(), overwrite=True, history="python data/solar_system/generate.py")
    print(f"{path}: {path.stat().st_size} bytes, content_sha256 {data.info(path)['content_sha256']}")


if __name__ == "__main__":
    main()
