"""The states that the steps of a solve started from, from the last to the first, those made again that were not kept."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from physnode.engine.loop import compensated
from physnode.gradients.replay import Replay

__all__ = ["starts_backward"]


def starts_backward(replay: Replay) -> Iterator[tuple[int, Tensor, tuple[Tensor, ...]]]:
    """Each slot from the last to the first, with its state ``(B, dim)`` and the field's values in it that were kept.

    A state that was not kept is made again from the last kept one before it, and others on the way are put into the places of
    those that have been used.
    """
    states = replay.records.y
    for slot in reversed(range(replay.records.slots)):
        if not states.has(slot):
            _make_again(replay, slot)
        yield slot, states.state(slot), states.values(slot)
        states.release(slot)


def _make_again(replay: Replay, slot: int) -> None:
    states = replay.records.y
    at = states.last_until(slot)
    replay.cost.add(0, slot - at)
    y, carry = states.state(at), None
    lost = torch.zeros_like(y)
    with torch.no_grad():
        while at < slot:
            active = replay.records.active(at).unsqueeze(-1)
            start = torch.where(active, y, states.safe)
            end, lost, carry = _following(replay, at, start, lost, carry)
            y, at = torch.where(active, end, y), at + 1
            states.put(at, y)


def _following(
    replay: Replay, slot: int, y: Tensor, lost: Tensor, carry: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The state that a recorded step leads to, as the solve made it, but for the rounding of the state it was made from.

    What rounding cuts off is carried along from there.
    """
    t, t_end = replay.records.t[slot], replay.records.t_end[slot]
    f = replay.f.on_step(t, t_end)
    if replay.starts_afresh(slot) or replay.events is not None:
        carry = None
    step, lost = compensated(replay.method.step(f, t, t_end, y, carry), y, lost)
    if replay.events is None or replay.records.event is None:
        return step.y, lost, step.carry
    after = replay.events.watch.after(f, replay.records.event[slot], t_end, step.y)
    return after, torch.where((after != step.y).any(-1, keepdim=True), 0.0, lost), None
