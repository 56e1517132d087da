"""What a field reads beside its parameters and buffers: numbers and flags among its attributes, in closures and among globals,
tensors that are plain attributes, the functions themselves.

The code of a field holds these as they were when it was made. A call of the field at one point need not show that one of them
has changed (an amplitude whose sine is zero at the start), so they are looked at themselves.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["changed", "visible"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, np.generic)
_OF_MODULES = frozenset(vars(nn.Module())) - {"training"}
_DEPTH, _LENGTH = 6, 256
_LIBRARIES = ("torch", "physnode", "numpy", "math", "functools", "builtins", "collections", "typing")

Seen = dict[tuple[Any, ...], Any]


@dataclass(frozen=True)
class _Object:
    """An object, not kept alive, and how often it was written to."""

    at: weakref.ref[Any]
    version: int = 0

    def __eq__(self, other: object) -> bool:
        alive = self.at()
        return isinstance(other, _Object) and alive is not None and alive is other.at() and self.version == other.version


def visible(field: nn.Module) -> Seen:
    """Everything of that kind that ``field`` can read, by where it is found."""
    walk = _Walk()
    walk.look((), field, 0)
    return walk.found


def changed(before: Seen, now: Seen) -> list[tuple[Any, ...]]:
    """Where something else is found than before."""
    missing = object()
    return [path for path, value in before.items() if not _same(now.get(path, missing), value)]


def _same(now: Any, before: Any) -> bool:
    return now is before or (type(now) is type(before) and bool(now == before or (now != now and before != before)))


class _Walk:
    def __init__(self) -> None:
        self.found: Seen = {}
        self._met: dict[int, tuple[Any, ...]] = {}
        self._alive: list[Any] = []  # keeps ids from being used again

    def look(self, path: tuple[Any, ...], value: Any, depth: int) -> None:
        if isinstance(value, _PLAIN):
            self.found[path] = value
            return
        if isinstance(value, Tensor):
            live = value.is_floating_point() or value.is_inference()  # its values are read at each solve
            self.found[path] = _Object(weakref.ref(value), 0 if live else value._version)
            return
        if depth > _DEPTH or isinstance(value, types.ModuleType):
            return
        if isinstance(value, type) and _is_library(value.__module__):
            return
        if id(value) in self._met:
            self.found[path] = ("also", self._met[id(value)])
            return
        self._met[id(value)] = path
        self._alive.append(value)
        if isinstance(value, np.ndarray):
            self.found[path] = value.tobytes() if value.size <= _LENGTH else id(value)
        else:
            for name, part in self._parts(path, value):
                self.look((*path, name), part, depth + 1)

    def _parts(self, path: tuple[Any, ...], value: Any) -> Iterator[tuple[Any, Any]]:
        if isinstance(value, Mapping):
            yield from list(value.items())[:_LENGTH]
        elif isinstance(value, type):
            yield from _of_class(value, {})
        elif isinstance(value, list | tuple | set | frozenset):
            yield "length", len(value)
            yield from list(enumerate(value))[:_LENGTH]
        elif isinstance(value, nn.Module):
            yield from self._of_module(path, value)
        elif isinstance(value, types.FunctionType):
            self.found[(*path, "code")] = value.__code__
            yield from _of_function(value)
        elif isinstance(value, types.MethodType):
            yield from (("self", value.__self__), ("function", value.__func__))
        elif isinstance(value, functools.partial):
            yield from (("function", value.func), ("args", value.args), ("keywords", value.keywords))
        else:
            own = dict(list(getattr(value, "__dict__", {}).items())[:_LENGTH])
            slots = (name for kind in type(value).__mro__ for name in _slots(kind))
            own.update((name, getattr(value, name)) for name in slots if hasattr(value, name))
            # what a library makes for itself, a solve for example, is new each time: its parts tell
            by_parts = _is_library(type(value).__module__) and not callable(value)
            self.found[path] = type(value) if by_parts else _itself(value)
            yield from own.items()
            yield from _of_class(type(value), own)

    def _of_module(self, path: tuple[Any, ...], module: nn.Module) -> Iterator[tuple[Any, Any]]:
        self.found[path] = type(module)
        for name, value in module.__dict__.items():
            if name not in _OF_MODULES:
                yield name, value
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_floating_point():
                yield name, buffer
        yield from module._modules.items()
        yield from _of_class(type(module), module.__dict__)


def _itself(value: Any) -> Any:
    try:
        return _Object(weakref.ref(value))
    except TypeError:  # it cannot be referred to weakly
        return type(value), id(value)


def _of_class(kind: type, own: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Functions and constants of classes that a user has written, but for those that an object has of its ``own``."""
    for each in kind.__mro__:
        if not _is_library(each.__module__):
            for name, value in vars(each).items():
                value = getattr(value, "fget", getattr(value, "__func__", getattr(value, "func", value)))
                if isinstance(value, types.FunctionType):
                    yield (each.__qualname__, name), value
                elif name not in own and name[:2] != "__" and isinstance(value, (*_PLAIN, Tensor, list, tuple, dict)):
                    yield name, value


def _slots(kind: type) -> tuple[str, ...]:
    found = vars(kind).get("__slots__", ())
    return (found,) if isinstance(found, str) else tuple(found)


def _of_function(function: types.FunctionType) -> Iterator[tuple[Any, Any]]:
    if _is_library(function.__module__):
        return
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield "defaults", function.__defaults__ or ()
    yield "keywords", function.__kwdefaults__ or {}
    names = _names(function.__code__)
    for name in names:
        if name in function.__globals__:
            value = function.__globals__[name]
            yield ("global", name), value
            if isinstance(value, types.ModuleType) and not _is_library(value.__name__):
                yield from ((("module", name, part), vars(value)[part]) for part in names if part in vars(value))


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """The names that code reads, that of functions inside it too."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return tuple(dict.fromkeys((*code.co_names, *inner)))


def _is_library(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in _LIBRARIES
