"""Trajectory files from the user's side: open, write, describe, join."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from physnode.data import reading, schema, writing
from physnode.data.content import Damaged
from physnode.data.findings import clean
from physnode.data.flat import unit_of
from physnode.data.gather import join
from physnode.data.table import Header, Table, Variable
from physnode.data.trajectories import Trajectories
from physnode.errors import DataError, InputError

Path_ = str | os.PathLike[str]


def open(path: Path_) -> Trajectories:
    """All trajectories of a file, checked against schema 1.0 and loaded into memory.

    Raises DataError, in one line, if the file is missing, not a trajectory file, damaged, or breaks a rule; `validate`
    lists everything. Links, external storage and virtual datasets, which could read other files, are refused. Opening a
    stranger's file is still only as safe as the HDF5 library that parses it.
    """
    return Trajectories(reading.load(path))


def write(
    path: Path_,
    trajectories: Trajectories,
    *,
    title: str | None = None,
    source: str | None = None,
    overwrite: bool = False,
    history: str | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Path:
    """Write trajectories to one file, all of it or nothing, and return its path.

    ``title`` and ``source`` ("simulated: package.function version" or "observed: instrument") replace those the data came
    with; ``history`` is the command to note (default: this function); ``attributes`` adds root attributes such as
    ``license`` or ``references``. A program that is killed meanwhile leaves the old file, or none.

    Raises DataError if the file exists and ``overwrite`` is false, if the data break a rule, or if it cannot be written;
    InputError if there is nothing to write.
    """
    if len(trajectories) == 0:
        raise InputError("there are no trajectories to write; the selection is empty")
    table = trajectories.to_table()
    given = {"title": title, "source": source}
    merged = {**table.attributes, **(attributes or {}), **{k: v for k, v in given.items() if v is not None}}
    return writing.save(path, replace(table, attributes=merged), overwrite=overwrite, command=history or "physnode.data.write")


def concat(parts: Sequence[Trajectories]) -> Trajectories:
    """All trajectories of several datasets with the same variables, units and labels, in order.

    Raises InputError that lists every difference. Ids are kept unless one is used twice; then they count from 0.
    """
    return Trajectories(join([part.to_table() for part in parts if len(part)]))


def info(path: Path_) -> dict[str, Any]:
    """What a file holds, without reading its measured values: plain numbers, strings, lists and dicts, ready for JSON.

    Raises DataError as `open` does for a file that cannot be opened or breaks the structure of the schema.
    """
    with reading.checked_source(path) as source:
        header = source.header
        try:
            small = {
                name: source.read(name)
                for name, entry in header.entries.items()
                if entry.dims[:1] == (schema.TRAJECTORY,) or name in (schema.TIME, "component_units")
            }
        except Damaged as damage:
            raise DataError(f"{clean(path, 400)}: checksum failed in '{damage.name}'; the file is damaged") from None
        attributes = {key: _plain(value) for key, value in header.attributes.items()}
        sizes = small[schema.ROWSIZE].astype(np.int64)
        inside = np.diff(small[schema.TIME])[~_boundaries(sizes)]
        split = small.get("split", np.full(len(sizes), -1))
        return {
            "path": os.fspath(path),
            "title": attributes.get("title"),
            "source": attributes.get("source"),
            "system": attributes.get("system"),
            "schema_version": attributes["schema_version"],
            "trajectories": len(sizes),
            "rows": int(sizes.sum()),
            "length": _spread(sizes),
            "time": {"unit": header.entries[schema.TIME].attributes["units"], "step": _spread(inside)}
            | ({"min": float(small[schema.TIME].min()), "max": float(small[schema.TIME].max())}),
            "variables": _variables(header, small),
            "axes": {dim: list(labels) for dim, labels in header.labels.items()},
            "parameters": {
                name: {"unit": _unit(header, name, small), "min": float(small[name].min()), "max": float(small[name].max())}
                for name, entry in header.entries.items()
                if entry.role == "parameter"
            },
            "splits": {name: int((split == code).sum()) for name, code in schema.SPLITS.items() if (split == code).any()},
            "attributes": attributes,
            "content_sha256": attributes.get("content_sha256"),
            "storage": {
                "bytes": source.size,
                "chunk_rows": next((e.chunks[0] for e in header.entries.values() if e.chunks), None),
                "filters": sorted({schema.FILTERS[code] for e in header.entries.values() for code in e.filters}),
                "hdf5": h5py.version.hdf5_version,
            },
        }


def _variables(header: Header, small: dict[str, Any]) -> dict[str, Any]:
    attached = {
        (entry.role, entry.attributes.get(f"{entry.role}_of"))
        for entry in header.entries.values()
        if entry.role in ("sigma", "mask", "instrument")
    }
    return {
        name: {
            "role": entry.role,
            "unit": _unit(header, name, small),
            "type": entry.type,
            "axes": dict(zip(entry.dims[1:], entry.shape[1:], strict=True)),
            "sigma": ("sigma", name) in attached,
            "mask": ("mask", name) in attached,
            "instrument": ("instrument", name) in attached,
        }
        for name, entry in header.entries.items()
        if entry.role in (*schema.MEASURED, "derivative", "truth")
    }


def _unit(header: Header, name: str, small: dict[str, Any]) -> str:
    entry = header.entries[name]
    parts = {"component_units": Variable((), small["component_units"])} if "component_units" in small else {}
    return unit_of(Table({}, {}, parts, {}), Variable(entry.dims, np.zeros(0), entry.attributes))


def _boundaries(sizes: Any) -> Any:
    """True between the last row of one trajectory and the first of the next."""
    edges = np.zeros(max(int(sizes.sum()) - 1, 0), dtype=bool)
    cuts = np.cumsum(sizes)[:-1] - 1
    edges[cuts[(cuts >= 0) & (cuts < len(edges))]] = True
    return edges


def _spread(values: Any) -> dict[str, float] | None:
    if not len(values):
        return None
    return {"min": values.min().item(), "median": float(np.median(values)), "max": values.max().item()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return "\n".join(clean(line, 2000) for line in value.split("\n")) if isinstance(value, str) else value
