"""How one HDF5 dataset is stored, checked before its shape is trusted or a value is read.

Layout first (external and virtual storage read other files), then filters, type, size and completeness.
"""

from __future__ import annotations

import math
from typing import Any

from h5py import h5d, h5s, h5t

from physnode.data import schema
from physnode.data.findings import Findings, clean

_STANDARD = {
    "<f4": (h5t.IEEE_F32LE, h5t.IEEE_F32BE),
    "<f8": (h5t.IEEE_F64LE, h5t.IEEE_F64BE),
    "|i1": (h5t.STD_I8LE, h5t.STD_I8BE),
    "<i2": (h5t.STD_I16LE, h5t.STD_I16BE),
    "<i4": (h5t.STD_I32LE, h5t.STD_I32BE),
    "<i8": (h5t.STD_I64LE, h5t.STD_I64BE),
    "|u1": (h5t.STD_U8LE, h5t.STD_U8BE),
    "<u2": (h5t.STD_U16LE, h5t.STD_U16BE),
    "<u4": (h5t.STD_U32LE, h5t.STD_U32BE),
}
_FAMILIES = {
    h5t.INTEGER: "integer",
    h5t.FLOAT: "floating-point",
    h5t.STRING: "fixed-length text",
    h5t.BITFIELD: "bit field",
    h5t.OPAQUE: "opaque",
    h5t.COMPOUND: "compound (or complex)",
    h5t.REFERENCE: "reference",
    h5t.ENUM: "enumeration",
    h5t.VLEN: "variable-length",
    h5t.ARRAY: "array",
}
_ALLOWED = "allowed: float32, float64, int8 to int64, uint8 to uint32, variable-length UTF-8 text"


def describe_type(kind: Any) -> str:
    """A data type in words."""
    return f"{8 * kind.get_size()}-bit {_FAMILIES.get(kind.get_class(), 'unknown')} data type"


def check_storage(item: Any, path: str, file_size: int, findings: Findings, *, bare: bool = False) -> tuple[str | None, int]:
    """(schema type, bytes declared) of an open dataset, or (None, 0) if it must not be read.

    ``bare`` marks a dimension without values: its shape is a number only, so nothing need be stored for it.
    """
    plist = item.get_create_plist()
    layout = plist.get_layout()
    if layout == h5d.VIRTUAL:
        findings.add("S01", path, "virtual dataset (reads other files) is not allowed", cure="copy the values in")
        return None, 0
    if plist.get_external_count():
        name = clean(plist.get_external(0)[0])
        findings.add("S01", path, f"external raw storage ({name}) is not allowed", cure="copy the values in")
        return None, 0
    if not _filters(plist, path, findings):
        return None, 0
    kind = _type(item.get_type(), path, findings)
    space = item.get_space()
    if space.get_simple_extent_type() == h5s.NULL:
        findings.add("M03", path, "has no value (null data space)", cure="store at least one value")
        return None, 0
    if item.rank > schema.MAX_RANK:
        findings.add("S01", path, f"{item.rank} axes (limit {schema.MAX_RANK})")
        return None, 0
    if kind is None:
        return None, 0
    declared = math.prod(item.shape) * _element_bytes(item)
    if bare:
        return kind, 0
    return (kind, declared) if _complete(item, plist, layout, path, declared, file_size, findings) else (None, 0)


def _element_bytes(item: Any) -> int:
    """Bytes of one element in the file; variable-length text is stored as a 16-byte pointer into a heap."""
    kind = item.get_type()
    return 16 if kind.get_class() == h5t.STRING else int(kind.get_size())


def _filters(plist: Any, path: str, findings: Findings) -> bool:
    codes = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
    names = ", ".join(schema.FILTERS.values())
    for code in codes:
        if code not in schema.FILTERS:
            findings.add("S01", path, f"filter {code} is not allowed; allowed: {names}", cure="store it uncompressed")
            return False
    if len(set(codes)) < len(codes):
        findings.add("S01", path, "a filter is applied twice", cure="store it uncompressed")
        return False
    return True


def _type(kind: Any, path: str, findings: Findings) -> str | None:
    if kind.committed():
        findings.add("S01", path, "committed data type is not allowed", cure=_ALLOWED)
        return None
    family = kind.get_class()
    if family == h5t.STRING:
        if kind.is_variable_str():
            return schema.TEXT
        findings.add("M04", path, "fixed-length text is not allowed", cure="write variable-length UTF-8 text")
        return None
    if family == h5t.ENUM and kind.get_size() == 1 and kind.get_nmembers() == 2 and kind.dtype.kind == "b":
        return schema.BOOL
    if family in (h5t.INTEGER, h5t.FLOAT):
        for name, standards in _STANDARD.items():
            if any(kind.equal(standard) for standard in standards):
                return name
    findings.add("M03", path, f"{describe_type(kind)} is not allowed; {_ALLOWED}")
    return None


def _complete(item: Any, plist: Any, layout: int, path: str, declared: int, file_size: int, findings: Findings) -> bool:
    """Whether all values are really stored (D06), checksums are not skipped (D07), and nothing explodes on reading."""
    stored = item.get_storage_size()
    if stored > file_size:
        findings.add("S01", path, f"claims {stored} stored bytes in a file of {file_size}")
        return False
    if declared > schema.BIG_BYTES and declared > schema.MAX_EXPANSION * stored:
        findings.add("D06", path, f"declares {declared:.3g} bytes but stores {stored}", cure="write it again")
        return False
    if layout != h5d.CHUNKED:
        if stored == declared:
            return True
        findings.add("D06", path, f"declares {declared} bytes but stores {stored}", cure="the writer crashed; redo it")
        return False
    chunk = plist.get_chunk()
    chunk_bytes = math.prod(chunk) * _element_bytes(item)
    if chunk_bytes > schema.MAX_CHUNK_BYTES:
        findings.add("S01", path, f"chunk of {chunk_bytes} bytes (limit {schema.MAX_CHUNK_BYTES})")
        return False
    expected = math.prod(-(-length // size) for length, size in zip(item.shape, chunk, strict=True))
    found = item.get_num_chunks()
    if found != expected:
        findings.add(
            "D06", path, f"{found} of {expected} chunks are stored; the others would read as zeros", cure="write it again"
        )
        return False
    masked: list[int] = []
    item.chunk_iter(lambda info: masked.append(info.filter_mask) if info.filter_mask else None)
    if masked:
        findings.add("D07", path, f"{len(masked)} chunks skip their checksum or filter", cure="write the file again")
        return False
    return True
