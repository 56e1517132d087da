"""Build trajectories from arrays: the one way into a dataset that does not start from a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from physnode.data import schema
from physnode.data.content import check_content
from physnode.data.findings import Findings
from physnode.data.table import Array, Table, Variable, header_of
from physnode.data.trajectories import Trajectories
from physnode.data.units import check_unit
from physnode.errors import InputError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
Labels = Mapping[str, Mapping[str, Sequence[str] | None]]


def from_arrays(
    t: Any,
    values: Mapping[str, Any] | None = None,
    *,
    sigma: Mapping[str, Any] | None = None,
    observed: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
    observations: Mapping[str, Any] | None = None,
    units: Mapping[str, str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    initial: Mapping[str, Any] | None = None,
    split: Sequence[str] | None = None,
    ids: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    labels: Labels | None = None,
    instruments: Mapping[str, Any] | None = None,
    interpolation: str | Mapping[str, str] = "linear",
    periods: Mapping[str, float] | None = None,
    time_origin: float | Sequence[float] | None = None,
    time_scale: str = "TDB",
    long_names: Mapping[str, str] | None = None,
    title: str = "untitled",
    source: str = "unspecified",
    attributes: Mapping[str, Any] | None = None,
) -> Trajectories:
    """Trajectories from times ``t`` and named ``values``.

    ``t`` is one array ``(n,)`` for one trajectory, or a list of N of them (they may differ in length; an array ``(N, n)``
    does as well). Everything given per trajectory then is a list of N, or an array with a leading axis of N. A missing
    measurement is NaN.

    Per row, by name:
      ``values``        state variables, each ``(n, *event)``; their order is the order in ``y``
      ``observations``  what is measured and is a function of the state (an angle, a radial velocity), each ``(n, *event)``
      ``inputs``        what drives the system, each ``(n, *event)``; between rows as ``interpolation`` says ("previous" or
                        "linear", for all or by name)
      ``sigma``         one standard deviation of a state, an observation or "time": a number, ``(n,)``, or ``(n,)`` and any
                        leading part of the event axes
      ``observed``      False where a value is missing, shaped as ``sigma``; what lies there is replaced by NaN
      ``instruments``   which instrument measured a row: n names

    Per trajectory: ``parameters`` and ``initial`` (exact initial values of states; numbers are repeated, arrays need the
    leading N if ``t`` is a list), ``split`` ("train", "valid", "test", "none"), ``ids``, ``groups`` (equal for trajectories
    that must stay in one split), ``seeds``, ``time_origin`` (Julian date of time 0 in ``time_scale``).

    ``units`` names the unit of "time" and of each variable and parameter, such as "km s-1", "1" if dimensionless; leave it
    out altogether for time in s and all else dimensionless. ``labels`` names the event axes and what lies along them, such
    as ``{"position": {"body": ["sun", "earth"], "space": ["x", "y", "z"]}}`` (None for an axis without labels).
    ``periods`` gives the period of an observed angle that wraps.

    Raises InputError if shapes, names or units do not fit, or the content breaks a rule (time not increasing, infinities).
    """
    builder = _Builder(t, labels or {}, units, long_names or {})
    columns = {"state": values or {}, "observation": observations or {}, "input": inputs or {}}
    for role, items in columns.items():
        for name, item in items.items():
            extra: dict[str, Any] = {}
            if role == "input":
                how = interpolation if isinstance(interpolation, str) else interpolation.get(name, "linear")
                if how not in schema.INTERPOLATIONS:
                    raise InputError(f"interpolation of '{name}' must be 'previous' or 'linear', found {how!r}")
                extra["interpolation"] = how
            if name in (periods or {}):
                extra["period"] = float((periods or {})[name])
            builder.rows(name, item, role, extra)
    builder.require_units([*(parameters or {})])
    for name, item in (observed or {}).items():
        builder.mask(name, item)
    for name, item in (sigma or {}).items():
        builder.sigma(name, item)
    for name, item in (instruments or {}).items():
        builder.instrument(name, item)
    for name, item in (parameters or {}).items():
        builder.constant(name, item, {"role": "parameter", "units": builder.unit(name)})
    for name, item in (initial or {}).items():
        builder.initial(name, item)
    builder.bookkeeping(split, ids, groups, seeds, time_origin, time_scale)
    table = builder.table({"title": title, "source": source, **(attributes or {})})
    findings = Findings()
    check_content(header_of(table), lambda name: table.variables[name].values, findings)
    if findings.errors:
        first = findings.errors[0]
        raise InputError(str(first).removeprefix(f"{first.rule} error: "))
    return Trajectories(table)


class _Builder:
    """Collects variables, dimensions and labels, and checks each as it comes."""

    def __init__(self, t: Any, labels: Labels, units: Mapping[str, str] | None, long_names: Mapping[str, str]) -> None:
        times, self.many = _times(t)
        self.counts = [len(item) for item in times]
        self.number = len(times)
        self.labels_of, self.units, self.long_names = labels, units, long_names
        self.sizes = {schema.TRAJECTORY: self.number, schema.OBS: sum(self.counts)}
        self.labels: dict[str, tuple[str, ...]] = {}
        self.variables: dict[str, Variable] = {}
        self.measured: list[str] = []
        if self.sizes[schema.OBS] == 0:
            raise InputError("there are no rows: t is empty")
        self.variables[schema.TRAJECTORY] = Variable((schema.TRAJECTORY,), np.arange(self.number), {})
        rowsize = np.array(self.counts, dtype=np.int64)
        self.variables[schema.ROWSIZE] = Variable((schema.TRAJECTORY,), rowsize, {"sample_dimension": schema.OBS})
        time = {"units": self.unit(schema.TIME), "long_name": "elapsed time"}
        self.variables[schema.TIME] = Variable((schema.OBS,), np.concatenate(times), time)

    def unit(self, name: str) -> str:
        if self.units is None:
            return "s" if name == schema.TIME else "1"
        if name not in self.units:
            raise InputError(f"units has no entry for '{name}'; give its unit, '1' if dimensionless")
        return check_unit(self.units[name], name)

    def require_units(self, parameters: list[str]) -> None:
        known = {schema.TIME, *self.measured, *parameters}
        for what, names in (("units", self.units or {}), ("labels", self.labels_of), ("long_names", self.long_names)):
            unknown = set(names) - known
            if unknown:
                raise InputError(
                    f"{what} names {_list(unknown)}, but the variables are {_list(known - {schema.TIME}, quiet=True)}"
                )

    def per_trajectory(self, item: Any, what: str) -> list[Any]:
        if not self.many:
            return [item]
        if not isinstance(item, list | tuple) and np.ndim(item) == 0:
            return [item] * self.number
        if len(item) != self.number:
            raise InputError(f"{what} has {len(item)} entries, but there are {self.number} trajectories")
        return list(item)

    def rows(self, name: str, item: Any, role: str, extra: dict[str, Any]) -> None:
        self.claim(name)
        pieces = [_numbers(piece, f"'{name}'") for piece in self.per_trajectory(item, f"'{name}'")]
        for index, (piece, count) in enumerate(zip(pieces, self.counts, strict=True)):
            if piece.ndim == 0 or len(piece) != count:
                raise InputError(
                    f"'{name}' has shape {piece.shape} in trajectory {index}, but t has {count} times; "
                    "its first axis must be the rows"
                )
            if piece.shape[1:] != pieces[0].shape[1:]:
                raise InputError(f"'{name}' has rows of shape {pieces[0].shape[1:]} and of {piece.shape[1:]}")
        if 0 in pieces[0].shape[1:]:
            raise InputError(f"'{name}' has an axis without entries: {pieces[0].shape[1:]}")
        joined = np.concatenate(pieces)
        dims = (schema.OBS, *self.event_dims(name, joined.shape[1:]))
        about = {"role": role, "units": self.unit(name), "coordinates": "time", **extra}
        about |= {"_FillValue": np.array([np.nan], joined.dtype), "long_name": self.long_name(name)}
        self.variables[name] = Variable(dims, joined, about)
        self.measured.append(name)

    def event_dims(self, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        axes = self.labels_of.get(name)
        if axes is None:
            axes = {f"{name}_axis{axis}": None for axis in range(len(shape))}
        if len(axes) != len(shape):
            raise InputError(f"labels of '{name}' name {len(axes)} axes, but it has {len(shape)} beside the rows")
        for (dim, given), size in zip(axes.items(), shape, strict=True):
            labels = None if given is None else tuple(map(str, given))
            if not _NAME.fullmatch(dim) or dim in schema.RESERVED:
                raise InputError(f"'{dim}' cannot name an axis: letters, digits and _ only, and not a reserved name")
            if labels is not None and not all(label.isprintable() for label in labels):
                raise InputError(f"a label of axis '{dim}' holds a character that cannot be printed")
            if labels is not None and (len(labels) != size or len(set(labels)) < size):
                raise InputError(f"axis '{dim}' of '{name}' has {size} entries and needs as many different labels")
            if size > schema.MAX_LABELS and labels is not None:
                raise InputError(f"axis '{dim}' has {size} labels (limit {schema.MAX_LABELS}); give None")
            if self.sizes.setdefault(dim, size) != size or (dim in self.labels and self.labels[dim] != labels):
                raise InputError(f"axis '{dim}' of '{name}' differs from that of another variable; name it otherwise")
            if labels is not None:
                self.labels[dim] = labels
        return tuple(axes)

    def spread(self, target: str, item: Any, what: str) -> tuple[tuple[str, ...], Array]:
        """Dims and values of something that belongs to ``target``, on its leading dimensions."""
        if target not in self.variables or (target not in self.measured and target != schema.TIME):
            raise InputError(f"{what} names '{target}', which is not among {_list(self.measured, quiet=True)}")
        owner = self.variables[target]
        label = f"{what} of '{target}'"
        pieces = [_numbers(piece, label) for piece in self.per_trajectory(item, label)]
        rank = max(piece.ndim for piece in pieces)
        if rank == 0:
            return (schema.TRAJECTORY,), np.array([float(piece) for piece in pieces])
        full = []
        for piece, count in zip(pieces, self.counts, strict=True):
            shape = (count, *owner.values.shape[1:rank])
            if piece.ndim not in (0, rank) or (piece.ndim and piece.shape != shape):
                raise InputError(f"{label} has shape {piece.shape}; needed: a number or {shape}")
            full.append(np.broadcast_to(piece, shape))
        return owner.dims[:rank], np.concatenate(full)

    def mask(self, target: str, item: Any) -> None:
        dims, flags = self.spread(target, item, "observed")
        owner = self.variables[target]
        if dims == (schema.TRAJECTORY,):
            dims, flags = (schema.OBS,), np.repeat(flags, self.counts)
        seen = flags.astype(bool).reshape(flags.shape + (1,) * (owner.values.ndim - flags.ndim))
        values = np.where(seen, owner.values, owner.values.dtype.type(np.nan))
        if (np.isnan(values) & seen).any():
            raise InputError(f"observed['{target}'] is True where the value is NaN; give False there")
        self.variables[target] = Variable(owner.dims, values, owner.attributes)
        about = {"role": "mask", "mask_of": target, "dtype": "bool", "flag_values": np.array([0, 1], np.int8)}
        about |= {"flag_meanings": "missing observed", "long_name": f"whether {target} was measured"}
        self.attach(f"{target}_observed", target, Variable(dims, flags.astype(np.int8), about))

    def sigma(self, target: str, item: Any) -> None:
        dims, values = self.spread(target, item, "sigma")
        about = {"role": "sigma", "sigma_of": target, "units": self.variables[target].attributes["units"]}
        about |= {"long_name": f"one standard deviation of {target}"}
        self.attach(f"{target}_sigma", target, Variable(dims, values, about))

    def instrument(self, target: str, item: Any) -> None:
        if target not in self.measured:
            raise InputError(f"instruments names '{target}', which is not among {_list(self.measured, quiet=True)}")
        pieces = [np.asarray(piece, dtype=str) for piece in self.per_trajectory(item, "instruments")]
        names = np.concatenate(pieces) if all(piece.ndim == 1 for piece in pieces) else np.zeros(0, str)
        if len(names) != self.sizes[schema.OBS]:
            raise InputError(f"instruments of '{target}' must be one name for each row ('' where nothing was measured)")
        known = list(dict.fromkeys(str(name) for name in names if name))
        if any(not re.fullmatch(r"[\w.+-]+", name) for name in known) or len(known) > 127 or "none" in known:
            raise InputError("an instrument is named in letters, digits and _.+- without blanks; 'none' is reserved")
        codes = np.array([known.index(name) if name else -1 for name in names], dtype=np.int8)
        about = {"role": "instrument", "instrument_of": target, "long_name": f"instrument that measured {target}"}
        flags = np.arange(-1, len(known), dtype=np.int8)
        meanings = {"flag_values": flags, "flag_meanings": " ".join(["none", *known])}
        self.attach(f"{target}_instrument", target, Variable((schema.OBS,), codes, about | meanings))

    def attach(self, name: str, target: str, variable: Variable) -> None:
        self.claim(name)
        self.variables[name] = variable
        owner = self.variables[target]
        listed = f"{owner.attributes.get('ancillary_variables', '')} {name}".strip()
        self.variables[target] = Variable(owner.dims, owner.values, {**owner.attributes, "ancillary_variables": listed})

    def constant(self, name: str, item: Any, about: dict[str, Any], dims: tuple[str, ...] | None = None) -> None:
        self.claim(name)
        values = _numbers(item, f"'{name}'").astype(np.float64)
        if values.ndim == 0:
            values = np.full(self.number, float(values))
        elif not self.many:
            values = values[None]
        elif len(values) != self.number:
            raise InputError(
                f"'{name}' has shape {values.shape}, but there are {self.number} trajectories; "
                "give a number, or repeat the array along a leading axis of that length"
            )
        lead = (schema.TRAJECTORY, *(self.event_dims(name, values.shape[1:]) if dims is None else dims))
        if dims is not None and values.shape[1:] != tuple(self.sizes[dim] for dim in dims):
            raise InputError(f"'{name}' has shape {values.shape[1:]} in each trajectory, which is not that of its variable")
        self.variables[name] = Variable(lead, values, {**about, "long_name": self.long_name(name)})

    def initial(self, target: str, item: Any) -> None:
        owner = self.variables.get(target)
        if owner is None or owner.role != "state":
            raise InputError(f"initial names '{target}', which is not a state variable")
        about = {"role": "initial_condition", "initial_of": target, "units": owner.attributes["units"]}
        self.constant(f"{target}_initial", item, about, owner.dims[1:])

    def bookkeeping(
        self,
        split: Sequence[str] | None,
        ids: Sequence[int] | None,
        groups: Sequence[int] | None,
        seeds: Sequence[int] | None,
        time_origin: float | Sequence[float] | None,
        time_scale: str,
    ) -> None:
        lead = (schema.TRAJECTORY,)
        about = {"cf_role": "trajectory_id", "long_name": "trajectory id"}
        numbers = np.arange(self.number) if ids is None else self.whole(ids, "ids")
        self.variables[schema.TRAJECTORY] = Variable(lead, numbers.astype(np.int64), about)
        if split is not None:
            words = [split] if isinstance(split, str) else list(split)
            unknown = set(words) - set(schema.SPLITS)
            if unknown or len(words) != self.number:
                raise InputError(f"split must be {self.number} of {_list(schema.SPLITS, quiet=True)}, found {words[:9]}")
            codes = np.array([schema.SPLITS[word] for word in words], dtype=np.int8)
            self.variables["split"] = Variable(lead, codes, split_attributes())
        if groups is not None:
            self.variables["group_id"] = Variable(lead, self.whole(groups, "groups"), {"long_name": "group"})
        if seeds is not None:
            self.variables["seed"] = Variable(lead, self.whole(seeds, "seeds"), {"long_name": "random seed"})
        if time_origin is not None:
            about = {"units": "d", "reference": "JD", "time_scale": time_scale, "long_name": "Julian date of time 0"}
            origin = np.broadcast_to(np.asarray(time_origin, dtype=np.float64), (self.number,)).copy()
            self.variables["time_origin"] = Variable(lead, origin, about)

    def whole(self, item: Any, what: str) -> Array:
        found = np.asarray(item)
        if found.shape != (self.number,) or found.dtype.kind not in "iu":
            raise InputError(f"{what} must be {self.number} whole numbers, found {item!r}")
        return found.astype(np.int64)

    def long_name(self, name: str) -> str:
        return self.long_names.get(name, name.replace("_", " "))

    def claim(self, name: Any) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f"{name!r} cannot name a variable: a letter, then letters, digits and _")
        if name in schema.RESERVED or name in self.variables or name in self.sizes:
            raise InputError(f"the name '{name}' is taken or reserved; choose another")

    def table(self, attributes: dict[str, Any]) -> Table:
        clash = set(self.sizes) & set(self.variables) - {schema.TRAJECTORY}
        if clash:
            raise InputError(f"{_list(clash)} names both an axis and a variable; rename one")
        states = [name for name in self.measured if self.variables[name].role == "state"]
        if not any(self.variables[name].role in ("state", "observation") for name in self.measured):
            raise InputError("give at least one state variable (values) or observation")
        return Table(self.sizes, self.labels, self.variables, {"state_variables": " ".join(states), **attributes})


def split_attributes() -> dict[str, Any]:
    """The attributes of the variable ``split``."""
    codes = np.array(list(schema.SPLITS.values()), dtype=np.int8)
    return {"flag_values": codes, "flag_meanings": " ".join(schema.SPLITS), "long_name": "data split"}


def _times(t: Any) -> tuple[list[Array], bool]:
    many = isinstance(t, list | tuple) and len(t) > 0 and np.ndim(t[0]) > 0
    many = many or (not isinstance(t, list | tuple) and np.ndim(t) == 2)
    pieces = [_numbers(item, "t").astype(np.float64) for item in (t if many else [t])]
    for piece in pieces:
        if piece.ndim != 1:
            raise InputError(f"t must have one axis for each trajectory, found shape {piece.shape}")
    return pieces, many


def _numbers(item: Any, what: str) -> Array:
    """Real numbers as float64, float32 kept; tensors are taken off their graph and device."""
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu().numpy()
    try:
        found = np.asarray(item)
        if found.dtype.kind not in "fiub":
            raise TypeError(f"type {found.dtype}")
        return found.astype(np.float32 if found.dtype == np.float32 else np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} must be real numbers in equal rows: {error}") from None


def _list(names: Any, *, quiet: bool = False) -> str:
    return ", ".join(str(name) if quiet else f"'{name}'" for name in sorted(names))
