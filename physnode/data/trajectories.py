"""Trajectories: what a fit or a DataLoader sees of a dataset, as tensors.

A `Trajectories` is a view: a Table shared by all that was cut from it, and for each trajectory the rows it spans. So
``select``, ``split`` and ``segments`` copy nothing, however much windows overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from physnode.data import schema
from physnode.data.batching import Batch, collate
from physnode.data.findings import clean
from physnode.data.flat import Flat, Measured, flatten
from physnode.data.gather import gather
from physnode.data.table import Array, Table
from physnode.errors import InputError


@dataclass(frozen=True, eq=False)
class Observation:
    """What was measured of one observed quantity in one trajectory.

    ``values (n, *event)`` with 0 where missing; ``observed`` of the same shape, False there; ``sigma`` of the same shape,
    one standard deviation (1 where the value is missing), or None if none was given. ``instrument (n,)`` indexes
    ``instruments`` (-1: none); ``period`` is set for an angle that wraps.
    """

    values: Tensor
    observed: Tensor
    sigma: Tensor | None
    unit: str
    instrument: Tensor | None = None
    instruments: tuple[str, ...] = ()
    period: float | None = None


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One trajectory of n rows. Its tensors share memory with the dataset: do not change them in place.

    ``t (n,)`` elapsed time, float64. ``y (n, dim)``: each state variable flattened over its event axes in C order, one
    after the other in the order of ``variables``; 0 where missing. ``observed (n, dim)``: False there. ``sigma (n, dim)``:
    one standard deviation; 1 where the value is missing, so that weighted residuals stay finite, and NaN for a variable
    that has none although another has; None if none has. ``names`` labels the dim components, such as "position[sun,x]".
    ``inputs`` and ``observations`` hold the other measured quantities by name, ``parameters`` and ``initial`` (exact initial
    values, where known) those of the whole trajectory. ``group`` is equal for trajectories that must share a split; windows
    of one trajectory carry its group. ``time_origin`` is the Julian date of t = 0, if known.
    """

    t: Tensor
    y: Tensor
    observed: Tensor
    sigma: Tensor | None
    inputs: dict[str, Tensor]
    observations: dict[str, Observation]
    parameters: dict[str, Tensor]
    initial: dict[str, Tensor]
    names: tuple[str, ...]
    variables: tuple[str, ...]
    units: dict[str, str]
    split: str
    id: int
    group: int
    time_origin: float | None = None

    def __len__(self) -> int:
        return len(self.t)

    def __repr__(self) -> str:
        span = f", t {self.t[0].item():.6g} to {self.t[-1].item():.6g} {self.units['time']}" if len(self) else ""
        return f"Trajectory(id {self.id}, {len(self)} rows{span}, {', '.join(self.names[:12])})"


@dataclass(frozen=True, eq=False)
class View:
    """Which rows of a Table belong to each trajectory: ``start:stop:step`` in row numbers, parent by position."""

    parents: Array
    starts: Array
    stops: Array
    ids: Array
    groups: Array
    step: int = 1

    def take(self, index: Any) -> View:
        """The trajectories at ``index`` (a slice, positions or booleans)."""
        return View(self.parents[index], self.starts[index], self.stops[index], self.ids[index], self.groups[index], self.step)

    @property
    def lengths(self) -> Array:
        """Rows in each trajectory."""
        lengths: Array = np.maximum(-(-(self.stops - self.starts) // self.step), 0)
        return lengths


class Trajectories(Dataset[Trajectory]):
    """A dataset of trajectories: ``len``, ``[i]``, slices, iteration, and ways to choose and cut.

    Made by `from_arrays`, `open`, `read_csv`; it can be handed to ``torch.utils.data.DataLoader`` together with `collate`.
    """

    def __init__(
        self, table: Table, view: View | None = None, variables: tuple[str, ...] | None = None, flat: Any = None
    ) -> None:
        self._table = table
        self._view = view if view is not None else _whole(table)
        measured = tuple(name for name, item in table.variables.items() if item.role in schema.MEASURED)
        states = table.states()
        self._chosen = variables if variables is not None else (*states, *(n for n in measured if n not in states))
        self.variables: tuple[str, ...] = tuple(name for name in self._chosen if table.variables[name].role == "state")
        self._cache: dict[tuple[str, ...], Flat] = {} if flat is None else flat

    @property
    def names(self) -> tuple[str, ...]:
        """Labels of the components of y, such as "position[sun,x]"."""
        return self._flat().names

    @property
    def dim(self) -> int:
        """Number of components of y."""
        return len(self.names)

    @property
    def units(self) -> dict[str, str]:
        """Units of "time", of each variable and of each parameter."""
        return dict(self._flat().units)

    @property
    def title(self) -> str:
        """What the dataset is, in a few words."""
        return str(self._table.attributes.get("title", "untitled"))

    @property
    def attributes(self) -> dict[str, Any]:
        """Root attributes of the file, such as source, history and licence."""
        return dict(self._table.attributes)

    @property
    def ids(self) -> tuple[int, ...]:
        """The id of each trajectory, in order."""
        return tuple(int(item) for item in self._view.ids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of rows of each trajectory, in order."""
        return tuple(int(item) for item in self._view.lengths)

    @property
    def splits(self) -> tuple[str, ...]:
        """The split of each trajectory, in order: "train", "valid", "test" or "none"."""
        codes = self._table.variables.get("split")
        if codes is None:
            return ("none",) * len(self)
        return tuple(schema.SPLIT_NAMES[int(codes.values[parent])] for parent in self._view.parents)

    def __len__(self) -> int:
        return len(self._view.parents)

    def __iter__(self) -> Iterator[Trajectory]:
        return (self._at(index) for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Trajectory: ...
    @overload
    def __getitem__(self, index: slice) -> Trajectories: ...
    def __getitem__(self, index: int | slice) -> Trajectory | Trajectories:
        if isinstance(index, slice):
            return self._with(self._view.take(index))
        number = int(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"trajectory {number} was asked for, but there are {len(self)}")
        return self._at(number % len(self))

    def split(self, name: str) -> Trajectories:
        """The trajectories of one split: "train", "valid", "test" or "none". May be empty."""
        return self.select(split=name)

    def select(
        self,
        *,
        ids: Sequence[int] | None = None,
        split: str | None = None,
        every: int | None = None,
        t0: float | None = None,
        t1: float | None = None,
        where: Callable[[Trajectory], bool] | None = None,
        variables: Sequence[str] | None = None,
    ) -> Trajectories:
        """The trajectories and rows that satisfy all conditions given; a trajectory left without rows is dropped.

        ``ids`` and ``split`` choose trajectories, ``t0 <= t <= t1`` rows, ``every=k`` each k-th of these rows,
        ``where(trajectory)`` trajectories as they are after that, and ``variables`` the measured quantities to keep (states
        in the order given). Raises InputError for an unknown id, split or variable.
        """
        chosen = self._chosen if variables is None else self._known(variables)
        keep = np.ones(len(self), dtype=bool)
        if ids is not None:
            unknown = set(map(int, ids)) - set(self.ids)
            if unknown:
                raise InputError(f"there is no trajectory with id {', '.join(map(str, sorted(unknown)[:9]))}")
            keep &= np.isin(self._view.ids, np.asarray(list(ids), dtype=np.int64))
        if split is not None:
            if split not in schema.SPLITS:
                raise InputError(f"unknown split {split!r}; it is one of {', '.join(schema.SPLITS)}")
            keep &= np.array([item == split for item in self.splits], dtype=bool)
        view = self._view.take(keep)
        if every is not None and every < 1:
            raise InputError(f"every must be at least 1, found {every}")
        if t0 is not None or t1 is not None:
            view = self._between(view, t0, t1)
        if every is not None:
            view = View(view.parents, view.starts, view.stops, view.ids, view.groups, view.step * every)
        if every is not None or t0 is not None or t1 is not None:
            view = view.take(view.lengths > 0)
        out = self._with(view, chosen)
        if where is not None:
            out = out._with(view.take(np.array([bool(where(item)) for item in out], dtype=bool)))
        return out

    def segments(self, length: int, stride: int | None = None) -> Trajectories:
        """Windows of ``length`` rows, one every ``stride`` rows (default ``length``: they do not overlap).

        Rows that do not fill a window at the end are left out. Parameters and split are kept; windows get new ids, and
        ``group`` says which trajectory they were cut from, so that they stay in one split.
        """
        step = length if stride is None else stride
        if length < 1 or step < 1:
            raise InputError(f"length and stride must be at least 1, found {length} and {step}")
        view = self._view
        counts = np.maximum((view.lengths - length) // step + 1, 0)
        index = np.repeat(np.arange(len(self)), counts)
        within = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = view.starts[index] + within * step * view.step
        stops = starts + (length - 1) * view.step + 1
        ids = np.arange(len(index), dtype=np.int64)
        return self._with(View(view.parents[index], starts, stops, ids, view.groups[index], view.step))

    def batch(self, indices: Sequence[int] | None = None) -> Batch:
        """The trajectories at ``indices`` (default: all) padded to one length; see `Batch`."""
        chosen = range(len(self)) if indices is None else indices
        return collate([self[int(index)] for index in chosen])

    def to_table(self) -> Table:
        """What this view holds, as a Table of its own."""
        return gather(self._table, self._view, self._chosen)

    def __repr__(self) -> str:
        lengths = self.lengths
        rows = f"{min(lengths)} to {max(lengths)} rows" if lengths and min(lengths) < max(lengths) else ""
        rows = rows or (f"{lengths[0]} rows each" if lengths else "empty")
        parts = []
        for name in self._chosen:
            item = self._table.variables[name]
            shape = "x".join(map(str, item.values.shape[1:]))
            kind = "" if item.role == "state" else f"{item.role} "
            parts.append(f"{kind}{name}{f'[{shape}]' if shape else ''} {self.units[name]}")
        counts = {name: self.splits.count(name) for name in schema.SPLITS if name != "none"}
        splits = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return (
            f"Trajectories('{clean(self.title, 60)}': {len(self)} trajector{'y' if len(self) == 1 else 'ies'}, {rows}"
            f"{f', {splits}' if splits else ''}; time {self.units['time']}; {'; '.join(parts)})"
        )

    def _with(self, view: View, chosen: tuple[str, ...] | None = None) -> Trajectories:
        return Trajectories(self._table, view, self._chosen if chosen is None else chosen, self._cache)

    def _known(self, variables: Sequence[str]) -> tuple[str, ...]:
        names = (variables,) if isinstance(variables, str) else tuple(variables)
        unknown = set(names) - set(self._chosen)
        if unknown or not names or len(set(names)) < len(names):
            raise InputError(f"variables must be some of {', '.join(self._chosen)}, each once; found {list(names)}")
        if all(self._table.variables[name].role == "input" for name in names):
            raise InputError("variables names inputs only; keep at least one state variable or observation")
        return names

    def _between(self, view: View, t0: float | None, t1: float | None) -> View:
        time = self._table.variables[schema.TIME].values
        starts, stops = view.starts.copy(), view.stops.copy()
        for index, (start, stop) in enumerate(zip(view.starts, view.stops, strict=True)):
            rows = time[start : stop : view.step]
            low = 0 if t0 is None else int(np.searchsorted(rows, t0, side="left"))
            high = len(rows) if t1 is None else int(np.searchsorted(rows, t1, side="right"))
            starts[index] = start + low * view.step
            stops[index] = min(int(stop), int(start) + (high - 1) * view.step + 1) if high > low else starts[index]
        return View(view.parents, starts, stops, view.ids, view.groups, view.step)

    def _flat(self) -> Flat:
        if self._chosen not in self._cache:
            self._cache[self._chosen] = flatten(self._table, self._chosen)
        return self._cache[self._chosen]

    def _at(self, index: int) -> Trajectory:
        flat, view = self._flat(), self._view
        parent = int(view.parents[index])
        rows = slice(int(view.starts[index]), int(view.stops[index]), view.step)
        first = int(view.starts[index]) == int(flat.edges[parent])
        origin = self._table.variables.get("time_origin")
        return Trajectory(
            t=flat.t[rows],
            y=flat.y[rows],
            observed=flat.observed[rows],
            sigma=None if flat.sigma is None else flat.sigma[rows],
            inputs={name: item.values[rows] for name, item in flat.inputs.items()},
            observations={name: _observation(item, rows) for name, item in flat.observations.items()},
            parameters={name: item[parent] for name, item in flat.parameters.items()},
            initial={name: item[parent] for name, item in flat.initial.items()} if first else {},
            names=flat.names,
            variables=self.variables,
            units=dict(flat.units),
            split=self._split_at(parent),
            id=int(view.ids[index]),
            group=int(view.groups[index]),
            time_origin=None if origin is None else float(origin.values[parent]),
        )

    def _split_at(self, parent: int) -> str:
        codes = self._table.variables.get("split")
        return "none" if codes is None else schema.SPLIT_NAMES[int(codes.values[parent])]


def _observation(item: Measured, rows: slice) -> Observation:
    return Observation(
        values=item.values[rows],
        observed=item.observed[rows],
        sigma=None if item.sigma is None else item.sigma[rows],
        unit=item.unit,
        instrument=None if item.instrument is None else item.instrument[rows],
        instruments=item.instruments,
        period=item.period,
    )


def _whole(table: Table) -> View:
    sizes = table.variables[schema.ROWSIZE].values.astype(np.int64)
    stops = np.cumsum(sizes)
    ids = table.variables[schema.TRAJECTORY].values.astype(np.int64)
    group = table.variables.get("group_id")
    groups = ids if group is None else group.values.astype(np.int64)
    return View(np.arange(len(sizes)), stops - sizes, stops, ids, groups)
