"""Write a trajectory file so that a reader sees the old file or the whole new one, never a part.

The values go to a temporary file in the same folder; it is closed, flushed to disk, and moved over the target in one
step. A failure removes the temporary file; a kill leaves it behind and the target untouched.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from physnode.data import schema
from physnode.data.content import check_content
from physnode.data.findings import Findings, clean
from physnode.data.structure import check_structure
from physnode.data.table import Header, Table, Variable, content_sha256, header_of
from physnode.errors import DataError


def save(path: str | os.PathLike[str], table: Table, *, overwrite: bool, command: str) -> Path:
    """Write ``table`` to ``path`` in one step, with ``command`` appended to its history; returns the path written.

    Raises DataError if the content breaks a rule of the schema, if the target exists and ``overwrite`` is false, or if
    the disk refuses.
    """
    target = Path(os.path.realpath(os.fspath(path)))
    shown = clean(path, 400)
    if target.is_dir():
        raise DataError(f"{shown}: is a directory; name a file, such as {shown}/trajectories.h5")
    if not target.parent.is_dir():
        raise DataError(f"{shown}: the folder does not exist; make it first")
    if target.exists() and not overwrite:
        raise DataError(f"{shown}: already exists; pass overwrite=True (on the command line --force) to replace it")
    finished = _stamped(table, command)
    try:
        with _replacing(target, shown, overwrite=overwrite) as part:
            with h5py.File(part, "w", track_order=True, libver=("earliest", "v110")) as file:
                _fill(file, finished)
            _flush(part, os.O_RDWR)
    except DataError:
        raise
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{shown}: could not be written: {clean(reason, 200)}; what was there before is untouched") from None
    return target


@contextmanager
def _replacing(target: Path, shown: str, *, overwrite: bool) -> Iterator[str]:
    part = target.parent / f".{target.name[:80]}.{os.getpid()}.{secrets.token_hex(4)}.part"
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))  # the kernel applies the user's umask
    try:
        yield str(part)
        if target.exists() and not overwrite:
            raise DataError(f"{shown}: was created by another program meanwhile; nothing was replaced")
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        _flush(str(target.parent), os.O_RDONLY)


def _flush(path: str, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _stamped(table: Table, command: str) -> Table:
    """The table with canonical NaNs and the root attributes that each writing renews, checked against every rule."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    old = str(table.attributes.get("history", "")).strip("\n")
    line = f"{now} {' '.join(command.split())}"
    attributes: dict[str, Any] = {
        "Conventions": schema.CONVENTIONS,
        "featureType": "trajectory",
        "schema": schema.SCHEMA,
        "schema_version": ".".join(map(str, schema.VERSION)),
        "state_variables": "",
        "title": "untitled",
        "source": "unspecified",
        **table.attributes,
        "history": f"{old}\n{line}" if old else line,
        "date_created": now,
        "software": json.dumps(_software()),
    }
    attributes.pop("content_sha256", None)
    attributes["schema_version"] = ".".join(map(str, schema.VERSION))
    variables = {name: replace(item, values=_canonical(item.values)) for name, item in table.variables.items()}
    finished = replace(table, variables=variables, attributes=attributes)
    findings = Findings()
    header = header_of(finished)
    if check_structure(header, findings) and not findings.errors:
        check_content(header, lambda name: variables[name].values, findings)
    if findings.errors:
        more = f" (and {len(findings.errors) - 1} more)" if len(findings.errors) > 1 else ""
        raise DataError(f"the trajectories cannot be stored: {findings.errors[0]}{more}")
    attributes["content_sha256"] = content_sha256(header, lambda name: variables[name].values)
    return finished


def _canonical(values: Any) -> Any:
    """The same numbers with one bit pattern for NaN, so that the hash survives other programs."""
    if values.dtype.kind == "b":
        return values.astype(np.int8)
    if values.dtype.kind != "f" or not np.isnan(values).any():
        return values
    return np.where(np.isnan(values), values.dtype.type(np.nan), values)


def _software() -> dict[str, str]:
    try:
        own = version("physnode")
    except PackageNotFoundError:
        own = "unknown"
    return {"physnode": own, "h5py": h5py.__version__, "hdf5": h5py.version.hdf5_version}


def _fill(file: Any, table: Table) -> None:
    header = header_of(table)
    rows = _chunk_rows(header)
    for dim, size in table.sizes.items():
        if dim in table.labels:
            text = h5py.string_dtype()
            file.create_dataset(dim, data=np.array(table.labels[dim], dtype=object), dtype=text).make_scale(dim)
        elif dim not in table.variables:
            growing = {"maxshape": (None,), "chunks": (rows,)} if dim == schema.OBS else {}
            file.create_dataset(dim, shape=(size,), dtype=">f4", **growing).make_scale(schema.dimension_scale_name(size))
    for name, item in table.variables.items():
        file_options: dict[str, Any] = {}
        if item.dims[:1] == (schema.OBS,):
            chunk = (rows, *item.values.shape[1:])
            file_options = {"maxshape": (None, *item.values.shape[1:]), "chunks": chunk, "fletcher32": True}
        if item.values.dtype.kind == "O":
            file_options["dtype"] = h5py.string_dtype()
        dataset = file.create_dataset(name, data=item.values, **file_options)
        if name in table.sizes:
            dataset.make_scale(name)
    for name, item in table.variables.items():
        dataset = file[name]
        if name not in table.sizes:
            for axis, dim in enumerate(item.dims):
                dataset.dims[axis].attach_scale(file[dim])
        for key, value in item.attributes.items():
            dataset.attrs[key] = _stored(key, value, item)
    for key, value in table.attributes.items():
        file.attrs[key] = _stored(key, value, None)


def _stored(key: str, value: Any, owner: Variable | None) -> Any:
    """An attribute as netCDF-4 wants it: flags of the variable's type, integers as int64."""
    if owner is not None and key in ("flag_values", "_FillValue"):
        return np.atleast_1d(np.asarray(value, dtype=owner.values.dtype))
    if isinstance(value, bool | int):
        return np.int64(value)
    return np.float64(value) if isinstance(value, float) else value


def _chunk_rows(header: Header) -> int:
    """Rows in a chunk: the power of two nearest to 64 KiB of the widest variable, one number for the whole file."""
    widths = [
        math.prod(entry.shape[1:]) * np.dtype(entry.type).itemsize
        for entry in header.entries.values()
        if entry.dims[:1] == (schema.OBS,) and entry.type != schema.TEXT
    ]
    widest = max(widths, default=8)
    low, high = schema.CHUNK_ROWS
    rows = min(max(1 << round(math.log2(max(schema.CHUNK_BYTES / widest, 1))), low), high)
    while rows > 1 and rows * widest > schema.WRITER_MAX_CHUNK_BYTES:
        rows //= 2
    filled = 1 << (header.sizes[schema.OBS] - 1).bit_length()  # a short file need not hold a long chunk
    return max(1, min(rows, max(filled, low)))
