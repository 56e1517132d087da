"""Vectors in two and three dimensions under the names that invariants, reports and files use."""

from __future__ import annotations

import torch
from torch import Tensor

from physnode.errors import InputError

__all__ = ["angular_momentum", "axes", "components", "length"]


def axes(dimensions: int) -> tuple[str, ...]:
    """The names of the axes. Raises InputError unless there are two or three."""
    if dimensions not in (2, 3):
        raise InputError(f"bodies move in 2 or 3 dimensions; found dimensions={dimensions!r}.")
    return ("x", "y", "z")[:dimensions]


def components(name: str, vector: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """``vector (..., d)`` as one entry a component, named ``name_x``, ``name_y``, ..."""
    return {f"{name}_{axis}": vector[..., i] for i, axis in enumerate(names)}


def length(vector: Tensor) -> Tensor:
    """|vector| over the last axis, which is kept with one entry."""
    norm: Tensor = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return norm


def angular_momentum(position: Tensor, velocity: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """r x v for ``(..., d)``: a single ``angular_momentum`` in the plane, three components in space."""
    if len(names) == 2:
        moment = position[..., 0] * velocity[..., 1] - position[..., 1] * velocity[..., 0]
        return {"angular_momentum": moment}
    return components("angular_momentum", torch.linalg.cross(position, velocity), names)
