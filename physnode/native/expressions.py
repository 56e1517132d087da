"""Scalar expressions with one number a trajectory: a graph in which equal expressions are one node.

A node is *uniform* if it is the same for all trajectories (parameters, and what is computed from them alone). Nodes that one
elementwise operation makes together form a *run*: code is emitted for them as a loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["Array", "Graph", "Node", "Unsupported", "as_array", "reached", "walk"]

_RUN = 16
"""Elements from which on an elementwise operation is a loop."""

Array = np.ndarray[Any, Any]
"""A tensor of one trajectory: an object array of nodes."""


class Unsupported(Exception):
    """Something that no native code can be made of; the message says what."""


class Node:
    """One number of a trajectory, or the vector that a matrix product or a call of the field gives."""

    __slots__ = ("args", "data", "dtype", "number", "op", "place", "run", "uniform")

    def __init__(self, op: str, args: tuple[Node, ...], data: Any, dtype: torch.dtype, uniform: bool, number: int) -> None:
        self.op, self.args, self.data, self.dtype, self.uniform, self.number = op, args, data, dtype, uniform, number
        self.run: int | None = None
        self.place = 0

    def __repr__(self) -> str:
        return f"n{self.number}:{self.op}{'' if self.data is None else self.data!r}"


_FOLD: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: -a,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "and": lambda a, b: bool(a and b),
    "or": lambda a, b: bool(a or b),
    "not": lambda a: not a,
}
"""Operations on constants that are carried out at once."""


class Graph:
    """Makes nodes; all that belong together are of one graph."""

    def __init__(self) -> None:
        self.runs: list[list[Node]] = []
        self.matrices: list[Array] = []
        """Uniform matrices ``(out, in)`` that take part in products."""
        self._known: dict[Any, Node] = {}
        self._matrix_of: dict[bytes, tuple[int, bool]] = {}
        self._count = 0

    @property
    def nodes(self) -> Iterable[Node]:
        """All nodes."""
        return self._known.values()

    def const(self, value: Any, dtype: torch.dtype) -> Node:
        """A constant."""
        value = bool(value) if dtype is torch.bool else (int(value) if not dtype.is_floating_point else float(value))
        key = (math.copysign(1.0, value), value) if value == value else "nan"
        return self._node("const", (), value, dtype, True, key)

    def inputs(self, name: str, shape: Sequence[int], dtype: torch.dtype, *, uniform: bool) -> Array:
        """The elements of an array that the code is given."""
        count = math.prod(shape)
        nodes = [self._node("input", (), (name, index), dtype, uniform) for index in range(count)]
        if not uniform:
            self.join(nodes)
        return as_array(nodes, shape)

    def make(self, op: str, dtype: torch.dtype, *args: Node, data: Any = None) -> Node:
        """The node of one operation, simplified where that loses nothing."""
        folded = self._simplified(op, dtype, args)
        return self._node(op, args, data, dtype, all(arg.uniform for arg in args)) if folded is None else folded

    def apply(self, op: str, dtype: torch.dtype, *arrays: Array, data: Any = None) -> Array:
        """One operation, element by element, over arrays that are broadcast."""
        spread = np.broadcast_arrays(*arrays)
        first = self._count
        nodes = [self.make(op, dtype, *args, data=data) for args in zip(*(array.ravel() for array in spread), strict=True)]
        if len(nodes) >= _RUN and all(node.number >= first for node in nodes):
            self.join(nodes)
        return as_array(nodes, spread[0].shape)

    def join(self, nodes: Sequence[Node]) -> None:
        """Let nodes that were made together be one run."""
        if len(nodes) < _RUN or len({node.number for node in nodes}) < len(nodes) or any(node.uniform for node in nodes):
            return
        if any(node.run is not None for node in nodes):
            return
        for place, node in enumerate(nodes):
            node.run, node.place = len(self.runs), place
        self.runs.append(list(nodes))

    def call(self, op: str, data: Any, outputs: int, dtype: torch.dtype, args: Iterable[Node]) -> Array:
        """A vector of ``outputs`` numbers from all ``args``: a call of the field, or a matrix product."""
        node = self._node(op, tuple(args), data, dtype, False)
        items = [self._node("item", (node,), place, dtype, False) for place in range(outputs)]
        self.join(items)
        return as_array(items, (outputs,))

    def product(self, matrix: Array, x: Sequence[Node], dtype: torch.dtype) -> Array:
        """``matrix @ x`` for a uniform ``matrix`` ``(out, in)``."""
        number, transposed = self._matrix(matrix)
        return self.call("linear", (number, transposed), len(matrix), dtype, x)

    def _matrix(self, matrix: Array) -> tuple[int, bool]:
        numbers = np.vectorize(lambda node: node.number, otypes=[np.int64])(matrix)
        key = repr(numbers.shape).encode() + numbers.tobytes()
        if key not in self._matrix_of:
            turned = np.ascontiguousarray(numbers.T)
            self._matrix_of[key] = (len(self.matrices), False)
            self._matrix_of.setdefault(repr(turned.shape).encode() + turned.tobytes(), (len(self.matrices), True))
            self.matrices.append(matrix)
        return self._matrix_of[key]

    def _node(self, op: str, args: tuple[Node, ...], data: Any, dtype: torch.dtype, uniform: bool, key: Any = None) -> Node:
        full = (op, tuple(arg.number for arg in args), data if key is None else key, dtype)
        found = self._known.get(full)
        if found is None:
            found = Node(op, args, data, dtype, uniform, self._count)
            self._known[full] = found
            self._count += 1
        return found

    def _simplified(self, op: str, dtype: torch.dtype, args: tuple[Node, ...]) -> Node | None:
        """A simpler node of the same value, if there is one."""
        if op == "cast" and args[0].dtype is dtype:
            return args[0]
        constant = [arg.data if arg.op == "const" else None for arg in args]
        if all(value is not None for value in constant):
            if op == "cast":
                return self.const(constant[0], dtype) if dtype is not torch.float32 else None
            if op in _FOLD and not (dtype is torch.float32 and op in ("add", "sub", "mul")):
                return self.const(_FOLD[op](*constant), dtype)
        if op == "where":
            if constant[0] is not None:
                return args[1] if constant[0] else args[2]
            return args[1] if args[1] is args[2] else None
        if op == "add":
            return args[1] if constant[0] == 0 else args[0] if constant[1] == 0 else None
        if op == "sub":
            return args[0] if constant[1] == 0 else None
        if op == "mul":
            return args[1] if constant[0] == 1 else args[0] if constant[1] == 1 else None
        if op == "div":
            return args[0] if constant[1] == 1 else None
        if op in ("and", "or"):
            unit = op == "and"
            for one, other in ((0, 1), (1, 0)):
                if constant[one] is not None:
                    return args[other] if bool(constant[one]) == unit else self.const(not unit, torch.bool)
            return args[0] if args[0] is args[1] else None
        if op == "not" and args[0].op == "not":
            return args[0].args[0]
        return None


def as_array(nodes: Sequence[Node], shape: Sequence[int]) -> Array:
    """Nodes as an object array of a shape."""
    out: Array = np.empty(len(nodes), dtype=object)
    out[:] = nodes
    return out.reshape(tuple(shape))


def walk(outputs: Iterable[Node]) -> list[Node]:
    """All nodes that ``outputs`` are made of, each after its arguments."""
    seen: set[int] = set()
    order: list[Node] = []
    waiting = [(node, False) for node in reversed(list(outputs))]
    while waiting:
        node, ready = waiting.pop()
        if ready:
            order.append(node)
        elif node.number not in seen:
            seen.add(node.number)
            waiting.append((node, True))
            waiting += [(arg, False) for arg in reversed(node.args) if arg.number not in seen]
    return order


def reached(outputs: Iterable[Node], ends: Callable[[Node], bool]) -> list[Node]:
    """All nodes on the way from ``outputs`` to those at which it ``ends``, these too, in the order in which they were made."""
    found: dict[int, Node] = {}
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node.number not in found:
            found[node.number] = node
            if not ends(node):
                waiting += node.args
    return sorted(found.values(), key=lambda node: node.number)
