"""What a field holds beside tensors: numbers, words and flags that a trace takes as they are.

Another fingerprint means another code. It holds the plain attributes of every module, and what the functions among them close
over, have as defaults, or read as globals. Functions that these call are not followed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from types import FunctionType, MethodType
from typing import Any

import numpy as np
from torch import nn

__all__ = ["fingerprint"]

_PLAIN = (int, float, complex, str, bytes, bool, type(None))
_MOST = 64
"""Entries up to which a list or an array is looked into."""


def fingerprint(field: nn.Module) -> Hashable:
    """The plain values of a field, in order."""
    found: list[Hashable] = []
    for module in field.modules():
        found.append(type(module).__qualname__)
        for name, value in module.__dict__.items():
            if name[0] != "_":
                found += [(name, part) for part in _parts(value)]
    return tuple(found)


def _parts(value: Any) -> Iterator[Hashable]:
    if isinstance(value, _PLAIN):
        yield type(value).__name__, value
    elif isinstance(value, np.generic):
        yield value.item()
    elif isinstance(value, np.ndarray):
        yield value.tobytes() if value.size <= _MOST else value.shape
    elif isinstance(value, list | tuple) and len(value) <= _MOST:
        for entry in value:
            yield from _parts(entry)
    elif isinstance(value, MethodType):
        yield from _of_function(value.__func__)
        for entry in getattr(value.__self__, "__dict__", {}).values():
            if not callable(entry):
                yield from _parts(entry)
    elif isinstance(value, FunctionType):
        yield from _of_function(value)


def _of_function(function: Any) -> Iterator[Hashable]:
    code = getattr(function, "__code__", None)
    if code is None:
        return
    yield code
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not bound yet
            continue
        if not callable(content):
            yield from _parts(content)
    for default in function.__defaults__ or ():
        yield from _parts(default)
    for name in code.co_names:
        content = function.__globals__.get(name)
        if isinstance(content, (*_PLAIN, list, tuple, np.ndarray)) and content is not None:
            yield name
            yield from _parts(content)
