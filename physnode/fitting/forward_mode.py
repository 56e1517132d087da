"""Jacobians column by column in forward mode, a bounded number of tangents at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["forward_jacobians"]


def forward_jacobians(function: Callable[[Tensor], tuple[Tensor, ...]], point: Tensor, chunk: int) -> tuple[Tensor, ...]:
    """d function / d point for each output, shape ``(*output, n)``; ``chunk`` tangents are alive at once."""

    def along(direction: Tensor) -> tuple[Tensor, ...]:
        change: tuple[Tensor, ...] = torch.func.jvp(function, (point,), (direction,))[1]
        return change

    bases = torch.split(torch.eye(len(point), dtype=point.dtype), max(1, chunk))
    columns = [torch.func.vmap(along)(basis) for basis in bases]
    return tuple(torch.cat(parts).movedim(0, -1) for parts in zip(*columns, strict=True))
