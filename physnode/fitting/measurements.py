"""The data of a fit as padded tensors: what was measured, when, how well, and which state or function of it is compared.

Trajectories are cut into windows, one row each. Single shooting is one window a trajectory; in multiple shooting a window
ends where the next one starts, and its last time serves continuity alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from physnode.data.trajectories import Trajectories, Trajectory
from physnode.errors import InputError

__all__ = ["Measurements", "Observe", "Windows", "channels_of", "cut", "even_cuts"]

Observe = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Measurements:
    """What was measured on each trajectory, one column a channel (a scalar that is measured at each time)."""

    names: tuple[str, ...]
    """Channel names, such as ``position[jupiter,x]``."""
    units: tuple[str, ...]
    t: tuple[Tensor, ...]
    """Times of each trajectory, ``(n_i,)``."""
    values: tuple[Tensor, ...]
    """``(n_i, C)``; 0 where nothing was measured."""
    observed: tuple[Tensor, ...]
    """``(n_i, C)`` bool."""
    sigma: tuple[Tensor, ...] | None
    """Standard deviations ``(n_i, C)``, or None where the data give none."""
    state_columns: tuple[int, ...] | None
    """Which state component each channel is, or None where channels are functions of the state."""
    ids: tuple[int, ...]
    time_unit: str

    @property
    def rows_used(self) -> int:
        """Number of scalar measurements."""
        return sum(int(mask.sum()) for mask in self.observed)

    @property
    def rows_masked(self) -> int:
        """Number of scalars that are missing."""
        return sum(int((~mask).sum()) for mask in self.observed)

    @property
    def groups(self) -> tuple[tuple[str, ...], Tensor]:
        """Channels that share one noise level where none is given: names, and the group of each channel ``(C,)``.

        Channels that differ in their last label alone, such as x, y, z of one body, are one group.
        """
        keys = [_group(name) for name in self.names]
        names = tuple(dict.fromkeys(keys))
        return names, torch.tensor([names.index(key) for key in keys])


@dataclass(frozen=True)
class Windows:
    """Measurements as padded rows, one a window: S windows, T times, C channels."""

    trajectory: Tensor
    """``(S,)``: which trajectory a window belongs to."""
    t: Tensor
    """``(S, T)``; padding repeats the last time."""
    values: Tensor
    mask: Tensor
    sigma: Tensor
    """``(S, T, C)``; 1 where the data give none."""
    last: Tensor
    """``(S,)``: column of the window's last time."""
    following: Tensor
    """``(S,)``: the window that continues this one, or -1."""


def channels_of(
    data: Trajectories,
    *,
    dim: int | None,
    labels: Sequence[str] | None,
    returned: Mapping[str, int] | None = None,
    sigma: Mapping[str, float] | None = None,
    exact_start: bool = False,
) -> Measurements:
    """Decide what is compared with what.

    Without ``returned``, the state variables of the data are components of the model's state: matched by name where the model
    names its components (``labels``), else in order. ``returned`` says what an observation function gives, name to width, and
    each name must be an observation or a state variable of the data. ``sigma`` replaces the data's standard deviations. With
    ``exact_start`` the first row of each trajectory is the exact start, and no measurement.

    Raises:
        InputError: no data, no way to match them, or standard deviations that are not positive.
    """
    if not len(data):
        raise InputError("there is no trajectory to fit; check the split or the selection")
    trajectories = list(data)
    if returned is None:
        columns = _match(trajectories[0].names, labels, dim)
        wanted = list(trajectories[0].variables)
    else:
        columns, wanted = None, list(returned)
    names, units = _names(trajectories[0], wanted, returned)
    tables = [_table(item, wanted) for item in trajectories]
    if exact_start:
        tables = [
            (values, observed & (torch.arange(len(observed)) > 0).unsqueeze(-1), spread) for values, observed, spread in tables
        ]
    return Measurements(
        names=names,
        units=units,
        t=tuple(item.t.to(torch.float64) for item in trajectories),
        values=tuple(torch.where(observed, values.to(torch.float64), 0.0) for values, observed, _ in tables),
        observed=tuple(observed for _, observed, _ in tables),
        sigma=_sigma_tables(tables, names, sigma),
        state_columns=columns,
        ids=tuple(item.id for item in trajectories),
        time_unit=trajectories[0].units.get("time", "s"),
    )


def even_cuts(n: int, windows: int) -> list[int]:
    """Row numbers at which ``windows`` windows of ``n`` rows start, and the last row."""
    count = max(1, min(windows, n - 1))
    return [round(i * (n - 1) / count) for i in range(count + 1)] if n > 1 else [0, 0]


def cut(measured: Measurements, cuts: Sequence[Sequence[int]]) -> Windows:
    """Cut each trajectory at the given rows; a measured row belongs to the window that starts at or before it."""
    rows: list[tuple[int, int, int, bool]] = []
    following: list[int] = []
    for number, edges in enumerate(cuts):
        for k, (start, end) in enumerate(pairwise(edges)):
            final = k == len(edges) - 2
            following.append(-1 if final else len(rows) + 1)
            rows.append((number, start, end, final))
    longest = max(end - start + 1 for _, start, end, _ in rows)
    channels = len(measured.names)
    t = torch.zeros(len(rows), longest, dtype=torch.float64)
    values = torch.zeros(len(rows), longest, channels, dtype=torch.float64)
    mask = torch.zeros(len(rows), longest, channels, dtype=torch.bool)
    sigma = torch.ones(len(rows), longest, channels, dtype=torch.float64)
    last = torch.zeros(len(rows), dtype=torch.int64)
    for s, (number, start, end, final) in enumerate(rows):
        size = end - start + 1
        used = size if final else size - 1
        t[s, :size] = measured.t[number][start : end + 1]
        t[s, size:] = t[s, size - 1]
        values[s, :used] = measured.values[number][start : start + used]
        mask[s, :used] = measured.observed[number][start : start + used]
        if measured.sigma is not None:
            sigma[s, :used] = measured.sigma[number][start : start + used]
        last[s] = size - 1
    sigma = torch.where(mask, sigma, 1.0)
    return Windows(torch.tensor([row[0] for row in rows]), t, values, mask, sigma, last, torch.tensor(following))


def _match(names: Sequence[str], labels: Sequence[str] | None, dim: int | None) -> tuple[int, ...]:
    if labels is not None and set(names) <= set(labels):
        return tuple(list(labels).index(name) for name in names)
    shared = [name for name in names if labels is not None and name in labels]
    if shared and labels is not None:
        others = [name for name in names if name not in shared]
        raise InputError(
            f"the data call some components as the model does ({', '.join(shared[:6])}) and others not "
            f"({', '.join(others[:6])}); the model has {', '.join(labels)}. Name them all alike, so that nothing is matched by "
            "its place"
        )
    expected = len(labels) if labels is not None else dim
    if expected is None or expected == len(names):
        return tuple(range(len(names)))
    named = f" ({', '.join(labels)})" if labels is not None else ""
    raise InputError(
        f"the data hold {len(names)} state components ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''}) but the "
        f"model has {expected}{named}; name them alike, or give observe=, a function of (t, y) that returns what was measured"
    )


Table = tuple[Tensor, Tensor, Tensor]


def _names(
    trajectory: Trajectory, wanted: Sequence[str], returned: Mapping[str, int] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names: list[str] = []
    units: list[str] = []
    for variable in wanted:
        if variable in trajectory.variables:
            own = [name for name in trajectory.names if name.split("[")[0] == variable]
            unit = trajectory.units.get(variable, "1")
        elif variable in trajectory.observations:
            item = trajectory.observations[variable]
            width = item.values[0].numel() if len(item.values) else 1
            own = [variable] if item.values.ndim == 1 else [f"{variable}[{i}]" for i in range(width)]
            unit = item.unit
        else:
            measured = ", ".join([*trajectory.variables, *trajectory.observations])
            raise InputError(f'observe returns "{variable}", which the data do not hold. Measured: {measured}')
        if returned is not None and returned[variable] != len(own):
            raise InputError(
                f'observe returns {returned[variable]} numbers for "{variable}" at each time, but the data hold {len(own)}; '
                "return a tensor of shape (*batch, T) or (*batch, T, n)"
            )
        names += own
        units += [unit] * len(own)
    return tuple(names), tuple(units)


def _table(trajectory: Trajectory, wanted: Sequence[str]) -> Table:
    """Values, mask and standard deviations (NaN where there are none) of the wanted variables, side by side."""
    values: list[Tensor] = []
    observed: list[Tensor] = []
    sigma: list[Tensor] = []
    for variable in wanted:
        if variable in trajectory.variables:
            columns = [i for i, name in enumerate(trajectory.names) if name.split("[")[0] == variable]
            values.append(trajectory.y[:, columns])
            observed.append(trajectory.observed[:, columns])
            given = None if trajectory.sigma is None else trajectory.sigma[:, columns]
        else:
            item = trajectory.observations[variable]
            values.append(item.values.reshape(len(trajectory.t), -1))
            observed.append(item.observed.reshape(len(trajectory.t), -1))
            given = None if item.sigma is None else item.sigma.reshape(len(trajectory.t), -1)
        sigma.append(torch.full_like(values[-1], torch.nan) if given is None else given)
    return torch.cat(values, 1), torch.cat(observed, 1), torch.cat(sigma, 1)


def _sigma_tables(
    tables: Sequence[Table], names: Sequence[str], given: Mapping[str, float] | None
) -> tuple[Tensor, ...] | None:
    if given is not None:
        unknown = [name for name in given if not any(_is_of(channel, name) for channel in names)]
        missing = [channel for channel in names if not any(_is_of(channel, name) for name in given)]
        if unknown or missing:
            raise InputError(
                f"sigma= must name the measured variables; unknown: {', '.join(unknown) or 'none'}, "
                f"missing: {', '.join(missing[:6]) or 'none'}. Measured: {', '.join(names[:12])}"
            )
        row = torch.tensor([next(float(v) for k, v in given.items() if _is_of(channel, k)) for channel in names])
        found = [row.to(torch.float64).expand(values.shape) for values, _, _ in tables]
    elif bare := _without_sigma(tables, names):
        if len(bare) == len(names):
            return None
        raise InputError(
            f"some measurements have a standard deviation and others none ({', '.join(bare[:6])}); give all of them one with "
            "sigma={variable: value}, or write them into the data"
        )
    else:
        found = [spread.to(torch.float64) for _, _, spread in tables]
    for spread, (_, observed, _) in zip(found, tables, strict=True):
        if not bool((spread[observed] > 0).all()):
            raise InputError(
                "a measurement has a standard deviation that is not positive, which would give it infinite weight; "
                "correct the data, or pass sigma={name: value}"
            )
    return tuple(found)


def _without_sigma(tables: Sequence[Table], names: Sequence[str]) -> list[str]:
    """Channels that have an observed value without a standard deviation."""
    return [
        name
        for channel, name in enumerate(names)
        if any(bool(torch.isnan(spread[observed[:, channel], channel]).any()) for _, observed, spread in tables)
    ]


def _is_of(channel: str, name: str) -> bool:
    return channel == name or channel.split("[")[0] == name or _group(channel) == name


def _group(name: str) -> str:
    """A channel's name without its last label: ``position[sun,x]`` -> ``position[sun]``, ``position[x]`` -> ``position``."""
    if not name.endswith("]"):
        return name
    head, labels = name[:-1].split("[", 1)
    outer = labels.rsplit(",", 1)[0] if "," in labels else ""
    return f"{head}[{outer}]" if outer else head
