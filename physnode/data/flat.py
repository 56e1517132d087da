"""A Table's measured quantities as tensors: states side by side in one matrix, the others by name.

Built once for a dataset and shared by every view of it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from physnode.data import schema
from physnode.data.findings import clean
from physnode.data.table import Array, Table, Variable


@dataclass(frozen=True, eq=False)
class Measured:
    """One quantity over all rows: values (0 where missing), whether observed, sigma (1 where missing), and its instrument."""

    values: Tensor
    observed: Tensor
    sigma: Tensor | None
    unit: str
    instrument: Tensor | None
    instruments: tuple[str, ...]
    period: float | None


@dataclass(frozen=True, eq=False)
class Flat:
    """All rows of a dataset as tensors; ``edges`` is the first row of each trajectory."""

    t: Tensor
    y: Tensor
    observed: Tensor
    sigma: Tensor | None
    inputs: dict[str, Measured]
    observations: dict[str, Measured]
    parameters: dict[str, Tensor]
    initial: dict[str, Tensor]
    names: tuple[str, ...]
    units: dict[str, str]
    edges: Array


def flatten(table: Table, chosen: tuple[str, ...]) -> Flat:
    """The chosen variables of a Table; states in the order in which they are named."""
    rows = table.sizes[schema.OBS]
    roles = {name: table.variables[name].role for name in chosen}
    measured = {name: _measured(table, name) for name in chosen}
    states = [measured[name] for name in chosen if roles[name] == "state"]
    sizes = table.variables[schema.ROWSIZE].values.astype(np.int64)
    some_sigma = any(item.sigma is not None for item in states)
    parameters = table.with_role("parameter")
    kept = {name: item for name, item in table.variables.items() if name in chosen or name in parameters}
    return Flat(
        t=torch.from_numpy(np.ascontiguousarray(table.variables[schema.TIME].values, dtype=np.float64)),
        y=_side_by_side([item.values for item in states], rows, torch.float64),
        observed=_side_by_side([item.observed for item in states], rows, torch.bool),
        sigma=_side_by_side([_sigma_or_nan(item) for item in states], rows, torch.float64) if some_sigma else None,
        inputs={name: measured[name] for name in chosen if roles[name] == "input"},
        observations={name: measured[name] for name in chosen if roles[name] == "observation"},
        parameters={name: torch.from_numpy(item.values) for name, item in parameters.items()},
        initial={
            str(item.attributes.get("initial_of")): torch.from_numpy(item.values)
            for item in table.with_role("initial_condition").values()
            if item.attributes.get("initial_of") in chosen
        },
        names=tuple(label for name in chosen if roles[name] == "state" for label in component_names(table, name)),
        units={"time": str(table.variables[schema.TIME].attributes["units"])}
        | {name: unit_of(table, item) for name, item in kept.items()},
        edges=np.cumsum(sizes) - sizes,
    )


def component_names(table: Table, name: str) -> tuple[str, ...]:
    """Labels of one variable's components in C order: "angle", or "position[sun,x]" (numbers on axes without labels)."""
    item = table.variables[name]
    axes = [
        table.labels.get(dim, tuple(map(str, range(size))))
        for dim, size in zip(item.dims[1:], item.values.shape[1:], strict=True)
    ]
    return tuple(f"{name}[{','.join(parts)}]" for parts in itertools.product(*axes)) if axes else (name,)


def unit_of(table: Table, item: Variable) -> str:
    """A variable's unit; where each component has its own, all of them, separated by commas."""
    unit = item.attributes.get("units")
    if unit is not None:
        return str(unit)
    return ", ".join(str(part) for part in table.variables["component_units"].values)


def _measured(table: Table, name: str) -> Measured:
    item = table.variables[name]
    observed = ~np.isnan(item.values)
    code = table.attached(name, "instrument")
    period = item.attributes.get("period")
    return Measured(
        values=torch.from_numpy(np.where(observed, item.values, item.values.dtype.type(0))),
        observed=torch.from_numpy(observed),
        sigma=_full_sigma(table, name, observed),
        unit=unit_of(table, item),
        instrument=None if code is None else torch.from_numpy(code.values.astype(np.int64)),
        instruments=() if code is None else _instruments(code),
        period=None if period is None else float(period),
    )


def _full_sigma(table: Table, name: str, observed: Array) -> Tensor | None:
    sigma = table.attached(name, "sigma")
    if sigma is None:
        return None
    values = sigma.values
    if sigma.dims == (schema.TRAJECTORY,):
        values = np.repeat(values, table.variables[schema.ROWSIZE].values)
    values = values.reshape(values.shape + (1,) * (observed.ndim - values.ndim))
    return torch.from_numpy(np.where(observed, values, values.dtype.type(1)))


def _instruments(code: Variable) -> tuple[str, ...]:
    """Names by code 0, 1, ...; a code without a name is called by its number."""
    flags = [int(flag) for flag in np.atleast_1d(code.attributes.get("flag_values", []))]
    named = dict(zip(flags, map(clean, str(code.attributes.get("flag_meanings", "")).split()), strict=False))
    top = max([*flags, *code.values.tolist(), -1])
    return tuple(named.get(number, str(number)) for number in range(top + 1))


def _sigma_or_nan(item: Measured) -> Tensor:
    if item.sigma is not None:
        return item.sigma
    return torch.where(item.observed, torch.full_like(item.values, torch.nan), torch.ones_like(item.values))


def _side_by_side(parts: list[Tensor], rows: int, dtype: torch.dtype) -> Tensor:
    if not parts:
        return torch.zeros(rows, 0, dtype=dtype)
    kind = parts[0].dtype
    for part in parts[1:]:
        kind = torch.promote_types(kind, part.dtype)
    return torch.cat([part.reshape(rows, -1).to(kind) for part in parts], dim=1).contiguous()
