"""Read a trajectory file: open it through the hardened door, check it, and load it into a Table."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from physnode.data import schema
from physnode.data.content import Damaged, check_content
from physnode.data.findings import Findings, Report, clean, refuse
from physnode.data.safety import opened
from physnode.data.structure import check_structure
from physnode.data.table import Array, Header, Read, Table, Variable
from physnode.data.walk import read_strings, strings_array, walk
from physnode.errors import DataError


@dataclass(frozen=True)
class Source:
    """A file that has passed the walk: its Header and a way to read single variables."""

    path: str
    header: Header
    file: Any
    size: int

    def read(self, name: str) -> Array:
        """All values of one variable in native byte order; raises Damaged where a checksum fails."""
        dataset, entry = self.file[name], self.header.entries[name]
        if entry.type == schema.TEXT:
            return strings_array(read_strings(dataset, name, Findings())).reshape(entry.shape)
        kind = np.dtype(np.int8 if entry.type == schema.BOOL else entry.type)
        try:
            return np.asarray(dataset[...]).astype(kind, copy=False)
        except OSError:
            raise _damage(dataset, name) from None


def validate(path: str | os.PathLike[str], *, quick: bool = False) -> Report:
    """Check one file against schema 1.0 and return everything that is wrong with it.

    ``quick`` leaves the values of measured quantities unread. A file that cannot be opened at all (missing, empty, cut
    off, not HDF5) gives one finding of rule S01. Nothing is raised for a bad file; look at ``report.ok``.
    """
    name = os.fspath(path)
    findings = Findings()
    try:
        with _source(name, findings) as source:
            if source is not None:
                _check(source.header, source.read, findings, quick=quick)
    except DataError as error:
        findings.add("S01", "file", str(error).removeprefix(f"{clean(name, 400)}: "))
    return Report(name, tuple(findings.items), quick)


def load(path: str | os.PathLike[str]) -> Table:
    """The file as a Table, with every rule checked; raises DataError, in one line, for the first that is broken.

    Warns once (UserWarning) about a newer minor version and about variables or groups that the schema does not know.
    """
    name = os.fspath(path)
    findings = Findings()
    with _source(name, findings) as source:
        if source is None:
            raise refuse(name, findings.errors)
        header = source.header
        _structure(header, findings)
        if findings.errors:
            raise refuse(name, findings.errors)
        arrays: dict[str, Array] = {}
        try:
            for entry in header.entries:
                arrays[entry] = source.read(entry)
        except Damaged:
            check_content(header, source.read, findings)
            raise refuse(name, findings.errors) from None
        check_content(header, arrays.__getitem__, findings)
    if findings.errors:
        raise refuse(name, findings.errors)
    odd = [str(item) for item in findings.items if item.rule in ("M01", "M09") and item.severity == "warning"]
    if odd:
        warnings.warn(f"{clean(name, 400)}: {'; '.join(odd)}", UserWarning, stacklevel=3)
    variables = {
        key: Variable(entry.dims, arrays[key], {k: _text(v) for k, v in entry.attributes.items()})
        for key, entry in header.entries.items()
    }
    return Table(dict(header.sizes), dict(header.labels), variables, {k: _text(v) for k, v in header.attributes.items()})


@contextmanager
def checked_source(path: str | os.PathLike[str]) -> Iterator[Source]:
    """An open file whose structure obeys the schema; values are not checked. Raises DataError otherwise."""
    name = os.fspath(path)
    findings = Findings()
    with _source(name, findings) as source:
        if source is not None:
            _check(source.header, source.read, findings, quick=True)
        if findings.errors or source is None:
            raise refuse(name, findings.errors)
        yield source


@contextmanager
def _source(name: str, findings: Findings) -> Iterator[Source | None]:
    with opened(name) as (handle, size):
        header = walk(handle, size, findings)
        yield None if header is None else Source(name, header, h5py.File(handle), size)


def _structure(header: Header, findings: Findings) -> bool:
    """Add what the structure breaks; for a file of another schema that is all there is to say."""
    own = Findings()
    known = check_structure(header, own)
    findings.items[:] = [*findings.items, *own.items] if known else own.items
    return known


def _check(header: Header, read: Read, findings: Findings, *, quick: bool) -> None:
    if _structure(header, findings) and not findings.errors:
        check_content(header, read, findings, quick=quick)


def _text(value: Any) -> Any:
    """An attribute with bytes that are not UTF-8 shown as escapes, so that it can be printed and written again."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") if isinstance(value, str) else value


def _damage(dataset: Any, name: str) -> Damaged:
    step = dataset.chunks[0] if dataset.chunks else max(1, len(dataset) if dataset.shape else 1)
    total = len(dataset) if dataset.shape else 1
    for start in range(0, total, step):
        stop = min(start + step, total)
        try:
            dataset[start:stop]
        except OSError:
            return Damaged(name, start, stop)
    return Damaged(name, 0, total)
