"""Turn views back into Tables, and join several Tables into one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from physnode.data import schema
from physnode.data.table import Array, Table, Variable, type_of
from physnode.errors import InputError


class Rows(Protocol):
    """Which rows of a Table belong to each trajectory."""

    @property
    def parents(self) -> Array: ...  # noqa: D102
    @property
    def starts(self) -> Array: ...  # noqa: D102
    @property
    def stops(self) -> Array: ...  # noqa: D102
    @property
    def ids(self) -> Array: ...  # noqa: D102
    @property
    def groups(self) -> Array: ...  # noqa: D102
    @property
    def step(self) -> int: ...  # noqa: D102
    @property
    def lengths(self) -> Array: ...  # noqa: D102


def gather(table: Table, view: Rows, chosen: tuple[str, ...]) -> Table:
    """The rows and trajectories of ``view`` and the ``chosen`` measured variables, with all that belongs to them."""
    parents = view.parents
    sizes = view.lengths.astype(np.int64)
    inside = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = np.repeat(view.starts, sizes) + inside * view.step
    old_sizes = table.variables[schema.ROWSIZE].values.astype(np.int64)
    from_start = bool((view.starts == (np.cumsum(old_sizes) - old_sizes)[parents]).all())
    kept = _kept(table, chosen, from_start=from_start)
    variables: dict[str, Variable] = {}
    for name, item in kept.items():
        values = item.values
        if item.dims[:1] == (schema.OBS,):
            values = values[rows]
        elif item.dims[:1] == (schema.TRAJECTORY,):
            values = values[parents]
        variables[name] = Variable(item.dims, values, _ancillary(item.attributes, kept))
    ids = table.variables[schema.TRAJECTORY]
    variables[schema.TRAJECTORY] = replace(ids, values=view.ids.astype(np.int64))
    variables[schema.ROWSIZE] = replace(variables[schema.ROWSIZE], values=sizes)
    if "group_id" in variables or not np.array_equal(view.groups, view.ids):
        about = kept["group_id"].attributes if "group_id" in kept else {"long_name": "group"}
        variables["group_id"] = Variable((schema.TRAJECTORY,), view.groups.astype(np.int64), about)
    used = {dim for item in variables.values() for dim in item.dims}
    lengths = {**table.sizes, schema.OBS: len(rows), schema.TRAJECTORY: len(parents)}
    states = [name for name in chosen if table.variables[name].role == "state"]
    attributes = {key: value for key, value in table.attributes.items() if key != "content_sha256"}
    return Table(
        {dim: size for dim, size in lengths.items() if dim in used},
        {dim: labels for dim, labels in table.labels.items() if dim in used},
        variables,
        {**attributes, "state_variables": " ".join(states)},
    )


def join(tables: list[Table]) -> Table:
    """All trajectories of several Tables; raises InputError that lists every difference between them.

    Splits and groups that some lack are filled in, masks that some lack are dropped (missing values are NaN anyway). Ids
    are kept if none is used twice and counted from 0 otherwise.
    """
    if not tables:
        raise InputError("there is nothing to join: give at least one Trajectories")
    first = tables[0]
    tables = _even(tables)
    faults = [fault for number, table in enumerate(tables[1:], start=2) for fault in _differences(tables[0], table, number)]
    if faults:
        raise InputError("the datasets cannot be joined: " + "; ".join(faults[:12]))
    variables: dict[str, Variable] = {}
    for name, item in tables[0].variables.items():
        if item.dims[:1] in ((schema.OBS,), (schema.TRAJECTORY,)):
            values = np.concatenate([table.variables[name].values for table in tables])
            variables[name] = replace(item, values=values)
        else:
            variables[name] = item
    ids = variables[schema.TRAJECTORY].values
    if len(np.unique(ids)) < len(ids):
        variables[schema.TRAJECTORY] = replace(variables[schema.TRAJECTORY], values=np.arange(len(ids)))
        if "group_id" in variables:
            owner = np.repeat(np.arange(len(tables)), [table.sizes[schema.TRAJECTORY] for table in tables])
            pairs = np.stack([owner, variables["group_id"].values], axis=1)
            fresh = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
            variables["group_id"] = replace(variables["group_id"], values=fresh)
    history = "\n".join(dict.fromkeys(str(t.attributes["history"]) for t in tables if t.attributes.get("history")))
    attributes = {key: value for key, value in first.attributes.items() if key not in ("content_sha256", "history")}
    lengths = {dim: sum(table.sizes[dim] for table in tables) for dim in (schema.OBS, schema.TRAJECTORY)}
    return Table(
        {**tables[0].sizes, **lengths},
        tables[0].labels,
        variables,
        {**attributes, "history": history} if history else attributes,
    )


def _kept(table: Table, chosen: tuple[str, ...], *, from_start: bool) -> dict[str, Variable]:
    dropped = {name for name, item in table.variables.items() if item.role in schema.MEASURED and name not in chosen}
    kept = {}
    for name, item in table.variables.items():
        role = schema.ROLES.get(item.role or "")
        targets = str(item.attributes.get(role.target, "")).split() if role is not None and role.target else []
        stale = item.role == "initial_condition" and not from_start
        if name not in dropped and not dropped & set(targets) and not stale:
            kept[name] = item
    return kept


def _ancillary(attributes: dict[str, Any], kept: dict[str, Variable]) -> dict[str, Any]:
    listed = str(attributes.get("ancillary_variables", "")).split()
    if all(name in kept for name in listed):
        return attributes
    names = " ".join(name for name in listed if name in kept)
    rest = {key: value for key, value in attributes.items() if key != "ancillary_variables"}
    return {**rest, "ancillary_variables": names} if names else rest


def _even(tables: list[Table]) -> list[Table]:
    """The same bookkeeping in each table: fill in splits and groups, drop what only some have."""
    everywhere = set.intersection(*(set(table.variables) for table in tables))
    anywhere = {name: item for table in tables for name, item in table.variables.items()}
    out = []
    for table in tables:
        variables = dict(table.variables)
        number = table.sizes[schema.TRAJECTORY]
        if "split" in anywhere and "split" not in variables:
            variables["split"] = replace(anywhere["split"], values=np.full(number, -1, dtype=np.int8))
        if "group_id" in anywhere and "group_id" not in variables:
            variables["group_id"] = replace(anywhere["group_id"], values=variables[schema.TRAJECTORY].values)
        for name, item in anywhere.items():
            if name not in everywhere and (item.role == "mask" or name == "seed"):
                variables.pop(name, None)
        kept = {name: replace(item, attributes=_ancillary(item.attributes, variables)) for name, item in variables.items()}
        out.append(replace(table, variables=kept))
    return out


def _differences(first: Table, other: Table, number: int) -> Iterator[str]:
    where = f"dataset {number}"
    if first.states() != other.states():
        yield f"{where} has states {' '.join(other.states())}, the first {' '.join(first.states())}"
    for name in sorted(set(first.variables) ^ set(other.variables)):
        yield f"{where} {'lacks' if name in first.variables else 'alone has'} '{name}'"
    for dim in sorted((set(first.sizes) & set(other.sizes)) - {schema.OBS, schema.TRAJECTORY}):
        if first.sizes[dim] != other.sizes[dim] or first.labels.get(dim) != other.labels.get(dim):
            yield f"{where} has another axis '{dim}'"
    for name in sorted(set(first.variables) & set(other.variables)):
        one, two = first.variables[name], other.variables[name]
        for what in ("units", "role", "flag_meanings", "time_scale", "period", "interpolation"):
            if one.attributes.get(what) != two.attributes.get(what):
                yield f"{where} has {what} '{two.attributes.get(what)}' for '{name}', not '{one.attributes.get(what)}'"
        if one.dims != two.dims or (one.role is None and type_of(one.values) != type_of(two.values)):
            yield f"{where} has '{name}' on ({', '.join(two.dims)}), not ({', '.join(one.dims)})"
