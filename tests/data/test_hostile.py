"""Files made to read other files, exhaust the machine or mislead a reader are refused before any value is read."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import physnode.data as data
from physnode.errors import DataError

Edit = Callable[[Callable[[h5py.File], object]], Path]


def refused(path: Path | str) -> str:
    """The one line with which open refuses; validate must agree and raise nothing."""
    with pytest.raises(DataError) as caught:
        data.open(path)
    with pytest.raises(DataError):
        data.info(path)
    assert not data.validate(path).ok
    assert not data.validate(path, quick=True).ok
    text = str(caught.value)
    assert text.isprintable()
    return text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "HTML page"),
        (b"\n\n<html>", "HTML page"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"CDF\x01rest", "nccopy -k nc4"),
        (b"CDF\x05rest", "netCDF-3"),
        (b"\x1f\x8brest", "gunzip"),
        (b"t,x\n0,1\n", "physnode data import"),
        (b"\x00\x01\x02" * 50, "not an HDF5 file"),
        (b"\x89HDF\r\n", "cut off"),
        (b"\x89HDF\r\n\x1a\n", "cut off"),
        (b"\0" * 512 + b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "signature"),
    ],
)
def test_what_is_no_hdf5_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(content)
    assert message in refused(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.h5")
    assert "is a directory" in refused(tmp_path)
    assert "cannot be opened" in refused("a\0b")
    assert "no such file" in refused(tmp_path / "\x1b[2J.h5")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    done = threading.Event()
    texts = []

    def attempt() -> None:
        texts.append(refused(tmp_path / "pipe.h5"))
        done.set()

    threading.Thread(target=attempt, daemon=True).start()
    assert done.wait(20)
    assert "not a regular file" in texts[0]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.99])
def test_a_file_cut_off_anywhere(sample_file: Path, share: float) -> None:
    content = sample_file.read_bytes()
    sample_file.write_bytes(content[: int(len(content) * share)])
    assert "cut off" in refused(sample_file)


def test_random_damage_never_escapes_as_another_error(sample_file: Path) -> None:
    content = sample_file.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(96, len(content), size=8):
            damaged[place] ^= 1 << int(rng.integers(8))
        sample_file.write_bytes(damaged)
        data.validate(sample_file)


def test_another_hdf5_file_is_told_from_a_broken_one(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = np.arange(3)
    report = data.validate(tmp_path / "x.h5")
    assert [item.rule for item in report.errors] == ["M01"]
    assert "not a physnode trajectory file" in refused(tmp_path / "x.h5")


def soft(file: h5py.File) -> None:
    file["link"] = h5py.SoftLink("/time")


def external(file: h5py.File) -> None:
    file["link"] = h5py.ExternalLink("/etc/passwd", "/x")


def deep_external(file: h5py.File) -> None:
    file.create_group("a/b")["link"] = h5py.ExternalLink("other.h5", "/x")


def external_storage(file: h5py.File) -> None:
    file.create_dataset("leak", shape=(8,), dtype="i1", external=[("/etc/hostname", 0, 8)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=(4,))
    file.create_virtual_dataset("leak", layout)


def alias(file: h5py.File) -> None:
    file["again"] = file["time"]


def cycle(file: h5py.File) -> None:
    group = file.create_group("a")
    group["up"] = file["/"]


def shape_bomb(file: h5py.File) -> None:
    file.create_dataset("bomb", shape=(10**12,), dtype="f8", chunks=(10**6,))


def chunk_bomb(file: h5py.File) -> None:
    file.create_dataset("bomb", data=np.zeros(10**7), chunks=(10**7,), compression="gzip")


def total_bomb(file: h5py.File) -> None:
    for name in range(20):
        bomb = file.create_dataset(f"bomb{name}", shape=(70 * 10**6,), dtype="i1", chunks=(7 * 10**6,), compression="gzip")
        chunk = zlib.compress(bytes(7 * 10**6), 9)
        for start in range(0, 70 * 10**6, 7 * 10**6):
            bomb.id.write_direct_chunk((start,), chunk)


def opaque(file: h5py.File) -> None:
    file["bomb"] = np.zeros(2, dtype="V4")


def references(file: h5py.File) -> None:
    file.create_dataset("bomb", data=[file["time"].ref], dtype=h5py.ref_dtype)


def committed(file: h5py.File) -> None:
    file["type"] = np.dtype("f8")


def crowd(file: h5py.File) -> None:
    for index in range(2100):
        file.create_group(f"g{index}")


def deep(file: h5py.File) -> None:
    file.create_group("a/b/c/d/e/f")


def many_attributes(file: h5py.File) -> None:
    for index in range(300):
        file["time"].attrs[f"a{index}"] = index


def big_attribute(file: h5py.File) -> None:
    file.attrs["a"] = np.zeros(600_000)


def compound_attribute(file: h5py.File) -> None:
    file.attrs["a"] = np.zeros(2, dtype=[("x", "f8")])


def many_labels(file: h5py.File) -> None:
    file.create_dataset("names", data=["x"] * 5000, dtype=h5py.string_dtype()).make_scale("names")


def long_labels(file: h5py.File) -> None:
    file.create_dataset("names", data=["x" * 1000] * 2000, dtype=h5py.string_dtype()).make_scale("names")


def escape_name(file: h5py.File) -> None:
    file["\x1b[2Jgone"] = 1.0


def long_name(file: h5py.File) -> None:
    file["x" * 200] = 1.0


def many_axes(file: h5py.File) -> None:
    file["x"] = np.zeros((1,) * 9)


def null(file: h5py.File) -> None:
    file["x"] = h5py.Empty("f8")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (soft, "soft link"),
        (external, "external link"),
        (deep_external, "external link"),
        (external_storage, "external raw storage (/etc/hostname)"),
        (virtual, "virtual dataset"),
        (alias, "linked twice"),
        (cycle, "linked twice"),
        (shape_bomb, "declares 8e+12 bytes"),
        (chunk_bomb, "chunk of 80000000 bytes"),
        (total_bomb, "the file declares"),
        (opaque, "opaque"),
        (references, "reference"),
        (committed, "committed"),
        (crowd, "limit 2000"),
        (deep, "nested deeper"),
        (many_attributes, "limit 256"),
        (big_attribute, "limit 4194304"),
        (compound_attribute, "compound"),
        (many_labels, "limit 4096"),
        (long_labels, "more than 1048576 bytes"),
        (escape_name, "unprintable"),
        (long_name, "too long name"),
        (many_axes, "9 axes"),
        (null, "null data space"),
    ],
)
def test_a_hostile_object_is_refused(edit: Edit, action: Callable[[h5py.File], object], message: str) -> None:
    assert message in refused(edit(action))


def test_text_from_a_file_cannot_reach_the_terminal(edit: Edit) -> None:
    def hostile(file: h5py.File) -> None:
        file.attrs["schema"] = "\x1b]0;owned\x07" + "x" * 5000

    path = edit(hostile)
    text = refused(path)
    assert "\\x1b" in text
    assert len(text) < 700
    assert "\x1b" not in str(data.validate(path))


def test_text_of_a_valid_file_is_shown_escaped(edit: Edit, tmp_path: Path) -> None:
    def title(file: h5py.File) -> None:
        file.attrs["title"] = "\x1b[2Jgone\nsecond"
        file.attrs["comment"] = np.bytes_(b"caf\xe9")

    path = edit(title)
    found = data.open(path)
    assert "\x1b" not in repr(found)
    assert "\x1b" not in data.info(path)["title"]
    report = data.validate(path)
    assert [(item.rule, item.severity) for item in report.findings] == [("M10", "warning")]
    assert data.info(data.write(tmp_path / "copy.h5", found))["attributes"]["comment"] == "caf\\xe9"


def test_a_label_must_be_printable(edit: Edit) -> None:
    path = edit(lambda file: file["body"].__setitem__(0, "\x1b[2J"))
    assert "a label cannot be printed" in refused(path)


def test_a_file_that_is_open_elsewhere_can_be_read_and_stays_open(sample_file: Path) -> None:
    with h5py.File(sample_file) as file:
        values = file["time"]
        assert len(data.open(sample_file)) == 3
        assert values[...].shape == (312,)
    with pytest.raises(DataError):
        data.open(sample_file.parent)
    with h5py.File(sample_file, "r+") as file:
        assert "time" in file
