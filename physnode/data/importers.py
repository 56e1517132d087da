"""Measurements from text tables: one row a time, one column a quantity, and several files that may be one trajectory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from physnode.data.build import from_arrays
from physnode.data.csv_table import Text, read_text
from physnode.data.findings import clean
from physnode.data.joining import Part, merge
from physnode.data.table import Array
from physnode.data.trajectories import Trajectories
from physnode.data.units import imported_unit
from physnode.errors import DataError, InputError

Columns = Mapping[str, str | Sequence[str]]


def read_csv(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    units: Mapping[str, str] | None = None,
    time_unit: str | None = None,
    time: str = "time",
    trajectory: str | None = None,
    columns: Columns | None = None,
    sigma: Columns | None = None,
    observations: Sequence[str] = (),
    inputs: Sequence[str] = (),
    parameters: Sequence[str] = (),
    instrument: str | Sequence[str] | None = None,
    join: bool = False,
    time_zero: float = 0.0,
    names: Sequence[str] | None = None,
    skip: int = 0,
    delimiter: str | None = None,
    title: str | None = None,
    source: str | None = None,
    **more: Any,
) -> Trajectories:
    """Trajectories from one or several text tables with a line of column names.

    Each file is one trajectory, or several told apart by the column ``trajectory``. With ``join=True`` all files are one
    (or one for each value of ``trajectory``): rows are merged by time, and what a file did not measure is missing there.
    Two values of one quantity at one time are allowed only from different instruments.

    ``columns`` maps a variable to its column, or to several columns for a vector, such as ``{"position": ["x", "y"]}``;
    without it each column not used otherwise is a variable of its own name. ``sigma`` maps a variable to the column(s) of its
    standard deviation. Variables are states unless named in ``observations``, ``inputs`` or ``parameters`` (constant within
    a trajectory). ``instrument`` is a column of names, or one name for each file. Empty cells, ``nan`` and ``-`` are missing.

    ``units`` (by variable) and ``time_unit`` must be given: units are never guessed. They may carry a factor by which the
    numbers are multiplied, as in ``time_unit="365.25 d"`` for Julian years; ``mas`` is read as ``marcsec``. ``time_zero``,
    in the numbers of the file, is subtracted from the times first. ``names`` replaces a missing header, ``skip`` leaves out
    lines at the top. ``more`` goes to `from_arrays` (``split``, ``time_origin``, ``periods``, ...).

    Raises DataError for what is wrong with a file (with its line), InputError for what is wrong with the arguments.
    """
    files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not files:
        raise InputError("name at least one file to read")
    texts = [read_text(path, names=names, skip=skip, delimiter=delimiter) for path in files]
    plan = _plan(texts, time, trajectory, columns, sigma, instrument, join)
    factors, stored = _units(plan, units, time_unit)
    for what, given in (("observations", observations), ("inputs", inputs), ("parameters", parameters)):
        unknown = [name for name in given if name not in plan.columns]
        if isinstance(given, str) or unknown:
            raise InputError(f"{what} must list some of the variables {', '.join(plan.columns)}; found {given!r}")
    keys, parts = _parts(texts, plan, factors, time_zero, join)
    pieces = [merge(items, key) if join else items[0] for key, items in zip(keys, parts, strict=True)]
    measured = [name for name in plan.columns if name not in parameters]
    roles = {name: "observation" if name in observations else "input" if name in inputs else "state" for name in measured}

    def group(role: str) -> dict[str, list[Array]]:
        return {n: [_event(p.values[n], plan.columns[n]) for p in pieces] for n in measured if roles[n] == role}

    spreads = {name: [_event(p.sigma[name], plan.sigma[name]) for p in pieces] for name in plan.sigma}
    seen_by = {name: [_seen(p, name) for p in pieces] for name in measured if roles[name] != "input"}
    vectors = {n: {f"{n}_component": list(c)} for n, c in plan.columns.items() if n in measured and not isinstance(c, str)}
    shown = ", ".join(Path(path).name for path in files)
    extra: dict[str, Any] = {"ids": _ids(keys), "labels": vectors, **more}
    try:
        return from_arrays(
            [piece.time for piece in pieces],
            group("state"),
            observations=group("observation"),
            inputs=group("input"),
            sigma=spreads,
            units=stored,
            parameters={name: [_constant(p, name, plan.columns[name]) for p in pieces] for name in parameters},
            instruments={name: items for name, items in seen_by.items() if any((item != "").any() for item in items)},
            title=title or Path(files[0]).stem,
            source=source or f"imported: {shown}",
            **extra,
        )
    except InputError as error:
        raise DataError(f"{clean(shown, 200)}: {error}") from None


@dataclass(frozen=True)
class _Plan:
    time: str
    trajectory: str | None
    columns: dict[str, str | Sequence[str]]
    sigma: dict[str, str | Sequence[str]]
    instrument_column: str | None = None
    instruments: tuple[str, ...] = field(default=())


def _plan(
    texts: list[Text],
    time: str,
    trajectory: str | None,
    columns: Columns | None,
    sigma: Columns | None,
    instrument: str | Sequence[str] | None,
    join: bool,
) -> _Plan:
    sigma = dict(sigma or {})
    by_file = instrument is not None and not isinstance(instrument, str)
    if by_file and len(instrument or ()) != len(texts):
        raise InputError(f"instrument names {len(instrument or ())} instruments, but there are {len(texts)} files")
    column = instrument if isinstance(instrument, str) else None
    used = {time, trajectory, column, *(item for entry in sigma.values() for item in _each(entry))}
    found = list(dict.fromkeys(name for text in texts for name in text.columns))
    chosen: dict[str, str | Sequence[str]] = {name: name for name in found if name not in used}
    if columns is not None:
        chosen = dict(columns)
    if not chosen:
        raise InputError(f"no column is left to be a variable; the columns are {_some(found)}")
    stray = set(sigma) - set(chosen)
    if stray:
        raise InputError(f"sigma names {_some(stray)}, but the variables are {_some(chosen)}")
    for name in chosen:
        if name in sigma and not isinstance(sigma[name], str) and len(_each(sigma[name])) != len(_each(chosen[name])):
            raise InputError(f"sigma of '{name}' needs one column, or as many as '{name}' has")
    wanted = [item for entry in (*chosen.values(), *sigma.values()) for item in _each(entry)]
    everywhere = [item for item in (time, trajectory, column) if item is not None]
    for text in texts:
        missing = [item for item in (everywhere if join else [*everywhere, *wanted]) if item not in text.columns]
        if missing:
            raise DataError(
                f"{clean(text.path, 400)}: there is no column {_some(missing)}; the columns are {_some(text.columns)}"
            )
    nowhere = [item for item in wanted if item not in found]
    if nowhere:
        raise DataError(f"no file has a column {_some(nowhere)}; the columns are {_some(found)}")
    return _Plan(time, trajectory, chosen, sigma, column, tuple(map(str, instrument or ())) if by_file else ())


def _units(plan: _Plan, units: Mapping[str, str] | None, time_unit: str | None) -> tuple[dict[str, float], dict[str, str]]:
    given = {**(units or {}), **({"time": time_unit} if time_unit is not None else {})}
    missing = [name for name in ("time", *plan.columns) if name not in given]
    if missing:
        raise InputError(f"units are never guessed: give the unit of {_some(missing)}, '1' if dimensionless")
    stray = set(given) - {"time", *plan.columns}
    if stray:
        raise InputError(f"units names {_some(stray)}, but the variables are {_some(plan.columns)}")
    read = {name: imported_unit(unit, name) for name, unit in given.items()}
    return {name: factor for name, (factor, _) in read.items()}, {name: unit for name, (_, unit) in read.items()}


def _parts(
    texts: list[Text], plan: _Plan, factors: dict[str, float], time_zero: float, join: bool
) -> tuple[list[str], list[list[Part]]]:
    """Rows by trajectory: its name in the file(s), and one Part for each file that holds some of it."""
    collected: dict[tuple[int, str], list[Part]] = {}
    for number, text in enumerate(texts):
        whole = _part(text, plan, factors, time_zero, number)
        keys = np.array(text.columns[plan.trajectory] if plan.trajectory else [""] * len(text.lines), dtype=object)
        for key in dict.fromkeys(keys.tolist()):
            rows = np.flatnonzero(keys == key)
            collected.setdefault((0 if join else number, key), []).append(whole.take(rows))
    return [key for _, key in collected], list(collected.values())


def _part(text: Text, plan: _Plan, factors: dict[str, float], time_zero: float, number: int) -> Part:
    time = text.numbers(plan.time)
    bad = np.flatnonzero(~np.isfinite(time))
    if len(bad):
        raise text.fault(text.lines[int(bad[0])], f"column '{clean(plan.time)}' holds no time")
    count = len(time)
    names = np.full(count, plan.instruments[number] if plan.instruments else "", dtype=object)
    if plan.instrument_column is not None:
        names = np.array([cell.replace(" ", "_") for cell in text.columns[plan.instrument_column]], dtype=object)

    def block(entry: str | Sequence[str], factor: float) -> Array:
        absent = [item for item in _each(entry) if item not in text.columns]
        if absent and len(absent) < len(_each(entry)):
            raise DataError(f"{clean(text.path, 400)}: has some columns of a vector, but not {_some(absent)}")
        if absent:
            return np.full((count, len(_each(entry))), np.nan)
        return factor * np.stack([text.numbers(item) for item in _each(entry)], axis=1)

    return Part(
        time=(time - time_zero) * factors["time"],
        values={name: block(entry, factors[name]) for name, entry in plan.columns.items()},
        sigma={name: block(entry, factors[name]) for name, entry in plan.sigma.items()},
        instrument=names,
    )


def _event(block: Array, entry: str | Sequence[str]) -> Array:
    return block[:, 0] if isinstance(entry, str) else block


def _seen(part: Part, name: str) -> Array:
    present = ~np.isnan(part.values[name]).all(axis=1)
    return np.where(present, part.instruments_of(name), "").astype(str)


def _constant(part: Part, name: str, entry: str | Sequence[str]) -> Array:
    block = part.values[name]
    known = block[~np.isnan(block).any(axis=1)]
    if len(known) == 0 or (known != known[0]).any():
        raise DataError(f"parameter '{name}' is not one number within a trajectory; make it a state, observation or input")
    value: Array = known[0]
    return value[0] if isinstance(entry, str) else value


def _ids(keys: list[str]) -> list[int] | None:
    try:
        numbers = [float(key) for key in keys]
    except ValueError:
        return None
    whole = all(number.is_integer() and abs(number) < 2**53 for number in numbers)
    return [int(number) for number in numbers] if whole and len(set(numbers)) == len(numbers) else None


def _each(entry: str | Sequence[str]) -> list[str]:
    return [entry] if isinstance(entry, str) else list(entry)


def _some(names: Any) -> str:
    return clean(", ".join(f"'{name}'" for name in names), 300)
