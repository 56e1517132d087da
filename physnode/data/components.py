"""From the names of state components to variables with axes: ``position[0,x]`` is an entry of ``position``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from physnode.errors import InputError

__all__ = ["Group", "grouped"]

_COMPONENT = re.compile(r"([^\[\]]+)(?:\[([^\[\]]+)\])?")
_SPACE = {"x", "y", "z"}


@dataclass(frozen=True)
class Group:
    """One variable of the state: which columns it takes, and what lies along its axes."""

    name: str
    first: int
    """Column of its first component."""
    axes: dict[str, tuple[str, ...]]
    """Name and labels of each axis; empty for a scalar."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return tuple(len(labels) for labels in self.axes.values())

    @property
    def size(self) -> int:
        """Number of components."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    def of(self, y: Tensor) -> Any:
        """This variable's part of states ``y (..., dim)``, as an array ``(..., *shape)``."""
        part = y[..., self.first : self.first + self.size]
        return part.reshape(*y.shape[:-1], *self.shape).detach().cpu().numpy()


def grouped(names: Sequence[str]) -> list[Group]:
    """The variables that component names speak of, in order.

    ``angle`` is a scalar; ``position[x], position[y]`` a variable with one axis; ``position[0,x], position[0,y], ...`` one with
    two, in C order. An axis of labels among x, y, z is called ``space``, another ``body`` if ``space`` follows it, else
    ``component``.

    Raises:
        InputError: a name is not of this form, a variable appears twice, or its labels do not fill a grid in order.
    """
    parts: list[tuple[str, tuple[str, ...]]] = []
    for name in names:
        found = _COMPONENT.fullmatch(name)
        if found is None:
            raise InputError(f"'{name}' cannot name a component of a state; write such as angle, position[x] or position[0,x]")
        labels = tuple(part.strip() for part in found[2].split(",")) if found[2] else ()
        parts.append((found[1].strip(), labels))
    groups: list[Group] = []
    position = 0
    for head, run in itertools.groupby(parts, key=lambda part: part[0]):
        own = [item[1] for item in run]
        if any(group.name == head for group in groups):
            raise InputError(f"the components of '{head}' are not side by side; found {', '.join(names[:12])}")
        groups.append(Group(head, position, _axes(head, own)))
        position += len(own)
    return groups


def _axes(head: str, labels: list[tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    rank = len(labels[0])
    if any(len(item) != rank for item in labels) or (rank == 0 and len(labels) > 1):
        raise InputError(f"the components of '{head}' need as many labels each, and different ones")
    along = [tuple(dict.fromkeys(item[axis] for item in labels)) for axis in range(rank)]
    if list(itertools.product(*along)) != labels:
        raise InputError(f"the labels of '{head}' do not fill a grid in order, last label fastest; found {labels[:6]}")
    spatial = [set(values) <= _SPACE for values in along]
    names: list[str] = []
    for axis in range(rank):
        name = "space" if spatial[axis] else "body" if axis + 1 < rank and spatial[axis + 1] else f"{head}_component"
        names.append(name if name not in names else f"{head}_axis{axis}")
    return dict(zip(names, along, strict=True))
