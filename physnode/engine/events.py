"""Events: when a trajectory meets a condition, each trajectory by itself.

A condition is a function g(t, y) whose sign changes. The step in which it does is made again to end there, and is then a record
like any other. What happens next, an end, a jump of the state, or nothing, is up to the event.

A condition that is zero where a trajectory starts, or where an event has just been, has the sign that it is about to have: a
ball that leaves the floor does not hit it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from physnode.engine.field_function import FieldFunction
from physnode.errors import InputError

__all__ = ["Event", "Watch"]


@dataclass(frozen=True)
class Event:
    """A condition that a trajectory may meet, and what happens then.

    Args:
        condition: g(t, y) or g(t, y, args) for ``t (*batch, 1)`` and ``y (*batch, dim)``, of shape ``(*batch,)`` or
            ``(*batch, 1)``; the event is where it changes sign.
        direction: +1 for crossings from negative to positive along the solve, -1 for the others, 0 for both.
        terminal: whether the trajectory ends there; its outputs are NaN from then on.
        jump: y = jump(t, y) or jump(t, y, args): the state from which the trajectory goes on. It needs ``terminal=False``.
        resolution: at how many points of a step the sign is looked at: two crossings between neighbouring points are missed.
            Methods without a continuous extension (splittings) look at the ends of their steps alone.
    """

    condition: Callable[..., Tensor]
    direction: int = 0
    terminal: bool = True
    jump: Callable[..., Tensor] | None = None
    resolution: int = 8

    def __post_init__(self) -> None:
        if not callable(self.condition):
            raise InputError(f"an event needs a condition g(t, y); found {self.condition!r}")
        if self.direction not in (-1, 0, 1):
            raise InputError(f"direction must be -1, 0 or 1; found {self.direction!r}")
        if self.jump is not None and self.terminal:
            raise InputError("an event that ends the trajectory cannot let its state jump; give terminal=False with a jump")
        if not isinstance(self.resolution, int) or self.resolution < 1:
            raise InputError(f"resolution must be a whole number of at least 1; found {self.resolution!r}")


class Watch:
    """The events of one solve, over a batch of trajectories."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = tuple(events)
        self.resolution = max(event.resolution for event in self.events)
        self.terminal = [event.terminal for event in self.events]
        self.jumps = any(event.jump is not None for event in self.events)

    @property
    def functions(self) -> list[Callable[..., Tensor]]:
        """Conditions and jumps, which may read tensors that need a gradient."""
        return [part for event in self.events for part in (event.condition, event.jump) if part is not None]

    def values(self, f: FieldFunction, t: Tensor, y: Tensor) -> Tensor:
        """All conditions at ``t`` ``(B,)`` and ``y`` ``(B, dim)``: ``(B, E)`` in y's dtype.

        Raises:
            InputError: a condition returns another shape.
        """
        found = []
        for number, event in enumerate(self.events):
            value = f.evaluate(event.condition, t, y)
            if not isinstance(value, Tensor) or tuple(value.shape) not in (f.batch, (*f.batch, 1)):
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InputError(
                    f"the condition of event {number} must return one number a trajectory, shape {f.batch} or {(*f.batch, 1)}; "
                    f"found {shape}"
                )
            if not value.dtype.is_floating_point:
                raise InputError(
                    f"the condition of event {number} must return real numbers whose sign changes; found {value.dtype}. "
                    "Return a difference, such as y[..., 0] - level"
                )
            found.append(value.reshape(len(y)))
        return torch.stack(found, dim=-1)

    def chosen(self, f: FieldFunction, event: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The condition of each trajectory's own ``event`` ``(B,)``, zero where it has none."""
        value = self.values(f, t, y).gather(-1, event.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return torch.where(event >= 0, value, 0.0)

    def after(self, f: FieldFunction, event: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The state with which each trajectory goes on after its ``event`` ``(B,)`` at ``t``, ``y``.

        Raises:
            InputError: a jump returns another shape.
        """
        following = y
        for number, own in enumerate(self.events):
            if own.jump is None or not bool((event == number).any()):
                continue
            moved = f.evaluate(own.jump, t, y)
            if not isinstance(moved, Tensor) or moved.shape != (*f.batch, y.shape[-1]) or moved.dtype != y.dtype:
                raise InputError(
                    f"the jump of event {number} must return a state of shape {(*f.batch, y.shape[-1])} and {y.dtype}; "
                    f"found {(tuple(moved.shape), moved.dtype) if isinstance(moved, Tensor) else type(moved).__name__}"
                )
            following = torch.where((event == number).unsqueeze(-1), moved.reshape(y.shape), following)
        return following

    def signs(self, f: FieldFunction, t: Tensor, y: Tensor, direction: Tensor, afresh: Tensor | None = None) -> Tensor:
        """The signs ``(B, E)`` from which crossings are counted, for trajectories that go on from ``t``, ``y``.

        Where a condition is zero, or ``afresh`` ``(B, E)`` since its event has just been, its sign is that of its rate along
        the motion in the ``direction`` ``(B,)`` of the solve: a ball that has just bounced is above the floor. Zero where that
        vanishes too: the first sign that is seen then counts.
        """
        now = torch.sign(self.values(f, t, y))
        unknown = (now == 0) if afresh is None else (now == 0) | afresh
        if bool(unknown.any()):
            now = torch.where(unknown, torch.sign(self._rates(f, t, y)) * direction.unsqueeze(-1).to(now.dtype), now)
        return torch.nan_to_num(now).to(torch.int8)

    def _rates(self, f: FieldFunction, t: Tensor, y: Tensor) -> Tensor:
        """dg/dt along the motion, ``(B, E)``."""
        slope = f(t, y)
        try:
            rates: Tensor = torch.func.jvp(
                lambda time, state: self.values(f, time, state), (t, y), (torch.ones_like(t), slope)
            )[1]
        except RuntimeError:  # a condition that forward mode does not see through
            step = 1e-7 * (1 + y.abs().amax(-1)) / (1 + slope.abs().amax(-1))
            moved = self.values(f, t + step.to(t.dtype), y + step.unsqueeze(-1) * slope)
            rates = (moved - self.values(f, t, y)) / step.unsqueeze(-1)
        return rates

    def ends(self, event: Tensor) -> Tensor:
        """Which of ``event`` ``(B,)`` are terminal."""
        terminal = torch.tensor([*self.terminal, False], device=event.device)
        return terminal[event]

    def crosses(self, before: Tensor, now: Tensor) -> Tensor:
        """Where a condition has gone over to the other sign in the direction that counts, ``(B, E)``."""
        changed = (before != 0) & (now == -before)
        for number, event in enumerate(self.events):
            if event.direction:
                changed[:, number] &= before[:, number] == -event.direction
        return changed
