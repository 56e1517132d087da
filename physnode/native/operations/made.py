"""What an operation is told of its result, and the table of all operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from physnode.native.expressions import Array, Graph, as_array

__all__ = ["OPERATIONS", "Made", "is_uniform", "register"]


class Made:
    """What an operation is told: the graph, and the dtype and shape that it makes."""

    def __init__(self, graph: Graph, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        self.graph, self.dtype, self.shape = graph, dtype, shape

    def array(self, value: Any, dtype: torch.dtype | None = None) -> Array:
        """A number or an array as an array of a dtype, by default the one that is made."""
        dtype = self.dtype if dtype is None else dtype
        if not isinstance(value, np.ndarray):
            return as_array([self.graph.const(value, dtype)], ())
        return self.graph.apply("cast", dtype, value) if any(n.dtype is not dtype for n in value.flat) else value

    def op(self, name: str, *values: Any, data: Any = None) -> Array:
        """An elementwise operation in the dtype that is made."""
        return self.graph.apply(name, self.dtype, *(self.array(value) for value in values), data=data)

    def compare(self, name: str, a: Any, b: Any) -> Array:
        """A comparison in the dtype that both sides share."""
        common = _common(a, b)
        return self.graph.apply(name, torch.bool, self.array(a, common), self.array(b, common))

    def fold(self, name: str, value: Array, axes: Sequence[int] | int | None, keep: bool) -> Array:
        """One number from all along some axes, added up (or the like) in their order."""
        value = self.array(value)
        chosen = _axes(axes, value.ndim)
        rest = [axis for axis in range(value.ndim) if axis not in chosen]
        flat = value.transpose(*rest, *chosen).reshape(*(value.shape[axis] for axis in rest), -1)
        if flat.shape[-1] == 0:
            total = self.array(0 if name == "add" else 1)
            total = np.broadcast_to(total, flat.shape[:-1])
        else:
            total = flat[..., 0]
        for place in range(1, flat.shape[-1]):
            total = self.op(name, total, flat[..., place])
        total = np.asarray(total, dtype=object)
        return np.expand_dims(total, tuple(chosen)) if keep else total


Operation = Callable[..., Any]
Kept = TypeVar("Kept", bound=Operation)
OPERATIONS: dict[str, Operation] = {}


def register(*names: str) -> Callable[[Kept], Kept]:
    """Let a function be the form of the operations of these names."""

    def keep(function: Kept) -> Kept:
        for name in names:
            OPERATIONS[name] = function
        return function

    return keep


def _common(*values: Any) -> torch.dtype:
    dtypes: list[torch.dtype] = [value.flat[0].dtype for value in values if isinstance(value, np.ndarray) and value.size]
    if not dtypes:
        return torch.float64
    found = dtypes[0]
    for dtype in dtypes[1:]:
        found = torch.promote_types(found, dtype)
    if not found.is_floating_point and any(isinstance(value, float) for value in values):
        return torch.float64
    return found


def _axes(axes: Sequence[int] | int | None, ndim: int) -> list[int]:
    if axes is None or (not isinstance(axes, int) and not len(axes)):
        return list(range(ndim))
    return sorted({axis % max(1, ndim) for axis in ([axes] if isinstance(axes, int) else axes)})


def is_uniform(a: Array) -> bool:
    """Whether all entries are the same for every trajectory."""
    return all(node.uniform for node in a.flat)
