"""A solve seen through ``torch.func.vmap``: a mapped axis is one more batch axis of the engine.

Trajectories do not see each other, so the search for steps can run on plain tensors that carry the mapped axes in front of
the batch. Only the field is called inside the transforms, on one mapped slice as its author wrote it, so tensors that it
closes over are found there with all that ``vmap``, ``grad`` and ``jvp`` know about them. The accepted steps are then made
again inside the transforms too, without a branch on data, which is what a derivative is taken of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from physnode.engine.field_function import FieldFunction
from physnode.engine.readout import interpolate, restep_ranks
from physnode.errors import GradientError
from physnode.gradients.replay import Replay
from physnode.torch_internals import (
    inside_transforms,
    is_mapped,
    is_wrapped,
    map_axis,
    mapped_axis,
    outside_transforms,
    unwrapped,
)

__all__ = ["Axes", "bottom", "make_again", "wants_gradient"]


@dataclass(frozen=True)
class Axes:
    """The mapped axes of a solve, from the outermost ``vmap`` to the innermost, and the transforms around it."""

    levels: tuple[int, ...]
    sizes: tuple[int, ...]
    stack: list[Any]

    @classmethod
    def of(cls, values: Sequence[Tensor], stack: list[Any]) -> Axes:
        """Those along which any of ``values`` is mapped; to be called outside transforms."""
        found: dict[int, int] = {}
        for value in values:
            plain, levels = _peeled(value)
            found.update(zip(levels, plain.shape, strict=False))
        levels = sorted(found)
        return cls(tuple(levels), tuple(found[level] for level in levels), stack)

    def inside(self, plain: Tensor) -> Tensor:
        """What a transformed function sees of ``plain`` ``(*sizes, ...)``."""
        for level in self.levels:
            plain = map_axis(plain, level)
        return plain

    def plain(self, value: Tensor) -> Tensor:
        """``(*sizes, ...)`` of what a transformed function sees as ``value``; to be called outside transforms.

        Raises:
            GradientError: ``value`` is mapped along an axis that is none of the solve's.
        """
        plain, levels = _peeled(value)
        if not set(levels) <= set(self.levels):
            raise GradientError(
                "the field reads a tensor that torch.func.vmap maps and that its first call did not read; read it at every "
                "call (with torch.where instead of an if)"
            )
        for axis, (level, size) in enumerate(zip(self.levels, self.sizes, strict=True)):
            if level not in levels:
                plain = plain.unsqueeze(axis).expand(*plain.shape[:axis], size, *plain.shape[axis:])
        return plain

    def maps(self, value: Tensor) -> bool:
        """Whether ``value`` is mapped along any of them."""
        return bool(_peeled(value)[1])

    @contextmanager
    def transforms(self) -> Iterator[None]:
        """The transforms are at work again within the context."""
        with inside_transforms(self.stack):
            yield


def bottom(value: Tensor) -> Tensor:
    """The plain tensor beneath all wrappers of ``value``."""
    return _peeled(value)[0]


def wants_gradient(value: Tensor) -> bool:
    """Whether reverse mode follows ``value`` at any level."""
    if value.requires_grad:
        return True
    return is_wrapped(value) and wants_gradient(unwrapped(value))


def _peeled(value: Tensor) -> tuple[Tensor, list[int]]:
    """The plain tensor beneath all wrappers, mapped axes in front, and the levels of these axes in ascending order."""
    if is_mapped(value):
        inner, axis, level = mapped_axis(value)
        plain, levels = _peeled(inner)
        return plain.movedim(axis + len(levels), len(levels)), [*levels, level]
    if is_wrapped(value):
        return _peeled(unwrapped(value))
    return value, []


class _Slot(NamedTuple):
    """One slot of the records as the transformed function sees it."""

    t: Tensor
    t_end: Tensor
    y: Tensor
    active: Tensor | None
    """None where all trajectories make a step."""
    afresh: bool
    fractions: list[Tensor]
    """For each round of outputs inside the slot, the fraction of the step at which each trajectory has one, ``(B,)``."""
    inner: bool
    """Whether an output lies before the step's end."""


class _Plan(NamedTuple):
    slots: list[_Slot]
    made_in: Tensor
    """In which round the value of an output is made, ``(B, T)``."""
    at_start: Tensor
    """``(B, T)`` bool."""
    good: Tensor
    """Outputs that were reached by trajectories that are well, ``(B, T)`` bool."""


def make_again(replays: Sequence[Replay], f: FieldFunction, y0: Tensor, axes: Axes) -> tuple[Tensor, Tensor]:
    """The outputs ``(B, T, dim)`` of the recorded steps, made again from ``y0`` ``(B, dim)`` as the transforms see it.

    Args:
        replays: the records of each way of the solve, over all mapped trajectories.
        f: the field as the transforms see it.
        y0: the start.
        axes: the mapped axes.

    Returns:
        The values, and which of them are good, ``(B, T)`` bool; the others mean nothing.
    """
    with outside_transforms():
        plans = [_planned(replay.without_failures(), len(y0), axes) for replay in replays]
    values, good = _one_way(replays[0], plans[0], f, y0), plans[0].good
    for replay, plan in zip(replays[1:], plans[1:], strict=True):
        mine = ~plan.at_start
        values = torch.where(mine.unsqueeze(-1), _one_way(replay, plan, f, y0), values)
        good = torch.where(mine, plan.good, good)
    return values, good


def _planned(replay: Replay, rows: int, axes: Axes) -> _Plan:
    def seen(plain: Tensor) -> Tensor:
        return axes.inside(plain.reshape(*axes.sizes, rows, *plain.shape[1:]))

    records, plan = replay.records, replay.plan
    slots, rounds = [], 0
    index = torch.zeros(replay.times.shape, dtype=torch.int64, device=replay.times.device)
    good = replay.at_start.clone()
    for slot in range(records.slots):
        here = plan.within(slot)
        owners, columns, fractions = plan.rows[here], plan.columns[here], plan.fractions[here]
        found = []
        for entries, whose in restep_ranks(owners):
            found.append(seen(torch.ones_like(records.t[slot]).index_put((whose,), fractions[entries])))
            index[whose, columns[entries]] = rounds
            good[whose, columns[entries]] = True
            rounds += 1
        active = records.active(slot)
        resting = not bool(active.all())
        slots.append(
            _Slot(
                seen(records.t[slot]),
                seen(records.t_end[slot]),
                seen(records.y.safe),
                seen(active) if resting else None,
                resting or replay.starts_afresh(slot),
                found,
                bool((fractions != 1.0).any()),
            )
        )
    return _Plan(slots, seen(index), seen(replay.at_start), seen(good & replay.ok.unsqueeze(-1)))


def _one_way(replay: Replay, plan: _Plan, f: FieldFunction, y0: Tensor) -> Tensor:
    method, y, carry = replay.method, y0, None
    made: list[Tensor] = []
    for slot in plan.slots:
        start = y if slot.active is None else torch.where(slot.active.unsqueeze(-1), y, slot.y)
        carry = None if slot.afresh else carry
        g = f.on_step(slot.t, slot.t_end)
        step = method.step(g, slot.t, slot.t_end, start, carry)
        smooth = slot.inner and replay.read_out == "interpolate"
        stages = method.extend(g, slot.t, slot.t_end, start, step.stages) if smooth else ()
        h = (slot.t_end - slot.t).to(y.dtype).unsqueeze(-1)
        for fraction in slot.fractions:
            value = step.y
            if smooth:
                weights = [weight.to(y.dtype) for weight in method.output_weights(fraction)]
                value = interpolate(weights, h, start, stages)
            elif slot.inner:
                value = method.step(g, slot.t, slot.t + fraction * (slot.t_end - slot.t), start, carry).y
            made.append(torch.where((fraction == 1.0).unsqueeze(-1), step.y, value))
        y, carry = step.y if slot.active is None else torch.where(slot.active.unsqueeze(-1), step.y, y), step.carry
    first = y0.unsqueeze(1)
    if not made:
        return first.expand(*plan.made_in.shape, y0.shape[-1])
    where = plan.made_in.unsqueeze(-1).expand(*plan.made_in.shape, y0.shape[-1])
    return torch.where(plan.at_start.unsqueeze(-1), first, torch.stack(made, 1).gather(1, where))
