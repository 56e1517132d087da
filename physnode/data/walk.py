"""Look at every object of an open HDF5 file before any value is read, and describe what is found.

The walk is iterative and uses the low-level interface: each link is looked at before it is followed, each dataset's
layout before its shape, each attribute's type and size before it is read. What is refused becomes a finding; a dataset
or link that was refused is never followed or read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5ds, h5g, h5o, h5s, h5t

from physnode.data import schema
from physnode.data.findings import Findings, clean
from physnode.data.storage import check_storage, describe_type
from physnode.data.table import Array, Entry, Header

_LINKS = {h5py.h5l.TYPE_SOFT: "soft link", h5py.h5l.TYPE_EXTERNAL: "external link (reads another file)"}
_INTERNAL = frozenset(
    {
        "CLASS",
        "NAME",
        "DIMENSION_LIST",
        "REFERENCE_LIST",
        "DIMENSION_LABELS",
        "_Netcdf4Dimid",
        "_Netcdf4Coordinates",
        "_nc3_strict",
        "_NCProperties",
    }
)
_FAULTS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError, AttributeError)


@dataclass
class _Walk:
    handle: Any
    file_size: int
    findings: Findings
    seen: set[int] = field(default_factory=set)
    root: dict[str, Any] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    bare: set[str] = field(default_factory=set)
    groups: list[str] = field(default_factory=list)
    declared: int = 0


def walk(handle: Any, file_size: int, findings: Findings) -> Header | None:
    """The file's Header, or None if something in it was refused as unsafe; every refusal is in ``findings``."""
    state = _Walk(handle, file_size, findings)
    before = len(findings.errors)
    try:
        _objects(state)
        if len(findings.errors) > before:
            return None
        header = _describe(state)
    except _FAULTS as error:
        findings.add(
            "S01", "file", f"HDF5 cannot follow its structure: {clean(error)}", cure="the file is damaged; get it again"
        )
        return None
    return header if not any(item.rule == "S01" for item in findings.errors[before:]) else None


def _objects(state: _Walk) -> None:
    top = h5g.open(state.handle, b"/")
    state.seen.add(h5o.get_info(top).addr)
    _attributes(state, top, "file")
    stack: list[tuple[Any, str, int]] = [(top, "", 0)]
    count = 1
    while stack:
        group, prefix, depth = stack.pop()
        count += group.get_num_objs()
        if count > schema.MAX_OBJECTS:
            state.findings.add("S01", prefix or "file", f"{count} objects (limit {schema.MAX_OBJECTS})")
            return
        for raw in _names(group):
            opened = _follow(state, group, raw, prefix)
            if opened is None:
                continue
            item, path = opened
            _attributes(state, item, path)
            if isinstance(item, h5d.DatasetID):
                _dataset(state, item, path, in_root=depth == 0)
            elif depth + 1 > schema.MAX_DEPTH:
                state.findings.add("S01", path, f"groups nested deeper than {schema.MAX_DEPTH}")
            else:
                if depth == 0:
                    state.groups.append(path)
                stack.append((item, path + "/", depth + 1))


def _names(group: Any) -> list[bytes]:
    names: list[bytes] = []
    try:
        group.links.iterate(names.append, idx_type=h5py.h5.INDEX_CRT_ORDER)
    except _FAULTS:
        names.clear()
        group.links.iterate(names.append)
    return names


def _follow(state: _Walk, group: Any, raw: bytes, prefix: str) -> tuple[Any, str] | None:
    path = prefix + raw.decode("utf-8", "backslashreplace")
    if not _good_name(raw):
        state.findings.add(
            "S01",
            path,
            f"unprintable or too long name '{clean(raw)}' (limit {schema.MAX_NAME_BYTES} bytes)",
            cure="rename it",
        )
        return None
    kind = group.links.get_info(raw).type
    if kind != h5py.h5l.TYPE_HARD:
        state.findings.add(
            "S01",
            path,
            f"{_LINKS.get(kind, 'user-defined link')} is not allowed",
            cure="store the values in the file itself",
        )
        return None
    item = h5o.open(group, raw)
    address = h5o.get_info(item).addr
    if address in state.seen:
        state.findings.add("S01", path, "the same object is linked twice; each may have one name")
        return None
    state.seen.add(address)
    if isinstance(item, h5t.TypeID):
        state.findings.add("S01", path, "committed data type is not allowed; allowed: groups and datasets")
        return None
    return item, path


def _attributes(state: _Walk, item: Any, path: str) -> None:
    number = h5a.get_num_attrs(item)
    if number > schema.MAX_ATTRIBUTES:
        state.findings.add("S01", path, f"{number} attributes (limit {schema.MAX_ATTRIBUTES})")
        return
    for index in range(number):
        attribute = h5a.open(item, index=index)
        name = attribute.name
        raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
        where = f"{path}:{raw.decode('utf-8', 'backslashreplace')}"
        if not _good_name(raw):
            state.findings.add("S01", where, f"unprintable or too long name '{clean(raw)}'", cure="rename it")
            continue
        fault = _attribute_fault(attribute, raw.decode())
        if fault:
            state.findings.add("S01", where, fault)


def _attribute_fault(attribute: Any, name: str) -> str | None:
    kind, space = attribute.get_type(), attribute.get_space()
    family = kind.get_class()
    if kind.committed():
        return "committed data type is not allowed"
    if space.get_simple_extent_type() == h5s.NULL:
        return None if family == h5t.STRING else "attribute without a value"
    elements = space.get_simple_extent_npoints()
    size = elements * kind.get_size()
    if size > schema.MAX_ATTRIBUTE_BYTES:
        return f"{size} bytes (limit {schema.MAX_ATTRIBUTE_BYTES})"
    if name == "DIMENSION_LIST":
        good = family == h5t.VLEN and elements <= schema.MAX_RANK
        return None if good and kind.get_super().get_class() == h5t.REFERENCE else "is not a list of dimension scales"
    if name == "REFERENCE_LIST":
        return None if family == h5t.COMPOUND and kind.get_nmembers() == 2 else "is not a list of references"
    if family == h5t.STRING:
        if kind.is_variable_str() and elements > schema.MAX_ATTRIBUTE_STRINGS:
            return f"{elements} strings (limit {schema.MAX_ATTRIBUTE_STRINGS})"
        return None
    number = family in (h5t.INTEGER, h5t.FLOAT) and kind.get_size() in (1, 2, 4, 8)
    if number or (family == h5t.ENUM and kind.get_size() == 1):
        return None
    return f"{describe_type(kind)} is not allowed; allowed: numbers and text"


def _dataset(state: _Walk, item: Any, path: str, *, in_root: bool) -> None:
    bare = in_root and _is_bare_dimension(item)
    kind, size = check_storage(item, path, state.file_size, state.findings, bare=bare)
    if not bare:
        state.declared += size
    if state.declared > schema.BIG_BYTES and state.declared > schema.MAX_EXPANSION * state.file_size:
        state.findings.add("S01", path, f"the file declares {state.declared} bytes but stores {state.file_size}")
        state.declared = 0
    if in_root and kind is not None:
        state.root[path], state.types[path] = item, kind
        if bare:
            state.bare.add(path)


def _is_bare_dimension(item: Any) -> bool:
    if not h5a.exists(item, b"NAME") or not h5a.exists(item, b"CLASS"):
        return False
    attribute = h5a.open(item, b"NAME")
    kind = attribute.get_type()
    if kind.get_class() != h5t.STRING or kind.is_variable_str() or kind.get_size() > 256:
        return False
    if attribute.get_space().get_simple_extent_type() != h5s.SCALAR:
        return False
    value = np.empty((), dtype=attribute.dtype)
    attribute.read(value)
    return bytes(value.item()).startswith(b"This is a netCDF dimension but not a netCDF variable")


def _describe(state: _Walk) -> Header:
    scales = {h5o.get_info(item).addr: name for name, item in state.root.items() if h5ds.is_scale(item)}
    sizes: dict[str, int] = {}
    labels: dict[str, tuple[str, ...]] = {}
    entries: dict[str, Entry] = {}
    file = h5py.File(state.handle)
    for name in scales.values():
        shape = state.root[name].shape
        if len(shape) != 1:
            state.findings.add("M02", name, "a dimension has one axis", value=shape)
            continue
        sizes[name] = int(shape[0])
        if name not in state.bare and state.types[name] == schema.TEXT:
            labels[name] = tuple(read_strings(file[name], name, state.findings))
    for name, item in state.root.items():
        if name in state.bare or name in labels:
            continue
        plist = item.get_create_plist()
        chunked = plist.get_layout() == h5d.CHUNKED
        entries[name] = Entry(
            dims=_dims(state, item, name, scales),
            shape=tuple(int(n) for n in item.shape),
            type=state.types[name],
            attributes=read_attributes(file[name]),
            chunks=tuple(plist.get_chunk()) if chunked else None,
            filters=tuple(plist.get_filter(i)[0] for i in range(plist.get_nfilters())),
        )
    return Header(read_attributes(file), sizes, labels, entries, tuple(state.groups))


def _dims(state: _Walk, item: Any, name: str, scales: dict[int, str]) -> tuple[str, ...]:
    if h5ds.is_scale(item) and item.rank == 1:
        return (name,)
    dims = []
    for axis in range(item.rank):
        found: list[int] = []
        if h5a.exists(item, b"DIMENSION_LIST") and h5ds.get_num_scales(item, axis):
            h5ds.iterate(item, axis, lambda scale, found=found: found.append(h5o.get_info(scale).addr))
        dim = next((scales[address] for address in found if address in scales), "")
        if not dim:
            state.findings.add(
                "M02", name, f"axis {axis} is attached to no dimension of the root group", cure="attach a scale to it"
            )
        dims.append(dim)
    return tuple(dims)


def read_strings(dataset: Any, name: str, findings: Findings) -> list[str]:
    """Strings read one by one, so that a few bytes repeated many times cannot fill the memory."""
    if dataset.size > schema.MAX_LABELS:
        findings.add("S01", name, f"{dataset.size} strings (limit {schema.MAX_LABELS})")
        return []
    out, total = [], 0
    for index in range(dataset.size):
        raw = dataset[index]
        total += len(raw)
        if total > schema.MAX_LABEL_BYTES:
            findings.add("S01", name, f"more than {schema.MAX_LABEL_BYTES} bytes of text")
            return []
        try:
            text = raw.decode() if isinstance(raw, bytes) else str(raw)
            if not text.isprintable():
                findings.add("M04", name, "a label cannot be printed", value=text, cure="use printable text")
            out.append(text)
        except UnicodeDecodeError:
            findings.add("M04", name, "a label is not UTF-8", value=clean(raw), cure="write it as UTF-8")
            out.append(clean(raw))
    return out


def read_attributes(item: Any) -> dict[str, Any]:
    """The attributes that carry meaning: text as str (bytes decoded), single numbers as int or float, others as arrays."""
    return {name: _plain(name, item.attrs[name]) for name in item.attrs if name not in _INTERNAL}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, h5py.Empty):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, np.ndarray) and value.dtype.kind in "OS" and value.size == 1:
        return _plain(name, value.reshape(-1)[0])
    if isinstance(value, np.ndarray) and value.dtype.kind in "OS":
        return " ".join(str(_plain(name, part)) for part in value.reshape(-1))
    if name == "_FillValue":
        return np.asarray(value)
    if isinstance(value, np.ndarray | np.generic) and value.size == 1 and name != "flag_values":
        return value.reshape(-1)[0].item()
    return value


def _good_name(raw: bytes) -> bool:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return False
    return len(raw) <= schema.MAX_NAME_BYTES and text.isprintable()


def strings_array(items: list[str]) -> Array:
    """Text as a one-dimensional object array."""
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out
