"""The only door to a trajectory file: what must be true before libhdf5 is asked to open it.

HDF5 can point at other files (external storage, links, virtual datasets), declare far more than it stores, and wait for
ever on a pipe. So a path is first looked at with ``stat``, then by its first eight bytes, and only then opened, read-only
and by path. `physnode.data.walk` inspects what is inside before any value is read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py

from physnode.data.findings import clean
from physnode.errors import DataError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_OTHERS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the data: run 'git lfs pull'"),
    (b"CDF\x01", "is netCDF-3: convert it with 'nccopy -k nc4 OLD NEW'"),
    (b"CDF\x02", "is netCDF-3: convert it with 'nccopy -k nc4 OLD NEW'"),
    (b"CDF\x05", "is netCDF-3 (64-bit data): convert it with 'nccopy -k nc4 OLD NEW'"),
    (b"PK\x03\x04", "is a zip archive: unpack it first"),
    (b"\x1f\x8b", "is gzip-compressed: run gunzip first"),
    (b"\x93NUMPY", "is a NumPy array: read it with numpy and use physnode.data.from_arrays"),
    (b"SIMPLE  =", "is a FITS file: read it with astropy and use physnode.data.from_arrays"),
)


def check_path(path: str | os.PathLike[str]) -> str:
    """The path as a string, if it names a regular file that begins as HDF5 does; raises DataError otherwise."""
    name = os.fspath(path)
    shown = clean(name, 400)
    try:
        found = os.stat(name)
    except FileNotFoundError:
        raise DataError(f"{shown}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{shown}: cannot be opened: {_reason(error)}") from None
    if stat.S_ISDIR(found.st_mode):
        raise DataError(f"{shown}: is a directory (Zarr data?); a trajectory file is one HDF5 file")
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{shown}: is not a regular file (a pipe, socket or device); copy it to a file first")
    if found.st_size == 0:
        raise DataError(f"{shown}: is empty (0 bytes): the download or the writer failed; get it again")
    try:
        with open(name, "rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {_reason(error)}") from None
    if not head.startswith(SIGNATURE):
        raise DataError(f"{shown}: {_what_else(head)}")
    return name


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, int]]:
    """(low-level h5py file id, file size in bytes), open read-only; raises DataError in one line if it cannot be."""
    name = check_path(path)
    try:
        handle = h5py.h5f.open(os.fsencode(name), h5py.h5f.ACC_RDONLY)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{clean(name, 400)}: {_in_words(str(error))}") from None
    try:
        yield handle, os.stat(name).st_size
    finally:
        h5py.File(handle).close()  # unlike the handle's own close, ends whatever is still open inside


def _what_else(head: bytes) -> str:
    for magic, message in _OTHERS:
        if head.startswith(magic):
            return message
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, not data: a download that asked for a login or failed"
    if SIGNATURE in head or (len(head) >= 512 and not head.strip(b"\0")):
        return "does not begin with the HDF5 signature (a user block or damage); such files are not allowed"
    if SIGNATURE.startswith(head):
        return "is cut off after a few bytes: interrupted download"
    text = all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head)
    return "is text, not HDF5; read a table with 'physnode data import'" if text else "is not an HDF5 file"


def _in_words(error: str) -> str:
    low = error.lower()
    if "truncated" in low or "eof" in low or "unable to read" in low or "bad" in low:
        return "is cut off or damaged: interrupted download or a writer that crashed; get it again"
    if "already open for write" in low or "consistency flags" in low:
        return "was left open by a writer that crashed; write it again"
    if "lock" in low:
        return "another process is writing it; wait until it has finished"
    return f"HDF5 cannot open it: {clean(error, 200)}"


def _reason(error: Exception) -> str:
    return clean(getattr(error, "strerror", None) or str(error))
