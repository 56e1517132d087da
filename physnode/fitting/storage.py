"""Files of a run, written beside their place and moved there, so that a killed run leaves whole files only."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from physnode.errors import InputError

__all__ = ["FORMAT", "atomic", "read_json", "read_tensors", "write_json", "write_tensors"]

FORMAT = 1
"""Version of the layout of a run folder."""


def atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path``, and put it in its place once it is on the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One JSON object; no NaN, no infinity."""
    atomic(path, lambda part: part.write_text(json.dumps(content, indent=2, default=str, allow_nan=False) + "\n"))


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object. Raises InputError where it cannot be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a run's file: found {type(content).__name__}, needed an object")
    return content


def write_tensors(path: Path, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
    """Tensors as safetensors, with a note that travels in the same file."""
    text = {"note": json.dumps(note)}
    plain = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    atomic(path, lambda part: save_file(plain, part, metadata=text))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the note. Raises InputError where the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get("note", "{}"))
        return load_file(path), note
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} is damaged or missing: {error}") from error
