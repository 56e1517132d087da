"""The content of a trajectory file in memory, and a description of it that the rules can be checked against.

A `Table` holds arrays; a `Header` describes the same variables without their values. Both the reader (from HDF5) and the
writer (from a Table) build Headers, so one set of rules serves a file that arrives and a file that is about to be written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from physnode.data import schema

Array = NDArray[Any]
Read = Callable[[str], Array]


@dataclass(frozen=True)
class Variable:
    """One stored quantity: an array, the names of its dimensions and its attributes. Text is an object array of str."""

    dims: tuple[str, ...]
    values: Array
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def role(self) -> str | None:
        """What the quantity is to a fit (state, observation, parameter, ...), if it says so."""
        role = self.attributes.get("role")
        return role if isinstance(role, str) else None


@dataclass(frozen=True)
class Table:
    """A whole dataset: sizes of its dimensions, labels along them, variables and root attributes."""

    sizes: dict[str, int]
    labels: dict[str, tuple[str, ...]]
    variables: dict[str, Variable]
    attributes: dict[str, Any]

    def with_role(self, role: str) -> dict[str, Variable]:
        """The variables of one role, in stored order."""
        return {name: item for name, item in self.variables.items() if item.role == role}

    def attached(self, target: str, role: str) -> Variable | None:
        """The variable of ``role`` (sigma, mask, instrument) that belongs to ``target``, if there is one."""
        return self.variables.get(attached_name(self, target, role) or "")

    def states(self) -> tuple[str, ...]:
        """Names of the state variables, in the order in which they are concatenated."""
        return tuple(str(self.attributes.get("state_variables", "")).split())


@dataclass(frozen=True)
class Entry:
    """A variable without its values. ``type`` is a NumPy type string such as ``<f8``, or ``str``."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    type: str
    attributes: dict[str, Any]
    chunks: tuple[int, ...] | None = None
    filters: tuple[int, ...] = ()

    @property
    def role(self) -> str | None:
        """The variable's role, if it names one."""
        role = self.attributes.get("role")
        return role if isinstance(role, str) else None


@dataclass(frozen=True)
class Header:
    """A dataset without its values."""

    attributes: dict[str, Any]
    sizes: dict[str, int]
    labels: dict[str, tuple[str, ...]]
    entries: dict[str, Entry]
    groups: tuple[str, ...] = ()


def header_of(table: Table) -> Header:
    """The description of a Table."""
    return Header(
        attributes=table.attributes,
        sizes=table.sizes,
        labels=table.labels,
        entries={
            name: Entry(item.dims, item.values.shape, type_of(item.values), item.attributes)
            for name, item in table.variables.items()
        },
    )


def attached_name(table: Table | Header, target: str, role: str) -> str | None:
    """Name of the variable of ``role`` whose ``<role>_of`` attribute is ``target``."""
    items: dict[str, Any] = table.variables if isinstance(table, Table) else table.entries
    for name, item in items.items():
        if item.role == role and item.attributes.get(f"{role}_of") == target:
            return name
    return None


def type_of(values: Array) -> str:
    """The schema's name of an array's type, independent of byte order: ``<f8``, ``|i1``, ``str``."""
    return schema.TEXT if values.dtype.kind in "OUT" else values.dtype.newbyteorder("<").str


def content_sha256(header: Header, read: Read) -> str:
    """SHA-256 of all values, independent of chunks, filters, byte order and the program that wrote them.

    For each variable, sorted by name: ``name NUL type NUL shape NUL``, then the values in C order, little-endian; each
    string as UTF-8 followed by NUL. Label axes count as variables; dimensions without values do not.
    """
    digest = hashlib.sha256()
    for name in sorted({*header.entries, *header.labels}):
        if name in header.labels:
            labels = header.labels[name]
            _begin(digest, name, schema.TEXT, (len(labels),))
            _strings(digest, labels)
            continue
        entry = header.entries[name]
        kind = "|i1" if entry.type == schema.BOOL else entry.type
        _begin(digest, name, kind, entry.shape)
        values = read(name)
        if kind == schema.TEXT:
            _strings(digest, (str(item) for item in values.ravel()))
        else:
            digest.update(np.ascontiguousarray(values, dtype=np.dtype(kind)).reshape(-1).data)
    return digest.hexdigest()


def _begin(digest: Any, name: str, kind: str, shape: tuple[int, ...]) -> None:
    digest.update(f"{name}\0{kind}\0{','.join(map(str, shape))}\0".encode())


def _strings(digest: Any, items: Iterable[str]) -> None:
    for item in items:
        digest.update(item.encode() + b"\0")
