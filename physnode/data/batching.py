"""Trajectories of different length in one set of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from physnode.errors import InputError

if TYPE_CHECKING:
    from physnode.data.trajectories import Trajectory


class Batch(NamedTuple):
    """B trajectories padded at their end to T rows.

    ``t (B, T)`` float64: padding repeats the last time, so it does not increase there. ``y (B, T, dim)``: 0 in padding and
    where missing. ``mask (B, T, dim)``: True where a value was measured, False in padding. ``sigma (B, T, dim)`` or None: 1
    where ``mask`` is False. ``args``: each parameter with a leading B.
    """

    t: Tensor
    y: Tensor
    mask: Tensor
    sigma: Tensor | None
    args: dict[str, Tensor]


def collate(trajectories: Sequence[Trajectory]) -> Batch:
    """A `Batch` of the trajectories; pass it to ``DataLoader(..., collate_fn=collate)``.

    Raises InputError if there are none, one has no rows, or they do not hold the same variables and parameters.
    """
    items = list(trajectories)
    if not items:
        raise InputError("a batch needs at least one trajectory")
    first = items[0]
    for item in items:
        if len(item) == 0:
            raise InputError(f"trajectory {item.id} has no rows and cannot be batched; leave it out")
        if item.names != first.names or item.parameters.keys() != first.parameters.keys():
            raise InputError(f"trajectories {first.id} and {item.id} differ in their variables or parameters")
        if (item.sigma is None) != (first.sigma is None):
            raise InputError(f"of trajectories {first.id} and {item.id} only one has sigma; give it for both or none")
    rows = max(len(item) for item in items)
    return Batch(
        t=torch.stack([_extend(item.t, rows, item.t[-1].item()) for item in items]),
        y=torch.stack([_extend(item.y, rows, 0.0) for item in items]),
        mask=torch.stack([_extend(item.observed, rows, False) for item in items]),
        sigma=torch.stack([_extend(item.sigma, rows, 1.0) for item in items if item.sigma is not None])
        if first.sigma is not None
        else None,
        args={name: torch.stack([item.parameters[name] for item in items]) for name in first.parameters},
    )


def _extend(values: Tensor, rows: int, fill: float | bool) -> Tensor:
    out = values.new_full((rows, *values.shape[1:]), fill)
    out[: len(values)] = values
    return out
