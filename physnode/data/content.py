"""Rules D01 to D05, D08 and D09: whether the values of a trajectory file can be true.

Values come from a ``read`` function, one variable at a time, so the same rules serve a file and arrays in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from physnode.data import schema
from physnode.data.findings import Findings
from physnode.data.table import Array, Entry, Header, Read, content_sha256


class Damaged(Exception):
    """A variable whose bytes cannot be read; ``start`` and ``stop`` bound the rows concerned."""

    def __init__(self, name: str, start: int, stop: int) -> None:
        super().__init__(name)
        self.name, self.start, self.stop = name, start, stop


@dataclass
class _Content:
    header: Header
    reader: Read
    findings: Findings
    ids: Array
    edges: Array

    def read(self, name: str) -> Array | None:
        """The values, or None (and a finding) if the bytes are damaged."""
        try:
            return self.reader(name)
        except Damaged as damage:
            per_row = self.header.entries[name].dims[:1] == (schema.OBS,)
            where = self.at(damage.start)[0] if per_row and len(self.edges) else None
            self.findings.add(
                "D08",
                name,
                f"checksum failed in rows {damage.start}-{damage.stop - 1}",
                trajectory=where,
                cure="the file is damaged; get it again",
            )
            return None

    def at(self, row: int) -> tuple[int | None, int | None]:
        """(trajectory id, row within it) of a row of ``obs``."""
        if not len(self.edges):
            return None, None
        index = int(np.searchsorted(self.edges, row, side="right")) - 1
        return int(self.ids[index]), row - int(self.edges[index])

    def first(self, rule: str, name: str, bad: Array, message: str, value: Array | None = None, cure: str = "") -> None:
        """One finding for the first true entry of ``bad`` (any shape), saying how many there are."""
        count = int(np.count_nonzero(bad))
        if not count:
            return
        place = np.unravel_index(int(np.argmax(bad)), bad.shape) if bad.ndim else ()
        lead = self.header.entries[name].dims[:1]
        trajectory, row = (None, None)
        if lead == (schema.OBS,) and place:
            trajectory, row = self.at(int(place[0]))
        elif lead == (schema.TRAJECTORY,) and place:
            trajectory = int(self.ids[place[0]])
        more = f" ({count} places)" if count > 1 else ""
        shown = None if value is None else value[place]
        self.findings.add(rule, name, message + more, trajectory=trajectory, row=row, value=shown, cure=cure)


def check_content(header: Header, read: Read, findings: Findings, *, quick: bool = False) -> None:
    """Add what breaks D01 to D05, D08 and D09. ``quick`` reads only the per-trajectory bookkeeping."""
    content = _Content(header, read, findings, np.zeros(0, np.int64), np.zeros(0, np.int64))
    sizes = content.read(schema.ROWSIZE)
    ids = content.read(schema.TRAJECTORY)
    if sizes is None or ids is None or not _rows(content, sizes, ids):
        return
    content.ids = ids
    content.edges = np.concatenate(([0], np.cumsum(sizes[:-1], dtype=np.int64)))
    _splits(content)
    _conventions(header, findings)
    if quick:
        return
    _time(content, sizes)
    _values(content, sizes)
    expected = header.attributes.get("content_sha256")
    if isinstance(expected, str) and not any(item.rule == "D08" for item in findings.items):
        found = content_sha256(header, read)
        if found != expected:
            findings.add(
                "D08",
                "content_sha256",
                "the values are not those the file was written with",
                value=found,
                cure="the file was changed or damaged; get it again",
            )


def _rows(content: _Content, sizes: Array, ids: Array) -> bool:
    total = content.header.sizes[schema.OBS]
    counts = [int(size) for size in sizes]
    for index, count in enumerate(counts):
        if not 0 <= count <= total:
            content.findings.add("D01", schema.ROWSIZE, f"must lie in 0..{total}", trajectory=int(ids[index]), value=count)
            return False
    if sum(counts) != total:
        content.findings.add("D01", schema.ROWSIZE, f"sum is {sum(counts)}, but there are {total} rows")
        return False
    if len(np.unique(ids)) < len(ids):
        values, numbers = np.unique(ids, return_counts=True)
        content.findings.add("D02", schema.TRAJECTORY, "an id is used twice", trajectory=int(values[numbers > 1][0]))
    for index, count in enumerate(counts):
        if count == 0:
            content.findings.add(
                "D09", schema.ROWSIZE, "trajectory without rows", severity="warning", trajectory=int(ids[index])
            )
    return True


def _splits(content: _Content) -> None:
    entries = content.header.entries
    split = content.read("split") if "split" in entries else None
    if split is None:
        return
    content.first("D02", "split", ~np.isin(split, list(schema.SPLIT_NAMES)), "must be -1, 0, 1 or 2", split)
    for name in ("group_id", "seed"):
        group = content.read(name) if name in entries else None
        if group is None:
            continue
        values, inverse = np.unique(group, return_inverse=True)
        low = np.full(len(values), 127)
        high = np.full(len(values), -128)
        np.minimum.at(low, inverse, split)
        np.maximum.at(high, inverse, split)
        leaks = values[low != high]
        if len(leaks) and name == "group_id":
            content.findings.add(
                "D02", name, "one group lies in two splits", value=leaks[0], cure="split by group, so that nothing leaks"
            )
        elif len(leaks):
            content.findings.add("D09", name, "one seed is used in two splits", severity="warning", value=leaks[0])


def _conventions(header: Header, findings: Findings) -> None:
    wanted = list(schema.SHOULD_ALWAYS)
    if str(header.attributes.get("source", "")).startswith("simulated"):
        wanted += schema.SHOULD_SIMULATED
    missing = [name for name in wanted if name not in header.attributes]
    if missing:
        findings.add("D09", "file", f"recommended attributes are missing: {', '.join(missing)}", severity="warning")
    named = [name for name, entry in header.entries.items() if entry.role and "long_name" not in entry.attributes]
    if named:
        findings.add("D09", "file", f"variables without long_name: {', '.join(named)}", severity="warning")
    bare = [name for name, entry in header.entries.items() if entry.chunks is not None and 3 not in entry.filters]
    if bare:
        findings.add("D09", "file", f"variables without checksums (fletcher32): {', '.join(bare)}", severity="warning")


def _time(content: _Content, sizes: Array) -> None:
    time = content.read(schema.TIME)
    if time is None:
        return
    finite = np.isfinite(time)
    content.first("D03", schema.TIME, ~finite, "must be finite", time)
    if not finite.all() or len(time) < 2:
        return
    inside = np.ones(len(time), dtype=bool)
    inside[content.edges[sizes > 0]] = False
    step = np.diff(time, prepend=time[0])
    content.first("D03", schema.TIME, inside & (step < 0), "decreases", time, "sort the rows of each trajectory by time")
    equal = inside & (step == 0)
    if not equal.any():
        return
    rows = np.flatnonzero(equal)
    apart = [not (one & two) and bool(one) and bool(two) for one, two in _instruments(content, rows)]
    equal[rows[np.array(apart, dtype=bool)]] = False
    content.first("D03", schema.TIME, equal, "two rows at one time", time, "allowed only for different instruments")


def _instruments(content: _Content, rows: Array) -> list[tuple[set[str], set[str]]]:
    """The instruments that measured the row before each of ``rows``, and the row itself."""
    found: list[tuple[set[str], set[str]]] = [(set(), set()) for _ in rows]
    for name, entry in content.header.entries.items():
        code = content.read(name) if entry.role == "instrument" else None
        if code is None:
            continue
        flags = np.atleast_1d(entry.attributes.get("flag_values", [])).tolist()
        named = dict(zip(flags, str(entry.attributes.get("flag_meanings", "")).split(), strict=False))
        for pair, row in zip(found, rows, strict=True):
            for names, place in zip(pair, (row - 1, row), strict=True):
                names |= {named.get(int(code[place]), str(code[place]))} - {"none"}
    return found


def _values(content: _Content, sizes: Array) -> None:
    header = content.header
    starts = content.edges[sizes > 0]
    empty: Array = np.ones(header.sizes[schema.OBS], dtype=bool)
    constant = np.ones(len(starts), dtype=bool)
    digests = [hashlib.blake2b(digest_size=16) for _ in starts]
    measured = 0
    for name, entry in header.entries.items():
        values = content.read(name) if entry.type in schema.FLOATS and name != schema.TIME else None
        if values is None:
            continue
        role = schema.ROLES.get(entry.role or "")
        content.first("D04", name, np.isinf(values), "is infinite", values, "missing values are NaN")
        if entry.role in ("parameter", "initial_condition") or name == "time_origin":
            content.first("D04", name, np.isnan(values), "must be finite", values)
        elif role is None or not role.missing:
            continue
        elif entry.role in schema.MEASURED:
            missing = np.isnan(values).reshape(len(values), -1)
            empty = np.logical_and(empty, missing.all(1))
            _mask(content, name, entry, values)
            measured += 1
            constant &= _constant(values, starts)
            for digest, rows in zip(digests, _parts(values, starts), strict=True):
                digest.update(np.ascontiguousarray(rows).reshape(-1).data)
    for name, entry in header.entries.items():
        if entry.role == "sigma":
            _sigma(content, name, entry)
        elif entry.role == "correlation":
            _correlation(content, name)
    if measured and empty.any():
        _warn_first(content, empty, "row without any value", "remove it")
    if measured:
        _repeats(content, sizes, constant, digests)


def _mask(content: _Content, name: str, entry: Entry, values: Array) -> None:
    for other, item in content.header.entries.items():
        if item.role != "mask" or item.attributes.get("mask_of") != name:
            continue
        mask = content.read(other)
        if mask is None or mask.shape != values.shape[: mask.ndim]:
            continue
        flags = mask.astype(np.int8)
        content.first("D05", other, (flags != 0) & (flags != 1), "must be 0 or 1", flags)
        missing = np.isnan(values).reshape((*mask.shape, -1))
        wrong = ((flags == 1) & missing.any(-1)) | ((flags == 0) & ~missing.all(-1))
        content.first("D05", other, wrong, f"disagrees with the missing values of '{name}'", flags)


def _sigma(content: _Content, name: str, entry: Entry) -> None:
    sigma = content.read(name)
    target = str(entry.attributes.get("sigma_of"))
    values = content.read(target) if target in content.header.entries else None
    if sigma is None or values is None:
        return
    content.first("D05", name, sigma < 0, "must not be negative", sigma)
    bad = np.isnan(sigma)
    if entry.dims[:1] == (schema.OBS,) and sigma.shape == values.shape[: sigma.ndim]:
        bad &= ~np.isnan(values).reshape((*sigma.shape, -1)).all(-1)
    content.first("D05", name, bad, "must be finite where its value is observed", sigma)
    if (sigma == 0).any():
        content.findings.add(
            "D05", name, f"is zero at {int((sigma == 0).sum())} places", severity="warning", cure="exact data? drop sigma"
        )


def _correlation(content: _Content, name: str) -> None:
    values = content.read(name)
    if values is not None:
        content.first("D05", name, np.abs(values) >= 1, "must lie inside (-1, 1)", values)


def _repeats(content: _Content, sizes: Array, constant: Array, digests: list[hashlib.blake2b]) -> None:
    owners = content.ids[sizes > 0]
    for owner in owners[constant & (sizes[sizes > 0] > 1)][:10]:
        content.findings.add("D09", "file", "constant trajectory", severity="warning", trajectory=int(owner))
    time = content.read(schema.TIME)
    if time is None:
        return
    seen: dict[bytes, int] = {}
    for owner, digest, rows in zip(owners, digests, _parts(time, content.edges[sizes > 0]), strict=True):
        digest.update(np.ascontiguousarray(rows).data)
        first = seen.setdefault(digest.digest(), int(owner))
        if first != int(owner):
            content.findings.add("D09", "file", f"same values as trajectory {first}", severity="warning", trajectory=int(owner))


def _warn_first(content: _Content, bad: Array, message: str, cure: str) -> None:
    trajectory, row = content.at(int(np.argmax(bad)))
    count = int(bad.sum())
    content.findings.add(
        "D09",
        "file",
        message + (f" ({count} rows)" if count > 1 else ""),
        severity="warning",
        trajectory=trajectory,
        row=row,
        cure=cure,
    )


def _constant(values: Array, starts: Array) -> Array:
    flat = values.reshape(len(values), -1)
    change = np.zeros(len(flat), dtype=bool)
    change[1:] = ((flat[1:] != flat[:-1]) & ~(np.isnan(flat[1:]) & np.isnan(flat[:-1]))).any(1)
    change[starts] = False
    return ~np.logical_or.reduceat(change, starts)


def _parts(values: Array, starts: Array) -> Iterator[Array]:
    stops = np.append(starts[1:], len(values))
    return (values[a:b] for a, b in zip(starts, stops, strict=True))
