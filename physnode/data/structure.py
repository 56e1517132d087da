"""Rules M01 to M10: what a trajectory file must look like, checked on its Header without reading values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from physnode.data import schema
from physnode.data.findings import Findings
from physnode.data.table import Entry, Header
from physnode.data.units import TIME_UNITS, unit_fault

_FIXED = {"featureType": "trajectory", "schema": schema.SCHEMA}


def check_structure(header: Header, findings: Findings) -> bool:
    """Add what breaks M01 to M10; False if the file follows another schema, so that no other rule applies."""
    if not _schema(header, findings):
        return False
    _root(header, findings)
    for name, (dims, types) in schema.STRUCTURAL.items():
        _structural(header, name, dims, types, findings)
    for dim in (schema.OBS, schema.TRAJECTORY):
        if header.sizes.get(dim, 0) < 1:
            findings.add("M02", dim, "the dimension must exist and have at least one entry")
    for name, entry in header.entries.items():
        _attributes(name, entry, findings)
        _units(header, name, entry, findings)
        _variable(header, name, entry, findings)
    _references(header, findings)
    for group in header.groups:
        findings.add("M09", group, "group is not part of the schema: ignored", severity="warning")
    return True


def _schema(header: Header, findings: Findings) -> bool:
    found = header.attributes.get("schema")
    if found != schema.SCHEMA:
        findings.add(
            "M01",
            "schema",
            "is HDF5, but not a physnode trajectory file",
            value="no attribute" if found is None else found,
            cure=f"needed: the root attribute schema = '{schema.SCHEMA}'; make a file with physnode.data.from_arrays",
        )
        return False
    version = str(header.attributes.get("schema_version", ""))
    match = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", version)
    own = ".".join(map(str, schema.VERSION))
    if match is None:
        findings.add("M01", "schema_version", "must be major.minor", value=version, cure=f"this physnode reads {own}")
        return False
    if int(match[1]) != schema.VERSION[0]:
        findings.add(
            "M01",
            "schema_version",
            f"the file follows schema {version}, this physnode reads {own}",
            cure=f"install a physnode that reads schema {version}",
        )
        return False
    if int(match[2]) > schema.VERSION[1]:
        findings.add(
            "M01",
            "schema_version",
            f"the file follows the newer schema {version}; what {own} does not know is ignored",
            severity="warning",
        )
    return True


def _root(header: Header, findings: Findings) -> None:
    attributes = header.attributes
    for name in schema.REQUIRED_ATTRIBUTES:
        value = attributes.get(name)
        if not isinstance(value, str):
            findings.add("M01", name, "required root attribute is missing or not text", value=value)
        elif name in _FIXED and value != _FIXED[name]:
            findings.add("M01", name, f"must be '{_FIXED[name]}'", value=value)
    conventions = str(attributes.get("Conventions", ""))
    if schema.CONVENTIONS not in re.split(r"[ ,]+", conventions):
        findings.add("M01", "Conventions", f"must contain {schema.CONVENTIONS}", value=conventions)
    unknown = set(str(attributes.get("required_features", "")).split()) - schema.FEATURES
    if unknown:
        findings.add(
            "M01",
            "required_features",
            f"this physnode lacks {', '.join(sorted(unknown))}",
            cure="open it with the physnode that wrote it, or a newer one",
        )
    _text("", attributes, findings)
    for name in schema.JSON_ATTRIBUTES:
        if name in attributes:
            _json(name, attributes[name], findings)


def _text(owner: str, attributes: dict[str, Any], findings: Findings) -> None:
    for name, value in attributes.items():
        if isinstance(value, str) and any(0xDC80 <= ord(char) <= 0xDCFF for char in value):
            findings.add(
                "M10",
                f"{owner}:{name}" if owner else name,
                "text is not UTF-8",
                severity="warning" if name in schema.FREE_TEXT else "error",
                value=value.encode("utf-8", "surrogateescape"),
            )


def _json(name: str, value: Any, findings: Findings) -> None:
    size = len(str(value).encode("utf-8", "surrogateescape"))
    if size > schema.MAX_JSON_BYTES:
        findings.add("M10", name, f"{size} bytes (limit {schema.MAX_JSON_BYTES})")
        return
    try:
        json.loads(value, parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, TypeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        findings.add("M10", name, f"is not strict JSON: {reason}", value=value)


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key is repeated")
    return dict(pairs)


def _structural(header: Header, name: str, dims: tuple[str, ...], types: tuple[str, ...], findings: Findings) -> None:
    entry = header.entries.get(name)
    if entry is None:
        if name in (schema.TRAJECTORY, schema.ROWSIZE, schema.TIME):
            findings.add("M02", name, "required variable is missing")
        return
    if entry.dims != dims:
        findings.add("M02", name, f"its dimensions must be ({', '.join(dims)})", value=_shown(entry.dims))
    if entry.type not in types:
        rule = "M08" if name == schema.TIME else "M03"
        findings.add(rule, name, f"type must be {_types(types)}", value=entry.type)
    if name == schema.ROWSIZE and entry.attributes.get("sample_dimension") != schema.OBS:
        findings.add("M01", name, "attribute sample_dimension must be 'obs'")
    if name == schema.TRAJECTORY and entry.attributes.get("cf_role") != "trajectory_id":
        findings.add("M01", name, "attribute cf_role must be 'trajectory_id'")


def _attributes(name: str, entry: Entry, findings: Findings) -> None:
    for attribute in schema.FORBIDDEN_ATTRIBUTES:
        if attribute in entry.attributes:
            findings.add(
                "M05",
                f"{name}:{attribute}",
                "is not allowed: programs would read two different numbers",
                cure="store the numbers as they are, missing as NaN",
            )
    fill = entry.attributes.get("_FillValue")
    if fill is not None:
        value = np.asarray(fill)
        good = value.size == 1 and value.dtype.kind == "f" and bool(np.isnan(value).all())
        if not good or entry.type not in schema.FLOATS or value.dtype.newbyteorder("<").str != entry.type:
            findings.add(
                "M05", f"{name}:_FillValue", "must be one NaN of the variable's type, on floating-point variables only"
            )
    _text(name, entry.attributes, findings)


def _units(header: Header, name: str, entry: Entry, findings: Findings) -> None:
    if entry.type not in schema.FLOATS:
        return
    unit = entry.attributes.get("units")
    if name == schema.TIME:
        if unit not in TIME_UNITS:
            cure = f"write one of {', '.join(TIME_UNITS)}"
            findings.add("M07", name, "unit of time is missing or not allowed", value=unit, cure=cure)
        for attribute in ("standard_name", "axis"):
            if attribute in entry.attributes:
                findings.add("M07", f"time:{attribute}", "is not allowed: time is elapsed, not a date")
        return
    by_component = header.entries.get("component_units")
    if unit is None and by_component is not None and by_component.dims == entry.dims[-1:]:
        return
    if not isinstance(unit, str):
        findings.add("M06", name, "has no unit", value=unit, cure="give units, '1' if dimensionless")
        return
    fault = unit_fault(unit)
    if fault:
        findings.add("M06", name, f"unit '{unit}' is not allowed", cure=fault)
    target = entry.attributes.get("sigma_of") if entry.role == "sigma" else None
    other = header.entries.get(str(target))
    if other is not None and other.attributes.get("units", unit) != unit:
        findings.add(
            "M06", name, f"unit '{unit}' differs from '{other.attributes.get('units')}' of '{target}'", cure="use one unit"
        )


def _variable(header: Header, name: str, entry: Entry, findings: Findings) -> None:
    if name in schema.STRUCTURAL or name == "component_units":
        return
    if entry.role is None:
        findings.add("M09", name, "variable without a role: ignored", severity="warning")
        return
    role = schema.ROLES.get(entry.role)
    if role is None:
        findings.add("M09", name, f"unknown role; known: {', '.join(schema.ROLES)}", value=entry.role)
        return
    if entry.type not in role.types:
        findings.add("M03", name, f"type must be {_types(role.types)}", value=entry.type)
    lead = entry.dims[0] if entry.dims else ""
    inner = entry.dims[1:]
    repeated = len(set(entry.dims)) < len(entry.dims)
    if lead not in role.lead or {schema.OBS, schema.TRAJECTORY} & set(inner) or repeated or (inner and not role.events):
        wanted = " or ".join(f"({dim}, ...)" if role.events else f"({dim})" for dim in role.lead if dim)
        findings.add("M02", name, f"dimensions of a {entry.role} must be {wanted}", value=_shown(entry.dims))
    for axis, (dim, size) in enumerate(zip(entry.dims, entry.shape, strict=True)):
        if dim in header.sizes and header.sizes[dim] != size:
            findings.add("M02", name, f"axis {axis} has {size} entries, dimension '{dim}' has {header.sizes[dim]}")
    if entry.role in ("sigma", "mask"):
        other = header.entries.get(str(entry.attributes.get(f"{entry.role}_of")))
        if other is not None and lead == schema.OBS and inner != other.dims[1 : 1 + len(inner)]:
            findings.add("M02", name, "dimensions must be the leading ones of its variable", value=_shown(entry.dims))
    if entry.role == "input" and entry.attributes.get("interpolation") not in schema.INTERPOLATIONS:
        findings.add("M01", f"{name}:interpolation", "must be 'previous' or 'linear'")


def _references(header: Header, findings: Findings) -> None:
    entries = header.entries
    states = str(header.attributes.get("state_variables", "")).split()
    if len(set(states)) < len(states):
        findings.add("M09", "state_variables", "a name is repeated", value=" ".join(states))
    for name in states:
        if name not in entries or entries[name].role != "state":
            findings.add("M09", "state_variables", f"'{name}' is not a variable of role state")
    for name, entry in entries.items():
        if entry.role == "state" and name not in states:
            findings.add("M09", name, "state variable is not named in state_variables")
    if not states and not any(entry.role == "observation" for entry in entries.values()):
        findings.add("M09", "state_variables", "the file holds neither state nor observation variables")
    for name, attribute, target, allowed in _targets(header):
        if target not in entries:
            findings.add("M09", f"{name}:{attribute}", f"there is no variable '{target}'")
        elif not allowed(target, entries[target]):
            findings.add("M09", f"{name}:{attribute}", f"'{target}' has the wrong role", value=entries[target].role)
    for (role, target), names in _owners(header).items():
        if len(names) > 1:
            findings.add("M09", names[1], f"'{target}' has two variables of role {role}", value=" ".join(names))


def _owners(header: Header) -> dict[tuple[str, str], list[str]]:
    owners: dict[tuple[str, str], list[str]] = {}
    for name, entry in header.entries.items():
        if entry.role in ("sigma", "mask", "instrument"):
            owners.setdefault((entry.role, str(entry.attributes.get(f"{entry.role}_of"))), []).append(name)
    return owners


_Allowed = Callable[[str, Entry], bool]


def _targets(header: Header) -> Iterator[tuple[str, str, str, _Allowed]]:
    """(variable, attribute, name it refers to, whether that one is of the right kind)."""
    for name, entry in header.entries.items():
        role = schema.ROLES.get(entry.role or "")
        if role is not None and role.target is not None:
            targets = str(entry.attributes.get(role.target, "")).split() or [""]
            for target in targets:
                yield name, role.target, target, _allowed_target(entry.role or "")
        for target in str(entry.attributes.get("ancillary_variables", "")).split():
            yield name, "ancillary_variables", target, lambda _name, _entry: True


def _allowed_target(role: str) -> _Allowed:
    def allowed(name: str, entry: Entry) -> bool:
        if role == "sigma":
            return name == schema.TIME or entry.role in ("state", "observation")
        if role == "correlation":
            return entry.role == "observation"
        return entry.role in ("state", "observation", "input")

    return allowed


def _shown(dims: tuple[str, ...]) -> str:
    return f"({', '.join(dim or '?' for dim in dims)})"


def _types(types: tuple[str, ...]) -> str:
    return " or ".join(np.dtype(kind).name for kind in types)
