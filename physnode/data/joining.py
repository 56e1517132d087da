"""Merge the rows of several tables into one trajectory by their times."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from physnode.data.findings import clean
from physnode.data.table import Array
from physnode.errors import DataError


@dataclass(frozen=True)
class Part:
    """Rows of one trajectory: times, values and sigma ``(n, components)`` by name (NaN: missing), and the instrument.

    ``instrument (n,)`` holds the name of each row's instrument, "" if unknown; after a merge one row may unite several, and
    ``by_variable`` says which measured what.
    """

    time: Array
    values: dict[str, Array]
    sigma: dict[str, Array]
    instrument: Array
    by_variable: dict[str, Array] = field(default_factory=dict)

    def take(self, rows: Array) -> Part:
        """The rows at these positions."""
        return Part(
            self.time[rows],
            {name: block[rows] for name, block in self.values.items()},
            {name: block[rows] for name, block in self.sigma.items()},
            self.instrument[rows],
        )

    def instruments_of(self, name: str) -> Array:
        """The instrument of each row as far as ``name`` is concerned."""
        return self.by_variable.get(name, self.instrument)


def merge(parts: list[Part], label: str = "") -> Part:
    """One Part sorted by time. Rows of equal time are united where they measured different things.

    Two values of one quantity at one time stay in two rows if their instruments differ; otherwise DataError.
    """
    time = np.concatenate([part.time for part in parts])
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
    sigma = {name: np.concatenate([part.sigma[name] for part in parts]) for name in parts[0].sigma}
    instrument = np.concatenate([part.instrument for part in parts])
    present = {name: ~np.isnan(block).all(axis=1) for name, block in values.items()}
    order = np.argsort(time, kind="stable")
    target = np.empty(len(time), dtype=np.int64)
    rows = 0
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and time[order[stop]] == time[order[start]]:
            stop += 1
        slots: list[dict[str, str]] = []
        for record in order[start:stop]:
            measured = {name: str(instrument[record]) for name in values if present[name][record]}
            target[record] = rows + _place(slots, measured, float(time[record]), label)
        rows += len(slots)
        start = stop
    merged_time = np.empty(rows)
    merged_time[target] = time
    out = Part(
        merged_time,
        {name: _spread(block, present[name], target, rows) for name, block in values.items()},
        {name: _spread(block, ~np.isnan(block).all(axis=1), target, rows) for name, block in sigma.items()},
        np.full(rows, "", dtype=object),
        {name: np.full(rows, "", dtype=object) for name in values},
    )
    for name, known in present.items():
        out.by_variable[name][target[known]] = instrument[known]
    return out


def _place(slots: list[dict[str, str]], measured: dict[str, str], time: float, label: str) -> int:
    """The first row of this time that is free for all that was measured; a new one if instruments differ."""
    for index, taken in enumerate(slots):
        if not taken.keys() & measured.keys():
            taken.update(measured)
            return index
    for taken in slots:
        for name in taken.keys() & measured.keys():
            if taken[name] == measured[name]:
                where = f" of trajectory {clean(label)}" if label else ""
                raise DataError(
                    f"'{name}' has two values at time {time:.12g}{where}; "
                    "remove one, or name different instruments if two measured it"
                )
    slots.append(dict(measured))
    return len(slots) - 1


def _spread(block: Array, known: Array, target: Array, rows: int) -> Array:
    out = np.full((rows, block.shape[1]), np.nan)
    out[target[known]] = block[known]
    return out
