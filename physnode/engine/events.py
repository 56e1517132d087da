"""Events: when a trajectory meets a condition, each trajectory by itself.

A condition is a function g(t, y) whose sign changes. After an accepted step its sign is compared at points along the step, the
first crossing is bracketed and located on the method's continuous extension, and the step is then made again to end on it: so
the state at the event has the method's full order, whatever the order of the extension, and the step is a record like any
other. What happens next, an end, a jump of the state, or nothing, is up to the event.

A condition that is zero where a trajectory starts, or where an event has just been, has no sign there: its first sign
afterwards is what later ones are compared with, so that a ball on the floor does not hit the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from physnode.engine.families.base import Method, Step
from physnode.engine.field_function import FieldFunction
from physnode.engine.readout import interpolate
from physnode.errors import InputError

__all__ = ["Event", "Found", "Watch"]

_EARLY = 1e-5
"""Where in a step a condition that starts at zero shows its sign."""
_BRACKET_ROUNDS = 60
_CLOSE = 1e-14
_POLISH_ROUNDS = 4


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
        if self.resolution < 1:
            raise InputError(f"resolution must be at least 1; found {self.resolution!r}")


class Found(NamedTuple):
    """What was found in one trial."""

    t_end: Tensor
    """Where the steps end, ``(B,)``: on their first event if they have one."""
    step: Step
    """The steps made again to end there."""
    event: Tensor
    """Which event, ``(B,)``; -1 for none."""
    spent: Tensor
    """Field evaluations that this took, ``(B,)``."""


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
            if not isinstance(moved, Tensor) or moved.shape != (*f.batch, y.shape[-1]):
                raise InputError(
                    f"the jump of event {number} must return a state of shape {(*f.batch, y.shape[-1])}; "
                    f"found {tuple(moved.shape) if isinstance(moved, Tensor) else type(moved).__name__}"
                )
            following = torch.where((event == number).unsqueeze(-1), moved.reshape(y.shape), following)
        return following

    def start(self, f: FieldFunction, t: Tensor, y: Tensor) -> Tensor:
        """The signs ``(B, E)`` from which crossings are counted; zero where there is none yet."""
        return torch.sign(self.values(f, t, y)).to(torch.int8)

    def search(
        self,
        f: FieldFunction,
        method: Method,
        t: Tensor,
        t_end: Tensor,
        y: Tensor,
        carry: Tensor | None,
        step: Step,
        accept: Tensor,
        signs: Tensor,
    ) -> tuple[Found, Tensor]:
        """Look for the first event of each accepted step; returns what was found, and the signs at the steps' ends."""
        read = _Reader(f, method, t, t_end, y, carry, step)
        points = [1.0]
        if read.smooth:
            points = [_EARLY, *(k / self.resolution for k in range(1, self.resolution)), 1.0]
        before, crossing = signs, torch.zeros_like(signs, dtype=torch.bool)
        low, high = torch.zeros_like(signs, dtype=t.dtype), torch.ones_like(signs, dtype=t.dtype)
        previous = 0.0
        for point, (time, state) in zip(points, read.along(points), strict=True):
            now = torch.sign(self.values(f, time, state)).to(torch.int8)
            here = self._crosses(before, now) & ~crossing & accept.unsqueeze(-1)
            low, high = torch.where(here, previous, low), torch.where(here, point, high)
            crossing = crossing | here
            before = torch.where((now != 0) & ~crossing, now, before)
            previous = point
        spent = torch.zeros_like(accept, dtype=torch.int64) + read.spent * accept
        none = torch.full_like(signs[:, 0], -1, dtype=torch.int64)
        if not bool(crossing.any()):
            return Found(t_end, step, none, spent), torch.where(accept.unsqueeze(-1), before, signs)
        roots = self._locate(f, read, signs, crossing, low, high)
        first, which = roots.min(dim=-1)
        event = torch.where(torch.isfinite(first), which, none)
        t_event, found, rounds = self._polish(f, method, t, t_end, y, carry, read, event, first)
        spent = torch.zeros_like(spent) + accept * (read.spent + rounds * method.evaluations)
        # conditions that crossed earlier keep their new sign, the event's own starts afresh, later ones wait
        at_event = torch.sign(self.values(f, t_event, found.y)).to(torch.int8)
        # what had no sign at the start has none yet, if the event came at once: two events at one time
        at_event = torch.where((signs == 0) & (first < _EARLY).unsqueeze(-1), 0, at_event)
        met = torch.nn.functional.one_hot(event.clamp(min=0), len(self.events)).bool() & (event >= 0).unsqueeze(-1)
        signs_event = torch.where(met, 0, torch.where(crossing | (at_event == 0), before, at_event))
        after = torch.where((event >= 0).unsqueeze(-1), signs_event, before).to(torch.int8)
        return Found(t_event, found, event, spent), torch.where(accept.unsqueeze(-1), after, signs)

    def _crosses(self, before: Tensor, now: Tensor) -> Tensor:
        """Where a condition has left its sign in the direction that counts."""
        changed = (before != 0) & (now != before)
        for number, event in enumerate(self.events):
            if event.direction:
                changed[:, number] &= before[:, number] == -event.direction
        return changed

    def _locate(self, f: FieldFunction, read: _Reader, signs: Tensor, crossing: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The fraction of the step at which each crossing lies, ``(B, E)``; infinite where there is none."""
        roots = torch.full(signs.shape, torch.inf, dtype=torch.float64, device=signs.device)
        for number in range(len(self.events)):
            rows = crossing[:, number]
            if not bool(rows.any()):
                continue

            def value(fraction: Tensor, number: int = number) -> Tensor:
                return self.values(f, *read(fraction))[:, number].to(torch.float64)

            a, b = low[:, number], high[:, number]
            ga, gb = value(a), value(b)
            sign = torch.where(gb != 0, -torch.sign(gb), signs[:, number].to(ga.dtype))  # the sign on a's side
            settled = torch.sign(ga) != sign  # no sign at a yet: that is the root
            root = torch.where(settled, a, bracketed_root(value, a, b, ga, gb, rows & ~settled))
            roots[:, number] = torch.where(rows, root, torch.inf)
        return roots

    def _polish(
        self,
        f: FieldFunction,
        method: Method,
        t: Tensor,
        t_end: Tensor,
        y: Tensor,
        carry: Tensor | None,
        read: _Reader,
        event: Tensor,
        fraction: Tensor,
    ) -> tuple[Tensor, Step, int]:
        """Steps that end on the event: the extension's root, corrected by the condition's own value at the step's end."""
        meets = event >= 0
        at = torch.where(meets, fraction, 1.0)
        width = torch.where(at + 1e-4 <= 1, 1e-4, -1e-4)
        length = t_end - t
        slope = self.chosen(f, event, *read(at + width)) - self.chosen(f, event, *read(at))
        slope = (slope.to(torch.float64) / width) / torch.where(length != 0, length, 1.0)
        forward = t_end >= t
        low, high = torch.where(forward, t, t_end), torch.where(forward, t_end, t)
        end = torch.where(meets, torch.minimum(torch.maximum(t + at * length, low), high), t_end)
        step = method.step(f, t, end, y, carry)
        rounds = 1
        while rounds < _POLISH_ROUNDS:
            miss = self.chosen(f, event, end, step.y).to(torch.float64)
            shift = torch.where(meets & (slope != 0), -miss / torch.where(slope != 0, slope, 1.0), 0.0)
            shift = torch.where(torch.isfinite(shift), shift, 0.0)
            if not bool((shift.abs() > 2 * torch.finfo(torch.float64).eps * end.abs()).any()):
                break
            end = torch.minimum(torch.maximum(end + shift, low), high)
            step = method.step(f, t, end, y, carry)
            rounds += 1
        return end, step, rounds


class _Reader:
    """States along a trial, by the continuous extension, or by steps of their own where there is none."""

    def __init__(
        self, f: FieldFunction, method: Method, t: Tensor, t_end: Tensor, y: Tensor, carry: Tensor | None, step: Step
    ) -> None:
        self.f, self.method, self.t, self.t_end, self.y, self.carry, self.step = f, method, t, t_end, y, carry, step
        self.smooth = method.extension_order is not None
        self.stages = method.extend(f, t, t_end, y, step.stages) if self.smooth else ()
        self.spent = method.extra_evaluations if self.smooth else 0
        self.h = (t_end - t).to(y.dtype).unsqueeze(-1)

    def along(self, points: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """Times and states at fractions of the step that all trajectories share; the last is the end itself."""
        end = (self.t_end, self.step.y)
        if len(points) == 1:
            return [end]
        table = _weights(self.method, tuple(points[:-1]))
        weights = torch.as_tensor(table, dtype=self.y.dtype, device=self.y.device)
        states = self.y + self.h * torch.tensordot(weights, torch.stack(self.stages), 1)
        span = self.t_end - self.t
        return [*((self.t + point * span, state) for point, state in zip(points, states, strict=False)), end]

    def __call__(self, fraction: Tensor) -> tuple[Tensor, Tensor]:
        """Time ``(B,)`` and state ``(B, dim)`` at a fraction ``(B,)`` of the step."""
        if bool((fraction == 1.0).all()):
            return self.t_end, self.step.y
        if self.smooth:
            weights = [weight.to(self.y.dtype) for weight in self.method.output_weights(fraction)]
            return self.t + fraction * (self.t_end - self.t), interpolate(weights, self.h, self.y, self.stages)
        end = self.t + fraction * (self.t_end - self.t)
        self.spent += self.method.evaluations
        return end, self.method.step(self.f, self.t, end, self.y, self.carry).y


@lru_cache(maxsize=256)
def _weights(method: Method, points: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """b_i(θ) at fixed points θ: one row a point, one entry a stage."""
    columns = method.output_weights(torch.tensor(points, dtype=torch.float64))
    return tuple(zip(*(column.tolist() for column in columns), strict=True))


def bracketed_root(value: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, ga: Tensor, gb: Tensor, wanted: Tensor) -> Tensor:
    """A root of ``value`` between ``a`` and ``b`` for each entry ``wanted``, where ``ga`` and ``gb`` differ in sign.

    Inverse quadratic interpolation where it is safe, else bisection: Chandrupatla, Advances in Engineering Software 28 (1997).
    """
    c, gc, part = a, ga, torch.full_like(a, 0.5)
    best = torch.where(ga.abs() < gb.abs(), a, b)
    for _ in range(_BRACKET_ROUNDS):
        wanted = wanted & ((b - a).abs() > _CLOSE) & (ga != 0) & (gb != 0)
        if not bool(wanted.any()):
            break
        x = torch.where(wanted, a + part * (b - a), a)
        g = value(x)
        same = torch.sign(g) == torch.sign(ga)
        c, gc = torch.where(same, a, b), torch.where(same, ga, gb)
        b, gb = torch.where(same | ~wanted, b, a), torch.where(same | ~wanted, gb, ga)
        a, ga = torch.where(wanted, x, a), torch.where(wanted, g, ga)
        best = torch.where(ga.abs() < gb.abs(), a, b)
        xi, phi = (a - b) / (c - b), (ga - gb) / (gc - gb)
        quadratic = ga / (gb - ga) * gc / (gb - gc) + (c - a) / (b - a) * ga / (gc - ga) * gb / (gc - gb)
        safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi) & torch.isfinite(quadratic)
        least = (0.5 * _CLOSE / (b - a).abs()).clamp(max=0.5)
        part = torch.where(safe, torch.minimum(torch.maximum(quadratic, least), 1 - least), 0.5)
    return best
