"""Schema 1.0 of trajectory files, in one place: names, roles, types and every numeric limit.

A file is HDF5 that is also valid netCDF-4, in the contiguous ragged array form of the CF conventions (CF-1.11, section
9.3.3 and appendix H.4): all rows of all trajectories lie behind each other along ``obs``, and ``rowsize`` says how many
belong to each. Readers, writers and the validator take their facts from here and from nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA = "physnode-trajectory"
VERSION = (1, 0)
CONVENTIONS = "CF-1.11"
FEATURES: frozenset[str] = frozenset()
"""Features a file may name in ``required_features`` and this reader has; schema 1.0 knows none."""

OBS, TRAJECTORY, ROWSIZE, TIME = "obs", "trajectory", "rowsize", "time"
RESERVED = frozenset({OBS, TRAJECTORY, ROWSIZE, TIME, "split", "seed", "group_id", "time_origin", "component_units"})

REQUIRED_ATTRIBUTES = (
    "Conventions",
    "featureType",
    "schema",
    "schema_version",
    "state_variables",
    "title",
    "source",
    "history",
    "date_created",
)
SHOULD_ALWAYS = ("content_sha256",)
SHOULD_SIMULATED = (
    "generator_name",
    "generator_version",
    "generator_seed",
    "generator_config",
    "software",
    "integrator",
    "integrator_rtol",
    "integrator_atol",
)
JSON_ATTRIBUTES = ("generator_config", "software")
FORBIDDEN_ATTRIBUTES = ("scale_factor", "add_offset", "missing_value", "_Unsigned")
FREE_TEXT = frozenset(
    {
        "title",
        "source",
        "history",
        "comment",
        "references",
        "license",
        "creator_name",
        "system",
        "long_name",
        "generator_name",
        "integrator",
    }
)
"""Attributes that only people read: bytes that are not UTF-8 are a warning there and an error elsewhere."""

SPLITS = {"none": -1, "train": 0, "valid": 1, "test": 2}
SPLIT_NAMES = {code: name for name, code in SPLITS.items()}
INTERPOLATIONS = ("previous", "linear")

FLOATS = ("<f4", "<f8")
INTEGERS = ("|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4")
TEXT = "str"
BOOL = "|b1"


@dataclass(frozen=True)
class Role:
    """What schema 1.0 asks of the variables of one role.

    ``lead`` lists the first dimensions it may have, ``types`` the stored types, ``target`` the attribute that names the
    variable it belongs to, and ``missing`` whether NaN means a missing value.
    """

    lead: tuple[str, ...]
    types: tuple[str, ...]
    target: str | None = None
    missing: bool = False
    events: bool = True


ROLES: dict[str, Role] = {
    "state": Role((OBS,), FLOATS, missing=True),
    "observation": Role((OBS,), FLOATS, missing=True),
    "input": Role((OBS,), FLOATS, missing=True),
    "derivative": Role((OBS,), FLOATS, missing=True),
    "truth": Role((OBS,), FLOATS, target="truth_of", missing=True),
    "sigma": Role(("", TRAJECTORY, OBS), FLOATS, target="sigma_of", missing=True),
    "instrument": Role((OBS,), ("|i1",), target="instrument_of", events=False),
    "correlation": Role((OBS,), FLOATS, target="correlation_of", missing=True, events=False),
    "mask": Role((OBS,), ("|i1", BOOL), target="mask_of"),
    "parameter": Role((TRAJECTORY,), ("<f8",)),
    "initial_condition": Role((TRAJECTORY,), ("<f8",), target="initial_of"),
}
MEASURED = ("state", "observation", "input")
"""Roles of which at least one value should exist in each row."""

STRUCTURAL: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    TRAJECTORY: ((TRAJECTORY,), ("<i8",)),
    ROWSIZE: ((TRAJECTORY,), INTEGERS),
    TIME: ((OBS,), ("<f8",)),
    "split": ((TRAJECTORY,), ("|i1",)),
    "seed": ((TRAJECTORY,), ("<i8",)),
    "group_id": ((TRAJECTORY,), ("<i8",)),
    "time_origin": ((TRAJECTORY,), ("<f8",)),
}
"""Dimensions and types of the variables that have a fixed name instead of a role."""

# Limits of the hardened reader.
MAX_OBJECTS = 2000
MAX_DEPTH = 4
MAX_RANK = 8
MAX_ATTRIBUTES = 256
MAX_ATTRIBUTE_BYTES = 4 << 20
MAX_ATTRIBUTE_STRINGS = 16
MAX_JSON_BYTES = 64 << 10
MAX_LABELS = 4096
MAX_LABEL_BYTES = 1 << 20
MAX_NAME_BYTES = 128
MAX_CHUNK_BYTES = 64 << 20
BIG_BYTES = 1 << 30
MAX_EXPANSION = 200
MAX_FINDINGS = 1000
FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}

# The writer's chunk rule.
CHUNK_BYTES = 64 << 10
CHUNK_ROWS = (64, 65536)
WRITER_MAX_CHUNK_BYTES = 4 << 20


def dimension_scale_name(size: int) -> str:
    """The text that marks a dimension scale without values in netCDF-4 (netCDF-4 file format, "Dimension Scales")."""
    return f"This is a netCDF dimension but not a netCDF variable.{size:10d}"
